//! Random walks over everything that can happen, with clocks that jump, reboots and configurations that change; beside the function a
//! ledger of what was accepted, kept by the rules alone, says whether a release may be in force.

use super::*;
use crate::config::OutsideWindow;

/// xorshift64*: the walk needs spread, not secrecy, and the same one each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
    fn once_in(&mut self, n: u64) -> bool {
        self.roll(n) == 0
    }
    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[usize::try_from(self.roll(list.len() as u64)).unwrap()]
    }
}

/// What the walk knows, from the rules and the answers.
#[derive(Default)]
struct Known {
    /// What it was restricted by last, as the source dates it.
    restricted: Option<WallTime>,
    /// Since when its deadline runs, and when it ends.
    deadline: Option<Grant>,
    /// A proof that was accepted, until anything restricted; with the time that it may hold at most on the clock of `age`.
    proof: Option<Grant>,
    /// An operator's release, until anything ended it.
    exception: Option<Grant>,
    /// Released by proof since the last new window.
    enrolled: bool,
    /// When the policy was offered whose temporary, and whose final key is out.
    offered: Option<Handed>,
    acknowledged: Option<Handed>,
    /// Restricted by a clock that was behind, at a time that it cannot tell.
    untimed: bool,
}

/// In which boot and at which age.
type Handed = (u64, Age);

#[derive(Clone, Copy, Debug)]
struct Grant {
    /// Age at which it ends; `None`: never.
    end: Option<u64>,
    /// When it was given, or first measured in this boot.
    wall: WallTime,
    boot: u64,
    given: Age,
}

/// True time in milliseconds, which no clock of the gateway's shows.
type Age = u64;

#[derive(Default)]
struct Seen {
    released: u32,
    excepted: u32,
    refused: std::collections::BTreeMap<&'static str, u32>,
    states: std::collections::BTreeSet<DeviceState>,
    reasons: std::collections::BTreeSet<StateReason>,
    held_back: u32,
    late: u32,
    by_order: u32,
    untimed: u32,
}

const DEADLINE_MS: u64 = 3 * 3_600_000;
const REVISIONS: [&str; 4] = ["r1", "r2", "r3", "never"];
const KEYS: [KeyHash; 4] = [KeyHash([1; 32]), KeyHash([2; 32]), KeyHash([3; 32]), KeyHash([4; 32])];

#[test]
fn no_walk_reaches_released_without_window_and_proof_or_exception_and_no_restriction_is_refused() {
    let mut seen = Seen::default();
    for seed in 1..=600_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut config = kit::config();
        config.devices.deadline = (!dice.once_in(4)).then(|| Duration::from_millis(DEADLINE_MS));
        config.devices.max_exception = Duration::from_secs(2 * 3600);
        config.devices.outside_window = dice.one_of(&[OutsideWindow::Refuse, OutsideWindow::Block]);
        config.devices.after_deadline = dice.one_of(&[AfterDeadline::Block, AfterDeadline::Block, AfterDeadline::Report]);
        config.proofs.direct_signal = !dice.once_in(4);
        let mut walk = Walk {
            desk: Desk::with(config, dice.one_of(&["office", "lab"])),
            known: Known::default(),
            age: 0,
            behind: None,
            committed: kit::START.wall,
        };
        for _ in 0..250 {
            walk.time(&mut dice);
            if !walk.take(&mut dice, &mut seen) {
                break;
            }
        }
    }
    // The walk is worth something only if it went everywhere.
    assert!(
        seen.released > 1000 && seen.excepted > 300,
        "{} {}",
        seen.released,
        seen.excepted
    );
    assert!(seen.held_back > 50 && seen.late > 50, "{} {}", seen.held_back, seen.late);
    assert!(seen.by_order > 200 && seen.untimed > 50, "{} {}", seen.by_order, seen.untimed);
    assert_eq!(seen.states.len(), DeviceState::ALL.len(), "{:?}", seen.states);
    let never: Vec<_> = StateReason::ALL.into_iter().filter(|r| !seen.reasons.contains(r)).collect();
    assert_eq!(never, [StateReason::PoolRemoved]);
    for name in [
        "STALE_SIGNAL",
        "SIGNAL_FROM_FUTURE",
        "SIGNAL_TOO_OLD",
        "CLOCK_BEHIND",
        "ENROLMENT_NOT_OPEN",
        "ENROLMENT_CLOSED",
        "QUARANTINE_DEADLINE",
        "DEVICE_BLOCKED",
        "STALE_POLICY_REVISION",
        "UNKNOWN_POLICY_REVISION",
        "POLICY_KEY_REQUIRED",
        "POLICY_KEY_UNKNOWN",
        "POLICY_KEY_EXPIRED",
        "POLICY_KEY_TEMPORARY",
        "POLICY_KEY_REVISION",
        "NOT_RELEASED",
        "NO_EXCEPTION",
        "EXCEPTION_TOO_LONG",
    ] {
        assert!(seen.refused.contains_key(name), "{name} was never met: {:?}", seen.refused);
    }
}

