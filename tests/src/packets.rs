//! Packets: made for sending through a tun, and watched on the far side with the kernel's time of arrival.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Result, ensure};

use crate::{
    flows::{self, Token},
    netns::{self, Namespace},
};

/// A UDP packet from the IP header on, both families, with right checksums.
///
/// # Panics
/// If the addresses are of different families, or the payload is too long.
#[must_use]
pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("a short payload");
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    segment.extend_from_slice(payload);
    let sum = match transport_checksum(from.0, to.0, 17, &segment) {
        0 => 0xffff,
        sum => sum,
    };
    segment[6..8].copy_from_slice(&sum.to_be_bytes());
    ip(from.0, to.0, 17, &segment)
}

/// A TCP SYN without options.
///
/// # Panics
/// If the addresses are of different families.
#[must_use]
pub fn syn(from: (IpAddr, u16), to: (IpAddr, u16)) -> Vec<u8> {
    let mut segment = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let sum = transport_checksum(from.0, to.0, 6, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    ip(from.0, to.0, 6, &segment)
}

/// An IP header without options in front of `payload`.
///
/// # Panics
/// If the addresses are of different families, or the payload is too long.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("a short payload");
    let mut packet;
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            packet[2..4].copy_from_slice(&(length + 20).to_be_bytes());
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            let sum = fold(&packet, 0);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
            packet[4..6].copy_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
        }
        _ => panic!("{from} and {to} are of different families"),
    }
    packet.extend_from_slice(payload);
    packet
}

/// What a watcher saw of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When the kernel received or sent it, by the wall clock.
    pub at: SystemTime,
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// IP protocol number, or the first IPv6 next header.
    pub protocol: u8,
    /// Source and destination port of TCP and UDP, else 0.
    pub ports: (u16, u16),
    /// Bytes from the IP header on.
    pub length: usize,
    /// Index of the interface.
    pub ifindex: u32,
    /// Sent by the host through the interface, not received on it.
    pub outgoing: bool,
}

/// Bytes of packets that may wait for a watcher, of which the kernel takes twice as many. On a machine that is shared, seconds of several
/// flows' packets at each of their interfaces wait, with a kilobyte of the kernel's own for each.
const ROOM: libc::c_int = 512 << 20;
/// How long a watcher may lag behind.
const PATIENCE: Duration = Duration::from_secs(60);

/// Watches every packet of a namespace that `wanted` picks, in a thread of its own, until dropped.
#[derive(Debug)]
pub struct Watcher {
    watch: Arc<Watch>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Watch {
    seen: Mutex<Vec<Seen>>,
    /// Everything that had arrived by then has been looked at.
    until: Mutex<SystemTime>,
    missed: AtomicU32,
    stop: AtomicBool,
}

impl Watcher {
    /// Starts watching; packets that arrive after the return are seen.
    ///
    /// # Errors
    /// No privilege.
    pub fn new(namespace: &Namespace, wanted: impl Fn(&Seen) -> bool + Send + 'static) -> Result<Self> {
        Self::start(namespace, 128, move |seen, _| wanted(seen))
    }

    /// As [`Watcher::new`], of packets that hold a token.
    ///
    /// # Errors
    /// No privilege.
    pub fn of(namespace: &Namespace, token: Token, wanted: impl Fn(&Seen) -> bool + Send + 'static) -> Result<Self> {
        Self::start(namespace, 1 << 17, move |seen, bytes| {
            wanted(seen) && flows::holds(bytes, &token)
        })
    }

    /// `room`: how many bytes of each packet are looked at.
    fn start(namespace: &Namespace, room: usize, wanted: impl Fn(&Seen, &[u8]) -> bool + Send + 'static) -> Result<Self> {
        let socket = namespace.run(open)?;
        let watch = Arc::new(Watch {
            seen: Mutex::default(),
            until: Mutex::new(SystemTime::UNIX_EPOCH),
            missed: AtomicU32::new(0),
            stop: AtomicBool::new(false),
        });
        let to = Arc::clone(&watch);
        let run = move || {
            let mut buffer = vec![0; room];
            while !to.stop.load(Ordering::Relaxed) {
                let now = SystemTime::now();
                let Some((at, packet, length)) = receive(&socket, &mut buffer) else {
                    to.missed.fetch_add(missed(&socket), Ordering::Relaxed);
                    *lock(&to.until) = now;
                    let _readable = netns::readable(&socket, Duration::from_millis(20));
                    continue;
                };
                if let Some(packet) = packet.filter(|p| wanted(p, &buffer[..length])) {
                    lock(&to.seen).push(packet);
                }
                *lock(&to.until) = at;
            }
        };
        Ok(Self {
            watch,
            thread: Some(thread::spawn(run)),
        })
    }

