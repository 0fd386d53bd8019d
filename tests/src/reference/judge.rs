//! Section 2 of the page, step by step.

use std::net::IpAddr;

use super::{
    Place, Reference, Session,
    configuration::{Policy, Pool, Rule},
    read::Packet,
    special::{names, special},
};

/// What the reference says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgment {
    /// Name of the reason.
    pub reason: &'static str,
    /// Number of the pool that decided or was touched; 0: none.
    pub pool: u8,
    /// Number of the rule that passed it; 0: none.
    pub rule: u16,
    /// The denial is answered, as far as the limit allows.
    pub answer: bool,
}

impl Judgment {
    /// Passes, and is marked.
    #[must_use]
    pub fn granted(&self) -> bool {
        matches!(self.reason, "rule" | "reply" | "all" | "related")
    }
    /// Passes.
    #[must_use]
    pub fn passes(&self) -> bool {
        self.granted() || matches!(self.reason, "arp" | "neighbour_discovery" | "not_ours")
    }
}

/// What is known of an address.
#[derive(Clone, Debug)]
enum Class {
    None,
    /// Number of its home pool.
    AtRest(u8),
    /// Place in the list of sessions.
    Bound(usize),
}

/// Which end of a packet a pool is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

impl Reference {
    /// Judges a packet.
    pub fn judge(&mut self, place: Place, packet: &Packet) -> Judgment {
        let judgment = self.decide(place, packet);
        Judgment {
            answer: self.answers(place, packet, judgment),
            ..judgment
        }
    }

    /// "What follows": whether a denial is answered.
    fn answers(&self, place: Place, packet: &Packet, judgment: Judgment) -> bool {
        place.device
            && !place.egress
            && matches!(judgment.reason, "no_rule" | "blocked" | "lease_ended")
            && self.pool(judgment.pool).reject
            && !packet.icmp_error()
            && !packet.resets
            && packet.fragment.is_none()
            && !packet.stale
            && packet
                .addresses
                .is_some_and(|(_, destination)| special(destination).is_none())
    }

    fn decide(&mut self, place: Place, packet: &Packet) -> Judgment {
        let Some((source, destination)) = packet.addresses else {
            return self.without_addresses(place, packet);
        };
        let touched = match self.current(source) {
            0 => self.current(destination),
            pool => pool,
        };
        let because = |reason| Judgment {
            reason,
            pool: touched,
            rule: 0,
            answer: false,
        };
        if !place.device && touched == 0 {
            return because("not_ours");
        }
        if !self.has_vlan(place, packet) {
            return because("vlan");
        }
        if let Some(problem) = packet.problem {
            return because(problem);
        }
        let v4 = source.is_ipv4();
        match packet.icmp {
            Some((133..=137, _)) if !v4 => return because(neighbour(place, packet)),
            Some((5, _)) if v4 => return because("redirect"),
            _ => {}
        }
        if let Err(reason) = self.whose(place, source, destination) {
            return because(reason);
        }
        let end = if place.egress { destination } else { source };
        if place.device && !self.is_here(place, end) {
            return Judgment {
                reason: "wrong_interface",
                pool: self.current(end),
                rule: 0,
                answer: false,
            };
        }
        let mut judged = packet.clone();
        if let Some(fragment) = packet.fragment {
            if fragment.start == 0 {
                if let Err(reason) = self.fragments.first(place, packet, self.now) {
                    return because(reason);
                }
            } else {
                judged = match self.fragments.later(place, packet, fragment, self.now) {
                    Ok(first) => first,
                    Err(reason) => return because(reason),
                };
            }
        }
        let judgment = if judged.icmp_error() {
            match self.error(&judged, source, destination) {
                Ok(judgment) => judgment,
                Err(reason) => return because(reason),
            }
        } else if !v4 && judged.icmp.is_some_and(|(kind, _)| kind < 128) {
            return because("icmp_error");
        } else {
            self.ends(&judged)
        };
        if let Some(fragment) = packet.fragment.filter(|f| f.start == 0 && judgment.passes()) {
            self.fragments.remember(place, packet, fragment, self.now);
        }
        judgment
    }

    fn without_addresses(&self, place: Place, packet: &Packet) -> Judgment {
        let here = self.has_vlan(place, packet);
        let reason = match packet.problem {
            None if packet.arp && place.ethernet && here => "arp",
            _ if !place.device => "not_ours",
            _ if !here => "vlan",
            problem => problem.unwrap_or("internal"),
        };
        Judgment {
            reason,
            pool: 0,
            rule: 0,
            answer: false,
        }
    }

