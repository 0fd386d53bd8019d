//! The way from each earlier schema: databases as the binaries of that time made them.

use super::*;

/// A database of schema version 1, with the rows that a binary of that version writes.
const VERSION_1: &str = "
    INSERT INTO devices VALUES
        ('bare', '', 'office', 'registered', 'registered', 5, NULL, NULL, NULL, NULL, NULL, NULL, 'q.example', 1),
        ('phone', 'Zoë', 'lab', 'released', 'policy_applied', 6, 'r1', -3, 1800000000000, -2, -1, 3600000, 'lab.example', 7),
        ('tablet', 'x', 'office', 'blocked', 'pool_removed', 7, NULL, 9, NULL, NULL, NULL, NULL, 'q.example', 4);
    INSERT INTO common_names VALUES ('z-cn', 'phone'), ('a-cn', 'phone'), ('other', 'tablet');
    INSERT INTO certificates VALUES (zeroblob(32), 'tablet'), (unhex('ff' || hex(zeroblob(31))), 'phone'),
        (unhex('0a' || hex(zeroblob(31))), 'phone');
    INSERT INTO sessions VALUES (3, 'phone', 'tun0', 'vpn-1', 11), (9, NULL, 'tun1', 'vpn-2', 12);
    INSERT INTO session_addresses VALUES (unhex('0a000009'), 3, 1), (unhex('fd00' || hex(zeroblob(14))), 3, 0),
        (unhex('0a000001'), 9, 0);
    INSERT INTO uri_changes (revision, device, old, new, at, reason) VALUES (6, 'phone', 'q', 'lab', 6, 'x'), (7, 'phone', 'lab', 'lab.example', 7, 'y');
    DELETE FROM uri_changes WHERE revision = 6;
    UPDATE meta SET revision = 7, next_session = 10, uri_floor = 6;
";

fn version_1(path: &Path) -> rusqlite::Connection {
    let file = files::prepare(path, "lazaret.db").unwrap();
    let c = rusqlite::Connection::open(file).unwrap();
    c.execute_batch("PRAGMA journal_mode = WAL; PRAGMA foreign_keys = ON;")
        .unwrap();
    c.execute_batch(schema::STEPS[0]).unwrap();
    c.pragma_update(None, "application_id", schema::APPLICATION_ID).unwrap();
    c.pragma_update(None, "user_version", 1).unwrap();
    c.execute_batch(VERSION_1).unwrap();
    c
}

#[test]
fn a_database_of_version_1_is_brought_up_whole() {
    let (_temp, path) = directory();
    drop(version_1(&path));
    let mut store = SqliteStore::open(&path).unwrap();
    let loaded = store.load().unwrap();
    let plain = |id: &str, pool: &str, at| Device::new(id.parse().unwrap(), pool.parse().unwrap(), WallTime(at));
    let mut first = [0; 32];
    first[0] = 0x0a;
    let mut second = [0; 32];
    second[0] = 0xff;
    let expected = [
        Device {
            gateway_uri: "q.example".into(),
            revision: Revision(1),
            ..plain("bare", "office", 5)
        },
        Device {
            owner: "Zoë".into(),
            state: DeviceState::Released,
            state_reason: StateReason::PolicyApplied,
            policy_revision: Some("r1".parse().unwrap()),
            release: Rare::new(Release {
                restricted_at: Some(WallTime(-3)),
                proved: None,
                lease: Some(span(1_800_000_000_000, 3_600_000)),
            }),
            gateway_uri: "lab.example".into(),
            revision: Revision(7),
            aliases: Rare::new(Aliases {
                common_names: ["a-cn".parse().unwrap(), "z-cn".parse().unwrap()].into(),
                certificates: [Fingerprint::new(first), Fingerprint::new(second)].into(),
                ..Aliases::default()
            }),
            ..plain("phone", "lab", 6)
        },
        Device {
            owner: "x".into(),
            state: DeviceState::Blocked,
            state_reason: StateReason::PoolRemoved,
            release: Rare::new(Release {
                restricted_at: Some(WallTime(9)),
                ..Release::default()
            }),
            gateway_uri: "q.example".into(),
            revision: Revision(4),
            aliases: Rare::new(Aliases {
                common_names: ["other".parse().unwrap()].into(),
                certificates: [Fingerprint::new([0; 32])].into(),
                ..Aliases::default()
            }),
            ..plain("tablet", "office", 7)
        },
    ];
    assert_eq!(loaded.devices, expected);
    let sessions = [
        Session {
            trust: Trust::Name,
            opened_at: WallTime(11),
            ..session(3, Some("phone"), &["fd00::", "10.0.0.9"])
        },
        Session {
            trust: Trust::Name,
            opened_at: WallTime(12),
            interface: "tun1".parse().unwrap(),
            source: "vpn-2".parse().unwrap(),
            ..session(9, None, &["10.0.0.1"])
        },
    ];
    assert_eq!(loaded.sessions, sessions);
    assert_eq!(
        (loaded.revision, loaded.next_session, loaded.committed_at, loaded.audit_head),
        (Revision(7), 10, None, None)
    );
    assert_eq!(store.uri_changes(Revision(5), 1000).unwrap(), None);
    assert_eq!(store.uri_changes(Revision(6), 1000).unwrap().unwrap().len(), 1);
    // Aliases still belong to one device each, and devices can be written.
    let thief = Device {
        aliases: Rare::new(Aliases {
            certificates: [Fingerprint::new([0; 32])].into(),
            ..Aliases::default()
        }),
        ..plain("bare", "office", 5)
    };
    assert!(store.commit(&devices(&[thief]), Revision(7), AT).is_err());
    store.commit(&devices(&expected), Revision(7), AT).unwrap();
    assert_eq!(
        SqliteStore::open(&path).map(drop).unwrap_err().to_string(),
        format!("{}/lazaret.db is in use by another process", path.display())
    );
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap().devices.len(), 3);
}

/// Whichever way it was reached, the schema is the same; a step that was edited after it was released would show here.
#[test]
fn a_migrated_database_has_the_schema_of_a_new_one() {
    let (_temp, path) = directory();
    let (_other, new) = directory();
    drop(version_1(&path));
    let schema = |path: &Path| {
        let store = SqliteStore::open(path).unwrap();
        let mut all = store
            .connection()
            .prepare("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
            .unwrap();
        let row = |r: &rusqlite::Row<'_>| (0..4).map(|n| r.get::<_, Option<String>>(n)).collect::<Result<Vec<_>, _>>();
        all.query_map([], |r| row(r)).unwrap().collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(schema(&path), schema(&new));
    assert!(!schema(&new).is_empty());
}

#[test]
fn a_migration_that_fails_leaves_the_old_database_as_it_was() {
    let (_temp, path) = directory();
    let old = version_1(&path);
    // A session of a device that does not exist: no binary of ours writes that.
    old.execute_batch("PRAGMA foreign_keys = OFF; UPDATE sessions SET device = 'nobody' WHERE id = 3")
        .unwrap();
    let refused = SqliteStore::open(&path);
    assert!(
        matches!(&refused, Err(StoreError::Corrupt(e)) if e.contains("sessions")),
        "{refused:?}"
    );
    let version: i64 = old.pragma_query_value(None, "user_version", |r| r.get(0)).unwrap();
    let names: i64 = old.query_row("SELECT count(*) FROM common_names", [], |r| r.get(0)).unwrap();
    assert_eq!((version, names), (1, 3));
}
