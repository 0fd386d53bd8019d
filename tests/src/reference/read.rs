//! Section 1 of the page: what is read of a packet, and the first problem that is met. The bytes of headers are etherparse's business;
//! by hand is read only what it does not offer, or refuses more strictly than the page does.

use std::net::IpAddr;

use etherparse::{
    ArpPacketSlice, Ethernet2HeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice,
    SingleVlanHeaderSlice, TcpHeaderSlice, UdpHeaderSlice, err,
};

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// VLAN ids, outermost first, without priority tags.
    pub vlan: Vec<u16>,
    /// A well-formed ARP packet.
    pub arp: bool,
    /// Of the IP header.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// TTL or hop limit.
    pub hops: u8,
    /// Behind all extension headers.
    pub protocol: u8,
    /// Source and destination, TCP and UDP.
    pub ports: (u16, u16),
    /// TCP flags, the byte.
    pub flags: u8,
    /// SYN without ACK.
    pub opens: bool,
    /// RST.
    pub resets: bool,
    /// Type and code of ICMP over IPv4 or ICMPv6 over IPv6.
    pub icmp: Option<(u8, u8)>,
    /// An Ethernet header was left in front.
    pub stale: bool,
    /// Not a whole datagram.
    pub fragment: Option<Fragment>,
    /// Of an ICMP error.
    pub quote: Option<Box<Self>>,
    /// The first problem.
    pub problem: Option<&'static str>,
}

/// Which part of which datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub id: u32,
    /// First byte of the data.
    pub start: u32,
    /// Behind its last byte.
    pub end: u32,
    /// It is not the last one.
    pub more: bool,
}

type Met = Result<(), &'static str>;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Reads a packet. `tag`: the VLAN tag (TCI) that the driver has taken off the frame.
#[must_use]
pub fn read(bytes: &[u8], ethernet: bool, tag: Option<u16>) -> Packet {
    let mut packet = Packet::default();
    let met = if ethernet {
        packet.ethernet(bytes, tag)
    } else {
        packet.bare(bytes)
    };
    packet.problem = met.err();
    packet
}

impl Packet {
    /// ICMP of the packet's own family.
    #[must_use]
    pub fn icmp_error(&self) -> bool {
        let v4 = self.addresses.is_some_and(|(a, _)| a.is_ipv4());
        self.icmp.is_some_and(|(kind, _)| is_error(v4, kind))
    }

