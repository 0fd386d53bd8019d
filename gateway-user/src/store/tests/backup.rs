//! Readers beside the daemon: verification, check, backup, restore.

use std::io::Write as _;

use super::rows::signed;

use super::*;
use crate::{
    audit::{Finding, Flaw},
    store::{Reader, restore},
};

pub(super) fn entry(number: u64) -> Entry {
    Entry {
        number,
        at: AT,
        by: "uid:0".to_owned(),
        action: "RevokePolicy".to_owned(),
        device: Some("one".parse().unwrap()),
        subject: String::new(),
        before: "released".to_owned(),
        after: "quarantined".to_owned(),
        reason: "lost".to_owned(),
        request: format!("r{number}"),
        result: "done".to_owned(),
    }
}

/// Two devices, a session, a request, and entries 1 to 9.
pub(super) fn filled(path: &Path) -> SqliteStore {
    let mut store = SqliteStore::open(path).unwrap();
    let mut changes = devices(&[whole("one"), device("other")]);
    changes.opened = [(SessionId(4), session(4, Some("one"), &["10.0.0.1", "fd00::1"]))].into();
    changes.audit = (1..=9).map(entry).collect();
    changes.requests = vec![Request {
        client: "uid:0".to_owned(),
        id: "r9".parse().unwrap(),
        digest: [1; 32],
        at: AT,
        salt: None,
        answer: Some(b"released".to_vec()),
    }];
    store.commit(&changes, Revision(0), AT).unwrap();
    store
}

fn alter(path: &Path, sql: &str) {
    let c = rusqlite::Connection::open(path.join("lazaret.db")).unwrap();
    c.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}")).unwrap();
}

#[test]
fn a_forged_audit_is_found_beside_the_running_daemon() {
    let (_temp, path) = directory();
    let daemon = filled(&path);
    let verify = |known: &[Head]| Reader::of_directory(&path).unwrap().verify(known).unwrap();
    let whole = verify(&[]);
    assert_eq!((whole.head.number, whole.entries, whole.findings.as_slice()), (9, 9, &[][..]));
    let finding = |number, flaw| Finding { number, flaw };
    let saved = "CREATE TEMP TABLE saved AS SELECT * FROM audit; CREATE TEMP TABLE known AS SELECT audit_number n, audit_hash h FROM meta;";
    let back =
        "DELETE FROM audit; INSERT INTO audit SELECT * FROM saved; UPDATE meta SET audit_number = n, audit_hash = h FROM known;";
    let editor = rusqlite::Connection::open(path.join("lazaret.db")).unwrap();
    editor.execute_batch(saved).unwrap();
    for (forgery, expected) in [
        (
            "UPDATE audit SET after = 'released' WHERE number = 4",
            vec![finding(4, Flaw::Edited)],
        ),
        ("UPDATE audit SET at = 0 WHERE number = 1", vec![finding(1, Flaw::Edited)]),
        // Not even a device's name.
        (
            "UPDATE audit SET device = 'a b' WHERE number = 9",
            vec![finding(9, Flaw::Edited)],
        ),
        (
            "DELETE FROM audit WHERE number IN (5, 6)",
            vec![finding(7, Flaw::Missing { from: 5 })],
        ),
        (
            "DELETE FROM audit WHERE number = 1",
            vec![finding(2, Flaw::Missing { from: 1 })],
        ),
        (
            "UPDATE audit SET number = -3 WHERE number = 3; UPDATE audit SET number = 3 WHERE number = 6;
             UPDATE audit SET number = 6 WHERE number = -3",
            [3, 4, 6, 7].map(|n| finding(n, Flaw::Edited)).to_vec(),
        ),
        (
            "DELETE FROM audit WHERE number > 7",
            vec![finding(7, Flaw::CutOff { reached: 9 })],
        ),
        ("DELETE FROM audit", vec![finding(0, Flaw::CutOff { reached: 9 })]),
    ] {
        editor.execute_batch(forgery).unwrap();
        assert_eq!(verify(&[]).findings, expected, "{forgery}");
        editor.execute_batch(back).unwrap();
    }
    // Cut off with the head that the database has, too: only one from elsewhere tells.
    editor
        .execute_batch(
            "DELETE FROM audit WHERE number > 7;
             UPDATE meta SET (audit_number, audit_hash) = (SELECT number, hash FROM audit WHERE number = 7)",
        )
        .unwrap();
    assert_eq!(verify(&[]).findings, []);
    assert_eq!(verify(&[whole.head]).findings, [finding(7, Flaw::CutOff { reached: 9 })]);
    editor.execute_batch(back).unwrap();
    // All of it written anew, each hash right.
    let mut last = Head::NONE.hash;
    for mut e in (1..=9).map(entry) {
        e.by = "nobody".to_owned();
        last = e.hash_after(&last);
        editor
            .execute(
                "UPDATE audit SET by = 'nobody', hash = ?2 WHERE number = ?1",
                rusqlite::params![signed(e.number), last],
            )
            .unwrap();
    }
    editor.execute("UPDATE meta SET audit_hash = ?1", [last]).unwrap();
    assert_eq!(verify(&[]).findings, []);
    assert_eq!(verify(&[whole.head]).findings, [finding(9, Flaw::Replaced)]);
    drop(daemon);
}

