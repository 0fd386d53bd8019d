//! Compiled policies against the rules that they were compiled from.

use std::{net::IpAddr, sync::LazyLock};

use gateway_ebpf::abi::Matrix;

use super::{super::fixtures, *};
use crate::config::Rule;

/// What the tables say of connections from devices.
fn lookup(p: &Policy, pool: usize, to: IpAddr, protocol: u8, port: u16) -> u16 {
    matrix(p, &p.rules, pool, to, protocol, port)
}

fn matrix(p: &Policy, rules: &Matrix, pool: usize, to: IpAddr, protocol: u8, port: u16) -> u16 {
    let group = match to {
        IpAddr::V4(a) => {
            let [_, _, c, d] = a.octets();
            let mut e = p.level1[(u32::from(a) >> 16) as usize];
            if e & LEVEL_NEXT != 0 {
                e = p.level2[usize::from(e & !LEVEL_NEXT)][usize::from(c)];
            }
            if e & LEVEL_NEXT != 0 {
                e = p.level3[usize::from(e & !LEVEL_NEXT)][usize::from(d)];
            }
            usize::from(e)
        }
        IpAddr::V6(a) => {
            let w = layout::words6(a);
            let first = p.dst6[..p.dst6_count as usize]
                .iter()
                .find(|d| (0..2).all(|i| w[i] & d.mask[i] == d.prefix[i]));
            first.map_or(0, |d| d.group as usize)
        }
    };
    let port_group = match protocol {
        6 => p.tcp[usize::from(port)],
        17 => p.udp[usize::from(port)],
        n => p.protocols[usize::from(n)],
    };
    rules[usize::from(port_group)][group][pool]
}

/// What the configuration says, rule by rule.
fn scan(c: &Config, direction: RuleDirection, policy: &PoolName, to: IpAddr, protocol: u8, port: u16) -> u16 {
    let Some(crate::config::Policy {
        allow: Allow::Rules(rules),
        ..
    }) = c.policies.iter().find(|p| p.name == *policy)
    else {
        return 0;
    };
    let matches = |r: &&Rule| {
        let ports = || r.ports.is_empty() || r.ports.iter().any(|p| p.contains(&port));
        // An address is as special as the narrowest range that holds it.
        let range = special_range(to);
        let named = |n: &&IpNetwork| n.contains(to) && range.is_none_or(|s| s.contains(n.network()) && n.prefix() >= s.prefix());
        r.direction == direction
            && r.peers.iter().any(|n| named(&n))
            && match r.protocol {
                Protocol::Any => true,
                Protocol::Tcp => protocol == 6 && ports(),
                Protocol::Udp => protocol == 17 && ports(),
                Protocol::Icmp => protocol == if to.is_ipv4() { 1 } else { 58 },
                Protocol::Number(n) => n == protocol,
            }
    };
    rules.iter().filter(matches).map(|r| r.id).min().unwrap_or(0)
}

/// As in docs/verdict.md.
const SPECIAL: [&str; 17] = [
    "0.0.0.0/32",
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "192.88.99.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "::1/128",
    "::/96",
    "::ffff:0.0.0.0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2002::/16",
    "fe80::/10",
    "ff00::/8",
];

static RANGES: LazyLock<Vec<IpNetwork>> = LazyLock::new(|| SPECIAL.iter().map(|s| s.parse().unwrap()).collect());

fn special_range(a: IpAddr) -> Option<IpNetwork> {
    RANGES.iter().filter(|n| n.contains(a)).max_by_key(|n| n.prefix()).copied()
}

/// A prefix of or around a special range.
fn special_prefix(random: &mut fixtures::Random) -> IpNetwork {
    let n = *random.pick(&RANGES);
    let most = if n.is_ipv4() { 32 } else { 128 };
    let length = (i64::from(n.prefix()) + random.below(13) as i64 - 6).clamp(0, most) as u8;
    let wide = IpNetwork::new(n.network(), length).unwrap();
    IpNetwork::new(wide.network(), length).unwrap()
}

