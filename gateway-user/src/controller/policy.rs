//! Commands about proof: policy keys, policy applied, leases in bulk.

use super::{
    AcknowledgeOutcome, OfferOutcome, PolicyKey, Refusal, RenewOutcome, Renewal, SignalOutcome,
    batch::{Ask, Decided, Subject},
    inspect::on_the_wall,
    writer::Writer,
};
use crate::{
    model::{DeviceId, PolicyRevision},
    transition::{Directory as _, Signal, lease_end, release_end},
};

impl Writer {
    /// Asked again, with the answer gone: another key takes the place of the one that nobody got.
    pub(super) fn offer_policy(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        revision: &PolicyRevision,
    ) -> Result<Decided<OfferOutcome>, Refusal> {
        let key = fresh()?;
        let step = self.step(
            device,
            Signal::Offer {
                key: key.hash(),
                revision,
            },
        )?;
        self.loosen(&[step], &[], ask.cause().with(revision.as_str()));
        let id = device.clone();
        Ok(Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            let now = w.clock.now();
            let view = w.device(&id)?;
            // Taken away again in the same batch: then it is over.
            let ends_at = view
                .device
                .keys
                .offer
                .as_ref()
                .map(|o| on_the_wall(lease_end(&o.holds, &now), &now));
            Ok(OfferOutcome {
                key,
                ends_at: ends_at.unwrap_or(now.wall),
                device: view,
                revision: w.registry.revision,
            })
        }))
    }

    pub(super) fn acknowledge_policy(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        temporary: &PolicyKey,
    ) -> Result<Decided<AcknowledgeOutcome>, Refusal> {
        let key = fresh()?;
        let signal = Signal::Acknowledge {
            temporary: temporary.hash(),
            fresh: key.hash(),
        };
        let step = self.step(device, signal)?;
        let policy = step.device.keys.final_key.as_ref().map(|f| f.revision.clone());
        let policy = policy.ok_or_else(|| Refusal::PolicyKeyUnknown(device.clone()))?;
        self.loosen(&[step], &[], ask.cause().with(policy.as_str()));
        let id = device.clone();
        Ok(Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            Ok(AcknowledgeOutcome {
                key,
                policy,
                device: w.device(&id)?,
                revision: w.registry.revision,
            })
        }))
    }

    /// A release: commit, then kernel, then read back.
    pub(super) fn policy_applied(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        revision: &PolicyRevision,
        key: Option<&PolicyKey>,
    ) -> Result<Decided<SignalOutcome>, Refusal> {
        if !ask.again {
            let signal = Signal::PolicyApplied {
                revision,
                key: key.map(PolicyKey::hash),
                observed_at: ask.context.observed_at,
            };
            let step = self.step(device, signal)?;
            self.loosen(&[step], &[], ask.cause().with(revision.as_str()));
        }
        Ok(Self::released(device))
    }

    /// The answer to a release.
    pub(super) fn released(device: &DeviceId) -> Decided<SignalOutcome> {
        let id = device.clone();
        Decided::new(Subject::Device(device.clone()), move |w, settled| {
            settled.durable()?;
            w.outcome(&id, settled, true)
        })
    }

    /// Each by itself: what is refused is said, the rest is done.
    pub(super) fn renew_leases(&mut self, ask: Ask<'_>, devices: Vec<DeviceId>) -> Result<Decided<RenewOutcome>, Refusal> {
        let mut refused = Vec::new();
        for device in &devices {
            let step = if ask.again {
                Ok(None)
            } else {
                self.step(device, Signal::RenewLease).map(Some)
            };
            refused.push(match step {
                Ok(step) => {
                    self.loosen(step.as_slice(), &[], ask.cause());
                    None
                }
                Err(refusal) => Some(refusal),
            });
        }
        Ok(Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            let now = w.clock.now();
            let end = |id: &DeviceId| {
                w.registry
                    .device(id)
                    .and_then(|d| release_end(d, &now))
                    .map(|end| on_the_wall(end, &now))
            };
            let one = |(device, refusal): (DeviceId, Option<Refusal>)| Renewal {
                result: refusal.map_or_else(|| Ok(end(&device)), Err),
                device,
            };
            Ok(RenewOutcome {
                renewals: devices.into_iter().zip(refused).map(one).collect(),
                revision: w.registry.revision,
            })
        }))
    }
}

fn fresh() -> Result<PolicyKey, Refusal> {
    PolicyKey::fresh().map_err(|e| Refusal::Kernel(format!("there are no random numbers for a key: {e}")))
}
