//! What releases and for how long: policy keys, publications and their waves, exceptions, leases in bulk, deadlines, a clock that is behind.

use std::time::Duration;

use super::kit::*;
use crate::{
    config::Config,
    controller::{Enforcement, PolicyKey, Progress, Refusal, SignalContext, SignalOutcome},
    model::{BootTime, DeviceState, ExceptionKind, Identity, Now, PolicyRevision, Role, StateReason, WallTime},
};

fn rev(text: &str) -> PolicyRevision {
    text.parse().unwrap()
}

async fn state(g: &Gateway, device: &str) -> DeviceState {
    g.controller().device(id(device)).await.unwrap().device.state
}

async fn applied_with(g: &Gateway, device: &str, revision: &str, key: Option<PolicyKey>) -> Result<SignalOutcome, Refusal> {
    g.tell().policy_applied(g.seen(0), id(device), rev(revision), key).await
}

#[tokio::test]
async fn a_handshake_releases_and_its_keys_survive_a_restart_as_hashes() {
    let mut config = config();
    config.proofs.direct_signal = false;
    let mut g = Gateway::with(config).await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    assert_eq!(g.applied("phone").await, Err(Refusal::PolicyKeyRequired));
    let first = g.tell().offer_policy(g.seen(0), id("phone"), rev("rev-1")).await.unwrap();
    assert_eq!(first.device.device.state, DeviceState::PolicyPending);
    assert_eq!(first.ends_at, WallTime(START.wall.0 + 15 * 60_000));
    let second = g.tell().offer_policy(g.seen(0), id("phone"), rev("rev-1")).await.unwrap();
    g.restart().await;
    let acknowledge = |key: &PolicyKey| g.tell().acknowledge_policy(g.seen(0), id("phone"), key.clone());
    let unknown = Refusal::PolicyKeyUnknown(id("phone"));
    assert_eq!(acknowledge(&first.key).await, Err(unknown.clone()), "superseded");
    let done = acknowledge(&second.key).await.unwrap();
    assert_eq!(done.policy, rev("rev-1"));
    assert_eq!(acknowledge(&second.key).await, Err(unknown.clone()), "taken once");
    assert_eq!(
        applied_with(&g, "phone", "rev-1", Some(second.key)).await,
        Err(unknown.clone())
    );
    g.restart().await;
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    let released = applied_with(&g, "phone", "rev-1", Some(done.key.clone())).await.unwrap();
    assert_eq!(released.enforcement, Enforcement::Enforced);
    g.clock.advance_ms(1);
    g.revoked("phone").await.unwrap();
    g.clock.advance_ms(1);
    assert_eq!(
        applied_with(&g, "phone", "rev-1", Some(done.key.clone())).await,
        Err(unknown),
        "a restriction takes all keys"
    );
    let file = std::fs::read(g.state_directory().join("lazaret.db")).unwrap();
    let text = done.key.reveal();
    assert!(
        !file.windows(32).any(|w| w == text.as_bytes()),
        "the key itself is on the disk"
    );
}

#[tokio::test]
async fn an_offer_that_cannot_be_committed_gives_no_key() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.disk.fill();
    let refused = g.tell().offer_policy(g.seen(0), id("phone"), rev("rev-1")).await;
    assert!(matches!(refused, Err(Refusal::StoreUnavailable(_))));
    assert_eq!(state(&g, "phone").await, DeviceState::Registered);
}

async fn released_fleet(config: Config, devices: usize) -> Gateway {
    let g = Gateway::with(config).await;
    for n in 0..devices {
        let name = format!("phone-{n:02}");
        g.register(&name, "office").await;
        g.open(&name, &[&format!("10.66.0.{}", n + 2)]).await.unwrap();
        g.applied(&name).await.unwrap();
    }
    g.clock.advance_ms(1);
    g
}

async fn progress(g: &Gateway) -> Progress {
    g.controller().publication().await.unwrap().progress
}