struct Walk {
    desk: Desk,
    known: Known,
    age: Age,
    /// As the controller keeps it.
    behind: Option<WallTime>,
    committed: WallTime,
}

impl Walk {
    /// Time passes; clocks jump; the machine is booted anew; a revision is published; the session ends.
    fn time(&mut self, dice: &mut Dice) {
        let passed = dice.roll(20 * 60_000);
        self.age += passed;
        self.desk.pass(passed as i64);
        match dice.roll(40) {
            // Set back or forward by up to an hour and a half.
            0 => self.desk.now.wall.0 += dice.roll(10_800_000) as i64 - 5_400_000,
            // Set right, as far as what is tolerated goes.
            5..10 => self.desk.now.wall.0 = self.truth().0 + dice.roll(240_001) as i64 - 120_000,
            1 => {
                let down = dice.roll(600_000);
                self.age += down;
                let wall = self.desk.now.wall.0
                    + if dice.once_in(4) {
                        -(dice.roll(7_200_000) as i64)
                    } else {
                        down as i64
                    };
                self.desk.reboot(WallTime(wall)).connected = false;
                self.behind = Some(self.committed).filter(|last| self.desk.now.wall < *last);
                self.start();
            }
            2 => {
                self.desk.publish(dice.one_of(&REVISIONS[..3]));
            }
            3 | 4 => self.desk.connected = false,
            _ => {}
        }
        if self.behind.is_some_and(|last| self.desk.now.wall >= last) {
            self.behind = None;
            self.start();
        }
        self.desk.clock_behind = self.behind;
        self.committed = self.committed.max(self.desk.now.wall);
    }

    /// What the MDM's clock shows, which is right.
    fn truth(&self) -> WallTime {
        WallTime(kit::START.wall.0 + self.age as i64)
    }

    /// What an earlier boot gave has as much left as the wall clock says, and never more than it had.
    fn measure(&mut self) {
        let (age, now) = (self.age, self.desk.now);
        let known = &mut self.known;
        for grant in [&mut known.proof, &mut known.exception, &mut known.deadline]
            .into_iter()
            .flatten()
        {
            if grant.boot == now.boot_id {
                continue;
            }
            let passed = now.wall.0 - grant.wall.0;
            if let Some(end) = &mut grant.end {
                let left = (*end).saturating_sub(grant.given);
                let left = u64::try_from(passed).map_or(0, |passed| left.saturating_sub(passed));
                *end = age + left;
            }
            (grant.wall, grant.boot, grant.given) = (now.wall, now.boot_id, age);
        }
    }

    fn start(&mut self) {
        self.desk.clock_behind = self.behind;
        if self.behind.is_none() {
            self.measure();
            if std::mem::take(&mut self.known.untimed) {
                let right = WallTime(self.desk.now.wall.0 + 120_000);
                self.known.restricted = self.known.restricted.max(Some(right));
            }
        }
        // What is committed later changes nothing that is enforced.
        let (before, context) = (self.desk.device.clone(), self.desk.context());
        let start = step(&before, Signal::Start, &context).unwrap();
        assert!(
            !start.changed || may_change_at_start(&before, &context),
            "{before:?} {start:?}"
        );
        if start.changed && !presses(&before, &start, &context.now) {
            let enforced = |d: &Device| (d.state, d.gateway_uri.clone(), released_to(d, &context).map(|p| p.id));
            assert_eq!(enforced(&before), enforced(&start.device));
            assert_eq!(release_end(&before, &context.now), release_end(&start.device, &context.now));
        }
        self.desk.tell(Signal::Start);
        self.take_keys(&before, None);
        self.settle();
    }

