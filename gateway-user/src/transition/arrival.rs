//! A device arrives: whether its window lets it in, and since when its deadline in quarantine runs.

use super::{Context, enter, lease, lease_end, proof};
use crate::{
    config::{AfterDeadline, OutsideWindow},
    model::{BootTime, Device, DeviceState, StateReason},
    refusal::Refusal,
};

/// An arrival outside the window is noted anew no sooner than after so many milliseconds: each note is a commit.
const NOTED_AGAIN_MS: i64 = 60_000;

/// Whether a session of this device may open now. Outside its window, where that blocks, it may: as blocked.
///
/// # Errors
/// [`Refusal::DeviceRetired`], [`Refusal::EnrolmentNotOpen`], [`Refusal::EnrolmentClosed`].
pub fn may_arrive(device: &Device, context: &Context<'_>) -> Result<(), Refusal> {
    if device.state == DeviceState::Retired {
        return Err(Refusal::DeviceRetired(device.id.clone()));
    }
    match context.config.devices.outside_window {
        OutsideWindow::Block => Ok(()),
        OutsideWindow::Refuse => admitted(device, context),
    }
}

/// When a device's deadline in quarantine ends, on this boot's clock; in the past or now: it has passed. `None`: it does not run, or no
/// clock can tell.
#[must_use]
pub fn deadline_end(device: &Device, context: &Context<'_>) -> Option<BootTime> {
    let longest = context.config.devices.deadline?;
    let mut deadline = device.enrolment.deadline?;
    if context.clock_behind.is_some() && deadline.given.boot_id != context.now.boot_id {
        return None;
    }
    deadline.length_ms = deadline.length_ms.min(lease(longest, context.now).length_ms);
    Some(lease_end(&deadline, &context.now))
}

pub(super) fn connected(device: &mut Device, context: &Context<'_>) -> Result<(), Refusal> {
    may_arrive(device, context)?;
    if device.enrolment.arrived_at.is_none() {
        device.enrolment.arrived_at = Some(context.now.wall);
    }
    if admitted(device, context).is_err() {
        note_outside(device, context);
        if device.state != DeviceState::Blocked {
            shut(device, StateReason::OutsideWindow, context);
        }
        return Ok(());
    }
    if device.state == DeviceState::Registered {
        enter(device, DeviceState::Quarantined, StateReason::Connected, &context.now);
    }
    begin_deadline(
        device,
        &Context {
            connected: true,
            ..*context
        },
    );
    if device.state.quarantined() && is_past_deadline(device, context) {
        shut(device, StateReason::DeadlinePassed, context);
    }
    Ok(())
}

pub(super) fn turned_away(device: &mut Device, context: &Context<'_>) {
    if device.state != DeviceState::Retired {
        note_outside(device, context);
    }
}

/// The deadline begins if the device is in quarantine with a live session, and runs on if it runs.
pub(super) fn begin_deadline(device: &mut Device, context: &Context<'_>) {
    if let Some(length) = context.config.devices.deadline
        && device.state.quarantined()
        && context.connected
        && device.enrolment.deadline.is_none()
    {
        device.enrolment.deadline = Some(lease(length, context.now));
    }
}

/// Whether its deadline has passed, where that shuts.
pub(super) fn is_past_deadline(device: &Device, context: &Context<'_>) -> bool {
    context.config.devices.after_deadline == AfterDeadline::Block
        && deadline_end(device, context).is_some_and(|end| end <= context.now.boot)
}

/// Where a device goes that is neither released nor blocked by an operator any more: to quarantine, unless its deadline has passed or it
/// had arrived outside its window.
pub(super) fn rest(device: &mut Device, reason: StateReason, context: &Context<'_>) {
    let outside = context.config.devices.outside_window == OutsideWindow::Block
        && device.enrolment.arrived_outside.is_some()
        && device.enrolment.enrolled_at.is_none();
    let (state, reason) = if is_past_deadline(device, context) {
        (DeviceState::Blocked, StateReason::DeadlinePassed)
    } else if outside {
        (DeviceState::Blocked, StateReason::OutsideWindow)
    } else {
        (DeviceState::Quarantined, reason)
    };
    enter(device, state, reason, &context.now);
    begin_deadline(device, context);
}

/// Blocked, without an exception.
pub(super) fn shut(device: &mut Device, reason: StateReason, context: &Context<'_>) {
    super::restriction::take_keys(device);
    enter(device, DeviceState::Blocked, reason, &context.now);
}

/// A released device may connect, as may one that has enrolled; any other within its window.
fn admitted(device: &Device, context: &Context<'_>) -> Result<(), Refusal> {
    if device.state == DeviceState::Released || device.enrolment.enrolled_at.is_some() {
        return Ok(());
    }
    proof::within_window(device, context)
}

fn note_outside(device: &mut Device, context: &Context<'_>) {
    let wall = context.now.wall;
    let recent = |t: crate::model::WallTime| t.0.abs_diff(wall.0) < NOTED_AGAIN_MS.unsigned_abs();
    if !device.enrolment.arrived_outside.is_some_and(recent) {
        device.enrolment.arrived_outside = Some(wall);
    }
}
