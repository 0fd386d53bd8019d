//! The handshake: offered, acknowledged, applied; and what is no key.

use super::*;

const TEMPORARY: KeyHash = KeyHash([1; 32]);
const FINAL: KeyHash = KeyHash([2; 32]);
const OTHER: KeyHash = KeyHash([3; 32]);

fn offer(key: KeyHash, revision: &PolicyRevision) -> Signal<'_> {
    Signal::Offer { key, revision }
}

fn acknowledge(temporary: KeyHash, fresh: KeyHash) -> Signal<'static> {
    Signal::Acknowledge { temporary, fresh }
}

fn applied<'a>(desk: &Desk, revision: &'a PolicyRevision, key: KeyHash) -> Signal<'a> {
    Signal::PolicyApplied {
        revision,
        key: Some(key),
        observed_at: Some(desk.now.wall),
    }
}

fn desk() -> (Desk, PolicyRevision, PolicyRevision) {
    let mut desk = Desk::new("office");
    desk.config.proofs.direct_signal = false;
    desk.publish("r1").publish("r2").connect();
    (desk, "r1".parse().unwrap(), "r2".parse().unwrap())
}

#[test]
fn the_whole_handshake_releases() {
    let (mut desk, r1, r2) = desk();
    assert_eq!(desk.no_proof("r2"), "POLICY_KEY_REQUIRED");
    assert_eq!(desk.refused(offer(TEMPORARY, &r1)), "STALE_POLICY_REVISION");
    assert_eq!(
        desk.refused(offer(TEMPORARY, &"r9".parse().unwrap())),
        "UNKNOWN_POLICY_REVISION"
    );
    desk.tell(offer(TEMPORARY, &r2));
    assert_eq!(desk.is(), (DeviceState::PolicyPending, StateReason::PolicyOffered));
    assert!(!desk.released());
    assert_eq!(desk.refused(applied(&desk, &r2, TEMPORARY)), "POLICY_KEY_TEMPORARY");
    assert_eq!(desk.refused(applied(&desk, &r2, FINAL)), "POLICY_KEY_UNKNOWN");
    desk.tell(acknowledge(TEMPORARY, FINAL));
    assert_eq!(desk.refused(applied(&desk, &r2, TEMPORARY)), "POLICY_KEY_UNKNOWN");
    assert_eq!(desk.refused(applied(&desk, &r1, FINAL)), "POLICY_KEY_REVISION");
    assert_eq!(desk.refused(acknowledge(TEMPORARY, OTHER)), "POLICY_KEY_UNKNOWN");
    assert_eq!(desk.refused(acknowledge(FINAL, OTHER)), "POLICY_KEY_UNKNOWN");
    let signal = applied(&desk, &r2, FINAL);
    desk.tell(signal);
    assert!(desk.released());
    // The final key goes on renewing, and no longer than until a restriction.
    desk.pass(MINUTE);
    let signal = applied(&desk, &r2, FINAL);
    desk.tell(signal);
    assert_eq!(desk.no_proof("r2"), "POLICY_KEY_REQUIRED");
    desk.tell(REVOKED).pass(1);
    assert_eq!(desk.refused(applied(&desk, &r2, FINAL)), "POLICY_KEY_UNKNOWN");
}

#[test]
fn a_temporary_key_ends_with_its_time_or_the_next_offer() {
    let (mut desk, _, r2) = desk();
    desk.tell(offer(TEMPORARY, &r2)).pass(15 * MINUTE);
    assert_eq!(desk.refused(acknowledge(TEMPORARY, FINAL)), "POLICY_KEY_EXPIRED");
    desk.tell(offer(OTHER, &r2));
    assert_eq!(desk.refused(acknowledge(TEMPORARY, FINAL)), "POLICY_KEY_UNKNOWN");
    desk.pass(15 * MINUTE - 1).tell(acknowledge(OTHER, FINAL));
    // A wall clock that is set back does not lengthen it.
    desk.tell(offer(TEMPORARY, &r2)).pass(15 * MINUTE);
    desk.now.wall = WallTime(0);
    assert_eq!(desk.refused(acknowledge(TEMPORARY, OTHER)), "POLICY_KEY_EXPIRED");
}

#[test]
fn a_key_that_is_given_is_checked_also_where_none_is_needed() {
    let (mut desk, _, r2) = desk();
    desk.config.proofs.direct_signal = true;
    assert_eq!(desk.refused(applied(&desk, &r2, FINAL)), "POLICY_KEY_UNKNOWN");
    desk.proof("r2");
    assert!(desk.released());
}

#[test]
fn every_restriction_takes_all_keys_away() {
    let (desk, _, r2) = desk();
    let out = |desk: &Desk| {
        let mut desk = desk.clone();
        desk.tell(offer(TEMPORARY, &r2))
            .tell(acknowledge(TEMPORARY, FINAL))
            .tell(offer(OTHER, &r2));
        desk
    };
    let released = {
        let mut desk = out(&desk);
        let signal = applied(&desk, &r2, FINAL);
        desk.tell(signal);
        desk
    };
    let stale = {
        let mut desk = released.clone();
        desk.publish("r3");
        desk
    };
    for (before, signal) in [
        (&out(&desk), REVOKED),
        (&out(&desk), Signal::DeadlinePassed),
        (&out(&desk), Signal::Restored),
        (&out(&desk), Signal::Retire),
        (&out(&desk), except(ExceptionKind::Block, 1)),
        (&released, REVOKED),
        (&released, Signal::LeaseEnded),
        (&stale, Signal::Stale),
    ] {
        assert!(before.device.keys.offer.is_some() && before.device.keys.final_key.is_some());
        let after = before.try_(signal).unwrap().device;
        assert!(after.keys.offer.is_none() && after.keys.final_key.is_none(), "{signal:?}");
    }
}

#[test]
fn a_policy_may_be_offered_ahead_of_its_wave_and_to_nobody_who_is_blocked() {
    let (mut desk, _, r2) = desk();
    desk.tell(offer(TEMPORARY, &r2)).tell(acknowledge(TEMPORARY, FINAL));
    let signal = applied(&desk, &r2, FINAL);
    desk.tell(signal).publish("r3");
    let r3 = "r3".parse().unwrap();
    desk.tell(offer(OTHER, &r3));
    assert!(desk.released(), "an offer restricts nobody");
    desk.tell(Signal::Stale).tell(offer(TEMPORARY, &r3));
    assert_eq!(desk.device.state, DeviceState::PolicyPending);
    desk.tell(except(ExceptionKind::Block, 1));
    assert_eq!(desk.refused(offer(TEMPORARY, &r3)), "DEVICE_BLOCKED");
    assert_eq!(desk.refused(acknowledge(TEMPORARY, FINAL)), "DEVICE_BLOCKED");
    desk.tell(Signal::Retire);
    assert_eq!(desk.refused(offer(TEMPORARY, &r3)), "DEVICE_RETIRED");
}
