//! Denials, from the ring buffer to those who ask: a bounded memory of the last ones. It reports and never decides.

use std::{
    collections::VecDeque,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

use gateway_ebpf::abi::Denial;

/// A denied packet, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The record.
    pub record: Denial,
    /// Source; `None`: the packet had none to read.
    pub source: Option<IpAddr>,
    /// Destination.
    pub destination: Option<IpAddr>,
}

impl From<Denial> for Event {
    fn from(record: Denial) -> Self {
        let address = |b: [u8; 16]| (record.version != 0).then(|| Ipv6Addr::from(b).to_canonical());
        Self {
            source: address(record.src),
            destination: address(record.dst),
            record,
        }
    }
}

/// How many denials are kept.
pub const KEPT: usize = 4096;

/// The last denials. Clones share one memory.
#[derive(Clone, Debug, Default)]
pub struct Denials(Arc<Mutex<VecDeque<Event>>>);

impl Denials {
    /// Adds one; the oldest goes when there are [`KEPT`].
    pub fn push(&self, event: Event) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event);
    }

    /// The last `limit` that match, oldest first.
    pub fn last(&self, limit: usize, matches: impl Fn(&Event) -> bool) -> Vec<Event> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Event> = kept.iter().rev().filter(|e| matches(e)).take(limit).cloned().collect();
        found.reverse();
        found
    }
}
