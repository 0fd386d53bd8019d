//! Random gateways: a configuration as an operator would write it, sessions, leases, interfaces, and a sequence of packets.

use std::{fmt::Write as _, net::IpAddr};

use super::{packets, random::Random};
use crate::reference::{Lease, Link, Place, Session};

/// A gateway, and what arrives at it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// TOML.
    pub configuration: String,
    /// Who is connected.
    pub sessions: Vec<Session>,
    /// What exists.
    pub links: Vec<Link>,
    /// In order.
    pub steps: Vec<Step>,
}

/// A packet.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where.
    pub place: Place,
    /// The VLAN tag (TCI) that the driver has taken off.
    pub tag: Option<u16>,
    /// From the link layer on, where there is one.
    pub bytes: Vec<u8>,
    /// Nanoseconds that pass before it.
    pub wait: u64,
}

/// When the clock stands at a scenario's start, nanoseconds.
pub const START: u64 = 1_000_000_000_000;

/// Devices by the pools' numbers, and addresses near them that are in no pool.
pub(super) const DEVICES4: &[&str] = &[
    "10.66.0.5",
    "10.66.0.6",
    "10.66.0.9",
    "10.67.0.5",
    "10.67.0.9",
    "10.68.0.13",
    "8.0.69.5",
    "8.0.69.10",
];
/// `a43:5::13` begins as 10.67.0.5 does.
pub(super) const DEVICES6: &[&str] = &[
    "fd66::5",
    "fd66::6",
    "fd66::9",
    "fd67::5",
    "fd67::9",
    "a43:5::13",
    "a43:5:0:7::",
    "a43:5:0:7::5",
    "a43:5:0:7:fdff:ffff:ffff:ff80",
    "a43:5:0:7:8000::9",
    "a43:5:0:8::5",
    "fd69::5",
    "fd69::8:9",
];
/// Whose sessions may have the whole /64.
const DELEGATED: &[&str] = &["fd67::5", "a43:5:0:7::", "a43:5:0:8::5"];
pub(super) const PEERS4: &[&str] = &[
    "192.0.2.1",
    "192.0.2.53",
    "192.0.3.1",
    "198.51.100.7",
    "198.52.0.0",
    "203.0.113.9",
    "203.0.113.200",
    "128.0.0.1",
];
pub(super) const PEERS6: &[&str] = &[
    "2001:db8::1",
    "2001:db8::53",
    "2001:db8:0:1::1",
    "2001:db9::7",
    "fd66:0:0:1::5",
    "8000::1",
];
pub(super) const STRANGE4: &[&str] = &[
    "10.66.0.1",
    "10.66.0.0",
    "10.66.1.0",
    "10.65.255.255",
    "0.0.0.0",
    "0.0.0.1",
    "127.0.0.1",
    "169.254.1.1",
    "169.253.1.1",
    "224.0.0.5",
    "224.0.0.5",
    "224.0.0.5",
    "239.255.255.250",
    "255.255.255.255",
    "255.255.255.254",
    "240.0.0.1",
    "192.88.99.1",
    "192.88.100.1",
    "10.64.0.1",
];
pub(super) const STRANGE6: &[&str] = &[
    "::",
    "::1",
    "::5",
    "::ffff:10.66.0.5",
    "::1:0:0:1",
    "fe80::1",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "ff0e::5",
    "2002:a42:5::1",
    "2003::1",
    "64:ff9b::a42:5",
    "64:ff9b:0:0:0:1::1",
    "64:ff9b:1::5",
    "64:ff9b:2::5",
    "fd66::1",
    "fd66:0:0:2::1",
];

const PREFIXES: &[&str] = &[
    "192.0.2.1/32",
    "192.0.2.53",
    "192.0.2.0/24",
    "192.0.2.0/23",
    "198.51.0.0/16",
    "198.48.0.0/13",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "203.0.113.8/29",
    "203.0.113.0/28",
    "224.0.0.5/32",
    "224.0.0.0/8",
    "224.0.0.0/4",
    "239.255.0.0/16",
    "255.255.255.255",
    "240.0.0.0/4",
    "169.254.0.0/16",
    "192.88.99.0/24",
    "192.88.0.0/16",
    "0.0.0.0/8",
    "10.66.0.6",
    "10.66.0.0/16",
    "10.64.0.0/13",
    "2001:db8::1/128",
    "2001:db8::/64",
    "2001:db8::/32",
    "2001:db9::/32",
    "2000::/3",
    "::/0",
    "8000::/1",
    "ff02::1",
    "ff00::/8",
    "ff0e::/16",
    "fe80::/10",
    "fe80::/64",
    "2002::/16",
    "2002:a42::/32",
    "64:ff9b::/96",
    "64:ff9b::/32",
    "::/96",
    "fd66::6",
    "fd66::/64",
    "fd00::/8",
    "64:ff9b:1::/48",
];

/// A random one with this many packets or a few more.
#[must_use]
pub fn scenario(seed: u64, packets: usize) -> Scenario {
    let mut r = Random::new(seed);
    let configuration = configuration(&mut r);
    let links = vec![
        Link {
            index: 1,
            name: "eth7".into(),
        },
        Link {
            index: 2,
            name: "tun1".into(),
        },
    ];
    let sessions = sessions(&mut r);
    let (mut steps, mut last) = (Vec::new(), None);
    while steps.len() < packets {
        packets::some(&mut r, &mut last, &mut steps);
    }
    Scenario {
        configuration,
        sessions,
        links,
        steps,
    }
}

