//! SQLite's errors in the domain's words.

use std::path::Path;

use rusqlite::{Error, ErrorCode};

use super::StoreError;

/// SQLite's error, or one of ours.
pub(super) enum Failure {
    Sqlite(Error),
    Ours(StoreError),
}

impl Failure {
    /// With the database's path where the error names it.
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(e) => map(path, &e),
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

/// What SQLite's error means for us.
pub(super) fn map(path: &Path, error: &Error) -> StoreError {
    let text = error.to_string();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Busy(path.to_owned()),
        Some(ErrorCode::DiskFull) => StoreError::Full,
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Corrupt(text),
        Some(ErrorCode::NotADatabase) => StoreError::Foreign(path.to_owned()),
        Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => StoreError::ReadOnly(text),
        Some(_) => StoreError::Io(format!("{}: {text}", path.display())),
        // What was read cannot be what was written.
        None => StoreError::Corrupt(text),
    }
}
