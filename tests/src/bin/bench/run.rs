//! How a program is run and its time taken: BPF_PROG_TEST_RUN, clocks, the CPU that everything is pinned to.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// The CPU that does everything: the last one, farthest from the boot CPU's interrupts.
pub(crate) const CPU: usize = 1;
/// Another one.
pub(crate) const OTHER_CPU: usize = 0;
/// `BPF_PROG_TEST_RUN` in the kernel's `enum bpf_cmd`.
const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`: redirected frames really leave.
const LIVE_FRAMES: u32 = 1 << 1;

/// `union bpf_attr`, `test` (linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    spare: u32,
}

/// How a test run runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// On one buffer, as if it had come from this interface of the thread's namespace.
    On(u32),
    /// Redirected frames really leave.
    Live,
}

/// The beginning of `struct xdp_md` (linux/bpf.h).
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Runs an XDP program `repeat` times on a frame; the last verdict and the thread's CPU time. Not wall time: the run waits for RCU.
pub(crate) fn test_run(program: BorrowedFd<'_>, frame: &[u8], repeat: u32, mode: Mode) -> Result<(u32, Duration)> {
    let size: u32 = frame.len().try_into()?;
    let mut attr = TestRun {
        prog_fd: program.as_raw_fd().try_into()?,
        data_size_in: size,
        data_in: frame.as_ptr() as u64,
        repeat,
        ..TestRun::default()
    };
    let context;
    match mode {
        Mode::On(ingress_ifindex) => {
            context = XdpMd {
                data: 0,
                data_end: size,
                data_meta: 0,
                ingress_ifindex,
                rx_queue_index: 0,
                egress_ifindex: 0,
            };
            attr.ctx_in = &raw const context as u64;
            attr.ctx_size_in = size_of::<XdpMd>() as u32;
        }
        Mode::Live => {
            attr.flags = LIVE_FRAMES;
            attr.batch_size = 64;
        }
    }
    let start = cpu_time()?;
    // SAFETY: the attribute is a live, writable structure of the size given; `data_in` and `ctx_in` point to as many readable bytes as it
    // says, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attr, size_of::<TestRun>()) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("BPF_PROG_TEST_RUN");
    }
    Ok((attr.retval, cpu_time()?.saturating_sub(start)))
}

/// CPU time of this thread.
pub(crate) fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Pins this thread to a CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Lets this thread, and the processes that it starts, run on both CPUs.
pub(crate) fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    set.set(CPU)?;
    set.set(OTHER_CPU)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// CPU time that a CPU's ksoftirqd has used: part of what live frames cost.
pub(crate) fn softirq_time(cpu: usize) -> Duration {
    let name = format!("ksoftirqd/{cpu}");
    let process = |entry: std::fs::DirEntry| {
        let comm = std::fs::read_to_string(entry.path().join("comm")).ok()?;
        if comm.trim() != name {
            return None;
        }
        let stat = std::fs::read_to_string(entry.path().join("schedstat")).ok()?;
        stat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .find_map(process)
        .unwrap_or_default()
}

/// A 60-byte UDP frame (64 on the wire); the BPF prologue fills addresses, port and header checksum in.
pub(crate) fn frame() -> [u8; 60] {
    let mut f = [0; 60];
    f[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    f[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    f[12..14].copy_from_slice(&0x0800_u16.to_be_bytes());
    f[14] = 0x45;
    f[17] = 46;
    f[22] = 64;
    f[23] = 17;
    f[34..36].copy_from_slice(&9000_u16.to_be_bytes());
    f[38..40].copy_from_slice(&26_u16.to_be_bytes());
    f
}

/// A 62-byte UDP frame over IPv6, from fd40:: to 2001:db8:200::7; the BPF prologue fills the rest in. No checksum: nobody receives it.
pub(crate) fn frame6() -> [u8; 62] {
    let mut f = [0; 62];
    f[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    f[12..14].copy_from_slice(&0x86dd_u16.to_be_bytes());
    f[14] = 0x60;
    f[19] = 8;
    f[20] = 17;
    f[21] = 64;
    f[22..24].copy_from_slice(&[0xfd, 0x40]);
    f[38..44].copy_from_slice(&[0x20, 1, 0x0d, 0xb8, 2, 0]);
    f[53] = 7;
    f[54..56].copy_from_slice(&9000_u16.to_be_bytes());
    f[59] = 8;
    f
}
