//! The audit's entries between their numbering and their commit. A number is given when something is decided or refused; the entry waits
//! here until a commit takes it along, in order and without gaps.

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::{
    Note, Refusal, Refused,
    bounds::{self, Bounds, Room},
    cause::{About, Cause},
    writer::Writer,
};
use crate::{
    audit::{Entry, Head},
    model::{DeviceId, Revision, Session, SourceName, WallTime},
    transition::Step,
};

/// How long a refusal waits for a commit that takes it along.
pub(super) const WITHIN: Duration = Duration::from_secs(1);
/// Entries that wait while nothing can be committed; beyond it refusals get none, and no number.
const MOST: usize = 100_000;
/// The action of what a source reports that another claims, too.
const CONFLICT: &str = "Conflict";
/// The result of what was done.
pub(super) const DONE: &str = "done";

/// What the audit is yet to have.
#[derive(Debug)]
pub(super) struct Trail {
    next: u64,
    waiting: Vec<Entry>,
    /// Below it everything is in the log.
    logged: u64,
    /// Since when anything waits.
    pub(super) since: Option<Instant>,
    bounds: Bounds,
}

impl Trail {
    /// After the last entry of the store.
    pub(super) fn new(head: Option<Head>) -> Self {
        let next = head.map_or(1, |h| h.number + 1);
        Self {
            next,
            waiting: Vec::new(),
            logged: next,
            since: None,
            bounds: Bounds::default(),
        }
    }

    /// The number of the next entry.
    pub(super) const fn next_number(&self) -> u64 {
        self.next
    }

    /// All that waits, for a commit.
    pub(super) fn take(&mut self) -> Vec<Entry> {
        self.since = None;
        std::mem::take(&mut self.waiting)
    }

    /// The commit failed; nothing was added meanwhile.
    pub(super) fn put_back(&mut self, entries: Vec<Entry>) {
        self.since = (!entries.is_empty()).then(Instant::now);
        self.waiting = entries;
    }

    /// What these stand for was undone.
    pub(super) fn store_failed(&mut self, numbers: &[u64]) {
        let first = self.first_waiting();
        for number in numbers {
            let at = usize::try_from(number.wrapping_sub(first)).unwrap_or(usize::MAX);
            let Some(entry) = self.waiting.get_mut(at) else { continue };
            entry.after.clone_from(&entry.before);
            STORE_UNAVAILABLE.clone_into(&mut entry.result);
        }
    }

    pub(super) fn of_step(&mut self, step: &Step, at: WallTime, cause: Cause<'_>) -> u64 {
        let device = &step.device;
        let reason = if cause.note.is_empty() {
            device.state_reason.as_str()
        } else {
            cause.note
        };
        self.add(Entry {
            number: 0,
            at,
            by: cause.by.to_owned(),
            action: cause.action.to_owned(),
            device: Some(device.id.clone()),
            subject: format!("pool {}", device.full_service_pool),
            before: step.from.map_or(String::new(), |s| s.as_str().to_owned()),
            after: device.state.as_str().to_owned(),
            reason: reason.to_owned(),
            request: cause.request.to_owned(),
            result: DONE.to_owned(),
        })
    }

    pub(super) fn of_session(&mut self, session: &Session, opened: bool, at: WallTime, cause: Cause<'_>) -> u64 {
        let addresses: Vec<String> = session.addresses.iter().map(|a| a.to_string()).collect();
        let (before, after) = if opened { ("", "open") } else { ("open", "ended") };
        self.add(Entry {
            number: 0,
            at,
            by: cause.by.to_owned(),
            action: cause.action.to_owned(),
            device: session.device.clone(),
            subject: format!(
                "session {} of {} on {}: {}",
                session.id,
                session.source,
                session.interface,
                addresses.join(" ")
            ),
            before: before.to_owned(),
            after: after.to_owned(),
            reason: cause.note.to_owned(),
            request: cause.request.to_owned(),
            result: DONE.to_owned(),
        })
    }

