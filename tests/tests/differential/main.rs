//! The shipping decision against the naive reference, on random gateways and packets.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::time::Instant;

use gateway_ebpf::reason::Reason;
use lazaret_tests::differential::run;

/// Packets of one scenario.
const PACKETS: u64 = 200;

/// `LAZARET_TEST_SEED` starts elsewhere, `LAZARET_TEST_CASES` judges more packets. The generator is worth nothing where it does not reach:
/// every reason that a packet can have comes up, and none of its configurations is refused.
#[test]
fn the_reference_and_the_shipping_decision_agree() {
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |v| v.parse().unwrap());
    let (first, cases) = (number("LAZARET_TEST_SEED", 1), number("LAZARET_TEST_CASES", 100_000));
    let start = Instant::now();
    let covered = run(first..first + cases.div_ceil(PACKETS), PACKETS as usize).unwrap_or_else(|finding| panic!("{finding}"));
    println!(
        "{} packets, {} of them the short way, in {:?}: {:?}",
        covered.packets,
        covered.quick,
        start.elapsed(),
        covered.reasons
    );
    assert!(covered.quick > covered.packets / 100, "{} the short way", covered.quick);
    assert_eq!(covered.refused, 0, "{}", covered.refusal);
    let elsewhere = [Reason::Unjudged, Reason::Internal, Reason::FragmentTableFull];
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|r| !covered.reasons.contains_key(r.name()) && !elsewhere.contains(r))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
