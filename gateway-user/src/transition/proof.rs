//! What releases by proof, for how long, and whether a release is in force now.

use super::{Context, Policies, arrival, enter, keys, lease, lease_end, restriction};
use crate::{
    config::{Config, Pool, PoolKind},
    model::{BootTime, Device, DeviceState, ExceptionKind, KeyHash, Now, PolicyRevision, StateReason, Trust, WallTime},
    refusal::Refusal,
};

/// How far ahead of the gateway's clock a proof may be dated, milliseconds: clocks differ.
pub const FUTURE_TOLERANCE_MS: i64 = 120_000;

/// Whether a device is to be judged by its full-service pool now: the one place that says so. [`released_for`] asks for a session.
#[must_use]
pub fn released_to<'c>(device: &Device, context: &Context<'c>) -> Option<&'c Pool> {
    let holds = release_end(device, &context.now).is_none_or(|end| end > context.now.boot);
    (device.state == DeviceState::Released && holds && !held_back(device, context))
        .then(|| full_service(device, context.config))
        .flatten()
}

/// The same for a session whose device is known so well: a pool may demand more than that.
#[must_use]
pub fn released_for<'c>(device: &Device, trust: Trust, context: &Context<'c>) -> Option<&'c Pool> {
    released_to(device, context).filter(|pool| trust >= pool.min_trust)
}

/// When a release ends unless renewed, on this boot's clock; `None`: never, or it is none. One that stands on proof and on an exception
/// ends with the later.
#[must_use]
pub fn release_end(device: &Device, now: &Now) -> Option<BootTime> {
    if device.state != DeviceState::Released {
        return None;
    }
    let lease = device.release.lease.map(|l| lease_end(&l, now));
    match device.exception.as_ref().filter(|_| by_exception(device)) {
        Some(exception) if device.release.proved.is_none() => Some(lease_end(&exception.holds, now)),
        Some(exception) => lease.max(lease.and(Some(lease_end(&exception.holds, now)))),
        None => lease,
    }
}

/// Whether a release of an earlier boot waits for the wall clock to pass the last commit.
#[must_use]
pub fn held_back(device: &Device, context: &Context<'_>) -> bool {
    let this_boot = |given: Now| given.boot_id == context.now.boot_id;
    let release = &device.release;
    let proof = release.proved.or_else(|| release.lease.map(|l| l.given));
    let exception = device.exception.as_ref().filter(|_| by_exception(device));
    device.state == DeviceState::Released
        && context.clock_behind.is_some_and(|last| context.now.wall < last)
        && !proof.is_some_and(this_boot)
        && !exception.is_some_and(|e| this_boot(e.holds.given))
}

/// Whether an operator's exception has released it, not proof.
#[must_use]
pub fn by_exception(device: &Device) -> bool {
    device.state == DeviceState::Released && device.exception.as_ref().is_some_and(|e| e.kind == ExceptionKind::Release)
}

/// The pool that a release moves a device to, if the configuration (still) has it.
#[must_use]
pub fn full_service<'c>(device: &Device, config: &'c Config) -> Option<&'c Pool> {
    config
        .pool(&device.full_service_pool)
        .filter(|p| p.kind == PoolKind::FullService)
}

/// Whether a device may enrol now, or has.
///
/// # Errors
/// [`Refusal::EnrolmentNotOpen`], [`Refusal::EnrolmentClosed`], [`Refusal::WindowUnknown`], [`Refusal::QuarantineDeadline`].
pub fn window_open(device: &Device, context: &Context<'_>) -> Result<(), Refusal> {
    if device.enrolment.enrolled_at.is_some() {
        return Ok(());
    }
    let window = *device.enrolment.window;
    let (closed, bounded) = (
        window.not_after.is_some_and(|t| context.at_least() > t),
        window.not_after.is_some(),
    );
    // It may be open by now, or no longer.
    if context.clock_behind.is_some() && !closed && (bounded || within_window(device, context).is_err()) {
        return Err(Refusal::WindowUnknown(device.id.clone()));
    }
    within_window(device, context)?;
    if arrival::is_past_deadline(device, context) {
        return Err(Refusal::QuarantineDeadline(device.id.clone()));
    }
    Ok(())
}

/// Whether its window is open; by a clock that is behind, at the last commit.
pub(super) fn within_window(device: &Device, context: &Context<'_>) -> Result<(), Refusal> {
    let (window, now) = (*device.enrolment.window, context.at_least());
    if window.not_before.is_some_and(|t| now < t) {
        return Err(Refusal::EnrolmentNotOpen(device.id.clone()));
    }
    if window.not_after.is_some_and(|t| now > t) {
        return Err(Refusal::EnrolmentClosed(device.id.clone()));
    }
    Ok(())
}

