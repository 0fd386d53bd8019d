//! Who has which class number. Pure: what it says is written into `Control::classes` by [`super::tables`].
//!
//! Numbers 1 to 63 are addresses at rest, by home pool. The others are given out for a pool, with or without lease, on the interface of a
//! session, and go on meaning that until nobody uses them and another needs a number.

use std::collections::HashMap;

use gateway_ebpf::abi::{
    CLASSES, Class, ClassEntry, ENTRY_DELEGATED, ENTRY_LEASED, MAX_POOLS, class_entry, entry_ifindex, entry_pool,
};

use crate::{
    config::Config,
    model::{InterfaceName, PoolId},
};

/// What an address of a live session is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) pool: PoolId,
    pub(super) leased: bool,
    /// A whole /64 has it, not a single address.
    pub(super) delegated: bool,
    pub(super) interface: InterfaceName,
}

impl Key {
    fn entry(&self, ifindex: u32) -> ClassEntry {
        class_entry(self.pool.0, self.leased, ifindex) | if self.delegated { ENTRY_DELEGATED } else { 0 }
    }
}

/// An interface index that no interface has: the session's is not there.
pub(super) const NOWHERE: u32 = u32::MAX;

/// The first number that is given out.
const FIRST: usize = MAX_POOLS as usize + 1;

#[derive(Clone, Default)]
struct Slot {
    /// `None`: the number means nothing, or it was adopted and the name of its interface is not known any more.
    key: Option<Key>,
    /// 0: free, or at rest.
    entry: ClassEntry,
    /// Addresses of this class.
    users: u32,
}

/// All numbers.
pub(super) struct Classes {
    slots: Vec<Slot>,
    numbers: HashMap<Key, Class>,
}

impl Classes {
    /// Nothing given out.
    pub(super) fn new(config: &Config) -> Self {
        let mut slots = vec![Slot::default(); CLASSES];
        for pool in &config.pools {
            if let Some(slot) = slots.get_mut(usize::from(pool.id.0)) {
                slot.entry = class_entry(config.resting(pool).0, false, 0);
            }
        }
        Self {
            slots,
            numbers: HashMap::new(),
        }
    }

    /// Takes over what adopted maps mean; `interface` names an index.
    pub(super) fn adopt(&mut self, entries: &[ClassEntry; CLASSES], interface: impl Fn(u32) -> Option<InterfaceName>) {
        for (class, entry) in (0..=Class::MAX).zip(entries).skip(FIRST) {
            let key = interface(entry_ifindex(*entry)).map(|interface| Key {
                pool: PoolId(entry_pool(*entry)),
                leased: entry & ENTRY_LEASED != 0,
                delegated: entry & ENTRY_DELEGATED != 0,
                interface,
            });
            let slot = &mut self.slots[usize::from(class)];
            slot.entry = if entry_pool(*entry) == 0 { 0 } else { *entry };
            // Of two numbers that mean the same one is enough.
            slot.key = key.filter(|k| slot.entry != 0 && !self.numbers.contains_key(k));
            if let Some(key) = &slot.key {
                self.numbers.insert(key.clone(), class);
            }
        }
    }

    /// What a class means.
    pub(super) fn entry(&self, class: Class) -> ClassEntry {
        self.slots[usize::from(class)].entry
    }

    /// All of it.
    pub(super) fn entries(&self) -> [ClassEntry; CLASSES] {
        std::array::from_fn(|i| self.slots[i].entry)
    }

    /// The interface that a class is bound to, by name.
    pub(super) fn interface(&self, class: Class) -> Option<&InterfaceName> {
        self.slots[usize::from(class)].key.as_ref().map(|k| &k.interface)
    }

    /// The number of a key that has one.
    pub(super) fn find(&self, key: &Key) -> Option<Class> {
        self.numbers.get(key).copied()
    }

    /// A number that means nothing.
    pub(super) fn free(&self) -> Option<Class> {
        (FIRST..CLASSES)
            .find(|n| self.slots[*n].entry == 0 && self.slots[*n].users == 0)
            .map(|n| n as Class)
    }

    /// Whether there are numbers that mean something to nobody.
    pub(super) fn any_idle(&self) -> bool {
        self.slots[FIRST..].iter().any(|s| s.entry != 0 && s.users == 0)
    }

    /// Makes those free, and says which they are. No program may still be reading what it saw before they fell idle.
    pub(super) fn forget_idle(&mut self) -> Vec<Class> {
        let mut freed = Vec::new();
        for (class, slot) in (0..=Class::MAX)
            .zip(&mut self.slots)
            .skip(FIRST)
            .filter(|(_, s)| s.users == 0)
        {
            if let Some(key) = &slot.key {
                self.numbers.remove(key);
            }
            *slot = Slot::default();
            freed.push(class);
        }
        freed
    }

