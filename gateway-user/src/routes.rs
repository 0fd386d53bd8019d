//! Route tables of pools: a rule for each pool with one, which the mark of a packet from the pool's devices selects, and the routes of
//! its table. All carry our own protocol number, and only what carries it is ever deleted.
//!
//! A packet that the table has no route for is refused by a last, unreachable route: the pool's table stands instead of the host's
//! routes, not before them. A route whose interface does not exist is left out until it does.

mod lookup;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use gateway_ebpf::abi::{MARK_OURS, mark};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use crate::{
    config::Config,
    links::LinkNow,
    model::InterfaceName,
    netlink::{self, Requests},
};

pub use lookup::lookup;

/// Protocol number of our rules (FRA_PROTOCOL) and routes (rtm_protocol): `ip rule list proto 76`.
pub const PROTOCOL: u8 = 76;
/// Preference of the rule of pool n is this plus n: after the local table (0), before main (32766).
pub const RULE_PREFERENCE: u32 = 7600;
/// Metric of our routes.
pub const METRIC: u32 = 1024;

/// Makes rules and routes what the configuration says, with the interfaces that exist now. Returns what could not be set, in words.
///
/// # Errors
/// Those of reading what there is; nothing was changed then. TimedOut after a few seconds; the next call does the rest.
pub fn apply(config: &Config, links: &[LinkNow]) -> io::Result<Vec<String>> {
    let mut problems = Vec::new();
    let wanted = wanted(config, links, &mut problems);
    netlink::ask(async move |requests| {
        for change in changes(&wanted, &held(requests).await?) {
            if let Err(e) = requests.change(change.message, change.flags).await {
                problems.push(format!("{}: {e}", change.words));
            }
        }
        Ok(problems)
    })
}

/// Removes every rule and route of ours.
///
/// # Errors
/// The first that failed; the others were tried. TimedOut after a few seconds.
pub fn remove() -> io::Result<()> {
    netlink::ask(async |requests| {
        let mut result = Ok(());
        for change in changes(&Set::default(), &held(requests).await?) {
            result = result.and(requests.change(change.message, change.flags).await);
        }
        result
    })
}

