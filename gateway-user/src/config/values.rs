//! Single values: durations, prefixes, ports, names, paths. Each parser says what is wrong and what would be right.

use std::{
    fmt::Display,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use gateway_ebpf::reason::Reason;
use ipnetwork::IpNetwork;

use super::{
    InterfacePattern, Protocol, Vlan,
    read::{Wrong, shortened},
    special,
};
use crate::model::InterfaceName;

/// A name of [`crate::model`].
pub(super) fn name<T: FromStr<Err: Display>>(text: &str) -> Result<T, Wrong> {
    text.parse()
        .map_err(|e: T::Err| Wrong::new(format!("{:?} is not allowed", shortened(text)), e.to_string()))
}

/// A number with a unit: `ms`, `s`, `m`, `h` or `d`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&str) -> Result<Duration, Wrong> {
    move |text| {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit = match &text[digits..] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => 0,
        };
        let millis = text[..digits]
            .parse::<u64>()
            .ok()
            .filter(|_| unit > 0)
            .and_then(|n| n.checked_mul(unit));
        let Some(value) = millis.map(Duration::from_millis) else {
            let problem = format!("{:?} is not a duration", shortened(text));
            return Err(Wrong::new(
                problem,
                "write a whole number and a unit of ms, s, m, h or d, e.g. \"24h\"",
            ));
        };
        if range.contains(&value) {
            return Ok(value);
        }
        let remedy = format!("write a duration from {:?} to {:?}", range.start(), range.end());
        Err(Wrong::new(format!("{:?} is out of range", shortened(text)), remedy))
    }
}

/// An absolute path without `..`.
pub(super) fn path(text: &str) -> Result<PathBuf, Wrong> {
    let path = Path::new(text);
    let problem = if text.is_empty() || text.contains(char::is_control) {
        "the path is empty or has control characters"
    } else if !path.is_absolute() {
        "the path is relative, and the daemon's working directory is not defined"
    } else if path.components().any(|c| c == Component::ParentDir) {
        "the path goes through \"..\""
    } else {
        return Ok(path.to_owned());
    };
    Err(Wrong::new(problem, "write an absolute path, from / on"))
}

/// A path that fits a Unix socket address.
pub(super) fn socket_path(text: &str) -> Result<PathBuf, Wrong> {
    // sun_path of sockaddr_un (unix(7)), less the terminating zero.
    const MOST: usize = 107;
    let path = path(text)?;
    if text.len() > MOST {
        return Err(Wrong::new(
            format!("the path has {} bytes", text.len()),
            format!("a socket's path has {MOST} at most"),
        ));
    }
    Ok(path)
}

/// Name of a user: the characters that useradd(8) allows.
pub(super) fn user(text: &str) -> Result<String, Wrong> {
    account(text, "user")
}

/// Name of a group: the characters that groupadd(8) allows.
pub(super) fn group(text: &str) -> Result<String, Wrong> {
    account(text, "group")
}

fn account(text: &str, kind: &str) -> Result<String, Wrong> {
    let ok = (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    let problem = || format!("{:?} is not a {kind}'s name", shortened(text));
    let remedy = "write 1 to 32 characters of A-Z a-z 0-9 _ -, the first a letter or _";
    if ok {
        Ok(text.to_owned())
    } else {
        Err(Wrong::new(problem(), remedy))
    }
}

/// A filter of tracing.
pub(super) fn log_level(text: &str) -> Result<String, Wrong> {
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) if !text.is_empty() => Ok(text.to_owned()),
        _ => Err(Wrong::new(
            format!("{:?} is not a log filter", shortened(text)),
            "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a filter such as \"info,gateway_user::links=debug\"",
        )),
    }
}

/// An address and port to listen on.
pub(super) fn listen(text: &str) -> Result<SocketAddr, Wrong> {
    let remedy = "write an address and a port from 1 to 65535: \"[::]:9443\", \"192.0.2.1:9443\"";
    match text.parse::<SocketAddr>() {
        Ok(a) if a.port() == 0 => Err(Wrong::new("port 0 means any port, and no client would find it", remedy)),
        Ok(a) if a.ip().is_multicast() => Err(Wrong::new(format!("{} is a multicast address", a.ip()), remedy)),
        Ok(a) => Ok(a),
        Err(_) => Err(Wrong::new(
            format!("{:?} is not an address and port", shortened(text)),
            remedy,
        )),
    }
}

