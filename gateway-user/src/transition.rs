//! What follows from a signal: pure and total. (device, signal, context) gives the device after it, or a refusal. It reads no clock, knows
//! no session's address and touches nothing; [`crate::controller`] does with the result what has to be done. The rules by family: arrivals
//! (`arrival`), policy keys (`keys`), what releases (`proof`, `exception`), what restricts (`restriction`), registering (`registration`).

mod arrival;
mod carry;
mod exception;
mod keys;
mod policies;
mod proof;
mod registration;
mod restriction;
mod span;

use std::{sync::Arc, time::Duration};

pub use self::{
    arrival::{deadline_end, may_arrive},
    carry::{Taken, tightened, unregistered},
    policies::Policies,
    proof::{FUTURE_TOLERANCE_MS, by_exception, full_service, held_back, release_end, released_for, released_to, window_open},
    registration::{Directory, Overruled, Registration, overruled, register},
    span::{lease, lease_end},
};
use crate::{
    config::{AfterDeadline, Config, PoolKind},
    model::{BootTime, Device, DeviceState, ExceptionKind, KeyHash, Now, PolicyRevision, Release, StateReason, WallTime},
    refusal::Refusal,
};

/// All that a step is decided by, beside the device and the signal.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time.
    pub now: Now,
    /// The configuration.
    pub config: &'a Config,
    /// What the MDM has published.
    pub policies: &'a Policies,
    /// Whether the device has a live session: then its deadline begins with its quarantine.
    pub connected: bool,
    /// The wall clock of the last commit, if the clock was found behind it after a reboot and has not passed it yet: no release of an
    /// earlier boot is in force, and dates prove little: what happened in this boot is known by its order.
    pub clock_behind: Option<WallTime>,
}

impl Context<'_> {
    /// The wall clock, or the last commit's while that is later: it is this late at least.
    pub(crate) fn at_least(&self) -> WallTime {
        self.clock_behind.map_or(self.now.wall, |last| last.max(self.now.wall))
    }
}

/// What can happen to a device of the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal<'a> {
    /// A session of it is to open. Refused: [`Signal::TurnedAway`] remembers it.
    Connected,
    /// A session of it was refused because its window is not open.
    TurnedAway,
    /// The MDM offers it a policy.
    Offer {
        /// The temporary key.
        key: KeyHash,
        /// Which policy.
        revision: &'a PolicyRevision,
    },
    /// It has the policy that was offered.
    Acknowledge {
        /// The key that it was offered.
        temporary: KeyHash,
        /// The final one that it gets for it.
        fresh: KeyHash,
    },
    /// The MDM has seen its policy applied: beside an exception the only signal that releases.
    PolicyApplied {
        /// Which policy.
        revision: &'a PolicyRevision,
        /// The final key; `None`: a direct signal.
        key: Option<KeyHash>,
        /// When it was seen; without it, it is no proof.
        observed_at: Option<WallTime>,
    },
    /// The MDM says that what it proved still holds.
    RenewLease,
    /// The MDM says that its policy no longer holds.
    PolicyRevoked {
        /// When that was seen; `None`: now.
        observed_at: Option<WallTime>,
    },
    /// Its wave of a newer policy revision has come.
    Stale,
    /// Its deadline in quarantine has passed.
    DeadlinePassed,
    /// The lease of its release by proof is over.
    LeaseEnded,
    /// An operator releases or blocks it.
    Except {
        /// Which.
        kind: ExceptionKind,
        /// Why.
        reason: &'a str,
        /// Who.
        by: &'a str,
        /// For how long.
        length: Duration,
    },
    /// An operator ends the exception.
    EndException,
    /// The exception's time is over.
    ExceptionOver,
    /// It is no longer managed.
    Retire,
    /// The daemon starts, or the clock has passed the last commit: another boot, perhaps another configuration.
    Start,
    /// The store was restored from a backup: what was restricted since is forgotten, so every release needs fresh proof.
    Restored,
}

/// A device before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// State before; `None`: it was not in the registry.
    pub from: Option<DeviceState>,
    /// GatewayURI before; `None`: it was not in the registry.
    pub old_uri: Option<Arc<str>>,
    /// The device after it. Its `revision` is the one before.
    pub device: Device,
    /// Whether anything of the device is different.
    pub changed: bool,
}

/// What follows from a signal. Restrictions ([`Signal::PolicyRevoked`], [`Signal::Stale`], [`Signal::DeadlinePassed`],
/// [`Signal::LeaseEnded`], [`Signal::ExceptionOver`], [`Signal::Retire`], [`Signal::Restored`]) are refused to no device that is not
/// retired. Those that time brings are taken at their word: the caller has looked at [`due`].
///
/// # Errors
/// What the specification says of the signal; nothing has changed then.
pub fn step(device: &Device, signal: Signal<'_>, context: &Context<'_>) -> Result<Step, Refusal> {
    let mut after = device.clone();
    let d = &mut after;
    match signal {
        Signal::Connected => arrival::connected(d, context)?,
        Signal::TurnedAway => arrival::turned_away(d, context),
        Signal::Offer { key, revision } => keys::offer(d, key, revision, context)?,
        Signal::Acknowledge { temporary, fresh } => keys::acknowledge(d, temporary, fresh, context)?,
        Signal::PolicyApplied {
            revision,
            key,
            observed_at,
        } => proof::applied(d, revision, key, observed_at, context)?,
        Signal::RenewLease => proof::renew(d, context)?,
        Signal::PolicyRevoked { observed_at } => restriction::revoked(d, observed_at, context)?,
        Signal::Stale => restriction::stale(d, context),
        Signal::DeadlinePassed => restriction::deadline_passed(d, context),
        Signal::LeaseEnded => restriction::lease_ended(d, context),
        Signal::Except {
            kind,
            reason,
            by,
            length,
        } => exception::grant(d, kind, reason, by, length, context)?,
        Signal::EndException => exception::end(d, context)?,
        Signal::ExceptionOver => exception::over(d, context),
        Signal::Retire => restriction::retire(d, context),
        Signal::Start => restriction::start(d, context),
        Signal::Restored => restriction::restored(d, context),
    }
    Ok(finish(Some(device), after, context.config))
}

