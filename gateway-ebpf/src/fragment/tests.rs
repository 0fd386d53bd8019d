//! The memory of fragments by itself: what it keeps, what it refuses, when it forgets.

use std::{mem::zeroed, thread, vec::Vec};

use super::*;
use crate::{
    abi::Homes6,
    decide::tests::{FROM_CORE, FROM_DEVICE, Memory, RULES, address, memory},
    headers::FragmentKind,
};

fn fragment(id: u32, offset: u16, length: u16, more: bool) -> Fragment {
    Fragment {
        id,
        offset,
        length,
        more,
        kind: if offset == 0 {
            FragmentKind::First
        } else {
            FragmentKind::Later
        },
    }
}

fn first_headers() -> Headers {
    Headers {
        source: address(4, RULES),
        destination: address(4, 0),
        source_port: 40_000,
        destination_port: 443,
        version: 4,
        protocol: 17,
        tcp_flags: 1,
        icmp_type: 2,
        icmp_code: 3,
        ..Headers::default()
    }
}

fn later_headers() -> Headers {
    Headers {
        source_port: 0,
        destination_port: 0,
        tcp_flags: 0,
        icmp_type: 0,
        icmp_code: 0,
        ..first_headers()
    }
}

fn asked(memory: &Memory, now: u64, ask_for: Ask, f: Fragment, h: &mut Headers) -> Answer {
    memory.with(None, now, |t| ask(t, ask_for, Share::Session, FROM_DEVICE(), &f, h))
}

fn later(memory: &Memory, f: Fragment) -> Answer {
    asked(memory, 1_000, Ask::Later, f, &mut later_headers())
}

fn remember(memory: &Memory, f: Fragment) -> Answer {
    asked(memory, 1_000, Ask::Remember, f, &mut first_headers())
}

/// How often, and how often under Miri, which takes a thousand times as long.
const fn under_miri(otherwise: u32, there: u32) -> u32 {
    if cfg!(miri) { there } else { otherwise }
}

fn live(memory: &Memory) -> usize {
    memory
        .fragments
        .iter()
        .flat_map(|b| &b.records)
        .filter(|r| r.expires.get() != 0)
        .count()
}

#[test]
fn a_later_fragment_gets_what_the_first_had() {
    let memory = memory();
    assert_eq!(later(&memory, fragment(1, 1480, 8, false)), Answer::Unknown);
    assert_eq!(remember(&memory, fragment(1, 0, 1480, true)), Answer::Fine);
    let mut h = later_headers();
    assert_eq!(
        asked(&memory, 1_000, Ask::Later, fragment(1, 1480, 8, true), &mut h),
        Answer::Fine
    );
    assert_eq!(h, first_headers());
    // Another datagram in any part of the key.
    assert_eq!(later(&memory, fragment(2, 1488, 8, true)), Answer::Unknown);
    let other = [
        Headers {
            source: address(4, 9),
            ..later_headers()
        },
        Headers {
            destination: address(4, 9),
            ..later_headers()
        },
        Headers {
            protocol: 6,
            ..later_headers()
        },
        Headers {
            version: 6,
            ..later_headers()
        },
    ];
    for mut h in other {
        assert_eq!(
            asked(&memory, 1_000, Ask::Later, fragment(1, 1488, 8, true), &mut h),
            Answer::Unknown,
            "{h:?}"
        );
    }
    let elsewhere = |place: Place| {
        memory.with(None, 1_000, |t| {
            ask(
                t,
                Ask::Later,
                Share::Session,
                place,
                &fragment(1, 1488, 8, true),
                &mut later_headers(),
            )
        })
    };
    assert_eq!(
        elsewhere(Place {
            ifindex: 2,
            ..FROM_DEVICE()
        }),
        Answer::Unknown
    );
    assert_eq!(
        elsewhere(Place {
            hook: 9,
            ..FROM_DEVICE()
        }),
        Answer::Unknown
    );
    assert_eq!(elsewhere(FROM_DEVICE()), Answer::Fine);
}

/// Of IPv6, the protocol in a later fragment means nothing (RFC 8200, 4.5).
#[test]
fn the_protocol_of_a_later_ipv6_fragment_is_the_firsts() {
    let memory = memory();
    let mut h = Headers {
        version: 6,
        ..first_headers()
    };
    assert_eq!(
        asked(&memory, 1_000, Ask::Remember, fragment(1, 0, 8, true), &mut h),
        Answer::Fine
    );
    let mut h = Headers {
        version: 6,
        protocol: 60,
        ..later_headers()
    };
    assert_eq!(
        asked(&memory, 1_000, Ask::Later, fragment(1, 8, 8, true), &mut h),
        Answer::Fine
    );
    assert_eq!(h.protocol, 17);
}

