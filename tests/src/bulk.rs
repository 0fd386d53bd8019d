//! Large transfers between two namespaces, checked byte by byte at the receiver: what a data plane does to super-packets, jumbo frames,
//! fragments and small path MTUs shows as something missing, changed or late.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Socket, Type};

use crate::flows::{self, End};

/// A prime, so that a shift by any usual length shows.
const PATTERN: usize = 65_521;

/// Which way a transfer goes, and how it is handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the connecting end, by write(2).
    Up,
    /// To the connecting end, by write(2).
    Down,
    /// To the connecting end, by sendfile(2): pages of a file, not copied.
    DownFile,
    /// From the connecting end, by sendfile(2).
    UpFile,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Up, Self::Down, Self::DownFile, Self::UpFile];
}

/// Sends at least `bytes` over a TCP connection from `near` to `port` of `far`; gives how long it took.
///
/// # Errors
/// It does not connect, does not end within `limit`, or something else arrives than was sent.
pub fn tcp(near: End<'_>, far: End<'_>, port: u16, way: Way, bytes: u64, limit: Duration) -> Result<Duration> {
    let listener = far.0.run(|| flows::bound(|| TcpListener::bind((far.1, port))))?;
    let to = listener.local_addr()?;
    let (started, rounds) = (Instant::now(), bytes.div_ceil(PATTERN as u64));
    let accepted = thread::spawn(move || listener.accept());
    let connected = near.0.run(|| flows::connect(near.1, to, Duration::from_secs(5)));
    if connected.is_err() {
        let _woken = far.0.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1)));
    }
    let (accepted, _) = accepted.join().map_err(|_| anyhow!("accept"))??;
    let connected = connected.with_context(|| format!("{} cannot connect to {to}", near.1))?;
    let (sender, receiver) = match way {
        Way::Up | Way::UpFile => (connected, accepted),
        Way::Down | Way::DownFile => (accepted, connected),
    };
    // Each blocked call ends by then; a transfer that trickles is cut by the receiver.
    sender.set_write_timeout(Some(limit))?;
    receiver.set_read_timeout(Some(limit))?;
    let file = matches!(way, Way::UpFile | Way::DownFile);
    let sending = thread::spawn(move || send(sender, rounds, file));
    let received = check(receiver, started + limit);
    let sent = sending.join().map_err(|_| anyhow!("the sender"))?;
    let received = received.with_context(|| format!("{way:?} between {} and {to}, sent: {sent:?}", near.1))?;
    sent?;
    ensure!(
        received == rounds * PATTERN as u64,
        "{received} bytes arrived of {rounds} times {PATTERN}"
    );
    Ok(started.elapsed())
}

/// Sends `count` datagrams of `size` bytes from `near` to `port` of `far`, with `segment` as super-packets of so many each (UDP_SEGMENT), and
/// the answer to each back the same way; gives how many arrived there, and here, unchanged.
///
/// # Errors
/// A socket cannot be made or does not send.
pub fn udp(near: End<'_>, far: End<'_>, port: u16, size: usize, count: u32, segment: bool) -> Result<[u32; 2]> {
    let there = far.0.run(|| large_socket((far.1, port).into()))?;
    let here = near.0.run(|| large_socket((near.1, 0).into()))?;
    here.connect(there.local_addr()?)?;
    there.connect(here.local_addr()?)?;
    let stop = Arc::new(AtomicBool::new(false));
    let receive = |socket: &UdpSocket| -> Result<_> {
        let (socket, stop) = (socket.try_clone()?, Arc::clone(&stop));
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(thread::spawn(move || receive(&socket, size, count, &stop)))
    };
    let receivers = [receive(&there)?, receive(&here)?];
    for socket in [&here, &there] {
        let together = if segment { u32::try_from(60_000 / size)? } else { 1 };
        if segment {
            setsockopt(&socket.as_fd(), sockopt::UdpGsoSegment, &i32::try_from(size)?)?;
        }
        for first in (0..count).step_by(usize::try_from(together)?) {
            let super_packet: Vec<u8> = (first..count.min(first + together)).flat_map(|n| datagram(n, size)).collect();
            // Before it is denied by the floor, it may be told so (EPERM).
            let _denied = socket.send(&super_packet);
            thread::sleep(Duration::from_micros(300));
        }
    }
    // Those that are on their way.
    thread::sleep(Duration::from_millis(300));
    stop.store(true, Ordering::Relaxed);
    Ok(receivers.map(|r| r.join().unwrap_or(0)))
}

