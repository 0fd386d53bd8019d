//! Protobuf to domain: one conversion for each request that carries something, and one error that names the field. Nothing is left out,
//! repaired or guessed: one bad element refuses the request. Texts of the caller are never repeated in an error; they may hold anything.

pub(super) mod operator;
pub(super) mod policy;

use std::{collections::HashSet, fmt::Display, net::IpAddr, str::FromStr};

use lazaret_proto::v1;
use prost_types::Timestamp;

use super::command::Caller;
use crate::{
    controller::{Acknowledge, PolicyKey, Registration, SessionReport, SignalContext},
    model::{
        DeviceId, DeviceState, Fingerprint, InterfaceName, PolicyRevision, PoolName, RequestId, Revision, SessionId, SourceName,
        VpnKey, WallTime, Window, prefix,
    },
};

/// Most devices in one registration.
pub const MAX_REGISTRATIONS: usize = 1000;
/// Most leases in one renewal.
const MAX_RENEWALS: usize = 1000;
/// Most reports in one synchronisation.
pub const MAX_REPORTS: usize = 65_536;
/// Most addresses of a session.
pub const MAX_ADDRESSES: usize = 16;
/// Most common names, and most certificates, of a device.
pub const MAX_ALIASES: usize = 64;
/// Most characters of a text for people.
pub const MAX_TEXT: usize = 256;

/// A request with a field that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Invalid {
    reason: &'static str,
    field: String,
    problem: String,
}

impl Invalid {
    /// A field with what is wrong with it. The reason is `INVALID_ARGUMENT`.
    pub fn new(field: impl Into<String>, problem: impl Display) -> Self {
        Self::with_reason("INVALID_ARGUMENT", field, problem)
    }
    /// Likewise with a reason of its own.
    pub fn with_reason(reason: &'static str, field: impl Into<String>, problem: impl Display) -> Self {
        Self {
            reason,
            field: field.into(),
            problem: problem.to_string(),
        }
    }
    /// For programs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }
    /// Path of the field, e.g. `devices[3].aliases.common_names[0]`.
    #[must_use]
    pub fn field(&self) -> &str {
        &self.field
    }
    /// What is wrong, for people.
    #[must_use]
    pub fn problem(&self) -> &str {
        &self.problem
    }
    fn within(mut self, outer: impl Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
    fn element(self, list: &str, index: usize) -> Self {
        self.within(format_args!("{list}[{index}]"))
    }
}

/// Devices to register.
pub(super) fn register(r: v1::RegisterDevicesRequest, by: Caller) -> Result<(SignalContext, Vec<Registration>), Invalid> {
    let context = context(r.context, by)?;
    if r.devices.is_empty() || r.devices.len() > MAX_REGISTRATIONS {
        return Err(Invalid::new(
            "devices",
            format_args!("must have 1 to {MAX_REGISTRATIONS} elements"),
        ));
    }
    let mut seen = HashSet::with_capacity(r.devices.len());
    let mut devices = Vec::with_capacity(r.devices.len());
    for (i, device) in r.devices.into_iter().enumerate() {
        let device = registration(device).map_err(|e| e.element("devices", i))?;
        if !seen.insert(device.id.clone()) {
            return Err(Invalid::new(format!("devices[{i}].device_id"), "stands twice in the request"));
        }
        devices.push(device);
    }
    Ok((context, devices))
}

/// A policy that is applied.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) device: DeviceId,
    pub(super) revision: PolicyRevision,
    pub(super) key: Option<PolicyKey>,
}

/// A policy that is applied. `observed_at` is required: it tells an old signal from a new one.
pub(super) fn policy_applied(r: v1::ReportPolicyAppliedRequest, by: Caller) -> Result<(SignalContext, Applied), Invalid> {
    let context = context(r.context, by)?;
    if context.observed_at.is_none() {
        return Err(Invalid::new(
            "context.observed_at",
            "is required: when the device was seen with its policy applied",
        ));
    }
    let key = given(r.policy_key);
    Ok((
        context,
        Applied {
            device: name("device_id", r.device_id)?,
            revision: name("policy_revision", r.policy_revision)?,
            key: key.map(|k| policy::key("policy_key", &k)).transpose()?,
        },
    ))
}

