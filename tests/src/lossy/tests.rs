//! The file system promises what POSIX does and no more; and it can fail a test.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _},
};

use nix::fcntl::{Flock, FlockArg};
use rusqlite::Connection;

use super::{
    disk::{Attributes, Disk, ROOT},
    *,
};
use crate::{require, scratch::Scratch};

fn made(disk: &mut Disk, directory: u64, name: &str, is_directory: bool) -> u64 {
    let attributes = Attributes {
        mode: 0o600,
        uid: 0,
        gid: 0,
        changed: std::time::SystemTime::UNIX_EPOCH,
    };
    disk.make(directory, OsStr::new(name), attributes, is_directory).unwrap()
}

/// The names and contents that one loss leaves in the root.
fn left(disk: &Disk, loss: Loss, seed: u64) -> Vec<(String, Vec<u8>)> {
    let (after, _) = loss.of(disk, &mut Random::new(seed));
    let entries = after.entries(ROOT).unwrap().iter();
    let content = |n: u64| after.read(n, 0, 1 << 20).unwrap_or_default().to_vec();
    entries
        .map(|(name, n)| (name.to_string_lossy().into(), content(*n)))
        .collect()
}

/// What each kind of loss can leave, over many seeds.
fn outcomes(disk: &Disk, loss: Loss) -> std::collections::BTreeSet<Vec<(String, Vec<u8>)>> {
    (0..200).map(|seed| left(disk, loss, seed)).collect()
}

fn file(name: &str, content: &[u8]) -> (String, Vec<u8>) {
    (name.to_owned(), content.to_vec())
}

#[test]
fn a_file_needs_its_name_and_its_name_the_directory() {
    let mut disk = Disk::new();
    let a = made(&mut disk, ROOT, "a", false);
    disk.write(a, 0, b"one").unwrap();
    disk.synchronise(a, false).unwrap();
    assert_eq!(left(&disk, Loss::All, 1), [], "its name was not synchronised");
    disk.synchronise(ROOT, false).unwrap();
    disk.write(a, 0, b"two").unwrap();
    for loss in Loss::KINDS {
        let outcomes = outcomes(&disk, loss);
        assert!(outcomes.contains(&vec![file("a", b"one")]), "{loss:?}");
        assert_eq!(outcomes.contains(&vec![file("a", b"two")]), loss != Loss::All, "{loss:?}");
        assert!(outcomes.len() <= 2, "{loss:?}: {outcomes:?}");
    }
    disk.synchronise(a, true).unwrap();
    assert!(
        Loss::KINDS
            .iter()
            .all(|l| outcomes(&disk, *l) == [vec![file("a", b"two")]].into())
    );
    // A directory without its own name takes what is in it along.
    let d = made(&mut disk, ROOT, "d", true);
    made(&mut disk, d, "in", false);
    disk.synchronise(d, false).unwrap();
    assert_eq!(left(&disk, Loss::All, 1), [file("a", b"two")]);
}

#[test]
fn a_name_changes_as_one_and_the_last_that_was_synchronised_holds() {
    let mut disk = Disk::new();
    let (old, new) = (made(&mut disk, ROOT, "a", false), made(&mut disk, ROOT, "b", false));
    disk.write(old, 0, b"old").unwrap();
    disk.write(new, 0, b"new").unwrap();
    disk.synchronise_all();
    disk.rename((ROOT, OsStr::new("b")), (ROOT, OsStr::new("a")), false).unwrap();
    let (before, after) = (vec![file("a", b"old"), file("b", b"new")], vec![file("a", b"new")]);
    assert_eq!(outcomes(&disk, Loss::Any), [before, after.clone()].into());
    // Two directories: to synchronise one brings what it builds on in the other, and no older change undoes it.
    let d = made(&mut disk, ROOT, "d", true);
    disk.synchronise(ROOT, false).unwrap();
    let c = made(&mut disk, ROOT, "c", false);
    disk.rename((ROOT, OsStr::new("c")), (d, OsStr::new("c")), false).unwrap();
    disk.synchronise(d, false).unwrap();
    for seed in 0..50 {
        let (after, _) = Loss::Any.of(&disk, &mut Random::new(seed));
        assert_eq!(after.find(d, OsStr::new("c")), Ok(c));
        assert!(after.find(ROOT, OsStr::new("c")).is_err());
    }
}

#[test]
fn contents_arrive_by_blocks() {
    let mut disk = Disk::new();
    let a = made(&mut disk, ROOT, "a", false);
    disk.synchronise_all();
    disk.write(a, 0, &[1; 10_000]).unwrap();
    disk.write(a, 10_000, &[2; 2000]).unwrap();
    let of =
        |loss| -> std::collections::BTreeSet<Vec<u8>> { outcomes(&disk, loss).into_iter().map(|l| l[0].1.clone()).collect() };
    let after = of(Loss::After);
    let whole = [&[1; 10_000][..], &[2; 2000]].concat();
    assert!(after.iter().all(|a| whole.starts_with(a)), "the order is kept");
    assert!(
        after.iter().any(|a| ![0, 10_000, 12_000].contains(&a.len())),
        "a write is torn"
    );
    for loss in [Loss::Contents, Loss::Any] {
        let any = of(loss);
        assert!(any.contains(&whole), "{loss:?}");
        assert!(
            any.iter().any(|a| a.ends_with(&[2]) && a.contains(&0)),
            "{loss:?}: the later without the earlier"
        );
        assert!(
            any.iter().any(|a| a.len() == 12_000 && a.ends_with(&[0])),
            "{loss:?}: a length with nothing in it"
        );
        assert!(any.iter().flatten().all(|b| *b <= 2));
    }
}

