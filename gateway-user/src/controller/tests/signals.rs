//! Signals about devices: what follows, and in which order.

use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::kit::*;
use crate::{
    controller::{Enforcement, Refusal, Registration, SignalContext},
    kernel::{HookPoint, fake::Call},
    model::{DeviceState, Identity, Revision, Role, Scope},
};

#[tokio::test]
async fn a_release_is_committed_before_the_kernel_knows_it() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let opened = g.open("phone", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    assert_eq!(opened.enforcement, Enforcement::Enforced);
    assert_eq!(opened.session.current_pool, QUARANTINE);
    assert_eq!(opened.gateway_uri, "quarantine.vpn.example");
    g.kernel.take_calls();

    let released = g.applied("phone").await.unwrap();
    assert_eq!(released.enforcement, Enforcement::Enforced);
    assert_eq!(released.device.device.state, DeviceState::Released);
    assert_eq!(&*released.device.device.gateway_uri, "office.vpn.example");
    assert_eq!(released.device.device.revision, released.revision);
    assert_eq!(released.addresses.len(), 2);
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (OFFICE, OFFICE));
    let calls = g.kernel.take_calls();
    let committed = calls.iter().position(|c| *c == Call::Note("committed")).unwrap();
    let assigned: Vec<usize> = (0..calls.len()).filter(|i| matches!(calls[*i], Call::Assign(..))).collect();
    assert_eq!(assigned.len(), 2);
    assert!(assigned.iter().all(|i| *i > committed), "{calls:?}");
}

#[tokio::test]
async fn a_restriction_is_in_the_kernel_before_it_is_committed() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.clock.advance_ms(1000);
    g.kernel.take_calls();

    let revoked = g.revoked("phone").await.unwrap();
    assert_eq!(revoked.enforcement, Enforcement::Enforced);
    assert_eq!(revoked.device.device.state, DeviceState::Quarantined);
    assert_eq!(&*revoked.device.device.gateway_uri, "quarantine.vpn.example");
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (QUARANTINE, QUARANTINE));
    let calls = g.kernel.take_calls();
    let committed = calls.iter().position(|c| *c == Call::Note("committed")).unwrap();
    let assigned: Vec<usize> = (0..calls.len()).filter(|i| matches!(calls[*i], Call::Assign(..))).collect();
    assert_eq!(assigned.len(), 2);
    assert!(assigned.iter().all(|i| *i < committed), "{calls:?}");
}

#[tokio::test]
async fn signals_without_a_session_apply_when_it_connects() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::NoSession);
    let opened = g.open("phone", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    assert_eq!(opened.enforcement, Enforcement::Enforced);
    assert_eq!(opened.session.current_pool, OFFICE);
    assert_eq!(opened.gateway_uri, "office.vpn.example");
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (OFFICE, OFFICE));
}

#[tokio::test]
async fn repeating_a_signal_gives_the_same_result_and_commits_nothing() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let first = g.applied("phone").await.unwrap();
    let again = g.applied("phone").await.unwrap();
    assert_eq!(first, again);
    let first = g.revoked("phone").await.unwrap();
    let again = g.revoked("phone").await.unwrap();
    assert_eq!(first, again);
    g.register("phone", "office").await;
    assert_eq!(g.controller().status().await.unwrap().revision, again.revision);
}

#[tokio::test]
async fn a_release_needs_proof_newer_than_the_restriction_and_not_from_the_future() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.revoked("phone").await.unwrap();
    assert_eq!(g.applied_at("phone", 0).await, Err(Refusal::StaleSignal));
    assert_eq!(g.applied_at("phone", -60_000).await, Err(Refusal::StaleSignal));
    assert_eq!(g.applied_at("phone", 120_001).await, Err(Refusal::SignalFromFuture));
    let mut context = g.seen(0);
    context.observed_at = None;
    let undated = g
        .tell()
        .policy_applied(context, id("phone"), "rev-1".parse().unwrap(), None)
        .await;
    assert_eq!(undated, Err(Refusal::StaleSignal));
    assert_eq!(
        g.applied_at("phone", 120_000).await.unwrap().device.device.state,
        DeviceState::Released
    );
}

#[tokio::test]
async fn a_restriction_dated_ahead_does_not_lock_later_releases_out() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.tell()
        .policy_revoked(g.seen(1_000_000_000), id("phone"), String::new())
        .await
        .unwrap();
    // No further ahead than a proof may be dated.
    g.clock.advance_ms(120_000);
    assert_eq!(g.applied("phone").await, Err(Refusal::StaleSignal));
    g.clock.advance_ms(1);
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::NoSession);
}

