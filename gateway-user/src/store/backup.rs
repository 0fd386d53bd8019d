//! A copy of the live database, made beside its daemon, and the way back. Whoever comes from a copy has forgotten what was restricted
//! since: a copy carries the mark of it from the beginning, so that one that is put in place by hand has it, too. What tightens is taken over
//! from the database that is replaced, where that can be read ([`super::carry`]).

use std::{
    fmt, fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, backup::Backup, params};

use super::{
    Carried, StoreError, carry, check,
    failure::{Failure, map},
    files, read,
    reader::Reader,
    rows::{self, signed, unsigned},
    schema, sqlite,
    trail::{self, LastEntries},
};
use crate::{
    audit::{self, Entry, Head, rfc3339},
    model::{Revision, WallTime},
};

/// How far revisions and session numbers leap where the old database does not say how far they had come.
const LEAP: u64 = 1 << 32;

/// A copy that was made, or put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// Its revision.
    pub revision: Revision,
    /// Its devices.
    pub devices: u64,
    /// The last entry of its audit.
    pub audit_head: Head,
    /// Of a restored one: where the database that it replaces is now.
    pub kept: Option<PathBuf>,
    /// Of a restored one: what was taken over from the database that it replaces.
    pub carried: Carried,
    /// Of a restored one: what may be lost; `None`: nothing is.
    pub forgotten: Option<Forgotten>,
}

/// Restrictions and publications that are in no database any more that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Those from then on.
    pub since: WallTime,
    /// Why they could not be taken over.
    pub why: String,
}

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (since, why) = (rfc3339(self.since), &self.why);
        write!(
            f,
            "{why}: blocks, retirements, restrictions and publications since {since} are forgotten"
        )
    }
}

impl Reader {
    /// Copies the database, as it is at one moment, to a new file (0600) that is whole and on the disk once it has its name.
    ///
    /// # Errors
    /// See [`StoreError`]; there is no file then. [`StoreError::Exists`]: there was one.
    pub fn backup(&self, to: &Path, now: WallTime) -> Result<Copied, StoreError> {
        if fs::symlink_metadata(to).is_ok() {
            return Err(StoreError::Exists(to.to_owned()));
        }
        let draft = files::beside(to, "part");
        files::discard(&draft);
        let made = self
            .copy(&draft)
            .and_then(|c| finish(c, &draft, |c| mark(c, now)))
            .and_then(|copied| files::put_new(&draft, to).map(|()| copied));
        if made.is_err() {
            files::discard(&draft);
        }
        made
    }

    /// Page by page, in one transaction of the source.
    fn copy(&self, draft: &Path) -> Result<Connection, StoreError> {
        files::make_new(draft)?;
        let mut to = open(draft)?;
        let copied = Backup::new(&self.connection, &mut to).and_then(|b| b.run_to_completion(i32::MAX, Duration::ZERO, None));
        copied.map_err(|e| self.error(e))?;
        Ok(to)
    }
}

/// Puts a backup in the place of a state directory's database, with no daemon running; the old one stays beside it. Live sessions and
/// remembered requests of the backup are not taken over: they are no longer true. `clock_was_ahead`: whoever restores says that the clock is
/// right now, and had run ahead; what it has dated later than now counts as of now.
///
/// # Errors
/// See [`StoreError`]; the old database is in its place then, unless it could not be read: then it may be beside it, and there is none.
pub fn restore(directory: &Path, from: &Path, by: &str, now: WallTime, clock_was_ahead: bool) -> Result<Copied, StoreError> {
    let source = Reader::open_any(from)?;
    files::directory(directory)?;
    let place = directory.join(sqlite::FILE);
    let _lock = files::lock(directory, sqlite::LOCK, Duration::ZERO)?.ok_or_else(|| StoreError::Busy(place.clone()))?;
    let (draft, older) = (files::beside(&place, "restoring"), files::beside(&place, "carrying"));
    files::discard(&draft);
    files::discard(&older);
    let old = Old::of(&place);
    let mut taken = (Carried::default(), None);
    let made = source
        .copy(&draft)
        .and_then(|c| {
            finish(c, &draft, |c| {
                let source = old.source(&place, &older);
                taken = revive(c, &old, source, from, (by, now), clock_was_ahead)?;
                Ok(())
            })
        })
        .and_then(|mut copied| {
            copied.kept = old.make_way(&place, now)?;
            files::replace(&draft, &place).map(|()| copied)
        });
    files::discard(&older);
    let made = made.map(|copied| Copied {
        carried: taken.0,
        forgotten: taken.1,
        ..copied
    });
    if made.is_err() {
        files::discard(&draft);
    }
    made
}

