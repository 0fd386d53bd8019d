//! What a restore takes over from the database that it replaces: never less tight than the backup, nor than what is replaced.

use super::*;
use crate::model::{Aliases, Rare, Release};

fn taken(backup: &Desk, old: &Desk) -> (Device, Taken) {
    tightened(&backup.device, &old.device, old.now.wall)
}

/// As the daemon starts with it.
fn restored(desk: &Desk, device: Device) -> Desk {
    let mut desk = Desk {
        device,
        connected: false,
        ..desk.clone()
    };
    desk.tell(Signal::Restored);
    desk
}

#[test]
fn what_an_operator_has_shut_stays_shut() {
    let mut backup = Desk::new("office");
    backup.connect().proof("r1").pass(HOUR);
    let mut old = backup.clone();
    old.tell(except(ExceptionKind::Block, 20)).pass(HOUR);
    let (device, what) = taken(&backup, &old);
    assert_eq!((device.state, what.blocked, what.closed), (DeviceState::Blocked, true, false));
    let block = device.exception.clone().unwrap();
    assert_eq!((block.reason.as_str(), block.by.as_str()), ("travelling", "uid:0"));
    let mut new = restored(&old, device);
    assert_eq!(new.no_proof("r1"), "DEVICE_BLOCKED");
    new.pass(18 * HOUR).due();
    assert_eq!(new.no_proof("r1"), "DEVICE_BLOCKED", "until it ends");
    new.pass(HOUR).due().pass(1);
    assert!(new.proof("r1").released());
    // Of two blocks the later end; the backup's own stays where the old one has none any more.
    let mut longer = old.clone();
    longer.tell(except(ExceptionKind::Block, 40));
    let longest = |a: &Desk, b: &Desk| taken(a, b).0.exception.unwrap().holds.length_ms / 3_600_000;
    assert_eq!((longest(&old, &longer), longest(&longer, &old)), (40, 40));
    let mut ended = old.clone();
    ended.tell(Signal::EndException);
    assert_eq!(taken(&old, &ended).0.state, DeviceState::Blocked);
    // An exception that released in the backup is none.
    backup.tell(except(ExceptionKind::Release, 1));
    old.tell(Signal::Retire);
    let (device, what) = taken(&backup, &old);
    assert!(what.retired && device.exception.is_none() && device.release.lease.is_none());
    assert_eq!(restored(&old, device).no_proof("r1"), "DEVICE_RETIRED");
}

#[test]
fn aliases_that_were_withdrawn_do_not_come_back() {
    let [one, two] = [1, 2].map(|n| Fingerprint::new([n; 32]));
    let with = |certificates: &[Fingerprint]| {
        let mut desk = Desk::new("office");
        desk.device.aliases = Rare::new(Aliases {
            common_names: ["old-name".parse().unwrap()].into(),
            certificates: certificates.into(),
            ..Aliases::default()
        });
        desk.proof("r1").pass(HOUR);
        desk
    };
    let (device, what) = taken(&with(&[one, two]), &with(&[two]));
    assert_eq!((&*device.aliases.certificates, what.closed), (&[two][..], false));
    assert!(what.withdrawn);
    // One that came since is none of the backup's; with none left, it is to be registered anew.
    let backup = with(&[one]);
    let (device, what) = taken(&backup, &with(&[two]));
    assert!(device.aliases.certificates.is_empty() && what.closed);
    let mut new = restored(&backup, device);
    new.pass(1);
    assert_eq!(new.no_proof("r1"), "ENROLMENT_CLOSED");
    // However wrong the clock is.
    new.now.wall = WallTime(1);
    assert!(may_arrive(&new.device, &new.context()).is_err());
    new.now.wall = backup.now.wall;
    new.window(None, None);
    assert!(new.pass(2).proof("r1").released(), "registered anew");
}

#[test]
fn who_was_known_by_a_certificate_or_a_key_since_is_not_known_by_its_name_again() {
    let backup = {
        let mut desk = Desk::new("office");
        desk.proof("r1").pass(HOUR);
        desk
    };
    let aliases = [
        Aliases {
            certificates: [Fingerprint::new([1; 32])].into(),
            ..Aliases::default()
        },
        Aliases {
            vpn_keys: [VpnKey([1; 32])].into(),
            ..Aliases::default()
        },
    ];
    for since in aliases {
        let mut old = backup.clone();
        old.device.aliases = Rare::new(since);
        let (device, what) = taken(&backup, &old);
        assert!(what.closed && !what.withdrawn);
        let mut new = restored(&backup, device);
        assert_eq!(new.pass(1).no_proof("r1"), "ENROLMENT_CLOSED");
    }
}

#[test]
fn another_pool_has_to_be_registered_anew() {
    let (mut backup, mut old) = (Desk::new("lab"), Desk::new("office"));
    backup.proof("r1");
    old.proof("r1");
    let (device, what) = taken(&backup, &old);
    assert!(what.closed && device.full_service_pool.as_str() == "lab");
    let mut new = restored(&backup, device);
    assert_eq!(new.pass(1).no_proof("r1"), "ENROLMENT_CLOSED");
}

#[test]
fn who_is_not_in_the_backup_brings_its_restriction_and_nothing_else() {
    let mut old = Desk::new("office");
    let beyond = |desk: &Desk| unregistered(&desk.device, desk.now.wall);
    old.proof("r1");
    assert_eq!(beyond(&old), None, "nothing restricts it");
    let seen = old.now.wall;
    old.pass(MINUTE).tell(REVOKED).pass(MINUTE).proof("r1");
    let mut new = restored(&old, beyond(&old).unwrap());
    assert_eq!(new.pass(1).no_proof("r1"), "ENROLMENT_CLOSED");
    new.window(None, None);
    let r = "r1".parse().unwrap();
    assert_eq!(new.refused(proof(&r, seen)), "STALE_SIGNAL", "what was seen before it");
    old.tell(except(ExceptionKind::Block, 5));
    let device = beyond(&old).unwrap();
    assert_eq!(
        (device.state, device.exception.as_ref()),
        (DeviceState::Blocked, old.device.exception.as_ref())
    );
    old.tell(Signal::Retire);
    assert_eq!(beyond(&old).unwrap().state, DeviceState::Retired);
}