fn lossy(scratch: &Scratch) -> Lossy {
    let at = scratch.path().join("disk");
    fs::create_dir(&at).unwrap();
    Lossy::mount(&at).unwrap()
}

#[test]
fn the_kernel_sees_a_file_system() {
    require!(Root, Fuse);
    let scratch = Scratch::new("lossy").unwrap();
    let mut disk = lossy(&scratch);
    let at = |name: &str| disk.path().join(name);
    fs::create_dir(at("d")).unwrap();
    let mut a = File::options()
        .create_new(true)
        .append(true)
        .mode(0o640)
        .open(at("d/a"))
        .unwrap();
    a.write_all(b"one ").unwrap();
    a.write_all(b"two").unwrap();
    a.sync_all().unwrap();
    File::open(at("d")).unwrap().sync_all().unwrap();
    File::open(disk.path()).unwrap().sync_all().unwrap();
    assert!(disk.synchronised() >= 3, "each arrives: {}", disk.synchronised());
    a.write_all(b" three").unwrap();
    assert_eq!(fs::read(at("d/a")).unwrap(), b"one two three");
    assert_eq!(fs::metadata(at("d/a")).unwrap().permissions().mode() & 0o7777, 0o640);
    fs::hard_link(at("d/a"), at("b")).unwrap();
    assert!(fs::hard_link(at("d/a"), at("b")).is_err(), "there is one");
    fs::rename(at("b"), at("c")).unwrap();
    assert!(fs::remove_dir(at("d")).is_err(), "not empty");
    let mut names: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["c", "d"]);
    // One that is removed can be read for as long as it is open.
    let gone = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(at("gone"))
        .unwrap();
    gone.write_all_at(b"x", 3).unwrap();
    fs::remove_file(at("gone")).unwrap();
    let mut bytes = [9; 4];
    gone.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, *b"\0\0\0x");
    // Locks hold between descriptors.
    let lock = Flock::lock(File::open(at("c")).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    assert!(Flock::lock(File::open(at("c")).unwrap(), FlockArg::LockExclusiveNonblock).is_err());
    drop(lock);
    drop((a, gone));
    let path = disk.path().to_owned();
    let lost = disk.lose_power(Loss::All, &mut Random::new(1)).unwrap();
    assert!(lost.gone == lost.writes + lost.names && lost.gone > 0, "{lost:?}");
    assert_eq!(fs::read(path.join("d/a")).unwrap(), b"one two");
    assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "the second name is gone");
    drop(disk);
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "it is unmounted");
}

/// What the child process of a test does: SQLite maps a file, which no process may do that is itself the file system.
#[test]
fn play() {
    let Some((part, at)) = part() else { return };
    let database = Connection::open(at.join("database")).unwrap();
    let mode: String = database
        .pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    database.pragma_update(None, "synchronous", part).unwrap();
    // The log goes back into the database now and then.
    database.pragma_update(None, "wal_autocheckpoint", 12).unwrap();
    database.execute("CREATE TABLE numbers (n INTEGER, text TEXT)", []).unwrap();
    for n in 1..=COMMITS {
        let text = n.to_string().repeat(700);
        database
            .execute("INSERT INTO numbers VALUES (?1, ?2)", (n as i64, text))
            .unwrap();
        mark(&at, n);
    }
}

const COMMITS: usize = 24;

/// How often some loss of power takes back commits of a database with this setting that were answered; and how many losses there were.
fn commits_lost(synchronous: &str) -> (usize, usize) {
    let scratch = Scratch::new("lossy").unwrap();
    let disk = lossy(&scratch);
    disk.record();
    disk.played("lossy::tests::play", synchronous).unwrap();
    let (mut lost, mut losses) = (0, 0);
    let mut random = Random::new(5);
    for then in disk.recorded().iter().step_by(3) {
        let wanted = then.marks();
        for loss in Loss::KINDS {
            losses += 1;
            let copy = copies().unwrap();
            loss.of(then, &mut random).0.copy_to(copy.path()).unwrap();
            let found = numbers(&copy.path().join("database"));
            let whole = found.as_ref().is_some_and(|f| f.iter().copied().eq(1..=f.len() as u32));
            lost += usize::from(wanted > 0 && !(whole && found.is_some_and(|f| f.len() >= wanted)));
        }
    }
    (lost, losses)
}

/// What is in a database that is whole.
fn numbers(file: &Path) -> Option<Vec<u32>> {
    let database = Connection::open(file).ok()?;
    let health: String = database.query_row("PRAGMA integrity_check", [], |r| r.get(0)).ok()?;
    let mut all = database.prepare("SELECT n FROM numbers ORDER BY rowid").ok()?;
    let numbers = all.query_map([], |r| r.get(0)).ok()?.collect::<Result<_, _>>().ok()?;
    (health == "ok").then_some(numbers)
}

#[test]
fn sqlite_that_synchronises_loses_nothing_and_sqlite_that_does_not_is_caught() {
    require!(Root, Fuse);
    let (lost, losses) = commits_lost("FULL");
    assert_eq!(lost, 0, "of {losses}");
    for fault in ["NORMAL", "OFF"] {
        let (lost, losses) = commits_lost(fault);
        println!("synchronous={fault}: {lost} of {losses} losses of power take back what was answered");
        assert!(lost * 2 > losses, "{fault}: {lost} of {losses}");
    }
}
