//! The special address ranges of docs/verdict.md, as the configuration and the policy compiler see them: which one a prefix lies in, and
//! which addresses a rule's prefix names. How a packet with such an address is judged is `gateway_ebpf::decide`'s.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use gateway_ebpf::reason::Reason;
use ipnetwork::IpNetwork;

/// Network, prefix length, and the reason of an address that has no narrower range.
pub(crate) type Range<T> = (T, u8, Reason);

/// IPv4, host byte order.
pub(crate) const V4: [Range<u32>; 8] = [
    (v4(0, 0, 0, 0), 32, Reason::Unspecified),
    (v4(0, 0, 0, 0), 8, Reason::ReservedAddress),
    (v4(127, 0, 0, 0), 8, Reason::Loopback),
    (v4(169, 254, 0, 0), 16, Reason::LinkLocal),
    (v4(192, 88, 99, 0), 24, Reason::SixToFour),
    (v4(224, 0, 0, 0), 4, Reason::Multicast),
    (v4(255, 255, 255, 255), 32, Reason::Broadcast),
    (v4(240, 0, 0, 0), 4, Reason::ReservedAddress),
];

/// IPv6, host byte order.
pub(crate) const V6: [Range<u128>; 9] = [
    (0, 128, Reason::Unspecified),
    (1, 128, Reason::Loopback),
    (0, 96, Reason::Mapped),
    (0xffff_0000_0000, 96, Reason::Mapped),
    (0x0064_ff9b << 96, 96, Reason::Nat64),
    (0x0064_ff9b_0001 << 80, 48, Reason::Nat64),
    (0x2002 << 112, 16, Reason::SixToFour),
    (0xfe80 << 112, 10, Reason::LinkLocal),
    (0xff00 << 112, 8, Reason::Multicast),
];

/// The narrowest range that a prefix lies in, as its reason.
pub(crate) fn within(prefix: &IpNetwork) -> Option<Reason> {
    let narrowest = |found: &mut dyn Iterator<Item = (u8, Reason)>| found.max_by_key(|(length, _)| *length).map(|(_, r)| r);
    match prefix {
        IpNetwork::V4(p) => {
            let p = (u32::from(p.network()), p.prefix());
            let mut found = V4.iter().filter(|r| lies4(p, (r.0, r.1))).map(|r| (r.1, r.2));
            narrowest(&mut found)
        }
        IpNetwork::V6(p) => {
            let p = (u128::from(p.network()), p.prefix());
            let mut found = V6.iter().filter(|r| lies6(p, (r.0, r.1))).map(|r| (r.1, r.2));
            narrowest(&mut found)
        }
    }
}

/// A range that a prefix shares addresses with, and its reason.
pub(crate) fn touching(prefix: &IpNetwork) -> Option<(IpNetwork, Reason)> {
    let four = V4.iter().map(|r| (IpAddr::from(Ipv4Addr::from(r.0)), r.1, r.2));
    let six = V6.iter().map(|r| (IpAddr::from(Ipv6Addr::from(r.0)), r.1, r.2));
    four.chain(six)
        .filter_map(|(network, length, reason)| Some((IpNetwork::new(network, length).ok()?, reason)))
        .find(|(range, _)| range.contains(prefix.network()) || prefix.contains(range.network()))
}

/// The IPv4 addresses that a rule with this prefix names, as ranges, first to last, ascending: all of it but the special ones, unless
/// the prefix lies in their range.
pub(crate) fn named4(network: u32, length: u8) -> Vec<(u32, u32)> {
    let (first, last) = ends4(network, length);
    let mut cut: Vec<(u32, u32)> = V4
        .iter()
        .filter(|r| !lies4((network, length), (r.0, r.1)))
        .map(|r| ends4(r.0, r.1))
        .collect();
    cut.sort_unstable();
    let (mut named, mut from) = (Vec::new(), u64::from(first));
    for (cut_first, cut_last) in cut.into_iter().filter(|(f, l)| *f <= last && *l >= first) {
        if u64::from(cut_first) > from {
            named.push((from as u32, cut_first - 1));
        }
        from = from.max(u64::from(cut_last) + 1);
    }
    if from <= u64::from(last) {
        named.push((from as u32, last));
    }
    named
}

