//! See `lazaret_tests::fuzz::decision`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lazaret_tests::fuzz::decision(data));
