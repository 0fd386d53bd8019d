//! The ends of a packet, each by its pool: small tables, both families, every place. The table of packets in `tests/` has the rest.

use std::{boxed::Box, vec, vec::Vec};

use super::*;
use crate::{
    abi::{
        BUCKET6_SLOTS, Bucket6, CLASS_LEASED, Cold, FragmentBucket, Homes6, Interface, POOL_ALL, POOL_BLOCKED, POOL_REJECT,
        POOL_TO_DEVICE, class_entry, hook, mix6,
    },
    clock::TOLERANCE,
    headers::{Address, protocol, words},
    tables::MemTables,
};

pub(crate) const RULES: u8 = 1;
pub(crate) const ALL: u8 = 2;
pub(crate) const BLOCKED: u8 = 3;

/// An address in no pool, and one for each pool: `[pool]`.
pub(crate) fn address(version: u8, pool: u8) -> Address {
    match version {
        4 => [u32::from_be_bytes([10, 66, 0, pool]).to_be(), 0, 0, 0],
        _ => [0xfd66_0000_u32.to_be(), 0, 0, u32::from(pool).to_be()],
    }
}

pub(crate) struct Memory {
    pub(crate) control: Control,
    pub(crate) directory4: Box<[u16; 65536]>,
    pub(crate) chunks4: Vec<[Class; 65536]>,
    pub(crate) hash6: Vec<Bucket6>,
    pub(crate) homes6: Homes6,
    pub(crate) policy: Box<Policy>,
    pub(crate) shadow: Box<Policy>,
    pub(crate) interfaces: Vec<(u32, Interface)>,
    pub(crate) fragments: Vec<FragmentBucket>,
}

/// A policy that names nothing.
fn zeroed() -> Box<Policy> {
    // SAFETY: zeros are a policy.
    unsafe { Box::from_raw(std::alloc::alloc_zeroed(std::alloc::Layout::new::<Policy>()).cast()) }
}

/// Pool [`RULES`] may reach everything by TCP to port 443 and by ICMP.
pub(crate) fn memory() -> Memory {
    let mut policy = zeroed();
    policy.pools[usize::from(ALL)].flags = POOL_ALL;
    policy.pools[usize::from(BLOCKED)].flags = POOL_BLOCKED | POOL_ALL;
    policy.tcp[443] = 7;
    policy.protocols[usize::from(protocol::ICMP)] = 7;
    policy.protocols[usize::from(protocol::ICMPV6)] = 7;
    policy.rules[7][0][usize::from(RULES)] = 1;
    let mut memory = Memory {
        control: Control {
            hash6_bits: 2,
            earliest_lease_end: u64::MAX,
            ..Control::default()
        },
        directory4: Box::new([0; 65536]),
        chunks4: vec![[0; 65536]; 2],
        hash6: vec![Bucket6::default(); 4],
        homes6: Homes6 {
            common_mask: 0,
            ..Homes6::new(&[])
        },
        policy,
        shadow: zeroed(),
        interfaces: Vec::new(),
        // SAFETY: integers only, for which zeros are a value.
        fragments: vec![unsafe { std::mem::zeroed() }],
    };
    memory.directory4[usize::from(u16::from_be_bytes([10, 66]))] = 1;
    for pool in [RULES, ALL, BLOCKED] {
        memory.set(4, address(4, pool), pool);
        memory.set(6, address(6, pool), pool);
    }
    memory
}

impl Memory {
    pub(crate) fn set(&mut self, version: u8, address: Address, class: Class) {
        if version == 4 {
            self.chunks4[1][u32::from_be(address[0]) as u16 as usize] = class;
            return;
        }
        let key = words(address);
        for index in [mix6(key) & 3, mix6(key) >> 32 & 3] {
            let bucket = &mut self.hash6[index as usize];
            if let Some(slot) = (0..BUCKET6_SLOTS)
                .find(|s| [0, key[0]].contains(&bucket.keys[*s][0]) && [0, key[1]].contains(&bucket.keys[*s][1]))
            {
                bucket.keys[slot] = key;
                bucket.classes[slot] = class;
                return;
            }
        }
        panic!("no room");
    }

    fn decide(&self, place: Place, h: &Headers) -> Verdict {
        self.decide_at(place, h, None, 1_000)
    }

