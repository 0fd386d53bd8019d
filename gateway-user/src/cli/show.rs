//! Answers as tables, for people.

use lazaret_proto::v1;

use super::{
    json::text_of,
    table::{Cell, Page, Tone, toned},
};

/// User and capabilities.
fn running_as(s: &v1::GetStatusResponse) -> String {
    match s.capabilities.as_slice() {
        [] => format!("{}, without capabilities", s.user),
        held => format!("{} with {}", s.user, held.join(", ")),
    }
}

/// What keeps the gateway from doing its work; empty: healthy. An interface that does not exist yet is waited for and is no problem.
pub(super) fn problems(s: &v1::GetStatusResponse) -> Vec<String> {
    let mut found = Vec::new();
    if s.mode != "enforce" {
        found.push(format!("mode is {}: nothing is denied", s.mode));
    }
    if s.floor != "closed" {
        found.push(format!("the floor is {}", s.floor));
    }
    if s.store != "ok" {
        found.push(format!("the store: {}", s.store));
    }
    if s.not_durable > 0 {
        found.push(format!("{} restriction(s) in force are not durable yet", s.not_durable));
    }
    if !s.interfaces_unknown.is_empty() {
        found.push(format!("how interfaces stand is not known: {}", s.interfaces_unknown));
    }
    for interface in &s.interfaces {
        for hook in &interface.hooks {
            if !hook.problem.is_empty() {
                found.push(format!("{} {}: {}", interface.name, hook.hook, hook.problem));
            } else if hook.program_id == 0 {
                found.push(format!("{} {}: not attached", interface.name, hook.hook));
            }
        }
    }
    found
}

pub(super) fn status(page: &mut Page, s: &v1::GetStatusResponse) {
    if s.mode != "enforce" {
        page.line(toned(
            "OBSERVE MODE: everything is judged and counted, NOTHING IS DENIED, and the floor is open.",
            Tone::Bad,
        ));
        page.line("");
    }
    let good = |ok: bool| if ok { Tone::Good } else { Tone::Bad };
    page.pair("version", &s.version);
    page.pair("mode", toned(&s.mode, good(s.mode == "enforce")));
    page.pair("floor", toned(&s.floor, good(s.floor == "closed")));
    page.pair(
        "store",
        toned(format!("{}, revision {}", s.store, s.store_revision), good(s.store == "ok")),
    );
    if s.not_durable > 0 {
        page.pair(
            "not durable",
            toned(
                format!("{} restriction(s) in force, not committed yet", s.not_durable),
                Tone::Bad,
            ),
        );
    }
    page.pair("devices", s.devices);
    page.pair("sessions", s.sessions);
    if let Some(text) = untold(s.events_suppressed, s.events_lost, s.events_repeated) {
        page.pair("denials not told", format!("{text}; `lazaret counters` has them"));
    }
    if s.captures_lost > 0 {
        page.pair(
            "captures",
            format!(
                "{} packets not handed over, by the rate limit or to a full buffer",
                s.captures_lost
            ),
        );
    }
    page.pair("running as", running_as(s));
    page.pair("running since", text_of(s.started_at.as_ref()).unwrap_or_default());
    page.line("");
    let mut rows = Vec::new();
    for i in &s.interfaces {
        let start = [Cell::from(&i.name), number(i.ifindex.into()), Cell::from(&i.role)];
        if i.ifindex == 0 {
            let waiting = toned("there is none yet; it is waited for", Tone::Warn);
            rows.push(
                start
                    .into_iter()
                    .chain([Cell::default(), Cell::default(), Cell::default(), waiting])
                    .collect(),
            );
            continue;
        }
        if i.hooks.is_empty() {
            rows.push(start.to_vec());
        }
        for h in &i.hooks {
            let mode = if h.program_id == 0 {
                toned("NOT ATTACHED", Tone::Bad)
            } else {
                Cell::from(&h.mode)
            };
            let rest = [
                Cell::from(&h.hook),
                mode,
                number(h.program_id.into()),
                toned(&h.problem, Tone::Bad),
            ];
            rows.push(start.iter().cloned().chain(rest).collect());
        }
    }
    if s.interfaces_unknown.is_empty() {
        page.table(&["INTERFACE", "INDEX", "ROLE", "HOOK", "MODE", "PROGRAM", "REMARK"], &rows);
    } else {
        page.pair("interfaces", toned("not known", Tone::Bad));
    }
    if !s.warnings.is_empty() {
        page.line("");
        for warning in &s.warnings {
            page.line(toned(format!("warning: {warning}"), Tone::Warn));
        }
    }
    let problems = problems(s);
    if !problems.is_empty() {
        page.line("");
        for problem in problems {
            page.line(toned(format!("problem: {problem}"), Tone::Bad));
        }
    }
}

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
            or_none(&a.home_pool),
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

pub(super) fn counters(page: &mut Page, answer: &v1::GetCountersResponse) {
    let row = |c: &v1::Counter| {
        let verdict = if c.passes {
            toned("pass", Tone::Good)
        } else {
            toned("drop", Tone::Bad)
        };
        let pool = or_none(&c.pool);
        vec![
            pool,
            verdict,
            Cell::from(&c.reason),
            Cell::from(c.reason_number),
            Cell::from(c.packets),
            Cell::from(c.bytes),
        ]
    };
    page.list(
        "no packets yet",
        &["POOL", "VERDICT", "REASON", "N", "PACKETS", "BYTES"],
        &answer.counters.iter().map(row).collect::<Vec<_>>(),
    );
    if !answer.answers.is_empty() {
        page.line("");
        let row = |a: &v1::AnswerCounter| vec![Cell::from(&a.pool), Cell::from(a.sent), Cell::from(a.limited)];
        let headers = ["POOL", "DENIALS ANSWERED", "NOT, BY THE RATE LIMIT"];
        page.table(&headers, &answer.answers.iter().map(row).collect::<Vec<_>>());
    }
    if let Some(text) = untold(answer.events_suppressed, answer.events_lost, answer.events_repeated) {
        page.line("");
        page.line(toned(format!("of the denied: {text}"), Tone::Dim));
    }
}