    /// The whole handshake, with proof dated rightly or by the wrong clock. False: there is nothing left to walk.
    fn handshake(&mut self, dice: &mut Dice, seen: &mut Seen) -> bool {
        let revision = self.desk.policies.last().map_or_else(|| name("r1"), |p| p.revision.clone());
        let (key, fresh) = (dice.one_of(&KEYS[..2]), dice.one_of(&KEYS[2..]));
        let observed_at = Some(dice.one_of(&[self.truth(), self.desk.now.wall, WallTime(0), WallTime(i64::MAX)]));
        let all = [
            Signal::Offer {
                key,
                revision: &revision,
            },
            Signal::Acknowledge { temporary: key, fresh },
            Signal::PolicyApplied {
                revision: &revision,
                key: Some(fresh),
                observed_at,
            },
        ];
        all.into_iter().all(|signal| self.tell(signal, seen))
    }

    /// One signal, or what time brings. False: there is nothing left to walk.
    fn take(&mut self, dice: &mut Dice, seen: &mut Seen) -> bool {
        if self.behind.is_some() && dice.once_in(4) {
            return self.handshake(dice, seen);
        }
        let (revision, other) = (name(dice.one_of(&REVISIONS)), name(dice.one_of(&REVISIONS)));
        let last = self.desk.policies.last().map(|p| p.revision.clone());
        let revision = if dice.once_in(2) { last.unwrap_or(revision) } else { revision };
        let now = self.desk.now;
        let far = if dice.once_in(10) { 3 * 86_400_000 } else { 600_000 };
        let observed_at = match dice.roll(10) {
            0 => None,
            // As an MDM does that sees it now, or has seen it a while ago.
            1..7 => Some(WallTime(
                self.truth().0 - dice.one_of(&[0, 0, 1, 60_000, 600_000, 90_000_000]),
            )),
            _ => Some(WallTime(now.wall.0 + dice.roll(far) as i64 - far as i64 * 2 / 3)),
        };
        let hours = dice.roll(4);
        let signal = match dice.roll(100) {
            0..30 => Signal::PolicyApplied {
                revision: &revision,
                key: (!dice.once_in(3))
                    .then(|| dice.one_of(&KEYS))
                    .filter(|_| !self.desk.config.proofs.direct_signal || dice.once_in(4)),
                observed_at,
            },
            30..38 => Signal::PolicyRevoked { observed_at },
            38..50 => Signal::Connected,
            50..58 => Signal::Offer {
                key: dice.one_of(&KEYS[..2]),
                revision: &other,
            },
            58..66 => Signal::Acknowledge {
                temporary: dice.one_of(&KEYS[..2]),
                fresh: dice.one_of(&KEYS[2..]),
            },
            66..72 => Signal::RenewLease,
            72..76 => Signal::Stale,
            76..79 => except(ExceptionKind::Release, hours),
            79..81 => except(ExceptionKind::Block, hours),
            81..84 => Signal::EndException,
            84..85 => Signal::Restored,
            85..87 => Signal::TurnedAway,
            87..88 if dice.once_in(8) => Signal::Retire,
            88..91 => return self.new_window(dice, seen),
            // What time brings, in time or not.
            _ => {
                let context = self.desk.context();
                let due = due(&self.desk.device, &context).filter(|(end, _)| *end <= now.boot);
                seen.late += u32::from(due.is_some_and(|(_, s)| s == Signal::DeadlinePassed));
                due.map_or(Signal::TurnedAway, |(_, signal)| signal)
            }
        };
        self.tell(signal, seen)
    }

