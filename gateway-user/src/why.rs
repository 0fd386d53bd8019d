//! Why a device is in its state: what is known about it, as an answer that fits on one screen. Pure: it reads no clock, decides nothing, and
//! says of each thing that a release takes what was found.

use std::{
    borrow::Cow,
    time::{Duration, UNIX_EPOCH},
};

use crate::{
    config::{AfterDeadline, Config, PoolKind},
    controller::{Dossier, SessionView},
    model::{Device, DeviceState, ExceptionKind, PolicyRevision, StateReason, Trust, WallTime, Window},
};

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The state, since when and why.
    pub summary: String,
    /// Who brought it into this state; empty: that is too long ago.
    pub changed_by: String,
    /// What a release takes.
    pub requirements: Vec<Requirement>,
    /// What comes by itself, soonest first.
    pub next: Vec<(WallTime, String)>,
    /// What to do; empty: nothing.
    pub advice: Vec<String>,
}

/// One thing that a release takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// For programs.
    pub subject: &'static str,
    /// For people.
    pub required: String,
    /// For people.
    pub found: String,
    /// It is fulfilled.
    pub met: bool,
}

/// Explains.
#[must_use]
pub fn answer(dossier: &Dossier, config: &Config, now: WallTime) -> Answer {
    let device = &dossier.device.device;
    Answer {
        summary: summary(device, now),
        changed_by: dossier.changed_by.clone(),
        requirements: requirements(dossier, config, now),
        next: next(dossier, now),
        advice: advice(dossier, config, now),
    }
}

fn summary(device: &Device, now: WallTime) -> String {
    let lasted = span(now.0.saturating_sub(device.state_since.0));
    format!(
        "{} is {} since {} ({lasted}): {}.",
        device.id,
        device.state.as_str(),
        time(device.state_since),
        because(device)
    )
}

fn because(device: &Device) -> Cow<'static, str> {
    let text = match device.state_reason {
        StateReason::Registered => "it was registered, and has never connected",
        StateReason::Connected => "it has connected, and its policy is not applied yet",
        StateReason::PolicyOffered => "a policy is offered to it, and not yet acknowledged or applied",
        StateReason::PolicyApplied => {
            let revision = device.policy_revision.as_ref();
            return revision.map_or("its policy was reported as applied".into(), |r| {
                format!("policy revision {r} was reported as applied").into()
            });
        }
        StateReason::PolicyRevoked => "its policy was reported to hold no longer",
        StateReason::PolicyStale if device.state == DeviceState::PolicyPending => {
            "its wave of a newer policy revision has come, and a policy is offered to it"
        }
        StateReason::PolicyStale => "its wave of a newer policy revision has come",
        StateReason::LeaseEnded => "its lease ended without being renewed",
        StateReason::DeadlinePassed => "its deadline in quarantine has passed",
        StateReason::OutsideWindow => "it arrived outside its enrolment window",
        StateReason::ExceptionRelease => "an operator released it by an exception",
        StateReason::ExceptionBlock => "an operator blocked it",
        StateReason::ExceptionEnded => "an operator's exception ended",
        StateReason::NewWindow => "it was registered with another enrolment window",
        StateReason::PoolRemoved => "the configuration no longer has its full-service pool",
        StateReason::Restored => "the store was restored from a backup: every device needs fresh proof",
        StateReason::Retired => "it is no longer managed",
    };
    text.into()
}

