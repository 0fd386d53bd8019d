//! The decision: [`decide`], one pure function from tables, place and headers to a [`Verdict`]. Both kernel entry points (XDP and TC), the
//! tests and `explain` call it. It counts nothing, reports nothing and touches no packet.

use crate::{
    abi::{CLASS_LEASED, CLASS_POOL, Class, Control, POOL_ALL, POOL_BLOCKED, POOL_REJECT, Policy, mark},
    headers::{Address, ArpForm, Headers, cold_key},
    reason::Reason,
    tables::{Tables, classes, group, port_group, read, rule},
};

/// Whose side an interface is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Devices are behind it.
    Device,
    /// The rest of the network is.
    Core,
}

/// Which way a packet crosses the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Into the host.
    Ingress,
    /// Out of it; judged on device interfaces only.
    Egress,
}

/// Where a packet is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The interface's role.
    pub role: Role,
    /// The packet's direction.
    pub direction: Direction,
    /// Whether frames begin with an Ethernet header: there, address resolution and neighbour discovery mean something.
    pub ethernet: bool,
    /// The interface's index.
    pub ifindex: u32,
}

/// What becomes of a packet, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Why; it says whether the packet passes.
    pub reason: Reason,
    /// The pool that decided, or that a packet with a problem touched; 0: none.
    pub pool: u8,
    /// With [`Outcome::Grant`]: the firewall mark, see [`mark`]. Otherwise 0.
    pub mark: u32,
    /// The rule that named the packet; 0: none did.
    pub rule: u16,
    /// The denial is to be answered, as far as the limit allows.
    pub answer: bool,
}

/// What follows from a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passes, and the mark lifts the floor.
    Grant,
    /// Passes, but the floor stays: it may be delivered on this link, never forwarded.
    Link,
    /// Passes, as if we were not there.
    NotOurs,
    /// Dropped.
    Deny,
}

impl Verdict {
    /// What follows: the list of reasons, whole, so that no new one can be added without a choice.
    #[inline(always)]
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self.reason {
            Reason::Rule | Reason::Reply | Reason::All | Reason::Related => Outcome::Grant,
            Reason::Arp | Reason::NeighbourDiscovery => Outcome::Link,
            Reason::NotOurs => Outcome::NotOurs,
            Reason::NoRule
            | Reason::Blocked
            | Reason::NewToDevice
            | Reason::LeaseEnded
            | Reason::NotInPool
            | Reason::DestinationNotInPool
            | Reason::PoolSourceFromCore
            | Reason::Truncated
            | Reason::Ethertype
            | Reason::Llc
            | Reason::Vlan
            | Reason::Version
            | Reason::HeaderLength
            | Reason::TotalLength
            | Reason::IpOptions
            | Reason::ExtensionHeader
            | Reason::Fragment
            | Reason::IcmpError
            | Reason::ArpMalformed
            | Reason::NeighbourUnsafe
            | Reason::UdpLength
            | Reason::WrongInterface
            | Reason::SourceRoute
            | Reason::RoutingHeader
            | Reason::ExtensionDepth
            | Reason::FragmentTiny
            | Reason::FragmentOverlap
            | Reason::FragmentMalformed
            | Reason::FragmentTableFull
            | Reason::IcmpQuote
            | Reason::Redirect
            | Reason::Multicast
            | Reason::Broadcast
            | Reason::LinkLocal
            | Reason::Loopback
            | Reason::Unspecified
            | Reason::Mapped
            | Reason::SixToFour
            | Reason::Nat64
            | Reason::ReservedAddress
            | Reason::Unjudged
            | Reason::Internal => Outcome::Deny,
        }
    }
}

/// The decision.
#[inline(always)]
pub fn decide<T: Tables>(t: &T, place: Place, h: &Headers) -> Verdict {
    if h.version == 0 {
        return without_addresses(place, h);
    }
    let Some(control) = t.control() else {
        return because(Reason::Internal, 0);
    };
    let Some((source, destination)) = classes(t, control, h) else {
        return because(Reason::Internal, 0);
    };
    let (from, to) = (source & CLASS_POOL, destination & CLASS_POOL);
    let touched = if from != 0 { from } else { to };
    let core = matches!(place.role, Role::Core);

    if core && touched == 0 {
        return because(Reason::NotOurs, 0);
    }
    if let Some(problem) = h.problem {
        return because(problem, touched);
    }
    if place.ethernet && h.is_icmp() && h.version == 6 && matches!(h.icmp_type, 133..=137) {
        return neighbour(h, touched);
    }
    match place.direction {
        Direction::Ingress if core && from != 0 => return because(Reason::PoolSourceFromCore, from),
        Direction::Ingress if !core && from == 0 => return because(Reason::NotInPool, 0),
        Direction::Egress if to == 0 => return because(Reason::DestinationNotInPool, 0),
        _ => {}
    }

    let Some(policy) = t.policy(read(&control.generation) & 1) else {
        return because(Reason::Internal, touched);
    };
    // An end outside the pools asks for nothing; at least one is inside.
    let by_source = if from != 0 {
        judge(t, control, policy, source, h, End::Source)
    } else {
        because(Reason::All, 0)
    };
    if !by_source.reason.passes() {
        return by_source;
    }
    let by_destination = if to != 0 {
        judge(t, control, policy, destination, h, End::Destination)
    } else {
        because(Reason::All, 0)
    };
    if !by_destination.reason.passes() {
        return by_destination;
    }
    let granted = if from != 0 { by_source } else { by_destination };
    let from_device = matches!((place.role, place.direction), (Role::Device, Direction::Ingress));
    Verdict {
        mark: mark(granted.pool, from_device),
        ..granted
    }
}

