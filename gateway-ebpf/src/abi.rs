//! What the kernel programs and the daemon share: map names, keys and values. Fixed layouts, no padding, no enum, bool or Option.
//!
//! Whatever changes here changes [`VERSION`]; pinned maps of another version are not adopted.

mod fragments;
mod homes;
mod plain;

pub use self::{fragments::*, homes::*, plain::*};

/// Version of everything in this module. It is part of the pin directory's name and stands in [`Control::abi`].
pub const VERSION: u32 = 6;

/// Names of the maps in the BPF object, as `bpftool map` shows them.
pub mod map {
    /// One [`super::Control`]. Array, mmap-able. Written by the daemon, read by every program for each packet.
    pub const CONTROL: &str = "CONTROL";
    /// One `[u16; 65536]`: the upper half of an IPv4 address to a chunk number; 0 is the chunk that is all zeros. Array, mmap-able.
    pub const DIR4: &str = "DIR4";
    /// `[u8; 65536]` for each /16 in use: the lower half of an IPv4 address to a class byte. Array, mmap-able; sized by the daemon to
    /// the /16s that its pools touch, plus the zero chunk.
    pub const CHUNKS4: &str = "CHUNKS4";
    /// [`super::Bucket6`]s: a two-choice hash of single IPv6 addresses. Array, mmap-able; a power of two, sized by the daemon.
    pub const HASH6: &str = "HASH6";
    /// One [`super::Homes6`]: the IPv6 prefixes of the pools. Array, mmap-able.
    pub const HOMES6: &str = "HOMES6";
    /// `[u8; 16]` (IPv6, or v4-mapped, network order) to [`super::Cold`]. Hash without preallocation: an entry for each address of a
    /// live session. Full: the daemon refuses to open the session.
    pub const COLD: &str = "COLD";
    /// One `[Policy; POLICIES]`: two [`super::Policy`] generations, of which [`super::Control::generation`] names the one in force, and
    /// behind them the shadow policy ([`super::POLICY_SHADOW`]). Array, mmap-able.
    pub const POLICY: &str = "POLICY";
    /// Interface index to [`super::Interface`]. Hash. An interface without entry has no VLANs and, while [`super::FLAG_INTERFACE_POOLS`] is
    /// set, no pools.
    pub const INTERFACES: &str = "INTERFACES";
    /// [`super::FragmentBucket`]s: the datagrams in fragments whose first one passed. Array, a power of two, sized by the daemon; written by the
    /// programs only. Full: the first fragment of one more is dropped; what is there stays.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// One `[CpuCounts; CPUS]`, by CPU number: [`super::CpuCounts`]. Array, mmap-able; sized by who loads the object to the CPUs that there can be
    /// ([`super::CPUS`]). Exact, and read without a system call.
    pub const COUNTERS: &str = "COUNTERS";
    /// One `[u64; MAX_RULES]`: by rule number, a digest of the rule that has it, 0: free. Array; the daemon's own, so that a rule
    /// keeps its number, and its counter, over changes of the policy.
    pub const RULE_IDS: &str = "RULE_IDS";
    /// [`super::ShadowCount`] by pool number. Per-CPU array: exact.
    pub const SHADOW: &str = "SHADOW";
    /// One `[u64; 3]`: events suppressed by the rate limit, lost to a full ring, and not told because the same was told within the last
    /// second. Per-CPU array.
    pub const EVENTS_LOST: &str = "EVENTS_LOST";
    /// [`super::Denial`] records. Ring buffer; full: the record is lost and counted.
    pub const DENIALS: &str = "DENIALS";
    /// [`super::Captured`] records, while [`super::FLAG_CAPTURE`] is set. Ring buffer; full: the record is lost and counted.
    pub const CAPTURES: &str = "CAPTURES";
    /// One `[u64; 2]`: captures suppressed by the rate limit, and lost to a full ring. Per-CPU array.
    pub const CAPTURES_LOST: &str = "CAPTURES_LOST";
    /// [`super::Answers`] by pool number. Per-CPU array: exact.
    pub const ANSWERS: &str = "ANSWERS";
    /// One [`super::Trace`]: what the probing twin of a program found. Array; each load of the object has its own.
    pub const TRACE: &str = "TRACE";

    /// Maps whose one element the programs address directly, without a look-up: whoever loads the object turns each reference to one of
    /// them into a reference to its element.
    pub const DIRECT: [&str; 5] = [CONTROL, DIR4, HOMES6, POLICY, COUNTERS];
}