fn requirements(dossier: &Dossier, config: &Config, now: WallTime) -> Vec<Requirement> {
    let view = &dossier.device;
    let device = &view.device;
    let mut all = Vec::new();
    let mut add = |subject, required: String, found: String, met| {
        all.push(Requirement {
            subject,
            required,
            found,
            met,
        });
    };
    let retired = device.state == DeviceState::Retired;
    let managed = if retired { "retired" } else { "registered" };
    add("registration", "a registration".into(), managed.into(), !retired);
    let (found, open) = window(device, now);
    add("window", "enrolled, or its enrolment window open".into(), found, open);
    if config
        .pool(&device.full_service_pool)
        .is_none_or(|p| p.kind != PoolKind::FullService)
    {
        let required = format!("its full-service pool {} in the configuration", device.full_service_pool);
        add("pool", required, "no such pool".into(), false);
    }
    if let Some(last) = dossier.clock_behind {
        let found = format!("{} behind", span(last.0.saturating_sub(now.0)));
        let required = format!("a clock past the last commit, {}", time(last));
        add("clock", required, found, false);
    }
    if let Some(at) = dated_ahead(device, now).filter(|_| dossier.clock_behind.is_none()) {
        let found = format!(
            "it is {} now: a clock has run ahead, the source's or this gateway's",
            time(now)
        );
        add("date", format!("proof seen after {}", time(at)), found, false);
    }
    if let Some(end) = view.deadline_at {
        let passed = end <= now;
        let late = passed && config.devices.after_deadline == AfterDeadline::Block;
        let found = if passed && !late {
            format!("passed at {}, which is only reported", time(end))
        } else if late {
            format!("passed at {}", time(end))
        } else {
            format!("{} left, until {}", span(end.0 - now.0), time(end))
        };
        add("deadline", "enrolled before its deadline in quarantine".into(), found, !late);
    }
    let exception = device.exception.as_ref();
    if let Some(e) = exception {
        let until = view
            .exception_ends_at
            .map(|t| format!(" until {}", time(t)))
            .unwrap_or_default();
        let (required, met) = match e.kind {
            ExceptionKind::Release => ("an exception, in place of proof", true),
            ExceptionKind::Block => ("no block by an operator", false),
        };
        let found = format!("{} by {}{until}: {}", e.kind.as_str(), e.by, e.reason);
        add("exception", required.into(), found, met);
    }
    let excepted = exception.is_some_and(|e| e.kind == ExceptionKind::Release);
    let by_proof = device.state == DeviceState::Released && !excepted;
    let held = device.policy_revision.as_ref();
    let required = dossier.required.as_ref();
    let found = held.map_or_else(|| "none was ever proved".into(), |r| format!("{r} was proved last"));
    let required = required.map_or_else(
        || "any policy revision, applied".into(),
        |r| format!("policy revision {r}, applied"),
    );
    add("policy_revision", required, found, by_proof);
    if !config.proofs.direct_signal || device.keys.offer.is_some() || device.keys.final_key.is_some() {
        let (found, met) = key(dossier, by_proof, now);
        add("policy_key", "the final policy key with the proof".into(), found, met);
    }
    for session in view.sessions.iter().filter(|s| s.below_min_trust) {
        let min = config.pool(&device.full_service_pool).map_or(Trust::Name, |p| p.min_trust);
        add(
            "trust",
            format!("a session known by {}", known_by(min)),
            trust(session),
            false,
        );
    }
    let live = view.sessions.len();
    let found = if live == 0 {
        "no live session".into()
    } else {
        sessions(&view.sessions)
    };
    add("session", "a live session, to be in force".into(), found, live > 0);
    all
}

fn window(device: &Device, now: WallTime) -> (String, bool) {
    let window = *device.enrolment.window;
    match (device.enrolment.enrolled_at, window.not_before, window.not_after) {
        (Some(at), ..) => (format!("enrolled at {}", time(at)), true),
        (None, Some(from), _) if now < from => (format!("opens at {} (in {})", time(from), span(from.0 - now.0)), false),
        (None, _, Some(to)) if now > to => (format!("closed at {}", time(to)), false),
        (None, _, Some(to)) => (format!("open until {} ({} left)", time(to), span(to.0 - now.0)), true),
        (None, ..) => ("always open".into(), true),
    }
}

