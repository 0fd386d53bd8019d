//! Leases: renewed, over, over while the daemon is down, and over with the daemon dead.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures_util::FutureExt as _;

use super::kit::*;
use crate::{
    controller::{Acknowledge, Enforcement, Refusal, RenewOutcome, Renewal},
    kernel::fake::Call,
    model::{BootTime, DeviceState, ExceptionKind, Now, WallTime},
};

async fn released_in_the_lab() -> Gateway {
    let g = Gateway::new().await;
    g.register("phone", "lab").await;
    g.open("phone", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (LAB, LAB));
    g
}

async fn state(g: &Gateway) -> (DeviceState, String) {
    let device = g.controller().device(id("phone")).await.unwrap().device;
    (device.state, device.state_reason.to_string())
}

#[tokio::test]
async fn a_lease_that_is_not_renewed_ends() {
    let g = released_in_the_lab().await;
    let view = g.controller().device(id("phone")).await.unwrap();
    assert_eq!(view.lease_ends_at, Some(WallTime(START.wall.0 + 3_600_000)));
    g.clock.advance_ms(LEASE_MS / 2);
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
    g.clock.advance_ms(LEASE_MS - 1);
    assert_eq!(g.judged("10.66.0.5"), LAB);
    assert_eq!(state(&g).await.0, DeviceState::Released);
    g.clock.advance_ms(1);
    // From this moment, not from when the daemon notices.
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (QUARANTINE, QUARANTINE));
    g.until("noticed", async |g| g.kernel.state().earliest.is_none()).await;
    assert_eq!(state(&g).await, (DeviceState::Quarantined, "lease_ended".to_owned()));
    let view = g.controller().device(id("phone")).await.unwrap();
    assert_eq!(&*view.device.gateway_uri, "quarantine.vpn.example");
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (QUARANTINE, QUARANTINE));
    // The proof that had begun the lease does not begin another.
    assert!(g.applied_at("phone", -(LEASE_MS as i64) - 1).await.is_err());
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
}

/// The pool is the same before and after: the lease's end is what a renewal changes.
#[tokio::test]
async fn a_renewal_is_enforced_when_its_end_is_read_back() {
    let g = released_in_the_lab().await;
    let old = g.kernel.state().assigned[&ip("10.66.0.5")].lease.unwrap().0;
    g.clock.advance_ms(LEASE_MS / 2);
    g.kernel.state().lease_end = Some(old);
    let mut soon = g.seen(0);
    soon.deadline = Duration::from_millis(50);
    let renewed = g.tell().policy_applied(soon, id("phone"), "r1".parse().unwrap(), None).await;
    assert_eq!(enforcement(renewed), Enforcement::Committed);
    g.kernel.state().lease_end = None;
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
}

#[tokio::test]
async fn a_lease_ends_with_the_daemon_dead() {
    let mut g = released_in_the_lab().await;
    g.stop().await;
    g.clock.advance_ms(LEASE_MS - 1);
    assert_eq!(g.judged("10.66.0.5"), LAB);
    g.clock.advance_ms(1);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    g.start().await.unwrap();
    assert_eq!(state(&g).await, (DeviceState::Quarantined, "lease_ended".to_owned()));
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
}

#[tokio::test]
async fn a_restart_does_not_lengthen_a_lease_and_a_step_of_the_wall_clock_neither() {
    let mut g = released_in_the_lab().await;
    for _ in 0..3 {
        g.clock.advance_ms(LEASE_MS / 4);
        let now = Now {
            wall: WallTime(START.wall.0 - 1_000_000_000),
            ..g.now()
        };
        g.clock.set(now);
        g.restart().await;
        assert_eq!(g.judged("10.66.0.5"), LAB);
    }
    g.clock.advance_ms(LEASE_MS / 4);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
}

#[tokio::test]
async fn after_a_reboot_the_wall_clock_decides_and_never_for_longer() {
    // (milliseconds that the wall clock says have passed, milliseconds that are left)
    for (passed, left) in [
        (LEASE_MS as i64 / 2, LEASE_MS / 2),
        (0, LEASE_MS),
        (LEASE_MS as i64, 0),
        (-1, 0),
        (-1_000_000_000_000, 0),
    ] {
        let mut g = released_in_the_lab().await;
        g.stop().await;
        g.reboot(Now {
            wall: WallTime(START.wall.0 + passed),
            boot: BootTime(5_000_000_000),
            boot_id: 2,
        });
        g.start().await.unwrap();
        assert_eq!(g.judged("10.66.0.5"), if left == 0 { QUARANTINE } else { LAB }, "{passed}");
        // From now on this boot's clock decides: setting the wall clock back and restarting gives nothing. A clock that was behind the last
        // commit has told nothing: with the right time the lease is what it was.
        let left = if passed < 0 { LEASE_MS } else { left };
        g.stop().await;
        let now = g.now();
        g.clock.set(Now {
            wall: WallTime(now.wall.0 - passed),
            ..now
        });
        g.start().await.unwrap();
        if left > 0 {
            g.clock.advance_ms(left - 1);
            assert_eq!(g.judged("10.66.0.5"), LAB, "{passed}");
            g.clock.advance_ms(1);
        }
        assert_eq!(g.judged("10.66.0.5"), QUARANTINE, "{passed}");
    }
}

