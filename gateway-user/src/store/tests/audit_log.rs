//! The audit as lines in a file: each entry once, whatever happens to the file.

use std::{io::Write as _, time::Duration};

use super::{
    backup::{entry, filled},
    *,
};
use crate::store::{AuditLog, LogState, Reader, restore};

#[test]
fn the_audit_log_has_every_entry_once_through_rotation_restart_and_a_torn_line() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let (log, rotated) = (temp.path().join("audit.jsonl"), temp.path().join("audit.jsonl.1"));
    // A torn line is no line.
    let numbers = |file: &Path| -> Vec<u64> {
        let text = fs::read_to_string(file).unwrap_or_default();
        let number = |l: &str| serde_json::from_str::<serde_json::Value>(l).ok()?["number"].as_u64();
        text.lines().filter_map(number).collect()
    };
    let mut revision = Revision(1);
    let mut commit = |daemon: &mut SqliteStore, number| {
        let changes = ChangeSet {
            audit: vec![entry(number)],
            ..ChangeSet::default()
        };
        revision = daemon.commit(&changes, revision, AT).unwrap().revision;
    };
    // Each run ends with a last look.
    let run = || drop(AuditLog::start(&path, Some(log.clone())).unwrap());
    run();
    assert_eq!(numbers(&log), (1..=9).collect::<Vec<_>>());
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o600);
    run();
    commit(&mut daemon, 10);
    run();
    assert_eq!(numbers(&log), (1..=10).collect::<Vec<_>>());
    fs::rename(&log, &rotated).unwrap();
    run();
    commit(&mut daemon, 11);
    run();
    assert_eq!((numbers(&rotated).len(), numbers(&log)), (10, vec![11]));
    fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .unwrap()
        .write_all(b"{\"number\":12,\"at")
        .unwrap();
    commit(&mut daemon, 12);
    let running = AuditLog::start(&path, Some(log.clone())).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while numbers(&log).len() < 2 && std::time::Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(numbers(&log), [11, 12], "while it runs");
    drop(running);
}