/// What denials were counted and not told of; `None`: nothing.
pub(super) fn untold(suppressed: u64, lost: u64, repeated: u64) -> Option<String> {
    (suppressed + lost + repeated > 0).then(|| {
        format!("{suppressed} suppressed by the rate limit, {lost} lost to a full buffer, {repeated} like one shortly before")
    })
}

/// Exact, by rule.
pub(super) fn rule_counters(page: &mut Page, answer: &v1::GetCountersResponse) {
    let row = |r: &v1::RuleCounter| {
        let text = match (r.number, r.policy.as_str()) {
            (0, _) => toned("all: policies that allow everything", Tone::Dim),
            (_, "") => toned("no rule of the configuration has this number", Tone::Warn),
            _ => Cell::from(&r.text),
        };
        vec![
            number(r.number.into()),
            Cell::from(&r.policy),
            Cell::from(r.packets),
            Cell::from(r.bytes),
            if r.shadow_drop_packets == 0 {
                Cell::default()
            } else {
                Cell::from(r.shadow_drop_packets)
            },
            text,
        ]
    };
    page.list(
        "no rules, and no packets yet",
        &["RULE", "POLICY", "PACKETS", "BYTES", "SHADOW WOULD DROP", "TEXT"],
        &answer.rules.iter().map(row).collect::<Vec<_>>(),
    );
}

/// Where the shadow policy differs, by pool and by rule.
pub(super) fn shadow_counters(page: &mut Page, answer: &v1::GetCountersResponse) {
    let row = |s: &v1::ShadowCounter| {
        vec![
            Cell::from(&s.pool),
            Cell::from(s.would_drop_packets),
            Cell::from(s.would_drop_bytes),
            Cell::from(s.would_pass_packets),
            Cell::from(s.would_pass_bytes),
        ]
    };
    let headers = ["POOL", "WOULD DROP", "BYTES", "WOULD PASS", "BYTES"];
    let nothing = "no pool has a shadow policy; `shadow_policy` in [[pool]] names one";
    page.list(nothing, &headers, &answer.shadow.iter().map(row).collect::<Vec<_>>());
    let hit: Vec<&v1::RuleCounter> = answer.rules.iter().filter(|r| r.shadow_drop_packets > 0).collect();
    if !hit.is_empty() {
        page.line("");
        let row = |r: &&v1::RuleCounter| {
            vec![
                number(r.number.into()),
                Cell::from(&r.policy),
                Cell::from(r.shadow_drop_packets),
                Cell::from(r.shadow_drop_bytes),
                Cell::from(&r.text),
            ]
        };
        let headers = ["RULE", "POLICY", "WOULD DROP", "BYTES", "TEXT"];
        page.table(&headers, &hit.iter().map(row).collect::<Vec<_>>());
    }
}

/// How far a change got, and each address as it was read back.
pub(super) fn enforcement(page: &mut Page, enforcement: i32, prefixes: &[v1::PrefixEnforcement], revision: u64) {
    let (text, tone) = match v1::Enforcement::try_from(enforcement) {
        Ok(v1::Enforcement::Enforced) => ("in force: durable, and read back from every attached program", Tone::Good),
        Ok(v1::Enforcement::NoSession) => ("durable; there is no live session to which it applies now", Tone::Plain),
        Ok(v1::Enforcement::Committed) => ("NOT IN FORCE EVERYWHERE: durable, and the gateway goes on trying", Tone::Bad),
        Ok(v1::Enforcement::EnforcedNotDurable) => (
            "IN FORCE, NOT DURABLE: the store cannot be written, and the gateway goes on trying",
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

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> v1::GetStatusResponse {
        let hook = v1::HookStatus {
            hook: "tc ingress".into(),
            mode: "tcx".into(),
            program_id: 7,
            problem: String::new(),
        };
        v1::GetStatusResponse {
            mode: "enforce".into(),
            floor: "closed".into(),
            store: "ok".into(),
            interfaces: vec![
                v1::InterfaceStatus {
                    name: "tun0".into(),
                    ifindex: 3,
                    role: "device".into(),
                    hooks: vec![hook],
                },
                v1::InterfaceStatus {
                    name: "wg*".into(),
                    ifindex: 0,
                    role: "device".into(),
                    hooks: vec![],
                },
            ],
            ..v1::GetStatusResponse::default()
        }
    }

    #[test]
    fn health() {
        assert_eq!(problems(&healthy()), [""; 0]);
        let bent: [fn(&mut v1::GetStatusResponse); 7] = [
            |s| s.mode = "observe".into(),
            |s| s.floor = "broken: no table".into(),
            |s| s.store = "disk full".into(),
            |s| s.interfaces_unknown = "timed out".into(),
            |s| s.not_durable = 1,
            |s| s.interfaces[0].hooks[0].program_id = 0,
            |s| s.interfaces[0].hooks[0].problem = "a foreign program is first".into(),
        ];
        for bend in bent {
            let mut s = healthy();
            bend(&mut s);
            assert_eq!(problems(&s).len(), 1);
        }
    }
}
