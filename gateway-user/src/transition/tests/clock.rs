//! Clocks that step, stop and lie: a release never lasts longer for it.

use super::*;

#[test]
fn no_step_of_the_wall_clock_lengthens_anything() {
    let mut desk = Desk::new("lab");
    desk.proof("r1").pass(HOUR - 1);
    for wall in [0, i64::MAX / 2] {
        desk.now.wall = WallTime(wall);
        assert!(desk.released());
        desk.tell(Signal::Start);
    }
    desk.now.boot.0 += 1_000_000;
    assert!(!desk.released());
}

#[test]
fn after_a_reboot_the_wall_clock_measures_once() {
    for (passed, left) in [(HOUR / 2, HOUR / 2), (0, HOUR), (HOUR, 0), (-1, 0)] {
        let mut desk = Desk::new("lab");
        desk.proof("r1");
        let wall = WallTime(desk.now.wall.0 + passed);
        desk.reboot(wall).tell(Signal::Start);
        assert_eq!(desk.released(), left > 0, "{passed}");
        if left > 0 {
            // Set back and started again: this boot's clock has it.
            desk.now.wall = WallTime(0);
            desk.tell(Signal::Start).pass(left - 1);
            assert!(desk.released());
            desk.pass(1);
            assert!(!desk.released());
        }
    }
}

#[test]
fn a_clock_behind_the_last_commit_restores_no_release() {
    let leased = |desk: &mut Desk| {
        desk.proof("r1");
    };
    let excepted = |desk: &mut Desk| {
        desk.tell(except(ExceptionKind::Release, 1));
    };
    for (pool, release) in [("lab", leased as fn(&mut Desk)), ("office", leased), ("lab", excepted)] {
        let mut desk = Desk::new(pool);
        release(&mut desk);
        let last = desk.now.wall;
        desk.reboot(WallTime(last.0 - 10 * MINUTE));
        desk.clock_behind = Some(last);
        desk.tell(Signal::Start);
        // Held back, not ended: there is nothing that time could bring.
        assert!(!desk.released() && held_back(&desk.device, &desk.context()));
        assert_eq!(desk.device.state, DeviceState::Released);
        assert!(due(&desk.device, &desk.context()).is_none());
        assert_eq!(desk.refused(Signal::RenewLease), "NOT_RELEASED");
        desk.pass(10 * MINUTE - 1);
        assert!(!desk.released());
        // The clock passes the last commit.
        desk.pass(1).clock_behind = None;
        desk.tell(Signal::Start);
        assert!(desk.released());
        // From then on it is of this boot.
        desk.now.wall = WallTime(0);
        desk.clock_behind = Some(last);
        assert!(desk.released());
    }
}

#[test]
fn a_release_that_is_held_back_waits_for_the_clock_or_a_newer_proof_by_it() {
    let r = "r1".parse().unwrap();
    let mut desk = Desk::new("lab");
    let seen = WallTime(desk.now.wall.0 - MINUTE);
    desk.tell(proof(&r, seen)).pass(10 * MINUTE);
    let last = desk.now.wall;
    desk.reboot(WallTime(last.0 - 9 * MINUTE)).clock_behind = Some(last);
    desk.tell(Signal::Start);
    // An MDM whose clock is right cannot be told from one that dates ahead; and what it stood on is nothing new: its lease may be over.
    assert_eq!(desk.refused(proof(&r, WallTime(last.0 + MINUTE))), "CLOCK_BEHIND");
    assert_eq!(desk.refused(proof(&r, WallTime(last.0 - 10 * MINUTE))), "STALE_SIGNAL");
    assert!(!desk.released());
    let mut newer = desk.clone();
    newer.proof("r1");
    assert!(newer.released());
    // What restricts meanwhile counts from the last commit at the earliest, also once the clock is right.
    let mut revoked = desk.clone();
    revoked.tell(REVOKED);
    assert_eq!(revoked.no_proof("r1"), "STALE_SIGNAL");
    revoked.pass(20 * MINUTE).clock_behind = None;
    assert_eq!(revoked.no_proof("r1"), "STALE_SIGNAL", "not told yet that the clock is right");
    revoked.tell(Signal::Start);
    assert_eq!(revoked.refused(proof(&r, last)), "STALE_SIGNAL");
    // It counts from as far ahead of the right time as its source may have dated it.
    assert_eq!(revoked.no_proof("r1"), "STALE_SIGNAL");
    revoked.pass(2 * MINUTE + 1).proof("r1");
    assert!(revoked.released());
    // With the clock set right proof releases as ever.
    desk.pass(10 * MINUTE).clock_behind = None;
    desk.tell(Signal::Start).tell(proof(&r, WallTime(last.0 + MINUTE)));
    assert!(desk.released());
}

