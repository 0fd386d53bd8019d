//! What the loaded object does besides judging one packet: leases against the kernel's clocks, observing, marks, the guard, events, a
//! table that cannot be read, and buffers in several pieces.

use std::{thread::sleep, time::Duration};

use gateway_ebpf::{
    abi::{
        CLASS_LEASED, Cold, Denial, FLAG_OBSERVE, MARK_FROM_DEVICE, MARK_GRANT, MARK_GRANT_MASK, MARK_OBSERVED, hook, map, mark,
        meta_magic, program,
    },
    decide::{Direction, Place, Role},
    reason::Reason,
};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

use crate::{
    object::{IFINDEX, META_KEY, Object, SkBuff, open},
    table::{TC_ACT_SHOT, TCX_NEXT, Table, XDP_DROP, XDP_PASS, judge},
    world::{World, key},
};

/// The bytes of an entry of the table.
fn packet(table: &Table, name: &str, ethernet: bool) -> Vec<u8> {
    let entry = table
        .packet
        .iter()
        .find(|e| e.name == name)
        .unwrap_or_else(|| panic!("no entry {name}"));
    let mut bytes = entry.is.bytes(ethernet);
    bytes.resize(bytes.len().max(64), 0);
    bytes
}

/// The object with the table's world.
fn start(test: &str) -> Option<(Object, Table, World)> {
    let object = open(test)?;
    let table = Table::read();
    let world = World::new(&table.world);
    world.write(&object);
    Some((object, table, world))
}

fn packets(object: &Object, pool: u8, reason: Reason) -> u64 {
    object.counters()[usize::from(pool)][reason as usize].packets
}

fn nanoseconds(clock: ClockId) -> u64 {
    let t = clock_gettime(clock).unwrap();
    t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64
}

/// A lease ends by itself, without the daemon; renewed, it holds; without its record, it does not.
#[test]
fn a_lease_ends_in_the_kernel() {
    let Some((object, table, mut world)) = start("a_lease_ends_in_the_kernel") else {
        return;
    };
    let frame = packet(&table, "quarantined, to the mail server", true);
    let action = || object.run(program::XDP_DEVICE, &frame, 0).action;
    let address = "10.66.0.5/32".parse().unwrap();
    world.set_class(address, 2 | CLASS_LEASED);
    let lease = Duration::from_millis(300);
    let in_a_moment = |clock| nanoseconds(clock) + lease.as_nanos() as u64;
    world.control.earliest_lease_end = in_a_moment(ClockId::CLOCK_BOOTTIME);
    world.cold.insert(
        key(address),
        Cold {
            lease_end: in_a_moment(ClockId::CLOCK_BOOTTIME),
            session: 7,
            fallback: 1,
        },
    );
    world.write(&object);
    assert_eq!(action(), XDP_PASS, "the lease runs");
    sleep(lease + Duration::from_millis(50));
    assert_eq!(action(), XDP_DROP, "the lease has ended");
    assert_eq!(packets(&object, 1, Reason::LeaseEnded), 1);

    object.set(
        map::COLD,
        &key(address),
        &Cold {
            lease_end: u64::MAX,
            session: 7,
            fallback: 1,
        },
    );
    assert_eq!(action(), XDP_PASS, "the lease is renewed, though the hot word is past");
    object.remove(map::COLD, &key(address));
    assert_eq!(action(), XDP_DROP, "no record, no lease");
    assert_eq!(packets(&object, 2, Reason::LeaseEnded), 1);
}

/// In observe mode everything is judged, counted and told, and passes without a grant.
#[test]
fn observe_mode_passes_and_tells() {
    let Some((mut object, table, mut world)) = start("observe_mode_passes_and_tells") else {
        return;
    };
    world.control.flags = FLAG_OBSERVE;
    object.set(map::CONTROL, &0_u32, &world.control);
    let frame = packet(&table, "quarantined, to the mail server", true);
    let run = object.run(program::XDP_DEVICE, &frame, 0);
    assert_eq!(run.action, XDP_PASS);
    assert_eq!(
        run.data,
        [
            &meta_magic(META_KEY, IFINDEX).to_ne_bytes(),
            &MARK_OBSERVED.to_ne_bytes(),
            &frame[..]
        ]
        .concat(),
        "no grant"
    );
    // To another port: the same would be told once.
    let mut ip = packet(&table, "quarantined, to the mail server", false);
    ip[22] ^= 0x40;
    let run = object.run(program::TC_DEVICE_IP, &ip, MARK_GRANT | 5);
    assert_eq!(
        (run.action, run.mark),
        (TCX_NEXT, MARK_OBSERVED | 5),
        "no grant, and none that came with it"
    );
    assert_eq!(packets(&object, 1, Reason::NoRule), 2);
    let told: Vec<_> = object.denials().iter().map(|d| (d.hook, d.reason, d.observed)).collect();
    assert_eq!(
        told,
        [
            (hook::XDP_DEVICE, Reason::NoRule as u8, 1),
            (hook::TC_DEVICE, Reason::NoRule as u8, 1)
        ]
    );
    assert_eq!(object.run(program::TC_GUARD, &ip, 0).action, TCX_NEXT);
}

