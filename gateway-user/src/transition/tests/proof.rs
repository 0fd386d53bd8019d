//! What releases, what does not, and how restrictions order it.

use super::*;
use crate::model::{PoolName, Rare, Release, Revision, Trust};

#[test]
fn a_new_device_is_registered_with_its_quarantine_pools_uri() {
    let desk = Desk::new("lab");
    assert_eq!(desk.is(), (DeviceState::Registered, StateReason::Registered));
    assert_eq!(&*desk.device.gateway_uri, "quarantine.vpn.example");
    assert_eq!(
        (desk.device.revision, &*desk.device.release),
        (Revision(0), &Release::default())
    );
}

#[test]
fn connecting_does_not_release() {
    let mut desk = Desk::new("office");
    desk.connect();
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::Connected));
    assert!(!desk.try_(Signal::Connected).unwrap().changed);
}

#[test]
fn proof_releases_enrols_and_ends_the_deadline() {
    let mut desk = Desk::new("lab");
    desk.connect().pass(MINUTE);
    assert!(desk.device.enrolment.deadline.is_some());
    desk.proof("r1");
    assert!(desk.released());
    assert_eq!(&*desk.device.gateway_uri, "lab.vpn.example");
    let enrolment = &desk.device.enrolment;
    assert_eq!((enrolment.enrolled_at, enrolment.deadline), (Some(desk.now.wall), None));
    // Repeated, it is the same, and the lease begins anew.
    let since = desk.device.state_since;
    desk.pass(MINUTE).proof("r1");
    assert_eq!(desk.device.state_since, since);
    assert_eq!(
        release_end(&desk.device, &desk.now),
        Some(BootTime(desk.now.boot.0 + kit::LEASE_MS * 1_000_000))
    );
}

#[test]
fn a_signal_is_proof_only_if_it_is_newer_than_the_last_restriction_and_of_these_days() {
    let mut desk = Desk::new("office");
    desk.connect().pass(HOUR).tell(REVOKED);
    let (at, r) = (desk.now.wall.0, "r1".parse().unwrap());
    desk.pass(10 * HOUR);
    let now = desk.now.wall.0;
    let seen = |ms| proof(&r, WallTime(ms));
    assert_eq!(desk.refused(seen(at)), "STALE_SIGNAL");
    assert_eq!(desk.refused(seen(i64::MIN)), "STALE_SIGNAL");
    assert_eq!(desk.refused(seen(now + FUTURE_TOLERANCE_MS + 1)), "SIGNAL_FROM_FUTURE");
    assert_eq!(desk.refused(seen(i64::MAX)), "SIGNAL_FROM_FUTURE");
    let undated = Signal::PolicyApplied {
        revision: &r,
        key: None,
        observed_at: None,
    };
    assert_eq!(desk.refused(undated), "STALE_SIGNAL");
    desk.try_(seen(at + 1)).unwrap();
    desk.try_(seen(now + FUTURE_TOLERANCE_MS)).unwrap();
    desk.pass(15 * HOUR);
    assert_eq!(desk.refused(seen(at + 1)), "SIGNAL_TOO_OLD");
    desk.try_(seen(desk.now.wall.0 - 24 * HOUR)).unwrap();
    // Nor does it renew.
    desk.proof("r1");
    assert_eq!(desk.refused(seen(at + 1)), "SIGNAL_TOO_OLD");
}

#[test]
fn a_late_restriction_restricts() {
    let mut desk = Desk::new("office");
    let begin = desk.now.wall;
    desk.pass(MINUTE).proof("r1").pass(MINUTE);
    // Seen before the proof, told after it.
    desk.tell(Signal::PolicyRevoked {
        observed_at: Some(begin),
    });
    assert_eq!(
        (desk.device.state, desk.device.release.restricted_at),
        (DeviceState::Quarantined, Some(begin))
    );
    // And an older one still does not move the mark back; one from the future does not lock out what follows.
    desk.tell(Signal::PolicyRevoked {
        observed_at: Some(WallTime(0)),
    });
    assert_eq!(desk.device.release.restricted_at, Some(begin));
    desk.tell(Signal::PolicyRevoked {
        observed_at: Some(WallTime(i64::MAX)),
    });
    assert_eq!(
        desk.device.release.restricted_at,
        Some(WallTime(desk.now.wall.0 + FUTURE_TOLERANCE_MS))
    );
    desk.pass(FUTURE_TOLERANCE_MS + 1).proof("r1");
    assert!(desk.released());
}

