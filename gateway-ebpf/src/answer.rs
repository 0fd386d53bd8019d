//! Answers to denied packets: a TCP reset, or ICMP's "administratively prohibited". Whether a denial is answered at all, the verdict says; how
//! often, and what an answer looks like, is decided here.
//!
//! An answer is made at TC, out of the denied packet, from the address that was asked for, and sent back through the interface that it came
//! by. XDP only asks its companion for it, in metadata. On its way out it meets our own egress judge, which knows it by its mark and by this
//! CPU's note of having just made it: redirecting runs the egress programs before it returns, so there is one at a time.

use core::ptr::null_mut;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_INVALIDATE_HASH, BPF_F_RECOMPUTE_CSUM, TC_ACT_SHOT, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC},
    helpers::generated::{
        bpf_csum_diff, bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop, bpf_skb_vlan_push,
    },
};
use gateway_ebpf::{
    abi::{ANSWERS_A_SECOND, answer_mark},
    fragment::Share,
    headers::{protocol, words},
    packet::Packet as _,
    wire::{Ethernet, Icmp, Ipv4, Ipv6, Tcp},
};

use crate::{
    access::SkbBytes,
    maps::{ANSWER, ANSWERED, ANSWERING, ANSWERS, kept_rare},
    note::is_tagged,
};

/// Sources share this many counts of answers, by hash ([`Share::slot`]). So no number of sources makes room for more answers to one, all together
/// get at most ten times as many in a second, and nobody takes those of others by sources that he invents in his /64.
pub(crate) const SLOTS: u32 = 4096;
/// log2 of the nanoseconds in which a source gets [`ANSWERS_A_SECOND`]: a little more than a second.
const SECOND_BITS: u32 = 30;

/// Bytes of the denied packet that an ICMP error quotes, from its IP header on: more than the header and 8 bytes that RFC 792 wants, and what
/// RFC 4443 allows with room to spare.
const QUOTE: usize = 128;

/// An answer in the making: two bytes of nothing, an Ethernet header, an IP header, and the rest, so that all but the first is aligned.
pub(crate) type Answer = [u32; WORDS];
const WORDS: usize = 4 + 10 + 2 + QUOTE / 4;
/// Where the Ethernet header begins, in bytes.
const FRAME: usize = 2;
/// Where the IP header begins, in words.
const IP: usize = 4;
const IP4: usize = 5;
const IP6: usize = 10;

/// The buffer is made this much longer at its end, and then as much is cut out behind its Ethernet header. That takes the place with it where a sender
/// on this machine wanted the network card to write a checksum; otherwise the card would write it into the answer.
const CUT: u32 = 256;

/// Hop limit of an answer.
const HOPS: u32 = 64;
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Whether the source of the packet whose headers were kept last may have another answer. Counts it if not.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn may_answer(pool: u32) -> u64 {
    let Some((h, rare)) = kept_rare() else { return 0 };
    // Only what the policies deny is answered, so the ends are this packet's.
    let slot = Share::of_source(&rare.ends).slot(words(h.source), SLOTS);
    let Some(slot) = ANSWERED.get_ptr_mut(slot) else { return 0 };
    // SAFETY: a helper without arguments.
    let second = unsafe { bpf_ktime_get_coarse_ns() } >> SECOND_BITS;
    // SAFETY: an aligned word of the map. All CPUs write it, each whole; two that answer one source in the same instant may count one for two.
    unsafe {
        let seen = slot.read_volatile();
        let had = if seen >> 8 == second { seen & 0xff } else { 0 };
        if had < ANSWERS_A_SECOND {
            slot.write_volatile(second << 8 | (had + 1));
            return 1;
        }
    }
    if let Some(answers) = ANSWERS.get_ptr_mut(pool) {
        // SAFETY: the map's value of this CPU, which no other program interrupts.
        unsafe { (*answers).limited += 1 };
    }
    0
}

