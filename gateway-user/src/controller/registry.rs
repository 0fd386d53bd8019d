//! The registry and the live sessions in memory, with the indexes that commands need. It holds and finds; it decides nothing.

mod sessions;

use std::{
    borrow::Borrow,
    cmp::Ordering,
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    ops::Bound,
};

use self::sessions::Sessions;
use super::{Progress, holders::Holders};
use crate::{
    model::{
        BootTime, Device, DeviceId, DeviceState, Fingerprint, InterfaceName, Now, Revision, Session, SessionId, SourceName,
        VpnKey,
    },
    store::Snapshot,
    transition::Directory,
};

/// What is true now: also what could not be made durable yet.
#[derive(Debug, Default)]
pub(super) struct Registry {
    /// Of the last commit.
    pub(super) revision: Revision,
    next_session: u64,
    devices: BTreeSet<ById>,
    /// How many devices have each state, in the order of [`DeviceState::ALL`].
    states: [u64; DeviceState::ALL.len()],
    names: HashMap<DeviceId, DeviceId>,
    certificates: Holders<Fingerprint>,
    keys: Holders<VpnKey>,
    /// What time brings, by when: to released devices, and to others.
    leases: BTreeSet<(BootTime, DeviceId)>,
    timers: BTreeSet<(BootTime, DeviceId)>,
    progress: Progress,
    /// Devices that wait for their wave and have a live session.
    ready: BTreeSet<DeviceId>,
    sessions: Sessions,
}

/// A device with what is kept beside it. There may be a million: it holds its id once.
#[derive(Debug)]
struct Held {
    device: Device,
    /// [`Standing::due`]; [`NEVER`].
    due: u64,
    rank: Rank,
}

/// A time that does not come.
const NEVER: u64 = u64::MAX;

impl Held {
    fn standing(&self) -> Standing {
        Standing {
            due: (self.due != NEVER).then_some(BootTime(self.due)),
            rank: self.rank,
        }
    }
}

/// Ordered and found by the device's id.
#[derive(Debug)]
struct ById(Box<Held>);

impl ById {
    fn new(device: Device, standing: Standing) -> Self {
        Self(Box::new(Held {
            device,
            due: standing.due.map_or(NEVER, |due| due.0),
            rank: standing.rank,
        }))
    }
}

impl Borrow<DeviceId> for ById {
    fn borrow(&self) -> &DeviceId {
        &self.0.device.id
    }
}
impl PartialEq for ById {
    fn eq(&self, other: &Self) -> bool {
        self.0.device.id == other.0.device.id
    }
}
impl Eq for ById {}
impl PartialOrd for ById {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ById {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.device.id.cmp(&other.0.device.id)
    }
}

/// What memory keeps about a device beside it, since it follows from more than the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standing {
    /// When time brings it something.
    pub(super) due: Option<BootTime>,
    pub(super) rank: Rank,
}

/// What the publication in force means to a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Rank {
    #[default]
    Other,
    Done,
    Waiting,
    Stale,
    /// Stale, and its deadline in quarantine has passed without shutting it.
    Overdue,
    Excepted,
}

impl Registry {
    /// What the store has, but for its devices.
    pub(super) fn new(snapshot: Snapshot) -> Self {
        let above = |s: &Session| s.id.0 + 1;
        Self {
            revision: snapshot.revision,
            next_session: snapshot.sessions.last().map_or(0, above).max(snapshot.next_session),
            sessions: Sessions::new(snapshot.sessions),
            ..Self::default()
        }
    }

    /// The first devices, in the order of their ids: into less memory than one by one.
    pub(super) fn fill(&mut self, devices: Vec<(Device, Standing)>) {
        for (device, standing) in &devices {
            self.index(device, *standing);
        }
        let released = |d: &Device| d.state == DeviceState::Released;
        let due = |of: bool| {
            let these = devices.iter().filter(|(d, _)| released(d) == of);
            these.filter_map(|(d, s)| Some((s.due?, d.id.clone()))).collect()
        };
        (self.leases, self.timers) = (due(true), due(false));
        self.devices = devices.into_iter().map(|(d, s)| ById::new(d, s)).collect();
    }

    /// Forgets a device, and returns it as it was.
    pub(super) fn take_device(&mut self, id: &DeviceId) -> Option<Device> {
        let held = self.devices.take(id)?;
        let standing = held.0.standing();
        let device = held.0.device;
        // One that has moved to another device in the same change stays with that.
        let aliases = &device.aliases;
        aliases.common_names.iter().for_each(|n| remove_if(&mut self.names, n, id));
        aliases.certificates.iter().for_each(|c| self.certificates.remove(c, id));
        aliases.vpn_keys.iter().for_each(|k| self.keys.remove(k, id));
        if let Some(due) = standing.due {
            let timers = self.timers_of(device.state);
            timers.remove(&(due, id.clone()));
        }
        self.count(&device.id, standing.rank, false);
        self.states[device.state as usize] -= 1;
        Some(device)
    }