#[tokio::test]
async fn the_word_that_makes_programs_look_stays_while_the_kernel_could_not_be_told() {
    let g = released_in_the_lab().await;
    g.register("late", "lab").await;
    g.open("late", &["10.66.0.7"]).await.unwrap();
    g.clock.advance_ms(LEASE_MS / 2);
    g.applied("late").await.unwrap();
    g.kernel.state().failing = u32::MAX;
    g.clock.advance_ms(LEASE_MS / 2);
    g.until("noticed", async |g| state(g).await.0 == DeviceState::Quarantined)
        .await;
    // The other device's signal must not move the word past the lease that is still in the kernel's table.
    g.kernel.state().failing = 0;
    g.applied("late").await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    g.until("repaired", async |g| {
        g.controller().status().await.unwrap().warnings.is_empty()
    })
    .await;
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert_eq!(g.judged("10.66.0.7"), LAB);
}

#[tokio::test]
async fn a_release_that_was_held_back_has_its_end_in_the_kernel_from_its_first_moment() {
    let mut g = released_in_the_lab().await;
    // Others come first when everyone is told that the clock has come right: the phone in the third slice.
    let others = (0..600).map(|i| registration(&format!("d{i:03}"), "office")).collect();
    g.tell().register(g.seen(0), others).await.unwrap();
    g.stop().await;
    let behind = Now {
        wall: WallTime(START.wall.0 - 60_000),
        boot: BootTime(5_000_000_000),
        boot_id: 2,
    };
    g.reboot(behind);
    g.start().await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    // The clock comes right, and the first that the controller is told is that the phone connects again.
    let go = g.hold().await;
    g.kernel.take_calls();
    let mut word = g.kernel.state().earliest;
    g.clock.advance_ms(60_000);
    let mut open = Box::pin(g.open("phone", &["10.66.0.5"]));
    assert!((&mut open).now_or_never().is_none());
    go.send(()).unwrap();
    open.await.unwrap();
    g.until("everyone is told", async |g| g.kernel.state().earliest > Some(BootTime(0)))
        .await;
    assert_eq!(g.judged("10.66.0.5"), LAB);
    let mut leases: BTreeMap<IpAddr, BootTime> = BTreeMap::new();
    for call in g.kernel.take_calls() {
        match call {
            Call::Assign(address, to) => {
                leases.remove(&address);
                leases.extend(to.lease.map(|(end, _)| (address, end)));
            }
            Call::Clear(address) => drop(leases.remove(&address)),
            Call::EarliestLeaseEnd(end) => word = end,
            Call::Links(_) | Call::Note(_) => {}
        }
        let looks = |end: &BootTime| word.is_some_and(|word| word <= *end);
        assert!(leases.values().all(looks), "the kernel would not end it: {leases:?} {word:?}");
    }
    assert!(!leases.is_empty());
}

