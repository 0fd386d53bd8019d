//! A disk that is full: what loosens does not happen, what restricts does.

use std::{sync::mpsc::channel, time::Duration};

use super::kit::*;
use crate::{
    controller::{Enforcement, Refusal, SignalContext},
    kernel::fake::Call,
    model::DeviceState,
};

fn unavailable<T: std::fmt::Debug>(result: Result<T, Refusal>) {
    assert!(matches!(result, Err(Refusal::StoreUnavailable(_))), "{result:?}");
}

#[tokio::test]
async fn a_release_that_cannot_be_committed_changes_nothing() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.kernel.take_calls();
    g.disk.fill();
    unavailable(g.applied("phone").await);
    unavailable(g.open("phone", &["10.66.0.5"]).await);
    unavailable(g.tell().register(g.seen(0), vec![registration("new", "office")]).await);
    let calls = g.kernel.take_calls();
    assert!(
        !calls.iter().any(|c| matches!(c, Call::Assign(_, to) if to.pool == OFFICE)),
        "{calls:?}"
    );
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert_eq!(
        g.controller().device(id("phone")).await.unwrap().device.state,
        DeviceState::Quarantined
    );
    assert_ne!(g.controller().status().await.unwrap().store, "ok");
    g.disk.free();
    g.restart().await;
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert_eq!(
        g.controller().device(id("phone")).await.unwrap().device.state,
        DeviceState::Quarantined
    );
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::NoSession);
}

#[tokio::test]
async fn a_restriction_that_cannot_be_committed_is_in_force_and_becomes_durable() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let before = g.applied("phone").await.unwrap();
    g.clock.advance_ms(1000);
    let (_, changes) = g.controller().watch_gateway_uris(None).await.unwrap();
    let mut changes = changes.unwrap();
    g.disk.fill();

    let revoked = g.revoked("phone").await.unwrap();
    assert_eq!(revoked.enforcement, Enforcement::EnforcedNotDurable);
    assert_eq!(revoked.revision, before.revision);
    assert_eq!(revoked.device.device.state, DeviceState::Quarantined);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert_eq!(enforcement(g.revoked("phone").await), Enforcement::EnforcedNotDurable);
    let status = g.controller().status().await.unwrap();
    assert_eq!(status.not_durable, 1);
    assert!(status.warnings.iter().any(|w| w.contains("not durable")));
    g.clock.advance_ms(1000);
    unavailable(g.applied("phone").await);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert!(changes.try_recv().is_err(), "a change that is not durable must not be told");

    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    let change = changes.recv().await.unwrap();
    assert_eq!(
        (change.old.as_str(), change.new.as_str()),
        ("office.vpn.example", "quarantine.vpn.example")
    );
    assert_eq!(g.controller().status().await.unwrap().store, "ok");
    g.restart().await;
    let device = g.controller().device(id("phone")).await.unwrap().device;
    assert_eq!(
        (device.state, device.release.restricted_at),
        (DeviceState::Quarantined, revoked.device.device.release.restricted_at)
    );
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
}

#[tokio::test]
async fn what_is_not_durable_yet_never_overwrites_what_came_after_it() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.disk.fill();
    assert_eq!(enforcement(g.revoked("phone").await), Enforcement::EnforcedNotDurable);
    g.disk.free();
    let mut changed = registration("phone", "lab");
    changed.owner = "another".to_owned();
    g.tell().register(g.seen(0), vec![changed]).await.unwrap();
    g.restart().await;
    let device = g.controller().device(id("phone")).await.unwrap().device;
    assert_eq!((&*device.owner, device.full_service_pool.as_str()), ("another", "lab"));
    assert_eq!(
        (device.state, device.release.restricted_at),
        (DeviceState::Quarantined, Some(START.wall))
    );
}

#[tokio::test]
async fn closing_and_retiring_are_not_refused_by_a_full_disk() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.register("other", "office").await;
    let session = g.open("phone", &["10.66.0.5"]).await.unwrap().session.session.id;
    g.open("other", &["10.66.0.6"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.applied("other").await.unwrap();
    g.disk.fill();
    let closed = g.tell().close_session(g.seen(0), session).await.unwrap();
    assert_eq!((closed.ended, closed.enforcement), (true, Enforcement::EnforcedNotDurable));
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    let again = g.tell().close_session(g.seen(0), session).await.unwrap();
    assert_eq!((again.ended, again.enforcement), (false, Enforcement::EnforcedNotDurable));
    let retired = g.tell().retire(g.seen(0), id("other")).await.unwrap();
    assert_eq!(retired.enforcement, Enforcement::EnforcedNotDurable);
    assert_eq!(g.judged("10.66.0.6"), BLOCKED);
    assert_eq!(g.controller().status().await.unwrap().not_durable, 2);
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    g.restart().await;
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 1);
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (QUARANTINE, BLOCKED));
}