#[test]
fn tables_agree_with_a_scan_of_the_rules() {
    let (mut compiled, mut hits) = (0, 0);
    for seed in 0..100 {
        let mut random = fixtures::Random(seed);
        let mut config = fixtures::config();
        let mut id = 0;
        let mut policies = vec![Vec::new(), Vec::new()];
        for rules in &mut policies {
            for _ in 0..1 + random.below(4) {
                id += 1;
                let protocol = *random.pick(&[
                    Protocol::Any,
                    Protocol::Tcp,
                    Protocol::Tcp,
                    Protocol::Udp,
                    Protocol::Icmp,
                    Protocol::Number(47),
                    Protocol::Number(58),
                ]);
                let ports = (0..random.below(3)).map(|_| {
                    let from: u16 = *random.pick(&[0, 1, 53, 80, 443, 65535]);
                    from..=from.saturating_add(*random.pick(&[0, 1, 100, 65535]))
                });
                let has_ports = matches!(protocol, Protocol::Tcp | Protocol::Udp);
                let ports = if has_ports { ports.collect() } else { Vec::new() };
                let peer = |_| match random.below(6) {
                    0 => special_prefix(&mut random),
                    _ => random.prefix(),
                };
                let peers = (0..1 + id % 4).map(peer).collect();
                let direction = *random.pick(&[RuleDirection::FromDevice, RuleDirection::ToDevice]);
                rules.push(Rule {
                    id,
                    direction,
                    peers,
                    protocol,
                    ports,
                });
            }
        }
        let prefixes: Vec<IpNetwork> = policies.iter().flatten().flat_map(|r| r.peers.clone()).collect();
        config.policies[0].allow = Allow::Rules(policies.remove(0));
        config.policies[1].allow = Allow::Rules(policies.remove(0));
        config.pools[0].shadow_policy = Some(config.policies[1].name.clone());
        let (policy, shadow) = match (compile(&config), compile_shadow(&config)) {
            (Ok(p), Ok(s)) => (p, s.unwrap()),
            // Many random sets meet a limit now and then; it must be a named one.
            (Err(CompileError::Limit { .. }), _) | (_, Err(CompileError::Limit { .. })) => continue,
            (Err(e), _) | (_, Err(e)) => panic!("{e}"),
        };
        compiled += 1;
        for _ in 0..2000 {
            // Edges of the prefixes, and their neighbours.
            let from = if random.below(4) == 0 { &*RANGES } else { &prefixes };
            let n = random.pick(from);
            let step = random.below(3) as i32 - 1;
            let to: IpAddr = match *n {
                IpNetwork::V4(n) => {
                    let edge = *random.pick(&[n.network(), n.broadcast()]);
                    u32::from(edge).wrapping_add_signed(step).to_be_bytes().into()
                }
                IpNetwork::V6(n) => {
                    let edge = *random.pick(&[n.network(), n.broadcast()]);
                    u128::from(edge).wrapping_add_signed(i128::from(step)).to_be_bytes().into()
                }
            };
            let protocol = *random.pick(&[1, 6, 6, 17, 47, 58, 255]);
            let port = *random.pick(&[0, 1, 2, 52, 53, 54, 80, 101, 153, 180, 443, 444, 543, 65535]);
            let pool = 1 + random.below(3) as usize;
            let direction = *random.pick(&[RuleDirection::FromDevice, RuleDirection::ToDevice]);
            let c = &config.pools[pool - 1];
            for (tables, name) in [(&policy, &c.policy), (&shadow, c.shadow_policy.as_ref().unwrap_or(&c.policy))] {
                let want = scan(&config, direction, name, to, protocol, port);
                hits += u32::from(want != 0);
                let rules = match direction {
                    RuleDirection::FromDevice => &tables.rules,
                    RuleDirection::ToDevice => &tables.to_device,
                };
                assert_eq!(
                    matrix(tables, rules, pool, to, protocol, port),
                    want,
                    "seed {seed}: pool {pool}, {name}, {direction:?}, {to} {protocol} {port}"
                );
            }
        }
    }
    // The comparison is of something.
    assert!(compiled > 50 && hits > 15_000, "{compiled} configurations, {hits} hits");
}

#[test]
fn any_matches_what_no_other_rule_names() {
    let mut config = fixtures::config();
    config.policies[0].allow = Allow::Rules(vec![Rule {
        id: 7,
        direction: RuleDirection::FromDevice,
        peers: vec!["10.0.0.0/8".parse().unwrap()],
        protocol: Protocol::Any,
        ports: Vec::new(),
    }]);
    let policy = compile(&config).unwrap();
    assert_eq!(policy.tcp[80], 0, "named by no rule of its own");
    for protocol in [6, 17, 132] {
        assert_eq!(lookup(&policy, 1, [10, 1, 2, 3].into(), protocol, 80), 7);
        assert_eq!(lookup(&policy, 1, [11, 1, 2, 3].into(), protocol, 80), 0);
        assert_eq!(lookup(&policy, 3, [10, 1, 2, 3].into(), protocol, 80), 0, "another pool");
    }
}

