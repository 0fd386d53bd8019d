//! What goes to the store, and what follows when it went or did not: the one place that commits.

use std::time::Instant;

use tracing::{error, info};

use super::writer::Writer;
use crate::{
    model::{Device, DeviceId, Now, Revision, SessionId, UriChange, WallTime},
    store::ChangeSet,
    transition::Step,
};

/// Answers that wait to be written; beyond it the oldest are not remembered across a restart.
const WAITING_ANSWERS: usize = 65_536;
/// While the store fails, so many restrictions that wait are tried again with every batch; more only when it is time, or each batch of a mass
/// revocation would write all those before it.
const WITH_EVERY_BATCH: u64 = 512;

impl Writer {
    /// Restrictions in force but not committed.
    pub(super) fn not_durable(&self) -> u64 {
        (self.pending.devices.len() + self.pending.closed.len()) as u64
    }

    /// Whether what restricts this device, or ended this session, is on the disk.
    pub(super) fn is_durable(&self, device: Option<&DeviceId>, session: Option<SessionId>) -> bool {
        !device.is_some_and(|d| self.pending.devices.contains_key(d))
            && !session.is_some_and(|s| self.pending.closed.contains(&s))
    }

    /// Commits what is in force but not durable, and what the audit and the requests wait with.
    ///
    /// # Errors
    /// The store's words.
    pub(super) fn flush(&mut self) -> Result<(), String> {
        self.commit_all(ChangeSet::default(), ChangeSet::default())
    }

    /// Commits, in one transaction, what waits and what is new. Failed, `restrictions` wait too.
    ///
    /// # Errors
    /// The store's words.
    pub(super) fn commit_all(&mut self, changes: ChangeSet, restrictions: ChangeSet) -> Result<(), String> {
        let waited = !self.pending.is_empty();
        if let Some(problem) = &self.store_problem
            && self.not_durable() > WITH_EVERY_BATCH
            && Instant::now() < self.next_retry
        {
            let problem = problem.clone();
            self.pending.then(restrictions);
            return Err(problem);
        }
        // Moved there and back: what waits may be a hundred thousand devices.
        let before = waited.then(|| Before::of(&mut self.pending, &changes));
        let mut set = if waited {
            let mut all = std::mem::take(&mut self.pending);
            all.then(changes);
            all
        } else {
            changes
        };
        set.audit = self.audit.take();
        set.requests.append(&mut self.answers);
        self.answers_since = None;
        if set.is_empty() {
            return Ok(());
        }
        let failing = self.store_problem.is_some();
        // Behind the last commit, the clock is wrong: what is dated by it must not look older than that.
        let at = self.clock.now().wall.max(self.committed_at.unwrap_or(WallTime(i64::MIN)));
        let begin = Instant::now();
        let result = self.store.commit(&set, self.registry.revision, at);
        self.meters.commits.observe(begin.elapsed().as_secs_f64());
        self.store_problem = result.as_ref().err().map(ToString::to_string);
        match result {
            Ok(done) => {
                if waited {
                    info!(revision = done.revision.0, "restrictions that were in force are durable now");
                }
                self.backoff = self.options.retry;
                self.committed_at = Some(at);
                self.audit_head = done.audit_head;
                self.committed(set, done.revision);
                Ok(())
            }
            Err(e) => {
                self.backoff = if failing {
                    (self.backoff * 2).clamp(self.options.retry, self.options.retry_max)
                } else {
                    self.options.retry
                };
                self.next_retry = Instant::now() + self.backoff;
                self.audit.put_back(std::mem::take(&mut set.audit));
                self.answers = std::mem::take(&mut set.requests);
                self.pending = before.map(|b| b.restore(set)).unwrap_or_default();
                self.pending.then(restrictions);
                self.answers.retain(|r| r.answer.is_some());
                let over = self.answers.len().saturating_sub(WAITING_ANSWERS);
                self.answers.drain(..over);
                self.answers_since = (!self.answers.is_empty()).then(Instant::now);
                if !self.pending.is_empty() {
                    error!(error = %e, not_durable = self.not_durable(), "restrictions are in force but not durable; they are tried again");
                }
                Err(e.to_string())
            }
        }
    }

    fn committed(&mut self, set: ChangeSet, revision: Revision) {
        self.registry.revision = revision;
        set.devices.keys().for_each(|id| self.registry.stamp(id, revision));
        self.requests.committed(&set.requests);
        self.audit.log_committed(&set.audit, revision);
        if set.acknowledged {
            self.forgotten = None;
        }
        for mut uri in set.uris {
            uri.revision = revision;
            // Nobody listening is fine.
            let _ = self.uris.send(uri);
        }
    }
}

/// What waited, where a batch's changes take its place.
struct Before {
    devices: Vec<(DeviceId, Option<Device>)>,
    closed: Vec<SessionId>,
    uris: usize,
    publications: usize,
    restore_done: bool,
    acknowledged: bool,
}

impl Before {
    /// Takes out of what waits what the changes have, too.
    fn of(waiting: &mut ChangeSet, changes: &ChangeSet) -> Self {
        let ids = changes.devices.keys();
        Self {
            devices: ids.map(|id| (id.clone(), waiting.devices.remove(id))).collect(),
            closed: changes.closed.difference(&waiting.closed).copied().collect(),
            uris: waiting.uris.len(),
            publications: waiting.publications.len(),
            restore_done: waiting.restore_done,
            acknowledged: waiting.acknowledged,
        }
    }

    /// What waited, out of that and the changes together. Nothing that opened waits.
    fn restore(self, mut set: ChangeSet) -> ChangeSet {
        for (id, device) in self.devices {
            set.devices.remove(&id);
            set.devices.extend(device.map(|d| (id, d)));
        }
        for id in self.closed {
            set.closed.remove(&id);
        }
        set.opened.clear();
        set.uris.truncate(self.uris);
        set.publications.truncate(self.publications);
        set.restore_done = self.restore_done;
        set.acknowledged = self.acknowledged;
        set
    }
}

/// What is to be stored of these steps.
pub(super) fn changes(steps: &[Step], now: &Now) -> ChangeSet {
    let changed = || steps.iter().filter(|s| s.changed);
    let uri = |s: &Step| {
        let old = s.old_uri.clone().filter(|old| *old != s.device.gateway_uri)?;
        Some(UriChange {
            revision: Revision(0),
            device: s.device.id.clone(),
            old: old.to_string(),
            new: s.device.gateway_uri.to_string(),
            at: now.wall,
            reason: s.device.state_reason.to_string(),
        })
    };
    ChangeSet {
        devices: changed().map(|s| (s.device.id.clone(), s.device.clone())).collect(),
        uris: changed().filter_map(uri).collect(),
        ..ChangeSet::default()
    }
}