/// Whether an echo request of `size` bytes is answered within `limit`, with the same bytes.
///
/// # Errors
/// A socket cannot be made.
pub fn echo(near: End<'_>, to: IpAddr, size: usize, limit: Duration) -> Result<bool> {
    let socket = near.0.run(|| flows::echo_socket(near.1))?;
    socket.connect((to, 0))?;
    socket.set_read_timeout(Some(limit))?;
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let request = [&[kind, 0, 0, 0, 0, 0, 0, 7][..], &datagram(1, size)].concat();
    socket.send(&request)?;
    let mut reply = vec![0; 65536];
    Ok(socket.recv(&mut reply).is_ok_and(|n| reply[8..n] == request[8..]))
}

/// The datagram of a number.
#[must_use]
pub fn datagram(number: u32, size: usize) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    let at = usize::try_from(number).unwrap_or(0) % PATTERN;
    bytes.extend(pattern().iter().cycle().skip(at).take(size.saturating_sub(4)));
    bytes
}

/// How many of the datagrams 0 to `count` a socket, which has a timeout, receives unchanged, each counted once, until `stop`; what has arrived
/// by then is counted.
pub fn receive(socket: &UdpSocket, size: usize, count: u32, stop: &AtomicBool) -> u32 {
    let (mut buffer, mut seen) = (vec![0; 65536], vec![false; usize::try_from(count).unwrap_or(0)]);
    loop {
        let last = stop.load(Ordering::Relaxed);
        let Ok(n) = socket.recv(&mut buffer) else {
            if last {
                break;
            }
            continue;
        };
        let Some(number) = buffer[..n].first_chunk().map(|b| u32::from_be_bytes(*b)) else {
            continue;
        };
        if number < count && buffer[..n] == datagram(number, size) {
            seen[usize::try_from(number).unwrap_or(0)] = true;
        }
    }
    u32::try_from(seen.into_iter().filter(|s| *s).count()).unwrap_or(0)
}

/// A UDP socket whose receive buffer holds a whole test.
///
/// # Errors
/// The address cannot be bound.
pub fn large_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None)?;
    setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
    setsockopt(&socket, sockopt::SndBufForce, &(8 << 20))?;
    flows::bound(|| socket.bind(&at.into()))?;
    Ok(socket.into())
}

fn pattern() -> &'static [u8] {
    static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    BYTES.get_or_init(|| {
        let mut word = 0x9e37_79b9_7f4a_7c15_u64;
        let next = || {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(PATTERN).collect()
    })
}

fn send(mut stream: TcpStream, rounds: u64, file: bool) -> io::Result<()> {
    let pages: File = tempfile::tempfile()?;
    (&pages).write_all(pattern())?;
    for _ in 0..rounds {
        if !file {
            stream.write_all(pattern())?;
            continue;
        }
        let (mut at, mut left) = (0, PATTERN);
        while left > 0 {
            // SAFETY: both descriptors are open, and the offset lives through the call.
            let sent = unsafe { libc::sendfile(stream.as_raw_fd(), pages.as_raw_fd(), &raw mut at, left) };
            match usize::try_from(sent) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => left -= sent,
                Err(_) => return Err(io::Error::last_os_error()),
            }
        }
    }
    stream.shutdown(std::net::Shutdown::Write)
}

/// How many bytes arrive, all as they were sent.
fn check(mut stream: TcpStream, end: Instant) -> Result<u64> {
    let twice = [pattern(), pattern()].concat();
    let (mut buffer, mut received) = (vec![0; PATTERN], 0_u64);
    loop {
        let n = stream.read(&mut buffer).with_context(|| format!("after {received} bytes"))?;
        if n == 0 {
            return Ok(received);
        }
        let at = usize::try_from(received % PATTERN as u64)?;
        ensure!(
            buffer[..n] == twice[at..at + n],
            "other bytes than were sent, after {received}"
        );
        received += n as u64;
        ensure!(Instant::now() < end, "too slow: {received} bytes");
    }
}
