//! Route tables of pools: a rule for each pool with one, which the mark of a packet from the pool's devices selects, and the routes of
//! its table. All carry our own protocol number, and only what carries it is ever deleted.
//!
//! A packet that the table has no route for is refused by a last, unreachable route: the pool's table stands instead of the host's
//! routes, not before them. A route whose interface does not exist is left out until it does.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use gateway_ebpf::abi::{MARK_OURS, mark};

use crate::{
    config::Config,
    links::LinkNow,
    model::InterfaceName,
    netlink::{Connection, Message, NLM_F_CREATE, NLM_F_EXCL, attributes, put, u32_at},
};

/// Protocol number of our rules (FRA_PROTOCOL) and routes (rtm_protocol): `ip rule list proto 76`.
pub const PROTOCOL: u8 = 76;
/// Preference of the rule of pool n is this plus n: after the local table (0), before main (32766).
pub const RULE_PREFERENCE: u32 = 7600;
/// Metric of our routes.
pub const METRIC: u32 = 1024;

/// Makes rules and routes what the configuration says, with the interfaces that exist now. Returns what could not be set, in words.
///
/// # Errors
/// Those of reading what there is; nothing was changed then.
pub fn apply(config: &Config, links: &[LinkNow]) -> io::Result<Vec<String>> {
    let mut problems = Vec::new();
    let (rules, routes) = wanted(config, links, &mut problems);
    let mut connection = Connection::new()?;
    let (held_rules, held_routes) = held(&mut connection)?;
    let mut report = |what: &str, object: &dyn std::fmt::Debug, result: io::Result<()>| {
        if let Err(e) = result {
            problems.push(format!("{what} {object:?}: {e}"));
        }
    };
    for route in held_routes.iter().filter(|held| !routes.iter().any(|w| w.is(held))) {
        report("removing", route, route.request(&mut connection, RTM_DELROUTE, 0));
    }
    for rule in held_rules.iter().filter(|r| !rules.contains(r)) {
        report("removing", rule, rule.request(&mut connection, RTM_DELRULE, 0));
    }
    // The refusing route and the others stand before the rule directs anything to them.
    for route in routes.iter().filter(|w| !held_routes.iter().any(|held| w.is(held))) {
        report(
            "adding",
            route,
            route.request(&mut connection, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL),
        );
    }
    for rule in rules.iter().filter(|r| !held_rules.contains(r)) {
        report(
            "adding",
            rule,
            rule.request(&mut connection, RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL),
        );
    }
    Ok(problems)
}

/// Removes every rule and route of ours.
///
/// # Errors
/// The first that failed; the others were tried.
pub fn remove() -> io::Result<()> {
    let mut connection = Connection::new()?;
    let (rules, routes) = held(&mut connection)?;
    let rules: Vec<_> = rules.iter().map(|r| r.request(&mut connection, RTM_DELRULE, 0)).collect();
    let routes: Vec<_> = routes.iter().map(|r| r.request(&mut connection, RTM_DELROUTE, 0)).collect();
    rules.into_iter().chain(routes).collect()
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

fn wanted(config: &Config, links: &[LinkNow], problems: &mut Vec<String>) -> (Vec<Rule>, Vec<Route>) {
    let (mut rules, mut routes) = (Vec::new(), Vec::new());
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
    (rules, routes)
}

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
/// `struct rtmsg` and `struct fib_rule_hdr` are both 12 bytes long.
const FIXED: usize = 12;

fn held(connection: &mut Connection) -> io::Result<(Vec<Rule>, Vec<Route>)> {
    let (mut rules, mut routes) = (Vec::new(), Vec::new());
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; FIXED];
        header[0] = family as u8;
        rules.extend(connection.dump(RTM_GETRULE, &header)?.iter().filter_map(Rule::decode));
        routes.extend(connection.dump(RTM_GETROUTE, &header)?.iter().filter_map(Route::decode));
    }
    Ok((rules, routes))
}

