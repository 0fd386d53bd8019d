//! [`Store`] on SQLite: one file, write-ahead log, every commit on the disk before it is answered.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, Error, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{
    ChangeSet, KEPT_URI_CHANGES, Snapshot, Store, StoreError, files,
    rows::{self, signed, unsigned},
    schema,
};
use crate::model::{Device, DeviceId, Revision, Session, SessionId, UriChange};

/// Name of the database in its directory.
const FILE: &str = "lazaret.db";
/// How long opening waits for a daemon that is going down.
const WAIT: Duration = Duration::from_secs(2);

/// The database. The file is locked for as long as this lives, so that no second daemon writes to it.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
    kept: u64,
}

impl SqliteStore {
    /// Opens the database in a directory; makes directory (0700) and file (0600) if there are none, and brings an older schema up to date.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let path = files::prepare(directory, FILE)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        // NOFOLLOW refuses a symbolic link anywhere in the path; one above the state directory is fine.
        let real = path
            .canonicalize()
            .map_err(|e| StoreError::Io(format!("{}: {e}", path.display())))?;
        let opened = Connection::open_with_flags(real, flags).map_err(|e| map(&path, &e))?;
        let mut store = Self {
            connection: opened,
            path,
            kept: KEPT_URI_CHANGES,
        };
        store.prepare().map_err(|e| e.unwrap_or_else(|e| map(&store.path, &e)))?;
        Ok(store)
    }

    /// The connection, for tests that limit or damage what lies below.
    #[cfg(test)]
    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    #[cfg(test)]
    pub(super) fn keep(&mut self, changes: u64) {
        self.kept = changes;
    }

    fn prepare(&mut self) -> Result<(), Failure> {
        let c = &mut self.connection;
        c.busy_timeout(WAIT)?;
        c.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        let application: i64 = c.pragma_query_value(None, "application_id", |r| r.get(0))?;
        let found: i64 = c.pragma_query_value(None, "user_version", |r| r.get(0))?;
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
        c.pragma_update(None, "foreign_keys", true)?;
        schema::migrate(c, found)?;
        let health: String = c.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
        if health != "ok" {
            return Err(StoreError::Corrupt(health).into());
        }
        Ok(())
    }

    fn read(&mut self) -> rusqlite::Result<Snapshot> {
        let t = self.connection.transaction()?;
        let (revision, next_session) = t.query_row("SELECT revision, next_session FROM meta", [], |r| {
            Ok((unsigned(r.get(0)?), unsigned(r.get(1)?)))
        })?;
        let mut devices: HashMap<DeviceId, Device> = HashMap::new();
        for device in t
            .prepare(&format!("SELECT {} FROM devices", rows::DEVICE))?
            .query_map([], rows::device)?
        {
            let device = device?;
            devices.insert(device.id.clone(), device);
        }
        let name = |r: &rusqlite::Row<'_>| Ok((rows::parse::<DeviceId>(r, 0)?, rows::parse::<DeviceId>(r, 1)?));
        for row in t
            .prepare("SELECT device, name FROM common_names ORDER BY name")?
            .query_map([], name)?
        {
            let (device, name) = row?;
            devices
                .get_mut(&device)
                .into_iter()
                .for_each(|d| d.common_names.push(name.clone()));
        }
        let certificate = |r: &rusqlite::Row<'_>| Ok((rows::parse::<DeviceId>(r, 0)?, rows::fingerprint(r, 1)?));
        for row in t
            .prepare("SELECT device, fingerprint FROM certificates ORDER BY fingerprint")?
            .query_map([], certificate)?
        {
            let (device, certificate) = row?;
            devices
                .get_mut(&device)
                .into_iter()
                .for_each(|d| d.certificates.push(certificate));
        }
        let mut sessions: HashMap<SessionId, Session> = HashMap::new();
        for session in t
            .prepare("SELECT id, device, interface, source, opened_at FROM sessions")?
            .query_map([], rows::session)?
        {
            let session = session?;
            sessions.insert(session.id, session);
        }
        let address = |r: &rusqlite::Row<'_>| Ok((SessionId(unsigned(r.get(0)?)), rows::address_of(r, 1)?));
        for row in t
            .prepare("SELECT session, address FROM session_addresses ORDER BY session, place")?
            .query_map([], address)?
        {
            let (session, address) = row?;
            sessions.get_mut(&session).into_iter().for_each(|s| s.addresses.push(address));
        }
        let (mut devices, mut sessions): (Vec<_>, Vec<_>) = (devices.into_values().collect(), sessions.into_values().collect());
        devices.sort_by(|a, b| a.id.cmp(&b.id));
        sessions.sort_by_key(|s| s.id);
        Ok(Snapshot {
            revision: Revision(revision),
            next_session,
            devices,
            sessions,
            publications: Vec::new(),
            committed_at: None,
            audit_head: None,
        })
    }

    fn write(&mut self, changes: &ChangeSet, expected: Revision) -> Result<Revision, Failure> {
        let kept = self.kept;
        let t = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = unsigned(t.query_row("SELECT revision FROM meta", [], |r| r.get(0))?);
        if found != expected.0 {
            return Err(StoreError::Conflict {
                expected: expected.0,
                found,
            }
            .into());
        }
        let revision = found + 1;
        write_devices(&t, changes, revision)?;
        write_sessions(&t, changes)?;
        write_uris(&t, changes, revision, kept)?;
        let next = changes.opened.last_key_value().map_or(0, |(id, _)| id.0 + 1);
        t.execute(
            "UPDATE meta SET revision = ?1, next_session = max(next_session, ?2)",
            params![signed(revision), signed(next)],
        )?;
        // Dropped without it, or failing in it, the transaction is rolled back.
        t.commit()?;
        Ok(Revision(revision))
    }

    fn history(&mut self, after: Revision) -> rusqlite::Result<Option<Vec<UriChange>>> {
        let floor = unsigned(self.connection.query_row("SELECT uri_floor FROM meta", [], |r| r.get(0))?);
        if after.0 < floor {
            return Ok(None);
        }
        let text = "SELECT revision, device, old, new, at, reason FROM uri_changes WHERE revision > ?1 ORDER BY number";
        let mut statement = self.connection.prepare_cached(text)?;
        statement
            .query_map([signed(after.0)], rows::uri_change)?
            .collect::<rusqlite::Result<_>>()
            .map(Some)
    }
}

