//! Configurations for the tests of this folder, and a small seeded generator.

use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::{
    config::{
        Allow, Config, Deny, Devices, InterfacePattern, InterfaceRole, InterfaceRule, Log, LogFormat, Mode, Paths, Policy, Pool,
        PoolKind, Protocol, Rule, RuleDirection, Socket, Tables, UnknownDevice, XdpMode,
    },
    model::PoolId,
};

/// A quarantine pool, a full-service pool that falls back to it and a blocked one; v4 and v6; a reserved address in each family.
pub(crate) fn config() -> Config {
    let pool = |id: u8, name: &str, kind, prefixes: &[&str], policy: &str, fallback: Option<u8>| Pool {
        id: PoolId(id),
        name: name.parse().unwrap(),
        kind,
        prefixes: prefixes.iter().map(|p| p.parse().unwrap()).collect(),
        reserved: Vec::new(),
        policy: policy.parse().unwrap(),
        shadow_policy: None,
        deny: Deny::Drop,
        fallback: fallback.map(PoolId),
        gateway_uri: format!("vpn-{name}.example.org").into(),
        lease: None,
        min_trust: crate::model::Trust::Name,
        table: None,
    };
    let rule = |id, to: &[&str], protocol, ports: &[std::ops::RangeInclusive<u16>]| Rule {
        id,
        direction: RuleDirection::FromDevice,
        peers: to.iter().map(|p| p.parse().unwrap()).collect(),
        protocol,
        ports: ports.to_vec(),
    };
    let mut quarantine = pool(
        1,
        "quarantine",
        PoolKind::Quarantine,
        &["10.66.0.0/16", "fd66::/64"],
        "dm-only",
        None,
    );
    quarantine.reserved = vec!["10.66.0.1".parse().unwrap(), "fd66::1".parse().unwrap()];
    Config {
        mode: Mode::Enforce,
        paths: Paths {
            state: "/nonexistent".into(),
            pins: "/nonexistent".into(),
        },
        api: None,
        socket: Socket {
            path: "/nonexistent".into(),
            vpn_group: None,
            viewer_group: None,
        },
        metrics: None,
        user: None,
        log: Log {
            level: "info".to_owned(),
            format: LogFormat::Text,
        },
        devices: Devices {
            unknown: UnknownDevice::Refuse,
            sessions: 1,
            ..Devices::default()
        },
        proofs: crate::config::Proofs::default(),
        sources: Vec::new(),
        keep: crate::config::Keep::default(),
        tables: Tables {
            addresses: 1024,
            buckets6: 2048,
            denials_bytes: 65536,
            fragments: 64,
        },
        interfaces: vec![
            InterfaceRule {
                name: InterfacePattern::Prefix("tun".parse().unwrap()),
                role: InterfaceRole::Device,
                xdp: XdpMode::Auto,
                pools: None,
                vlans: Vec::new(),
            },
            InterfaceRule {
                name: InterfacePattern::Name("core0".parse().unwrap()),
                role: InterfaceRole::Core,
                xdp: XdpMode::Auto,
                pools: None,
                vlans: Vec::new(),
            },
        ],
        pools: vec![
            quarantine,
            Pool {
                lease: Some(Duration::from_secs(3600)),
                ..pool(
                    2,
                    "full",
                    PoolKind::FullService,
                    &["10.67.0.0/20", "fd67::/64"],
                    "all",
                    Some(1),
                )
            },
            pool(3, "blocked", PoolKind::Blocked, &["10.68.1.0/24"], "nothing", None),
        ],
        policies: vec![
            Policy {
                name: "dm-only".parse().unwrap(),
                allow: Allow::Rules(vec![
                    rule(1, &["10.77.0.10/32", "fd77::10/128"], Protocol::Tcp, &[443..=443]),
                    rule(2, &["10.77.0.53/32"], Protocol::Udp, &[53..=53]),
                    rule(3, &["10.77.0.0/24"], Protocol::Icmp, &[]),
                ]),
            },
            Policy {
                name: "all".parse().unwrap(),
                allow: Allow::All,
            },
            Policy {
                name: "nothing".parse().unwrap(),
                allow: Allow::Nothing,
            },
        ],
    }
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
    /// Prefixes that nest and meet often.
    pub(crate) fn prefix(&mut self) -> IpNetwork {
        if self.below(3) == 0 {
            let length = *self.pick(&[0, 16, 32, 48, 64, 80, 127, 128]);
            let address = 0xfd00_u128 << 112
                | u128::from(self.below(3)) << 80
                | u128::from(self.below(3)) << 64
                | u128::from(self.below(3));
            let n = ipnetwork::Ipv6Network::new(address.into(), length).unwrap();
            ipnetwork::Ipv6Network::new(n.network(), length).unwrap().into()
        } else {
            let length = *self.pick(&[0, 1, 7, 8, 12, 15, 16, 17, 20, 23, 24, 25, 28, 31, 32]);
            let address = 10 << 24 | self.below(3) << 16 | self.below(3) << 8 | self.below(256);
            let n = ipnetwork::Ipv4Network::new((address as u32).into(), length).unwrap();
            ipnetwork::Ipv4Network::new(n.network(), length).unwrap().into()
        }
    }
}