pub(super) fn applied(
    device: &mut Device,
    revision: &PolicyRevision,
    key: Option<KeyHash>,
    observed_at: Option<WallTime>,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    neither_retired_nor_blocked(device)?;
    match key {
        Some(key) => keys::check(device, key, revision)?,
        None if context.config.proofs.direct_signal => {}
        None => return Err(Refusal::PolicyKeyRequired),
    }
    fresh(device, key.is_some(), observed_at, context)?;
    required(device, revision, context)?;
    let pool = full_service(device, context.config).ok_or_else(|| Refusal::UnknownPool(device.full_service_pool.to_string()))?;
    // Who has proved it goes on proving it, whatever its window has become.
    let open = window_open(device, context);
    if device.state != DeviceState::Released || by_exception(device) {
        open.clone()?;
    }
    if open.is_ok() && device.enrolment.enrolled_at.is_none() {
        device.enrolment.enrolled_at = Some(context.now.wall);
    }
    if device.enrolment.deadline.is_some() {
        device.enrolment.deadline = None;
    }
    device.policy_revision = Some(context.policies.known(revision).unwrap_or(revision).clone());
    // Dated ahead by a clock that differs, it is not to be proof once more after what ends this release; nor is what was proved before.
    let proved = device.release.proved.map_or(WallTime(i64::MIN), |p| p.wall);
    let carried = match context.clock_behind {
        Some(_) => proved,
        None => proved.min(latest(context.now.wall)),
    };
    let wall = context.now.wall.max(observed_at.unwrap_or(context.now.wall)).max(carried);
    device.release.proved = Some(Now { wall, ..context.now });
    device.release.lease = pool.lease.map(|length| lease(length, context.now));
    if device.state != DeviceState::Released || by_exception(device) {
        device.exception = None;
        enter(device, DeviceState::Released, StateReason::PolicyApplied, &context.now);
    }
    Ok(())
}

/// Where a proof that the release stands on is dated ahead: up to when what was seen is no proof once more. A clock that was set back must not
/// keep out what it lets come.
pub(super) fn spent(device: &Device, context: &Context<'_>) -> WallTime {
    let dated = device
        .release
        .proved
        .map(|p| p.wall)
        .filter(|dated| *dated > context.now.wall);
    dated.map_or(WallTime(i64::MIN), |dated| restriction::dated(dated, context))
}

/// How a proof may be dated at the latest.
pub(super) fn latest(now: WallTime) -> WallTime {
    WallTime(now.0.saturating_add(FUTURE_TOLERANCE_MS))
}

pub(super) fn renew(device: &mut Device, context: &Context<'_>) -> Result<(), Refusal> {
    neither_retired_nor_blocked(device)?;
    let pool = released_to(device, context)
        .filter(|_| !by_exception(device))
        .ok_or_else(|| Refusal::NotReleased(device.id.clone()))?;
    device.release.lease = pool.lease.map(|length| lease(length, context.now));
    Ok(())
}

pub(super) fn neither_retired_nor_blocked(device: &Device) -> Result<(), Refusal> {
    match (device.state, device.state_reason) {
        (DeviceState::Retired, _) => Err(Refusal::DeviceRetired(device.id.clone())),
        (DeviceState::Blocked, StateReason::DeadlinePassed) => Err(Refusal::QuarantineDeadline(device.id.clone())),
        (DeviceState::Blocked, reason) => Err(Refusal::DeviceBlocked(device.id.clone(), reason.to_string())),
        _ => Ok(()),
    }
}

/// Whether a revision is what the device has to prove, or newer.
pub(super) fn required(device: &Device, revision: &PolicyRevision, context: &Context<'_>) -> Result<(), Refusal> {
    let policies: &Policies = context.policies;
    let Some(required) = policies.required_of(device) else {
        return Ok(());
    };
    // What a released device holds may never have been published.
    if revision == required {
        return Ok(());
    }
    let found = policies
        .order(revision)
        .ok_or_else(|| Refusal::UnknownPolicyRevision(revision.clone()))?;
    if Some(found) < policies.order(required) {
        return Err(Refusal::StalePolicyRevision {
            device: device.id.clone(),
            required: required.clone(),
            found: revision.clone(),
        });
    }
    Ok(())
}

/// Whether a proof was seen at a time at which it can be one. While the clock is behind, the order of a handshake is better than any date.
fn fresh(device: &Device, by_key: bool, observed_at: Option<WallTime>, context: &Context<'_>) -> Result<(), Refusal> {
    let observed = observed_at.ok_or(Refusal::StaleSignal)?;
    let behind = context.clock_behind.is_some();
    if behind && by_key && keys::is_fresh(device, context) {
        return Ok(());
    }
    let now = context.now.wall.0;
    if observed > latest(context.now.wall) {
        return Err(if behind {
            Refusal::ClockBehind
        } else {
            Refusal::SignalFromFuture
        });
    }
    if device.release.restricted_at.is_some_and(|restricted| observed <= restricted) {
        return Err(Refusal::StaleSignal);
    }
    // Its lease may be over, which nobody knows before the clock is right.
    if held_back(device, context) && device.release.proved.is_some_and(|proved| observed <= proved.wall) {
        return Err(Refusal::StaleSignal);
    }
    let most = context.config.proofs.max_signal_age;
    let age = u64::try_from(now.saturating_sub(observed.0)).unwrap_or(0);
    if u128::from(age) > most.as_millis() {
        return Err(Refusal::SignalTooOld {
            age_s: age / 1000,
            most_s: most.as_secs(),
        });
    }
    Ok(())
}