/// A policy that no longer holds.
pub(super) fn policy_revoked(
    r: v1::ReportPolicyRevokedRequest,
    by: Caller,
) -> Result<(SignalContext, DeviceId, String), Invalid> {
    let context = restricting(r.context, by)?;
    Ok((context, name("device_id", r.device_id)?, note(&r.reason)))
}

/// A device that is no longer managed.
pub(super) fn retire(r: v1::RetireDeviceRequest, by: Caller) -> Result<(SignalContext, DeviceId), Invalid> {
    Ok((restricting(r.context, by)?, name("device_id", r.device_id)?))
}

/// A device that is asked for.
pub(super) fn get_device(r: v1::GetDeviceRequest) -> Result<DeviceId, Invalid> {
    name("device_id", r.device_id)
}

/// A device that is to be explained, with how many of its last events.
pub(super) fn explain_device(r: v1::ExplainDeviceRequest) -> Result<(DeviceId, u32), Invalid> {
    let events = if r.events == 0 { 20 } else { r.events.min(200) };
    Ok((name("device_id", r.device_id)?, events))
}

/// The state that a list is limited to.
pub(super) fn state_filter(state: i32) -> Result<Option<DeviceState>, Invalid> {
    let known = v1::DeviceState::try_from(state).map_err(|_| Invalid::new("state", "is no DeviceState"))?;
    Ok(match known {
        v1::DeviceState::Unspecified => None,
        v1::DeviceState::Registered => Some(DeviceState::Registered),
        v1::DeviceState::Quarantined => Some(DeviceState::Quarantined),
        v1::DeviceState::PolicyPending => Some(DeviceState::PolicyPending),
        v1::DeviceState::Released => Some(DeviceState::Released),
        v1::DeviceState::Stale => Some(DeviceState::Stale),
        v1::DeviceState::Blocked => Some(DeviceState::Blocked),
        v1::DeviceState::Retired => Some(DeviceState::Retired),
    })
}

/// Where a watch starts; `None`: now.
pub(super) fn watch(r: v1::WatchGatewayUrisRequest) -> Option<Revision> {
    r.after_revision.map(Revision)
}

/// A session that opens.
pub(super) fn open_session(r: v1::OpenSessionRequest, by: Caller) -> Result<(SignalContext, SourceName, SessionReport), Invalid> {
    let context = context(r.context, by)?;
    let source = name("source", r.source)?;
    let session = r.session.ok_or_else(|| Invalid::new("session", "is required"))?;
    Ok((context, source, session_report(session).map_err(|e| e.within("session"))?))
}

/// A session that has ended.
pub(super) fn close_session(r: v1::CloseSessionRequest, by: Caller) -> Result<(SignalContext, SessionId), Invalid> {
    let context = context(r.context, by)?;
    match r.session_id {
        0 => Err(Invalid::new(
            "session_id",
            "is required: the number that OpenSession answered",
        )),
        id => Ok((context, SessionId(id))),
    }
}

/// The whole list of a VPN server. An address stands in one report only.
pub(super) fn synchronise(
    r: v1::SynchroniseSessionsRequest,
    by: Caller,
) -> Result<(SignalContext, SourceName, Vec<SessionReport>), Invalid> {
    let context = context(r.context, by)?;
    let source = name("source", r.source)?;
    if r.sessions.len() > MAX_REPORTS {
        return Err(Invalid::new(
            "sessions",
            format_args!("must have at most {MAX_REPORTS} elements"),
        ));
    }
    let mut seen = HashSet::with_capacity(r.sessions.len());
    let mut reports = Vec::with_capacity(r.sessions.len());
    for (i, report) in r.sessions.into_iter().enumerate() {
        let report = session_report(report).map_err(|e| e.element("sessions", i))?;
        if let Some(j) = report.addresses.iter().position(|a| !seen.insert(*a)) {
            return Err(Invalid::new(
                format!("sessions[{i}].prefixes[{j}]"),
                "stands twice in the request",
            ));
        }
        reports.push(report);
    }
    Ok((context, source, reports))
}