#[test]
fn overlaps_poison_the_datagram() {
    // Offset, length and "more" of what follows 0..64 and 128..192.
    for (offset, length, more) in [
        (8, 8, true),
        (56, 8, true),
        (56, 16, true),
        (64, 72, true),
        (120, 16, true),
        (128, 64, false),
        (184, 16, true),
        (184, 8, false),
        (0, 64, true),
        (64, 8, false),
        (120, 3, false),
        (56, 65_000, true),
    ] {
        let memory = memory();
        remember(&memory, fragment(1, 0, 64, true));
        assert_eq!(later(&memory, fragment(1, 128, 64, true)), Answer::Fine);
        assert_eq!(
            later(&memory, fragment(1, offset, length, more)),
            Answer::Overlap,
            "{offset} {length} {more}"
        );
        assert_eq!(later(&memory, fragment(1, 1024, 8, true)), Answer::Overlap, "poisoned");
        assert_eq!(
            asked(&memory, 1_000, Ask::First, fragment(1, 0, 8, true), &mut first_headers()),
            Answer::Overlap
        );
        assert_eq!(remember(&memory, fragment(1, 0, 8, true)), Answer::Overlap);
    }
    for (offset, length, more) in [
        (64, 64, true),
        (192, 8, true),
        (192, 1, false),
        (65_528, 7, false),
        (64, 8, true),
        (120, 8, true),
        (128, 64, true),
        (136, 8, true),
        (184, 8, true),
    ] {
        let memory = memory();
        remember(&memory, fragment(1, 0, 64, true));
        assert_eq!(later(&memory, fragment(1, 128, 64, true)), Answer::Fine);
        assert_eq!(
            later(&memory, fragment(1, offset, length, more)),
            Answer::Fine,
            "{offset} {length} {more}"
        );
    }
}

#[test]
fn nothing_comes_behind_the_last_fragment() {
    let memory = memory();
    remember(&memory, fragment(1, 0, 64, true));
    assert_eq!(later(&memory, fragment(1, 128, 3, false)), Answer::Fine);
    assert_eq!(later(&memory, fragment(1, 136, 8, true)), Answer::Overlap);
}

/// Every split of a datagram into pieces, in any order, completes; the record is then free.
#[test]
fn a_complete_datagram_is_forgotten() {
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) as u32 % below
    };
    let memory = memory();
    for id in 0..under_miri(2_000, 20) {
        let total = 16 + random(65_520);
        let mut cuts: Vec<u32> = (0..random(7))
            .map(|_| 8 + random((total - 1) / 8) / 8 * 8 * 8)
            .filter(|c| *c < total)
            .collect();
        cuts.extend([0, 8, total]);
        cuts.sort_unstable();
        cuts.dedup();
        let mut pieces: Vec<(u32, u32)> = cuts.windows(2).map(|w| (w[0], w[1])).collect();
        let (start, end) = pieces.remove(0);
        assert_eq!(remember(&memory, fragment(id, start as u16, end as u16, true)), Answer::Fine);
        while !pieces.is_empty() {
            assert_eq!(live(&memory), 1);
            let (start, end) = pieces.swap_remove(random(pieces.len() as u32) as usize);
            let piece = fragment(id, start as u16, (end - start) as u16, end != total);
            assert_eq!(later(&memory, piece), Answer::Fine, "{id}: {start} to {end} of {total}");
        }
        assert_eq!(live(&memory), 0, "{id}: {total}");
        assert_eq!(later(&memory, fragment(id, 8, 8, true)), Answer::Unknown);
    }
}

#[test]
fn more_gaps_than_there_is_room_for() {
    let memory = memory();
    remember(&memory, fragment(1, 0, 8, true));
    for i in 1..8 {
        assert_eq!(later(&memory, fragment(1, i * 16, 8, true)), Answer::Fine);
    }
    assert_eq!(later(&memory, fragment(1, 128, 8, true)), Answer::Full);
    assert_eq!(later(&memory, fragment(1, 120, 8, true)), Answer::Fine, "beside another");
    assert_eq!(later(&memory, fragment(1, 128, 8, true)), Answer::Fine, "now too");
    assert_eq!(later(&memory, fragment(1, 8, 8, true)), Answer::Fine, "fills a gap");
    assert_eq!(later(&memory, fragment(1, 1024, 8, true)), Answer::Fine, "and makes room");
    assert_eq!(later(&memory, fragment(1, 128, 8, true)), Answer::Fine, "again");
    assert_eq!(later(&memory, fragment(1, 1024, 16, true)), Answer::Overlap);
}