#[test]
fn a_check_names_what_is_wrong() {
    for (damage, expected) in [
        ("", ""),
        (
            "DELETE FROM aliases WHERE kind = 2",
            "aliases: devices have 9, of which 3 are not listed",
        ),
        (
            "INSERT INTO aliases VALUES (1, x'41', 0, 'nobody')",
            "aliases: a row refers to one that does not exist",
        ),
        ("UPDATE devices SET state = 'free' WHERE id = 'one'", "an unknown state"),
        (
            "UPDATE devices SET lease = x'00' WHERE id = 'one'",
            "a blob of the wrong length",
        ),
        (
            "UPDATE meta SET next_session = 4",
            "1 session(s) above the number that comes next",
        ),
        ("UPDATE meta SET revision = 0", "2 device(s) changed after the last commit"),
        ("DELETE FROM sessions", "address(es) of sessions that do not exist"),
        (
            "UPDATE audit SET result = 'done ' WHERE number = 2",
            "audit: A2: what it says, or its hash, was changed",
        ),
        (
            "UPDATE devices SET last_audit = 99",
            "2 device(s) with an audit entry that is not there",
        ),
    ] {
        let (_temp, path) = directory();
        drop(filled(&path));
        alter(&path, damage);
        let health = Reader::of_directory(&path).unwrap().check().unwrap();
        assert_eq!(
            health.problems.is_empty(),
            damage.is_empty(),
            "{damage}: {:?}",
            health.problems
        );
        assert!(
            damage.is_empty() || health.problems.iter().any(|p| p.contains(expected)),
            "{damage}: {:?}",
            health.problems
        );
    }
}

#[test]
fn damaged_pages_are_found_by_the_check_and_no_backup_is_made_of_them() {
    let (temp, path) = directory();
    drop(filled(&path));
    alter(&path, "PRAGMA wal_checkpoint(TRUNCATE)");
    let file = path.join("lazaret.db");
    let bytes = fs::read(&file).unwrap();
    let root: i64 = {
        let c = rusqlite::Connection::open(&file).unwrap();
        c.query_row("SELECT rootpage FROM sqlite_master WHERE name = 'requests_key'", [], |r| {
            r.get(0)
        })
        .unwrap()
    };
    let root = usize::try_from(root).unwrap();
    let mut damaged = bytes.clone();
    damaged[(root - 1) * 4096 + 8..root * 4096].fill(0x5a);
    fs::write(&file, damaged).unwrap();
    let reader = Reader::of_directory(&path).unwrap();
    let found = reader.check().map(|h| h.problems);
    assert!(
        found.as_ref().is_ok_and(|p| !p.is_empty()) || matches!(found, Err(StoreError::Corrupt(_))),
        "{found:?}"
    );
    let copy = temp.path().join("copy.db");
    assert!(matches!(reader.backup(&copy, AT), Err(StoreError::Corrupt(_))));
    let left: Vec<_> = fs::read_dir(temp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["state"], "nothing is left of it");
}

