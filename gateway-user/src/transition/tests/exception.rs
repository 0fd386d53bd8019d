//! An operator's exceptions: their ends, and what they leave alone.

use super::*;

const RELEASE: ExceptionKind = ExceptionKind::Release;
const BLOCK: ExceptionKind = ExceptionKind::Block;

#[test]
fn a_release_without_proof_lasts_as_long_as_was_said() {
    let mut desk = Desk::new("lab");
    desk.connect().tell(except(RELEASE, 10));
    assert_eq!(desk.is(), (DeviceState::Released, StateReason::ExceptionRelease));
    assert!(desk.released() && desk.device.enrolment.enrolled_at.is_none());
    // The pool's lease of an hour is for proof.
    desk.pass(10 * HOUR - 1).due();
    assert!(desk.released());
    desk.pass(1);
    assert!(!desk.released(), "also before anybody has noticed");
    desk.due();
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
    assert!(desk.device.exception.is_none());
    let most = desk.config.devices.max_exception;
    let too_long = Signal::Except {
        kind: BLOCK,
        reason: "",
        by: "",
        length: most + Duration::from_millis(1),
    };
    assert_eq!(desk.refused(too_long), "EXCEPTION_TOO_LONG");
    assert_eq!(desk.refused(Signal::EndException), "NO_EXCEPTION");
}

#[test]
fn it_becomes_an_ordinary_one_by_proof_and_ends_with_a_revocation() {
    let mut desk = Desk::new("lab");
    desk.tell(except(RELEASE, 10)).pass(MINUTE);
    let mut proved = desk.clone();
    proved.proof("r1");
    assert_eq!(proved.is(), (DeviceState::Released, StateReason::PolicyApplied));
    assert!(proved.device.exception.is_none() && proved.device.enrolment.enrolled_at.is_some());
    proved.pass(HOUR);
    assert!(!proved.released(), "the lease counts");
    desk.tell(REVOKED);
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::PolicyRevoked));
    assert!(desk.device.exception.is_none());
    assert!(!desk.try_(Signal::ExceptionOver).unwrap().changed);
}

#[test]
fn waves_leave_it_alone_until_it_ends() {
    let mut desk = Desk::new("office");
    desk.publish("r1").tell(except(RELEASE, 1)).publish("r2").tell(Signal::Stale);
    assert!(desk.released());
    assert_eq!(desk.no_proof("r1"), "STALE_POLICY_REVISION");
    desk.pass(MINUTE).tell(Signal::EndException);
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
    assert_eq!(desk.no_proof("r2"), "STALE_SIGNAL");
    desk.pass(1).proof("r2");
    assert!(desk.released());
}

#[test]
fn a_release_of_a_device_that_has_proved_takes_nothing_from_it() {
    let mut desk = Desk::new("office");
    desk.proof("r1").tell(except(RELEASE, 1)).pass(HOUR);
    assert!(desk.released());
    desk.due();
    assert_eq!(desk.is(), (DeviceState::Released, StateReason::PolicyApplied));
    // But what it has proved must hold still.
    for restrict in [
        |d: &mut Desk| {
            d.publish("r2");
        },
        |d: &mut Desk| {
            d.tell(REVOKED).tell(except(RELEASE, 2));
        },
    ] {
        let mut desk = desk.clone();
        desk.tell(except(RELEASE, 2));
        restrict(&mut desk);
        desk.pass(2 * HOUR).due();
        assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
    }
    let mut leased = Desk::new("lab");
    leased.proof("r1").tell(except(RELEASE, 2)).pass(2 * HOUR).due();
    assert_eq!(leased.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
}

#[test]
fn a_block_holds_against_signals_and_leaves_the_deadline_as_it_was() {
    let mut desk = Desk::new("office");
    desk.connect();
    let deadline = desk.device.enrolment.deadline;
    desk.pass(HOUR).tell(except(BLOCK, 1));
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::ExceptionBlock));
    assert_eq!(desk.no_proof("r1"), "DEVICE_BLOCKED");
    desk.tell(REVOKED).tell(Signal::Connected).tell(Signal::DeadlinePassed);
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::ExceptionBlock));
    desk.pass(HOUR).due();
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
    assert_eq!(desk.device.enrolment.deadline, deadline);
    // One that outlasts it does not lengthen it.
    desk.tell(except(BLOCK, 48)).pass(48 * HOUR).due();
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::DeadlinePassed));
}

#[test]
fn the_last_word_of_an_operator_counts_and_retiring_ends_all() {
    let mut desk = Desk::new("office");
    desk.tell(except(BLOCK, 1)).tell(except(RELEASE, 1));
    assert!(desk.released());
    desk.tell(except(BLOCK, 1));
    assert!(!desk.released());
    desk.tell(Signal::EndException);
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::ExceptionEnded));
    desk.tell(except(RELEASE, 1)).tell(Signal::Retire);
    assert!(!desk.released() && desk.device.exception.is_none());
    assert!(due(&desk.device, &desk.context()).is_none());
}
