//! Domain to protobuf. Pure: names of pools come from the configuration, times from the caller.

pub(super) mod device;
mod inspect;
pub(super) mod operator;
pub(super) mod policy;

use std::net::IpAddr;

use lazaret_proto::v1;
use prost_types::Timestamp;

pub(super) use self::inspect::{address, captures_lost, counters, denial, device_end, gateway_status, pool};
use super::status;
use crate::{
    config::Config,
    controller::{
        AddressEnforcement, CloseOutcome, DeviceView, Enforcement, OpenOutcome, SessionView, SignalOutcome, SynchroniseOutcome,
        UriChange,
    },
    kernel::{HookPoint, ReadBack},
    model::{
        DeviceState, Exception, ExceptionKind, PoolId, RequestId, Trust, WallTime, Window,
        prefix::{Shown, network},
    },
};

/// The answer to a signal.
pub(super) fn signal(config: &Config, request: &RequestId, o: SignalOutcome) -> v1::SignalResponse {
    v1::SignalResponse {
        request_id: request.to_string(),
        gateway_uri: o.device.device.gateway_uri.to_string(),
        device: Some(device(config, o.device)),
        enforcement: enforcement(o.enforcement).into(),
        prefixes: prefixes(config, o.addresses),
        store_revision: o.revision.0,
    }
}

/// The answer to a signal of a stream.
pub(super) fn reported(config: &Config, request: &RequestId, o: SignalOutcome) -> v1::ReportPolicyResponse {
    let (level, prefixes) = how_far(config, o.enforcement, o.addresses);
    let d = o.device.device;
    v1::ReportPolicyResponse {
        request_id: request.to_string(),
        position: 0,
        device_id: d.id.into(),
        refusal: None,
        enforcement: level.into(),
        prefixes,
        state: state(d.state).into(),
        lease_ends_at: o.device.lease_ends_at.map(timestamp),
        gateway_uri: d.gateway_uri.to_string(),
        store_revision: o.revision.0,
    }
}

/// How far a change got, and where it is not in force: of one among many.
fn how_far(
    config: &Config,
    level: Enforcement,
    addresses: Vec<AddressEnforcement>,
) -> (v1::Enforcement, Vec<v1::PrefixEnforcement>) {
    let level = enforcement(level);
    let told = matches!(level, v1::Enforcement::Committed | v1::Enforcement::EnforcedNotDurable);
    (level, if told { prefixes(config, addresses) } else { Vec::new() })
}

/// A device with its sessions.
pub(super) fn device(config: &Config, v: DeviceView) -> v1::Device {
    let d = v.device;
    v1::Device {
        device_id: d.id.into(),
        owner: d.owner.into(),
        full_service_pool: d.full_service_pool.into(),
        aliases: Some(v1::Aliases {
            common_names: d.aliases.common_names.iter().cloned().map(String::from).collect(),
            certificate_sha256: d.aliases.certificates.iter().map(ToString::to_string).collect(),
            vpn_public_keys: d.aliases.vpn_keys.iter().map(ToString::to_string).collect(),
        }),
        state: state(d.state).into(),
        state_reason: d.state_reason.to_string(),
        state_since: Some(timestamp(d.state_since)),
        policy_revision: d.policy_revision.map(String::from).unwrap_or_default(),
        gateway_uri: d.gateway_uri.to_string(),
        lease_ends_at: v.lease_ends_at.map(timestamp),
        sessions: v.sessions.into_iter().map(|s| session(config, s)).collect(),
        revision: d.revision.0,
        window: Some(window(&d.enrolment.window)),
        enrolled_at: d.enrolment.enrolled_at.map(timestamp),
        arrived_at: d.enrolment.arrived_at.map(timestamp),
        arrived_outside_at: d.enrolment.arrived_outside.map(timestamp),
        deadline_at: v.deadline_at.map(timestamp),
        offer: d.keys.offer.as_ref().map(|o| v1::PolicyOffer {
            policy_revision: o.revision.to_string(),
            ends_at: v.offer_ends_at.map(timestamp),
        }),
        acknowledged_policy_revision: d.keys.final_key.as_ref().map(|k| k.revision.to_string()).unwrap_or_default(),
        exception: d.exception.map(|e| exception(*e, v.exception_ends_at)),
        required_policy_revision: v.required.map(String::from).unwrap_or_default(),
        proved_at: d.release.proved.map(|n| timestamp(n.wall)),
    }
}

pub(super) fn window(w: &Window) -> v1::EnrolmentWindow {
    v1::EnrolmentWindow {
        not_before: w.not_before.map(timestamp),
        not_after: w.not_after.map(timestamp),
    }
}

fn exception(e: Exception, ends_at: Option<WallTime>) -> v1::DeviceException {
    let kind = match e.kind {
        ExceptionKind::Release => v1::ExceptionKind::Release,
        ExceptionKind::Block => v1::ExceptionKind::Block,
    };
    v1::DeviceException {
        kind: kind.into(),
        reason: e.reason,
        granted_by: e.by,
        ends_at: ends_at.map(timestamp),
    }
}

fn trust(t: Trust) -> v1::TrustLevel {
    match t {
        Trust::Name => v1::TrustLevel::Name,
        Trust::VpnKey => v1::TrustLevel::VpnKey,
        Trust::Certificate => v1::TrustLevel::Certificate,
    }
}

/// A live session.
pub(super) fn session(config: &Config, v: SessionView) -> v1::Session {
    let s = v.session;
    v1::Session {
        session_id: s.id.0,
        device_id: s.device.map(String::from).unwrap_or_default(),
        prefixes: s.addresses.iter().map(prefix).collect(),
        interface: s.interface.into(),
        source: s.source.into(),
        current_pool: pool_name(config, Some(v.current_pool)),
        opened_at: Some(timestamp(s.opened_at)),
        trust: trust(s.trust).into(),
        below_min_trust: v.below_min_trust,
    }
}

