//! The database's directory and files: made with tight modes, refused with loose ones. The registry names people and their devices.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::StoreError;
use crate::durable;

/// Makes directory and file if there are none, and checks both. Returns the file's path.
pub(super) fn prepare(directory: &Path, name: &str) -> Result<PathBuf, StoreError> {
    self::directory(directory)?;
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

/// Makes the directory if there is none, and checks it.
pub(super) fn directory(directory: &Path) -> Result<(), StoreError> {
    durable::make_directory(directory, 0o700).map_err(|e| io_error("make", directory, &e))?;
    check(directory, 0o700, true)
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
    match make_new(file) {
        Err(StoreError::Exists(_)) => Ok(()),
        done => done,
    }
}

/// Makes a file with a tight mode.
pub(super) fn make_new(file: &Path) -> Result<(), StoreError> {
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
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Err(StoreError::Exists(file.to_owned())),
        Err(e) => Err(io_error("make", file, &e)),
    }
}

/// Another file's name in the same directory: `NAME.what`.
pub(super) fn beside(file: &Path, what: &str) -> PathBuf {
    with_suffix(file, &format!(".{what}"))
}

/// The name with something after it.
pub(super) fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A draft that came to nothing, with the journals that SQLite may have left; what cannot be removed is overwritten or refused next time.
pub(super) fn discard(draft: &Path) {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        let _ = fs::remove_file(with_suffix(draft, suffix));
    }
}

/// Gives a draft a name that nothing has, for good.
pub(super) fn put_new(draft: &Path, file: &Path) -> Result<(), StoreError> {
    link(draft, file)?;
    remove(draft)?;
    sync_name(file)
}

/// Gives a draft its name, whatever had it, for good.
pub(super) fn replace(draft: &Path, file: &Path) -> Result<(), StoreError> {
    rename(draft, file)?;
    sync_name(file)
}

/// A second name, which nothing may have.
pub(super) fn link(file: &Path, name: &Path) -> Result<(), StoreError> {
    fs::hard_link(file, name).map_err(|e| match e.kind() {
        ErrorKind::AlreadyExists => StoreError::Exists(name.to_owned()),
        _ => io_error("make", name, &e),
    })
}

/// Another name.
pub(super) fn rename(file: &Path, name: &Path) -> Result<(), StoreError> {
    fs::rename(file, name).map_err(|e| io_error("rename", file, &e))
}

/// Takes it away, if it is there.
pub(super) fn remove(file: &Path) -> Result<(), StoreError> {
    match fs::remove_file(file) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(io_error("remove", file, &e)),
        _ => Ok(()),
    }
}

/// What it holds is on the disk.
pub(super) fn sync(file: &Path) -> Result<(), StoreError> {
    let synced = File::open(file).and_then(|f| f.sync_all());
    synced.map_err(|e| io_error("write", file, &e))
}

/// A file, whatever its name.
pub(super) type Which = (u64, u64);

/// The file that has this name now: its device and inode.
pub(super) fn which(path: &Path) -> Option<Which> {
    fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Where its name leads now is on the disk.
pub(super) fn sync_name(file: &Path) -> Result<(), StoreError> {
    durable::synchronise_name(file).map_err(|e| io_error("write", file, &e))
}

/// Whether directory and files, as far as they are there, are such as [`prepare`] takes; for a daemon of another user than us. What we may not
/// look at is left to it.
pub(super) fn fit(directory: &Path, name: &str, owners: &[u32]) -> Result<(), StoreError> {
    let there = |path: &Path| fs::symlink_metadata(path).is_ok();
    if let Err(e) = fs::symlink_metadata(directory)
        && ![ErrorKind::NotFound, ErrorKind::PermissionDenied].contains(&e.kind())
    {
        return Err(io_error("look at", directory, &e));
    }
    if there(directory) {
        check_for(directory, 0o700, true, owners)?;
    }
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let file = directory.join(format!("{name}{suffix}"));
        if there(&file) {
            check_for(&file, 0o600, false, owners)?;
        }
    }
    Ok(())
}

fn check(path: &Path, wanted: u32, directory: bool) -> Result<(), StoreError> {
    check_for(path, wanted, directory, &[nix::unistd::geteuid().as_raw()])
}

/// `owners`: who may own it; it ought to be the last.
fn check_for(path: &Path, wanted: u32, directory: bool, owners: &[u32]) -> Result<(), StoreError> {
    let found = fs::symlink_metadata(path).map_err(|e| io_error("look at", path, &e))?;
    if found.file_type().is_dir() != directory || found.file_type().is_file() == directory {
        return Err(StoreError::NotPlain(path.to_owned()));
    }
    let (mode, owner) = (found.mode() & 0o7777, found.uid());
    if mode & !wanted != 0 || !owners.contains(&owner) {
        return Err(StoreError::Loose {
            path: path.to_owned(),
            mode,
            owner,
            wanted,
            euid: owners.last().copied().unwrap_or(0),
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