impl Store for SqliteStore {
    fn load(&mut self) -> Result<Snapshot, StoreError> {
        self.read().map_err(|e| map(&self.path, &e))
    }

    fn commit(&mut self, changes: &ChangeSet, expected: Revision) -> Result<Revision, StoreError> {
        self.write(changes, expected)
            .map_err(|e| e.unwrap_or_else(|e| map(&self.path, &e)))
    }

    fn uri_changes(&mut self, after: Revision) -> Result<Option<Vec<UriChange>>, StoreError> {
        self.history(after).map_err(|e| map(&self.path, &e))
    }
}

fn write_devices(t: &Transaction<'_>, changes: &ChangeSet, revision: u64) -> rusqlite::Result<()> {
    // All aliases go before the first comes: one may move from a device to another in the same change.
    let mut no_names = t.prepare_cached("DELETE FROM common_names WHERE device = ?1")?;
    let mut no_certificates = t.prepare_cached("DELETE FROM certificates WHERE device = ?1")?;
    for id in changes.devices.keys() {
        no_names.execute([id.as_str()])?;
        no_certificates.execute([id.as_str()])?;
    }
    let upsert = format!(
        "INSERT INTO devices ({}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
         ON CONFLICT (id) DO UPDATE SET owner = ?2, full_service_pool = ?3, state = ?4, state_reason = ?5, state_since = ?6,
         policy_revision = ?7, restricted_at = ?8, lease_wall = ?9, lease_boot = ?10, lease_boot_id = ?11, lease_length = ?12,
         gateway_uri = ?13, revision = ?14",
        rows::DEVICE
    );
    let mut upsert = t.prepare_cached(&upsert)?;
    let mut name = t.prepare_cached("INSERT INTO common_names VALUES (?1, ?2)")?;
    let mut certificate = t.prepare_cached("INSERT INTO certificates VALUES (?1, ?2)")?;
    for d in changes.devices.values() {
        upsert.execute(params![
            d.id.as_str(),
            d.owner,
            d.full_service_pool.as_str(),
            d.state.as_str(),
            d.state_reason,
            d.state_since.0,
            d.policy_revision.as_ref().map(|r| r.as_str()),
            d.restricted_at.map(|t| t.0),
            d.lease.map(|l| l.given.wall.0),
            d.lease.map(|l| signed(l.given.boot.0)),
            d.lease.map(|l| signed(l.given.boot_id)),
            d.lease.map(|l| signed(l.length_ms)),
            d.gateway_uri,
            signed(revision),
        ])?;
        for n in &d.common_names {
            name.execute([n.as_str(), d.id.as_str()])?;
        }
        for c in &d.certificates {
            certificate.execute(params![c.bytes(), d.id.as_str()])?;
        }
    }
    Ok(())
}

