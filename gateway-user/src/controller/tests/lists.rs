//! A source's whole list of sessions: what it ends, keeps and opens, and what becomes of it when it is asked again.

use futures_util::FutureExt as _;

use super::kit::*;
use crate::{
    controller::{Answer, Refusal, SignalContext},
    model::{Identity, Role, SessionId},
};

#[tokio::test]
async fn a_list_ends_keeps_and_opens() {
    let g = Gateway::new().await;
    for device in ["stays", "goes", "comes", "moves"] {
        g.register(device, "office").await;
        g.applied(device).await.unwrap();
    }
    let stays = g
        .open("stays", &["10.66.0.5", "fd00:66::5"])
        .await
        .unwrap()
        .session
        .session
        .id;
    g.open("goes", &["10.66.0.6"]).await.unwrap();
    g.open("moves", &["10.66.0.7"]).await.unwrap();
    g.register("elsewhere", "office").await;
    g.open_at("vpn-2", "elsewhere", &["10.66.0.9"]).await.unwrap();
    let list = vec![
        report("stays", &["fd00:66::5", "10.66.0.5"]),
        report("comes", &["10.66.0.6"]),
        report("moves", &["10.66.0.8"]),
        report("nobody", &["10.66.0.10"]),
        report("goes", &["10.66.0.9"]),
        report("goes", &["10.66.0.8"]),
        report("goes", &["10.66.0.5"]),
    ];
    let outcome = g
        .tell()
        .synchronise_sessions(g.seen(0), "vpn-1".parse().unwrap(), list)
        .await
        .unwrap();
    assert_eq!((outcome.opened, outcome.kept, outcome.ended), (2, 1, 2));
    let taken = |address: &str, session: u64, source: &str| Refusal::AddressTaken {
        address: ip(address),
        session: SessionId(session),
        source_name: source.parse().unwrap(),
    };
    let sessions = g.controller().sessions(None, 10).await.unwrap();
    let holder = |a: &str| {
        sessions
            .iter()
            .find(|s| s.session.addresses.iter().any(|held| held == ip(a)))
            .unwrap()
            .session
            .id
            .0
    };
    let expected = vec![
        (3, Refusal::UnknownDevice(id("nobody"))),
        (4, taken("10.66.0.9", holder("10.66.0.9"), "vpn-2")),
        (5, taken("10.66.0.8", holder("10.66.0.8"), "vpn-1")),
        (6, taken("10.66.0.5", stays.0, "vpn-1")),
    ];
    let references: Vec<u64> = outcome.refused.iter().filter_map(|(_, r)| r.reference).collect();
    assert_eq!(references.len(), expected.len(), "each is in the audit");
    let refused: Vec<_> = outcome.refused.into_iter().map(|(i, r)| (i, r.refusal)).collect();
    assert_eq!(refused, expected);
    let judged = ["10.66.0.5", "fd00:66::5", "10.66.0.6", "10.66.0.7", "10.66.0.8", "10.66.0.9"].map(|a| g.judged(a));
    assert_eq!(judged, [OFFICE, OFFICE, OFFICE, QUARANTINE, OFFICE, QUARANTINE]);
    // The same list again: nothing to do.
    let list = vec![
        report("stays", &["10.66.0.5", "fd00:66::5"]),
        report("comes", &["10.66.0.6"]),
        report("moves", &["10.66.0.8"]),
    ];
    let again = g
        .tell()
        .synchronise_sessions(g.seen(0), "vpn-1".parse().unwrap(), list)
        .await
        .unwrap();
    assert_eq!(
        (again.opened, again.kept, again.ended, again.revision),
        (0, 3, 0, outcome.revision)
    );
    let none = g
        .tell()
        .synchronise_sessions(g.seen(0), "vpn-1".parse().unwrap(), Vec::new())
        .await
        .unwrap();
    assert_eq!((none.opened, none.kept, none.ended), (0, 0, 3));
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 1);
}

/// A request of vpn-1's.
fn listed(g: &Gateway, id: &str) -> SignalContext {
    SignalContext {
        request: id.parse().unwrap(),
        digest: Some([7; 32]),
        ..g.seen(0)
    }
}

