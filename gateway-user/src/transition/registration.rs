//! Registering devices: all of a list or none, with aliases that belong to one device only.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Context, Step, arrival, by_exception, finish, full_service, held_back, restriction::shorter};
use crate::{
    config::{Config, PoolKind},
    model::{Aliases, Device, DeviceId, DeviceState, Enrolment, Fingerprint, PoolName, Rare, Reach, StateReason, VpnKey, Window},
    refusal::Refusal,
};

/// A device to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Name.
    pub id: DeviceId,
    /// For people.
    pub owner: String,
    /// `None`: the only pool of kind full-service.
    pub full_service_pool: Option<PoolName>,
    /// Other names.
    pub common_names: Vec<DeviceId>,
    /// Certificates.
    pub certificates: Vec<Fingerprint>,
    /// VPN public keys.
    pub vpn_keys: Vec<VpnKey>,
    /// When it may enrol.
    pub window: Window,
}

/// The registry, as far as registering has to know it.
pub trait Directory {
    /// A device by id.
    fn device(&self, id: &DeviceId) -> Option<&Device>;
    /// Whose common name it is.
    fn holder_of_name(&self, name: &DeviceId) -> Option<&DeviceId>;
    /// Whose certificate it is: of more than one device where those who registered it may not act on the other.
    fn holders_of_certificate<'a>(&'a self, certificate: &Fingerprint) -> impl Iterator<Item = &'a DeviceId>;
    /// Whose VPN key it is; as of a certificate.
    fn holders_of_key<'a>(&'a self, key: &VpnKey) -> impl Iterator<Item = &'a DeviceId>;
    /// Whether a device has a live session.
    fn connected(&self, id: &DeviceId) -> bool;
}

/// The devices after a list of registrations, in the list's order; of several for one id, the last counts. Before them come retired devices
/// that lose an alias to one of the list: their hardware is enrolled anew. `reach`: on which devices whoever registers them may act; what he
/// registers counts there, and what others have registered who may not act on a device of the list does not keep it from being registered.
///
/// # Errors
/// [`Refusal::UnknownPool`], [`Refusal::DeviceRetired`], [`Refusal::AliasTaken`]: none of them is registered.
pub fn register(
    directory: &impl Directory,
    list: &[Registration],
    reach: &Reach,
    context: &Context<'_>,
) -> Result<Vec<Step>, Refusal> {
    let mut steps: BTreeMap<&DeviceId, Step> = BTreeMap::new();
    let mut order: Vec<&DeviceId> = Vec::new();
    for registration in list {
        let context = Context {
            connected: directory.connected(&registration.id),
            ..*context
        };
        let step = one(directory.device(&registration.id), registration, reach, &context)?;
        if steps.insert(&registration.id, step).is_none() {
            order.push(&registration.id);
        }
    }
    unique(directory, &steps)?;
    let losing = losing(directory, &steps).into_values();
    let losing = losing.map(|device| finish(directory.device(&device.id), device, context.config));
    Ok(losing
        .collect::<Vec<_>>()
        .into_iter()
        .chain(order.into_iter().filter_map(|id| steps.remove(id)))
        .collect())
}

/// A device that keeps an alias in vain: another is registered with it now, by who may act on both, so that nothing opens a session with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overruled {
    /// Which.
    pub device: DeviceId,
    /// `certificate` or `VPN key`, and it.
    pub alias: String,
}

