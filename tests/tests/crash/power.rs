//! The machine loses its power: what was synchronised is on the disk, and of what was written since, any sectors and no others. SQLite
//! reports a commit once its log is synchronised up to the commit's end; so every image of a database that a loss can leave is its file as
//! of the last checkpoint and the log up to the last commit's end whole, with anything in the sectors after it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use gateway_user::{
    audit::{Entry, Head},
    model::{Device, Revision, SessionId, WallTime},
    store::{ChangeSet, Reader, SqliteStore, Store as _},
};
use lazaret_tests::differential::random::Random;
use tempfile::TempDir;

pub(super) const AT: WallTime = WallTime(1_800_000_000_000);
const SECTOR: usize = 512;
pub(super) const DEVICES: usize = 40;

/// Change `n` sets every device's owner to `n`, so that half a change shows.
pub(super) fn change(n: u64) -> ChangeSet {
    let device = |d: usize| Device {
        owner: format!("{n}").into(),
        ..Device::new(format!("phone-{d}").parse().unwrap(), "office".parse().unwrap(), AT)
    };
    let session = |id: u64| gateway_user::model::Session {
        id: SessionId(id),
        device: Some("phone-0".parse().unwrap()),
        addresses: std::net::IpAddr::from(std::net::Ipv4Addr::from(u32::try_from(id).unwrap())).into(),
        interface: "tun0".parse().unwrap(),
        source: "vpn".parse().unwrap(),
        trust: gateway_user::model::Trust::Name,
        opened_at: AT,
    };
    let entry = Entry {
        number: n,
        at: AT,
        by: "uid:0".to_owned(),
        action: "RegisterDevices".to_owned(),
        device: Some("phone-1".parse().unwrap()),
        subject: String::new(),
        before: String::new(),
        after: n.to_string(),
        reason: String::new(),
        request: String::new(),
        result: "done".to_owned(),
    };
    ChangeSet {
        devices: (0..DEVICES).map(device).map(|d| (d.id.clone(), d)).collect(),
        opened: [(SessionId(n), session(n))].into(),
        closed: if n > 1 {
            [SessionId(n - 1)].into()
        } else {
            Default::default()
        },
        audit: vec![entry],
        ..ChangeSet::default()
    }
}

fn directory() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let path = temp.path().to_owned();
    (temp, path)
}

