//! Sessions: who may have which address, and what becomes of it.

use std::net::IpAddr;

use super::kit::*;
use crate::{
    config::UnknownDevice,
    controller::{Enforcement, Refusal, SessionReport},
    kernel::fake::Call,
    model::{DeviceState, SessionId, Trust, VpnKey, prefix},
};

#[tokio::test]
async fn an_address_handed_over_carries_nothing_over() {
    let g = Gateway::new().await;
    g.register("old", "office").await;
    g.register("new", "office").await;
    let old = g.open("old", &["10.66.0.5", "10.66.0.6"]).await.unwrap();
    g.applied("old").await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), OFFICE);
    let new = g.open("new", &["10.66.0.5"]).await.unwrap();
    assert_eq!(new.session.current_pool, QUARANTINE);
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (QUARANTINE, QUARANTINE));
    assert!(g.controller().device(id("old")).await.unwrap().sessions.is_empty());
    // The old device is still released, and its late close does not end the new owner's session.
    let late = g.tell().close_session(g.seen(0), old.session.session.id).await.unwrap();
    assert_eq!((late.ended, late.enforcement), (false, Enforcement::NoSession));
    assert_eq!(g.controller().device(id("new")).await.unwrap().sessions.len(), 1);
    g.applied("new").await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), OFFICE);
}

#[tokio::test]
async fn between_two_released_owners_an_address_is_in_quarantine_until_the_commit() {
    let g = Gateway::new().await;
    for device in ["old", "new"] {
        g.register(device, "office").await;
        g.applied(device).await.unwrap();
    }
    g.open("old", &["10.66.0.5"]).await.unwrap();
    g.kernel.take_calls();
    let new = g.open("new", &["10.66.0.5", "fd00:66::5"]).await.unwrap();
    assert_eq!(new.enforcement, Enforcement::Enforced);
    let calls = g.kernel.take_calls();
    let committed = calls.iter().position(|c| *c == Call::Note("committed")).unwrap();
    for (i, call) in calls.iter().enumerate() {
        if let Call::Assign(_, to) = call {
            assert_eq!(to.pool, if i < committed { QUARANTINE } else { OFFICE }, "{calls:?}");
        }
    }
    assert_eq!((g.judged("10.66.0.5"), g.judged("fd00:66::5")), (OFFICE, OFFICE));
}

#[tokio::test]
async fn a_whole_64_is_the_sessions_own() {
    let g = Gateway::new().await;
    for device in ["router", "phone", "third"] {
        g.register(device, "office").await;
    }
    const WHOLE: &str = "fd00:66::fdff:ffff:ffff:ff80";
    let network = prefix::whole("fd00:66::".parse().unwrap());
    assert_eq!(network, ip(WHOLE));
    let router = g.open("router", &[WHOLE, "10.66.0.5"]).await.unwrap();
    g.applied("router").await.unwrap();
    let inside = ["fd00:66::7", "fd00:66:0:0:ffff::1", "10.66.0.5"];
    assert_eq!(inside.map(|a| g.judged(a)), [OFFICE; 3]);
    // Nobody else has an address of it, or all of it.
    let taken = |address: IpAddr, session: SessionId| {
        Err(Refusal::AddressTaken {
            address,
            session,
            source_name: "vpn-1".parse().unwrap(),
        })
    };
    let id = router.session.session.id;
    assert_eq!(
        g.open_at("vpn-2", "phone", &["fd00:66::7"]).await.map(|_| ()),
        taken(ip("fd00:66::7"), id)
    );
    assert_eq!(g.open_at("vpn-2", "phone", &[WHOLE]).await.map(|_| ()), taken(network, id));
    assert_eq!(
        g.open_at("vpn-2", "phone", &[WHOLE]).await.unwrap_err().to_string(),
        format!("fd00:66::/64 is held by session {id} of source vpn-1")
    );
    // The same source hands it on: to an address of it, which nothing is left of the rest for.
    let phone = g.open("phone", &["fd00:66::7"]).await.unwrap();
    assert!(
        g.controller()
            .device(super::kit::id("router"))
            .await
            .unwrap()
            .sessions
            .is_empty()
    );
    assert_eq!(inside.map(|a| g.judged(a)), [QUARANTINE; 3]);
    g.applied("phone").await.unwrap();
    assert_eq!(inside.map(|a| g.judged(a)), [OFFICE, QUARANTINE, QUARANTINE]);
    // And to all of it from single ones, which end.
    g.open("third", &["fd00:66::8"]).await.unwrap();
    let id = phone.session.session.id;
    assert_eq!(g.open_at("vpn-2", "router", &[WHOLE]).await.map(|_| ()), taken(network, id));
    g.open("router", &[WHOLE]).await.unwrap();
    assert_eq!(inside.map(|a| g.judged(a)), [OFFICE, OFFICE, QUARANTINE]);
    assert_eq!(
        g.kernel.state().assigned.keys().collect::<Vec<_>>(),
        [&network],
        "nothing is left of the single ones"
    );
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 1);
    g.open("phone", &["10.66.0.5"]).await.unwrap();
    assert_eq!(inside.map(|a| g.judged(a)), [OFFICE; 3]);
}

