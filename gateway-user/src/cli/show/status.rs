//! How the gateway stands, and what keeps it from doing its work.

use lazaret_proto::v1;

use super::{number, untold};
use crate::cli::{
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
pub(in crate::cli) fn problems(s: &v1::GetStatusResponse) -> Vec<String> {
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

pub(in crate::cli) fn status(page: &mut Page, s: &v1::GetStatusResponse) {
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
