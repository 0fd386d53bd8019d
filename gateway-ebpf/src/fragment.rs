//! What is remembered of datagrams in fragments: ports and extent, so that every fragment is judged like the first, and none covers what
//! another has brought. It decides nothing beyond that.
//!
//! The memory is an array of [`FragmentBucket`]s. The device's end of a packet chooses the bucket, so that one device fills its own share
//! only. Addresses at rest, which anyone on their interface may put on, have a quarter of the buckets and share one by /64; sessions have the
//! rest. A live record is never evicted; one that has expired, or whose datagram is complete, is free. A bucket that another CPU is at is
//! tried a few times, and then counts as full.

use crate::{
    abi::{
        BUCKET_FRAGMENTS, Class, ClassEntry, Control, ENTRY_DELEGATED, FRAGMENT_LIFE, FragmentBucket, FragmentRecord,
        FragmentWork, MAX_POOLS, Shared, mix6,
    },
    decide::{Direction, Place, Role},
    headers::{Fragment, Headers, words},
    judge::Ends,
    tables::{Tables, read},
};

/// How often a bucket is tried that another CPU is at.
const TRIES: u32 = 64;

/// What tells datagrams apart: source, destination; interface and identification; hook, version and, for IPv4, protocol (RFC 791; the
/// protocol in IPv6's fragment header counts only in the first one, RFC 8200, 4.5). The interfaces of role `core` count as one: a router may
/// spread the fragments of a datagram over several.
pub type Key = [u64; 6];

/// The key of a fragment's datagram.
#[inline(always)]
#[must_use]
pub fn key(place: Place, h: &Headers, fragment: &Fragment) -> Key {
    let ([a, b], [c, d]) = (words(h.source), words(h.destination));
    let protocol = if h.version == 4 { u64::from(h.protocol) } else { 0 };
    let interface = if place.is_core() { 0 } else { place.ifindex };
    [
        a,
        b,
        c,
        d,
        u64::from(interface) << 32 | u64::from(fragment.id),
        u64::from(place.hook) << 16 | u64::from(h.version) << 8 | protocol,
    ]
}

/// Whose share of a memory is taken, this one's or that of answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// That of a session's address.
    Session,
    /// That of a session's IPv6 /64.
    Delegated,
    /// That of addresses without one.
    AtRest,
}

impl Share {
    /// By the end that is a device at this place.
    #[inline(always)]
    #[must_use]
    pub fn of(place: Place, ends: &Ends) -> Self {
        if is_from_device(place) {
            Self::of_source(ends)
        } else {
            Self::of_end(ends.destination_class, ends.destination)
        }
    }

    /// By the source.
    #[inline(always)]
    #[must_use]
    pub const fn of_source(ends: &Ends) -> Self {
        Self::of_end(ends.source_class, ends.source)
    }

    #[inline(always)]
    const fn of_end(class: Class, entry: ClassEntry) -> Self {
        if class <= MAX_POOLS {
            Self::AtRest
        } else if entry & ENTRY_DELEGATED != 0 {
            Self::Delegated
        } else {
            Self::Session
        }
    }

    /// Where an address ([`words`]) comes among so many places, a power of two: at rest in the first quarter, of a session behind it. An IPv6 /64 has one,
    /// but for the addresses in it that sessions have by themselves.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, address: [u64; 2], places: u32) -> u32 {
        // An IPv4 address is all in the first word.
        let mixed = mix6(if matches!(self, Self::Session) {
            address
        } else {
            [address[0], 0]
        });
        let quarter = places / 4;
        if quarter == 0 {
            return mixed as u32 & (places - 1);
        }
        // The first quarter, or one of the other three.
        let which = match self {
            Self::AtRest => 0,
            Self::Session | Self::Delegated => 1 + (mixed >> 32) as u32 % 3,
        };
        which * quarter + (mixed as u32 & (quarter - 1))
    }
}

#[inline(always)]
const fn is_from_device(place: Place) -> bool {
    matches!((place.role, place.direction), (Role::Device, Direction::Ingress))
}

/// The bucket of a datagram: by the end that is a device at this place.
#[inline(always)]
fn bucket_of(control: &Control, place: Place, share: Share, key: &Key) -> u32 {
    let device = if is_from_device(place) {
        [key[0], key[1]]
    } else {
        [key[2], key[3]]
    };
    share.slot(device, 1_u32 << (read(&control.fragment_bits) & 31))
}

