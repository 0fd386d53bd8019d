//! The order of a plan, and that any state leads to the desired one.

use std::sync::Arc;

use super::*;
use crate::{
    controller::tests::kit::{self, BLOCKED, LAB, OFFICE, QUARANTINE},
    kernel::fake::FakeKernel,
};

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn to(pool: PoolId, session: u64, lease: Option<u64>) -> Assignment {
    Assignment {
        pool,
        session: SessionId(session),
        interface: "tun0".parse().unwrap(),
        lease: lease.map(|end| (BootTime(end), QUARANTINE)),
    }
}

fn held(a: Assignment) -> Held {
    Held {
        pool: Some(a.pool),
        session: Some(a.session),
        interface: Some(a.interface.clone()),
        lease: a.lease,
    }
}

#[test]
fn restrictions_come_first_and_the_lease_word_brackets_them() {
    let wanted = Desired {
        addresses: [
            (ip("10.66.0.1"), to(LAB, 1, Some(50))),
            (ip("10.66.0.2"), to(QUARANTINE, 2, None)),
            (ip("10.66.0.3"), to(OFFICE, 3, None)),
            (ip("10.66.0.4"), to(BLOCKED, 4, None)),
        ]
        .into(),
        earliest: Some(BootTime(50)),
    };
    let found = Observed {
        addresses: [
            (ip("10.66.0.2"), held(to(OFFICE, 2, None))),
            (ip("10.66.0.3"), held(to(OFFICE, 3, None))),
            (ip("10.66.0.9"), held(to(OFFICE, 9, None))),
        ]
        .into(),
        earliest: None,
    };
    let ops = plan(&wanted, &found, &kit::config());
    let expected = vec![
        Op::EarliestLeaseEnd(Some(BootTime(50))),
        Op::Clear(ip("10.66.0.9")),
        Op::Assign(ip("10.66.0.2"), to(QUARANTINE, 2, None)),
        Op::Assign(ip("10.66.0.4"), to(BLOCKED, 4, None)),
        Op::Assign(ip("10.66.0.1"), to(LAB, 1, Some(50))),
    ];
    assert_eq!(ops, expected);
    // Back: the word moves only after the lease has gone.
    let ops = plan(
        &Desired::default(),
        &Observed {
            addresses: [(ip("10.66.0.1"), held(to(LAB, 1, Some(50))))].into(),
            ..found_at(50)
        },
        &kit::config(),
    );
    assert_eq!(ops, vec![Op::Clear(ip("10.66.0.1")), Op::EarliestLeaseEnd(None)]);
}

fn found_at(earliest: u64) -> Observed {
    Observed {
        addresses: BTreeMap::new(),
        earliest: Some(BootTime(earliest)),
    }
}

#[test]
fn the_word_is_not_moved_back_past_a_failure() {
    let mut kernel = FakeKernel::new(Arc::new(kit::config()));
    kernel.assign(ip("10.66.0.5"), to(LAB, 1, Some(50))).unwrap();
    kernel.set_earliest_lease_end(Some(BootTime(50)));
    kernel.state().failing = 1;
    let wanted = Desired {
        addresses: [(ip("10.66.0.5"), to(QUARANTINE, 1, None))].into(),
        earliest: None,
    };
    let found = observe(&kernel, Some(BootTime(50))).unwrap();
    let applied = apply(plan(&wanted, &found, &kit::config()), &mut kernel);
    assert_eq!((applied.failed.len(), applied.earliest), (1, None));
    assert_eq!(kernel.judged_by(ip("10.66.0.5"), BootTime(50)), Some(QUARANTINE));
}

#[test]
fn any_state_converges_and_then_plans_nothing() {
    let config = Arc::new(kit::config());
    let mut seed = 7_u64;
    let mut roll = move |sides: u64| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % sides
    };
    let some = |roll: &mut dyn FnMut(u64) -> u64| {
        let count = roll(20);
        let one = |_| {
            let address = ip(&if roll(2) == 0 {
                format!("10.66.{}.{}", roll(4), 2 + roll(9))
            } else {
                format!("fd00:66::{:x}", roll(9))
            });
            let pool = [QUARANTINE, OFFICE, LAB, BLOCKED][roll(4) as usize];
            (address, to(pool, roll(5), (pool == LAB).then(|| 1 + roll(100))))
        };
        let addresses: BTreeMap<IpAddr, Assignment> = (0..count).map(one).collect();
        let earliest = addresses.values().filter_map(|a| a.lease).map(|l| l.0).min();
        Desired { addresses, earliest }
    };
    for round in 0..500 {
        let mut kernel = FakeKernel::new(config.clone());
        let before = some(&mut roll);
        for (address, to) in &before.addresses {
            kernel.assign(*address, to.clone()).unwrap();
        }
        // Nobody knows what the word was: the programs look at everything.
        let mut earliest = Some(BootTime(0));
        kernel.set_earliest_lease_end(earliest);
        let wanted = some(&mut roll);
        kernel.state().failing = roll(4) as u32;
        let mut passes = 0;
        loop {
            let ops = plan(&wanted, &observe(&kernel, earliest).unwrap(), &config);
            if ops.is_empty() {
                break;
            }
            passes += 1;
            assert!(passes <= 5, "round {round} does not converge");
            let applied = apply(ops, &mut kernel);
            earliest = applied.earliest.unwrap_or(earliest);
        }
        let state = kernel.state();
        let leases = |d: &BTreeMap<IpAddr, Assignment>| d.iter().map(|(a, to)| (*a, held(to.clone()))).collect::<Vec<_>>();
        assert_eq!(leases(&state.assigned), leases(&wanted.addresses), "round {round}");
        assert_eq!(state.earliest, wanted.earliest, "round {round}");
    }
}
