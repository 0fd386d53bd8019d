//! Commands about proof: policy keys, policy applied, leases in bulk.

use super::{
    AcknowledgeOutcome, OfferOutcome, PolicyKey, Refusal, RenewOutcome, Renewal, SignalOutcome,
    batch::{Decided, Subject},
    cause::{About, Ask, Cause},
    inspect::on_the_wall,
    keys,
    requests::Held,
    writer::Writer,
};
use crate::{
    model::{DeviceId, PolicyRevision},
    transition::{Directory as _, Signal, lease_end},
};

impl Writer {
    /// Asked again while the key is in memory, the same one. With the process gone: another takes its place, which nobody can have acknowledged
    /// without having got the first answer.
    pub(super) fn offer_policy(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        revision: &PolicyRevision,
    ) -> Result<Decided<OfferOutcome>, Refusal> {
        let key = match ask.held {
            Some(Held::Key(key)) => return Ok(Self::offered(device, key.clone())),
            _ => PolicyKey::fresh().map_err(no_random_numbers)?,
        };
        let step = self.step(
            device,
            Signal::Offer {
                key: key.hash(),
                revision,
            },
        )?;
        self.loosen(&[step], &[], ask.cause().with(revision.as_str()));
        Ok(Self::offered(device, key.clone()).holding(Held::Key(key)))
    }

    fn offered(device: &DeviceId, key: PolicyKey) -> Decided<OfferOutcome> {
        let (id, hash) = (device.clone(), key.hash());
        Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            let now = w.clock.now();
            let view = w.device(&id)?;
            // Taken away again meanwhile: then it is over.
            let offer = view.device.keys.offer.as_ref().filter(|o| o.key == hash);
            let ends_at = offer.map(|o| on_the_wall(lease_end(&o.holds, &now), &now));
            Ok(OfferOutcome {
                key,
                ends_at: ends_at.unwrap_or(now.wall),
                device: view,
                revision: w.registry.revision,
            })
        })
    }

    /// Asked again, it gives the same key, for as long as that is the device's.
    pub(super) fn acknowledge_policy(
        &mut self,
        ask: Ask<'_>,
        device: &DeviceId,
        temporary: &PolicyKey,
    ) -> Result<Decided<AcknowledgeOutcome>, Refusal> {
        let unknown = || Refusal::PolicyKeyUnknown(device.clone());
        let keys = self.registry.device(device).map(|known| &known.keys);
        if ask.again {
            let Some(Held::Salt(salt)) = ask.held else {
                return Err(unknown());
            };
            let held = keys.and_then(|k| k.final_key.as_ref()).ok_or_else(unknown)?;
            let key = temporary.final_key(salt, device, &held.revision);
            let policy = Some(held).filter(|h| h.key == key.hash()).map(|h| h.revision.clone());
            return Ok(Self::acknowledged(device, key, policy.ok_or_else(unknown)?));
        }
        let salt = keys::salt().map_err(no_random_numbers)?;
        // Without an offer there is no key, and the step says why.
        let policy = keys.and_then(|k| k.offer.as_ref()).map(|o| o.revision.clone());
        let key = policy.as_ref().map(|policy| temporary.final_key(&salt, device, policy));
        let signal = Signal::Acknowledge {
            temporary: temporary.hash(),
            fresh: key.as_ref().unwrap_or(temporary).hash(),
        };
        let step = self.step(device, signal)?;
        let (key, policy) = key.zip(policy).ok_or_else(unknown)?;
        self.loosen(&[step], &[], ask.cause().with(policy.as_str()));
        Ok(Self::acknowledged(device, key, policy).holding(Held::Salt(salt)))
    }

    fn acknowledged(device: &DeviceId, key: PolicyKey, policy: PolicyRevision) -> Decided<AcknowledgeOutcome> {
        let id = device.clone();
        Decided::new(Subject::Nothing, move |w, settled| {
            settled.durable()?;
            Ok(AcknowledgeOutcome {
                key,
                policy,
                device: w.device(&id)?,
                revision: w.registry.revision,
            })
        })
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
        if !ask.again {
            // Of a list; one alone has caught up. Before any is decided: it may settle the batch, which must have nothing yet of what this
            // command answers for.
            devices.iter().for_each(|device| self.catch_up(device));
        }
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
        let renewed = devices.iter().zip(&refused).filter(|(_, refusal)| refusal.is_none());
        let renewed = renewed.map(|(device, _)| device.clone()).collect();
        let (context, action) = (ask.context.clone(), ask.action);
        Ok(Decided::new(Subject::Devices(renewed), move |w, settled| {
            settled.durable()?;
            let mut each = settled.each.into_iter();
            let mut one = |(device, refusal): (DeviceId, Option<Refusal>)| {
                let outcome = match refusal {
                    None => w.outcome(&device, each.next().unwrap_or_default(), true),
                    Some(refusal) => Err(refusal),
                };
                let refuse = |refusal| w.refuse_part(refusal, Cause::of(&context, action), &About::device(&device));
                let result = outcome.map_err(refuse);
                Renewal { device, result }
            };
            let renewals = devices.into_iter().zip(refused).map(&mut one).collect();
            Ok(RenewOutcome {
                renewals,
                revision: w.registry.revision,
            })
        }))
    }
}

fn no_random_numbers(e: getrandom::Error) -> Refusal {
    Refusal::Kernel(format!("there are no random numbers for a key: {e}"))
}