/// Turns a denied packet into its answer and sends it; what cannot be answered is dropped. Gives the program's action.
#[inline(always)]
pub(crate) fn send<const ETHERNET: bool>(skb: *mut __sk_buff, ifindex: u32, pool: u32) -> i32 {
    let outer = if ETHERNET { take_outer(skb) } else { 0 };
    let length = if ETHERNET {
        frame(skb)
    } else {
        let version = SkbBytes(skb).load::<u32>(0).map_or(0, |w| u32::from_be(w) >> 28);
        packet::<0>(skb, version as u8)
    };
    if length == 0 || !replace::<ETHERNET>(skb, length) || !put_outer(skb, outer) {
        return TC_ACT_SHOT;
    }
    // SAFETY: a helper without arguments.
    let mark = answer_mark(unsafe { bpf_get_prandom_u32() });
    let (Some(note), Some(answers)) = (ANSWERING.get_ptr_mut(0), ANSWERS.get_ptr_mut(pool)) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the maps' values of this CPU, which no other program interrupts, and a mark that may be written.
    unsafe {
        *note = note_of(mark, ifindex);
        (*answers).sent += 1;
        (*skb).mark = mark;
        bpf_redirect(ifindex, 0) as i32
    }
}

/// At egress: whether a packet with this mark is the answer that this CPU has just made for this interface.
#[inline(always)]
pub(crate) fn is_ours(mark: u32, ifindex: u32) -> bool {
    let Some(note) = ANSWERING.get_ptr_mut(0) else { return false };
    // SAFETY: the map's value of this CPU, which no other program interrupts.
    unsafe {
        let ours = *note == note_of(mark, ifindex);
        *note = 0;
        ours
    }
}

#[inline(always)]
const fn note_of(mark: u32, ifindex: u32) -> u64 {
    (mark as u64) << 32 | ifindex as u64
}

/// Of two VLAN tags, of which the kernel has put the outer one beside the frame, takes that away: the inner one takes its place. Gives it, to
/// be put back: protocol in network order, then control information. 0: there are not two. Room is made and cut only in a frame without a tag.
#[inline(always)]
fn take_outer(skb: *mut __sk_buff) -> u32 {
    let Some(ethernet) = SkbBytes(skb).load::<Ethernet>(0) else {
        return 0;
    };
    if !is_tagged(skb) || !matches!(u16::from_be(ethernet.ethertype), 0x8100 | 0x88a8) {
        return 0;
    }
    // SAFETY: the context is the one that the kernel gave. If it fails, the tag in the frame stays there, and there is no answer.
    unsafe {
        let outer = (*skb).vlan_proto << 16 | (*skb).vlan_tci & 0xffff;
        if bpf_skb_vlan_pop(skb) == 0 { outer } else { 0 }
    }
}

/// Puts it back, in front of the inner one, which goes into the frame again.
#[inline(always)]
fn put_outer(skb: *mut __sk_buff, outer: u32) -> bool {
    // SAFETY: the context is the one that the kernel gave.
    outer == 0 || unsafe { bpf_skb_vlan_push(skb, (outer >> 16) as u16, outer as u16) } == 0
}