/// The kernel is asked what is attached while the disk writes; if that takes long, the answer is asked anew.
#[tokio::test]
async fn a_program_detached_while_the_disk_writes_is_not_answered_as_enforced() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let (kernel, looks) = (g.kernel.clone(), g.kernel.state().looks);
    g.disk.meanwhile(move || {
        let end = Instant::now() + Duration::from_secs(10);
        while kernel.state().looks == looks {
            assert!(Instant::now() < end, "nobody has looked");
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut state = kernel.state();
        state.stuck = true;
        state.detached.insert((3, HookPoint::TcIngress));
        drop(state);
        std::thread::sleep(Duration::from_millis(20));
    });
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Committed);
}

#[tokio::test]
async fn a_program_detached_by_hand_is_never_answered_as_enforced() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    for hook in [
        (3, HookPoint::TcIngress),
        (3, HookPoint::TcEgress),
        (2, HookPoint::Xdp),
        (2, HookPoint::TcIngress),
    ] {
        {
            let mut kernel = g.kernel.state();
            kernel.stuck = true;
            kernel.detached = [hook].into();
        }
        let answer = g.applied("phone").await.unwrap();
        assert_eq!(answer.enforcement, Enforcement::Committed, "{hook:?}");
        let missing = answer.addresses[0].read_backs.iter().filter(|r| r.reading.is_none()).count();
        assert_eq!(missing, 1);
        assert_eq!(enforcement(g.revoked("phone").await), Enforcement::Committed, "{hook:?}");
        let status = g.controller().status().await.unwrap();
        assert!(
            status.warnings.iter().any(|w| w.contains("not attached")),
            "{:?}",
            status.warnings
        );
        g.clock.advance_ms(1);
    }
    // Not stuck any more, the periodic check repairs it.
    g.kernel.state().stuck = false;
    g.until("repaired", async |g| g.kernel.state().detached.is_empty()).await;
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
}

#[tokio::test]
async fn without_its_interface_a_session_is_not_answered_as_enforced() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let only_core = links().into_iter().filter(|l| l.name.as_str() == "core0").collect();
    g.controller().set_links(only_core);
    g.until("seen", async |g| g.kernel.state().links.len() == 1).await;
    let answer = g.applied("phone").await.unwrap();
    assert_eq!(answer.enforcement, Enforcement::Committed);
    let missing = answer.addresses[0].read_backs.iter().filter(|r| r.reading.is_none());
    let missing: Vec<_> = missing.map(|r| (r.interface.as_str(), r.ifindex, r.hook)).collect();
    assert_eq!(
        missing,
        [("tun0", 0, HookPoint::TcIngress), ("tun0", 0, HookPoint::TcEgress)],
        "says where not"
    );
    let mut other = links();
    other[1].name = "tun9".parse().unwrap();
    g.controller().set_links(other);
    g.until("seen", async |g| g.kernel.state().links.len() == 2).await;
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Committed);
    g.controller().set_links(links());
    g.until("seen", async |g| g.kernel.state().links[1].name.as_str() == "tun0")
        .await;
    assert_eq!(enforcement(g.applied("phone").await), Enforcement::Enforced);
}

#[tokio::test]
async fn a_retired_device_is_blocked_and_stays_so() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    let retired = g.tell().retire(g.seen(0), id("phone")).await.unwrap();
    assert_eq!(retired.enforcement, Enforcement::Enforced);
    assert_eq!(retired.device.device.state, DeviceState::Retired);
    assert_eq!(&*retired.device.device.gateway_uri, "quarantine.vpn.example");
    assert_eq!(retired.device.sessions.len(), 1);
    assert_eq!(g.judged("10.66.0.5"), BLOCKED);
    g.clock.advance_ms(1000);
    let refused = || Refusal::DeviceRetired(id("phone"));
    assert_eq!(g.applied("phone").await, Err(refused()));
    assert_eq!(g.revoked("phone").await, Err(refused()));
    assert_eq!(g.open("phone", &["10.66.0.6"]).await, Err(refused()));
    assert_eq!(
        g.tell().register(g.seen(0), vec![registration("phone", "office")]).await,
        Err(refused())
    );
    assert_eq!(g.tell().retire(g.seen(0), id("phone")).await.unwrap().device, retired.device);
    assert_eq!(g.applied("nobody").await, Err(Refusal::UnknownDevice(id("nobody"))));
    assert_eq!(g.revoked("nobody").await, Err(Refusal::UnknownDevice(id("nobody"))));
}

