//! The one parser, pure and generic over how bytes are reached. It says what a packet is; [`crate::decide`] says whether it may pass.
//!
//! One source, two forms. The full form ([`parse_full`]) reads everything. The fast form ([`parse_fast`]), meant to be inlined over direct
//! packet access, handles TCP, UDP and other plain protocols and says [`Parsed::Rare`] for the rest: whatever it does parse, it parses as
//! the full form does (a test compares them). With a problem the full form still reads the addresses where they can be read.
//!
//! The parts that only few packets have are in modules of their own: options and extension headers in `chain`, quoted packets in `quote`. So is
//! the straight line for what most packets are, `common`, which is held to the full form as the fast one is.

mod chain;
mod common;
mod quote;

pub use {
    chain::walk_options,
    common::{is_six, parse_common, parse_common6},
};

use crate::{
    headers::{ArpForm, Fragment, FragmentKind, Headers, Rare, protocol},
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

/// VLAN tags that a frame may have.
const MAX_TAGS: u32 = 2;
/// The VLAN id in a tag (IEEE 802.1Q).
const VLAN_ID: u16 = 0x0fff;
/// More fragments (RFC 791), in the field.
const MORE_FRAGMENTS: u16 = 0x2000;
/// More fragments, or a fragment offset (RFC 791), in the field.
const FRAGMENT: u16 = 0x3fff;
/// Bytes of an Ethernet header, also of one that is left in front of a packet on a device without.
const ETHERNET_HEADER: usize = size_of::<Ethernet>();

/// Parses what is common into `h`, which must be the default. `ETHERNET`: an Ethernet header comes first, otherwise the IP header.
#[inline(always)]
pub fn parse_fast<P: Packet + ?Sized, const ETHERNET: bool>(p: &P, h: &mut Headers) -> Parsed {
    // Nothing is written to it: it costs nothing.
    let mut rare = Rare::default();
    parse::<P, ETHERNET, false>(p, None, h, &mut rare)
}

/// Parses everything into `h`, which must be the default, and `rare`, of which anything may be left from before. `outer`: the TCI of a VLAN
/// tag that the driver has taken off the frame.
#[inline(always)]
pub fn parse_full<P: Packet + ?Sized, const ETHERNET: bool>(p: &P, outer: Option<u16>, h: &mut Headers, rare: &mut Rare) {
    rare.clear();
    parse::<P, ETHERNET, true>(p, outer, h, rare);
}

#[inline(always)]
fn parse<P: Packet + ?Sized, const ETHERNET: bool, const FULL: bool>(
    p: &P,
    outer: Option<u16>,
    h: &mut Headers,
    rare: &mut Rare,
) -> Parsed {
    let size = p.size();
    h.length = size as u32;
    let mut at = 0;
    let version = if ETHERNET {
        let Some(ethernet) = p.load::<Ethernet>(0) else {
            return problem::<FULL>(h, Reason::Truncated);
        };
        at = ETHERNET_HEADER;
        let mut ethertype = u16::from_be(ethernet.ethertype);
        if FULL && (outer.is_some() || is_tag(ethertype)) {
            ethertype = match tags(p, &mut at, ethertype, outer, rare) {
                Ok(behind) => behind,
                Err(reason) => {
                    h.rare = rare.vlan != 0;
                    return problem::<FULL>(h, reason);
                }
            };
            h.rare = rare.vlan != 0;
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
            _ => return problem::<FULL>(h, Reason::Ethertype),
        }
    } else {
        if FULL && let Some(tci) = outer {
            rare.vlan = (tci & VLAN_ID).into();
            h.rare = rare.vlan != 0;
        }
        if FULL && !exact(p, 0, size) && stale_ethernet(p, size) && !p.is_ip_first() {
            at = ETHERNET_HEADER;
            rare.stale = true;
            h.rare = true;
        }
        // A word, not a byte: at offset 0 a one-byte bound becomes `p >= end`, from which the verifier learns nothing.
        let version = match p.load::<u32>(at) {
            Some(first) => (u32::from_be(first) >> 28) as u8,
            None => return problem::<FULL>(h, Reason::Truncated),
        };
        if FULL && matches!(version, 4 | 6) && p.taken_for().is_some_and(|other| other != version) {
            return problem::<FULL>(h, Reason::Ethertype);
        }
        version
    };
    match version {
        4 => ipv4::<P, ETHERNET, FULL>(p, at, size, h, rare),
        6 => ipv6::<P, ETHERNET, FULL>(p, at, size, h, rare),
        _ => problem::<FULL>(h, Reason::Version),
    }
}

/// Whether a VLAN tag follows behind an ethertype, in host byte order.
#[inline(always)]
#[must_use]
pub const fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100)
}

