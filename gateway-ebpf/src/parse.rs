//! The one parser, pure and generic over how bytes are reached. It says what a packet is; [`crate::decide`] says whether it may pass.
//!
//! One source, two forms. The full form reads everything. The fast form, meant to be inlined over direct packet access, handles TCP, UDP
//! and other plain protocols and says [`Parsed::Rare`] for the rest: whatever it does parse, it parses as the full form does (a test
//! compares them). With a problem the full form still reads the addresses where they can be read.

use crate::{
    headers::{ArpForm, Headers, protocol},
    packet::Packet,
    reason::Reason,
    wire::{Arp, Ethernet, Icmp, Ipv4, Ipv6, Tcp, Udp, Vlan},
};

/// How far the parser came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// The headers are complete, `problem` included.
    Done,
    /// Only from the fast form: ask the full form, and believe nothing of the headers.
    Rare,
}

/// VLAN tags that are looked through for the addresses behind them.
const MAX_TAGS: u32 = 2;
/// More fragments, or a fragment offset (RFC 791).
const FRAGMENT: u16 = 0x3fff;

/// Parses `p` into `h`, which must be the default. `ETHERNET`: an Ethernet header comes first, otherwise the IP header. `FULL`: see the
/// module.
#[inline(always)]
pub fn parse<P: Packet + ?Sized, const ETHERNET: bool, const FULL: bool>(p: &P, h: &mut Headers) -> Parsed {
    let size = p.size();
    h.length = size as u32;
    let mut at = 0;
    let version = if ETHERNET {
        let Some(ethernet) = p.load::<Ethernet>(0) else {
            return problem::<FULL>(h, Reason::Truncated);
        };
        at = size_of::<Ethernet>();
        let mut ethertype = u16::from_be(ethernet.ethertype);
        if FULL {
            for _ in 0..MAX_TAGS {
                if !is_tag(ethertype) {
                    break;
                }
                h.problem = Some(Reason::Vlan);
                let Some(tag) = p.load::<Vlan>(at) else { return Parsed::Done };
                at += size_of::<Vlan>();
                ethertype = u16::from_be(tag.ethertype);
            }
        }
        match ethertype {
            0x0800 => 4,
            0x86dd => 6,
            _ if !FULL => return Parsed::Rare,
            0x0806 => {
                h.arp = Some(arp(p, at));
                return Parsed::Done;
            }
            0..0x0600 => return problem::<FULL>(h, Reason::Llc),
            e if is_tag(e) => return Parsed::Done,
            _ => return problem::<FULL>(h, Reason::Ethertype),
        }
    } else {
        // A word, not a byte: at offset 0 a one-byte bound becomes `p >= end`, from which the verifier learns nothing.
        match p.load::<u32>(0) {
            Some(first) => (u32::from_be(first) >> 28) as u8,
            None => return problem::<FULL>(h, Reason::Truncated),
        }
    };
    match version {
        4 => ipv4::<P, FULL>(p, at, size, h),
        6 => ipv6::<P, FULL>(p, at, size, h),
        _ => problem::<FULL>(h, Reason::Version),
    }
}

const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// The first problem counts.
#[inline(always)]
fn problem<const FULL: bool>(h: &mut Headers, reason: Reason) -> Parsed {
    if !FULL {
        return Parsed::Rare;
    }
    if h.problem.is_none() {
        h.problem = Some(reason);
    }
    Parsed::Done
}

#[inline(always)]
fn arp<P: Packet + ?Sized>(p: &P, at: usize) -> ArpForm {
    match p.load::<Arp>(at) {
        Some(a)
            if u16::from_be(a.hardware) == 1
                && u16::from_be(a.protocol) == 0x0800
                && a.hardware_length == 6
                && a.protocol_length == 4
                && matches!(u16::from_be(a.operation), 1 | 2) =>
        {
            ArpForm::Plain
        }
        _ => ArpForm::Malformed,
    }
}

