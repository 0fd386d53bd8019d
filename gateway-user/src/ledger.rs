//! The ledger: which devices are expected and have not come, came outside their window, or are stuck in quarantine, and for how long. Pure:
//! it looks at one device at a time, and adds up; it changes nothing and reads no clock.

use crate::{
    model::{Device, DeviceState, StateReason, WallTime},
    transition::Context,
};

/// Why a device stands in the ledger. One device may stand in it for several reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Registered, its window open or to come; it has never arrived.
    Expected,
    /// Its window is over; it has never arrived.
    Missed,
    /// It arrived outside its window, and has not enrolled since.
    Outside,
    /// It is in quarantine and its deadline runs, or has passed.
    Stuck,
    /// It has no owner yet.
    Placeholder,
}

impl Kind {
    /// As a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Expected => "expected",
            Self::Missed => "missed",
            Self::Outside => "outside",
            Self::Stuck => "stuck",
            Self::Placeholder => "placeholder",
        }
    }

    /// Every kind, in the order in which they are listed.
    pub const ALL: [Self; 5] = [Self::Expected, Self::Missed, Self::Outside, Self::Stuck, Self::Placeholder];
}

/// Limits of the ages by which devices are counted, seconds: younger than 1, 8, 24, 48 hours; a last count is of what is older.
pub const AGES: [u32; 4] = [3_600, 8 * 3_600, 24 * 3_600, 48 * 3_600];

/// Why a device stands in the ledger, and since when; empty: it does not.
#[must_use]
pub fn lines(device: &Device, context: &Context<'_>) -> Vec<(Kind, WallTime)> {
    let enrolment = &device.enrolment;
    if device.state == DeviceState::Retired {
        return Vec::new();
    }
    let mut lines = Vec::new();
    let over = enrolment.window.not_after.filter(|end| *end < context.now.wall);
    let never = enrolment.arrived_at.is_none() && enrolment.enrolled_at.is_none();
    match over {
        None if never && device.state == DeviceState::Registered => lines.push((Kind::Expected, device.state_since)),
        Some(end) if never => lines.push((Kind::Missed, end)),
        _ => {}
    }
    if let Some(at) = enrolment.arrived_outside.filter(|_| enrolment.enrolled_at.is_none()) {
        lines.push((Kind::Outside, at));
    }
    let shut = device.state == DeviceState::Blocked && device.state_reason == StateReason::DeadlinePassed;
    if let Some(deadline) = enrolment.deadline.filter(|_| device.state.quarantined() || shut) {
        // A deadline that outlived a reboot of the gateway begins there; who has not enrolled yet waits since the arrival.
        let arrived = enrolment.arrived_at.filter(|_| enrolment.enrolled_at.is_none());
        lines.push((
            Kind::Stuck,
            arrived.map_or(deadline.given.wall, |at| at.min(deadline.given.wall)),
        ));
    }
    if device.owner.is_empty() {
        lines.push((Kind::Placeholder, device.state_since));
    }
    lines
}

/// How old something is, seconds; what lies ahead is 0.
#[must_use]
pub fn age_s(since: WallTime, now: WallTime) -> u64 {
    u64::try_from(now.0.saturating_sub(since.0) / 1000).unwrap_or(0)
}

/// Devices by kind and age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    by_age: [[u64; AGES.len() + 1]; Kind::ALL.len()],
    oldest: [Option<WallTime>; Kind::ALL.len()],
}

impl Counts {
    /// Adds one device.
    pub fn add(&mut self, device: &Device, context: &Context<'_>) {
        for (kind, since) in lines(device, context) {
            let age = age_s(since, context.now.wall);
            let place = AGES.iter().position(|limit| age < u64::from(*limit)).unwrap_or(AGES.len());
            self.by_age[kind as usize][place] += 1;
            let oldest = &mut self.oldest[kind as usize];
            *oldest = Some(oldest.map_or(since, |o| o.min(since)));
        }
    }

    /// Of a kind: by the ages of [`AGES`], and last what is older.
    #[must_use]
    pub const fn of(&self, kind: Kind) -> [u64; AGES.len() + 1] {
        self.by_age[kind as usize]
    }