#[tokio::test]
async fn an_address_handed_over_on_a_full_disk_is_nobodys() {
    let mut g = Gateway::new().await;
    g.register("old", "office").await;
    g.register("new", "office").await;
    g.open("old", &["10.66.0.5", "10.66.0.6"]).await.unwrap();
    g.applied("old").await.unwrap();
    g.applied("new").await.unwrap();
    g.disk.fill();
    unavailable(g.open("new", &["10.66.0.5", "10.66.0.9"]).await);
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (QUARANTINE, QUARANTINE));
    assert!(g.controller().sessions(None, 10).await.unwrap().is_empty());
    assert!(g.kernel.state().assigned.is_empty());
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    g.restart().await;
    assert!(g.controller().sessions(None, 10).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_kernel_that_fails_is_tried_again_and_never_acknowledged_as_enforced() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.kernel.state().failing = 1;
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Committed);
    g.until("repaired", async |g| g.judged("10.66.0.5") == OFFICE).await;
    g.clock.advance_ms(1);
    g.kernel.state().failing = 1;
    assert_eq!(enforcement(g.revoked("phone").await), Enforcement::Committed);
    g.until("repaired", async |g| g.judged("10.66.0.5") == QUARANTINE).await;
    g.until("told", async |g| g.controller().status().await.unwrap().warnings.is_empty())
        .await;
    // Neither in the kernel nor on the disk: not acknowledged, and both are put right.
    g.clock.advance_ms(1);
    g.applied("phone").await.unwrap();
    g.disk.fill();
    g.kernel.state().failing = 1;
    assert!(matches!(g.revoked("phone").await, Err(Refusal::Kernel(_))));
    g.until("repaired", async |g| g.judged("10.66.0.5") == QUARANTINE).await;
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
}

#[tokio::test]
async fn the_death_of_the_thread_is_seen() {
    let mut g = Gateway::new().await;
    g.disk.poison();
    let refused = g.tell().register(g.seen(0), vec![registration("phone", "office")]).await;
    assert_eq!(refused, Err(Refusal::Busy));
    assert!(g.ended().await.is_err());
    assert_eq!(g.controller().status().await.unwrap_err(), Refusal::Busy);
}

#[tokio::test]
async fn stopping_finishes_what_was_asked_and_leaves_the_kernel() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let applied = g.applied("phone");
    let (answer, ()) = tokio::join!(applied, g.controller().shutdown());
    // Asked before or after the end: answered or refused, never lost.
    assert!(answer.is_ok() || answer == Err(Refusal::Busy));
    g.ended().await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), if answer.is_ok() { OFFICE } else { QUARANTINE });
}

#[tokio::test]
async fn restrictions_are_in_force_while_the_network_configuration_is_locked() {
    let g = Gateway::new().await;
    for i in 0..40 {
        let (name, address) = (format!("phone-{i}"), format!("10.66.0.{}", 10 + i));
        g.register(&name, "office").await;
        g.open(&name, &[address.as_str()]).await.unwrap();
        g.applied(&name).await.unwrap();
    }
    g.clock.advance_ms(1000);
    // Someone holds it, while interfaces change and everything is asked for that takes it.
    let (kernel, (holds, held), (release, released)) = (g.kernel.clone(), channel(), channel());
    let holder = std::thread::spawn(move || {
        let _network = kernel.network();
        holds.send(()).unwrap();
        // Until the test has seen all of it, however long that takes.
        released.recv().unwrap();
    });
    held.recv().unwrap();
    g.controller().set_links(links()[..1].to_vec());
    let controller = g.controller().clone();
    let status = tokio::spawn(async move { controller.status().await });
    tokio::time::sleep(Duration::from_millis(60)).await;

    let mut waiting = Vec::new();
    for i in 0..40 {
        let address = format!("10.66.0.{}", 10 + i);
        assert_eq!(g.judged(&address), OFFICE);
        let controller = g.controller().clone();
        let context = SignalContext {
            deadline: Duration::from_secs(3600),
            ..g.seen(0)
        };
        let device = id(&format!("phone-{i}"));
        waiting.push(tokio::spawn(async move {
            controller.policy_revoked(context, device, "test".to_owned()).await
        }));
        let restricted = async {
            while g.judged(&address) != QUARANTINE {
                tokio::time::sleep(Duration::from_micros(100)).await;
            }
        };
        // No limit of ours: so that a failure ends.
        let restricted = tokio::time::timeout(Duration::from_secs(60), restricted).await;
        assert!(restricted.is_ok(), "restriction {i} is not in force");
    }
    // What nothing could be read back of is not called enforced.
    assert!(waiting.iter().all(|w| !w.is_finished()));
    // Questions that need none of it are answered meanwhile.
    assert_eq!(
        g.controller().device(id("phone-0")).await.unwrap().device.state,
        DeviceState::Quarantined
    );
    g.controller().set_links(links());
    release.send(()).unwrap();
    holder.join().unwrap();
    for answer in waiting {
        let outcome = answer.await.unwrap().unwrap().first().unwrap();
        assert_eq!(outcome.enforcement, Enforcement::Enforced);
    }
    status.await.unwrap().unwrap();
    assert_eq!(g.controller().status().await.unwrap().floor, "closed");
}

