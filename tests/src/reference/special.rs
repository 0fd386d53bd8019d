//! The table of special addresses, as the page has it.

use std::{net::IpAddr, sync::LazyLock};

use ipnetwork::IpNetwork;

/// In this order: "the rest of" is what an earlier line does not hold.
const TABLE: &[(&str, &str)] = &[
    ("0.0.0.0/32", "unspecified"),
    ("::/128", "unspecified"),
    ("127.0.0.0/8", "loopback"),
    ("::1/128", "loopback"),
    ("169.254.0.0/16", "link_local"),
    ("fe80::/10", "link_local"),
    ("224.0.0.0/4", "multicast"),
    ("ff00::/8", "multicast"),
    ("255.255.255.255/32", "broadcast"),
    ("0.0.0.0/8", "reserved_address"),
    ("240.0.0.0/4", "reserved_address"),
    ("::ffff:0:0/96", "mapped"),
    ("::/96", "mapped"),
    ("2002::/16", "six_to_four"),
    ("192.88.99.0/24", "six_to_four"),
    ("64:ff9b::/96", "nat64"),
    ("64:ff9b:1::/48", "nat64"),
];

static RANGES: LazyLock<Vec<(IpNetwork, &str)>> = LazyLock::new(|| {
    let parsed = TABLE
        .iter()
        .map(|(range, reason)| (range.parse().unwrap_or_else(|e| panic!("{range}: {e}")), *reason));
    parsed.collect()
});

/// The reason of an address that is special, and the range that makes it so.
pub(super) fn special(address: IpAddr) -> Option<(&'static str, IpNetwork)> {
    let found = RANGES.iter().find(|(range, _)| range.contains(address));
    found.map(|(range, reason)| (*reason, *range))
}

/// Whether a rule's prefix names an address: it holds it, and if the address is special, lies within its range.
pub(super) fn names(prefix: IpNetwork, address: IpAddr) -> bool {
    prefix.contains(address)
        && special(address).is_none_or(|(_, range)| range.contains(prefix.network()) && prefix.prefix() >= range.prefix())
}