/// Opens what a loss has left, and gives the change that it is at, after having made sure that it is whole.
fn survivor(database: &[u8], log: &[u8], known: Head) -> u64 {
    let (_temp, path) = directory();
    for (name, bytes) in [("lazaret.db", database), ("lazaret.db-wal", log)] {
        fs::write(path.join(name), bytes).unwrap();
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    whole(&path, known, "an image")
}

/// Opens a state directory, and gives the change that it is at, after having made sure that it is whole, and that it goes on.
pub(super) fn whole(state: &Path, known: Head, context: &str) -> u64 {
    let mut store = SqliteStore::open(state).unwrap_or_else(|e| panic!("{context}: {e}"));
    let loaded = store.load().unwrap();
    let n = loaded.revision.0;
    assert_eq!(loaded.devices.len(), if n == 0 { 0 } else { DEVICES }, "{context}");
    assert!(
        loaded.devices.iter().all(|d| *d.owner == *n.to_string()),
        "{context}: half a change at {n}"
    );
    assert_eq!(
        loaded.sessions.iter().map(|s| s.id.0).collect::<Vec<_>>(),
        (n > 0).then_some(n).into_iter().collect::<Vec<_>>(),
        "{context}"
    );
    let verified = Reader::of_directory(state).unwrap().verify(&[known]).unwrap();
    assert_eq!(
        (verified.findings.as_slice(), verified.head.number),
        (&[][..], n),
        "{context}"
    );
    store.commit(&change(n + 1), Revision(n), AT).unwrap();
    n
}

/// A database after each of some changes: the file, the log, and the audit's head. All were answered, so all were synchronised.
fn history(changes: u64) -> Vec<(Vec<u8>, Vec<u8>, Head)> {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let read = |path: &Path| fs::read(path).unwrap_or_default();
    let image = |head| (read(&path.join("lazaret.db")), read(&path.join("lazaret.db-wal")), head);
    let mut all = vec![image(Head::NONE)];
    for n in 1..=changes {
        let head = store.commit(&change(n), Revision(n - 1), AT).unwrap().audit_head;
        all.push(image(head));
    }
    all
}

#[test]
fn every_answered_change_survives_a_cut_anywhere_behind_it_and_none_survives_by_half() {
    let images = history(6);
    for n in 1..images.len() {
        let ((database, before, head), (_, after, _)) = (&images[n - 1], &images[n]);
        assert!(after.len() > before.len(), "the log grows: {} {}", before.len(), after.len());
        // Cut at each sector of what the last change has written, and in the middle of some.
        let (from, to) = (before.len() / SECTOR, after.len() / SECTOR);
        let mut found = Vec::new();
        for sector in (from..=to).step_by(1.max((to - from) / 24)) {
            for cut in [sector * SECTOR, sector * SECTOR + 100] {
                let cut = cut.clamp(before.len(), after.len());
                found.push(survivor(database, &after[..cut], *head));
            }
        }
        assert!(found.iter().all(|f| [n as u64 - 1, n as u64].contains(f)), "{found:?}");
        assert!(found.is_sorted() && found[0] == n as u64 - 1);
        assert_eq!(survivor(database, after, images[n].2), n as u64, "whole");
    }
}

#[test]
fn sectors_that_were_not_synchronised_may_arrive_in_any_order_or_hold_anything() {
    let images = history(3);
    let mut random = Random::new(7);
    let (database, before, head) = &images[2];
    let after = &images[3].1;
    let mut whole = 0;
    for _ in 0..120 {
        let mut log = after.clone();
        let missing = 1 + random.below(6);
        for _ in 0..missing {
            let start = before.len() + random.below(after.len() - before.len());
            let start = (start / SECTOR * SECTOR).max(before.len());
            let end = (start + SECTOR).min(log.len());
            let kind = random.below(3);
            for byte in &mut log[start..end] {
                *byte = match kind {
                    0 => 0,
                    1 => random.byte(),
                    // What an earlier round of the log had there.
                    _ => before[(start - before.len()) % before.len()],
                };
            }
        }
        let found = survivor(database, &log, *head);
        assert!(found == 2 || (found == 3 && log == *after), "{found}");
        whole += u64::from(found == 3);
    }
    assert!(whole < 120, "something was missing");
}

/// When the log goes back into the database, its pages may be there in part, and the log is still whole.
#[test]
fn a_loss_in_the_middle_of_a_checkpoint_loses_nothing() {
    let images = history(5);
    let (old, log, head) = &images[5];
    // The database as it is after a checkpoint of that log.
    let (_temp, path) = directory();
    fs::write(path.join("lazaret.db"), old).unwrap();
    fs::write(path.join("lazaret.db-wal"), log).unwrap();
    for name in ["lazaret.db", "lazaret.db-wal"] {
        fs::set_permissions(path.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    drop(SqliteStore::open(&path).unwrap());
    let new = fs::read(path.join("lazaret.db")).unwrap();
    assert!(!path.join("lazaret.db-wal").exists(), "closing has brought the log back");
    let mut random = Random::new(9);
    for _ in 0..40 {
        let mut database = new.clone();
        for start in (0..database.len()).step_by(SECTOR) {
            let end = (start + SECTOR).min(database.len());
            if random.once_in(2) {
                let earlier = old.get(start..end).map_or_else(|| vec![0; end - start], <[u8]>::to_vec);
                database[start..end].copy_from_slice(&earlier);
            }
        }
        database.truncate(if random.once_in(3) {
            old.len().max(SECTOR * 8)
        } else {
            database.len()
        });
        assert_eq!(survivor(&database, log, *head), 5);
    }
    assert_eq!(survivor(&new, &[], *head), 5, "and without the log, once all is there");
}
