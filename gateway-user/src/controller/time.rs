//! What time brings: ends of leases, exceptions and deadlines, waves, sources that have fallen silent, a clock that has come right; and the
//! regular duties. Only the boot clock decides when.

use std::time::Duration;

use tracing::{error, info, warn};

use super::{cause::Cause, publication::later, registry::Standing, review::Review, writer::Writer};
use crate::{
    model::{BootTime, DeviceId, Now, SessionId, SourceName, WallTime},
    transition::{self, Directory as _, Signal},
};

/// Devices and sessions of one turn at most: everyone else gets theirs in between.
const AT_ONCE: usize = 256;
/// How often the audit's head is logged.
const HEAD_EVERY: Duration = Duration::from_secs(3600);
/// How often what is kept too long is looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(60);
/// After a device whose time has come and to which nothing happened.
const NOTHING_HAPPENED: Duration = Duration::from_secs(60);

impl Writer {
    /// What is over by now.
    pub(super) fn pass_time(&mut self) {
        let now = self.clock.now();
        self.clock_comes_right(&now);
        self.end_what_is_over(&now);
        self.wave(&now);
        self.miss_heartbeats(&now);
        self.tell_progress(&now);
        self.duties(&now);
    }

    /// When time next brings something.
    pub(super) fn next_time(&self) -> Option<BootTime> {
        let progress = (self.progress.receiver_count() > 0).then_some(self.next_progress);
        let behind = self.clock_behind.map(|last| {
            let left = last.0.saturating_sub(self.clock.now().wall.0);
            later(self.clock.now().boot, Duration::from_millis(u64::try_from(left).unwrap_or(0)))
        });
        [
            self.registry.next_due(),
            self.next_wave(),
            self.next_silence(),
            progress,
            behind,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// A source has told of all its sessions.
    pub(super) fn heard_of(&mut self, source: &SourceName) {
        let now = self.clock.now();
        self.heard.insert(source.clone(), now.boot);
    }

    /// The wall clock has passed the last commit: releases of earlier boots can be measured again.
    fn clock_comes_right(&mut self, now: &Now) {
        if self.clock_behind.is_none_or(|last| now.wall < last) {
            return;
        }
        info!("the clock has passed the last commit: releases of earlier boots hold again as far as they last");
        self.clock_behind = None;
        self.settle();
        self.review(Review::clock_right());
    }

    fn end_what_is_over(&mut self, now: &Now) {
        let over = self.registry.over(now, AT_ONCE);
        if over.is_empty() {
            return;
        }
        self.settle_before(&over, []);
        over.iter().for_each(|id| self.end(id, now));
    }

    /// What time has brought to a device before anything else is decided of it: where much is over at once, it may not have been told yet.
    pub(super) fn catch_up(&mut self, id: &DeviceId) {
        let now = self.clock.now();
        if self.registry.is_due(id, &now) {
            self.settle_before([id], []);
            self.end(id, &now);
        }
    }

    fn end(&mut self, id: &DeviceId, now: &Now) {
        let step = self.registry.device(id).and_then(|device| {
            let context = self.context_of(id, *now);
            let (_, signal) = transition::due(device, &context).filter(|(end, _)| *end <= now.boot)?;
            let name = action(signal);
            transition::step(device, signal, &context).ok().map(|step| (name, step))
        });
        match step.filter(|(_, step)| step.changed) {
            Some((name, step)) => drop(self.restrict(&[step], &[], Cause::gateway(name))),
            None => self.look_again(id, now),
        }
    }

    /// Nothing came of its time but, perhaps, where it stands. If it is due all the same, it is looked at again later.
    fn look_again(&mut self, id: &DeviceId, now: &Now) {
        let standing = self.registry.device(id).map(|device| self.standing(device, now));
        if let Some(standing) = standing {
            let again = |due| {
                if due <= now.boot {
                    later(now.boot, NOTHING_HAPPENED)
                } else {
                    due
                }
            };
            let due = standing.due.map(again);
            self.registry.stand(id, Standing { due, ..standing });
        }
    }

    /// Sources that have to go on reporting and have not.
    fn miss_heartbeats(&mut self, now: &Now) {
        let silent: Vec<(SourceName, Duration)> = self
            .config
            .sources
            .iter()
            .filter_map(|s| Some((s.name.clone(), s.heartbeat?)))
            .filter(|(source, heartbeat)| self.registry.has_sessions(source) && self.silence(source, *heartbeat) <= now.boot)
            .collect();
        for (source, heartbeat) in silent {
            let sessions: Vec<SessionId> = self
                .registry
                .sessions_of_source(&source)
                .map(|s| s.id)
                .take(AT_ONCE)
                .collect();
            warn!(%source, ?heartbeat, sessions = sessions.len(), "a source has not told of its sessions for too long: they end");
            self.end_sessions(&sessions, Cause::gateway("HeartbeatMissed").with(source.as_str()));
        }
    }

    fn next_silence(&self) -> Option<BootTime> {
        let sources = self.config.sources.iter().filter(|s| self.registry.has_sessions(&s.name));
        sources.filter_map(|s| Some(self.silence(&s.name, s.heartbeat?))).min()
    }

    /// When a source has been silent for too long.
    fn silence(&self, source: &SourceName, heartbeat: Duration) -> BootTime {
        later(self.heard.get(source).copied().unwrap_or(self.started_boot), heartbeat)
    }

    fn duties(&mut self, now: &Now) {
        if self.next_head <= now.boot {
            self.next_head = later(now.boot, HEAD_EVERY);
            self.log_head();
        }
        if self.next_prune <= now.boot {
            let requests = i64::try_from(self.config.keep.requests.as_millis()).unwrap_or(i64::MAX);
            let before = WallTime(now.wall.0.saturating_sub(requests));
            let more = self.store.prune(before, self.config.keep.audit).unwrap_or_else(|e| {
                error!(error = %e, "what is kept too long cannot be removed from the store");
                false
            });
            self.next_prune = later(now.boot, if more { Duration::from_millis(100) } else { PRUNE_EVERY });
        }
    }

    /// The audit's head in the log, outside the store: what is cut off later is seen by it.
    pub(super) fn log_head(&self) {
        info!(audit_head = %self.audit_head, "audit");
    }
}

/// How long until a time on the boot clock.
pub(super) fn until(at: BootTime, now: &Now) -> Duration {
    Duration::from_nanos(at.0.saturating_sub(now.boot.0))
}

/// What the audit calls it.
const fn action(signal: Signal<'_>) -> &'static str {
    match signal {
        Signal::LeaseEnded => "LeaseEnded",
        Signal::ExceptionOver => "ExceptionEnded",
        Signal::DeadlinePassed => "DeadlinePassed",
        _ => "TimePassed",
    }
}
