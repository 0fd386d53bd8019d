//! Each rule, and a walk over random sequences of signals.

use super::*;
use crate::{
    controller::tests::kit,
    model::{DeviceId, Fingerprint, PoolName, Revision, VpnKey},
};

const MINUTE: i64 = 60_000;

struct Nobody;

impl Directory for Nobody {
    fn device(&self, _: &DeviceId) -> Option<&Device> {
        None
    }
    fn holder_of_name(&self, _: &DeviceId) -> Option<&DeviceId> {
        None
    }
    fn holder_of_certificate(&self, _: &Fingerprint) -> Option<&DeviceId> {
        None
    }
    fn holder_of_key(&self, _: &VpnKey) -> Option<&DeviceId> {
        None
    }
    fn connected(&self, _: &DeviceId) -> bool {
        false
    }
}

fn device(pool: &str) -> Device {
    let list = [Registration {
        id: "phone".parse().unwrap(),
        owner: String::new(),
        full_service_pool: Some(pool.parse().unwrap()),
        common_names: Vec::new(),
        certificates: Vec::new(),
        vpn_keys: Vec::new(),
        window: crate::model::Window::default(),
    }];
    register(&Nobody, &list, &context(kit::START, &kit::config()))
        .unwrap()
        .remove(0)
        .device
}

fn context(now: Now, config: &Config) -> Context<'_> {
    static NONE: std::sync::LazyLock<Policies> = std::sync::LazyLock::new(Policies::default);
    Context {
        now,
        config,
        policies: &NONE,
        connected: false,
        clock_behind: None,
    }
}

fn at(ms: i64) -> Now {
    Now {
        wall: WallTime(kit::START.wall.0 + ms),
        boot: BootTime(kit::START.boot.0 + u64::try_from(ms).unwrap() * 1_000_000),
        boot_id: kit::START.boot_id,
    }
}

fn seen(ms: i64) -> Option<WallTime> {
    Some(WallTime(kit::START.wall.0 + ms))
}

#[test]
fn a_new_device_is_registered_with_its_quarantine_pools_uri() {
    let device = device("lab");
    assert_eq!(
        (device.state, &*device.gateway_uri),
        (DeviceState::Registered, "quarantine.vpn.example")
    );
    assert_eq!(
        (device.revision, device.release.lease, device.release.restricted_at),
        (Revision(0), None, None)
    );
}

#[test]
fn connecting_does_not_release() {
    let config = kit::config();
    let connected = step(&device("office"), Signal::Connected, &context(at(0), &config)).unwrap();
    assert_eq!(
        (connected.device.state, connected.device.state_reason.as_str()),
        (DeviceState::Quarantined, "connected")
    );
    let again = step(&connected.device, Signal::Connected, &context(at(1), &config)).unwrap();
    assert!(!again.changed);
}

#[test]
fn a_late_restriction_restricts() {
    let config = kit::config();
    let revision: PolicyRevision = "1".parse().unwrap();
    let applied = Signal::PolicyApplied {
        revision: &revision,
        key: None,
        observed_at: seen(MINUTE),
    };
    let released = step(&device("office"), applied, &context(at(MINUTE), &config))
        .unwrap()
        .device;
    // Seen before the proof, told after it.
    let revoked = step(
        &released,
        Signal::PolicyRevoked { observed_at: seen(0) },
        &context(at(2 * MINUTE), &config),
    )
    .unwrap()
    .device;
    assert_eq!(
        (revoked.state, revoked.release.restricted_at),
        (DeviceState::Quarantined, seen(0))
    );
    // And an older one still does not move the mark back.
    let older = step(
        &revoked,
        Signal::PolicyRevoked {
            observed_at: seen(-MINUTE),
        },
        &context(at(2 * MINUTE), &config),
    )
    .unwrap()
    .device;
    assert_eq!(older.release.restricted_at, seen(0));
}

#[test]
fn revoking_does_not_loosen_what_is_blocked() {
    let blocked = Device {
        state: DeviceState::Blocked,
        ..device("office")
    };
    let revoked = step(
        &blocked,
        Signal::PolicyRevoked { observed_at: None },
        &context(at(0), &kit::config()),
    )
    .unwrap()
    .device;
    assert_eq!(revoked.state, DeviceState::Blocked);
}

#[test]
fn a_device_whose_pool_is_gone_can_be_restricted_but_not_released() {
    let config = kit::config();
    let revision: PolicyRevision = "1".parse().unwrap();
    let lost = Device {
        full_service_pool: "gone".parse::<PoolName>().unwrap(),
        state: DeviceState::Released,
        ..device("office")
    };
    assert!(released_to(&lost, &context(at(0), &config)).is_none());
    let applied = step(
        &lost,
        Signal::PolicyApplied {
            revision: &revision,
            key: None,
            observed_at: seen(0),
        },
        &context(at(0), &config),
    );
    assert_eq!(applied, Err(Refusal::UnknownPool("gone".to_owned())));
    let revoked = step(&lost, Signal::PolicyRevoked { observed_at: None }, &context(at(0), &config))
        .unwrap()
        .device;
    assert_eq!(
        (revoked.state, &*revoked.gateway_uri),
        (DeviceState::Quarantined, "quarantine.vpn.example")
    );
}