#[test]
fn a_proof_that_was_dated_ahead_is_spent() {
    let backup = Desk::new("office");
    let mut old = backup.clone();
    let r = "r1".parse().unwrap();
    let ahead = WallTime(old.now.wall.0 + MINUTE);
    old.tell(proof(&r, ahead));
    let (device, what) = taken(&backup, &old);
    assert!(what.marked);
    assert_eq!(device.release.restricted_at, Some(ahead));
    let mut new = restored(&old, device);
    new.pass(1);
    assert_eq!(new.refused(proof(&r, ahead)), "STALE_SIGNAL");
}

/// Random lives, cut in two: the backup is of the middle. Whatever is told afterwards, what was taken over lets through nothing that either of the
/// two alone would not.
#[test]
fn what_is_taken_over_is_as_tight_as_both() {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut released, mut refused) = (0, 0);
    for _ in 0..3_000 {
        let mut desk = Desk::new("office");
        let (steps, cut) = (2 + random(10), random(8));
        let mut backup = desk.clone();
        let mut times = vec![desk.now.wall];
        for step in 0..steps {
            if step == cut.min(steps - 1) {
                backup = desk.clone();
            }
            live(&mut desk, random(11), random(40));
            times.push(desk.now.wall);
        }
        desk.pass(MINUTE);
        let (device, _) = taken(&backup, &desk);
        let mut three = [backup.device.clone(), desk.device.clone(), device].map(|d| restored(&desk, d));
        for pass in [0, 1, random(60) * HOUR.unsigned_abs()] {
            for desk in &mut three {
                desk.pass(i64::try_from(pass).unwrap()).due();
            }
            times.push(three[0].now.wall);
            times.push(WallTime(three[0].now.wall.0 + MINUTE));
            for seen in &times {
                let r = "r1".parse().unwrap();
                let after = three.each_ref().map(|d| {
                    let step = d.try_(proof(&r, *seen));
                    step.is_ok_and(|s| s.device.state == DeviceState::Released)
                });
                let [backup, old, new] = after;
                assert!(
                    !new || (backup && old),
                    "{after:?} at {seen:?}: {:#?}",
                    three.each_ref().map(|d| &d.device)
                );
                released += u32::from(new);
                refused += u32::from(!new && backup && old);
            }
            let arrive = three.each_ref().map(|d| may_arrive(&d.device, &d.context()).is_ok());
            assert!(
                !arrive[2] || (arrive[0] && arrive[1]),
                "{:#?}",
                three.each_ref().map(|d| &d.device)
            );
        }
        let marks = three.each_ref().map(|d| d.device.release.restricted_at);
        let retired = three[2].device.state == DeviceState::Retired;
        assert!(retired || marks[2] >= marks[0].max(marks[1]));
    }
    // Mostly it is not tighter than that either.
    assert!(released > 2_000 && refused < released / 4, "{released} {refused}");
}

fn live(desk: &mut Desk, what: u64, n: u64) {
    let r: PolicyRevision = "r1".parse().unwrap();
    let signal = match what {
        0 => Signal::Connected,
        1 | 2 => proof(&r, desk.now.wall),
        3 => REVOKED,
        4 => except(ExceptionKind::Block, 1 + n),
        5 => except(ExceptionKind::Release, 1 + n),
        6 => Signal::EndException,
        7 if n == 0 => Signal::Retire,
        8 if desk.device.state != DeviceState::Retired => {
            let n = i64::try_from(n).unwrap_or(0);
            return desk.window(Some((n - 30) * HOUR), Some((n + 30) * HOUR));
        }
        _ => Signal::Start,
    };
    if let Ok(step) = desk.try_(signal) {
        desk.device = step.device;
    }
    desk.pass(i64::try_from(n).unwrap_or(0) * 7 * MINUTE).due();
    assert_ne!(desk.device.release.restricted_at, Some(Release::UNTIMED));
}

#[test]
fn a_deadlines_block_outlasts_the_registration_that_a_restore_asks_for() {
    let mut old = Desk::new("office");
    old.connect().pass(48 * HOUR).due();
    assert_eq!(old.is(), (DeviceState::Blocked, StateReason::DeadlinePassed));
    let mut under = old.clone();
    under.tell(except(ExceptionKind::Block, 20));
    for (old, hours) in [(old, 0), (under, 20)] {
        let mut backup = Desk::new("office");
        backup.device.full_service_pool = "lab".parse().unwrap();
        let (device, what) = taken(&backup, &old);
        assert!(what.closed);
        for device in [device, unregistered(&old.device, old.now.wall).unwrap()] {
            let mut new = restored(&old, device);
            new.window(None, None);
            new.connect().pass(hours * HOUR).due();
            assert_eq!(new.is(), (DeviceState::Blocked, StateReason::DeadlinePassed));
            assert_eq!(new.no_proof("r1"), "QUARANTINE_DEADLINE");
            // Another one after that ends it.
            new.window(None, Some(1000 * HOUR));
            assert_eq!(new.is(), (DeviceState::Quarantined, StateReason::NewWindow));
            assert!(new.pass(1).proof("r1").released());
        }
    }
}
