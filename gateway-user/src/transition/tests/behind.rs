//! A clock that is behind the last commit: what is proved by a handshake since needs no date, and what restricts meanwhile is not overtaken by
//! anything that is dated.

use super::*;

const TEMPORARY: KeyHash = KeyHash([1; 32]);
const FINAL: KeyHash = KeyHash([2; 32]);

/// A desk whose device was released by proof, booted anew with a clock that is an hour behind. Truly an hour has passed since the last
/// commit, so that an MDM's clock is two hours ahead of this one.
fn desk(pool: &str) -> Desk {
    let mut desk = Desk::new(pool);
    desk.connect().proof("r1").pass(MINUTE);
    behind(&mut desk);
    assert!(!desk.released());
    desk
}

fn behind(desk: &mut Desk) {
    let last = desk.clock_behind.unwrap_or(desk.now.wall);
    desk.reboot(WallTime(last.0 - HOUR)).clock_behind = Some(last);
    desk.tell(Signal::Start);
}

/// The clock is set right.
fn right(desk: &mut Desk) {
    desk.now.wall = truth(desk);
    desk.clock_behind = None;
    desk.tell(Signal::Start);
}

/// What a right clock shows.
fn truth(desk: &Desk) -> WallTime {
    WallTime(desk.now.wall.0 + 2 * HOUR)
}

fn revision() -> PolicyRevision {
    "r1".parse().unwrap()
}

fn keyed(revision: &PolicyRevision, seen: WallTime) -> Signal<'_> {
    Signal::PolicyApplied {
        revision,
        key: Some(FINAL),
        observed_at: Some(seen),
    }
}

fn offer(revision: &PolicyRevision) -> Signal<'_> {
    Signal::Offer {
        key: TEMPORARY,
        revision,
    }
}

const ACKNOWLEDGE: Signal<'static> = Signal::Acknowledge {
    temporary: TEMPORARY,
    fresh: FINAL,
};

fn handshake(desk: &mut Desk) -> &mut Desk {
    let r = revision();
    desk.tell(offer(&r)).tell(ACKNOWLEDGE)
}

/// All of it, dated rightly.
fn by_handshake(desk: &mut Desk) -> &mut Desk {
    let (r, seen) = (revision(), truth(desk));
    handshake(desk).tell(keyed(&r, seen))
}

#[test]
fn a_handshake_since_the_boot_releases_whatever_its_date() {
    let r = revision();
    let desk = desk("lab");
    for seen in [truth(&desk), desk.now.wall, WallTime(0), WallTime(i64::MAX)] {
        let mut desk = desk.clone();
        handshake(&mut desk).tell(keyed(&r, seen));
        assert!(desk.released());
        assert_eq!(
            desk.device.release.proved.unwrap().wall,
            seen.max(desk.now.wall).max(kit::START.wall)
        );
        // Its lease runs on the boot clock, and is renewed by the same key.
        desk.pass(HOUR - 1).tell(keyed(&r, seen)).pass(HOUR - 1);
        assert!(desk.released());
        desk.tell(Signal::RenewLease).pass(HOUR - 1);
        assert!(desk.released());
        desk.pass(1).due();
        assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::LeaseEnded));
        assert_eq!(desk.refused(keyed(&r, truth(&desk))), "POLICY_KEY_UNKNOWN");
        by_handshake(&mut desk);
        assert!(desk.released());
    }
    // Undated it is no proof; and the other rules hold.
    let mut desk = desk;
    handshake(&mut desk).publish("r1").publish("r2").tell(Signal::Stale);
    let undated = Signal::PolicyApplied {
        revision: &r,
        key: Some(FINAL),
        observed_at: None,
    };
    assert_eq!(desk.refused(undated), "POLICY_KEY_UNKNOWN", "the wave takes the key");
    assert_eq!(desk.refused(offer(&r)), "STALE_POLICY_REVISION");
}