/// A copy gets its last touch, is looked at, and is on the disk.
fn finish(
    mut copy: Connection,
    draft: &Path,
    last: impl FnOnce(&mut Connection) -> Result<(), Failure>,
) -> Result<Copied, StoreError> {
    let whole = || -> Result<Copied, Failure> {
        // One file, without a log beside it.
        copy.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))?;
        let found = schema::version(&copy)?;
        let problems = check::integrity(&copy)?;
        if !problems.is_empty() {
            return Err(StoreError::Corrupt(problems.join("; ")).into());
        }
        copy.pragma_update(None, "foreign_keys", false)?;
        schema::migrate(&mut copy, found)?;
        copy.pragma_update(None, "foreign_keys", true)?;
        last(&mut copy)?;
        let health = check::all(&copy)?;
        if !health.problems.is_empty() {
            return Err(StoreError::Corrupt(health.problems.join("; ")).into());
        }
        let revision = copy.query_row("SELECT revision FROM meta", [], |r| r.get(0))?;
        Ok(Copied {
            revision: Revision(unsigned(revision)),
            devices: health.devices,
            audit_head: health.audit.head,
            kept: None,
            carried: Carried::default(),
            forgotten: None,
        })
    };
    let copied = whole().map_err(|e| e.at(draft))?;
    copy.close().map_err(|(_, e)| map(draft, &e))?;
    files::sync(draft)?;
    Ok(copied)
}

fn mark(copy: &mut Connection, now: WallTime) -> Result<(), Failure> {
    let text = "UPDATE meta SET restored = ?1, forgotten = coalesce(min(forgotten, ?1), ?1)";
    copy.execute(text, [now.0])?;
    Ok(())
}

/// Makes a copy the database: no revision and no session number is given twice, no watcher goes on as if nothing had been, what tightens in
/// the old one does so in the new one, and the audit says what happened. Its chain goes on from the backup's; its next entry is that of the restore,
/// which has the head of the chain that ends here.
fn revive(
    copy: &mut Connection,
    old: &Old,
    source: Result<Connection, String>,
    from: &Path,
    (by, now): (&str, WallTime),
    clock_was_ahead: bool,
) -> Result<(Carried, Option<Forgotten>), Failure> {
    let snapshot = read::head(copy)?;
    let (revision, next_session) = match old.reached {
        Some((revision, next, _)) => (revision.max(snapshot.revision.0) + 1, next.max(snapshot.next_session)),
        None => (snapshot.revision.0 + LEAP, snapshot.next_session + LEAP),
    };
    let head = snapshot.audit_head.unwrap_or(Head::NONE);
    let t = copy.transaction()?;
    // A copy that was not made by `backup` has no mark of its time.
    let made = snapshot.restored.or(snapshot.committed_at);
    let made = [snapshot.forgotten, made].into_iter().flatten().min().unwrap_or(WallTime(0));
    let mut carried = carry::Done::default();
    let (mut before, mut committed_at) = (None, snapshot.committed_at);
    match source {
        Ok(source) => {
            carried = carry::carry(&t, &source, Revision(revision), (by, now))?;
            if let Ok(last) = read::head(&source) {
                before = last.forgotten;
                committed_at = committed_at.max(last.committed_at);
            }
        }
        Err(why) => carried.lost = Some(why),
    }
    let forgotten = carried.lost.map(|why| Forgotten {
        since: before.map_or(made, |before| before.min(made)),
        why,
    });
    let mut reason = vec![format!("taken over: {}", carried.carried)];
    reason.extend(forgotten.iter().map(ToString::to_string));
    if clock_was_ahead {
        let set = t.execute("UPDATE devices SET restricted_at = ?1 WHERE restricted_at > ?1", [now.0])?;
        let last = committed_at.take().map_or_else(String::new, rfc3339);
        reason.push(format!(
            "the clock had run ahead: the last commit of {last} and the restrictions of {set} device(s) count as of now"
        ));
    }
    let entry = Entry {
        number: 0,
        at: now,
        by: by.to_owned(),
        action: audit::RESTORE.to_owned(),
        device: None,
        subject: from.display().to_string(),
        before: old.reached.map_or_else(String::new, |(.., head)| head.to_string()),
        after: head.to_string(),
        reason: reason.join("; "),
        request: String::new(),
        result: "done".to_owned(),
    };
    let mut entries = vec![entry];
    entries.append(&mut carried.entries);
    for (entry, number) in entries.iter_mut().zip(head.number + 1..) {
        entry.number = number;
    }
    t.execute("DELETE FROM sessions", [])?;
    t.execute("DELETE FROM requests", [])?;
    t.execute("DELETE FROM uri_changes", [])?;
    let head = trail::append(&t, head, &entries, &mut LastEntries::of(&entries))?;
    t.execute(
        "UPDATE meta SET restored = ?1, revision = ?2, uri_floor = ?2, next_session = ?3, audit_number = ?4, audit_hash = ?5,
         committed_at = ?6, forgotten = ?7",
        params![
            now.0,
            signed(revision),
            signed(next_session),
            signed(head.number),
            head.hash,
            committed_at.map(|at| at.0),
            // Nothing is lost by this restore; by one before it, perhaps.
            forgotten.as_ref().map(|f| f.since).or(before).map(|at| at.0),
        ],
    )?;
    t.commit()?;
    Ok((carried.carried, forgotten))
}

