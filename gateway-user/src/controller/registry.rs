//! The registry and the live sessions in memory, with the indexes that commands need. It holds and finds; it decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    ops::Bound,
};

use crate::{
    model::{BootTime, Device, DeviceId, Fingerprint, Now, Revision, Session, SessionId, SourceName, VpnKey},
    store::Snapshot,
    transition::{Directory, release_end},
};

/// What is true now: also what could not be made durable yet.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Of the last commit.
    pub(super) revision: Revision,
    next_session: u64,
    devices: BTreeMap<DeviceId, Device>,
    names: HashMap<DeviceId, DeviceId>,
    certificates: HashMap<Fingerprint, DeviceId>,
    keys: HashMap<VpnKey, DeviceId>,
    leases: BTreeSet<(BootTime, DeviceId)>,
    lease_ends: HashMap<DeviceId, BootTime>,
    sessions: BTreeMap<SessionId, Session>,
    by_address: HashMap<IpAddr, SessionId>,
    by_device: HashMap<DeviceId, BTreeSet<SessionId>>,
    by_source: HashMap<SourceName, BTreeSet<SessionId>>,
}

impl Registry {
    /// From the store.
    pub(super) fn new(snapshot: Snapshot, now: &Now) -> Self {
        let mut new = Self {
            revision: snapshot.revision,
            next_session: snapshot.next_session,
            ..Self::default()
        };
        snapshot.devices.into_iter().for_each(|d| new.put_device(d, now));
        snapshot.sessions.into_iter().for_each(|s| new.put_session(s));
        new
    }

    /// Forgets a device, and returns it as it was.
    pub(super) fn take_device(&mut self, id: &DeviceId) -> Option<Device> {
        let old = self.devices.remove(id)?;
        // One that has moved to another device in the same change stays with that.
        old.aliases
            .common_names
            .iter()
            .for_each(|n| remove_if(&mut self.names, n, &old.id));
        old.aliases
            .certificates
            .iter()
            .for_each(|c| remove_if(&mut self.certificates, c, &old.id));
        old.aliases
            .vpn_keys
            .iter()
            .for_each(|k| remove_if(&mut self.keys, k, &old.id));
        if let Some(end) = self.lease_ends.remove(id) {
            self.leases.remove(&(end, id.clone()));
        }
        Some(old)
    }

    pub(super) fn put_device(&mut self, device: Device, now: &Now) {
        drop(self.take_device(&device.id));
        self.names
            .extend(device.aliases.common_names.iter().map(|n| (n.clone(), device.id.clone())));
        self.certificates
            .extend(device.aliases.certificates.iter().map(|c| (*c, device.id.clone())));
        self.keys
            .extend(device.aliases.vpn_keys.iter().map(|k| (*k, device.id.clone())));
        if let Some(end) = release_end(&device, now) {
            self.leases.insert((end, device.id.clone()));
            self.lease_ends.insert(device.id.clone(), end);
        }
        self.devices.insert(device.id.clone(), device);
    }

    /// The store's revision at which a device last changed.
    pub(super) fn stamp(&mut self, id: &DeviceId, revision: Revision) {
        self.devices.get_mut(id).into_iter().for_each(|d| d.revision = revision);
    }

    pub(super) fn put_session(&mut self, session: Session) {
        self.next_session = self.next_session.max(session.id.0 + 1);
        self.by_address.extend(session.addresses.iter().map(|a| (*a, session.id)));
        if let Some(device) = &session.device {
            self.by_device.entry(device.clone()).or_default().insert(session.id);
        }
        self.by_source.entry(session.source.clone()).or_default().insert(session.id);
        self.sessions.insert(session.id, session);
    }

    pub(super) fn remove_session(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(&id)?;
        session.addresses.iter().for_each(|a| remove_if(&mut self.by_address, a, &id));
        if let Some(device) = &session.device
            && let Some(all) = self.by_device.get_mut(device)
        {
            all.remove(&id);
            if all.is_empty() {
                self.by_device.remove(device);
            }
        }
        if let Some(all) = self.by_source.get_mut(&session.source) {
            all.remove(&id);
            if all.is_empty() {
                self.by_source.remove(&session.source);
            }
        }
        Some(session)
    }

    /// The number that the next session will have.
    pub(super) const fn next_session_id(&self) -> SessionId {
        SessionId(self.next_session)
    }

    /// A number that no session had.
    pub(super) fn new_session_id(&mut self) -> SessionId {
        let id = SessionId(self.next_session);
        self.next_session += 1;
        id
    }

    /// By id or common name.
    pub(super) fn resolve(&self, name: &DeviceId) -> Option<&Device> {
        self.devices.get(name).or_else(|| self.devices.get(self.names.get(name)?))
    }

    pub(super) fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    pub(super) fn device_of(&self, session: &Session) -> Option<&Device> {
        self.devices.get(session.device.as_ref()?)
    }

    /// The live session that holds an address.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Session> {
        self.sessions.get(self.by_address.get(&address)?)
    }

    pub(super) fn sessions_of<'a>(&'a self, device: &DeviceId) -> impl Iterator<Item = &'a Session> + use<'a> {
        self.by_device
            .get(device)
            .into_iter()
            .flatten()
            .filter_map(|id| self.sessions.get(id))
    }

    pub(super) fn sessions_of_source(&self, source: &SourceName) -> impl Iterator<Item = &Session> {
        self.by_source
            .get(source)
            .into_iter()
            .flatten()
            .filter_map(|id| self.sessions.get(id))
    }

    pub(super) fn sessions_after(&self, after: Option<SessionId>) -> impl Iterator<Item = &Session> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.sessions.range((from, Bound::Unbounded)).map(|(_, s)| s)
    }

    pub(super) fn devices_after(&self, after: Option<&DeviceId>) -> impl Iterator<Item = &Device> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.devices.range::<DeviceId, _>((from, Bound::Unbounded)).map(|(_, d)| d)
    }

    /// All live sessions with their devices.
    pub(super) fn live(&self) -> impl Iterator<Item = (&Session, Option<&Device>)> {
        self.sessions.values().map(|s| (s, self.device_of(s)))
    }

    /// The lease that ends first.
    pub(super) fn earliest_lease(&self) -> Option<BootTime> {
        self.leases.first().map(|(end, _)| *end)
    }

    /// Devices whose leases are over.
    pub(super) fn over(&self, now: &Now) -> Vec<DeviceId> {
        self.leases
            .iter()
            .take_while(|(end, _)| *end <= now.boot)
            .map(|(_, id)| id.clone())
            .collect()
    }

    pub(super) fn device_count(&self) -> u64 {
        self.devices.len() as u64
    }

    pub(super) fn session_count(&self) -> u64 {
        self.sessions.len() as u64
    }

    pub(super) fn address_count(&self) -> usize {
        self.by_address.len()
    }
}

impl Directory for Registry {
    fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id)
    }
    fn holder_of_name(&self, name: &DeviceId) -> Option<&DeviceId> {
        self.names.get(name)
    }
    fn holder_of_certificate(&self, certificate: &Fingerprint) -> Option<&DeviceId> {
        self.certificates.get(certificate)
    }
    fn holder_of_key(&self, key: &VpnKey) -> Option<&DeviceId> {
        self.keys.get(key)
    }
    fn connected(&self, id: &DeviceId) -> bool {
        self.by_device.contains_key(id)
    }
}

fn remove_if<K: std::hash::Hash + Eq, V: PartialEq>(map: &mut HashMap<K, V>, key: &K, value: &V) {
    if map.get(key) == Some(value) {
        map.remove(key);
    }
}
