//! `lazaret denials`: the last denied packets as a table, or those that happen, line by line. What to do about a reason is said once.

use std::io::{self, Write as _};

use lazaret_proto::v1;
use serde_json::json;

use super::{
    Outcome,
    args::{DenialsArgs, Which},
    client::Failure,
    commands::{connect, print},
    json::{self, text_of},
    show::untold,
    table::{Cell, Page, Tone, toned},
};

/// Shown without --limit; and before what happens, with --follow.
const LAST: [u32; 2] = [50, 10];

pub(super) async fn run(a: &DenialsArgs) -> Result<Outcome, Failure> {
    if a.follow { follow(a).await } else { list(a).await }
}

async fn list(a: &DenialsArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let w = Names::of(&a.which);
    let request = v1::ListDenialsRequest {
        limit: a.limit.unwrap_or(LAST[0]),
        address: w.address,
        reason: w.reason,
        device_id: w.device,
        pool: w.pool,
    };
    let answer = client.answer(client.inspect().list_denials(request)).await?;
    let as_json = || {
        json!({
            "denials": answer.denials.iter().map(json::denial).collect::<Vec<_>>(),
            "events_suppressed": answer.events_suppressed, "events_lost": answer.events_lost, "events_repeated": answer.events_repeated,
        })
    };
    print(&a.connection, as_json, |page| table(page, &answer))
}

/// Until it is interrupted, or the daemon ends.
async fn follow(a: &DenialsArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let w = Names::of(&a.which);
    let request = v1::WatchDenialsRequest {
        last: a.limit.unwrap_or(LAST[1]),
        address: w.address,
        reason: w.reason,
        device_id: w.device,
        pool: w.pool,
    };
    let mut stream = client.answer(client.inspect().watch_denials(request)).await?;
    let mut told = Told::default();
    loop {
        let message = match stream.message().await {
            Ok(Some(m)) => m,
            Ok(None) => return Ok(Outcome::Done),
            Err(e) => return Err(client.failure(&e)),
        };
        let text = if a.connection.json {
            as_line(&message)
        } else {
            let mut page = Page::new();
            told.show(&mut page, &message);
            page.into_text()
        };
        // A reader that goes away ends it.
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Outcome::Done),
            Err(e) => return Err(Failure::Local(format!("standard output: {e}"))),
        }
    }
}

/// What has been said already.
#[derive(Default)]
struct Told {
    totals: Option<[u64; 3]>,
    reasons: Vec<String>,
}

impl Told {
    fn show(&mut self, page: &mut Page, m: &v1::WatchDenialsResponse) {
        if m.missed > 0 {
            let text = format!("-- {} denials were not shown: this reader was too slow", m.missed);
            page.line(toned(text, Tone::Warn));
        }
        let totals = [m.events_suppressed, m.events_lost, m.events_repeated];
        if let Some(before) = self.totals.replace(totals) {
            let grown: [u64; 3] = std::array::from_fn(|i| totals[i].saturating_sub(before[i]));
            if grown != [0; 3] {
                let [suppressed, lost, repeated] = grown;
                let text = format!(
                    "-- not told in the last second, over all devices: {suppressed} suppressed by the rate limit, {lost} lost to a full buffer, {repeated} like one shortly before"
                );
                page.line(toned(text, Tone::Dim));
            }
        }
        let Some(d) = &m.denial else { return };
        let device = if d.device_id.is_empty() { "-" } else { &d.device_id };
        let observed = if d.observed { ", let through (observe mode)" } else { "" };
        page.line(format!(
            "{} {device} {} {} > {} {}{} at {} {}{observed}",
            text_of(d.at.as_ref()).unwrap_or_default(),
            d.protocol,
            end(&d.source, d.source_port),
            end(&d.destination, d.destination_port),
            d.reason,
            if d.pool.is_empty() {
                String::new()
            } else {
                format!(" (pool {})", d.pool)
            },
            d.interface,
            d.hook,
        ));
        if !self.reasons.contains(&d.reason) {
            self.reasons.push(d.reason.clone());
            page.line(toned(format!("   {}: {} {}", d.reason, d.sentence, d.remedy), Tone::Dim));
        }
    }
}

