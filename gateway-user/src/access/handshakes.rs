//! Who is in a handshake, so that peers that show nothing keep nobody out. Every connection that comes has a place: where all are taken, it is
//! that of the oldest handshake of the network, and in it of the address, that has most of them. Who finishes in time therefore always gets in,
//! however many others never do. Addresses from which someone with a role has come lose their places last. It knows no connection and no
//! certificate.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

/// Addresses that are remembered for those with a role who came from there; the last ones.
const KNOWN: usize = 1024;
/// Of connections that come to nothing, so many are told of in the log
const SAID: u32 = 32;
/// within this time.
const SPAN: Duration = Duration::from_secs(60);

/// Whence a connection comes: from the widest network to the address, which of IPv6 is a /64, of a local process its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin([u128; 3]);

impl Origin {
    /// IPv4: /16, /24 and the address; IPv6: /32, /48 and /64. An IPv4 address is the same one within IPv6 (RFC 4291, 2.5.5.2).
    pub(super) fn of(address: IpAddr) -> Self {
        let (address, lengths) = match address.to_canonical() {
            IpAddr::V4(a) => (a.to_ipv6_mapped(), [112, 120, 128]),
            IpAddr::V6(a) => (a, [32, 48, 64]),
        };
        Self(lengths.map(|length| first_bits(address, length)))
    }

    /// A process on this host.
    pub(super) fn user(uid: u32) -> Self {
        Self([u128::from(uid); 3])
    }

    const fn address(self) -> u128 {
        self.0[2]
    }
}

fn first_bits(address: Ipv6Addr, length: u32) -> u128 {
    u128::from(address) & u128::MAX << (128 - length)
}

/// All handshakes under way. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Handshakes(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    most: usize,
    next: u64,
    under_way: HashMap<u64, UnderWay>,
    strangers: Group,
    known: Group,
    /// [`Origin::address`], the one that came last at the end.
    addresses: VecDeque<u128>,
    /// Of strangers; of who has a role.
    logs: [Log; 2],
}

#[derive(Debug)]
struct UnderWay {
    origin: Origin,
    known: bool,
    /// Dropped, the handshake ends.
    _cord: oneshot::Sender<()>,
}

/// A handshake's place; dropped, it is free.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    all: Handshakes,
    cut: oneshot::Receiver<()>,
}

impl Place {
    /// Ends when someone else has the place.
    pub(super) async fn lost(&mut self) {
        // Nothing is ever sent: its end is what is told.
        let _ = (&mut self.cut).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().end(self.id);
    }
}

