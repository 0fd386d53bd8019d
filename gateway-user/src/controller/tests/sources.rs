//! Interfaces and addresses that are one VPN server's own.

use super::kit::{Gateway, OFFICE, QUARANTINE, config, id, report};
use crate::{
    config::{InterfacePattern, Source},
    controller::{Refusal, SignalContext},
    model::{Identity, Role, Scope},
};

fn source(name: &str, interfaces: Option<&str>, prefixes: Option<&str>) -> Source {
    Source {
        name: name.parse().unwrap(),
        heartbeat: None,
        interfaces: interfaces.map(|i| vec![InterfacePattern::Name(i.parse().unwrap())]),
        prefixes: prefixes.map(|p| vec![p.parse().unwrap()]),
    }
}

/// As a VPN server with a certificate for these sources.
fn by(g: &Gateway, sources: &[&str]) -> SignalContext {
    let scope = Scope {
        sources: Some(sources.iter().map(|s| s.parse().unwrap()).collect()),
        devices: None,
    };
    SignalContext {
        by: Identity {
            scope,
            ..Identity::unlimited(Role::Vpn, sources[0])
        },
        ..g.seen(0)
    }
}

async fn open(g: &Gateway, by: SignalContext, source: &str, device: &str, address: &str) -> Result<(), Refusal> {
    let opened = g
        .tell()
        .open_session(by, source.parse().unwrap(), report(device, &[address]))
        .await;
    opened.map(drop)
}

fn not_there(source: &str) -> Result<(), Refusal> {
    Err(Refusal::SourceInterface {
        interface: "tun0".parse().unwrap(),
        source_name: source.parse().unwrap(),
    })
}

async fn conflicts(g: &Gateway) -> Vec<String> {
    g.controller().status().await.unwrap().conflicts
}

#[tokio::test]
async fn nobody_opens_sessions_where_another_source_has_some() {
    let g = Gateway::new().await;
    for device in ["one", "two"] {
        g.register(device, "office").await;
    }
    g.applied("two").await.unwrap();
    open(&g, by(&g, &["vpn-1"]), "vpn-1", "one", "10.66.0.5").await.unwrap();
    // A free address, a released device: the client that gets it next is none of vpn-2's.
    let two = || open(&g, by(&g, &["vpn-2"]), "vpn-2", "two", "10.66.0.6");
    assert_eq!(two().await, not_there("vpn-2"));
    assert_eq!(g.judged("10.66.0.6"), QUARANTINE);
    let sentence = not_there("vpn-2").unwrap_err().to_string();
    assert!(!sentence.contains("vpn-1"), "whose it is stays here: {sentence}");
    let shown = conflicts(&g).await;
    assert!(
        matches!(&shown[..], [one] if one.contains("(source-interface)") && one.contains("vpn-2") && one.contains("it is source vpn-1's")),
        "{shown:?}"
    );
    // By a list, too; each line with its reference.
    let list = vec![report("two", &["10.66.0.6"])];
    let told = g
        .tell()
        .synchronise_sessions(by(&g, &["vpn-2"]), "vpn-2".parse().unwrap(), list)
        .await
        .unwrap();
    assert_eq!((told.opened, told.refused.len()), (0, 1));
    assert_eq!(told.refused[0].1.refusal.name(), "SOURCE_INTERFACE");
    assert!(told.refused[0].1.reference.is_some());
    assert_eq!(conflicts(&g).await.len(), 1, "the same again");
    // One server that has another name now may speak for the old one.
    open(&g, by(&g, &["vpn-2", "vpn-1"]), "vpn-2", "two", "10.66.0.6")
        .await
        .unwrap();
    assert_eq!(g.judged("10.66.0.6"), OFFICE);
    assert_eq!(
        open(&g, by(&g, &["vpn-1"]), "vpn-1", "one", "10.66.0.7").await,
        not_there("vpn-1"),
        "now there are two"
    );
}

#[tokio::test]
async fn an_interface_is_free_when_its_last_session_ends() {
    let g = Gateway::new().await;
    for device in ["one", "two"] {
        g.register(device, "office").await;
    }
    g.open_at("vpn-1", "one", &["10.66.0.5"]).await.unwrap();
    // On the same address again it is one session.
    let opened = g.open_at("vpn-1", "one", &["10.66.0.5"]).await.unwrap();
    let two = || open(&g, by(&g, &["vpn-2"]), "vpn-2", "two", "10.66.0.6");
    assert_eq!(two().await, not_there("vpn-2"));
    g.tell().close_session(g.seen(0), opened.session.session.id).await.unwrap();
    two().await.unwrap();
}

#[tokio::test]
async fn what_the_configuration_lists_holds_for_everyone() {
    let mut config = config();
    config.sources = vec![source("vpn-1", Some("tun0"), Some("10.66.0.0/25"))];
    let g = Gateway::with(config).await;
    g.register("one", "office").await;
    // Before it has any session, and by who may speak for all.
    assert_eq!(open(&g, g.seen(0), "vpn-2", "one", "10.66.0.5").await, not_there("vpn-2"));
    let outside = Refusal::SourcePrefix {
        address: "10.66.0.200".parse().unwrap(),
        source_name: "vpn-1".parse().unwrap(),
    };
    assert_eq!(open(&g, g.seen(0), "vpn-1", "one", "10.66.0.200").await, Err(outside));
    open(&g, g.seen(0), "vpn-1", "one", "10.66.0.5").await.unwrap();
    assert_eq!(conflicts(&g).await.len(), 2);
}

#[tokio::test]
async fn what_a_source_loses_by_a_new_configuration_ends_at_the_start() {
    let mut g = Gateway::new().await;
    for device in ["one", "two"] {
        g.register(device, "office").await;
        g.applied(device).await.unwrap();
    }
    g.open_at("vpn-1", "one", &["10.66.0.5"]).await.unwrap();
    g.open_at("vpn-2", "two", &["10.66.0.6"]).await.unwrap();
    g.stop().await;
    let mut config = config();
    config.sources = vec![source("vpn-1", Some("tun0"), None)];
    g.reconfigure(config);
    g.start().await.unwrap();
    let live = g.controller().sessions(None, 10).await.unwrap();
    assert_eq!(
        live.iter().map(|s| s.session.device.clone().unwrap()).collect::<Vec<_>>(),
        [id("one")]
    );
    assert_eq!((g.judged("10.66.0.5"), g.judged("10.66.0.6")), (OFFICE, QUARANTINE));
}
