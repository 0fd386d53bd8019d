//! `lazaret reason`: what a reason means and what to do about it. It asks nobody.

use gateway_ebpf::reason::Reason;
use serde_json::{Value, json};

use super::{
    Outcome,
    args::ReasonArgs,
    client::Failure,
    table::{Cell, Page, Tone, toned, write_out},
};

/// Prints one reason, or all.
pub(super) fn run(a: &ReasonArgs) -> Result<Outcome, Failure> {
    let found: Vec<Reason> = match &a.reason {
        None => Reason::ALL.to_vec(),
        Some(wanted) => vec![find(wanted).ok_or_else(|| unknown(wanted))?],
    };
    let written = if a.json {
        let reasons: Vec<Value> = found.iter().map(|r| as_json(*r)).collect();
        write_out(&format!("{:#}\n", json!({ "reasons": reasons })))
    } else {
        let mut page = Page::new();
        match (&a.reason, &found[..]) {
            (Some(_), [one]) => show(&mut page, *one),
            _ => list(&mut page, &found),
        }
        page.print()
    };
    written.map_err(|e| Failure::Local(format!("standard output: {e}")))?;
    Ok(Outcome::Done)
}

fn find(wanted: &str) -> Option<Reason> {
    let by_number = wanted.parse().ok().and_then(Reason::from_number);
    by_number.or_else(|| Reason::ALL.iter().copied().find(|r| r.name() == wanted))
}

fn unknown(wanted: &str) -> Failure {
    let near: Vec<&str> = Reason::ALL
        .iter()
        .map(|r| r.name())
        .filter(|n| n.contains(wanted))
        .take(5)
        .collect();
    let near = if near.is_empty() {
        String::new()
    } else {
        format!("; there are {}", near.join(", "))
    };
    Failure::Local(format!(
        "no reason has the name or number {wanted:?}{near}; `lazaret reason` lists them"
    ))
}

fn show(page: &mut Page, r: Reason) {
    page.pair("reason", r.name());
    page.pair("number", r as u8);
    page.pair("verdict", verdict(r));
    page.pair("what happened", r.sentence());
    page.pair("what to do", r.remedy());
}

fn list(page: &mut Page, all: &[Reason]) {
    let row = |r: &Reason| {
        vec![
            Cell::from(*r as u8),
            Cell::from(r.name()),
            verdict(*r),
            Cell::from(r.sentence()),
        ]
    };
    page.table(
        &["N", "REASON", "VERDICT", "WHAT HAPPENED"],
        &all.iter().map(row).collect::<Vec<_>>(),
    );
}

fn verdict(r: Reason) -> Cell {
    if r.passes() {
        toned("pass", Tone::Good)
    } else {
        toned("drop", Tone::Bad)
    }
}

fn as_json(r: Reason) -> Value {
    json!({ "number": r as u8, "name": r.name(), "passes": r.passes(), "sentence": r.sentence(), "remedy": r.remedy() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_name_and_by_number() {
        for r in Reason::ALL {
            assert_eq!(find(r.name()), Some(*r));
            assert_eq!(find(&(*r as u8).to_string()), Some(*r));
        }
        assert_eq!((find("nothing"), find("0"), find("256")), (None, None, None));
        assert!(unknown("fragment_").to_string().contains("fragment_tiny"));
    }
}
