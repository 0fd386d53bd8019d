//! The naive reference beside the table of packets and beside the kernel: what an entry expects holds not only because the shipping
//! decision says so, and sequences of fragments do to both what the table says. Random gateways and packets run in the kernel too.

use std::{collections::HashSet, env};

use gateway_ebpf::{
    abi::{Control, map},
    reason::Reason,
};
use ipnetwork::IpNetwork;
use lazaret_tests::{
    differential::{
        self,
        host::{Host, place},
        scenario::{START, Scenario, Step, scenario},
    },
    reference::{
        Configuration, Judgment, Lease, Place, Reference, Session,
        configuration::{Interface, Policy, Pool, Rule},
        read,
    },
};
use serde::Deserialize;
use toml::{Table as Toml, Value};

use crate::{
    frame::Packet,
    object::{IFINDEX, META_KEY, Object, open},
    table::{DATA, ENTRY_POINTS, Entry, EntryPoint, Table, agrees, applies, is_left, judge},
    world::World,
};

/// Packets of the table that go through one place one after the other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sequence {
    name: String,
    at: String,
    link: Option<String>,
    pub(crate) packets: Vec<Piece>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Piece {
    is: Packet,
    pub(crate) expect: String,
    pool: Option<String>,
}

pub(crate) fn all_sequences() -> Vec<Sequence> {
    #[derive(Deserialize)]
    struct Sequences {
        sequence: Vec<Sequence>,
    }
    let text = std::fs::read_to_string(DATA).unwrap();
    toml::from_str::<Sequences>(&text)
        .unwrap_or_else(|e| panic!("{DATA}: {e}"))
        .sequence
}

/// The table's world for the reference, from its text. `late`: some lease has ended.
fn world(late: bool) -> Reference {
    let head: Toml = std::fs::read_to_string(DATA).unwrap().parse().unwrap();
    let list = |t: &Toml, key: &str| -> Vec<Value> { t.get(key).and_then(Value::as_array).cloned().unwrap_or_default() };
    let text = |t: &Toml, key: &str| t.get(key).and_then(Value::as_str).map(str::to_owned);
    let networks = |t: &Toml, key: &str| -> Vec<IpNetwork> {
        let each = |v: Value| v.as_str().unwrap().parse().unwrap();
        list(t, key).into_iter().map(each).collect()
    };
    let tables = |t: &Toml, key: &str| -> Vec<Toml> { list(t, key).into_iter().map(|v| v.as_table().unwrap().clone()).collect() };
    let (mut pools, mut policies, mut sessions, mut rules) = (Vec::new(), Vec::new(), Vec::new(), 1..);
    let vlans: Vec<Vec<u16>> = list(&head, "vlans")
        .iter()
        .map(|v| vec![v.as_integer().unwrap() as u16])
        .collect();
    let mut here = Vec::new();
    for t in tables(&head, "pool") {
        let name = text(&t, "name").unwrap();
        let number = t["number"].as_integer().unwrap() as u8;
        if !t.contains_key("not_here") {
            here.push(name.clone());
        }
        let bind = |interface: u32| {
            move |n: IpNetwork| Session {
                address: n.ip(),
                delegated: false,
                pool: number,
                interface,
                lease: None,
            }
        };
        sessions.extend(networks(&t, "addresses").into_iter().map(bind(0)));
        sessions.extend(networks(&t, "elsewhere").into_iter().map(bind(IFINDEX + 1)));
        let whole = networks(&t, "delegated").into_iter().map(bind(0));
        sessions.extend(whole.map(|s| Session { delegated: true, ..s }));
        let allow = match t["policy"].as_str().unwrap() {
            "rules" => None,
            "blocked" => Some("nothing".to_owned()),
            all => Some(all.to_owned()),
        };
        let rule = |r: Toml| Rule {
            number: rules.next().unwrap(),
            to_device: r.contains_key("from"),
            peers: [networks(&r, "to"), networks(&r, "from")].concat(),
            protocol: text(&r, "protocol").unwrap(),
            ports: match list(&r, "ports").as_slice() {
                [first, last] => vec![(first.as_integer().unwrap() as u16, last.as_integer().unwrap() as u16)],
                _ => Vec::new(),
            },
        };
        policies.push(Policy {
            name: name.clone(),
            allow,
            rules: tables(&t, "rules").into_iter().map(rule).collect(),
        });
        pools.push(Pool {
            number,
            policy: name.clone(),
            name,
            prefixes: networks(&t, "homes"),
            reserved: Vec::new(),
            fallback: None,
            reject: false,
        });
    }
    let number = |name: &str| pools.iter().find(|p: &&Pool| p.name == name).unwrap().number;
    for t in tables(&head, "leased") {
        let ended = t["ended"].as_bool().unwrap();
        sessions.push(Session {
            address: text(&t, "address").unwrap().parse::<IpNetwork>().unwrap().ip(),
            delegated: false,
            pool: number(t["pool"].as_str().unwrap()),
            interface: 0,
            lease: Some(Lease {
                // Without its record, nobody knows when.
                end: if ended || !t.contains_key("fallback") { 1 } else { u64::MAX },
                fallback: t.get("fallback").map(|f| number(f.as_str().unwrap())),
            }),
        });
    }
    let link = lazaret_tests::reference::Link {
        index: IFINDEX,
        name: "here".into(),
    };
    let mut reference = Reference::new("", vec![link]);
    reference.configuration = Configuration {
        pools,
        policies,
        interfaces: vec![Interface {
            name: "here".into(),
            pools: Some(here),
            vlans,
        }],
    };
    reference.sessions = sessions;
    reference.now = u64::from(late) * 1_000;
    reference
}

