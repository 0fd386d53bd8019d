//! What is said of a device in each state: what a release takes and what was found, what comes next, what to do.

use std::{net::IpAddr, path::Path};

use super::*;
use crate::{
    controller::DeviceView,
    model::{Exception, FinalKey, KeyHash, Lease, Now, Offer, PolicyRevision, PoolId, Session, SessionId, Window},
};

const HOUR: i64 = 3_600_000;
/// 2027-01-15T08:00:00Z
const NOW: WallTime = WallTime(1_800_000_000_000);

fn ahead(hours: i64) -> WallTime {
    WallTime(NOW.0 + hours * HOUR)
}

fn config() -> Config {
    Config::parse(Path::new("lazaret.toml"), include_str!("../../../deploy/lazaret.toml")).unwrap()
}

/// `phone`, three hours in its state.
fn dossier(state: DeviceState, reason: StateReason) -> Dossier {
    let mut device = Device::new("phone".parse().unwrap(), "staff".parse().unwrap(), ahead(-48));
    (device.state, device.state_reason, device.state_since) = (state, reason, ahead(-3));
    Dossier {
        changed_by: "mdm-2".to_owned(),
        device: DeviceView {
            device,
            lease_ends_at: None,
            deadline_at: None,
            offer_ends_at: None,
            exception_ends_at: None,
            required: None,
            sessions: Vec::new(),
        },
        required: None,
        publication: None,
        awaits_wave: false,
        standstill: None,
        deadline_at: None,
        next: None,
        held_back: false,
        clock_behind: None,
        entries: Vec::new(),
    }
}

fn connected(mut dossier: Dossier, below_min_trust: bool) -> Dossier {
    dossier.device.sessions.push(SessionView {
        session: Session {
            id: SessionId(9),
            device: Some("phone".parse().unwrap()),
            addresses: IpAddr::from([10, 66, 0, 5]).into(),
            interface: "tun0".parse().unwrap(),
            source: "vpn-1".parse().unwrap(),
            trust: Trust::Name,
            opened_at: ahead(-1),
        },
        current_pool: PoolId(1),
        below_min_trust,
    });
    dossier
}

fn lease() -> Lease {
    Lease {
        given: Now {
            wall: NOW,
            boot: crate::model::BootTime(0),
            boot_id: 1,
        },
        length_ms: 1,
    }
}

fn revision(text: &str) -> PolicyRevision {
    text.parse().unwrap()
}

fn of(dossier: &Dossier) -> Answer {
    answer(dossier, &config(), NOW)
}

/// What was found for a subject, and whether it will do.
fn found<'a>(answer: &'a Answer, subject: &str) -> (&'a str, bool) {
    let r = answer.requirements.iter().find(|r| r.subject == subject);
    let r = r.unwrap_or_else(|| panic!("nothing about {subject}: {answer:#?}"));
    (&r.found, r.met)
}

#[test]
fn a_device_that_has_only_been_registered() {
    let a = of(&dossier(DeviceState::Registered, StateReason::Registered));
    assert_eq!(
        a.summary,
        "phone is registered since 2027-01-15T05:00:00Z (3h): it was registered, and has never connected."
    );
    assert_eq!(found(&a, "registration"), ("registered", true));
    assert_eq!(found(&a, "window"), ("always open", true));
    assert_eq!(found(&a, "policy_revision"), ("none was ever proved", false));
    assert_eq!(found(&a, "session"), ("no live session", false));
    assert!(
        !a.requirements
            .iter()
            .any(|r| ["deadline", "exception", "policy_key", "trust"].contains(&r.subject))
    );
    assert_eq!((a.next, a.advice.len()), (vec![], 1));
    assert!(
        a.advice[0].starts_with("connect the device; have its policy applied"),
        "{:?}",
        a.advice
    );
}

#[test]
fn windows_that_are_not_open() {
    let with = |window, enrolled_at| {
        let mut d = dossier(DeviceState::Registered, StateReason::Registered);
        (*d.device.device.enrolment.window, d.device.device.enrolment.enrolled_at) = (window, enrolled_at);
        of(&d)
    };
    let window = |from: Option<i64>, to: Option<i64>| Window {
        not_before: from.map(ahead),
        not_after: to.map(ahead),
    };
    let early = with(window(Some(2), Some(30)), None);
    assert_eq!(found(&early, "window"), ("opens at 2027-01-15T10:00:00Z (in 2h)", false));
    let next: Vec<&str> = early.next.iter().map(|(_, what)| what.as_str()).collect();
    assert_eq!(next, ["its enrolment window opens", "its enrolment window closes"]);
    assert_eq!(
        early.advice,
        ["give it another enrolment window: lazaret device register phone --not-after 2d"]
    );
    let late = with(window(None, Some(-1)), None);
    assert_eq!(found(&late, "window"), ("closed at 2027-01-15T07:00:00Z", false));
    assert_eq!(
        (late.next.len(), late.advice.len()),
        (0, 1),
        "what is over does not come: {late:?}"
    );
    let open = with(window(Some(-5), Some(25)), None);
    assert_eq!(
        found(&open, "window"),
        ("open until 2027-01-16T09:00:00Z (1day 1h left)", true)
    );
    // At its very end it is open; who has enrolled needs none.
    assert!(found(&with(window(None, Some(0)), None), "window").1);
    let enrolled = with(window(None, Some(-1)), Some(ahead(-2)));
    assert_eq!(found(&enrolled, "window"), ("enrolled at 2027-01-15T06:00:00Z", true));
    assert_eq!(enrolled.next, []);
}

