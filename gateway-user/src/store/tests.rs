//! The database: what it keeps, and what it refuses.

mod audit_log;
mod backup;
mod carry;
mod migration;
mod speed;
mod trail;

use std::{fs, fs::File, net::IpAddr, os::unix::fs::PermissionsExt as _, path::Path};

use tempfile::TempDir;

use super::*;
use crate::model::{
    Aliases, BootTime, DeviceState, Enrolment, Exception, ExceptionKind, FinalKey, Fingerprint, Handshake, KeyHash, Lease, Now,
    Offer, Rare, Release, StateReason, Trust, VpnKey, Window,
};

const AT: WallTime = WallTime(1_800_000_000_000);

fn directory() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state");
    (temp, path)
}

fn done(revision: u64) -> Committed {
    Committed {
        revision: Revision(revision),
        audit_head: Head::NONE,
    }
}

fn span(wall: i64, length_ms: u64) -> Lease {
    Lease {
        given: Now {
            wall: WallTime(wall),
            boot: BootTime(u64::MAX - 1),
            boot_id: u64::MAX,
        },
        length_ms,
    }
}

fn device(id: &str) -> Device {
    Device {
        owner: "Zoë \u{1f600} 'quoted'; DROP TABLE devices".into(),
        aliases: Rare::new(Aliases {
            common_names: [format!("{id}-cn").parse().unwrap()].into(),
            certificates: [Fingerprint::new([id.len() as u8; 32])].into(),
            ..Aliases::default()
        }),
        state: DeviceState::Released,
        state_reason: StateReason::PolicyApplied,
        state_since: WallTime(5),
        policy_revision: Some("r1".parse().unwrap()),
        release: Rare::new(Release {
            restricted_at: Some(WallTime(-3)),
            proved: None,
            lease: Some(span(7, 9)),
        }),
        gateway_uri: "office.example".into(),
        ..Device::new(id.parse().unwrap(), "office".parse().unwrap(), WallTime(5))
    }
}

/// Every field has a value of its own.
fn whole(id: &str) -> Device {
    Device {
        aliases: Rare::new(Aliases {
            common_names: ["b", "a:1", "user@example.org"].map(|n| n.parse().unwrap()).into(),
            certificates: [Fingerprint::new([9; 32]), Fingerprint::new([0; 32])].into(),
            vpn_keys: [VpnKey([7; 32]), VpnKey([255; 32])].into(),
            reach: Some(["w*", "b"].map(|p| p.parse().unwrap()).into()),
        }),
        enrolment: Rare::new(Enrolment {
            window: Rare::new(Window {
                not_before: Some(WallTime(-1)),
                not_after: Some(WallTime(i64::MAX)),
            }),
            enrolled_at: Some(WallTime(21)),
            arrived_at: Some(WallTime(22)),
            arrived_outside: Some(WallTime(23)),
            deadline: Some(span(-24, 25)),
        }),
        release: Rare::new(Release {
            proved: Some(span(i64::MIN, 0).given),
            ..(*device(id).release).clone()
        }),
        keys: Rare::new(Handshake {
            offer: Some(Offer {
                key: KeyHash([3; 32]),
                revision: "r2".parse().unwrap(),
                holds: span(26, u64::MAX),
            }),
            final_key: Some(FinalKey {
                key: KeyHash([4; 32]),
                revision: "r3".parse().unwrap(),
                offered: Some(span(27, 0).given),
            }),
        }),
        exception: Some(Box::new(Exception {
            kind: ExceptionKind::Block,
            reason: "lost \u{0} property".to_owned(),
            by: "uid:0".to_owned(),
            holds: span(27, 28),
        })),
        ..device(id)
    }
}

fn session(id: u64, device: Option<&str>, addresses: &[&str]) -> Session {
    Session {
        id: SessionId(id),
        device: device.map(|d| d.parse().unwrap()),
        addresses: addresses.iter().map(|a| a.parse::<IpAddr>().unwrap()).collect(),
        interface: "tun0".parse().unwrap(),
        source: "vpn-1".parse().unwrap(),
        trust: if id.is_multiple_of(2) {
            Trust::Name
        } else {
            Trust::Certificate
        },
        opened_at: WallTime(11),
    }
}

fn devices(list: &[Device]) -> ChangeSet {
    ChangeSet {
        devices: list.iter().map(|d| (d.id.clone(), d.clone())).collect(),
        ..ChangeSet::default()
    }
}