    /// What it has seen so far.
    ///
    /// # Panics
    /// If packets went by unseen because the watcher was too slow: its silence would prove nothing.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        // What has arrived but was not read yet is read first, and what is on its way may arrive.
        thread::sleep(Duration::from_millis(50));
        let (now, limit) = (SystemTime::now(), Instant::now() + PATIENCE);
        while *lock(&self.watch.until) < now && Instant::now() < limit {
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(
            (self.watch.missed.load(Ordering::Relaxed), *lock(&self.watch.until) >= now),
            (0, true),
            "the watcher keeps up"
        );
        lock(&self.watch.seen).clone()
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watch.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// The addresses, protocol and ports of a packet from the IP header on.
#[must_use]
pub fn parse(packet: &[u8], at: SystemTime) -> Option<Seen> {
    let (from, to, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
            let header = usize::from(packet[0] & 15) * 4;
            (address(12)?, address(16)?, *packet.get(9)?, packet.get(header..)?)
        }
        6 => {
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
            (address(8)?, address(24)?, *packet.get(6)?, packet.get(40..)?)
        }
        _ => return None,
    };
    let port = |at: usize| rest.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]));
    let ports = if matches!(protocol, 6 | 17) {
        (port(0), port(2))
    } else {
        (0, 0)
    };
    Some(Seen {
        at,
        from,
        to,
        protocol,
        ports,
        length: packet.len(),
        ifindex: 0,
        outgoing: false,
    })
}

fn open() -> Result<OwnedFd> {
    let socket = netns::packet_socket()?;
    for (option, value) in [(libc::SO_TIMESTAMPNS, 1), (libc::SO_RCVBUFFORCE, ROOM)] {
        let value: libc::c_int = value;
        let size = libc::socklen_t::try_from(size_of_val(&value))?;
        // SAFETY: the descriptor is open and the option's value is an int that lives through the call.
        let done = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), size) };
        ensure!(done == 0, "setsockopt: {}", std::io::Error::last_os_error());
    }
    Ok(socket)
}

/// The next packet: when it arrived, what it is, and how many of its bytes are in `data`. `None`: there is none now.
fn receive(socket: &OwnedFd, data: &mut [u8]) -> Option<(SystemTime, Option<Seen>, usize)> {
    use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!(libc::timespec);
    let mut io = [std::io::IoSliceMut::new(data)];
    let message = recvmsg::<LinkAddr>(
        socket.as_raw_fd(),
        &mut io,
        Some(&mut control),
        MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT,
    )
    .ok()?;
    let at = message.cmsgs().ok()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(t) => {
            Some(SystemTime::UNIX_EPOCH + Duration::new(u64::try_from(t.tv_sec()).ok()?, u32::try_from(t.tv_nsec()).ok()?))
        }
        _ => None,
    })?;
    let (whole, link) = (message.bytes, message.address);
    let length = whole.min(data.len());
    let seen = parse(&data[..length], at).zip(link).map(|(mut seen, link)| {
        seen.length = whole;
        seen.ifindex = u32::try_from(link.ifindex()).unwrap_or(0);
        seen.outgoing = link.pkttype() == libc::PACKET_OUTGOING;
        seen
    });
    Some((at, seen, length))
}

/// Packets that the socket had no room for since the last call.
fn missed(socket: &OwnedFd) -> u32 {
    let mut stats = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut size = libc::socklen_t::try_from(size_of_val(&stats)).unwrap_or(0);
    // SAFETY: the descriptor is open; the kernel writes at most `size` bytes, one tpacket_stats, which lives through the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut size,
        )
    };
    if done == 0 { stats.tp_drops } else { u32::MAX }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The Internet checksum (RFC 1071), as ICMP has it.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    fold(bytes, 0)
}

/// The checksum field of a packet whose sum is left to the device: that of the pseudo-header alone, not complemented.
///
/// # Panics
/// If `length` is more than 65,535.
#[must_use]
pub fn pseudo_checksum(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u16 {
    let length = u16::try_from(length).expect("a short segment");
    !fold(&addresses(from, to), u32::from(protocol) + u32::from(length))
}

fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, segment: &[u8]) -> u16 {
    let mut pseudo = addresses(from, to);
    pseudo.extend_from_slice(segment);
    fold(
        &pseudo,
        u32::from(protocol) + u32::try_from(segment.len()).expect("a short segment"),
    )
}

fn addresses(from: IpAddr, to: IpAddr) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    [octets(from), octets(to)].concat()
}

/// The Internet checksum (RFC 1071) with a start value.
fn fold(bytes: &[u8], start: u32) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|c| u32::from(u16::from_be_bytes([c[0], c.get(1).copied().unwrap_or(0)])));
    let mut sum = start + words.sum::<u32>();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_again() {
        let ends = [("10.66.0.5", "10.9.0.1"), ("fd00:66::5", "fd00:9::1")];
        for (from, to) in ends.map(|(a, b)| (a.parse::<IpAddr>().unwrap(), b.parse::<IpAddr>().unwrap())) {
            let at = SystemTime::UNIX_EPOCH;
            let packet = udp((from, 1000), (to, 53), b"abc");
            let seen = parse(&packet, at).unwrap();
            assert_eq!(
                seen,
                Seen {
                    at,
                    from,
                    to,
                    protocol: 17,
                    ports: (1000, 53),
                    length: packet.len(),
                    ifindex: 0,
                    outgoing: false,
                }
            );
            assert_eq!(parse(&syn((from, 7), (to, 80)), at).unwrap().ports, (7, 80));
        }
    }
}