/// What is asked of the memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Whether a first fragment may come.
    First,
    /// What a later fragment belongs to; it is entered.
    Later,
    /// To remember a first fragment.
    Remember,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing stands against it.
    Fine,
    /// There is no live record.
    Unknown,
    /// It covers what has arrived, and is no duplicate; or another one did.
    Overlap,
    /// There is no room, or another CPU is at it.
    Full,
}

/// Asks; with [`Ask::Later`], `h` gets the first one's transport. A called function in the kernel.
#[inline(never)]
pub fn ask<T: Tables>(t: &T, ask: Ask, share: Share, place: Place, fragment: &Fragment, h: &mut Headers) -> Answer {
    let Some(control) = t.control() else {
        return Answer::Full;
    };
    let key = key(place, h, fragment);
    let Some(bucket) = t.fragments(bucket_of(control, place, share, &key)) else {
        return Answer::Full;
    };
    if !lock(t, bucket) {
        return Answer::Full;
    }
    let answer = locked(bucket, ask, &key, fragment, h, t.coarse_now(), t.remembers());
    t.exchange(&bucket.lock, 0);
    answer
}

#[inline(always)]
fn lock<T: Tables>(t: &T, bucket: &FragmentBucket) -> bool {
    for _ in 0..TRIES {
        if t.exchange(&bucket.lock, 1) == 0 {
            return true;
        }
    }
    false
}

#[inline(always)]
fn locked(
    bucket: &FragmentBucket,
    ask: Ask,
    key: &Key,
    fragment: &Fragment,
    h: &mut Headers,
    now: u64,
    remembers: bool,
) -> Answer {
    const NONE: u64 = BUCKET_FRAGMENTS as u64;
    let work = &bucket.work;
    work.known.set(NONE);
    work.free.set(NONE);
    for (i, record) in bucket.records.iter().enumerate() {
        if record.expires.get() <= now {
            work.free.set(i as u64);
        } else if is(record, key) {
            work.known.set(i as u64);
        }
    }
    let known = work.known.get() != NONE;
    match ask {
        Ask::First if !known => return Answer::Fine,
        Ask::Later if !known => return Answer::Unknown,
        Ask::Remember if !known && work.free.get() == NONE => return Answer::Full,
        _ => {}
    }
    let chosen = if known { &work.known } else { &work.free };
    let record = &bucket.records[chosen.get() as usize % BUCKET_FRAGMENTS];
    if known && ask != Ask::Later && record.poisoned.get() == 0 && is_first_again(record, fragment, h) {
        return Answer::Fine;
    }
    if known && (ask != Ask::Later || record.poisoned.get() != 0) {
        if remembers {
            record.poisoned.set(1);
        }
        return Answer::Overlap;
    }
    if !known {
        if !remembers {
            // With nothing there, it is in nothing's way.
            return Answer::Fine;
        }
        begin(record, key, fragment, h);
        record.expires.set(now.saturating_add(FRAGMENT_LIFE));
    }
    match enter(work, record, fragment, remembers) {
        Entered::Overlap => {
            if remembers {
                record.poisoned.set(1);
            }
            return Answer::Overlap;
        }
        Entered::NoRoom => return Answer::Full,
        Entered::Whole => record.expires.set(0),
        Entered::Part | Entered::Again => {}
    }
    recall(record, h);
    Answer::Fine
}

#[inline(always)]
fn is(record: &FragmentRecord, key: &Key) -> bool {
    let mut difference = 0;
    for (a, b) in record.key.iter().zip(key) {
        difference |= a.get() ^ *b;
    }
    difference == 0
}

/// Whether a first fragment is the one that was remembered, as far as it is judged: as long, and of the same transport. A network may duplicate it, and
/// whichever of the two a receiver keeps has the ports that all are judged by.
#[inline(always)]
fn is_first_again(record: &FragmentRecord, fragment: &Fragment, h: &Headers) -> bool {
    record.first.get() == u32::from(fragment.length) && record.ports.get() == ports(h) && record.kind.get() == kind(h)
}

#[inline(always)]
fn ports(h: &Headers) -> u32 {
    u32::from(h.destination_port) << 16 | u32::from(h.source_port)
}

