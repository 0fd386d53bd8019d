//! The kernel's lock of the network configuration (RTNL), held for as long as a test wants: by an ethtool request whose answer the kernel
//! cannot write, since the page that it goes to is missing and a userfaultfd says nothing of it. Everyone else who needs that lock
//! waits, on the whole machine: hold it briefly.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Result, ensure};

/// Longest that the lock is held, whatever becomes of the test.
const LIMIT: Duration = Duration::from_secs(3);

const PAGE: usize = 4096;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GLINK: u32 = 0xa;

/// The lock, until dropped.
#[derive(Debug)]
pub struct Held {
    holder: Option<JoinHandle<()>>,
    stop: std::sync::mpsc::SyncSender<()>,
    closer: Option<JoinHandle<()>>,
}

/// Takes the lock.
///
/// # Errors
/// No userfaultfd, or the lock is not held a moment later.
pub fn hold() -> Result<Held> {
    let faults = userfaultfd()?;
    let mut api = [0xaa_u64, 0, 0];
    ioctl(faults.as_raw_fd(), UFFDIO_API, api.as_mut_ptr().cast())?;
    // SAFETY: new memory; it is never unmapped, since the holder may still have it.
    let memory = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            2 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    ensure!(memory != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    let memory = memory as usize;
    let mut register = [(memory + PAGE) as u64, PAGE as u64, UFFDIO_REGISTER_MODE_MISSING, 0];
    ioctl(faults.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr().cast())?;

    let holder = thread::spawn(move || {
        // `struct ethtool_value`: the command in the first page, the answer in the second.
        let value = memory + PAGE - size_of::<u32>();
        // SAFETY: inside the first page, aligned, and nobody else's.
        unsafe { (value as *mut u32).write(ETHTOOL_GLINK) };
        // SAFETY: all zeros is a value of it.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
        request.ifr_ifru.ifru_data = value as *mut libc::c_char;
        if let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0") {
            let _woken = ioctl(socket.as_raw_fd(), SIOCETHTOOL, (&raw mut request).cast());
        }
    });
    let (stop, stopped) = std::sync::mpsc::sync_channel(1);
    let closer = thread::spawn(move || {
        let _any = stopped.recv_timeout(LIMIT);
        // Who waits for the page gets it now, as from any memory.
        drop(faults);
    });
    let held = Held {
        holder: Some(holder),
        stop,
        closer: Some(closer),
    };
    thread::sleep(Duration::from_millis(20));
    ensure!(
        held.holder.as_ref().is_some_and(|h| !h.is_finished()),
        "the kernel answered at once: its lock is not held"
    );
    Ok(held)
}

/// Whether this machine can do it.
#[must_use]
pub fn possible() -> bool {
    userfaultfd().is_ok()
}

impl Drop for Held {
    fn drop(&mut self) {
        let _perhaps_over = self.stop.try_send(());
        for thread in [self.closer.take(), self.holder.take()].into_iter().flatten() {
            let _its_panic_is_told = thread.join();
        }
    }
}

fn userfaultfd() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, ours alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

fn ioctl(fd: RawFd, request: libc::c_ulong, argument: *mut libc::c_void) -> io::Result<()> {
    // SAFETY: every caller passes memory of the request's size that lives through the call.
    let done = unsafe { libc::ioctl(fd, request, argument) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
