//! The power goes at each moment of something that writes: what was reported as done is there, what is there is whole, and the way goes on
//! from it. Each thing is done once, in a child process, on a file system that keeps what the disk would have; each moment's disk is then
//! looked at as several kinds of loss leave it.

use std::{collections::BTreeSet, fs, path::Path};

use gateway_user::{
    access::clients::Clients,
    audit::{Head, Line, Sealed},
    model::{Revision, Role, WallTime},
    pki::{InitArgs, IssueArgs, PkiError, RenewArgs, init, issue, renew},
    store::{AuditLog, AuditQuery, Reader, SqliteStore, Store as _, StoreError, restore},
};
use lazaret_tests::{
    differential::random::Random,
    lossy::{Disk, Loss, Lossy, copies, mark, part},
    require,
    scratch::Scratch,
};
use rcgen::{KeyPair, PublicKeyData as _};
use x509_parser::{parse_x509_certificate, pem::parse_x509_pem};

use super::power::{AT, DEVICES, change, whole};

/// What the child processes of these tests do, at `at`.
#[test]
fn play() {
    let Some((part, at)) = part() else { return };
    match part.as_str() {
        "database" => play_database(&at),
        "log" => play_log(&at),
        "keys" => play_keys(&at),
        "backup" => play_backup(&at),
        "restore" => play_restore(&at),
        "clients" => play_clients(&at),
        "audit" => play_audit(&at),
        _ => panic!("no part {part}"),
    }
}

/// A file system with something on it.
struct Stage {
    disk: Lossy,
    _scratch: Scratch,
}

impl Stage {
    fn new(disk: Disk) -> Self {
        let scratch = Scratch::new("moments").unwrap();
        let at = scratch.path().join("disk");
        fs::create_dir(&at).unwrap();
        Self {
            disk: Lossy::with(&at, disk).unwrap(),
            _scratch: scratch,
        }
    }

    /// The disk at first, and after each change of what a part does.
    fn play(&self, part: &str) -> Vec<Disk> {
        self.disk.record();
        self.disk.played("moments::play", part).unwrap();
        self.disk.recorded()
    }
}

/// Has `look` look at what each kind of loss leaves at each moment, or at one in `every`, and at the last one: (how many things were reported
/// as done, where, context).
fn each_loss(moments: &[Disk], every: usize, mut look: impl FnMut(usize, &Path, &str)) {
    let mut random = Random::new(moments.len() as u64);
    for (moment, disk) in moments.iter().enumerate() {
        if moment % every != 0 && moment + 1 != moments.len() {
            continue;
        }
        for loss in Loss::KINDS {
            let copy = copies().unwrap();
            loss.of(disk, &mut random).0.copy_to(copy.path()).unwrap();
            let context = format!("{loss:?} at moment {moment} of {}", moments.len());
            look(disk.marks(), copy.path(), &context);
        }
    }
}

/// The heads of the audit of what the disk has now, from the start.
fn heads(disk: &Disk) -> Vec<Head> {
    let copy = copies().unwrap();
    disk.copy_to(copy.path()).unwrap();
    let query = AuditQuery::After {
        number: 0,
        limit: u32::MAX,
    };
    let entries = Reader::of_directory(&copy.path().join("state")).and_then(|r| r.audit(&query));
    let head = |e: Sealed| Head {
        number: e.entry.number,
        hash: e.hash,
    };
    std::iter::once(Head::NONE)
        .chain(entries.unwrap().into_iter().map(head))
        .collect()
}

fn play_database(at: &Path) {
    for n in 1..=6 {
        // Closed in between, it brings its log back.
        let mut store = SqliteStore::open(&at.join("state")).unwrap();
        for n in [2 * n - 1, 2 * n] {
            store.commit(&change(n), Revision(n - 1), AT).unwrap();
            mark(at, n as usize);
        }
    }
}

#[test]
fn a_database_from_its_making_on() {
    require!(Root, Fuse);
    let moments = Stage::new(Disk::new()).play("database");
    let heads = heads(&moments[moments.len() - 1]);
    let mut last = 0;
    each_loss(&moments, 3, |done, disk, context| {
        let found = whole(&disk.join("state"), heads[done], context);
        assert!(
            [done as u64, done as u64 + 1].contains(&found),
            "{context}: {found}, not {done}"
        );
        last = found;
    });
    assert_eq!(last, 12, "of {} moments", moments.len());
}