#[test]
fn a_gateway_whose_clock_is_slow_takes_no_proof_from_before_a_revocation() {
    // It is a minute and a half slow: an MDM whose clock is right dates everything ahead.
    let r = "r1".parse().unwrap();
    let mdm = |desk: &Desk| WallTime(desk.now.wall.0 + 90_000);
    let mut desk = Desk::new("office");
    // Seen, but the gateway could not take it (UNAVAILABLE); then revoked; then the MDM tries again what was not taken.
    let seen = mdm(&desk);
    desk.pass(30_000);
    let observed_at = Some(mdm(&desk));
    desk.tell(Signal::PolicyRevoked { observed_at }).pass(1000);
    assert_eq!(desk.refused(proof(&r, seen)), "STALE_SIGNAL");
    assert_eq!(desk.device.release.restricted_at, observed_at);
    // What was seen after it releases at once.
    let next = mdm(&desk);
    desk.tell(proof(&r, next));
    assert!(desk.released());
}

#[test]
fn the_required_revision_is_the_last_one_or_the_one_held() {
    let mut desk = Desk::new("office");
    desk.proof("any").publish("r1").publish("r2");
    // It holds what was never published, until its wave comes.
    desk.pass(MINUTE).proof("any");
    assert_eq!(desk.no_proof("other"), "UNKNOWN_POLICY_REVISION");
    desk.tell(Signal::Stale);
    assert_eq!(desk.is(), (DeviceState::Stale, StateReason::PolicyStale));
    assert_eq!(desk.no_proof("any"), "UNKNOWN_POLICY_REVISION");
    assert_eq!(desk.no_proof("r1"), "STALE_POLICY_REVISION");
    // The proof of the newer one may have been seen before the wave came.
    desk.pass(MINUTE);
    let (r2, before) = ("r2".parse().unwrap(), WallTime(desk.now.wall.0 - HOUR));
    desk.tell(proof(&r2, before));
    assert!(desk.released());
    // A release may go forward before its wave, never back.
    desk.publish("r3").publish("r4").proof("r3");
    assert_eq!(desk.no_proof("r2"), "STALE_POLICY_REVISION");
    desk.proof("r4").tell(Signal::Stale);
    assert!(desk.released(), "its wave finds it proven");
    // What was published before comes back as the last.
    desk.publish("r3").tell(Signal::Stale);
    assert_eq!(desk.no_proof("r4"), "STALE_POLICY_REVISION");
    desk.proof("r3");
    assert!(desk.released());
}

#[test]
fn a_renewal_needs_a_release_by_proof_that_is_in_force() {
    let mut desk = Desk::new("lab");
    assert_eq!(desk.refused(Signal::RenewLease), "NOT_RELEASED");
    desk.proof("r1").pass(HOUR - 1).tell(Signal::RenewLease).pass(HOUR - 1);
    assert!(desk.released());
    desk.pass(1);
    assert!(!desk.released());
    assert_eq!(desk.refused(Signal::RenewLease), "NOT_RELEASED");
    desk.due();
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::LeaseEnded));
    assert_eq!(desk.refused(Signal::RenewLease), "NOT_RELEASED");
    desk.proof("r1").publish("r2").tell(Signal::Stale);
    assert_eq!(desk.refused(Signal::RenewLease), "NOT_RELEASED");
    desk.tell(except(ExceptionKind::Release, 1));
    assert_eq!(desk.refused(Signal::RenewLease), "NOT_RELEASED");
    desk.tell(except(ExceptionKind::Block, 1));
    assert_eq!(desk.refused(Signal::RenewLease), "DEVICE_BLOCKED");
    desk.tell(Signal::Retire);
    assert_eq!(desk.refused(Signal::RenewLease), "DEVICE_RETIRED");
}

#[test]
fn the_proof_of_a_lease_that_ended_does_not_begin_another() {
    let mut desk = Desk::new("lab");
    let (r, seen) = ("r1".parse().unwrap(), desk.now.wall);
    desk.tell(proof(&r, seen)).pass(HOUR).due();
    assert_eq!(desk.refused(proof(&r, seen)), "STALE_SIGNAL");
    // One seen meanwhile does.
    desk.tell(proof(&r, WallTime(seen.0 + MINUTE)));
    assert!(desk.released());
}

#[test]
fn a_proof_that_is_dated_ahead_releases_once() {
    let r = "r1".parse().unwrap();
    let ahead = |desk: &Desk| WallTime(desk.now.wall.0 + FUTURE_TOLERANCE_MS);
    // A lease that ends within the two minutes, a revocation, and one after a second proof that is dated rightly.
    for ends in [Signal::LeaseEnded, REVOKED] {
        for again in [false, true] {
            let mut desk = Desk::new("lab");
            let seen = ahead(&desk);
            desk.tell(proof(&r, seen)).pass(1000);
            if again {
                let now = desk.now.wall;
                desk.tell(proof(&r, now)).pass(1000);
            }
            desk.tell(ends);
            assert_eq!(desk.refused(proof(&r, seen)), "STALE_SIGNAL", "{ends:?}, {again}");
            desk.pass(2);
            let next = ahead(&desk);
            desk.tell(proof(&r, next));
            assert!(desk.released());
        }
    }
    // A clock that is set back keeps nothing out for longer than that.
    let mut desk = Desk::new("lab");
    let seen = ahead(&desk);
    desk.tell(proof(&r, seen));
    desk.now.wall.0 -= 1_000_000;
    desk.tell(REVOKED).pass(2);
    let next = ahead(&desk);
    desk.tell(proof(&r, next));
    assert!(desk.released());
}

