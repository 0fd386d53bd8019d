//! Denied packets with their first bytes, while someone captures. Nothing here decides.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
};
use gateway_ebpf::abi::{Captured, SNAP};

use crate::{
    maps::{CAPTURES, CAPTURES_LOST, kept},
    rate,
    report::Denied,
};

/// Captures the frame whose headers were kept last. `what`: [`Denied`].
#[inline(always)]
pub(crate) fn xdp(ctx: *mut xdp_md, what: u32, ifindex: u32) -> u64 {
    // SAFETY: the context is the one that the kernel gave.
    let length = unsafe { bpf_xdp_get_buff_len(ctx) } as u32;
    record(what, ifindex, length, [1, 0], |to, n| {
        // SAFETY: `to` has room for `n` bytes.
        unsafe { bpf_xdp_load_bytes(ctx, 0, to.cast(), n) == 0 }
    })
}

/// Captures the packet whose headers were kept last. `what`: [`Denied`].
#[inline(always)]
pub(crate) fn skb<const ETHERNET: bool>(skb: *mut __sk_buff, what: u32, ifindex: u32) -> u64 {
    // SAFETY: the context is the one that the kernel gave.
    let (length, tagged, kind, tci) = unsafe { ((*skb).len, (*skb).vlan_present, (*skb).vlan_proto, (*skb).vlan_tci) };
    let vlan = if tagged != 0 {
        u32::from(u16::from_be(kind as u16)) << 16 | tci & 0xffff
    } else {
        0
    };
    record(what, ifindex, length, [ETHERNET.into(), vlan], |to, n| {
        // SAFETY: `to` has room for `n` bytes.
        unsafe { bpf_skb_load_bytes(skb.cast(), 0, to.cast(), n) == 0 }
    })
}

#[inline(always)]
fn record(what: u32, ifindex: u32, length: u32, [ethernet, vlan]: [u32; 2], load: impl FnOnce(*mut u8, u32) -> bool) -> u64 {
    if rate::exhausted(rate::CAPTURES) {
        lost(0);
        return 0;
    }
    let Some(h) = kept() else { return 0 };
    let Some(mut entry) = CAPTURES.reserve::<Captured>(0) else {
        lost(1);
        return 0;
    };
    rate::spend(rate::CAPTURES);
    let to = entry.as_mut_ptr();
    // SAFETY: the ring's record, which is ours until it is submitted; every field is written before that.
    unsafe {
        (&raw mut (*to).denial).write(Denied::from_word(what).record(h, ifindex));
        (&raw mut (*to).length).write(length);
        (&raw mut (*to).ethernet).write(ethernet);
        (&raw mut (*to).vlan).write(vlan);
        let bytes = (&raw mut (*to).bytes).cast::<u8>();
        // Word by word: a memset would go byte by byte.
        for i in 0..SNAP / 8 {
            bytes.cast::<u64>().add(i).write_volatile(0);
        }
        let n = if length > SNAP as u32 { SNAP as u32 } else { length };
        // An empty packet has nothing to load, and the verifier wants to see that it is not tried.
        let captured = if n > 0 && load(bytes, n) { n } else { 0 };
        (&raw mut (*to).captured).write(captured);
    }
    entry.submit(0);
    0
}

#[inline(always)]
fn lost(i: usize) {
    if let Some(lost) = CAPTURES_LOST.get_ptr_mut(0) {
        // SAFETY: the map's value of this CPU, which no other program interrupts.
        unsafe { (*lost)[i] += 1 };
    }
}
