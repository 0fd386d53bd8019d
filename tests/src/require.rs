//! What a test needs of the machine. Without it, the test is listed as skipped by name; with `CI=true` it fails.

use std::{fmt, io::Write as _, path::Path};

use crate::netns::Namespace;

/// Something that a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// uid 0 with CAP_NET_ADMIN, CAP_BPF and CAP_SYS_ADMIN.
    Root,
    /// A kernel with TCX (6.6) and BTF.
    Bpf,
    /// tun devices.
    Tun,
    /// vxlan devices, a tunnel that ends in the kernel.
    Vxlan,
    /// Loop devices: a file as a disk.
    Loop,
    /// FUSE: a file system of the test's own.
    Fuse,
    /// userfaultfd(2), by which a test keeps the kernel waiting.
    Userfaultfd,
    /// A program on the path.
    Program(&'static str),
    /// `LAZARET_TEST_PYTHON` names a Python with grpcio; `cargo xtask test` makes one.
    Python,
}

impl Need {
    /// Whether it is here.
    #[must_use]
    pub fn met(self) -> bool {
        match self {
            Self::Root => capabilities().is_some_and(|c| [12, 21, 39].iter().all(|bit| c & (1 << bit) != 0)),
            Self::Bpf => kernel().is_some_and(|v| v >= (6, 6)) && Path::new("/sys/kernel/btf/vmlinux").exists(),
            Self::Tun => Path::new("/dev/net/tun").exists(),
            Self::Vxlan => Namespace::new("need").is_ok_and(|n| n.ip("link add v type vxlan id 1 dstport 4789").is_ok()),
            Self::Loop => Path::new("/dev/loop-control").exists() && Self::Program("mkfs.ext4").met(),
            Self::Fuse => crate::lossy::possible(),
            Self::Userfaultfd => crate::rtnl::possible(),
            Self::Program(name) => {
                let path = std::env::var_os("PATH").unwrap_or_default();
                std::env::split_paths(&path)
                    .chain(["/usr/sbin".into(), "/sbin".into()])
                    .any(|d| d.join(name).is_file())
            }
            Self::Python => python().is_some(),
        }
    }

    /// Those of these that are not met, as a sentence; `None`: all are.
    #[must_use]
    pub fn missing(needs: &[Self]) -> Option<String> {
        let missing: Vec<String> = needs.iter().filter(|n| !n.met()).map(ToString::to_string).collect();
        (!missing.is_empty()).then(|| format!("needs {}", missing.join(", and ")))
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF)"),
            Self::Bpf => f.write_str("Linux 6.6 or later with BTF (/sys/kernel/btf/vmlinux), for TCX"),
            Self::Tun => f.write_str("tun devices (/dev/net/tun; `modprobe tun`)"),
            Self::Vxlan => f.write_str("vxlan devices (`modprobe vxlan`)"),
            Self::Loop => f.write_str("loop devices and mkfs.ext4 (`modprobe loop`; e2fsprogs)"),
            Self::Fuse => f.write_str("FUSE (/dev/fuse; `modprobe fuse`)"),
            Self::Userfaultfd => f.write_str("userfaultfd (CONFIG_USERFAULTFD)"),
            Self::Program(name) => write!(f, "the program {name} (`cargo xtask setup`)"),
            Self::Python => f.write_str("a Python with grpcio (`cargo xtask test` makes one)"),
        }
    }
}

/// The Python with grpcio.
#[must_use]
pub fn python() -> Option<std::path::PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/venv/bin/python");
    std::env::var_os("LAZARET_TEST_PYTHON")
        .map(Into::into)
        .into_iter()
        .chain([here])
        .find(|p: &std::path::PathBuf| p.is_file())
}

/// Whether the test may run. If not, says why, past libtest's capture; with `CI=true` it panics instead.
///
/// # Panics
/// With `CI=true`, if something is missing.
#[must_use]
pub fn or_skip(test: &str, needs: &[Need]) -> bool {
    let Some(missing) = Need::missing(needs) else { return true };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} {missing}, and with CI=true a skip is a failure"
    );
    // In one write: other tests print at the same time.
    let _closed = std::io::stderr().write_all(format!("SKIPPED {test}: {missing}\n").as_bytes());
    false
}

/// `require!(Root, Bpf)` at the start of a test: returns from it if something is missing.
#[macro_export]
macro_rules! require_needs {
    ($($need:expr),+ $(,)?) => {{
        #[allow(unused_imports, reason = "short names at the call, whichever are used")]
        use $crate::require::Need::*;
        let function = {
            fn here() {}
            std::any::type_name_of_val(&here).trim_end_matches("::here")
        };
        if !$crate::require::or_skip(function, &[$($need),+]) {
            return;
        }
    }};
}
pub use require_needs as require;

/// Effective capabilities of this process.
fn capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    u64::from_str_radix(status.lines().find_map(|l| l.strip_prefix("CapEff:"))?.trim(), 16).ok()
}

/// Major and minor version of the kernel.
fn kernel() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(Need::missing(&[]), None);
        let text = Need::missing(&[Need::Program("no-such-program"), Need::Program("sh")]).unwrap();
        assert_eq!(text, "needs the program no-such-program (`cargo xtask setup`)");
    }
}
