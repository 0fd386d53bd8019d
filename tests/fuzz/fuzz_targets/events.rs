//! See `lazaret_tests::fuzz::events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lazaret_tests::fuzz::events(data));
