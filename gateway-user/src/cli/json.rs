//! Answers as JSON, for programs. Keys are those of the .proto files and stay as they are; times are RFC 3339 in UTC, or null.

use lazaret_proto::v1;
use prost_types::Timestamp;
use serde_json::{Value, json};

pub(super) fn status(s: &v1::GetStatusResponse) -> Value {
    let hook = |h: &v1::HookStatus| json!({ "hook": h.hook, "mode": h.mode, "program_id": h.program_id, "attached": h.program_id != 0, "problem": h.problem });
    let interface = |i: &v1::InterfaceStatus| {
        let hooks: Vec<Value> = i.hooks.iter().map(hook).collect();
        json!({ "name": i.name, "ifindex": i.ifindex, "role": i.role, "hooks": hooks })
    };
    json!({
        "healthy": super::show::problems(s).is_empty(),
        "problems": super::show::problems(s),
        "version": s.version,
        "mode": s.mode,
        "floor": s.floor,
        "store": s.store,
        "store_revision": s.store_revision,
        "not_durable": s.not_durable,
        "devices": s.devices,
        "sessions": s.sessions,
        "started_at": time(s.started_at.as_ref()),
        "looked_at": time(s.looked_at.as_ref()),
        "interfaces": s.interfaces.iter().map(interface).collect::<Vec<_>>(), "interfaces_unknown": s.interfaces_unknown,
        "warnings": s.warnings,
        "events_suppressed": s.events_suppressed, "events_lost": s.events_lost, "events_repeated": s.events_repeated,
        "captures_lost": s.captures_lost,
        "user": s.user, "capabilities": s.capabilities,
    })
}

pub(super) fn pool(p: &v1::Pool) -> Value {
    json!({
        "name": p.name, "number": p.number, "kind": p.kind, "prefixes": p.prefixes, "policy": p.policy, "fallback": p.fallback,
        "gateway_uri": p.gateway_uri, "route_table": p.route_table, "session_addresses": p.session_addresses,
        "passed": p.passed, "dropped": p.dropped,
    })
}

pub(super) fn address(a: &v1::Address) -> Value {
    json!({
        "address": a.address, "home_pool": a.home_pool, "current_pool": a.current_pool, "session_id": a.session_id,
        "device_id": a.device_id, "lease_ends_at": time(a.lease_ends_at.as_ref()), "map_id": a.map_id,
    })
}

pub(super) fn device(d: &v1::Device) -> Value {
    let aliases = d.aliases.clone().unwrap_or_default();
    json!({
        "device_id": d.device_id, "owner": d.owner, "full_service_pool": d.full_service_pool,
        "aliases": { "common_names": aliases.common_names, "certificate_sha256": aliases.certificate_sha256, "vpn_public_keys": aliases.vpn_public_keys },
        "state": super::show::state(d.state), "state_reason": d.state_reason, "state_since": time(d.state_since.as_ref()),
        "policy_revision": d.policy_revision, "gateway_uri": d.gateway_uri, "lease_ends_at": time(d.lease_ends_at.as_ref()),
        "sessions": d.sessions.iter().map(session).collect::<Vec<_>>(), "revision": d.revision,
        "window": window(d.window.as_ref()), "enrolled_at": time(d.enrolled_at.as_ref()), "arrived_at": time(d.arrived_at.as_ref()),
        "arrived_outside_at": time(d.arrived_outside_at.as_ref()), "deadline_at": time(d.deadline_at.as_ref()),
        "offer": d.offer.as_ref().map(|o| json!({ "policy_revision": o.policy_revision, "ends_at": time(o.ends_at.as_ref()) })),
        "acknowledged_policy_revision": d.acknowledged_policy_revision, "required_policy_revision": d.required_policy_revision,
        "exception": d.exception.as_ref().map(|e| json!({
            "kind": super::show::exception_kind(e.kind), "reason": e.reason, "granted_by": e.granted_by,
            "ends_at": time(e.ends_at.as_ref()),
        })),
        "proved_at": time(d.proved_at.as_ref()),
    })
}

pub(super) fn window(w: Option<&v1::EnrolmentWindow>) -> Value {
    let bound = |at: Option<&Timestamp>| time(at);
    json!({
        "not_before": bound(w.and_then(|w| w.not_before.as_ref())), "not_after": bound(w.and_then(|w| w.not_after.as_ref())),
    })
}

pub(super) fn audit_entry(e: &v1::AuditEntry) -> Value {
    json!({
        "number": e.number, "at": time(e.at.as_ref()), "by": e.by, "action": e.action, "device_id": e.device_id, "subject": e.subject,
        "before": e.before, "after": e.after, "reason": e.reason, "request_id": e.request_id, "result": e.result,
    })
}

pub(super) fn refusal(r: &v1::RecentRefusal) -> Value {
    json!({
        "number": r.number, "first_at": time(r.first_at.as_ref()), "last_at": time(r.last_at.as_ref()), "count": r.count, "by": r.by,
        "rpc": r.rpc, "code": r.code, "reason": r.reason, "message": r.message, "request_id": r.request_id,
        "audit_number": (r.audit_number > 0).then_some(r.audit_number),
    })
}

