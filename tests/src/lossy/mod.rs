//! A file system that forgets, at a loss of power, what was not synchronised: mounted by FUSE, so that the real daemon, the real commands and
//! the real SQLite run on it; in another process than the test's, which is itself the file system ([`Lossy::played`]). What it does not do: it tears no sector, and what was synchronised it neither loses nor alters.

mod disk;
mod fuse;
mod loss;

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use fuser::{BackgroundSession, Config, MountOption, SessionACL};
use nix::mount::{MntFlags, umount2};

pub use self::{
    disk::Disk,
    loss::{Loss, Lost},
};
use self::{
    disk::{ROOT, Seen},
    fuse::Server,
};
use crate::{differential::random::Random, process};

/// Whether one can be mounted here: the device can be opened.
#[must_use]
pub fn possible() -> bool {
    fs::File::options().read(true).write(true).open("/dev/fuse").is_ok()
}

/// One that is mounted; it goes when this goes, with all that is on it.
pub struct Lossy {
    at: PathBuf,
    server: Server,
    session: Option<BackgroundSession>,
}

impl Lossy {
    /// Mounts an empty one at a directory, which must be there. Its root has mode 0700.
    ///
    /// # Errors
    /// No privilege, or no FUSE.
    pub fn mount(at: &Path) -> Result<Self> {
        Self::with(at, Disk::new())
    }

    /// The same with something on it.
    ///
    /// # Errors
    /// As [`Lossy::mount`].
    pub fn with(at: &Path, disk: Disk) -> Result<Self> {
        let mut this = Self {
            at: at.to_owned(),
            server: Server::default(),
            session: None,
        };
        this.server.lock().disk = disk;
        this.on()?;
        Ok(this)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// How often something was synchronised since the power is on.
    #[must_use]
    pub fn synchronised(&self) -> u64 {
        self.server.lock().disk.synchronised
    }

    /// The power goes, and comes back. Files that are still open give an error from then on.
    ///
    /// # Errors
    /// It cannot be mounted again.
    pub fn lose_power(&mut self, loss: Loss, random: &mut Random) -> Result<Lost> {
        // Before it is unmounted: that has the kernel write what it still holds.
        let (left, lost) = loss.of(&self.server.lock().disk, random);
        self.off()?;
        self.server = Server::default();
        self.server.lock().disk = left;
        self.on()?;
        Ok(lost)
    }

    /// From now on, the disk after each change is kept.
    pub fn record(&self) {
        let mut mounted = self.server.lock();
        mounted.moments = Some(vec![mounted.disk.clone()]);
    }

    /// Has a test of this binary play a part, which it gets by [`part`], in a child process. Whoever maps a file must not be the file
    /// system: a page fault holds the lock of the process's memory, which the file system needs to answer it.
    ///
    /// # Errors
    /// It fails; the error holds its output.
    pub fn played(&self, test: &str, part: &str) -> Result<()> {
        let mut child = process::command(None, std::env::current_exe()?);
        child.args(["--exact", test, "--nocapture"]).env(PART, part).env(AT, &self.at);
        let out = process::output(&mut child)?;
        ensure!(out.contains("1 passed"), "there is no test {test}: {out}");
        Ok(())
    }

    /// What was recorded: the disk as it was at first, and after each change.
    #[must_use]
    pub fn recorded(&self) -> Vec<Disk> {
        self.server.lock().moments.take().unwrap_or_default()
    }

    fn on(&mut self) -> Result<()> {
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("lossy".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(self.server.clone(), &self.at, &config);
        self.session = Some(session.with_context(|| format!("cannot mount at {}", self.at.display()))?);
        Ok(())
    }

    fn off(&mut self) -> Result<()> {
        let Some(session) = self.session.take() else { return Ok(()) };
        // By force: whoever still asks gets an error, and nothing waits for us.
        umount2(&self.at, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).context("cannot unmount")?;
        session.join().map_err(|e| anyhow!("the file system: {e}"))
    }
}

impl fmt::Debug for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lossy").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        if let Err(e) = self.off() {
            eprintln!("{}: {e:#}", self.at.display());
        }
    }
}

const PART: &str = "LAZARET_LOSSY_PART";
const AT: &str = "LAZARET_LOSSY_AT";

/// In a child process ([`Lossy::played`]): the part to play, and where the file system is.
#[must_use]
pub fn part() -> Option<(String, PathBuf)> {
    Some((std::env::var(PART).ok()?, std::env::var_os(AT)?.into()))
}

/// Notes, in the child process, that the `n`th thing was reported as done; [`Disk::marks`] tells.
///
/// # Panics
/// The file system is gone.
pub fn mark(at: &Path, n: usize) {
    fs::create_dir(at.join(format!("mark-{n}"))).expect("the file system is there");
}

/// A directory of its own in memory, mode 0700, for what a loss has left: to synchronise costs nothing there.
///
/// # Errors
/// As the system says.
pub fn copies() -> Result<tempfile::TempDir> {
    let mut builder = tempfile::Builder::new();
    builder.permissions(fs::Permissions::from_mode(0o700));
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() {
        builder.tempdir_in(memory)?
    } else {
        builder.tempdir()?
    })
}

impl Disk {
    /// How many things were reported as done, by [`mark`].
    #[must_use]
    pub fn marks(&self) -> usize {
        let marked = |n: &usize| self.find(ROOT, format!("mark-{n}").as_ref()).is_ok();
        (1..).take_while(marked).count()
    }

    /// Forgets what [`mark`] noted.
    pub fn unmark(&mut self) {
        for n in 1..=self.marks() {
            let _there = self.remove(ROOT, format!("mark-{n}").as_ref(), true);
        }
    }

    /// Writes over the beginning of a file.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EISDIR.
    pub fn damage(&mut self, path: &Path, bytes: &[u8]) -> Result<()> {
        Ok(self.write(self.number(path)?, 0, bytes)?)
    }

    /// What is in a file now, by its path.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, EISDIR.
    pub fn file(&self, path: &Path) -> Result<Vec<u8>> {
        Ok(self.read(self.number(path)?, 0, usize::MAX)?.to_vec())
    }

    fn number(&self, path: &Path) -> Result<u64> {
        Ok(path.iter().try_fold(ROOT, |number, name| self.find(number, name))?)
    }

    /// Copies what is on it now to a directory, with modes.
    ///
    /// # Errors
    /// As the system says.
    pub fn copy_to(&self, directory: &Path) -> Result<()> {
        self.copy(ROOT, directory)
    }

    fn copy(&self, number: u64, to: &Path) -> Result<()> {
        for (name, number) in self.entries(number)? {
            let Seen { attributes, length, .. } = self.see(*number)?;
            let to = to.join(name);
            match length {
                Some(length) => fs::write(&to, self.read(*number, 0, usize::try_from(length)?)?)?,
                None => fs::create_dir(&to)?,
            }
            fs::set_permissions(&to, fs::Permissions::from_mode(attributes.mode.into()))?;
            if length.is_none() {
                self.copy(*number, &to)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
