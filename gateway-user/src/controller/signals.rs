//! Commands about devices: register, policy revoked, retire.

use std::collections::BTreeSet;

use super::{
    DeviceView, Note, Refusal, Registration, SignalOutcome,
    batch::{Decided, Settled, Subject},
    cause::{Ask, Cause},
    record::DONE,
    writer::Writer,
};
use crate::{
    kernel::KernelError,
    model::{DeviceId, Revision, SessionId},
    transition::{self, Directory as _, Overruled, Signal, Step},
};

impl Writer {
    pub(super) fn register(
        &mut self,
        ask: Ask<'_>,
        list: &[Registration],
    ) -> Result<Decided<(Vec<DeviceView>, Revision)>, Refusal> {
        let ids: Vec<DeviceId> = list.iter().map(|r| r.id.clone()).collect();
        if !ask.again {
            let concerned: BTreeSet<DeviceId> = ids.iter().cloned().chain(self.sharing(list)).collect();
            let sessions = concerned.iter().flat_map(|id| self.registry.sessions_of(id));
            let sessions: Vec<SessionId> = sessions.map(|s| s.id).collect();
            self.settle_before(&concerned, sessions);
            let scope = &ask.context.by.scope;
            let counted = self.within_quota(scope, list)?;
            let steps = transition::register(&self.registry, list, &scope.devices, &self.context(self.clock.now()))?;
            let changed: Vec<Step> = steps.into_iter().filter(|s| s.changed).collect();
            let overruled = transition::overruled(&self.registry, &changed);
            let mut ending: BTreeSet<SessionId> = changed.iter().flat_map(|s| self.unproved_by(&s.device)).collect();
            ending.extend(self.known_by_others(&overruled));
            if !ending.is_empty() {
                self.end_sessions(&Vec::from_iter(ending), ask.cause());
            }
            self.loosen(&changed, &[], ask.cause());
            let new = changed.iter().filter(|s| s.from.is_none()).count();
            self.count_registered(scope, counted, new as u64);
            overruled.iter().for_each(|o| self.overrule(o, ask.cause()));
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

    /// A device has an alias in vain from now on. Whose it is now its own MDM is not told, but by the same request's entries.
    fn overrule(&mut self, overruled: &Overruled, cause: Cause<'_>) {
        let note = Note {
            by: cause.by.to_owned(),
            action: cause.action,
            request: cause.request.to_owned(),
            subject: overruled.alias.clone(),
            device: Some(overruled.device.clone()),
        };
        let words = ["its own", "another device's"].map(str::to_owned);
        let reason = "registered for another device by who may act on both";
        let number = self.note_entry(note, words, reason.to_owned(), DONE);
        self.batch.entries.push(number);
    }

    /// Devices that have a certificate or key of the list.
    fn sharing(&self, list: &[Registration]) -> Vec<DeviceId> {
        let certificates = list.iter().flat_map(|r| &r.certificates);
        let keys = list.iter().flat_map(|r| &r.vpn_keys);
        let holders = certificates.flat_map(|c| self.registry.holders_of_certificate(c));
        holders
            .chain(keys.flat_map(|k| self.registry.holders_of_key(k)))
            .cloned()
            .collect()
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
