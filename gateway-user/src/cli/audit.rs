//! `lazaret audit`: verifies and shows the audit. It reads the database itself, since the daemon's word is what is being checked.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    path::Path,
};

use serde_json::json;

use super::{
    Outcome,
    args::{AuditCommand, DatabaseArgs, ExportArgs, ListArgs, ShowArgs, VerifyArgs},
    client::Failure,
    table::{Cell, Page, Tone, toned, write_out},
};
use crate::{
    audit::{Head, Line, Sealed, rfc3339, verify_lines},
    config::Config,
    store::{AuditQuery, Reader, StoreError, Verified},
};

/// Entries that are read at a time.
const AT_ONCE: u32 = 1000;

pub(super) fn run(command: &AuditCommand) -> Result<Outcome, Failure> {
    match command {
        AuditCommand::Verify(a) => verify(a),
        AuditCommand::Show(a) => show(a),
        AuditCommand::List(a) => list(a),
        AuditCommand::Export(a) => export(a),
    }
}

/// The database that the arguments name.
pub(super) fn open(args: &DatabaseArgs) -> Result<Reader, Failure> {
    match &args.database {
        Some(file) => Reader::open(file).map_err(stored),
        None => {
            let state = configuration(&args.config)?.paths.state;
            Reader::of_directory(&state).map_err(|e| match e {
                StoreError::Absent(file) => Failure::Local(format!(
                    "there is no database {}: the daemon makes it when it first runs with {}; --database names another file",
                    file.display(),
                    args.config.display()
                )),
                e => stored(e),
            })
        }
    }
}

pub(super) fn configuration(file: &Path) -> Result<Config, Failure> {
    Config::load(file).map_err(|e| Failure::Local(e.to_string()))
}

/// A store's error as the command's.
pub(super) fn stored(error: StoreError) -> Failure {
    let text = error.to_string();
    let remedy = if text.contains("Permission denied") && !nix::unistd::geteuid().is_root() {
        "; it is the daemon's alone: ask as root, or as the user of [process]"
    } else {
        ""
    };
    Failure::Local(format!("{text}{remedy}"))
}

pub(super) fn written(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(|e| Failure::Local(format!("standard output: {e}")))
}

fn verify(args: &VerifyArgs) -> Result<Outcome, Failure> {
    let (verified, parts) = match &args.lines {
        Some(file) => lines(file, &args.head)?,
        None => (open(&args.database)?.verify(&args.head).map_err(stored)?, 1),
    };
    let whole = verified.findings.is_empty();
    let findings: Vec<String> = verified.findings.iter().map(ToString::to_string).collect();
    written(if args.json {
        let anchor = Some(verified.anchor).filter(|a| *a != Head::NONE).map(|a| a.to_string());
        write_out(&format!(
            "{:#}\n",
            json!({ "ok": whole, "entries": verified.entries, "parts": parts, "head": verified.head.to_string(), "anchor": anchor, "findings": findings })
        ))
    } else {
        let mut page = Page::new();
        for finding in findings {
            page.line(toned(finding, Tone::Bad));
        }
        page.pair("entries", verified.entries);
        if parts > 1 {
            page.pair("parts", format!("{parts}: {} restore(s) went back to a backup", parts - 1));
        }
        page.pair("head", verified.head);
        if verified.anchor != Head::NONE {
            page.pair("pruned up to", format!("A{}", verified.anchor.number));
        }
        page.line(if whole {
            toned("the chain is whole", Tone::Good)
        } else {
            toned("THE CHAIN IS NOT WHOLE", Tone::Bad)
        });
        page.print()
    })?;
    Ok(if whole { Outcome::Done } else { Outcome::Failed })
}