/// An address that is asked for; `None`: no limit to one.
pub(super) fn address_filter(address: &str) -> Result<Option<IpAddr>, Invalid> {
    if address.is_empty() {
        return Ok(None);
    }
    let wrong = || Invalid::with_reason("INVALID_ADDRESS", "address", "must be an IPv4 or IPv6 address");
    prefix::plain(address.parse().map_err(|_| wrong())?)
        .map(Some)
        .ok_or_else(wrong)
}

fn context(c: Option<v1::SignalContext>, caller: Caller) -> Result<SignalContext, Invalid> {
    // `acknowledge` and `deadline_ms` are the caller's already: they are no part of what he says.
    let v1::SignalContext {
        request_id,
        observed_at,
        acknowledge: _,
        deadline_ms: _,
    } = c.ok_or_else(|| Invalid::new("context", "is required"))?;
    let inner = || -> Result<SignalContext, Invalid> {
        Ok(SignalContext {
            by: caller.by,
            request: name::<RequestId>("request_id", request_id)?,
            observed_at: observed_at.map(|t| time("observed_at", t)).transpose()?,
            digest: Some(caller.digest),
            acknowledge: acknowledge(caller.acknowledge)?,
            deadline: caller.deadline,
            place: caller.place,
        })
    };
    inner().map_err(|e| e.within("context"))
}

/// That of a restriction, which is not refused for a moment that cannot be: it counts from when it comes.
fn restricting(c: Option<v1::SignalContext>, caller: Caller) -> Result<SignalContext, Invalid> {
    let usable = |t: &Timestamp| time("observed_at", *t).is_ok();
    let c = c.map(|c| v1::SignalContext {
        observed_at: c.observed_at.filter(usable),
        ..c
    });
    context(c, caller)
}

fn acknowledge(level: i32) -> Result<Acknowledge, Invalid> {
    match v1::Acknowledge::try_from(level) {
        Ok(v1::Acknowledge::Unspecified | v1::Acknowledge::Enforced) => Ok(Acknowledge::Enforced),
        Ok(v1::Acknowledge::Committed) => Ok(Acknowledge::Committed),
        Err(_) => Err(Invalid::new("acknowledge", "is no Acknowledge")),
    }
}

fn time(field: &str, t: Timestamp) -> Result<WallTime, Invalid> {
    /// The years 1 to 9999, as `google.protobuf.Timestamp` documents its range.
    const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
    if !SECONDS.contains(&t.seconds) || !(0..1_000_000_000).contains(&t.nanos) {
        return Err(Invalid::new(
            field,
            "must be a google.protobuf.Timestamp: years 1 to 9999, nanos 0 to 999,999,999",
        ));
    }
    Ok(WallTime(t.seconds * 1000 + i64::from(t.nanos / 1_000_000)))
}

// Taken apart by name, so that a field that is not read does not compile.
fn registration(d: v1::DeviceRegistration) -> Result<Registration, Invalid> {
    let v1::DeviceRegistration {
        device_id,
        owner,
        full_service_pool,
        aliases,
        window: period,
    } = d;
    let v1::Aliases {
        common_names,
        certificate_sha256,
        vpn_public_keys,
    } = aliases.unwrap_or_default();
    let within = |e: Invalid| e.within("aliases");
    Ok(Registration {
        id: name("device_id", device_id)?,
        owner: text("owner", owner)?,
        full_service_pool: optional_name::<PoolName>("full_service_pool", full_service_pool)?,
        common_names: list("common_names", common_names, name).map_err(within)?,
        certificates: list("certificate_sha256", certificate_sha256, |f, s| fingerprint(f, &s)).map_err(within)?,
        vpn_keys: list("vpn_public_keys", vpn_public_keys, |f, s| vpn_key(f, &s)).map_err(within)?,
        window: window(period.unwrap_or_default()).map_err(|e| e.within("window"))?,
    })
}