#[tokio::test]
async fn a_list_under_way_that_comes_again_ends_nothing_that_opened_since() {
    let g = Gateway::new().await;
    for device in ["old", "listed", "young"] {
        g.register(device, "office").await;
    }
    g.open("old", &["10.66.0.5"]).await.unwrap();
    let list = || vec![report("listed", &["10.66.0.6"])];
    let source = || "vpn-1".parse().unwrap();
    let devices = async || {
        let sessions = g.controller().sessions(None, 10).await.unwrap();
        let mut all: Vec<String> = sessions
            .iter()
            .filter_map(|s| s.session.device.clone())
            .map(|d| d.to_string())
            .collect();
        all.sort();
        all
    };
    let go = g.hold().await;
    // All three wait when the controller comes to them: the list, a session that opens by itself, and the list again.
    let mut first = Box::pin(g.controller().synchronise_sessions(listed(&g, "one"), source(), list()));
    let mut young = Box::pin(g.open("young", &["10.66.0.7"]));
    let mut again = Box::pin(g.controller().synchronise_sessions(listed(&g, "one"), source(), list()));
    assert!((&mut first).now_or_never().is_none());
    assert!((&mut young).now_or_never().is_none());
    assert!((&mut again).now_or_never().is_none());
    go.send(()).unwrap();
    young.await.unwrap();
    assert_eq!(again.await.unwrap_err().refusal, Refusal::Busy);
    let outcome = first.await.unwrap().first().unwrap();
    assert_eq!((outcome.opened, outcome.ended), (1, 1));
    assert_eq!(devices().await, ["listed", "young"]);
    // Afterwards what is so then is its answer, and the first answer, once that is known.
    let ask = || g.controller().synchronise_sessions(listed(&g, "one"), source(), list());
    let so = ask().await.unwrap().first().unwrap();
    assert_eq!((so.opened, so.kept, so.ended), (0, 2, 0));
    g.controller().answered(listed(&g, "one"), b"first".to_vec(), false);
    assert_eq!(ask().await, Ok(Answer::Again(b"first".to_vec())));
}

#[tokio::test]
async fn a_list_that_nobody_waits_for_is_dropped_and_asked_again_is_as_old_as_it_was() {
    let g = Gateway::new().await;
    for device in ["old", "listed", "young"] {
        g.register(device, "office").await;
    }
    let old = g.open("old", &["10.66.0.5"]).await.unwrap().session.session.id;
    let source = || "vpn-1".parse().unwrap();
    let ask = || {
        let list = vec![report("listed", &["10.66.0.6"])];
        g.controller().synchronise_sessions(listed(&g, "one"), source(), list)
    };
    let go = g.hold().await;
    assert!(ask().now_or_never().is_none());
    go.send(()).unwrap();
    g.open("young", &["10.66.0.7"]).await.unwrap();
    assert!(
        g.controller().sessions(None, 1).await.unwrap()[0].session.id == old,
        "nothing of it was done"
    );
    let outcome = ask().await.unwrap().first().unwrap();
    assert_eq!((outcome.opened, outcome.kept, outcome.ended), (1, 0, 1));
    assert_eq!(
        g.controller().sessions(None, 10).await.unwrap().len(),
        2,
        "what opened since stays"
    );
}

#[tokio::test]
async fn only_so_many_lists_wait() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    let go = g.hold().await;
    let mut all: Vec<_> = (0..18)
        .map(|i| {
            let context = SignalContext {
                by: Identity::unlimited(Role::Vpn, &format!("client-{}", i % 5)),
                ..listed(&g, &format!("list-{i}"))
            };
            Box::pin(
                g.controller()
                    .synchronise_sessions(context, "vpn-1".parse().unwrap(), Vec::new()),
            )
        })
        .collect();
    for asked in &mut all {
        assert!(asked.now_or_never().is_none());
    }
    // One has given up: it takes no room from those that come after it.
    drop(all.remove(0));
    go.send(()).unwrap();
    let told: Vec<bool> = futures_util::future::join_all(all).await.iter().map(Result::is_ok).collect();
    assert_eq!(told.iter().filter(|done| **done).count(), 16, "{told:?}");
    assert!(!told[16]);
}