#[tokio::test]
async fn a_wave_leaves_no_more_than_its_ceiling_stale() {
    let mut g = released_fleet(config(), 10).await;
    assert_eq!(g.controller().publication().await, Err(Refusal::NothingPublished));
    assert_eq!(g.tell().pause_publication(g.seen(0)).await, Err(Refusal::NothingPublished));
    let published = g.tell().publish_policy(g.seen(0), rev("rev-2"), 3, 0).await.unwrap();
    assert_eq!(published.publication.progress.waiting, 10);
    g.until("a wave", async |g| progress(g).await.stale == 3).await;
    g.clock.advance_ms(120_000);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        progress(&g).await,
        Progress {
            stale: 3,
            counted: 3,
            waiting: 7,
            ready: 7,
            ..Progress::default()
        }
    );
    let stale: Vec<usize> = (0..10)
        .filter(|n| g.judged(&format!("10.66.0.{}", n + 2)) == QUARANTINE)
        .collect();
    assert_eq!(stale, [0, 1, 2], "in force, and no others");
    // Older proof does not release a stale device, nor does one of a revision that nobody published.
    let refused = applied_with(&g, "phone-00", "rev-1", None).await;
    assert_eq!(refused, Err(Refusal::UnknownPolicyRevision(rev("rev-1"))));
    // Who holds on to the older one may still renew it until its wave comes.
    assert!(applied_with(&g, "phone-09", "rev-1", None).await.is_ok());
    // One that has proved the new one makes room for the next, also after a restart.
    g.restart().await;
    assert_eq!(
        progress(&g).await,
        Progress {
            stale: 3,
            counted: 3,
            waiting: 7,
            ready: 7,
            ..Progress::default()
        }
    );
    applied_with(&g, "phone-01", "rev-2", None).await.unwrap();
    g.clock.advance_ms(2_000);
    g.until("the next", async |g| {
        progress(g).await
            == Progress {
                done: 1,
                stale: 3,
                counted: 3,
                waiting: 6,
                ready: 6,
                excepted: 0,
            }
    })
    .await;
    assert_eq!(state(&g, "phone-03").await, DeviceState::Stale);
}

#[tokio::test]
async fn a_wave_keeps_to_its_rate_pauses_and_can_be_urgent() {
    let g = released_fleet(config(), 10).await;
    g.tell().publish_policy(g.seen(0), rev("rev-2"), 0, 2).await.unwrap();
    g.until("one", async |g| progress(g).await.stale == 1).await;
    for _ in 0..10 {
        g.clock.advance_ms(2_000);
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert_eq!(progress(&g).await.stale, 2, "two a minute");
    g.clock.advance_ms(60_000);
    g.until("the next minute", async |g| progress(g).await.stale == 3).await;
    let paused = g.tell().pause_publication(g.seen(0)).await.unwrap();
    assert!(paused.publication.publication.paused);
    g.clock.advance_ms(300_000);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(progress(&g).await.stale, 3);
    let mut watch = g.controller().watch_publication().await.unwrap();
    assert_eq!(watch.borrow_and_update().as_ref().unwrap().progress.stale, 3);
    g.tell().resume_publication(g.seen(0)).await.unwrap();
    g.until("goes on", async |g| progress(g).await.stale == 4).await;
    // The same revision with other terms: all at once.
    let urgent = g.tell().publish_policy(g.seen(0), rev("rev-2"), 0, 0).await.unwrap();
    assert_eq!(urgent.publication.publication.rate, 0);
    g.until("all", async |g| {
        progress(g).await
            == Progress {
                stale: 10,
                counted: 10,
                ..Progress::default()
            }
    })
    .await;
    g.clock.advance_ms(2_000);
    tokio::time::timeout(
        Duration::from_secs(5),
        watch.wait_for(|p| p.as_ref().is_some_and(|p| p.progress.stale == 10)),
    )
    .await
    .unwrap()
    .unwrap();
}

#[tokio::test]
async fn a_publication_that_cannot_be_committed_is_none() {
    let g = released_fleet(config(), 3).await;
    g.disk.fill();
    let refused = g.tell().publish_policy(g.seen(0), rev("rev-2"), 0, 0).await;
    assert!(matches!(refused, Err(Refusal::StoreUnavailable(_))));
    g.disk.free();
    g.clock.advance_ms(2_000);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(g.controller().publication().await, Err(Refusal::NothingPublished));
    assert_eq!(state(&g, "phone-00").await, DeviceState::Released);
}

async fn except(g: &Gateway, kind: ExceptionKind, length: Duration) -> Result<SignalOutcome, Refusal> {
    g.tell()
        .grant_exception(g.seen(0), id("phone"), kind, "an audit".to_owned(), length)
        .await
}

#[tokio::test]
async fn an_exception_releases_until_it_ends_and_waves_leave_it_alone() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let too_long = except(&g, ExceptionKind::Release, Duration::from_hours(24 * 31)).await;
    assert!(matches!(too_long, Err(Refusal::ExceptionTooLong(_))));
    let granted = except(&g, ExceptionKind::Release, Duration::from_mins(10)).await.unwrap();
    assert_eq!(granted.enforcement, Enforcement::Enforced);
    g.tell().publish_policy(g.seen(0), rev("rev-2"), 0, 0).await.unwrap();
    g.clock.advance_ms(5 * 60_000);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        progress(&g).await,
        Progress {
            excepted: 1,
            ..Progress::default()
        }
    );
    g.restart().await;
    assert_eq!(g.judged("10.66.0.5"), OFFICE);
    g.clock.advance_ms(5 * 60_000);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE, "in the kernel, whatever the daemon does");
    g.until("ended", async |g| state(g, "phone").await == DeviceState::Quarantined)
        .await;
    assert_eq!(
        g.tell().end_exception(g.seen(0), id("phone"), String::new()).await,
        Err(Refusal::NoException(id("phone")))
    );
}

