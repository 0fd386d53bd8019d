//! What the reference remembers of fragments: a list of datagrams, each with the pieces that have been seen.

use std::net::IpAddr;

use super::read::{Fragment, Packet};

/// How long a datagram is remembered after its first fragment, nanoseconds.
const LIFE: u64 = 30_000_000_000;

/// Tells datagrams apart: source, destination, protocol, identification.
type Key = (IpAddr, IpAddr, u8, u32);

#[derive(Clone, Debug)]
struct Datagram {
    key: Key,
    born: u64,
    first: Packet,
    seen: Vec<(u32, u32)>,
    poisoned: bool,
}

/// The datagrams whose first fragment has passed.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Vec<Datagram>);

impl Memory {
    /// A first fragment: none may be remembered.
    pub(super) fn first(&mut self, packet: &Packet, now: u64) -> Result<(), &'static str> {
        match self.find(packet, now) {
            None => Ok(()),
            Some(datagram) => {
                datagram.poisoned = true;
                Err("fragment_overlap")
            }
        }
    }

    /// A later fragment: the first one's packet, in whose stead it is judged.
    pub(super) fn later(&mut self, packet: &Packet, fragment: Fragment, now: u64) -> Result<Packet, &'static str> {
        let datagram = self.find(packet, now).ok_or("fragment")?;
        let overlaps = |(start, end): &(u32, u32)| fragment.start < *end && *start < fragment.end;
        if datagram.poisoned || datagram.seen.iter().any(overlaps) {
            datagram.poisoned = true;
            return Err("fragment_overlap");
        }
        datagram.seen.push((fragment.start, fragment.end));
        Ok(datagram.first.clone())
    }

    /// A first fragment has passed.
    pub(super) fn remember(&mut self, packet: &Packet, fragment: Fragment, now: u64) {
        let Some(key) = key(packet) else { return };
        self.0.retain(|d| d.key != key);
        self.0.push(Datagram {
            key,
            born: now,
            first: packet.clone(),
            seen: vec![(fragment.start, fragment.end)],
            poisoned: false,
        });
    }

    fn find(&mut self, packet: &Packet, now: u64) -> Option<&mut Datagram> {
        let key = key(packet)?;
        self.0.iter_mut().find(|d| d.key == key && now < d.born + LIFE)
    }
}

fn key(packet: &Packet) -> Option<Key> {
    let (source, destination) = packet.addresses?;
    Some((source, destination, packet.protocol, packet.fragment?.id))
}