/// xorshift64*: the walk needs spread, not secrecy, and the same one each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// What the walk believes, from the rules alone.
#[derive(Default)]
struct Believed {
    /// What the source or the gateway has restricted it by.
    restricted: Option<WallTime>,
    /// The proof that was accepted last was newer than every restriction then, and none came since; until when it holds.
    proven: Option<Option<BootTime>>,
}

#[test]
fn no_walk_reaches_released_without_newer_proof_and_no_restriction_is_refused() {
    let config = kit::config();
    let revision: PolicyRevision = "1".parse().unwrap();
    let (mut released, mut refused, mut restricted) = (0_u32, 0_u32, 0_u32);
    for seed in 1..=400_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut state = device(if dice.roll(2) == 0 { "office" } else { "lab" });
        let mut believed = Believed::default();
        let mut now = kit::START;
        for _ in 0..200 {
            let passed = dice.roll(20 * 60_000);
            now.boot.0 += passed * 1_000_000;
            // The wall clock may also be set, and the machine may be booted anew.
            now.wall.0 += passed as i64;
            match dice.roll(40) {
                0 => now.wall.0 += dice.roll(10_000_000) as i64 - 5_000_000,
                1 => {
                    now.boot_id += 1;
                    now.boot.0 = 1;
                    believed.proven = match (believed.proven, state.release.lease) {
                        (Some(Some(_)), Some(lease)) => {
                            Some(Some(lease_end(&lease, &now))).filter(|_| now.wall >= lease.given.wall)
                        }
                        (other, _) => other,
                    };
                    state = step(&state, Signal::Start, &context(now, &config)).unwrap().device;
                }
                _ => {}
            }
            let observed = (dice.roll(10) != 0).then(|| WallTime(now.wall.0 + dice.roll(600_000) as i64 - 400_000));
            let retired = state.state == DeviceState::Retired;
            let signal = match dice.roll(100) {
                0..40 => Signal::PolicyApplied {
                    revision: &revision,
                    key: None,
                    observed_at: observed,
                },
                40..60 => Signal::PolicyRevoked { observed_at: observed },
                60..75 => Signal::Connected,
                75..90 => Signal::LeaseEnded,
                90..99 => Signal::Start,
                _ => Signal::Retire,
            };
            let result = step(&state, signal, &context(now, &config));
            match signal {
                Signal::PolicyRevoked { observed_at } => {
                    assert_eq!(result.is_err(), retired, "a restriction was refused");
                    if !retired {
                        believed.restricted = believed
                            .restricted
                            .max(Some(observed_at.map_or(now.wall, |t| t.min(now.wall))));
                        believed.proven = None;
                        restricted += 1;
                    }
                }
                Signal::Retire => {
                    assert!(result.is_ok(), "a restriction was refused");
                    believed.proven = None;
                    restricted += 1;
                }
                Signal::LeaseEnded => believed.proven = None,
                Signal::PolicyApplied { observed_at, .. } => {
                    let good = observed_at.is_some_and(|t| Some(t) > believed.restricted && t.0 <= now.wall.0 + 120_000);
                    if result.is_ok() {
                        assert!(good && !retired, "accepted without proof: {state:?} {signal:?} {now:?}");
                        let lab = state.full_service_pool.as_str() == "lab";
                        believed.proven = Some(lab.then(|| BootTime(now.boot.0 + kit::LEASE_MS * 1_000_000)));
                        released += 1;
                    } else {
                        refused += 1;
                    }
                }
                _ => {}
            }
            if let Ok(step) = result {
                assert_eq!(step.changed, step.device != state);
                assert_eq!(step.from, Some(state.state));
                state = step.device;
            }
            let holds = believed.proven.is_some_and(|end| end.is_none_or(|end| end > now.boot));
            let judged = released_to(&state, &context(now, &config));
            assert!(
                judged.is_none() || holds,
                "released without proof: {state:?} {signal:?} {now:?}"
            );
            // The name that the device must use follows the state.
            let wanted = if state.state == DeviceState::Released {
                state.full_service_pool.as_str()
            } else {
                "quarantine"
            };
            assert_eq!(*state.gateway_uri, *format!("{wanted}.vpn.example"));
            if retired {
                assert_eq!(state.state, DeviceState::Retired, "retired is final");
                break;
            }
        }
    }
    // The walk is worth something only if it went everywhere.
    assert!(
        released > 1000 && refused > 1000 && restricted > 1000,
        "{released} {refused} {restricted}"
    );
}