fn configuration(r: &mut Random) -> String {
    let mut text = String::from("mode = \"enforce\"\n[tables]\naddresses = 64\nbuckets6 = 16\n");
    for name in ["eth7", "tun*"] {
        let _ = write!(text, "[[interface]]\nname = \"{name}\"\nrole = \"device\"\n");
        if r.once_in(5) {
            let pools = [["quarantine", "staff"], ["staff", "blocked"], ["others", "quarantine"]];
            let _ = writeln!(text, "pools = {:?}", r.one_of(&pools));
        }
        let vlans: [&[&str]; 4] = [&[], &["7"], &["7", "9", "7.9"], &["9.7", "4094"]];
        let _ = writeln!(text, "vlans = {:?}", r.one_of(&vlans));
    }
    for (name, kind, prefixes, reserved, more) in [
        (
            "quarantine",
            "quarantine",
            ["10.66.0.0/24", "fd66::/64"],
            ["10.66.0.1", "fd66::1"],
            "",
        ),
        (
            "staff",
            "full-service",
            ["10.67.0.0/16", "fd67::/64"],
            ["10.67.0.1", "fd67::1"],
            "fallback = \"quarantine\"\n",
        ),
        (
            "blocked",
            "blocked",
            ["10.68.0.0/24", "a43:5::/48"],
            ["10.68.0.1", "a43:5::1"],
            "",
        ),
        (
            "others",
            "full-service",
            ["8.0.69.4/30", "fd69::/109"],
            ["8.0.69.7", "fd69::1"],
            "fallback = \"side\"\n",
        ),
        (
            "side",
            "quarantine",
            ["8.0.69.8/29", "fd69::8:0/109"],
            ["8.0.69.8", "fd69::8:1"],
            "",
        ),
    ] {
        let _ = write!(
            text,
            "[[pool]]\nname = \"{name}\"\nkind = \"{kind}\"\nprefixes = {prefixes:?}\nreserved = {reserved:?}\npolicy = \"of-{name}\"\n{more}gateway_uri = \"{name}.example.org\"\n"
        );
        if r.once_in(3) {
            text += "deny = \"reject\"\n";
        }
    }
    for (name, all, nothing) in [
        ("quarantine", 0, 20),
        ("staff", 3, 0),
        ("blocked", 0, 1),
        ("others", 4, 0),
        ("side", 0, 10),
    ] {
        let _ = write!(text, "[[policy]]\nname = \"of-{name}\"\n");
        if nothing > 0 && r.once_in(nothing) {
            text += "allow = \"nothing\"\n";
        } else if all > 0 && r.once_in(all) {
            text += "allow = \"all\"\n";
        } else {
            for _ in 0..1 + r.below(5) {
                rule(r, &mut text);
            }
        }
    }
    text
}

fn rule(r: &mut Random, text: &mut String) {
    let direction = r.one_of(&["to", "to", "to", "from"]);
    let protocol = r.one_of(&["tcp", "tcp", "tcp", "udp", "udp", "icmp", "any", "47", "50"]);
    let mut peers = r.some_of(PREFIXES, 4);
    if r.once_in(2) {
        peers.push(r.one_of(&["192.0.2.0/24", "192.0.0.0/8", "0.0.0.0/0", "10.0.0.0/8"]));
        peers.push(r.one_of(&["2001:db8::/64", "2001::/16", "::/0", "fd00::/8"]));
    }
    let _ = write!(
        text,
        "[[policy.rule]]\n{direction} = {:?}\nprotocol = \"{protocol}\"\n",
        peers
    );
    if matches!(protocol, "tcp" | "udp") && !r.once_in(2) {
        let ports = ["443", "53", "8000-8002", "1-442", "444-65535", "8001", "65535", "1"];
        let _ = writeln!(text, "ports = {:?}", r.some_of(&ports, 3));
    }
}

fn sessions(r: &mut Random) -> Vec<Session> {
    // While no lease has ended yet, nobody looks at the single ones: then the first end is what matters, beside a tick of the timer or long after.
    let first = r
        .once_in(3)
        .then(|| START + r.one_of(&[4_000_000, 14_000_000, 24_000_001, 20_000_000_000]));
    let mut sessions: Vec<Session> = Vec::new();
    for device in DEVICES4.iter().chain(DEVICES6) {
        if r.once_in(2) {
            continue;
        }
        let address: IpAddr = device.parse().unwrap_or_else(|e| panic!("{device}: {e}"));
        let fallback = (first.is_some() || !r.once_in(6)).then(|| r.one_of(&[1, 1, 3, 5]));
        let ends: &[u64] = match (first, fallback) {
            (Some(first), _) => &[first, first, first + 1, u64::MAX],
            (None, Some(_)) => &[1, START, START + 1, u64::MAX],
            // Without its record, nobody knows when a lease ends; it counts as ended as soon as any has.
            (None, None) => &[1],
        };
        let lease = r.once_in(2).then(|| Lease {
            end: r.one_of(ends),
            fallback,
        });
        // The last of a /64's own addresses is no host's.
        let delegated = DELEGATED.contains(device) && r.once_in(2);
        if !delegated && device.ends_with(":ff80") {
            continue;
        }
        sessions.push(Session {
            address,
            delegated,
            pool: r.one_of(&[1, 2, 2, 2, 3, 4, 5]),
            interface: r.one_of(&[0, 0, 1, 1, 1, 1, 1, 2]),
            lease,
        });
    }
    sessions
}
