//! Datagrams in fragments, and path-MTU discovery: what is allowed arrives whole over any path, and nothing else rides on it.

use std::{net::IpAddr, time::Duration};

use gateway_ebpf::reason::Reason;
use lazaret_tests::{
    bulk::{self, Way},
    gateway::Gateway,
    netns::{Namespace, veth},
    packets::{self, Watcher},
    pins, require,
    site::{self, Site},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::stage::Stage;

const LIMIT: Duration = Duration::from_secs(20);
/// A server behind a router whose link is narrow.
const FAR: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 7, 10)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, 0x10)),
];

/// Quarantine may use DNS and echo requests at the DM server, and HTTP at the far one.
fn widen(gateway: &Gateway) {
    let dm = format!("to = [\"{}\", \"{}\"]", site::DM, site::DM6);
    let far = format!("to = [\"{}\", \"{}\"]", FAR[0], FAR[1]);
    let rule = |to: &str, rest: &str| format!("\n\n[[policy.rule]]\n{to}\n{rest}");
    let rules = [
        rule(&dm, "protocol = \"udp\"\nports = [\"53\"]"),
        rule(&dm, "protocol = \"icmp\""),
        rule(&far, "protocol = \"tcp\"\nports = [\"80\"]"),
    ];
    gateway
        .configure("ports = [\"53\"]", &format!("ports = [\"53\"]{}", rules.concat()))
        .unwrap();
}

/// Large datagrams and large echo requests, to what quarantine allows and to what it does not.
fn in_fragments(stage: &Stage) {
    let (count, size) = (60, 6000);
    for (to, denied) in [(site::DM, site::MAIL), (site::DM6, site::MAIL6)] {
        let near = (&stage.site.device, stage.addresses[usize::from(to.is_ipv6())]);
        let seen = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.to == to).unwrap();
        let arrived = bulk::udp(near, (&stage.site.core, to), 53, size, count, false).unwrap();
        assert_eq!(arrived, [count; 2], "{to}: datagrams, and their answers");
        assert!(seen.seen().len() >= 5 * count as usize, "they came in fragments");
        assert!(bulk::echo(near, to, 4000, LIMIT).unwrap(), "{to}: echo");

        let seen = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.to == denied).unwrap();
        let arrived = bulk::udp(near, (&stage.site.core, denied), 53, size, count, false).unwrap();
        assert!(!bulk::echo(near, denied, 4000, Duration::from_millis(300)).unwrap());
        assert_eq!((arrived, seen.seen()), ([0; 2], vec![]), "{denied}: no fragment of them");
    }
    // The first fragment is denied for what it asks, the others for want of it.
    for reason in [Reason::NoRule, Reason::Fragment] {
        assert!(pins::counted(&stage.gateway, 1, reason).unwrap() > 100, "{}", reason.name());
    }
}

#[test]
fn datagrams_in_fragments_over_ethernet() {
    require!(Root, Bpf);
    in_fragments(&Stage::ethernet(widen));
}

#[test]
fn datagrams_in_fragments_over_openvpn() {
    require!(Root, Bpf, Tun, Program("openvpn"));
    in_fragments(&Stage::openvpn(widen));
}

/// Puts the far server behind two routers, the core and another, whose link between them has an MTU of 1280 bytes.
fn narrow(site: &Site) -> [Namespace; 2] {
    let (middle, far) = (Namespace::new("middle").unwrap(), Namespace::new("far").unwrap());
    veth((&site.core, "narrow0"), (&middle, "narrow0")).unwrap();
    veth((&middle, "eth0"), (&far, "eth0")).unwrap();
    for (namespace, interface, addresses) in [
        (&site.core, "narrow0", ["10.9.8.1/24", "fd00:98::1/64"]),
        (&middle, "narrow0", ["10.9.8.2/24", "fd00:98::2/64"]),
        (&middle, "eth0", ["10.9.7.1/24", "fd00:97::1/64"]),
        (&far, "eth0", ["10.9.7.10/24", "fd00:97::10/64"]),
    ] {
        if interface == "narrow0" {
            namespace.ip("link set narrow0 mtu 1280").unwrap();
        }
        addresses.iter().for_each(|a| namespace.address(interface, a).unwrap());
    }
    let route = |namespace: &Namespace, to: [&str; 2], via: [&str; 2]| {
        for (to, via) in to.into_iter().zip(via) {
            namespace.route(to, via.parse().unwrap()).unwrap();
        }
    };
    let network = ["10.9.7.0/24", "fd00:97::/64"];
    route(&site.gw, network, [&site::DM.to_string(), &site::DM6.to_string()]);
    route(&site.core, network, ["10.9.8.2", "fd00:98::2"]);
    route(&middle, ["default"; 2], ["10.9.8.1", "fd00:98::1"]);
    route(&far, ["default"; 2], ["10.9.7.1", "fd00:97::1"]);
    site.core.forward().unwrap();
    middle.forward().unwrap();
    [middle, far]
}

