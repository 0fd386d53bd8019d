//! What a restore takes over from the database that it replaces, and what it says where it cannot.

use super::*;
use crate::{
    audit::Entry,
    store::{Copied, Reader, restore},
};

const LATER: WallTime = WallTime(AT.0 + 86_400_000);

fn plain(id: &str) -> Device {
    Device {
        release: Rare::new(Release {
            restricted_at: Some(WallTime(100)),
            ..Release::default()
        }),
        ..Device::new(id.parse().unwrap(), "office".parse().unwrap(), WallTime(5))
    }
}

fn publication(revision: &str, at: i64) -> Publication {
    Publication {
        revision: revision.parse().unwrap(),
        at: WallTime(at),
        ceiling: 3,
        rate: 4,
        paused: false,
    }
}

fn entry(number: u64) -> Entry {
    Entry {
        number,
        at: AT,
        by: "uid:0".to_owned(),
        action: "RevokePolicy".to_owned(),
        device: None,
        subject: String::new(),
        before: String::new(),
        after: String::new(),
        reason: String::new(),
        request: String::new(),
        result: "done".to_owned(),
    }
}

struct Stage {
    _temp: TempDir,
    path: PathBuf,
    copy: PathBuf,
}

impl Stage {
    /// `w0` to `w4`, `v1` and `v2` published; a backup of that; then whatever `since` commits.
    fn new(since: impl FnOnce(&mut ChangeSet)) -> Self {
        let (temp, path) = directory();
        let copy = temp.path().join("copy.db");
        let mut store = SqliteStore::open(&path).unwrap();
        let mut changes = devices(&["w0", "w1", "w2", "w3", "w4"].map(plain));
        changes.publications = vec![publication("v1", 10)];
        changes.audit = vec![entry(1)];
        store.commit(&changes, Revision(0), AT).unwrap();
        let second = ChangeSet {
            publications: vec![publication("v2", 20)],
            audit: vec![entry(2)],
            ..ChangeSet::default()
        };
        store.commit(&second, Revision(1), AT).unwrap();
        Reader::of_directory(&path).unwrap().backup(&copy, AT).unwrap();
        let mut changes = ChangeSet {
            audit: vec![entry(3)],
            ..ChangeSet::default()
        };
        since(&mut changes);
        store.commit(&changes, Revision(2), LATER).unwrap();
        Self { _temp: temp, path, copy }
    }

    fn alter(&self, sql: &str) {
        let c = rusqlite::Connection::open(self.path.join("lazaret.db")).unwrap();
        c.execute_batch(&format!("PRAGMA foreign_keys = OFF; {sql}; PRAGMA wal_checkpoint(TRUNCATE);"))
            .unwrap();
    }

    fn restore(&self) -> (Copied, Snapshot) {
        let done = restore(&self.path, &self.copy, "uid:0", LATER, false).unwrap();
        let reader = Reader::of_directory(&self.path).unwrap();
        assert_eq!(reader.check().unwrap().problems, [""; 0]);
        let loaded = SqliteStore::open(&self.path).unwrap().load().unwrap();
        assert_eq!(loaded.forgotten, done.forgotten.as_ref().map(|f| f.since));
        (done, loaded)
    }

    fn entries(&self) -> Vec<Entry> {
        let reader = Reader::of_directory(&self.path).unwrap();
        let query = AuditQuery::After { number: 2, limit: 100 };
        reader.audit(&query).unwrap().into_iter().map(|s| s.entry).collect()
    }
}

fn blocked(id: &str) -> Device {
    Device {
        state: DeviceState::Blocked,
        state_reason: StateReason::ExceptionBlock,
        exception: Some(Box::new(Exception {
            kind: ExceptionKind::Block,
            reason: "stolen".to_owned(),
            by: "uid:7".to_owned(),
            holds: span(LATER.0, 20 * 86_400_000),
        })),
        ..plain(id)
    }
}

fn retired(id: &str) -> Device {
    Device {
        state: DeviceState::Retired,
        state_reason: StateReason::Retired,
        ..plain(id)
    }
}

