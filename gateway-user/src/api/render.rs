//! Domain to protobuf. Pure: names of pools come from the configuration, times from the caller.

pub(super) mod device;
pub(super) mod operator;
pub(super) mod policy;

use std::net::IpAddr;

use gateway_ebpf::{
    abi::{self, Answers, RuleCount, ShadowCount},
    reason::Reason,
};
use lazaret_proto::v1;
use prost_types::Timestamp;

use super::status;
use crate::{
    access::answer::escape,
    config::{Config, InterfaceRole, Mode, Pool, PoolKind},
    controller::{
        AddressEnforcement, AddressView, CloseOutcome, CounterView, Counters, DeviceView, Enforcement, OpenOutcome, SessionView,
        SignalOutcome, Status, SynchroniseOutcome, UriChange,
    },
    events::Event,
    explain::rules,
    kernel::{HookPoint, InterfaceState, Losses, ReadBack},
    model::{
        DeviceId, DeviceState, Exception, ExceptionKind, PoolId, RequestId, Trust, WallTime, Window,
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
    let level = enforcement(o.enforcement);
    let told = matches!(level, v1::Enforcement::Committed | v1::Enforcement::EnforcedNotDurable);
    let d = o.device.device;
    v1::ReportPolicyResponse {
        request_id: request.to_string(),
        position: 0,
        device_id: d.id.into(),
        refusal: None,
        enforcement: level.into(),
        prefixes: if told { prefixes(config, o.addresses) } else { Vec::new() },
        state: state(d.state).into(),
        lease_ends_at: o.device.lease_ends_at.map(timestamp),
        gateway_uri: d.gateway_uri.to_string(),
        store_revision: o.revision.0,
    }
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
        window: Some(window(d.enrolment.window)),
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

pub(super) fn window(w: Window) -> v1::EnrolmentWindow {
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
        prefixes: s.addresses.into_iter().map(prefix).collect(),
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

/// The answer to a whole list of sessions.
pub(super) fn synchronised(request: &RequestId, o: SynchroniseOutcome) -> v1::SynchroniseSessionsResponse {
    let refused = o.refused.into_iter().map(|(index, refusal)| v1::RefusedSession {
        index,
        reason: refusal.name().to_owned(),
        message: escape(&refusal.to_string()),
        metadata: status::metadata(&refusal),
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

/// How the gateway stands.
pub(super) fn gateway_status(s: Status) -> v1::GetStatusResponse {
    let mode = match s.mode {
        Mode::Enforce => "enforce",
        Mode::Observe => "observe",
    };
    let unknown = s.interfaces.as_ref().err().map_or_else(String::new, |e| escape(e));
    v1::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").into(),
        mode: mode.into(),
        floor: escape(&s.floor),
        interfaces: s.interfaces.into_iter().flatten().map(interface).collect(),
        interfaces_unknown: unknown,
        store_revision: s.revision.0,
        store: escape(&s.store),
        devices: s.devices,
        sessions: s.sessions,
        started_at: Some(timestamp(s.started_at)),
        warnings: s.warnings.iter().map(|w| escape(w)).collect(),
        not_durable: s.not_durable,
        events_suppressed: s.losses.suppressed,
        events_lost: s.losses.lost,
        events_repeated: s.losses.repeated,
        captures_lost: captures_lost(&s.losses),
        user: String::new(),
        capabilities: Vec::new(),
    }
}

/// A pool with its figures: `passed` and `dropped` in packets.
pub(super) fn pool(config: &Config, p: &Pool, session_addresses: u64, counters: &[CounterView]) -> v1::Pool {
    let kind = match p.kind {
        PoolKind::Quarantine => "quarantine",
        PoolKind::FullService => "full-service",
        PoolKind::Blocked => "blocked",
    };
    let packets = |pass: bool| {
        let own = counters.iter().filter(|c| c.pool == Some(p.id) && passes(c.reason) == pass);
        own.map(|c| c.count.packets).sum()
    };
    v1::Pool {
        name: p.name.to_string(),
        number: p.id.0.into(),
        kind: kind.into(),
        prefixes: p.prefixes.iter().map(ToString::to_string).collect(),
        policy: p.policy.to_string(),
        fallback: pool_name(config, p.fallback),
        gateway_uri: p.gateway_uri.to_string(),
        route_table: p.table.as_ref().map_or(0, |t| t.number),
        session_addresses,
        passed: packets(true),
        dropped: packets(false),
        lease_seconds: p.lease.map_or(0, |l| l.as_secs()),
        min_trust: trust(p.min_trust).into(),
    }
}

/// An address, as the kernel has it.
pub(super) fn address(config: &Config, v: AddressView) -> v1::Address {
    v1::Address {
        address: Shown(v.address).to_string(),
        home_pool: config.home(v.address).map(|p| p.name.to_string()).unwrap_or_default(),
        current_pool: pool_name(config, v.reading.pool),
        session_id: v.reading.session.map_or(0, |s| s.0),
        device_id: v.device.map(String::from).unwrap_or_default(),
        lease_ends_at: v.lease_ends_at.map(timestamp),
        map_id: v.reading.map_id,
    }
}

fn counter(config: &Config, c: CounterView) -> v1::Counter {
    v1::Counter {
        pool: pool_name(config, c.pool),
        reason_number: c.reason.into(),
        reason: reason_name(c.reason),
        passes: passes(c.reason),
        packets: c.count.packets,
        bytes: c.count.bytes,
    }
}

/// All counters; `only`: of this pool, and neither by rule nor by shadow policy.
pub(super) fn counters(config: &Config, c: Counters, only: Option<PoolId>) -> v1::GetCountersResponse {
    let wanted = |pool: Option<PoolId>| only.is_none() || pool == only;
    let rule = |(number, count): (u16, RuleCount)| {
        let found = rules::find(config, number);
        v1::RuleCounter {
            number: number.into(),
            policy: found.map(|(p, _)| p.name.to_string()).unwrap_or_default(),
            text: found.map(|(_, r)| rules::text(r)).unwrap_or_default(),
            packets: count.passed.packets,
            bytes: count.passed.bytes,
            shadow_drop_packets: count.shadow_drops.packets,
            shadow_drop_bytes: count.shadow_drops.bytes,
        }
    };
    let shadowed = |id: PoolId| config.pool_by_id(id).is_some_and(|p| p.shadow_policy.is_some());
    let shadow = |(id, count): (PoolId, ShadowCount)| v1::ShadowCounter {
        pool: pool_name(config, Some(id)),
        would_drop_packets: count.would_drop.packets,
        would_drop_bytes: count.would_drop.bytes,
        would_pass_packets: count.would_pass.packets,
        would_pass_bytes: count.would_pass.bytes,
    };
    let answer = |(id, a): (PoolId, Answers)| v1::AnswerCounter {
        pool: pool_name(config, Some(id)),
        sent: a.sent,
        limited: a.limited,
    };
    let (captures_lost, losses) = (captures_lost(&c.losses), c.losses);
    let pools = c.counters.into_iter().filter(|c| wanted(c.pool));
    // Those of the configuration, and those that have counted.
    let seen = |(n, count): &(u16, RuleCount)| *count != RuleCount::default() || rules::find(config, *n).is_some();
    v1::GetCountersResponse {
        counters: pools.map(|c| counter(config, c)).collect(),
        events_suppressed: losses.suppressed,
        events_lost: losses.lost,
        events_repeated: losses.repeated,
        captures_lost,
        rules: c.rules.into_iter().filter(|r| only.is_none() && seen(r)).map(rule).collect(),
        shadow: c
            .shadow
            .into_iter()
            .filter(|(id, count)| wanted(Some(*id)) && (shadowed(*id) || *count != ShadowCount::default()))
            .map(shadow)
            .collect(),
        answers: c
            .answers
            .into_iter()
            .filter(|(id, _)| wanted(Some(*id)))
            .map(answer)
            .collect(),
    }
}

/// Packets that captures did not get, for whatever reason.
pub(super) fn captures_lost(l: &Losses) -> u64 {
    l.captures_suppressed.saturating_add(l.captures_lost)
}

/// A denied packet; `interface` and `device` are looked up by the caller.
pub(super) fn denial(config: &Config, e: &Event, at: WallTime, interface: String, device: Option<&DeviceId>) -> v1::Denial {
    let r = &e.record;
    let reason = Reason::from_number(r.reason);
    let text = |a: Option<IpAddr>| a.map(|a| a.to_string()).unwrap_or_default();
    v1::Denial {
        at: Some(timestamp(at)),
        interface: escape(&interface),
        hook: hook_name(r.hook),
        source: text(e.source),
        destination: text(e.destination),
        protocol: if r.version == 0 { String::new() } else { protocol(r.protocol) },
        source_port: r.sport.into(),
        destination_port: r.dport.into(),
        length: r.len,
        pool: if r.pool == 0 {
            String::new()
        } else {
            pool_name(config, Some(PoolId(r.pool)))
        },
        device_id: device.map(ToString::to_string).unwrap_or_default(),
        reason_number: r.reason.into(),
        reason: reason_name(r.reason),
        sentence: reason.map(Reason::sentence).unwrap_or_default().into(),
        remedy: reason.map(Reason::remedy).unwrap_or_default().into(),
        observed: r.observed != 0,
    }
}

/// Which end of a denied packet is the device: on a device interface by direction, on a core interface the end that is in a pool.
pub(super) fn device_end(config: &Config, e: &Event) -> Option<IpAddr> {
    match e.record.hook {
        abi::hook::XDP_DEVICE | abi::hook::TC_DEVICE => e.source,
        abi::hook::TC_EGRESS => e.destination,
        _ => e.destination.filter(|a| config.home(*a).is_some()).or(e.source),
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

fn interface(i: InterfaceState) -> v1::InterfaceStatus {
    let role = match i.role {
        InterfaceRole::Device => "device",
        InterfaceRole::Core => "core",
    };
    let hooks = i.hooks.into_iter().map(|h| v1::HookStatus {
        hook: hook_point(h.hook).into(),
        mode: h.mode.into(),
        program_id: h.program_id.unwrap_or_default(),
        problem: escape(&h.problem),
    });
    v1::InterfaceStatus {
        name: i.name,
        ifindex: i.ifindex.unwrap_or_default(),
        role: role.into(),
        hooks: hooks.collect(),
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

fn hook_name(hook: u8) -> String {
    match hook {
        abi::hook::XDP_DEVICE => "xdp device".into(),
        abi::hook::XDP_CORE => "xdp core".into(),
        abi::hook::TC_DEVICE => "tc device".into(),
        abi::hook::TC_CORE => "tc core".into(),
        abi::hook::TC_EGRESS => "tc egress".into(),
        n => format!("number {n}"),
    }
}

fn reason_name(n: u8) -> String {
    Reason::from_number(n).map_or_else(|| format!("number {n}"), |r| r.name().into())
}

fn passes(reason: u8) -> bool {
    Reason::from_number(reason).is_some_and(Reason::passes)
}

/// IANA's keyword, lower case, for those that are seen; else the number.
fn protocol(number: u8) -> String {
    let name = match number {
        0 => "hopopt",
        1 => "icmp",
        2 => "igmp",
        4 => "ipv4",
        6 => "tcp",
        17 => "udp",
        33 => "dccp",
        41 => "ipv6",
        43 => "ipv6-route",
        44 => "ipv6-frag",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        58 => "ipv6-icmp",
        59 => "ipv6-nonxt",
        60 => "ipv6-opts",
        89 => "ospfigp",
        103 => "pim",
        112 => "vrrp",
        115 => "l2tp",
        132 => "sctp",
        136 => "udplite",
        n => return n.to_string(),
    };
    name.into()
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

    #[test]
    fn unknown_numbers_are_shown_never_hidden() {
        assert_eq!(protocol(6), "tcp");
        assert_eq!(protocol(253), "253");
        assert_eq!(reason_name(255), "number 255");
        assert!(!passes(255));
        assert_eq!(hook_name(0), "number 0");
    }
}
