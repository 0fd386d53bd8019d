//! What the parser says about a packet, and nothing about whether it may pass.

use crate::{abi::ColdKey, reason::Reason};

/// An address as it lies in the packet: network byte order, IPv4 in the first word and zeros behind it.
pub type Address = [u32; 4];

/// The two words of an IPv6 address as [`crate::abi::Bucket6`] holds them: network byte order, as loaded from memory.
#[inline(always)]
#[must_use]
pub const fn words(a: Address) -> [u64; 2] {
    [join(a[0], a[1]), join(a[2], a[3])]
}

/// The key of an address in [`crate::abi::map::COLD`].
#[inline(always)]
#[must_use]
pub const fn cold_key(version: u8, a: Address) -> ColdKey {
    let a = if version == 4 { [0, 0, 0xffff_u32.to_be(), a[0]] } else { a };
    // SAFETY: both are sixteen bytes of integers. Byte by byte the BPF target would build it on its small stack.
    unsafe { core::mem::transmute::<Address, ColdKey>(a) }
}

/// The headers of one packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Source; meaningful if `version` is not 0.
    pub source: Address,
    /// Destination; meaningful if `version` is not 0.
    pub destination: Address,
    /// Bytes: what the IP header says, or if there is none to read, the frame.
    pub length: u32,
    /// TCP and UDP, host byte order; otherwise 0.
    pub source_port: u16,
    /// TCP and UDP, host byte order; otherwise 0.
    pub destination_port: u16,
    /// 4 or 6; 0: no addresses were read.
    pub version: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags (RFC 9293, 3.1); otherwise 0.
    pub tcp_flags: u8,
    /// ICMP and ICMPv6; otherwise 0.
    pub icmp_type: u8,
    /// ICMP and ICMPv6; otherwise 0.
    pub icmp_code: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// An address resolution packet, and whether it is as it should be.
    pub arp: Option<ArpForm>,
    /// Why the packet cannot be judged by its addresses and ports; they may have been read all the same.
    pub problem: Option<Reason>,
}

/// Of an address resolution packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpForm {
    /// A request or a reply for IPv4 over Ethernet.
    Plain,
    /// Anything else.
    Malformed,
}

impl Headers {
    /// A TCP segment that asks for a new connection: SYN without ACK.
    #[inline(always)]
    #[must_use]
    pub const fn opens_tcp(&self) -> bool {
        self.protocol == protocol::TCP && self.tcp_flags & 0x12 == 0x02
    }

    /// ICMP over IPv4, ICMPv6 over IPv6.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp(&self) -> bool {
        match self.version {
            4 => self.protocol == protocol::ICMP,
            _ => self.protocol == protocol::ICMPV6,
        }
    }

    /// An ICMP error (RFC 1122, 3.2.2; RFC 4443, 2.1).
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp_error(&self) -> bool {
        self.is_icmp()
            && match self.version {
                4 => matches!(self.icmp_type, 3 | 4 | 5 | 11 | 12),
                _ => self.icmp_type < 128,
            }
    }
}

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
}

#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}