/// A transfer whose first large segments do not fit through a router in the core.
fn discovery(stage: &Stage) {
    let [_middle, far] = narrow(&stage.site);
    for (to, related) in FAR.into_iter().zip(1..) {
        let near = (&stage.site.device, stage.addresses[usize::from(to.is_ipv6())]);
        let seen = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.to == to).unwrap();
        for way in [Way::Up, Way::Down] {
            bulk::tcp(near, (&far, to), 80, way, 2 << 20, LIMIT).unwrap();
        }
        let lengths = seen.seen();
        assert!(
            lengths.iter().any(|p| p.length > 1280),
            "{to}: segments were too large at first"
        );
        let counted = pins::counted(&stage.gateway, 1, Reason::Related).unwrap();
        assert!(counted >= related, "{to}: the router's error passed: {counted}");
    }
}

#[test]
fn path_mtu_discovery_over_ethernet() {
    require!(Root, Bpf);
    let stage = Stage::ethernet(widen);
    discovery(&stage);
    errors_about(&stage);
}

#[test]
fn path_mtu_discovery_over_openvpn() {
    require!(Root, Bpf, Tun, Program("openvpn"));
    let stage = Stage::openvpn(widen);
    for (to, via) in [("10.9.7.0/24", site::TUNNEL), ("fd00:97::/64", site::TUNNEL6)] {
        stage.site.device.route(to, via).unwrap();
    }
    discovery(&stage);
}

/// Errors from the core reach the device if they are about what its policy allows, and not otherwise.
fn errors_about(stage: &Stage) {
    let before = pins::counted(&stage.gateway, 1, Reason::IcmpError).unwrap();
    for (allowed, denied) in [(site::DM, site::MAIL), (site::DM6, site::MAIL6)] {
        let own = stage.addresses[usize::from(allowed.is_ipv6())];
        let (protocol, socket, unreachable) = match allowed {
            IpAddr::V4(_) => (1, (Domain::IPV4, Protocol::ICMPV4), [3, 1]),
            IpAddr::V6(_) => (58, (Domain::IPV6, Protocol::ICMPV6), [1, 0]),
        };
        let socket = stage
            .site
            .core
            .run(|| Socket::new(socket.0, Type::RAW, Some(socket.1)))
            .unwrap();
        let arrived = |about: IpAddr| {
            let seen = Watcher::new(&stage.site.device, move |p| {
                !p.outgoing && p.protocol == protocol && p.to == own
            })
            .unwrap();
            let mut error = [&unreachable[..], &[0; 6], &packets::udp((own, 4000), (about, 53), &[])].concat();
            if own.is_ipv4() {
                let sum = packets::checksum(&error);
                error[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            socket.send_to(&error, &std::net::SocketAddr::from((own, 0)).into()).unwrap();
            // Neighbour discovery is ICMPv6 too, and shorter.
            seen.seen()
                .iter()
                .filter(|p| p.length >= error.len() + 20 && p.from != site::TUNNEL6)
                .count()
        };
        assert_eq!(arrived(allowed), 1, "about {allowed}");
        assert_eq!(arrived(denied), 0, "about {denied}");
    }
    assert_eq!(pins::counted(&stage.gateway, 1, Reason::IcmpError).unwrap() - before, 2);
}