#[inline(always)]
fn ipv4<P: Packet + ?Sized, const FULL: bool>(p: &P, at: usize, size: usize, h: &mut Headers) -> Parsed {
    const HEADER: usize = size_of::<Ipv4>();
    let Some(ip) = p.load::<Ipv4>(at) else {
        return problem::<FULL>(h, Reason::Truncated);
    };
    if ip.version_ihl != 0x45 {
        if !FULL {
            return Parsed::Rare;
        }
        if ip.version_ihl >> 4 != 4 {
            return problem::<FULL>(h, Reason::Version);
        }
    }
    let total = u16::from_be(ip.total_length) as usize;
    h.version = 4;
    h.source[0] = ip.source;
    h.destination[0] = ip.destination;
    h.protocol = ip.protocol;
    h.hop_limit = ip.ttl;
    if FULL && ip.version_ihl & 15 < 5 {
        return problem::<FULL>(h, Reason::HeaderLength);
    }
    let header = if FULL { (ip.version_ihl & 15) as usize * 4 } else { HEADER };
    if total < header || at + total > size {
        return problem::<FULL>(h, Reason::TotalLength);
    }
    h.length = total as u32;
    if FULL && header != HEADER {
        return problem::<FULL>(h, Reason::IpOptions);
    }
    if ip.fragment & FRAGMENT.to_be() != 0 {
        return problem::<FULL>(h, Reason::Fragment);
    }
    transport::<P, FULL>(p, at + HEADER, total - HEADER, h)
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized, const FULL: bool>(p: &P, at: usize, size: usize, h: &mut Headers) -> Parsed {
    const HEADER: usize = size_of::<Ipv6>();
    let Some(ip) = p.load::<Ipv6>(at) else {
        return problem::<FULL>(h, Reason::Truncated);
    };
    if u32::from_be(ip.first) >> 28 != 6 {
        return problem::<FULL>(h, Reason::Version);
    }
    let payload = u16::from_be(ip.payload_length) as usize;
    h.version = 6;
    h.source = ip.source;
    h.destination = ip.destination;
    h.protocol = ip.next_header;
    h.hop_limit = ip.hop_limit;
    if at + HEADER + payload > size {
        return problem::<FULL>(h, Reason::TotalLength);
    }
    h.length = (HEADER + payload) as u32;
    match ip.next_header {
        44 => problem::<FULL>(h, Reason::Fragment),
        // Hop-by-hop, routing, authentication, destination options, mobility, HIP, shim6 (IANA's list of extension headers).
        0 | 43 | 51 | 60 | 135 | 139 | 140 => problem::<FULL>(h, Reason::ExtensionHeader),
        _ => transport::<P, FULL>(p, at + HEADER, payload, h),
    }
}

/// `length`: what the IP header leaves for the transport. What lies behind it in the frame is padding, never a header.
#[inline(always)]
fn transport<P: Packet + ?Sized, const FULL: bool>(p: &P, at: usize, length: usize, h: &mut Headers) -> Parsed {
    if h.is_icmp() {
        if !FULL {
            return Parsed::Rare;
        }
        let Some(icmp) = load_within::<P, Icmp>(p, at, length) else {
            return problem::<FULL>(h, Reason::Truncated);
        };
        h.icmp_type = icmp.kind;
        h.icmp_code = icmp.code;
        return Parsed::Done;
    }
    match h.protocol {
        protocol::TCP => {
            let Some(tcp) = load_within::<P, Tcp>(p, at, length) else {
                return problem::<FULL>(h, Reason::Truncated);
            };
            let header = (tcp.offset >> 4) as usize * 4;
            if header < size_of::<Tcp>() {
                return problem::<FULL>(h, Reason::HeaderLength);
            }
            if header > length {
                return problem::<FULL>(h, Reason::Truncated);
            }
            h.source_port = u16::from_be(tcp.source);
            h.destination_port = u16::from_be(tcp.destination);
            h.tcp_flags = tcp.flags;
        }
        protocol::UDP => {
            let Some(udp) = load_within::<P, Udp>(p, at, length) else {
                return problem::<FULL>(h, Reason::Truncated);
            };
            let said = u16::from_be(udp.length) as usize;
            if said < size_of::<Udp>() || said > length {
                return problem::<FULL>(h, Reason::UdpLength);
            }
            h.source_port = u16::from_be(udp.source);
            h.destination_port = u16::from_be(udp.destination);
        }
        _ => {}
    }
    Parsed::Done
}

#[inline(always)]
fn load_within<P: Packet + ?Sized, T: crate::wire::Wire>(p: &P, at: usize, length: usize) -> Option<T> {
    if length < size_of::<T>() { None } else { p.load(at) }
}

#[cfg(test)]
mod tests;
