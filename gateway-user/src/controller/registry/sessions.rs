//! The live sessions in memory, found by number, address, device and source. There may be a million: each is kept once, and what an index has
//! of one is a few bytes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    ops::Bound,
};

use crate::model::{DeviceId, InterfaceName, Session, SessionId, SourceName, prefix};

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    all: BTreeMap<SessionId, Box<Session>>,
    /// In order, so that those in a /64 are found.
    by_address: BTreeMap<IpAddr, SessionId>,
    /// The first session of each device that has any.
    by_device: HashMap<DeviceId, SessionId>,
    /// What a device has beside that.
    further: BTreeSet<(DeviceId, SessionId)>,
    by_source: HashMap<SourceName, BTreeSet<SessionId>>,
    /// Whose sessions are on each interface, and how many.
    by_interface: HashMap<InterfaceName, BTreeMap<SourceName, usize>>,
}

impl Sessions {
    /// The first ones, by number: into less memory than one by one.
    pub(super) fn new(sessions: Vec<Session>) -> Self {
        let held = |s: &Session| s.addresses.iter().map(|a| (a, s.id)).collect::<Vec<_>>();
        let mut new = Self {
            by_address: sessions.iter().flat_map(held).collect(),
            ..Self::default()
        };
        let mut by_source: HashMap<SourceName, Vec<SessionId>> = HashMap::new();
        for session in &sessions {
            new.add_to_device(session);
            new.add_to_interface(session);
            by_source.entry(session.source.clone()).or_default().push(session.id);
        }
        let set = |(source, ids): (SourceName, Vec<SessionId>)| (source, ids.into_iter().collect());
        new.by_source = by_source.into_iter().map(set).collect();
        new.all = sessions.into_iter().map(|s| (s.id, Box::new(s))).collect();
        new
    }

    /// Adds one, or takes the place of what had its number. The names that it has in common with others are the same memory.
    pub(super) fn put(&mut self, mut session: Session) {
        drop(self.remove(session.id));
        if let Some((source, _)) = self.by_source.get_key_value(&session.source) {
            session.source = source.clone();
        }
        if let Some((interface, _)) = self.by_interface.get_key_value(&session.interface) {
            session.interface = interface.clone();
        }
        self.by_address.extend(session.addresses.iter().map(|a| (a, session.id)));
        self.add_to_device(&session);
        self.add_to_interface(&session);
        self.by_source.entry(session.source.clone()).or_default().insert(session.id);
        self.all.insert(session.id, Box::new(session));
    }

