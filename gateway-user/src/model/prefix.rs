//! What a session holds: one address, or an IPv6 /64 whole. A /64 is held as one address of it, which no host may have: `fdff:ffff:ffff:ff80`,
//! the first of the identifiers that RFC 2526 keeps from hosts. The kernel's tables know it by the same (`abi::DELEGATED`).

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// The lower half of the address that stands for a /64.
const WHOLE: u64 = 0xfdff_ffff_ffff_ff80;

/// What people and requests write: "10.66.0.5", "10.66.0.5/32", "fd00::5", "fd00::5/128", "fd00:66:1::/64".
///
/// # Errors
/// What it must be.
pub fn parse(text: &str) -> Result<IpAddr, &'static str> {
    const WRONG: &str = "must be one IPv4 or IPv6 address, alone or with /32 or /128, or an IPv6 /64";
    let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
    let address: IpAddr = address.parse().map_err(|_| WRONG)?;
    match (address, length) {
        (IpAddr::V6(a), Some("64")) if u128::from(a) << 64 == 0 => Ok(whole(a)),
        (_, None) | (IpAddr::V4(_), Some("32")) | (IpAddr::V6(_), Some("128")) if network(address).is_some() => {
            Err("is no host's address (RFC 2526)")
        }
        (_, None) | (IpAddr::V4(_), Some("32")) | (IpAddr::V6(_), Some("128")) => plain(address).ok_or("must be written as IPv4"),
        _ => Err(WRONG),
    }
}

/// One address, one spelling: `None` for an IPv4 address inside an IPv6 one (RFC 4291, 2.5.5.2).
#[must_use]
pub fn plain(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V6(a) if Ipv6Addr::to_ipv4_mapped(&a).is_some() => None,
        a => Some(a),
    }
}

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
        for text in ["10.66.0.5", "fd00:66:1::5", "fd00:66:1::/64"] {
            assert_eq!(Shown(parse(text).unwrap()).to_string(), text, "as it was written");
        }
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
