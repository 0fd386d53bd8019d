//! What a database that an older backup replaces says of a device, beyond what the backup says: all that tightens is taken over, and nothing
//! that loosens. Where the two differ and neither is the tighter one, the device has to be registered anew before it is released.

use super::{proof, restriction};
use crate::model::{
    Aliases, Device, DeviceState, Enrolment, Exception, ExceptionKind, Lease, Rare, Release, StateReason, WallTime, Window,
};

/// What of a device is another than in the backup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// It is retired.
    pub retired: bool,
    /// It is blocked, or for longer.
    pub blocked: bool,
    /// What was seen until a later time is no proof.
    pub marked: bool,
    /// Its window is narrower, its deadline runs or ends earlier, or it has not enrolled.
    pub narrowed: bool,
    /// Names, certificates or keys were no longer its own.
    pub withdrawn: bool,
    /// It has to be registered anew: its window is over.
    pub closed: bool,
}

/// A device of the backup, with what tightens it in the database that is replaced. `now`: the wall clock, by which a proof may be dated ahead.
#[must_use]
pub fn tightened(backup: &Device, old: &Device, now: WallTime) -> (Device, Taken) {
    let mut device = backup.clone();
    let mut taken = Taken::default();
    let mark = mark(old, now);
    if mark > device.release.restricted_at {
        device.release.restricted_at = mark;
        taken.marked = true;
    }
    if device.state != DeviceState::Retired && old.state == DeviceState::Retired {
        end(&mut device);
        device.exception = None;
        enter_as(&mut device, old);
        taken.retired = true;
    } else if device.state != DeviceState::Retired && old.state == DeviceState::Blocked {
        taken.blocked = block(&mut device, old);
    }
    let enrolment = narrower(&device.enrolment, &old.enrolment);
    if enrolment != *device.enrolment {
        device.enrolment = Rare::new(enrolment);
        taken.narrowed = true;
    }
    let (aliases, none_left) = both(&device.aliases, &old.aliases);
    let came = |backup: usize, old: usize| backup == 0 && old > 0;
    let bound_since = came(device.aliases.certificates.len(), old.aliases.certificates.len())
        || came(device.aliases.vpn_keys.len(), old.aliases.vpn_keys.len());
    if aliases != *device.aliases {
        device.aliases = Rare::new(aliases);
        taken.withdrawn = true;
    }
    // Which pool grants less nobody can tell; and without any of its certificates, or those that it got since, it would be known by its name alone.
    if device.state != DeviceState::Retired && (none_left || bound_since || device.full_service_pool != old.full_service_pool) {
        close(&mut device);
        taken.closed = true;
    }
    (device, taken)
}

/// A device that the backup does not have, if anything restricts it: it has to be registered anew, and is restricted then. `None`: nothing does,
/// and nothing is lost with it.
#[must_use]
pub fn unregistered(old: &Device, now: WallTime) -> Option<Device> {
    let restricted_at = mark(old, now);
    let shut = matches!(old.state, DeviceState::Retired | DeviceState::Blocked);
    if !shut && restricted_at.is_none() {
        return None;
    }
    let mut device = old.clone();
    end(&mut device);
    device.policy_revision = None;
    device.release = Rare::new(Release {
        restricted_at,
        ..Release::default()
    });
    device.exception = block_of(old).cloned().map(Box::new);
    if !shut {
        device.state = DeviceState::Quarantined;
        device.state_reason = StateReason::Restored;
    }
    if device.state != DeviceState::Retired {
        close(&mut device);
    }
    Some(device)
}

/// Up to when what was seen is no proof; also what it was released by, where that is dated ahead.
fn mark(old: &Device, now: WallTime) -> Option<WallTime> {
    let spent = old.release.proved.map(|p| p.wall).filter(|dated| *dated > now);
    old.release
        .restricted_at
        .max(spent.map(|dated| dated.min(proof::latest(now))))
}

/// Blocked as the old one is; of two blocks the one that ends later. Whether anything is different.
fn block(device: &mut Device, old: &Device) -> bool {
    let (held, found) = (block_of(device).cloned(), block_of(old).cloned());
    let later = match (held, found) {
        (Some(a), Some(b)) => Some(if end_of(&b.holds) > end_of(&a.holds) { b } else { a }),
        (a, b) => a.or(b),
    };
    let before = (device.state, device.exception.clone());
    if device.state != DeviceState::Blocked {
        end(device);
        enter_as(device, old);
    }
    device.exception = later.map(Box::new);
    if device.exception.is_some() {
        device.state_reason = StateReason::ExceptionBlock;
    }
    before != (device.state, device.exception.clone())
}

fn block_of(device: &Device) -> Option<&Exception> {
    let exception = device.exception.as_deref();
    exception.filter(|e| e.kind == ExceptionKind::Block && device.state == DeviceState::Blocked)
}

/// On the wall clock, milliseconds: the two may be of different boots.
fn end_of(span: &Lease) -> i128 {
    i128::from(span.given.wall.0) + i128::from(span.length_ms)
}

fn narrower(backup: &Enrolment, old: &Enrolment) -> Enrolment {
    let not_after = [backup.window.not_after, old.window.not_after].into_iter().flatten().min();
    let deadline = match (backup.deadline, old.deadline) {
        (Some(a), Some(b)) => Some(if end_of(&b) < end_of(&a) { b } else { a }),
        (a, b) => a.or(b),
    };
    Enrolment {
        window: Rare::new(Window {
            not_before: backup.window.not_before.max(old.window.not_before),
            not_after,
        }),
        enrolled_at: backup.enrolled_at.and_then(|at| old.enrolled_at.map(|_| at)),
        arrived_at: backup.arrived_at,
        arrived_outside: backup.arrived_outside.max(old.arrived_outside),
        deadline,
    }
}

/// What both have; and whether one that had certificates or keys has none of them left.
fn both(backup: &Aliases, old: &Aliases) -> (Aliases, bool) {
    fn of<T: Clone + PartialEq>(backup: &[T], old: &[T]) -> Box<[T]> {
        backup.iter().filter(|one| old.contains(one)).cloned().collect()
    }
    let mut aliases = Aliases {
        common_names: of(&backup.common_names, &old.common_names),
        certificates: of(&backup.certificates, &old.certificates),
        vpn_keys: of(&backup.vpn_keys, &old.vpn_keys),
        reach: None,
    };
    aliases.reach = backup.reach.clone().filter(|_| aliases.has_proofs());
    let emptied = |before: usize, after: usize| before > 0 && after == 0;
    let none_left =
        emptied(backup.certificates.len(), aliases.certificates.len()) || emptied(backup.vpn_keys.len(), aliases.vpn_keys.len());
    (aliases, none_left)
}

/// Until it is registered with another window.
fn close(device: &mut Device) {
    *device.enrolment.window = Window::CLOSED;
    device.enrolment.enrolled_at = None;
}

fn end(device: &mut Device) {
    restriction::take_keys(device);
    restriction::end_release(device);
}

fn enter_as(device: &mut Device, old: &Device) {
    device.state = old.state;
    device.state_reason = old.state_reason;
    device.state_since = old.state_since;
}