/// Devices that lose the use of an alias to these steps of [`register`], and have not lost it before.
pub fn overruled(directory: &impl Directory, steps: &[Step]) -> Vec<Overruled> {
    let mut found = Vec::new();
    for step in steps {
        let (id, new) = (&step.device.id, &step.device.aliases);
        let old = directory.device(id).map(|d| &*d.aliases);
        let loses = |holder: &DeviceId| {
            let theirs = directory.device(holder).filter(|d| d.state != DeviceState::Retired);
            holder != id && new.bind(holder) && theirs.is_some_and(|d| !d.aliases.bind(id))
        };
        let lost = |holder: &DeviceId, had: bool| loses(holder) && !(had && old.is_some_and(|o| o.bind(holder)));
        let mut add = |device: &DeviceId, alias: String| {
            if !steps.iter().any(|s| s.device.id == *device) {
                found.push(Overruled {
                    device: device.clone(),
                    alias,
                });
            }
        };
        for certificate in &new.certificates {
            let had = old.is_some_and(|o| o.certificates.contains(certificate));
            let holders = directory.holders_of_certificate(certificate).filter(|h| lost(h, had));
            holders.for_each(|h| add(h, format!("certificate {certificate}")));
        }
        for key in &new.vpn_keys {
            let had = old.is_some_and(|o| o.vpn_keys.contains(key));
            let holders = directory.holders_of_key(key).filter(|h| lost(h, had));
            holders.for_each(|h| add(h, format!("VPN key {key}")));
        }
    }
    found
}

/// Retired devices without those of their aliases that others are to have.
fn losing(directory: &impl Directory, steps: &BTreeMap<&DeviceId, Step>) -> BTreeMap<DeviceId, Device> {
    let mut losing: BTreeMap<DeviceId, Device> = BTreeMap::new();
    let mut lose = |holder: &DeviceId, without: &dyn Fn(&mut Aliases)| {
        let Some(known) = directory.device(holder).filter(|_| retired(directory, holder)) else {
            return;
        };
        let device = losing.entry(known.id.clone()).or_insert_with(|| known.clone());
        without(&mut device.aliases);
        device.aliases.tidy();
    };
    for step in steps.values() {
        let new = &step.device.aliases;
        for name in new.common_names.iter().chain([&step.device.id]) {
            directory
                .holder_of_name(name)
                .into_iter()
                .for_each(|h| lose(h, &|a| a.common_names = except(&a.common_names, name)));
        }
        for certificate in &new.certificates {
            let without = |a: &mut Aliases| bound(a, |a| a.certificates = except(&a.certificates, certificate));
            directory.holders_of_certificate(certificate).for_each(|h| lose(h, &without));
        }
        for key in &new.vpn_keys {
            let without = |a: &mut Aliases| bound(a, |a| a.vpn_keys = except(&a.vpn_keys, key));
            directory.holders_of_key(key).for_each(|h| lose(h, &without));
        }
    }
    losing
}

/// Where no certificate or key is left, nothing is said of for whom.
fn bound(aliases: &mut Aliases, change: impl Fn(&mut Aliases)) {
    change(aliases);
    if !aliases.has_proofs() {
        aliases.reach = None;
    }
}

fn except<T: Clone + PartialEq>(all: &[T], gone: &T) -> Box<[T]> {
    all.iter().filter(|one| *one != gone).cloned().collect()
}

fn retired(directory: &impl Directory, id: &DeviceId) -> bool {
    directory.device(id).is_some_and(|d| d.state == DeviceState::Retired)
}

fn one(known: Option<&Device>, registration: &Registration, reach: &Reach, context: &Context<'_>) -> Result<Step, Refusal> {
    let full_service_pool = pool(registration.full_service_pool.as_ref(), context.config)?;
    let names: BTreeSet<&DeviceId> = registration.common_names.iter().filter(|n| **n != registration.id).collect();
    let certificates: BTreeSet<Fingerprint> = registration.certificates.iter().copied().collect();
    let vpn_keys: BTreeSet<VpnKey> = registration.vpn_keys.iter().copied().collect();
    let mut device = known
        .cloned()
        .unwrap_or_else(|| Device::new(registration.id.clone(), full_service_pool.clone(), context.now.wall));
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(registration.id.clone()));
    }
    device.owner = registration.owner.as_str().into();
    device.full_service_pool = full_service_pool;
    let binding = !(certificates.is_empty() && vpn_keys.is_empty());
    device.aliases = Rare::new(Aliases {
        common_names: names.into_iter().cloned().collect(),
        certificates: certificates.into_iter().collect(),
        vpn_keys: vpn_keys.into_iter().collect(),
        reach: reach.clone().filter(|_| binding),
    });
    if device.state == DeviceState::Released
        && !by_exception(&device)
        && !held_back(&device, context)
        && let Some(pool) = full_service(&device, context.config)
    {
        let lease = shorter(device.release.lease, pool, context.now);
        device.release.lease = lease;
    }
    if *device.enrolment.window != registration.window {
        enrol_anew(&mut device, registration.window, context);
    }
    Ok(finish(known, device, context.config))
}