/// A name, or a prefix and `*`. The loopback interface can have no role.
pub(super) fn interface_pattern(text: &str) -> Result<InterfacePattern, Wrong> {
    let pattern = match text.strip_suffix('*') {
        Some("") => {
            let remedy = "name the interfaces, or what their names start with: \"tun*\"";
            return Err(Wrong::new("\"*\" is every interface, the loopback included", remedy));
        }
        Some(prefix) => InterfacePattern::Prefix(name(prefix)?),
        None => InterfacePattern::Name(name(text)?),
    };
    let loopback = name::<InterfaceName>("lo")?;
    if pattern.matches(&loopback) {
        let remedy = "name the interfaces that lead to devices or to the corporate network";
        return Err(Wrong::new(
            format!("{text:?} means the loopback interface, which can have no role"),
            remedy,
        ));
    }
    Ok(pattern)
}

/// An address.
pub(super) fn address(text: &str) -> Result<IpAddr, Wrong> {
    let address: IpAddr = text.parse().map_err(|_| {
        Wrong::new(
            format!("{:?} is not an IP address", shortened(text)),
            "write it without prefix length, e.g. \"10.66.0.1\"",
        )
    })?;
    mapped(address)?;
    Ok(address)
}

/// An address that a route may lead to.
pub(super) fn next_hop(text: &str) -> Result<IpAddr, Wrong> {
    let address = address(text)?;
    if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
        return Err(Wrong::new(format!("{address} is no router's address"), "name the next hop"));
    }
    Ok(address)
}

/// A prefix without host bits; an address alone is its /32 or /128.
pub(super) fn prefix(text: &str) -> Result<IpNetwork, Wrong> {
    let prefix: IpNetwork = text.parse().map_err(|_| {
        Wrong::new(
            format!("{:?} is not a prefix", shortened(text)),
            "write address and length, e.g. \"10.66.0.0/16\" or \"fd00:66::/64\"",
        )
    })?;
    mapped(prefix.ip())?;
    if prefix.ip() != prefix.network() {
        let remedy = format!(
            "write {}/{}, or {}/{}",
            prefix.network(),
            prefix.prefix(),
            prefix.ip(),
            full(&prefix)
        );
        return Err(Wrong::new(format!("{prefix} has host bits set"), remedy));
    }
    Ok(prefix)
}

/// A prefix whose addresses can be devices'.
pub(super) fn pool_prefix(text: &str) -> Result<IpNetwork, Wrong> {
    let prefix = prefix(text)?;
    let zero = prefix
        .is_ipv6()
        .then(|| ZERO6.parse().ok())
        .flatten()
        .filter(|z| overlaps(z, &prefix))
        .map(|z| (z, ZERO6_IS.to_owned()));
    let special = special::touching(&prefix).map(|(range, reason)| (range, reason.name().replace('_', " ")));
    if let Some((range, what)) = zero.or(special) {
        let problem = format!("{prefix} touches {range}, {what}");
        return Err(Wrong::new(problem, "give devices addresses of a network of their own"));
    }
    // Each /16 takes a table of 64 KiB in the kernel.
    if prefix.is_ipv4() && prefix.prefix() < SHORTEST4 {
        let remedy = format!("write prefixes of /{SHORTEST4} or longer");
        return Err(Wrong::new(format!("{prefix} is shorter than /{SHORTEST4}"), remedy));
    }
    Ok(prefix)
}

/// A prefix that a rule may name: a special range only if a packet of it can mean something.
pub(super) fn rule_prefix(text: &str) -> Result<IpNetwork, Wrong> {
    let prefix = prefix(text)?;
    match special::within(&prefix) {
        Some(reason @ (Reason::Unspecified | Reason::Loopback)) => Err(Wrong::new(
            format!("{prefix} is {}: no packet of it passes, whatever a rule says", reason.name()),
            "leave it out",
        )),
        _ => Ok(prefix),
    }
}

/// A VLAN id, or an outer and an inner one.
pub(super) fn vlan(text: &str) -> Result<Vlan, Wrong> {
    let id = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse::<u16>().ok()).flatten();
    let (outer, inner) = match text.split_once('.') {
        None => (id(text), None),
        Some((outer, inner)) => (id(outer), Some(id(inner))),
    };
    let right = |n: &u16| (1..=4094).contains(n);
    match (outer.filter(right), inner.map(|i| i.filter(right))) {
        (Some(outer), None) => Ok(Vlan { outer, inner: None }),
        (Some(outer), Some(Some(inner))) => Ok(Vlan {
            outer,
            inner: Some(inner),
        }),
        _ => Err(Wrong::new(
            format!("{:?} is not a VLAN", shortened(text)),
            "write an id from 1 to 4094, 100, or an outer and an inner one, \"200.30\"",
        )),
    }
}

