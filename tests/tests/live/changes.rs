//! What is done to the gateway under traffic: killed, stopped and started, another policy, other tables, another tun. What quarantine allows
//! goes on, and nothing denied passes at any moment.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, SystemTime},
};

use lazaret_tests::{
    flows::{Flow, Kind},
    gateway::Gateway,
    require, site,
};

use crate::stage::{Flows, Observers, Stage};

/// What quarantine may reach, both families.
const ALLOWED: [(Kind, IpAddr, u16); 5] = [
    (Kind::Tcp, site::DM, 80),
    (Kind::Tcp, site::DM6, 80),
    (Kind::Udp, site::RESOLVER, 53),
    (Kind::Icmp, site::DM, 0),
    (Kind::Icmp, site::DM6, 0),
];
/// And what not.
const DENIED: [(Kind, IpAddr, u16); 4] = [
    (Kind::Udp, site::MAIL, 53),
    (Kind::Udp, site::MAIL6, 53),
    (Kind::Icmp, site::MAIL, 0),
    (Kind::Icmp, site::MAIL6, 0),
];

/// Lets quarantine ping the DM server.
fn with_echo(gateway: &Gateway) {
    let rule = format!(
        "ports = [\"53\"]\n\n[[policy.rule]]\nto = [\"{}\", \"{}\"]\nprotocol = \"icmp\"",
        site::DM,
        site::DM6
    );
    gateway.configure("ports = [\"53\"]", &rule).unwrap();
}

struct Traffic {
    allowed: Flows,
    denied: Vec<Flow>,
    witness: Observers,
}

impl Traffic {
    fn new(stage: &Stage) -> Self {
        let witness = Observers::new(stage);
        let denied = DENIED.map(|(kind, to, port)| stage.flow(kind, to, port, witness.token));
        let traffic = Self {
            allowed: stage.flows_to(&ALLOWED),
            denied: denied.into(),
            witness,
        };
        traffic.allowed.run(20);
        traffic
    }

    fn nothing_denied_has_passed(&self) {
        assert_eq!(self.witness.counts(), [0; 3]);
        assert!(self.denied.iter().all(|flow| flow.sent()[0] > 100), "but was sent");
    }
}

#[test]
fn restarts_other_policies_and_other_tables_under_ethernet_flows() {
    require!(Root, Bpf);
    let mut stage = Stage::ethernet(with_echo);
    let mut traffic = Traffic::new(&stage);
    let more = format!(
        "ports = [\"53\"]\n\n[[policy.rule]]\nto = [\"{}/32\"]\nprotocol = \"udp\"\nports = [\"123\"]",
        site::DM
    );
    let changes: [&dyn Fn(&Gateway); 4] = [
        &|_| (),
        &|g| g.configure("ports = [\"53\"]", &more).unwrap(),
        &|g| g.configure("addresses = 4096", "addresses = 8192").unwrap(),
        &|g| g.configure(&more, "ports = [\"53\"]").unwrap(),
    ];
    for (round, change) in changes.into_iter().enumerate() {
        if round % 2 == 0 {
            stage.gateway.kill().unwrap();
        } else {
            stage.gateway.stop().unwrap();
        }
        thread::sleep(Duration::from_millis(100));
        change(&stage.gateway);
        stage.gateway.start().unwrap();
        stage.attached();
        traffic.allowed.run(10);
    }
    traffic.nothing_denied_has_passed();
    // Of the datagrams none is lost.
    let (kind, peer, flow) = &mut traffic.allowed.flows[2];
    flow.stop_sending();
    let sent = flow.sent().map(|n| usize::try_from(n).unwrap());
    let seen = traffic.allowed.observers.of(*kind, *peer).map(|s| s.len());
    assert_eq!(seen, [sent[0], sent[1], sent[1]], "sent {sent:?}");
}

#[test]
fn a_tun_made_again_under_openvpn_flows() {
    require!(Root, Bpf, Tun, Program("openvpn"));
    let mut stage = Stage::openvpn(with_echo);
    let traffic = Traffic::new(&stage);
    stage.restart_the_vpn();
    traffic.allowed.run(10);
    traffic.nothing_denied_has_passed();

    // What was released comes back with the device, and what was restricted meanwhile does not.
    stage.release();
    let flows = stage.flows();
    flows.run(10);
    stage.restart_the_vpn();
    assert_eq!(stage.mdm.revoked("phone").unwrap().gateway_uri, "enrol.vpn.example.test");
    let acknowledged = SystemTime::now();
    traffic.allowed.run(10);
    flows.stay_cut(acknowledged, Duration::from_millis(250));
}
