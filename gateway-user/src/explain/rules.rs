//! Rules as the configuration has them: their text, the one with a number, and which of them name a pair. For people only: what is judged
//! is the compiled policy, in the kernel.

use std::net::IpAddr;

use gateway_ebpf::headers::protocol::{ICMP, ICMPV6, TCP, UDP};

use crate::config::{Allow, Config, Policy, Pool, Protocol, Rule, RuleDirection};

/// A rule, as it stands in the configuration, on one line.
#[must_use]
pub fn text(rule: &Rule) -> String {
    let list = |items: Vec<String>| items.iter().map(|i| format!("{i:?}")).collect::<Vec<_>>().join(", ");
    let peers = rule.peers.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{} = [{}] protocol = {}",
        key(asked_by(rule)),
        list(peers),
        protocol(rule.protocol)
    );
    if !rule.ports.is_empty() {
        let port = |p: &std::ops::RangeInclusive<u16>| match (p.start(), p.end()) {
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        text += &format!(" ports = [{}]", list(rule.ports.iter().map(port).collect()));
    }
    text
}

/// The rule with a number, and its policy.
#[must_use]
pub fn find(config: &Config, number: u16) -> Option<(&Policy, &Rule)> {
    config
        .policies
        .iter()
        .find_map(|policy| Some((policy, rules(policy).iter().find(|r| r.id == number)?)))
}

/// Every rule of the configuration, with its policy.
pub fn all(config: &Config) -> impl Iterator<Item = (&Policy, &Rule)> {
    config.policies.iter().flat_map(|p| rules(p).iter().map(move |r| (p, r)))
}

/// Which end asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedBy {
    /// The device: rules with `to`.
    Device,
    /// Its peer: rules with `from`.
    Peer,
}

/// A pair, as a pool's policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Which end asks.
    pub by: AskedBy,
    /// The end that is not the device.
    pub peer: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP and UDP: of the end that is asked.
    pub port: u16,
}

/// Whether a pool's policy allows this.
#[must_use]
pub fn allows(config: &Config, pool: &Pool, pair: Pair) -> bool {
    match config.policy(pool).map(|p| &p.allow) {
        Some(Allow::All) => true,
        Some(Allow::Rules(rules)) => rules.iter().any(|r| names(r, pair)),
        Some(Allow::Nothing) | None => false,
    }
}

/// The rules of a pool's policy that name the peer, but not with this protocol and port.
#[must_use]
pub fn near<'a>(config: &'a Config, pool: &Pool, pair: Pair) -> Vec<&'a Rule> {
    let of_policy = config.policy(pool).map_or(&[][..], rules);
    let peer = |r: &&Rule| asked_by(r) == pair.by && r.peers.iter().any(|n| n.contains(pair.peer));
    of_policy.iter().filter(peer).filter(|r| !names(r, pair)).collect()
}

/// The rule that would name a pair, as one would write it.
#[must_use]
pub fn wanted(pair: Pair) -> String {
    let prefix = format!("{}/{}", pair.peer, if pair.peer.is_ipv4() { 32 } else { 128 });
    let (name, ports) = match pair.protocol {
        TCP => (Protocol::Tcp, true),
        UDP => (Protocol::Udp, true),
        n if is_icmp(n, pair.peer) => (Protocol::Icmp, false),
        n => (Protocol::Number(n), false),
    };
    let ports = if ports {
        format!(" ports = [\"{}\"]", pair.port)
    } else {
        String::new()
    };
    format!("{} = [\"{prefix}\"] protocol = {}{ports}", key(pair.by), protocol(name))
}

fn names(rule: &Rule, pair: Pair) -> bool {
    let protocol = match rule.protocol {
        Protocol::Any => true,
        Protocol::Tcp => pair.protocol == TCP,
        Protocol::Udp => pair.protocol == UDP,
        Protocol::Icmp => is_icmp(pair.protocol, pair.peer),
        Protocol::Number(n) => pair.protocol == n,
    };
    let has_ports = matches!(rule.protocol, Protocol::Tcp | Protocol::Udp);
    protocol
        && asked_by(rule) == pair.by
        && rule.peers.iter().any(|n| n.contains(pair.peer))
        && (!has_ports || rule.ports.is_empty() || rule.ports.iter().any(|p| p.contains(&pair.port)))
}

fn rules(policy: &Policy) -> &[Rule] {
    match &policy.allow {
        Allow::Rules(rules) => rules,
        Allow::All | Allow::Nothing => &[],
    }
}

fn key(by: AskedBy) -> &'static str {
    match by {
        AskedBy::Device => "to",
        AskedBy::Peer => "from",
    }
}