/// Whether two prefixes share an address.
pub(super) fn overlaps(a: &IpNetwork, b: &IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// `any`, a name, or a protocol number.
pub(super) fn protocol(text: &str) -> Result<Protocol, Wrong> {
    let remedy = "write \"tcp\", \"udp\", \"icmp\" (IPv6 too), \"any\", or an IP protocol number such as \"47\"";
    match (text, text.parse::<u8>()) {
        ("any", _) => Ok(Protocol::Any),
        ("tcp", _) => Ok(Protocol::Tcp),
        ("udp", _) => Ok(Protocol::Udp),
        ("icmp", _) => Ok(Protocol::Icmp),
        (_, Ok(1 | 58)) => Err(Wrong::new(format!("{text} has a name"), "write \"icmp\"")),
        (_, Ok(6)) => Err(Wrong::new("6 has a name", "write \"tcp\"")),
        (_, Ok(17)) => Err(Wrong::new("17 has a name", "write \"udp\"")),
        (_, Ok(n)) => Ok(Protocol::Number(n)),
        (_, Err(_)) => Err(Wrong::new(format!("{:?} is not a protocol", shortened(text)), remedy)),
    }
}

/// A port or a range of ports.
pub(super) fn ports(text: &str) -> Result<RangeInclusive<u16>, Wrong> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    // `parse` alone would take "+443".
    let port = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse::<u16>().ok()).flatten();
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first > last => Err(Wrong::new(
            format!("the range {text} is reversed"),
            format!("write \"{last}-{first}\""),
        )),
        (Some(0), Some(_)) => Err(Wrong::new("port 0 is not used on the wire", "write ports from 1 to 65535")),
        (Some(first), Some(last)) => Ok(first..=last),
        _ => Err(Wrong::new(
            format!("{:?} is not a port or a range", shortened(text)),
            "write \"443\" or \"8000-8100\", from 1 to 65535",
        )),
    }
}

/// A gateway's name as a VPN client takes it: `HOST`, `HOST:PORT` or `https://HOST[:PORT][/PATH]`. HOST is a name (RFC 1123), an IPv4
/// address or an IPv6 address in brackets; PATH has unreserved characters (RFC 3986) and `/` only.
pub(super) fn gateway_uri(text: &str) -> Result<String, Wrong> {
    let (rest, is_url) = text.strip_prefix("https://").map_or((text, false), |rest| (rest, true));
    let (authority, path) = match rest.find('/') {
        Some(slash) if is_url => rest.split_at(slash),
        _ => (rest, ""),
    };
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((v6, "")) => (Host::V6(v6), None),
        Some((v6, after)) => (Host::V6(v6), Some(after.strip_prefix(':').unwrap_or("?"))),
        None => match authority.split_once(':') {
            Some((host, port)) => (Host::Name(host), Some(port)),
            None => (Host::Name(authority), None),
        },
    };
    let port_ok = port.is_none_or(|p| ports(p).is_ok_and(|r| r.start() == r.end()) && !p.contains('-'));
    let path_ok = path.len() <= 256 && path.chars().all(|c| c.is_ascii_alphanumeric() || "/-._~".contains(c));
    if host.is_valid() && port_ok && path_ok {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{:?} is not a gateway's name", shortened(text)),
        "write \"vpn.example.org\", \"vpn.example.org:1194\" or \"https://vpn.example.org/group\"",
    ))
}

enum Host<'a> {
    V6(&'a str),
    Name(&'a str),
}

impl Host<'_> {
    fn is_valid(&self) -> bool {
        match self {
            Host::V6(text) => text.parse::<Ipv6Addr>().is_ok(),
            Host::Name(text) => {
                let label = |l: &str| {
                    (1..=63).contains(&l.len())
                        && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
                        && !l.starts_with('-')
                        && !l.ends_with('-')
                };
                text.len() <= 253 && text.split('.').all(label)
            }
        }
    }
}

/// A pool with a prefix as long as this needs at most 256 tables of 64 KiB in the kernel.
const SHORTEST4: u8 = 8;

