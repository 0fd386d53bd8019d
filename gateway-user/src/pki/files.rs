//! What `lazaret pki` writes: a directory and keys that are nobody else's, and nothing over what is there.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::PkiError;
use crate::durable;

/// Makes the directory with mode 0700; one that exists must be as tight.
pub(super) fn private_directory(dir: &Path) -> Result<(), PkiError> {
    let failed = |error| PkiError::Write { path: dir.into(), error };
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => durable::synchronise_name(dir).map_err(failed),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let found = fs::metadata(dir).map_err(failed)?;
            if !found.is_dir() {
                return Err(failed(io::ErrorKind::NotADirectory.into()));
            }
            let mode = found.mode() & 0o7777;
            if mode & 0o077 == 0 {
                Ok(())
            } else {
                Err(PkiError::LooseDirectory { path: dir.into(), mode })
            }
        }
        Err(e) => Err(failed(e)),
    }
}

/// Keeps others from writing to the directory for as long as the result lives, and waits for one who does.
pub(super) fn lock(dir: &Path) -> Result<Flock<File>, PkiError> {
    let failed = |error| PkiError::Write { path: dir.into(), error };
    let directory = File::open(dir).map_err(failed)?;
    Flock::lock(directory, FlockArg::LockExclusive).map_err(|(_, e)| failed(e.into()))
}

/// Writes NAME.pem and NAME.key: both or neither, each whole, and on the disk.
pub(super) fn write_pair(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<(PathBuf, PathBuf), PkiError> {
    let _lock = lock(dir)?;
    let (pem, secret) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    write_new(&secret, 0o600, key)?;
    if let Err(e) = write_new(&pem, 0o644, certificate) {
        // The key is ours and belongs to no certificate.
        let _ = fs::remove_file(&secret);
        return Err(e);
    }
    synchronise(dir)?;
    Ok((pem, secret))
}

/// The names in the directory are on the disk.
pub(super) fn synchronise(dir: &Path) -> Result<(), PkiError> {
    durable::synchronise_directory(dir).map_err(|error| PkiError::Write { path: dir.into(), error })
}

/// A file that did not exist, with this mode from its first moment on; it has its name once it is whole and on the disk. The directory must be
/// locked.
pub(super) fn write_new(path: &Path, mode: u32, content: &str) -> Result<(), PkiError> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(".part");
    let draft = PathBuf::from(draft);
    // What a loss of power has left of an earlier one.
    let _ = fs::remove_file(&draft);
    write(&draft, mode, content)?;
    let linked = fs::hard_link(&draft, path);
    let _ = fs::remove_file(&draft);
    linked.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists(path.into()),
        _ => PkiError::Write {
            path: path.into(),
            error,
        },
    })
}

/// O_EXCL: no link is followed.
fn write(path: &Path, mode: u32, content: &str) -> Result<(), PkiError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists(path.into()),
        _ => PkiError::Write {
            path: path.into(),
            error,
        },
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    let written = file
        .write_all(content.as_bytes())
        // The umask may have taken bits away that a certificate should have.
        .and_then(|()| file.set_permissions(fs::Permissions::from_mode(mode)))
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written.map_err(failed)
}