#[derive(Debug, Default)]
struct Set {
    rules: Vec<Rule>,
    routes: Vec<Route>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    v6: bool,
    preference: u32,
    mark: u32,
    mask: u32,
    table: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Route {
    table: u32,
    to: IpAddr,
    length: u8,
    via: Option<IpAddr>,
    /// Of a wanted route, `None`: whichever leads to `via`.
    interface: Option<u32>,
    metric: u32,
    unreachable: bool,
}

fn wanted(config: &Config, links: &[LinkNow], problems: &mut Vec<String>) -> Set {
    let Set { mut rules, mut routes } = Set::default();
    for pool in &config.pools {
        let Some(table) = &pool.table else { continue };
        for v6 in [false, true] {
            rules.push(Rule {
                v6,
                preference: RULE_PREFERENCE + u32::from(pool.id.0),
                mark: mark(pool.id.0, true),
                mask: MARK_OURS,
                table: table.number,
            });
            let last = Route {
                table: table.number,
                to: if v6 {
                    Ipv6Addr::UNSPECIFIED.into()
                } else {
                    Ipv4Addr::UNSPECIFIED.into()
                },
                length: 0,
                via: None,
                interface: None,
                metric: u32::MAX,
                unreachable: true,
            };
            // Pools may share a table.
            if !routes.contains(&last) {
                routes.push(last);
            }
        }
        for route in &table.routes {
            let index = |n: &InterfaceName| links.iter().find(|l| l.link.name == *n).map(|l| l.link.ifindex);
            let interface = route.interface.as_ref().and_then(index);
            if let (Some(name), None) = (&route.interface, interface) {
                problems.push(format!(
                    "the route to {} of pool {} waits for interface {name}",
                    route.to, pool.name
                ));
                continue;
            }
            let route = Route {
                table: table.number,
                to: route.to.network(),
                length: route.to.prefix(),
                via: route.via,
                interface,
                metric: METRIC,
                unreachable: false,
            };
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
    }
    Set { rules, routes }
}

struct Change {
    words: String,
    message: RouteNetlinkMessage,
    flags: u16,
}

/// What makes `wanted` of `held`, in this order.
fn changes(wanted: &Set, held: &Set) -> Vec<Change> {
    let change = |words: &str, object: &dyn std::fmt::Debug, message, flags| Change {
        words: format!("{words} {object:?}"),
        message,
        flags,
    };
    let mut all = Vec::new();
    for rule in held.rules.iter().filter(|r| !wanted.rules.contains(r)) {
        all.push(change("removing", rule, RouteNetlinkMessage::DelRule(rule.message()), 0));
    }
    for route in held.routes.iter().filter(|held| !wanted.routes.iter().any(|w| w.is(held))) {
        all.push(change("removing", route, RouteNetlinkMessage::DelRoute(route.message()), 0));
    }
    // The refusing route and the others stand before the rule directs anything to them.
    let new = NLM_F_CREATE | NLM_F_EXCL;
    for route in wanted.routes.iter().filter(|w| !held.routes.iter().any(|held| w.is(held))) {
        all.push(change("adding", route, RouteNetlinkMessage::NewRoute(route.message()), new));
    }
    for rule in wanted.rules.iter().filter(|r| !held.rules.contains(r)) {
        all.push(change("adding", rule, RouteNetlinkMessage::NewRule(rule.message()), new));
    }
    all
}

const OURS: RouteProtocol = RouteProtocol::Other(PROTOCOL);

async fn held(requests: &mut Requests) -> io::Result<Set> {
    let rule = |message| match message {
        RouteNetlinkMessage::NewRule(m) => Rule::decode(&m),
        _ => None,
    };
    let route = |message| match message {
        RouteNetlinkMessage::NewRoute(m) => Route::decode(&m),
        _ => None,
    };
    let mut set = Set::default();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut rules = RuleMessage::default();
        rules.header.family = family;
        set.rules
            .extend(requests.dump(RouteNetlinkMessage::GetRule(rules), rule).await?);
        let mut routes = RouteMessage::default();
        routes.header.address_family = family;
        // The kernel leaves out those of others; if it did not, decoding does.
        routes.header.protocol = OURS;
        set.routes
            .extend(requests.dump(RouteNetlinkMessage::GetRoute(routes), route).await?);
    }
    Ok(set)
}

impl Rule {
    /// One of ours; `None`: another's.
    fn decode(message: &RuleMessage) -> Option<Self> {
        let mut rule = Self {
            v6: message.header.family == AddressFamily::Inet6,
            preference: 0,
            mark: 0,
            mask: 0,
            table: message.header.table.into(),
        };
        let mut protocol = RouteProtocol::Unspec;
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(p) => rule.preference = *p,
                RuleAttribute::FwMark(m) => rule.mark = *m,
                RuleAttribute::FwMask(m) => rule.mask = *m,
                RuleAttribute::Table(t) => rule.table = *t,
                RuleAttribute::Protocol(p) => protocol = *p,
                _ => {}
            }
        }
        (protocol == OURS).then_some(rule)
    }

    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.v6);
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Priority(self.preference),
            RuleAttribute::FwMark(self.mark),
            RuleAttribute::FwMask(self.mask),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(OURS),
        ];
        message
    }
}

impl Route {
    /// Whether a route of the kernel's is this wanted one.
    fn is(&self, held: &Self) -> bool {
        let interface = if self.interface.is_none() { None } else { held.interface };
        *self
            == Self {
                interface,
                ..held.clone()
            }
    }

