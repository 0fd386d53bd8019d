//! What follows from a signal: pure and total. (device, signal, now, configuration) gives the device after it, or a refusal. It reads no
//! clock, knows no session's address and touches nothing; [`crate::controller`] does with the result what has to be done.

mod registration;

pub use registration::{Directory, Registration, register};

use crate::{
    config::{Config, Pool, PoolKind},
    model::{BootTime, Device, DeviceState, Lease, Now, PolicyRevision, WallTime},
    refusal::Refusal,
};

/// How far ahead of the gateway's clock a proof may be dated, milliseconds: clocks differ.
pub const FUTURE_TOLERANCE_MS: i64 = 120_000;

/// What can happen to a device of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal<'a> {
    /// The MDM has seen its policy applied: the only signal that releases.
    PolicyApplied {
        /// Which policy.
        revision: &'a PolicyRevision,
        /// When it was seen; without it, it is no proof.
        observed_at: Option<WallTime>,
    },
    /// The MDM says that its policy no longer holds.
    PolicyRevoked {
        /// When that was seen; `None`: now.
        observed_at: Option<WallTime>,
    },
    /// It is no longer managed.
    Retire,
    /// A session of it opens.
    Connected,
    /// Its lease is over.
    LeaseEnded,
    /// The daemon starts: another boot, perhaps another configuration.
    Start,
}

/// A device before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// State before; `None`: it was not in the registry.
    pub from: Option<DeviceState>,
    /// GatewayURI before; `None`: it was not in the registry.
    pub old_uri: Option<String>,
    /// The device after it. Its `revision` is the one before.
    pub device: Device,
    /// Whether anything of the device is different.
    pub changed: bool,
}

/// What follows from a signal.
///
/// # Errors
/// [`Refusal::DeviceRetired`], and for [`Signal::PolicyApplied`] alone [`Refusal::StaleSignal`], [`Refusal::SignalFromFuture`] and
/// [`Refusal::UnknownPool`].
pub fn step(device: &Device, signal: Signal<'_>, now: Now, config: &Config) -> Result<Step, Refusal> {
    let mut after = device.clone();
    match signal {
        Signal::PolicyApplied { revision, observed_at } => applied(&mut after, revision, observed_at, now, config)?,
        Signal::PolicyRevoked { observed_at } => {
            if device.state == DeviceState::Retired {
                return Err(Refusal::DeviceRetired(device.id.clone()));
            }
            // A restriction dated ahead would lock out the releases that follow it.
            let seen = observed_at.map_or(now.wall, |t| t.min(now.wall));
            after.restricted_at = after.restricted_at.max(Some(seen));
            // Blocked is tighter than quarantined, and no revocation loosens.
            if device.state != DeviceState::Blocked {
                enter(&mut after, DeviceState::Quarantined, "policy_revoked", now);
            }
        }
        Signal::Retire => {
            if device.state != DeviceState::Retired {
                after.restricted_at = after.restricted_at.max(Some(now.wall));
                enter(&mut after, DeviceState::Retired, "retired", now);
            }
        }
        Signal::Connected => match device.state {
            DeviceState::Retired => return Err(Refusal::DeviceRetired(device.id.clone())),
            DeviceState::Registered => enter(&mut after, DeviceState::Quarantined, "connected", now),
            DeviceState::Quarantined
            | DeviceState::PolicyPending
            | DeviceState::Released
            | DeviceState::Stale
            | DeviceState::Blocked => {}
        },
        Signal::LeaseEnded => {
            if device.state == DeviceState::Released {
                end_lease(&mut after, now);
            }
        }
        Signal::Start => start(&mut after, now, config),
    }
    after.gateway_uri = uri(&after, config);
    Ok(Step {
        from: Some(device.state),
        old_uri: Some(device.gateway_uri.clone()),
        changed: after != *device,
        device: after,
    })
}

/// When a lease ends, on this boot's clock; in the past or now: it is over.
///
/// A lease of another boot is measured by the wall clock, never for longer than it had; a wall clock from before it was given says that
/// the clock is wrong, which proves nothing: it is over.
#[must_use]
pub fn lease_end(lease: &Lease, now: &Now) -> BootTime {
    if lease.given.boot_id == now.boot_id {
        BootTime(lease.given.boot.0.saturating_add(lease.length_ms.saturating_mul(1_000_000)))
    } else {
        BootTime(now.boot.0.saturating_add(left_ms(lease, now).saturating_mul(1_000_000)))
    }
}

