//! The data plane, packet by packet: the decision as the host computes it and as the loaded kernel object does.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod companion;
mod frame;
mod kernel;
mod object;
mod random;
mod table;
mod world;

use object::{PROGRAMS, open};

/// The verifier accepts every program, at a cost that leaves room.
#[test]
fn programs_load_within_bounds() {
    let Some(object) = open("programs_load_within_bounds") else {
        return;
    };
    println!("{:16} {:>10} {:>8} {:>8}", "program", "verified", "xlated", "jited");
    for name in PROGRAMS {
        let info = object.info(name);
        let verified = info.verified_instruction_count().unwrap_or(0);
        println!(
            "{name:16} {verified:>10} {:>8} {:>8}",
            info.size_translated().unwrap_or(0) / 8,
            info.size_jitted()
        );
        assert!(
            verified < 200_000,
            "{name}: {verified} of the verifier's 1,000,000 instructions"
        );
    }
}
