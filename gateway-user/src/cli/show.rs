//! Answers as tables, for people.

mod counters;
mod status;

use lazaret_proto::v1;

pub(super) use self::{
    counters::{counters, rule_counters, shadow_counters, untold},
    status::{problems, status},
};
use super::{
    json::text_of,
    table::{Cell, Page, Tone, toned},
};

pub(super) fn pools(page: &mut Page, pools: &[v1::Pool]) {
    let row = |p: &v1::Pool| {
        vec![
            Cell::from(p.number),
            Cell::from(&p.name),
            Cell::from(&p.kind),
            Cell::from(p.prefixes.join(" ")),
            Cell::from(&p.policy),
            Cell::from(&p.fallback),
            Cell::from(&p.gateway_uri),
            number(p.route_table.into()),
            Cell::from(p.session_addresses),
            Cell::from(p.passed),
            Cell::from(p.dropped),
        ]
    };
    let headers = [
        "N",
        "POOL",
        "KIND",
        "PREFIXES",
        "POLICY",
        "FALLBACK",
        "GATEWAY URI",
        "TABLE",
        "ADDRESSES NOW",
        "PASSED",
        "DROPPED",
    ];
    page.table(&headers, &pools.iter().map(row).collect::<Vec<_>>());
}

pub(super) fn addresses(page: &mut Page, addresses: &[v1::Address]) {
    let row = |a: &v1::Address| {
        vec![
            Cell::from(&a.address),
            if a.home_pool.is_empty() {
                toned("in no pool", Tone::Warn)
            } else {
                Cell::from(&a.home_pool)
            },
            or_none(&a.current_pool),
            number(a.session_id),
            Cell::from(&a.device_id),
            Cell::from(text_of(a.lease_ends_at.as_ref()).unwrap_or_default()),
            number(a.map_id.into()),
        ]
    };
    let headers = [
        "ADDRESS",
        "HOME POOL",
        "CURRENT POOL",
        "SESSION",
        "DEVICE",
        "LEASE ENDS",
        "MAP",
    ];
    page.list(
        "no addresses of live sessions",
        &headers,
        &addresses.iter().map(row).collect::<Vec<_>>(),
    );
}

pub(super) fn devices(page: &mut Page, devices: &[v1::Device]) {
    let row = |d: &v1::Device| {
        vec![
            Cell::from(&d.device_id),
            state_cell(d.state),
            Cell::from(&d.state_reason),
            Cell::from(&d.owner),
            Cell::from(&d.full_service_pool),
            Cell::from(&d.gateway_uri),
            Cell::from(text_of(d.lease_ends_at.as_ref()).unwrap_or_default()),
            Cell::from(
                d.sessions
                    .iter()
                    .flat_map(|s| s.prefixes.clone())
                    .collect::<Vec<_>>()
                    .join(" "),
            ),
        ]
    };
    let headers = [
        "DEVICE",
        "STATE",
        "REASON",
        "OWNER",
        "FULL-SERVICE POOL",
        "GATEWAY URI",
        "LEASE ENDS",
        "ADDRESSES",
    ];
    page.list("no devices", &headers, &devices.iter().map(row).collect::<Vec<_>>());
}

pub(super) fn device(page: &mut Page, d: &v1::Device) {
    let aliases = d.aliases.clone().unwrap_or_default();
    page.pair("device", &d.device_id);
    page.pair("owner", &d.owner);
    page.pair("state", state_cell(d.state));
    page.pair("reason", &d.state_reason);
    page.pair("since", text_of(d.state_since.as_ref()).unwrap_or_default());
    page.pair("policy revision", &d.policy_revision);
    page.pair("lease ends", text_of(d.lease_ends_at.as_ref()).unwrap_or_default());
    page.pair("required revision", &d.required_policy_revision);
    let window = d.window.unwrap_or_default();
    if window.not_before.is_some() || window.not_after.is_some() {
        let bound = |at: Option<&prost_types::Timestamp>| text_of(at).unwrap_or_else(|| "open".into());
        page.pair(
            "enrolment window",
            format!(
                "{} to {}",
                bound(window.not_before.as_ref()),
                bound(window.not_after.as_ref())
            ),
        );
    }
    let set = |at: Option<&prost_types::Timestamp>| text_of(at);
    for (name, at) in [
        ("enrolled", set(d.enrolled_at.as_ref())),
        ("deadline", set(d.deadline_at.as_ref())),
        ("arrived outside", set(d.arrived_outside_at.as_ref())),
    ] {
        at.into_iter().for_each(|at| page.pair(name, at));
    }
    if let Some(e) = &d.exception {
        let until = text_of(e.ends_at.as_ref()).unwrap_or_default();
        page.pair(
            "exception",
            format!("{} until {until}, by {}: {}", exception_kind(e.kind), e.granted_by, e.reason),
        );
    }
    page.pair("full-service pool", &d.full_service_pool);
    page.pair("gateway URI", &d.gateway_uri);
    page.pair("common names", aliases.common_names.join(" "));
    page.pair("certificates", aliases.certificate_sha256.join(" "));
    page.pair("VPN keys", aliases.vpn_public_keys.join(" "));
    page.pair("revision", d.revision);
    if d.sessions.is_empty() {
        page.line("no live session");
    } else {
        page.line("");
        sessions(page, &d.sessions);
    }
}

