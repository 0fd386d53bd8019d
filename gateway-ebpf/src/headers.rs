//! What the parser says about a packet, and nothing about whether it may pass.

use crate::{
    abi::{ColdKey, DELEGATED},
    decide::Verdict,
    judge::Ends,
    reason::Reason,
};

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

/// The key of an IPv6 address's /64 in [`crate::abi::map::COLD`].
#[inline(always)]
#[must_use]
pub const fn cold_key_of_prefix(a: Address) -> ColdKey {
    let low = DELEGATED.to_ne_bytes();
    cold_key(
        6,
        [
            a[0],
            a[1],
            u32::from_ne_bytes([low[0], low[1], low[2], low[3]]),
            u32::from_ne_bytes([low[4], low[5], low[6], low[7]]),
        ],
    )
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
    /// There is more to the packet, in [`Rare`].
    pub rare: bool,
    /// Why the packet cannot be judged by its addresses and ports; they may have been read all the same.
    pub problem: Option<Reason>,
}

/// What only few packets have. It is apart from [`Headers`], so that those that do not have it do not pay for it, and means something only
/// if [`Headers::rare`] says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rare {
    /// VLAN as in [`crate::abi::Interface::vlans`]: outer id in bits 0-11, inner id in bits 16-27; 0: none.
    pub vlan: u32,
    /// An Ethernet header was left in front of the packet.
    pub stale: bool,
    /// The packet is a fragment.
    pub fragment: Fragment,
    /// The packet that an ICMP error quotes, as if it were of an established connection; version 0: there is none.
    pub quote: Headers,
    /// Filled in by the decision: what was judged by the policy, for the shadow policy to judge too.
    pub judged: Judged,
    /// Of the decision: the ends of what is judged.
    pub ends: Ends,
    /// Of the decision: what it has come to.
    pub verdict: Verdict,
    /// Of the decision: what the destination's policy says.
    pub second: Verdict,
}

impl Rare {
    /// Makes it hold nothing, with few stores.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.vlan = 0;
        self.stale = false;
        self.fragment.kind = FragmentKind::None;
        self.quote.version = 0;
        self.judged = Judged::Nothing;
    }
}

/// Which headers came as far as the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// None: something else decided before.
    #[default]
    Nothing,
    /// The packet's own.
    Packet,
    /// Those of the packet that it quotes.
    Quote,
}

/// A fragment's place in its datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, as it lies in the packet.
    pub id: u32,
    /// Where its data begins, bytes.
    pub offset: u16,
    /// Bytes of data, at least 1; it ends at 65,535 at most.
    pub length: u16,
    /// More fragments follow.
    pub more: bool,
    /// Which of them it is.
    pub kind: FragmentKind,
}

/// Which fragment of a datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FragmentKind {
    /// The packet is whole.
    #[default]
    None,
    /// The first, with the transport header.
    First,
    /// Another one: no transport header.
    Later,
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
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

#[inline(always)]
const fn join(first: u32, second: u32) -> u64 {
    if cfg!(target_endian = "little") {
        first as u64 | (second as u64) << 32
    } else {
        (first as u64) << 32 | second as u64
    }
}