#[test]
fn what_is_committed_is_loaded_after_a_restart() {
    let (_temp, path) = directory();
    let all = [
        device("full"),
        Device {
            policy_revision: None,
            release: Rare::default(),
            aliases: Rare::default(),
            state: DeviceState::Retired,
            ..device("bare")
        },
        whole("whole"),
    ];
    let mut changes = devices(&all);
    let sessions = [
        session(1, Some("full"), &["10.0.0.9", "10.0.0.1", "fd00::1"]),
        session(2, Some("bare"), &[]),
        session(5, None, &["::ffff:10.0.0.1"]),
    ];
    changes.opened = sessions.iter().map(|s| (s.id, s.clone())).collect();
    {
        let mut store = SqliteStore::open(&path).unwrap();
        assert_eq!(
            store.load().unwrap(),
            Snapshot {
                next_session: 1,
                ..Snapshot::default()
            }
        );
        assert_eq!(store.commit(&changes, Revision(0), AT).unwrap(), done(1));
    }
    let mut store = SqliteStore::open(&path).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.revision, loaded.next_session), (Revision(1), 6));
    assert_eq!(
        (loaded.committed_at, loaded.restored, loaded.audit_head),
        (Some(AT), None, None)
    );
    let stamped = |d: &Device| Device {
        revision: Revision(1),
        ..d.clone()
    };
    assert_eq!(loaded.devices, [stamped(&all[1]), stamped(&all[0]), stamped(&all[2])]);
    assert_eq!(loaded.sessions, sessions);
    let closed = ChangeSet {
        closed: [SessionId(1), SessionId(2), SessionId(5), SessionId(77)].into(),
        ..ChangeSet::default()
    };
    assert_eq!(store.commit(&closed, Revision(1), AT).unwrap(), done(2));
    let loaded = store.load().unwrap();
    assert_eq!((loaded.sessions.len(), loaded.next_session), (0, 6));
}

#[test]
fn a_change_is_made_whole_or_not_at_all() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let mut changes = devices(&[device("one")]);
    changes.opened = [(SessionId(1), session(1, Some("one"), &["10.0.0.1"]))].into();
    store.commit(&changes, Revision(0), AT).unwrap();
    // The second device is fine, its session's address is held.
    let mut bad = devices(&[Device {
        aliases: Rare::default(),
        ..device("two")
    }]);
    bad.opened = [(SessionId(2), session(2, Some("two"), &["10.0.0.2", "10.0.0.1"]))].into();
    assert!(store.commit(&bad, Revision(1), AT).is_err());
    let after = store.load().unwrap();
    assert_eq!(
        (after.revision, after.devices.len(), after.sessions.len()),
        (Revision(1), 1, 1)
    );
    let conflict = store.commit(&devices(&[]), Revision(0), AT);
    assert!(
        matches!(conflict, Err(StoreError::Conflict { expected: 0, found: 1 })),
        "{conflict:?}"
    );
}

#[test]
fn aliases_move_between_devices_in_one_change() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let two = Device {
        aliases: Rare::default(),
        ..device("two")
    };
    store
        .commit(&devices(&[device("one"), two.clone()]), Revision(0), AT)
        .unwrap();
    let moved = [
        Device {
            aliases: Rare::default(),
            ..device("one")
        },
        Device {
            aliases: device("one").aliases,
            ..two.clone()
        },
    ];
    store.commit(&devices(&moved), Revision(1), AT).unwrap();
    let names: Vec<usize> = store
        .load()
        .unwrap()
        .devices
        .iter()
        .map(|d| d.aliases.common_names.len())
        .collect();
    assert_eq!(names, [0, 1]);
    // One that is held elsewhere is refused, whichever kind it is; one of another kind with the same bytes is not.
    let key = |d: Device, b| Device {
        aliases: Rare::new(Aliases {
            vpn_keys: [VpnKey([b; 32])].into(),
            ..(*d.aliases).clone()
        }),
        ..d
    };
    store.commit(&devices(&[key(moved[0].clone(), 3)]), Revision(2), AT).unwrap();
    for taken in [
        Aliases {
            certificates: moved[1].aliases.certificates.clone(),
            ..Aliases::default()
        },
        Aliases {
            common_names: moved[1].aliases.common_names.clone(),
            ..Aliases::default()
        },
    ] {
        let taken = Device {
            aliases: Rare::new(taken),
            ..moved[0].clone()
        };
        let taken = store.commit(&devices(&[taken]), Revision(3), AT);
        assert!(matches!(&taken, Err(StoreError::Io(e)) if e.contains("UNIQUE")), "{taken:?}");
    }
    store.commit(&devices(&[key(two.clone(), 4)]), Revision(3), AT).unwrap();
    assert!(store.commit(&devices(&[key(two, 3)]), Revision(4), AT).is_err());
    let rows = |s: &SqliteStore| {
        s.connection()
            .query_row("SELECT count(*) FROM aliases", [], |r| r.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!(rows(&store), 2, "what is no device's any more is free");
}

#[test]
fn the_last_changes_of_uris_are_kept_and_what_is_gone_is_known() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    store.keep(3);
    for revision in 0..5_u64 {
        let change = |new: String| UriChange {
            revision: Revision(99),
            device: "one".parse().unwrap(),
            old: "old".to_owned(),
            new,
            at: WallTime(1),
            reason: "policy_applied".to_owned(),
        };
        let uris = vec![change(format!("{revision}a")), change(format!("{revision}b"))];
        store
            .commit(
                &ChangeSet {
                    uris,
                    ..ChangeSet::default()
                },
                Revision(revision),
                AT,
            )
            .unwrap();
    }
    let after = |store: &mut SqliteStore, n| {
        let kept = store.uri_changes(Revision(n), 1000).unwrap();
        kept.map(|k| k.into_iter().map(|c| (c.revision.0, c.new)).collect::<Vec<_>>())
    };
    // Six are gone whole, and the first of revision 4: whoever needs that one is told.
    assert_eq!(after(&mut store, 3), None);
    assert_eq!(after(&mut store, 4).unwrap(), [(5, "4a".to_owned()), (5, "4b".to_owned())]);
    assert_eq!(after(&mut store, 5).unwrap(), []);
}