    fn tell(&mut self, signal: Signal<'_>, seen: &mut Seen) -> bool {
        let before = self.desk.device.clone();
        let (was, context) = (self.desk.released(), self.desk.context());
        let open = self.open(&context);
        let required = context.policies.required_of(&before).cloned();
        let result = step(&before, signal, &context);
        let restricts = matches!(
            signal,
            Signal::PolicyRevoked { .. }
                | Signal::Stale
                | Signal::DeadlinePassed
                | Signal::LeaseEnded
                | Signal::ExceptionOver
                | Signal::Retire
                | Signal::Restored
        );
        let block = matches!(signal, Signal::Except { kind: ExceptionKind::Block, length, .. } if length <= context.config.devices.max_exception);
        assert!(
            result.is_ok() || before.state == DeviceState::Retired || !(restricts || block),
            "a restriction was refused: {before:?} {signal:?}"
        );
        // Handed out in this boot, no longer ago than a proof may be old, and not taken away since.
        let fresh = |key: Option<KeyHash>| {
            let handed = self.known.acknowledged.filter(|_| key.is_some());
            handed.is_some_and(|(boot, age)| boot == self.desk.now.boot_id && self.age - age < 24 * HOUR as u64)
        };
        let behind = context.clock_behind.is_some();
        let by_order = matches!(signal, Signal::PolicyApplied { key, .. } if behind && fresh(key));
        if let Err(refusal) = &result {
            *seen.refused.entry(refusal.name()).or_default() += 1;
            assert!(behind || refusal.name() != "CLOCK_BEHIND");
            let for_its_date = ["STALE_SIGNAL", "SIGNAL_FROM_FUTURE", "SIGNAL_TOO_OLD"].contains(&refusal.name());
            let dated = matches!(signal, Signal::PolicyApplied { observed_at, .. } if observed_at.is_some());
            assert!(
                !by_order || !dated || !for_its_date && *refusal != Refusal::ClockBehind,
                "{refusal}: {before:?} {signal:?}"
            );
        }
        if let (
            Ok(step),
            Signal::PolicyApplied {
                revision,
                observed_at,
                key,
            },
        ) = (&result, signal)
        {
            let by_proof = before.state == DeviceState::Released && !by_exception(&before);
            assert!(open || by_proof, "no window was open: {before:?}");
            let seen_at = observed_at.expect("undated, it is no proof");
            if by_order {
                seen.by_order += 1;
            } else {
                assert!(Some(seen_at) > self.known.restricted && seen_at.0 <= self.desk.now.wall.0 + 120_000);
                assert!(seen_at.0 >= self.desk.now.wall.0 - 24 * HOUR);
                assert!(!self.known.untimed, "dated, it may be older than the restriction: {before:?}");
            }
            assert!(context.config.proofs.direct_signal || key.is_some(), "a key was required");
            assert!(
                key.is_none()
                    || before
                        .keys
                        .final_key
                        .as_ref()
                        .is_some_and(|f| Some(f.key) == key && f.revision == *revision)
            );
            let order = |r: &PolicyRevision| context.policies.order(r);
            assert!(required.is_none_or(|r| r == *revision || order(revision) >= order(&r) && order(revision).is_some()));
            assert!(!matches!(before.state, DeviceState::Blocked | DeviceState::Retired));
            let lease = (step.device.full_service_pool.as_str() == "lab").then_some(self.age + kit::LEASE_MS);
            self.known.proof = Some(self.grant(lease));
            self.known.exception = None;
            self.known.enrolled |= open;
            seen.released += 1;
        }
        let Ok(step) = result else {
            return before.state != DeviceState::Retired;
        };
        let last = self.behind.map(|last| last.max(self.desk.now.wall));
        let untimed = last.is_some_and(|last| match signal {
            Signal::PolicyRevoked { observed_at } => observed_at.is_none_or(|seen| seen.0 > last.0 + 120_000),
            Signal::Restored
            | Signal::Except {
                kind: ExceptionKind::Block,
                ..
            } => true,
            _ => false,
        });
        self.known.untimed |= untimed;
        seen.untimed += u32::from(untimed);
        match signal {
            Signal::Offer { .. } => self.known.offered = Some((self.desk.now.boot_id, self.age)),
            Signal::Acknowledge { .. } => self.known.acknowledged = self.known.offered.take(),
            Signal::PolicyRevoked { observed_at } => {
                // While the clocks differ by no more than is tolerated, the MDM's says what came first.
                let (now, truth) = (self.desk.now.wall, self.truth());
                let ordered = |seen: &WallTime| *seen <= truth && truth.0 - now.0 <= 120_000;
                self.restricted(observed_at.map_or(now, |seen| if ordered(&seen) { seen } else { seen.min(now) }));
            }
            Signal::Restored | Signal::Retire => self.restricted(self.desk.now.wall),
            Signal::LeaseEnded => self.known.proof = None,
            Signal::Stale if step.device.state == DeviceState::Stale => self.known.proof = None,
            Signal::RenewLease => {
                assert!(was && self.known.proof.is_some(), "renewed without proof");
                let lease = (before.full_service_pool.as_str() == "lab").then_some(self.age + kit::LEASE_MS);
                self.known.proof = Some(self.grant(lease));
            }
            Signal::Except { kind, length, .. } => {
                if kind == ExceptionKind::Release {
                    assert!(open, "no window was open: {before:?}");
                    self.known.exception = Some(self.grant(Some(self.age + length.as_millis() as u64)));
                    seen.excepted += 1;
                } else {
                    self.restricted(self.desk.now.wall);
                }
            }
            Signal::EndException | Signal::ExceptionOver => self.known.exception = None,
            _ => {}
        }
        if signal == Signal::Connected {
            self.desk.connected = true;
        }
        let go_on = self.check(&before, step.device, was, signal, seen);
        self.take_keys(&before, Some(signal));
        go_on
    }

