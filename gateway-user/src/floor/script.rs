//! The floor's rules as nft reads them, from typed values. Pure.

use std::{collections::BTreeSet, fmt::Write, net::IpAddr};

use gateway_ebpf::abi::{MARK_GRANT, MARK_GRANT_MASK, MARK_OURS};
use ipnetwork::IpNetwork;

use super::TABLE;
use crate::config::{Config, InterfaceRole};

/// The whole script: makes the table anew in one transaction.
///
/// Priorities: forward and input run before the chains of other tables at these hooks (mangle is -150), so that those cannot change the mark
/// first; a drop is final wherever it stands. Chains at prerouting run before both, whatever their priority: one that sets whole marks there
/// takes our grant away, one that restores a mark from connection tracking can give it back. No chain of ours can tell. Output runs after destination NAT (-100), so that the final address counts;
/// postrouting looks once more at what the host sent, since NAT in output changes the route after that hook's interface was fixed.
pub(super) fn script(config: &Config, judged: &BTreeSet<u32>) -> String {
    let judged: Vec<String> = judged.iter().map(|i| index(*i)).collect();
    let (v4, v6) = ranges(config);
    let drop = |counter: &str| format!("counter name \"{counter}\" drop");
    let sources = |counter: &str| format!("ip saddr @pools4 {0}\n    ip6 saddr @pools6 {0}", drop(counter));
    let destinations = |counter: &str| format!("ip daddr @pools4 {0}\n    ip6 daddr @pools6 {0}", drop(counter));
    let granted = format!("meta mark & {MARK_GRANT_MASK:#x} == {MARK_GRANT:#x} accept");
    // The grant is the packet's, and ends with it: what a tunnel of this host takes out of it keeps the mark, and is another packet.
    let delivered = format!(
        "meta mark & {MARK_GRANT_MASK:#x} == {MARK_GRANT:#x} meta mark set meta mark & {:#x} accept",
        !MARK_OURS
    );
    // RFC 4861, 7.1: only a neighbour can send these with hop limit 255.
    let neighbours = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept";

    let mut s = String::new();
    // Writing to a string does not fail.
    let _ = write!(
        s,
        r#"table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  counter forward_from_device {{ }}
  counter forward_pool_source {{ }}
  counter forward_to_device {{ }}
  counter input_from_device {{ }}
  counter input_pool_source {{ }}
  counter output_to_device {{ }}
  set judged {{ type iface_index; {judged} }}
  set pools4 {{ type ipv4_addr; flags interval; {v4} }}
  set pools6 {{ type ipv6_addr; flags interval; {v6} }}
  chain forward_in {{
{forward_in}  }}
  chain forward_out {{
{forward_out}  }}
  chain input_in {{
{input_in}  }}
  chain output_out {{
{output_out}  }}
  chain sent {{
    oif "lo" accept
    {neighbours}
    oif @judged accept
    jump output_out
    {output_destinations}
  }}
  chain forward {{
    type filter hook forward priority -160; policy accept;
    {granted}
    jump forward_in
    {forward_sources}
    oif @judged accept
    jump forward_out
    {forward_destinations}
  }}
  chain input {{
    type filter hook input priority -160; policy accept;
    {delivered}
    iif "lo" accept
    {neighbours}
    jump input_in
    {input_sources}
  }}
  chain output {{
    type filter hook output priority 300; policy accept;
    jump sent
  }}
  chain postrouting {{
    type filter hook postrouting priority 300; policy accept;
    meta iif != 0 accept
    jump sent
  }}
}}
"#,
        judged = elements(&judged),
        v4 = elements(&v4),
        v6 = elements(&v6),
        forward_in = interfaces(config, "iifname", &drop("forward_from_device")),
        forward_out = interfaces(config, "oifname", &drop("forward_to_device")),
        input_in = interfaces(config, "iifname", &drop("input_from_device")),
        output_out = interfaces(config, "oifname", &drop("output_to_device")),
        output_destinations = destinations("output_to_device"),
        forward_sources = sources("forward_pool_source"),
        forward_destinations = destinations("forward_to_device"),
        input_sources = sources("input_pool_source"),
    );
    s
}