/// Names of the programs in the BPF object.
pub mod program {
    /// XDP on an Ethernet interface of role `device`.
    pub const XDP_DEVICE: &str = "xdp_device";
    /// XDP on an Ethernet interface of role `core`.
    pub const XDP_CORE: &str = "xdp_core";
    /// TC ingress, Ethernet, role `device`: turns XDP's metadata into the mark, judges in full what has none.
    pub const TC_DEVICE_ETH: &str = "tc_device_eth";
    /// TC ingress, Ethernet, role `core`: likewise.
    pub const TC_CORE_ETH: &str = "tc_core_eth";
    /// TC ingress, no link-layer header (tun), role `device`.
    pub const TC_DEVICE_IP: &str = "tc_device_ip";
    /// TC ingress, no link-layer header, role `core`.
    pub const TC_CORE_IP: &str = "tc_core_ip";
    /// TC egress of an Ethernet device interface: judges what is sent to devices.
    pub const TC_EGRESS_ETH: &str = "tc_egress_eth";
    /// TC egress of a device interface without link-layer header.
    pub const TC_EGRESS_IP: &str = "tc_egress_ip";
    /// TC egress of a device interface, last in the chain: drops what no judge of ours has marked. The floor's part for packets that
    /// the host itself sends, which netfilter's output hook sees before any program.
    pub const TC_GUARD: &str = "tc_guard";
}

/// A class byte: what an address is judged by, as the number of a [`ClassEntry`] in [`Control::classes`].
///
/// 0: the address is in no pool. 1 to [`MAX_POOLS`]: at rest, without a live session, in the home pool of this number. Above: bound to a
/// live session; the daemon gives these numbers out.
pub type Class = u8;
/// Highest pool number.
pub const MAX_POOLS: u8 = 63;
/// Numbers of classes.
pub const CLASSES: usize = 256;

/// What a class means, in one word, so that one store changes it. Bits 0-31: index of the only interface on which the address may be; 0: any. Bits
/// 32-39: number of the pool whose policy judges it; 0: none, it is in no pool. Bits 40-47: flags, [`ENTRY_LEASED`] and [`ENTRY_DELEGATED`].
pub type ClassEntry = u64;
/// The class holds until a lease ends: once [`Control::earliest_lease_end`] has passed, [`Cold`] decides.
pub const ENTRY_LEASED: ClassEntry = 1 << 40;

/// The class is that of a whole IPv6 /64 which one session has: the key of its address in [`map::COLD`] is [`delegated`].
pub const ENTRY_DELEGATED: ClassEntry = 1 << 41;

/// Makes an entry; `ifindex` 0: any interface.
#[must_use]
pub const fn class_entry(pool: u8, leased: bool, ifindex: u32) -> ClassEntry {
    ifindex as u64 | (pool as u64) << 32 | if leased { ENTRY_LEASED } else { 0 }
}
/// The pool's number, 0 to [`MAX_POOLS`].
#[inline(always)]
#[must_use]
pub const fn entry_pool(e: ClassEntry) -> u8 {
    (e >> 32) as u8 & 0x3f
}
/// The only interface, or 0.
#[inline(always)]
#[must_use]
pub const fn entry_ifindex(e: ClassEntry) -> u32 {
    e as u32
}

/// Firewall mark (`skb->mark`) on what the programs grant. Upper half: ours; lower half: left as it was.
///
/// `0x1a00_0000 | FROM_DEVICE? | pool << 16`.
pub const MARK_GRANT: u32 = 0x1a00_0000;
/// Tells a granted packet; the floor tests `mark & MARK_GRANT_MASK == MARK_GRANT`.
pub const MARK_GRANT_MASK: u32 = 0xff00_0000;
/// Set on what comes from a device: selects the pool's route table. Packets to a device take the host's own routes.
pub const MARK_FROM_DEVICE: u32 = 0x0080_0000;
/// The bits of the mark that the programs write.
pub const MARK_OURS: u32 = 0xffff_0000;

/// The mark of a granted packet; `pool` is that of the device end (of the source, if both ends are devices).
#[must_use]
pub const fn mark(pool: u8, from_device: bool) -> u32 {
    MARK_GRANT | if from_device { MARK_FROM_DEVICE } else { 0 } | (pool as u32 & 0x3f) << 16
}

