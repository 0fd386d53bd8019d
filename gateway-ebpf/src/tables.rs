//! What the decision reads, and how: the look-up code is written once, over a trait that the kernel implements by its maps and the host
//! by borrowed memory ([`MemTables`]). Nothing here writes a table or decides.
//!
//! The tables are written by the daemon while they are read, by single stores of words and bytes. Every read of one is volatile, so that
//! a value is read once and in the order of the source.

#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering, fence};

use crate::{
    abi::{
        BUCKET6_SLOTS, Bucket6, Class, Cold, ColdKey, Control, FLAG_DELEGATED, FragmentBucket, GROUPS, Home6, Homes6, Interface,
        LEVEL_NEXT, LEVEL_TABLES, Matrix, Policy, Shared, delegated, mix6,
    },
    headers::{Address, Headers, protocol, words},
};

/// The tables and clocks behind the decision. `None` is a table that cannot be read: the decision then fails closed.
pub trait Tables {
    /// [`crate::abi::map::CONTROL`].
    fn control(&self) -> Option<&Control>;
    /// [`crate::abi::map::DIR4`].
    fn directory4(&self) -> Option<&[u16; 65536]>;
    /// [`crate::abi::map::CHUNKS4`]: a chunk at the lower half of an IPv4 address.
    fn chunk4(&self, chunk: u16, lower: u16) -> Option<Class>;
    /// [`crate::abi::map::HASH6`] at an index.
    fn bucket6(&self, index: u32) -> Option<&Bucket6>;
    /// The class of a single IPv6 address, below 256: from [`crate::abi::map::HASH6`]. The benchmark's reference has it elsewhere.
    #[inline(always)]
    fn single6(&self, hash6_bits: u32, hi: u64, lo: u64) -> Single6 {
        in_buckets(self, hash6_bits, hi, lo)
    }
    /// [`crate::abi::map::HOMES6`].
    fn homes6(&self) -> Option<&Homes6>;
    /// [`crate::abi::map::POLICY`]: of a generation, 0 or 1, or [`crate::abi::POLICY_SHADOW`].
    fn policy(&self, index: u32) -> Option<&Policy>;
    /// [`crate::abi::map::INTERFACES`]; here `None` is no entry. What is read through it may be another interface's: see [`confirmed`].
    fn interface(&self, ifindex: u32) -> Option<&Interface>;
    /// [`crate::abi::map::FRAGMENTS`] at an index.
    fn fragments(&self, index: u32) -> Option<&FragmentBucket>;
    /// Whether fragments are remembered; otherwise they are looked up only.
    #[inline(always)]
    fn remembers(&self) -> bool {
        true
    }
    /// Stores a word and gives what was there, as one.
    fn exchange(&self, word: &Shared<u64>, to: u64) -> u64;
    /// 0, which the processor knows only once it has `word`: a load from a place that depends on it comes after the load of `word`.
    fn after(&self, word: u64) -> usize;
    /// The upper half of a word, below 2^32. The kernel's programs keep what they need of it in one register, and the word in none.
    #[inline(always)]
    fn upper(&self, word: u64) -> u64 {
        word >> 32
    }
    /// [`crate::abi::map::COLD`]; here `None` is no entry.
    fn cold(&self, key: &ColdKey) -> Option<Cold>;
    /// The coarse monotonic clock, nanoseconds.
    fn coarse_now(&self) -> u64;
    /// The boot clock as [`crate::clock::BootClock::about`] knows it, nanoseconds.
    fn about_boot_now(&self) -> u64;
    /// The boot clock, nanoseconds.
    fn boot_now(&self) -> u64;
}

/// The class bytes of source and destination.
#[inline(always)]
pub fn classes<T: Tables>(t: &T, control: &Control, h: &Headers) -> Option<(Class, Class)> {
    if h.version == 4 {
        // One look-up of the map for both: it is a good part of the work.
        let directory = t.directory4()?;
        let source = class4(t, directory, u32::from_be(h.source[0]))?;
        let destination = class4(t, directory, u32::from_be(h.destination[0]))?;
        return Some((source, destination));
    }
    let bits = read(&control.hash6_bits);
    let ([shi, slo], [dhi, dlo]) = (words(h.source), words(h.destination));
    // A class is a byte; what is above stands for `None`, so that the result is one register.
    let source = Class::try_from(class6(t, bits, shi, slo)).ok()?;
    let destination = Class::try_from(class6(t, bits, dhi, dlo)).ok()?;
    Some((source, destination))
}