#[test]
fn what_was_handed_out_before_the_boot_is_no_order() {
    let r = revision();
    let mut desk = Desk::new("office");
    desk.connect();
    let mut key_out = desk.clone();
    handshake(&mut key_out).pass(MINUTE);
    behind(&mut key_out);
    assert_eq!(key_out.refused(keyed(&r, truth(&key_out))), "CLOCK_BEHIND");
    // Nor if it is not old by the wrong clock, which may have lost days.
    let last = key_out.clock_behind.unwrap();
    key_out.reboot(WallTime(last.0 + 5 * HOUR)).clock_behind = Some(WallTime(last.0 + 10 * HOUR));
    key_out.tell(Signal::Start);
    assert_eq!(key_out.refused(keyed(&r, truth(&key_out))), "CLOCK_BEHIND");
    // As a temporary key: by the wrong clock its time may not be over.
    desk.tell(offer(&r)).pass(MINUTE);
    let last = WallTime(desk.now.wall.0 + MINUTE);
    desk.reboot(desk.now.wall).clock_behind = Some(last);
    desk.tell(Signal::Start);
    assert_eq!(desk.refused(ACKNOWLEDGE), "POLICY_KEY_EXPIRED");
    by_handshake(&mut desk);
    assert!(desk.released());
    // Nor is it after a second boot, by a clock that is behind still: not for the release, and not for the key.
    behind(&mut desk);
    assert!(!desk.released());
    assert_eq!(desk.refused(keyed(&r, truth(&desk))), "CLOCK_BEHIND");
    by_handshake(&mut desk);
    assert!(desk.released());
}

#[test]
fn a_key_is_no_newer_than_a_proof_may_be_old() {
    let r = revision();
    let mut desk = desk("office");
    handshake(&mut desk).pass(24 * HOUR - 1);
    let last = WallTime(desk.now.wall.0 + HOUR);
    desk.clock_behind = Some(last);
    assert!(desk.try_(keyed(&r, truth(&desk))).is_ok());
    desk.pass(1);
    assert_eq!(desk.refused(keyed(&r, truth(&desk))), "CLOCK_BEHIND");
}

#[test]
fn whatever_restricts_after_the_handshake_ends_it() {
    let r = revision();
    let mut released = desk("office");
    by_handshake(&mut released);
    let dated = Signal::PolicyRevoked {
        observed_at: Some(truth(&released)),
    };
    // Also one that its source has dated before the proof, or by the wrong clock.
    let early = Signal::PolicyRevoked {
        observed_at: Some(released.now.wall),
    };
    for signal in [REVOKED, dated, early, Signal::Restored, Signal::LeaseEnded] {
        let mut desk = released.clone();
        desk.tell(signal);
        assert!(!desk.released());
        for seen in [truth(&desk), WallTime(i64::MAX)] {
            assert_eq!(desk.refused(keyed(&r, seen)), "POLICY_KEY_UNKNOWN");
        }
        assert_eq!(
            desk.refused(proof(&r, truth(&desk))),
            "CLOCK_BEHIND",
            "without a key it is a date"
        );
        by_handshake(&mut desk);
        assert!(desk.released(), "the MDM goes on by itself");
    }
    let mut desk = released;
    desk.tell(except(ExceptionKind::Block, 1));
    assert_eq!(desk.refused(keyed(&r, truth(&desk))), "DEVICE_BLOCKED");
    desk.tell(Signal::EndException);
    assert_eq!(desk.refused(keyed(&r, truth(&desk))), "POLICY_KEY_UNKNOWN");
    desk.tell(Signal::Retire);
    assert_eq!(desk.refused(keyed(&r, truth(&desk))), "DEVICE_RETIRED");
}

#[test]
fn once_the_clock_is_right_the_release_stays_and_dates_are_in_order_again() {
    let mut desk = desk("lab");
    by_handshake(&mut desk);
    right(desk.pass(MINUTE));
    assert!(desk.released());
    // An MDM's revocation, dated rightly, restricts; what was seen before it does not release.
    let observed_at = Some(desk.pass(MINUTE).now.wall);
    desk.tell(Signal::PolicyRevoked { observed_at });
    assert!(!desk.released());
    assert_eq!(desk.no_proof("r1"), "STALE_SIGNAL");
    desk.pass(1).proof("r1");
    assert!(desk.released());
}

