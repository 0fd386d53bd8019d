//! A file system that forgets, at a loss of power, what was not synchronised: mounted by FUSE, so that the real daemon, the real commands and
//! the real SQLite run on it. What it does not do: it tears no sector, and what was synchronised it neither loses nor alters.

mod disk;
mod fuse;
mod loss;

use std::{
    fmt, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow};
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
use crate::differential::random::Random;

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
        let mut this = Self {
            at: at.to_owned(),
            server: Server::default(),
            session: None,
        };
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

    /// All that was done is on the disk.
    pub fn synchronise_all(&self) {
        self.server.lock().disk.synchronise_all();
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

    /// How many moments were recorded: the number of the next.
    #[must_use]
    pub fn moment(&self) -> usize {
        self.server.lock().moments.as_ref().map_or(0, Vec::len)
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

/// A directory of its own in memory, mode 0700, for what a loss has left: to synchronise costs nothing there.
///
/// # Errors
/// As the system says.
pub fn copies() -> Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    Ok(if memory.is_dir() {
        tempfile::tempdir_in(memory)?
    } else {
        tempfile::tempdir()?
    })
}

impl Disk {
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