fn write_sessions(t: &Transaction<'_>, changes: &ChangeSet) -> rusqlite::Result<()> {
    let mut close = t.prepare_cached("DELETE FROM sessions WHERE id = ?1")?;
    for id in &changes.closed {
        close.execute([signed(id.0)])?;
    }
    let mut open = t.prepare_cached("INSERT INTO sessions VALUES (?1, ?2, ?3, ?4, ?5)")?;
    let mut address = t.prepare_cached("INSERT INTO session_addresses VALUES (?1, ?2, ?3)")?;
    for s in changes.opened.values() {
        let device = s.device.as_ref().map(|d| d.as_str());
        open.execute(params![
            signed(s.id.0),
            device,
            s.interface.as_str(),
            s.source.as_str(),
            s.opened_at.0
        ])?;
        for (place, a) in (0_i64..).zip(&s.addresses) {
            address.execute(params![rows::address(*a), signed(s.id.0), place])?;
        }
    }
    Ok(())
}

fn write_uris(t: &Transaction<'_>, changes: &ChangeSet, revision: u64, kept: u64) -> rusqlite::Result<()> {
    if changes.uris.is_empty() {
        return Ok(());
    }
    let mut insert =
        t.prepare_cached("INSERT INTO uri_changes (revision, device, old, new, at, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for u in &changes.uris {
        insert.execute(params![signed(revision), u.device.as_str(), u.old, u.new, u.at.0, u.reason])?;
    }
    // The oldest go; what has gone is remembered by its revision, so that a watcher that needs it is told.
    let last = t.last_insert_rowid();
    let cut = last.saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX));
    let floor: Option<i64> = t
        .prepare_cached("SELECT max(revision) FROM uri_changes WHERE number <= ?1")?
        .query_row([cut], |r| r.get(0))
        .optional()?
        .flatten();
    if let Some(floor) = floor {
        t.prepare_cached("DELETE FROM uri_changes WHERE number <= ?1")?
            .execute([cut])?;
        t.execute("UPDATE meta SET uri_floor = ?1", [floor])?;
    }
    Ok(())
}

/// SQLite's error, or one of ours.
enum Failure {
    Sqlite(Error),
    Ours(StoreError),
}

impl Failure {
    fn unwrap_or_else(self, f: impl FnOnce(Error) -> StoreError) -> StoreError {
        match self {
            Self::Sqlite(e) => f(e),
            Self::Ours(e) => e,
        }
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Sqlite(e)
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::Ours(e)
    }
}

fn map(path: &Path, error: &Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy(path.to_owned()),
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt(text),
        Some(ErrorCode::NotADatabase) => StoreError::Foreign(path.to_owned()),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => StoreError::ReadOnly(text),
        Some(_) => StoreError::Io(text),
        // What was read cannot be what was written.
        None => StoreError::Corrupt(text),
    }
}