/// What the table of IPv6 addresses cannot hold.
const ZERO6: &str = "::/64";
const ZERO6_IS: &str = "where unspecified, loopback and v4-mapped addresses are";

fn mapped(address: IpAddr) -> Result<(), Wrong> {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(Wrong::new(
                format!("{address} is a v4-mapped IPv6 address"),
                format!("write it as IPv4, {v4}"),
            )),
            None => Ok(()),
        },
        IpAddr::V4(_) => Ok(()),
    }
}

fn full(prefix: &IpNetwork) -> u8 {
    if prefix.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let parse = duration(Duration::from_millis(100)..=Duration::from_secs(86_400));
        for (text, ms) in [
            ("100ms", 100),
            ("5s", 5000),
            ("2m", 120_000),
            ("24h", 86_400_000),
            ("1d", 86_400_000),
        ] {
            assert_eq!(parse(text).ok(), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "5 s",
            "-5s",
            "+5s",
            "1.5h",
            "5S",
            "99ms",
            "25h",
            "99999999999999999999d",
            "18446744073709551615d",
            "ä",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_ranges() {
        for (text, range) in [("443", 443..=443), ("8000-8100", 8000..=8100), ("1-65535", 1..=65535)] {
            assert_eq!(ports(text).ok(), Some(range));
        }
        for bad in [
            "",
            "0",
            "0-5",
            "65536",
            "8100-8000",
            "1-2-3",
            "-5",
            "5-",
            "+443",
            " 443",
            "http",
        ] {
            assert!(ports(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn gateway_uris() {
        let long = format!("{}.example.org", "a".repeat(63));
        for good in [
            "vpn.example.org",
            "vpn",
            "vpn.example.org:1194",
            "192.0.2.1",
            "[2001:db8::1]:443",
            "https://vpn.example.org",
            "https://vpn:8443/staff/a-b",
            &long,
        ] {
            assert!(gateway_uri(good).is_ok(), "{good}");
        }
        let too_long = "a.".repeat(127) + "aa";
        for bad in [
            "",
            "vpn.example.org.",
            ".vpn",
            "-vpn",
            "vpn-",
            "v_pn",
            "vpn:0",
            "vpn:",
            "vpn:65536",
            "vpn:1-2",
            "vpn/path",
            "http://vpn",
            "https://",
            "https://user@vpn",
            "https://vpn/?q",
            "https://vpn/a b",
            "vpn\n",
            "vpn\0",
            "vpn\u{7f}",
            "vpn\u{202e}",
            "ä.org",
            "[::1",
            "[zz]",
            "[::1]443",
            &"a".repeat(64),
            &too_long,
        ] {
            assert!(gateway_uri(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pool_prefixes_that_can_be_no_devices() {
        for bad in [
            "0.0.0.0/0",
            "0.0.0.0/8",
            "127.0.0.0/8",
            "127.1.0.0/16",
            "169.254.0.0/16",
            "224.0.0.0/4",
            "239.1.2.3/32",
            "240.0.0.0/8",
            "10.0.0.0/7",
            "::/0",
            "::/64",
            "::1/128",
            "::ffff:10.0.0.0/104",
            "fe80::/64",
            "ff02::/16",
            "2002:a00::/24",
            "64:ff9b:1::/56",
            "192.88.99.0/25",
            "10.66.0.1/16",
            "10.66.0.0/33",
            "fd00::1/64",
            "x",
        ] {
            assert!(pool_prefix(bad).is_err(), "{bad}");
        }
        for good in [
            "10.0.0.0/8",
            "10.66.0.0/16",
            "100.64.0.0/10",
            "10.0.0.5/32",
            "fd00:66::/64",
            "2001:db8::/32",
        ] {
            assert!(pool_prefix(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn paths() {
        for bad in ["", "relative", "./x", "/a/../b", "/a\nb", "/a\0b"] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        assert!(path("/var/lib/lazaret").is_ok());
        assert!(socket_path(&format!("/{}", "a".repeat(107))).is_err());
    }

    #[test]
    fn interfaces() {
        for bad in ["", "*", "lo", "l*", "lo*", "a/b", "sixteen-letters-", "a b", "tun*0"] {
            assert!(interface_pattern(bad).is_err(), "{bad:?}");
        }
        for good in ["tun0", "tun*", "lon1", "wg-quarantine*"] {
            assert!(interface_pattern(good).is_ok(), "{good:?}");
        }
    }
}
