//! [`Store`] on SQLite: one file, write-ahead log, every commit on the disk before it is answered.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::fcntl::Flock;
use rusqlite::{Connection, OpenFlags};

use super::{
    AuditQuery, ChangeSet, Committed, KEPT_REQUESTS, KEPT_URI_CHANGES, Request, Snapshot, Store, StoreError,
    aside::Aside,
    failure::{Failure, map},
    files, read, schema,
    seen::Seen,
    share::{self, Tally},
    trail, write,
};
use crate::{
    audit::Sealed,
    model::{Device, RequestId, Revision, UriChange, WallTime},
};

/// Name of the database in its directory.
pub(super) const FILE: &str = "lazaret.db";
/// The file that a daemon locks for as long as it lives. SQLite's own lock is held only while it writes, so that others can read the
/// database meanwhile: to verify the audit without the daemon's word, and to make a backup without its time.
pub(super) const LOCK: &str = "lazaret.lock";
/// How long opening waits for a daemon that is going down.
pub(super) const WAIT: Duration = Duration::from_secs(2);
/// How long a commit waits for another process that writes, which none of ours does: the controller stands still meanwhile.
const WRITE_WAIT: Duration = Duration::from_millis(100);
/// Pages after which the log goes back into the database: what changes often is written back once.
const CHECKPOINT_PAGES: u32 = 8192;
/// Most bytes of the log that are left after that.
const LOG_BYTES: u32 = 64 << 20;
/// Most memory for pages, KiB.
const CACHE_KIB: i32 = 16_384;
/// Statements that are kept prepared: more than there are.
const STATEMENTS: usize = 64;

/// The database. The directory is locked for as long as this lives, so that no second daemon writes to it.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    kept: u64,
    /// `None`: not needed yet.
    seen: Option<Seen>,
    kept_requests: u64,
    tally: Tally,
    aside: Aside,
    /// Which file is open, and which log was last written.
    files: [Option<files::Which>; 2],
    // Dropped last.
    _lock: Flock<File>,
}

impl SqliteStore {
    /// Opens the database in a directory; makes directory (0700) and file (0600) if there are none, and brings an older schema up to date.
    /// What is loaded is looked at then; the whole of it, audit and requests included, by `lazaret store check`.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = files::prepare(directory, FILE)?;
        let lock = files::lock(directory, LOCK, WAIT)?.ok_or_else(|| StoreError::Busy(path.clone()))?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // NOFOLLOW refuses a symbolic link anywhere in the path; one above the state directory is fine.
        let real = path
            .canonicalize()
            .map_err(|e| StoreError::Io(format!("{}: {e}", path.display())))?;
        let opened = Connection::open_with_flags(real, flags).map_err(|e| map(&path, &e))?;
        let mut store = Self {
            connection: opened,
            path: path.clone(),
            kept: KEPT_URI_CHANGES,
            seen: None,
            kept_requests: KEPT_REQUESTS,
            tally: Tally::default(),
            aside: Aside::default(),
            files: [files::which(&path), None],
            _lock: lock,
        };
        store.prepare().map_err(|e| e.at(&store.path))?;
        Ok(store)
    }

    /// What is written to a file that was taken away or replaced is not durable, whatever the kernel says.
    fn in_place(&self) -> Result<(), StoreError> {
        let [database, log] = self.files;
        let here = |path: &Path, open: Option<files::Which>| open.is_none() || files::which(path) == open;
        if here(&self.path, database) && here(&files::with_suffix(&self.path, "-wal"), log) {
            return Ok(());
        }
        let path = self.path.display();
        Err(StoreError::Io(format!(
            "{path} or its log was removed or replaced while it was open: stop the daemon, and put them back or restore a backup"
        )))
    }

    /// The connection, for tests that limit or damage what lies below.
    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    #[cfg(test)]
    pub(super) fn connection_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }

    #[cfg(test)]
    pub(super) fn keep(&mut self, changes: u64) {
        self.kept = changes;
    }

    #[cfg(test)]
    pub(super) fn keep_requests(&mut self, requests: u64) {
        self.kept_requests = requests;
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let c = &mut self.connection;
        c.busy_timeout(WAIT)?;
        c.set_prepared_statement_cache_capacity(STATEMENTS);
        let application: i64 = c.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let found = schema::version(c)?;
        let tables: i64 = c.query_row("SELECT count(*) FROM sqlite_master", [], |r| r.get(0))?;
        if application != schema::APPLICATION_ID && (application != 0 || found != 0 || tables != 0) {
            return Err(StoreError::Foreign(self.path.clone()).into());
        }
        if found > schema::VERSION {
            return Err(StoreError::Newer {
                found,
                known: schema::VERSION,
            }
            .into());
        }
        let mode: String = c.pragma_update_and_check(None, "journal_mode", "WAL", |r| r.get(0))?;
        if !mode.eq_ignore_ascii_case("wal") {
            return Err(StoreError::Io(format!(
                "the file system has no write-ahead log for SQLite (journal_mode is {mode})"
            ))
            .into());
        }
        c.pragma_update(None, "synchronous", "FULL")?;
        c.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        c.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        c.pragma_update(None, "cache_size", -CACHE_KIB)?;
        c.pragma_update(None, "foreign_keys", false)?;
        schema::migrate(c, found)?;
        c.pragma_update(None, "foreign_keys", true)?;
        c.busy_timeout(WRITE_WAIT)?;
        Ok(())
    }
}

impl Store for SqliteStore {
    fn load_each(&mut self, device: &mut dyn FnMut(Device)) -> Result<Snapshot, StoreError> {
        read::load(&mut self.connection, device).map_err(|e| map(&self.path, &e))
    }

    fn commit(&mut self, changes: &ChangeSet, expected: Revision, at: WallTime) -> Result<Committed, StoreError> {
        self.in_place()?;
        let done = write::commit(&mut self.connection, &mut self.seen, changes, expected, at, self.kept);
        let done = done.map_err(|e| e.at(&self.path))?;
        let [_, log] = &mut self.files;
        *log = log.or_else(|| files::which(&files::with_suffix(&self.path, "-wal")));
        self.in_place()?;
        Ok(done)
    }

    fn uri_changes(&mut self, after: Revision, most: usize) -> Result<Option<Vec<UriChange>>, StoreError> {
        read::uri_changes(&self.connection, after, most).map_err(|e| map(&self.path, &e))
    }

    fn request(&mut self, client: &str, id: &RequestId) -> Result<Option<Request>, StoreError> {
        trail::request(&self.connection, &mut self.seen, client, id).map_err(|e| map(&self.path, &e))
    }

    fn audit(&mut self, query: &AuditQuery) -> Result<Vec<Sealed>, StoreError> {
        trail::audit(&self.connection, query).map_err(|e| map(&self.path, &e))
    }

    fn prune(&mut self, requests_before: WallTime, audit_entries: u64) -> Result<bool, StoreError> {
        let (connection, error) = (&mut self.connection, |e| map(&self.path, &e));
        let (tally, most) = (&mut self.tally, self.kept_requests);
        let requests = share::prune(connection, &mut self.seen, tally, requests_before, most).map_err(error)?;
        let audit = trail::prune(connection, &mut self.aside, audit_entries).map_err(error)?;
        Ok(requests || audit)
    }
}