    fn decide_at(&self, place: Place, h: &Headers, cold: Option<Cold>, now: u64) -> Verdict {
        self.with(cold, now, |t| decide(t, place, h))
    }

    pub(crate) fn with<R>(&self, cold: Option<Cold>, now: u64, then: impl FnOnce(&MemTables<'_>) -> R) -> R {
        let tables = MemTables {
            control: &self.control,
            directory4: &self.directory4,
            chunks4: &self.chunks4,
            hash6: &self.hash6,
            homes6: &self.homes6,
            policies: [&self.policy, &self.policy, &self.shadow],
            interfaces: &self.interfaces,
            fragments: &self.fragments,
            cold: &|_| cold,
            coarse_now: now,
            boot_now: now,
            about_boot_now: now,
        };
        then(&tables)
    }
}

pub(crate) fn place(role: Role, direction: Direction) -> Place {
    Place {
        role,
        direction,
        ethernet: false,
        ifindex: 1,
        hook: hook::TC_DEVICE,
    }
}
pub(crate) const FROM_DEVICE: fn() -> Place = || place(Role::Device, Direction::Ingress);
pub(crate) const FROM_CORE: fn() -> Place = || place(Role::Core, Direction::Ingress);
pub(crate) const TO_DEVICE: fn() -> Place = || place(Role::Device, Direction::Egress);

fn tcp(version: u8, from: u8, to: u8, ports: (u16, u16), flags: u8) -> Headers {
    Headers {
        source: address(version, from),
        destination: address(version, to),
        source_port: ports.0,
        destination_port: ports.1,
        version,
        protocol: protocol::TCP,
        tcp_flags: flags,
        ..Headers::default()
    }
}

/// Every pair of ends at every place, by a segment whose destination port is in the rule, and by its answer.
#[test]
fn both_ends_must_allow() {
    use Reason::{All, Blocked, DestinationNotInPool, NoRule, NotInPool, NotOurs, PoolSourceFromCore, Reply, Rule};
    let memory = memory();
    // Source pool, destination pool, of a request to port 443: at device ingress, at core ingress, at egress.
    let requests = [
        (0, 0, NotInPool, NotOurs, DestinationNotInPool),
        (0, RULES, NotInPool, NoRule, NoRule),
        (0, ALL, NotInPool, All, All),
        (0, BLOCKED, NotInPool, Blocked, Blocked),
        (RULES, 0, Rule, PoolSourceFromCore, DestinationNotInPool),
        (RULES, RULES, NoRule, PoolSourceFromCore, NoRule),
        (RULES, ALL, Rule, PoolSourceFromCore, Rule),
        (RULES, BLOCKED, Blocked, PoolSourceFromCore, Blocked),
        (ALL, 0, All, PoolSourceFromCore, DestinationNotInPool),
        (ALL, RULES, NoRule, PoolSourceFromCore, NoRule),
        (ALL, ALL, All, PoolSourceFromCore, All),
        (ALL, BLOCKED, Blocked, PoolSourceFromCore, Blocked),
        (BLOCKED, 0, Blocked, PoolSourceFromCore, DestinationNotInPool),
        (BLOCKED, RULES, Blocked, PoolSourceFromCore, Blocked),
        (BLOCKED, ALL, Blocked, PoolSourceFromCore, Blocked),
        (BLOCKED, BLOCKED, Blocked, PoolSourceFromCore, Blocked),
    ];
    for version in [4, 6] {
        for (from, to, device, core, egress) in requests {
            let h = tcp(version, from, to, (40_000, 443), 0x18);
            for (at, expected) in [(FROM_DEVICE(), device), (FROM_CORE(), core), (TO_DEVICE(), egress)] {
                let verdict = memory.decide(at, &h);
                assert_eq!(verdict.reason, expected, "IPv{version} {from} to {to} at {at:?}");
                let from_device = at == FROM_DEVICE();
                let grant = verdict.outcome() == Outcome::Grant;
                assert_eq!(
                    verdict.mark,
                    if grant {
                        mark(if from != 0 { from } else { to }, from_device)
                    } else {
                        0
                    }
                );
            }
        }
        let answer = memory.decide(FROM_CORE(), &tcp(version, 0, RULES, (443, 40_000), 0x12));
        assert_eq!((answer.reason, answer.pool, answer.mark), (Reply, RULES, mark(RULES, false)));
        let opening = memory.decide(FROM_CORE(), &tcp(version, 0, RULES, (443, 40_000), 0x02));
        assert_eq!((opening.reason, opening.pool, opening.mark), (Reason::NewToDevice, RULES, 0));
    }
}

#[test]
fn a_denial_names_the_end_that_denied() {
    let memory = memory();
    let verdict = memory.decide(FROM_DEVICE(), &tcp(4, ALL, BLOCKED, (1, 2), 2));
    assert_eq!((verdict.reason, verdict.pool), (Reason::Blocked, BLOCKED));
    let verdict = memory.decide(FROM_DEVICE(), &tcp(4, BLOCKED, RULES, (1, 2), 2));
    assert_eq!((verdict.reason, verdict.pool), (Reason::Blocked, BLOCKED));
}

/// Whatever the problem, it stops what touches a pool, and nothing else on a core interface; policy `all` does not help.
#[test]
fn problems() {
    let memory = memory();
    for problem in Reason::ALL.iter().copied().filter(|r| !r.passes()) {
        for version in [4, 6] {
            let broken = |from, to| Headers {
                problem: Some(problem),
                ..tcp(version, from, to, (40_000, 443), 2)
            };
            for at in [FROM_DEVICE(), FROM_CORE(), TO_DEVICE()] {
                for (from, to) in [(ALL, 0), (0, ALL), (RULES, 0)] {
                    let verdict = memory.decide(at, &broken(from, to));
                    assert_eq!((verdict.reason, verdict.pool, verdict.mark), (problem, from | to, 0));
                }
                let elsewhere = memory.decide(at, &broken(0, 0)).reason;
                assert_eq!(elsewhere, if at == FROM_CORE() { Reason::NotOurs } else { problem });
            }
        }
        let unread = Headers {
            problem: Some(problem),
            ..Headers::default()
        };
        assert_eq!(memory.decide(FROM_DEVICE(), &unread).reason, problem);
        assert_eq!(memory.decide(TO_DEVICE(), &unread).reason, problem);
        assert_eq!(memory.decide(FROM_CORE(), &unread).reason, Reason::NotOurs);
    }
}

/// Until the hot word comes close, the cold record is not read; from then on it decides, to the nanosecond.
#[test]
fn leases_end_exactly() {
    let mut memory = memory();
    let earliest = 1_000 * TOLERANCE;
    memory.control.earliest_lease_end = earliest;
    for version in [4, 6] {
        memory.set(version, address(version, ALL), ALL | CLASS_LEASED);
        let h = tcp(version, ALL, 0, (1, 25), 2);
        let cold = |lease_end, fallback: u8| {
            Some(Cold {
                lease_end,
                session: 0,
                fallback: fallback.into(),
            })
        };
        let decide = |cold, now| {
            let v = memory.decide_at(FROM_DEVICE(), &h, cold, now);
            (v.reason, v.pool)
        };
        assert_eq!(decide(None, earliest - TOLERANCE - 1), (Reason::All, ALL));
        assert_eq!(decide(None, earliest - TOLERANCE), (Reason::LeaseEnded, ALL));
        assert_eq!(decide(cold(earliest, RULES), earliest - 1), (Reason::All, ALL));
        assert_eq!(decide(cold(earliest, RULES), earliest), (Reason::LeaseEnded, RULES));
        assert_eq!(decide(cold(earliest + 1, RULES), earliest), (Reason::All, ALL));
        assert_eq!(decide(cold(earliest, ALL), earliest), (Reason::All, ALL));
        assert_eq!(decide(cold(earliest, 0), earliest), (Reason::LeaseEnded, ALL));
    }
}

/// The entry decides, whatever the class byte: pool, interface, lease.
#[test]
fn classes_mean_what_their_entries_say() {
    let mut memory = memory();
    memory.control.classes = [0; 256];
    memory.control.classes[1] = class_entry(RULES, false, 0);
    memory.control.classes[7] = class_entry(RULES, false, 0);
    memory.control.classes[200] = class_entry(ALL, false, 1);
    memory.control.classes[64] = class_entry(ALL, false, 9);
    memory.control.classes[65] = class_entry(ALL, true, 1);
    memory.control.classes[201] = class_entry(63, false, 0);
    for version in [4, 6] {
        let mut judged = |class, place| {
            memory.set(version, address(version, ALL), class);
            let (from, to) = if place == FROM_DEVICE() { (ALL, 0) } else { (0, ALL) };
            let v = memory.decide(place, &tcp(version, from, to, (1, 25), 2));
            (v.reason, v.pool)
        };
        for (place, none) in [
            (FROM_DEVICE(), Reason::NotInPool),
            (TO_DEVICE(), Reason::DestinationNotInPool),
        ] {
            assert_eq!(judged(200, place), (Reason::All, ALL));
            assert_eq!(judged(64, place), (Reason::WrongInterface, ALL));
            assert_eq!(judged(65, place), (Reason::All, ALL));
            assert_eq!(judged(201, place), (Reason::NoRule, 63));
            assert_eq!(judged(1, place), (Reason::NoRule, RULES));
            assert_eq!(judged(7, place), (Reason::NoRule, RULES));
            assert_eq!(judged(66, place), (none, 0), "no entry, no pool");
        }
        // What comes from the core is bound for no interface yet.
        assert_eq!(judged(64, FROM_CORE()), (Reason::All, ALL));
    }
}

#[test]
fn addresses_at_rest_stay_on_the_interfaces_of_their_home_pool() {
    let mut memory = memory();
    memory.control.classes[5] = class_entry(ALL, false, 0);
    memory.control.classes[100] = class_entry(ALL, false, 0);
    memory.set(4, address(4, ALL), 5);
    let h = [tcp(4, ALL, 0, (1, 25), 2), tcp(4, 0, ALL, (1, 25), 2)];
    let judged = |memory: &Memory| [(FROM_DEVICE(), h[0]), (TO_DEVICE(), h[1])].map(|(p, h)| memory.decide(p, &h).reason);
    assert_eq!(judged(&memory), [Reason::All; 2]);
    memory.control.flags = FLAG_INTERFACE_POOLS;
    assert_eq!(
        judged(&memory),
        [Reason::WrongInterface; 2],
        "an interface without entry has no pools"
    );
    let with = |pools| {
        vec![
            (
                9,
                Interface {
                    pools: u64::MAX,
                    ..Interface::default()
                },
            ),
            (
                1,
                Interface {
                    pools,
                    ..Interface::default()
                },
            ),
        ]
    };
    memory.interfaces = with(!(1 << 5));
    assert_eq!(judged(&memory), [Reason::WrongInterface; 2]);
    memory.interfaces = with(1 << 5);
    assert_eq!(judged(&memory), [Reason::All; 2], "the home pool counts, not the current one");
    memory.set(4, address(4, ALL), 100);
    memory.interfaces = with(0);
    assert_eq!(judged(&memory), [Reason::All; 2], "a live session is not at rest");
}

/// Both directions of rule, for both ends, by TCP, UDP and echo.
#[test]
fn rules_from_and_to_devices() {
    use Reason::{NewToDevice, NoRule, Reply, Rule};
    let mut memory = memory();
    // From devices to port 443, to devices on port 22; by ICMP from devices only.
    memory.policy.tcp[22] = 8;
    memory.policy.udp[443] = 7;
    memory.policy.udp[22] = 8;
    memory.policy.to_device[8][0][usize::from(RULES)] = 5;
    for (flag, version) in [(0, 4), (0, 6), (POOL_TO_DEVICE, 4), (POOL_TO_DEVICE, 6)] {
        memory.policy.pools[usize::from(RULES)].flags = flag;
        let on = flag != 0;
        let pick = |with, without| if on { with } else { without };
        let by = |place, h: Headers| {
            let v = memory.decide(place, &h);
            (v.reason, v.rule)
        };
        let (syn, ack) = (0x02, 0x10);
        let from = |ports, flags| by(FROM_DEVICE(), tcp(version, RULES, 0, ports, flags));
        let to = |ports, flags| by(FROM_CORE(), tcp(version, 0, RULES, ports, flags));
        assert_eq!(from((9, 443), syn), (Rule, 1));
        assert_eq!(from((443, 9), ack), (NoRule, 0));
        assert_eq!(from((22, 9), ack), pick((Reply, 5), (NoRule, 0)));
        assert_eq!(from((22, 9), syn), (NoRule, 0), "an answer does not ask");
        assert_eq!(from((22, 443), syn), (Rule, 1));
        assert_eq!(to((443, 9), ack), (Reply, 1));
        assert_eq!(to((443, 9), syn), (NewToDevice, 0));
        assert_eq!(to((9, 22), syn), pick((Rule, 5), (NoRule, 0)));
        assert_eq!(to((9, 22), ack), pick((Rule, 5), (NoRule, 0)));
        assert_eq!(
            to((443, 22), syn),
            pick((Rule, 5), (NewToDevice, 0)),
            "a to-device rule names it"
        );
        assert_eq!(to((443, 22), ack), (Reply, 1));
        let udp = |from, to, ports| Headers {
            protocol: protocol::UDP,
            ..tcp(version, from, to, ports, 0)
        };
        assert_eq!(by(FROM_DEVICE(), udp(RULES, 0, (22, 9))), pick((Reply, 5), (NoRule, 0)));
        assert_eq!(by(FROM_CORE(), udp(0, RULES, (9, 22))), pick((Rule, 5), (NoRule, 0)));
        assert_eq!(by(FROM_CORE(), udp(0, RULES, (443, 22))), (Reply, 1));
    }
    // Echo: the same rule in both directions, the other way round for to-device rules.
    let echo = |version, icmp_type, from, to| Headers {
        protocol: if version == 4 { protocol::ICMP } else { protocol::ICMPV6 },
        icmp_type,
        ..tcp(version, from, to, (0, 0), 0)
    };
    for (version, request, answer) in [(4, 8, 0), (6, 128, 129)] {
        let by = |memory: &Memory, place, h| memory.decide(place, &h).reason;
        memory.policy.rules[7][0][usize::from(RULES)] = 1;
        memory.policy.to_device[7][0][usize::from(RULES)] = 0;
        assert_eq!(by(&memory, FROM_DEVICE(), echo(version, request, RULES, 0)), Rule);
        assert_eq!(by(&memory, FROM_CORE(), echo(version, answer, 0, RULES)), Reply);
        assert_eq!(by(&memory, FROM_DEVICE(), echo(version, answer, RULES, 0)), NoRule);
        assert_eq!(by(&memory, FROM_CORE(), echo(version, request, 0, RULES)), NoRule);
        memory.policy.rules[7][0][usize::from(RULES)] = 0;
        memory.policy.to_device[7][0][usize::from(RULES)] = 1;
        assert_eq!(by(&memory, FROM_CORE(), echo(version, request, 0, RULES)), Rule);
        assert_eq!(by(&memory, FROM_DEVICE(), echo(version, answer, RULES, 0)), Reply);
        assert_eq!(by(&memory, FROM_DEVICE(), echo(version, request, RULES, 0)), NoRule);
        assert_eq!(
            by(
                &memory,
                FROM_CORE(),
                echo(version, if version == 4 { 13 } else { 130 }, 0, RULES)
            ),
            NoRule
        );
    }
}

/// Special addresses outside the pools: by `all`, where no rule names them, as sources; a rule may name some.
#[test]
fn special_addresses_at_the_other_end() {
    let mut memory = memory();
    let other = |text: [u8; 4]| [u32::from_ne_bytes(text), 0, 0, 0];
    let to = |a, pool| Headers {
        destination: other(a),
        ..tcp(4, pool, 0, (1, 443), 0x10)
    };
    let from = |a, pool| Headers {
        source: other(a),
        ..tcp(4, 0, pool, (443, 1), 0x10)
    };
    let by = |memory: &Memory, place, h| memory.decide(place, &h).reason;
    assert_eq!(by(&memory, FROM_DEVICE(), to([224, 0, 0, 1], ALL)), Reason::Multicast);
    assert_eq!(by(&memory, FROM_CORE(), from([169, 254, 0, 1], ALL)), Reason::LinkLocal);
    assert_eq!(by(&memory, FROM_DEVICE(), to([224, 0, 0, 1], BLOCKED)), Reason::Blocked);
    // Here a rule names everything on port 443.
    assert_eq!(by(&memory, FROM_DEVICE(), to([224, 0, 0, 1], RULES)), Reason::Rule);
    assert_eq!(by(&memory, FROM_CORE(), from([169, 254, 0, 1], RULES)), Reason::Reply);
    assert_eq!(by(&memory, FROM_CORE(), from([224, 0, 0, 1], RULES)), Reason::Multicast);
    assert_eq!(by(&memory, FROM_DEVICE(), from([127, 0, 0, 1], RULES)), Reason::Loopback);
    assert_eq!(by(&memory, TO_DEVICE(), to([255, 255, 255, 255], ALL)), Reason::Broadcast);
    memory.policy.rules[7][0][usize::from(RULES)] = 0;
    assert_eq!(by(&memory, FROM_DEVICE(), to([224, 0, 0, 1], RULES)), Reason::Multicast);
    assert_eq!(by(&memory, FROM_DEVICE(), to([10, 1, 1, 1], RULES)), Reason::NoRule);
}

#[test]
fn what_is_answered() {
    let mut memory = memory();
    let denied = tcp(4, RULES, 0, (1, 25), 2);
    assert!(!memory.decide(FROM_DEVICE(), &denied).answer);
    for pool in [RULES, ALL, BLOCKED] {
        memory.policy.pools[usize::from(pool)].flags |= POOL_REJECT;
    }
    let answered = |place, h: Headers| memory.decide(place, &h).answer;
    assert!(answered(FROM_DEVICE(), denied));
    assert!(answered(FROM_DEVICE(), tcp(4, BLOCKED, 0, (1, 25), 2)));
    assert!(answered(FROM_DEVICE(), tcp(6, ALL, BLOCKED, (1, 25), 2)));
    assert!(!answered(FROM_CORE(), tcp(4, 0, RULES, (1, 25), 2)));
    assert!(!answered(TO_DEVICE(), tcp(4, 0, RULES, (1, 25), 2)));
    assert!(!answered(FROM_DEVICE(), tcp(4, RULES, 0, (1, 443), 2)), "it passes");
    assert!(!answered(FROM_DEVICE(), tcp(4, RULES, 0, (1, 25), 4)), "a reset");
    let broken = Headers {
        problem: Some(Reason::Truncated),
        ..denied
    };
    assert!(!answered(FROM_DEVICE(), broken));
    let blocked = Headers {
        destination: [u32::from_ne_bytes([224, 0, 0, 1]), 0, 0, 0],
        ..tcp(4, BLOCKED, 0, (1, 25), 2)
    };
    assert!(!answered(FROM_DEVICE(), blocked), "to a special address");
}

/// The shadow policy says what it would do with what the policy is asked about, and with nothing else.
#[test]
fn the_shadow_policy() {
    let mut memory = memory();
    memory.shadow.tcp[25] = 3;
    memory.shadow.rules[3][0][usize::from(RULES)] = 9;
    let scored = |h: Headers| memory.with(None, 1_000, |t| shadow(t, FROM_DEVICE(), &h, None));
    assert_eq!(scored(tcp(4, RULES, 0, (1, 25), 2)), 1);
    assert_eq!(scored(tcp(4, RULES, 0, (1, 443), 2)), 2);
    assert_eq!(scored(tcp(4, 0, RULES, (1, 25), 2)), 0, "not in a pool");
    let broken = Headers {
        problem: Some(Reason::Truncated),
        ..tcp(4, RULES, 0, (1, 25), 2)
    };
    assert_eq!(scored(broken), 0);
}

/// The outcome and the public list agree on what passes.
#[test]
fn outcomes_are_those_of_the_list() {
    for reason in Reason::ALL.iter().copied() {
        let denied = because(reason, 0).outcome() == Outcome::Deny;
        assert_eq!(denied, !reason.passes(), "{reason:?}");
    }
}

/// An empty slot matches nothing, also when it still holds the rest of what was removed.
#[test]
fn an_empty_slot_of_the_hash_matches_nothing() {
    let mut memory = memory();
    for bucket in &mut memory.hash6 {
        *bucket = Bucket6 {
            keys: [[0, u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 5])]; 3],
            classes: [ALL; 8],
            spare: 0,
        };
    }
    let h = Headers {
        source: [0, 0, 0, 5_u32.to_be()],
        ..tcp(6, 0, 0, (1, 2), 2)
    };
    assert_eq!(memory.decide(FROM_DEVICE(), &h).reason, Reason::Mapped, "in no pool");
}
