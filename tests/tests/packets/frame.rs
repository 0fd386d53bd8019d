//! From the description of a packet, as the table has it, to bytes.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

/// A packet. What is not said is as it should be.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Packet {
    /// Source: an address, or for TCP and UDP an address and a port.
    pub(crate) from: Option<String>,
    /// Destination, likewise.
    pub(crate) to: Option<String>,
    /// TCP, with these flags of SAFRPU.
    pub(crate) tcp: Option<String>,
    /// UDP.
    #[serde(default)]
    pub(crate) udp: bool,
    /// ICMP or ICMPv6 by the family of the addresses: type and code.
    pub(crate) icmp: Option<[u8; 2]>,
    /// Another protocol, with eight bytes of payload.
    pub(crate) protocol: Option<u8>,
    /// TTL or hop limit.
    pub(crate) hops: Option<u8>,
    /// Address resolution: the operation.
    pub(crate) arp: Option<u16>,

    /// IP version nibble.
    pub(crate) version: Option<u8>,
    /// IPv4 header length in words of four bytes, without that there are more or less.
    pub(crate) header_words: Option<u8>,
    /// Words of IPv4 options, no-operations.
    #[serde(default)]
    pub(crate) options: u8,
    /// IPv4 total length, IPv6 payload length.
    pub(crate) length: Option<u16>,
    /// IPv4 flags and fragment offset, as the field has them.
    pub(crate) fragment: Option<u16>,
    /// An IPv6 extension header of eight bytes in front of the transport.
    pub(crate) extension: Option<u8>,
    /// TCP data offset in words.
    pub(crate) tcp_words: Option<u8>,
    /// UDP length.
    pub(crate) udp_length: Option<u16>,
    /// ARP hardware type, protocol, lengths, in this order.
    pub(crate) arp_form: Option<[u16; 4]>,
    /// Bytes of the packet that are there, from the IP or ARP header on.
    pub(crate) cut: Option<usize>,
    /// Zeros behind the packet.
    #[serde(default)]
    pub(crate) padding: usize,
    /// Ethertype, or below 0x600 a length.
    pub(crate) ethertype: Option<u16>,
    /// VLAN tag protocol identifiers, outermost first.
    #[serde(default)]
    pub(crate) tags: Vec<u16>,
    /// The ids of these tags; otherwise 7.
    #[serde(default)]
    pub(crate) vlans: Vec<u16>,
    /// Bytes of IPv4 options, filled up with zeros to a word.
    #[serde(default)]
    pub(crate) option_bytes: Vec<u8>,
    /// IPv6 extension headers in front of the transport, by their numbers, eight bytes each.
    #[serde(default)]
    pub(crate) chain: Vec<u8>,
    /// Segments left in the routing headers of the chain.
    #[serde(default)]
    pub(crate) segments: u8,
    /// Of an ICMP error: the packet that it quotes.
    pub(crate) quote: Option<Box<Packet>>,
    /// Bytes of data behind the transport header, beyond what is there anyway.
    #[serde(default)]
    pub(crate) data: usize,
    /// A fragment: these bytes of the transport header and data, from the first to before the last.
    pub(crate) part: Option<[usize; 2]>,
    /// Of a fragment: identification.
    #[serde(default)]
    pub(crate) id: u16,
    /// Of a fragment: whether more follow; otherwise as its end says.
    pub(crate) more: Option<bool>,
    /// Without Ethernet: a header of 14 bytes that an xfrm interface has left in front.
    #[serde(default)]
    pub(crate) stale: bool,
}

impl Packet {
    /// With an Ethernet header, or from the IP header on.
    pub(crate) fn bytes(&self, ethernet: bool) -> Vec<u8> {
        let (ethertype, mut packet) = if self.arp.is_some() {
            (0x0806, self.arp())
        } else {
            match self.ends() {
                (SocketAddr::V4(from), SocketAddr::V4(to)) => (0x0800, self.ipv4(from.ip().octets(), to.ip().octets())),
                (SocketAddr::V6(from), SocketAddr::V6(to)) => (0x86dd, self.ipv6(from.ip().octets(), to.ip().octets())),
                (from, to) => panic!("{from} and {to} are of different families"),
            }
        };
        packet.truncate(self.cut.unwrap_or(usize::MAX));
        packet.resize(packet.len() + self.padding, 0);
        if !ethernet && !self.stale {
            return packet;
        }
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (i, tag) in self.tags.iter().enumerate() {
            frame.extend(tag.to_be_bytes());
            frame.extend(self.vlans.get(i).copied().unwrap_or(7).to_be_bytes());
        }
        frame.extend(self.ethertype.unwrap_or(ethertype).to_be_bytes());
        frame.append(&mut packet);
        frame
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        let end = |text: &Option<String>| {
            let text = text.as_ref().expect("from and to");
            text.parse()
                .unwrap_or_else(|_| SocketAddr::new(text.parse::<IpAddr>().unwrap_or_else(|e| panic!("{text}: {e}")), 0))
        };
        (end(&self.from), end(&self.to))
    }