    /// Gives a free number to a key.
    pub(super) fn give(&mut self, class: Class, key: Key, ifindex: u32) -> ClassEntry {
        let entry = key.entry(ifindex);
        self.numbers.insert(key.clone(), class);
        let users = self.slots[usize::from(class)].users;
        self.slots[usize::from(class)] = Slot {
            key: Some(key),
            entry,
            users,
        };
        entry
    }

    /// The entries that change as interfaces come, go and get other indexes. Only the index of an entry ever changes.
    pub(super) fn follow(&mut self, indexes: &HashMap<InterfaceName, u32>) -> Vec<(Class, ClassEntry)> {
        let mut changed = Vec::new();
        for (class, slot) in (0..=Class::MAX).zip(&mut self.slots) {
            let Some(key) = &slot.key else { continue };
            let ifindex = indexes.get(&key.interface).copied().unwrap_or(NOWHERE);
            if entry_ifindex(slot.entry) != ifindex {
                slot.entry = key.entry(ifindex);
                changed.push((class, slot.entry));
            }
        }
        changed
    }

    /// How many addresses have each class.
    pub(super) fn set_users(&mut self, users: &[u32; CLASSES]) {
        for (slot, users) in self.slots.iter_mut().zip(users) {
            slot.users = *users;
        }
    }

    /// An address changes its class.
    pub(super) fn moved(&mut self, from: Class, to: Class) {
        let from = &mut self.slots[usize::from(from)].users;
        *from = from.saturating_sub(1);
        self.entered(to);
    }

    /// An address has a class.
    pub(super) fn entered(&mut self, class: Class) {
        let users = &mut self.slots[usize::from(class)].users;
        *users = users.saturating_add(1);
    }