    fn ethernet(&mut self, bytes: &[u8], tag: Option<u16>) -> Met {
        let header = Ethernet2HeaderSlice::from_slice(bytes).map_err(|_| "truncated")?;
        let mut tags = 0;
        if let Some(tci) = tag {
            tags = 1;
            self.tag(tci & 0xfff);
        }
        let (mut ethertype, mut rest) = (header.ether_type().0, &bytes[14..]);
        while matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
            tags += 1;
            if tags == 3 {
                return Err("vlan");
            }
            let header = SingleVlanHeaderSlice::from_slice(rest).map_err(|_| "truncated")?;
            self.tag(header.vlan_identifier().value());
            (ethertype, rest) = (header.ether_type().0, &rest[4..]);
        }
        match ethertype {
            0x0800 => self.ipv4(rest),
            0x86dd => self.ipv6(rest),
            0x0806 => self.arp(rest),
            0..0x0600 => Err("llc"),
            _ => Err("ethertype"),
        }
    }

    fn tag(&mut self, id: u16) {
        if id != 0 {
            self.vlan.push(id);
        }
    }

    fn arp(&mut self, bytes: &[u8]) -> Met {
        let arp = ArpPacketSlice::from_slice(bytes).map_err(|_| "arp_malformed")?;
        let form = (
            arp.hw_addr_type().0,
            arp.proto_addr_type().0,
            arp.hw_addr_size(),
            arp.proto_addr_size(),
        );
        self.arp = form == (1, 0x0800, 6, 4) && matches!(arp.operation().0, 1 | 2);
        if self.arp { Ok(()) } else { Err("arp_malformed") }
    }

    fn bare(&mut self, bytes: &[u8]) -> Met {
        let at14 = bytes.get(14..).unwrap_or_default();
        let ethertype = bytes.get(12..14).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
        let fits = match ethertype {
            0x0800 => nibble(at14) == Some(4),
            0x86dd => nibble(at14) == Some(6),
            _ => false,
        };
        self.stale = fits && !is_whole(bytes) && at14.len() >= 8 && is_whole(at14);
        let bytes = if self.stale { at14 } else { bytes };
        match nibble(bytes) {
            _ if bytes.len() < 4 => Err("truncated"),
            Some(4) => self.ipv4(bytes),
            Some(6) => self.ipv6(bytes),
            _ => Err("version"),
        }
    }

    fn ipv4(&mut self, bytes: &[u8]) -> Met {
        if bytes.len() < 20 {
            return Err("truncated");
        }
        if nibble(bytes) != Some(4) {
            return Err("version");
        }
        let address = |at: usize| IpAddr::from([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        self.addresses = Some((address(12), address(16)));
        self.hops = bytes[8];
        self.protocol = bytes[9];
        let header = match Ipv4HeaderSlice::from_slice(bytes) {
            Ok(header) => header,
            Err(err::ipv4::HeaderSliceError::Content(_)) => return Err("header_length"),
            // Longer than what is there; then so is the total length, or it is below the header length.
            Err(err::ipv4::HeaderSliceError::Len(_)) => return Err("total_length"),
        };
        let (length, total) = (header.slice().len(), usize::from(header.total_len()));
        if total < length || total > bytes.len() {
            return Err("total_length");
        }
        options(header.options())?;
        let data = &bytes[length..total];
        if header.is_fragmenting_payload() {
            let id = u32::from(header.identification());
            self.fragment(
                id,
                header.fragments_offset().byte_offset(),
                data.len(),
                header.more_fragments(),
            )?;
        }
        self.transport(data, true)
    }

    fn ipv6(&mut self, bytes: &[u8]) -> Met {
        if bytes.len() < 40 {
            return Err("truncated");
        }
        let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| "version")?;
        self.addresses = Some((header.source_addr().into(), header.destination_addr().into()));
        self.hops = header.hop_limit();
        self.protocol = header.next_header().0;
        let mut rest = bytes[40..]
            .get(..usize::from(header.payload_length()))
            .ok_or("total_length")?;
        let (mut headers, mut fragment_headers) = (0, 0);
        loop {
            match self.protocol {
                135 | 139 | 140 | 253 | 254 => return Err("extension_header"),
                0 if headers > 0 => return Err("extension_header"),
                44 if fragment_headers > 0 => return Err("fragment_malformed"),
                kind if is_extension(kind) && headers == 6 => return Err("extension_depth"),
                _ => headers += 1,
            }
            // Extension headers of a first fragment are all in it.
            let short = if self.fragment.is_some() {
                "fragment_tiny"
            } else {
                "truncated"
            };
            match self.protocol {
                0 | 60 => {
                    let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| short)?;
                    self.protocol = header.next_header().0;
                    rest = &rest[header.slice().len()..];
                }
                43 => {
                    // Segments left, its fourth byte (RFC 8200, 4.4), also where the rest does not fit.
                    if rest.len() >= 8 && rest[3] != 0 {
                        return Err("routing_header");
                    }
                    let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| short)?;
                    self.protocol = header.next_header().0;
                    rest = &rest[header.slice().len()..];
                }
                44 => {
                    fragment_headers += 1;
                    let header = Ipv6FragmentHeaderSlice::from_slice(rest).map_err(|_| short)?;
                    self.protocol = header.next_header().0;
                    rest = &rest[8..];
                    if header.is_fragmenting_payload() {
                        let offset = header.fragment_offset().byte_offset();
                        self.fragment(header.identification(), offset, rest.len(), header.more_fragments())?;
                        if offset != 0 {
                            break;
                        }
                    }
                }
                _ => break,
            }
        }
        self.transport(rest, false)
    }

    fn fragment(&mut self, id: u32, offset: u16, length: usize, more: bool) -> Met {
        let start = u32::from(offset);
        let end = start + length as u32;
        self.fragment = Some(Fragment { id, start, end, more });
        if length == 0 || more && !length.is_multiple_of(8) || end > 65_535 {
            return Err("fragment_malformed");
        }
        Ok(())
    }

    fn transport(&mut self, bytes: &[u8], v4: bool) -> Met {
        let short = match self.fragment {
            Some(f) if f.start == 8 && self.protocol == TCP => return Err("fragment_tiny"),
            Some(f) if f.start != 0 => return Ok(()),
            Some(_) => "fragment_tiny",
            None => "truncated",
        };
        match self.protocol {
            TCP => {
                let header = TcpHeaderSlice::from_slice(bytes).map_err(|e| match e {
                    err::tcp::HeaderSliceError::Len(_) => short,
                    err::tcp::HeaderSliceError::Content(_) => "header_length",
                })?;
                self.ports = (header.source_port(), header.destination_port());
                self.flags = header.slice()[13];
                self.opens = header.syn() && !header.ack();
                self.resets = header.rst();
            }
            UDP => {
                let header = UdpHeaderSlice::from_slice(bytes).map_err(|_| short)?;
                self.ports = (header.source_port(), header.destination_port());
                let length = usize::from(header.length());
                if length < 8 || length > bytes.len() && self.fragment.is_none() {
                    return Err("udp_length");
                }
            }
            ICMP | ICMPV6 if v4 == (self.protocol == ICMP) => {
                let header = bytes.get(..8).ok_or(short)?;
                self.icmp = Some((header[0], header[1]));
                if is_error_of_any_kind(v4, header[0]) && self.fragment.is_some() {
                    return Err("icmp_error");
                }
                if is_error(v4, header[0]) {
                    self.quote = Some(Box::new(quote(&bytes[8..], v4).ok_or("icmp_quote")?));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The packet that an ICMP error quotes; `None`: it is not as it should be.
fn quote(bytes: &[u8], v4: bool) -> Option<Packet> {
    let mut quoted = Packet::default();
    let rest = if v4 {
        let header = Ipv4HeaderSlice::from_slice(bytes).ok()?;
        quoted.addresses = Some((header.source_addr().into(), header.destination_addr().into()));
        quoted.protocol = header.protocol().0;
        if header.fragments_offset().value() != 0 {
            return None;
        }
        &bytes[header.slice().len()..]
    } else {
        let header = Ipv6HeaderSlice::from_slice(bytes).ok()?;
        quoted.addresses = Some((header.source_addr().into(), header.destination_addr().into()));
        quoted.protocol = header.next_header().0;
        let mut rest = &bytes[40..];
        if quoted.protocol == 44 {
            let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
            if header.fragment_offset().value() != 0 {
                return None;
            }
            quoted.protocol = header.next_header().0;
            rest = &rest[8..];
        }
        if is_extension(quoted.protocol) {
            return None;
        }
        rest
    };
    let icmp = if v4 { ICMP } else { ICMPV6 };
    if quoted.protocol == TCP || quoted.protocol == UDP {
        let ports = rest.get(..8)?;
        quoted.ports = (
            u16::from_be_bytes([ports[0], ports[1]]),
            u16::from_be_bytes([ports[2], ports[3]]),
        );
    } else if quoted.protocol == icmp {
        let header = rest.get(..8)?;
        if is_error_of_any_kind(v4, header[0]) {
            return None;
        }
        quoted.icmp = Some((header[0], header[1]));
    }
    Some(quoted)
}

fn options(mut bytes: &[u8]) -> Met {
    while let [kind, rest @ ..] = bytes {
        bytes = match kind {
            0 => return Ok(()),
            1 => rest,
            131 | 137 => return Err("source_route"),
            7 | 68 | 130 | 148 => {
                let length = usize::from(*rest.first().ok_or("ip_options")?);
                if length < 2 {
                    return Err("ip_options");
                }
                bytes.get(length..).ok_or("ip_options")?
            }
            _ => return Err("ip_options"),
        };
    }
    Ok(())
}

fn is_error(v4: bool, kind: u8) -> bool {
    if v4 {
        matches!(kind, 3 | 4 | 11 | 12)
    } else {
        matches!(kind, 1..=4)
    }
}

/// Also redirects, and what ICMPv6 has kept for errors (RFC 4443, 2.1).
fn is_error_of_any_kind(v4: bool, kind: u8) -> bool {
    if v4 { is_error(v4, kind) || kind == 5 } else { kind < 128 }
}

fn is_extension(protocol: u8) -> bool {
    matches!(protocol, 0 | 43 | 44 | 60 | 135 | 139 | 140 | 253 | 254)
}

fn nibble(bytes: &[u8]) -> Option<u8> {
    bytes.first().map(|b| b >> 4)
}

/// Whether it is exactly as long as the IP header at its beginning says.
fn is_whole(bytes: &[u8]) -> bool {
    let field = |at: usize| bytes.get(at..at + 2).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    match nibble(bytes) {
        Some(4) => field(2) == Some(bytes.len()),
        Some(6) => field(4).map(|n| n + 40) == Some(bytes.len()),
        _ => false,
    }
}
