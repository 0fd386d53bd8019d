//! What the policies say of a packet's two ends: steps 11 of the specification, `docs/verdict.md`. The steps before it are
//! [`crate::decide`]'s business.

use crate::{
    abi::{
        Class, ClassEntry, Control, ENTRY_DELEGATED, ENTRY_LEASED, POOL_ALL, POOL_BLOCKED, POOL_REJECT, POOL_TO_DEVICE, Policy,
        entry_pool,
    },
    clock::TOLERANCE,
    decide::{Direction, Place, Role, Verdict, because},
    headers::{Address, Headers, cold_key, cold_key_of_prefix, protocol},
    reason::Reason,
    special::special,
    tables::{Tables, classes, from_device, group, port_group, read, to_device},
};

/// What both ends of a packet are judged by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// What the class of the source means.
    pub source: ClassEntry,
    /// What the class of the destination means.
    pub destination: ClassEntry,
    /// Class of the source.
    pub source_class: Class,
    /// Class of the destination.
    pub destination_class: Class,
}

impl Ends {
    /// `None`: a table cannot be read.
    #[inline(always)]
    pub(crate) fn of<T: Tables>(t: &T, control: &Control, h: &Headers) -> Option<Self> {
        let (source, destination) = classes(t, control, h)?;
        Some(Self::meaning(control, source, destination))
    }
    /// The same, by a called function in the kernel.
    #[inline(always)]
    pub(crate) fn called<T: Tables>(t: &T, control: &Control, h: &Headers) -> Option<Self> {
        match packed_classes(t, h) {
            UNREADABLE => None,
            both => Some(Self::meaning(control, both as u8, (both >> 8) as u8)),
        }
    }
    #[inline(always)]
    fn meaning(control: &Control, source: Class, destination: Class) -> Self {
        Self {
            source_class: source,
            destination_class: destination,
            source: read(&control.classes[source as usize]),
            destination: read(&control.classes[destination as usize]),
        }
    }
    /// Pool of the source, 0: none.
    #[inline(always)]
    pub(crate) fn from(&self) -> u8 {
        entry_pool(self.source)
    }
    /// Pool of the destination, 0: none.
    #[inline(always)]
    pub(crate) fn to(&self) -> u8 {
        entry_pool(self.destination)
    }
    /// The pool that a packet touches, 0: none.
    #[inline(always)]
    pub(crate) fn touched(&self) -> u8 {
        if self.from() != 0 { self.from() } else { self.to() }
    }
}

const UNREADABLE: u32 = u32::MAX;

/// Source in the lowest byte, destination in the next.
#[inline(never)]
fn packed_classes<T: Tables>(t: &T, h: &Headers) -> u32 {
    let found = t.control().and_then(|control| classes(t, control, h));
    found.map_or(UNREADABLE, |(source, destination)| {
        u32::from(destination) << 8 | u32::from(source)
    })
}

/// The policies of both ends, of which at least one is in a pool; without mark and answer.
#[inline(always)]
pub(crate) fn both<T: Tables>(t: &T, control: &Control, policy: &Policy, ends: &Ends, h: &Headers) -> Verdict {
    // An end outside the pools asks for nothing.
    let by_source = if ends.from() != 0 {
        judge(t, control, policy, ends.source, h, End::Source, ends.to() == 0)
    } else {
        because(Reason::All, 0)
    };
    if !by_source.reason.passes() {
        return by_source;
    }
    let by_destination = if ends.to() != 0 {
        judge(t, control, policy, ends.destination, h, End::Destination, ends.from() == 0)
    } else {
        because(Reason::All, 0)
    };
    if !by_destination.reason.passes() {
        return by_destination;
    }
    if ends.from() != 0 {
        return by_source;
    }
    match no_source(h) {
        Some(reason) => because(reason, by_destination.pool),
        None => by_destination,
    }
}

/// The same by the policy in force, by called functions in the kernel that hand on by memory alone: the verifier
/// then follows the destination's judgment once, not once for each outcome of the source's.
#[inline(always)]
pub(crate) fn both_apart<T: Tables>(t: &T, h: &Headers, ends: &Ends, verdict: &mut Verdict, second: &mut Verdict) {
    one_end::<T, true>(t, h, ends, verdict);
    if !verdict.reason.passes() {
        return;
    }
    one_end::<T, false>(t, h, ends, second);
    if !second.reason.passes() {
        *verdict = *second;
    } else if verdict.pool == 0 {
        *verdict = *second;
        if let Some(reason) = no_source(h) {
            *verdict = because(reason, second.pool);
        }
    }
}

/// What the policy in force says of one end, `all` of pool 0 if it is in none.
#[inline(never)]
fn one_end<T: Tables, const SOURCE: bool>(t: &T, h: &Headers, ends: &Ends, verdict: &mut Verdict) -> bool {
    *verdict = because(Reason::Internal, 0);
    let Some(control) = t.control() else { return false };
    let Some(policy) = t.policy(read(&control.generation) & 1) else {
        return false;
    };
    let (own, alone) = if SOURCE {
        (ends.source, ends.to() == 0)
    } else {
        (ends.destination, ends.from() == 0)
    };
    *verdict = if entry_pool(own) == 0 {
        because(Reason::All, 0)
    } else {
        judge(
            t,
            control,
            policy,
            own,
            h,
            if SOURCE { End::Source } else { End::Destination },
            alone,
        )
    };
    true
}