    fn arp(&self) -> Vec<u8> {
        let [hardware, protocol, hardware_length, protocol_length] = self.arp_form.unwrap_or([1, 0x0800, 6, 4]);
        let mut arp = [hardware.to_be_bytes(), protocol.to_be_bytes()].concat();
        arp.extend([hardware_length as u8, protocol_length as u8]);
        arp.extend(self.arp.unwrap().to_be_bytes());
        arp.extend([2, 0, 0, 0, 0, 2, 10, 66, 0, 5, 0, 0, 0, 0, 0, 0, 10, 66, 0, 1]);
        arp
    }

    fn ipv4(&self, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let (protocol, transport, offset, more) = self.piece(1);
        let mut options = self.option_bytes.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        options.resize(options.len() + usize::from(self.options) * 4, 1);
        let words = 5 + options.len() as u8 / 4;
        let total = u16::from(words) * 4 + transport.len() as u16;
        let (id, flags) = match self.part {
            Some(_) => (self.id, (offset / 8) | if more { 0x2000 } else { 0 }),
            None => (0x1234, 0x4000),
        };
        let mut ip = vec![self.version.unwrap_or(4) << 4 | self.header_words.unwrap_or(words), 0];
        ip.extend(self.length.unwrap_or(total).to_be_bytes());
        ip.extend(id.to_be_bytes());
        ip.extend(self.fragment.unwrap_or(flags).to_be_bytes());
        ip.extend([self.hops.unwrap_or(64), protocol, 0, 0]);
        ip.extend(from);
        ip.extend(to);
        ip.extend(options);
        ip.extend(transport);
        ip
    }

    fn ipv6(&self, from: [u8; 16], to: [u8; 16]) -> Vec<u8> {
        let (mut next, mut payload, offset, more) = self.piece(58);
        if self.part.is_some() {
            let mut header = vec![next, 0];
            header.extend((offset | u16::from(more)).to_be_bytes());
            header.extend([0, 0]);
            header.extend(self.id.to_be_bytes());
            payload.splice(0..0, header);
            next = 44;
        }
        if let Some(extension) = self.extension {
            payload.splice(0..0, [next, 0, 1, 4, 0, 0, 0, 0]);
            next = extension;
        }
        for kind in self.chain.iter().rev() {
            let segments = if *kind == 43 { self.segments } else { 0 };
            payload.splice(0..0, [next, 0, 0, segments, 0, 0, 0, 0]);
            next = *kind;
        }
        let mut ip = vec![self.version.unwrap_or(6) << 4, 0, 0, 0];
        ip.extend(self.length.unwrap_or(payload.len() as u16).to_be_bytes());
        ip.extend([next, self.hops.unwrap_or(64)]);
        ip.extend(from);
        ip.extend(to);
        ip.extend(payload);
        ip
    }

    /// Protocol number and bytes of the transport, or the part of it that a fragment brings, where that begins, and whether more follows.
    fn piece(&self, icmp: u8) -> (u8, Vec<u8>, u16, bool) {
        let (protocol, mut transport) = self.transport(icmp);
        transport.resize(transport.len() + self.data, 3);
        let Some([from, to]) = self.part else {
            return (protocol, transport, 0, false);
        };
        let to = to.min(transport.len());
        let more = self.more.unwrap_or(to < transport.len());
        (protocol, transport[from.min(to)..to].to_vec(), from as u16, more)
    }

    /// Protocol number and bytes. Checksums are 0: nothing that is tested here looks at them.
    fn transport(&self, icmp: u8) -> (u8, Vec<u8>) {
        let ports = || {
            let (from, to) = self.ends();
            [from.port().to_be_bytes(), to.port().to_be_bytes()].concat()
        };
        if let Some(flags) = &self.tcp {
            let bits = flags
                .chars()
                .map(|c| 1 << "FSRPAU".find(c).expect("a flag of SAFRPU"))
                .sum::<u8>();
            let mut tcp = ports();
            tcp.extend([
                0,
                0,
                0,
                1,
                0,
                0,
                0,
                2,
                self.tcp_words.unwrap_or(5) << 4,
                bits,
                1,
                0,
                0,
                0,
                0,
                0,
            ]);
            (6, tcp)
        } else if self.udp {
            let mut udp = ports();
            udp.extend(self.udp_length.unwrap_or(12 + self.data as u16).to_be_bytes());
            udp.extend([0, 0, 1, 2, 3, 4]);
            (17, udp)
        } else if let (Some([kind, code]), Some(quote)) = (self.icmp, &self.quote) {
            (icmp, [vec![kind, code, 0, 0, 0, 0, 5, 0], quote.bytes(false)].concat())
        } else if let Some([kind, code]) = self.icmp {
            (icmp, vec![kind, code, 0, 0, 0, 1, 0, 1])
        } else {
            (self.protocol.expect("tcp, udp, icmp, arp or protocol"), vec![0; 8])
        }
    }
}