#[tokio::test]
async fn registering_is_all_or_none_and_aliases_belong_to_one_device() {
    let g = Gateway::new().await;
    let mut one = registration("one", "office");
    one.common_names = vec![id("cn-1")];
    one.certificates = vec!["aa".repeat(32).parse().unwrap()];
    g.tell().register(g.seen(0), vec![one.clone()]).await.unwrap();
    let taken = |alias: &str| Refusal::AliasTaken {
        alias: alias.to_owned(),
        owner: Some(id("one")),
    };
    let mut two = registration("two", "office");
    two.common_names = vec![id("cn-1")];
    let register = async |list| g.tell().register(g.seen(0), list).await.map(|_| ());
    assert_eq!(
        register(vec![registration("three", "office"), two.clone()]).await,
        Err(taken("cn-1"))
    );
    two.common_names = vec![id("one")];
    assert_eq!(register(vec![two.clone()]).await, Err(taken("one")));
    two.common_names.clear();
    two.certificates.clone_from(&one.certificates);
    assert_eq!(register(vec![two.clone()]).await, Err(taken(&"aa".repeat(32))));
    assert_eq!(register(vec![registration("cn-1", "office")]).await, Err(taken("cn-1")));
    let unknown = |pool: &str| Err(Refusal::UnknownPool(pool.to_owned()));
    assert_eq!(
        register(vec![registration("three", "quarantine")]).await,
        unknown("quarantine")
    );
    let mut no_pool = registration("three", "office");
    no_pool.full_service_pool = None;
    assert_eq!(register(vec![no_pool]).await, unknown("(none named)"));
    assert_eq!(
        g.controller().devices(None, 10, None, Scope::default()).await.unwrap().len(),
        1
    );
    // In one list an alias may move from a device to another.
    one.certificates.clear();
    register(vec![two, one]).await.unwrap();
    let holders = g.controller().devices(None, 10, None, Scope::default()).await.unwrap();
    assert_eq!(
        holders
            .iter()
            .map(|d| d.device.aliases.certificates.len())
            .collect::<Vec<_>>(),
        [0, 1]
    );
    // A retired device's is free, once.
    g.tell().retire(g.seen(0), id("two")).await.unwrap();
    let with = |name: &str| {
        let mut new = registration(name, "office");
        new.certificates = vec!["aa".repeat(32).parse().unwrap()];
        vec![new]
    };
    register(with("four")).await.unwrap();
    let refused = register(with("five")).await.unwrap_err();
    assert!(
        matches!(&refused, Refusal::AliasTaken { owner: Some(o), .. } if *o == id("four")),
        "{refused:?}"
    );
}

#[tokio::test]
async fn registering_again_moves_a_released_device_but_releases_none() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.register("other", "office").await;
    g.open("phone", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    g.open("other", &["10.66.0.6"]).await.unwrap();
    g.applied("phone").await.unwrap();
    let list = vec![registration("phone", "lab"), registration("other", "lab")];
    let (views, revision) = g.tell().register(g.seen(0), list).await.unwrap();
    assert_eq!(&*views[0].device.gateway_uri, "lab.vpn.example");
    assert_eq!(views[0].device.revision, revision);
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (LAB, LAB));
    assert_eq!(&*views[1].device.gateway_uri, "quarantine.vpn.example");
    assert_eq!(g.judged("10.66.0.6"), QUARANTINE);
    // The new pool has a lease, and the release takes it on.
    assert!(views[0].lease_ends_at.is_some());
    // Back in a pool without one, it stays: no proof was given for more.
    let (views, _) = g
        .tell()
        .register(g.seen(0), vec![registration("phone", "office")])
        .await
        .unwrap();
    assert!(views[0].lease_ends_at.is_some());
}

