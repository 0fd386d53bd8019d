//! What the reference remembers of fragments: a list of datagrams, each with the pieces that have been seen.

use std::net::IpAddr;

use super::{
    Place,
    read::{Fragment, Packet},
};

/// How long a datagram is remembered after its first fragment, nanoseconds.
const LIFE: u64 = 15_000_000_000;

/// Tells datagrams apart: the place (core interfaces are one), source, destination, identification, and in IPv4 the protocol.
type Key = (Place, IpAddr, IpAddr, u32, Option<u8>);

#[derive(Clone, Debug)]
struct Datagram {
    key: Key,
    born: u64,
    first: Packet,
    seen: Vec<Fragment>,
    poisoned: bool,
}

impl Datagram {
    /// Whether a fragment covers what another has brought, or they do not agree about where the datagram ends.
    fn contradicts(&self, new: Fragment) -> bool {
        self.seen.iter().any(|old| {
            let overlaps = new.start < old.end && old.start < new.end;
            overlaps || !old.more && new.end > old.end || !new.more && old.end > new.end
        })
    }

    /// Whether a first fragment is the same, as far as it is judged.
    fn began_with(&self, packet: &Packet) -> bool {
        let judged = |p: &Packet| {
            let length = p.fragment.map(|f| f.end);
            (p.protocol, p.ports, p.flags, p.icmp, length)
        };
        judged(&self.first) == judged(packet)
    }

    /// Whether all that a fragment brings was there, none of it from the first, and it does not say otherwise of where the datagram ends.
    fn has(&self, new: Fragment) -> bool {
        let behind_first = self.seen.iter().all(|old| old.start != 0 || new.start >= old.end);
        let there = (new.start..new.end).all(|byte| self.seen.iter().any(|old| (old.start..old.end).contains(&byte)));
        let end = self.seen.iter().find(|old| !old.more).map(|old| old.end);
        let agrees = if new.more {
            end.is_none_or(|end| new.end < end)
        } else {
            end == Some(new.end)
        };
        behind_first && there && agrees
    }

    /// Nothing is missing: without overlaps it is enough that the lengths add up to the end.
    fn complete(&self) -> bool {
        let arrived: u32 = self.seen.iter().map(|f| f.end - f.start).sum();
        self.seen.iter().any(|f| !f.more && f.end == arrived)
    }
}

/// The datagrams whose first fragment has passed.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory(Vec<Datagram>);

impl Memory {
    /// A first fragment: none may be remembered, but the same.
    pub(super) fn first(&mut self, place: Place, packet: &Packet, now: u64) -> Result<(), &'static str> {
        match self.find(place, packet, now) {
            None => Ok(()),
            Some(datagram) if !datagram.poisoned && datagram.began_with(packet) => Ok(()),
            Some(datagram) => {
                datagram.poisoned = true;
                Err("fragment_overlap")
            }
        }
    }

    /// A later fragment: the first one's packet, in whose stead it is judged.
    pub(super) fn later(&mut self, place: Place, packet: &Packet, new: Fragment, now: u64) -> Result<Packet, &'static str> {
        let datagram = self.find(place, packet, now).ok_or("fragment")?;
        let again = datagram.has(new);
        if datagram.poisoned || !again && datagram.contradicts(new) {
            datagram.poisoned = true;
            return Err("fragment_overlap");
        }
        if !again {
            datagram.seen.push(new);
        }
        let first = datagram.first.clone();
        self.0.retain(|d| !d.complete());
        Ok(first)
    }

    /// A first fragment has passed.
    pub(super) fn remember(&mut self, place: Place, packet: &Packet, fragment: Fragment, now: u64) {
        let Some(key) = key(place, packet) else { return };
        if self.find(place, packet, now).is_some() {
            return;
        }
        self.0.retain(|d| d.key != key && now < d.born + LIFE);
        self.0.push(Datagram {
            key,
            born: now,
            first: packet.clone(),
            seen: vec![fragment],
            poisoned: false,
        });
    }

    pub(super) fn live(&self, now: u64) -> usize {
        self.0.iter().filter(|d| now < d.born + LIFE).count()
    }

    pub(super) fn forget_last(&mut self) {
        self.0.pop();
    }

    fn find(&mut self, place: Place, packet: &Packet, now: u64) -> Option<&mut Datagram> {
        let key = key(place, packet)?;
        self.0.iter_mut().find(|d| d.key == key && now < d.born + LIFE)
    }
}

fn key(place: Place, packet: &Packet) -> Option<Key> {
    let (source, destination) = packet.addresses?;
    // Not the link layer: a device has one.
    let place = Place {
        ethernet: false,
        interface: if place.device { place.interface } else { 0 },
        ..place
    };
    Some((
        place,
        source,
        destination,
        packet.fragment?.id,
        source.is_ipv4().then_some(packet.protocol),
    ))
}