    /// Something that concerns no single device or session.
    pub(super) fn of_subject(&mut self, subject: String, [before, after]: [String; 2], at: WallTime, cause: Cause<'_>) -> u64 {
        self.add(Entry {
            number: 0,
            at,
            by: cause.by.to_owned(),
            action: cause.action.to_owned(),
            device: None,
            subject,
            before,
            after,
            reason: cause.note.to_owned(),
            request: cause.request.to_owned(),
            result: DONE.to_owned(),
        })
    }

    /// Two that claim the same, and the rule that decided; of one source once in a while, and not more than anyone's refusals. Whether it has an
    /// entry.
    pub(super) fn of_conflict(
        &mut self,
        (rule, source): (&'static str, &SourceName),
        device: Option<&DeviceId>,
        what: &str,
        at: WallTime,
    ) -> bool {
        let now = Instant::now();
        let part = bounds::part(source.as_str(), CONFLICT, device, rule, what);
        if self.bounds.known(&part, now).is_some() {
            return false;
        }
        let note = |subject: &str| Note {
            by: "gateway".to_owned(),
            action: CONFLICT,
            request: String::new(),
            subject: subject.to_owned(),
            device: device.cloned(),
        };
        match self.bounds.room(&format!("conflicts of {source}"), now) {
            Room::No => false,
            Room::NoMore => {
                let reason =
                    format!("too many conflicts of source {source}: for the rest of the hour, further ones have no entry");
                self.of_denied(note("conflicts"), at, reason, "NOT_LISTED".to_owned());
                true
            }
            Room::Yes => {
                let number = self.of_denied(note(rule), at, what.to_owned(), "REFUSED".to_owned());
                self.bounds.put(part, number, now);
                true
            }
        }
    }

    /// A difference between memory and kernel.
    pub(super) fn of_drift(
        &mut self,
        subject: &str,
        device: Option<&DeviceId>,
        [found, wanted]: [&str; 2],
        repaired: bool,
        at: WallTime,
    ) -> u64 {
        self.add(Entry {
            number: 0,
            at,
            by: "gateway".to_owned(),
            action: "Drift".to_owned(),
            device: device.cloned(),
            subject: subject.to_owned(),
            before: found.to_owned(),
            after: wanted.to_owned(),
            reason: "the kernel had something else than the store says".to_owned(),
            request: String::new(),
            result: if repaired { DONE } else { "NOT_REPAIRED" }.to_owned(),
        })
    }

    fn refusal(&mut self, refusal: &Refusal, at: WallTime, cause: Cause<'_>, about: &About) -> Option<u64> {
        let room = self.bounds.room(cause.by, Instant::now());
        if room == Room::No || !self.has_room() {
            return None;
        }
        if room == Room::NoMore {
            let reason = "too many refusals: for the rest of the hour, further ones of this identity have no entry";
            let note = Note {
                by: cause.by.to_owned(),
                action: "Refusals",
                request: String::new(),
                subject: String::new(),
                device: None,
            };
            self.of_denied(note, at, reason.to_owned(), "NOT_LISTED".to_owned());
            return None;
        }
        Some(self.add(Entry {
            number: 0,
            at,
            by: cause.by.to_owned(),
            action: cause.action.to_owned(),
            device: about.device.clone(),
            subject: about.subject.clone(),
            before: String::new(),
            after: String::new(),
            reason: refusal.to_string(),
            request: cause.request.to_owned(),
            result: refusal.name().to_owned(),
        }))
    }

    fn has_room(&self) -> bool {
        if self.waiting.len() >= MOST {
            warn!("the audit cannot be written, and too much waits for it: a refusal has no entry");
        }
        self.waiting.len() < MOST
    }

    fn of_denied(&mut self, note: Note, at: WallTime, reason: String, result: String) -> u64 {
        self.add(entry(note, at, Default::default(), reason, result))
    }

    fn add(&mut self, mut entry: Entry) -> u64 {
        let number = self.next;
        entry.number = number;
        self.next += 1;
        self.since.get_or_insert_with(Instant::now);
        self.waiting.push(entry);
        number
    }

    /// Tells of what is committed and not told yet.
    pub(super) fn log_committed(&mut self, entries: &[Entry], revision: Revision) {
        entries
            .iter()
            .filter(|e| e.number >= self.logged)
            .for_each(|e| log(e, Some(revision)));
        self.logged = self.next;
    }

    /// Entries have no gaps, so that each is found by its number.
    fn first_waiting(&self) -> u64 {
        self.waiting.first().map_or(self.next, |e| e.number)
    }

    /// Tells of what is in force and could not be committed.
    pub(super) fn log_waiting(&mut self) {
        let told = usize::try_from(self.logged.saturating_sub(self.first_waiting())).unwrap_or(usize::MAX);
        self.waiting.iter().skip(told).for_each(|e| log(e, None));
        self.logged = self.next;
    }
}

/// The name of [`Refusal::StoreUnavailable`].
const STORE_UNAVAILABLE: &str = "STORE_UNAVAILABLE";

impl Writer {
    /// Gives an entry to what was refused elsewhere.
    pub(super) fn note_refusal(&mut self, note: &Note, refusal: Refusal) -> Refused {
        let cause = Cause {
            by: &note.by,
            action: note.action,
            request: &note.request,
            note: "",
        };
        let about = About {
            device: note.device.clone(),
            subject: note.subject.clone(),
            ..About::default()
        };
        self.refuse(refusal, cause, &about)
    }

