//! `lazaret store`: the database checked, copied and put back, by its own file.

use serde_json::json;

use super::{
    Outcome,
    args::{BackupArgs, RestoreArgs, StoreCheckArgs, StoreCommand},
    audit::{configuration, open, stored, written},
    client::Failure,
    table::{Page, Tone, toned, write_out},
};
use crate::{
    clock::{Clock as _, SystemClock},
    model::WallTime,
    store::{self, Copied},
};

pub(super) fn run(command: &StoreCommand) -> Result<Outcome, Failure> {
    match command {
        StoreCommand::Check(a) => check(a),
        StoreCommand::Backup(a) => backup(a),
        StoreCommand::Restore(a) => restore(a),
    }
}

fn check(args: &StoreCheckArgs) -> Result<Outcome, Failure> {
    let health = open(&args.database)?.check().map_err(stored)?;
    let good = health.problems.is_empty();
    written(if args.json {
        write_out(&format!(
            "{:#}\n",
            json!({ "ok": good, "problems": health.problems, "devices": health.devices, "sessions": health.sessions,
                "audit_entries": health.audit.entries, "audit_head": health.audit.head.to_string() })
        ))
    } else {
        let mut page = Page::new();
        for problem in &health.problems {
            page.line(toned(problem, Tone::Bad));
        }
        page.pair("devices", health.devices);
        page.pair("sessions", health.sessions);
        page.pair("audit entries", health.audit.entries);
        page.pair("audit head", health.audit.head);
        page.line(if good {
            toned("nothing is wrong with the database", Tone::Good)
        } else {
            toned("THE DATABASE IS DAMAGED: restore a backup", Tone::Bad)
        });
        page.print()
    })?;
    Ok(if good { Outcome::Done } else { Outcome::Failed })
}

fn backup(args: &BackupArgs) -> Result<Outcome, Failure> {
    let copied = open(&args.database)?.backup(&args.file, now()?).map_err(stored)?;
    written(copy(&args.file.display().to_string(), &copied).print())?;
    Ok(Outcome::Done)
}

fn restore(args: &RestoreArgs) -> Result<Outcome, Failure> {
    let directory = configuration(&args.config)?.paths.state;
    let by = format!("uid:{}", nix::unistd::getuid());
    let restored = store::restore(&directory, &args.file, &by, now()?, args.clock_was_ahead).map_err(|e| match e {
        store::StoreError::Busy(path) => Failure::Local(format!(
            "{} is in use: stop the daemon first (systemctl stop lazaret)",
            path.display()
        )),
        e => stored(e),
    })?;
    let mut page = copy(&directory.display().to_string(), &restored);
    if let Some(kept) = &restored.kept {
        page.pair("the old one", kept.display());
    }
    page.pair("taken over", restored.carried.to_string());
    page.line("every device needs fresh proof, and live sessions a new report, once the daemon runs");
    if restored.carried.closed > 0 {
        page.line(
            "who has to be registered anew (`lazaret audit list` has them, CarryOver) is by the MDM's next registration, or by \
             `lazaret device register ID --not-after 2d`",
        );
    }
    if let Some(forgotten) = &restored.forgotten {
        page.line(toned(forgotten, Tone::Bad));
        page.line("block and retire again what has to be, and publish the policy in force, also if it is the same: until then `lazaret status` warns");
    }
    written(page.print())?;
    Ok(Outcome::Done)
}

fn copy(place: &str, copied: &Copied) -> Page {
    let mut page = Page::new();
    page.pair("database", place);
    page.pair("devices", copied.devices);
    page.pair("revision", copied.revision);
    page.pair("audit head", copied.audit_head);
    page
}

fn now() -> Result<WallTime, Failure> {
    let clock = SystemClock::new().map_err(|e| Failure::Local(format!("the clock: {e}")))?;
    Ok(clock.now().wall)
}