fn pem(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    assert!(
        text.starts_with("-----BEGIN") && text.trim_end().ends_with("-----"),
        "{} is torn: {text:?}",
        path.display()
    );
    Some(text)
}

/// Whether a certificate and its key are there, whole, and belong together; gives the certificate. Either alone may be there.
fn pair(directory: &Path, name: &str) -> Option<String> {
    let (certificate, key) = (
        pem(&directory.join(format!("{name}.pem"))),
        pem(&directory.join(format!("{name}.key"))),
    );
    let key = KeyPair::from_pem(&key?).unwrap();
    let text = certificate?;
    let (_, certificate) = parse_x509_pem(text.as_bytes()).unwrap();
    let (_, parsed) = parse_x509_certificate(&certificate.contents).unwrap();
    (parsed.public_key().subject_public_key.data == key.der_bytes()).then_some(text)
}

fn mdm(ca: &Path, name: &str) -> IssueArgs {
    IssueArgs {
        dir: ca.into(),
        role: Some(Role::Mdm),
        server: false,
        source: vec![],
        devices: vec![],
        name: name.parse().unwrap(),
        out: None,
        days: 30,
        dns: vec![],
        ip: vec![],
    }
}

fn renewal(ca: &Path, certificate: &Path) -> RenewArgs {
    RenewArgs {
        dir: ca.into(),
        certificate: certificate.into(),
        from_ca: None,
        out: None,
        days: None,
    }
}

fn authority(ca: &Path) -> InitArgs {
    InitArgs {
        dir: ca.into(),
        name: "ca".parse().unwrap(),
    }
}

fn play_keys(at: &Path) {
    let ca = at.join("ca");
    init(&authority(&ca)).unwrap();
    mark(at, 1);
    let issued = issue(&mdm(&ca, "mdm")).unwrap();
    mark(at, 2);
    renew(&renewal(&ca, &issued.certificate)).unwrap();
    mark(at, 3);
}

#[test]
fn keys_and_certificates() {
    require!(Root, Fuse);
    let moments = Stage::new(Disk::new()).play("keys");
    let certificate = |marks| {
        let disk = moments.iter().find(|m| m.marks() == marks).unwrap();
        String::from_utf8(disk.file(Path::new("ca/mdm.pem")).unwrap()).unwrap()
    };
    let [first, second] = [2, 3].map(certificate);
    assert_ne!(first, second);
    let mut healed = 0;
    each_loss(&moments, 1, |done, disk, context| {
        let ca = disk.join("ca");
        // What is there is whole; and what was reported as done is there.
        let [signer, client] = ["ca", "mdm"].map(|name| pair(&ca, name));
        assert!(done < 1 || signer.is_some(), "{context}: the CA");
        assert!(done != 1 || client.is_none() || client.as_ref() == Some(&first), "{context}");
        if done == 0 {
            // Once more, or not by name.
            match init(&authority(&ca)) {
                Ok(_) | Err(PkiError::Exists(_)) => {}
                Err(e) => panic!("{context}: {e}"),
            }
            return;
        }
        if done == 1 {
            match issue(&mdm(&ca, "mdm")) {
                Ok(_) | Err(PkiError::Exists(_)) => {}
                Err(e) => panic!("{context}: {e}"),
            }
            return;
        }
        if done == 3 {
            assert_eq!(client.as_ref(), Some(&second), "{context}: renewed");
        }
        // In the middle of a renewal: the old pair is in its place, or beside it, and to renew once more puts it right.
        if client.is_none() {
            let names = fs::read_dir(&ca)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap());
            let kept: BTreeSet<String> = names.filter(|n| n.starts_with("mdm.until-")).collect();
            let name = kept.iter().find_map(|n| n.strip_suffix(".pem")).map(str::to_owned);
            assert_eq!(
                pair(&ca, &name.unwrap_or_default()).as_ref(),
                Some(&first),
                "{context}: {kept:?}"
            );
            healed += 1;
        }
        if done == 2 {
            match renew(&renewal(&ca, &ca.join("mdm.pem"))) {
                Ok(_) => {}
                // It was done, but for the word: a second one on the same day finds the old pair's place taken.
                Err(PkiError::Exists(_)) if client.as_ref() == Some(&second) => {}
                Err(e) => panic!("{context}: {e}"),
            }
            assert!(pair(&ca, "mdm").is_some(), "{context}");
        }
    });
    println!("{healed} losses between the two files of a pair, each put right");
}