/// Reads the tags from `at` on, and gives the ethertype behind them.
#[inline(always)]
fn tags<P: Packet + ?Sized>(
    p: &P,
    at: &mut usize,
    mut ethertype: u16,
    outer: Option<u16>,
    rare: &mut Rare,
) -> Result<u16, Reason> {
    let mut left = MAX_TAGS;
    if let Some(tci) = outer {
        rare.vlan = (tci & VLAN_ID).into();
        left -= 1;
    }
    for _ in 0..MAX_TAGS {
        if left == 0 || !is_tag(ethertype) {
            break;
        }
        let Some(tag) = p.load::<Vlan>(*at) else {
            return Err(Reason::Truncated);
        };
        let id = u32::from(u16::from_be(tag.tci) & VLAN_ID);
        // Id 0 is a priority tag, which counts for nothing.
        rare.vlan |= if rare.vlan == 0 { id } else { id << 16 };
        *at += size_of::<Vlan>();
        ethertype = u16::from_be(tag.ethertype);
        left -= 1;
    }
    if is_tag(ethertype) { Err(Reason::Vlan) } else { Ok(ethertype) }
}

/// Whether an IP header at `at` says exactly the length that is there.
#[inline(always)]
fn exact<P: Packet + ?Sized>(p: &P, at: usize, size: usize) -> bool {
    let Some([first, second]) = p.load::<u64>(at).map(halves) else {
        return false;
    };
    match first >> 28 {
        4 => (first & 0xffff) as usize + at == size,
        6 => (second >> 16) as usize + size_of::<Ipv6>() + at == size,
        _ => false,
    }
}

/// Two words of the packet, host order.
#[inline(always)]
const fn halves(both: u64) -> [u32; 2] {
    let both = u64::from_be(both);
    [(both >> 32) as u32, both as u32]
}

/// Whether an Ethernet header stands in front of a packet that is there in full, on a device that should have none.
#[inline(always)]
fn stale_ethernet<P: Packet + ?Sized>(p: &P, size: usize) -> bool {
    let version = match p.load::<u16>(ETHERNET_HEADER - 2).map(u16::from_be) {
        Some(0x0800) => 4,
        Some(0x86dd) => 6,
        _ => return false,
    };
    let nibble = p.load::<u8>(ETHERNET_HEADER).map(|b| b >> 4);
    nibble == Some(version) && exact(p, ETHERNET_HEADER, size)
}