pub(super) fn publication(p: &v1::Publication) -> Value {
    json!({
        "policy_revision": p.policy_revision, "published_at": time(p.published_at.as_ref()), "ceiling": p.ceiling,
        "rate_per_minute": p.rate_per_minute, "urgent": p.urgent, "paused": p.paused, "done": p.done, "waiting": p.waiting,
        "waiting_connected": p.waiting_connected, "stale": p.stale, "stale_counted": p.stale_counted, "excepted": p.excepted,
        "ceiling_full_since": time(p.ceiling_full_since.as_ref()), "standstill": p.standstill,
    })
}

pub(super) fn session(s: &v1::Session) -> Value {
    json!({
        "session_id": s.session_id, "device_id": s.device_id, "prefixes": s.prefixes, "interface": s.interface, "source": s.source,
        "current_pool": s.current_pool, "opened_at": time(s.opened_at.as_ref()), "trust": super::show::trust(s.trust),
        "below_min_trust": s.below_min_trust,
    })
}

pub(super) fn counters(c: &v1::GetCountersResponse) -> Value {
    let counter = |c: &v1::Counter| {
        json!({
            "pool": c.pool, "reason_number": c.reason_number, "reason": c.reason, "passes": c.passes, "packets": c.packets,
            "bytes": c.bytes,
        })
    };
    let rule = |r: &v1::RuleCounter| {
        json!({
            "number": r.number, "policy": r.policy, "text": r.text, "packets": r.packets, "bytes": r.bytes,
            "shadow_drop_packets": r.shadow_drop_packets, "shadow_drop_bytes": r.shadow_drop_bytes,
        })
    };
    let shadow = |s: &v1::ShadowCounter| {
        json!({
            "pool": s.pool, "would_drop_packets": s.would_drop_packets, "would_drop_bytes": s.would_drop_bytes,
            "would_pass_packets": s.would_pass_packets, "would_pass_bytes": s.would_pass_bytes,
        })
    };
    json!({
        "counters": c.counters.iter().map(counter).collect::<Vec<_>>(),
        "answers": c.answers.iter().map(|a| json!({ "pool": a.pool, "sent": a.sent, "limited": a.limited })).collect::<Vec<_>>(),
        "rules": c.rules.iter().map(rule).collect::<Vec<_>>(), "shadow": c.shadow.iter().map(shadow).collect::<Vec<_>>(),
        "events_suppressed": c.events_suppressed, "events_lost": c.events_lost, "events_repeated": c.events_repeated,
        "captures_lost": c.captures_lost,
    })
}

pub(super) fn denial(d: &v1::Denial) -> Value {
    json!({
        "at": time(d.at.as_ref()), "interface": d.interface, "hook": d.hook, "source": d.source, "destination": d.destination,
        "protocol": d.protocol, "source_port": d.source_port, "destination_port": d.destination_port, "length": d.length,
        "pool": d.pool, "device_id": d.device_id, "reason_number": d.reason_number, "reason": d.reason, "sentence": d.sentence,
        "remedy": d.remedy, "observed": d.observed,
    })
}

pub(super) fn prefixes(prefixes: &[v1::PrefixEnforcement]) -> Value {
    let reading = |r: &v1::ReadBack| {
        json!({
            "interface": r.interface, "ifindex": r.ifindex, "hook": r.hook, "not_attached": r.not_attached, "program_id": r.program_id,
            "map_id": r.map_id, "pool": r.pool, "as_wanted": r.as_wanted,
        })
    };
    let prefix = |p: &v1::PrefixEnforcement| json!({ "prefix": p.prefix, "read_backs": p.read_backs.iter().map(reading).collect::<Vec<_>>() });
    prefixes.iter().map(prefix).collect()
}

/// RFC 3339 in UTC, to the millisecond; null: unset, or out of range.
pub(super) fn time(at: Option<&Timestamp>) -> Value {
    text_of(at).map_or(Value::Null, Value::String)
}

/// As [`time`], as text.
pub(super) fn text_of(at: Option<&Timestamp>) -> Option<String> {
    let at = at.filter(|at| YEARS.contains(&at.seconds))?;
    Some(humantime::format_rfc3339_millis(std::time::SystemTime::try_from(*at).ok()?).to_string())
}

/// 1970 to 9999, which humantime can write; it panics on others.
const YEARS: std::ops::Range<i64> = 0..253_402_300_800;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let at = |seconds, nanos| text_of(Some(&Timestamp { seconds, nanos }));
        assert_eq!(at(1_700_000_000, 5_000_000).as_deref(), Some("2023-11-14T22:13:20.005Z"));
        assert_eq!(text_of(None), None);
        for far in [i64::MAX, i64::MIN, 253_402_300_800, -1] {
            assert_eq!(at(far, 0), None, "{far}");
        }
    }
}