    /// Adds a device, or takes the place of what was known of it.
    pub(super) fn put_device(&mut self, device: Device, standing: Standing) {
        drop(self.take_device(&device.id));
        self.index(&device, standing);
        if let Some(due) = standing.due {
            self.timers_of(device.state).insert((due, device.id.clone()));
        }
        self.devices.insert(ById::new(device, standing));
    }

    /// By all but what time brings.
    fn index(&mut self, device: &Device, standing: Standing) {
        let (id, aliases) = (&device.id, &device.aliases);
        self.names
            .extend(aliases.common_names.iter().map(|n| (n.clone(), id.clone())));
        aliases.certificates.iter().for_each(|c| self.certificates.add(*c, id));
        aliases.vpn_keys.iter().for_each(|k| self.keys.add(*k, id));
        self.count(id, standing.rank, true);
        self.states[device.state as usize] += 1;
    }

    /// Changes what is kept beside a device.
    pub(super) fn stand(&mut self, id: &DeviceId, standing: Standing) {
        let Some(ById(held)) = self.devices.take(id) else { return };
        let (old, state) = (held.standing(), held.device.state);
        self.devices.insert(ById::new(held.device, standing));
        if old.due != standing.due {
            let timers = self.timers_of(state);
            old.due.map(|due| timers.remove(&(due, id.clone())));
            standing.due.map(|due| timers.insert((due, id.clone())));
        }
        if old.rank != standing.rank {
            self.count(id, old.rank, false);
            self.count(id, standing.rank, true);
        }
    }

    fn timers_of(&mut self, state: DeviceState) -> &mut BTreeSet<(BootTime, DeviceId)> {
        if state == DeviceState::Released {
            &mut self.leases
        } else {
            &mut self.timers
        }
    }

    /// Counts a device of this rank, or no longer.
    fn count(&mut self, id: &DeviceId, rank: Rank, comes: bool) {
        let progress = &mut self.progress;
        match rank {
            Rank::Other => {}
            Rank::Done => tally(&mut progress.done, comes),
            Rank::Waiting => tally(&mut progress.waiting, comes),
            Rank::Stale | Rank::Overdue => tally(&mut progress.stale, comes),
            Rank::Excepted => tally(&mut progress.excepted, comes),
        }
        // Of a million that are read at a start, few are asked.
        if matches!(rank, Rank::Waiting | Rank::Stale) && self.connected(id) {
            self.count_connected(id, rank, comes);
        }
    }

    /// What counts of a device only while it has a live session.
    fn count_connected(&mut self, id: &DeviceId, rank: Rank, comes: bool) {
        match (rank, comes) {
            (Rank::Waiting, true) => drop(self.ready.insert(id.clone())),
            (Rank::Waiting, false) => drop(self.ready.remove(id)),
            (Rank::Stale, _) => tally(&mut self.progress.counted, comes),
            (Rank::Other | Rank::Done | Rank::Overdue | Rank::Excepted, _) => {}
        }
        self.progress.ready = self.ready.len() as u64;
    }

    /// Its first session has opened, or its last one ended.
    fn count_session(&mut self, id: &DeviceId, comes: bool) {
        if let Some(rank) = self.devices.get(id).map(|h| h.0.rank) {
            self.count_connected(id, rank, comes);
        }
    }

    /// The first devices, in the order of their ids, that wait for their wave and have a live session.
    pub(super) fn ready(&self, most: usize) -> Vec<DeviceId> {
        self.ready.iter().take(most).cloned().collect()
    }

    /// Devices by what the publication in force means to them.
    pub(super) const fn progress(&self) -> Progress {
        self.progress
    }

    /// The store's revision at which a device last changed.
    pub(super) fn stamp(&mut self, id: &DeviceId, revision: Revision) {
        if let Some(ById(mut held)) = self.devices.take(id) {
            held.device.revision = revision;
            self.devices.insert(ById(held));
        }
    }

    pub(super) fn put_session(&mut self, session: Session) {
        self.next_session = self.next_session.max(session.id.0 + 1);
        let first = session.device.clone().filter(|d| !self.connected(d));
        self.sessions.put(session);
        if let Some(device) = first {
            self.count_session(&device, true);
        }
    }

    pub(super) fn remove_session(&mut self, id: SessionId) -> Option<Session> {
        let session = self.sessions.remove(id)?;
        if let Some(device) = session.device.as_ref().filter(|d| !self.connected(d)) {
            self.count_session(device, false);
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
        self.device(name).or_else(|| self.device(self.names.get(name)?))
    }

    pub(super) fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(id)
    }

    pub(super) fn device_of(&self, session: &Session) -> Option<&Device> {
        self.device(session.device.as_ref()?)
    }

    /// The live session that holds an address, by itself or with its whole /64.
    pub(super) fn holder(&self, address: IpAddr) -> Option<&Session> {
        self.sessions.holder(address)
    }

