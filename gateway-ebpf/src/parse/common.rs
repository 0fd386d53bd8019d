//! The shortest way to the headers of what is most of the traffic: IPv4 without options and not in fragments, IPv6 without extension headers, TCP or
//! UDP, plain. Whatever is otherwise is left to the fast form and the full one, so nothing is refused here.

use super::{ETHERNET_HEADER, FRAGMENT, fits};
use crate::{
    headers::{Address, Headers, protocol},
    packet::Packet,
    wire::{Ipv4, Ipv6, Tcp, Udp},
};

/// What the full form says of a common packet over IPv4; `None`: ask another form. `ETHERNET`: an Ethernet header comes first, otherwise the IP header.
#[inline(always)]
pub fn parse_common<P: Packet + ?Sized, const ETHERNET: bool>(p: &P) -> Option<Headers> {
    const HEADER: usize = size_of::<Ipv4>();
    let at = if ETHERNET { ETHERNET_HEADER } else { 0 };
    // The last of what every common packet has: behind it, the compiler and the verifier know the rest to be there.
    p.load::<u32>(at + HEADER + size_of::<Udp>() - size_of::<u32>())?;
    if ETHERNET && p.load::<u16>(at - 2)? != 0x0800_u16.to_be() {
        return None;
    }
    // Version, header length, service, total length, identification, flags and offset, in the order of the wire in memory.
    let first = p.load::<u64>(at)?;
    if first & u64::from_ne_bytes(KIND) != u64::from_ne_bytes(COMMON) {
        return None;
    }
    let total = u16::from_be(p.load(at + 2)?) as usize;
    if !fits::<ETHERNET, false>(at + total, p.size()) {
        return None;
    }
    let [source, destination] = [p.load(at + 12)?, p.load(at + 16)?];
    let transport = at + HEADER;
    let mut h = Headers {
        version: 4,
        source: [source, 0, 0, 0],
        destination: [destination, 0, 0, 0],
        hop_limit: p.load(at + 8)?,
        protocol: p.load(at + 9)?,
        length: total as u32,
        ..Headers::default()
    };
    plain_transport::<P, HEADER>(p, transport, total, &mut h)?;
    Some(h)
}

/// The same over IPv6.
#[inline(always)]
pub fn parse_common6<P: Packet + ?Sized, const ETHERNET: bool>(p: &P) -> Option<Headers> {
    const HEADER: usize = size_of::<Ipv6>();
    let at = if ETHERNET { ETHERNET_HEADER } else { 0 };
    // As above.
    p.load::<u32>(at + HEADER + size_of::<Udp>() - size_of::<u32>())?;
    if !is_six::<P, ETHERNET>(p) || p.load::<u32>(at)? & SIX_MASK != SIX {
        return None;
    }
    let total = HEADER + u16::from_be(p.load(at + 4)?) as usize;
    if !fits::<ETHERNET, false>(at + total, p.size()) {
        return None;
    }
    let mut h = Headers {
        version: 6,
        source: load_address(p, at + 8)?,
        destination: load_address(p, at + 24)?,
        hop_limit: p.load(at + 7)?,
        protocol: p.load(at + 6)?,
        length: total as u32,
        ..Headers::default()
    };
    plain_transport::<P, HEADER>(p, at + HEADER, total, &mut h)?;
    Some(h)
}

/// Whether a packet says first that it is IPv6.
#[inline(always)]
pub fn is_six<P: Packet + ?Sized, const ETHERNET: bool>(p: &P) -> bool {
    if ETHERNET {
        p.load::<u16>(ETHERNET_HEADER - 2) == Some(0x86dd_u16.to_be())
    } else {
        // A word, not a byte: see the full form.
        p.load::<u32>(0).is_some_and(|first| first & SIX_MASK == SIX)
    }
}

/// The version, in the first word of an IPv6 header.
const SIX_MASK: u32 = u32::from_ne_bytes([0xf0, 0, 0, 0]);
const SIX: u32 = u32::from_ne_bytes([0x60, 0, 0, 0]);

#[inline(always)]
fn load_address<P: Packet + ?Sized>(p: &P, at: usize) -> Option<Address> {
    let [a, b] = halves(p.load(at)?);
    let [c, d] = halves(p.load(at + 8)?);
    Some([a, b, c, d])
}

/// Two words in the order in which they lie in memory.
#[inline(always)]
const fn halves(both: u64) -> [u32; 2] {
    if cfg!(target_endian = "little") {
        [both as u32, (both >> 32) as u32]
    } else {
        [(both >> 32) as u32, both as u32]
    }
}

/// Ports and flags of TCP or UDP, behind an IP header of `HEADER` bytes, in a packet of `total` bytes from that on.
#[inline(always)]
fn plain_transport<P: Packet + ?Sized, const HEADER: usize>(p: &P, at: usize, total: usize, h: &mut Headers) -> Option<()> {
    match h.protocol {
        protocol::UDP => {
            let said = u16::from_be(p.load(at + 4)?) as usize;
            if said < size_of::<Udp>() || HEADER + said > total {
                return None;
            }
        }
        protocol::TCP => {
            let tcp = p.load::<Tcp>(at)?;
            let header = (tcp.offset >> 4) as usize * 4;
            if header < size_of::<Tcp>() || HEADER + header > total {
                return None;
            }
            h.tcp_flags = tcp.flags;
        }
        _ => return None,
    }
    h.source_port = u16::from_be(p.load(at)?);
    h.destination_port = u16::from_be(p.load(at + 2)?);
    Some(())
}

/// The bits of the first eight bytes that tell a common packet: version and header length, and the fragment's.
const KIND: [u8; 8] = [0xff, 0, 0, 0, 0, 0, FRAGMENT.to_be_bytes()[0], FRAGMENT.to_be_bytes()[1]];
/// What they are in it.
const COMMON: [u8; 8] = [0x45, 0, 0, 0, 0, 0, 0, 0];
