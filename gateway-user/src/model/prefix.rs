//! What a session holds: one address, or an IPv6 /64 whole. A /64 is held as one address of it, which no host may have: `fdff:ffff:ffff:ff80`,
//! the first of the identifiers that RFC 2526 keeps from hosts. The kernel's tables know it by the same (`abi::DELEGATED`).

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// The lower half of the address that stands for a /64.
const WHOLE: u64 = 0xfdff_ffff_ffff_ff80;

/// The address that stands for the /64 of an address.
#[must_use]
pub fn whole(of: Ipv6Addr) -> IpAddr {
    let upper = u128::from(of) >> 64 << 64;
    Ipv6Addr::from(upper | u128::from(WHOLE)).into()
}

/// The network of the /64 that an address stands for; `None`: it stands for itself.
#[must_use]
pub fn network(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(a) if u128::from(a) as u64 == WHOLE => Some((u128::from(a) >> 64 << 64).into()),
        _ => None,
    }
}

/// The address that stands for the /64 in which an address lies; `None`: it is IPv4, or stands for a /64 itself.
#[must_use]
pub fn around(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V6(a) if network(address).is_none() => Some(whole(a)),
        _ => None,
    }
}

/// Whether two holds have an address in common.
#[must_use]
pub fn overlap(a: IpAddr, b: IpAddr) -> bool {
    a == b || around(a) == Some(b) || around(b) == Some(a)
}

/// A hold as people write it: `fd00:66:1::/64`, or the address alone.
#[derive(Clone, Copy, Debug)]
pub struct Shown(pub IpAddr);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match network(self.0) {
            Some(network) => write!(f, "{network}/64"),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_64_is_held_as_an_address_of_it() {
        let held = whole("fd00:66:1::5".parse().unwrap());
        assert_eq!(held, ip("fd00:66:1:0:fdff:ffff:ffff:ff80"));
        assert_eq!(network(held), Some("fd00:66:1::".parse().unwrap()));
        assert_eq!(Shown(held).to_string(), "fd00:66:1::/64");
        assert_eq!(network(ip("fd00:66:1::")), None);
        assert_eq!(Shown(ip("fd00:66:1::")).to_string(), "fd00:66:1::");
        assert_eq!(around(ip("fd00:66:1:0:ffff::9")), Some(held));
        assert_eq!((around(held), around(ip("10.0.0.1"))), (None, None));
        for (a, b, both) in [
            ("fd00:66:1::5", "fd00:66:1:0:fdff:ffff:ffff:ff80", true),
            ("fd00:66:1::5", "fd00:66:1::5", true),
            ("fd00:66:1::5", "fd00:66:1::6", false),
            ("fd00:66:1:1::5", "fd00:66:1:0:fdff:ffff:ffff:ff80", false),
            ("10.0.0.1", "10.0.0.1", true),
        ] {
            assert_eq!((overlap(ip(a), ip(b)), overlap(ip(b), ip(a))), (both, both), "{a} {b}");
        }
    }
}