/// A batch of renewals is read back at once, and each is answered by what was read of its own.
#[tokio::test]
async fn renewals_in_bulk_are_read_back_each() {
    let g = released_in_the_lab().await;
    g.register("tablet", "lab").await;
    g.register("away", "lab").await;
    g.open("tablet", &["10.66.0.6"]).await.unwrap();
    for name in ["tablet", "away"] {
        g.applied(name).await.unwrap();
    }
    let names = ["phone", "nobody", "tablet", "away"].map(id).to_vec();
    let levels = |outcome: RenewOutcome| -> Vec<Option<Enforcement>> {
        let level = |r: Renewal| r.result.ok().map(|o| o.enforcement);
        outcome.renewals.into_iter().map(level).collect()
    };
    g.clock.advance_ms(LEASE_MS / 2);
    let looks = g.kernel.state().looks;
    let outcome = g.tell().renew_leases(g.seen(0), names.clone()).await.unwrap();
    let view = &outcome.renewals[0].result.as_ref().unwrap().device;
    assert_eq!(view.lease_ends_at, Some(WallTime(g.now().wall.0 + 3_600_000)));
    let (enforced, unseen) = (Some(Enforcement::Enforced), Some(Enforcement::NoSession));
    assert_eq!(levels(outcome), [enforced, None, enforced, unseen]);
    // Once; and anew, where the commit took longer than a look holds.
    let looked = g.kernel.state().looks - looks;
    assert!((1..=2).contains(&looked), "{looked}");

    // Signals of one device each, in one batch.
    let go = g.hold().await;
    let mut waiting: Vec<_> = (0..20)
        .map(|_| Box::pin(g.tell().renew_leases(g.seen(0), names[..1].to_vec())))
        .collect();
    waiting.iter_mut().for_each(|w| assert!(w.now_or_never().is_none()));
    let looks = g.kernel.state().looks;
    go.send(()).unwrap();
    for told in waiting {
        assert_eq!(levels(told.await.unwrap()), [enforced]);
    }
    assert!(g.kernel.state().looks - looks <= 2, "one look for all of a batch");

    // What is not read back is not said to be in force; who does not wait is not told.
    let old = g.kernel.state().assigned[&ip("10.66.0.5")].lease.unwrap().0;
    g.clock.advance_ms(LEASE_MS / 4);
    g.kernel.state().lease_end = Some(old);
    let mut soon = g.seen(0);
    soon.deadline = Duration::from_millis(50);
    let told = g.tell().renew_leases(soon, names.clone()).await.unwrap();
    let committed = Some(Enforcement::Committed);
    assert!(!told.renewals[0].result.as_ref().unwrap().addresses.is_empty());
    assert_eq!(levels(told), [committed, None, committed, unseen]);
    g.kernel.state().lease_end = None;
    let mut fast = g.seen(0);
    fast.acknowledge = Acknowledge::Committed;
    let told = g.tell().renew_leases(fast, names).await.unwrap();
    assert_eq!(levels(told), [committed, None, committed, unseen]);
}

/// What is over of a later device of the list settles the batch; were that to fail, no renewal must have been in it.
#[tokio::test]
async fn a_renewal_that_was_not_committed_is_not_answered() {
    let g = released_in_the_lab().await;
    g.register("tablet", "lab").await;
    g.applied("tablet").await.unwrap();
    g.clock.advance_ms(LEASE_MS / 2);
    let go = g.hold().await;
    // It ends as it is granted, and before it is committed.
    let (kind, why) = (ExceptionKind::Release, "a moment".to_owned());
    let mut granted = Box::pin(g.tell().grant_exception(g.seen(0), id("tablet"), kind, why, Duration::ZERO));
    let mut renewed = Box::pin(g.tell().renew_leases(g.seen(0), ["phone", "tablet"].map(id).to_vec()));
    assert!((&mut granted).now_or_never().is_none());
    assert!((&mut renewed).now_or_never().is_none());
    // The first commit fails, the second does not.
    g.disk.fill();
    let (first, second) = (g.disk.clone(), g.disk.clone());
    g.disk.meanwhile(move || first.meanwhile(move || second.free()));
    go.send(()).unwrap();
    assert!(matches!(granted.await, Err(Refusal::StoreUnavailable(_))));
    let renewed = renewed.await.unwrap().renewals.remove(0).result.unwrap();
    assert_eq!(renewed.device.lease_ends_at, Some(WallTime(g.now().wall.0 + 3_600_000)));
    g.clock.advance_ms(LEASE_MS / 2);
    assert_eq!(g.judged("10.66.0.5"), LAB);
}

#[tokio::test]
async fn a_proof_is_spent_when_its_lease_is_over_however_many_end_with_it() {
    // More than end in one turn.
    const DEVICES: usize = 300;
    let g = Gateway::new().await;
    let name = |n: usize| format!("phone-{n:03}");
    let list = (0..DEVICES).map(|n| registration(&name(n), "lab")).collect();
    g.tell().register(g.seen(0), list).await.unwrap();
    for n in 0..DEVICES {
        g.applied(&name(n)).await.unwrap();
    }
    let last = name(DEVICES - 1);
    let (seen, go) = (g.seen(0), g.hold().await);
    g.clock.advance_ms(LEASE_MS);
    let controller = g.controller().clone();
    let (device, renewing) = (id(&last), g.seen(0));
    let again = tokio::spawn(async move {
        let renewed = controller.renew_leases(renewing, vec![device.clone()]);
        let proved = controller.policy_applied(seen, device, "rev-1".parse().unwrap(), None);
        let (renewed, proved) = tokio::join!(renewed, proved);
        let renewed = renewed.unwrap().first().unwrap().renewals.remove(0);
        (
            renewed.result.map(drop).map_err(|e| e.refusal),
            proved.map(drop).map_err(|e| e.refusal),
        )
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    go.send(()).unwrap();
    assert_eq!(
        again.await.unwrap(),
        (Err(Refusal::NotReleased(id(&last))), Err(Refusal::StaleSignal))
    );
    assert_eq!(
        g.applied(&last).await.unwrap().device.device.state,
        DeviceState::Released,
        "a later one is another"
    );
}
