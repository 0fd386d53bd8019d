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
        // That it is a wave's stays known until it has proved the newer revision.
        let reason = if device.is_stale() {
            StateReason::PolicyStale
        } else {
            StateReason::PolicyOffered
        };
        enter(device, DeviceState::PolicyPending, reason, &context.now);
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
    let offered = offer.holds.given;
    // How long a machine was off is not known by a clock that is behind.
    let unknown_time = context.clock_behind.is_some() && offered.boot_id != context.now.boot_id;
    if unknown_time || span::over(&offer.holds, &context.now) {
        return Err(Refusal::PolicyKeyExpired(device.id.clone()));
    }
    let revision = offer.revision.clone();
    device.keys.offer = None;
    device.keys.final_key = Some(FinalKey {
        key: fresh,
        revision,
        offered: Some(offered),
    });
    Ok(())
}

/// Whether what the final key proves is new by the order of things, without any date: its policy was offered in this boot, no longer ago than a
/// proof may be old, so that whoever has the key has got it since. That was after all that has restricted the device, too: a restriction
/// takes offers and keys away.
pub(super) fn is_fresh(device: &Device, context: &Context<'_>) -> bool {
    let offered = device.keys.final_key.as_ref().and_then(|k| k.offered);
    let age = |offered| lease(context.config.proofs.max_signal_age, offered);
    offered.is_some_and(|o| o.boot_id == context.now.boot_id && !span::over(&age(o), &context.now))
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
