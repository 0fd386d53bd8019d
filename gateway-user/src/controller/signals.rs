//! Commands about devices: register, policy applied, policy revoked, retire.

use super::{
    DeviceView, Enforcement, Refusal, Registration, SignalContext, SignalOutcome,
    commit::{Cause, Restricted, changes},
    writer::Writer,
};
use crate::{
    model::{DeviceId, PolicyRevision, Revision},
    transition::{self, Directory as _, Signal, Step},
};

impl Writer {
    pub(super) fn register(
        &mut self,
        context: &SignalContext,
        list: &[Registration],
    ) -> Result<(Vec<DeviceView>, Revision), Refusal> {
        let now = self.clock.now();
        let steps = transition::register(&self.registry, list, now, &self.config)?;
        self.commit(changes(&steps, &now), &steps, Cause::of(context))?;
        let moved: Vec<&DeviceId> = steps.iter().filter(|s| s.changed).map(|s| &s.device.id).collect();
        self.enforce(&moved, &[]);
        let views = list
            .iter()
            .filter_map(|r| self.registry.device(&r.id))
            .map(|d| self.view(d, &now))
            .collect();
        Ok((views, self.registry.revision))
    }

    /// A release: commit, then kernel, then read back.
    pub(super) fn policy_applied(
        &mut self,
        context: &SignalContext,
        device: &DeviceId,
        revision: &PolicyRevision,
    ) -> Result<SignalOutcome, Refusal> {
        let now = self.clock.now();
        let signal = Signal::PolicyApplied {
            revision,
            observed_at: context.observed_at,
        };
        let step = self.step(device, signal)?;
        // What it was restricted by comes first on the disk, even if the release itself changes nothing.
        self.flush().map_err(|e| Refusal::StoreUnavailable(e.to_string()))?;
        self.commit(
            changes(std::slice::from_ref(&step), &now),
            std::slice::from_ref(&step),
            Cause::of(context),
        )?;
        self.enforce(&[device], &[]);
        self.outcome(
            device,
            Restricted {
                durable: true,
                failed: None,
            },
        )
    }

    /// A restriction: kernel, then commit.
    pub(super) fn policy_revoked(
        &mut self,
        context: &SignalContext,
        device: &DeviceId,
        note: &str,
    ) -> Result<SignalOutcome, Refusal> {
        let step = self.step(
            device,
            Signal::PolicyRevoked {
                observed_at: context.observed_at,
            },
        )?;
        let done = self.restrict(
            &[step],
            &[],
            Cause {
                note,
                ..Cause::of(context)
            },
        );
        self.outcome(device, done)
    }

    /// A restriction, for ever.
    pub(super) fn retire(&mut self, context: &SignalContext, device: &DeviceId) -> Result<SignalOutcome, Refusal> {
        let step = self.step(device, Signal::Retire)?;
        let done = self.restrict(&[step], &[], Cause::of(context));
        self.outcome(device, done)
    }

    fn step(&self, device: &DeviceId, signal: Signal<'_>) -> Result<Step, Refusal> {
        let known = self
            .registry
            .device(device)
            .ok_or_else(|| Refusal::UnknownDevice(device.clone()))?;
        transition::step(known, signal, self.clock.now(), &self.config)
    }

    fn outcome(&mut self, device: &DeviceId, done: Restricted) -> Result<SignalOutcome, Refusal> {
        // Neither half came about. It is true in memory, and both are tried again; but it must not be acknowledged.
        if let Restricted {
            durable: false,
            failed: Some(e),
        } = &done
        {
            return Err(Refusal::Kernel(format!(
                "{e}; nor could the store be written; both are tried again"
            )));
        }
        let sessions: Vec<_> = self.registry.sessions_of(device).cloned().collect();
        let (enforced, addresses) = self.read_back(&sessions);
        let now = self.clock.now();
        let known = self
            .registry
            .device(device)
            .ok_or_else(|| Refusal::UnknownDevice(device.clone()))?;
        Ok(SignalOutcome {
            device: self.view(known, &now),
            enforcement: match (done.durable, sessions.is_empty(), enforced) {
                (false, ..) => Enforcement::EnforcedNotDurable,
                (true, true, _) => Enforcement::NoSession,
                (true, false, true) => Enforcement::Enforced,
                (true, false, false) => Enforcement::Committed,
            },
            addresses,
            revision: self.registry.revision,
        })
    }
}
