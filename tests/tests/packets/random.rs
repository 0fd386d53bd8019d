//! Random packets against random tables: the loaded object does what the host's build says. The seed is fixed; `LAZARET_TEST_SEED` gives
//! another, `LAZARET_TEST_CASES` more cases.

use std::{
    collections::HashSet,
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use gateway_ebpf::abi::{CLASS_LEASED, Cold, Dst6, Home6, Homes6, LEVEL_NEXT, POOL_ALL, POOL_BLOCKED, Policy};
use ipnetwork::Ipv6Network;

use crate::{
    frame::Packet,
    object::open,
    table::{ENTRY_POINTS, agrees, judge},
    world::{Description, World, key, words6},
};

/// xorshift64*, Vigna 2016.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
    /// Once in `n` times.
    fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
    fn sometimes<T>(&mut self, n: u64, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.once_in(n) { Some(value(self)) } else { None }
    }
}

/// Few enough that two random ends often mean something.
fn address(r: &mut Random, v4: bool) -> IpAddr {
    let low = r.below(12) as u8;
    if v4 {
        IpAddr::V4(Ipv4Addr::new(10, 66 + r.below(3) as u8, r.below(2) as u8, low))
    } else {
        IpAddr::V6(Ipv6Addr::new(
            r.one_of(&[0xfd66, 0xfd67, 0xfe80, 0]),
            0,
            0,
            r.below(2) as u16,
            0,
            0,
            0,
            low.into(),
        ))
    }
}

fn world(r: &mut Random) -> World {
    let mut world = World::new(&Description {
        pool: Vec::new(),
        leased: Vec::new(),
        vlans: Vec::new(),
    });
    world.control.generation = r.below(2) as u32;
    world.control.earliest_lease_end = r.one_of(&[0, u64::MAX]);
    let mut held = HashSet::new();
    for _ in 0..60 {
        let v4 = r.once_in(2);
        let address = address(r, v4);
        let v6_zero = matches!(address, IpAddr::V6(a) if a.segments()[..4] == [0; 4]);
        if v6_zero || !held.insert(address) {
            continue;
        }
        let leased = if r.once_in(3) { CLASS_LEASED } else { 0 };
        world.set_class(address.into(), r.below(9) as u8 | leased);
        if leased != 0 && !r.once_in(4) {
            let cold = Cold {
                lease_end: r.one_of(&[1, u64::MAX]),
                session: 1,
                fallback: r.below(9),
            };
            world.cold.insert(key(address.into()), cold);
        }
    }
    let homes: Vec<Home6> = (0..r.below(5))
        .map(|_| {
            let (prefix, mask) = prefix6(r);
            Home6 {
                prefix,
                mask,
                class: r.below(9),
            }
        })
        .collect();
    *world.homes6 = Homes6::new(&homes);
    if r.once_in(2) {
        // Single addresses outside of them.
        world.homes6.common_mask = 0;
    }
    for policy in &mut world.policies {
        fill(policy, r);
    }
    world
}

fn prefix6(r: &mut Random) -> ([u64; 2], [u64; 2]) {
    let IpAddr::V6(address) = address(r, false) else {
        unreachable!()
    };
    let network = Ipv6Network::new(address, r.one_of(&[0, 16, 64, 65, 127, 128])).unwrap();
    (words6(network.network().octets()), words6(network.mask().octets()))
}

fn fill(policy: &mut Policy, r: &mut Random) {
    for pool in &mut policy.pools {
        pool.flags = r.one_of(&[0, 0, 0, POOL_ALL, POOL_ALL, POOL_BLOCKED, POOL_ALL | POOL_BLOCKED]);
    }
    let entry = |r: &mut Random| {
        if r.once_in(3) {
            r.below(64) as u16
        } else {
            LEVEL_NEXT | r.below(256) as u16
        }
    };
    policy.level1.iter_mut().for_each(|e| *e = entry(r));
    policy.level2.iter_mut().flatten().for_each(|e| *e = entry(r));
    policy.level3.iter_mut().flatten().for_each(|e| *e = r.below(64) as u16);
    policy
        .tcp
        .iter_mut()
        .chain(&mut policy.udp)
        .chain(&mut policy.protocols)
        .for_each(|g| *g = r.below(64) as u8);
    policy.dst6_count = r.below(6);
    for dst in &mut policy.dst6[..6] {
        let (prefix, mask) = prefix6(r);
        *dst = Dst6 {
            prefix,
            mask,
            group: r.below(64),
        };
    }
    policy
        .rules
        .iter_mut()
        .flatten()
        .flatten()
        .for_each(|rule| *rule = r.below(2) as u16);
}

