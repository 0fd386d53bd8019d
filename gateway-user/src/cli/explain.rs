//! `lazaret explain`: what would become of a packet, stage by stage, and what would change it.

use lazaret_proto::v1;
use serde_json::{Value, json};

use super::{
    Outcome,
    args::{ExplainArgs, Protocol},
    client::Failure,
    commands::{connect, print},
    json::{text_of, time},
    table::{Cell, Page, Tone, toned},
};

/// Asks, and shows each explanation.
pub(super) async fn run(a: &ExplainArgs) -> Result<Outcome, Failure> {
    let request = request(a)?;
    let client = connect(&a.connection).await?;
    let answer = client.answer(client.inspect().explain(request)).await?;
    let as_json = || json!({ "explanations": answer.explanations.iter().map(as_json).collect::<Vec<_>>() });
    print(&a.connection, as_json, |page| {
        for (i, e) in answer.explanations.iter().enumerate() {
            if i > 0 {
                page.line("");
            }
            show(page, e);
        }
    })
}

fn request(a: &ExplainArgs) -> Result<v1::ExplainRequest, Failure> {
    let port = match (a.to.port, a.port) {
        (Some(one), Some(other)) if one != other => {
            return Err(Failure::Local(format!("--to names port {one} and --port {other}")));
        }
        (one, other) => one.or(other),
    };
    let protocol = match a.proto {
        Protocol::Number(n) => n,
        Protocol::Icmp if a.to.address.is_ipv4() => 1,
        Protocol::Icmp => 58,
    };
    if matches!(protocol, 6 | 17) && port.is_none() {
        return Err(Failure::Local("TCP and UDP need a destination port: --port 443".into()));
    }
    Ok(v1::ExplainRequest {
        source: a.from.address.to_string(),
        destination: a.to.address.to_string(),
        protocol: protocol.into(),
        source_port: a.from.port.unwrap_or_default().into(),
        destination_port: port.unwrap_or_default().into(),
        interface: a.interface.as_ref().map(ToString::to_string).unwrap_or_default(),
        egress: a.out,
        vlans: a.vlan.iter().map(|v| (*v).into()).collect(),
        tcp_flags: a.flags.clone().unwrap_or_default(),
        both: a.both,
    })
}

fn show(page: &mut Page, e: &v1::Explanation) {
    page.line(format!("{}: {}", e.step, e.packet));
    page.line("");
    let (word, tone) = match (e.passes, e.observed) {
        (true, _) => ("PASS", Tone::Good),
        (false, false) => ("DROP", Tone::Bad),
        (false, true) => ("DROP, but let through in observe mode", Tone::Warn),
    };
    let by = match (e.pool.as_str(), e.answered) {
        ("", _) => String::new(),
        (pool, false) => format!(", pool {pool}"),
        (pool, true) => format!(", pool {pool}; answered (reject)"),
    };
    page.pair(
        "verdict",
        toned(format!("{word}: {} ({}){by}", e.reason, e.reason_number), tone),
    );
    page.pair("because", &e.sentence);
    if let Some(p) = &e.place {
        page.pair(
            "judged at",
            format!(
                "{} (number {}), role {}, {}: {}",
                p.interface, p.ifindex, p.role, p.direction, p.chosen
            ),
        );
        let program = if p.program_id == 0 {
            toned(format!("{}, NOT ATTACHED at {}", p.program, p.hook), Tone::Bad)
        } else {
            Cell::from(format!(
                "{}, attached at {} ({}) as program {}",
                p.program, p.hook, p.mode, p.program_id
            ))
        };
        page.pair("program", program);
    }
    for (name, end) in [("source", &e.source), ("destination", &e.destination)] {
        if let Some(end) = end {
            page.pair(name, end_text(end));
        }
    }
    page.pair("policy", format!("generation {}", e.policy_generation));
    page.pair(
        "rule",
        match &e.rule {
            None => "none".to_owned(),
            Some(r) if r.policy.is_empty() => format!("{}, which the configuration does not have", r.number),
            Some(r) => format!("{} of policy {}: {}", r.number, r.policy, r.text),
        },
    );
    page.pair(
        "mark",
        if e.mark == 0 {
            String::new()
        } else {
            format!("0x{:08x}", e.mark)
        },
    );
    if !e.route.is_empty() {
        page.pair("route", &e.route);
    }
    if !e.shadow.is_empty() {
        page.pair("shadow policy", format!("would {}", e.shadow));
    }
    if !e.remedy.is_empty() {
        page.pair("remedy", &e.remedy);
    }
    if !e.changes.is_empty() {
        page.line("");
        page.line("what would change it:");
        e.changes.iter().for_each(|c| page.line(format!("  - {c}")));
    }
    for warning in &e.warnings {
        page.line(toned(format!("warning: {warning}"), Tone::Warn));
    }
}

/// "10.66.0.5: home pool quarantine, judged by pool staff; session 3 on tun0, device phone-17 (released), lease until ...".
fn end_text(e: &v1::ExplainedEnd) -> String {
    let mut text = format!("{}: ", e.address);
    if e.reserved {
        text += "the gateway's own (reserved), in no pool";
    } else if e.home_pool.is_empty() {
        text += "in no pool";
    } else {
        text += &format!("home pool {}, current pool {}", e.home_pool, e.current_pool);
    }
    if e.session_id != 0 {
        let device = match (e.device_id.as_str(), e.device_state.as_str()) {
            ("", _) => "a device that the registry does not know".to_owned(),
            (device, state) => format!("device {device} ({state})"),
        };
        text += &format!("; session {} on {}, {device}", e.session_id, e.session_interface);
    } else if !e.home_pool.is_empty() {
        text += "; no live session";
    }
    if let Some(end) = text_of(e.lease_ends_at.as_ref()) {
        text += &format!(", lease until {end}");
    }
    text
}

fn as_json(e: &v1::Explanation) -> Value {
    let place = e.place.clone().unwrap_or_default();
    let end = |e: &Option<v1::ExplainedEnd>| {
        let e = e.clone().unwrap_or_default();
        json!({
            "address": e.address, "home_pool": e.home_pool, "current_pool": e.current_pool, "session_id": e.session_id,
            "session_interface": e.session_interface, "device_id": e.device_id, "device_state": e.device_state,
            "lease_ends_at": time(e.lease_ends_at.as_ref()), "reserved": e.reserved,
        })
    };
    let rule = e
        .rule
        .as_ref()
        .map(|r| json!({ "number": r.number, "policy": r.policy, "text": r.text }));
    json!({
        "step": e.step, "packet": e.packet,
        "place": {
            "interface": place.interface, "ifindex": place.ifindex, "role": place.role, "direction": place.direction,
            "link": place.link, "chosen": place.chosen, "program": place.program, "hook": place.hook, "mode": place.mode,
            "program_id": place.program_id, "attached": place.program_id != 0, "problem": place.problem,
        },
        "source": end(&e.source), "destination": end(&e.destination), "policy_generation": e.policy_generation, "rule": rule,
        "passes": e.passes, "reason_number": e.reason_number, "reason": e.reason, "sentence": e.sentence, "remedy": e.remedy,
        "pool": e.pool, "mark": e.mark, "answered": e.answered, "observed": e.observed, "shadow": e.shadow,
        "route": e.route, "changes": e.changes, "warnings": e.warnings,
    })
}
