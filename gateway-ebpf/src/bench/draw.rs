//! Draws packets: source, destination and port from a full-period generator, written into a frame that the benchmark made. Nothing here
//! judges.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::{helpers::generated::bpf_xdp_adjust_meta, programs::XdpContext};

/// What is drawn. The benchmark writes it before a run, through the map of the section `.bss`; directly addressed by the programs, without
/// a look-up.
#[repr(C)]
struct Draw {
    /// State of the generator: of the linear congruential kind, so that the upper bits are the random ones.
    state: u32,
    /// First source address, host order.
    source: u32,
    /// How far the state is shifted down, and what is kept of it: added to `source`.
    shift: u32,
    mask: u32,
    /// First destination, host order.
    destination: u32,
    /// What is kept of a second number: added to the third byte of `destination`.
    destination_mask: u32,
    /// First destination port.
    port: u32,
    /// What is kept of the second number: added to `port`.
    port_mask: u32,
    /// Interface to send from.
    ifindex: u32,
}

#[unsafe(no_mangle)]
static mut DRAW: Draw = Draw {
    state: 0,
    source: 0,
    shift: 0,
    mask: 0,
    destination: 0,
    destination_mask: 0,
    port: 0,
    port_mask: 0,
    ifindex: 0,
};

macro_rules! word {
    ($field:ident) => {
        // SAFETY: a static of this program; aligned. Volatile, since the benchmark writes it.
        unsafe { read_volatile(&raw const DRAW.$field) }
    };
}

/// Which address family to draw.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Ethernet + IPv4 + UDP, as the benchmark builds it, padded.
const FRAME4: usize = 60;
/// Ethernet + IPv6 + UDP.
const FRAME6: usize = 62;
/// Metadata that a test run's passes have left, bytes: taken away when there is this much. The kernel allows 252.
const METADATA: usize = 200;

struct Numbers {
    source: u32,
    destination: u32,
    port: u16,
}

#[inline(always)]
fn numbers(add: u32) -> Numbers {
    let x = word!(state)
        .wrapping_add(add)
        .wrapping_mul(1_664_525)
        .wrapping_add(1_013_904_223);
    // SAFETY: a static of this program; one run at a time.
    unsafe { write_volatile(&raw mut DRAW.state, x) };
    let y = x.wrapping_mul(0x9e37_79b1) >> 16;
    Numbers {
        source: word!(source).wrapping_add((x >> (word!(shift) & 31)) & word!(mask)),
        destination: word!(destination).wrapping_add((y & word!(destination_mask)) << 8),
        port: (word!(port) as u16).wrapping_add(((y >> 8) & word!(port_mask)) as u16),
    }
}

/// Draws source, destination and port into the frame of a test run: nothing else, three stores of the size in which they are read. A test run reuses frame and context: each pass of a program that leaves
/// metadata leaves more of it, which is taken away once in 25 passes.
#[inline(always)]
pub(crate) fn packet<const DEPENDENT: bool>(ctx: &XdpContext, family: Family) -> Option<()> {
    let mut add = 0;
    if DEPENDENT {
        let (mark, data) = (ctx.metadata(), ctx.data());
        if mark + 8 <= data {
            // SAFETY: the comparison proves the words. The mark has its upper bit clear: nothing is added, but the CPU must wait for it.
            add = unsafe { read_volatile((mark as *const u32).add(1)) } >> 31;
        }
    }
    let left = ctx.data() - ctx.metadata();
    if left >= METADATA {
        // SAFETY: a helper call on this program's context.
        unsafe { bpf_xdp_adjust_meta(ctx.ctx, left as i32) };
    }
    let start = ctx.data();
    let length = if family == Family::V4 { FRAME4 } else { FRAME6 };
    if start + length > ctx.data_end() {
        return None;
    }
    let n = numbers(add);
    let p = start as *mut u8;
    // SAFETY: the comparison proves `length` bytes from `start`.
    unsafe {
        match family {
            Family::V4 => {
                write_volatile(p.add(26).cast::<u32>(), n.source.to_be());
                write_volatile(p.add(30).cast::<u32>(), n.destination.to_be());
                write_volatile(p.add(36).cast::<u16>(), n.port.to_be());
            }
            Family::V6 => {
                // The interface identifier: a bijection of the number, spread over all 64 bits.
                let id = u64::from(n.source).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                write_volatile(p.add(30).cast::<u32>(), id as u32);
                write_volatile(p.add(34).cast::<u32>(), (id >> 32) as u32);
                // 2001:db8:200:xx::7.
                write_volatile(p.add(44).cast::<u16>(), (((n.destination >> 8) & 0xff) as u16).to_be());
                write_volatile(p.add(56).cast::<u16>(), n.port.to_be());
            }
        }
    }
    Some(())
}

/// Draws an IPv4 frame to be sent, with a right header checksum, and returns the interface to send from. A recycled frame of a live run
/// carries what the gateway wrote: addresses and hop count are set again.
#[inline(always)]
pub(crate) fn frame(ctx: &XdpContext) -> Option<u32> {
    let start = ctx.data();
    if start + FRAME4 > ctx.data_end() {
        return None;
    }
    let n = numbers(0);
    let p = start as *mut u8;
    // 4500 + 002e + 0000 + 0000 + 4011 = 853f: the words of the header that do not change.
    let mut sum = 0x853f + (n.source >> 16) + (n.source & 0xffff) + (n.destination >> 16) + (n.destination & 0xffff);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    // SAFETY: FRAME4 bytes from `start` are inside the packet.
    unsafe {
        *p.cast::<u32>() = u32::from_ne_bytes([2, 0, 0, 0]);
        *p.add(4).cast::<u32>() = u32::from_ne_bytes([0, 2, 2, 0]);
        *p.add(8).cast::<u32>() = u32::from_ne_bytes([0, 0, 0, 1]);
        *p.add(22) = 64;
        *p.add(26).cast::<u32>() = n.source.to_be();
        *p.add(30).cast::<u32>() = n.destination.to_be();
        *p.add(36).cast::<u16>() = n.port.to_be();
        *p.add(24).cast::<u16>() = (!(sum as u16)).to_be();
    }
    Some(word!(ifindex))
}
