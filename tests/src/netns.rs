//! Network namespaces, the links between them, and tun devices. Each is removed when its owner goes, on panic too; what a killed process
//! left is swept up by the next.
//!
//! Commands enter by setns(2), not by `ip netns exec`: that has a mount namespace of its own, and BPF pins made in it vanish with it.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
    process::Command,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::{process, scratch};

const FOLDER: &str = "/run/netns";

/// A network namespace with its loopback up. Clones are handles to the same one.
#[derive(Clone, Debug)]
pub struct Namespace(Arc<Owned>);

#[derive(Debug)]
struct Owned {
    name: String,
    file: Arc<File>,
}

impl Namespace {
    /// Makes one; `label` is part of its name.
    ///
    /// # Errors
    /// No privilege.
    pub fn new(label: &str) -> Result<Self> {
        sweep();
        let name = scratch::unique(label);
        process::output(Command::new("ip").args(["netns", "add", &name]))?;
        let path = PathBuf::from(FOLDER).join(&name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let this = Self(Arc::new(Owned {
            name,
            file: Arc::new(file),
        }));
        // Duplicate address detection would keep every IPv6 address tentative for a second.
        this.sysctl("net.ipv6.conf.default.accept_dad", "0")?;
        this.sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The line to type for a shell inside it.
    #[must_use]
    pub fn entrance(&self) -> String {
        format!("nsenter --net={FOLDER}/{}", self.name())
    }

    /// A command inside it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        process::command(Some(self), program)
    }

    /// Runs a command line, split at spaces, inside it and gives its output.
    ///
    /// # Errors
    /// It fails; the error holds its output.
    pub fn exec(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        process::output(self.command(words.next().unwrap_or_default()).args(words))
    }

    /// `ip ...` inside it.
    ///
    /// # Errors
    /// See [`Namespace::exec`].
    pub fn ip(&self, line: &str) -> Result<String> {
        self.exec(&format!("ip {line}"))
    }

    /// Adds an address, `10.0.0.1/24` or `fd00::1/64`, usable at once.
    ///
    /// # Errors
    /// See [`Namespace::exec`].
    pub fn address(&self, interface: &str, address: &str) -> Result<()> {
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("address add {address} dev {interface}{nodad}")).map(drop)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// See [`Namespace::exec`].
    pub fn route(&self, to: &str, via: IpAddr) -> Result<()> {
        let family = if via.is_ipv6() { "-6" } else { "-4" };
        self.ip(&format!("{family} route add {to} via {via}")).map(drop)
    }

    /// Lets it forward, both families.
    ///
    /// # Errors
    /// No privilege.
    pub fn forward(&self) -> Result<()> {
        self.sysctl("net.ipv4.ip_forward", "1")?;
        self.sysctl("net.ipv6.conf.all.forwarding", "1")
    }

    /// Sets a sysctl below `net.`, by its dotted name.
    ///
    /// # Errors
    /// There is none of this name, or it refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("cannot set {name} to {value}"))
    }

    /// The index of an interface.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn ifindex(&self, interface: &str) -> Result<u32> {
        let name = interface.to_owned();
        let index = self.run(move || nix::net::if_::if_nametoindex(name.as_str()));
        index.with_context(|| format!("no interface {interface} in {}", self.name()))
    }

    /// Runs `f` on a thread inside it. Sockets and descriptors that it opens stay inside.
    ///
    /// # Panics
    /// If `f` does, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let file = &self.0.file;
        let inside = || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            f()
        };
        thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A thread inside it, for as long as `f` runs.
    ///
    /// # Panics
    /// The thread does if the namespace cannot be entered.
    pub fn spawn<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
        let file = self.handle();
        thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            f()
        })
    }

    /// A tokio runtime all of whose threads are inside it.
    ///
    /// # Errors
    /// No more threads.
    ///
    /// # Panics
    /// Its threads do if the namespace cannot be entered.
    pub fn runtime(&self) -> Result<tokio::runtime::Runtime> {
        let file = self.handle();
        let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        Ok(tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .on_thread_start(enter)
            .build()?)
    }

    pub(crate) fn handle(&self) -> Arc<File> {
        Arc::clone(&self.0.file)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "delete", &self.name]).output();
    }
}

/// Joins two namespaces by a veth pair, both ends up. Offloads stay as they are.
///
/// # Errors
/// No privilege, or a name that is taken.
pub fn veth(a: (&Namespace, &str), b: (&Namespace, &str)) -> Result<()> {
    let add = [
        "link",
        "add",
        a.1,
        "netns",
        a.0.name(),
        "type",
        "veth",
        "peer",
        "name",
        b.1,
        "netns",
        b.0.name(),
    ];
    process::output(Command::new("ip").args(add))?;
    a.0.ip(&format!("link set {} up", a.1))?;
    b.0.ip(&format!("link set {} up", b.1))?;
    Ok(())
}

