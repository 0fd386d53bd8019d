//! A host of its own that boots under systemd: this host's files below, a layer of its own above, process ids, network and control groups of its
//! own. What it changes goes with it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    gateway,
    process::{self, Process, until},
    scratch::Scratch,
};

/// Longest wait for a boot.
const LIMIT: Duration = Duration::from_secs(90);
/// Most memory for what it changes, KiB.
const DISK_KIB: u32 = 512 * 1024;
/// What would change the host: its devices, modules, sysctls, clock and file systems.
const MASKED: &[&str] = &[
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "kmod-static-nodes.service",
    "modprobe@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-hwdb-update.service",
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-remount-fs.service",
    "systemd-sysctl.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
];
/// What it boots into.
const TARGET: &str = "gateway.target";

/// Its disk, and what runs on it.
#[derive(Debug)]
pub struct Machine {
    running: Option<Process>,
    init: u32,
    disk: PathBuf,
    scratch: Scratch,
}

impl Machine {
    /// Switched off; `prepare` changes its files, below the root that it is given.
    ///
    /// # Errors
    /// No privilege, or no overlayfs.
    pub fn new(prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let mut scratch = Scratch::new("machine")?;
        let disk = scratch.tmpfs("disk", DISK_KIB)?;
        for directory in ["upper", "work", "root"] {
            fs::create_dir(disk.join(directory))?;
        }
        let this = Self {
            running: None,
            init: 0,
            disk,
            scratch,
        };
        let upper = this.disk.join("upper");
        // Opaque: nothing of what is set up on this host starts there.
        let units = upper.join("etc/systemd/system");
        fs::create_dir_all(&units)?;
        set_opaque(&units)?;
        fs::write(upper.join("etc/fstab"), "")?;
        for unit in MASKED {
            symlink("/dev/null", units.join(unit))?;
        }
        fs::write(units.join(TARGET), "[Unit]\nRequires=basic.target\nAfter=basic.target\n")?;
        symlink(TARGET, units.join("default.target"))?;
        fs::create_dir_all(upper.join("usr/bin"))?;
        fs::write(upper.join("usr/bin/lazaret"), "")?;
        prepare(&upper)?;
        Ok(this)
    }

    /// Switches it on, and waits until it has booted.
    ///
    /// # Errors
    /// It does not boot; the error holds the console.
    pub fn boot(&mut self) -> Result<()> {
        let console = self.scratch.path().join("console");
        let mut unshare = process::command(None, "unshare");
        unshare
            .args(["--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--fork"])
            .args(["--kill-child=SIGKILL", "sh", "-euc", BOOT, "sh"])
            .args([&self.disk, &gateway::binary()]);
        let mut running = Process::spawn(&mut unshare, &console)?;
        let children = format!("/proc/{0}/task/{0}/children", running.id());
        let booted = until(LIMIT, "the machine has booted", || {
            ensure!(running.ended()?.is_none(), "it ended: {}", running.log());
            let first = fs::read_to_string(&children)?;
            self.init = first.trim().parse().unwrap_or(0);
            let asked = self.command("systemctl", &["is-active", TARGET]).output()?;
            Ok(asked.status.success())
        });
        let listed = booted
            .is_err()
            .then(|| self.run("systemctl list-units --no-pager --failed; systemctl list-jobs"));
        booted.with_context(|| format!("console:\n{}\n{listed:?}", running.log()))?;
        self.running = Some(running);
        Ok(())
    }

    /// Cuts the power.
    ///
    /// # Errors
    /// See [`Process::kill`].
    pub fn switch_off(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            running.kill()?;
        }
        Ok(())
    }

    /// A path in it, for processes outside.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        format!("/proc/{}/root{inside}", self.init).into()
    }

    /// Runs a line of shell in it, and gives its output.
    ///
    /// # Errors
    /// It fails; the error holds its output.
    pub fn run(&self, line: &str) -> Result<String> {
        process::output(&mut self.command("sh", &["-euc", line]))
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = process::command(None, "nsenter");
        command
            .args(["--target", &self.init.to_string()])
            .args([
                "--pid", "--mount", "--uts", "--ipc", "--net", "--cgroup", "--root", "--wd", program,
            ])
            .args(arguments);
        command
    }
}

/// Everything below is not seen through it.
fn set_opaque(directory: &Path) -> Result<()> {
    let path = std::ffi::CString::new(directory.as_os_str().as_encoded_bytes())?;
    // SAFETY: both strings end with a zero, and the value is one byte.
    let set = unsafe { libc::setxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), c"y".as_ptr().cast(), 1, 0) };
    ensure!(set == 0, "{}: {}", directory.display(), std::io::Error::last_os_error());
    Ok(())
}

/// Makes its file systems in namespaces of its own, and becomes its init. $1: its disk; $2: the binary.
const BOOT: &str = r#"
mount --make-rprivate /
root="$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$root"
mount --bind "$2" "$root/usr/bin/lazaret"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null zero full random urandom tty net/tun; do
    mkdir -p "$root/dev/net"
    touch "$root/dev/$node"
    mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/shm" "$root/dev/pts"
ln -s /proc/self/fd "$root/dev/fd"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
    mount -t cgroup -o none,name=systemd,xattr cgroup "$root/sys/fs/cgroup/systemd"
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi
exec env -i container=lazaret PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd --system
"#;
