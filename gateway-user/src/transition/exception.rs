//! An operator's exceptions: a release without proof, or a block, with a reason and an end.

use std::time::Duration;

use super::{Context, arrival, enter, full_service, held_back, lease, restriction, span, window_open};
use crate::{
    model::{Device, DeviceState, Exception, ExceptionKind, StateReason},
    refusal::Refusal,
};

pub(super) fn grant(
    device: &mut Device,
    kind: ExceptionKind,
    reason: &str,
    by: &str,
    length: Duration,
    context: &Context<'_>,
) -> Result<(), Refusal> {
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(device.id.clone()));
    }
    let most = context.config.devices.max_exception;
    if length > most {
        return Err(Refusal::ExceptionTooLong(most.as_secs()));
    }
    let (state, why) = match kind {
        ExceptionKind::Release => {
            full_service(device, context.config).ok_or_else(|| Refusal::UnknownPool(device.full_service_pool.to_string()))?;
            window_open(device, context)?;
            device.enrolment.deadline = None;
            (DeviceState::Released, StateReason::ExceptionRelease)
        }
        ExceptionKind::Block => {
            restriction::restricted(device, restriction::undated(context), context);
            restriction::take_keys(device);
            restriction::end_release(device);
            (DeviceState::Blocked, StateReason::ExceptionBlock)
        }
    };
    device.exception = Some(Box::new(Exception {
        kind,
        reason: reason.to_owned(),
        by: by.to_owned(),
        holds: lease(length, context.now),
    }));
    enter(device, state, why, &context.now);
    Ok(())
}

pub(super) fn end(device: &mut Device, context: &Context<'_>) -> Result<(), Refusal> {
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(device.id.clone()));
    }
    let exception = device
        .exception
        .take()
        .ok_or_else(|| Refusal::NoException(device.id.clone()))?;
    if exception.kind == ExceptionKind::Release && !stands(device, context) {
        restriction::restricted(device, restriction::undated(context), context);
    }
    leave(device, context);
    Ok(())
}

pub(super) fn over(device: &mut Device, context: &Context<'_>) {
    let Some(exception) = device.exception.take() else { return };
    if exception.kind == ExceptionKind::Release && !stands(device, context) {
        // A proof seen meanwhile is newer than what the exception began with.
        restriction::restricted_since(device, exception.holds.given, context);
    }
    leave(device, context);
}

fn leave(device: &mut Device, context: &Context<'_>) {
    if stands(device, context) {
        enter(device, DeviceState::Released, StateReason::PolicyApplied, &context.now);
        return;
    }
    restriction::take_keys(device);
    restriction::end_release(device);
    arrival::rest(device, StateReason::ExceptionEnded, context);
}

/// Whether a device that was released by proof when its exception came is so still: nothing has restricted it, its lease is not over, and
/// what it has proved is still required.
fn stands(device: &Device, context: &Context<'_>) -> bool {
    let over = device.release.lease.is_some_and(|l| span::over(&l, &context.now));
    let stood = device.state == DeviceState::Released && device.release.proved.is_some();
    stood && !over && !context.policies.behind(device) && !held_back(device, context)
}