#[tokio::test]
async fn a_block_holds_against_signals_and_without_the_store() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.clock.advance_ms(1);
    g.disk.fill();
    assert!(matches!(
        except(&g, ExceptionKind::Release, Duration::from_mins(1)).await,
        Err(Refusal::StoreUnavailable(_))
    ));
    let blocked = except(&g, ExceptionKind::Block, Duration::from_mins(10)).await.unwrap();
    assert_eq!(blocked.enforcement, Enforcement::EnforcedNotDurable);
    assert_eq!(g.judged("10.66.0.5"), BLOCKED);
    g.disk.free();
    g.until("durable", async |g| g.controller().status().await.unwrap().not_durable == 0)
        .await;
    g.clock.advance_ms(1);
    assert!(matches!(g.applied("phone").await, Err(Refusal::DeviceBlocked(..))));
    let ended = g.tell().end_exception(g.seen(0), id("phone"), String::new()).await.unwrap();
    assert_eq!(
        (ended.device.device.state, g.judged("10.66.0.5")),
        (DeviceState::Quarantined, QUARANTINE)
    );
}

#[tokio::test]
async fn leases_are_renewed_each_by_itself() {
    let g = Gateway::new().await;
    for name in ["a", "b", "c"] {
        g.register(name, "lab").await;
    }
    g.open("a", &["10.66.0.5"]).await.unwrap();
    g.applied("a").await.unwrap();
    g.applied("b").await.unwrap();
    g.clock.advance_ms(LEASE_MS / 2);
    g.revoked("b").await.unwrap();
    let names = ["a", "b", "c", "nobody"].map(id).to_vec();
    let outcome = g.tell().renew_leases(g.seen(0), names).await.unwrap();
    let results: Vec<_> = outcome
        .renewals
        .into_iter()
        .map(|r| r.result.map(|o| o.device.lease_ends_at).map_err(|e| e.refusal))
        .collect();
    let ends = WallTime(g.now().wall.0 + i64::try_from(LEASE_MS).unwrap());
    assert_eq!(
        results,
        [
            Ok(Some(ends)),
            Err(Refusal::NotReleased(id("b"))),
            Err(Refusal::NotReleased(id("c"))),
            Err(Refusal::UnknownDevice(id("nobody")))
        ]
    );
    g.clock.advance_ms(LEASE_MS * 3 / 4);
    assert_eq!(g.judged("10.66.0.5"), LAB, "in the kernel too");
}