    /// Step 7.
    fn whose(&self, place: Place, source: IpAddr, destination: IpAddr) -> Result<(), &'static str> {
        let reason = |address, otherwise| Err(special(address).map_or(otherwise, |(reason, _)| reason));
        match (place.device, place.egress) {
            (false, _) if self.current(source) != 0 => Err("pool_source_from_core"),
            (true, false) if self.current(source) == 0 => reason(source, "not_in_pool"),
            (true, true) if self.current(destination) == 0 => reason(destination, "destination_not_in_pool"),
            _ => Ok(()),
        }
    }

    /// Step 8.
    fn is_here(&self, place: Place, address: IpAddr) -> bool {
        match self.class(address) {
            Class::None => true,
            Class::Bound(session) => {
                matches!(self.sessions[session].interface, 0) || self.sessions[session].interface == place.interface
            }
            Class::AtRest(home) => match self.interface(place).and_then(|i| i.pools.as_ref()) {
                None => true,
                Some(pools) => pools.contains(&self.pool(home).name),
            },
        }
    }

    /// Step 10.
    fn error(&self, packet: &Packet, source: IpAddr, destination: IpAddr) -> Result<Judgment, &'static str> {
        let quote = packet.quote.as_ref().ok_or("icmp_quote")?;
        let (quoted_source, quoted_destination) = quote.addresses.ok_or("icmp_quote")?;
        if quoted_source != destination || self.current(source) != 0 && quoted_destination != source {
            return Err("icmp_quote");
        }
        if self.current(quoted_source) == 0 && self.current(quoted_destination) == 0 {
            return Err("icmp_error");
        }
        let judgment = self.ends(quote);
        let reason = if judgment.passes() {
            // The packet's own source.
            match special(source).filter(|_| self.current(source) == 0) {
                Some((reason @ ("multicast" | "broadcast" | "unspecified" | "loopback"), _)) => reason,
                _ => "related",
            }
        } else if judgment.reason == "no_rule" || special_reason(judgment.reason) {
            "icmp_error"
        } else {
            judgment.reason
        };
        let rule = if reason == "related" { judgment.rule } else { 0 };
        Ok(Judgment {
            reason,
            rule,
            ..judgment
        })
    }

    /// Step 11.
    fn ends(&self, packet: &Packet) -> Judgment {
        let Some((source, destination)) = packet.addresses else {
            return Judgment {
                reason: "internal",
                pool: 0,
                rule: 0,
                answer: false,
            };
        };
        let first = (self.current(source) != 0).then(|| self.end(packet, End::Source, source, destination));
        if let Some(judgment) = first.filter(|j| !j.passes()) {
            return judgment;
        }
        let second = (self.current(destination) != 0).then(|| self.end(packet, End::Destination, destination, source));
        if let Some(judgment) = second.filter(|j| !j.passes()) {
            return judgment;
        }
        let judgment = first.or(second).unwrap_or(Judgment {
            reason: "internal",
            pool: 0,
            rule: 0,
            answer: false,
        });
        match special(source).filter(|_| first.is_none()) {
            Some((reason @ ("multicast" | "broadcast" | "unspecified" | "loopback"), _)) => Judgment {
                reason,
                rule: 0,
                ..judgment
            },
            _ => judgment,
        }
    }

    /// "Judging one end": that of `mine`, whose peer is `other`.
    fn end(&self, packet: &Packet, end: End, mine: IpAddr, other: IpAddr) -> Judgment {
        let (pool, ended) = match self.class(mine) {
            Class::Bound(session) => {
                let s = &self.sessions[session];
                match &s.lease {
                    Some(lease) if lease.end <= self.now => match lease.fallback {
                        None => {
                            return Judgment {
                                reason: "lease_ended",
                                pool: s.pool,
                                rule: 0,
                                answer: false,
                            };
                        }
                        Some(fallback) => (self.pool(fallback).number, true),
                    },
                    _ => (s.pool, false),
                }
            }
            _ => (self.current(mine), false),
        };
        let special_peer = special(other).filter(|_| self.current(other) == 0).map(|(reason, _)| reason);
        let policy = self.policy(pool);
        let (reason, rule) = match (policy.allow.as_deref(), special_peer) {
            (Some("nothing"), _) => ("blocked", 0),
            (Some("all"), Some(reason)) => (reason, 0),
            (Some("all"), None) => ("all", 0),
            _ => by_rules(policy, packet, end, other, special_peer.unwrap_or("no_rule")),
        };
        let judgment = Judgment {
            reason,
            pool,
            rule,
            answer: false,
        };
        if ended && !judgment.passes() {
            return Judgment {
                reason: "lease_ended",
                ..judgment
            };
        }
        judgment
    }

    /// The class of an address: a live session's, or its home pool's.
    fn class(&self, address: IpAddr) -> Class {
        let own = self.sessions.iter().position(|s| !s.delegated && s.address == address);
        let prefix = |s: &Session| s.delegated && first_64(s.address).is_some() && first_64(s.address) == first_64(address);
        if let Some(session) = own.or_else(|| self.sessions.iter().position(prefix)) {
            return Class::Bound(session);
        }
        let holds = |p: &&Pool| p.prefixes.iter().any(|n| n.contains(address)) && !p.reserved.contains(&address);
        self.configuration
            .pools
            .iter()
            .find(holds)
            .map_or(Class::None, |p| Class::AtRest(p.number))
    }

    /// Number of the pool that an address's class names; 0: none.
    fn current(&self, address: IpAddr) -> u8 {
        match self.class(address) {
            Class::None => 0,
            Class::Bound(session) => self.sessions[session].pool,
            Class::AtRest(home) => {
                let home = self.pool(home);
                home.fallback
                    .as_ref()
                    .map_or(home.number, |f| self.configuration.pool(f).number)
            }
        }
    }

    fn has_vlan(&self, place: Place, packet: &Packet) -> bool {
        packet.vlan.is_empty() || self.interface(place).is_some_and(|i| i.vlans.contains(&packet.vlan))
    }

    fn interface(&self, place: Place) -> Option<&super::configuration::Interface> {
        let link = self.links.iter().find(|l| l.index == place.interface)?;
        self.configuration.interface(&link.name)
    }

    fn pool(&self, number: u8) -> &Pool {
        let found = self.configuration.pools.iter().find(|p| p.number == number);
        found.unwrap_or_else(|| panic!("no pool {number}"))
    }

    fn policy(&self, pool: u8) -> &Policy {
        let name = &self.pool(pool).policy;
        let found = self.configuration.policies.iter().find(|p| p.name == *name);
        found.unwrap_or_else(|| panic!("no policy {name}"))
    }
}