/// The class of an IPv4 address, host byte order; `None`: a table cannot be read.
#[inline(always)]
pub(crate) fn class4<T: Tables>(t: &T, directory: &[u16; 65536], address: u32) -> Option<Class> {
    match read(&directory[(address >> 16) as usize & 0xffff]) {
        0 => Some(0),
        chunk => t.chunk4(chunk, address as u16),
    }
}

const UNREADABLE: u32 = 0x100;

/// A called function in the kernel: it keeps the IPv4 path small.
#[inline(never)]
fn class6<T: Tables>(t: &T, hash6_bits: u32, hi: u64, lo: u64) -> u32 {
    // What is far from every pool is looked for nowhere else.
    match is_far(t, hi) {
        None => UNREADABLE,
        Some(true) => 0,
        Some(false) => class6_near(t, hash6_bits, hi, lo),
    }
}

/// Whether an IPv6 address is far from every pool, as is most of what devices talk to; `None`: a table cannot be read.
#[inline(always)]
pub(crate) fn is_far<T: Tables>(t: &T, hi: u64) -> Option<bool> {
    let homes = t.homes6()?;
    Some((hi ^ read(&homes.common)) & read(&homes.common_mask) != 0)
}

/// The class of an IPv6 address that is not far from every pool; above 255: a table cannot be read.
#[inline(always)]
pub(crate) fn class6_near<T: Tables>(t: &T, hash6_bits: u32, hi: u64, lo: u64) -> u32 {
    match t.single6(hash6_bits, hi, lo) {
        Single6::Class(class) => class as u32,
        Single6::Unreadable => UNREADABLE,
        Single6::None => without_own(t, hash6_bits, hi, lo),
    }
}

/// The class of an IPv6 address that has none of its own: that of the session with its /64, or by its home pool. A called function in the
/// kernel.
#[inline(never)]
fn without_own<T: Tables>(t: &T, hash6_bits: u32, hi: u64, lo: u64) -> u32 {
    if t.control().is_some_and(|c| read(&c.flags) & FLAG_DELEGATED != 0) {
        let [hi, lo] = delegated(hi);
        match t.single6(hash6_bits, hi, lo) {
            Single6::Class(class) => return class as u32,
            Single6::Unreadable => return UNREADABLE,
            Single6::None => {}
        }
    }
    t.homes6().map_or(UNREADABLE, |homes| home_class(homes, hi, lo))
}

/// What is known of a single IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Single6 {
    /// It has a class of its own.
    Class(Class),
    /// It has none: its prefix decides.
    None,
    /// The table cannot be read.
    Unreadable,
}

#[inline(always)]
fn in_buckets<T: Tables + ?Sized>(t: &T, hash6_bits: u32, hi: u64, lo: u64) -> Single6 {
    // An empty slot has `hi == 0`, and what else it holds means nothing.
    if hi == 0 {
        return Single6::None;
    }
    let mixed = mix6([hi, lo]);
    let mask = (1_u32 << (hash6_bits & 31)) - 1;
    for index in [mixed as u32, (mixed >> 32) as u32] {
        let Some(bucket) = t.bucket6(index & mask) else {
            return Single6::Unreadable;
        };
        for slot in 0..BUCKET6_SLOTS {
            let key = [read(&bucket.keys[slot][0]), read(&bucket.keys[slot][1])];
            if key != [hi, lo] {
                continue;
            }
            // The writer stores class, `lo`, `hi`, each a release; so whoever loads the class after both halves of the key finds that of
            // the key, or of a later occupant. arm64 and others do not keep two loads in order, and nothing orders a load behind a branch: an
            // address that depends on what was loaded does, on every processor that Linux runs on.
            let class = read(&bucket.classes[(slot + t.after(key[0] ^ key[1])) % bucket.classes.len()]);
            // A later occupant, even of the same /64: its class was stored after the slot had been emptied, `hi` first, so that whoever loads
            // the key after the class finds another one, or none.
            if let Some(again) = bucket.keys.get(slot + t.after(class.into()))
                && [read(&again[0]), read(&again[1])] == [hi, lo]
            {
                return Single6::Class(class);
            }
        }
    }
    Single6::None
}

#[inline(always)]
fn home_class(homes: &Homes6, hi: u64, lo: u64) -> u32 {
    let count = read(&homes.count);
    for (i, home) in homes.homes.iter().enumerate() {
        if i as u64 >= count {
            break;
        }
        let Home6 { prefix, mask, class } = home;
        if (hi ^ read(&prefix[0])) & read(&mask[0]) == 0 && (lo ^ read(&prefix[1])) & read(&mask[1]) == 0 {
            return read(class) as u32 & 0xff;
        }
    }
    0
}

