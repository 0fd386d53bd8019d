//! Changes of GatewayURIs: none is missed, none comes twice.

use super::kit::*;
use crate::{controller::Refusal, model::Revision};

#[tokio::test]
async fn a_watcher_that_comes_back_misses_nothing_and_sees_nothing_twice() {
    let mut g = Gateway::new().await;
    g.register("phone", "office").await;
    let from = g.controller().status().await.unwrap().revision;
    for _ in 0..3 {
        g.clock.advance_ms(1);
        g.applied("phone").await.unwrap();
        g.clock.advance_ms(1);
        g.revoked("phone").await.unwrap();
    }
    let (kept, live) = g.controller().watch_gateway_uris(Some(from)).await.unwrap();
    let mut live = live.unwrap();
    g.clock.advance_ms(1);
    let released = g.applied("phone").await.unwrap();
    let mut all = kept.clone();
    all.push(live.recv().await.unwrap());
    assert!(live.try_recv().is_err());
    assert_eq!(all.len(), 7);
    assert!(
        all.windows(2).all(|w| w[0].revision < w[1].revision && w[0].new == w[1].old),
        "{all:?}"
    );
    let last = all.last().unwrap();
    assert_eq!(
        (last.revision, last.new.as_str(), last.reason.as_str()),
        (released.revision, "office.vpn.example", "policy_applied")
    );
    // From the middle, and after a restart.
    g.restart().await;
    let (rest, _) = g.controller().watch_gateway_uris(Some(all[3].revision)).await.unwrap();
    assert_eq!(rest, all[4..]);
    let (nothing, _) = g.controller().watch_gateway_uris(Some(released.revision)).await.unwrap();
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn a_revision_of_another_database_is_refused() {
    let g = Gateway::new().await;
    let refused = g.controller().watch_gateway_uris(Some(Revision(5))).await.map(|_| ());
    assert_eq!(refused, Err(Refusal::RevisionTooOld { asked: 5, now: 0 }));
}
