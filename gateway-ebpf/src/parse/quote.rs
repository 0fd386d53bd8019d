//! The packet that an ICMP error quotes (RFC 1122, 3.2.2; RFC 4443, 2.4). The full form only.

use super::{Headers, Packet, chain, load_within};
use crate::{
    headers::protocol,
    wire::{Icmp, Ipv4, Ipv6, Ipv6Fragment},
};

/// ACK: a segment of an established connection (RFC 9293).
const ESTABLISHED: u8 = 0x10;

/// Whether an error of this type quotes a packet: not reachable, source quench or packet too big, time exceeded, parameter problem.
#[inline(always)]
pub(super) const fn quotes(version: u8, icmp_type: u8) -> bool {
    match version {
        4 => matches!(icmp_type, 3 | 4 | 11 | 12),
        _ => matches!(icmp_type, 1..=4),
    }
}

/// Reads the quoted packet at `at`, of which `length` bytes are there; `false`: it cannot be judged.
#[inline(always)]
pub(super) fn read<P: Packet + ?Sized>(p: &P, at: usize, length: usize, version: u8, quote: &mut Headers) -> bool {
    let header = if version == 4 {
        let Some(ip) = load_within::<P, Ipv4>(p, at, length) else {
            return false;
        };
        let header = (ip.version_ihl & 15) as usize * 4;
        if ip.version_ihl >> 4 != 4 || header < size_of::<Ipv4>() || u16::from_be(ip.fragment) & 0x1fff != 0 {
            return false;
        }
        quote.source = [ip.source, 0, 0, 0];
        quote.destination = [ip.destination, 0, 0, 0];
        quote.protocol = ip.protocol;
        header
    } else {
        let Some(ip) = load_within::<P, Ipv6>(p, at, length) else {
            return false;
        };
        if u32::from_be(ip.first) >> 28 != 6 {
            return false;
        }
        quote.source = ip.source;
        quote.destination = ip.destination;
        quote.protocol = ip.next_header;
        let mut header = size_of::<Ipv6>();
        // A first fragment, as of IPv4: what a sender makes of a datagram that is too big for a link on the way.
        if ip.next_header == protocol::FRAGMENT {
            let Some(fragment) = load_within::<P, Ipv6Fragment>(p, at + header, length - header) else {
                return false;
            };
            if u16::from_be(fragment.offset) & !7 != 0 {
                return false;
            }
            quote.protocol = fragment.next;
            header += size_of::<Ipv6Fragment>();
        }
        if chain::is_extension(quote.protocol) {
            return false;
        }
        header
    };
    quote.version = version;
    quote.source_port = 0;
    quote.destination_port = 0;
    quote.icmp_type = 0;
    quote.tcp_flags = ESTABLISHED;
    let icmp = quote.is_icmp();
    if !icmp && !matches!(quote.protocol, protocol::TCP | protocol::UDP) {
        return header <= length;
    }
    if header + size_of::<Icmp>() > length {
        return false;
    }
    // The first word is the ports of TCP and UDP, and type, code and checksum of ICMP.
    let Some(first) = p.load::<u32>(at + header).map(u32::from_be) else {
        return false;
    };
    if icmp {
        quote.icmp_type = (first >> 24) as u8;
        return !quote.is_icmp_error();
    }
    quote.source_port = (first >> 16) as u16;
    quote.destination_port = first as u16;
    true
}