fn revoked(id: &str, at: WallTime) -> Device {
    Device {
        release: Rare::new(Release {
            restricted_at: Some(at),
            ..Release::default()
        }),
        ..plain(id)
    }
}

fn of<'a>(loaded: &'a Snapshot, id: &str) -> Option<&'a Device> {
    loaded.devices.iter().find(|d| d.id.as_str() == id)
}

#[test]
fn what_tightens_is_taken_over_and_said() {
    let stage = Stage::new(|changes| {
        let released = Device {
            state: DeviceState::Released,
            ..plain("w4")
        };
        let list = [
            blocked("w1"),
            retired("w2"),
            revoked("w3", LATER),
            released,
            blocked("later"),
            plain("fresh"),
            Device {
                release: Rare::default(),
                ..plain("nothing")
            },
        ];
        changes.devices = devices(&list).devices;
        changes.publications = vec![publication("v3", 30)];
    });
    stage.alter("DELETE FROM devices WHERE id = 'w0'");
    let (done, loaded) = stage.restore();
    assert_eq!(done.forgotten, None);
    let published: Vec<&str> = loaded.publications.iter().map(|p| p.revision.as_str()).collect();
    assert_eq!(published, ["v1", "v2", "v3"]);
    assert_eq!(loaded.publications[2], publication("v3", 30));
    assert_eq!(of(&loaded, "w0"), None, "removed");
    assert_eq!(of(&loaded, "nothing"), None, "no more registered than in the backup");
    let block = of(&loaded, "w1").unwrap();
    assert_eq!(
        (block.state, &block.exception),
        (DeviceState::Blocked, &blocked("w1").exception)
    );
    assert_eq!(of(&loaded, "w2").unwrap().state, DeviceState::Retired);
    assert_eq!(of(&loaded, "w3").unwrap().release.restricted_at, Some(LATER));
    assert_eq!(
        of(&loaded, "w4").unwrap().state,
        DeviceState::Registered,
        "a release is not taken over"
    );
    for (id, state) in [("later", DeviceState::Blocked), ("fresh", DeviceState::Quarantined)] {
        let device = of(&loaded, id).unwrap();
        assert_eq!(
            (device.state, device.enrolment.window.not_after, device.enrolment.enrolled_at),
            (state, Some(WallTime(0)), None),
            "{id}"
        );
    }
    let c = &done.carried;
    assert_eq!(
        [
            c.publications,
            c.retired,
            c.blocked,
            c.marked,
            c.removed,
            c.unregistered,
            c.closed
        ],
        [1, 1, 2, 1, 1, 2, 2]
    );
    assert_eq!(c.required.as_ref().map(|r| r.as_str()), Some("v3"));

    let entries = stage.entries();
    assert_eq!(entries[0].action, "RestoreStore");
    assert!(
        entries[0].reason.contains("1 publication(s), 1 retirement(s), 2 block(s)"),
        "{}",
        entries[0].reason
    );
    let about: Vec<(&str, &str, &str)> = entries[1..]
        .iter()
        .map(|e| {
            assert_eq!((e.action.as_str(), e.by.as_str()), ("CarryOver", "uid:0"));
            (
                e.device.as_ref().map_or(e.subject.as_str(), |d| d.as_str()),
                e.before.as_str(),
                e.after.as_str(),
            )
        })
        .collect();
    assert_eq!(
        about,
        [
            ("policy revision v3", "", "v3: ceiling 3, rate 4"),
            ("w1", "registered", "blocked"),
            ("w2", "registered", "retired"),
            ("w0", "registered", ""),
            ("fresh", "", "quarantined"),
            ("later", "", "blocked"),
        ]
    );
    assert!(
        entries[2].reason.contains("stolen (by uid:7)"),
        "who and why: {}",
        entries[2].reason
    );
    // The device's own history has it.
    let query = AuditQuery::Before {
        number: None,
        device: Some("w1".parse().unwrap()),
        limit: 5,
    };
    let own = Reader::of_directory(&stage.path).unwrap().audit(&query).unwrap();
    assert_eq!(own.len(), 1);
    // Once more, from the same backup: nothing is lost.
    let (again, twice) = stage.restore_once_more();
    assert_eq!(again.forgotten, None);
    assert_eq!(
        loaded.devices.iter().map(|d| (&d.id, d.state)).collect::<Vec<_>>(),
        twice.devices.iter().map(|d| (&d.id, d.state)).collect::<Vec<_>>()
    );
    assert_eq!(loaded.publications, twice.publications);
}