#[tokio::test]
async fn an_address_inside_a_64_is_told_as_its_sessions() {
    let g = Gateway::new().await;
    g.register("router", "office").await;
    let opened = g.open("router", &["fd00:66::fdff:ffff:ffff:ff80"]).await.unwrap();
    let (inside, outside) = (ip("fd00:66::7"), ip("2001:db8::7"));
    let around = g.controller().surroundings(vec![inside, outside]).await.unwrap();
    let [of, none] = &around.ends[..] else { panic!("{around:?}") };
    assert_eq!(of.address, inside, "as it was asked for");
    assert_eq!(of.session.as_ref().map(|s| s.session.id), Some(opened.session.session.id));
    assert_eq!(of.device.as_ref().map(|d| d.id.as_str()), Some("router"));
    assert_eq!((none.session.is_some(), none.device.is_some()), (false, false));
    // So are denied packets.
    let holders = g.controller().holders(vec![inside, outside]).await.unwrap();
    assert_eq!(holders.into_iter().collect::<Vec<_>>(), [(inside, super::kit::id("router"))]);
}

#[tokio::test]
async fn a_64_is_whole_in_a_pool() {
    let g = Gateway::new().await;
    g.register("router", "office").await;
    let outside = prefix::whole("fd00:99::".parse().unwrap());
    let refused = g.open("router", &["fd00:99::fdff:ffff:ffff:ff80"]).await;
    assert_eq!(refused.map(|_| ()), Err(Refusal::AddressOutsidePools(outside)));
}

#[tokio::test]
async fn another_sources_address_is_refused_and_shown() {
    let g = Gateway::new().await;
    g.register("one", "office").await;
    g.register("two", "office").await;
    let first = g.open_at("vpn-1", "one", &["10.66.0.5"]).await.unwrap();
    g.applied("one").await.unwrap();
    let refused = g.open_at("vpn-2", "two", &["10.66.0.6", "10.66.0.5"]).await;
    let session = first.session.session.id;
    let taken = Refusal::AddressTaken {
        address: ip("10.66.0.5"),
        session,
        source_name: "vpn-1".parse().unwrap(),
    };
    assert_eq!(refused, Err(taken));
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (OFFICE, QUARANTINE));
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 1);
    let status = g.controller().status().await.unwrap();
    assert!(
        status
            .conflicts
            .iter()
            .any(|w| w.contains("vpn-2") && w.contains("10.66.0.5")),
        "{:?}",
        status.conflicts
    );
}

#[tokio::test]
async fn what_no_session_may_have_is_refused_by_name() {
    let g = Gateway::new().await;
    g.register("one", "office").await;
    assert_eq!(
        g.open("nobody", &["10.66.0.5"]).await,
        Err(Refusal::UnknownDevice(id("nobody")))
    );
    assert_eq!(
        g.open("one", &["192.0.2.1"]).await,
        Err(Refusal::AddressOutsidePools(ip("192.0.2.1")))
    );
    assert_eq!(
        g.open("one", &["10.66.0.5", "10.66.0.1"]).await,
        Err(Refusal::AddressReserved(ip("10.66.0.1")))
    );
    g.open("one", &["10.66.0.5"]).await.unwrap();
    let limit = Refusal::SessionLimit {
        device: id("one"),
        live: 1,
    };
    assert_eq!(g.open("one", &["10.66.0.6"]).await, Err(limit));
    // With one of its addresses, it is the same connection again.
    g.open("one", &["10.66.0.5", "10.66.0.6"]).await.unwrap();
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 1);
    assert_eq!(g.kernel.state().assigned.len(), 2);
}

#[tokio::test]
async fn a_certificate_must_be_the_devices() {
    let g = Gateway::new().await;
    let mut one = registration("one", "office");
    one.common_names = vec![id("cn-1")];
    one.certificates = vec!["aa".repeat(32).parse().unwrap()];
    let list = vec![one, registration("two", "office")];
    g.tell().register(g.seen(0), list).await.unwrap();
    let open = async |device: &str, certificate: Option<&str>| {
        let certificate = certificate.map(|c| c.repeat(32).parse().unwrap());
        let report = SessionReport {
            certificate,
            ..report(device, &["10.66.0.5"])
        };
        g.tell()
            .open_session(g.seen(0), "vpn-1".parse().unwrap(), report)
            .await
            .map(|o| o.session.session.device.unwrap())
    };
    let mismatch = |device: &str| Err(Refusal::FingerprintMismatch(id(device)));
    assert_eq!(open("one", None).await, mismatch("one"));
    assert_eq!(open("cn-1", Some("bb")).await, mismatch("one"));
    assert_eq!(open("two", Some("aa")).await, Err(Refusal::FingerprintOfAnother(id("two"))));
    assert_eq!(open("cn-1", Some("aa")).await, Ok(id("one")));
    assert_eq!(open("two", Some("bb")).await, Ok(id("two")));
}