#[test]
fn quarantine_its_deadline_and_the_keys() {
    let mut d = connected(dossier(DeviceState::PolicyPending, StateReason::PolicyOffered), false);
    d.device.deadline_at = Some(ahead(47));
    d.next = Some((ahead(47), "deadline_passed"));
    d.required = Some(revision("r2"));
    d.device.device.policy_revision = Some(revision("r1"));
    d.device.offer_ends_at = Some(WallTime(NOW.0 + 60_000));
    d.device.device.keys.offer = Some(Offer {
        key: KeyHash([0; 32]),
        revision: revision("r2"),
        holds: lease(),
    });
    let a = of(&d);
    assert_eq!(found(&a, "deadline"), ("1day 23h left, until 2027-01-17T07:00:00Z", true));
    let policy = a.requirements.iter().find(|r| r.subject == "policy_revision").unwrap();
    assert_eq!(
        (policy.required.as_str(), policy.found.as_str()),
        ("policy revision r2, applied", "r1 was proved last")
    );
    assert_eq!(
        found(&a, "policy_key"),
        ("a temporary key for revision r2 is out until 2027-01-15T08:01:00Z", false)
    );
    assert_eq!(
        found(&a, "session"),
        ("10.66.0.5 on tun0, known by a name that the VPN server passes on", true)
    );
    let at: Vec<WallTime> = a.next.iter().map(|(at, _)| *at).collect();
    assert_eq!(at, [WallTime(NOW.0 + 60_000), ahead(47)], "soonest first");
    assert!(
        a.next[1].1.contains("blocked") && a.advice[0].contains("acknowledge"),
        "{a:#?}"
    );

    // The key's time is over, and the deadline's.
    d.device.offer_ends_at = Some(NOW);
    d.device.deadline_at = Some(NOW);
    let a = of(&d);
    assert_eq!(
        found(&a, "policy_key").0,
        "the temporary key for revision r2 ended at 2027-01-15T08:00:00Z"
    );
    assert_eq!(found(&a, "deadline"), ("passed at 2027-01-15T08:00:00Z", false));
    let keys = &mut d.device.device.keys;
    keys.offer = None;
    keys.final_key = Some(FinalKey {
        key: KeyHash([0; 32]),
        revision: revision("r2"),
        offered: None,
    });
    assert_eq!(found(&of(&d), "policy_key"), ("the final key for revision r2 is out", true));

    // Where only keys count, that is said although none is out.
    let mut config = config();
    config.proofs.direct_signal = false;
    let a = answer(&dossier(DeviceState::Quarantined, StateReason::Connected), &config, NOW);
    assert_eq!(found(&a, "policy_key"), ("no key is out", false));
    assert!(a.advice[0].contains("reported with the final key"), "{:?}", a.advice);
}

/// A handshake that cannot come to a release by itself is not waited for.
#[test]
fn an_offer_that_leads_nowhere_has_to_be_made_anew() {
    let advice = |change: &dyn Fn(&mut Dossier)| {
        let mut d = connected(dossier(DeviceState::PolicyPending, StateReason::PolicyStale), false);
        d.required = Some(revision("r2"));
        d.device.offer_ends_at = Some(ahead(1));
        d.device.device.keys.offer = Some(Offer {
            key: KeyHash([0; 32]),
            revision: revision("r2"),
            holds: lease(),
        });
        change(&mut d);
        let answer = of(&d);
        assert!(
            answer
                .summary
                .contains("its wave of a newer policy revision has come, and a policy is offered")
        );
        answer.advice.join("; ")
    };
    assert!(advice(&|_| ()).contains("has to acknowledge"));
    let anew = "have its policy applied at revision r2";
    assert!(
        advice(&|d| d.device.offer_ends_at = Some(NOW)).starts_with(anew),
        "its key has ended"
    );
    assert!(
        advice(&|d| d.required = Some(revision("r3"))).contains("at revision r3"),
        "it is too old"
    );
    let acknowledged = |r: &'static str| {
        move |d: &mut Dossier| {
            d.device.device.keys.offer = None;
            d.device.device.keys.final_key = Some(FinalKey {
                key: KeyHash([0; 32]),
                revision: revision(r),
                offered: None,
            });
        }
    };
    assert!(advice(&acknowledged("r2")).starts_with("the device has acknowledged revision r2"));
    assert!(advice(&acknowledged("r1")).starts_with(anew), "its key proves an older one");
}