fn key(dossier: &Dossier, by_proof: bool, now: WallTime) -> (String, bool) {
    let keys = &dossier.device.device.keys;
    match (&keys.final_key, &keys.offer) {
        (_, Some(offer)) => {
            let end = dossier.device.offer_ends_at.unwrap_or(now);
            let found = if end <= now {
                format!("the temporary key for revision {} ended at {}", offer.revision, time(end))
            } else {
                format!("a temporary key for revision {} is out until {}", offer.revision, time(end))
            };
            (found, by_proof)
        }
        (Some(key), None) => (format!("the final key for revision {} is out", key.revision), true),
        (None, None) => ("no key is out".into(), by_proof),
    }
}

fn next(dossier: &Dossier, now: WallTime) -> Vec<(WallTime, String)> {
    let view = &dossier.device;
    let device = &view.device;
    let mut next = Vec::new();
    if let Some((at, what)) = dossier.next {
        let sentence = match what {
            "exception_ended" if device.release.proved.is_some() => {
                "the exception ends; the device stays released by what it has proved, if that is still good, or is quarantined"
            }
            "exception_ended" if view.deadline_at.is_some_and(|end| end <= at) => {
                "the exception ends; the device is past its deadline"
            }
            "exception_ended" => "the exception ends; the device is quarantined",
            "deadline_passed" => "the deadline in quarantine passes; the device is blocked",
            _ => "the lease ends unless the MDM renews it; the device is quarantined",
        };
        next.push((at, sentence.to_owned()));
    }
    let waits = device.enrolment.enrolled_at.is_none() && device.state != DeviceState::Retired;
    let window = *device.enrolment.window;
    let bounds = [
        (window.not_before, "its enrolment window opens"),
        (window.not_after, "its enrolment window closes"),
    ];
    next.extend(
        bounds
            .into_iter()
            .filter(|_| waits)
            .filter_map(|(at, what)| Some((at?, what.to_owned()))),
    );
    next.extend(view.offer_ends_at.map(|at| {
        (
            at,
            "the temporary policy key ends; the MDM has to offer the policy again".to_owned(),
        )
    }));
    next.retain(|(at, _)| *at > now);
    next.sort();
    next
}

fn advice(dossier: &Dossier, config: &Config, now: WallTime) -> Vec<String> {
    let view = &dossier.device;
    let device = &view.device;
    let id = &device.id;
    let mut advice = Vec::new();
    let revision = dossier
        .required
        .as_ref()
        .map_or_else(String::new, |r| format!(" at revision {r}"));
    let closed = !window(device, now).1;
    let renew_window = format!("give it another enrolment window: lazaret device register {id} --not-after 2d");
    let proof = if config.proofs.direct_signal {
        format!("have its policy applied{revision}; the MDM then reports it (ReportPolicyApplied)")
    } else {
        format!("let the MDM offer its policy{revision}, have it acknowledged and applied, and reported with the final key")
    };
    let unfit = config
        .pool(&device.full_service_pool)
        .is_none_or(|p| p.kind != PoolKind::FullService);
    if unfit && device.state != DeviceState::Retired {
        advice.push(format!(
            "register it with a pool of kind full-service that the configuration has: lazaret device register {id} --pool NAME"
        ));
    }
    if dossier.clock_behind.is_some() && !matches!(device.state, DeviceState::Released | DeviceState::Retired) {
        advice.push(
            "the wall clock is behind the last commit: set it right; until it has passed it, proof dated rightly is refused, but for the final key of a policy that is offered anew"
                .to_owned(),
        );
    }
    if let Some(at) = dated_ahead(device, now).filter(|_| dossier.clock_behind.is_none()) {
        advice.push(format!(
            "proof is refused until {}, since the last restriction is dated then; if this gateway's clock had run ahead: lazaret store restore --help",
            time(at)
        ));
    }
    match device.state {
        DeviceState::Released if dossier.held_back => advice.push(
            "the wall clock is behind the last commit, so that the release waits: set the clock right, or let the MDM offer the policy anew, have it acknowledged, and report it with the final key, which needs no date"
                .to_owned(),
        ),
        DeviceState::Released if dossier.awaits_wave => {
            let publication = dossier.publication.as_ref();
            let newer = publication.map_or_else(String::new, |p| format!(" {}", p.revision));
            advice.push(format!(
                "a newer policy revision{newer} is published: its wave has not come; the device becomes stale when it does, unless it proves it first"
            ));
            if view.sessions.is_empty() && publication.is_some_and(|p| p.ceiling > 0 || p.rate > 0) {
                advice.push("it is not connected: its wave comes when it is".to_owned());
            } else {
                advice.extend(dossier.standstill.as_ref().map(|why| format!("its wave does not come now: {why}")));
            }
        }
        DeviceState::Released => {}
        DeviceState::Retired => advice.push("register the device under a new id".to_owned()),
        DeviceState::Blocked => advice.push(match device.state_reason {
            StateReason::ExceptionBlock => format!("end the block if it is no longer wanted: lazaret exception end {id}"),
            StateReason::DeadlinePassed if *device.enrolment.window == Window::CLOSED => format!(
                "register it anew, since a restore has closed it; that leaves its deadline's block, which another enrolment window ends after it: lazaret device register {id} --not-after 2d"
            ),
            _ => renew_window,
        }),
        _ if closed => advice.push(renew_window),
        DeviceState::Registered => advice.push(format!("connect the device; {proof}")),
        DeviceState::PolicyPending => advice.push(handed_over(dossier, now).unwrap_or(proof)),
        DeviceState::Quarantined | DeviceState::Stale => advice.push(proof),
    }
    for session in view.sessions.iter().filter(|s| s.below_min_trust) {
        advice.push(format!(
            "session {} stays in quarantine whatever is proved: register the device's certificate or VPN key, and let it connect with that",
            session.session.id
        ));
    }
    if view.sessions.is_empty() && device.state == DeviceState::Released {
        advice.push("the device is not connected here; its release applies when it connects".to_owned());
    }
    advice
}