/// The first problem counts.
#[inline(always)]
fn problem<const FULL: bool>(h: &mut Headers, reason: Reason) -> Parsed {
    if !FULL {
        return Parsed::Rare;
    }
    h.problem = Some(reason);
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
fn ipv4<P: Packet + ?Sized, const ETHERNET: bool, const FULL: bool>(
    p: &P,
    at: usize,
    size: usize,
    h: &mut Headers,
    rare: &mut Rare,
) -> Parsed {
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
    if total < header || !fits::<ETHERNET, FULL>(at + total, size) {
        return problem::<FULL>(h, Reason::TotalLength);
    }
    h.length = total as u32;
    if FULL
        && header != HEADER
        && let Some(reason) = chain::options(p, at, header)
    {
        return problem::<FULL>(h, reason);
    }
    if ip.fragment & FRAGMENT.to_be() != 0 {
        if !FULL {
            return Parsed::Rare;
        }
        let field = u16::from_be(ip.fragment);
        let fragment = Fragment {
            id: u32::from(ip.id),
            offset: (field & 0x1fff) << 3,
            length: (total - header) as u16,
            more: field & MORE_FRAGMENTS != 0,
            kind: FragmentKind::Later,
        };
        if let Some(reason) = fragment_of(fragment, h, rare) {
            return problem::<FULL>(h, reason);
        }
        if rare.fragment.kind == FragmentKind::Later {
            return Parsed::Done;
        }
    }
    transport::<P, FULL>(p, at + header, total - header, h, rare)
}

/// Whether a packet that ends at `end` is there. Without an Ethernet header there is no padding, and where there seems to be, the full form
/// looks for a stale one.
#[inline(always)]
const fn fits<const ETHERNET: bool, const FULL: bool>(end: usize, size: usize) -> bool {
    if ETHERNET || FULL { end <= size } else { end == size }
}

#[inline(always)]
fn ipv6<P: Packet + ?Sized, const ETHERNET: bool, const FULL: bool>(
    p: &P,
    at: usize,
    size: usize,
    h: &mut Headers,
    rare: &mut Rare,
) -> Parsed {
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
    if !fits::<ETHERNET, FULL>(at + HEADER + payload, size) {
        return problem::<FULL>(h, Reason::TotalLength);
    }
    h.length = (HEADER + payload) as u32;
    if !chain::is_extension(ip.next_header) {
        return transport::<P, FULL>(p, at + HEADER, payload, h, rare);
    }
    if !FULL {
        return Parsed::Rare;
    }
    let (mut at, mut left) = (at + HEADER, payload);
    if let Some(reason) = chain::extensions(p, &mut at, &mut left, h, rare) {
        return problem::<FULL>(h, reason);
    }
    if h.rare && rare.fragment.kind == FragmentKind::Later {
        return Parsed::Done;
    }
    transport::<P, FULL>(p, at, left, h, rare)
}

/// Keeps a fragment's place, if it has one that it can have. `kind` is found here.
#[inline(always)]
fn fragment_of(mut fragment: Fragment, h: &mut Headers, rare: &mut Rare) -> Option<Reason> {
    let Fragment {
        offset, length, more, ..
    } = fragment;
    let end = u32::from(offset) + u32::from(length);
    if length == 0 || more && length & 7 != 0 || end > 65_535 {
        return Some(Reason::FragmentMalformed);
    }
    if offset == 8 && h.protocol == protocol::TCP {
        return Some(Reason::FragmentTiny);
    }
    if offset == 0 {
        fragment.kind = FragmentKind::First;
    }
    rare.fragment = fragment;
    h.rare = true;
    None
}

/// `length`: what the IP header leaves for the transport. What lies behind it in the frame is padding, never a header.
#[inline(always)]
fn transport<P: Packet + ?Sized, const FULL: bool>(p: &P, at: usize, length: usize, h: &mut Headers, rare: &mut Rare) -> Parsed {
    let first = FULL && rare.fragment.kind == FragmentKind::First;
    let short = if first { Reason::FragmentTiny } else { Reason::Truncated };
    if h.is_icmp() {
        if !FULL {
            return Parsed::Rare;
        }
        let Some(icmp) = load_within::<P, Icmp>(p, at, length) else {
            return problem::<FULL>(h, short);
        };
        h.icmp_type = icmp.kind;
        h.icmp_code = icmp.code;
        if h.is_icmp_error() {
            if first {
                return problem::<FULL>(h, Reason::IcmpError);
            }
            const HEADER: usize = size_of::<Icmp>();
            if quote::quotes(h.version, h.icmp_type) {
                h.rare = true;
                if !quote::read(p, at + HEADER, length - HEADER, h.version, &mut rare.quote) {
                    return problem::<FULL>(h, Reason::IcmpQuote);
                }
            }
        }
        return Parsed::Done;
    }
    match h.protocol {
        protocol::TCP => {
            let Some(tcp) = load_within::<P, Tcp>(p, at, length) else {
                return problem::<FULL>(h, short);
            };
            let header = (tcp.offset >> 4) as usize * 4;
            if header < size_of::<Tcp>() {
                return problem::<FULL>(h, Reason::HeaderLength);
            }
            if header > length {
                return problem::<FULL>(h, short);
            }
            h.source_port = u16::from_be(tcp.source);
            h.destination_port = u16::from_be(tcp.destination);
            h.tcp_flags = tcp.flags;
        }
        protocol::UDP => {
            let Some(udp) = load_within::<P, Udp>(p, at, length) else {
                return problem::<FULL>(h, short);
            };
            let said = (u32::from_be(udp.length_checksum) >> 16) as usize;
            if said < size_of::<Udp>() || said > length && !first {
                return problem::<FULL>(h, Reason::UdpLength);
            }
            let ports = u32::from_be(udp.ports);
            h.source_port = (ports >> 16) as u16;
            h.destination_port = ports as u16;
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