impl Rule {
    /// One of ours; `None`: another's.
    fn decode(m: &Message) -> Option<Self> {
        let mut rule = Self {
            v6: i32::from(*m.body.first()?) == libc::AF_INET6,
            preference: 0,
            mark: 0,
            mask: 0,
            table: 0,
        };
        let mut protocol = 0;
        for (kind, value) in attributes(&m.body, FIXED) {
            match kind {
                FRA_PRIORITY => rule.preference = u32_at(value, 0)?,
                FRA_FWMARK => rule.mark = u32_at(value, 0)?,
                FRA_FWMASK => rule.mask = u32_at(value, 0)?,
                FRA_TABLE => rule.table = u32_at(value, 0)?,
                FRA_PROTOCOL => protocol = *value.first()?,
                _ => {}
            }
        }
        (m.kind == RTM_NEWRULE && protocol == PROTOCOL).then_some(rule)
    }

    fn request(&self, connection: &mut Connection, kind: u16, flags: u16) -> io::Result<()> {
        let mut body = vec![0; FIXED];
        body[0] = if self.v6 { libc::AF_INET6 } else { libc::AF_INET } as u8;
        // FR_ACT_TO_TBL.
        body[7] = 1;
        put(&mut body, FRA_PRIORITY, &self.preference.to_ne_bytes());
        put(&mut body, FRA_FWMARK, &self.mark.to_ne_bytes());
        put(&mut body, FRA_FWMASK, &self.mask.to_ne_bytes());
        put(&mut body, FRA_TABLE, &self.table.to_ne_bytes());
        put(&mut body, FRA_PROTOCOL, &[PROTOCOL]);
        connection.request(kind, flags, &body)
    }
}

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;

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
    fn decode(m: &Message) -> Option<Self> {
        let byte = |at: usize| m.body.get(at).copied();
        let v6 = i32::from(byte(0)?) == libc::AF_INET6;
        let mut route = Self {
            table: u32::from(byte(4)?),
            to: if v6 {
                Ipv6Addr::UNSPECIFIED.into()
            } else {
                Ipv4Addr::UNSPECIFIED.into()
            },
            length: byte(1)?,
            via: None,
            interface: None,
            metric: 0,
            unreachable: byte(7)? == RTN_UNREACHABLE,
        };
        for (kind, value) in attributes(&m.body, FIXED) {
            match kind {
                RTA_DST => route.to = address(value)?,
                RTA_GATEWAY => route.via = Some(address(value)?),
                RTA_OIF => route.interface = u32_at(value, 0),
                RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                RTA_TABLE => route.table = u32_at(value, 0)?,
                _ => {}
            }
        }
        (m.kind == RTM_NEWROUTE && byte(5)? == PROTOCOL).then_some(route)
    }

    fn request(&self, connection: &mut Connection, kind: u16, flags: u16) -> io::Result<()> {
        let mut body = vec![0; FIXED];
        body[0] = if self.to.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET } as u8;
        body[1] = self.length;
        body[5] = PROTOCOL;
        // RT_SCOPE_LINK on the link, RT_SCOPE_UNIVERSE behind a next hop.
        body[6] = if self.via.is_none() && !self.unreachable { 253 } else { 0 };
        body[7] = if self.unreachable { RTN_UNREACHABLE } else { RTN_UNICAST };
        put(&mut body, RTA_DST, &octets(self.to));
        put(&mut body, RTA_TABLE, &self.table.to_ne_bytes());
        put(&mut body, RTA_PRIORITY, &self.metric.to_ne_bytes());
        if let Some(via) = self.via {
            put(&mut body, RTA_GATEWAY, &octets(via));
        }
        // IPv6 shows refusing routes as leading to `lo`.
        if let Some(interface) = self.interface.filter(|_| !self.unreachable) {
            put(&mut body, RTA_OIF, &interface.to_ne_bytes());
        }
        connection.request(kind, flags, &body)
    }
}

const RTN_UNICAST: u8 = 1;
const RTN_UNREACHABLE: u8 = 7;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(Into::into),
        16 => <[u8; 16]>::try_from(value).ok().map(Into::into),
        _ => None,
    }
}
