//! How much refusals put into the audit: what a list repeats has one entry for a while, and no identity has more entries than it needs. It
//! makes no entries itself.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use crate::{audit::sha256, model::DeviceId};

/// For so long, at most, a part of a list that is refused again has the entry of the first time: VPN servers repeat their lists, MDMs their
/// renewals.
const SHARED: Duration = Duration::from_secs(600);
/// Parts that are known again.
const PARTS: usize = 65_536;
/// An identity's refusals have so many entries
const MOST: u32 = 4096;
/// in such a time.
const SPAN: Duration = Duration::from_secs(3600);
/// Identities that are counted before those are forgotten whose time is over.
const IDENTITIES: usize = 1024;

/// What refusals have put into the audit lately.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    identities: HashMap<String, Count>,
    /// Numbers of entries; all are forgotten at once.
    parts: HashMap<[u8; 32], u64>,
    parts_since: Option<Instant>,
}

#[derive(Debug)]
struct Count {
    since: Instant,
    entries: u32,
}

/// Whether a refusal gets an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Yes,
    /// It does not, and that is to be said now.
    NoMore,
    No,
}

impl Bounds {
    /// Counts one more of this identity.
    pub(super) fn room(&mut self, by: &str, now: Instant) -> Room {
        let over = |c: &Count| now.duration_since(c.since) >= SPAN;
        if self.identities.len() >= IDENTITIES && !self.identities.contains_key(by) {
            self.identities.retain(|_, c| !over(c));
        }
        let new = || Count { since: now, entries: 0 };
        let count = self.identities.entry(by.to_owned()).or_insert_with(new);
        if over(count) {
            *count = new();
        }
        count.entries = count.entries.saturating_add(1);
        match count.entries {
            ..=MOST => Room::Yes,
            n if n == MOST + 1 => Room::NoMore,
            _ => Room::No,
        }
    }

    /// The number of the entry that this part of a list was refused by, a while ago at most.
    pub(super) fn known(&mut self, part: &[u8; 32], now: Instant) -> Option<u64> {
        if self.parts_since.is_some_and(|since| now.duration_since(since) >= SHARED) {
            self.parts.clear();
            self.parts_since = None;
        }
        self.parts.get(part).copied()
    }

    /// Remembers it.
    pub(super) fn put(&mut self, part: [u8; 32], number: u64, now: Instant) {
        self.parts_since.get_or_insert(now);
        if self.parts.len() < PARTS {
            self.parts.insert(part, number);
        }
    }
}

/// What a part of a list is known by: who asks for what, on what, and why it is refused.
pub(super) fn part(by: &str, action: &str, device: Option<&DeviceId>, subject: &str, refusal: &str) -> [u8; 32] {
    let device = device.map_or("", |d| d.as_str());
    // None of the texts before the last has a control character.
    sha256([by, action, device, subject, refusal].join("\0").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_has_so_many_entries_and_another_has_its_own() {
        let (mut bounds, now) = (Bounds::default(), Instant::now());
        assert!((0..MOST).all(|_| bounds.room("a", now) == Room::Yes));
        assert_eq!(bounds.room("a", now), Room::NoMore);
        assert!((0..10).all(|_| bounds.room("a", now) == Room::No));
        assert_eq!(bounds.room("b", now), Room::Yes);
        assert_eq!(bounds.room("a", now + SPAN), Room::Yes);
        // Those whose time is over are forgotten, the others are not.
        for i in 0..IDENTITIES * 2 {
            bounds.room(&i.to_string(), now);
        }
        assert_eq!(bounds.room("a", now + SPAN), Room::Yes);
        assert_eq!(bounds.identities["a"].entries, 2);
        bounds.room("late", now + SPAN);
        assert_eq!(bounds.identities.len(), 2);
    }

    #[test]
    fn a_part_is_known_for_a_while() {
        let (mut bounds, now) = (Bounds::default(), Instant::now());
        let id: DeviceId = "phone".parse().unwrap();
        let of = |refusal: &str| part("vpn-1", "SynchroniseSessions", Some(&id), "session of vpn-1", refusal);
        bounds.put(of("x"), 7, now);
        assert_eq!(bounds.known(&of("x"), now), Some(7));
        assert_eq!(bounds.known(&of("y"), now), None);
        for i in 0..PARTS as u64 + 10 {
            bounds.put(sha256(&i.to_be_bytes()), 8, now);
        }
        assert_eq!(bounds.parts.len(), PARTS);
        assert_eq!(bounds.known(&of("x"), now + SHARED), None);
        assert!(bounds.parts.is_empty());
        bounds.put(of("z"), 9, now + SHARED);
        assert_eq!(bounds.known(&of("z"), now + SHARED), Some(9));
    }
}