/// Whether one IPv6 prefix lies in another.
pub(crate) fn lies6(inner: (u128, u8), outer: (u128, u8)) -> bool {
    outer.1 <= inner.1 && inner.0 & mask6(outer.1) == outer.0
}

/// The mask of an IPv6 prefix length, host byte order.
pub(crate) fn mask6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

fn lies4(inner: (u32, u8), outer: (u32, u8)) -> bool {
    outer.1 <= inner.1 && ends4(inner.0, outer.1).0 == outer.0
}

fn ends4(network: u32, length: u8) -> (u32, u32) {
    let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
    (network & mask, network | !mask)
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(prefix: &str) -> Option<Reason> {
        within(&prefix.parse().unwrap())
    }

    #[test]
    fn a_prefix_lies_in_the_narrowest_range_around_it() {
        for (prefix, want) in [
            ("0.0.0.0/0", None),
            ("10.0.0.0/8", None),
            ("0.0.0.0/32", Some(Reason::Unspecified)),
            ("0.0.0.0/8", Some(Reason::ReservedAddress)),
            ("127.1.0.0/16", Some(Reason::Loopback)),
            ("192.88.99.1/32", Some(Reason::SixToFour)),
            ("239.0.0.0/8", Some(Reason::Multicast)),
            ("224.0.0.0/3", None),
            ("240.0.0.0/4", Some(Reason::ReservedAddress)),
            ("255.255.255.255/32", Some(Reason::Broadcast)),
            ("::/0", None),
            ("::/128", Some(Reason::Unspecified)),
            ("::1/128", Some(Reason::Loopback)),
            ("::/96", Some(Reason::Mapped)),
            ("::/64", None),
            ("fe80::/64", Some(Reason::LinkLocal)),
            ("ff02::1/128", Some(Reason::Multicast)),
            ("2002:a00::/24", Some(Reason::SixToFour)),
            ("64:ff9b::/96", Some(Reason::Nat64)),
            ("64:ff9b:1::/64", Some(Reason::Nat64)),
            ("2001:db8::/32", None),
        ] {
            assert_eq!(reason(prefix), want, "{prefix}");
        }
    }

    #[test]
    fn a_wide_prefix_names_no_special_address_and_a_narrow_one_its_own() {
        let named = |a: [u8; 4], length| named4(u32::from_be_bytes(a), length);
        let range = |a: [u8; 4], b: [u8; 4]| (u32::from_be_bytes(a), u32::from_be_bytes(b));
        assert_eq!(
            named([0; 4], 0),
            [
                range([1, 0, 0, 0], [126, 255, 255, 255]),
                range([128, 0, 0, 0], [169, 253, 255, 255]),
                range([169, 255, 0, 0], [192, 88, 98, 255]),
                range([192, 88, 100, 0], [223, 255, 255, 255]),
            ]
        );
        assert_eq!(named([0; 4], 8), [range([0, 0, 0, 1], [0, 255, 255, 255])]);
        assert_eq!(named([240, 0, 0, 0], 4), [range([240, 0, 0, 0], [255, 255, 255, 254])]);
        assert_eq!(named([224, 0, 0, 0], 3), []);
        assert_eq!(named([224, 0, 0, 0], 24), [range([224, 0, 0, 0], [224, 0, 0, 255])]);
        assert_eq!(named([255; 4], 32), [range([255; 4], [255; 4])]);
        assert_eq!(named([10, 1, 0, 0], 16), [range([10, 1, 0, 0], [10, 1, 255, 255])]);
    }
}