#[inline(always)]
const fn kind(h: &Headers) -> u32 {
    u32::from_le_bytes([h.tcp_flags, h.icmp_type, h.icmp_code, h.protocol])
}

#[inline(always)]
fn begin(record: &FragmentRecord, key: &Key, fragment: &Fragment, h: &Headers) {
    for (to, from) in record.key.iter().zip(key) {
        to.set(*from);
    }
    record.ports.set(ports(h));
    record.kind.set(kind(h));
    record.first.set(fragment.length.into());
    record.poisoned.set(0);
    record.highest.set(0);
    record.total.set(0);
    for piece in &record.pieces {
        piece.set(0);
    }
}

#[inline(always)]
fn recall(record: &FragmentRecord, h: &mut Headers) {
    let ports = record.ports.get();
    h.source_port = ports as u16;
    h.destination_port = (ports >> 16) as u16;
    let [tcp_flags, icmp_type, icmp_code, protocol] = record.kind.get().to_le_bytes();
    h.tcp_flags = tcp_flags;
    h.icmp_type = icmp_type;
    h.icmp_code = icmp_code;
    h.protocol = protocol;
}

/// What has become of a fragment's data.
#[derive(Clone, Copy)]
enum Entered {
    /// It is in.
    Part,
    /// It is in, and nothing is missing.
    Whole,
    /// All of it was there, none of it in the first fragment: a duplicate, or the policy denied it before.
    Again,
    /// Some of it was there already, or it contradicts where the datagram ends.
    Overlap,
    /// There are too many gaps.
    NoRoom,
}

#[inline(always)]
fn enter(work: &FragmentWork, record: &FragmentRecord, fragment: &Fragment, remembers: bool) -> Entered {
    let begin = u64::from(fragment.offset);
    let end = begin + u64::from(fragment.length);
    let (total, highest) = (u64::from(record.total.get()), u64::from(record.highest.get()));
    if total != 0 && end > total || !fragment.more && highest > end {
        return Entered::Overlap;
    }
    work.flags.set(0);
    for (at, from) in [&work.data, &work.joined].into_iter().flatten().zip([begin, end, begin, end]) {
        at.set(from);
    }
    let data = || work.data.each_ref().map(Shared::get);
    for piece in &record.pieces {
        let ([begin, end], [first, behind]) = (data(), bounds(piece.get()));
        if begin < behind && first < end {
            let all = if first <= begin && end <= behind { WITHIN } else { 0 };
            work.flags.set(work.flags.get() | OVERLAP | all);
        }
        if behind == begin {
            work.joined[0].set(first);
        }
        if first == end {
            work.joined[1].set(behind);
        }
        if behind == 0 || behind == begin || first == end {
            work.flags.set(work.flags.get() | ROOM);
        }
    }
    // The transport header is in the first fragment: what covers that could give a receiver other ports.
    let heads = u64::from(record.first.get());
    let again = heads != 0
        && begin >= heads
        && if fragment.more {
            total == 0 || end < total
        } else {
            end == total
        };
    match work.flags.get() {
        ROOM => {}
        0 => return Entered::NoRoom,
        flags if flags & WITHIN != 0 && again => return Entered::Again,
        _ => return Entered::Overlap,
    }
    if !remembers {
        return Entered::Part;
    }
    let [from, to] = work.joined.each_ref().map(Shared::get);
    if !fragment.more {
        record.total.set(end as u32);
    }
    if end > highest {
        record.highest.set(end as u32);
    }
    if from == 0 && to == u64::from(record.total.get()) {
        return Entered::Whole;
    }
    // It takes the place of its neighbours, or a free one.
    work.joined[0].set(from | to << 32);
    for piece in &record.pieces {
        let ([begin, end], [first, behind]) = (data(), bounds(piece.get()));
        if behind == 0 || behind == begin || first == end {
            piece.set(work.joined[0].get());
            work.joined[0].set(0);
        }
    }
    Entered::Part
}

/// In [`FragmentWork::flags`].
const OVERLAP: u64 = 1;
/// In [`FragmentWork::flags`].
const ROOM: u64 = 2;
/// In [`FragmentWork::flags`].
const WITHIN: u64 = 4;

#[inline(always)]
const fn bounds(piece: u64) -> [u64; 2] {
    [piece & 0xffff_ffff, piece >> 32]
}

#[cfg(test)]
mod tests;