    /// An address has lost its class.
    pub(super) fn left(&mut self, class: Class) {
        let users = &mut self.slots[usize::from(class)].users;
        *users = users.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    fn key(pool: u8, leased: bool, interface: &str) -> Key {
        Key {
            pool: PoolId(pool),
            leased,
            delegated: false,
            interface: interface.parse().unwrap(),
        }
    }
    fn give(c: &mut Classes, key: Key, ifindex: u32) -> Class {
        let class = c.free().unwrap();
        c.give(class, key, ifindex);
        class
    }

    #[test]
    fn at_rest_a_home_pool_is_judged_by_its_fallback() {
        let c = Classes::new(&fixtures::config());
        assert_eq!(c.entries()[..5], [0, 1 << 32, 1 << 32, 3 << 32, 0]);
    }

    #[test]
    fn numbers_are_given_kept_and_given_again_when_nobody_uses_them() {
        let mut c = Classes::new(&fixtures::config());
        let first = give(&mut c, key(1, false, "tun0"), 7);
        assert_eq!(first, 64);
        assert_eq!(c.entry(first), class_entry(1, false, 7));
        assert_eq!(c.find(&key(1, false, "tun0")), Some(first));
        c.entered(first);
        for n in 1..192 {
            give(&mut c, key(1, n % 2 == 0, &format!("tun{n}")), n);
        }
        assert_eq!((c.free(), c.any_idle()), (None, true));
        assert_eq!(c.forget_idle(), (65..=255).collect::<Vec<_>>());
        assert_eq!(c.find(&key(1, false, "tun0")), Some(first), "in use");
        assert_eq!(c.find(&key(1, false, "tun1")), None);
        assert_eq!((c.free(), c.any_idle()), (Some(65), false));
        c.left(first);
        assert!(c.any_idle());
    }

    #[test]
    fn entries_follow_their_interfaces_and_keep_their_pools() {
        let mut c = Classes::new(&fixtures::config());
        let tun = give(&mut c, key(2, true, "tun0"), 7);
        let other = give(&mut c, key(1, false, "tun1"), 8);
        let at = |pairs: &[(&str, u32)]| pairs.iter().map(|(n, i)| (n.parse().unwrap(), *i)).collect::<HashMap<_, _>>();
        assert_eq!(c.follow(&at(&[("tun0", 7), ("tun1", 8)])), []);
        assert_eq!(
            c.follow(&at(&[("tun0", 9)])),
            [(tun, class_entry(2, true, 9)), (other, class_entry(1, false, NOWHERE))]
        );
    }

    #[test]
    fn adopted_entries_are_found_by_the_names_of_their_interfaces() {
        let mut old = Classes::new(&fixtures::config());
        let whole = Key {
            delegated: true,
            ..key(2, true, "tun0")
        };
        let (here, gone, delegated) = (
            give(&mut old, key(2, true, "tun0"), 7),
            give(&mut old, key(1, false, "tun1"), 8),
            give(&mut old, whole.clone(), 7),
        );
        let mut entries = old.entries();
        entries[100] = class_entry(2, true, 7);
        entries[200] = 5;
        let mut c = Classes::new(&fixtures::config());
        c.adopt(&entries, |index| (index == 7).then(|| "tun0".parse().unwrap()));
        assert_eq!((c.find(&key(2, true, "tun0")), c.find(&whole)), (Some(here), Some(delegated)));
        assert_eq!(
            (c.entry(gone), c.interface(gone)),
            (class_entry(1, false, 8), None),
            "it is not there any more"
        );
        assert_eq!(c.interface(100), None, "a double");
        assert_eq!(c.entry(200), 0, "no pool: it means nothing");
        let mut users = [0; CLASSES];
        // An address still names one that means nothing: it is given to nobody.
        let first = c.free().unwrap();
        (users[usize::from(gone)], users[usize::from(first)]) = (1, 1);
        c.set_users(&users);
        assert_eq!(c.free(), Some(first + 1));
        c.forget_idle();
        assert_eq!((c.entry(gone), c.entry(100)), (class_entry(1, false, 8), 0));
    }

    /// Sessions that come, move and go, and interfaces that come back with other indexes: whatever an address has means what it was given for.
    #[test]
    fn a_number_means_what_it_was_given_for_while_anyone_has_it() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) % below
        };
        let mut c = Classes::new(&fixtures::config());
        let resting = c.entries();
        let mut indexes: HashMap<InterfaceName, u32> = HashMap::new();
        let mut held: HashMap<u64, (Key, Class)> = HashMap::new();
        let (mut refused, mut forgotten) = (0, 0);
        for step in 0..10_000 {
            match random(12) {
                0 => {
                    let name: InterfaceName = format!("tun{}", random(40)).parse().unwrap();
                    match random(3) {
                        0 => drop(indexes.remove(&name)),
                        _ => drop(indexes.insert(name, 100 + random(1_000) as u32)),
                    }
                    for (class, entry) in c.follow(&indexes) {
                        assert_eq!(c.entry(class), entry, "step {step}");
                    }
                }
                1..=4 => {
                    if let Some((_, class)) = held.remove(&random(600)) {
                        c.left(class);
                    }
                }
                _ => {
                    let (address, delegated) = (random(600), random(4) == 0);
                    let key = Key {
                        delegated,
                        ..key(1 + random(3) as u8, random(2) == 0, &format!("tun{}", random(40)))
                    };
                    if c.find(&key).is_none() && c.free().is_none() && c.any_idle() {
                        c.forget_idle();
                        forgotten += 1;
                    }
                    let Some(class) = c.find(&key).or_else(|| c.free()) else {
                        refused += 1;
                        continue;
                    };
                    assert!(usize::from(class) >= FIRST, "step {step}: the others are at rest");
                    if c.find(&key).is_none() {
                        assert!(
                            held.values().all(|(_, other)| *other != class),
                            "step {step}: {class} is in use"
                        );
                        c.give(class, key.clone(), indexes.get(&key.interface).copied().unwrap_or(NOWHERE));
                    }
                    match held.insert(address, (key, class)) {
                        Some((_, before)) => c.moved(before, class),
                        None => c.entered(class),
                    }
                }
            }
            // All of them now and then; what is wrong stays so for a while.
            for (key, class) in held.values().filter(|_| step % 8 == 0) {
                let entry = c.entry(*class);
                let index = indexes.get(&key.interface).copied().unwrap_or(NOWHERE);
                assert_eq!(
                    (
                        entry_pool(entry),
                        entry & ENTRY_LEASED != 0,
                        entry & ENTRY_DELEGATED != 0,
                        entry_ifindex(entry)
                    ),
                    (key.pool.0, key.leased, key.delegated, index),
                    "step {step}: {class}"
                );
                assert_eq!(
                    (c.find(key), c.interface(*class)),
                    (Some(*class), Some(&key.interface)),
                    "step {step}"
                );
            }
            assert_eq!(c.entries()[..FIRST], resting[..FIRST], "step {step}");
        }
        assert!(
            refused > 100 && forgotten > 100,
            "{refused} {forgotten}: the walk reaches the end of the numbers"
        );
        held.values().for_each(|(_, class)| c.left(*class));
        c.forget_idle();
        assert_eq!(c.entries(), resting, "nobody has one any more");
    }
}
