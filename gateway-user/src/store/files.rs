//! The database's directory and files: made with tight modes, refused with loose ones. The registry names people and their devices.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::StoreError;

/// Makes directory and file if there are none, and checks both. Returns the file's path.
pub(super) fn prepare(directory: &Path, name: &str) -> Result<PathBuf, StoreError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        Err(e) => return Err(io_error("make", directory, &e)),
    }
    check(directory, 0o700, true)?;
    let file = directory.join(name);
    // SQLite gives its journals the mode of this file.
    make(&file)?;
    check(&file, 0o600, false)?;
    for suffix in ["-wal", "-shm", "-journal"] {
        let beside = directory.join(format!("{name}{suffix}"));
        if fs::symlink_metadata(&beside).is_ok() {
            check(&beside, 0o600, false)?;
        }
    }
    Ok(file)
}

/// Locks a file of the directory for as long as the result lives; `None`: another process has it, and did not give it up in time.
pub(super) fn lock(directory: &Path, name: &str, wait: Duration) -> Result<Option<Flock<File>>, StoreError> {
    let path = directory.join(name);
    make(&path)?;
    check(&path, 0o600, false)?;
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(&path)
        .map_err(|e| io_error("open", &path, &e))?;
    let until = Instant::now() + wait;
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((file, Errno::EWOULDBLOCK | Errno::EINTR)) => file,
            Err((_, e)) => return Err(io_error("lock", &path, &e.into())),
        };
        if Instant::now() >= until {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a file with a tight mode, if there is none.
fn make(file: &Path) -> Result<(), StoreError> {
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(file)
    {
        // The umask can only have made it tighter.
        Ok(f) => f
            .set_permissions(Permissions::from_mode(0o600))
            .map_err(|e| io_error("set the mode of", file, &e)),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(io_error("make", file, &e)),
    }
}

fn check(path: &Path, wanted: u32, directory: bool) -> Result<(), StoreError> {
    let found = fs::symlink_metadata(path).map_err(|e| io_error("look at", path, &e))?;
    if found.file_type().is_dir() != directory || found.file_type().is_file() == directory {
        return Err(StoreError::NotPlain(path.to_owned()));
    }
    let (mode, owner, euid) = (found.mode() & 0o7777, found.uid(), nix::unistd::geteuid().as_raw());
    if mode & !wanted != 0 || owner != euid {
        return Err(StoreError::Loose {
            path: path.to_owned(),
            mode,
            owner,
            wanted,
            euid,
        });
    }
    Ok(())
}

fn io_error(what: &str, path: &Path, error: &io::Error) -> StoreError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Full,
        ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied => {
            StoreError::ReadOnly(format!("{}: {error}", path.display()))
        }
        _ => StoreError::Io(format!("cannot {what} {}: {error}", path.display())),
    }
}
