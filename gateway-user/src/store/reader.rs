//! A database that is looked at and not changed: the live one beside its daemon, or a backup.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags};

use super::{
    AuditQuery, StoreError, check,
    failure::{Failure, map},
    rows, schema, sqlite, trail,
};
use crate::audit::{Finding, Head, Sealed, Verifier};

/// A database that others may write to. What is read in one call is of one moment.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
}

/// How a chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its last entry.
    pub head: Head,
    /// The last entry that was pruned; [`Head::NONE`]: none was.
    pub anchor: Head,
    /// Entries that are kept.
    pub entries: u64,
    /// All that is wrong with it.
    pub findings: Vec<Finding>,
}

/// What a check of the whole database has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// All that is wrong; empty: nothing is.
    pub problems: Vec<String>,
    /// Registered devices.
    pub devices: u64,
    /// Live sessions.
    pub sessions: u64,
    /// The audit's chain.
    pub audit: Verified,
}

impl Reader {
    /// Of a state directory.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn of_directory(directory: &Path) -> Result<Self, StoreError> {
        Self::open(&directory.join(sqlite::FILE))
    }

    /// Of a file.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let reader = Self::open_any(path)?;
        let found = schema::version(&reader.connection).map_err(|e| reader.error(e))?;
        if found < schema::VERSION {
            return Err(StoreError::Older {
                found,
                known: schema::VERSION,
            });
        }
        Ok(reader)
    }

    /// Of any schema version that this binary knows.
    pub(super) fn open_any(path: &Path) -> Result<Self, StoreError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let real = path.canonicalize().map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => StoreError::Absent(path.to_owned()),
            _ => StoreError::Io(format!("{}: {e}", path.display())),
        })?;
        // Of a directory SQLite says that the disk has failed.
        if !real.is_file() {
            return Err(StoreError::NotAFile(path.to_owned()));
        }
        let connection = Connection::open_with_flags(real, flags).map_err(|e| map(path, &e))?;
        let reader = Self {
            connection,
            path: path.to_owned(),
        };
        reader.prepare().map_err(|e| e.at(path))?;
        Ok(reader)
    }

    /// The audit's last entry and the last that was pruned.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn ends(&self) -> Result<(Head, Head), StoreError> {
        trail::ends(&self.connection).map_err(|e| self.error(e))
    }

    /// Entries of the audit.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn audit(&self, query: &AuditQuery) -> Result<Vec<Sealed>, StoreError> {
        trail::audit(&self.connection, query).map_err(|e| self.error(e))
    }

    /// Whether the audit's chain is whole, and has what is known of it from elsewhere.
    ///
    /// # Errors
    /// See [`StoreError`]; an entry that cannot be read is a finding, not an error.
    pub fn verify(&self, known: &[Head]) -> Result<Verified, StoreError> {
        let t = self.connection.unchecked_transaction().map_err(|e| self.error(e))?;
        verify(&t, known).map_err(|e| self.error(e))
    }

    /// Looks at everything: the file, every row, and what the rows say of each other.
    ///
    /// # Errors
    /// See [`StoreError`]: it cannot even be looked at.
    pub fn check(&self) -> Result<Health, StoreError> {
        let t = self.connection.unchecked_transaction().map_err(|e| self.error(e))?;
        check::all(&t).map_err(|e| self.error(e))
    }

    pub(super) fn error(&self, error: rusqlite::Error) -> StoreError {
        map(&self.path, &error)
    }

    fn prepare(&self) -> Result<(), Failure> {
        let c = &self.connection;
        c.busy_timeout(sqlite::WAIT)?;
        c.pragma_update(None, "query_only", true)?;
        let application: i64 = c.pragma_query_value(None, "application_id", |r| r.get(0))?;
        if application != schema::APPLICATION_ID {
            return Err(StoreError::Foreign(self.path.clone()).into());
        }
        let found = schema::version(c)?;
        if found > schema::VERSION {
            return Err(StoreError::Newer {
                found,
                known: schema::VERSION,
            }
            .into());
        }
        Ok(())
    }
}

/// See [`Reader::verify`].
pub(super) fn verify(connection: &Connection, known: &[Head]) -> rusqlite::Result<Verified> {
    let (head, anchor) = trail::ends(connection)?;
    let mut all = known.to_vec();
    all.push(head);
    let mut verifier = Verifier::new(anchor, all);
    let mut statement = connection.prepare(&format!("SELECT {} FROM audit ORDER BY number", rows::AUDIT))?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        match rows::sealed(row) {
            Ok(sealed) => verifier.push(&sealed),
            // Some other program has written it.
            Err(_) => verifier.push_unreadable(rows::unsigned(row.get(0)?), row.get(11).unwrap_or_default()),
        }
    }
    let (head, entries, findings) = verifier.finish();
    Ok(Verified {
        head,
        anchor,
        entries,
        findings,
    })
}
