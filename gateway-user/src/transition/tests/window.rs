//! Enrolment windows, arrivals outside them, and the deadline in quarantine.

use super::*;
use crate::config::OutsideWindow;

const DEADLINE: i64 = 48 * HOUR;

#[test]
fn a_window_opens_and_closes() {
    let mut desk = Desk::new("office");
    desk.window(Some(HOUR), Some(2 * HOUR));
    for (at, said) in [
        (0, "ENROLMENT_NOT_OPEN"),
        (HOUR - 1, "ENROLMENT_NOT_OPEN"),
        (2 * HOUR + 1, "ENROLMENT_CLOSED"),
    ] {
        let mut desk = desk.clone();
        desk.pass(at);
        assert_eq!(desk.no_proof("r1"), said);
        assert_eq!(desk.refused(Signal::Connected), said);
        assert_eq!(desk.refused(except(ExceptionKind::Release, 1)), said);
        assert_eq!(may_arrive(&desk.device, &desk.context()).unwrap_err().name(), said);
        // That it came is remembered, and its state is what it was.
        desk.tell(Signal::TurnedAway);
        assert_eq!(desk.device.enrolment.arrived_outside, Some(desk.now.wall));
        assert_eq!(desk.is(), (DeviceState::Registered, StateReason::Registered));
        // Trying again at once is not another commit.
        desk.pass(1);
        assert!(!desk.try_(Signal::TurnedAway).unwrap().changed);
        desk.pass(MINUTE);
        assert!(desk.try_(Signal::TurnedAway).unwrap().changed);
    }
    for at in [HOUR, 2 * HOUR] {
        let mut desk = desk.clone();
        desk.pass(at).connect().proof("r1");
        assert!(desk.released());
    }
}

#[test]
fn who_has_enrolled_needs_no_window_until_there_is_another() {
    let mut desk = Desk::new("office");
    desk.window(None, Some(HOUR));
    desk.proof("r1").pass(2 * HOUR).tell(REVOKED).connect();
    desk.pass(1).proof("r1");
    assert!(desk.released());
    // Another window is another enrolment. A release goes on, and can be proved again; once restricted, the window counts.
    desk.window(Some(3 * HOUR), None);
    assert!(desk.released());
    desk.connect().pass(MINUTE).proof("r1");
    assert_eq!(desk.device.enrolment.enrolled_at, None);
    desk.tell(REVOKED);
    assert_eq!(desk.refused(Signal::Connected), "ENROLMENT_NOT_OPEN");
    assert_eq!(desk.no_proof("r1"), "STALE_SIGNAL");
    desk.pass(1);
    assert_eq!(desk.no_proof("r1"), "ENROLMENT_NOT_OPEN");
    desk.pass(HOUR).connect().proof("r1");
    assert!(desk.released());
}

#[test]
fn outside_the_window_a_device_can_be_blocked_until_it_gets_another() {
    let mut desk = Desk::new("office");
    desk.config.devices.outside_window = OutsideWindow::Block;
    desk.window(Some(HOUR), None);
    desk.connect();
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::OutsideWindow));
    assert_eq!(desk.device.enrolment.arrived_outside, Some(desk.now.wall));
    // Neither time nor coming back opens it, nor an operator's block that ends.
    desk.pass(2 * HOUR).connect();
    assert_eq!(desk.no_proof("r1"), "DEVICE_BLOCKED");
    desk.tell(except(ExceptionKind::Block, 1)).pass(HOUR).due();
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::OutsideWindow));
    // The same window is no other one.
    desk.window(Some(HOUR), None);
    assert_eq!(desk.device.state, DeviceState::Blocked);
    desk.window(Some(2 * HOUR), None);
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::NewWindow));
    assert!(desk.device.enrolment.deadline.is_some(), "it is connected");
    desk.proof("r1");
    assert!(desk.released());
}

