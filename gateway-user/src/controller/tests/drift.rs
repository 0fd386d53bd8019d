//! Drift, and sources that fall silent: what memory says is put into the kernel again, whoever was in it.

use std::time::Duration;

use super::kit::*;
use crate::{
    config::{Mode, Source},
    controller::Refusal,
    kernel::{Assignment, HookPoint, KernelError, TableDifference},
    model::{SessionId, Trust},
};

fn foreign(pool: crate::model::PoolId) -> Assignment {
    Assignment {
        pool,
        session: SessionId(999),
        interface: "tun0".parse().unwrap(),
        lease: None,
    }
}

#[tokio::test]
async fn what_a_foreign_hand_writes_is_found_counted_and_put_right() {
    let g = Gateway::new().await;
    for (name, address) in [("held", "10.66.0.5"), ("free", "10.66.0.6")] {
        g.register(name, "office").await;
        g.open(name, &[address]).await.unwrap();
    }
    g.applied("free").await.unwrap();
    let clean = g.controller().check_drift().await.unwrap();
    assert_eq!((clean.found, clean.compared >= 2), (0, true), "{clean:?}");
    // Loosened, tightened, and one that nobody holds.
    g.kernel.state().assigned.insert(ip("10.66.0.5"), foreign(OFFICE));
    g.kernel.state().assigned.remove(&ip("10.66.0.6"));
    g.kernel.state().assigned.insert(ip("10.66.0.77"), foreign(OFFICE));
    let found = g.controller().check_drift().await.unwrap();
    assert_eq!(
        (g.judged("10.66.0.5"), g.judged("10.66.0.6"), g.judged("10.66.0.77")),
        (QUARANTINE, OFFICE, QUARANTINE)
    );
    let all = g.controller().drift().await.unwrap();
    assert_eq!((all.found, all.repaired), (3, 3), "{found:?}");
    let loosened = all.last.iter().find(|d| d.subject == "10.66.0.5").unwrap();
    assert_eq!(loosened.device, Some(id("held")));
    assert!(
        loosened.found.contains("pool office, session 999") && loosened.wanted.contains("pool quarantine"),
        "{loosened:?}"
    );
    assert_eq!(g.controller().check_drift().await.unwrap().found, 0);
    // All of it by itself, too.
    g.kernel.state().assigned.insert(ip("10.66.0.5"), foreign(OFFICE));
    g.until("repaired by itself", async |g| g.judged("10.66.0.5") == QUARANTINE)
        .await;
    let entries = g.controller().dossier(id("held"), 10).await.unwrap().entries;
    assert_eq!(entries.iter().filter(|e| e.entry.action == "Drift").count(), 2);
}

#[tokio::test]
async fn repair_releases_only_while_proof_holds() {
    let g = Gateway::new().await;
    g.register("phone", "lab").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.applied("phone").await.unwrap();
    g.clock.advance_ms(LEASE_MS + 1);
    g.kernel.state().assigned.insert(ip("10.66.0.5"), foreign(LAB));
    g.until("at rest", async |g| g.judged("10.66.0.5") == QUARANTINE).await;
    g.controller().check_drift().await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
}

#[tokio::test]
async fn a_program_that_is_gone_is_drift() {
    let mut config = config();
    config.devices.sessions = 1;
    let g = Gateway::with(config).await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    g.kernel.state().stuck = true;
    g.kernel.state().detached.insert((3, HookPoint::TcEgress));
    g.controller().check_drift().await.unwrap();
    g.controller().check_drift().await.unwrap();
    let drift = g.controller().drift().await.unwrap();
    assert_eq!(
        (drift.found, drift.repaired, drift.last[0].subject.as_str()),
        (1, 0, "tun0, tc egress")
    );
}

#[tokio::test]
async fn how_interfaces_stand_may_be_not_known_and_is_then_not_said_to_be_wrong() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    {
        let mut state = g.kernel.state();
        state.unlisted = true;
        // Or the upkeep, which looks after interfaces all the time, attaches it before the comparison sees it.
        state.stuck = true;
        state.detached.insert((3, HookPoint::TcEgress));
    }
    let status = g.controller().status().await.unwrap();
    assert_eq!(status.interfaces, Err(KernelError::Late.to_string()));
    assert!(
        status.warnings.iter().any(|w| w.contains("not known")),
        "{:?}",
        status.warnings
    );
    let asked = tokio::spawn({
        let controller = g.controller().clone();
        async move { controller.check_drift().await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!asked.is_finished(), "whether it has been attached again nobody can tell");
    g.kernel.state().stuck = false;
    g.until("it is attached again", async |g| g.kernel.state().detached.is_empty())
        .await;
    assert!(!asked.is_finished(), "it has been attached again, which nobody can tell");
    g.kernel.state().unlisted = false;
    let drift = asked.await.unwrap();
    assert_eq!((drift.found, drift.repaired), (1, 1), "{drift:?}");
}

#[tokio::test]
async fn a_source_that_falls_silent_loses_its_sessions_and_others_do_not() {
    let mut config = config();
    config.sources = vec![Source {
        name: "vpn-1".parse().unwrap(),
        heartbeat: Some(Duration::from_mins(5)),
        interfaces: None,
        prefixes: None,
    }];
    let mut g = Gateway::with(config).await;
    g.register("one", "office").await;
    g.register("two", "office").await;
    g.open_at("vpn-1", "one", &["10.66.0.5"]).await.unwrap();
    g.open_at("vpn-2", "two", &["10.66.0.6"]).await.unwrap();
    g.applied("one").await.unwrap();
    g.clock.advance_ms(4 * 60_000);
    let list = vec![report("one", &["10.66.0.5"])];
    g.tell()
        .synchronise_sessions(g.seen(0), "vpn-1".parse().unwrap(), list)
        .await
        .unwrap();
    g.clock.advance_ms(4 * 60_000);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 2);
    // A restart gives it its time again: it may have told while nobody listened.
    g.restart().await;
    g.clock.advance_ms(4 * 60_000);
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 2);
    g.clock.advance_ms(60_000);
    g.until("ended", async |g| g.controller().sessions(None, 10).await.unwrap().len() == 1)
        .await;
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
}

