//! OperatorService's requests.

use std::time::Duration;

use lazaret_proto::v1;

use super::{Invalid, context, name, note, optional_name};
use crate::{
    api::command::Caller,
    controller::SignalContext,
    model::{DeviceId, ExceptionKind},
};

/// An exception that is granted.
#[derive(Debug)]
pub(in crate::api) struct Grant {
    pub(in crate::api) device: DeviceId,
    pub(in crate::api) kind: ExceptionKind,
    pub(in crate::api) reason: String,
    pub(in crate::api) length: Duration,
}

/// An exception that is granted: nothing of it has a default.
pub(in crate::api) fn grant(r: v1::GrantExceptionRequest, caller: Caller) -> Result<(SignalContext, Grant), Invalid> {
    let context = context(r.context, caller)?;
    let device = name("device_id", r.device_id)?;
    let kind = match v1::ExceptionKind::try_from(r.kind) {
        Ok(v1::ExceptionKind::Release) => ExceptionKind::Release,
        Ok(v1::ExceptionKind::Block) => ExceptionKind::Block,
        Ok(v1::ExceptionKind::Unspecified) | Err(_) => return Err(Invalid::new("kind", "must be RELEASE or BLOCK")),
    };
    let reason = note(&r.reason);
    if reason.trim().is_empty() {
        return Err(Invalid::new("reason", "is required: why, for the audit"));
    }
    if r.length_seconds == 0 {
        return Err(Invalid::new("length_seconds", "is required: how long it holds"));
    }
    let length = Duration::from_secs(r.length_seconds.into());
    Ok((
        context,
        Grant {
            device,
            kind,
            reason,
            length,
        },
    ))
}

/// An exception that is ended.
pub(in crate::api) fn end(r: v1::EndExceptionRequest, caller: Caller) -> Result<(SignalContext, DeviceId, String), Invalid> {
    Ok((context(r.context, caller)?, name("device_id", r.device_id)?, note(&r.reason)))
}

/// Whose entries of the audit are asked for.
pub(in crate::api) fn audit_filter(device: String) -> Result<Option<DeviceId>, Invalid> {
    optional_name("device_id", device)
}

/// The number of an entry of the audit.
pub(in crate::api) fn audit_number(number: u64) -> Result<u64, Invalid> {
    match number {
        0 => Err(Invalid::new("number", "is required: that of a reference code")),
        n => Ok(n),
    }
}