/// Lines of entries, and of how many chains that restores have left or begun; the last one of an export, which has the head, is one more
/// thing that is known.
fn lines(file: &Path, known: &[Head]) -> Result<(Verified, u64), Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::Local(format!("{}: {e}", file.display()));
    let mut entries: Vec<Sealed> = Vec::new();
    let (mut known, mut export) = (known.to_vec(), false);
    for (number, line) in (1_u64..).zip(BufReader::new(File::open(file).map_err(|e| failed(&e))?).lines()) {
        let line = line.map_err(|e| failed(&e))?;
        let foreign = |e: serde_json::Error| {
            failed(&format!(
                "line {number} is none of the audit's, as `lazaret audit export` or [store] audit_log writes them: {e}"
            ))
        };
        let value: serde_json::Value = serde_json::from_str(&line).map_err(foreign)?;
        if let Some(head) = value.get("head").and_then(serde_json::Value::as_str) {
            export = true;
            known.push(head.parse().map_err(|e| failed(&format!("line {number}: {e}")))?);
            continue;
        }
        let line: Line = serde_json::from_value(value).map_err(foreign)?;
        entries.push(line.into());
    }
    if entries.is_empty() && !export {
        return Err(failed(&"it is empty, and says nothing of any chain"));
    }
    let verdict = verify_lines(&entries, &known, export);
    let verified = Verified {
        head: verdict.head,
        anchor: Head::NONE,
        entries: verdict.entries,
        findings: verdict.findings,
    };
    Ok((verified, verdict.parts))
}

fn show(args: &ShowArgs) -> Result<Outcome, Failure> {
    let mut found = open(&args.database)?.audit(&AuditQuery::Number(args.code)).map_err(stored)?;
    let Some(sealed) = found.pop() else {
        return Err(Failure::Local(format!(
            "the audit has no entry A{}, or no longer; `lazaret audit list` has the last ones",
            args.code
        )));
    };
    written(if args.json {
        print_lines(vec![sealed])
    } else {
        let mut page = Page::new();
        let head = Head {
            number: sealed.entry.number,
            hash: sealed.hash,
        };
        let e = sealed.entry;
        page.pair("entry", format!("A{}", e.number));
        page.pair("at", rfc3339(e.at));
        page.pair("by", e.by);
        page.pair("action", e.action);
        page.pair("device", e.device.map_or_else(String::new, |d| d.to_string()));
        page.pair("subject", e.subject);
        page.pair("before", e.before);
        page.pair("after", e.after);
        page.pair("reason", e.reason);
        page.pair("request", e.request);
        let tone = if e.result == "done" { Tone::Good } else { Tone::Warn };
        page.pair("result", toned(e.result, tone));
        page.pair("number:hash", head);
        page.print()
    })?;
    Ok(Outcome::Done)
}

fn list(args: &ListArgs) -> Result<Outcome, Failure> {
    let query = AuditQuery::Before {
        number: None,
        device: args.device.clone(),
        limit: args.limit,
    };
    let found = open(&args.database)?.audit(&query).map_err(stored)?;
    written(if args.json {
        print_lines(found)
    } else {
        let row = |s: Sealed| {
            let e = s.entry;
            let change = if e.before == e.after {
                String::new()
            } else {
                format!("{} -> {}", e.before, e.after)
            };
            let on = e.device.map_or(e.subject, |d| d.to_string());
            let tone = if e.result == "done" { Tone::Plain } else { Tone::Warn };
            vec![
                Cell::from(format!("A{}", e.number)),
                Cell::from(rfc3339(e.at)),
                Cell::from(e.by),
                Cell::from(e.action),
                Cell::from(on),
                Cell::from(change),
                Cell::from(e.reason),
                toned(e.result, tone),
            ]
        };
        let mut page = Page::new();
        page.table(
            &["ENTRY", "AT", "BY", "ACTION", "ON", "CHANGE", "REASON", "RESULT"],
            &found.into_iter().map(row).collect::<Vec<_>>(),
        );
        page.print()
    })?;
    Ok(Outcome::Done)
}

fn export(args: &ExportArgs) -> Result<Outcome, Failure> {
    let reader = open(&args.database)?;
    // What comes meanwhile is not in it, so that the head is that of the last line.
    let (head, anchor) = reader.ends().map_err(stored)?;
    let mut after = args.after;
    while after < head.number {
        let query = AuditQuery::After {
            number: after,
            limit: AT_ONCE,
        };
        let mut found = reader.audit(&query).map_err(stored)?;
        found.retain(|s| s.entry.number <= head.number);
        let Some(last) = found.last() else { break };
        after = last.entry.number;
        written(print_lines(found))?;
    }
    let anchor = Some(anchor).filter(|a| *a != Head::NONE).map(|a| a.to_string());
    written(write_out(&format!(
        "{}\n",
        json!({ "head": head.to_string(), "anchor": anchor })
    )))?;
    Ok(Outcome::Done)
}

fn print_lines(entries: Vec<Sealed>) -> io::Result<()> {
    let mut text = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut text, &Line::from(entry))?;
        text.write_all(b"\n")?;
    }
    write_out(&String::from_utf8_lossy(&text))
}