/// The upper half of the mark is ours on what we grant; on the rest, other people's marks stay, but for those that imitate a grant.
#[test]
fn marks() {
    let Some((object, table, _)) = start("marks") else { return };
    let granted = packet(&table, "quarantined, to the DM server", false);
    let reply = packet(&table, "the DM server answers", false);
    let foreign = packet(&table, "core traffic is not ours", false);
    let run = |program, packet, mark| object.run(program, packet, mark).mark;
    assert_eq!(run(program::TC_DEVICE_IP, &granted, 0x2233_4455), mark(1, true) | 0x4455);
    assert_eq!(run(program::TC_CORE_IP, &reply, 0x4455), mark(1, false) | 0x4455);
    assert_eq!(mark(1, true), MARK_GRANT | MARK_FROM_DEVICE | 1 << 16);
    assert_eq!(run(program::TC_CORE_IP, &foreign, 0x2233_4455), 0x2233_4455);
    assert_eq!(run(program::TC_CORE_IP, &foreign, mark(2, true) | 0x4455), 0x4455);
    // From the lowest pool to the highest.
    let any = packet(&table, "any protocol: TCP on any port", false);
    assert_eq!(run(program::TC_DEVICE_IP, &any, 0), MARK_GRANT | MARK_FROM_DEVICE | 63 << 16);
}

/// The guard passes what egress has judged, and nothing else.
#[test]
fn the_guard() {
    let Some((object, table, _)) = start("the_guard") else {
        return;
    };
    let judged = packet(&table, "the DM server's answer leaves for the device", true);
    let arp = packet(&table, "the host's ARP request leaves", true);
    for frame in [&judged, &arp] {
        let run = object.run(program::TC_EGRESS_ETH, frame, 0);
        assert_eq!((run.action, run.mark & MARK_GRANT_MASK), (TCX_NEXT, MARK_GRANT));
        assert_eq!(object.run(program::TC_GUARD, frame, run.mark).action, TCX_NEXT);
    }
    for (n, mark) in [(1, 0), (2, 0x5555), (3, MARK_GRANT ^ 0x0100_0000), (4, 0xffff_ffff)] {
        let run = object.run(program::TC_GUARD, &judged, mark);
        assert_eq!((run.action, run.mark, run.data), (TC_ACT_SHOT, mark, judged.clone()));
        assert_eq!(packets(&object, 0, Reason::Unjudged), n);
    }
}

/// A record says what the packet was, where, and why; IPv4, IPv6, and without addresses.
#[test]
fn events_say_what_was_denied() {
    let Some((mut object, table, _)) = start("events_say_what_was_denied") else {
        return;
    };
    let before = nanoseconds(ClockId::CLOCK_BOOTTIME);
    let v6 = packet(&table, "quarantined, to the mail server, IPv6", true);
    object.run(program::XDP_DEVICE, &v6, 0);
    let icmp = packet(&table, "a redirect leaves for a device", false);
    object.run(program::TC_EGRESS_IP, &icmp, 0);
    let eapol = packet(&table, "EAPOL from a device", true);
    object.run(program::TC_DEVICE_ETH, &eapol, 0);
    let pool_source = packet(&table, "a pool's source from the core", true);
    object.run(program::XDP_CORE, &pool_source, 0);

    let found = object.denials();
    let after = nanoseconds(ClockId::CLOCK_BOOTTIME);
    assert!(found.iter().all(|d| (before..=after).contains(&d.at)), "{found:?}");
    let address = |text: &str| key(text.parse().unwrap());
    let expected = [
        Denial {
            len: 60,
            src: address("fd66::5"),
            dst: address("fd77::25"),
            sport: 40000,
            dport: 25,
            protocol: 6,
            reason: Reason::NoRule as u8,
            pool: 1,
            hook: hook::XDP_DEVICE,
            version: 6,
            ..Denial::default()
        },
        Denial {
            len: 28,
            src: address("192.0.2.1"),
            dst: address("10.66.0.5"),
            protocol: 1,
            reason: Reason::Redirect as u8,
            pool: 1,
            hook: hook::TC_EGRESS,
            version: 4,
            icmp_type: 5,
            ..Denial::default()
        },
        Denial {
            len: eapol.len() as u32,
            reason: Reason::Ethertype as u8,
            hook: hook::TC_DEVICE,
            ..Denial::default()
        },
        Denial {
            len: 40,
            src: address("10.67.0.9"),
            dst: address("10.77.0.1"),
            sport: 40000,
            dport: 443,
            protocol: 6,
            reason: Reason::PoolSourceFromCore as u8,
            pool: 2,
            hook: hook::XDP_CORE,
            version: 4,
            ..Denial::default()
        },
    ];
    let expected = expected.map(|d| Denial { ifindex: IFINDEX, ..d });
    let found: Vec<_> = found.into_iter().map(|d| Denial { at: 0, ..d }).collect();
    assert_eq!(found, expected);
}

