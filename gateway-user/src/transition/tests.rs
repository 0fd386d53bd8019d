//! Each rule, a walk over random sequences of signals, and the table in the documentation.

mod behind;
mod carry;
mod clock;
mod exception;
mod keys;
mod proof;
mod registration;
mod table;
mod walk;
mod window;

use super::*;
use crate::{
    controller::tests::kit,
    model::{DeviceId, Fingerprint, Publication, VpnKey, Window},
};

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;

/// A gateway's rules and a device, told one signal after the other.
#[derive(Clone)]
struct Desk {
    config: Config,
    policies: Policies,
    now: Now,
    connected: bool,
    clock_behind: Option<WallTime>,
    device: Device,
}

impl Desk {
    fn new(pool: &str) -> Self {
        Self::with(kit::config(), pool)
    }

    fn with(config: Config, pool: &str) -> Self {
        let mut new = Self {
            config,
            policies: Policies::default(),
            now: kit::START,
            connected: false,
            clock_behind: None,
            device: Device::new("phone".parse().unwrap(), pool.parse().unwrap(), kit::START.wall),
        };
        new.device = new.register(&registration("phone", pool)).unwrap().device;
        new
    }

    fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            config: &self.config,
            policies: &self.policies,
            connected: self.connected,
            clock_behind: self.clock_behind,
        }
    }

    fn register(&self, registration: &Registration) -> Result<Step, Refusal> {
        let known = Known(Some(&self.device).filter(|d| !d.gateway_uri.is_empty()), self.connected);
        register(&known, std::slice::from_ref(registration), &None, &self.context()).map(|mut steps| steps.remove(0))
    }

    /// Another window.
    fn window(&mut self, not_before: Option<i64>, not_after: Option<i64>) {
        let at = |ms: i64| WallTime(kit::START.wall.0 + ms);
        let window = Window {
            not_before: not_before.map(at),
            not_after: not_after.map(at),
        };
        let pool = self.device.full_service_pool.to_string();
        let step = self.register(&Registration {
            window,
            ..registration("phone", &pool)
        });
        self.device = step.unwrap().device;
    }

    fn try_(&self, signal: Signal<'_>) -> Result<Step, Refusal> {
        step(&self.device, signal, &self.context())
    }

    fn tell(&mut self, signal: Signal<'_>) -> &mut Self {
        let step = self.try_(signal).unwrap_or_else(|e| panic!("{signal:?}: {e}"));
        assert_eq!(step.changed, step.device != self.device);
        self.device = step.device;
        self
    }

    fn refused(&self, signal: Signal<'_>) -> &'static str {
        self.try_(signal).map(|s| s.device.state).expect_err("not refused").name()
    }

    /// A session opens, and stays.
    fn connect(&mut self) -> &mut Self {
        self.tell(Signal::Connected);
        self.connected = true;
        self
    }

    fn pass(&mut self, ms: i64) -> &mut Self {
        self.now = Now {
            wall: WallTime(self.now.wall.0 + ms),
            boot: BootTime(self.now.boot.0 + u64::try_from(ms).unwrap() * 1_000_000),
            ..self.now
        };
        self
    }

    fn reboot(&mut self, wall: WallTime) -> &mut Self {
        self.now = Now {
            wall,
            boot: BootTime(7_000_000_000),
            boot_id: self.now.boot_id + 1,
        };
        self
    }

    fn publish(&mut self, revision: &str) -> &mut Self {
        self.policies.publish(Publication {
            revision: revision.parse().unwrap(),
            at: self.now.wall,
            ceiling: 0,
            rate: 0,
            paused: false,
        });
        self
    }

    /// A direct signal, seen now.
    fn proof(&mut self, revision: &str) -> &mut Self {
        let revision = revision.parse().unwrap();
        let signal = proof(&revision, self.now.wall);
        self.tell(signal)
    }

    fn no_proof(&self, revision: &str) -> &'static str {
        self.refused(proof(&revision.parse().unwrap(), self.now.wall))
    }

    fn released(&self) -> bool {
        released_to(&self.device, &self.context()).is_some()
    }

    /// State and reason.
    fn is(&self) -> (DeviceState, StateReason) {
        (self.device.state, self.device.state_reason)
    }

    /// What time brings, as the controller does it: all that is due by now.
    fn due(&mut self) -> &mut Self {
        for _ in 0..4 {
            match due(&self.device, &self.context()) {
                Some((end, signal)) if end <= self.now.boot => self.tell(signal),
                _ => return self,
            };
        }
        panic!("time brings the same for ever: {:?}", self.device);
    }
}

fn proof(revision: &PolicyRevision, seen: WallTime) -> Signal<'_> {
    Signal::PolicyApplied {
        revision,
        key: None,
        observed_at: Some(seen),
    }
}

fn except(kind: ExceptionKind, hours: u64) -> Signal<'static> {
    Signal::Except {
        kind,
        reason: "travelling",
        by: "uid:0",
        length: Duration::from_secs(hours * 3600),
    }
}

const REVOKED: Signal<'static> = Signal::PolicyRevoked { observed_at: None };

fn registration(id: &str, pool: &str) -> Registration {
    Registration {
        id: id.parse().unwrap(),
        owner: String::new(),
        full_service_pool: Some(pool.parse().unwrap()),
        common_names: Vec::new(),
        certificates: Vec::new(),
        vpn_keys: Vec::new(),
        window: Window::default(),
    }
}

/// A registry of one device, with or without a live session.
struct Known<'a>(Option<&'a Device>, bool);

impl Directory for Known<'_> {
    fn device(&self, id: &DeviceId) -> Option<&Device> {
        self.0.filter(|d| d.id == *id)
    }
    fn holder_of_name(&self, name: &DeviceId) -> Option<&DeviceId> {
        self.0.filter(|d| d.aliases.common_names.contains(name)).map(|d| &d.id)
    }
    fn holders_of_certificate<'a>(&'a self, certificate: &Fingerprint) -> impl Iterator<Item = &'a DeviceId> {
        let known = self.0.filter(|d| d.aliases.certificates.contains(certificate));
        known.map(|d| &d.id).into_iter()
    }
    fn holders_of_key<'a>(&'a self, key: &VpnKey) -> impl Iterator<Item = &'a DeviceId> {
        let known = self.0.filter(|d| d.aliases.vpn_keys.contains(key));
        known.map(|d| &d.id).into_iter()
    }
    fn connected(&self, _: &DeviceId) -> bool {
        self.1
    }
}