fn say(reference: &mut Reference, point: &EntryPoint, packet: &[u8]) -> Judgment {
    use gateway_ebpf::decide::{Direction, Role};
    let place = Place {
        device: point.place.role == Role::Device,
        egress: point.place.direction == Direction::Egress,
        ethernet: point.place.ethernet,
        interface: IFINDEX,
    };
    reference.judge(place, &read(packet, place.ethernet, None))
}

/// What the table expects, the reference says.
#[test]
fn the_table_by_the_reference() {
    let (mut early, mut late) = (world(false), world(true));
    let mut wrong = Vec::new();
    for entry in Table::read().packet {
        let reference = if entry.late { &mut late } else { &mut early };
        let pool = entry.pool.as_ref().map_or(0, |p| reference.configuration.pool(p).number);
        for point in ENTRY_POINTS.iter().filter(|p| !p.xdp && entry.applies_to(p)) {
            reference.forget();
            let said = say(reference, point, &entry.is.bytes(point.place.ethernet));
            if (said.reason, said.pool) != (entry.expect.as_str(), pool) {
                let Entry { name, expect, .. } = &entry;
                wrong.push(format!("{name} at {}: {said:?} instead of {expect} {pool}", point.name));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Datagrams in fragments: the same, on the host and, where it can be loaded, in the kernel.
#[test]
fn sequences_by_all_three() {
    let object = open("sequences_by_all_three");
    let table = Table::read();
    let mut host = World::new(&table.world);
    let mut wrong = Vec::new();
    for sequence in all_sequences() {
        let mut applied = false;
        for point in ENTRY_POINTS
            .iter()
            .filter(|p| applies(&sequence.at, sequence.link.as_ref(), p))
        {
            applied = true;
            let mut reference = world(false);
            host.forget_fragments();
            if let Some(object) = &object {
                host.write(object);
            }
            for (i, piece) in sequence.packets.iter().enumerate() {
                let packet = piece.is.bytes(point.place.ethernet);
                let pool = piece.pool.as_ref().map_or(0, |p| host.number(p));
                let said = say(&mut reference, point, &packet);
                let (verdict, h) = judge(&host, point.place, &packet);
                let expected = (piece.expect.as_str(), pool);
                // The reference has room for everything.
                let full = piece.expect == "fragment_table_full";
                if !full && (said.reason, said.pool) != expected || (verdict.reason.name(), verdict.pool) != expected {
                    let name = &sequence.name;
                    wrong.push(format!(
                        "{name}, {i}, at {}: {said:?} and {verdict:?} instead of {expected:?}",
                        point.name
                    ));
                }
                if let Some(Err(e)) = object.as_ref().map(|o| agrees(o, point, &packet, &verdict, &h)) {
                    wrong.push(format!("{}, {i}, in the kernel: {e}", sequence.name));
                }
            }
        }
        assert!(applied, "{} applies nowhere", sequence.name);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A scenario as the kernel can be given it: one interface, no tag beside the frame, leases that have ended or never do, no waiting.
fn for_the_kernel(seed: u64, packets: usize) -> Scenario {
    let mut scenario = scenario(seed, packets);
    scenario
        .steps
        .retain(|s| s.place.interface == IFINDEX && s.tag.is_none() && runs(&s.bytes));
    for step in &mut scenario.steps {
        step.wait = 0;
    }
    for session in &mut scenario.sessions {
        if let Some(lease) = &mut session.lease {
            lease.end = if lease.end <= START { 1 } else { u64::MAX };
        }
    }
    scenario
}

/// Whether the kernel takes a packet for a test run: with a whole Ethernet header, or what would be one, and behind two ethertypes a whole IP
/// header. What it does not take must not be judged by the others either: a fragment would be known here and not there.
fn runs(packet: &[u8]) -> bool {
    match packet.get(12..14) {
        Some([0x08, 0x00]) => packet.len() >= 14 + 20,
        Some([0x86, 0xdd]) => packet.len() >= 14 + 40,
        found => found.is_some(),
    }
}

fn write(host: &Host, object: &Object, before: &mut HashSet<[u8; 16]>) {
    object.set(map::DIR4, &0_u32, &*host.directory4);
    for (i, chunk) in (0_u32..).zip(&host.chunks4) {
        object.set(map::CHUNKS4, &i, chunk);
    }
    for (i, bucket) in (0_u32..).zip(&host.hash6) {
        object.set(map::HASH6, &i, bucket);
    }
    object.set(map::HOMES6, &0_u32, &*host.homes6);
    object.set_policy(0, &host.policy);
    for (index, interface) in &host.interfaces {
        object.set(map::INTERFACES, index, interface);
    }
    for (i, bucket) in (0_u32..).zip(&host.fragments) {
        object.set(map::FRAGMENTS, &i, bucket);
    }
    for key in before.drain() {
        object.remove(map::COLD, &key);
    }
    for (key, cold) in &host.cold {
        object.set(map::COLD, key, cold);
        before.insert(*key);
    }
    let control = Control {
        meta_key: META_KEY,
        ..host.control
    };
    object.set(map::CONTROL, &0_u32, &control);
}

/// Random gateways, through the real configuration parser and policy compiler, and random packets: the loaded programs, the host's build
/// and the reference agree. `LAZARET_TEST_SEED` starts elsewhere; the nightly form judges one in 100 of its packets here.
#[test]
fn random_gateways_in_the_kernel() {
    let Some(object) = open("random_gateways_in_the_kernel") else {
        return;
    };
    let number = |name: &str, or: u64| env::var(name).map_or(or, |v| v.parse().unwrap());
    let (first, cases) = (number("LAZARET_TEST_SEED", 1), number("LAZARET_TEST_CASES", 300_000) / 100);
    let (mut done, mut keys) = (0, HashSet::new());
    for seed in first..first + cases.div_ceil(200) {
        let scenario = for_the_kernel(seed, 200);
        let mut host = Host::new(&scenario).unwrap_or_else(|e| panic!("seed {seed:#x}: {e}"));
        let mut reference = differential::reference(&scenario);
        write(&host, &object, &mut keys);
        for (i, step) in scenario.steps.iter().enumerate() {
            // A packet that is judged at two hooks is remembered at both: one hook for one scenario.
            let point = point(step, seed % 2 == 0);
            let shown = || format!("seed {seed:#x}, packet {i} at {}: {:02x?}", point.name, step.bytes);
            let (verdict, h) = host.judge(step);
            if let Err((judgment, shipping)) = differential::agreed(&verdict, &h, &mut reference, step) {
                panic!("{}\nreference: {judgment:?}\nshipping:  {shipping}", shown());
            }
            if point.xdp && verdict.reason == Reason::Vlan && is_inner(&host, &step.bytes) {
                is_left(&object, &point, &step.bytes).unwrap_or_else(|e| panic!("{}\n{e}", shown()));
                done += 1;
                continue;
            }
            match agrees(&object, &point, &step.bytes, &verdict, &h) {
                Ok(true) => done += 1,
                Ok(false) => panic!("{}\nThe kernel does not take it.", shown()),
                Err(e) => panic!("{}\n{verdict:?} of {h:?}\n{e}", shown()),
            }
        }
    }
    println!("{done} packets in the kernel");
    assert!(done > cases / 3, "{done} of {cases} packets");
}

/// Whether the only VLAN id that can be seen may be the inner one of a VLAN of the interface: XDP leaves that to its companion.
fn is_inner(host: &Host, frame: &[u8]) -> bool {
    let Some((_, interface)) = host.interfaces.iter().find(|(index, _)| *index == IFINDEX) else {
        return false;
    };
    match read(frame, true, None).vlan[..] {
        [id] => interface.vlans.iter().any(|known| known >> 16 == u32::from(id)),
        _ => false,
    }
}

/// The entry point of a step; `xdp` where there is one.
fn point(step: &Step, xdp: bool) -> EntryPoint {
    let at = place(step);
    let found = ENTRY_POINTS
        .iter()
        .filter(|p| p.place.role == at.role && p.place.direction == at.direction && p.place.ethernet == at.ethernet)
        .max_by_key(|p| p.xdp == xdp)
        .unwrap();
    *found
}