    /// Gives an entry to a call that came to no command, if there is room for it. Whoever asks for it has bounded how many of one identity come.
    pub(super) fn note_denied(&mut self, note: Note, reason: String, result: String) -> Option<u64> {
        let at = self.clock.now().wall;
        let room = self.audit.has_room();
        room.then(|| self.audit.of_denied(note, at, reason, result))
    }

    /// Gives an entry to what was done or refused elsewhere; its number.
    pub(super) fn note_entry(&mut self, note: Note, changed: [String; 2], reason: String, result: &'static str) -> u64 {
        let at = self.clock.now().wall;
        self.audit.add(entry(note, at, changed, reason, result.to_owned()))
    }

    /// Gives a refusal its number.
    pub(super) fn refuse(&mut self, refusal: Refusal, cause: Cause<'_>, about: &About) -> Refused {
        let reference = self.audit.refusal(&refusal, self.clock.now().wall, cause, about);
        Refused { refusal, reference }
    }

    /// The same of a part of a list. What is refused alike a while later has the number of the first time: such lists are repeated.
    pub(super) fn refuse_part(&mut self, refusal: Refusal, cause: Cause<'_>, about: &About) -> Refused {
        let words = refusal.to_string();
        let part = bounds::part(cause.by, cause.action, about.device.as_ref(), &about.subject, &words);
        let now = Instant::now();
        if let Some(number) = self.audit.bounds.known(&part, now) {
            return Refused {
                refusal,
                reference: Some(number),
            };
        }
        let refused = self.refuse(refusal, cause, about);
        if let Some(number) = refused.reference {
            self.audit.bounds.put(part, number, now);
        }
        refused
    }

    /// The same, where what was decided may have an entry already, which the failed commit has marked.
    pub(super) fn refuse_staged(
        &mut self,
        refusal: Refusal,
        cause: Cause<'_>,
        about: &About,
        entries: &std::ops::Range<u64>,
    ) -> Refused {
        if entries.is_empty() || !matches!(refusal, Refusal::StoreUnavailable(_)) {
            return self.refuse(refusal, cause, about);
        }
        Refused {
            refusal,
            reference: Some(entries.start),
        }
    }
}

fn log(entry: &Entry, revision: Option<Revision>) {
    info!(
        number = entry.number,
        device = entry.device.as_ref().map_or("", |d| d.as_str()),
        subject = entry.subject,
        from = entry.before,
        to = entry.after,
        reason = ?entry.reason,
        by = entry.by,
        request = entry.request,
        result = entry.result,
        revision = revision.map_or(0, |r| r.0),
        durable = revision.is_some(),
        "{}",
        entry.action
    );
}

/// Without its number, which it gets where it is added.
fn entry(note: Note, at: WallTime, [before, after]: [String; 2], reason: String, result: String) -> Entry {
    Entry {
        number: 0,
        at,
        by: note.by,
        action: note.action.to_owned(),
        device: note.device,
        subject: note.subject,
        before,
        after,
        reason,
        request: note.request,
        result,
    }
}
