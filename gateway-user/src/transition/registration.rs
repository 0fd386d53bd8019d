//! Registering devices: all of a list or none, with aliases that belong to one device only.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Step, full_service, shorter, uri};
use crate::{
    config::{Config, PoolKind},
    model::{Device, DeviceId, DeviceState, Fingerprint, Now, PoolName},
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
}

/// The registry, as far as registering has to know it.
pub trait Directory {
    /// A device by id.
    fn device(&self, id: &DeviceId) -> Option<&Device>;
    /// Whose common name it is.
    fn holder_of_name(&self, name: &DeviceId) -> Option<&DeviceId>;
    /// Whose certificate it is.
    fn holder_of_certificate(&self, certificate: &Fingerprint) -> Option<&DeviceId>;
}

/// The devices after a list of registrations, in the list's order; of several for one id, the last counts.
///
/// # Errors
/// [`Refusal::UnknownPool`], [`Refusal::DeviceRetired`], [`Refusal::AliasTaken`]: none of them is registered.
pub fn register(directory: &impl Directory, list: &[Registration], now: Now, config: &Config) -> Result<Vec<Step>, Refusal> {
    let mut steps: BTreeMap<&DeviceId, Step> = BTreeMap::new();
    let mut order: Vec<&DeviceId> = Vec::new();
    for registration in list {
        let step = one(directory.device(&registration.id), registration, now, config)?;
        if steps.insert(&registration.id, step).is_none() {
            order.push(&registration.id);
        }
    }
    unique(directory, &steps)?;
    Ok(order.into_iter().filter_map(|id| steps.remove(id)).collect())
}

fn one(known: Option<&Device>, registration: &Registration, now: Now, config: &Config) -> Result<Step, Refusal> {
    let full_service_pool = pool(registration.full_service_pool.as_ref(), config)?;
    let names: BTreeSet<&DeviceId> = registration.common_names.iter().filter(|n| **n != registration.id).collect();
    let certificates: BTreeSet<Fingerprint> = registration.certificates.iter().copied().collect();
    let mut device = known
        .cloned()
        .unwrap_or_else(|| Device::new(registration.id.clone(), full_service_pool.clone(), now.wall));
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(registration.id.clone()));
    }
    device.owner.clone_from(&registration.owner);
    device.full_service_pool = full_service_pool;
    device.common_names = names.into_iter().cloned().collect();
    device.certificates = certificates.into_iter().collect();
    if device.state == DeviceState::Released
        && let Some(pool) = full_service(&device, config)
    {
        device.lease = shorter(device.lease, pool, now);
    }
    device.gateway_uri = uri(&device, config);
    Ok(Step {
        from: known.map(|d| d.state),
        old_uri: known.map(|d| d.gateway_uri.clone()),
        changed: known != Some(&device),
        device,
    })
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
    let outside = |holder: &&DeviceId| !steps.contains_key(*holder);
    for (id, step) in steps {
        let device = &step.device;
        // A new id must not be a name that already stands for another device.
        if let Some(owner) = directory.holder_of_name(id).filter(outside) {
            return Err(taken(id, owner));
        }
        for name in &device.common_names {
            let known = directory
                .device(name)
                .map(|d| &d.id)
                .or_else(|| directory.holder_of_name(name));
            if let Some(owner) = known.filter(outside).or_else(|| names.insert(name, id).filter(|o| o != id)) {
                return Err(taken(name, owner));
            }
        }
        for certificate in &device.certificates {
            let known = directory.holder_of_certificate(certificate).filter(outside);
            if let Some(owner) = known.or_else(|| certificates.insert(*certificate, id).filter(|o| o != id)) {
                return Err(taken(certificate, owner));
            }
        }
    }
    Ok(())
}

fn taken(alias: &impl ToString, owner: &DeviceId) -> Refusal {
    Refusal::AliasTaken {
        alias: alias.to_string(),
        owner: owner.clone(),
    }
}
