//! Denials, from the ring buffers to those who ask: a bounded memory of the last ones, those who follow them, and those who capture the
//! packets. It reports and never decides.

use std::{
    collections::VecDeque,
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gateway_ebpf::abi::{Captured, Denial};
use tokio::sync::broadcast;

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
        // By the packet's version, not by the form of the address: an IPv6 packet may have ::ffff:10.66.0.5 as its source, which is no device's.
        let address = |b: [u8; 16]| match record.version {
            0 => None,
            4 => Some(Ipv4Addr::from([b[12], b[13], b[14], b[15]]).into()),
            _ => Some(IpAddr::V6(b.into())),
        };
        Self {
            source: address(record.src),
            destination: address(record.dst),
            record,
        }
    }
}

/// How many denials are kept.
pub const KEPT: usize = 4096;
/// Denials that one who follows may lag behind before some are lost to him: about 100 bytes each.
const FOLLOWED: usize = 4096;
/// Packets that one who captures may lag behind before some are lost to him: about 400 bytes each.
const CAPTURED: usize = 4096;

/// The last denials. Clones share one memory.
#[derive(Clone, Debug)]
pub struct Denials(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    kept: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

impl Default for Denials {
    fn default() -> Self {
        Self(Arc::new(Memory {
            kept: Mutex::default(),
            live: broadcast::Sender::new(FOLLOWED),
        }))
    }
}

impl Denials {
    /// Adds one; the oldest goes when there are [`KEPT`].
    pub fn push(&self, event: Event) {
        let mut kept = self.kept();
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Under the lock, so that nobody who begins to follow gets one twice or not at all. Nobody following is fine.
        let _ = self.0.live.send(event);
    }

    /// The last `limit` that match, oldest first.
    pub fn last(&self, limit: usize, matches: impl Fn(&Event) -> bool) -> Vec<Event> {
        last(&self.kept(), limit, matches)
    }

    /// As [`Denials::last`], and those to come, from there on without a gap. One who lags more than 4,096 behind is told how many he lost.
    pub fn follow(&self, limit: usize, matches: impl Fn(&Event) -> bool) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.kept();
        (last(&kept, limit, matches), self.0.live.subscribe())
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.0.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn last(kept: &VecDeque<Event>, limit: usize, matches: impl Fn(&Event) -> bool) -> Vec<Event> {
    let mut found: Vec<Event> = kept.iter().rev().filter(|e| matches(e)).take(limit).cloned().collect();
    found.reverse();
    found
}

/// Denied packets, for those who capture them. The programs copy packets only while someone does. Clones share one.
#[derive(Clone)]
pub struct Captures(Arc<Hub>);

struct Hub {
    live: broadcast::Sender<Arc<Captured>>,
    capturing: Mutex<usize>,
    switch: Box<dyn Fn(bool) + Send + Sync>,
}

impl fmt::Debug for Captures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captures").finish_non_exhaustive()
    }
}

/// With nobody to switch on.
impl Default for Captures {
    fn default() -> Self {
        Self::new(|_| {})
    }
}

impl Captures {
    /// `switch` tells the programs whether to copy denied packets.
    pub fn new(switch: impl Fn(bool) + Send + Sync + 'static) -> Self {
        Self(Arc::new(Hub {
            live: broadcast::Sender::new(CAPTURED),
            capturing: Mutex::default(),
            switch: Box::new(switch),
        }))
    }

    /// Hands a packet to all who capture.
    pub fn push(&self, packet: Captured) {
        // Nobody is fine: the last one has just ended.
        let _ = self.0.live.send(Arc::new(packet));
    }

    /// Begins to capture, until the result is dropped.
    #[must_use]
    pub fn begin(&self) -> Capturing {
        let live = self.0.live.subscribe();
        let mut capturing = self.0.capturing();
        *capturing += 1;
        if *capturing == 1 {
            (self.0.switch)(true);
        }
        Capturing {
            live,
            hub: Arc::clone(&self.0),
        }
    }
}

impl Hub {
    fn capturing(&self) -> MutexGuard<'_, usize> {
        self.capturing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who captures.
pub struct Capturing {
    /// Denied packets as they come; one who lags more than 4,096 behind is told how many he lost.
    pub live: broadcast::Receiver<Arc<Captured>>,
    hub: Arc<Hub>,
}

impl Drop for Capturing {
    fn drop(&mut self) {
        let mut capturing = self.hub.capturing();
        *capturing -= 1;
        if *capturing == 0 {
            (self.hub.switch)(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn event(port: u16) -> Event {
        Denial {
            dport: port,
            ..Denial::default()
        }
        .into()
    }

    #[test]
    fn a_denial_is_blamed_on_the_address_that_the_packet_had() {
        let mapped: [u8; 16] = Ipv4Addr::new(10, 66, 0, 5).to_ipv6_mapped().octets();
        let source = |version| {
            Event::from(Denial {
                version,
                src: mapped,
                ..Denial::default()
            })
            .source
        };
        assert_eq!(source(4), Some("10.66.0.5".parse().unwrap()));
        assert_eq!(source(6), Some(IpAddr::V6(mapped.into())));
        assert_eq!(source(0), None);
    }

    #[tokio::test]
    async fn who_follows_gets_the_last_ones_then_the_rest_and_is_told_of_a_loss() {
        let denials = Denials::default();
        (1..=3).for_each(|p| denials.push(event(p)));
        let (last, mut live) = denials.follow(2, |_| true);
        assert_eq!(last.iter().map(|e| e.record.dport).collect::<Vec<_>>(), [2, 3]);
        denials.push(event(4));
        assert_eq!(live.recv().await.unwrap().record.dport, 4);
        (0..FOLLOWED as u16 + 10).for_each(|p| denials.push(event(p)));
        assert_eq!(live.recv().await, Err(broadcast::error::RecvError::Lagged(10)));
        assert_eq!(live.recv().await.unwrap().record.dport, 10);
        assert_eq!(denials.last(usize::MAX, |_| true).len(), KEPT, "the memory is bounded");
    }

    #[test]
    fn the_programs_copy_only_while_someone_captures() {
        let switched = Arc::new(AtomicU32::new(0));
        let seen = Arc::clone(&switched);
        // On is one, off is ten.
        let captures = Captures::new(move |on| {
            seen.fetch_add(if on { 1 } else { 10 }, Ordering::SeqCst);
        });
        let now = || switched.load(Ordering::SeqCst);
        let first = captures.begin();
        let second = captures.clone().begin();
        assert_eq!(now(), 1, "on, once");
        drop(first);
        assert_eq!(now(), 1);
        drop(second);
        assert_eq!(now(), 11, "off with the last");
        drop(captures.begin());
        assert_eq!(now(), 22);
    }
}