#[tokio::test]
async fn who_released_a_device_is_known_past_all_that_came_after() {
    let g = Gateway::new().await;
    g.register("phone", "lab").await;
    g.applied("phone").await.unwrap();
    for _ in 0..30 {
        g.clock.advance_ms(1);
        g.tell().renew_leases(g.seen(0), vec![id("phone")]).await.unwrap();
    }
    let dossier = async |entries| g.controller().dossier(id("phone"), entries).await.unwrap();
    let d = dossier(1).await;
    assert_eq!((d.changed_by, d.entries.len()), (g.seen(0).by.name.to_string(), 1));
    // A release by time or by the gateway is nobody's.
    g.clock.advance_ms(2 * LEASE_MS);
    assert_eq!(dossier(20).await.changed_by, "gateway");
    // A state may get another reason while it lasts: then it is whoever gave it that.
    let as_ = |name: &str| SignalContext {
        by: Identity::unlimited(Role::Mdm, name),
        ..g.seen(0)
    };
    let by = async || dossier(1).await.changed_by;
    g.tell()
        .policy_revoked(as_("revoker"), id("phone"), String::new())
        .await
        .unwrap();
    assert_eq!(by().await, "revoker");
    g.clock.advance_ms(1);
    let grant = async |name| {
        let why = "an audit".to_owned();
        let length = Duration::from_mins(10);
        let told = g
            .tell()
            .grant_exception(as_(name), id("phone"), ExceptionKind::Release, why, length);
        told.await.unwrap();
    };
    grant("operator").await;
    assert_eq!(by().await, "operator");
    let proof = async |name| {
        g.clock.advance_ms(1);
        let told = g.tell().policy_applied(as_(name), id("phone"), rev("rev-1"), None);
        told.await.unwrap();
    };
    proof("mdm-1").await;
    proof("mdm-2").await;
    assert_eq!(by().await, "mdm-1", "the second one renewed it");
    grant("another").await;
    assert_eq!(by().await, "another");
    g.tell()
        .end_exception(as_("operator"), id("phone"), String::new())
        .await
        .unwrap();
    assert_eq!(
        (state(&g, "phone").await, by().await.as_str()),
        (DeviceState::Released, "mdm-1")
    );
}

#[tokio::test]
async fn the_deadline_in_quarantine_blocks_and_reconnecting_does_not_move_it() {
    let mut config = config();
    config.devices.deadline = Some(Duration::from_mins(10));
    let mut g = Gateway::with(config).await;
    g.register("phone", "office").await;
    g.clock.advance_ms(60 * 60_000);
    let session = g.open("phone", &["10.66.0.5"]).await.unwrap().session.session.id;
    g.clock.advance_ms(9 * 60_000);
    g.tell().close_session(g.seen(0), session).await.unwrap();
    g.restart().await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    g.clock.advance_ms(60_000);
    g.until("blocked", async |g| state(g, "phone").await == DeviceState::Blocked)
        .await;
    g.until("in force", async |g| g.judged("10.66.0.5") == BLOCKED).await;
    assert_eq!(g.applied("phone").await, Err(Refusal::QuarantineDeadline(id("phone"))));
}

#[tokio::test]
async fn a_clock_behind_the_last_commit_restores_no_release_until_it_has_passed_it() {
    let mut g = Gateway::new().await;
    for name in ["old", "fresh"] {
        g.register(name, "office").await;
    }
    g.open("old", &["10.66.0.5"]).await.unwrap();
    g.open("fresh", &["10.66.0.6"]).await.unwrap();
    g.applied("old").await.unwrap();
    g.applied("fresh").await.unwrap();
    g.stop().await;
    let mut now = g.now();
    now.boot_id = 2;
    now.boot.0 = 1_000;
    now.wall.0 -= 3_600_000;
    g.reboot(now);
    g.start().await.unwrap();
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (QUARANTINE, QUARANTINE));
    assert!(
        g.controller()
            .status()
            .await
            .unwrap()
            .warnings
            .iter()
            .any(|w| w.contains("behind"))
    );
    assert!(g.controller().dossier(id("old"), 1).await.unwrap().held_back);
    // Rightly dated proof has to wait for the clock; what is dated by the wrong one is no newer than what it was released by.
    assert_eq!(g.applied_at("fresh", 3_660_000).await, Err(Refusal::ClockBehind));
    assert_eq!(g.applied("fresh").await, Err(Refusal::StaleSignal));
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (QUARANTINE, QUARANTINE));
    g.clock.advance_ms(3_600_001);
    g.until("held again", async |g| g.judged("10.66.0.5") == OFFICE).await;
    g.applied_at("fresh", 60_000).await.unwrap();
    assert_eq!(g.judged("10.66.0.6"), OFFICE);
    assert!(
        !g.controller()
            .status()
            .await
            .unwrap()
            .warnings
            .iter()
            .any(|w| w.contains("behind"))
    );
}

/// Offers and acknowledges, with the gateway started anew after each. Gives the final key.
async fn handshake(g: &mut Gateway, device: &str) -> PolicyKey {
    let offered = g.tell().offer_policy(g.seen(0), id(device), rev("rev-1")).await.unwrap();
    g.restart().await;
    let acknowledged = g.tell().acknowledge_policy(g.seen(0), id(device), offered.key).await;
    g.restart().await;
    acknowledged.unwrap().key
}