#[tokio::test]
async fn a_session_ends_when_its_name_becomes_another_devices() {
    let g = Gateway::new().await;
    let named = |device: &str, names: &[&str]| {
        let mut d = registration(device, "office");
        d.common_names = names.iter().map(|n| id(n)).collect();
        d
    };
    let list = vec![named("one", &["cn"]), named("two", &[])];
    g.tell().register(g.seen(0), list).await.unwrap();
    g.applied("one").await.unwrap();
    g.open("cn", &["10.66.0.5"]).await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), OFFICE);
    // The person has a new phone: who goes on under the old name is not the released device.
    let list = vec![named("one", &[]), named("two", &["cn"])];
    g.tell().register(g.seen(0), list).await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert_eq!(g.controller().sessions(None, 10).await.unwrap().len(), 0);
}

#[tokio::test]
async fn a_session_ends_with_what_its_device_was_known_by() {
    let g = Gateway::new().await;
    let certificate = |c: &str| c.repeat(32).parse().unwrap();
    let registered = async |certificates: &[&str], keys: &[u8]| {
        let mut phone = registration("phone", "office");
        phone.certificates = certificates.iter().map(|c| certificate(c)).collect();
        phone.vpn_keys = keys.iter().map(|k| VpnKey([*k; 32])).collect();
        g.tell().register(g.seen(0), vec![phone]).await.unwrap();
    };
    let open = async |with: Option<&str>, key: Option<u8>| {
        let report = SessionReport {
            certificate: with.map(certificate),
            vpn_key: key.map(|k| VpnKey([k; 32])),
            ..report("phone", &["10.66.0.5"])
        };
        let opened = g.tell().open_session(g.seen(0), "vpn-1".parse().unwrap(), report).await;
        opened.map(|o| o.session.session.trust)
    };
    let live = async || g.controller().sessions(None, 10).await.unwrap().len();
    registered(&["aa", "bb"], &[]).await;
    g.applied("phone").await.unwrap();
    assert_eq!(open(Some("aa"), None).await, Ok(Trust::Certificate));
    registered(&["aa", "bb", "cc"], &[]).await;
    assert_eq!((live().await, g.judged("10.66.0.5")), (1, OFFICE));
    // One of them was stolen.
    registered(&["bb", "cc"], &[]).await;
    assert_eq!((live().await, g.judged("10.66.0.5")), (0, QUARANTINE));
    assert_eq!(open(Some("aa"), None).await, Err(Refusal::FingerprintMismatch(id("phone"))));

    registered(&[], &[7]).await;
    assert_eq!(open(None, Some(8)).await, Err(Refusal::FingerprintMismatch(id("phone"))));
    assert_eq!(open(None, Some(7)).await, Ok(Trust::VpnKey));
    registered(&[], &[7]).await;
    assert_eq!(live().await, 1);
    registered(&[], &[]).await;
    assert_eq!((live().await, g.judged("10.66.0.5")), (0, QUARANTINE));
    // By its name alone, as far as a pool takes that.
    assert_eq!(open(None, None).await, Ok(Trust::Name));
}

#[tokio::test]
async fn an_unknown_device_may_be_let_into_quarantine_without_a_name() {
    let mut config = config();
    config.devices.unknown = UnknownDevice::Quarantine;
    let g = Gateway::with(config).await;
    let opened = g.open("stranger", &["10.66.1.5"]).await.unwrap();
    assert_eq!(opened.session.session.device, None);
    assert_eq!(opened.session.current_pool, QUARANTINE);
    assert_eq!(opened.gateway_uri, "quarantine.vpn.example");
    // Registering and releasing that name afterwards does not reach a session that opened without one.
    g.register("stranger", "office").await;
    assert_eq!(enforcement(g.applied("stranger").await), Enforcement::NoSession);
    assert_eq!(g.judged("10.66.1.5"), QUARANTINE);
}

