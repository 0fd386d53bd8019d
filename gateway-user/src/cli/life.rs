//! `why`, `ledger`, `exception`, `drift`: what a device's life looks like, and what an operator does about it.

use std::time::Duration;

use lazaret_proto::v1;
use serde_json::json;

use super::{
    Outcome,
    args::{Connection, DriftArgs, EndArgs, ExceptionCommand, GrantArgs, Kind, LedgerArgs, Reference, ReleaseArgs, WhyArgs},
    client::{Failure, context},
    commands::{PAGE, PREFIX, connect, print, signal},
    json::{self, text_of},
    show,
    table::{Cell, Page, Tone, toned},
};
use crate::model::DeviceId;

/// Why a device is in its state, or what a reference code stands for.
pub(super) async fn why(a: &WhyArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    match a.reference {
        Some(Reference::Audit(number)) => {
            let request = v1::GetAuditEntryRequest { number };
            let answer = client.answer(client.operators().get_audit_entry(request)).await?;
            let entry = answer.entry.ok_or(Failure::Answer("entry"))?;
            return print(&a.connection, || json::audit_entry(&entry), |page| reference(page, &entry));
        }
        Some(Reference::Recent(number)) => {
            let request = v1::GetRefusalRequest { number };
            let answer = client.answer(client.operators().get_refusal(request)).await?;
            let refusal = answer.refusal.ok_or(Failure::Answer("refusal"))?;
            return print(&a.connection, || json::refusal(&refusal), |page| recent(page, &refusal));
        }
        None => {}
    }
    let request = v1::ExplainDeviceRequest {
        device_id: a.device.as_ref().map(ToString::to_string).unwrap_or_default(),
        events: a.events,
    };
    let answer = client.answer(client.devices().explain_device(request)).await?;
    let device = answer.device.as_ref().ok_or(Failure::Answer("device"))?;
    let as_json = || {
        json!({
            "device": json::device(device), "summary": answer.summary, "changed_by": answer.changed_by,
            "requirements": answer.requirements.iter().map(|r| json!({
                "subject": r.subject, "required": r.required, "found": r.found, "met": r.met,
            })).collect::<Vec<_>>(),
            "next": answer.next.iter().map(|n| json!({ "at": json::time(n.at.as_ref()), "what": n.what })).collect::<Vec<_>>(),
            "advice": answer.advice,
            "events": answer.events.iter().map(json::audit_entry).collect::<Vec<_>>(),
        })
    };
    print(&a.connection, as_json, |page| explained(page, &answer))
}

fn explained(page: &mut Page, answer: &v1::ExplainDeviceResponse) {
    page.line(&answer.summary);
    if !answer.changed_by.is_empty() {
        page.line(format!("By {}.", answer.changed_by));
    }
    page.line("");
    let row = |r: &v1::Requirement| {
        let mark = if r.met {
            toned("yes", Tone::Good)
        } else {
            toned("NO", Tone::Bad)
        };
        vec![mark, Cell::from(&r.required), Cell::from(&r.found)]
    };
    let rows: Vec<_> = answer.requirements.iter().map(row).collect();
    page.table(&["MET", "REQUIRED FOR A RELEASE", "FOUND"], &rows);
    page.line("");
    if answer.next.is_empty() {
        page.line("Nothing comes by itself.");
    }
    for next in &answer.next {
        page.line(format!(
            "At {}: {}.",
            text_of(next.at.as_ref()).unwrap_or_default(),
            next.what
        ));
    }
    for advice in &answer.advice {
        page.line(format!("To do: {advice}."));
    }
    page.line("");
    events(page, &answer.events);
}

fn events(page: &mut Page, events: &[v1::AuditEntry]) {
    let row = |e: &v1::AuditEntry| {
        let change = match (e.before.as_str(), e.after.as_str()) {
            ("", "") => String::new(),
            ("", after) => after.to_owned(),
            (before, after) if before == after => after.to_owned(),
            (before, after) => format!("{before} > {after}"),
        };
        vec![
            Cell::from(format!("A{}", e.number)),
            Cell::from(text_of(e.at.as_ref()).unwrap_or_default()),
            Cell::from(&e.action),
            Cell::from(change),
            if e.result == "done" {
                Cell::from("done")
            } else {
                toned(&e.result, Tone::Bad)
            },
            Cell::from(&e.by),
            Cell::from(&e.reason),
        ]
    };
    let headers = ["CODE", "AT", "WHAT", "CHANGE", "RESULT", "BY", "WHY"];
    page.list(
        "The audit has no events of it.",
        &headers,
        &events.iter().map(row).collect::<Vec<_>>(),
    );
}

fn reference(page: &mut Page, e: &v1::AuditEntry) {
    page.pair("reference", format!("A{}", e.number));
    page.pair("at", text_of(e.at.as_ref()).unwrap_or_default());
    page.pair("who", &e.by);
    page.pair("what", &e.action);
    page.pair("device", &e.device_id);
    page.pair("on", &e.subject);
    page.pair("before", &e.before);
    page.pair("after", &e.after);
    page.pair("why", &e.reason);
    page.pair("request id", &e.request_id);
    page.pair(
        "result",
        if e.result == "done" {
            Cell::from("done")
        } else {
            toned(&e.result, Tone::Bad)
        },
    );
    if !e.device_id.is_empty() {
        page.line("");
        page.line(format!("The device as it is now: lazaret why {}", e.device_id));
    }
}