/// An interface index that nft cannot take for a name: it tries names first, and no name is longer than 15 bytes.
pub(super) fn index(i: u32) -> String {
    format!("\"{i:020}\"")
}

fn elements(all: &[String]) -> String {
    if all.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", all.join(", "))
    }
}

/// The first entry that matches a name gives the role, as in the configuration.
fn interfaces(config: &Config, key: &str, device: &str) -> String {
    let mut s = String::new();
    for rule in &config.interfaces {
        let verdict = match rule.role {
            InterfaceRole::Device => device,
            InterfaceRole::Core => "return",
        };
        // The set of characters of an interface name excludes quotes, backslash and the asterisk; a pattern ends with one.
        s += &format!("    {key} \"{}\" {verdict}\n", rule.name);
    }
    s
}

/// The pools' prefixes without reserved addresses, as intervals, for IPv4 and IPv6.
fn ranges(config: &Config) -> (Vec<String>, Vec<String>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    let reserved: BTreeSet<IpAddr> = config.pools.iter().flat_map(|p| p.reserved.iter().copied()).collect();
    for prefix in config.pools.iter().flat_map(|p| &p.prefixes) {
        match prefix {
            IpNetwork::V4(n) => {
                let without = reserved.iter().filter_map(|a| match a {
                    IpAddr::V4(a) => Some(u128::from(u32::from(*a))),
                    IpAddr::V6(_) => None,
                });
                for (first, last) in subtract(u32::from(n.network()).into(), u32::from(n.broadcast()).into(), without) {
                    let text = |a: u128| std::net::Ipv4Addr::from(a as u32);
                    v4.push(interval(text(first), text(last)));
                }
            }
            IpNetwork::V6(n) => {
                let without = reserved.iter().filter_map(|a| match a {
                    IpAddr::V6(a) => Some(u128::from(*a)),
                    IpAddr::V4(_) => None,
                });
                for (first, last) in subtract(n.network().into(), n.broadcast().into(), without) {
                    v6.push(interval(std::net::Ipv6Addr::from(first), std::net::Ipv6Addr::from(last)));
                }
            }
        }
    }
    (v4, v6)
}

fn interval<A: std::fmt::Display + PartialEq>(first: A, last: A) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}-{last}")
    }
}

/// What is left of a range without some points, which are in ascending order.
fn subtract(first: u128, last: u128, without: impl Iterator<Item = u128>) -> Vec<(u128, u128)> {
    let (mut left, mut from) = (Vec::new(), Some(first));
    for point in without.filter(|p| (first..=last).contains(p)) {
        let Some(start) = from else { break };
        if point > start {
            left.push((start, point - 1));
        }
        from = point.checked_add(1).filter(|n| *n <= last);
    }
    left.extend(from.map(|start| (start, last)));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::fixtures;

    #[test]
    fn ranges_leave_reserved_addresses_out() {
        assert_eq!(subtract(10, 20, [10, 12, 13, 20, 99].into_iter()), [(11, 11), (14, 19)]);
        assert_eq!(subtract(10, 10, [10].into_iter()), []);
        assert_eq!(subtract(0, u128::MAX, [u128::MAX].into_iter()), [(0, u128::MAX - 1)]);
        let (v4, v6) = ranges(&fixtures::config());
        assert_eq!(v4[..2], ["10.66.0.0", "10.66.0.2-10.66.255.255"]);
        assert_eq!(v6[..2], ["fd66::", "fd66::2-fd66::ffff:ffff:ffff:ffff"]);
    }

    #[test]
    fn an_index_cannot_be_a_name() {
        assert!(index(7).trim_matches('"').len() > 15 && index(u32::MAX).trim_matches('"').parse() == Ok(u32::MAX));
    }
}