/// Mark of an answer to a denied packet, on its way from the ingress program to the egress program of the same interface, and nowhere else.
/// Lower half: [`answer_mark`]. Ingress takes it off whatever else carries it; egress believes it only of the answer that this CPU has just made.
pub const MARK_ANSWER: u32 = 0x1b00_0000;
/// Upper half of the mark, in observe mode, of what is denied and passes all the same, on its way from the ingress program that has counted it. It is
/// [`MARK_ANSWER`] without a pool, grants nothing, and says only that the egress program need not count the packet again.
pub const MARK_OBSERVED: u32 = MARK_ANSWER;
/// What [`MARK_GRANT`] and [`MARK_ANSWER`] have in common: no packet comes past ingress with a mark of this form that we have not given it.
pub const MARK_RESERVED: u32 = 0x1a00_0000;
/// Tells [`MARK_RESERVED`].
pub const MARK_RESERVED_MASK: u32 = 0xfe00_0000;

/// The mark of an answer; `nonce`: any number.
#[inline(always)]
#[must_use]
pub const fn answer_mark(nonce: u32) -> u32 {
    MARK_ANSWER | nonce & !MARK_GRANT_MASK
}

/// The metadata that XDP leaves in front of a frame for the TC program of the same interface is two words: [`meta_magic`], and what it decided:
/// the mark, 0 for "passed, not granted", or [`MARK_ANSWER`] with the pool as in a mark for "denied, to be answered" ([`asks_answer`]). The lower half, which is
/// no part of a mark of ours, and [`META_TAGGED`] tell the VLAN tag that XDP saw ([`meta_vlan`]).
///
/// First word of the metadata; `key`: [`Control::meta_key`], so that no other program can know it. It names the interface: what a frame still
/// carries from another one means nothing.
#[inline(always)]
#[must_use]
pub const fn meta_magic(key: u32, ifindex: u32) -> u32 {
    key.wrapping_add(ifindex)
}

/// In the second word of the metadata: the frame had a VLAN tag, whose TCI is the lower half.
pub const META_TAGGED: u32 = 0x0040_0000;
/// Whether the second word of the metadata asks for an answer. Every denial that is answered has a pool.
#[inline(always)]
#[must_use]
pub const fn asks_answer(word: u32) -> bool {
    word & MARK_GRANT_MASK == MARK_ANSWER && word & (MAX_POOLS as u32) << 16 != 0
}
/// The bits of the second word of the metadata that tell the tag.
pub const META_VLAN: u32 = META_TAGGED | 0xffff;

/// A VLAN tag as metadata tells it; `tci` in host byte order. Without a tag it is 0.
#[inline(always)]
#[must_use]
pub const fn meta_vlan(tci: u16) -> u32 {
    META_TAGGED | tci as u32
}

/// [`Control::flags`]: judge and count everything, drop nothing.
pub const FLAG_OBSERVE: u32 = 1;
/// [`Control::flags`]: some interface has pools of its own: [`map::INTERFACES`] says which.
pub const FLAG_INTERFACE_POOLS: u32 = 2;
/// [`Control::flags`]: the shadow policy is scored.
pub const FLAG_SHADOW: u32 = 4;
/// [`Control::flags`]: someone captures denied packets.
pub const FLAG_CAPTURE: u32 = 8;

/// [`Control::flags`]: some session has a whole IPv6 /64: [`map::HASH6`] may hold an address under [`delegated`]. Set before there is one.
pub const FLAG_DELEGATED: u32 = 16;

/// Place of the shadow policy in [`map::POLICY`].
pub const POLICY_SHADOW: u32 = 2;
/// Policies in [`map::POLICY`].
pub const POLICIES: u32 = 3;

/// The hot words.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// [`VERSION`].
    pub abi: u32,
    /// [`FLAG_OBSERVE`].
    pub flags: u32,
    /// Place in [`map::POLICY`] of the generation in force: 0 or 1.
    pub generation: u32,
    /// log2 of the number of buckets in [`map::HASH6`].
    pub hash6_bits: u32,
    /// When the first of all leases ends, in nanoseconds of the boot clock; `u64::MAX`: none. Past it, [`Cold`] is read for
    /// classes with [`ENTRY_LEASED`]. The daemon moves it on when it has ended the leases that are over.
    pub earliest_lease_end: u64,
    /// Digest of the configuration that the tables were built from.
    pub config_digest: u64,
    /// log2 of the number of buckets in [`map::FRAGMENTS`].
    pub fragment_bits: u32,
    /// Random, another one at each start of the daemon: see [`meta_magic`]. A frame that is on its way from XDP to its companion when it changes is
    /// judged by both.
    pub meta_key: u32,
    /// What the class bytes mean. An entry is written before a byte names it.
    pub classes: [ClassEntry; CLASSES],
}
const _: () = assert!(size_of::<Control>() == 40 + 8 * CLASSES);