#[test]
fn no_dated_proof_overtakes_what_restricted_while_the_clock_was_behind() {
    let r = revision();
    let undated = |d: &mut Desk| {
        d.tell(REVOKED);
    };
    let dated = |d: &mut Desk| {
        let observed_at = Some(truth(d));
        d.tell(Signal::PolicyRevoked { observed_at });
    };
    let ended = |d: &mut Desk| {
        by_handshake(d).pass(HOUR).due();
    };
    let blocked = |d: &mut Desk| {
        d.tell(except(ExceptionKind::Block, 1)).tell(Signal::EndException);
    };
    let excepted = |d: &mut Desk| {
        d.tell(Signal::Restored).tell(except(ExceptionKind::Release, 1));
        d.pass(HOUR).due();
    };
    for restrict in [undated as fn(&mut Desk), dated, ended, blocked, excepted] {
        let mut desk = desk("lab");
        let before = truth(&desk);
        restrict(&mut desk);
        desk.pass(10 * MINUTE);
        let mut reboot = desk.clone();
        for seen in [before, truth(&desk), desk.now.wall] {
            let told = desk.refused(proof(&r, seen));
            assert!(told == "CLOCK_BEHIND" || told == "STALE_SIGNAL", "{told}");
        }
        right(&mut desk);
        assert!(!desk.released());
        for seen in [before, WallTime(before.0 + 5 * MINUTE), desk.now.wall] {
            assert_eq!(desk.refused(proof(&r, seen)), "STALE_SIGNAL");
        }
        desk.pass(2 * MINUTE + 1).proof("r1");
        assert!(desk.released());
        // The same if the clock comes right by another boot, and after one by which it does not.
        behind(&mut reboot);
        let now = truth(&reboot);
        reboot.reboot(now).clock_behind = None;
        reboot.tell(Signal::Start);
        assert_eq!(reboot.refused(proof(&r, before)), "STALE_SIGNAL");
        assert_eq!(reboot.no_proof("r1"), "STALE_SIGNAL");
        reboot.pass(2 * MINUTE + 1).proof("r1");
        assert!(reboot.released());
    }
}

#[test]
fn an_exception_that_began_behind_the_clock_lets_in_no_proof_from_before_it() {
    let r = revision();
    let mut desk = Desk::new("lab");
    desk.connect();
    behind(&mut desk);
    let before = truth(&desk);
    desk.pass(MINUTE).tell(except(ExceptionKind::Release, 1));
    right(desk.pass(MINUTE));
    assert!(desk.released());
    desk.pass(HOUR).due();
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
    assert_eq!(desk.refused(proof(&r, before)), "STALE_SIGNAL");
    desk.tell(proof(&r, WallTime(before.0 + 2 * MINUTE)));
    assert!(desk.released(), "seen meanwhile");
}

#[test]
fn a_revocation_that_is_dated_before_the_last_commit_keeps_its_date() {
    // As with a clock that had run ahead: its last commit is of a time to come, and by the right time all is in order.
    let r = revision();
    let mut desk = Desk::new("office");
    desk.clock_behind = Some(WallTime(desk.now.wall.0 + 1000 * HOUR));
    desk.proof("r1").pass(MINUTE);
    let observed_at = Some(desk.now.wall);
    desk.tell(Signal::PolicyRevoked { observed_at });
    assert_eq!(desk.refused(proof(&r, desk.now.wall)), "STALE_SIGNAL");
    desk.pass(1).proof("r1");
    assert!(desk.released());
}

#[test]
fn a_date_of_a_wild_time_to_come_locks_nothing_out() {
    let r = revision();
    let far = WallTime(desk("lab").now.wall.0 + 100 * 365 * 24 * HOUR);
    let revoked = Signal::PolicyRevoked { observed_at: Some(far) };
    let mut desk = desk("lab");
    handshake(&mut desk).tell(keyed(&r, far));
    for restrict in [revoked, Signal::LeaseEnded] {
        let mut behind = desk.clone();
        behind.tell(restrict);
        right(behind.pass(MINUTE));
        behind.pass(2 * MINUTE + 1).proof("r1");
        assert!(behind.released());
        let mut after = desk.clone();
        right(&mut after);
        after.tell(restrict).pass(2 * MINUTE + 1).proof("r1");
        assert!(after.released());
    }
}

#[test]
fn a_window_that_nobody_knows_to_be_open_is_not_for_a_handshake_either() {
    let r = revision();
    let mut desk = Desk::new("office");
    desk.window(None, Some(100 * HOUR));
    desk.connect();
    behind(&mut desk);
    handshake(&mut desk);
    assert_eq!(desk.refused(keyed(&r, truth(&desk))), "CLOCK_BEHIND");
    right(&mut desk);
    let seen = desk.now.wall;
    desk.tell(keyed(&r, seen));
    // Who has enrolled, has.
    behind(&mut desk);
    by_handshake(&mut desk);
    assert!(desk.released());
}