#[tokio::test]
async fn a_handshake_releases_while_the_clock_is_behind_and_nothing_dated_overtakes_a_restriction() {
    const BEHIND_MS: i64 = 3 * 3_600_000;
    let mut g = Gateway::new().await;
    g.register("phone", "lab").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    let before = handshake(&mut g, "phone").await;
    applied_with(&g, "phone", "rev-1", Some(before.clone())).await.unwrap();
    g.clock.advance_ms(1);
    g.stop().await;
    g.reboot(Now {
        wall: WallTime(g.now().wall.0 - BEHIND_MS),
        boot: BootTime(1_000),
        boot_id: 2,
    });
    g.start().await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    // Dated rightly, as an MDM does that sees it now.
    let dated = async |g: &Gateway, key: Option<&PolicyKey>, ms: i64| {
        let told = g
            .tell()
            .policy_applied(g.seen(BEHIND_MS + ms), id("phone"), rev("rev-1"), key.cloned());
        told.await
    };
    assert_eq!(dated(&g, None, 0).await, Err(Refusal::ClockBehind));
    assert_eq!(
        dated(&g, Some(&before), 0).await,
        Err(Refusal::ClockBehind),
        "of another boot"
    );
    let key = handshake(&mut g, "phone").await;
    assert_eq!(enforcement(dated(&g, Some(&key), 0).await), Enforcement::Enforced);
    assert_eq!(g.judged("10.66.0.5"), LAB);
    assert!(!g.controller().dossier(id("phone"), 1).await.unwrap().held_back);
    // Its lease ends on the boot clock, and it is proved anew.
    g.clock.advance_ms(LEASE_MS);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    g.until("ended", async |g| state(g, "phone").await == DeviceState::Quarantined)
        .await;
    assert_eq!(dated(&g, Some(&key), 0).await, Err(Refusal::PolicyKeyUnknown(id("phone"))));
    let key = handshake(&mut g, "phone").await;
    dated(&g, Some(&key), 0).await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), LAB);
    // Revoked, and then the clock comes right.
    g.clock.advance_ms(60_000);
    let revoked = g.tell().policy_revoked(g.seen(BEHIND_MS), id("phone"), "test".to_owned());
    assert_eq!(enforcement(revoked.await), Enforcement::Enforced);
    g.clock.advance_ms(60_000);
    let now = g.now();
    g.clock.set(Now {
        wall: WallTime(now.wall.0 + BEHIND_MS),
        ..now
    });
    g.until("told", async |g| {
        let device = g.controller().device(id("phone")).await.unwrap().device;
        device.release.restricted_at == Some(WallTime(g.now().wall.0 + 120_000))
    })
    .await;
    for ms in [-90_000, -30_000, 0] {
        assert_eq!(g.applied_at("phone", ms).await, Err(Refusal::StaleSignal), "{ms}");
    }
    g.restart().await;
    g.clock.advance_ms(120_001);
    g.applied("phone").await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), LAB);
}

#[tokio::test]
async fn a_dossier_says_what_time_brings_and_what_was_done() {
    let g = Gateway::new().await;
    g.register("phone", "lab").await;
    g.applied("phone").await.unwrap();
    let refused = g
        .controller()
        .policy_applied(g.seen(-10_000_000_000), id("phone"), rev("rev-1"), None)
        .await
        .unwrap_err();
    let dossier = g.controller().dossier(id("phone"), 10).await.unwrap();
    let ends = WallTime(START.wall.0 + i64::try_from(LEASE_MS).unwrap());
    assert_eq!(dossier.next, Some((ends, "lease_ended")));
    assert_eq!(dossier.device.device.state_reason, StateReason::PolicyApplied);
    let results: Vec<_> = dossier
        .entries
        .iter()
        .map(|e| (e.entry.action.as_str(), e.entry.result.as_str()))
        .collect();
    assert_eq!(
        results,
        [
            ("ReportPolicyApplied", "SIGNAL_TOO_OLD"),
            ("ReportPolicyApplied", "done"),
            ("RegisterDevices", "done")
        ]
    );
    assert_eq!(refused.reference, Some(dossier.entries[0].entry.number));
}