    /// Whether a live session has just this hold: an address by itself, or a /64.
    pub(super) fn is_held(&self, hold: IpAddr) -> bool {
        self.sessions.is_held(hold)
    }

    /// The live sessions that hold any address of a hold: of one address at most one session, of a /64 perhaps many.
    pub(super) fn holders(&self, hold: IpAddr) -> Vec<&Session> {
        self.sessions.holders(hold)
    }

    pub(super) fn sessions_of<'a>(&'a self, device: &DeviceId) -> impl Iterator<Item = &'a Session> + use<'a> {
        self.sessions.of_device(device)
    }

    pub(super) fn sessions_of_source(&self, source: &SourceName) -> impl Iterator<Item = &Session> {
        self.sessions.of_source(source)
    }

    pub(super) fn sessions_after(&self, after: Option<SessionId>) -> impl Iterator<Item = &Session> {
        self.sessions.after(after)
    }

    /// Those after one whose ids are not before another.
    pub(super) fn devices_from(&self, after: Option<&DeviceId>, from: Option<&DeviceId>) -> impl Iterator<Item = &Device> {
        let begin = match (after, from) {
            (Some(after), Some(from)) if after < from => Bound::Included(from),
            (Some(after), _) => Bound::Excluded(after),
            (None, Some(from)) => Bound::Included(from),
            (None, None) => Bound::Unbounded,
        };
        self.devices
            .range::<DeviceId, _>((begin, Bound::Unbounded))
            .map(|h| &h.0.device)
    }

    pub(super) fn devices_after(&self, after: Option<&DeviceId>) -> impl Iterator<Item = &Device> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.devices
            .range::<DeviceId, _>((from, Bound::Unbounded))
            .map(|h| &h.0.device)
    }

    /// All live sessions with their devices.
    pub(super) fn live(&self) -> impl Iterator<Item = (&Session, Option<&Device>)> {
        self.sessions.after(None).map(|s| (s, self.device_of(s)))
    }

    /// The lease that ends first.
    pub(super) fn earliest_lease(&self) -> Option<BootTime> {
        self.leases.first().map(|(end, _)| *end)
    }

    /// When time next brings something to a device.
    pub(super) fn next_due(&self) -> Option<BootTime> {
        let first = |timers: &BTreeSet<(BootTime, DeviceId)>| timers.first().map(|(due, _)| *due);
        first(&self.leases).into_iter().chain(first(&self.timers)).min()
    }

    /// Devices to which time brings something by now, at most so many; releases first.
    pub(super) fn over(&self, now: &Now, most: usize) -> Vec<DeviceId> {
        self.leases
            .iter()
            .take_while(|(due, _)| *due <= now.boot)
            .chain(self.timers.iter().take_while(|(due, _)| *due <= now.boot))
            .map(|(_, id)| id.clone())
            .take(most)
            .collect()
    }

    /// Whether time has brought something to this device that it is not told of yet.
    pub(super) fn is_due(&self, id: &DeviceId, now: &Now) -> bool {
        self.devices.get(id).is_some_and(|d| d.0.due <= now.boot.0)
    }

    /// Sources that have live sessions on an interface.
    pub(super) fn sources_on(&self, interface: &InterfaceName) -> impl Iterator<Item = &SourceName> {
        self.sessions.sources_on(interface)
    }

    /// Sources that have live sessions.
    pub(super) fn has_sessions(&self, source: &SourceName) -> bool {
        self.sessions.has_source(source)
    }

    pub(super) fn device_count(&self) -> u64 {
        self.devices.len() as u64
    }

    /// By state, in the order of [`DeviceState::ALL`].
    pub(super) const fn states(&self) -> [u64; DeviceState::ALL.len()] {
        self.states
    }

    pub(super) fn session_count(&self) -> u64 {
        self.sessions.count() as u64
    }

    pub(super) fn address_count(&self) -> usize {
        self.sessions.address_count()
    }
}

impl Directory for Registry {
    fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.devices.get(id).map(|h| &h.0.device)
    }
    fn holder_of_name(&self, name: &DeviceId) -> Option<&DeviceId> {
        self.names.get(name)
    }
    fn holders_of_certificate<'a>(&'a self, certificate: &Fingerprint) -> impl Iterator<Item = &'a DeviceId> {
        self.certificates.of(certificate)
    }
    fn holders_of_key<'a>(&'a self, key: &VpnKey) -> impl Iterator<Item = &'a DeviceId> {
        self.keys.of(key)
    }
    fn connected(&self, id: &DeviceId) -> bool {
        self.sessions.has_device(id)
    }
}

const fn tally(count: &mut u64, comes: bool) {
    if comes {
        *count += 1;
    } else {
        *count -= 1;
    }
}

fn remove_if<K: std::hash::Hash + Eq, V: PartialEq>(map: &mut HashMap<K, V>, key: &K, value: &V) {
    if map.get(key) == Some(value) {
        map.remove(key);
    }
}
