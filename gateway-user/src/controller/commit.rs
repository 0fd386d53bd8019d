//! The two orders in which a change is made. What loosens is committed, then true, then put into the kernel by whoever asked. What restricts
//! is true at once, put into the kernel next, and committed last; a store that cannot is tried again until it can.

use std::time::Instant;

use tracing::{error, info};

use super::{Refusal, SignalContext, writer::Writer};
use crate::{
    kernel::KernelError,
    model::{DeviceId, Now, Revision, SessionId, UriChange},
    store::{ChangeSet, StoreError},
    transition::Step,
};

/// Who is behind a change, for the log.
#[derive(Clone, Copy)]
pub(super) struct Cause<'a> {
    pub(super) by: &'a str,
    pub(super) request: &'a str,
    /// The caller's own words; may be empty.
    pub(super) note: &'a str,
}

impl<'a> Cause<'a> {
    /// Nobody asked: time passed, or the daemon started.
    pub(super) const GATEWAY: Cause<'static> = Cause {
        by: "gateway",
        request: "",
        note: "",
    };

    pub(super) fn of(context: &'a SignalContext) -> Self {
        Self {
            by: &context.by.name,
            request: context.request.as_str(),
            note: "",
        }
    }
}

/// How a restriction went.
#[derive(Debug)]
pub(super) struct Restricted {
    /// Committed.
    pub(super) durable: bool,
    /// Why it is not in the kernel.
    pub(super) failed: Option<KernelError>,
}

impl Writer {
    /// What loosens, or changes nothing that is enforced: committed, and then true.
    pub(super) fn commit(&mut self, changes: ChangeSet, steps: &[Step], cause: Cause<'_>) -> Result<(), Refusal> {
        if changes.is_empty() {
            return Ok(());
        }
        let now = self.clock.now();
        self.flush().map_err(|e| Refusal::StoreUnavailable(e.to_string()))?;
        let revision = self
            .try_commit(&changes)
            .map_err(|e| Refusal::StoreUnavailable(e.to_string()))?;
        changes.closed.iter().for_each(|id| drop(self.registry.remove_session(*id)));
        changes
            .devices
            .values()
            .for_each(|d| self.registry.put_device(d.clone(), &now));
        changes.opened.values().for_each(|s| self.registry.put_session(s.clone()));
        self.committed(changes, revision);
        self.log(steps, cause, true);
        Ok(())
    }

    /// What restricts: true at once, in the kernel next, then committed, or kept until it can be.
    pub(super) fn restrict(&mut self, steps: &[Step], closing: &[SessionId], cause: Cause<'_>) -> Restricted {
        let now = self.clock.now();
        let clearing: Vec<_> = closing
            .iter()
            .filter_map(|id| self.registry.session(*id))
            .flat_map(|s| s.addresses.clone())
            .collect();
        let changes = self.take_restriction(steps, closing, &now);
        let devices: Vec<&DeviceId> = steps.iter().map(|s| &s.device.id).collect();
        let failed = self.enforce(&devices, &clearing);
        let durable = self.commit_restriction(changes, steps, closing, cause);
        Restricted { durable, failed }
    }

    /// Restrictions in force but not committed.
    pub(super) fn not_durable(&self) -> u64 {
        (self.pending.devices.len() + self.pending.closed.len()) as u64
    }

    /// Makes a restriction true in memory, and says what is to be stored.
    pub(super) fn take_restriction(&mut self, steps: &[Step], closing: &[SessionId], now: &Now) -> ChangeSet {
        for step in steps {
            self.registry.put_device(step.device.clone(), now);
        }
        let closed = closing
            .iter()
            .filter(|id| self.registry.remove_session(**id).is_some())
            .copied()
            .collect();
        ChangeSet {
            closed,
            ..changes(steps, now)
        }
    }

    pub(super) fn commit_restriction(
        &mut self,
        changes: ChangeSet,
        steps: &[Step],
        closing: &[SessionId],
        cause: Cause<'_>,
    ) -> bool {
        if changes.is_empty() {
            return self.holds(steps, closing);
        }
        let result = self.flush().and_then(|()| self.try_commit(&changes));
        let durable = match result {
            Ok(revision) => {
                self.committed(changes, revision);
                true
            }
            Err(e) => {
                if self.pending.is_empty() {
                    self.backoff = self.options.retry;
                    self.next_retry = Instant::now() + self.backoff;
                }
                self.pending.then(changes);
                error!(error = %e, not_durable = self.not_durable(), "a restriction is in force but not durable; it is tried again");
                false
            }
        };
        self.log(steps, cause, durable);
        durable
    }

    /// Whether a restriction that changed nothing was durable already.
    fn holds(&mut self, steps: &[Step], closing: &[SessionId]) -> bool {
        let waits = |p: &ChangeSet| {
            steps.iter().any(|s| p.devices.contains_key(&s.device.id)) || closing.iter().any(|id| p.closed.contains(id))
        };
        !waits(&self.pending) || self.flush().is_ok()
    }

    /// Commits what is in force but not durable.
    pub(super) fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let changes = std::mem::take(&mut self.pending);
        match self.try_commit(&changes) {
            Ok(revision) => {
                info!(revision = revision.0, "restrictions that were in force are durable now");
                self.backoff = self.options.retry;
                self.committed(changes, revision);
                Ok(())
            }
            Err(e) => {
                self.pending = changes;
                self.backoff = (self.backoff * 2).clamp(self.options.retry, self.options.retry_max);
                self.next_retry = Instant::now() + self.backoff;
                Err(e)
            }
        }
    }

    fn try_commit(&mut self, changes: &ChangeSet) -> Result<Revision, StoreError> {
        let result = self.store.commit(changes, self.registry.revision, self.clock.now().wall);
        self.store_problem = result.as_ref().err().map(ToString::to_string);
        result.map(|done| done.revision)
    }

    fn committed(&mut self, changes: ChangeSet, revision: Revision) {
        self.registry.revision = revision;
        changes.devices.keys().for_each(|id| self.registry.stamp(id, revision));
        for mut uri in changes.uris {
            uri.revision = revision;
            // Nobody listening is fine.
            let _ = self.uris.send(uri);
        }
    }

    fn log(&self, steps: &[Step], cause: Cause<'_>, durable: bool) {
        for step in steps.iter().filter(|s| s.changed) {
            info!(
                device = %step.device.id,
                from = ?step.from,
                to = ?step.device.state,
                reason = step.device.state_reason,
                note = ?cause.note,
                pool = %step.device.full_service_pool,
                gateway_uri = step.device.gateway_uri,
                by = cause.by,
                request = cause.request,
                revision = self.registry.revision.0,
                durable,
                "device"
            );
        }
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
            old,
            new: s.device.gateway_uri.clone(),
            at: now.wall,
            reason: s.device.state_reason.clone(),
        })
    };
    ChangeSet {
        devices: changed().map(|s| (s.device.id.clone(), s.device.clone())).collect(),
        uris: changed().filter_map(uri).collect(),
        ..ChangeSet::default()
    }
}
