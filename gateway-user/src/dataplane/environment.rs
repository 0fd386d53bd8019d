//! What the machine must offer, asked before anything is touched, each with a sentence of its own; and the lock by which one process at a
//! time owns a pin directory.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};

use super::{
    bpf::{self, AttachType},
    policy::CompileError,
};
use crate::floor::FloorError;

/// Why the data plane cannot be opened or removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not fit the tables.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The pins would be lost.
    #[error("{0} is not on a BPF file system; mount one (`mount -t bpf bpf /sys/fs/bpf`) or set paths.pins")]
    NoBpffs(PathBuf),
    /// The process may not do it.
    #[error("{0} is missing; run as root, or grant it to the service")]
    Capability(&'static str),
    /// The kernel is too old.
    #[error("this kernel has no TCX (bpf links on TC hooks); Linux 6.6 or later is needed")]
    NoTcx,
    /// Two programs could share one CPU's memory.
    #[error(
        "this is a real-time kernel (PREEMPT_RT): there a program can be preempted by another on its CPU, and both would work in the same memory"
    )]
    RealTime,
    /// The kernel was built without.
    #[error(
        "this kernel has no type information (/sys/kernel/btf/vmlinux; CONFIG_DEBUG_INFO_BTF), without which the BPF object does not load: {0}"
    )]
    NoBtf(String),
    /// Another process owns the pins.
    #[error("another lazaret owns {pins}{}; stop it first", holder(*.pid))]
    Locked {
        /// Which directory.
        pins: PathBuf,
        /// Who; `None`: the kernel does not show it to us.
        pid: Option<u32>,
    },
    /// The verifier or the kernel refused the object.
    #[error("loading the BPF object: {0}")]
    Load(String),
    /// The floor could not be set.
    #[error("the floor: {0}")]
    Floor(#[from] FloorError),
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// Which.
        what: String,
        /// How.
        #[source]
        error: io::Error,
    },
}

impl Error {
    pub(super) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::System { what, error }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(": process {pid}"))
}

/// Refuses, by name, what would fail later in a way that is harder to read.
pub(super) fn require(pins: &Path) -> Result<(), Error> {
    // CAP_SYS_ADMIN, which implies CAP_BPF: the kernel opens programs and maps by id for nothing less (bpf_prog_get_fd_by_id).
    for (bit, name) in [
        (12, "CAP_NET_ADMIN"),
        (
            21,
            "CAP_SYS_ADMIN (CAP_BPF does not suffice to read back from the programs attached)",
        ),
    ] {
        if !capability(bit).map_err(Error::system("reading /proc/thread-self/status"))? {
            return Err(Error::Capability(name));
        }
    }
    // Elsewhere whoever runs our programs has bottom halves off, so that nobody else runs them on that CPU meanwhile.
    if fs::read_to_string("/sys/kernel/realtime").is_ok_and(|on| on.trim() == "1") {
        return Err(Error::RealTime);
    }
    let existing = pins.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let system =
        nix::sys::statfs::statfs(existing).map_err(|e| Error::system(format!("statfs {}", existing.display()))(e.into()))?;
    if system.filesystem_type() != nix::sys::statfs::BPF_FS_MAGIC {
        return Err(Error::NoBpffs(pins.to_owned()));
    }
    // Interface 1 is the loopback of every network namespace.
    match bpf::query(1, AttachType::TcxIngress) {
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(Error::NoTcx),
        Err(e) => Err(Error::system("asking for TCX programs")(e)),
        Ok(_) => Ok(()),
    }
}

/// What a failure to load comes from.
pub(super) fn load_error(e: impl std::error::Error) -> Error {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        let more = s.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        source = s.source();
    }
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Error::Load(text)
    } else {
        Error::NoBtf(text)
    }
}

fn capability(bit: u32) -> io::Result<bool> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:")).map(str::trim);
    let effective = effective.and_then(|s| u64::from_str_radix(s, 16).ok()).unwrap_or(0);
    Ok(effective >> bit & 1 == 1)
}

/// Sole ownership of a pin directory, until dropped or the process ends.
pub(super) struct Lock {
    _held: Flock<fs::File>,
}

/// Makes the directory if it is missing, readable by its owner only, and takes its lock.
pub(super) fn lock(pins: &Path) -> Result<Lock, Error> {
    let what = || Error::system(format!("opening {}", pins.display()));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(pins)
        .map_err(what())?;
    let directory = fs::File::open(pins).map_err(what())?;
    let meta = directory.metadata().map_err(what())?;
    match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
        Ok(held) => Ok(Lock { _held: held }),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Err(Error::Locked {
            pins: pins.to_owned(),
            pid: owner(&meta),
        }),
        Err((_, e)) => Err(Error::system(format!("locking {}", pins.display()))(e.into())),
    }
}

/// Who holds the lock of a file: proc_locks(5), `1: FLOCK  ADVISORY  WRITE 4711 00:2f:12 0 EOF`.
fn owner(meta: &fs::Metadata) -> Option<u32> {
    let (major, minor) = (libc::major(meta.dev()), libc::minor(meta.dev()));
    let id = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let fields = locks.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    fields
        .into_iter()
        .find(|f| f.get(1) == Some(&"FLOCK") && f.get(5) == Some(&id.as_str()))?
        .get(4)?
        .parse()
        .ok()
}