impl Stage {
    fn restore_once_more(&self) -> (Copied, Snapshot) {
        let kept = fs::read_dir(&self.path).unwrap().map(|e| e.unwrap().path());
        for file in kept.filter(|p| p.to_string_lossy().contains("before")) {
            fs::remove_file(file).unwrap();
        }
        self.restore()
    }
}

#[test]
fn where_nothing_can_be_read_it_is_said_since_when() {
    let absent = |s: &Stage| {
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(s.path.join(format!("lazaret.db{suffix}")));
        }
    };
    let garbage = |s: &Stage| fs::write(s.path.join("lazaret.db"), [b'?'; 8192]).unwrap();
    let newer = |s: &Stage| s.alter("PRAGMA user_version = 99");
    type Damage<'a> = &'a dyn Fn(&Stage);
    let cases: [(Damage<'_>, &str); 3] = [
        (&absent, "there was no database"),
        (&garbage, "cannot be read"),
        (&newer, "schema version 99"),
    ];
    for (damage, words) in cases {
        let stage = Stage::new(|changes| changes.devices = devices(&[blocked("w1")]).devices);
        damage(&stage);
        let (done, loaded) = stage.restore();
        let forgotten = done.forgotten.unwrap();
        assert_eq!(forgotten.since, AT, "the backup's time");
        assert!(forgotten.why.contains(words), "{forgotten}");
        assert_eq!(of(&loaded, "w1").unwrap().state, DeviceState::Registered);
        let reason = stage.entries().remove(0).reason;
        assert!(
            reason.contains("since 2027-01-15T08:00:00.000Z are forgotten") && reason.contains(words),
            "{reason}"
        );
    }
}

/// A page of the devices is lost: the others' restrictions are not.
#[test]
fn of_a_damaged_database_all_is_taken_over_that_can_be_read() {
    let stage = Stage::new(|changes| {
        let many = (0..400).map(|n| blocked(&format!("x{n:03}")));
        changes.devices = devices(&many.chain([blocked("w1"), retired("w2")]).collect::<Vec<_>>()).devices;
        changes.publications = vec![publication("v3", 30)];
    });
    stage.alter("SELECT 1");
    let file = stage.path.join("lazaret.db");
    let c = rusqlite::Connection::open(&file).unwrap();
    // The root of a tree of several pages names its leaves: one of the first of them goes.
    let root: u32 = c
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'devices'", [], |r| r.get(0))
        .unwrap();
    drop(c);
    let root = root as usize;
    let mut bytes = fs::read(&file).unwrap();
    let page = &bytes[(root - 1) * 4096..root * 4096];
    assert_eq!(page[0], 2, "an inner page of an index tree");
    let cell = usize::from(u16::from_be_bytes([page[12 + 20], page[13 + 20]]));
    let leaf = u32::from_be_bytes(page[cell..cell + 4].try_into().unwrap()) as usize;
    bytes[(leaf - 1) * 4096..leaf * 4096].fill(0x5a);
    fs::write(&file, bytes).unwrap();
    let (done, loaded) = stage.restore();
    let forgotten = done.forgotten.unwrap();
    assert!(forgotten.why.contains("damaged"), "{forgotten}");
    assert_eq!(of(&loaded, "w1").unwrap().state, DeviceState::Blocked);
    assert_eq!(of(&loaded, "w2").unwrap().state, DeviceState::Retired);
    assert_eq!(loaded.publications.last().unwrap().revision.as_str(), "v3");
    assert_eq!(
        of(&loaded, "w0").unwrap().state,
        DeviceState::Registered,
        "nothing is removed for it"
    );
    assert!(done.kept.is_some());
}