/// A GatewayURI that changed.
pub(super) fn uri_change(c: UriChange) -> v1::WatchGatewayUrisResponse {
    v1::WatchGatewayUrisResponse {
        revision: c.revision.0,
        device_id: c.device.into(),
        old_gateway_uri: c.old,
        new_gateway_uri: c.new,
        changed_at: Some(timestamp(c.at)),
        reason: c.reason,
    }
}

/// The answer to a session that opened.
pub(super) fn opened(config: &Config, request: &RequestId, o: OpenOutcome) -> v1::OpenSessionResponse {
    v1::OpenSessionResponse {
        request_id: request.to_string(),
        session: Some(session(config, o.session)),
        enforcement: enforcement(o.enforcement).into(),
        prefixes: prefixes(config, o.addresses),
        store_revision: o.revision.0,
        gateway_uri: o.gateway_uri,
    }
}

/// The answer to a session that closed.
pub(super) fn closed(request: &RequestId, o: CloseOutcome) -> v1::CloseSessionResponse {
    v1::CloseSessionResponse {
        request_id: request.to_string(),
        ended: o.ended,
        enforcement: enforcement(o.enforcement).into(),
        store_revision: o.revision.0,
    }
}

/// The answer to a whole list of sessions. `refer` gives a code to what was refused, where it has none.
pub(super) fn synchronised(
    request: &RequestId,
    o: SynchroniseOutcome,
    mut refer: impl FnMut(&mut v1::Refusal),
) -> v1::SynchroniseSessionsResponse {
    let refused = o.refused.into_iter().map(|(index, refused)| {
        let mut part = status::part(&refused);
        refer(&mut part);
        v1::RefusedSession {
            index,
            reason: part.reason,
            message: part.message,
            metadata: part.metadata,
        }
    });
    v1::SynchroniseSessionsResponse {
        request_id: request.to_string(),
        opened: o.opened,
        kept: o.kept,
        ended: o.ended,
        refused: refused.collect(),
        store_revision: o.revision.0,
    }
}

/// A point of time; before 1970 the nanoseconds still count forwards, as google.protobuf.Timestamp wants it.
pub(super) fn timestamp(t: WallTime) -> Timestamp {
    let nanos = i32::try_from(t.0.rem_euclid(1000) * 1_000_000).unwrap_or_default();
    Timestamp {
        seconds: t.0.div_euclid(1000),
        nanos,
    }
}

fn prefixes(config: &Config, all: Vec<AddressEnforcement>) -> Vec<v1::PrefixEnforcement> {
    let one = |a: AddressEnforcement| v1::PrefixEnforcement {
        prefix: prefix(a.address),
        read_backs: a.read_backs.into_iter().map(|r| read_back(config, r, a.wanted)).collect(),
    };
    all.into_iter().map(one).collect()
}

fn read_back(config: &Config, r: ReadBack, wanted: PoolId) -> v1::ReadBack {
    let reading = r.reading;
    v1::ReadBack {
        interface: r.interface.into(),
        ifindex: r.ifindex,
        hook: hook_point(r.hook).into(),
        not_attached: reading.is_none(),
        program_id: reading.map_or(0, |p| p.program_id),
        map_id: reading.map_or(0, |p| p.map_id),
        pool: pool_name(config, reading.and_then(|p| p.pool)),
        as_wanted: reading.is_some_and(|p| p.pool == Some(wanted)),
    }
}

fn prefix(a: IpAddr) -> String {
    if network(a).is_some() {
        return Shown(a).to_string();
    }
    format!("{a}/{}", if a.is_ipv4() { 32 } else { 128 })
}

/// A pool's name. Empty: none. A number that the configuration does not know is shown as such: the kernel has what the daemon has not.
pub(super) fn pool_name(config: &Config, id: Option<PoolId>) -> String {
    let known = |id: PoolId| {
        config
            .pool_by_id(id)
            .map_or_else(|| format!("number {}", id.0), |p| p.name.to_string())
    };
    id.map(known).unwrap_or_default()
}

pub(super) fn state(s: DeviceState) -> v1::DeviceState {
    match s {
        DeviceState::Registered => v1::DeviceState::Registered,
        DeviceState::Quarantined => v1::DeviceState::Quarantined,
        DeviceState::PolicyPending => v1::DeviceState::PolicyPending,
        DeviceState::Released => v1::DeviceState::Released,
        DeviceState::Stale => v1::DeviceState::Stale,
        DeviceState::Blocked => v1::DeviceState::Blocked,
        DeviceState::Retired => v1::DeviceState::Retired,
    }
}

fn enforcement(e: Enforcement) -> v1::Enforcement {
    match e {
        Enforcement::Enforced => v1::Enforcement::Enforced,
        Enforcement::NoSession => v1::Enforcement::NoSession,
        Enforcement::Committed => v1::Enforcement::Committed,
        Enforcement::EnforcedNotDurable => v1::Enforcement::EnforcedNotDurable,
    }
}

/// A hook's name.
pub(super) fn hook_point(h: HookPoint) -> &'static str {
    match h {
        HookPoint::Xdp => "xdp",
        HookPoint::TcIngress => "tc ingress",
        HookPoint::TcEgress => "tc egress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_count_forwards_before_1970() {
        assert_eq!(
            timestamp(WallTime(1002)),
            Timestamp {
                seconds: 1,
                nanos: 2_000_000
            }
        );
        assert_eq!(
            timestamp(WallTime(-1)),
            Timestamp {
                seconds: -1,
                nanos: 999_000_000
            }
        );
    }
}