    /// Takes one out, and returns it.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = *self.all.remove(&id)?;
        for address in session.addresses.iter() {
            if self.by_address.get(&address) == Some(&id) {
                self.by_address.remove(&address);
            }
        }
        self.remove_from_device(&session);
        if let Some(all) = self.by_source.get_mut(&session.source) {
            all.remove(&id);
            if all.is_empty() {
                self.by_source.remove(&session.source);
            }
        }
        self.remove_from_interface(&session);
        Some(session)
    }

    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.all.get(&id).map(|s| &**s)
    }

    /// After a number, ascending.
    pub(super) fn after(&self, after: Option<SessionId>) -> impl Iterator<Item = &Session> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.all.range((from, Bound::Unbounded)).map(|(_, s)| &**s)
    }

    /// Whether a session has just this hold: an address by itself, or a /64.
    pub(super) fn is_held(&self, hold: IpAddr) -> bool {
        self.by_address.contains_key(&hold)
    }

    /// The session that holds an address, by itself or with its whole /64.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Session> {
        let held = self.by_address.get(&address);
        let id = held.or_else(|| self.by_address.get(&prefix::around(address)?))?;
        self.get(*id)
    }

    /// The sessions that hold any address of a hold: of one address at most one session, of a /64 perhaps many.
    pub(super) fn holders(&self, hold: IpAddr) -> Vec<&Session> {
        let mut all: BTreeSet<SessionId> = self.holder(hold).into_iter().map(|s| s.id).collect();
        if let Some(network) = prefix::network(hold) {
            let last = Ipv6Addr::from(u128::from(network) | u128::from(u64::MAX));
            let inside = self.by_address.range(IpAddr::from(network)..=IpAddr::from(last));
            all.extend(inside.map(|(_, id)| *id));
        }
        all.iter().filter_map(|id| self.get(*id)).collect()
    }

    /// Of a device, by number.
    pub(super) fn of_device<'a>(&'a self, device: &DeviceId) -> impl Iterator<Item = &'a Session> + use<'a> {
        let first = self.by_device.get(device).copied();
        first.into_iter().chain(self.further_of(device)).filter_map(|id| self.get(id))
    }

    /// Whether a device has any.
    pub(super) fn has_device(&self, device: &DeviceId) -> bool {
        self.by_device.contains_key(device)
    }

    /// Of a source, by number.
    pub(super) fn of_source(&self, source: &SourceName) -> impl Iterator<Item = &Session> {
        let ids = self.by_source.get(source).into_iter().flatten();
        ids.filter_map(|id| self.get(*id))
    }

    /// Whether a source has any.
    pub(super) fn has_source(&self, source: &SourceName) -> bool {
        self.by_source.contains_key(source)
    }

    /// Sources that have any on an interface.
    pub(super) fn sources_on(&self, interface: &InterfaceName) -> impl Iterator<Item = &SourceName> {
        self.by_interface.get(interface).into_iter().flat_map(BTreeMap::keys)
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    pub(super) fn address_count(&self) -> usize {
        self.by_address.len()
    }

    fn add_to_device(&mut self, session: &Session) {
        let Some(device) = &session.device else { return };
        match self.by_device.entry(device.clone()) {
            Entry::Vacant(none) => drop(none.insert(session.id)),
            Entry::Occupied(_) => drop(self.further.insert((device.clone(), session.id))),
        }
    }

    fn remove_from_device(&mut self, session: &Session) {
        let Some(device) = &session.device else { return };
        if self.by_device.get(device) != Some(&session.id) {
            self.further.remove(&(device.clone(), session.id));
            return;
        }
        let next = self.further_of(device).next();
        match next {
            Some(next) => {
                self.further.remove(&(device.clone(), next));
                self.by_device.insert(device.clone(), next);
            }
            None => drop(self.by_device.remove(device)),
        }
    }

    fn add_to_interface(&mut self, session: &Session) {
        let on = self.by_interface.entry(session.interface.clone()).or_default();
        *on.entry(session.source.clone()).or_default() += 1;
    }

    fn remove_from_interface(&mut self, session: &Session) {
        let Some(on) = self.by_interface.get_mut(&session.interface) else {
            return;
        };
        if let Some(n) = on.get_mut(&session.source) {
            *n -= 1;
            if *n == 0 {
                on.remove(&session.source);
            }
        }
        if on.is_empty() {
            self.by_interface.remove(&session.interface);
        }
    }

    fn further_of<'a>(&'a self, device: &DeviceId) -> impl Iterator<Item = SessionId> + use<'a> {
        let all = (device.clone(), SessionId(0))..=(device.clone(), SessionId(u64::MAX));
        self.further.range(all).map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Trust, WallTime};

    /// Numbers ascend, as they do in the controller; everything else is by chance.
    #[test]
    fn indexes_agree_with_a_list_through_openings_and_ends() {
        let mut seed = 11_u64;
        let mut roll = move |sides: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % sides
        };
        let hold = |n: u64| -> IpAddr {
            match n % 3 {
                0 => IpAddr::from([10, 0, 0, n as u8]),
                1 => format!("fd00:{}::{n:x}", n % 4).parse().unwrap(),
                _ => prefix::whole(format!("fd00:{}::", n % 4).parse().unwrap()),
            }
        };
        let (mut sessions, mut list) = (Sessions::default(), BTreeMap::<SessionId, Session>::new());
        for n in 0..5_000 {
            if roll(5) < 2 {
                let id = SessionId(n - roll(40).min(n));
                assert_eq!(sessions.remove(id), list.remove(&id));
            } else {
                let free = |a: &IpAddr| list.values().all(|s| s.addresses.iter().all(|held| held != *a));
                let session = Session {
                    id: SessionId(n),
                    device: (roll(6) > 0).then(|| format!("d-{}", roll(8)).parse().unwrap()),
                    addresses: (0..roll(4))
                        .map(|_| hold(roll(60)))
                        .filter(free)
                        .collect::<BTreeSet<_>>()
                        .into_iter()
                        .collect(),
                    interface: format!("tun{}", roll(2)).parse().unwrap(),
                    source: format!("vpn-{}", roll(3)).parse().unwrap(),
                    trust: Trust::Name,
                    opened_at: WallTime(0),
                };
                list.insert(session.id, session.clone());
                sessions.put(session);
            }
            if n % 64 == 0 {
                // As after a restart.
                sessions = Sessions::new(list.values().cloned().collect());
            }
            let ids = |all: &mut dyn Iterator<Item = &Session>| all.map(|s| s.id).collect::<Vec<_>>();
            let listed = |keep: &dyn Fn(&Session) -> bool| ids(&mut list.values().filter(|s| keep(s)));
            let device: DeviceId = format!("d-{}", roll(8)).parse().unwrap();
            let of_device = listed(&|s| s.device.as_ref() == Some(&device));
            assert_eq!(ids(&mut sessions.of_device(&device)), of_device);
            assert_eq!(sessions.has_device(&device), !of_device.is_empty());
            let source: SourceName = format!("vpn-{}", roll(3)).parse().unwrap();
            let of_source = listed(&|s| s.source == source);
            assert_eq!(ids(&mut sessions.of_source(&source)), of_source);
            assert_eq!(sessions.has_source(&source), !of_source.is_empty());
            let interface: InterfaceName = format!("tun{}", roll(2)).parse().unwrap();
            let on: BTreeSet<&SourceName> = list
                .values()
                .filter(|s| s.interface == interface)
                .map(|s| &s.source)
                .collect();
            assert_eq!(sessions.sources_on(&interface).collect::<BTreeSet<_>>(), on);
            let address = hold(roll(60));
            assert_eq!(
                sessions.is_held(address),
                !listed(&|s| s.addresses.iter().any(|a| a == address)).is_empty()
            );
            let overlaps = |s: &Session| s.addresses.iter().any(|a| prefix::overlap(a, address));
            // One that has just this hold goes before one with the /64 around it.
            let holders = ids(&mut sessions.holders(address).into_iter());
            assert!(holders.iter().all(|id| list.get(id).is_some_and(&overlaps)));
            if prefix::network(address).is_some() {
                assert_eq!(holders, listed(&overlaps));
            } else {
                assert_eq!(holders.is_empty(), listed(&overlaps).is_empty());
            }
            let last = SessionId(roll(n + 1));
            assert_eq!(ids(&mut sessions.after(Some(last))), listed(&|s| s.id > last));
            let held = list.values().map(|s| s.addresses.len()).sum::<usize>();
            assert_eq!((sessions.count(), sessions.address_count()), (list.len(), held));
        }
        assert!(list.len() > 20, "{}", list.len());
    }

    #[test]
    fn what_sessions_of_a_source_have_in_common_is_the_same_memory() {
        let session = |id: u64| Session {
            id: SessionId(id),
            device: None,
            addresses: IpAddr::from([10, 0, 0, id as u8]).into(),
            interface: "tun0".parse().unwrap(),
            source: "vpn-1".parse().unwrap(),
            trust: Trust::Name,
            opened_at: WallTime(0),
        };
        let mut sessions = Sessions::default();
        sessions.put(session(1));
        sessions.put(session(2));
        let [a, b] = [1, 2].map(|id| sessions.get(SessionId(id)).unwrap());
        let at = |text: &str| text.as_ptr();
        assert_eq!(at(a.interface.as_str()), at(b.interface.as_str()));
        assert_eq!(at(a.source.as_str()), at(b.source.as_str()));
    }

    /// A million of them: what is here is there a million times.
    #[test]
    fn a_session_is_small() {
        assert!(size_of::<Session>() <= 72, "{}", size_of::<Session>());
    }
}
