//! A file for each connected client: which session was opened for it. A later call for the same client is another process, and OpenVPN
//! hands nothing on from one to the next.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Why a state cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("the directory {0} cannot be used: {1}; name one with --state that the user of OpenVPN's scripts may write to")]
    Directory(String, io::Error),
    #[error(
        "the directory {0} is another user's, or others may write to it; make it mode 0700, owned by the user of OpenVPN's scripts"
    )]
    Loose(String),
    #[error("another client of the same name connected in the same second; try again")]
    Taken,
    #[error("the client's state cannot be kept: {0}")]
    File(io::Error),
    #[error("the client's state is not readable as one: take the file away and have the client connect again")]
    Garbled,
}

/// The directory.
pub(super) struct States {
    directory: PathBuf,
}

/// A client's file.
pub(super) struct Entry {
    path: PathBuf,
}

/// A client's file that goes unless it is kept, also when the time is up and the future that holds it is dropped.
pub(super) struct Tentative {
    entry: Entry,
    kept: bool,
}

/// The file of a client that left while the gateway could not be told.
pub(super) struct Late {
    /// `None`: not readable.
    pub(super) session: Option<u64>,
    pub(super) entry: Entry,
}

/// Ends the names of files of clients that left.
const LEFT: &str = ",left";
/// Files of clients that left that one call takes on.
const AT_ONCE: usize = 16;

impl States {
    /// Opens the directory, made if missing. It must be the caller's own, and nobody else may write to it.
    pub(super) fn open(directory: &Path) -> Result<Self, StateError> {
        let name = || directory.display().to_string();
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(StateError::Directory(name(), e)),
            _ => {}
        }
        let found = fs::symlink_metadata(directory).map_err(|e| StateError::Directory(name(), e))?;
        if !found.is_dir() || found.uid() != nix::unistd::geteuid().as_raw() || found.mode() & 0o022 != 0 {
            return Err(StateError::Loose(name()));
        }
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// A new, empty file for a client.
    pub(super) fn create(&self, key: &str) -> Result<Entry, StateError> {
        let path = self.directory.join(key);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(_) => Ok(Entry { path }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(StateError::Taken),
            Err(e) => Err(StateError::File(e)),
        }
    }

    /// The session of a client; `None`: none was opened for it.
    pub(super) fn read(&self, key: &str) -> Result<Option<u64>, StateError> {
        match session_in(&self.directory.join(key)) {
            Ok(session) => session.map(Some).ok_or(StateError::Garbled),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StateError::File(e)),
        }
    }

    /// Marks a client as gone.
    pub(super) fn set_aside(&self, key: &str) -> Result<Entry, StateError> {
        let path = self.directory.join(format!("{key}{LEFT}"));
        fs::rename(self.directory.join(key), &path).map_err(StateError::File)?;
        Ok(Entry { path })
    }

    /// Clients of an interface that left while the gateway could not be told, a few of them.
    pub(super) fn to_be_closed(&self, device: &str) -> Vec<Late> {
        let left = self.of(device).filter(|p| p.to_string_lossy().ends_with(LEFT));
        left.take(AT_ONCE)
            .map(|path| Late {
                session: session_in(&path).ok().flatten(),
                entry: Entry { path },
            })
            .collect()
    }

    /// Takes every client's file of an interface away.
    pub(super) fn forget_all(&self, device: &str) {
        self.of(device).for_each(|path| Entry { path }.remove());
    }

    fn of(&self, device: &str) -> impl Iterator<Item = PathBuf> {
        let start = format!("{device},");
        let names = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        names
            .filter(move |e| e.file_name().to_string_lossy().starts_with(&start))
            .map(|e| e.path())
    }
}

impl Entry {
    /// Notes the session.
    pub(super) fn write(&self, session: u64) -> Result<(), StateError> {
        let file = OpenOptions::new()
            .write(true)
            .truncate(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path);
        let mut file: File = file.map_err(StateError::File)?;
        file.write_all(format!("{session}\n").as_bytes()).map_err(StateError::File)
    }

    /// Removed when dropped, unless [`Tentative::keep`] comes first.
    pub(super) fn unless_kept(self) -> Tentative {
        Tentative {
            entry: self,
            kept: false,
        }
    }

    /// Takes the file away; one that cannot be is found again by its name, and does no harm.
    pub(super) fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Tentative {
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl std::ops::Deref for Tentative {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Tentative {
    fn drop(&mut self) {
        if !self.kept {
            self.entry.remove();
        }
    }
}

fn session_in(path: &Path) -> io::Result<Option<u64>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let mut text = String::new();
    file.take(32).read_to_string(&mut text)?;
    Ok(text.trim_end().parse().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_session_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::open(&dir.path().join("new")).unwrap();
        assert_eq!(states.read("tun0,1,a").unwrap(), None);
        let entry = states.create("tun0,1,a").unwrap();
        assert!(matches!(states.read("tun0,1,a"), Err(StateError::Garbled)), "no session yet");
        assert!(matches!(states.create("tun0,1,a"), Err(StateError::Taken)));
        entry.write(42).unwrap();
        assert_eq!(states.read("tun0,1,a").unwrap(), Some(42));
        let mode = fs::metadata(dir.path().join("new/tun0,1,a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_refused_clients_file_goes_however_the_call_ends() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::open(&dir.path().join("s")).unwrap();
        states.create("tun0,1,a").unwrap().unless_kept().keep();
        assert!(matches!(states.create("tun0,1,a"), Err(StateError::Taken)));
        drop(states.create("tun0,2,b").unwrap().unless_kept());
        assert_eq!(states.read("tun0,2,b").unwrap(), None);
    }

    #[test]
    fn clients_that_left_are_kept_until_the_gateway_knows() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::open(&dir.path().join("s")).unwrap();
        states.create("tun0,1,a").unwrap().write(7).unwrap();
        states.create("tun0,2,b").unwrap().write(8).unwrap();
        states.create("tun01,1,a").unwrap().write(9).unwrap();
        states.set_aside("tun0,1,a").unwrap();
        states.set_aside("tun01,1,a").unwrap();
        assert_eq!(states.read("tun0,1,a").unwrap(), None);
        let late = states.to_be_closed("tun0");
        assert_eq!(late.iter().map(|l| l.session).collect::<Vec<_>>(), [Some(7)]);
        late.iter().for_each(|l| l.entry.remove());
        assert!(states.to_be_closed("tun0").is_empty());
        states.forget_all("tun0");
        assert_eq!(states.read("tun0,2,b").unwrap(), None);
        assert_eq!(states.to_be_closed("tun01").len(), 1);
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(States::open(&open), Err(StateError::Loose(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(matches!(States::open(&link), Err(StateError::Loose(_))));
        assert!(matches!(
            States::open(Path::new("/nonexistent/x")),
            Err(StateError::Directory(..))
        ));
    }

    #[test]
    fn links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let states = States::open(&dir.path().join("s")).unwrap();
        let target = dir.path().join("target");
        fs::write(&target, "5\n").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("s/tun0,1,a")).unwrap();
        assert!(matches!(states.read("tun0,1,a"), Err(StateError::File(_))));
        assert!(matches!(states.create("tun0,1,a"), Err(StateError::Taken)));
        assert_eq!(fs::read_to_string(&target).unwrap(), "5\n");
    }
}
