//! Commands about devices: register, policy revoked, retire.

use super::{
    DeviceView, Refusal, Registration, SignalOutcome,
    batch::{Decided, Settled, Subject},
    cause::Ask,
    writer::Writer,
};
use crate::{
    kernel::KernelError,
    model::{DeviceId, Revision, SessionId},
    transition::{self, Directory as _, Signal, Step},
};

impl Writer {
    pub(super) fn register(
        &mut self,
        ask: Ask<'_>,
        list: &[Registration],
    ) -> Result<Decided<(Vec<DeviceView>, Revision)>, Refusal> {
        let ids: Vec<DeviceId> = list.iter().map(|r| r.id.clone()).collect();
        if !ask.again {
            let sessions = ids.iter().flat_map(|id| self.registry.sessions_of(id));
            let sessions: Vec<SessionId> = sessions.map(|s| s.id).collect();
            self.settle_before(&ids, sessions);
            let steps = transition::register(&self.registry, list, &self.context(self.clock.now()))?;
            let changed: Vec<Step> = steps.into_iter().filter(|s| s.changed).collect();
            let unproved: Vec<SessionId> = changed.iter().flat_map(|s| self.unproved_by(&s.device)).collect();
            if !unproved.is_empty() {
                self.end_sessions(&unproved, ask.cause());
            }
            self.loosen(&changed, &[], ask.cause());
        }
        Ok(Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            let now = w.clock.now();
            let views = ids
                .iter()
                .filter_map(|id| w.registry.device(id))
                .map(|d| w.view(d, &now))
                .collect();
            Ok((views, w.registry.revision))
        }))
    }

    /// A restriction: kernel, then commit.
    pub(super) fn policy_revoked(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        note: &str,
    ) -> Result<Decided<SignalOutcome>, Refusal> {
        let signal = Signal::PolicyRevoked {
            observed_at: ask.context.observed_at,
        };
        self.restriction(ask, device, signal, note)
    }

    /// A restriction, for ever.
    pub(super) fn retire(&mut self, ask: Ask<'_>, device: &DeviceId) -> Result<Decided<SignalOutcome>, Refusal> {
        self.restriction(ask, device, Signal::Retire, "")
    }

    pub(super) fn restriction(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        signal: Signal<'_>,
        note: &str,
    ) -> Result<Decided<SignalOutcome>, Refusal> {
        let mut failed = None;
        if !ask.again {
            self.settle_before([device], []);
            let step = self.step(device, signal)?;
            failed = self.restrict(&[step], &[], ask.cause().with(note));
        }
        Ok(self.restricted(device, failed))
    }

    /// The answer to a restriction. Where neither half came about, it is true in memory, and both are tried again; but it must not be
    /// acknowledged.
    pub(super) fn restricted(&self, device: &DeviceId, failed: Option<KernelError>) -> Decided<SignalOutcome> {
        let id = device.clone();
        Decided::new(Subject::Device(device.clone()), move |w, settled| {
            let durable = w.is_durable(Some(&id), None);
            match failed {
                Some(e) if !durable => Err(Refusal::Kernel(format!(
                    "{e}; nor could the store be written; both are tried again"
                ))),
                _ => w.outcome(&id, settled, durable),
            }
        })
    }

    pub(super) fn step(&self, device: &DeviceId, signal: Signal<'_>) -> Result<Step, Refusal> {
        let known = self
            .registry
            .device(device)
            .ok_or_else(|| Refusal::UnknownDevice(device.clone()))?;
        transition::step(known, signal, &self.context_of(device, self.clock.now()))
    }

    pub(super) fn outcome(&self, device: &DeviceId, settled: Settled, durable: bool) -> Result<SignalOutcome, Refusal> {
        let known = self
            .registry
            .device(device)
            .ok_or_else(|| Refusal::UnknownDevice(device.clone()))?;
        Ok(SignalOutcome {
            device: self.view(known, &self.clock.now()),
            enforcement: settled.level(durable),
            addresses: settled.addresses,
            revision: self.registry.revision,
        })
    }
}