/// A network may bring a fragment twice. What would give a receiver other ports, or another end, is none of these.
#[test]
fn duplicates_pass() {
    let memory = memory();
    assert_eq!(remember(&memory, fragment(1, 0, 64, true)), Answer::Fine);
    let first = |length, change: fn(&mut Headers)| {
        let mut h = first_headers();
        change(&mut h);
        [Ask::First, Ask::Remember].map(|ask| asked(&memory, 1_000, ask, fragment(1, 0, length, true), &mut h))
    };
    for _ in 0..2 {
        assert_eq!(first(64, |_| ()), [Answer::Fine; 2]);
        assert_eq!(later(&memory, fragment(1, 128, 3, false)), Answer::Fine);
    }
    assert_eq!(live(&memory), 1);
    // Data that another brought, and a datagram of its own for each that is not the same.
    type Change = fn(&mut Headers);
    let spoils: [(u16, Change); 6] = [
        (64, |h| h.source_port ^= 1),
        (64, |h| h.destination_port ^= 1),
        (64, |h| h.tcp_flags ^= 2),
        (64, |h| h.icmp_type ^= 8),
        (72, |_| ()),
        (56, |_| ()),
    ];
    for (length, change) in spoils {
        let memory = self::memory();
        remember(&memory, fragment(1, 0, 64, true));
        let mut h = first_headers();
        change(&mut h);
        assert_eq!(
            asked(&memory, 1_000, Ask::First, fragment(1, 0, length, true), &mut h),
            Answer::Overlap
        );
        assert_eq!(later(&memory, fragment(1, 64, 8, true)), Answer::Overlap, "poisoned");
    }
    assert_eq!(later(&memory, fragment(1, 128, 3, false)), Answer::Fine, "and the rest");
    assert_eq!(later(&memory, fragment(1, 64, 64, true)), Answer::Fine);
    assert_eq!(live(&memory), 0, "complete");
}

#[test]
fn records_expire_and_never_give_way() {
    let memory = memory();
    for id in 0..16 {
        assert_eq!(remember(&memory, fragment(id, 0, 64, true)), Answer::Fine);
    }
    assert_eq!(remember(&memory, fragment(16, 0, 64, true)), Answer::Full);
    for id in 0..16 {
        assert_eq!(later(&memory, fragment(id, 64, 8, true)), Answer::Fine, "still there");
    }
    let end = 1_000 + FRAGMENT_LIFE;
    let at = |now, ask, f, h: &mut Headers| asked(&memory, now, ask, f, h);
    assert_eq!(
        at(end - 1, Ask::Later, fragment(3, 72, 8, true), &mut later_headers()),
        Answer::Fine
    );
    assert_eq!(
        at(end - 1, Ask::Remember, fragment(16, 0, 64, true), &mut first_headers()),
        Answer::Full
    );
    assert_eq!(
        at(end, Ask::Later, fragment(3, 80, 8, true), &mut later_headers()),
        Answer::Unknown
    );
    assert_eq!(
        at(end, Ask::Remember, fragment(16, 0, 64, true), &mut first_headers()),
        Answer::Fine
    );
}

/// One device fills its own bucket only, on its way out and on its way in.
#[test]
fn a_device_fills_its_share() {
    let mut memory = memory();
    memory.control.fragment_bits = 6;
    // SAFETY: integers only.
    memory.fragments = (0..64).map(|_| unsafe { zeroed() }).collect();
    for id in 0..100 {
        remember(&memory, fragment(id, 0, 64, true));
        let mut back = Headers {
            source: [id; 4],
            destination: address(4, RULES),
            ..first_headers()
        };
        memory.with(None, 1_000, |t| {
            ask(
                t,
                Ask::Remember,
                Share::Session,
                FROM_CORE(),
                &fragment(id, 0, 64, true),
                &mut back,
            )
        });
    }
    let used = memory
        .fragments
        .iter()
        .filter(|b| b.records.iter().any(|r| r.expires.get() != 0))
        .count();
    assert_eq!((used, live(&memory)), (1, 16));
}

