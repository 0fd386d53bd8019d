//! What the programs are told of interfaces: pools and VLANs, by index.

use std::{collections::HashMap, io, os::fd::AsFd};

use gateway_ebpf::abi::{self, Interface};

use super::{bpf, many, mapping::Mapping, maps::Maps, tables::set_flag};
use crate::{
    config::{Config, InterfaceRule},
    links::LinkNow,
};

/// Says what interfaces have of pools and VLANs. Before a program is attached there, so that it finds its entry. By index, why an entry cannot be
/// written: the interface then has no VLANs, and no pools if any interface has pools of its own.
pub(super) fn set(config: &Config, control: &Mapping, maps: &Maps, links: &[LinkNow]) -> io::Result<HashMap<u32, String>> {
    let restricts = restricts(config);
    if !restricts {
        set_flag(control, abi::FLAG_INTERFACE_POOLS, false);
    }
    let written = maps.get(abi::map::INTERFACES).map(|map| write(config, map, links));
    // With an entry missing, its interface has no pools; without the flag it would have all.
    if restricts {
        set_flag(control, abi::FLAG_INTERFACE_POOLS, true);
    }
    written
}

/// Writes every entry that it can; says of the others why not.
fn write(config: &Config, map: &bpf::Map, links: &[LinkNow]) -> HashMap<u32, String> {
    let mut missing = HashMap::new();
    for link in links {
        let Some(rule) = wanted(config, link) else { continue };
        let ifindex = link.link.ifindex;
        if let Err(e) = bpf::update(map.fd.as_fd(), &ifindex.to_ne_bytes(), bpf::bytes_of(&entry(rule))) {
            let why = match e.raw_os_error() {
                Some(libc::E2BIG) => format!("the table of interfaces is full ({} entries)", abi::MAX_INTERFACES),
                _ => e.to_string(),
            };
            missing.insert(
                ifindex,
                format!("its pools and VLANs cannot be set, so that it has none: {why}"),
            );
        }
    }
    missing
}

/// Removes what [`set`] would not write now.
pub(super) fn forget(config: &Config, maps: &Maps, links: &[LinkNow]) -> io::Result<()> {
    let map = maps.get(abi::map::INTERFACES)?;
    let (held, _) = many::read(map)?;
    let stale = |key: &&[u8]| {
        let link = links.iter().find(|l| l.link.ifindex.to_ne_bytes() == **key);
        link.and_then(|l| wanted(config, l)).is_none()
    };
    let mut stale = held.chunks_exact(size_of::<u32>()).filter(stale);
    stale.try_for_each(|key| bpf::delete(map.fd.as_fd(), key))
}

/// Whether any interface has pools of its own: then each needs an entry.
fn restricts(config: &Config) -> bool {
    config.interfaces.iter().any(|r| r.pools.is_some())
}

/// The rule of an interface that needs an entry.
fn wanted<'c>(config: &'c Config, link: &LinkNow) -> Option<&'c InterfaceRule> {
    let rule = config.interfaces.iter().find(|r| r.name.matches(&link.link.name))?;
    (restricts(config) || !rule.vlans.is_empty()).then_some(rule)
}

/// As the programs read it.
fn entry(rule: &InterfaceRule) -> Interface {
    let mut vlans = [0; abi::MAX_VLANS];
    for (to, vlan) in vlans.iter_mut().zip(&rule.vlans) {
        *to = u32::from(vlan.outer) | u32::from(vlan.inner.unwrap_or(0)) << 16;
    }
    Interface {
        pools: rule.pools_mask(),
        vlans,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};
    use crate::{config::Vlan, model::PoolId};

    #[test]
    fn an_entry_has_the_pools_as_bits_and_the_vlans_as_words() {
        let mut rule = fixtures::config().interfaces.remove(0);
        assert_eq!(entry(&rule).pools, u64::MAX);
        rule.pools = Some(vec![PoolId(1), PoolId(63)]);
        rule.vlans = vec![
            Vlan { outer: 100, inner: None },
            Vlan {
                outer: 4094,
                inner: Some(30),
            },
        ];
        let e = entry(&rule);
        assert_eq!((e.pools, &e.vlans[..3]), (1 << 1 | 1 << 63, &[100, 4094 | 30 << 16, 0][..]));
    }
}
