//! The Unix socket: its file, and who is at the other end of a connection to it. The file's mode is set before anyone can connect, and the
//! file goes when the daemon does; a file that a dead daemon left is removed, one that a live daemon answers on is not.

use std::{
    fs,
    io::{self, ErrorKind},
    mem::size_of,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{
            fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket, sockopt::PeerCredentials,
    },
    unistd::{Gid, Group, geteuid},
};

use super::peer::Peer;
use crate::config::Socket;

/// The listening socket, its file, and the groups whose members have a role.
#[derive(Debug)]
pub struct Bound {
    /// Listening, blocking.
    pub listener: UnixListener,
    /// Removes the file when it is dropped.
    pub file: SocketFile,
    /// The groups.
    pub groups: Groups,
}

/// The groups of `[socket]`, as numbers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Groups {
    vpn: Option<u32>,
    viewer: Option<u32>,
}

/// The socket's file; removed when dropped, if it is still the one that was made.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// There is no such group.
    #[error("the configuration names the group {0:?}, which does not exist on this host")]
    UnknownGroup(String),
    /// Another daemon.
    #[error("a daemon already listens on {0}")]
    InUse(PathBuf),
    /// Not ours to remove.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// Others could put a socket of theirs in its place.
    #[error(
        "the directory {path} (uid {uid}, mode {mode:04o}) must belong to root or to the daemon's user and be writable by nobody else"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Whose.
        uid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A system call failed.
    #[error("cannot {what} {path}: {error}")]
    System {
        /// What was done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// How it failed.
        #[source]
        error: io::Error,
    },
}

/// Makes the directory (0755) if it is missing, and the socket: 0660 and of the configured group; 0666 if two groups are configured, since
/// a file has only one. Who may call what is decided by the peer's credentials in any case.
///
/// # Errors
/// See [`SocketError`].
pub fn open(config: &Socket) -> Result<Bound, SocketError> {
    let groups = Groups {
        vpn: group(config.vpn_group.as_deref())?,
        viewer: group(config.viewer_group.as_deref())?,
    };
    let (gid, mode) = match (groups.vpn, groups.viewer) {
        (Some(a), Some(b)) if a != b => (None, 0o666),
        (a, b) => (a.or(b), 0o660),
    };
    let (listener, file) = listening(&config.path, gid, mode)?;
    Ok(Bound { listener, file, groups })
}

/// Makes the directory (0755) if it is missing, and a socket of this group and mode in it.
///
/// # Errors
/// See [`SocketError`].
pub fn listening(path: &Path, gid: Option<u32>, mode: u32) -> Result<(UnixListener, SocketFile), SocketError> {
    let failed = |what: &'static str| {
        move |error: io::Error| SocketError::System {
            what,
            path: path.into(),
            error,
        }
    };
    directory(path)?;
    remove_stale(path)?;

    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map_err(io::Error::from);
    let fd: OwnedFd = fd.map_err(failed("make a socket for"))?;
    let address = UnixAddr::new(path).map_err(io::Error::from).map_err(failed("use the path"))?;
    bind(fd.as_raw_fd(), &address)
        .map_err(io::Error::from)
        .map_err(failed("bind"))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at"))?;
    let file = SocketFile {
        path: path.into(),
        inode: (metadata.dev(), metadata.ino()),
    };
    // Nobody can connect before `listen`.
    if gid.is_some() {
        chown(path, None, gid).map_err(failed("set the group of"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("set the mode of"))?;
    listen(&fd, Backlog::MAXCONN)
        .map_err(io::Error::from)
        .map_err(failed("listen on"))?;
    Ok((UnixListener::from(fd), file))
}

impl Groups {
    /// Who is at the other end, from the kernel: user and groups of the process at the time it connected.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn peer(self, stream: &tokio::net::UnixStream) -> io::Result<Peer> {
        let credentials = getsockopt(stream, PeerCredentials)?;
        let mut groups = peer_groups(stream)?;
        groups.push(credentials.gid());
        Ok(Peer::from_credentials(credentials.uid(), &groups, self.vpn, self.viewer))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket's file could not be removed");
        }
    }
}

/// A group's number.
///
/// # Errors
/// [`SocketError::UnknownGroup`].
pub fn group(name: Option<&str>) -> Result<Option<u32>, SocketError> {
    let Some(name) = name else { return Ok(None) };
    let found = Group::from_name(name).ok().flatten().map(|g| Gid::as_raw(g.gid));
    found.map(Some).ok_or_else(|| SocketError::UnknownGroup(name.into()))
}

fn directory(path: &Path) -> Result<(), SocketError> {
    let directory = match path.parent() {
        Some(p) if p.as_os_str().is_empty() => Path::new("."),
        Some(p) => p,
        None => Path::new("/"),
    };
    let failed = |error| SocketError::System {
        what: "make or look at the directory",
        path: directory.into(),
        error,
    };
    if !directory.exists() {
        fs::create_dir_all(directory).map_err(failed)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    let metadata = fs::metadata(directory).map_err(failed)?;
    let (uid, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    let sticky = mode & 0o1000 != 0;
    if (uid != 0 && uid != geteuid().as_raw()) || (mode & 0o022 != 0 && !sticky) {
        return Err(SocketError::Directory {
            path: directory.into(),
            uid,
            mode,
        });
    }
    Ok(())
}

/// Removes the socket of a dead daemon.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |what: &'static str| {
        move |error: io::Error| SocketError::System {
            what,
            path: path.into(),
            error,
        }
    };
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed("look at")(e)),
        Ok(m) if !m.file_type().is_socket() => return Err(SocketError::NotASocket(path.into())),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.into())),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed("remove")),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("try")(e)),
    }
}

/// Supplementary groups of the peer (SO_PEERGROUPS, Linux 4.13): those of the process, not those that /etc/group gives its user.
fn peer_groups(stream: &tokio::net::UnixStream) -> io::Result<Vec<u32>> {
    let mut groups: Vec<libc::gid_t> = vec![0; 64];
    loop {
        let mut length = libc::socklen_t::try_from(groups.len() * size_of::<libc::gid_t>()).map_err(io::Error::other)?;
        // SAFETY: the descriptor is open as long as `stream` lives; the kernel writes at most `length` bytes to `groups`, which has as many,
        // and any bytes are valid numbers. `length` is a local.
        let rc = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let count = length as usize / size_of::<libc::gid_t>();
        if rc == 0 {
            groups.truncate(count);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // ERANGE: `length` now says how much is needed; a process has at most 65,536 groups.
        if error.raw_os_error() != Some(libc::ERANGE) || count <= groups.len() || count > 65_536 {
            return Err(error);
        }
        groups.resize(count, 0);
    }
}