/// What [`map::INTERFACES`] says of one interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Bit n: addresses at rest whose home pool is n may be here. Read with [`FLAG_INTERFACE_POOLS`].
    pub pools: u64,
    /// VLANs that are judged: outer id in bits 0-11, inner id in bits 16-27, 0: none; what is behind the last is 0.
    pub vlans: [u32; MAX_VLANS],
}
const _: () = assert!(size_of::<Interface>() == 72);
/// Most VLANs of an interface.
pub const MAX_VLANS: usize = 16;
/// Most interfaces in [`map::INTERFACES`].
pub const MAX_INTERFACES: usize = 1024;

/// Slots in a [`Bucket6`].
pub const BUCKET6_SLOTS: usize = 3;

/// Three IPv6 addresses and their classes, one cache line.
///
/// Single writer. An address is two words in network byte order as loaded from memory (`hi`: bytes 0-7). `hi == 0` is an empty slot, so
/// no pool may hold `::/64`. Insert: class, `lo`, then `hi`. Remove: `hi` first. A reader loads `hi`, `lo`, class, in this order, and then
/// `hi` and `lo` once more: if they are others now, the class was another address's.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket6 {
    /// `[hi, lo]` of each slot.
    pub keys: [[u64; 2]; BUCKET6_SLOTS],
    /// Class byte of each slot.
    pub classes: [u8; 8],
    /// Unused, 0.
    pub spare: u64,
}
const _: () = assert!(size_of::<Bucket6>() == 64);

/// The lower half of an address under which the whole /64 stands in [`map::HASH6`] and [`map::COLD`], as loaded from memory: the first of the
/// interface identifiers that no host may have (RFC 2526, `fdff:ffff:ffff:ff80`). No session has that address by itself.
pub const DELEGATED: u64 = u64::from_ne_bytes([0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x80]);

/// The key of the /64 of an address, as words.
#[inline(always)]
#[must_use]
pub const fn delegated(hi: u64) -> [u64; 2] {
    [hi, DELEGATED]
}

/// What the program needs of an address only rarely, and what a person wants to know of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cold {
    /// When the lease ends, in nanoseconds of the boot clock (suspend counts); `u64::MAX`: never.
    pub lease_end: u64,
    /// The session that holds the address.
    pub session: u64,
    /// Class to judge by once the lease has ended.
    pub fallback: u64,
}
const _: () = assert!(size_of::<Cold>() == 24);

/// Key of [`map::COLD`]: IPv6 in network order, of a whole /64 its [`delegated`] address; IPv4 as `::ffff:a.b.c.d`.
pub type ColdKey = [u8; 16];

/// Most destination groups of a policy generation; group 0 is "named by no rule".
pub const GROUPS: usize = 64;
/// Most port groups; port group 0 is "named by no rule".
pub const PORT_GROUPS: usize = 64;
/// Most second-level tables of each of [`Policy`]'s two lower levels.
pub const LEVEL_TABLES: usize = 256;
/// Most IPv6 destination prefixes of a policy generation.
pub const MAX_DST6: usize = 64;
/// In [`Policy`]'s levels: the entry is the number of a table of the next level, not a group.
pub const LEVEL_NEXT: u16 = 0x8000;

/// [`PoolPolicy::flags`]: everything is allowed, both ways.
pub const POOL_ALL: u32 = 1;
/// [`PoolPolicy::flags`]: nothing is allowed, with a reason of its own.
pub const POOL_BLOCKED: u32 = 2;
/// [`PoolPolicy::flags`]: what is denied to a device is answered.
pub const POOL_REJECT: u32 = 4;
/// [`PoolPolicy::flags`]: there are to-device rules.
pub const POOL_TO_DEVICE: u32 = 8;

/// What holds for a whole pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolPolicy {
    /// [`POOL_ALL`], [`POOL_BLOCKED`]; 0: rules.
    pub flags: u32,
    /// Unused, 0.
    pub spare: u32,
}