#[test]
fn the_deadline_runs_from_the_first_session_and_reconnecting_does_not_begin_it_anew() {
    let mut desk = Desk::new("office");
    desk.pass(100 * HOUR);
    assert!(due(&desk.device, &desk.context()).is_none(), "it has not arrived");
    desk.connect().connected = false;
    let end = BootTime(desk.now.boot.0 + u64::try_from(DEADLINE).unwrap() * 1_000_000);
    for _ in 0..47 {
        desk.pass(HOUR).connect().tell(REVOKED);
        assert_eq!(due(&desk.device, &desk.context()), Some((end, Signal::DeadlinePassed)));
    }
    desk.pass(HOUR - 1).due();
    assert_eq!(desk.device.state, DeviceState::Quarantined);
    let mut in_time = desk.clone();
    in_time.proof("r1");
    assert!(in_time.released());
    // At the very moment it is over, also before anybody has noticed.
    desk.pass(1);
    assert_eq!(desk.no_proof("r1"), "QUARANTINE_DEADLINE");
    let mut back = desk.clone();
    back.connect();
    assert_eq!(back.is(), (DeviceState::Blocked, StateReason::DeadlinePassed));
    desk.due();
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::DeadlinePassed));
    desk.connect();
    assert_eq!(desk.no_proof("r1"), "QUARANTINE_DEADLINE");
    assert_eq!(desk.refused(except(ExceptionKind::Release, 1)), "QUARANTINE_DEADLINE");
    // Another window opens what the deadline has shut, and its deadline is its own.
    desk.window(None, Some(1000 * HOUR));
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::NewWindow));
    desk.pass(DEADLINE - 1).due();
    assert_eq!(desk.device.state, DeviceState::Quarantined);
    desk.pass(1).due();
    assert_eq!(desk.device.state, DeviceState::Blocked);
}

#[test]
fn a_release_ends_the_deadline_and_the_next_quarantine_begins_another() {
    let mut desk = Desk::new("lab");
    desk.connect().pass(DEADLINE - 1).proof("r1");
    desk.pass(HOUR).due();
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::LeaseEnded));
    let deadline = desk.device.enrolment.deadline.expect("it is connected");
    assert_eq!(deadline.given, desk.now);
    // Who is not there when the lease ends is not late before coming back.
    let mut away = Desk::new("lab");
    away.proof("r1").pass(HOUR).due().pass(100 * HOUR).due();
    assert_eq!(away.is(), (DeviceState::Quarantined, StateReason::LeaseEnded));
    away.connect();
    assert_eq!(away.device.state, DeviceState::Quarantined);
    // An enrolled device that is too late is blocked like any other; an operator may release it.
    away.pass(DEADLINE).due();
    assert_eq!(away.is(), (DeviceState::Blocked, StateReason::DeadlinePassed));
    assert_eq!(away.no_proof("r1"), "QUARANTINE_DEADLINE");
    away.tell(except(ExceptionKind::Release, 1));
    assert!(away.released());
    away.pass(1).proof("r1").tell(REVOKED);
    assert_eq!(away.is(), (DeviceState::Quarantined, StateReason::PolicyRevoked));
}

#[test]
fn the_deadline_can_be_reported_only_or_be_off() {
    for change in [
        |c: &mut Config| c.devices.after_deadline = AfterDeadline::Report,
        |c: &mut Config| c.devices.deadline = None,
    ] {
        let mut desk = Desk::new("office");
        change(&mut desk.config);
        desk.connect().pass(10 * DEADLINE).due().connect();
        assert_eq!(desk.device.state, DeviceState::Quarantined);
        assert!(!desk.try_(Signal::DeadlinePassed).unwrap().changed);
        desk.proof("r1");
        assert!(desk.released());
    }
    // Shortened in the configuration, it is shorter for those whose deadline runs; lengthened, it is not longer.
    let mut desk = Desk::new("office");
    desk.connect().pass(HOUR);
    desk.config.devices.deadline = Some(Duration::from_secs(3600));
    desk.due();
    assert_eq!(desk.device.state, DeviceState::Blocked);
    let mut desk = Desk::new("office");
    desk.connect();
    desk.config.devices.deadline = Some(Duration::from_secs(1_000_000_000));
    desk.pass(DEADLINE).due();
    assert_eq!(desk.device.state, DeviceState::Blocked);
}