/// Whoever puts on every address of a pool, or of a /64, fills what is at rest, and takes nothing from a session.
#[test]
#[cfg_attr(miri, ignore = "100,000 packets")]
fn addresses_at_rest_leave_the_sessions_their_room() {
    let mut memory = memory();
    memory.control.fragment_bits = 6;
    // SAFETY: integers only.
    memory.fragments = (0..64).map(|_| unsafe { zeroed() }).collect();
    let flood = |version: u8, share: Share, source: &dyn Fn(u32) -> [u32; 4]| {
        let mut passed = 0;
        for i in 0..20_000 {
            let mut h = Headers {
                version,
                source: source(i),
                ..first_headers()
            };
            let f = fragment(i, 0, 64, true);
            passed +=
                u32::from(memory.with(None, 1_000, |t| ask(t, Ask::Remember, share, FROM_DEVICE(), &f, &mut h)) == Answer::Fine);
        }
        passed
    };
    // One /64: one bucket. Every IPv4 address: the quarter, no more.
    assert_eq!(flood(6, Share::AtRest, &|i| [1, 2, i, i * 7]), 16);
    assert_eq!(flood(4, Share::AtRest, &|i| [i * 256, 0, 0, 0]), 15 * 16);
    assert_eq!(flood(6, Share::AtRest, &|i| [i, 2, 3, 4]), 0);
    // Sessions have three quarters, all of them.
    assert_eq!(flood(4, Share::Session, &|_| [7, 0, 0, 0]), 16);
    assert_eq!(
        flood(6, Share::Delegated, &|i| [1, 3, i, i * 7]),
        16,
        "a /64 of a session is one"
    );
    assert_eq!(flood(6, Share::Session, &|i| [1, 2, i, i * 7]), 46 * 16);
}

/// Fragments of one datagram that a router spreads over two core interfaces belong together, and the hooks do not mix.
#[test]
fn core_interfaces_count_as_one() {
    let memory = memory();
    let at = |ask_for, place: Place, f: Fragment, mut h: Headers| {
        memory.with(None, 1_000, |t| ask(t, ask_for, Share::Session, place, &f, &mut h))
    };
    let core = |ifindex| Place { ifindex, ..FROM_CORE() };
    assert_eq!(
        at(Ask::Remember, core(3), fragment(1, 0, 64, true), first_headers()),
        Answer::Fine
    );
    assert_eq!(
        at(Ask::Later, core(4), fragment(1, 64, 64, true), later_headers()),
        Answer::Fine
    );
    assert_eq!(
        at(Ask::First, core(5), fragment(1, 0, 72, true), first_headers()),
        Answer::Overlap
    );
    let other = Place { hook: 9, ..core(3) };
    assert_eq!(
        at(Ask::Later, other, fragment(1, 128, 8, true), later_headers()),
        Answer::Unknown
    );
}

#[test]
fn a_busy_or_missing_bucket_counts_as_full() {
    let mut memory = memory();
    memory.fragments[0].lock.set(1);
    assert_eq!(remember(&memory, fragment(1, 0, 64, true)), Answer::Full);
    assert_eq!(later(&memory, fragment(1, 64, 64, true)), Answer::Full);
    memory.fragments.clear();
    assert_eq!(remember(&memory, fragment(1, 0, 64, true)), Answer::Full);
}

/// Threads at one bucket: each datagram passes whole or is counted as full, and the lock is free in the end.
#[test]
fn several_cpus_at_one_bucket() {
    let shared = memory();
    let (control, fragments, policy) = (&shared.control, &shared.fragments, &*shared.policy);
    let homes6 = &Homes6::new(&[]);
    thread::scope(|scope| {
        for thread in 0..4_u32 {
            scope.spawn(move || {
                let tables = crate::tables::MemTables {
                    control,
                    directory4: &[0; 65536],
                    chunks4: &[],
                    hash6: &[],
                    homes6,
                    policies: [policy; 3],
                    interfaces: &[],
                    fragments,
                    cold: &|_| None,
                    coarse_now: 1_000,
                    boot_now: 1_000,
                    about_boot_now: 1_000,
                };
                for round in 0..under_miri(2_000, 10) {
                    let id = thread << 16 | round;
                    let until = |ask_for, f, h: Headers| loop {
                        match ask(&tables, ask_for, Share::Session, FROM_DEVICE(), &f, &mut h.clone()) {
                            Answer::Full => thread::yield_now(),
                            other => break other,
                        }
                    };
                    assert_eq!(until(Ask::Remember, fragment(id, 0, 64, true), first_headers()), Answer::Fine);
                    assert_eq!(until(Ask::Later, fragment(id, 64, 64, true), later_headers()), Answer::Fine);
                    assert_eq!(until(Ask::Later, fragment(id, 128, 1, false), later_headers()), Answer::Fine);
                }
            });
        }
    });
    assert_eq!(shared.fragments[0].lock.get(), 0);
    assert_eq!(live(&shared), 0);
}
