//! What a start makes of store and kernel.

use std::{collections::BTreeMap, time::Duration};

use super::kit::*;
use crate::{
    config::PoolKind,
    controller::{Enforcement, Progress, Refusal, StartError},
    kernel::{Assignment, Kernel as _, fake::Call},
    model::{BootTime, Device, DeviceState, Lease, Now, Rare, Release, SessionId, StateReason, WallTime},
    store::{ChangeSet, Reader, SqliteStore, Store as _, StoreError, restore},
};

#[tokio::test]
async fn sessions_come_back_before_anything_is_attached() {
    let mut g = Gateway::new().await;
    for (device, address) in [("one", "10.66.0.5"), ("two", "10.66.1.6"), ("three", "10.66.1.7")] {
        g.register(device, "office").await;
        g.open(device, &[address]).await.unwrap();
    }
    g.applied("one").await.unwrap();
    g.applied("three").await.unwrap();
    g.revoked("three").await.unwrap();
    let before = g.controller().sessions(None, 10).await.unwrap();
    g.stop().await;
    // The machine was rebooted: nothing is left in the kernel but what a foreign hand put there.
    g.reboot(Now {
        boot: BootTime(7),
        boot_id: 2,
        ..START
    });
    let foreign = Assignment {
        pool: OFFICE,
        session: SessionId(999),
        interface: "tun0".parse().unwrap(),
        lease: None,
    };
    g.kernel.assign(ip("10.66.1.200"), foreign).unwrap();
    g.start().await.unwrap();
    assert_eq!(g.controller().sessions(None, 10).await.unwrap(), before);
    assert_eq!(
        [g.judged("10.66.0.5"), g.judged("10.66.1.6"), g.judged("10.66.1.7")],
        [OFFICE, QUARANTINE, QUARANTINE]
    );
    assert_eq!(g.judged("10.66.1.200"), QUARANTINE);
    let calls = g.kernel.take_calls();
    let links = calls.iter().position(|c| matches!(c, Call::Links(_))).unwrap();
    let last = calls
        .iter()
        .rposition(|c| matches!(c, Call::Assign(..) | Call::Clear(_)))
        .unwrap();
    let released = calls
        .iter()
        .position(|c| matches!(c, Call::Assign(_, to) if to.pool == OFFICE));
    let cleared = calls.iter().position(|c| matches!(c, Call::Clear(_))).unwrap();
    assert!(last < links && cleared < released.unwrap(), "{calls:?}");
    assert_eq!(enforcement(g.applied("one").await), Enforcement::Enforced);
}

#[tokio::test]
async fn a_restart_over_adopted_tables_disturbs_nothing() {
    let mut g = Gateway::new().await;
    g.register("one", "office").await;
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.applied("one").await.unwrap();
    g.register("two", "lab").await;
    g.open("two", &["10.66.0.6"]).await.unwrap();
    g.applied("two").await.unwrap();
    let first = g.kernel.state().earliest;
    g.stop().await;
    g.start().await.unwrap();
    let calls = g.kernel.take_calls();
    assert!(
        !calls.iter().any(|c| matches!(c, Call::Assign(..) | Call::Clear(_))),
        "{calls:?}"
    );
    // Nobody knows how far the dead daemon had moved the word: until all is compared, the programs look at every lease.
    let words: Vec<_> = calls.iter().filter(|c| matches!(c, Call::EarliestLeaseEnd(_))).collect();
    assert_eq!(
        words,
        [&Call::EarliestLeaseEnd(Some(BootTime(0))), &Call::EarliestLeaseEnd(first)]
    );
}

#[tokio::test]
async fn what_the_configuration_no_longer_has_is_not_released() {
    let mut g = Gateway::new().await;
    g.register("one", "office").await;
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.applied("one").await.unwrap();
    g.register("two", "lab").await;
    g.open("two", &["10.66.2.9"]).await.unwrap();
    g.stop().await;
    let mut changed = config();
    changed.pools[1].kind = PoolKind::Quarantine;
    changed.pools[1].fallback = None;
    changed.pools[2].prefixes = vec!["10.99.0.0/24".parse().unwrap()];
    g.reconfigure(changed);
    g.start().await.unwrap();
    let device = g.controller().device(id("one")).await.unwrap().device;
    assert_eq!(
        (device.state, device.state_reason.as_str()),
        (DeviceState::Quarantined, "pool_removed")
    );
    assert_eq!(&*device.gateway_uri, "quarantine.vpn.example");
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    // A session on an address without a pool has ended.
    let sessions = g.controller().sessions(None, 10).await.unwrap();
    assert_eq!(sessions.len(), 1);
    g.restart().await;
    assert_eq!(g.controller().sessions(None, 10).await.unwrap(), sessions);
}

