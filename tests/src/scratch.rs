//! Directories that vanish with their owner, and a bpffs of one's own in them; and the sweeping-up after processes that could not.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::process;

/// What names of namespaces and directories start with; the process id follows.
pub const PREFIX: &str = "lazaret-test-";

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other process and no other call has: the process that made it can be told from it.
#[must_use]
pub fn unique(label: &str) -> String {
    format!(
        "{PREFIX}{}-{}-{label}",
        std::process::id(),
        NUMBER.fetch_add(1, Ordering::Relaxed)
    )
}

/// Whether this is a name from [`unique`] of a process that is gone.
#[must_use]
pub fn orphaned(name: &str) -> bool {
    let id = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    id.is_some_and(|id| !Path::new(&format!("/proc/{id}")).exists())
}

/// A directory under the temporary one, mode 0700.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    mounts: Vec<PathBuf>,
}

impl Scratch {
    /// Makes it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        sweep();
        let path = std::env::temp_dir().join(unique(label));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self {
            path,
            mounts: Vec::new(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A bpffs of its own at `name` below it.
    ///
    /// # Errors
    /// No privilege, or no bpffs in this kernel.
    pub fn bpffs(&mut self, name: &str) -> Result<PathBuf> {
        self.mount(name, "bpf", "mode=0700")
    }

    /// A tmpfs of `kib` KiB at `name` below it.
    ///
    /// # Errors
    /// No privilege.
    pub fn tmpfs(&mut self, name: &str, kib: u32) -> Result<PathBuf> {
        self.mount(name, "tmpfs", &format!("mode=0700,size={kib}k"))
    }

    /// An ext4 of `kib` KiB in a file, at `name` below it.
    ///
    /// # Errors
    /// No privilege, no loop device, or no `mkfs.ext4`.
    pub fn ext4(&mut self, name: &str, kib: u32) -> Result<PathBuf> {
        let (image, at) = (self.path.join(format!("{name}.img")), self.path.join(name));
        fs::create_dir_all(&at)?;
        fs::File::create(&image)?.set_len(u64::from(kib) * 1024)?;
        process::output(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))?;
        process::output(
            Command::new("mount")
                .args(["-o", "loop,errors=remount-ro"])
                .args([&image, &at]),
        )?;
        self.mounts.push(at.clone());
        fs::set_permissions(&at, fs::Permissions::from_mode(0o700))?;
        Ok(at)
    }

    fn mount(&mut self, name: &str, kind: &str, options: &str) -> Result<PathBuf> {
        let at = self.path.join(name);
        fs::create_dir_all(&at)?;
        mount(Some(kind), &at, Some(kind), MsFlags::empty(), Some(options))
            .with_context(|| format!("cannot mount a {kind} at {}", at.display()))?;
        self.mounts.push(at.clone());
        Ok(at)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        for at in self.mounts.drain(..).rev() {
            let _gone = umount2(&at, MntFlags::MNT_DETACH);
        }
        let _gone = fs::remove_dir_all(&self.path);
    }
}

/// Removes what processes that were killed have left: their mounts and directories.
pub fn sweep() {
    let temporary = std::env::temp_dir();
    let ours = |path: &Path| -> Option<PathBuf> {
        let name = path
            .strip_prefix(&temporary)
            .ok()?
            .components()
            .next()?
            .as_os_str()
            .to_str()?
            .to_owned();
        orphaned(&name).then(|| temporary.join(name))
    };
    for line in fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines() {
        if let Some(at) = line.split(' ').nth(1).map(Path::new).filter(|at| ours(at).is_some()) {
            let _gone = umount2(at, MntFlags::MNT_DETACH);
        }
    }
    let entries: io::Result<Vec<_>> = fs::read_dir(&temporary).and_then(Iterator::collect);
    for dir in entries.unwrap_or_default().iter().filter_map(|e| ours(&e.path())) {
        let _gone = fs::remove_dir_all(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_process_is_no_orphan() {
        assert!(!orphaned(&unique("x")));
        assert!(
            orphaned(&format!("{PREFIX}4194305-0-x")),
            "above the largest possible process id"
        );
        for other in ["lazaret-test-", "lazaret-test-x-1", "eth0", ""] {
            assert!(!orphaned(other), "{other}");
        }
    }

    #[test]
    fn a_directory_goes_with_its_owner() {
        let scratch = Scratch::new("gone").unwrap();
        let path = scratch.path().to_owned();
        fs::write(path.join("file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