/// A flood is counted whole, told in part, and what is not told is counted too: kept back by the rate limit, or lost to a full ring.
#[test]
fn a_flood_is_counted_whole_and_told_in_part() {
    let Some((mut object, table, world)) = start("a_flood_is_counted_whole_and_told_in_part") else {
        return;
    };
    let mut here = CpuSet::new();
    here.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
    let frame = packet(&table, "quarantined, to the mail server", true);
    let started = nanoseconds(ClockId::CLOCK_MONOTONIC);
    // The same would be told once. Each to another port is another.
    let to_port = |port: u16| {
        let mut frame = frame.clone();
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame
    };
    for i in 0..5_000 {
        object.run(program::XDP_DEVICE, &to_port(20_000 + i), 0);
    }
    // By the coarse clock, which is behind by up to a tick; the first one ends at once.
    let windows = (nanoseconds(ClockId::CLOCK_MONOTONIC) - started + 10_000_000) / 16_000_000 + 2;
    let told = object.denials().len() as u64;
    let [suppressed, lost, same] = object.events_lost();
    assert_eq!(packets(&object, 1, Reason::NoRule), 5_000);
    assert_eq!(told + suppressed + lost, 5_000);
    assert_eq!((lost, same), (0, 0));
    assert!((64..=64 * windows).contains(&told), "{told} told in {windows} windows");

    let object = Object::load(4096);
    world.write(&object);
    for round in 0..3 {
        for i in 0..64 {
            object.run(program::XDP_DEVICE, &to_port(20_000 + 64 * round + i), 0);
        }
        sleep(Duration::from_millis(25));
    }
    let [_, lost, _] = object.events_lost();
    assert!(lost > 0, "4096 bytes hold 56 records");
    assert_eq!(packets(&object, 1, Reason::NoRule), 192);
}

/// A directory that points at a chunk that is not there: dropped, also on the core, and also released devices.
#[test]
fn a_table_that_cannot_be_read_fails_closed() {
    let Some((object, table, mut world)) = start("a_table_that_cannot_be_read_fails_closed") else {
        return;
    };
    world.misdirect(std::net::Ipv4Addr::new(10, 67, 0, 0), 500);
    world.write(&object);
    let frame = packet(&table, "released, anywhere", true);
    let place = Place {
        role: Role::Device,
        direction: Direction::Ingress,
        ethernet: true,
        ifindex: IFINDEX,
        hook: hook::XDP_DEVICE,
    };
    assert_eq!(judge(&world, place, &frame).0.reason, Reason::Internal);
    assert_eq!(object.run(program::XDP_DEVICE, &frame, 0).action, XDP_DROP);
    assert_eq!(packets(&object, 0, Reason::Internal), 1);
    world.control.hash6_bits = 20;
    world.write(&object);
    let frame = packet(&table, "released, anywhere, IPv6", true);
    assert_eq!(judge(&world, place, &frame).0.reason, Reason::Internal);
    assert_eq!(object.run(program::XDP_DEVICE, &frame, 0).action, XDP_DROP);
    assert_eq!(packets(&object, 0, Reason::Internal), 2);
}

/// A packet in several pieces is read all the same. For TC, the kernel makes them for test runs from 6.19 on; before, it refuses.
#[test]
fn a_buffer_in_pieces() {
    let Some((object, table, _)) = start("a_buffer_in_pieces") else {
        return;
    };
    let mut frame = packet(&table, "quarantined, to the DM server", true);
    frame.resize(9_000, 0);
    frame[16..18].copy_from_slice(&8_986_u16.to_be_bytes());
    let run = object.run(program::XDP_DEVICE, &frame, 0);
    assert_eq!(run.action, XDP_PASS);
    assert_eq!(object.counters()[1][Reason::Rule as usize].bytes, 8_986);
    let mut pieces = SkBuff::new();
    pieces.data_end = 14;
    let done = object.run_with(program::TC_DEVICE_ETH, &frame, &pieces);
    let kernel = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    let mut numbers = kernel.split(['.', '-']).map(|n| n.parse::<u32>().unwrap());
    if (numbers.next().unwrap(), numbers.next().unwrap()) >= (6, 19) {
        let run = done.unwrap();
        assert_eq!((run.action, run.mark), (TCX_NEXT, mark(1, true)));
    } else {
        println!("{kernel} makes no pieces for TC");
        assert!(done.is_err(), "{done:?}");
    }
}