#[tokio::test]
async fn a_renamed_gateway_and_a_new_lease_reach_released_devices() {
    let mut g = Gateway::new().await;
    g.register("one", "office").await;
    g.applied("one").await.unwrap();
    g.stop().await;
    let mut changed = config();
    changed.pools[1].gateway_uri = "new.vpn.example".into();
    changed.pools[1].lease = Some(std::time::Duration::from_secs(60));
    g.reconfigure(changed);
    g.start().await.unwrap();
    let view = g.controller().device(id("one")).await.unwrap();
    assert_eq!(view.device.state, DeviceState::Released);
    assert_eq!(&*view.device.gateway_uri, "new.vpn.example");
    assert_eq!(view.lease_ends_at.unwrap().0, START.wall.0 + 60_000);
    let (changes, _) = g
        .controller()
        .watch_gateway_uris(Some(crate::model::Revision(1)))
        .await
        .unwrap();
    assert_eq!(changes.last().unwrap().new, "new.vpn.example");
}

#[tokio::test]
async fn what_a_lease_falls_back_to_is_set_anew() {
    let mut g = Gateway::new().await;
    g.register("one", "lab").await;
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.applied("one").await.unwrap();
    g.stop().await;
    g.kernel
        .state()
        .assigned
        .get_mut(&ip("10.66.0.5"))
        .unwrap()
        .lease
        .as_mut()
        .unwrap()
        .1 = OFFICE;
    g.start().await.unwrap();
    g.stop().await;
    g.clock.advance_ms(LEASE_MS);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
}

#[tokio::test]
async fn session_numbers_are_never_used_twice() {
    let mut g = Gateway::new().await;
    g.register("one", "office").await;
    let mut last = 0;
    for _ in 0..3 {
        let session = g.open("one", &["10.66.0.5"]).await.unwrap().session.session.id;
        assert!(session.0 > last);
        last = session.0;
        g.tell().close_session(g.seen(0), session).await.unwrap();
        g.restart().await;
    }
}

#[tokio::test]
async fn a_second_controller_on_the_same_database_does_not_start() {
    let g = Gateway::new().await;
    let second = crate::store::SqliteStore::open(&g.state_directory());
    assert!(matches!(second, Err(StoreError::Busy(_))), "{second:?}");
    g.register("one", "office").await;
}

#[tokio::test]
async fn a_store_that_cannot_be_read_stops_the_start_and_leaves_the_kernel() {
    let mut g = Gateway::new().await;
    g.register("one", "office").await;
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.applied("one").await.unwrap();
    g.stop().await;
    let mut store = crate::store::SqliteStore::open(&g.state_directory()).unwrap();
    store.load().unwrap();
    store
        .connection()
        .execute("UPDATE devices SET state = 'let-me-in'", [])
        .unwrap();
    drop(store);
    let before = g.kernel.state().assigned.clone();
    assert!(matches!(g.start().await, Err(StartError::Store(StoreError::Corrupt(_)))));
    assert_eq!(g.kernel.state().assigned, before);
}

/// Adds so many devices to the store, with leases of the first boot.
fn add_leased(g: &Gateway, count: u32) {
    let mut store = SqliteStore::open(&g.state_directory()).unwrap();
    let found = store.load().unwrap();
    let device = |n: u32| Device {
        state: DeviceState::Released,
        state_reason: StateReason::PolicyApplied,
        gateway_uri: "lab.vpn.example".into(),
        release: Rare::new(Release {
            proved: Some(START),
            lease: Some(Lease {
                given: START,
                length_ms: 60_000,
            }),
            ..Release::default()
        }),
        ..Device::new(id(&format!("phone-{n:05}")), "lab".parse().unwrap(), START.wall)
    };
    let devices: BTreeMap<_, _> = (0..count).map(device).map(|d| (d.id.clone(), d)).collect();
    let changes = ChangeSet {
        devices,
        ..ChangeSet::default()
    };
    store.commit(&changes, found.revision, START.wall).unwrap();
}

/// How many devices of the store have a lease that a boot has given.
fn leases_of(g: &Gateway, boot_id: u64) -> usize {
    let found = SqliteStore::open(&g.state_directory()).unwrap().load().unwrap();
    let of = |d: &&Device| d.release.lease.is_some_and(|l| l.given.boot_id == boot_id);
    found.devices.iter().filter(of).count()
}

/// The second boot.
const REBOOTED: Now = Now {
    boot: BootTime(7),
    boot_id: 2,
    ..START
};