/// Step 5.
fn neighbour(place: Place, packet: &Packet) -> &'static str {
    // A neighbour's message is never in fragments (RFC 6980).
    let safe = matches!(packet.icmp, Some((135 | 136, 0))) && packet.hops == 255 && packet.fragment.is_none();
    if place.ethernet && safe {
        "neighbour_discovery"
    } else {
        "neighbour_unsafe"
    }
}

fn by_rules(policy: &Policy, packet: &Packet, end: End, peer: IpAddr, otherwise: &'static str) -> (&'static str, u16) {
    let (source_port, destination_port) = packet.ports;
    let first = |to_device: bool, port: u16, echo: [u8; 2]| {
        let fits = |r: &&Rule| r.to_device == to_device && matches(r, packet, peer, port, echo);
        policy.rules.iter().filter(fits).map(|r| r.number).min()
    };
    const REQUEST: [u8; 2] = [8, 128];
    const REPLY: [u8; 2] = [0, 129];
    match end {
        End::Source => {
            if let Some(rule) = first(false, destination_port, REQUEST) {
                return ("rule", rule);
            }
            if let Some(rule) = first(true, source_port, REPLY).filter(|_| !packet.opens) {
                return ("reply", rule);
            }
        }
        End::Destination => {
            let answered = first(false, source_port, REPLY);
            if let Some(rule) = answered.filter(|_| !packet.opens) {
                return ("reply", rule);
            }
            if let Some(rule) = first(true, destination_port, REQUEST) {
                return ("rule", rule);
            }
            if answered.is_some() {
                return ("new_to_device", 0);
            }
        }
    }
    (otherwise, 0)
}

/// Whether a rule names the peer, the protocol and the port; of ICMP, only this kind of echo.
fn matches(rule: &Rule, packet: &Packet, peer: IpAddr, port: u16, [echo, echo6]: [u8; 2]) -> bool {
    if !rule.peers.iter().any(|p| names(*p, peer)) {
        return false;
    }
    let v4 = peer.is_ipv4();
    if packet.protocol == 1 || packet.protocol == 58 {
        let own = if v4 { 1 } else { 58 };
        let kind = if v4 { echo } else { echo6 };
        let named = match rule.protocol.as_str() {
            "any" | "icmp" => true,
            number => number.parse() == Ok(own),
        };
        return named && packet.protocol == own && packet.icmp.is_some_and(|(k, _)| k == kind);
    }
    match rule.protocol.as_str() {
        "any" => true,
        "tcp" => packet.protocol == 6 && has_port(rule, port),
        "udp" => packet.protocol == 17 && has_port(rule, port),
        number => number.parse() == Ok(packet.protocol),
    }
}

fn first_64(address: IpAddr) -> Option<[u8; 8]> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(a) => a.octets().first_chunk().copied(),
    }
}

fn has_port(rule: &Rule, port: u16) -> bool {
    rule.ports.is_empty() || rule.ports.iter().any(|(first, last)| (*first..=*last).contains(&port))
}

fn special_reason(reason: &str) -> bool {
    matches!(
        reason,
        "multicast"
            | "broadcast"
            | "link_local"
            | "loopback"
            | "unspecified"
            | "mapped"
            | "six_to_four"
            | "nat64"
            | "reserved_address"
    )
}
