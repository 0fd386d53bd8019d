//! The naive reference on random gateways and packets.

use std::collections::HashSet;

use gateway_ebpf::reason::Reason;
use lazaret_tests::differential::{judge, reference, scenario::scenario};

/// The generator is worth nothing where it does not reach: every reason that a single packet can have comes up.
#[test]
fn random_packets_meet_every_reason() {
    let mut found = HashSet::new();
    for seed in 1..400 {
        let scenario = scenario(seed, 200);
        let mut reference = reference(&scenario);
        for step in &scenario.steps {
            reference.now += step.wait;
            found.insert(judge(&mut reference, step).reason);
        }
    }
    let elsewhere = [Reason::Unjudged, Reason::Internal, Reason::FragmentTableFull];
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|r| !found.contains(r.name()) && !elsewhere.contains(r))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
}