#[test]
fn changes_of_uris_are_told_in_pages_of_whole_revisions() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let change = |new: String| UriChange {
        revision: Revision(0),
        device: "phone".parse().unwrap(),
        old: "q".into(),
        new,
        at: WallTime(0),
        reason: "x".into(),
    };
    // One to three changes in each revision, and none in some.
    for n in 0..40_u64 {
        let changes = ChangeSet {
            uris: (0..n % 4).map(|i| change(format!("{n}.{i}"))).collect(),
            ..ChangeSet::default()
        };
        let revision = store.load().unwrap().revision;
        if n % 4 > 0 {
            store.commit(&changes, revision, AT).unwrap();
        }
    }
    let all = store.uri_changes(Revision(0), 1000).unwrap().unwrap();
    assert_eq!(all.len(), 60);
    for most in [1, 2, 5, 59, 60, 61] {
        let (mut told, mut after) = (Vec::new(), Revision(0));
        loop {
            let page = store.uri_changes(after, most).unwrap().unwrap();
            assert!(page.len() <= most + 2, "{} of {most}", page.len());
            let last = page.len() < most;
            after = page.last().map_or(after, |c| c.revision);
            told.extend(page);
            if last {
                break;
            }
        }
        assert_eq!(told, all, "{most}");
    }
    for change in &all {
        let rest = store.uri_changes(change.revision, 1000).unwrap().unwrap();
        assert!(rest.iter().eq(all.iter().filter(|c| c.revision > change.revision)));
    }
}

#[test]
fn files_are_made_tight_and_loose_ones_are_refused() {
    let (_temp, path) = directory();
    drop(SqliteStore::open(&path).unwrap());
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
    let file = path.join("lazaret.db");
    assert_eq!((mode(&path), mode(&file)), (0o700, 0o600));
    {
        let mut store = SqliteStore::open(&path).unwrap();
        store.commit(&devices(&[device("one")]), Revision(0), AT).unwrap();
        assert_eq!(mode(&path.join("lazaret.db-wal")), 0o600);
    }
    let set = |p: &Path, mode| fs::set_permissions(p, fs::Permissions::from_mode(mode)).unwrap();
    for (loose, tight, bad) in [
        (&file, 0o600, 0o640),
        (&file, 0o600, 0o604),
        (&path, 0o700, 0o750),
        (&path, 0o700, 0o701),
    ] {
        set(loose, bad);
        let refused = SqliteStore::open(&path);
        assert!(
            matches!(&refused, Err(StoreError::Loose { mode, .. }) if *mode == bad),
            "{refused:?}"
        );
        assert!(refused.unwrap_err().to_string().contains(&format!("{bad:04o}")));
        set(loose, tight);
    }
    drop(SqliteStore::open(&path).unwrap());
    let elsewhere = path.join("elsewhere");
    fs::rename(&file, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &file).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::NotPlain(_))));
}

