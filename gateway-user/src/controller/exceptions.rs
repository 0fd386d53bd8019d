//! What an operator decides by hand: exceptions. One that releases is committed first, one that blocks is in force first.

use std::time::Duration;

use super::{Refusal, SignalOutcome, batch::Decided, cause::Ask, writer::Writer};
use crate::{
    model::{DeviceId, DeviceState, ExceptionKind},
    transition::{Directory as _, Signal},
};

impl Writer {
    pub(super) fn grant_exception(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        kind: ExceptionKind,
        reason: &str,
        length: Duration,
    ) -> Result<Decided<SignalOutcome>, Refusal> {
        let signal = Signal::Except {
            kind,
            reason,
            by: &ask.context.by.name,
            length,
        };
        match kind {
            ExceptionKind::Block => self.restriction(ask, device, signal, reason),
            ExceptionKind::Release => self.loosening(ask, device, signal, reason),
        }
    }

    /// The end of a release restricts; that of a block loosens, if only to quarantine.
    pub(super) fn end_exception(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        reason: &str,
    ) -> Result<Decided<SignalOutcome>, Refusal> {
        // What the device is decides which way its exception ends.
        if !ask.again {
            self.settle_before([device], []);
        }
        let known = self.registry.device(device);
        match known.map(|d| d.state) {
            Some(DeviceState::Blocked) if ask.reused => Err(Refusal::RequestIdReused(ask.context.request.clone())),
            Some(DeviceState::Blocked) => self.loosening(ask, device, Signal::EndException, reason),
            _ => self.restriction(ask, device, Signal::EndException, reason),
        }
    }

    fn loosening(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        signal: Signal<'_>,
        note: &str,
    ) -> Result<Decided<SignalOutcome>, Refusal> {
        if !ask.again {
            let step = self.step(device, signal)?;
            self.loosen(&[step], &[], ask.cause().with(note));
        }
        Ok(Self::released(device))
    }
}