#[test]
fn a_device_whose_pool_is_gone_can_be_restricted_but_not_released() {
    let mut desk = Desk::new("office");
    desk.proof("r1");
    desk.device.full_service_pool = "gone".parse::<PoolName>().unwrap();
    assert!(!desk.released());
    assert_eq!(desk.no_proof("r1"), "UNKNOWN_POOL");
    assert_eq!(desk.refused(except(ExceptionKind::Release, 1)), "UNKNOWN_POOL");
    desk.tell(Signal::Start);
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::PoolRemoved));
    assert_eq!(&*desk.device.gateway_uri, "quarantine.vpn.example");
    desk.tell(REVOKED);
}

#[test]
fn retired_is_final() {
    let mut desk = Desk::new("office");
    desk.proof("r1").tell(Signal::Retire);
    let retired = desk.device.clone();
    for signal in [
        Signal::Retire,
        Signal::Start,
        Signal::Stale,
        Signal::LeaseEnded,
        Signal::DeadlinePassed,
        Signal::ExceptionOver,
        Signal::Restored,
        Signal::TurnedAway,
    ] {
        assert!(!desk.try_(signal).unwrap().changed, "{signal:?}");
    }
    for signal in [
        Signal::Connected,
        REVOKED,
        Signal::RenewLease,
        Signal::EndException,
        except(ExceptionKind::Release, 1),
        except(ExceptionKind::Block, 1),
    ] {
        assert_eq!(desk.refused(signal), "DEVICE_RETIRED", "{signal:?}");
    }
    assert_eq!(desk.no_proof("r1"), "DEVICE_RETIRED");
    assert_eq!(desk.device, retired);
}

#[test]
fn a_pool_can_demand_that_a_device_is_known_better() {
    let mut desk = Desk::new("office");
    desk.proof("r1");
    for (least, may) in [
        (Trust::Name, [true, true, true]),
        (Trust::VpnKey, [false, true, true]),
        (Trust::Certificate, [false, false, true]),
    ] {
        desk.config.pools[1].min_trust = least;
        let found =
            [Trust::Name, Trust::VpnKey, Trust::Certificate].map(|t| released_for(&desk.device, t, &desk.context()).is_some());
        assert_eq!(found, may, "{least:?}");
    }
    assert!(desk.released(), "the device is released all the same");
}

#[test]
fn a_restored_store_releases_nobody() {
    let mut desk = Desk::new("office");
    desk.publish("r1").proof("r1").pass(MINUTE);
    let seen = desk.now.wall;
    desk.pass(MINUTE).tell(Signal::Restored);
    assert_eq!(desk.is(), (DeviceState::Quarantined, StateReason::Restored));
    let r = "r1".parse().unwrap();
    assert_eq!(desk.refused(proof(&r, seen)), "STALE_SIGNAL");
    desk.pass(1).proof("r1");
    // It is a start, too: a block of another boot is measured once, whatever the wall clock does later.
    let mut blocked = desk.clone();
    blocked.tell(except(ExceptionKind::Block, 1));
    let wall = blocked.now.wall;
    blocked.reboot(wall).tell(Signal::Restored);
    assert_eq!(blocked.device.exception.as_ref().unwrap().holds.given, blocked.now);
    // What an operator has blocked stays so, what an operator has released does not.
    desk.tell(except(ExceptionKind::Block, 1)).tell(Signal::Restored);
    assert_eq!(desk.is(), (DeviceState::Blocked, StateReason::ExceptionBlock));
    desk.tell(except(ExceptionKind::Release, 1)).tell(Signal::Restored);
    assert!(!desk.released() && desk.device.exception.is_none());
}

#[test]
fn what_devices_share_is_kept_once() {
    let mut desk = Desk::new("office");
    desk.publish("r1").proof("r1");
    let mut loaded = Device {
        full_service_pool: "office".parse().unwrap(),
        gateway_uri: "office.vpn.example".into(),
        policy_revision: Some("r1".parse().unwrap()),
        release: Rare::default(),
        ..desk.device.clone()
    };
    share(&mut loaded, &desk.config, &desk.policies);
    assert!(Arc::ptr_eq(&loaded.gateway_uri, &desk.device.gateway_uri));
    let same = |a: &str, b: &str| std::ptr::eq(a, b);
    assert!(same(
        loaded.full_service_pool.as_str(),
        desk.device.full_service_pool.as_str()
    ));
    let revision = |d: &Device| d.policy_revision.clone().unwrap();
    assert!(same(revision(&loaded).as_str(), revision(&desk.device).as_str()));
}
