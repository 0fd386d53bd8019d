//! Blocking rtnetlink, as much of it as [`crate::links`] and [`crate::routes`] need: requests with acknowledgement, dumps, attributes.
//! Layouts: rtnetlink(7), linux/netlink.h. Not here: what is asked for and why.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// Attribute types carry flags in their upper bits (NLA_F_NESTED, NLA_F_NET_BYTEORDER).
const TYPE_MASK: u16 = 0x3fff;

/// A socket in the network namespace of the thread that opened it.
pub(crate) struct Connection {
    socket: Socket,
    sequence: u32,
}

/// A message of a dump, without netlink's own header.
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

impl Connection {
    pub(crate) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)?;
        self.receive(|_| ()).map(|_| ())
    }

    /// Every object of a kind. A dump during which something changed is begun anew.
    pub(crate) fn dump(&mut self, kind: u16, body: &[u8]) -> io::Result<Vec<Message>> {
        // A bound, so that a storm of changes cannot hold the caller; the next change comes with a message of its own.
        for _ in 0..16 {
            let mut all = Vec::new();
            self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
            if self.receive(|m| all.push(m))? {
                return Ok(all);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "the kernel's list changed during each of 16 attempts to read it",
        ))
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        self.socket.send(&message, 0).map(|_| ())
    }

    /// Reads until the end of the answer. False: a dump that the kernel marked as interrupted.
    fn receive(&self, mut each: impl FnMut(Message)) -> io::Result<bool> {
        let mut whole = true;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while rest.len() >= HEADER {
                let length = u32_at(rest, 0).unwrap_or(0) as usize;
                if length < HEADER || length > rest.len() {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "a netlink message of a wrong length",
                    ));
                }
                let (kind, flags) = (u16_at(rest, 4).unwrap_or(0), u16_at(rest, 6).unwrap_or(0));
                let (sequence, body) = (u32_at(rest, 8), &rest[HEADER..length]);
                rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                if sequence != Some(self.sequence) {
                    // The rest of an answer that was given up.
                    continue;
                }
                whole &= flags & NLM_F_DUMP_INTR == 0;
                match kind {
                    NLMSG_DONE => return Ok(whole),
                    NLMSG_ERROR => match i32::from_ne_bytes(array(body, 0).unwrap_or_default()) {
                        0 => return Ok(whole),
                        e => return Err(io::Error::from_raw_os_error(e.wrapping_neg())),
                    },
                    _ => each(Message {
                        kind,
                        body: body.to_vec(),
                    }),
                }
            }
        }
    }
}

/// The attributes of a message body after its fixed part; ends at the first malformed one.
pub(crate) fn attributes(body: &[u8], fixed: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(fixed..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, kind) = (usize::from(u16_at(rest, 0)?), u16_at(rest, 2)?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE_MASK, value))
    })
}

/// Appends an attribute.
pub(crate) fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // The few values of this crate are addresses and numbers.
    let length = 4 + value.len() as u16;
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

pub(crate) fn u16_at(b: &[u8], at: usize) -> Option<u16> {
    array(b, at).map(u16::from_ne_bytes)
}

pub(crate) fn u32_at(b: &[u8], at: usize) -> Option<u32> {
    array(b, at).map(u32::from_ne_bytes)
}

fn array<const N: usize>(b: &[u8], at: usize) -> Option<[u8; N]> {
    b.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_at_the_first_malformed_one() {
        let mut body = vec![0; 12];
        put(&mut body, 3, b"tun0\0");
        put(&mut body, 7 | 0x8000, &5_u32.to_ne_bytes());
        let all: Vec<_> = attributes(&body, 12).collect();
        assert_eq!(all, [(3, &b"tun0\0"[..]), (7, &5_u32.to_ne_bytes()[..])]);
        for cut in [[0, 0, 1, 0], [3, 0, 1, 0], [9, 0, 1, 0]] {
            let mut bad = body.clone();
            bad.extend(cut);
            assert_eq!(attributes(&bad, 12).count(), 2);
        }
        assert_eq!(attributes(&body, 4000).count(), 0);
    }
}