/// The database that a backup replaces.
struct Old {
    there: bool,
    /// Revision, next session and audit head; `None`: it cannot be read, or there is none.
    reached: Option<(u64, u64, Head)>,
}

impl Old {
    /// To be read, in this binary's schema: one of an earlier version is brought up to date in a copy, at `draft`. Otherwise why nothing can be
    /// taken over.
    fn source(&self, place: &Path, draft: &Path) -> Result<Connection, String> {
        if !self.there {
            return Err("there was no database in its place".to_owned());
        }
        let read = || -> Result<Connection, StoreError> {
            let reader = Reader::open_any(place)?;
            let found = schema::version(&reader.connection).map_err(|e| reader.error(e))?;
            if found >= schema::VERSION {
                return Ok(reader.connection);
            }
            let mut copy = reader.copy(draft)?;
            let migrated = copy
                .pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))
                .and_then(|()| copy.pragma_update(None, "foreign_keys", false))
                .and_then(|()| schema::migrate(&mut copy, found));
            migrated.map_err(|e| map(place, &e))?;
            Ok(copy)
        };
        read().map_err(|e| format!("the database that was replaced cannot be read: {e}"))
    }

    /// Its log is brought into it, if that can be done: then it is one file.
    fn of(place: &Path) -> Self {
        let read = || -> Result<(u64, u64, Head), Failure> {
            // One that cannot be read is left as it is, and its log, too.
            drop(Reader::open_any(place)?);
            let c = open(place)?;
            let columns = "revision, next_session, audit_number, audit_hash";
            let columns = if schema::version(&c)? < 2 {
                "revision, next_session, 0, zeroblob(32)"
            } else {
                columns
            };
            let reached = c.query_row(&format!("SELECT {columns} FROM meta"), [], |r| {
                Ok((unsigned(r.get(0)?), unsigned(r.get(1)?), rows::head(r, 2)?))
            })?;
            c.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            c.close().map_err(|(_, e)| e)?;
            Ok(reached)
        };
        let there = fs::metadata(place).is_ok_and(|m| m.len() > 0);
        Self {
            there,
            reached: if there { read().ok() } else { None },
        }
    }

    /// Keeps it under another name. With a log that is still beside it, both have to go first: a new database must not meet an old log.
    fn make_way(&self, place: &Path, now: WallTime) -> Result<Option<PathBuf>, StoreError> {
        if !self.there {
            return Ok(None);
        }
        let kept = files::beside(place, &format!("before-{}", rfc3339(now)));
        let log = files::with_suffix(place, "-wal");
        if self.reached.is_some() && fs::metadata(&log).map_or(true, |m| m.len() == 0) {
            files::link(place, &kept)?;
            files::remove(&log)?;
        } else {
            files::rename(place, &kept)?;
            match files::rename(&log, &files::with_suffix(&kept, "-wal")) {
                Err(_) if !log.exists() => {}
                done => done?,
            }
        }
        files::remove(&files::with_suffix(place, "-shm"))?;
        // The new database's name must not come before the old log has gone.
        files::sync_name(place)?;
        Ok(Some(kept))
    }
}

fn open(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let real = path.canonicalize().map_err(|e| match e.kind() {
        ErrorKind::NotFound => StoreError::Io(format!("{} is not there", path.display())),
        _ => StoreError::Io(format!("{}: {e}", path.display())),
    })?;
    let c = Connection::open_with_flags(real, flags).map_err(|e| map(path, &e))?;
    let prepared = c
        .busy_timeout(sqlite::WAIT)
        .and_then(|()| c.pragma_update(None, "synchronous", "FULL"));
    prepared.map_err(|e| map(path, &e))?;
    Ok(c)
}
