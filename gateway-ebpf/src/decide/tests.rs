//! The ends of a packet, each by its pool: small tables, both families, every place. The table of packets in `tests/` has the rest.

use std::{boxed::Box, vec, vec::Vec};

use super::*;
use crate::{
    abi::{BUCKET6_SLOTS, Bucket6, Cold, Homes6, mix6},
    headers::{protocol, words},
    tables::MemTables,
};

const RULES: u8 = 1;
const ALL: u8 = 2;
const BLOCKED: u8 = 3;

/// An address in no pool, and one for each pool: `[pool]`.
fn address(version: u8, pool: u8) -> Address {
    match version {
        4 => [u32::from_be_bytes([10, 66, 0, pool]).to_be(), 0, 0, 0],
        _ => [0xfd66_0000_u32.to_be(), 0, 0, u32::from(pool).to_be()],
    }
}

struct Memory {
    control: Control,
    directory4: Box<[u16; 65536]>,
    chunks4: Vec<[Class; 65536]>,
    hash6: Vec<Bucket6>,
    homes6: Homes6,
    policy: Box<Policy>,
}

/// Pool [`RULES`] may reach everything by TCP to port 443 and by ICMP.
fn memory() -> Memory {
    // SAFETY: zeros are a policy.
    let mut policy: Box<Policy> = unsafe { Box::from_raw(std::alloc::alloc_zeroed(std::alloc::Layout::new::<Policy>()).cast()) };
    policy.pools[usize::from(ALL)].flags = POOL_ALL;
    policy.pools[usize::from(BLOCKED)].flags = POOL_BLOCKED | POOL_ALL;
    policy.tcp[443] = 7;
    policy.protocols[usize::from(protocol::ICMP)] = 7;
    policy.protocols[usize::from(protocol::ICMPV6)] = 7;
    policy.rules[usize::from(RULES)][0][7] = 1;
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
            count: 0,
            homes: [crate::abi::Home6::default(); 64],
        },
        policy,
    };
    memory.directory4[usize::from(u16::from_be_bytes([10, 66]))] = 1;
    for pool in [RULES, ALL, BLOCKED] {
        memory.set(4, address(4, pool), pool);
        memory.set(6, address(6, pool), pool);
    }
    memory
}

impl Memory {
    fn set(&mut self, version: u8, address: Address, class: Class) {
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
        let tables = MemTables {
            control: &self.control,
            directory4: &self.directory4,
            chunks4: &self.chunks4,
            hash6: &self.hash6,
            homes6: &self.homes6,
            policies: [&self.policy, &self.policy],
            cold: &|_| cold,
            coarse_now: now,
            boot_now: now,
        };
        decide(&tables, place, h)
    }
}

fn place(role: Role, direction: Direction) -> Place {
    Place {
        role,
        direction,
        ethernet: false,
        ifindex: 1,
    }
}
const FROM_DEVICE: fn() -> Place = || place(Role::Device, Direction::Ingress);
const FROM_CORE: fn() -> Place = || place(Role::Core, Direction::Ingress);
const TO_DEVICE: fn() -> Place = || place(Role::Device, Direction::Egress);

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

#[test]
fn leases_by_both_clocks() {
    let mut memory = memory();
    memory.control.earliest_lease_end = 500;
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
        // Until the hot word has passed, the cold record is not read.
        assert_eq!(decide(None, 499), (Reason::All, ALL));
        assert_eq!(decide(None, 500), (Reason::LeaseEnded, ALL));
        assert_eq!(decide(cold(501, RULES), 500), (Reason::All, ALL));
        assert_eq!(decide(cold(500, RULES), 500), (Reason::LeaseEnded, RULES));
        assert_eq!(decide(cold(500, ALL), 500), (Reason::All, ALL));
        assert_eq!(decide(cold(500, 0), 500), (Reason::LeaseEnded, ALL));
    }
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
    assert_eq!(memory.decide(FROM_DEVICE(), &h).reason, Reason::NotInPool);
}