/// The destination group of an address under a policy; 0: named by no rule.
#[inline(always)]
pub fn group(policy: &Policy, version: u8, address: Address) -> u16 {
    match version {
        4 => group4(policy, u32::from_be(address[0])),
        _ => {
            let [hi, lo] = words(address);
            group6(policy, hi, lo) as u16
        }
    }
}

#[inline(always)]
fn group4(policy: &Policy, address: u32) -> u16 {
    // Groups are below, and what has `LEVEL_NEXT` is above: the sign of a half word would take two instructions more to find.
    const LAST: u16 = u8::MAX as u16;
    const { assert!(GROUPS <= LAST as usize + 1 && LEVEL_NEXT > LAST) };
    let mut g = read(&policy.level1[(address >> 16) as usize & 0xffff]);
    if g > LAST {
        g = read(&policy.level2[g as usize % LEVEL_TABLES][(address >> 8) as usize & 0xff]);
        if g > LAST {
            g = read(&policy.level3[g as usize % LEVEL_TABLES][address as usize & 0xff]);
        }
    }
    g
}

/// A global function in the kernel: the verifier follows it once, not once for each state in which it is called.
#[cfg_attr(target_arch = "bpf", unsafe(no_mangle))]
#[inline(never)]
extern "C" fn group6(policy: *const Policy, hi: u64, lo: u64) -> u64 {
    // SAFETY: the callers have a reference.
    let Some(policy) = (unsafe { policy.as_ref() }) else {
        return 0;
    };
    let count = read(&policy.dst6_count);
    for (i, dst) in policy.dst6.iter().enumerate() {
        if i as u64 >= count {
            break;
        }
        if (hi ^ read(&dst.prefix[0])) & read(&dst.mask[0]) == 0 && (lo ^ read(&dst.prefix[1])) & read(&dst.mask[1]) == 0 {
            return read(&dst.group);
        }
    }
    0
}

/// The port group; 0: named by no rule. `port` in host byte order, for TCP and UDP.
#[inline(always)]
#[must_use]
pub fn port_group(policy: &Policy, ip_protocol: u8, port: u16) -> u8 {
    match ip_protocol {
        protocol::TCP => read(&policy.tcp[port as usize]),
        protocol::UDP => read(&policy.udp[port as usize]),
        other => read(&policy.protocols[other as usize]),
    }
}

/// The number of the from-device rule that names the pair; 0: none.
#[inline(always)]
#[must_use]
pub fn from_device(policy: &Policy, pool: u8, group: u16, port_group: u8) -> u16 {
    rule_of(&policy.rules, pool, group, port_group)
}

/// The number of the to-device rule that names the pair; 0: none.
#[inline(always)]
#[must_use]
pub fn to_device(policy: &Policy, pool: u8, group: u16, port_group: u8) -> u16 {
    rule_of(&policy.to_device, pool, group, port_group)
}

#[inline(always)]
fn rule_of(matrix: &Matrix, pool: u8, group: u16, port_group: u8) -> u16 {
    read(&matrix[port_group as usize & 63][group as usize & 63][pool as usize & 63])
}

/// What two look-ups of an entry of a hash map, one after the other, agree on. `None`: there is none, or they never did.
///
/// An entry that the daemon replaces or removes is free for another key at once (since Linux 6.1, whose allocator of map memory waits for no
/// reader), so that a copy can be another key's, or half of it. The one that is looked up next is the key's own; so is, with it, the one that is the same. For both to
/// be wrong, and alike, the key would have to come back to where the other was just then, and give way to it again.
#[inline(always)]
pub fn settled<T: PartialEq>(look: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..LOOKS {
        let found = look()?;
        if look()? == found {
            return Some(found);
        }
    }
    None
}

/// How often an entry is looked up anew that is being replaced.
const LOOKS: u32 = 3;

/// Whether an entry of a hash map says yes twice, for the same reason.
#[inline(always)]
pub(crate) fn confirmed(ask: impl Fn() -> bool) -> bool {
    ask() && ask()
}

/// Reads a word that the daemon may be writing.
#[inline(always)]
pub fn read<T: Copy>(from: &T) -> T {
    // SAFETY: a reference is valid for reads.
    unsafe { core::ptr::read_volatile(from) }
}