/// What no packet may have as its source, whatever a rule names.
#[inline(always)]
pub(crate) fn no_source(h: &Headers) -> Option<Reason> {
    match special(h.version, h.source) {
        Some(r @ (Reason::Multicast | Reason::Broadcast | Reason::Unspecified | Reason::Loopback)) => Some(r),
        _ => None,
    }
}

/// Whether a denial at this place is to be answered.
#[inline(always)]
pub(crate) fn answer(policy: &Policy, place: Place, h: &Headers, verdict: &Verdict) -> bool {
    matches!((place.role, place.direction), (Role::Device, Direction::Ingress))
        && matches!(verdict.reason, Reason::NoRule | Reason::Blocked | Reason::LeaseEnded)
        && read(&policy.pools[verdict.pool as usize & 63].flags) & POOL_REJECT != 0
        && !(h.is_icmp() && h.is_icmp_error())
        && !(h.protocol == protocol::TCP && h.tcp_flags & RST != 0)
        && special(h.version, h.destination).is_none()
}

/// RFC 9293, 3.1.
const RST: u8 = 0x04;

/// The end of a packet that is in a pool.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Source,
    Destination,
}

/// What the policy of one end says; `alone`: the other end is in no pool. One plain value for grant and denial: in an enum, the registers of
/// the variants that are not there hold anything, which the verifier refuses.
#[inline(always)]
fn judge<T: Tables>(t: &T, control: &Control, policy: &Policy, entry: ClassEntry, h: &Headers, end: End, alone: bool) -> Verdict {
    let (own, other) = if end == End::Source {
        (h.source, h.destination)
    } else {
        (h.destination, h.source)
    };
    let Current { pool, ended } = current(t, control, entry, h.version, own);
    if pool == 0 {
        return because(Reason::LeaseEnded, entry_pool(entry));
    }
    let flags = read(&policy.pools[pool as usize & 63].flags);
    let mut verdict = because(Reason::Blocked, pool);
    if flags & POOL_BLOCKED == 0 {
        verdict.reason = Reason::All;
        if flags & POOL_ALL == 0 {
            (verdict.reason, verdict.rule) = by_rules(policy, pool, flags, h, end, other);
        }
        // What no rule names: by what the other end is.
        if alone
            && matches!(verdict.reason, Reason::All | Reason::NoRule)
            && let Some(reason) = special(h.version, other)
        {
            verdict.reason = reason;
        }
    }
    if ended && !verdict.reason.passes() {
        return because(Reason::LeaseEnded, pool);
    }
    verdict
}

#[inline(always)]
fn by_rules(policy: &Policy, pool: u8, flags: u32, h: &Headers, end: End, peer: Address) -> (Reason, u16) {
    let source = end == End::Source;
    // With a rule, or against it: as an answer.
    let (with, against) = if h.is_icmp() {
        // Echo request and reply (RFC 792; RFC 4443, 4.1, 4.2). No rule means another type.
        match (h.version, h.icmp_type) {
            (4, 8) | (6, 128) => (true, false),
            (4, 0) | (6, 129) => (false, true),
            _ => return (Reason::NoRule, 0),
        }
    } else if is_strange_icmp(h) {
        return (Reason::NoRule, 0);
    } else {
        (true, !h.opens_tcp())
    };
    let (peers_port, own_port) = if source {
        (h.destination_port, h.source_port)
    } else {
        (h.source_port, h.destination_port)
    };
    let peers = group(policy, h.version, peer);
    let number = from_device(policy, pool, peers, port_group(policy, h.protocol, peers_port));
    if number != 0 && if source { with } else { against } {
        return (if source { Reason::Rule } else { Reason::Reply }, number);
    }
    if flags & POOL_TO_DEVICE != 0 && if source { against } else { with } {
        let number = to_device(policy, pool, peers, port_group(policy, h.protocol, own_port));
        if number != 0 {
            return (if source { Reason::Reply } else { Reason::Rule }, number);
        }
    }
    let denial = if !source && number != 0 && h.opens_tcp() {
        Reason::NewToDevice
    } else {
        Reason::NoRule
    };
    (denial, 0)
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
fn current<T: Tables>(t: &T, control: &Control, entry: ClassEntry, version: u8, address: Address) -> Current {
    if entry & ENTRY_LEASED == 0 || t.about_boot_now().saturating_add(TOLERANCE) < read(&control.earliest_lease_end) {
        return Current {
            pool: entry_pool(entry),
            ended: false,
        };
    }
    // The address by its words, the result in one register: a called function in the kernel.
    let key = if entry & ENTRY_DELEGATED == 0 {
        cold_key(version, address)
    } else {
        cold_key_of_prefix(address)
    };
    let found = near_earliest_end(t, &key, entry_pool(entry));
    Current {
        pool: found as u8 & 0x3f,
        ended: found & ENDED != 0,
    }
}

const ENDED: u32 = 0x100;

/// Some lease has ended or is about to, and the daemon has not ended it: the exact record decides.
#[inline(never)]
fn near_earliest_end<T: Tables>(t: &T, key: &crate::abi::ColdKey, pool: u8) -> u32 {
    match t.cold(key) {
        None => ENDED,
        Some(cold) if t.boot_now() < cold.lease_end => pool as u32,
        Some(cold) => {
            let fallback = t.control().map_or(0, |c| read(&c.classes[cold.fallback as u8 as usize]));
            ENDED | entry_pool(fallback) as u32
        }
    }
}