/// Bytes of the answer from the IP header on; 0: there is none, since another tag is still in the frame, for one.
#[inline(always)]
fn frame(skb: *mut __sk_buff) -> usize {
    const PACKET_HOST: u32 = 0;
    let (Some(ethernet), Some(answer)) = (SkbBytes(skb).load::<Ethernet>(0), ANSWER.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: the kernel gives a valid context.
    let to_us = unsafe { (*skb).pkt_type } == PACKET_HOST;
    if !to_us || ethernet.source[0].to_ne_bytes()[0] & 1 != 0 {
        return 0;
    }
    let back = Ethernet {
        destination: ethernet.source,
        source: ethernet.destination,
        ethertype: ethernet.ethertype,
    };
    // SAFETY: this CPU's own; an Ethernet header fits between `FRAME` and `IP`, at an address divisible by two.
    unsafe { answer.cast::<u8>().add(FRAME).cast::<Ethernet>().write(back) };
    const LINK: usize = size_of::<Ethernet>();
    match u16::from_be(ethernet.ethertype) {
        0x0800 => packet::<LINK>(skb, 4),
        0x86dd => packet::<LINK>(skb, 6),
        _ => 0,
    }
}

/// Likewise, the IP header being at `AT`.
#[inline(always)]
fn packet<const AT: usize>(skb: *mut __sk_buff, version: u8) -> usize {
    match version {
        4 => ipv4(skb, AT),
        6 => ipv6(skb, AT),
        _ => 0,
    }
}

#[inline(always)]
fn ipv4(skb: *mut __sk_buff, at: usize) -> usize {
    let p = SkbBytes(skb);
    let (Some(ip), Some(answer)) = (p.load::<Ipv4>(at), ANSWER.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's own.
    let answer = unsafe { &mut *answer };
    let total = u32::from(u16::from_be(ip.total_length));
    let header = u32::from(ip.version_ihl & 15) * 4;
    answer[IP + 1] = 0x4000_u32.to_be();
    answer[IP + 3] = ip.destination;
    answer[IP + 4] = ip.source;
    const TRANSPORT: usize = IP + IP4;
    let (number, length) = if ip.protocol == protocol::TCP {
        let Some(tcp) = p.load::<Tcp>(at + header as usize) else {
            return 0;
        };
        if !reset::<TRANSPORT>(answer, &tcp, total.wrapping_sub(header)) {
            return 0;
        }
        seal::<TRANSPORT, 16, { 8 + 20 }>(answer, TRANSPORT - 2, pseudo(20, protocol::TCP));
        (protocol::TCP, 40)
    } else {
        let quoted = quote::<{ TRANSPORT + 2 }>(skb, at, total, answer);
        if quoted == 0 {
            return 0;
        }
        answer[TRANSPORT] = 0x030d_0000_u32.to_be();
        answer[TRANSPORT + 1] = 0;
        seal::<TRANSPORT, 2, { 8 + QUOTE }>(answer, TRANSPORT, 0);
        (protocol::ICMP, 28 + quoted)
    };
    answer[IP] = (0x4500_0000 | length as u32).to_be();
    answer[IP + 2] = (HOPS << 24 | u32::from(number) << 16).to_be();
    seal::<IP, 10, 20>(answer, IP, 0);
    length
}

#[inline(always)]
fn ipv6(skb: *mut __sk_buff, at: usize) -> usize {
    let p = SkbBytes(skb);
    let (Some(ip), Some(answer)) = (p.load::<Ipv6>(at), ANSWER.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's own.
    let answer = unsafe { &mut *answer };
    let payload = u32::from(u16::from_be(ip.payload_length));
    answer[IP] = 0x6000_0000_u32.to_be();
    let mut i = 0;
    while i < 4 {
        answer[IP + 2 + i] = ip.destination[i];
        answer[IP + 6 + i] = ip.source[i];
        i += 1;
    }
    const TRANSPORT: usize = IP + IP6;
    let (next, offset) = behind_extensions(skb, ip.next_header, at + size_of::<Ipv6>());
    let (number, length) = if next == protocol::TCP {
        let Some(tcp) = p.load::<Tcp>(offset) else { return 0 };
        let before = (offset - at - size_of::<Ipv6>()) as u32;
        if !reset::<TRANSPORT>(answer, &tcp, payload.wrapping_sub(before)) {
            return 0;
        }
        seal::<TRANSPORT, 16, { 32 + 20 }>(answer, TRANSPORT - 8, pseudo(20, protocol::TCP));
        (protocol::TCP, 20)
    } else {
        let quoted = quote::<{ TRANSPORT + 2 }>(skb, at, 40 + payload, answer);
        if quoted == 0 {
            return 0;
        }
        answer[TRANSPORT] = 0x0101_0000_u32.to_be();
        answer[TRANSPORT + 1] = 0;
        seal::<TRANSPORT, 2, { 32 + 8 + QUOTE }>(answer, TRANSPORT - 8, pseudo(8 + quoted, protocol::ICMPV6));
        (protocol::ICMPV6, 8 + quoted)
    };
    answer[IP + 1] = ((length as u32) << 16 | u32::from(number) << 8 | HOPS).to_be();
    40 + length
}

/// The protocol behind the extension headers, and where it begins. They have been judged: what is not one of these is the protocol.
#[inline(always)]
fn behind_extensions(skb: *mut __sk_buff, first: u8, at: usize) -> (u8, usize) {
    const MOST: usize = 6;
    let (mut next, mut at) = (first, at);
    for _ in 0..MOST {
        let words = match next {
            0 | 43 | 44 | 60 => SkbBytes(skb).load::<Icmp>(at),
            _ => break,
        };
        let Some(header) = words else { break };
        at += if next == 44 { 8 } else { (header.code as usize + 1) * 8 };
        next = header.kind;
    }
    (next, at)
}

/// The reset of RFC 9293, 3.10.7.1, without its checksum; `false`: a reset is not answered. `length`: bytes of the segment.
#[inline(always)]
fn reset<const AT: usize>(answer: &mut Answer, tcp: &Tcp, length: u32) -> bool {
    let header = u32::from(tcp.offset >> 4) * 4;
    if tcp.flags & RST != 0 || length < header {
        return false;
    }
    let (sequence, acknowledgement, flags) = if tcp.flags & ACK != 0 {
        (tcp.acknowledgement, 0, RST)
    } else {
        let taken = length - header + u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
        (0, u32::from_be(tcp.sequence).wrapping_add(taken).to_be(), RST | ACK)
    };
    answer[AT] = (u32::from(u16::from_be(tcp.destination)) << 16 | u32::from(u16::from_be(tcp.source))).to_be();
    answer[AT + 1] = sequence;
    answer[AT + 2] = acknowledgement;
    answer[AT + 3] = (5 << 28 | u32::from(flags) << 16).to_be();
    answer[AT + 4] = 0;
    true
}

/// Copies the beginning of the denied packet to word `TO`, zeros behind it, and gives its length. `total`: that of the packet.
#[inline(always)]
fn quote<const TO: usize>(skb: *mut __sk_buff, at: usize, total: u32, answer: &mut Answer) -> usize {
    for i in 0..QUOTE / 4 {
        // Volatile: a memset would go byte by byte.
        // SAFETY: in the array, which the assertion on `WORDS` shows.
        unsafe { (&raw mut answer[TO + i]).write_volatile(0) };
    }
    let n = if total > QUOTE as u32 { QUOTE as u32 } else { total };
    if n == 0 {
        return 0;
    }
    // SAFETY: there are `QUOTE` bytes from `TO` on, and `n` are no more.
    match unsafe { bpf_skb_load_bytes(skb.cast(), at as u32, (&raw mut answer[TO]).cast(), n) } {
        0 => n as usize,
        _ => 0,
    }
}
const _: () = assert!(WORDS >= IP + IP6 + 2 + QUOTE / 4);

/// The parts of a pseudo-header that are not the addresses, as a sum of words in memory order.
#[inline(always)]
const fn pseudo(length: usize, number: u8) -> u32 {
    (length as u16).to_be() as u32 + (number as u16).to_be() as u32
}

/// Writes the checksum of `BYTES` from word `from` on, and of `seed`, to `OFFSET` bytes behind word `AT`, where there are zeros.
#[inline(always)]
fn seal<const AT: usize, const OFFSET: usize, const BYTES: usize>(answer: &mut Answer, from: usize, seed: u32) {
    // SAFETY: BYTES from there are in the array: see `WORDS`.
    let sum = unsafe { bpf_csum_diff(null_mut(), 0, &raw mut answer[from], BYTES as u32, seed) } as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: in the array, at an address divisible by two.
    unsafe { (&raw mut answer[AT]).cast::<u16>().add(OFFSET / 2).write(!sum as u16) };
}

/// Puts the answer in the place of the packet. `length`: from the IP header on.
#[inline(always)]
fn replace<const ETHERNET: bool>(skb: *mut __sk_buff, length: usize) -> bool {
    let Some(answer) = ANSWER.get_ptr_mut(0) else { return false };
    let link = if ETHERNET { size_of::<Ethernet>() } else { 0 };
    let n = (link + length) as u32;
    if n == 0 || n > (WORDS * 4 - FRAME) as u32 {
        return false;
    }
    let from = if ETHERNET { FRAME } else { IP * 4 };
    let flags = u64::from(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH);
    // SAFETY: the context is the one that the kernel gave, and the answer has `n` bytes from there on.
    unsafe {
        bpf_skb_change_tail(skb, n + CUT, 0) == 0
            && bpf_skb_adjust_room(skb, -(CUT as i32), BPF_ADJ_ROOM_MAC, 0) == 0
            && bpf_skb_store_bytes(skb.cast(), 0, answer.cast::<u8>().add(from).cast(), n, flags) == 0
    }
}
