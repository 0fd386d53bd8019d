//! What the kernel programs and the daemon share: map names, keys and values. Fixed layouts, no padding, no enum, bool or Option.
//!
//! Whatever changes here changes [`VERSION`]; pinned maps of another version are not adopted.

/// Version of everything in this module. It is part of the pin directory's name and stands in [`Control::abi`].
pub const VERSION: u32 = 1;

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
    /// Two [`super::Policy`] generations, of which [`super::Control::generation`] names the one in force. Array, mmap-able.
    pub const POLICY: &str = "POLICY";
    /// `[Count; REASONS]` for each pool number (0: no pool). Per-CPU array: exact.
    pub const COUNTERS: &str = "COUNTERS";
    /// One `[u64; 2]`: events suppressed by the rate limit, events lost to a full ring. Per-CPU array.
    pub const EVENTS_LOST: &str = "EVENTS_LOST";
    /// [`super::Denial`] records. Ring buffer; full: the record is lost and counted.
    pub const DENIALS: &str = "DENIALS";
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

/// A class byte: which pool's policy judges an address now.
///
/// Bits 0-5: pool number, 1 to [`MAX_POOLS`]; 0: the address is in no pool. Bit 6: reserved, 0. Bit 7: [`CLASS_LEASED`].
pub type Class = u8;
/// Highest pool number.
pub const MAX_POOLS: u8 = 63;
/// The pool number in a class byte.
pub const CLASS_POOL: Class = 0x3f;
/// The class holds until a lease ends: once [`Control::earliest_lease_end`] has passed, [`Cold`] decides.
pub const CLASS_LEASED: Class = 0x80;

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

/// The metadata that XDP leaves in front of a frame for the TC program of the same interface is two words: [`meta_magic`], and the mark,
/// 0 for "passed, not granted".
pub const META_MAGIC: u32 = 0x4c5a_5254;

/// First word of the metadata. It names the interface: what a frame still carries from another one means nothing.
#[inline(always)]
#[must_use]
pub const fn meta_magic(ifindex: u32) -> u32 {
    META_MAGIC.wrapping_add(ifindex)
}

/// [`Control::flags`]: judge and count everything, drop nothing.
pub const FLAG_OBSERVE: u32 = 1;

/// The hot words.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// [`VERSION`].
    pub abi: u32,
    /// [`FLAG_OBSERVE`].
    pub flags: u32,
    /// Index into [`map::POLICY`] of the generation in force: 0 or 1.
    pub generation: u32,
    /// log2 of the number of buckets in [`map::HASH6`].
    pub hash6_bits: u32,
    /// When the first of all leases ends, in nanoseconds of the coarse monotonic clock; `u64::MAX`: none. Past it, [`Cold`] is read for
    /// classes with [`CLASS_LEASED`]. The daemon moves it on when it has ended the leases that are over.
    pub earliest_lease_end: u64,
    /// Digest of the configuration that the tables were built from.
    pub config_digest: u64,
}
const _: () = assert!(size_of::<Control>() == 32);

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

/// Most IPv6 prefixes over all pools.
pub const MAX_HOMES6: usize = 64;

/// One IPv6 prefix of a pool. The first match counts; prefixes of pools do not overlap, reserved addresses (class 0) come first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Home6 {
    /// Prefix, as loaded from memory.
    pub prefix: [u64; 2],
    /// Mask, as loaded from memory.
    pub mask: [u64; 2],
    /// Class of an address that is not in [`map::HASH6`].
    pub class: u64,
}
const _: () = assert!(size_of::<Home6>() == 40);

/// The IPv6 prefixes of the pools.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Homes6 {
    /// How many of `homes` count.
    pub count: u64,
    /// In order of search.
    pub homes: [Home6; MAX_HOMES6],
}
const _: () = assert!(size_of::<Homes6>() == 8 + 64 * 40);

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

/// Key of [`map::COLD`]: IPv6 in network order; IPv4 as `::ffff:a.b.c.d`.
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

/// A policy generation: recursive flow classification. Destination to group, (protocol, port) to port group, and a matrix of
/// (pool, group, port group) to rule number; 0 is "no rule".
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
    /// Rule number by pool, group, port group.
    pub rules: [[[u16; PORT_GROUPS]; GROUPS]; 64],
}
const _: () = assert!(size_of::<Policy>() == 512 + 3 * 131_072 + 2 * 65_536 + 256 + 8 + 64 * 40 + 524_288);

/// Reasons that [`map::COUNTERS`] has room for.
pub const REASONS: usize = 128;

/// One counter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on; for a frame without one, of the frame.
    pub bytes: u64,
}

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