#[test]
fn what_another_program_or_version_made_is_refused() {
    let (_temp, path) = directory();
    drop(SqliteStore::open(&path).unwrap());
    let file = path.join("lazaret.db");
    let execute = |sql: &str| rusqlite::Connection::open(&file).unwrap().execute_batch(sql).unwrap();
    execute("PRAGMA user_version = 99");
    let newer = SqliteStore::open(&path).unwrap_err();
    assert!(
        matches!(
            newer,
            StoreError::Newer {
                found: 99,
                known: schema::VERSION
            }
        ),
        "{newer:?}"
    );
    assert!(newer.to_string().contains("run a newer lazaret"));
    execute("PRAGMA user_version = 2; PRAGMA application_id = 5");
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Foreign(_))));
    fs::write(&file, vec![b'x'; 8192]).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Foreign(_))));
}

#[test]
fn damage_is_refused() {
    let (_temp, path) = directory();
    {
        let mut store = SqliteStore::open(&path).unwrap();
        store.commit(&devices(&[device("one")]), Revision(0), AT).unwrap();
    }
    let file = path.join("lazaret.db");
    let mut bytes = fs::read(&file).unwrap();
    bytes[4096..].iter_mut().for_each(|b| *b = 0xa5);
    fs::write(&file, bytes).unwrap();
    let opened = SqliteStore::open(&path).and_then(|mut s| s.load());
    assert!(matches!(opened, Err(StoreError::Corrupt(_))), "{opened:?}");
}

#[test]
fn a_second_daemon_is_refused_and_a_reader_is_not() {
    let (_temp, path) = directory();
    let mut first = SqliteStore::open(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Busy(_))));
    first.commit(&devices(&[device("one")]), Revision(0), AT).unwrap();
    // A reader's transaction sees what was there when it began, and holds nobody up.
    let reader = rusqlite::Connection::open(path.join("lazaret.db")).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM devices").unwrap();
    first
        .commit(&devices(&[device("other"), device("one")]), Revision(1), AT)
        .unwrap();
    let seen: i64 = reader.query_row("SELECT count(*) FROM devices", [], |r| r.get(0)).unwrap();
    assert_eq!(seen, 1);
    drop((first, reader));
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().devices.len(), 2);
}

#[test]
fn what_goes_to_a_file_that_was_taken_away_is_not_durable() {
    for gone in ["lazaret.db", "lazaret.db-wal"] {
        let (_temp, path) = directory();
        let mut store = SqliteStore::open(&path).unwrap();
        store.commit(&devices(&[device("one")]), Revision(0), AT).unwrap();
        let (file, elsewhere) = (path.join(gone), path.join("elsewhere"));
        fs::rename(&file, &elsewhere).unwrap();
        for _ in 0..2 {
            let refused = store.commit(&devices(&[device("other")]), Revision(1), AT);
            assert!(
                matches!(&refused, Err(StoreError::Io(e)) if e.contains("removed or replaced")),
                "{gone}: {refused:?}"
            );
        }
        fs::write(&file, "another").unwrap();
        assert!(store.commit(&devices(&[device("other")]), Revision(1), AT).is_err(), "{gone}");
        fs::rename(&elsewhere, &file).unwrap();
        store.commit(&devices(&[device("other")]), Revision(1), AT).unwrap();
    }
}

/// Nothing of ours writes beside the daemon; whoever does holds it up for a moment, and then it says so.
#[test]
fn another_writer_is_waited_for_only_for_a_moment() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let other = rusqlite::Connection::open(path.join("lazaret.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let waits: u32 = store
        .connection()
        .pragma_query_value(None, "busy_timeout", |r| r.get(0))
        .unwrap();
    assert_eq!(waits, 100, "milliseconds");
    let refused = store.commit(&devices(&[device("one")]), Revision(0), AT);
    assert!(matches!(refused, Err(StoreError::Busy(_))), "{refused:?}");
    other.execute_batch("ROLLBACK").unwrap();
    store.commit(&devices(&[device("one")]), Revision(0), AT).unwrap();
}

#[test]
fn every_commit_is_on_the_disk_before_it_is_answered() {
    let (_temp, path) = directory();
    let store = SqliteStore::open(&path).unwrap();
    let text = |name: &str| {
        let value = store
            .connection()
            .pragma_query_value(None, name, |r| r.get::<_, rusqlite::types::Value>(0))
            .unwrap();
        match value {
            rusqlite::types::Value::Integer(n) => n.to_string(),
            rusqlite::types::Value::Text(t) => t,
            other => panic!("{other:?}"),
        }
    };
    // synchronous 2 is FULL: in write-ahead mode, NORMAL would lose the last commits with the power.
    let found = ["journal_mode", "synchronous", "foreign_keys", "locking_mode"].map(text);
    assert_eq!(found, ["wal", "2", "1", "normal"]);
}
