//! What XDP and the companion of its interface tell each other by metadata in front of the frame, and the VLAN tag that each of them sees. What is
//! told, and what follows from it, is decided in `hooks`.

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    helpers::generated::bpf_xdp_adjust_meta,
};
use gateway_ebpf::{
    abi::{NO_METADATA, meta_magic, meta_vlan},
    packet::Packet as _,
    parse::is_tag,
    tables::{Tables as _, read},
    wire::{Ethernet, Vlan},
};

use crate::{
    access::Direct,
    maps::{KERNEL, own, probing},
};

#[inline(always)]
pub(crate) fn is_tagged(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*skb).vlan_present != 0 }
}

/// The VLAN tag in the buffer's own field, as metadata tells it: the kernel has put there what was the frame's first.
#[inline(always)]
pub(crate) fn vlan(skb: *mut __sk_buff) -> u32 {
    if !is_tagged(skb) {
        return 0;
    }
    // SAFETY: the kernel gives a valid context.
    meta_vlan(unsafe { (*skb).vlan_tci } as u16)
}

/// Whether the frame has one more tag, behind the one in the buffer's own field, or nobody can say so here. The kernel puts a frame's first tag there
/// if the card has put none: so XDP may have seen all of them, or all but that one.
#[inline(always)]
pub(crate) fn has_more_tags(skb: *mut __sk_buff) -> bool {
    is_tagged(skb) && {
        let behind = Direct::skb(skb).load::<Ethernet>(0);
        behind.is_none_or(|e| is_tag(u16::from_be(e.ethertype)))
    }
}

/// Two words in front of the frame: ours, for this interface, and what was decided.
type Meta = [u32; 2];

/// The VLAN tag of a frame as metadata tells it, if the kernel will take it for one (IEEE 802.1Q and 802.1ad).
#[inline(always)]
pub(crate) fn tag(ctx: *mut xdp_md) -> u32 {
    let frame = Direct::xdp(ctx);
    match frame.load::<Ethernet>(0).map(|e| u16::from_be(e.ethertype)) {
        Some(0x8100 | 0x88a8) => frame
            .load::<Vlan>(size_of::<Ethernet>())
            .map_or(0, |t| meta_vlan(u16::from_be(t.tci))),
        _ => 0,
    }
}

/// Leaves a word for the companion; `false`: there is no room, or the driver has none for metadata at all.
#[inline(always)]
pub(crate) fn leave_word(ctx: *mut xdp_md, word: u32) -> bool {
    // SAFETY: the context is the one that the kernel gave.
    if unsafe { bpf_xdp_adjust_meta(ctx, -(size_of::<Meta>() as i32)) } != 0 {
        // SAFETY: likewise.
        no_metadata(unsafe { (*ctx).ingress_ifindex });
        return false;
    }
    // SAFETY: likewise.
    let (meta, data, ifindex) = unsafe { ((*ctx).data_meta as usize, (*ctx).data as usize, (*ctx).ingress_ifindex) };
    let Some(key) = key().filter(|_| meta + size_of::<Meta>() <= data) else {
        return false;
    };
    // SAFETY: the comparison proves the room; the kernel aligns metadata to 4 bytes.
    unsafe { *(meta as *mut Meta) = [meta_magic(key, ifindex), word] };
    true
}

/// Counts that there was no room for a word.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn no_metadata(ifindex: u32) -> u64 {
    let Some(own) = own().filter(|_| !probing()) else { return 0 };
    // SAFETY: this CPU's, which no other program interrupts.
    unsafe {
        let word = &raw mut (*own).no_metadata[ifindex as usize % NO_METADATA];
        let frames = if *word >> 32 == u64::from(ifindex) { *word as u32 } else { 0 };
        *word = u64::from(ifindex) << 32 | u64::from(frames.saturating_add(1));
    }
    0
}

/// What [`leave_word`] wrote on this interface: exactly two words, directly in front of the frame.
#[inline(always)]
pub(crate) fn metadata(skb: *mut __sk_buff, ifindex: u32) -> Option<u32> {
    // SAFETY: the kernel gives a valid context.
    let (meta, data) = unsafe { ((*skb).data_meta as usize, (*skb).data as usize) };
    if meta + size_of::<Meta>() > data || meta + size_of::<Meta>() + 1 <= data {
        return None;
    }
    // SAFETY: the first comparison proves the words; the kernel aligns metadata to 4 bytes.
    let [magic, word] = unsafe { *(meta as *const Meta) };
    (magic == meta_magic(key()?, ifindex)).then_some(word)
}

#[inline(always)]
fn key() -> Option<u32> {
    KERNEL.control().map(|c| read(&c.meta_key))
}