/// An exception's kind, as a word.
pub(super) fn exception_kind(kind: i32) -> &'static str {
    match v1::ExceptionKind::try_from(kind) {
        Ok(v1::ExceptionKind::Release) => "release",
        Ok(v1::ExceptionKind::Block) => "block",
        Ok(v1::ExceptionKind::Unspecified) | Err(_) => "unknown",
    }
}

/// How well a session's device is known, as a word.
pub(super) fn trust(level: i32) -> &'static str {
    match v1::TrustLevel::try_from(level) {
        Ok(v1::TrustLevel::Name) => "name",
        Ok(v1::TrustLevel::VpnKey) => "vpn-key",
        Ok(v1::TrustLevel::Certificate) => "certificate",
        Ok(v1::TrustLevel::Unspecified) | Err(_) => "unknown",
    }
}

pub(super) fn sessions(page: &mut Page, sessions: &[v1::Session]) {
    let row = |s: &v1::Session| {
        vec![
            Cell::from(s.session_id),
            if s.device_id.is_empty() {
                toned("(unknown)", Tone::Warn)
            } else {
                Cell::from(&s.device_id)
            },
            Cell::from(s.prefixes.join(" ")),
            Cell::from(&s.interface),
            Cell::from(&s.source),
            Cell::from(&s.current_pool),
            Cell::from(text_of(s.opened_at.as_ref()).unwrap_or_default()),
        ]
    };
    let headers = [
        "SESSION",
        "DEVICE",
        "ADDRESSES",
        "INTERFACE",
        "SOURCE",
        "CURRENT POOL",
        "OPENED",
    ];
    page.list("no live sessions", &headers, &sessions.iter().map(row).collect::<Vec<_>>());
}

/// How far a change got, and each address as it was read back.
pub(super) fn enforcement(page: &mut Page, enforcement: i32, prefixes: &[v1::PrefixEnforcement], revision: u64) {
    let (text, tone) = match v1::Enforcement::try_from(enforcement) {
        Ok(v1::Enforcement::Enforced) => ("in force: durable, and read back from every attached program", Tone::Good),
        Ok(v1::Enforcement::NoSession) => ("durable; there is no live session to which it applies now", Tone::Plain),
        Ok(v1::Enforcement::Committed) => ("NOT IN FORCE EVERYWHERE: durable, and the gateway goes on trying", Tone::Bad),
        Ok(v1::Enforcement::EnforcedNotDurable) => (
            if prefixes.iter().flat_map(|p| &p.read_backs).all(|r| r.as_wanted) {
                "IN FORCE, NOT DURABLE: the store cannot be written, and the gateway goes on trying"
            } else {
                "NOT DURABLE, NOT IN FORCE EVERYWHERE: the store cannot be written, and the gateway goes on trying both"
            },
            Tone::Bad,
        ),
        Ok(v1::Enforcement::Unspecified) | Err(_) => ("unknown: the daemon does not say how far it got", Tone::Bad),
    };
    page.pair("enforcement", toned(text, tone));
    page.pair("store revision", revision);
    let mut rows = Vec::new();
    for p in prefixes {
        if p.read_backs.is_empty() {
            rows.push(vec![Cell::from(&p.prefix), toned("no interface with a role", Tone::Warn)]);
        }
        for r in &p.read_backs {
            let place = [Cell::from(&p.prefix), Cell::from(&r.interface), Cell::from(&r.hook)];
            let reading = if r.not_attached {
                [toned("not attached", Tone::Bad), Cell::default(), Cell::default()]
            } else {
                let pool = toned(&r.pool, if r.as_wanted { Tone::Good } else { Tone::Bad });
                [Cell::from(r.program_id), Cell::from(r.map_id), pool]
            };
            rows.push(place.into_iter().chain(reading).collect());
        }
    }
    if !rows.is_empty() {
        page.line("");
        page.table(&["PREFIX", "INTERFACE", "HOOK", "PROGRAM", "MAP", "POOL"], &rows);
    }
}

/// A device's state, as a word.
pub(super) fn state(number: i32) -> &'static str {
    match v1::DeviceState::try_from(number) {
        Ok(v1::DeviceState::Registered) => "registered",
        Ok(v1::DeviceState::Quarantined) => "quarantined",
        Ok(v1::DeviceState::PolicyPending) => "policy-pending",
        Ok(v1::DeviceState::Released) => "released",
        Ok(v1::DeviceState::Stale) => "stale",
        Ok(v1::DeviceState::Blocked) => "blocked",
        Ok(v1::DeviceState::Retired) => "retired",
        Ok(v1::DeviceState::Unspecified) | Err(_) => "unknown",
    }
}

fn state_cell(number: i32) -> Cell {
    let tone = match state(number) {
        "released" => Tone::Good,
        "quarantined" => Tone::Warn,
        "blocked" => Tone::Bad,
        _ => Tone::Plain,
    };
    toned(state(number), tone)
}

fn or_none(text: &str) -> Cell {
    if text.is_empty() {
        toned("-", Tone::Dim)
    } else {
        Cell::from(text)
    }
}

/// A number of which 0 means that there is none.
fn number(n: u64) -> Cell {
    if n == 0 { toned("-", Tone::Dim) } else { Cell::from(n) }
}