#[tokio::test]
async fn an_old_list_again_is_no_sign_of_life() {
    let mut config = config();
    config.sources = vec![Source {
        name: "vpn-1".parse().unwrap(),
        heartbeat: Some(Duration::from_mins(5)),
        interfaces: None,
        prefixes: None,
    }];
    let g = Gateway::with(config).await;
    g.register("one", "office").await;
    g.open("one", &["10.66.0.5"]).await.unwrap();
    let list = async || {
        let context = crate::controller::SignalContext {
            digest: Some([7; 32]),
            ..g.seen(0)
        };
        let list = vec![report("one", &["10.66.0.5"])];
        let told = g.controller().synchronise_sessions(context, "vpn-1".parse().unwrap(), list);
        told.await.unwrap();
    };
    list().await;
    for _ in 0..2 {
        g.clock.advance_ms(2 * 60_000);
        list().await;
    }
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 1);
    g.clock.advance_ms(60_000);
    g.until("ended", async |g| g.controller().sessions(None, 10).await.unwrap().is_empty())
        .await;
}

#[tokio::test]
async fn a_session_of_too_little_trust_stays_in_quarantine() {
    let mut config = config();
    config.pools[1].min_trust = Trust::VpnKey;
    let g = Gateway::with(config).await;
    let key = crate::model::VpnKey([7; 32]);
    let mut device = registration("phone", "office");
    device.vpn_keys = vec![key];
    g.tell().register(g.seen(0), vec![device]).await.unwrap();
    g.register("other", "office").await;
    let named = g.open("phone", &["10.66.0.5"]).await.unwrap().session.session;
    assert_eq!(named.trust, Trust::Name);
    g.applied("phone").await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    let mut better = report("phone", &["10.66.0.5"]);
    better.vpn_key = Some(key);
    let opened = g
        .tell()
        .open_session(g.seen(0), "vpn-1".parse().unwrap(), better.clone())
        .await
        .unwrap();
    assert_eq!((opened.session.session.trust, g.judged("10.66.0.5")), (Trust::VpnKey, OFFICE));
    // Another device's key opens nothing.
    better.device_name = id("other");
    better.addresses = vec![ip("10.66.0.6")];
    let refused = g.tell().open_session(g.seen(0), "vpn-1".parse().unwrap(), better).await;
    assert_eq!(refused, Err(Refusal::FingerprintOfAnother(id("other"))));
}

#[tokio::test]
async fn an_arrival_outside_the_window_is_refused_and_remembered() {
    let g = Gateway::new().await;
    let mut device = registration("phone", "office");
    device.window.not_before = Some(crate::model::WallTime(START.wall.0 + 60_000));
    g.tell().register(g.seen(0), vec![device]).await.unwrap();
    assert_eq!(
        g.open("phone", &["10.66.0.5"]).await,
        Err(Refusal::EnrolmentNotOpen(id("phone")))
    );
    let known = g.controller().device(id("phone")).await.unwrap().device;
    assert_eq!(known.enrolment.arrived_outside, Some(START.wall));
    g.clock.advance_ms(60_000);
    g.open("phone", &["10.66.0.5"]).await.unwrap();
}

#[tokio::test]
async fn what_a_foreign_hand_does_to_all_addresses_is_noted_and_the_status_says_what_the_kernel_has() {
    let g = Gateway::new().await;
    let status = g.controller().status().await.unwrap();
    assert_eq!(
        (status.mode, status.warnings.iter().any(|w| w.contains("observe"))),
        (Mode::Enforce, false)
    );
    g.kernel.state().mode = Some(Mode::Observe);
    let status = g.controller().status().await.unwrap();
    assert_eq!(status.mode, Mode::Observe);
    assert!(
        status.warnings.iter().any(|w| w.contains("the programs deny nothing")),
        "{:?}",
        status.warnings
    );
    g.kernel.state().mode = None;

    let difference = |subject: &str, repaired| TableDifference {
        subject: subject.to_owned(),
        found: "observe".to_owned(),
        wanted: "none".to_owned(),
        repaired,
    };
    g.kernel.state().foreign = vec![difference("CONTROL, flags", true), difference("INTERFACES, index 7", false)];
    let found = g.controller().check_drift().await.unwrap();
    assert_eq!((found.found, found.repaired), (2, 1), "{found:?}");
    assert_eq!(
        (found.last[1].subject.as_str(), found.last[1].found.as_str()),
        ("CONTROL, flags", "observe")
    );
    // One that stays is told once; without being asked, others are found within a second.
    g.kernel.state().foreign = vec![difference("INTERFACES, index 7", false)];
    assert_eq!(g.controller().check_drift().await.unwrap().found, 0);
    g.kernel.state().foreign = vec![difference("CONTROL, class 1", true)];
    g.until("found", async |g| g.controller().drift().await.unwrap().found == 3)
        .await;
}