#[tokio::test]
async fn a_full_table_leaves_nothing_behind() {
    let g = Gateway::new().await;
    for device in ["one", "two"] {
        g.register(device, "office").await;
    }
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.kernel.state().capacity = 2;
    let revision = g.controller().status().await.unwrap().revision;
    assert_eq!(g.open("two", &["10.66.0.6", "fd00:66::6"]).await, Err(Refusal::TableFull));
    assert_eq!(g.kernel.state().assigned.len(), 1);
    assert_eq!(g.controller().status().await.unwrap().revision, revision);
    assert_eq!(
        g.controller().device(id("two")).await.unwrap().device.state,
        DeviceState::Registered
    );
    g.open("two", &["10.66.0.6"]).await.unwrap();
}

#[tokio::test]
async fn without_a_free_class_a_session_is_refused_by_name_and_a_release_is_not_in_force() {
    let g = Gateway::new().await;
    for device in ["one", "two"] {
        g.register(device, "office").await;
    }
    g.kernel.state().classes = Some(0);
    assert_eq!(g.open("one", &["10.66.0.5"]).await.map(|_| ()), Err(Refusal::ClassesFull));
    assert!(g.kernel.state().assigned.is_empty());
    g.kernel.state().classes = Some(1);
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.open("two", &["10.66.0.6"]).await.unwrap();
    // A release needs another; it is not answered as what it is not.
    assert_eq!(enforcement(g.applied("one").await), Enforcement::Committed);
    assert_eq!(g.judged("10.66.0.5"), QUARANTINE);
    assert_eq!(enforcement(g.revoked("one").await), Enforcement::Enforced);
    g.kernel.state().classes = None;
    g.clock.advance_ms(1);
    assert_eq!(enforcement(g.applied("one").await), Enforcement::Enforced);
}

#[tokio::test]
async fn closing_takes_the_release_away_from_the_address() {
    let g = Gateway::new().await;
    g.register("one", "office").await;
    let session = g
        .open("one", &["10.66.1.5", "fd00:66:1::5"])
        .await
        .unwrap()
        .session
        .session
        .id;
    g.applied("one").await.unwrap();
    let closed = g.tell().close_session(g.seen(0), session).await.unwrap();
    assert_eq!((closed.ended, closed.enforcement), (true, Enforcement::Enforced));
    assert_eq!((g.judged("10.66.1.5"), g.judged("fd00:66:1::5")), (QUARANTINE, QUARANTINE));
    assert!(g.kernel.state().assigned.is_empty());
    assert_eq!(
        g.controller().device(id("one")).await.unwrap().device.state,
        DeviceState::Released
    );
}

#[tokio::test]
async fn addresses_are_read_from_the_kernel() {
    let g = Gateway::new().await;
    g.register("one", "lab").await;
    g.open("one", &["10.66.0.5"]).await.unwrap();
    g.applied("one").await.unwrap();
    let all = g.controller().addresses(None, None, 10).await.unwrap().0;
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].reading.pool, all[0].device.clone()), (Some(LAB), Some(id("one"))));
    assert_eq!(all[0].lease_ends_at.unwrap().0, START.wall.0 + LEASE_MS as i64);
    let free = g.controller().addresses(Some(ip("10.66.1.9")), None, 1).await.unwrap().0;
    assert_eq!((free[0].reading.pool, free[0].reading.session), (Some(QUARANTINE), None));
    let foreign = g.controller().addresses(Some(ip("192.0.2.1")), None, 1).await.unwrap().0;
    assert_eq!(foreign[0].reading.pool, None);
    // Page by page, in whole sessions.
    g.register("two", "lab").await;
    g.open("two", &["10.66.0.6", "fd00:66::6"]).await.unwrap();
    let (first, last) = g.controller().addresses(None, None, 1).await.unwrap();
    assert_eq!((first.len(), last.is_some()), (1, true));
    let (second, end) = g.controller().addresses(None, last, 1).await.unwrap();
    assert_eq!(
        second.iter().map(|a| a.address).collect::<Vec<_>>(),
        [ip("10.66.0.6"), ip("fd00:66::6")]
    );
    assert_eq!(end, None, "there are no more");
}

#[tokio::test]
async fn a_session_whose_caller_has_gone_away_does_not_stay() {
    let g = Gateway::new().await;
    g.register("phone", "office").await;
    g.applied("phone").await.unwrap();
    let source = || "vpn-1".parse().unwrap();
    // Asked, and given up at once: before the controller comes to it, or while it works on it.
    for address in ["10.66.0.5", "10.66.0.6"] {
        let asking = g.tell().open_session(g.seen(0), source(), report("phone", &[address]));
        assert!(futures_util::FutureExt::now_or_never(asking).is_none());
    }
    // The queue is served in order.
    assert!(g.controller().sessions(None, 10).await.unwrap().is_empty());
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (QUARANTINE, QUARANTINE));
    // The device is not kept out by what nobody closed.
    g.open("phone", &["10.66.0.7"]).await.unwrap();
    assert_eq!(g.judged("10.66.0.7"), OFFICE);
}