fn asked_by(rule: &Rule) -> AskedBy {
    match rule.direction {
        RuleDirection::FromDevice => AskedBy::Device,
        RuleDirection::ToDevice => AskedBy::Peer,
    }
}

fn is_icmp(protocol: u8, peer: IpAddr) -> bool {
    protocol == if peer.is_ipv4() { ICMP } else { ICMPV6 }
}

fn protocol(p: Protocol) -> String {
    match p {
        Protocol::Any => "\"any\"".into(),
        Protocol::Tcp => "\"tcp\"".into(),
        Protocol::Udp => "\"udp\"".into(),
        Protocol::Icmp => "\"icmp\"".into(),
        Protocol::Number(n) => format!("\"{n}\""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
mode = "enforce"
[[interface]]
name = "tun*"
role = "device"
[[pool]]
name = "quarantine"
kind = "quarantine"
prefixes = ["10.66.0.0/16", "fd00:66::/64"]
policy = "dm"
gateway_uri = "q.vpn.example"
[[policy]]
name = "dm"
[[policy.rule]]
to = ["10.1.0.5/32", "fd01::/16"]
protocol = "tcp"
ports = ["443", "8000-8100"]
[[policy.rule]]
to = ["10.1.0.5/32"]
protocol = "icmp"
[[policy.rule]]
from = ["10.1.0.7/32"]
protocol = "udp"
ports = ["500"]
[[policy.rule]]
to = ["10.1.0.9/32"]
protocol = "47"
"#;

    fn config() -> Config {
        Config::parse(std::path::Path::new("test.toml"), CONFIG).unwrap_or_else(|e| panic!("{e}"))
    }

    fn pair(by: AskedBy, peer: &str, protocol: u8, port: u16) -> Pair {
        Pair {
            by,
            peer: peer.parse().unwrap(),
            protocol,
            port,
        }
    }

    #[test]
    fn rules_are_found_and_read_as_they_are_written() {
        let config = config();
        let texts: Vec<String> = (1..=4).map(|n| text(find(&config, n).unwrap().1)).collect();
        assert_eq!(
            texts,
            [
                r#"to = ["10.1.0.5/32", "fd01::/16"] protocol = "tcp" ports = ["443", "8000-8100"]"#,
                r#"to = ["10.1.0.5/32"] protocol = "icmp""#,
                r#"from = ["10.1.0.7/32"] protocol = "udp" ports = ["500"]"#,
                r#"to = ["10.1.0.9/32"] protocol = "47""#,
            ]
        );
        assert!(find(&config, 0).is_none() && find(&config, 5).is_none());
    }

    #[test]
    fn what_a_policy_allows_and_what_is_near() {
        use AskedBy::{Device, Peer};
        let config = config();
        let pool = &config.pools[0];
        for (asked, allowed, near_rules) in [
            (pair(Device, "10.1.0.5", TCP, 443), true, 1),
            (pair(Device, "fd01::5", TCP, 8050), true, 0),
            (pair(Device, "10.1.0.5", TCP, 444), false, 2),
            (pair(Device, "10.1.0.5", ICMP, 0), true, 1),
            (pair(Device, "fd01::5", ICMPV6, 0), false, 1),
            (pair(Peer, "10.1.0.7", UDP, 500), true, 0),
            (pair(Device, "10.1.0.7", UDP, 500), false, 0),
            (pair(Peer, "10.1.0.7", UDP, 501), false, 1),
            (pair(Device, "10.1.0.9", 47, 0), true, 0),
        ] {
            assert_eq!(allows(&config, pool, asked), allowed, "{asked:?}");
            assert_eq!(near(&config, pool, asked).len(), near_rules, "{asked:?}");
        }
    }

    /// What is proposed would do it: put into the configuration, it allows the pair.
    #[test]
    fn a_rule_that_is_wanted_is_one_that_allows() {
        use AskedBy::{Device, Peer};
        for asked in [
            pair(Device, "10.9.9.9", TCP, 25),
            pair(Device, "fd09::9", UDP, 53),
            pair(Peer, "10.9.9.9", TCP, 22),
            pair(Device, "10.9.9.9", ICMP, 0),
            pair(Device, "fd09::9", ICMPV6, 0),
            pair(Device, "10.9.9.9", 50, 0),
        ] {
            assert!(!allows(&config(), &config().pools[0], asked));
            let rule = wanted(asked).replace(" protocol", "\nprotocol").replace(" ports", "\nports");
            let text = format!("{CONFIG}\n[[policy.rule]]\n{rule}\n");
            let config = Config::parse(std::path::Path::new("test.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
            assert!(allows(&config, &config.pools[0], asked), "{rule}");
        }
    }
}
