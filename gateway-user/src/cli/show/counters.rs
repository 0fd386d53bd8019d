//! What the programs counted: by pool and reason, by rule, and where a shadow policy differs.

use lazaret_proto::v1;

use super::{number, or_none};
use crate::cli::table::{Cell, Page, Tone, toned};

pub(in crate::cli) fn counters(page: &mut Page, answer: &v1::GetCountersResponse) {
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
pub(in crate::cli) fn untold(suppressed: u64, lost: u64, repeated: u64) -> Option<String> {
    (suppressed + lost + repeated > 0).then(|| {
        format!("{suppressed} suppressed by the rate limit, {lost} lost to a full buffer, {repeated} like one shortly before")
    })
}

/// Exact, by rule.
pub(in crate::cli) fn rule_counters(page: &mut Page, answer: &v1::GetCountersResponse) {
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
pub(in crate::cli) fn shadow_counters(page: &mut Page, answer: &v1::GetCountersResponse) {
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