/// The end of a packet that is in a pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// What the policy of one end says; the mark is not its business. One plain value for grant and denial: in an enum, the registers of the
/// variants that are not there hold anything, which the verifier refuses.
#[inline(always)]
fn judge<T: Tables>(t: &T, control: &Control, policy: &Policy, class: Class, h: &Headers, end: End) -> Verdict {
    let address = if end == End::Source { h.source } else { h.destination };
    let Current { pool, ended } = current(t, control, class, h.version, address);
    if pool == 0 {
        return because(Reason::LeaseEnded, class & CLASS_POOL);
    }
    let flags = read(&policy.pools[(pool & CLASS_POOL) as usize].flags);
    let (reason, rule) = if flags & POOL_BLOCKED != 0 {
        (Reason::Blocked, 0)
    } else if flags & POOL_ALL != 0 {
        (Reason::All, 0)
    } else {
        by_rules(policy, pool, h, end)
    };
    if ended && !reason.passes() {
        return because(Reason::LeaseEnded, pool);
    }
    Verdict {
        rule,
        answer: flags & POOL_REJECT != 0 && end == End::Source && matches!(reason, Reason::NoRule | Reason::Blocked),
        ..because(reason, pool)
    }
}

#[inline(always)]
fn by_rules(policy: &Policy, pool: u8, h: &Headers, end: End) -> (Reason, u16) {
    let source = end == End::Source;
    if h.is_icmp() {
        if h.is_icmp_error() {
            return (Reason::IcmpError, 0);
        }
        // Echo request (RFC 792; RFC 4443, 4.1) from the device, echo reply to it.
        let echo = match (h.version, source) {
            (4, true) => 8,
            (4, false) => 0,
            (_, true) => 128,
            (_, false) => 129,
        };
        if h.icmp_type != echo {
            return (Reason::NoRule, 0);
        }
    } else if is_strange_icmp(h) {
        return (Reason::NoRule, 0);
    }
    // A reply is what the same rule names with the ends exchanged.
    let (peer, port): (Address, u16) = if source {
        (h.destination, h.destination_port)
    } else {
        (h.source, h.source_port)
    };
    let peers = group(policy, h.version, peer);
    let ports = port_group(policy, h.protocol, port);
    match (rule(policy, pool, peers, ports), source) {
        (0, _) => (Reason::NoRule, 0),
        (number, true) => (Reason::Rule, number),
        (_, false) if h.opens_tcp() => (Reason::NewToDevice, 0),
        (number, false) => (Reason::Reply, number),
    }
}

/// ICMP over IPv6, or ICMPv6 over IPv4: a protocol number that means nothing there.
#[inline(always)]
const fn is_strange_icmp(h: &Headers) -> bool {
    use crate::headers::protocol::{ICMP, ICMPV6};
    matches!((h.version, h.protocol), (4, ICMPV6) | (6, ICMP))
}

/// Which pool's policy judges an address now.
#[derive(Clone, Copy)]
struct Current {
    /// 0: none, for the lease of an address without a record.
    pool: u8,
    /// The lease has ended.
    ended: bool,
}

#[inline(always)]
fn current<T: Tables>(t: &T, control: &Control, class: Class, version: u8, address: Address) -> Current {
    if class & CLASS_LEASED == 0 || t.coarse_now() < read(&control.earliest_lease_end) {
        return Current {
            pool: class & CLASS_POOL,
            ended: false,
        };
    }
    // The address by its words, the result in one register: a called function in the kernel.
    let key = cold_key(version, address);
    let found = after_earliest_end(t, &key, class & CLASS_POOL);
    Current {
        pool: found as u8 & CLASS_POOL,
        ended: found & ENDED != 0,
    }
}

const ENDED: u32 = 0x100;

/// Some lease has ended and the daemon has not ended it: the exact record decides.
#[inline(never)]
fn after_earliest_end<T: Tables>(t: &T, key: &crate::abi::ColdKey, pool: u8) -> u32 {
    match t.cold(key) {
        None => ENDED,
        Some(cold) if t.boot_now() < cold.lease_end => pool as u32,
        Some(cold) => ENDED | (cold.fallback as u8 & CLASS_POOL) as u32,
    }
}

/// Neither address was read.
#[inline(always)]
fn without_addresses(place: Place, h: &Headers) -> Verdict {
    if let Some(ArpForm::Plain) = h.arp
        && h.problem.is_none()
        && place.ethernet
    {
        return because(Reason::Arp, 0);
    }
    if matches!(place.role, Role::Core) {
        return because(Reason::NotOurs, 0);
    }
    because(h.problem.unwrap_or(Reason::ArpMalformed), 0)
}

/// Neighbour discovery (RFC 4861) on its own link, by a device or touching a pool.
#[inline(always)]
fn neighbour(h: &Headers, touched: u8) -> Verdict {
    let plain = matches!(h.icmp_type, 135 | 136) && h.icmp_code == 0 && h.hop_limit == 255;
    because(
        if plain {
            Reason::NeighbourDiscovery
        } else {
            Reason::NeighbourUnsafe
        },
        touched,
    )
}

#[inline(always)]
const fn because(reason: Reason, pool: u8) -> Verdict {
    Verdict {
        reason,
        pool,
        mark: 0,
        rule: 0,
        answer: false,
    }
}

#[cfg(test)]
mod tests;
