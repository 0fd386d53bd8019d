//! The handshake of policy keys: an offer gives a temporary key, which is taken once for a final one. Only hashes come here.

use super::{Context, enter, lease, proof, span};
use crate::{
    model::{Device, DeviceState, FinalKey, KeyHash, Offer, PolicyRevision, StateReason},
    refusal::Refusal,
};

pub(super) fn offer(device: &mut Device, key: KeyHash, revision: &PolicyRevision, context: &Context<'_>) -> Result<(), Refusal> {
    proof::neither_retired_nor_blocked(device)?;
    proof::required(device, revision, context)?;
    device.keys.offer = Some(Offer {
        key,
        revision: context.policies.known(revision).unwrap_or(revision).clone(),
        holds: lease(context.config.proofs.offer_ttl, context.now),
    });
    if device.state.quarantined() {
        enter(device, DeviceState::PolicyPending, StateReason::PolicyOffered, &context.now);
    }
    Ok(())
}

pub(super) fn acknowledge(device: &mut Device, temporary: KeyHash, fresh: KeyHash, context: &Context<'_>) -> Result<(), Refusal> {
    proof::neither_retired_nor_blocked(device)?;
    let unknown = || Refusal::PolicyKeyUnknown(device.id.clone());
    let offer = device
        .keys
        .offer
        .as_ref()
        .filter(|o| o.key == temporary)
        .ok_or_else(unknown)?;
    if span::over(&offer.holds, &context.now) {
        return Err(Refusal::PolicyKeyExpired(device.id.clone()));
    }
    let revision = offer.revision.clone();
    device.keys.offer = None;
    device.keys.final_key = Some(FinalKey { key: fresh, revision });
    Ok(())
}

/// Whether this is the final key of this device for this revision.
pub(super) fn check(device: &Device, key: KeyHash, revision: &PolicyRevision) -> Result<(), Refusal> {
    let keys = &device.keys;
    match keys.final_key.as_ref().filter(|f| f.key == key) {
        Some(found) if found.revision == *revision => Ok(()),
        Some(found) => Err(Refusal::PolicyKeyRevision {
            device: device.id.clone(),
            bound: found.revision.clone(),
        }),
        None if keys.offer.as_ref().is_some_and(|o| o.key == key) => Err(Refusal::PolicyKeyTemporary(device.id.clone())),
        None => Err(Refusal::PolicyKeyUnknown(device.id.clone())),
    }
}