    /// Registered again, with a window somewhere around now.
    fn new_window(&mut self, dice: &mut Dice, seen: &mut Seen) -> bool {
        let before = self.desk.device.clone();
        let was = self.desk.released();
        let around = |dice: &mut Dice| {
            Some(WallTime(kit::START.wall.0 + (dice.roll(100 * 3_600_000) as i64) - 10 * HOUR)).filter(|_| dice.once_in(2))
        };
        let window = Window {
            not_before: around(dice),
            not_after: around(dice),
        };
        let list = Registration {
            window,
            ..registration("phone", before.full_service_pool.as_str())
        };
        let Ok(step) = self.desk.register(&list) else { return true };
        if window != *before.enrolment.window {
            self.known.enrolled = false;
            self.known.deadline = None;
        }
        self.check(&before, step.device, was, Signal::Start, seen)
    }

    /// What must be so after every step.
    fn check(&mut self, before: &Device, after: Device, was: bool, signal: Signal<'_>, seen: &mut Seen) -> bool {
        self.desk.device = after;
        self.settle_deadline();
        let context = self.desk.context();
        let device = &self.desk.device;
        let is = self.desk.released();
        let loosens = matches!(
            signal,
            Signal::PolicyApplied { .. }
                | Signal::Except {
                    kind: ExceptionKind::Release,
                    ..
                }
        );
        assert!(was || !is || loosens, "loosened by {signal:?}: {before:?} {device:?}");
        let holds = |grant: Option<Grant>| grant.is_some_and(|g| g.end.is_none_or(|end| self.age < end));
        assert!(
            !is || holds(self.known.proof) || holds(self.known.exception),
            "released without proof or exception: {device:?} {signal:?} {:?} {:?} {}",
            self.known.proof,
            self.known.exception,
            self.age
        );
        let earlier = |grant: Option<Grant>| grant.is_none_or(|g| g.boot != context.now.boot_id);
        let clock = context.clock_behind.is_some_and(|last| context.now.wall < last);
        if clock && earlier(self.known.proof) && earlier(self.known.exception) {
            seen.held_back += u32::from(device.state == DeviceState::Released);
            assert!(!is, "restored by a clock that is behind: {device:?}");
        }
        // Nobody gets more time in quarantine by whatever happens there.
        let deadline = |d: &Device| deadline_end(d, &context);
        let same_window = before.enrolment.window == device.enrolment.window;
        if before.state != DeviceState::Released && device.state != DeviceState::Released && same_window {
            assert!(deadline(before).is_none() || deadline(device).is_some_and(|after| Some(after) <= deadline(before)));
        }
        if device.state.quarantined() && self.desk.connected && context.config.devices.deadline.is_some() {
            assert!(
                device.enrolment.deadline.is_some(),
                "its deadline does not run: {device:?} {signal:?}"
            );
        }
        // The name that the device must use follows the state.
        let released = device.state == DeviceState::Released;
        let wanted = if released {
            device.full_service_pool.as_str()
        } else {
            "quarantine"
        };
        assert_eq!(*device.gateway_uri, *format!("{wanted}.vpn.example"));
        // What the fields say of each other.
        let kind = device.exception.as_ref().map(|e| e.kind);
        assert!(kind != Some(ExceptionKind::Release) || released);
        assert!(kind != Some(ExceptionKind::Block) || device.state == DeviceState::Blocked);
        assert!(released || device.release.proved.is_none() && device.release.lease.is_none());
        assert!(!released || kind.is_some() || device.release.proved.is_some());
        seen.states.insert(device.state);
        seen.reasons.insert(device.state_reason);
        let retired = |d: &Device| d.state == DeviceState::Retired;
        assert!(!retired(before) || before == device, "retired is final");
        !retired(before)
    }