/// A tun device (IP packets, no link-layer header) that the test reads and writes. It is gone when this is dropped.
#[derive(Debug)]
pub struct Tun {
    // Closed before its end is waited for.
    file: File,
    end: End,
}

/// Waits when it goes until a tun device has gone. A process that another thread is about to start holds a copy of every descriptor until it
/// runs its program, and the device stays as long.
#[derive(Debug)]
struct End {
    namespace: Namespace,
    name: String,
    ifindex: u32,
}

impl Drop for End {
    fn drop(&mut self) {
        // Another of its name may have come.
        let gone = || !self.namespace.ifindex(&self.name).is_ok_and(|index| index == self.ifindex);
        let _told_by_what_needs_it = process::until(Duration::from_secs(10), "the tun is gone", || Ok(gone()));
    }
}

impl Tun {
    /// Makes it in `namespace` and sets it up.
    ///
    /// # Errors
    /// No privilege, no tun driver, or a name that is taken.
    pub fn new(namespace: &Namespace, name: &str) -> Result<Self> {
        Self::with(namespace, name, libc::IFF_NO_PI)
    }

    /// As [`Tun::new`], where each packet, both ways, has two words of 16 bits in front of it: 0, and its ethertype, which the kernel believes.
    ///
    /// # Errors
    /// As [`Tun::new`].
    pub fn with_ethertypes(namespace: &Namespace, name: &str) -> Result<Self> {
        Self::with(namespace, name, 0)
    }

    /// As [`Tun::new`], where each packet, both ways, has a virtio_net_hdr of 10 bytes in front of it, and the host may send super-packets.
    ///
    /// # Errors
    /// As [`Tun::new`].
    pub fn with_offloads(namespace: &Namespace, name: &str) -> Result<Self> {
        /// TUN_F_CSUM, TSO4, TSO6, USO4, USO6 (linux/if_tun.h).
        const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04 | 0x20 | 0x40;
        let tun = Self::with(namespace, name, libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
        // SAFETY: the descriptor is open, and TUNSETOFFLOAD takes a number.
        let done = unsafe { libc::ioctl(tun.file.as_raw_fd(), libc::TUNSETOFFLOAD, OFFLOADS) };
        nix::errno::Errno::result(done).context("cannot set the offloads")?;
        Ok(tun)
    }

    fn with(namespace: &Namespace, name: &str, flags: i32) -> Result<Self> {
        let owned = name.to_owned();
        let file = namespace
            .run(move || open_tun(&owned, flags))
            .with_context(|| format!("cannot make the tun device {name}"))?;
        let end = End {
            namespace: namespace.clone(),
            name: name.to_owned(),
            ifindex: namespace.ifindex(name)?,
        };
        namespace.ip(&format!("link set {name} up"))?;
        Ok(Self { file, end })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.end.name
    }

    /// Has a packet arrive on it, as from a VPN client.
    ///
    /// # Errors
    /// The device is down.
    pub fn send(&self, packet: &[u8]) -> Result<()> {
        (&self.file)
            .write_all(packet)
            .with_context(|| format!("cannot send through {}", self.name()))
    }

    /// The next packet that the host sends through it, within `limit`.
    ///
    /// # Errors
    /// The device is gone.
    pub fn receive(&self, limit: Duration) -> Result<Option<Vec<u8>>> {
        if !readable(&self.file, limit)? {
            return Ok(None);
        }
        let mut packet = vec![0; 10 + 65536];
        let length = (&self.file).read(&mut packet)?;
        packet.truncate(length);
        Ok(Some(packet))
    }
}

/// Whether a descriptor can be read from within `limit`.
///
/// # Errors
/// See poll(2).
pub fn readable(file: &impl std::os::fd::AsFd, limit: Duration) -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut polled, PollTimeout::try_from(limit).map_err(|e| anyhow!("{e:?}"))?)? > 0)
}

/// Removes the namespaces that killed processes have left.
pub fn sweep() {
    for entry in fs::read_dir(FOLDER).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if scratch::orphaned(&name) {
            let _gone = Command::new("ip").args(["netns", "delete", &name]).output();
        }
    }
}

fn open_tun(name: &str, flags: i32) -> Result<File> {
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: an all-zero ifreq is a valid value of this C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    anyhow::ensure!(name.len() < request.ifr_name.len(), "the name is too long");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::try_from(from).context("the name is not ASCII")?;
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TUN | flags)?;
    // SAFETY: the descriptor is open, TUNSETIFF reads and writes one ifreq, and `request` is one that lives through the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    nix::errno::Errno::result(done)?;
    Ok(file)
}

/// A raw socket that sees every frame of an interface (or, without one, of the namespace), from the IP header on.
///
/// # Errors
/// No privilege.
pub(crate) fn packet_socket() -> Result<OwnedFd> {
    let protocol = i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
    // SAFETY: socket(2) takes three integers.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
    nix::errno::Errno::result(fd)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