/// The tables in the host's memory: for tests, and to explain a decision.
#[cfg(not(target_arch = "bpf"))]
#[derive(Clone, Copy)]
pub struct MemTables<'a> {
    /// [`crate::abi::map::CONTROL`].
    pub control: &'a Control,
    /// [`crate::abi::map::DIR4`].
    pub directory4: &'a [u16; 65536],
    /// [`crate::abi::map::CHUNKS4`].
    pub chunks4: &'a [[Class; 65536]],
    /// [`crate::abi::map::HASH6`].
    pub hash6: &'a [Bucket6],
    /// [`crate::abi::map::HOMES6`].
    pub homes6: &'a Homes6,
    /// [`crate::abi::map::POLICY`].
    pub policies: [&'a Policy; 3],
    /// [`crate::abi::map::INTERFACES`].
    pub interfaces: &'a [(u32, Interface)],
    /// [`crate::abi::map::FRAGMENTS`].
    pub fragments: &'a [FragmentBucket],
    /// [`crate::abi::map::COLD`].
    pub cold: &'a dyn Fn(&ColdKey) -> Option<Cold>,
    /// The coarse monotonic clock, nanoseconds.
    pub coarse_now: u64,
    /// The boot clock, nanoseconds.
    pub boot_now: u64,
    /// Likewise as [`crate::clock::BootClock`] tells it.
    pub about_boot_now: u64,
}

#[cfg(not(target_arch = "bpf"))]
impl Tables for MemTables<'_> {
    fn control(&self) -> Option<&Control> {
        Some(self.control)
    }
    fn directory4(&self) -> Option<&[u16; 65536]> {
        Some(self.directory4)
    }
    fn chunk4(&self, chunk: u16, lower: u16) -> Option<Class> {
        self.chunks4.get(chunk as usize).map(|c| c[lower as usize])
    }
    fn bucket6(&self, index: u32) -> Option<&Bucket6> {
        self.hash6.get(index as usize)
    }
    fn homes6(&self) -> Option<&Homes6> {
        Some(self.homes6)
    }
    fn policy(&self, index: u32) -> Option<&Policy> {
        self.policies.get(index as usize).copied()
    }
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        self.interfaces.iter().find(|(i, _)| *i == ifindex).map(|(_, found)| found)
    }
    fn fragments(&self, index: u32) -> Option<&FragmentBucket> {
        self.fragments.get(index as usize)
    }
    fn exchange(&self, word: &Shared<u64>, to: u64) -> u64 {
        // SAFETY: a valid and aligned word, whose other accesses are atomic too.
        unsafe { AtomicU64::from_ptr(word.at()) }.swap(to, Ordering::SeqCst)
    }
    fn after(&self, _: u64) -> usize {
        fence(Ordering::Acquire);
        0
    }
    fn cold(&self, key: &ColdKey) -> Option<Cold> {
        (self.cold)(key)
    }
    fn coarse_now(&self) -> u64 {
        self.coarse_now
    }
    fn about_boot_now(&self) -> u64 {
        self.about_boot_now
    }
    fn boot_now(&self) -> u64 {
        self.boot_now
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;

    use super::*;

    /// Look-ups that find these, one after the other, and then the last for ever; and how many there have been.
    fn finding<'a>(all: &'a [Option<u32>], times: &'a Cell<usize>) -> impl Fn() -> Option<u32> + 'a {
        || {
            let n = times.replace(times.get() + 1);
            all[n.min(all.len() - 1)]
        }
    }

    /// An entry that is replaced while it is read: 1 is its own, 9 what another key has where it was.
    #[test]
    fn what_is_found_twice_is_the_keys_own() {
        for (all, found, looks) in [
            (&[Some(1)][..], Some(1), 2),
            (&[Some(9), Some(1)], Some(1), 4),
            (&[Some(1), Some(9), Some(1)], Some(1), 4),
            (&[Some(1), Some(2)], Some(2), 4),
            (&[None], None, 1),
            (&[Some(9), None], None, 2),
            (&[Some(1), Some(9), Some(2), Some(9), Some(3), Some(9)], None, 6),
        ] {
            let times = Cell::new(0);
            assert_eq!((settled(finding(all, &times)), times.get()), (found, looks), "{all:?}");
        }
        for (says, confirms) in [([true, true], true), ([true, false], false), ([false, true], false)] {
            let times = Cell::new(0);
            let ask = || says[times.replace(times.get() + 1)];
            assert_eq!(confirmed(ask), confirms, "{says:?}");
        }
    }
}