#[test]
fn a_backup_of_the_live_database_is_whole_and_tight_and_replaces_nothing() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let copy = temp.path().join("copy.db");
    let reader = Reader::of_directory(&path).unwrap();
    let made = reader.backup(&copy, WallTime(77)).unwrap();
    assert_eq!(
        (made.revision, made.devices, made.audit_head.number, made.kept),
        (Revision(1), 2, 9, None)
    );
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o600);
    assert!(matches!(reader.backup(&copy, AT), Err(StoreError::Exists(_))));
    // The daemon goes on, before, after and meanwhile.
    daemon.commit(&devices(&[device("seventh")]), Revision(1), AT).unwrap();
    let seen = Reader::open(&copy).unwrap();
    assert_eq!(seen.check().unwrap().problems, [""; 0]);
    let marked: i64 = seen
        .connection
        .query_row("SELECT restored FROM meta", [], |r| r.get(0))
        .unwrap();
    assert_eq!(marked, 77, "a copy that is put in place by hand is marked, too");
    assert!(daemon.load().unwrap().restored.is_none());
    let left = fs::read_dir(temp.path()).unwrap().count();
    assert_eq!(left, 2, "the state and the copy, no journals");
}

#[test]
fn a_backup_is_of_one_moment_while_the_daemon_writes() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    // Each commit changes both devices alike: a copy of two moments would show it.
    let both = |owner: String| {
        devices(&["one", "other"].map(|id| Device {
            owner: owner.clone().into(),
            ..device(id)
        }))
    };
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut revision = daemon.load().unwrap().revision;
            let mut commits = 0;
            // Also where an assertion below has ended the test.
            while !stop.load(std::sync::atomic::Ordering::Relaxed) && commits < 2_000 {
                let mut changes = both(format!("owner {revision}"));
                changes.audit = vec![entry(10 + commits)];
                revision = daemon.commit(&changes, revision, AT).unwrap().revision;
                commits += 1;
            }
            commits
        });
        for n in 0..10 {
            let copy = temp.path().join(format!("copy-{n}.db"));
            let made = Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
            let owners: i64 = rusqlite::Connection::open(&copy)
                .unwrap()
                .query_row("SELECT count(DISTINCT owner) FROM devices", [], |r| r.get(0))
                .unwrap();
            assert!(owners == 1 || made.revision == Revision(1));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(writer.join().unwrap() > 10);
    });
}

#[test]
fn a_restore_takes_nothing_over_that_is_no_longer_true_and_keeps_the_old() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let copy = temp.path().join("copy.db");
    Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
    let mut later = devices(&[Device {
        release: Rare::default(),
        ..device("seventh")
    }]);
    later.audit = vec![entry(10)];
    later.opened = [(SessionId(8), session(8, Some("one"), &["10.0.0.8"]))].into();
    let head = daemon.commit(&later, Revision(1), AT).unwrap().audit_head;
    let refused = restore(&path, &copy, "uid:0", AT, false);
    assert!(
        matches!(refused, Err(StoreError::Busy(_))),
        "under a running daemon: {refused:?}"
    );
    drop(daemon);

    let done = restore(&path, &copy, "uid:0", WallTime(1_800_000_000_000), false).unwrap();
    assert_eq!((done.devices, done.audit_head.number), (2, 10));
    let kept = done.kept.unwrap();
    assert_eq!(kept, path.join("lazaret.db.before-2027-01-15T08:00:00.000Z"));
    assert_eq!(Reader::open(&kept).unwrap().check().unwrap().devices, 3);
    let mut daemon = SqliteStore::open(&path).unwrap();
    let loaded = daemon.load().unwrap();
    let names: Vec<&str> = loaded.devices.iter().map(|d| d.id.as_str()).collect();
    assert_eq!(
        (names, loaded.sessions.len(), loaded.restored),
        (vec!["one", "other"], 0, Some(AT))
    );
    assert_eq!(
        (loaded.revision, loaded.next_session),
        (Revision(3), 9),
        "above all that there was"
    );
    assert_eq!(
        daemon.uri_changes(Revision(2), 1000).unwrap(),
        None,
        "watchers have to start again"
    );
    assert_eq!(daemon.request("uid:0", &"r9".parse().unwrap()).unwrap(), None);
    let entry = daemon.audit(&AuditQuery::Number(10)).unwrap().remove(0).entry;
    assert_eq!((entry.action.as_str(), entry.before), ("RestoreStore", head.to_string()));
    assert_eq!(Reader::of_directory(&path).unwrap().check().unwrap().problems, [""; 0]);
    let told = Reader::of_directory(&path).unwrap().verify(&[head]).unwrap().findings;
    assert_eq!(told[0].flaw, Flaw::Replaced, "who knows the old head is told");
}