#[test]
fn pools_have_their_flags() {
    let mut config = fixtures::config();
    let flags = |c: &Config| -> Vec<u32> { compile(c).unwrap().pools[..5].iter().map(|p| p.flags).collect() };
    assert_eq!(flags(&config), [0, 0, POOL_ALL, POOL_BLOCKED, 0]);
    config.pools[0].deny = Deny::Reject;
    config.pools[2].deny = Deny::Reject;
    let Allow::Rules(rules) = &mut config.policies[0].allow else {
        panic!("rules")
    };
    rules[1].direction = RuleDirection::ToDevice;
    assert_eq!(
        flags(&config),
        [0, POOL_REJECT | POOL_TO_DEVICE, POOL_ALL, POOL_BLOCKED | POOL_REJECT, 0]
    );
    assert!(compile_shadow(&config).unwrap().is_none(), "no pool has a shadow");
    config.pools[2].shadow_policy = Some(config.policies[1].name.clone());
    let shadow = compile_shadow(&config).unwrap().unwrap();
    assert_eq!(shadow.pools[3].flags, POOL_ALL | POOL_REJECT);
    assert_eq!(shadow.pools[1].flags, POOL_REJECT | POOL_TO_DEVICE, "its own policy");
}

#[test]
fn a_limit_that_is_exceeded_is_named() {
    let limit = |change: &dyn Fn(&mut Config)| {
        let mut config = fixtures::config();
        change(&mut config);
        match compile(&config) {
            Err(CompileError::Limit { limit, .. }) => limit,
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    let rules = |n: u16, to: fn(u16) -> String, ports: fn(u16) -> u16| {
        move |c: &mut Config| {
            let rule = |i| Rule {
                id: i + 1,
                direction: RuleDirection::FromDevice,
                peers: vec![to(i).parse().unwrap()],
                protocol: Protocol::Tcp,
                ports: vec![ports(i)..=ports(i)],
            };
            c.policies[0].allow = Allow::Rules((0..n).map(rule).collect());
        }
    };
    assert_eq!(limit(&rules(64, |i| format!("{}.0.0.0/8", i + 1), |_| 1)), "GROUPS");
    assert_eq!(limit(&rules(64, |_| "10.0.0.0/8".to_owned(), |i| i)), "PORT_GROUPS");
    assert_eq!(limit(&rules(64, |i| format!("fd{i:02x}::/16"), |_| 1)), "GROUPS");
    let spread = |to: fn(u16) -> String, n: u16| {
        move |c: &mut Config| {
            let to = (0..n).map(|i| to(i).parse().unwrap()).collect();
            c.policies[0].allow = Allow::Rules(vec![Rule {
                id: 1,
                direction: RuleDirection::FromDevice,
                peers: to,
                protocol: Protocol::Any,
                ports: Vec::new(),
            }]);
        }
    };
    assert_eq!(
        limit(&spread(|i| format!("10.{}.{}.1/32", i / 256, i % 256), 257)),
        "LEVEL_TABLES"
    );
    assert_eq!(
        limit(&spread(|i| format!("{}.{}.1.0/24", i / 256 + 10, i % 256), 257)),
        "LEVEL_TABLES"
    );
    assert_eq!(limit(&spread(|i| format!("fd00::{i:x}/128"), 65)), "MAX_DST6");
    assert_eq!(
        limit(&|c| c.pools[0].prefixes = (0..65).map(|i| format!("fd{i:02x}::/64").parse().unwrap()).collect()),
        "MAX_HOMES6"
    );
    assert_eq!(
        limit(&|c| c.pools[0].prefixes = vec!["0.0.0.0/3".parse().unwrap()]),
        "MAX_CHUNKS"
    );
}

#[test]
fn what_fits_just_so_is_accepted() {
    let mut config = fixtures::config();
    let rule = |i: u16| Rule {
        id: i + 1,
        direction: RuleDirection::FromDevice,
        peers: vec![format!("{}.0.0.0/8", i + 1).parse().unwrap()],
        protocol: Protocol::Tcp,
        ports: vec![i..=i],
    };
    config.policies[0].allow = Allow::Rules((0..63).map(rule).collect());
    compile(&config).unwrap();
}

#[test]
fn ports_without_a_protocol_and_the_zero_prefix_are_refused() {
    let mut config = fixtures::config();
    config.policies[0].allow = Allow::Rules(vec![Rule {
        id: 9,
        direction: RuleDirection::FromDevice,
        peers: vec!["10.0.0.0/8".parse().unwrap()],
        protocol: Protocol::Any,
        ports: vec![1..=2],
    }]);
    assert_eq!(compile(&config).err(), Some(CompileError::Ports { rule: 9 }));
    let mut config = fixtures::config();
    config.pools[0].prefixes.push("::/64".parse().unwrap());
    assert!(matches!(compile(&config), Err(CompileError::ZeroPrefix { .. })));
}
