//! Names that a loss of power does not take back. A file is on the disk once it is synchronised; the name that leads to it, once its directory
//! is. It writes no file.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
};

/// Makes a directory with this mode, and those above it, unless they are there; their names are on the disk. One that is there may have been
/// made by a process that died before its name was: it is synchronised as far as that is allowed.
///
/// # Errors
/// As the system says.
pub(crate) fn make_directory(directory: &Path, mode: u32) -> io::Result<()> {
    let made = || DirBuilder::new().mode(mode).create(directory);
    let done = match made() {
        Err(e) if e.kind() == ErrorKind::NotFound && directory.parent().is_some_and(|p| !p.as_os_str().is_empty()) => {
            make_directory(directory.parent().unwrap_or(directory), mode)?;
            made()
        }
        done => done,
    };
    match done {
        Ok(()) => synchronise_name(directory),
        Err(e) if e.kind() == ErrorKind::AlreadyExists && fs::metadata(directory).is_ok_and(|m| m.is_dir()) => {
            let _best_effort = synchronise_name(directory);
            Ok(())
        }
        Err(e) => Err(e),
    }
}

/// What this name leads to now, or that it leads nowhere, is on the disk; not what the file holds.
///
/// # Errors
/// As the system says.
pub(crate) fn synchronise_name(path: &Path) -> io::Result<()> {
    // A bare name's parent is empty: the directory that we are in. The root has none, and needs none.
    match path.parent() {
        None => Ok(()),
        Some(directory) if directory.as_os_str().is_empty() => synchronise_directory(Path::new(".")),
        Some(directory) => synchronise_directory(directory),
    }
}

/// The names in a directory are on the disk.
///
/// # Errors
/// As the system says.
pub(crate) fn synchronise_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn directories_are_made_as_deep_as_needed() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("a/b/c");
        make_directory(&deep, 0o700).unwrap();
        make_directory(&deep, 0o755).unwrap();
        for directory in [&deep, deep.parent().unwrap()] {
            assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700);
        }
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(make_directory(&temp.path().join("file"), 0o700).is_err());
        assert!(make_directory(&temp.path().join("file/below"), 0o700).is_err());
        synchronise_name(Path::new("/")).unwrap();
        synchronise_name(Path::new("bare")).unwrap();
    }
}