#[test]
fn a_window_is_held_to_the_last_commit_by_a_clock_that_is_behind_it() {
    let last = kit::START.wall;
    // Whether it has begun or ended since, nobody knows: none is released for it.
    let unknown = Some("CLOCK_BEHIND");
    for (from, to, said, arrives) in [
        (None, None, None, None),
        (Some(-HOUR), None, None, None),
        (None, Some(-1), Some("ENROLMENT_CLOSED"), Some("ENROLMENT_CLOSED")),
        (Some(1), None, unknown, Some("ENROLMENT_NOT_OPEN")),
        (None, Some(1), unknown, None),
        (Some(-HOUR), Some(HOUR), unknown, None),
    ] {
        let mut desk = Desk::new("office");
        desk.window(from, to);
        desk.reboot(WallTime(0)).clock_behind = Some(last);
        let told = desk
            .try_(except(ExceptionKind::Release, 1))
            .err()
            .map(|refusal| refusal.name());
        assert_eq!(told, said, "{from:?} {to:?}");
        assert_eq!(desk.try_(Signal::Connected).err().map(|refusal| refusal.name()), arrives);
    }
}

#[test]
fn registering_again_is_no_proof_for_a_release_that_is_held_back() {
    let last = kit::START.wall;
    // Also if that gives it a lease.
    let mut desk = Desk::new("office");
    desk.proof("r1").reboot(WallTime(last.0 - HOUR)).clock_behind = Some(last);
    desk.device = desk.register(&registration("phone", "lab")).unwrap().device;
    assert!(!desk.released());
    desk.pass(HOUR).clock_behind = None;
    desk.tell(Signal::Start);
    assert!(desk.released());
    desk.pass(HOUR).due();
    assert!(!desk.released(), "the new pool's lease");
}

#[test]
fn a_deadline_waits_for_the_right_time_and_is_not_lengthened_by_it() {
    let mut desk = Desk::new("office");
    desk.connect();
    let begun = desk.now.wall;
    // The machine comes up in 1970.
    desk.reboot(WallTime(0)).clock_behind = Some(begun);
    desk.tell(Signal::Start).due();
    assert_eq!(desk.device.state, DeviceState::Quarantined);
    desk.now.wall = WallTime(begun.0 + 47 * HOUR);
    desk.clock_behind = None;
    desk.tell(Signal::Start).pass(HOUR - 1).due();
    assert_eq!(desk.device.state, DeviceState::Quarantined);
    desk.now.wall = WallTime(0);
    desk.now.boot.0 += 1_000_000;
    desk.due();
    assert_eq!(desk.device.state, DeviceState::Blocked);
}

#[test]
fn a_block_does_not_end_by_a_clock_that_lies() {
    let mut desk = Desk::new("office");
    desk.tell(except(ExceptionKind::Block, 2));
    let last = desk.now.wall;
    desk.reboot(WallTime(0)).clock_behind = Some(last);
    desk.tell(Signal::Start).due();
    assert_eq!(desk.device.state, DeviceState::Blocked);
    desk.now.wall = WallTime(last.0 + HOUR);
    desk.clock_behind = None;
    desk.tell(Signal::Start).pass(HOUR - 1).due();
    assert_eq!(desk.device.state, DeviceState::Blocked);
    desk.pass(1).due();
    assert_eq!(desk.device.state, DeviceState::Quarantined);
}

#[test]
fn a_shorter_lease_in_the_configuration_counts_from_the_next_start() {
    let mut desk = Desk::new("office");
    desk.proof("r1");
    desk.config.pools[1].lease = Some(Duration::from_secs(60));
    desk.tell(Signal::Start).pass(MINUTE);
    assert!(!desk.released());
}
