//! What a verdict is compared with. The obvious program: a hash for the device, a longest-prefix trie for the destination, a hash for the rule;
//! it leaves out what the shipping program does beside (the destination's class, leases, interfaces, fragments, ICMP, options, events). And
//! the shipping decision over IPv6 with a BPF hash in place of the bucket hash; it leaves out counting, events and the mark.

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    },
    helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::{Array, HashMap, LpmTrie, lpm_trie::Key},
    programs::XdpContext,
};
use gateway_ebpf::{
    abi::{Bucket6, Class, Cold, ColdKey, Control, FragmentBucket, Homes6, Interface, POLICIES, Policy, Shared, hook},
    decide::{Direction, Place, Role, decide},
    headers::Headers,
    parse::{Parsed, parse_fast},
    tables::{Single6, Tables},
};

use crate::{access::Direct, programs::count};

/// Source address, host order, to class. Written by the benchmark, which raises its size.
#[map]
static K_CLASS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);
/// Destination prefix, network order, to group. Written by the benchmark.
#[map]
static K_GROUP: LpmTrie<[u8; 4], u32> = LpmTrie::with_max_entries(4096, BPF_F_NO_PREALLOC);
/// `class << 48 | group << 24 | protocol << 16 | port` to anything. Written by the benchmark.
#[map]
static K_RULE: HashMap<u64, u32> = HashMap::with_max_entries(65536, 0);

#[inline(always)]
pub(crate) fn kernel_maps(ctx: &XdpContext) -> u32 {
    let start = ctx.data();
    if start + 42 > ctx.data_end() {
        return XDP_ABORTED;
    }
    let p = start as *const u8;
    // SAFETY: the comparison proves 42 bytes from `start`.
    let (kind, header, fragment, protocol, source, destination, port) = unsafe {
        (
            *p.add(12).cast::<u16>(),
            *p.add(14),
            *p.add(20).cast::<u16>(),
            *p.add(23),
            u32::from_be(*p.add(26).cast::<u32>()),
            u32::from_be(*p.add(30).cast::<u32>()),
            u16::from_be(*p.add(36).cast::<u16>()),
        )
    };
    if kind != 0x0800_u16.to_be() || header != 0x45 || fragment & 0x3fff_u16.to_be() != 0 {
        return XDP_ABORTED;
    }
    // SAFETY: nobody writes the maps during a run.
    let class = unsafe { K_CLASS.get(source) }.copied().unwrap_or(0);
    let group = K_GROUP.get(Key::new(32, destination.to_be_bytes())).copied().unwrap_or(0);
    let key = u64::from(class) << 48 | u64::from(group) << 24 | u64::from(protocol) << 16 | u64::from(port);
    // SAFETY: likewise.
    if unsafe { K_RULE.get(key) }.is_some() {
        count(2);
        XDP_PASS
    } else {
        count(3);
        XDP_DROP
    }
}

/// Class by the two words of an IPv6 address. Written by the benchmark, which raises its size.
#[map]
static H_CLASS: HashMap<[u64; 2], u64> = HashMap::with_max_entries(1, 0);
/// The shipping program's own: the benchmark loads this object with the maps that are pinned under these names.
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);
#[map]
static HOMES6: Array<Homes6> = Array::with_max_entries(1, MMAPABLE);
#[map]
static POLICY: Array<[Policy; POLICIES as usize]> = Array::with_max_entries(1, MMAPABLE);
const MMAPABLE: u32 = 1 << 10;

/// The shipping decision, asked through [`Hashed`].
#[inline(always)]
pub(crate) fn hash6(ctx: &XdpContext) -> u32 {
    let mut h = Headers::default();
    if parse_fast::<_, true>(&Direct::xdp(ctx.ctx), &mut h) != Parsed::Done || h.version != 6 {
        return XDP_ABORTED;
    }
    let place = Place {
        role: Role::Device,
        direction: Direction::Ingress,
        ethernet: true,
        // SAFETY: the kernel gives a valid context.
        ifindex: unsafe { (*ctx.ctx).ingress_ifindex },
        hook: hook::XDP_DEVICE,
    };
    if decide(&Hashed, place, &h).reason.passes() {
        count(2);
        XDP_PASS
    } else {
        count(3);
        XDP_DROP
    }
}

/// The tables, with a BPF hash for IPv6 addresses and none for IPv4.
struct Hashed;

impl Tables for Hashed {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        CONTROL.get(0)
    }
    #[inline(always)]
    fn directory4(&self) -> Option<&[u16; 65536]> {
        None
    }
    #[inline(always)]
    fn chunk4(&self, _: u16, _: u16) -> Option<Class> {
        None
    }
    #[inline(always)]
    fn bucket6(&self, _: u32) -> Option<&Bucket6> {
        None
    }
    #[inline(always)]
    fn single6(&self, _: u32, hi: u64, lo: u64) -> Single6 {
        // SAFETY: nobody writes the map during a run.
        match unsafe { H_CLASS.get([hi, lo]) } {
            Some(class) => Single6::Class(*class as Class),
            None => Single6::None,
        }
    }
    #[inline(always)]
    fn homes6(&self) -> Option<&Homes6> {
        HOMES6.get(0)
    }
    #[inline(always)]
    fn policy(&self, index: u32) -> Option<&Policy> {
        POLICY.get(0)?.get(index as usize)
    }
    #[inline(always)]
    fn interface(&self, _: u32) -> Option<&Interface> {
        None
    }
    #[inline(always)]
    fn fragments(&self, _: u32) -> Option<&FragmentBucket> {
        None
    }
    #[inline(always)]
    fn exchange(&self, _: &Shared<u64>, to: u64) -> u64 {
        to
    }
    #[inline(always)]
    fn after(&self, _: u64) -> usize {
        0
    }
    #[inline(always)]
    fn cold(&self, _: &ColdKey) -> Option<Cold> {
        None
    }
    #[inline(always)]
    fn coarse_now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
    #[inline(always)]
    fn about_boot_now(&self) -> u64 {
        self.boot_now()
    }
    #[inline(always)]
    fn boot_now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}