#[tokio::test]
async fn lists_go_on_where_they_ended() {
    let g = Gateway::new().await;
    let list = ["a", "b", "c", "d"].map(|d| registration(d, "office")).to_vec();
    let (_, revision) = g.tell().register(g.seen(0), list).await.unwrap();
    assert_eq!(revision, Revision(1));
    g.applied("c").await.unwrap();
    let ids = async |after: Option<&str>, limit, state| {
        let found = g
            .controller()
            .devices(after.map(id), limit, state, Scope::default())
            .await
            .unwrap();
        found.into_iter().map(|d| d.device.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(None, 2, None).await, ["a", "b"]);
    assert_eq!(ids(Some("b"), 9, None).await, ["c", "d"]);
    assert_eq!(ids(Some("d"), 9, None).await, [""; 0]);
    assert_eq!(ids(None, 9, Some(DeviceState::Released)).await, ["c"]);
}

#[tokio::test]
async fn a_list_of_a_scope_looks_at_nothing_else() {
    let g = Gateway::new().await;
    let names = ["a-1", "a-2", "a1", "b", "b-1", "b-2", "c", "spare", "spare2"];
    g.tell()
        .register(g.seen(0), names.map(|d| registration(d, "office")).to_vec())
        .await
        .unwrap();
    for patterns in [
        &["b-*", "spare"][..],
        &["spare", "a-*", "a-2", "b-1", "b-*"],
        &["*", "a-1"],
        &["none", "zz*"],
        &[],
    ] {
        let scope = Scope {
            devices: Some(patterns.iter().map(|p| p.parse().unwrap()).collect()),
            ..Scope::default()
        };
        let want: Vec<&str> = names.into_iter().filter(|n| scope.has_device(n)).collect();
        for limit in [1, 2, 100] {
            let (mut found, mut after) = (Vec::new(), None);
            loop {
                let page = g.controller().devices(after, limit, None, scope.clone()).await.unwrap();
                assert!(page.len() <= limit as usize);
                after = page.last().map(|d| d.device.id.clone());
                found.extend(page.into_iter().map(|d| d.device.id.to_string()));
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(found, want, "{patterns:?} by {limit}");
        }
    }
}

/// A gateway on which who has limits may have two devices.
async fn of_two() -> Gateway {
    let mut config = config();
    config.devices.limited_mdm = 2;
    Gateway::with(config).await
}

/// Registered by who is limited to `small-*`.
async fn register_small(g: &Gateway, registration: Registration) -> Result<(), Refusal> {
    let mut by = Identity::unlimited(Role::Mdm, "small");
    by.scope.devices = Some(["small-*".parse().unwrap()].into());
    let context = SignalContext { by, ..g.seen(0) };
    g.tell().register(context, vec![registration]).await.map(drop)
}

#[tokio::test]
async fn what_is_refused_counts_against_no_quota() {
    let g = of_two().await;
    let named = |device: &str| Registration {
        common_names: vec![id("taken")],
        ..registration(device, "office")
    };
    let list = vec![registration("small-1", "office"), named("big-1")];
    g.tell().register(g.seen(0), list).await.unwrap();
    let refused = register_small(&g, named("small-2")).await.unwrap_err();
    assert_eq!(refused.name(), "ALIAS_TAKEN");
    // Others register as many.
    g.register("big-2", "office").await;
    assert_eq!(register_small(&g, registration("small-2", "office")).await, Ok(()));
    let more = register_small(&g, registration("small-3", "office")).await;
    assert_eq!(more, Err(Refusal::DeviceQuota(2)));
}

#[tokio::test]
async fn what_was_not_committed_counts_against_no_quota() {
    let g = of_two().await;
    g.register("big-0", "office").await;
    let go = g.hold().await;
    let mut others = Box::pin(g.tell().register(g.seen(0), vec![registration("small-0", "office")]));
    let small = |n: u32| Box::pin(register_small(&g, registration(&format!("small-{n}"), "office")));
    let (mut own, mut over) = (small(1), small(2));
    assert!((&mut others).now_or_never().is_none());
    assert!((&mut own).now_or_never().is_none());
    assert!((&mut over).now_or_never().is_none());
    g.disk.fill();
    go.send(()).unwrap();
    assert!(matches!(others.await, Err(Refusal::StoreUnavailable(_))));
    assert!(matches!(own.await, Err(Refusal::StoreUnavailable(_))));
    assert_eq!(over.await, Err(Refusal::DeviceQuota(2)), "both may yet be committed");
    g.disk.free();
    // Others register as many.
    g.register("big-1", "office").await;
    g.register("big-2", "office").await;
    for more in [Ok(()), Ok(()), Err(Refusal::DeviceQuota(2))].into_iter().zip(1..) {
        assert_eq!((small(more.1).await, more.1), more);
    }
}
