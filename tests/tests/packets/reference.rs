//! The naive reference beside the table of packets and beside the kernel: what an entry expects holds not only because the shipping
//! decision says so, and sequences of fragments do to both, and to the kernel, what the table says.

use ipnetwork::IpNetwork;
use lazaret_tests::reference::{
    Configuration, Judgment, Lease, Place, Reference, Session,
    configuration::{Interface, Policy, Pool, Rule},
    read,
};
use serde::Deserialize;
use toml::{Table as Toml, Value};

use crate::{
    frame::Packet,
    object::{IFINDEX, open},
    table::{DATA, ENTRY_POINTS, Entry, EntryPoint, Table, agrees, applies, judge},
    world::World,
};

/// Packets of the table that go through one place one after the other.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sequence {
    name: String,
    at: String,
    link: Option<String>,
    packets: Vec<Piece>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Piece {
    is: Packet,
    expect: String,
    pool: Option<String>,
}

fn all_sequences() -> Vec<Sequence> {
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
                pool: number,
                interface,
                lease: None,
            }
        };
        sessions.extend(networks(&t, "addresses").into_iter().map(bind(0)));
        sessions.extend(networks(&t, "elsewhere").into_iter().map(bind(IFINDEX + 1)));
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
                if (said.reason, said.pool) != expected || (verdict.reason.name(), verdict.pool) != expected {
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