fn recent(page: &mut Page, r: &v1::RecentRefusal) {
    page.pair("reference", format!("R{}", r.number));
    page.pair("at", text_of(r.first_at.as_ref()).unwrap_or_default());
    if r.count > 1 {
        let last = text_of(r.last_at.as_ref()).unwrap_or_default();
        page.pair("again", format!("{} times, last at {last}", r.count - 1));
    }
    page.pair("who", &r.by);
    page.pair("what", &r.rpc);
    page.pair("why", &r.message);
    page.pair("request id", &r.request_id);
    page.pair("result", toned(&r.reason, Tone::Bad));
    if r.audit_number > 0 {
        page.pair("in the audit", format!("A{}", r.audit_number));
    }
}

/// How many devices are where they should not be; with a filter, which.
pub(super) async fn ledger(a: &LedgerArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    if a.kind.is_none() && a.older.is_none() && !a.list {
        let answer = client.answer(client.devices().get_ledger(v1::GetLedgerRequest {})).await?;
        let one = |c: &v1::LedgerCount| {
            let ages = c
                .ages
                .iter()
                .map(|a| json!({ "below_seconds": a.below_seconds, "devices": a.devices }));
            json!({ "kind": kind_name(c.kind), "devices": c.devices, "ages": ages.collect::<Vec<_>>() })
        };
        let as_json = || json!({ "counts": answer.counts.iter().map(one).collect::<Vec<_>>() });
        return print(&a.connection, as_json, |page| counts(page, &answer.counts));
    }
    let mut entries = Vec::new();
    let mut token = String::new();
    loop {
        let request = v1::ListLedgerEntriesRequest {
            page_size: PAGE,
            page_token: token.clone(),
            kind: a.kind.map_or(v1::LedgerKind::Unspecified, kind_number).into(),
            min_age_seconds: a.older.map_or(0, |age| u32::try_from(age.as_secs()).unwrap_or(u32::MAX)),
        };
        let page = client.answer(client.devices().list_ledger_entries(request)).await?;
        entries.extend(page.entries);
        if page.next_page_token.is_empty() || page.next_page_token == token {
            break;
        }
        token = page.next_page_token;
    }
    let one = |e: &v1::LedgerEntry| {
        json!({
            "kind": kind_name(e.kind), "device_id": e.device_id, "owner": e.owner, "state": show::state(e.state),
            "since": json::time(e.since.as_ref()), "window": json::window(e.window.as_ref()),
            "deadline_at": json::time(e.deadline_at.as_ref()),
        })
    };
    let as_json = || json!({ "entries": entries.iter().map(one).collect::<Vec<_>>() });
    print(&a.connection, as_json, |page| {
        let row = |e: &v1::LedgerEntry| {
            vec![
                Cell::from(kind_name(e.kind)),
                Cell::from(&e.device_id),
                Cell::from(&e.owner),
                Cell::from(show::state(e.state)),
                Cell::from(text_of(e.since.as_ref()).unwrap_or_default()),
                Cell::from(text_of(e.window.and_then(|w| w.not_after).as_ref()).unwrap_or_default()),
                Cell::from(text_of(e.deadline_at.as_ref()).unwrap_or_default()),
            ]
        };
        let headers = ["KIND", "DEVICE", "OWNER", "STATE", "SINCE", "WINDOW CLOSES", "DEADLINE"];
        page.list("no such devices", &headers, &entries.iter().map(row).collect::<Vec<_>>());
    })
}

fn counts(page: &mut Page, counts: &[v1::LedgerCount]) {
    let row = |c: &v1::LedgerCount| {
        let mut row = vec![Cell::from(kind_name(c.kind)), Cell::from(c.devices)];
        row.extend(c.ages.iter().map(|a| Cell::from(a.devices)));
        row.push(toned(meaning(c.kind), Tone::Dim));
        row
    };
    let headers = ["KIND", "DEVICES", "< 1 H", "< 8 H", "< 24 H", "< 48 H", "OLDER", ""];
    page.table(&headers, &counts.iter().map(row).collect::<Vec<_>>());
    page.line("");
    page.line(toned("Which they are: lazaret ledger --kind stuck", Tone::Dim));
}

fn meaning(kind: i32) -> &'static str {
    match v1::LedgerKind::try_from(kind) {
        Ok(v1::LedgerKind::Expected) => "never arrived; window open or to come",
        Ok(v1::LedgerKind::Missed) => "never arrived; window over",
        Ok(v1::LedgerKind::Outside) => "arrived outside the window",
        Ok(v1::LedgerKind::Stuck) => "in quarantine; deadline runs or has passed",
        Ok(v1::LedgerKind::Placeholder) => "no owner yet",
        Ok(v1::LedgerKind::Unspecified) | Err(_) => "",
    }
}