/// When its last restriction is dated, if that is yet to come. A source's clock may be ahead by a little.
fn dated_ahead(device: &Device, now: WallTime) -> Option<WallTime> {
    let retired = device.state == DeviceState::Retired;
    device.release.restricted_at.filter(|at| *at > now && !retired)
}

/// How a policy that is offered goes on; `None`: it has to be offered anew, at the revision that is required.
fn handed_over(dossier: &Dossier, now: WallTime) -> Option<String> {
    let keys = &dossier.device.device.keys;
    let required = |revision: &PolicyRevision| dossier.required.as_ref().is_none_or(|r| r == revision);
    if let Some(offer) = &keys.offer {
        let holds = dossier.device.offer_ends_at.is_some_and(|end| end > now);
        return (holds && required(&offer.revision)).then(|| {
            "the device has to acknowledge the policy that is offered before its key ends; then the MDM reports it applied"
                .to_owned()
        });
    }
    let key = keys.final_key.as_ref().filter(|k| required(&k.revision))?;
    Some(format!(
        "the device has acknowledged revision {}: the MDM reports it applied, with the final key",
        key.revision
    ))
}

fn sessions(all: &[SessionView]) -> String {
    let one = |s: &SessionView| {
        let addresses: Vec<String> = s.session.addresses.iter().map(|a| a.to_string()).collect();
        format!("{} on {}, {}", addresses.join(" "), s.session.interface, trust(s))
    };
    all.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn trust(s: &SessionView) -> String {
    format!("known by {}", known_by(s.session.trust))
}

const fn known_by(trust: Trust) -> &'static str {
    match trust {
        Trust::Name => "a name that the VPN server passes on",
        Trust::VpnKey => "a registered VPN key",
        Trust::Certificate => "a registered certificate",
    }
}

/// RFC 3339 in UTC, to the second; what humantime cannot write (before 1970, after 9999) as it is.
fn time(at: WallTime) -> String {
    match u64::try_from(at.0) {
        Ok(ms) if ms < 253_402_300_800_000 => {
            humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_millis(ms)).to_string()
        }
        _ => format!("{} ms", at.0),
    }
}

/// A span of time by its two greatest units.
fn span(ms: i64) -> String {
    let seconds = u64::try_from(ms / 1000).unwrap_or(0);
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