#[tokio::test]
async fn what_another_boot_changes_does_not_heap_up_before_a_full_disk() {
    let mut g = Gateway::new().await;
    g.stop().await;
    add_leased(&g, 1000);
    g.reboot(REBOOTED);
    g.disk.fill();
    g.start().await.unwrap();
    let waits = async |g: &Gateway| g.controller().status().await.unwrap().not_durable > 0;
    g.until("it has begun", waits).await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let waiting = g.controller().status().await.unwrap().not_durable;
        // Two slices are decided before the first commit is seen to fail.
        assert!((1..=512).contains(&waiting), "{waiting}");
    }
    g.disk.free();
    let revision = async |g: &Gateway| g.controller().status().await.unwrap().revision;
    g.until("all of it", async |g| {
        let before = revision(g).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        g.controller().status().await.unwrap().not_durable == 0 && revision(g).await == before
    })
    .await;
    g.stop().await;
    assert_eq!((leases_of(&g, START.boot_id), leases_of(&g, REBOOTED.boot_id)), (0, 1000));
}

#[tokio::test]
async fn an_urgent_publication_does_not_wait_for_what_another_boot_changes() {
    let mut g = Gateway::new().await;
    g.stop().await;
    // Three slices of places, fifty of commits.
    add_leased(&g, 12_800);
    g.reboot(REBOOTED);
    g.start().await.unwrap();
    let published = g.tell().publish_policy(g.seen(0), "rev-2".parse().unwrap(), 0, 0);
    let published = published.await.unwrap().revision;
    let of = async |g: &Gateway| g.controller().publication().await.unwrap().progress;
    g.until("all of them", async |g| of(g).await.stale == 12_800).await;
    // Each turn commits once.
    let (changes, _) = g.controller().watch_gateway_uris(Some(published)).await.unwrap();
    let turns = changes[0].revision.0 - published.0;
    assert!(turns <= 5, "{turns} turns");
    g.restart().await;
    let all = Progress {
        stale: 12_800,
        ..Progress::default()
    };
    assert_eq!(of(&g).await, all);
    g.stop().await;
    assert_eq!((leases_of(&g, START.boot_id), leases_of(&g, REBOOTED.boot_id)), (0, 0));
}

#[tokio::test]
async fn after_a_reboot_kernel_and_memory_end_a_lease_at_one_moment() {
    let mut g = Gateway::new().await;
    g.register("phone", "lab").await;
    g.open("phone", &["10.66.2.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.stop().await;
    g.reboot(Now {
        wall: WallTime(START.wall.0 + 4321),
        boot: BootTime(7),
        boot_id: 2,
    });
    g.clock.tick_ns(333_333);
    g.start().await.unwrap();
    let found = g.controller().check_drift().await.unwrap();
    assert_eq!((found.compared > 0, found.found), (true, 0), "{found:?}");
    // Also once what another clock measures is committed.
    let adopted = async |g: &Gateway| g.controller().status().await.unwrap().not_durable == 0;
    g.until("committed", adopted).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(g.controller().check_drift().await.unwrap().found, 0);
    g.stop().await;
    let devices = SqliteStore::open(&g.state_directory()).unwrap().load().unwrap().devices;
    let lease = devices[0].release.lease.unwrap();
    assert_eq!((lease.given.boot_id, lease.length_ms), (2, 3_600_000 - 4321));
    assert_eq!(
        g.kernel.state().assigned.values().next().unwrap().lease.unwrap().0.0,
        lease.given.boot.0 + lease.length_ms * 1_000_000
    );
}

#[tokio::test]
async fn what_a_clock_that_ran_ahead_has_locked_out_comes_back_by_an_operators_word_alone() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let right = g.now();
    g.clock.set(Now {
        wall: WallTime(4_000_000_000_000),
        ..right
    });
    g.revoked("phone").await.unwrap();
    g.clock.set(right);
    g.clock.advance_ms(60_000);
    assert_eq!(g.applied("phone").await, Err(Refusal::StaleSignal));
    g.restart().await;
    assert_eq!(g.applied("phone").await, Err(Refusal::StaleSignal), "a start cannot tell");
    g.stop().await;
    let (seen, state) = (g.now().wall, g.state_directory());
    g.clock.advance_ms(1000);
    let copy = g.directory.path().join("copy.db");
    Reader::of_directory(&state).unwrap().backup(&copy, g.now().wall).unwrap();
    restore(&state, &copy, "uid:0", g.now().wall, true).unwrap();
    g.start().await.unwrap();
    let warnings = g.controller().status().await.unwrap().warnings;
    assert!(!warnings.iter().any(|w| w.contains("behind")), "{warnings:?}");
    // Nothing from before releases by it.
    for offset in [seen.0 - g.now().wall.0, 0] {
        assert_eq!(g.applied_at("phone", offset).await, Err(Refusal::StaleSignal));
    }
    g.clock.advance_ms(1);
    assert_eq!(g.applied("phone").await.unwrap().device.device.state, DeviceState::Released);
}