fn play_log(at: &Path) {
    let mut store = SqliteStore::open(&at.join("state")).unwrap();
    for n in 1..=5 {
        store.commit(&change(n), Revision(n - 1), AT).unwrap();
    }
    // As a killed daemon leaves it: most of it is in the log.
    std::process::exit(0);
}

/// A disk at rest with a database of five changes and its log.
fn with_a_log() -> Disk {
    let stage = Stage::new(Disk::new());
    // It ends without a word.
    assert!(stage.disk.played("moments::play", "log").is_err());
    stage.disk.record();
    let mut disk = stage.disk.recorded().remove(0);
    disk.synchronise_all();
    disk
}

const RESTORED: WallTime = WallTime(AT.0 + 1);

fn play_backup(at: &Path) {
    let (state, backup) = (at.join("state"), at.join("backup.db"));
    assert!(fs::metadata(state.join("lazaret.db-wal")).unwrap().len() > 0);
    Reader::of_directory(&state)
        .and_then(|r| r.backup(&backup, RESTORED))
        .unwrap();
    mark(at, 1);
    SqliteStore::open(&state)
        .unwrap()
        .commit(&change(6), Revision(5), AT)
        .unwrap();
    mark(at, 2);
    restore(&state, &backup, "uid:0", RESTORED, false).unwrap();
    mark(at, 3);
}

fn play_restore(at: &Path) {
    restore(&at.join("state"), &at.join("backup.db"), "uid:0", RESTORED, false).unwrap();
    mark(at, 1);
}

/// The old database cannot be read: it and its log go first, and for a moment there is none.
#[test]
fn a_restore_in_the_place_of_what_cannot_be_read() {
    require!(Root, Fuse);
    let backed = Stage::new(with_a_log()).play("backup");
    let mut disk = backed.into_iter().find(|d| d.marks() == 1).unwrap();
    let head = heads(&disk)[5];
    for (file, length) in [("state/lazaret.db", 4096), ("state/lazaret.db-wal", 32)] {
        disk.damage(Path::new(file), &vec![b'?'; length]).unwrap();
    }
    let log = disk.file(Path::new("state/lazaret.db-wal")).unwrap();
    disk.unmark();
    disk.synchronise_all();
    let moments = Stage::new(disk).play("restore");
    each_loss(&moments, 1, |done, disk, context| {
        let state = disk.join("state");
        // Its log is not lost.
        let logs = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path());
        let mut logs = logs.filter(|p| p.to_string_lossy().ends_with("-wal"));
        assert!(logs.any(|p| fs::read(p).unwrap() == log), "{context}");
        match SqliteStore::open(&state).and_then(|mut s| s.load()) {
            Ok(loaded) if loaded.restored.is_some() => {
                assert_eq!(loaded.devices.len(), DEVICES, "{context}");
                let verified = Reader::of_directory(&state).and_then(|r| r.verify(&[head])).unwrap();
                assert_eq!(verified.findings, [], "{context}");
            }
            // The gap, or the old one in its place.
            Ok(loaded) => assert!(done < 1 && loaded.revision.0 == 0, "{context}: {loaded:?}"),
            Err(StoreError::Corrupt(_) | StoreError::Foreign(_)) => assert!(done < 1, "{context}"),
            Err(e) => panic!("{context}: {e}"),
        }
    });
}

#[test]
fn backup_and_restore() {
    require!(Root, Fuse);
    let moments = Stage::new(with_a_log()).play("backup");
    let head = heads(moments.iter().find(|d| d.marks() == 2).unwrap())[5];
    let (mut old, mut new) = (0, 0);
    each_loss(&moments, 2, |done, disk, context| {
        let (backup, state) = (disk.join("backup.db"), disk.join("state"));
        if done > 0 || backup.exists() {
            let reader = Reader::open(&backup).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert_eq!(reader.check().unwrap().problems, [""; 0], "{context}");
            let verified = reader.verify(&[head]).unwrap();
            assert_eq!((verified.findings.as_slice(), verified.head), (&[][..], head), "{context}");
        }
        let mut store = SqliteStore::open(&state).unwrap_or_else(|e| panic!("{context}: {e}"));
        let loaded = store.load().unwrap();
        drop(store);
        let health = Reader::of_directory(&state).and_then(|r| r.check()).unwrap();
        assert_eq!(health.problems, [""; 0], "{context}");
        if loaded.restored.is_some() {
            assert!(done >= 2, "{context}: restored before it was begun");
            assert_eq!((loaded.devices.len(), loaded.sessions.len()), (DEVICES, 0), "{context}");
            assert!(loaded.revision.0 > 6, "{context}");
            new += 1;
        } else {
            assert!(done < 3, "{context}: what was reported as restored is not");
            let found = whole(&state, Head::NONE, context);
            assert!(found == 6 || (done < 2 && found == 5), "{context}: {found}");
            old += 1;
        }
    });
    println!("{old} losses leave the old database, {new} the restored one");
    assert!(old > 0 && new > 0);
}

