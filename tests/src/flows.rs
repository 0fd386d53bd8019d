//! Long flows between two namespaces, both ways at once, every packet of which carries a token: what a test counts on the far side is then
//! this flow's and nothing else's. Real sockets: the kernel's TCP retransmits, segments and answers as it does for users.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Namespace;

/// What marks the packets of one flow.
pub type Token = [u8; 16];

/// A token that no other flow has.
#[must_use]
pub fn token() -> Token {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    let number = u64::from(std::process::id()) << 24 | NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut token = *b"<lz............>";
    token[3..15].copy_from_slice(&format!("{number:012x}").as_bytes()[..12]);
    token
}

/// Whether some bytes hold a token.
#[must_use]
pub fn holds(bytes: &[u8], token: &Token) -> bool {
    // SAFETY: both pointers are valid for the lengths given with them.
    let found = unsafe { libc::memmem(bytes.as_ptr().cast(), bytes.len(), token.as_ptr().cast(), token.len()) };
    !found.is_null()
}

/// A kind of flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A connection from the first end to the second, streaming both ways.
    Tcp,
    /// Datagrams both ways, from and to the second end's port.
    Udp,
    /// Echo requests from both ends; the kernels answer with the same payload.
    Icmp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];
}

/// An end: where, and by which address.
pub type End<'a> = (&'a Namespace, IpAddr);

/// A flow, until dropped: each end sends a marked record about every two milliseconds, whatever becomes of it.
#[derive(Debug)]
pub struct Flow {
    token: Token,
    running: Arc<Running>,
    senders: Vec<thread::JoinHandle<()>>,
    receivers: Vec<thread::JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Running {
    stop: AtomicBool,
    quiet: AtomicBool,
    sent: [AtomicU64; 2],
    received: [AtomicU64; 2],
}

/// Bytes of a record: small enough that nothing is fragmented.
const RECORD: usize = 400;
const PACE: Duration = Duration::from_millis(2);
/// How long a blocked call keeps a thread from seeing that it is to stop.
const PATIENCE: Duration = Duration::from_millis(50);

impl Flow {
    /// Starts one from `near` (the device's end) to `port` of `far`, marked with `token`. A TCP connection is made before this returns.
    ///
    /// # Errors
    /// A socket cannot be made; TCP does not connect within five seconds.
    pub fn start(kind: Kind, near: End<'_>, far: End<'_>, port: u16, token: Token) -> Result<Self> {
        let mut flow = Self {
            token,
            running: Arc::default(),
            senders: Vec::new(),
            receivers: Vec::new(),
        };
        match kind {
            Kind::Tcp => flow.tcp(near, far, port),
            Kind::Udp => flow.udp(near, far, port),
            Kind::Icmp => flow.icmp(near, far),
        }
        .with_context(|| format!("{kind:?} from {} to {} port {port}", near.1, far.1))?;
        Ok(flow)
    }

    /// Records that the near and the far end have sent so far (TCP: handed to the kernel).
    #[must_use]
    pub fn sent(&self) -> [u64; 2] {
        [0, 1].map(|end| self.running.sent[end].load(Ordering::Relaxed))
    }

    /// What the near and the far end have received so far: datagrams, bytes of TCP, echo replies.
    #[must_use]
    pub fn received(&self) -> [u64; 2] {
        [0, 1].map(|end| self.running.received[end].load(Ordering::Relaxed))
    }

    /// Has both ends send no more; the receivers go on.
    pub fn stop_sending(&mut self) {
        self.running.quiet.store(true, Ordering::Relaxed);
        self.senders.drain(..).for_each(|thread| drop(thread.join()));
    }

    fn tcp(&mut self, near: End<'_>, far: End<'_>, port: u16) -> Result<()> {
        let listener = far.0.run(|| bound(|| TcpListener::bind((far.1, port))))?;
        let to = listener.local_addr()?;
        let accepted = thread::spawn(move || listener.accept());
        let connected = near.0.run(|| connect(near.1, to, Duration::from_secs(5)));
        // Without a connection the listener is woken up by one of its own.
        if connected.is_err() {
            let _woken = far.0.run(|| TcpStream::connect_timeout(&to, PATIENCE));
        }
        let (accepted, _) = accepted.join().map_err(|_| io::Error::from(io::ErrorKind::Other))??;
        for (end, stream) in [connected?, accepted].into_iter().enumerate() {
            stream.set_nodelay(true)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut reader = stream.try_clone()?;
            self.sender(end, 0, move |record| (&stream).write_all(record));
            self.receiver(end, move |buffer| reader.read(buffer), |n| n as u64);
        }
        Ok(())
    }