#[test]
fn what_no_proof_gets_past() {
    let mut d = dossier(DeviceState::Quarantined, StateReason::PolicyRevoked);
    d.device.device.release.restricted_at = Some(ahead(-1));
    assert!(
        !of(&d)
            .requirements
            .iter()
            .any(|r| ["date", "clock", "pool"].contains(&r.subject))
    );
    d.device.device.release.restricted_at = Some(ahead(24));
    let a = of(&d);
    let date = a.requirements.iter().find(|r| r.subject == "date").unwrap();
    assert!(
        !date.met && date.required == "proof seen after 2027-01-16T08:00:00Z",
        "{a:#?}"
    );
    d.clock_behind = Some(ahead(2));
    let a = of(&d);
    assert_eq!(found(&a, "clock"), ("2h behind", false));
    assert!(
        a.advice[0].starts_with("the wall clock is behind") && a.advice.len() == 2,
        "{a:#?}"
    );
    d.clock_behind = None;
    d.device.device.full_service_pool = "gone".parse().unwrap();
    let a = of(&d);
    assert_eq!(found(&a, "pool"), ("no such pool", false));
    assert!(a.advice[0].contains("lazaret device register phone --pool"), "{a:#?}");
}

#[test]
fn what_is_released_and_what_may_end_it() {
    let mut d = connected(dossier(DeviceState::Released, StateReason::PolicyApplied), false);
    d.next = Some((ahead(9), "lease_ended"));
    let a = of(&d);
    assert!(a.requirements.iter().all(|r| r.met), "{a:#?}");
    assert!(
        a.next[0].1.starts_with("the lease ends unless the MDM renews it") && a.advice.is_empty(),
        "{a:#?}"
    );
    d.awaits_wave = true;
    assert!(of(&d).advice[0].contains("its wave has not come; the device becomes stale when it does"));
    d.standstill = Some("the ceiling is full".to_owned());
    assert_eq!(of(&d).advice[1], "its wave does not come now: the ceiling is full");
    // Under an exception lies the proof.
    d.device.device.release.proved = Some(lease().given);
    d.next = Some((ahead(1), "exception_ended"));
    assert!(
        of(&d).next[0].1.contains("stays released by what it has proved"),
        "{:?}",
        of(&d).next
    );
    d.next = Some((ahead(9), "lease_ended"));
    let mut away = d.clone();
    away.device.sessions.clear();
    away.publication = Some(crate::model::Publication {
        revision: revision("r2"),
        at: NOW,
        ceiling: 1,
        rate: 1,
        paused: false,
    });
    assert_eq!(of(&away).advice[1], "it is not connected: its wave comes when it is");
    d.held_back = true;
    assert!(
        of(&d).advice[0].contains("wall clock is behind"),
        "what holds it back comes first"
    );
    let away = of(&dossier(DeviceState::Released, StateReason::PolicyApplied));
    assert_eq!(
        away.advice,
        ["the device is not connected here; its release applies when it connects"]
    );
    // Its session is known too badly.
    let a = of(&connected(dossier(DeviceState::Released, StateReason::PolicyApplied), true));
    assert!(
        !found(&a, "trust").1 && a.advice[0].starts_with("session 9 stays in quarantine whatever is proved"),
        "{a:#?}"
    );
}

#[test]
fn exceptions_blocks_and_the_end() {
    let mut d = dossier(DeviceState::Blocked, StateReason::ExceptionBlock);
    let exception = |kind| Exception {
        kind,
        reason: "lost".to_owned(),
        by: "uid:0".to_owned(),
        holds: lease(),
    };
    d.device.device.exception = Some(Box::new(exception(ExceptionKind::Block)));
    d.device.exception_ends_at = Some(ahead(1));
    d.next = Some((ahead(1), "exception_ended"));
    let a = of(&d);
    assert_eq!(
        found(&a, "exception"),
        ("block by uid:0 until 2027-01-15T09:00:00Z: lost", false)
    );
    assert_eq!(
        a.advice,
        ["end the block if it is no longer wanted: lazaret exception end phone"]
    );
    assert_eq!(a.next[0].1, "the exception ends; the device is quarantined");

    let mut released = dossier(DeviceState::Released, StateReason::ExceptionRelease);
    released.device.device.exception = Some(Box::new(exception(ExceptionKind::Release)));
    let a = of(&released);
    assert!(found(&a, "exception").1);
    assert!(!found(&a, "policy_revision").1, "an exception is no proof");

    for reason in [StateReason::DeadlinePassed, StateReason::OutsideWindow] {
        let a = of(&dossier(DeviceState::Blocked, reason));
        assert!(a.advice[0].contains("another enrolment window"), "{a:#?}");
    }
    let a = of(&dossier(DeviceState::Retired, StateReason::Retired));
    assert_eq!(found(&a, "registration"), ("retired", false));
    assert_eq!(a.advice, ["register the device under a new id"]);
}

#[test]
fn times_that_cannot_be_written_are_no_crash() {
    for at in [i64::MIN, -1, i64::MAX] {
        let mut d = dossier(DeviceState::Quarantined, StateReason::Connected);
        d.device.device.state_since = WallTime(at);
        d.device.device.enrolment.window.not_after = Some(WallTime(at));
        d.device.deadline_at = Some(WallTime(at));
        let a = of(&d);
        assert!(a.summary.contains(&format!("{at} ms")), "{}", a.summary);
    }
}