/// What time brings to a device next, and when on this boot's clock: to be told to [`step`] then. In the past or now: at once.
#[must_use]
pub fn due(device: &Device, context: &Context<'_>) -> Option<(BootTime, Signal<'static>)> {
    let known = |given: &Now| context.clock_behind.is_none() || given.boot_id == context.now.boot_id;
    match device.state {
        DeviceState::Released if held_back(device, context) => None,
        DeviceState::Released => match device.exception.as_ref().filter(|_| by_exception(device)) {
            Some(exception) => Some((lease_end(&exception.holds, &context.now), Signal::ExceptionOver)),
            None => release_end(device, &context.now).map(|end| (end, Signal::LeaseEnded)),
        },
        DeviceState::Blocked => {
            let exception = device.exception.as_ref().filter(|e| known(&e.holds.given))?;
            Some((lease_end(&exception.holds, &context.now), Signal::ExceptionOver))
        }
        DeviceState::Registered | DeviceState::Quarantined | DeviceState::PolicyPending | DeviceState::Stale => {
            let blocks = context.config.devices.after_deadline == AfterDeadline::Block;
            deadline_end(device, context)
                .filter(|_| blocks)
                .map(|end| (end, Signal::DeadlinePassed))
        }
        DeviceState::Retired => None,
    }
}

/// Whether [`Signal::Start`] may change anything of a device: mostly it does not, and a million are asked.
#[must_use]
pub fn may_change_at_start(device: &Device, context: &Context<'_>) -> bool {
    let deadline = device.enrolment.deadline;
    let begins =
        deadline.is_none() && device.state.quarantined() && context.connected && context.config.devices.deadline.is_some();
    let untimed = device.release.restricted_at == Some(Release::UNTIMED) && context.clock_behind.is_none();
    let another_boots = deadline.is_some_and(|d| d.given.boot_id != context.now.boot_id);
    device.state == DeviceState::Released
        || device.exception.is_some()
        || begins
        || another_boots
        || untimed
        || uri(device, context.config) != device.gateway_uri
}

/// Whether a step by [`Signal::Start`] changes more than the clock by which something is measured, or the beginning of a deadline: the state, how
/// long a release holds, or the GatewayURI.
#[must_use]
pub fn presses(before: &Device, step: &Step, now: &Now) -> bool {
    let after = &step.device;
    before.state != after.state || before.gateway_uri != after.gateway_uri || release_end(before, now) != release_end(after, now)
}

/// Makes what a device has in common with others be the same memory: the names of pools, policy revisions and gateways.
pub fn share(device: &mut Device, config: &Config, policies: &Policies) {
    if let Some(pool) = config.pool(&device.full_service_pool) {
        device.full_service_pool = pool.name.clone();
    }
    if let Some(pool) = config.pools.iter().find(|p| p.gateway_uri == device.gateway_uri) {
        device.gateway_uri = pool.gateway_uri.clone();
    }
    if let Some(revision) = device.policy_revision.as_ref().and_then(|r| policies.known(r)) {
        device.policy_revision = Some(revision.clone());
    }
}

fn finish(before: Option<&Device>, mut after: Device, config: &Config) -> Step {
    after.gateway_uri = uri(&after, config);
    after.aliases.tidy();
    after.enrolment.tidy();
    after.release.tidy();
    after.keys.tidy();
    Step {
        from: before.map(|d| d.state),
        old_uri: before.map(|d| d.gateway_uri.clone()),
        changed: before != Some(&after),
        device: after,
    }
}

fn enter(device: &mut Device, state: DeviceState, reason: StateReason, now: &Now) {
    if device.state != state {
        device.state = state;
        device.state_since = now.wall;
    }
    device.state_reason = reason;
}

/// The GatewayURI that follows from state and pool. A device whose pool is gone from the configuration keeps the first quarantine pool's.
fn uri(device: &Device, config: &Config) -> Arc<str> {
    let pool = match full_service(device, config) {
        Some(pool) if device.state == DeviceState::Released => Some(pool),
        Some(pool) => pool.fallback.and_then(|id| config.pool_by_id(id)),
        None => config.pools.iter().find(|p| p.kind == PoolKind::Quarantine),
    };
    pool.map_or_else(|| device.gateway_uri.clone(), |p| p.gateway_uri.clone())
}

#[cfg(test)]
mod tests;