impl Handshakes {
    /// None yet; so many at a time.
    pub(super) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            most: most.max(1),
            next: 0,
            under_way: HashMap::new(),
            strangers: Group::new(0),
            known: Group::new(0),
            addresses: VecDeque::new(),
            logs: std::array::from_fn(|_| Log::new(Instant::now())),
        })))
    }

    /// One more, which may take another one's place.
    pub(super) fn begin(&self, origin: Origin) -> Place {
        let (cord, cut) = oneshot::channel();
        let id = self.lock().begin(origin, cord);
        let all = self.clone();
        Place { id, all, cut }
    }

    /// Someone with a role has come from there.
    pub(super) fn know(&self, origin: Origin) {
        let addresses = &mut self.lock().addresses;
        let address = origin.address();
        match addresses.iter().position(|a| *a == address) {
            Some(at) => drop(addresses.remove(at)),
            None if addresses.len() == KNOWN => drop(addresses.pop_front()),
            None => {}
        }
        addresses.push_back(address);
    }

    /// Whether a connection that came to nothing is told of in the log, and how many before it were not: anyone can make more of them than a
    /// disk takes. Strangers do not hide what is said of those with a role.
    pub(super) fn may_say(&self, has_role: bool) -> Option<u64> {
        self.lock().logs[usize::from(has_role)].may_say(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock leaves half a change behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn begin(&mut self, origin: Origin, cord: oneshot::Sender<()>) -> u64 {
        let (id, known) = (self.next, self.addresses.contains(&origin.address()));
        self.next += 1;
        self.group(known).add(&origin.0, id);
        let one = UnderWay {
            origin,
            known,
            _cord: cord,
        };
        self.under_way.insert(id, one);
        if self.under_way.len() > self.most
            && let Some(loser) = self.strangers.loser().or_else(|| self.known.loser())
        {
            self.end(loser);
        }
        id
    }

    fn end(&mut self, id: u64) {
        if let Some(UnderWay { origin, known, .. }) = self.under_way.remove(&id) {
            self.group(known).remove(&origin.0, id);
        }
    }

    const fn group(&mut self, known: bool) -> &mut Group {
        if known { &mut self.known } else { &mut self.strangers }
    }
}

/// Handshakes by where they come from: of a network those of its parts, of an address the handshakes themselves.
#[derive(Debug)]
struct Group {
    /// The first one's number: of two that are as large, the older loses a place.
    since: u64,
    size: usize,
    parts: HashMap<u128, Group>,
    by_size: BTreeSet<(usize, Reverse<u64>, u128)>,
    members: BTreeSet<u64>,
}

impl Group {
    fn new(since: u64) -> Self {
        Self {
            since,
            size: 0,
            parts: HashMap::new(),
            by_size: BTreeSet::new(),
            members: BTreeSet::new(),
        }
    }

    const fn rank(&self, key: u128) -> (usize, Reverse<u64>, u128) {
        (self.size, Reverse(self.since), key)
    }

    fn add(&mut self, path: &[u128], id: u64) {
        self.size += 1;
        let Some((key, path)) = path.split_first() else {
            self.members.insert(id);
            return;
        };
        let part = self.parts.entry(*key).or_insert_with(|| Self::new(id));
        self.by_size.remove(&part.rank(*key));
        part.add(path, id);
        self.by_size.insert(part.rank(*key));
    }

    fn remove(&mut self, path: &[u128], id: u64) {
        self.size -= 1;
        let Some((key, path)) = path.split_first() else {
            self.members.remove(&id);
            return;
        };
        let Some(part) = self.parts.get_mut(key) else { return };
        self.by_size.remove(&part.rank(*key));
        part.remove(path, id);
        if part.size == 0 {
            self.parts.remove(key);
        } else {
            self.by_size.insert(part.rank(*key));
        }
    }

    /// Whose place is given away.
    fn loser(&self) -> Option<u64> {
        match self.by_size.last() {
            Some((_, _, largest)) => self.parts.get(largest)?.loser(),
            None => self.members.first().copied(),
        }
    }
}

#[derive(Debug)]
struct Log {
    since: Instant,
    said: u32,
    left_out: u64,
}

impl Log {
    const fn new(since: Instant) -> Self {
        Self {
            since,
            said: 0,
            left_out: 0,
        }
    }

    fn may_say(&mut self, now: Instant) -> Option<u64> {
        if now.duration_since(self.since) >= SPAN {
            (self.since, self.said) = (now, 0);
        }
        if self.said == SAID {
            self.left_out += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(address: &str) -> Origin {
        Origin::of(address.parse().unwrap())
    }

    /// Whether it still has its place.
    fn has(place: &mut Place) -> bool {
        place.cut.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written() {
        assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
        assert_eq!(origin("2001:db8:0:1::1"), origin("2001:db8:0:1:ffff::2"));
        assert_ne!(origin("2001:db8:0:1::1"), origin("2001:db8:0:2::1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_ne!(Origin::user(0), Origin::user(1000));
    }

    /// Others open more than there is room for, from so many addresses as they have, each time before one comes; it then has as many others' places
    /// to lose before its own as there are.
    #[test]
    fn who_finishes_keeps_its_place_whoever_else_comes() {
        const MOST: usize = 64;
        type From = fn(u32) -> String;
        let networks: [(&str, From); 5] = [
            ("one address", |_| "10.0.0.1".into()),
            ("a /24, its own", |i| format!("198.51.100.{}", 10 + i % 200)),
            ("2,000 addresses of a LAN", |i| format!("10.9.{}.{}", i / 250 % 8, i % 250)),
            ("a /48", |i| format!("2001:db8:7:{:x}::1", i % 65_536)),
            ("one each of many networks", |i| {
                format!("{}.{}.0.1", 11 + i / 200 % 100, i % 200)
            }),
        ];
        for (what, address) in networks {
            let all = Handshakes::new(MOST);
            let (mut others, mut last) = (VecDeque::new(), 0);
            let mut come = |others: &mut VecDeque<Place>, many| {
                for _ in 0..many {
                    others.push_back(all.begin(origin(&address(last))));
                    last += 1;
                    if others.len() > 4 * MOST {
                        others.pop_front();
                    }
                }
            };
            for _ in 0..20 {
                come(&mut others, 2 * MOST);
                let mut one = all.begin(origin("198.51.100.1"));
                assert!(has(&mut one), "{what}");
                // Of as many networks as there are places, each has one: then the oldest goes.
                come(&mut others, MOST - 1);
                assert!(has(&mut one), "{what}");
                assert!(all.lock().under_way.len() <= MOST);
            }
        }
    }

    #[test]
    fn an_address_with_many_loses_its_oldest() {
        let all = Handshakes::new(4);
        let mut many: Vec<Place> = (0..4).map(|_| all.begin(origin("10.0.0.1"))).collect();
        let mut others: Vec<Place> = ["10.0.0.2", "10.0.1.1", "10.1.0.1"].map(|a| all.begin(origin(a))).into();
        assert_eq!(many.iter_mut().map(has).collect::<Vec<_>>(), [false, false, false, true]);
        assert!(others.iter_mut().all(has));
        drop((many, others));
        let inner = all.lock();
        assert_eq!(
            (inner.under_way.len(), inner.strangers.size, inner.strangers.parts.len()),
            (0, 0, 0)
        );
        assert!(inner.strangers.by_size.is_empty());
    }

    #[test]
    fn where_someone_with_a_role_came_from_loses_its_place_last() {
        let all = Handshakes::new(4);
        all.know(origin("192.0.2.1"));
        let mut known: Vec<Place> = (0..3).map(|_| all.begin(origin("192.0.2.1"))).collect();
        let mut strangers: Vec<Place> = (0..100).map(|i| all.begin(origin(&format!("10.{i}.0.1")))).collect();
        assert!(known.iter_mut().all(has));
        assert_eq!(strangers.iter_mut().filter_map(|s| has(s).then_some(())).count(), 1);
        // It is not shut out by its like.
        let mut more: Vec<Place> = (0..4).map(|_| all.begin(origin("192.0.2.1"))).collect();
        assert!(more.iter_mut().all(has) && !known.iter_mut().any(has));
        for i in 0..u32::try_from(KNOWN).unwrap() {
            all.know(Origin::of(IpAddr::from((0x0a00_0000 + i).to_be_bytes())));
        }
        assert_eq!(all.lock().addresses.len(), KNOWN);
        assert!(!all.lock().addresses.contains(&origin("192.0.2.1").address()));
    }

    #[test]
    fn the_log_is_told_of_a_few() {
        let start = Instant::now();
        let mut log = Log::new(start);
        assert!((0..SAID).all(|_| log.may_say(start) == Some(0)));
        assert!((0..1000).all(|_| log.may_say(start + Duration::from_secs(1)).is_none()));
        assert_eq!(log.may_say(start + SPAN), Some(1000));
    }
}