/// Whether a device is to be judged by its full-service pool now: the one place that says so.
#[must_use]
pub fn released_to<'c>(device: &Device, now: &Now, config: &'c Config) -> Option<&'c Pool> {
    let holds = device.lease.is_none_or(|l| lease_end(&l, now) > now.boot);
    (device.state == DeviceState::Released && holds)
        .then(|| full_service(device, config))
        .flatten()
}

/// The pool that a release moves a device to, if the configuration (still) has it.
#[must_use]
pub fn full_service<'c>(device: &Device, config: &'c Config) -> Option<&'c Pool> {
    config
        .pool(&device.full_service_pool)
        .filter(|p| p.kind == PoolKind::FullService)
}

fn applied(
    device: &mut Device,
    revision: &PolicyRevision,
    observed_at: Option<WallTime>,
    now: Now,
    config: &Config,
) -> Result<(), Refusal> {
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(device.id.clone()));
    }
    let observed = observed_at.ok_or(Refusal::StaleSignal)?;
    if observed.0 > now.wall.0.saturating_add(FUTURE_TOLERANCE_MS) {
        return Err(Refusal::SignalFromFuture);
    }
    if device.restricted_at.is_some_and(|restricted| observed <= restricted) {
        return Err(Refusal::StaleSignal);
    }
    let pool = full_service(device, config).ok_or_else(|| Refusal::UnknownPool(device.full_service_pool.to_string()))?;
    device.policy_revision = Some(revision.clone());
    device.lease = pool.lease.map(|length| lease(length, now));
    if device.state != DeviceState::Released {
        let lease = device.lease;
        enter(device, DeviceState::Released, "policy_applied", now);
        device.lease = lease;
    }
    Ok(())
}

fn start(device: &mut Device, now: Now, config: &Config) {
    if device.state != DeviceState::Released {
        return;
    }
    let Some(pool) = full_service(device, config) else {
        device.restricted_at = device.restricted_at.max(Some(now.wall));
        enter(device, DeviceState::Quarantined, "pool_removed", now);
        return;
    };
    if let Some(held) = device.lease {
        if lease_end(&held, &now) <= now.boot {
            end_lease(device, now);
            return;
        }
        // From here on this boot's clock decides: a wall clock set back between two restarts does not lengthen it.
        if held.given.boot_id != now.boot_id {
            device.lease = Some(Lease {
                given: now,
                length_ms: left_ms(&held, &now),
            });
        }
    }
    device.lease = shorter(device.lease, pool, now);
}

/// The lease of a released device in this pool: never longer than the one it has.
fn shorter(held: Option<Lease>, pool: &Pool, now: Now) -> Option<Lease> {
    match (held, pool.lease.map(|length| lease(length, now))) {
        (Some(held), Some(fresh)) if lease_end(&fresh, &now) < lease_end(&held, &now) => Some(fresh),
        (None, fresh) => fresh,
        (held, _) => held,
    }
}

/// A proof that was accepted before the lease began does not begin another one.
fn end_lease(device: &mut Device, now: Now) {
    let given = device.lease.map_or(now.wall, |l| l.given.wall.min(now.wall));
    device.restricted_at = device.restricted_at.max(Some(given));
    enter(device, DeviceState::Quarantined, "lease_ended", now);
}

fn enter(device: &mut Device, state: DeviceState, reason: &str, now: Now) {
    if device.state != state {
        device.state = state;
        device.state_since = now.wall;
    }
    reason.clone_into(&mut device.state_reason);
    device.lease = None;
}

/// The GatewayURI that follows from state and pool. A device whose pool is gone from the configuration keeps the first quarantine pool's.
fn uri(device: &Device, config: &Config) -> String {
    let pool = match full_service(device, config) {
        Some(pool) if device.state == DeviceState::Released => Some(pool),
        Some(pool) => pool.fallback.and_then(|id| config.pool_by_id(id)),
        None => config.pools.iter().find(|p| p.kind == PoolKind::Quarantine),
    };
    pool.map_or_else(|| device.gateway_uri.clone(), |p| p.gateway_uri.clone())
}

fn lease(length: std::time::Duration, given: Now) -> Lease {
    Lease {
        given,
        length_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
    }
}

/// What is left of a lease of another boot.
fn left_ms(lease: &Lease, now: &Now) -> u64 {
    let passed = now.wall.0.saturating_sub(lease.given.wall.0);
    u64::try_from(passed).map_or(0, |passed| lease.length_ms.saturating_sub(passed))
}

#[cfg(test)]
mod tests;
