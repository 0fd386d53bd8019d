//! What the daemon may do: before it starts anything, it keeps the capabilities that it needs, gives the others up for itself and for what it
//! starts (nft), and becomes another user if the configuration names one. It neither attaches nor opens anything.
//!
//! Capabilities belong to threads: all this happens while the process has one.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, IntoRawFd as _},
        unix::fs::{MetadataExt as _, lchown},
    },
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    sys::prctl,
    unistd::{Gid, Uid, User, geteuid, initgroups, setresgid, setresuid},
};

use crate::{config::Config, durable};

/// What the daemon does all its life. NET_ADMIN: attach programs, routes, nftables. SYS_ADMIN: the kernel gives programs, links and maps by
/// their ids to nobody else, and an answer is read back from the program that is attached now, whichever it is. BPF and PERFMON: load programs,
/// for interfaces that come and for `explain`; the kernel takes SYS_ADMIN for them as well, so that they give nothing beyond it.
pub const KEPT: [Capability; 4] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_ADMIN,
];

/// Deepest that the pins' directory is walked.
const DEPTH: u32 = 4;

/// What keeps it from becoming what it is to be.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Not on this host.
    #[error("[process] names the user {0:?}, which does not exist on this host")]
    UnknownUser(String),
    /// Only root becomes someone else.
    #[error("[process] names the user {0:?}, but the daemon was started as uid {1}; start it as root, or as that user")]
    NotRoot(String, u32),
    /// A file or directory cannot be given to the user.
    #[error("{path} cannot be given to the user of [process]: {error}")]
    Give {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The user cannot reach what it has been given.
    #[error("the user of [process] cannot reach {path}: {error}; the directories above it must let it through (chmod o+x)")]
    Unreachable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The kernel refused.
    #[error("privileges cannot be given up: {0}")]
    System(String),
}

/// Becomes the configured user, with all capabilities still; gives it the state's directory and the pins, and makes the pins reachable for it: [`Config::paths`] names them by an
/// open directory, since a BPF file system's root is often closed to others. Nothing if no user is configured.
///
/// # Errors
/// See [`PrivilegeError`].
pub fn prepare(config: &mut Config) -> Result<(), PrivilegeError> {
    let Some(name) = &config.user else { return Ok(()) };
    let found = User::from_name(name).ok().flatten();
    let user = found.ok_or_else(|| PrivilegeError::UnknownUser(name.clone()))?;
    let now = geteuid();
    if now == user.uid {
        return Ok(());
    }
    if !now.is_root() {
        return Err(PrivilegeError::NotRoot(name.clone(), now.as_raw()));
    }
    for (directory, depth) in [(&config.paths.state, 2), (&config.paths.pins, DEPTH)] {
        make(directory)
            .and_then(|()| give(directory, &user, depth))
            .map_err(|error| PrivilegeError::Give {
                path: directory.clone(),
                error,
            })?;
    }
    let pins = fs::File::open(&config.paths.pins).map_err(|error| PrivilegeError::Give {
        path: config.paths.pins.clone(),
        error,
    })?;
    // It stays open as long as the process lives.
    config.paths.pins = format!("/proc/self/fd/{}", pins.as_raw_fd()).into();
    let _ = pins.into_raw_fd();
    become_user(&user)
}

/// Gives up all that is not needed. What is held afterwards is [`KEPT`], as far as it was held before.
///
/// # Errors
/// See [`PrivilegeError`].
pub fn confine(config: &Config) -> Result<(), PrivilegeError> {
    let system = |e: &dyn std::fmt::Display| PrivilegeError::System(e.to_string());
    let held = caps::read(None, CapSet::Permitted).map_err(|e| system(&e))?;
    let kept: CapsHashSet = KEPT.into_iter().filter(|c| held.contains(c)).collect();
    // What is started cannot have more than this. It takes CAP_SETPCAP, which a unit may have taken away with the rest already.
    if held.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::read(None, CapSet::Bounding).map_err(|e| system(&e))?.difference(&kept) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(|e| system(&e))?;
        }
    }
    caps::set(None, CapSet::Effective, &kept).map_err(|e| system(&e))?;
    // nft is started by whoever the daemon is, and needs this one.
    let ambient: CapsHashSet = kept.iter().copied().filter(|c| *c == Capability::CAP_NET_ADMIN).collect();
    caps::set(None, CapSet::Inheritable, &ambient).map_err(|e| system(&e))?;
    caps::set(None, CapSet::Permitted, &kept).map_err(|e| system(&e))?;
    caps::set(None, CapSet::Ambient, &ambient).map_err(|e| system(&e))?;
    prctl::set_no_new_privs().map_err(|e| system(&e))?;
    if config.user.is_some() {
        for path in [&config.paths.state, &config.paths.pins] {
            fs::read_dir(path).map_err(|error| PrivilegeError::Unreachable {
                path: path.clone(),
                error,
            })?;
        }
    }
    let (name, held) = self::held();
    tracing::info!(
        user = name,
        capabilities = held.join(","),
        "privileges that are not needed are given up"
    );
    Ok(())
}

/// As which user this process runs, and which capabilities it may use, in the order of their numbers.
#[must_use]
pub fn held() -> (String, Vec<String>) {
    let uid = geteuid();
    let name = User::from_uid(uid)
        .ok()
        .flatten()
        .map_or_else(|| format!("uid:{uid}"), |u| u.name);
    let mut held: Vec<Capability> = caps::read(None, CapSet::Permitted).unwrap_or_default().into_iter().collect();
    held.sort_by_key(Capability::index);
    (name, held.iter().map(ToString::to_string).collect())
}

fn become_user(user: &User) -> Result<(), PrivilegeError> {
    let system = |e: &dyn std::fmt::Display| PrivilegeError::System(e.to_string());
    let name = CString::new(user.name.as_str()).map_err(|e| system(&e))?;
    caps::securebits::set_keepcaps(true).map_err(|e| system(&e))?;
    initgroups(&name, user.gid).map_err(|e| system(&e))?;
    let (uid, gid): (Uid, Gid) = (user.uid, user.gid);
    setresgid(gid, gid, gid).map_err(|e| system(&e))?;
    setresuid(uid, uid, uid).map_err(|e| system(&e))?;
    caps::securebits::set_keepcaps(false).map_err(|e| system(&e))?;
    // The change of the user has taken them out of effect.
    let held = caps::read(None, CapSet::Permitted).map_err(|e| system(&e))?;
    caps::set(None, CapSet::Effective, &held).map_err(|e| system(&e))
}

fn make(directory: &Path) -> io::Result<()> {
    durable::make_directory(directory, 0o700)
}

/// Links are given, not followed; another file system below is left alone.
fn give(path: &Path, user: &User, depth: u32) -> io::Result<()> {
    lchown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    let metadata = fs::symlink_metadata(path)?;
    if depth == 0 || !metadata.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        if fs::symlink_metadata(&entry)?.dev() == metadata.dev() {
            give(&entry, user, depth - 1)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_held_is_said_in_order() {
        let (user, held) = held();
        assert!(!user.is_empty());
        let all: HashSet<&String> = held.iter().collect();
        assert_eq!(all.len(), held.len());
        assert!(held.iter().all(|c| c.starts_with("CAP_")), "{held:?}");
    }
}