    fn settle(&mut self) {
        if self.desk.device.release.proved.is_none() {
            self.known.proof = None;
        }
        if self.desk.device.exception.is_none() {
            self.known.exception = None;
        }
        self.settle_deadline();
    }

    /// That it runs when it has to is asserted; here is how long.
    fn settle_deadline(&mut self) {
        match (self.desk.device.enrolment.deadline, self.known.deadline) {
            (None, _) => self.known.deadline = None,
            (Some(_), None) => self.known.deadline = Some(self.grant(Some(self.age + DEADLINE_MS))),
            (Some(_), Some(_)) => {}
        }
    }

    fn grant(&self, end: Option<Age>) -> Grant {
        Grant {
            end,
            given: self.age,
            wall: self.desk.now.wall,
            boot: self.desk.now.boot_id,
        }
    }

    /// What restricts takes keys away: by what it is, or by where it leads.
    fn take_keys(&mut self, before: &Device, signal: Option<Signal<'_>>) {
        let state = self.desk.device.state;
        let ended = before.state == DeviceState::Released && state != DeviceState::Released;
        let shut = before.state != DeviceState::Blocked && state == DeviceState::Blocked;
        let told = matches!(signal, Some(Signal::PolicyRevoked { .. } | Signal::Restored | Signal::Retire));
        if ended || shut || told {
            (self.known.offered, self.known.acknowledged) = (None, None);
        }
    }

    fn restricted(&mut self, at: WallTime) {
        self.known.restricted = self.known.restricted.max(Some(at));
        self.known.proof = None;
        self.known.exception = None;
    }

    /// Whether it may enrol now, or has; the deadline counts only where it shuts.
    fn open(&self, context: &Context<'_>) -> bool {
        let window = *self.desk.device.enrolment.window;
        let wall = self.behind.map_or(context.now.wall, |last| last.max(context.now.wall));
        // Whether it has ended already, a clock that is behind cannot tell.
        let not_ended = window.not_after.is_none_or(|t| wall <= t && self.behind.is_none());
        let within = window.not_before.is_none_or(|t| t <= wall) && not_ended;
        let known = |d: &Grant| self.behind.is_none() || d.boot == context.now.boot_id;
        let shuts = context.config.devices.after_deadline == AfterDeadline::Block;
        let deadline = self.known.deadline.filter(|d| shuts && known(d)).and_then(|d| d.end);
        self.known.enrolled || within && deadline.is_none_or(|end| self.age < end)
    }
}

fn name(revision: &str) -> PolicyRevision {
    revision.parse().unwrap()
}