fn as_line(m: &v1::WatchDenialsResponse) -> String {
    let value = json!({
        "denial": m.denial.as_ref().map(json::denial), "missed": m.missed,
        "events_suppressed": m.events_suppressed, "events_lost": m.events_lost, "events_repeated": m.events_repeated,
    });
    format!("{value}\n")
}

fn table(page: &mut Page, answer: &v1::ListDenialsResponse) {
    let row = |d: &v1::Denial| {
        vec![
            Cell::from(text_of(d.at.as_ref()).unwrap_or_default()),
            Cell::from(format!("{} {}", d.interface, d.hook)),
            Cell::from(&d.protocol),
            Cell::from(end(&d.source, d.source_port)),
            Cell::from(end(&d.destination, d.destination_port)),
            Cell::from(&d.pool),
            Cell::from(&d.device_id),
            toned(&d.reason, Tone::Bad),
            toned(if d.observed { "let through (observe mode)" } else { "" }, Tone::Warn),
        ]
    };
    let headers = [
        "TIME",
        "WHERE",
        "PROTOCOL",
        "SOURCE",
        "DESTINATION",
        "POOL",
        "DEVICE",
        "REASON",
        "REMARK",
    ];
    let rows: Vec<_> = answer.denials.iter().map(row).collect();
    page.list("no denied packets", &headers, &rows);
    // Once for each reason, in the order of their last appearance.
    let mut explained: Vec<&str> = Vec::new();
    for d in answer.denials.iter().rev() {
        if !explained.contains(&d.reason.as_str()) {
            explained.push(&d.reason);
            page.line(format!("{}: {} {}", d.reason, d.sentence, d.remedy));
        }
    }
    if let Some(text) = untold(answer.events_suppressed, answer.events_lost, answer.events_repeated) {
        page.line(toned(
            format!("not told: {text}; `lazaret counters` has them all"),
            Tone::Warn,
        ));
    }
}

fn end(address: &str, port: u32) -> String {
    match (port, address.contains(':')) {
        (0, _) => address.to_owned(),
        (_, true) => format!("[{address}]:{port}"),
        (_, false) => format!("{address}:{port}"),
    }
}

/// A filter, as the API takes it.
struct Names {
    address: String,
    device: String,
    pool: String,
    reason: String,
}

impl Names {
    fn of(w: &Which) -> Self {
        let text = |o: Option<String>| o.unwrap_or_default();
        Self {
            address: text(w.address.map(|a| a.to_string())),
            device: text(w.device.as_ref().map(ToString::to_string)),
            pool: text(w.pool.as_ref().map(ToString::to_string)),
            reason: text(w.reason.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_is_said_once_and_losses_as_they_grow() {
        let mut told = Told::default();
        let mut text = String::new();
        let denial = v1::Denial {
            protocol: "tcp".into(),
            source: "fd66::5".into(),
            source_port: 7,
            destination: "fd09::10".into(),
            reason: "no_rule".into(),
            sentence: "S.".into(),
            remedy: "R.".into(),
            ..v1::Denial::default()
        };
        let message = |denial: Option<&v1::Denial>, repeated, missed| v1::WatchDenialsResponse {
            denial: denial.cloned(),
            missed,
            events_repeated: repeated,
            ..v1::WatchDenialsResponse::default()
        };
        for m in [
            message(None, 4, 0),
            message(Some(&denial), 4, 0),
            message(Some(&denial), 9, 3),
        ] {
            let mut page = Page::new();
            told.show(&mut page, &m);
            text += &page.into_text();
        }
        assert_eq!(text.matches("R.").count(), 1, "{text}");
        assert!(text.contains("[fd66::5]:7 > fd09::10 no_rule"), "{text}");
        assert!(
            text.contains("3 denials were not shown") && text.contains("5 like one"),
            "{text}"
        );
    }
}