    fn udp(&mut self, near: End<'_>, far: End<'_>, port: u16) -> Result<()> {
        let there = far.0.run(|| bound(|| UdpSocket::bind((far.1, port))))?;
        let here = near.0.run(|| UdpSocket::bind((near.1, 0)))?;
        here.connect(there.local_addr()?)?;
        there.connect(here.local_addr()?)?;
        self.datagrams([here, there], 0)
    }

    fn icmp(&mut self, near: End<'_>, far: End<'_>) -> Result<()> {
        let here = near.0.run(|| echo_socket(near.1))?;
        let there = far.0.run(|| echo_socket(far.1))?;
        here.connect((far.1, 0))?;
        there.connect((near.1, 0))?;
        self.datagrams([here, there], if near.1.is_ipv4() { 8 } else { 128 })
    }

    /// `kind` is the first byte of each: the type of an echo request.
    fn datagrams(&mut self, ends: [UdpSocket; 2], kind: u8) -> Result<()> {
        for (end, socket) in ends.into_iter().enumerate() {
            socket.set_read_timeout(Some(PATIENCE))?;
            let reader = socket.try_clone()?;
            self.sender(end, kind, move |record| socket.send(record).map(drop));
            self.receiver(end, move |buffer| reader.recv(buffer), |_| 1);
        }
        Ok(())
    }

    fn sender(&mut self, end: usize, kind: u8, send: impl Fn(&[u8]) -> io::Result<()> + Send + 'static) {
        let (running, token) = (Arc::clone(&self.running), self.token);
        self.senders.push(thread::spawn(move || {
            for number in 0_u64.. {
                if running.quiet.load(Ordering::Relaxed) {
                    break;
                }
                // An error is what a floor's EPERM, a reset or a full buffer looks like: the flow goes on trying.
                if send(&record(kind, &token, number)).is_ok() {
                    running.sent[end].fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(PACE);
            }
        }));
    }

    fn receiver(
        &mut self,
        end: usize,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize> + Send + 'static,
        count: fn(usize) -> u64,
    ) {
        let running = Arc::clone(&self.running);
        self.receivers.push(thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while !running.stop.load(Ordering::Relaxed) {
                match receive(&mut buffer) {
                    Ok(n) if n > 0 => drop(running.received[end].fetch_add(count(n), Ordering::Relaxed)),
                    // Timed out, refused, reset, or ended.
                    _ => thread::sleep(PACE),
                }
            }
        }));
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop_sending();
        self.running.stop.store(true, Ordering::Relaxed);
        self.receivers.drain(..).for_each(|thread| drop(thread.join()));
    }
}

/// An echo request's header without checksum and identifier, which the kernel fills in (other sockets just carry it); the token, the number,
/// padding.
fn record(kind: u8, token: &Token, number: u64) -> Vec<u8> {
    let mut record = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    record.extend_from_slice(token);
    record.extend_from_slice(&number.to_be_bytes());
    record.resize(RECORD, b'.');
    record
}

/// A socket with a port that another has had until now. A process that another thread is about to start holds a copy of that one until it
/// runs its program, and the port as long.
///
/// # Errors
/// What `bind` says; that the port is taken, if it still says so after five seconds.
pub fn bound<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < end => thread::sleep(Duration::from_millis(5)),
            made => return made,
        }
    }
}

/// Connects from an address, within `limit`.
///
/// # Errors
/// See connect(2).
pub fn connect(from: IpAddr, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect_timeout(&to.into(), limit)?;
    Ok(socket.into())
}

/// A socket for echo requests and their replies (ping(7)), for root in this namespace.
pub(crate) fn echo_socket(at: IpAddr) -> io::Result<UdpSocket> {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0")?;
    let (domain, protocol) = match at {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
    socket.bind(&SocketAddr::from((at, 0)).into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_are_found_anywhere() {
        let (a, b) = (token(), token());
        assert_ne!(a, b);
        let packet = [&[b'<'; 40][..], &record(8, &a, 7)].concat();
        assert!(holds(&packet, &a) && !holds(&packet, &b));
        assert!(!holds(&packet[..50], &a), "cut in the token");
    }
}