/// One IPv6 destination prefix; longest first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dst6 {
    /// Prefix, as loaded from memory.
    pub prefix: [u64; 2],
    /// Mask, as loaded from memory.
    pub mask: [u64; 2],
    /// Destination group.
    pub group: u64,
}
const _: () = assert!(size_of::<Dst6>() == 40);

/// Rule number by port group, group and pool. Few port groups are in use, and pools are next to each other: what is read is dense, and in cache.
pub type Matrix = [[[u16; POOLS]; GROUPS]; PORT_GROUPS];
/// Pool numbers, 0 for none included.
pub const POOLS: usize = MAX_POOLS as usize + 1;

/// A policy generation: recursive flow classification. Destination to group, (protocol, port) to port group, and a matrix of
/// (port group, group, pool) to rule number; 0 is "no rule".
#[repr(C)]
pub struct Policy {
    /// By pool number.
    pub pools: [PoolPolicy; 64],
    /// By upper half of an IPv4 address: group, or [`LEVEL_NEXT`] and a table of `level2`.
    pub level1: [u16; 65536],
    /// By third byte: group, or [`LEVEL_NEXT`] and a table of `level3`.
    pub level2: [[u16; 256]; LEVEL_TABLES],
    /// By fourth byte: group.
    pub level3: [[u16; 256]; LEVEL_TABLES],
    /// Port group by port (host order), TCP.
    pub tcp: [u8; 65536],
    /// Port group by port (host order), UDP.
    pub udp: [u8; 65536],
    /// Port group of every other protocol, by IP protocol number.
    pub protocols: [u8; 256],
    /// How many of `dst6` count.
    pub dst6_count: u64,
    /// In order of search.
    pub dst6: [Dst6; MAX_DST6],
    /// From-device rules: rule number by port group of the peer's port, group of the peer, pool.
    pub rules: Matrix,
    /// To-device rules: rule number by port group of the device's port, group of the peer, pool.
    pub to_device: Matrix,
}
const _: () = assert!(size_of::<Policy>() == 512 + 3 * 131_072 + 2 * 65_536 + 256 + 8 + 64 * 40 + 2 * 524_288);

/// Highest rule number + 1. Numbers are unique over all policies, the shadow's included.
pub const MAX_RULES: usize = 4096;

/// Reasons that [`CpuCounts`] has room for. An odd number of cache lines: a power of two would put the counters that many pools have in
/// common into the same few sets of a cache.
pub const REASONS: usize = 132;
const _: () = assert!(REASONS * size_of::<Count>() / 64 % 2 == 1);

/// One counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on; for a frame without one, of the frame.
    pub bytes: u64,
}

/// Places in [`CpuCounts::no_metadata`].
pub const NO_METADATA: usize = 256;

/// What one CPU has counted, and what it keeps beside. Only programs on that CPU write it, but for the counters of rules that nothing names.
#[repr(C)]
pub struct CpuCounts {
    /// By pool number, 0 for none, and reason.
    pub pools: [[Count; REASONS]; POOLS],
    /// What rules passed, by rule number; 0 is what no rule passed, without the reason `all`, which `pools` has.
    pub rules: [Count; MAX_RULES],
    /// That of it which the shadow policy would have dropped.
    pub shadow_drops: [Count; MAX_RULES],
    /// The programs' own: [`crate::clock::BootClock`].
    pub clock: crate::clock::BootClock,
    /// Frames that XDP has left to its companion, since there was no room to tell it anything: by interface index, modulo as many as there are, the index in
    /// the upper half of the word, frames in the lower. Of two interfaces with the same place, the one that was last.
    pub no_metadata: [u64; NO_METADATA],
    /// Unused, 0: the next CPU's begin in a page of their own.
    pub spare: [u64; 510 - NO_METADATA],
}
const _: () = assert!(size_of::<CpuCounts>() == 66 * 4096);

/// What one rule passed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// Everything.
    pub passed: Count,
    /// That of it which the shadow policy would have dropped.
    pub shadow_drops: Count,
}

/// Where the shadow policy differs from the policy in force, by pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowCount {
    /// Passed, and would have been dropped.
    pub would_drop: Count,
    /// Dropped, and would have passed.
    pub would_pass: Count,
}

/// Answers to denied packets, by pool.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Sent.
    pub sent: u64,
    /// Not sent, because the source has had [`ANSWERS_A_SECOND`].
    pub limited: u64,
}

