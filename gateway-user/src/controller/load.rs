//! What the store has, read before the controller starts: a million devices take seconds, in which the data plane can be opened.

use std::{collections::HashSet, fmt, hash::Hash};

use crate::{
    config::Config,
    model::{Device, DeviceId, Session},
    store::{LogHealth, Snapshot, Store, StoreError},
    transition::{self, Policies},
};

/// A store, with all that it has.
pub struct Loaded {
    pub(super) store: Box<dyn Store>,
    pub(super) snapshot: Snapshot,
    /// By id. What they have in common is the same memory.
    pub(super) devices: Vec<Device>,
    pub(super) audit_log: LogHealth,
}

impl Loaded {
    /// Reads it.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn read(mut store: Box<dyn Store>, config: &Config) -> Result<Self, StoreError> {
        let (none, mut revisions, mut devices) = (Policies::default(), HashSet::new(), Vec::new());
        let mut snapshot = store.load_each(&mut |mut device: Device| {
            transition::share(&mut device, config, &none);
            if let Some(revision) = &mut device.policy_revision {
                share(revision, &mut revisions);
            }
            devices.push(device);
        })?;
        share_names(&mut snapshot.sessions, &devices);
        Ok(Self {
            store,
            snapshot,
            devices,
            audit_log: LogHealth::default(),
        })
    }

    /// With the word of whoever writes the audit log, for `status` and metrics.
    #[must_use]
    pub fn with_audit_log(self, audit_log: LogHealth) -> Self {
        Self { audit_log, ..self }
    }
}

impl fmt::Debug for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded")
            .field("devices", &self.devices.len())
            .finish_non_exhaustive()
    }
}

/// Makes the names of sessions the same memory as those of their devices and of each other.
fn share_names(sessions: &mut [Session], devices: &[Device]) {
    let (mut interfaces, mut sources) = (HashSet::new(), HashSet::new());
    let ids: HashSet<&DeviceId> = devices.iter().map(|d| &d.id).collect();
    for session in sessions {
        share(&mut session.interface, &mut interfaces);
        share(&mut session.source, &mut sources);
        if let Some(id) = &mut session.device
            && let Some(known) = ids.get(id)
        {
            *id = DeviceId::clone(known);
        }
    }
}

/// Makes it the same memory as what is known, if it is.
fn share<T: Clone + Eq + Hash>(one: &mut T, known: &mut HashSet<T>) {
    match known.get(one) {
        Some(known) => *one = known.clone(),
        None => drop(known.insert(one.clone())),
    }
}