/// Another window: what came of the one before no longer counts. A release goes on; what a deadline or an early arrival has shut opens. After a
/// restore that has closed the device any window is another one: a deadline's block stays, until the next.
fn enrol_anew(device: &mut Device, window: Window, context: &Context<'_>) {
    let deadlines = device.exception.is_none() && device.state_reason == StateReason::DeadlinePassed;
    let under_another = device.exception.is_some() && arrival::is_past_deadline(device, context);
    let blocked = device.state == DeviceState::Blocked && *device.enrolment.window == Window::CLOSED;
    let stays = blocked && (deadlines || under_another);
    device.enrolment = Rare::new(Enrolment {
        window: Rare::new(window),
        arrived_at: context.connected.then_some(context.now.wall),
        deadline: device.enrolment.deadline.filter(|_| stays),
        ..Enrolment::default()
    });
    if device.state == DeviceState::Blocked && device.exception.is_none() && !stays {
        arrival::rest(device, StateReason::NewWindow, context);
    } else {
        arrival::begin_deadline(device, context);
    }
}

fn pool(named: Option<&PoolName>, config: &Config) -> Result<PoolName, Refusal> {
    let mut choices = config.pools.iter().filter(|p| p.kind == PoolKind::FullService);
    let found = match named {
        Some(name) => choices.find(|p| p.name == *name),
        None => choices.next().filter(|_| choices.next().is_none()),
    };
    found
        .map(|p| p.name.clone())
        .ok_or_else(|| Refusal::UnknownPool(named.map_or_else(|| "(none named)".to_owned(), ToString::to_string)))
}

/// Names and certificates, as they will be: those of devices in the list count as the list has them.
fn unique(directory: &impl Directory, steps: &BTreeMap<&DeviceId, Step>) -> Result<(), Refusal> {
    let mut names: HashMap<&DeviceId, &DeviceId> = steps.keys().map(|id| (*id, *id)).collect();
    let mut certificates: HashMap<Fingerprint, &DeviceId> = HashMap::new();
    let mut keys: HashMap<VpnKey, &DeviceId> = HashMap::new();
    let outside = |holder: &&DeviceId| !steps.contains_key(*holder) && !retired(directory, holder);
    for (id, step) in steps {
        let device = &step.device;
        // What was registered by who may not act on this one says nothing of it.
        let binds = |holder: &&DeviceId| outside(holder) && directory.device(holder).is_some_and(|d| d.aliases.bind(id));
        // A new id must not be a name that already stands for another device.
        if let Some(owner) = directory.holder_of_name(id).filter(outside) {
            return Err(taken(id, owner));
        }
        for name in &device.aliases.common_names {
            // The id of a retired device stays its own.
            let id_of = directory.device(name).map(|d| &d.id).filter(|id| !steps.contains_key(*id));
            let known = id_of.or_else(|| directory.holder_of_name(name).filter(outside));
            if let Some(owner) = known.or_else(|| names.insert(name, id).filter(|o| o != id)) {
                return Err(taken(name, owner));
            }
        }
        for certificate in &device.aliases.certificates {
            let known = directory.holders_of_certificate(certificate).find(binds);
            if let Some(owner) = known.or_else(|| certificates.insert(*certificate, id).filter(|o| o != id)) {
                return Err(taken(certificate, owner));
            }
        }
        for key in &device.aliases.vpn_keys {
            let known = directory.holders_of_key(key).find(binds);
            if let Some(owner) = known.or_else(|| keys.insert(*key, id).filter(|o| o != id)) {
                return Err(taken(key, owner));
            }
        }
    }
    Ok(())
}

fn taken(alias: &impl ToString, owner: &DeviceId) -> Refusal {
    Refusal::AliasTaken {
        alias: alias.to_string(),
        owner: Some(owner.clone()),
    }
}