#[test]
fn a_restore_that_is_told_so_takes_back_what_a_clock_had_dated_ahead() {
    let (temp, path) = directory();
    let mut daemon = filled(&path);
    let later = WallTime(4_000_000_000_000);
    let dated = |id: &str, at| Device {
        release: Rare::new(Release {
            restricted_at: Some(at),
            ..Release::default()
        }),
        ..device(id)
    };
    let earlier = WallTime(AT.0 - 1);
    let ahead = devices(&[dated("one", later), dated("other", earlier)]);
    daemon.commit(&ahead, Revision(1), later).unwrap();
    drop(daemon);
    for (told, one, last) in [(false, later, Some(later)), (true, AT, None)] {
        let copy = temp.path().join(format!("copy-{told}.db"));
        Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
        restore(&path, &copy, "uid:0", AT, told).unwrap();
        fs::remove_file(path.join("lazaret.db.before-2027-01-15T08:00:00.000Z")).ok();
        let mut daemon = SqliteStore::open(&path).unwrap();
        let loaded = daemon.load().unwrap();
        let restricted: Vec<_> = loaded.devices.iter().map(|d| d.release.restricted_at).collect();
        assert_eq!(
            (restricted, loaded.committed_at),
            (vec![Some(one), Some(earlier)], last),
            "{told}"
        );
        let number = loaded.audit_head.unwrap().number;
        let entry = daemon.audit(&AuditQuery::Number(number)).unwrap().remove(0).entry;
        assert_eq!(
            (entry.action.as_str(), entry.reason.contains("1 device(s)")),
            ("RestoreStore", told)
        );
    }
}

#[test]
fn a_restore_over_a_database_that_cannot_be_read_keeps_all_of_its_files() {
    let (temp, path) = directory();
    drop(filled(&path));
    let copy = temp.path().join("copy.db");
    Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
    fs::write(path.join("lazaret.db"), [b'?'; 8192]).unwrap();
    let log = path.join("lazaret.db-wal");
    File::create(&log).unwrap().write_all(b"something").unwrap();
    let done = restore(&path, &copy, "uid:0", AT, false).unwrap();
    let kept = done.kept.unwrap();
    assert_eq!(fs::read(&kept).unwrap(), [b'?'; 8192]);
    assert_eq!(fs::read(files::with_suffix(&kept, "-wal")).unwrap(), b"something");
    let mut daemon = SqliteStore::open(&path).unwrap();
    assert!(
        daemon.load().unwrap().revision.0 > 1 << 32,
        "nobody knows how far it had come"
    );
}

#[test]
fn what_is_no_backup_is_not_restored() {
    let (temp, path) = directory();
    drop(filled(&path));
    let copy = temp.path().join("copy.db");
    fs::write(&copy, [b'?'; 8192]).unwrap();
    assert!(matches!(
        restore(&path, &copy, "uid:0", AT, false),
        Err(StoreError::Foreign(_))
    ));
    fs::remove_file(&copy).unwrap();
    Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
    let c = rusqlite::Connection::open(&copy).unwrap();
    c.execute_batch("UPDATE audit SET by = 'x' WHERE number = 3").unwrap();
    let refused = restore(&path, &copy, "uid:0", AT, false);
    assert!(
        matches!(&refused, Err(StoreError::Corrupt(e)) if e.contains("A3")),
        "{refused:?}"
    );
    c.execute_batch("PRAGMA user_version = 99").unwrap();
    assert!(matches!(
        restore(&path, &copy, "uid:0", AT, false),
        Err(StoreError::Newer { .. })
    ));
    let mut names: Vec<_> = fs::read_dir(&path)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|n| !n.ends_with("-wal") && !n.ends_with("-shm"));
    names.sort();
    assert_eq!(names, ["lazaret.db", "lazaret.lock"], "nothing is left of it");
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().devices.len(), 2);
}