    /// Since when the one stands there that has stood there longest; `None`: there is none.
    #[must_use]
    pub const fn oldest(&self, kind: Kind) -> Option<WallTime> {
        self.oldest[kind as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        model::{BootTime, Enrolment, Lease, Now, Rare, Window},
        transition::Policies,
    };

    const HOUR: i64 = 3_600_000;
    const NOW: WallTime = WallTime(1000 * HOUR);

    fn looked(device: &Device, see: impl FnOnce(&Device, &Context<'_>)) {
        let config = include_str!("../../deploy/lazaret.toml");
        let config = Config::parse(std::path::Path::new("lazaret.toml"), config).unwrap();
        let policies = Policies::default();
        let context = Context {
            now: now(NOW),
            config: &config,
            policies: &policies,
            connected: false,
            clock_behind: None,
        };
        see(device, &context);
    }
    fn now(wall: WallTime) -> Now {
        Now {
            wall,
            boot: BootTime(0),
            boot_id: 1,
        }
    }
    fn ago(hours: i64) -> WallTime {
        WallTime(NOW.0 - hours * HOUR)
    }
    fn device(state: DeviceState, enrolment: Enrolment) -> Device {
        let mut d = Device::new("d-1".parse().unwrap(), "staff".parse().unwrap(), ago(10));
        d.owner = "A. Person".into();
        d.state = state;
        *d.enrolment = enrolment;
        d
    }
    fn of(device: &Device) -> Vec<(Kind, WallTime)> {
        let mut found = Vec::new();
        looked(device, |d, c| found = lines(d, c));
        found
    }

    #[test]
    fn each_kind_by_its_own_clock() {
        let none = Enrolment::default;
        let window = |from, to| {
            Rare::new(Window {
                not_before: from,
                not_after: to,
            })
        };
        let expected = device(DeviceState::Registered, none());
        assert_eq!(of(&expected), [(Kind::Expected, ago(10))]);
        let to_come = Enrolment {
            window: window(Some(ago(-2)), None),
            ..none()
        };
        assert_eq!(of(&device(DeviceState::Registered, to_come)), [(Kind::Expected, ago(10))]);
        let missed = Enrolment {
            window: window(None, Some(ago(3))),
            ..none()
        };
        assert_eq!(of(&device(DeviceState::Registered, missed.clone())), [(Kind::Missed, ago(3))]);
        let outside = Enrolment {
            arrived_outside: Some(ago(1)),
            ..missed
        };
        let both = [(Kind::Missed, ago(3)), (Kind::Outside, ago(1))];
        assert_eq!(of(&device(DeviceState::Registered, outside)), both);
        let stuck = Enrolment {
            arrived_at: Some(ago(30)),
            deadline: Some(Lease {
                given: now(ago(30)),
                length_ms: 48 * 3_600_000,
            }),
            ..none()
        };
        assert_eq!(of(&device(DeviceState::Quarantined, stuck.clone())), [(Kind::Stuck, ago(30))]);
        // The gateway was booted anew since.
        let mut booted = device(DeviceState::Quarantined, stuck.clone());
        booted.enrolment.deadline = stuck.deadline.map(|d| Lease { given: now(ago(2)), ..d });
        assert_eq!(of(&booted), [(Kind::Stuck, ago(30))]);
        let mut shut = device(DeviceState::Blocked, stuck.clone());
        assert_eq!(of(&shut), [], "blocked by an operator");
        shut.state_reason = StateReason::DeadlinePassed;
        assert_eq!(of(&shut), [(Kind::Stuck, ago(30))]);
        let enrolled = Enrolment {
            enrolled_at: Some(ago(5)),
            arrived_outside: Some(ago(9)),
            arrived_at: Some(ago(9)),
            ..none()
        };
        assert_eq!(of(&device(DeviceState::Released, enrolled)), []);
        let mut placeholder = device(DeviceState::Registered, none());
        placeholder.owner = "".into();
        assert_eq!(of(&placeholder), [(Kind::Expected, ago(10)), (Kind::Placeholder, ago(10))]);
        placeholder.state = DeviceState::Retired;
        assert_eq!(of(&placeholder), []);
    }

    #[test]
    fn counts_are_by_age() {
        let mut counts = Counts::default();
        for hours in [0, 1, 7, 8, 23, 24, 47, 48, 500] {
            let mut d = device(DeviceState::Registered, Enrolment::default());
            d.state_since = ago(hours);
            looked(&d, |d, c| counts.add(d, c));
        }
        assert_eq!(counts.of(Kind::Expected), [1, 2, 2, 2, 2]);
        assert_eq!(counts.of(Kind::Stuck), [0; 5]);
        assert_eq!(
            (counts.oldest(Kind::Expected), counts.oldest(Kind::Stuck)),
            (Some(ago(500)), None)
        );
        assert_eq!(age_s(ago(-1), NOW), 0);
    }
}