    /// One of ours; `None`: another's.
    fn decode(message: &RouteMessage) -> Option<Self> {
        let header = &message.header;
        let mut route = Self {
            table: header.table.into(),
            to: if header.address_family == AddressFamily::Inet6 {
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                Ipv4Addr::UNSPECIFIED.into()
            },
            length: header.destination_prefix_length,
            via: None,
            interface: None,
            metric: 0,
            unreachable: header.kind == RouteType::Unreachable,
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(to) => route.to = address(to)?,
                RouteAttribute::Gateway(via) => route.via = Some(address(via)?),
                RouteAttribute::Oif(index) => route.interface = Some(*index),
                RouteAttribute::Priority(metric) => route.metric = *metric,
                RouteAttribute::Table(table) => route.table = *table,
                _ => {}
            }
        }
        (header.protocol == OURS).then_some(route)
    }

    fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let on_link = self.via.is_none() && !self.unreachable;
        message.header.address_family = family(self.to.is_ipv6());
        message.header.destination_prefix_length = self.length;
        message.header.protocol = OURS;
        message.header.scope = if on_link { RouteScope::Link } else { RouteScope::Universe };
        message.header.kind = if self.unreachable {
            RouteType::Unreachable
        } else {
            RouteType::Unicast
        };
        message.attributes = vec![
            RouteAttribute::Destination(self.to.into()),
            RouteAttribute::Table(self.table),
            RouteAttribute::Priority(self.metric),
        ];
        message
            .attributes
            .extend(self.via.map(|via| RouteAttribute::Gateway(via.into())));
        // IPv6 shows refusing routes as leading to `lo`.
        let interface = self.interface.filter(|_| !self.unreachable);
        message.attributes.extend(interface.map(RouteAttribute::Oif));
        message
    }
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> Rule {
        Rule {
            v6: true,
            preference: 7601,
            mark: 0x8101_0000,
            mask: MARK_OURS,
            table: 1066,
        }
    }

    fn route() -> Route {
        Route {
            table: 1066,
            to: "fd09::".parse().unwrap(),
            length: 32,
            via: Some("fe80::1".parse().unwrap()),
            interface: Some(7),
            metric: METRIC,
            unreachable: false,
        }
    }

    #[test]
    fn what_is_sent_is_read_as_the_same_and_anothers_as_nothing() {
        assert_eq!(Rule::decode(&rule().message()), Some(rule()));
        assert_eq!(Route::decode(&route().message()), Some(route()));
        let mut foreign = rule().message();
        foreign.attributes.retain(|a| !matches!(a, RuleAttribute::Protocol(_)));
        assert_eq!(Rule::decode(&foreign), None);
        foreign.attributes.push(RuleAttribute::Protocol(RouteProtocol::Static));
        assert_eq!(Rule::decode(&foreign), None);
        let mut foreign = route().message();
        foreign.header.protocol = RouteProtocol::Static;
        assert_eq!(Route::decode(&foreign), None);
    }

    #[test]
    fn changes_remove_first_and_end_with_the_rules() {
        let set = |rules: &[Rule], routes: &[Route]| Set {
            rules: rules.to_vec(),
            routes: routes.to_vec(),
        };
        let (other_rule, other_route) = (Rule { table: 5, ..rule() }, Route { length: 33, ..route() });
        let held = set(&[rule()], &[route()]);
        assert!(changes(&held, &held).is_empty());
        let all = changes(&set(&[other_rule], &[other_route]), &held);
        let kinds: Vec<u16> = all.iter().map(|c| c.message.message_type()).collect();
        assert_eq!(
            kinds,
            [libc::RTM_DELRULE, libc::RTM_DELROUTE, libc::RTM_NEWROUTE, libc::RTM_NEWRULE]
        );
        // Any interface that leads to the next hop will do, if none is named.
        let wanted = Route {
            interface: None,
            ..route()
        };
        assert!(changes(&set(&[rule()], &[wanted]), &held).is_empty());
    }
}