/// Most answers to one source in a second. Sources whose addresses have the same hash share them; so do those of one IPv6 /64 which are not a session's
/// by themselves.
pub const ANSWERS_A_SECOND: u64 = 10;

/// Name of the read-only variable that makes a load of the object the probing twin, if it is not 0: the same verdicts from the same maps,
/// but it counts nothing, tells nothing, answers nothing, captures nothing and remembers nothing, and writes [`Trace`] to [`map::TRACE`].
pub const PROBE: &str = "PROBE";

/// Name of the read-only variable that says how many [`CpuCounts`] there are: one more than the highest number of a CPU. A packet on another is
/// judged, and not counted.
pub const CPUS: &str = "CPUS";

/// Where a packet was judged, in [`Denial::hook`].
pub mod hook {
    /// XDP ingress, device interface.
    pub const XDP_DEVICE: u8 = 1;
    /// XDP ingress, core interface.
    pub const XDP_CORE: u8 = 2;
    /// TC ingress, device interface.
    pub const TC_DEVICE: u8 = 3;
    /// TC ingress, core interface.
    pub const TC_CORE: u8 = 4;
    /// TC egress, device interface.
    pub const TC_EGRESS: u8 = 5;
}

/// A denied packet, as the ring buffer carries it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Denial {
    /// Boot clock, nanoseconds.
    pub at: u64,
    /// Interface.
    pub ifindex: u32,
    /// Length in bytes, as counted.
    pub len: u32,
    /// IPv6, or v4-mapped IPv4, network order; zeros if there was none to read.
    pub src: [u8; 16],
    /// Likewise.
    pub dst: [u8; 16],
    /// Host order; 0 if the protocol has none.
    pub sport: u16,
    /// Host order; 0 if the protocol has none.
    pub dport: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`crate::reason::Reason`] as a number.
    pub reason: u8,
    /// Pool whose policy decided; 0: none.
    pub pool: u8,
    /// [`hook`].
    pub hook: u8,
    /// IP version; 0 if there was none to read.
    pub version: u8,
    /// ICMP type, 0 for other protocols.
    pub icmp_type: u8,
    /// 1: in observe mode, so the packet passed.
    pub observed: u8,
    /// Unused, 0.
    pub spare: [u8; 5],
}
const _: () = assert!(size_of::<Denial>() == 64);

/// Bytes of a denied packet that a capture keeps.
pub const SNAP: usize = 256;

/// A denied packet with its first bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// Why, and where.
    pub denial: Denial,
    /// Bytes of the packet as the hook saw it.
    pub length: u32,
    /// Bytes in `bytes`, at most [`SNAP`].
    pub captured: u32,
    /// 1: `bytes` begins with an Ethernet header; 0: with the IP header.
    pub ethernet: u32,
    /// The VLAN tag that the driver took off: its ethertype in the upper half, TCI in the lower; 0: none.
    pub vlan: u32,
    /// From the hook's offset 0 on; zeros behind `captured`.
    pub bytes: [u8; SNAP],
}
const _: () = assert!(size_of::<Captured>() == 80 + SNAP);

/// What the probing twin of a program found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// How many packets the twin has judged: tells a fresh trace.
    pub judged: u64,
    /// Class entries of source and destination.
    pub entries: [ClassEntry; 2],
    /// The verdict's mark, 0 without grant.
    pub mark: u32,
    /// Generation of the policy.
    pub generation: u32,
    /// Rule that decided, or 0.
    pub rule: u16,
    /// Class bytes of source and destination.
    pub classes: [u8; 2],
    /// [`crate::reason::Reason`] as a number.
    pub reason: u8,
    /// Pool that decided, or 0.
    pub pool: u8,
    /// [`hook`].
    pub hook: u8,
    /// 1: the denial would be answered.
    pub answer: u8,
    /// Shadow policy: 0 not scored, 1 would pass, 2 would drop.
    pub shadow: u8,
    /// 1: observe mode, so it passed.
    pub observed: u8,
    /// Unused, 0.
    pub spare: [u8; 6],
}
const _: () = assert!(size_of::<Trace>() == 48);

/// Mixes the two words of an IPv6 address; the lower half of the result chooses its first bucket, the upper half its second.
#[inline(always)]
#[must_use]
pub const fn mix6(key: [u64; 2]) -> u64 {
    let mut h = key[0] ^ key[1].rotate_left(32);
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 32;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 29)
}
