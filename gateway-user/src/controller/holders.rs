//! Which devices have a certificate or key. It holds and finds; it decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hash,
};

use crate::model::DeviceId;

/// Whose an alias is: one device's, or, rarely, that of several whose registrars may not act on the others.
#[derive(Debug)]
pub(super) struct Holders<K> {
    first: HashMap<K, DeviceId>,
    more: BTreeMap<K, BTreeSet<DeviceId>>,
}

impl<K> Default for Holders<K> {
    fn default() -> Self {
        Self {
            first: HashMap::new(),
            more: BTreeMap::new(),
        }
    }
}

impl<K: Copy + Ord + Hash> Holders<K> {
    pub(super) fn add(&mut self, alias: K, id: &DeviceId) {
        let first = self.first.entry(alias).or_insert_with(|| id.clone());
        if first != id {
            self.more.entry(alias).or_default().insert(id.clone());
        }
    }

    pub(super) fn remove(&mut self, alias: &K, id: &DeviceId) {
        let more = self.more.get_mut(alias);
        if self.first.get(alias) != Some(id) {
            more.map(|m| m.remove(id));
        } else if let Some(next) = more.and_then(BTreeSet::pop_first) {
            self.first.insert(*alias, next);
        } else {
            self.first.remove(alias);
        }
        if self.more.get(alias).is_some_and(BTreeSet::is_empty) {
            self.more.remove(alias);
        }
    }

    pub(super) fn of(&self, alias: &K) -> impl Iterator<Item = &DeviceId> + use<'_, K> {
        let more = self.more.get(alias).into_iter().flatten();
        self.first.get(alias).into_iter().chain(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_left_has_it() {
        let [a, b, c] = ["a", "b", "c"].map(|id| id.parse::<DeviceId>().unwrap());
        let mut holders: Holders<u8> = Holders::default();
        let of = |h: &Holders<u8>| h.of(&7).map(ToString::to_string).collect::<Vec<_>>();
        for id in [&b, &a, &c, &a, &b] {
            holders.add(7, id);
        }
        assert_eq!(of(&holders), ["b", "a", "c"]);
        holders.remove(&7, &c);
        holders.remove(&7, &b);
        assert_eq!(of(&holders), ["a"]);
        holders.remove(&7, &c);
        holders.remove(&7, &a);
        assert!(of(&holders).is_empty() && holders.first.is_empty() && holders.more.is_empty());
    }
}