fn play_clients(at: &Path) {
    for n in 1..=4 {
        Clients::new(n).write(&at.join("state/finished/clients.json")).unwrap();
        mark(at, n as usize);
    }
}

/// Who showed which certificate, in a directory that is made for it: as the finishing of a CA's retirement is kept, too.
#[test]
fn what_is_remembered_of_clients() {
    require!(Root, Fuse);
    each_loss(&Stage::new(Disk::new()).play("clients"), 1, |done, disk, context| {
        let read = Clients::read(&disk.join("state/finished/clients.json"));
        let found = read.unwrap_or_else(|e| panic!("{context}: {e}")).map_or(0, |c| c.since);
        let done = done as i64;
        assert!([done, done + 1].contains(&found), "{context}: {found}, not {done}");
    });
}

/// The lines of an audit log; each is whole.
pub(super) fn lines(file: &Path, context: &str) -> Vec<Line> {
    let text = fs::read(file).unwrap_or_default();
    let lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    let parse = |l| serde_json::from_slice(l).unwrap_or_else(|e| panic!("{context}: {e}: {}", String::from_utf8_lossy(l)));
    lines.map(parse).collect()
}

/// Holds the lines of an audit log to its database: each entry once, in their order.
pub(super) fn each_once(file: &Path, state: &Path, context: &str) -> usize {
    let query = AuditQuery::After {
        number: 0,
        limit: u32::MAX,
    };
    let entries = Reader::of_directory(state).and_then(|r| r.audit(&query)).unwrap();
    let wanted: Vec<_> = entries
        .into_iter()
        .map(Line::from)
        .map(|l| serde_json::to_string(&l).unwrap())
        .collect();
    let found: Vec<_> = lines(file, context)
        .iter()
        .map(|l| serde_json::to_string(l).unwrap())
        .collect();
    let differs = wanted.iter().zip(&found).position(|(w, f)| w != f);
    assert!(
        wanted == found,
        "{context}: {} entries, {} lines, differing from {differs:?} on",
        wanted.len(),
        found.len()
    );
    found.len()
}

fn play_audit(at: &Path) {
    let (state, log) = (at.join("state"), at.join("audit.jsonl"));
    let mut store = SqliteStore::open(&state).unwrap();
    let mut n = 0;
    for (changes, rotate) in [(3, false), (12, true), (5, false)] {
        for _ in 0..changes {
            n += 1;
            store.commit(&change(n), Revision(n - 1), AT).unwrap();
        }
        // It writes them at its start, or at its end.
        drop(AuditLog::start(&state, Some(log.clone())).unwrap());
        if rotate {
            fs::rename(&log, log.with_extension("1")).unwrap();
            fs::File::open(at).unwrap().sync_all().unwrap();
        }
    }
    mark(at, 1);
}

#[test]
fn the_audit_log_leaves_nothing_out() {
    require!(Root, Fuse);
    let mut logged = 0;
    each_loss(&Stage::new(Disk::new()).play("audit"), 2, |done, disk, context| {
        let (state, log) = (disk.join("state"), disk.join("audit.jsonl"));
        if !state.exists() {
            assert_eq!(done, 0, "{context}");
            return;
        }
        drop(SqliteStore::open(&state).unwrap());
        drop(AuditLog::start(&state, Some(log.clone())).unwrap());
        let rotated = fs::read(log.with_extension("1")).unwrap_or_default();
        let rest = fs::read(&log).unwrap_or_default();
        fs::write(&log, [rotated, rest].concat()).unwrap();
        logged = each_once(&log, &state, context);
    });
    assert_eq!(logged, 20);
}
