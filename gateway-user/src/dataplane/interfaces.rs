//! What the programs are told of interfaces: pools and VLANs, by index; and what a foreign hand has told them.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gateway_ebpf::abi::{self, Interface};

use super::{
    bpf::{self, Map},
    flags::Flags,
    many,
    maps::Maps,
};
use crate::{
    config::{Config, InterfaceRule},
    kernel::TableDifference,
    links::LinkNow,
};

/// The one writer of INTERFACES. Whoever attaches and whoever compares take turns, for system calls on a map and no longer.
pub(super) struct Interfaces {
    maps: Arc<Maps>,
    flags: Arc<Flags>,
    written: Mutex<Written>,
}

#[derive(Default)]
struct Written {
    /// What the table has of ours, by index.
    entries: HashMap<u32, Interface>,
    /// What an earlier process left is gone: everything else is foreign.
    alone: bool,
    /// Put right in passing, and not told of yet.
    found: Vec<TableDifference>,
}

impl Interfaces {
    pub(super) fn new(maps: Arc<Maps>, flags: Arc<Flags>) -> Self {
        Self {
            maps,
            flags,
            written: Mutex::default(),
        }
    }

    /// Says what interfaces have of pools and VLANs. Before a program is attached there, so that it finds its entry. By index, why an entry
    /// cannot be written: the interface then has no VLANs, and no pools if any interface has pools of its own.
    pub(super) fn set(&self, config: &Config, links: &[LinkNow]) -> io::Result<HashMap<u32, String>> {
        let restricts = restricts(config);
        if !restricts {
            self.flags.set(abi::FLAG_INTERFACE_POOLS, false);
        }
        let set = self.map().map(|map| {
            let mut written = self.written();
            if let Err(e) = written.mend(map) {
                tracing::error!("what interfaces have of pools and VLANs cannot be compared: {e}");
            }
            written.write(config, map, links)
        });
        // With an entry missing, its interface has no pools; without the flag it would have all.
        if restricts {
            self.flags.set(abi::FLAG_INTERFACE_POOLS, true);
        }
        set
    }

    /// Removes what [`Self::set`] would not write now.
    pub(super) fn forget(&self, config: &Config, links: &[LinkNow]) -> io::Result<()> {
        let map = self.map()?;
        let mut written = self.written();
        let (held, _) = many::read(map)?;
        let stale = |index: &u32| {
            let link = links.iter().find(|l| l.link.ifindex == *index);
            link.and_then(|l| wanted(config, l)).is_none()
        };
        for index in indexes(&held).filter(stale) {
            bpf::delete(map.fd.as_fd(), &index.to_ne_bytes())?;
            written.entries.remove(&index);
        }
        written.alone = true;
        Ok(())
    }

    /// Puts right what a foreign hand has changed; what it was, since the last call.
    pub(super) fn compare(&self, found: &mut Vec<TableDifference>) -> io::Result<()> {
        let mut written = self.written();
        let looked = written.mend(self.map()?);
        found.append(&mut written.found);
        looked
    }

    fn map(&self) -> io::Result<&Map> {
        self.maps.get(abi::map::INTERFACES)
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Written {
    /// Writes every entry that it can; says of the others why not.
    fn write(&mut self, config: &Config, map: &Map, links: &[LinkNow]) -> HashMap<u32, String> {
        let mut missing = HashMap::new();
        for link in links {
            let Some(rule) = wanted(config, link) else { continue };
            let (ifindex, entry) = (link.link.ifindex, entry(rule));
            match bpf::update(map.fd.as_fd(), &ifindex.to_ne_bytes(), bpf::bytes_of(&entry)) {
                Ok(()) => drop(self.entries.insert(ifindex, entry)),
                Err(e) => {
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
        }
        missing
    }

    /// Sets the table to what was written. What is foreign goes first: it may take the room.
    fn mend(&mut self, map: &Map) -> io::Result<()> {
        let (keys, values) = many::read(map)?;
        let values = values
            .chunks_exact(size_of::<Interface>())
            .map(|v| *bpf::read_plain::<Interface>(v));
        let held: HashMap<u32, Interface> = indexes(&keys).zip(values).collect();
        for (index, entry) in held.iter().filter(|(i, _)| self.alone && !self.entries.contains_key(i)) {
            let deleted = bpf::delete(map.fd.as_fd(), &index.to_ne_bytes());
            self.found.push(difference(*index, Some(entry), None, deleted.is_ok()));
        }
        for (index, entry) in self.entries.iter().filter(|(i, e)| held.get(i) != Some(e)) {
            let written = bpf::update(map.fd.as_fd(), &index.to_ne_bytes(), bpf::bytes_of(entry));
            self.found
                .push(difference(*index, held.get(index), Some(entry), written.is_ok()));
        }
        Ok(())
    }
}

fn difference(index: u32, found: Option<&Interface>, wanted: Option<&Interface>, repaired: bool) -> TableDifference {
    let words = |entry: Option<&Interface>| {
        let Some(entry) = entry else { return "nothing".to_owned() };
        let vlans: Vec<String> = entry.vlans.iter().filter(|v| **v != 0).map(|v| format!("{v:#x}")).collect();
        format!("pools {:#x}, VLANs [{}]", entry.pools, vlans.join(", "))
    };
    TableDifference {
        subject: format!("INTERFACES, index {index}"),
        found: words(found),
        wanted: words(wanted),
        repaired,
    }
}

fn indexes(keys: &[u8]) -> impl Iterator<Item = u32> {
    let (keys, _) = keys.as_chunks::<{ size_of::<u32>() }>();
    keys.iter().map(|key| u32::from_ne_bytes(*key))
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
