//! `docs/states.md` says what the function does. `UPDATE=1 cargo test -p gateway-user --lib the_table_of_states` writes it.

use std::fmt::Write as _;

use super::*;
use crate::config::OutsideWindow;

const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/states.md");
const COMMAND: &str = "UPDATE=1 cargo test -p gateway-user --lib the_table_of_states";

#[test]
fn the_table_of_states() {
    let text = document();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PATH, text).unwrap();
        return;
    }
    let found = std::fs::read_to_string(PATH).unwrap_or_default();
    assert!(found == text, "docs/states.md is out of date; run: {COMMAND}");
}

type Tell = fn(&mut Desk) -> Result<Step, Refusal>;

/// What is told, in the order of the table.
const ROWS: [(&str, Tell); 30] = [
    ("a session opens", |d| d.try_(Signal::Connected)),
    ("a session opens outside its window", |d| {
        closed(d);
        d.try_(Signal::Connected)
    }),
    ("a session opens outside its window, where that blocks", |d| {
        closed(d);
        d.config.devices.outside_window = OutsideWindow::Block;
        d.try_(Signal::Connected)
    }),
    ("a policy is offered", |d| {
        d.try_(Signal::Offer {
            key: KeyHash([9; 32]),
            revision: &name("r2"),
        })
    }),
    ("the offer is acknowledged", |d| acknowledge(d)),
    ("proof of the last revision", |d| applied(d, "r2", 0)),
    ("proof of an older revision", |d| applied(d, "r1", 0)),
    ("proof of a revision never published", |d| applied(d, "r9", 0)),
    ("proof outside its window", |d| {
        closed(d);
        applied(d, "r2", 0)
    }),
    ("proof too late for its deadline", |d| {
        late(d);
        applied(d, "r2", 0)
    }),
    ("proof seen before the last restriction", |d| {
        d.device.release.restricted_at = Some(d.now.wall);
        applied(d, "r2", -1)
    }),
    ("proof seen too long ago", |d| applied(d, "r2", -25 * HOUR)),
    ("proof from the future", |d| applied(d, "r2", HOUR)),
    ("proof dated rightly, by a clock that is behind", |d| {
        behind(d);
        applied(d, "r2", HOUR)
    }),
    ("the same with the key of a handshake since", |d| {
        behind(d);
        handshake(d)?;
        with_key(d)
    }),
    ("the same, where nobody knows whether its window is open", |d| {
        d.device.enrolment.window.not_after = Some(WallTime(i64::MAX));
        behind(d);
        handshake(d)?;
        with_key(d)
    }),
    ("direct proof, where a key is required", |d| {
        d.config.proofs.direct_signal = false;
        applied(d, "r2", 0)
    }),
    ("the lease is renewed", |d| d.try_(Signal::RenewLease)),
    ("**policy revoked**", |d| d.try_(REVOKED)),
    ("**its wave of a newer revision comes**", |d| {
        d.publish("r3");
        d.try_(Signal::Stale)
    }),
    ("**its deadline passes**", |d| {
        late(d);
        d.try_(Signal::DeadlinePassed)
    }),
    ("**its lease ends**", |d| d.try_(Signal::LeaseEnded)),
    ("an operator releases it", |d| d.try_(except(ExceptionKind::Release, 1))),
    ("an operator releases it outside its window", |d| {
        closed(d);
        d.try_(except(ExceptionKind::Release, 1))
    }),
    ("**an operator blocks it**", |d| d.try_(except(ExceptionKind::Block, 1))),
    ("an operator ends the exception", |d| d.try_(Signal::EndException)),
    ("**the exception's time is over**", |d| d.try_(Signal::ExceptionOver)),
    ("registered with another window", |d| {
        let window = Window {
            not_before: None,
            not_after: Some(WallTime(i64::MAX)),
        };
        d.register(&Registration {
            window,
            ..registration("phone", "lab")
        })
    }),
    ("**the store is restored from a backup**", |d| d.try_(Signal::Restored)),
    ("**retired**", |d| d.try_(Signal::Retire)),
];