fn packet(r: &mut Random) -> Packet {
    let v4 = r.once_in(2);
    let kind = r.below(10);
    let end = |r: &mut Random| {
        let address = address(r, v4);
        Some(if kind < 7 {
            std::net::SocketAddr::new(address, r.below(8) as u16 * 1000).to_string()
        } else {
            address.to_string()
        })
    };
    let (from, to) = (end(r), end(r));
    Packet {
        from,
        to,
        tcp: (kind < 4).then(|| r.one_of(&["S", "SA", "A", "R", "SF", ""]).to_owned()),
        udp: (4..7).contains(&kind),
        icmp: (7..9).contains(&kind).then(|| {
            [
                r.one_of(&[0, 1, 3, 5, 8, 128, 129, 133, 134, 135, 136, 137]),
                r.below(8) as u8 / 7,
            ]
        }),
        protocol: (kind == 9).then(|| r.below(256) as u8),
        hops: Some(r.one_of(&[64, 255])),
        arp: r.sometimes(40, |r| r.below(4) as u16),
        options: if r.once_in(30) { r.below(11) as u8 } else { 0 },
        header_words: r.sometimes(60, |r| r.below(16) as u8),
        version: r.sometimes(60, |r| r.below(16) as u8),
        length: r.sometimes(30, |r| r.below(80) as u16),
        fragment: r.sometimes(20, |r| r.next() as u16),
        extension: r.sometimes(20, |r| r.one_of(&[0, 43, 44, 51, 60, 135, 139, 140])),
        tcp_words: r.sometimes(20, |r| r.below(16) as u8),
        udp_length: r.sometimes(20, |r| r.below(30) as u16),
        cut: r.sometimes(40, |r| r.below(60) as usize),
        padding: if r.once_in(2) { 60 } else { 0 },
        ethertype: r.sometimes(50, |r| r.one_of(&[0x0026, 0x0806, 0x86dd, 0x0800, 0x888e, 0x8100])),
        tags: if r.once_in(30) {
            vec![0x8100; 1 + r.below(3) as usize]
        } else {
            Vec::new()
        },
        arp_form: None,
        ..Packet::default()
    }
}

#[test]
fn random_packets_against_random_tables() {
    let Some(object) = open("random_packets_against_random_tables") else {
        return;
    };
    let number = |name: &str, or: u64| env::var(name).map_or(or, |v| v.parse().unwrap());
    let seed = number("LAZARET_TEST_SEED", 0x1a2a_2e75);
    let cases = number("LAZARET_TEST_CASES", 4_000);
    let mut r = Random(seed);
    let mut state = world(&mut r);
    state.write(&object);
    let (mut reasons, mut runs) = (HashSet::new(), 0);
    for case in 0..cases {
        if case % 400 == 399 {
            for key in state.cold.keys() {
                object.remove(gateway_ebpf::abi::map::COLD, key);
            }
            state = world(&mut r);
            state.write(&object);
        }
        let description = packet(&mut r);
        let point = r.one_of(&ENTRY_POINTS);
        let mut bytes = description.bytes(point.place.ethernet);
        for _ in 0..r.below(12).saturating_sub(8) {
            let at = r.below(bytes.len() as u64 + 1) as usize;
            if let Some(byte) = bytes.get_mut(at) {
                *byte = r.next() as u8;
            }
        }
        let (verdict, h) = judge(&state, point.place, &bytes);
        match agrees(&object, &point, &bytes, &verdict, &h) {
            Ok(run) => runs += u64::from(run),
            Err(e) => panic!("seed {seed:#x}, case {case}: {verdict:?} of {h:?}\n{e}\n{bytes:02x?}\n{description:?}"),
        }
        reasons.insert(verdict.reason);
    }
    println!("{runs} of {cases} cases ran in the kernel; {} reasons", reasons.len());
    assert!(runs > cases * 9 / 10 && reasons.len() >= 25, "{runs} runs, {reasons:?}");
}
