//! PolicyService's requests.

use std::{collections::HashSet, str::FromStr as _};

use lazaret_proto::v1;

use super::{Invalid, MAX_RENEWALS, context, name};
use crate::{
    api::command::Caller,
    controller::{PolicyKey, SignalContext},
    model::{DeviceId, PolicyRevision},
};

/// A revision that is published.
#[derive(Debug)]
pub(in crate::api) struct Publish {
    pub(in crate::api) revision: PolicyRevision,
    /// 0: none.
    pub(in crate::api) ceiling: u32,
    /// A minute; 0: none.
    pub(in crate::api) rate: u32,
}

/// A policy that is offered.
pub(in crate::api) fn offer(
    r: v1::OfferPolicyRequest,
    caller: Caller,
) -> Result<(SignalContext, DeviceId, PolicyRevision), Invalid> {
    Ok((
        context(r.context, caller)?,
        name("device_id", r.device_id)?,
        name("policy_revision", r.policy_revision)?,
    ))
}

/// An offer that is acknowledged.
pub(in crate::api) fn acknowledge(
    r: v1::AcknowledgePolicyRequest,
    caller: Caller,
) -> Result<(SignalContext, DeviceId, PolicyKey), Invalid> {
    Ok((
        context(r.context, caller)?,
        name("device_id", r.device_id)?,
        key("temporary_key", &r.temporary_key)?,
    ))
}

/// Leases that are renewed.
pub(in crate::api) fn renew(r: v1::RenewLeasesRequest, caller: Caller) -> Result<(SignalContext, Vec<DeviceId>), Invalid> {
    let context = context(r.context, caller)?;
    if r.device_ids.is_empty() || r.device_ids.len() > MAX_RENEWALS {
        return Err(Invalid::new(
            "device_ids",
            format_args!("must have 1 to {MAX_RENEWALS} elements"),
        ));
    }
    let mut seen = HashSet::with_capacity(r.device_ids.len());
    let mut devices = Vec::with_capacity(r.device_ids.len());
    for (i, id) in r.device_ids.into_iter().enumerate() {
        let field = format!("device_ids[{i}]");
        let id: DeviceId = name(&field, id)?;
        if !seen.insert(id.clone()) {
            return Err(Invalid::new(field, "stands twice in the request"));
        }
        devices.push(id);
    }
    Ok((context, devices))
}

/// One lease that is renewed, in a stream.
pub(in crate::api) fn renew_one(r: v1::RenewLeaseSignal, caller: Caller) -> Result<(SignalContext, DeviceId), Invalid> {
    Ok((context(r.context, caller)?, name("device_id", r.device_id)?))
}

/// A revision that is published. What limits it is said, or that nothing does: a 0 that was forgotten would quarantine everyone at once.
pub(in crate::api) fn publish(r: v1::PublishPolicyRevisionRequest, caller: Caller) -> Result<(SignalContext, Publish), Invalid> {
    let context = context(r.context, caller)?;
    let revision = name("policy_revision", r.policy_revision)?;
    for (field, value) in [("ceiling", r.ceiling), ("rate_per_minute", r.rate_per_minute)] {
        match (value, r.urgent) {
            (0, false) => return Err(Invalid::new(field, "must be at least 1, or `urgent` be set")),
            (1.., true) => return Err(Invalid::new(field, "must be 0 if `urgent` is set")),
            _ => {}
        }
    }
    let publish = Publish {
        revision,
        ceiling: r.ceiling,
        rate: r.rate_per_minute,
    };
    Ok((context, publish))
}

/// A context alone.
pub(in crate::api) fn alone(c: Option<v1::SignalContext>, caller: Caller) -> Result<SignalContext, Invalid> {
    context(c, caller)
}

/// A policy key. It is never repeated.
pub(in crate::api) fn key(field: &str, text: &str) -> Result<PolicyKey, Invalid> {
    PolicyKey::from_str(text).map_err(|e| Invalid::new(field, e))
}
