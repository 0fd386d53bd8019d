//! The decision: [`decide`], one pure function from tables, place and headers to a [`Verdict`], as `docs/verdict.md` specifies it. Both
//! kernel entry points (XDP and TC), the tests and `explain` call it. It counts nothing, reports nothing and touches no packet.
//!
//! Here are the steps up to the policies, which [`crate::judge`] asks; packets with more to them than addresses and ports go through
//! [`crate::rare`] instead.

use crate::{
    abi::{Class, Control, FLAG_INTERFACE_POOLS, MAX_POOLS, POLICY_SHADOW, Policy, entry_ifindex, entry_pool, mark},
    headers::{ArpForm, Headers, Judged, Rare},
    judge::{Ends, answer, both},
    reason::Reason,
    special::special,
    tables::{Tables, confirmed, read},
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
    /// The hook, of [`crate::abi::hook`]: where a packet is judged twice, its fragments are remembered twice.
    pub hook: u8,
}

impl Place {
    #[inline(always)]
    pub(crate) const fn is_core(self) -> bool {
        matches!(self.role, Role::Core)
    }
    #[inline(always)]
    pub(crate) const fn is_device_ingress(self) -> bool {
        matches!((self.role, self.direction), (Role::Device, Direction::Ingress))
    }
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

/// It fails closed.
impl Default for Verdict {
    fn default() -> Self {
        because(Reason::Internal, 0)
    }
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

/// The decision about a packet of which nothing is in [`crate::headers::Rare`].
#[inline(always)]
pub fn decide<T: Tables>(t: &T, place: Place, h: &Headers) -> Verdict {
    decide_by::<T, true>(t, place, h)
}

/// What the shadow policy says of a packet that [`decide`] has judged; `rare` as [`crate::rare::decide`] has left it, if the packet has any.
/// 0: the policies are not asked about it; 1: it would pass; 2: it would be dropped.
#[inline(always)]
pub fn shadow<T: Tables>(t: &T, place: Place, h: &Headers, rare: Option<&Rare>) -> u32 {
    let reason = match rare {
        Some(rare) if h.rare => {
            let judged = match rare.judged {
                Judged::Nothing => return 0,
                Judged::Packet => h,
                Judged::Quote => &rare.quote,
            };
            let (Some(control), Some(policy)) = (t.control(), t.policy(POLICY_SHADOW)) else {
                return 0;
            };
            let Some(ends) = Ends::of(t, control, judged) else {
                return 0;
            };
            both(t, control, policy, &ends, judged).reason
        }
        _ => match decide_by::<T, false>(t, place, h) {
            Verdict {
                mark: SCORED, reason, ..
            } => reason,
            _ => return 0,
        },
    };
    if reason.passes() { 1 } else { 2 }
}

/// In a verdict by the shadow policy, in place of the mark: the policy was asked.
const SCORED: u32 = 1;

#[inline(always)]
fn decide_by<T: Tables, const IN_FORCE: bool>(t: &T, place: Place, h: &Headers) -> Verdict {
    if h.version == 0 {
        return without_addresses(place, h);
    }
    let Some(control) = t.control() else {
        return because(Reason::Internal, 0);
    };
    let Some(ends) = Ends::of(t, control, h) else {
        return because(Reason::Internal, 0);
    };
    let touched = ends.touched();
    if place.is_core() && touched == 0 {
        return because(Reason::NotOurs, 0);
    }
    if let Some(problem) = h.problem {
        return because(problem, touched);
    }
    if h.is_icmp()
        && let Some(reason) = link_icmp(place, h)
    {
        return because(reason, touched);
    }
    if let Some(verdict) = misplaced(t, control, place, &ends, h) {
        return verdict;
    }
    if h.is_icmp() && h.is_icmp_error() {
        return because(Reason::IcmpError, touched);
    }
    let index = if IN_FORCE {
        read(&control.generation) & 1
    } else {
        POLICY_SHADOW
    };
    let Some(policy) = t.policy(index) else {
        return because(Reason::Internal, touched);
    };
    let verdict = both(t, control, policy, &ends, h);
    if !IN_FORCE {
        return Verdict { mark: SCORED, ..verdict };
    }
    finish(policy, place, h, verdict)
}

/// Adds the mark to a grant, and says of a denial whether it is answered.
#[inline(always)]
pub(crate) fn finish(policy: &Policy, place: Place, h: &Headers, verdict: Verdict) -> Verdict {
    if verdict.reason.passes() {
        return Verdict {
            mark: mark(verdict.pool, place.is_device_ingress()),
            ..verdict
        };
    }
    Verdict {
        answer: answer(policy, place, h, &verdict),
        ..verdict
    }
}

/// Neither address was read.
#[inline(always)]
pub(crate) fn without_addresses(place: Place, h: &Headers) -> Verdict {
    if let Some(ArpForm::Plain) = h.arp
        && h.problem.is_none()
        && place.ethernet
    {
        return because(Reason::Arp, 0);
    }
    if place.is_core() {
        return because(Reason::NotOurs, 0);
    }
    because(h.problem.unwrap_or(Reason::ArpMalformed), 0)
}

/// ICMP that is never judged by a policy: neighbour discovery (RFC 4861), which means something on its own link only, and redirects.
#[inline(always)]
pub(crate) fn link_icmp(place: Place, h: &Headers) -> Option<Reason> {
    match (h.version, h.icmp_type) {
        (4, 5) => Some(Reason::Redirect),
        (6, 133..=137) => {
            let plain = place.ethernet && matches!(h.icmp_type, 135 | 136) && h.icmp_code == 0 && h.hop_limit == 255;
            Some(if plain {
                Reason::NeighbourDiscovery
            } else {
                Reason::NeighbourUnsafe
            })
        }
        _ => None,
    }
}

/// An address that may not be at this end of a packet here, or not on this interface.
#[inline(always)]
pub(crate) fn misplaced<T: Tables>(t: &T, control: &Control, place: Place, ends: &Ends, h: &Headers) -> Option<Verdict> {
    let (entry, class) = match (place.role, place.direction) {
        (Role::Core, _) => {
            if ends.from() != 0 {
                return Some(because(Reason::PoolSourceFromCore, ends.from()));
            }
            return None;
        }
        (Role::Device, Direction::Ingress) => {
            if ends.from() == 0 {
                let reason = special(h.version, h.source).unwrap_or(Reason::NotInPool);
                return Some(because(reason, ends.touched()));
            }
            (ends.source, ends.source_class)
        }
        (Role::Device, Direction::Egress) => {
            if ends.to() == 0 {
                let reason = special(h.version, h.destination).unwrap_or(Reason::DestinationNotInPool);
                return Some(because(reason, ends.touched()));
            }
            (ends.destination, ends.destination_class)
        }
    };
    let bound = entry_ifindex(entry);
    let elsewhere = bound != 0 && bound != place.ifindex
        || read(&control.flags) & FLAG_INTERFACE_POOLS != 0 && class <= MAX_POOLS && !is_home(t, place.ifindex, class);
    elsewhere.then(|| because(Reason::WrongInterface, entry_pool(entry)))
}

/// Whether an address at rest may be on an interface. A called function in the kernel.
#[inline(never)]
fn is_home<T: Tables>(t: &T, ifindex: u32, class: Class) -> bool {
    confirmed(|| t.interface(ifindex).is_some_and(|i| read(&i.pools) >> (class & 63) & 1 != 0))
}

#[inline(always)]
pub(crate) const fn because(reason: Reason, pool: u8) -> Verdict {
    Verdict {
        reason,
        pool,
        mark: 0,
        rule: 0,
        answer: false,
    }
}

#[cfg(test)]
pub(crate) mod tests;