fn kind_name(kind: i32) -> &'static str {
    match v1::LedgerKind::try_from(kind) {
        Ok(v1::LedgerKind::Expected) => "expected",
        Ok(v1::LedgerKind::Missed) => "missed",
        Ok(v1::LedgerKind::Outside) => "outside",
        Ok(v1::LedgerKind::Stuck) => "stuck",
        Ok(v1::LedgerKind::Placeholder) => "placeholder",
        Ok(v1::LedgerKind::Unspecified) | Err(_) => "unknown",
    }
}

const fn kind_number(kind: Kind) -> v1::LedgerKind {
    match kind {
        Kind::Expected => v1::LedgerKind::Expected,
        Kind::Missed => v1::LedgerKind::Missed,
        Kind::Outside => v1::LedgerKind::Outside,
        Kind::Stuck => v1::LedgerKind::Stuck,
        Kind::Placeholder => v1::LedgerKind::Placeholder,
    }
}

/// An exception is granted or ended.
pub(super) async fn exception(command: &ExceptionCommand) -> Result<Outcome, Failure> {
    match command {
        ExceptionCommand::Grant(a) => grant(a).await,
        ExceptionCommand::End(a) => end(a).await,
    }
}

async fn grant(a: &GrantArgs) -> Result<Outcome, Failure> {
    let kind = if a.release {
        v1::ExceptionKind::Release
    } else {
        v1::ExceptionKind::Block
    };
    granted(&a.connection, &a.device, kind, &a.reason, a.length).await
}

/// A device is released by hand.
pub(super) async fn release(a: &ReleaseArgs) -> Result<Outcome, Failure> {
    granted(&a.connection, &a.device, v1::ExceptionKind::Release, &a.reason, a.length).await
}

async fn granted(
    connection: &Connection,
    device: &DeviceId,
    kind: v1::ExceptionKind,
    reason: &str,
    length: Duration,
) -> Result<Outcome, Failure> {
    let client = connect(connection).await?;
    let request = v1::GrantExceptionRequest {
        context: Some(context(PREFIX)?),
        device_id: device.to_string(),
        kind: kind.into(),
        reason: reason.to_owned(),
        length_seconds: u32::try_from(length.as_secs()).unwrap_or(u32::MAX),
    };
    let answer = client.answer(client.operators().grant_exception(request)).await?;
    signal(connection, &answer)
}

async fn end(a: &EndArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::EndExceptionRequest {
        context: Some(context(PREFIX)?),
        device_id: a.device.to_string(),
        reason: a.reason.clone(),
    };
    let answer = client.answer(client.operators().end_exception(request)).await?;
    signal(&a.connection, &answer)
}

/// What the comparison of store and kernel has found; `--check`: compares now.
pub(super) async fn drift(a: &DriftArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let (compared, found, repaired, last_round, last) = if a.check {
        let context = Some(context(PREFIX)?);
        let d = client
            .answer(client.operators().check_drift(v1::CheckDriftRequest { context }))
            .await?;
        (d.compared, d.found, d.repaired, None, d.differences)
    } else {
        let d = client.answer(client.operators().get_drift(v1::GetDriftRequest {})).await?;
        (d.compared, d.found, d.repaired, d.last_round_at, d.last)
    };
    let one = |d: &v1::Drift| {
        json!({
            "found_at": json::time(d.found_at.as_ref()), "subject": d.subject, "device_id": d.device_id, "wanted": d.wanted,
            "found": d.found, "repaired": d.repaired,
        })
    };
    let as_json = || {
        json!({
            "compared": compared, "found": found, "repaired": repaired, "last_round_at": json::time(last_round.as_ref()),
            "differences": last.iter().map(one).collect::<Vec<_>>(),
        })
    };
    print(&a.connection, as_json, |page| {
        let span = if a.check { "now" } else { "since the daemon started" };
        let text = format!("{compared} compared {span}, {found} differed, {repaired} of them repaired");
        page.line(if found == 0 {
            toned(text, Tone::Good)
        } else {
            toned(text, Tone::Bad)
        });
        if let Some(at) = text_of(last_round.as_ref()) {
            page.line(format!("everything was last compared at {at}"));
        }
        if !last.is_empty() {
            page.line("");
            let row = |d: &v1::Drift| {
                vec![
                    Cell::from(text_of(d.found_at.as_ref()).unwrap_or_default()),
                    Cell::from(&d.subject),
                    Cell::from(&d.device_id),
                    Cell::from(&d.wanted),
                    Cell::from(&d.found),
                    if d.repaired {
                        toned("yes", Tone::Good)
                    } else {
                        toned("NO", Tone::Bad)
                    },
                ]
            };
            let headers = ["AT", "WHAT", "DEVICE", "SHOULD BE", "WAS", "REPAIRED"];
            page.table(&headers, &last.iter().map(row).collect::<Vec<_>>());
        }
    })?;
    Ok(if found == repaired {
        Outcome::Done
    } else {
        Outcome::NotEnforced
    })
}
