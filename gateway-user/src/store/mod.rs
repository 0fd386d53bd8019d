//! What survives the process, in the domain's terms. Only [`crate::controller`] commits.

mod aside;
mod audit_log;
mod backup;
mod carry;
mod check;
mod failure;
mod files;
mod read;
mod reader;
mod rows;
mod schema;
mod seen;
mod share;
mod sqlite;
mod trail;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

pub use audit_log::{AuditLog, LogHealth, LogState};
pub use backup::{Copied, Forgotten, restore};
pub use carry::Carried;
pub use reader::{Health, Reader, Verified};
pub use sqlite::SqliteStore;

use crate::{
    audit::{Entry, Head, Sealed},
    model::{Device, DeviceId, Publication, RequestId, Revision, Salt, Session, SessionId, UriChange, WallTime},
};

/// Changes of GatewayURIs that are kept for watchers that come back.
pub const KEPT_URI_CHANGES: u64 = 100_000;
/// Requests that are remembered at most, whatever their age, a KiB of an answer counting as one more; beyond it whoever has most loses his
/// oldest, so that one with no more than an even part of them loses none.
pub const KEPT_REQUESTS: u64 = 2_000_000;
/// Rows that one call of [`Store::prune`] removes at most of each kind: what waits meanwhile waits for milliseconds.
pub const PRUNED_AT_ONCE: u64 = 5_000;

/// Keeps the registry, the live sessions, publications, requests, the audit and the last changes of GatewayURIs.
pub trait Store: Send {
    /// All of it, but for requests, audit and changes of GatewayURIs.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn load(&mut self) -> Result<Snapshot, StoreError> {
        let mut devices = Vec::new();
        let snapshot = self.load_each(&mut |device| devices.push(device))?;
        Ok(Snapshot { devices, ..snapshot })
    }

    /// As [`Store::load`], with each device handed over by itself, in the order of their ids, and none in the snapshot: so many need not be
    /// held twice.
    ///
    /// # Errors
    /// See [`StoreError`]; devices may have been handed over.
    fn load_each(&mut self, device: &mut dyn FnMut(Device)) -> Result<Snapshot, StoreError>;

    /// Makes a change durable, all of it or none. Devices and changes of GatewayURIs get the new revision as theirs, whatever they carry;
    /// audit entries get their hashes. `at` is what [`Snapshot::committed_at`] will be: the wall clock, but while it is behind the last
    /// commit, that.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing was changed.
    fn commit(&mut self, changes: &ChangeSet, expected: Revision, at: WallTime) -> Result<Committed, StoreError>;

    /// Changes of GatewayURIs after a revision, oldest first; `None`: some of them are no longer kept. So many, and the rest of the last one's
    /// revision: fewer are all there are.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn uri_changes(&mut self, after: Revision, most: usize) -> Result<Option<Vec<UriChange>>, StoreError>;

    /// A request that is remembered, whatever its age.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn request(&mut self, client: &str, id: &RequestId) -> Result<Option<Request>, StoreError>;

    /// Entries of the audit.
    ///
    /// # Errors
    /// See [`StoreError`].
    fn audit(&mut self, query: &AuditQuery) -> Result<Vec<Sealed>, StoreError>;

    /// Forgets requests from before a time, and those above [`KEPT_REQUESTS`]; of the audit, leaves the last `audit_entries`, and beside them a
    /// quarter as many older ones of identities that have few. Does so in small parts: true says that there is more to do. It is no commit: the
    /// revision stays.
    ///
    /// # Errors
    /// See [`StoreError`]; nothing was changed.
    fn prune(&mut self, requests_before: WallTime, audit_entries: u64) -> Result<bool, StoreError>;
}

/// What a commit has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// One more than before.
    pub revision: Revision,
    /// The audit's last entry; [`Head::NONE`]: it has none.
    pub audit_head: Head,
}

/// Which entries of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditQuery {
    /// That one.
    Number(u64),
    /// The first `limit` after a number, oldest first.
    After {
        /// 0: from the first that is kept.
        number: u64,
        /// Most entries.
        limit: u32,
    },
    /// The last `limit` before a number, newest first; all devices' or one's.
    Before {
        /// `None`: up to the last.
        number: Option<u64>,
        /// Whose.
        device: Option<DeviceId>,
        /// Most entries.
        limit: u32,
    },
}

/// What was stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Of the last commit; 0: there was none.
    pub revision: Revision,
    /// Above every number that a session ever had.
    pub next_session: u64,
    /// By id.
    pub devices: Vec<Device>,
    /// By number.
    pub sessions: Vec<Session>,
    /// Published policy revisions, oldest first; the last is in force.
    pub publications: Vec<Publication>,
    /// Wall clock of the last commit.
    pub committed_at: Option<WallTime>,
    /// When a backup took this database's place, until a commit says that what follows from it is done.
    pub restored: Option<WallTime>,
    /// From when on what was blocked, retired, restricted and published is not in this database, though it may have been in one that a
    /// backup has replaced; until a policy is published.
    pub forgotten: Option<WallTime>,
    /// The audit's last entry; `None`: it has none.
    pub audit_head: Option<Head>,
}

