//! The shortest way to the headers of what is most of the traffic: IPv4 without options and not in fragments, TCP or UDP, plain. Whatever is
//! otherwise is left to the fast form and the full one, so nothing is refused here.

use super::{ETHERNET_HEADER, FRAGMENT, fits};
use crate::{
    headers::{Headers, protocol},
    packet::Packet,
    wire::{Ipv4, Tcp, Udp},
};

/// What the full form says of a common packet; `None`: ask another form. `ETHERNET`: an Ethernet header comes first, otherwise the IP header.
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
    match h.protocol {
        protocol::UDP => {
            let said = u16::from_be(p.load(transport + 4)?) as usize;
            if said < size_of::<Udp>() || HEADER + said > total {
                return None;
            }
        }
        protocol::TCP => {
            let tcp = p.load::<Tcp>(transport)?;
            let header = (tcp.offset >> 4) as usize * 4;
            if header < size_of::<Tcp>() || HEADER + header > total {
                return None;
            }
            h.tcp_flags = tcp.flags;
        }
        _ => return None,
    }
    h.source_port = u16::from_be(p.load(transport)?);
    h.destination_port = u16::from_be(p.load(transport + 2)?);
    Some(h)
}

/// The bits of the first eight bytes that tell a common packet: version and header length, and the fragment's.
const KIND: [u8; 8] = [0xff, 0, 0, 0, 0, 0, FRAGMENT.to_be_bytes()[0], FRAGMENT.to_be_bytes()[1]];
/// What they are in it.
const COMMON: [u8; 8] = [0x45, 0, 0, 0, 0, 0, 0, 0];
