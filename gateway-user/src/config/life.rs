//! What the file says of a device's life: `[devices]`, `[proof]` and `[store]`, read, checked and built; and where `[[source]]` stands.

use std::{path::PathBuf, time::Duration};

use super::{
    AfterDeadline, Devices, Keep, OutsideWindow, Proofs, Source, UnknownDevice,
    read::{At, Notes, Section, Wrong},
    source::RawSource,
    values,
};

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// As the file has it.
pub(super) struct RawLife {
    unknown: Option<At<UnknownDevice>>,
    sessions: Option<At<u32>>,
    outside_window: Option<At<OutsideWindow>>,
    deadline: Option<At<Option<Duration>>>,
    after_deadline: Option<At<AfterDeadline>>,
    max_exception: Option<At<Duration>>,
    limited_mdm: Option<At<u32>>,
    direct_signal: Option<At<bool>>,
    max_signal_age: Option<At<Duration>>,
    offer_ttl: Option<At<Duration>>,
    pub(super) sources: Vec<RawSource>,
    requests: Option<At<Duration>>,
    audit: Option<At<u32>>,
    audit_log: Option<At<PathBuf>>,
}

impl RawLife {
    pub(super) fn read(document: &Section<'_, '_>) -> Self {
        let between = |least: u64, most: u64| values::duration(Duration::from_secs(least)..=Duration::from_secs(most));
        let devices = document.section("devices");
        let d = devices.as_ref();
        let proof = document.section("proof");
        let p = proof.as_ref();
        let store = document.section("store");
        let s = store.as_ref();
        Self {
            unknown: d.and_then(|d| {
                d.one_of(
                    "unknown",
                    &[("refuse", UnknownDevice::Refuse), ("quarantine", UnknownDevice::Quarantine)],
                )
            }),
            sessions: d.and_then(|d| d.integer("sessions_per_device", 1..=1000)),
            outside_window: d.and_then(|d| {
                d.one_of(
                    "outside_window",
                    &[("refuse", OutsideWindow::Refuse), ("block", OutsideWindow::Block)],
                )
            }),
            deadline: d.and_then(|d| d.parsed("quarantine_deadline", or_off(between(60, 365 * DAY)))),
            after_deadline: d.and_then(|d| {
                d.one_of(
                    "after_deadline",
                    &[("block", AfterDeadline::Block), ("report", AfterDeadline::Report)],
                )
            }),
            max_exception: d.and_then(|d| d.parsed("max_exception", between(60, 365 * DAY))),
            limited_mdm: d.and_then(|d| d.integer("limited_mdm", 1..=100_000_000)),
            direct_signal: p.and_then(|p| p.boolean("direct_signal")),
            max_signal_age: p.and_then(|p| p.parsed("max_signal_age", between(60, 30 * DAY))),
            offer_ttl: p.and_then(|p| p.parsed("offer_ttl", between(10, DAY))),
            sources: document
                .sections("source", "source")
                .iter()
                .map(|s| RawSource::read(s, between(10, DAY)))
                .collect(),
            requests: s.and_then(|s| s.parsed("request_memory", between(60, 30 * DAY))),
            audit: s.and_then(|s| s.integer("audit_entries", 1000..=1_000_000_000)),
            audit_log: s.and_then(|s| s.parsed("audit_log", values::path)),
        }
    }

    pub(super) fn check(&self, notes: &Notes<'_>) {
        let off = self.deadline.as_ref().is_some_and(|d| d.value.is_none());
        if let Some(after) = self.after_deadline.as_ref().filter(|_| off) {
            let problem = "there is no deadline that could pass";
            let remedy = "leave it out, or write quarantine_deadline = \"48h\"";
            notes.note(after.at, "devices.after_deadline", Wrong::new(problem, remedy));
        }
    }

    /// `None`: a value that must be there is not.
    pub(super) fn build(self) -> Option<(Devices, Proofs, Vec<Source>, Keep)> {
        let (devices, proofs, keep) = (Devices::default(), Proofs::default(), Keep::default());
        Some((
            Devices {
                unknown: or(self.unknown, devices.unknown),
                sessions: or(self.sessions, devices.sessions),
                outside_window: or(self.outside_window, devices.outside_window),
                deadline: or(self.deadline, devices.deadline),
                after_deadline: or(self.after_deadline, devices.after_deadline),
                max_exception: or(self.max_exception, devices.max_exception),
                limited_mdm: or(self.limited_mdm, devices.limited_mdm),
            },
            Proofs {
                direct_signal: or(self.direct_signal, proofs.direct_signal),
                max_signal_age: or(self.max_signal_age, proofs.max_signal_age),
                offer_ttl: or(self.offer_ttl, proofs.offer_ttl),
            },
            self.sources.into_iter().map(RawSource::build).collect::<Option<_>>()?,
            Keep {
                requests: or(self.requests, keep.requests),
                audit: self.audit.map_or(keep.audit, |n| u64::from(n.value)),
                audit_log: self.audit_log.map(|p| p.value),
            },
        ))
    }
}

/// A duration, or "off".
fn or_off(parse: impl Fn(&str) -> Result<Duration, Wrong>) -> impl Fn(&str) -> Result<Option<Duration>, Wrong> {
    move |text| match text {
        "off" => Ok(None),
        _ => parse(text).map(Some).map_err(|e| Wrong {
            remedy: format!("{}, or \"off\"", e.remedy),
            ..e
        }),
    }
}

fn or<T>(value: Option<At<T>>, default: T) -> T {
    value.map_or(default, |v| v.value)
}