/// A request that was answered, or whose change was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The caller: [`crate::model::Identity::requester`].
    pub client: String,
    /// Its id for the request.
    pub id: RequestId,
    /// SHA-256 of the request's method and body.
    pub digest: [u8; 32],
    /// When.
    pub at: WallTime,
    /// Of an answer that has a final policy key, which is not kept: from what it is derived once more, with the request's temporary key.
    pub salt: Option<Salt>,
    /// The first answer, encoded; `None`: the process ended before it was known, and what is so now is the answer.
    pub answer: Option<Vec<u8>>,
}

/// A change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSet {
    /// Devices as they are now, new or known.
    pub devices: BTreeMap<DeviceId, Device>,
    /// Sessions that ended.
    pub closed: BTreeSet<SessionId>,
    /// Sessions that opened.
    pub opened: BTreeMap<SessionId, Session>,
    /// GatewayURIs that changed.
    pub uris: Vec<UriChange>,
    /// Publications, in their order: each was the one in force, or changed its terms. The list of all that were published is kept, in order;
    /// one that was published before and is no longer the last moves to its end.
    pub publications: Vec<Publication>,
    /// Requests that are remembered, and answers to those that were.
    pub requests: Vec<Request>,
    /// What the audit is to have, by number, ascending, without gaps.
    pub audit: Vec<Entry>,
    /// What follows from a restored backup is done: every device needs fresh proof now, or has it.
    pub restore_done: bool,
    /// A policy was published: [`Snapshot::forgotten`] has been taken note of.
    pub acknowledged: bool,
}

impl ChangeSet {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
            && self.closed.is_empty()
            && self.opened.is_empty()
            && self.uris.is_empty()
            && self.publications.is_empty()
            && self.requests.is_empty()
            && self.audit.is_empty()
            && !self.restore_done
            && !self.acknowledged
    }

    /// Adds what happened after it.
    pub fn then(&mut self, later: Self) {
        self.devices.extend(later.devices);
        self.closed.extend(later.closed);
        self.opened.extend(later.opened);
        self.uris.extend(later.uris);
        self.publications.extend(later.publications);
        self.requests.extend(later.requests);
        self.audit.extend(later.audit);
        self.restore_done |= later.restore_done;
        self.acknowledged |= later.acknowledged;
    }
}

/// Whether a state directory and the database in it, as far as they are there, are as tight as a daemon wants them that is one of `owners`.
///
/// # Errors
/// [`StoreError::Loose`], [`StoreError::NotPlain`].
pub fn fit(directory: &Path, owners: &[u32]) -> Result<(), StoreError> {
    files::fit(directory, sqlite::FILE, owners)
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{0} is in use by another process")]
    Busy(PathBuf),
    /// No room.
    #[error("the disk is full")]
    Full,
    /// What is stored makes no sense.
    #[error("the database is damaged: {0}")]
    Corrupt(String),
    /// The file system does not let us write.
    #[error("the database cannot be written: {0}")]
    ReadOnly(String),
    /// Somebody else has committed.
    #[error("the database is at revision {found}, not at {expected}: something else writes to it")]
    Conflict {
        /// What the caller knew.
        expected: u64,
        /// What is stored.
        found: u64,
    },
    /// The audit would have a gap, or a number twice.
    #[error("the audit's next entry is A{expected}, not A{found}")]
    AuditNumber {
        /// What follows what is stored.
        expected: u64,
        /// What was to be stored.
        found: u64,
    },
    /// A later version of Lazaret made it.
    #[error("the database has schema version {found}; this binary knows versions up to {known}: run a newer lazaret")]
    Newer {
        /// Its version.
        found: i64,
        /// The last that is known here.
        known: i64,
    },
    /// An earlier version of Lazaret made it, and nothing but the daemon brings it up to date.
    #[error("the database has schema version {found}, this binary reads {known}: the daemon brings it up to date when it starts")]
    Older {
        /// Its version.
        found: i64,
        /// The one that is read here.
        known: i64,
    },
    /// What was to be made is there already.
    #[error("{0} is there already")]
    Exists(PathBuf),
    /// No file.
    #[error("there is no file {0}")]
    Absent(PathBuf),
    /// Something else than a file.
    #[error("{0} is not a file")]
    NotAFile(PathBuf),
    /// Not a database of ours.
    #[error("{0} is not a database of lazaret")]
    Foreign(PathBuf),
    /// Others could read or write it.
    #[error(
        "{path} has mode {mode:04o} and belongs to uid {owner}; it must be no looser than {wanted:04o} and belong to uid {euid}: chown {euid} {path}; chmod {wanted:04o} {path}"
    )]
    Loose {
        /// Which file or directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// The loosest mode that is accepted.
        wanted: u32,
        /// Who we are.
        euid: u32,
    },
    /// Not a plain file or directory: perhaps a symbolic link.
    #[error("{0} is not a plain file or directory")]
    NotPlain(PathBuf),
    /// Input or output failed.
    #[error("{0}")]
    Io(String),
}

#[cfg(test)]
mod tests;