type Column = (&'static str, for<'a> fn(&'a mut Desk) -> &'a mut Desk);

/// In which state. A device that has not enrolled yet, but for those that proof has released.
const COLUMNS: [Column; 9] = [
    ("registered", |d| d),
    ("quarantined", |d| d.connect()),
    ("policy-pending", |d| {
        d.connect();
        d.tell(Signal::Offer {
            key: KeyHash([1; 32]),
            revision: &name("r2"),
        })
    }),
    ("released", |d| d.connect().proof("r2")),
    ("released by exception", |d| {
        d.connect().tell(except(ExceptionKind::Release, 2))
    }),
    ("stale", |d| {
        d.connect().proof("r2").publish("r2a").tell(Signal::Stale).publish("r2")
    }),
    ("blocked by an operator", |d| {
        d.connect().tell(except(ExceptionKind::Block, 2))
    }),
    ("blocked by its deadline", |d| {
        d.connect();
        late(d);
        d.tell(Signal::DeadlinePassed)
    }),
    ("retired", |d| d.connect().tell(Signal::Retire)),
];

fn document() -> String {
    let mut out = String::from("# States and signals\n\n<!-- Generated from gateway-user/src/transition.rs; do not edit. ");
    writeln!(out, "`{COMMAND}` writes it. -->\n").unwrap();
    out.push_str(
        "What becomes of a device that is told something: the state after it, `-` where nothing changes, `=` where the state stays and \
         something else of the device changes, or the refusal. Restrictions are in bold: no device refuses them that is not retired, which is \
         tighter than all. [controller.md](controller.md) has the rules.\n\n",
    );
    out.push('|');
    for (name, _) in COLUMNS {
        write!(out, " | {name}").unwrap();
    }
    out.push_str(" |\n|---");
    out.push_str(&"|---".repeat(COLUMNS.len()));
    out.push_str("|\n");
    for (what, tell) in ROWS {
        write!(out, "| {what}").unwrap();
        for (_, prepare) in COLUMNS {
            let mut desk = Desk::new("lab");
            desk.publish("r1").publish("r2");
            prepare(&mut desk);
            desk.pass(1);
            write!(out, " | {}", cell(&mut desk, tell)).unwrap();
        }
        out.push_str(" |\n");
    }
    out.push_str("\n## Reasons\n\nWhat `state_reason` says of a device:");
    for reason in StateReason::ALL {
        write!(out, " `{reason}`").unwrap();
    }
    out.push_str(".\n");
    out
}

fn cell(desk: &mut Desk, tell: Tell) -> String {
    match tell(desk) {
        Err(refusal) => format!("`{}`", refusal.name()),
        Ok(step) if !step.changed => "-".to_owned(),
        Ok(step) if Some(step.device.state) == step.from => "=".to_owned(),
        Ok(step) => step.device.state.as_str().to_owned(),
    }
}

/// Its window is over.
fn closed(desk: &mut Desk) {
    desk.device.enrolment.window.not_after = Some(WallTime(desk.now.wall.0 - 1));
}

/// Its deadline, if it runs, is over; and so that the time of nothing else is, the clock stands still.
fn late(desk: &mut Desk) {
    if let Some(mut deadline) = desk.device.enrolment.deadline {
        deadline.length_ms = 0;
        desk.device.enrolment.deadline = Some(deadline);
    }
}

fn acknowledge(desk: &Desk) -> Result<Step, Refusal> {
    desk.try_(Signal::Acknowledge {
        temporary: KeyHash([1; 32]),
        fresh: KeyHash([2; 32]),
    })
}

/// The machine is booted anew, by a clock that is behind.
fn behind(desk: &mut Desk) {
    let last = desk.now.wall;
    desk.reboot(WallTime(last.0 - HOUR)).clock_behind = Some(last);
    desk.tell(Signal::Start);
}

fn handshake(desk: &mut Desk) -> Result<(), Refusal> {
    let (key, fresh) = (KeyHash([3; 32]), KeyHash([4; 32]));
    let revision = name("r2");
    for signal in [
        Signal::Offer {
            key,
            revision: &revision,
        },
        Signal::Acknowledge { temporary: key, fresh },
    ] {
        desk.device = desk.try_(signal)?.device;
    }
    Ok(())
}

/// With the key of that handshake.
fn with_key(desk: &Desk) -> Result<Step, Refusal> {
    desk.try_(Signal::PolicyApplied {
        revision: &name("r2"),
        key: Some(KeyHash([4; 32])),
        observed_at: Some(WallTime(desk.now.wall.0 + HOUR)),
    })
}

fn applied(desk: &Desk, revision: &str, seen: i64) -> Result<Step, Refusal> {
    desk.try_(proof(&name(revision), WallTime(desk.now.wall.0 + seen)))
}

fn name(revision: &str) -> PolicyRevision {
    revision.parse().unwrap()
}