/// What a restore makes of the chain, the log has all of: also where it had come further than the chain has since.
#[test]
fn after_a_restore_the_audit_log_goes_on_with_the_restore() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let (log, copy) = (temp.path().join("audit.jsonl"), temp.path().join("copy.db"));
    let run = || drop(AuditLog::start(&path, Some(log.clone())).unwrap());
    let lines = || -> Vec<(u64, String)> {
        let text = fs::read_to_string(&log).unwrap();
        let line = |l: &str| -> serde_json::Value { serde_json::from_str(l).unwrap() };
        text.lines()
            .map(|l| {
                (
                    line(l)["number"].as_u64().unwrap(),
                    line(l)["hash"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    };
    let commit = |daemon: &mut SqliteStore, numbers: std::ops::RangeInclusive<u64>| {
        let revision = daemon.load().unwrap().revision;
        let changes = ChangeSet {
            audit: numbers.map(entry).collect(),
            ..ChangeSet::default()
        };
        daemon.commit(&changes, revision, AT).unwrap();
    };
    let restored_at = |second: i64| drop(restore(&path, &copy, "uid:0", WallTime(AT.0 + second * 1000), false).unwrap());
    Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
    commit(&mut daemon, 10..=40);
    run();
    assert_eq!(lines().len(), 40);
    drop(daemon);

    // The chain is past the log's last number before the log is looked at.
    restored_at(1);
    let mut daemon = SqliteStore::open(&path).unwrap();
    commit(&mut daemon, 11..=60);
    run();
    let all = lines();
    let numbers: Vec<u64> = all.iter().map(|l| l.0).collect();
    assert_eq!(numbers, (1..=40).chain(10..=60).collect::<Vec<_>>());
    let text = fs::read_to_string(&log).unwrap();
    let restored: serde_json::Value = serde_json::from_str(text.lines().nth(40).unwrap()).unwrap();
    assert_eq!(restored["action"], "RestoreStore");
    assert_eq!(restored["before"], format!("40:{}", all[39].1), "the head of what was left");
    assert_eq!(restored["after"], format!("9:{}", all[8].1), "and of what goes on");
    run();
    assert_eq!(lines().len(), 91, "once");
    let sealed = |l: &str| crate::audit::Sealed::from(serde_json::from_str::<crate::audit::Line>(l).unwrap());
    let verdict = crate::audit::verify_lines(&text.lines().map(sealed).collect::<Vec<_>>(), &[], false);
    assert_eq!((verdict.parts, verdict.findings), (2, vec![]));
    drop(daemon);

    // Twice before the log is looked at, the chain shorter than the log.
    restored_at(2);
    restored_at(3);
    run();
    assert_eq!(lines()[91..].iter().map(|l| l.0).collect::<Vec<_>>(), [10]);

    // Rotated away, so that nobody knows what the log had: all of the chain.
    fs::rename(&log, temp.path().join("audit.jsonl.1")).unwrap();
    let mut daemon = SqliteStore::open(&path).unwrap();
    commit(&mut daemon, 11..=12);
    run();
    assert_eq!(
        lines().iter().map(|l| l.0).collect::<Vec<_>>(),
        [11, 12],
        "it is known where it had come"
    );
    drop(daemon);
    restored_at(4);
    fs::remove_file(&log).unwrap();
    run();
    assert_eq!(lines().iter().map(|l| l.0).collect::<Vec<_>>(), (1..=10).collect::<Vec<_>>());
}

#[test]
fn a_pipe_is_no_audit_log() {
    let (temp, path) = directory();
    let _daemon = filled(&path);
    let pipe = temp.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let running = AuditLog::start(&path, Some(pipe)).unwrap();
    let health = running.health();
    drop(running);
    assert!(health.state().problem.unwrap().contains("not a plain file"));
}

/// What cannot be written is told, and what is pruned meanwhile is counted; a log that begins lacks nothing.
#[test]
fn an_audit_log_that_cannot_be_written_says_so_and_what_it_lacks() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let directory = temp.path().join("logs");
    let log = directory.join("audit.jsonl");
    let running = AuditLog::start(&path, Some(log.clone())).unwrap();
    let health = running.health();
    let until = |what: &dyn Fn(&LogState) -> bool| {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !what(&health.state()) {
            assert!(std::time::Instant::now() < deadline, "{:?}", health.state());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    until(&|s| {
        s.problem
            .as_ref()
            .is_some_and(|p| p.contains("audit.jsonl") && p.contains("make its directory"))
    });
    assert_eq!(health.state().lost, 0);
    let forget = |daemon: &mut SqliteStore, kept| while daemon.prune(WallTime(0), kept).unwrap() {};
    forget(&mut daemon, 6);
    until(&|s| s.lost == 3);
    fs::create_dir(&directory).unwrap();
    until(&|s| s.problem.is_none());
    drop(running);
    assert_eq!(health.state().lost, 3, "counted once");
    let count = || fs::read_to_string(&log).unwrap().lines().count();
    assert_eq!(count(), 6);
    // Down while more goes: counted from the last line on.
    let mut changes = ChangeSet {
        audit: (10..=20).map(entry).collect(),
        ..ChangeSet::default()
    };
    daemon.commit(&changes, Revision(1), AT).unwrap();
    forget(&mut daemon, 4);
    let running = AuditLog::start(&path, Some(log.clone())).unwrap();
    let health = running.health();
    drop(running);
    assert_eq!(
        (health.state(), count()),
        (
            LogState {
                problem: None,
                lost: 3 + 7
            },
            10
        )
    );
    // Another file that begins now.
    changes.audit = vec![entry(21)];
    daemon.commit(&changes, Revision(2), AT).unwrap();
    fs::remove_file(&log).unwrap();
    for name in ["audit-log.position", "audit-log.lost"] {
        fs::remove_file(path.join(name)).unwrap();
    }
    let running = AuditLog::start(&path, Some(log.clone())).unwrap();
    let health = running.health();
    drop(running);
    assert_eq!((health.state(), count()), (LogState::default(), 5));
}

#[test]
fn what_an_audit_log_lacks_is_known_after_a_restart_and_before_it_ever_began() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let directory = temp.path().join("logs");
    let log = directory.join("audit.jsonl");
    let looked = || {
        let running = AuditLog::start(&path, Some(log.clone())).unwrap();
        let health = running.health();
        drop(running);
        health.state()
    };
    assert_eq!(looked().lost, 0);
    while daemon.prune(WallTime(0), 6).unwrap() {}
    for _ in 0..2 {
        let state = looked();
        assert!(state.problem.is_some() && state.lost == 3, "{state:?}");
    }
    fs::create_dir(&directory).unwrap();
    for _ in 0..2 {
        assert_eq!(looked(), LogState { problem: None, lost: 3 });
    }
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 6);
}