#[tokio::test]
async fn what_cannot_be_read_back_in_time_is_answered_as_committed() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.clock.advance_ms(1000);
    let (kernel, (holds, held)) = (g.kernel.clone(), channel());
    let (release, released) = channel::<()>();
    let holder = std::thread::spawn(move || {
        let _network = kernel.network();
        holds.send(()).unwrap();
        let _ = released.recv();
    });
    held.recv().unwrap();
    // Another restriction comes while the first waits.
    let (controller, context) = (g.controller().clone(), g.seen(0));
    let first = tokio::spawn(async move { controller.policy_revoked(context, id("phone"), "test".to_owned()).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    g.tell().retire(g.seen(0), id("phone")).await.unwrap();
    let outcome = first.await.unwrap().unwrap().first().unwrap();
    assert_eq!(outcome.enforcement, Enforcement::Committed);
    drop(release);
    holder.join().unwrap();
}

/// Each revocation is a batch of its own, and none of them can be written: what waits must not be written again with each of them.
#[tokio::test]
async fn a_mass_revocation_on_a_full_disk_costs_each_device_once_and_all_of_it_becomes_durable() {
    const MANY: usize = 2000;
    let mut g = Gateway::new().await;
    let names: Vec<String> = (0..MANY).map(|i| format!("d-{i}")).collect();
    for some in names.chunks(500) {
        let list = some.iter().map(|n| registration(n, "office")).collect();
        g.tell().register(g.seen(0), list).await.unwrap();
    }
    for name in &names[..2] {
        g.applied(name).await.unwrap();
    }
    g.clock.advance_ms(1000);
    g.disk.fill();
    let (before, begin) = (g.disk.devices_written(), std::time::Instant::now());
    for name in &names {
        assert_eq!(enforcement(g.revoked(name).await), Enforcement::EnforcedNotDurable);
        if name == "d-1000" {
            unavailable(g.applied("d-1500").await);
        }
    }
    let written = g.disk.devices_written() - before;
    // 1 + 2 + ... + 512, and what is tried again by the clock; all of them each time would be 2,000,000.
    let by_the_clock = usize::try_from(begin.elapsed().as_millis()).unwrap() / 40 + 10;
    assert!(
        written < 131_328 + by_the_clock * MANY,
        "{written}, of them {by_the_clock} times by the clock"
    );
    assert_eq!(g.controller().status().await.unwrap().not_durable, MANY as u64);
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    g.restart().await;
    for name in names.iter().step_by(97) {
        let device = g.controller().device(id(name)).await.unwrap().device;
        assert_eq!(device.state, DeviceState::Quarantined, "{name}");
        assert!(device.release.restricted_at.is_some(), "{name}");
    }
}

/// The lock is held when the daemon starts: what restricts is taken, in force where programs are attached, and answered for what it is.
#[tokio::test]
async fn a_start_does_not_wait_for_ever_for_the_network_configuration() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.clock.advance_ms(1000);
    g.stop().await;
    let (kernel, (holds, held), (release, released)) = (g.kernel.clone(), channel(), channel());
    let holder = std::thread::spawn(move || {
        let _network = kernel.network();
        holds.send(()).unwrap();
        released.recv_timeout(Duration::from_secs(20)).unwrap();
    });
    held.recv().unwrap();
    g.start().await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), OFFICE, "as before");
    let soon = SignalContext {
        deadline: Duration::from_millis(50),
        ..g.seen(0)
    };
    let told = g.tell().policy_revoked(soon, id("phone"), "test".into()).await.unwrap();
    assert_eq!(told.enforcement, Enforcement::Committed);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    let attached = |g: &Gateway| g.kernel.state().calls.iter().any(|c| matches!(c, Call::Links(_)));
    release.send(()).unwrap();
    holder.join().unwrap();
    g.until("attached", async |g| attached(g)).await;
    assert_eq!(enforcement(g.revoked("phone").await), Enforcement::Enforced);
}
