//! The obvious program, to compare with: a hash for the device, a longest-prefix trie for the destination, a hash for the rule. It leaves
//! out what the shipping program does beside: the destination's class, leases, interfaces, fragments, ICMP, options, events.

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    },
    macros::map,
    maps::{HashMap, LpmTrie, lpm_trie::Key},
    programs::XdpContext,
};

use crate::programs::count;

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