#[test]
fn a_database_that_did_not_come_from_the_backup_tightens_and_is_named() {
    let stage = Stage::new(|_| {});
    // As after an installation: another chain, and none of the devices.
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(stage.path.join(format!("lazaret.db{suffix}")));
    }
    let mut other = SqliteStore::open(&stage.path).unwrap();
    let mut changes = devices(&[blocked("w1")]);
    changes.publications = vec![publication("v9", 15)];
    changes.audit = (1..=5)
        .map(|n| Entry {
            by: "other".to_owned(),
            ..entry(n)
        })
        .collect();
    other.commit(&changes, Revision(0), AT).unwrap();
    drop(other);
    let (done, loaded) = stage.restore();
    assert!(done.forgotten.unwrap().why.contains("did not come from this backup"));
    assert_eq!(loaded.devices.len(), 5, "nobody was removed");
    assert_eq!(of(&loaded, "w1").unwrap().state, DeviceState::Blocked);
    let published: Vec<&str> = loaded.publications.iter().map(|p| p.revision.as_str()).collect();
    assert_eq!(published, ["v1", "v9", "v2"], "the later one is required");
}

#[test]
fn an_older_schema_is_read_too() {
    let stage = Stage::new(|changes| changes.devices = devices(&[blocked("w1")]).devices);
    stage.alter(
        "DROP TABLE scopes; DROP TABLE audit_aside; ALTER TABLE devices DROP COLUMN scope;
         CREATE TABLE aliases_3 (
             kind INTEGER NOT NULL, alias BLOB NOT NULL, device TEXT NOT NULL REFERENCES devices (id), PRIMARY KEY (kind, alias)
         ) STRICT, WITHOUT ROWID;
         INSERT INTO aliases_3 SELECT kind, alias, device FROM aliases;
         DROP TABLE aliases;
         ALTER TABLE aliases_3 RENAME TO aliases;
         ALTER TABLE meta DROP COLUMN forgotten;
         PRAGMA user_version = 3",
    );
    let (done, loaded) = stage.restore();
    assert_eq!(done.forgotten, None);
    assert_eq!(of(&loaded, "w1").unwrap().state, DeviceState::Blocked);
    let left = fs::read_dir(&stage.path).unwrap().map(|e| e.unwrap().file_name());
    let left: Vec<_> = left.filter(|n| n.to_string_lossy().contains("carrying")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_is_forgotten_stays_so_until_a_policy_is_published() {
    let stage = Stage::new(|_| {});
    // By hand, without a restore.
    drop(SqliteStore::open(&stage.path).unwrap());
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(stage.path.join(format!("lazaret.db{suffix}")));
    }
    fs::copy(&stage.copy, stage.path.join("lazaret.db")).unwrap();
    let mut store = SqliteStore::open(&stage.path).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!((loaded.restored, loaded.forgotten), (Some(AT), Some(AT)));
    let done = ChangeSet {
        restore_done: true,
        ..ChangeSet::default()
    };
    store.commit(&done, loaded.revision, LATER).unwrap();
    assert_eq!(store.load().unwrap().forgotten, Some(AT));
    drop(store);
    // A backup made meanwhile does not make it younger, nor does a restore in whose way nothing is.
    fs::remove_file(&stage.copy).unwrap();
    Reader::of_directory(&stage.path).unwrap().backup(&stage.copy, LATER).unwrap();
    assert_eq!(
        Reader::open(&stage.copy)
            .unwrap()
            .connection
            .query_row("SELECT forgotten FROM meta", [], |r| r.get(0)),
        Ok(AT.0)
    );
    let done = restore(&stage.path, &stage.copy, "uid:0", LATER, false).unwrap();
    assert_eq!(done.forgotten, None, "this one loses nothing");
    let mut store = SqliteStore::open(&stage.path).unwrap();
    let loaded = store.load().unwrap();
    assert_eq!(loaded.forgotten, Some(AT), "the one before has");
    let published = ChangeSet {
        acknowledged: true,
        publications: vec![publication("v2", 20)],
        ..ChangeSet::default()
    };
    store.commit(&published, loaded.revision, LATER).unwrap();
    assert_eq!(store.load().unwrap().forgotten, None);
}
