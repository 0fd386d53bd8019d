//! Addresses that stand for something else than a host: by arithmetic on the address alone. Which packets they stop is the decision's business.

use crate::{
    headers::{Address, words},
    reason::Reason,
};

/// What an address is; `None`: an ordinary one.
#[inline(always)]
#[must_use]
pub fn special(version: u8, address: Address) -> Option<Reason> {
    if version == 4 {
        return special4(u32::from_be(address[0]));
    }
    let [hi, lo] = words(address);
    special6(u64::from_be(hi), u64::from_be(lo))
}

/// IPv4 (RFC 6890, RFC 7526), host byte order.
#[inline(always)]
const fn special4(a: u32) -> Option<Reason> {
    match a >> 24 {
        0 if a == 0 => Some(Reason::Unspecified),
        0 => Some(Reason::ReservedAddress),
        127 => Some(Reason::Loopback),
        169 if a >> 16 == 0xa9fe => Some(Reason::LinkLocal),
        192 if a >> 8 == 0xc0_5863 => Some(Reason::SixToFour),
        224..=239 => Some(Reason::Multicast),
        240.. if a == u32::MAX => Some(Reason::Broadcast),
        240.. => Some(Reason::ReservedAddress),
        _ => None,
    }
}

/// IPv6 (RFC 4291, RFC 3056, RFC 6052, RFC 8215), host byte order. A called function in the kernel.
#[inline(never)]
const fn special6(hi: u64, lo: u64) -> Option<Reason> {
    let reason = match (hi, lo) {
        (0, 0) => Reason::Unspecified,
        (0, 1) => Reason::Loopback,
        (0, _) if lo >> 32 == 0 || lo >> 32 == 0xffff => Reason::Mapped,
        (0x0064_ff9b_0000_0000, _) if lo >> 32 == 0 => Reason::Nat64,
        _ if hi >> 16 == 0x0064_ff9b_0001 => Reason::Nat64,
        _ if hi >> 48 == 0x2002 => Reason::SixToFour,
        _ if hi >> 54 == 0xfe80 >> 6 => Reason::LinkLocal,
        _ if hi >> 56 == 0xff => Reason::Multicast,
        _ => return None,
    };
    Some(reason)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn of(text: &str) -> Option<&'static str> {
        let (version, octets) = match text.parse::<IpAddr>().unwrap() {
            IpAddr::V4(a) => (4, [&a.octets()[..], &[0; 12]].concat()),
            IpAddr::V6(a) => (6, a.octets().to_vec()),
        };
        let word = |i: usize| u32::from_ne_bytes(octets[i * 4..][..4].try_into().unwrap());
        special(version, [word(0), word(1), word(2), word(3)]).map(Reason::name)
    }

    #[test]
    fn ranges_begin_and_end_where_they_should() {
        for (text, name) in [
            ("0.0.0.0", "unspecified"),
            ("0.0.0.1", "reserved_address"),
            ("0.255.255.255", "reserved_address"),
            ("1.0.0.0", ""),
            ("126.255.255.255", ""),
            ("127.0.0.0", "loopback"),
            ("127.255.255.255", "loopback"),
            ("128.0.0.0", ""),
            ("169.253.255.255", ""),
            ("169.254.0.0", "link_local"),
            ("169.254.255.255", "link_local"),
            ("169.255.0.0", ""),
            ("192.88.98.255", ""),
            ("192.88.99.0", "six_to_four"),
            ("192.88.99.255", "six_to_four"),
            ("192.88.100.0", ""),
            ("223.255.255.255", ""),
            ("224.0.0.0", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.0", "reserved_address"),
            ("255.255.255.254", "reserved_address"),
            ("255.255.255.255", "broadcast"),
            ("::", "unspecified"),
            ("::1", "loopback"),
            ("::2", "mapped"),
            ("::10.66.0.5", "mapped"),
            ("::ffff:10.66.0.5", "mapped"),
            ("::ffff:ffff:ffff", "mapped"),
            ("::1:0:0", ""),
            ("::fffe:0:0", ""),
            ("0:0:0:1::", ""),
            ("64:ff9a:ffff::", ""),
            ("64:ff9b::", "nat64"),
            ("64:ff9b::10.77.0.1", "nat64"),
            ("64:ff9b::1:0:0", ""),
            ("64:ff9b:0:1::", ""),
            ("64:ff9b:1::", "nat64"),
            ("64:ff9b:1:ffff::1", "nat64"),
            ("64:ff9b:2::", ""),
            ("2001:ffff::", ""),
            ("2002::", "six_to_four"),
            ("2002:ffff::1", "six_to_four"),
            ("2003::", ""),
            ("fe7f:ffff::", ""),
            ("fe80::", "link_local"),
            ("febf:ffff::", "link_local"),
            ("fec0::", ""),
            ("feff:ffff::", ""),
            ("ff00::", "multicast"),
            ("ff02::1", "multicast"),
            ("fd66::5", ""),
        ] {
            assert_eq!(of(text).unwrap_or(""), name, "{text}");
        }
    }
}