/// Both bounds count themselves, so that they may be the same moment.
fn window(w: v1::EnrolmentWindow) -> Result<Window, Invalid> {
    let not_before = w.not_before.map(|t| time("not_before", t)).transpose()?;
    let not_after = w.not_after.map(|t| time("not_after", t)).transpose()?;
    match (not_before, not_after) {
        (Some(from), Some(to)) if to < from => Err(Invalid::new("not_after", "must not be before not_before")),
        _ => Ok(Window { not_before, not_after }),
    }
}

fn session_report(r: v1::SessionReport) -> Result<SessionReport, Invalid> {
    let v1::SessionReport {
        device_name,
        certificate_sha256,
        prefixes,
        interface,
        vpn_public_key,
    } = r;
    let certificate = given(certificate_sha256)
        .map(|c| fingerprint("certificate_sha256", &c))
        .transpose()?;
    let vpn_key = given(vpn_public_key).map(|k| vpn_key("vpn_public_key", &k)).transpose()?;
    if prefixes.is_empty() || prefixes.len() > MAX_ADDRESSES {
        return Err(Invalid::new(
            "prefixes",
            format_args!("must have 1 to {MAX_ADDRESSES} elements"),
        ));
    }
    let mut addresses = Vec::with_capacity(prefixes.len());
    for (i, text) in prefixes.iter().enumerate() {
        let address = prefix::parse(text).map_err(|p| Invalid::new(format!("prefixes[{i}]"), p))?;
        if addresses.iter().any(|a| prefix::overlap(*a, address)) {
            return Err(Invalid::new(format!("prefixes[{i}]"), "stands twice in the session"));
        }
        addresses.push(address);
    }
    Ok(SessionReport {
        device_name: name("device_name", device_name)?,
        certificate,
        vpn_key,
        addresses,
        interface: name::<InterfaceName>("interface", interface)?,
    })
}

/// What is not left empty.
fn given(value: String) -> Option<String> {
    Some(value).filter(|v| !v.is_empty())
}

/// A name of the model, from its field.
fn name<T>(field: &str, value: String) -> Result<T, Invalid>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    T::try_from(value).map_err(|e| Invalid::new(field, e))
}

/// A name that may be left empty.
fn optional_name<T>(field: &str, value: String) -> Result<Option<T>, Invalid>
where
    T: TryFrom<String>,
    T::Error: Display,
{
    given(value).map(|v| name(field, v)).transpose()
}

fn fingerprint(field: &str, value: &str) -> Result<Fingerprint, Invalid> {
    Fingerprint::from_str(value).map_err(|e| Invalid::new(field, e))
}

fn vpn_key(field: &str, value: &str) -> Result<VpnKey, Invalid> {
    VpnKey::from_str(value).map_err(|e| Invalid::new(field, e))
}

/// At most [`MAX_ALIASES`] different elements.
fn list<T: PartialEq>(
    field: &str,
    values: Vec<String>,
    parse: impl Fn(&str, String) -> Result<T, Invalid>,
) -> Result<Vec<T>, Invalid> {
    if values.len() > MAX_ALIASES {
        return Err(Invalid::new(field, format_args!("must have at most {MAX_ALIASES} elements")));
    }
    let mut parsed = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        let value = parse(&field, value)?;
        if parsed.contains(&value) {
            return Err(Invalid::new(field, "stands twice in the list"));
        }
        parsed.push(value);
    }
    Ok(parsed)
}

/// A text for people. Besides control characters, what turns the direction of a line or breaks it is refused: it would let one text
/// show itself as another in a log or a table.
pub(super) fn text(field: &str, value: String) -> Result<String, Invalid> {
    if value.chars().count() > MAX_TEXT || value.chars().any(harmful) {
        return Err(Invalid::new(
            field,
            format_args!("must have at most {MAX_TEXT} characters and no control characters"),
        ));
    }
    Ok(value)
}

/// Text beside a restriction, which is not refused for it: cut, and with U+FFFD for what must not be shown.
pub(super) fn note(value: &str) -> String {
    let shown = |c| if harmful(c) { char::REPLACEMENT_CHARACTER } else { c };
    value.chars().take(MAX_TEXT).map(shown).collect()
}

/// Would move the cursor, or show something else than is written.
fn harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests;
