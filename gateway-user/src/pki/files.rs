//! What `lazaret pki` writes: a directory and keys that are nobody else's, and nothing over what is there.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::PkiError;

/// Makes the directory with mode 0700; one that exists must be as tight.
pub(super) fn private_directory(dir: &Path) -> Result<(), PkiError> {
    let failed = |error| PkiError::Write { path: dir.into(), error };
    match DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let mode = fs::metadata(dir).map_err(failed)?.mode() & 0o7777;
            if mode & 0o077 == 0 {
                Ok(())
            } else {
                Err(PkiError::LooseDirectory { path: dir.into(), mode })
            }
        }
        Err(e) => Err(failed(e)),
    }
}

/// Writes NAME.pem and NAME.key: both or neither.
pub(super) fn write_pair(dir: &Path, name: &str, certificate: &str, key: &str) -> Result<(PathBuf, PathBuf), PkiError> {
    let (pem, secret) = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    write_new(&secret, 0o600, key)?;
    if let Err(e) = write_new(&pem, 0o644, certificate) {
        // The key is ours and belongs to no certificate.
        let _ = fs::remove_file(&secret);
        return Err(e);
    }
    Ok((pem, secret))
}

/// A file that did not exist (O_EXCL: no link is followed), with this mode from its first moment on.
pub(super) fn write_new(path: &Path, mode: u32, content: &str) -> Result<(), PkiError> {
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
