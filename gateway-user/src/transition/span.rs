//! Spans of time that no step of the wall clock lengthens: on the boot clock, after a reboot on the wall clock.

use std::time::Duration;

use crate::model::{BootTime, Lease, Now};

/// A span that begins now.
#[must_use]
pub fn lease(length: Duration, given: Now) -> Lease {
    Lease {
        given,
        length_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
    }
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

/// Whether it is over.
pub(super) fn over(lease: &Lease, now: &Now) -> bool {
    lease_end(lease, now) <= now.boot
}

/// From here on this boot's clock decides: a wall clock set back between two restarts does not lengthen it.
pub(super) fn adopt(lease: &mut Lease, now: &Now) {
    if lease.given.boot_id != now.boot_id {
        *lease = Lease {
            given: *now,
            length_ms: left_ms(lease, now),
        };
    }
}

/// What is left of a lease of another boot.
fn left_ms(lease: &Lease, now: &Now) -> u64 {
    let passed = now.wall.0.saturating_sub(lease.given.wall.0);
    u64::try_from(passed).map_or(0, |passed| lease.length_ms.saturating_sub(passed))
}
