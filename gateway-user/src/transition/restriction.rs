//! What restricts. No device that is not retired refuses any of it; a retired one is restricted for ever.

use super::{Context, arrival, by_exception, enter, full_service, held_back, lease, proof, release_end, span};
use crate::{
    config::{AfterDeadline, Pool},
    model::{Device, DeviceState, Handshake, Lease, Now, Rare, Release, StateReason, WallTime},
    refusal::Refusal,
};

pub(super) fn revoked(device: &mut Device, observed_at: Option<WallTime>, context: &Context<'_>) -> Result<(), Refusal> {
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(device.id.clone()));
    }
    let seen = observed_at.map_or_else(|| undated(context), |t| dated(t, context));
    restricted(device, seen, context);
    // Blocked is tighter than quarantined, and no revocation loosens.
    if device.state != DeviceState::Blocked {
        quarantine(device, StateReason::PolicyRevoked, context);
    }
    Ok(())
}

/// Its revision alone keeps it from being released again: a proof of the newer one may have been seen before the wave came.
pub(super) fn stale(device: &mut Device, context: &Context<'_>) {
    if context.policies.awaits_wave(device) {
        take_keys(device);
        end_release(device);
        enter(device, DeviceState::Stale, StateReason::PolicyStale, &context.now);
        arrival::begin_deadline(device, context);
    }
}

pub(super) fn deadline_passed(device: &mut Device, context: &Context<'_>) {
    let blocks = context.config.devices.deadline.is_some() && context.config.devices.after_deadline == AfterDeadline::Block;
    if blocks && device.state.quarantined() && device.enrolment.deadline.is_some() {
        arrival::shut(device, StateReason::DeadlinePassed, context);
    }
}

pub(super) fn lease_ended(device: &mut Device, context: &Context<'_>) {
    if device.state == DeviceState::Released && !by_exception(device) {
        // A proof that was accepted before the lease began does not begin another one.
        let since = device.release.proved.or_else(|| device.release.lease.map(|l| l.given));
        let seen = since.map_or_else(|| undated(context), |since| dated(since.wall, context));
        restricted(device, seen, context);
        quarantine(device, StateReason::LeaseEnded, context);
    }
}

pub(super) fn retire(device: &mut Device, context: &Context<'_>) {
    if device.state != DeviceState::Retired {
        restricted(device, context.at_least(), context);
        take_keys(device);
        end_release(device);
        device.exception = None;
        enter(device, DeviceState::Retired, StateReason::Retired, &context.now);
    }
}

pub(super) fn restored(device: &mut Device, context: &Context<'_>) {
    if device.state == DeviceState::Retired {
        return;
    }
    restricted(device, undated(context), context);
    if matches!(device.state, DeviceState::Registered | DeviceState::Blocked) {
        take_keys(device);
    } else {
        quarantine(device, StateReason::Restored, context);
    }
    // It is a start, too.
    start(device, context);
}

pub(super) fn start(device: &mut Device, context: &Context<'_>) {
    let now = &context.now;
    if device.state == DeviceState::Released && full_service(device, context.config).is_none() {
        restricted(device, undated(context), context);
        quarantine(device, StateReason::PoolRemoved, context);
    }
    if !held_back(device, context) && release_end(device, now).is_some_and(|end| end <= now.boot) {
        super::exception::over(device, context);
        if release_end(device, now).is_some_and(|end| end <= now.boot) {
            lease_ended(device, context);
        }
    }
    if context.clock_behind.is_none() {
        adopt(device, now);
    }
    if device.state == DeviceState::Released
        && !by_exception(device)
        && !held_back(device, context)
        && let Some(pool) = full_service(device, context.config)
    {
        let lease = shorter(device.release.lease, pool, *now);
        if lease != device.release.lease {
            device.release.lease = lease;
        }
    }
    arrival::begin_deadline(device, context);
}

/// The lease of a released device in this pool: never longer than the one it has.
pub(super) fn shorter(held: Option<Lease>, pool: &Pool, now: Now) -> Option<Lease> {
    use super::lease_end;
    match (held, pool.lease.map(|length| lease(length, now))) {
        (Some(held), Some(fresh)) if lease_end(&fresh, &now) < lease_end(&held, &now) => Some(fresh),
        (None, fresh) => fresh,
        (held, _) => held,
    }
}

/// To quarantine, from whatever is no tighter; with a release, what it stood on ends.
pub(super) fn quarantine(device: &mut Device, reason: StateReason, context: &Context<'_>) {
    take_keys(device);
    end_release(device);
    if device.exception.is_some() {
        device.exception = None;
    }
    arrival::rest(device, reason, context);
}

/// No proof seen until then releases any more; nor does the one that released it.
pub(super) fn restricted(device: &mut Device, seen: WallTime, context: &Context<'_>) {
    let until = seen.max(proof::spent(device, context));
    device.release.restricted_at = device.release.restricted_at.max(Some(until));
}

/// The same, of something that this gateway began then.
pub(super) fn restricted_since(device: &mut Device, begun: Now, context: &Context<'_>) {
    let now = &context.now;
    let this_boot = begun.boot_id == now.boot_id;
    let ago = i64::try_from(now.boot.0.saturating_sub(begun.boot.0) / 1_000_000).unwrap_or(i64::MAX);
    let seen = match context.clock_behind {
        Some(_) => Release::UNTIMED,
        // The wall clock may have been behind then.
        None if this_boot => begun.wall.max(WallTime(now.wall.0.saturating_sub(ago))).min(now.wall),
        None => begun.wall.min(now.wall),
    };
    restricted(device, seen, context);
}

/// From when what restricts now counts.
pub(super) fn undated(context: &Context<'_>) -> WallTime {
    context.clock_behind.map_or(context.now.wall, |_| Release::UNTIMED)
}

/// From when a restriction counts that its source has dated. Further ahead than a proof may be, it would lock out the releases that follow it; back
/// to this clock, which may be the one that is slow, it would let in a proof that was seen before it. A clock that is behind cannot tell
/// which of the two is wrong: then all that is dated has to wait for it.
pub(super) fn dated(seen: WallTime, context: &Context<'_>) -> WallTime {
    let latest = proof::latest(context.at_least());
    match context.clock_behind {
        Some(_) if seen > latest => Release::UNTIMED,
        _ => seen.min(latest),
    }
}

pub(super) fn take_keys(device: &mut Device) {
    device.keys = Rare::new(Handshake::default());
}

pub(super) fn end_release(device: &mut Device) {
    if device.release.lease.is_some() || device.release.proved.is_some() {
        device.release.lease = None;
        device.release.proved = None;
    }
}

/// From here on this boot's clock measures what an earlier boot gave; and what was good then is good in this boot, whatever the wall clock
/// does later.
fn adopt(device: &mut Device, now: &Now) {
    // It came before the clock was right, and its source may date as far ahead as that.
    if device.release.restricted_at == Some(Release::UNTIMED) {
        device.release.restricted_at = Some(proof::latest(now.wall));
    }
    if let Some(proved) = device.release.proved.filter(|p| p.boot_id != now.boot_id) {
        device.release.proved = Some(Now {
            wall: proved.wall,
            ..*now
        });
    }
    if let Some(mut lease) = device.release.lease {
        span::adopt(&mut lease, now);
        device.release.lease = Some(lease);
    }
    if let Some(mut deadline) = device.enrolment.deadline {
        span::adopt(&mut deadline, now);
        device.enrolment.deadline = Some(deadline);
    }
    if let Some(exception) = &mut device.exception {
        span::adopt(&mut exception.holds, now);
    }
}
