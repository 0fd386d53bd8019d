//! The table of packets, `tests/data/packets.toml`: each entry through the host's build of the decision, and through every kernel entry
//! point that it applies to.

use gateway_ebpf::{
    abi::{Count, MARK_ANSWER, MARK_GRANT, REASONS, hook, mark, meta_magic, meta_vlan, mix6, program},
    decide::{Direction, Outcome, Place, Role, Verdict},
    headers::{Headers, words},
    rare::decide_packet,
    reason::Reason,
};
use serde::Deserialize;

use crate::{
    frame::Packet,
    object::{IFINDEX, META_KEY, Object, Run},
    world::{Description, World},
};

pub(crate) const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/packets.toml");

/// What a TC program returns.
pub(crate) const TCX_NEXT: i32 = -1;
const TC_ACT_REDIRECT: i32 = 7;
pub(crate) const TC_ACT_SHOT: i32 = 2;
/// What an XDP program returns.
pub(crate) const XDP_DROP: i32 = 1;
pub(crate) const XDP_PASS: i32 = 2;

/// The whole table.
#[derive(Deserialize)]
pub(crate) struct Table {
    #[serde(flatten)]
    pub(crate) world: Description,
    pub(crate) packet: Vec<Entry>,
}

/// An entry.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// What it shows.
    pub(crate) name: String,
    /// "device" or "core" (ingress), or "egress" (of a device interface).
    at: String,
    /// "ethernet" or "ip"; otherwise both.
    link: Option<String>,
    /// Some lease has ended, and the daemon has not moved the hot word on.
    #[serde(default)]
    pub(crate) late: bool,
    /// The packet.
    pub(crate) is: Packet,
    /// Reason.
    pub(crate) expect: String,
    /// The verdict's pool; otherwise none.
    pub(crate) pool: Option<String>,
}

/// A program, and how a packet looks to it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryPoint {
    pub(crate) name: &'static str,
    pub(crate) place: Place,
    pub(crate) xdp: bool,
}

/// Every entry point that judges.
pub(crate) const ENTRY_POINTS: [EntryPoint; 8] = {
    const fn at(name: &'static str, role: Role, direction: Direction, ethernet: bool, xdp: bool) -> EntryPoint {
        let hook = match (role, direction, xdp) {
            (_, Egress, _) => hook::TC_EGRESS,
            (Role::Device, _, true) => hook::XDP_DEVICE,
            (Role::Core, _, true) => hook::XDP_CORE,
            (Role::Device, _, false) => hook::TC_DEVICE,
            (Role::Core, _, false) => hook::TC_CORE,
        };
        EntryPoint {
            name,
            place: Place {
                role,
                direction,
                ethernet,
                ifindex: IFINDEX,
                hook,
            },
            xdp,
        }
    }
    use Direction::{Egress, Ingress};
    [
        at(program::XDP_DEVICE, Role::Device, Ingress, true, true),
        at(program::XDP_CORE, Role::Core, Ingress, true, true),
        at(program::TC_DEVICE_ETH, Role::Device, Ingress, true, false),
        at(program::TC_CORE_ETH, Role::Core, Ingress, true, false),
        at(program::TC_DEVICE_IP, Role::Device, Ingress, false, false),
        at(program::TC_CORE_IP, Role::Core, Ingress, false, false),
        at(program::TC_EGRESS_ETH, Role::Device, Egress, true, false),
        at(program::TC_EGRESS_IP, Role::Device, Egress, false, false),
    ]
};

impl Table {
    pub(crate) fn read() -> Self {
        let text = std::fs::read_to_string(DATA).unwrap();
        toml::from_str(&text).unwrap_or_else(|e| panic!("{DATA}: {e}"))
    }
}

impl Entry {
    pub(crate) fn applies_to(&self, point: &EntryPoint) -> bool {
        applies(&self.at, self.link.as_ref(), point)
    }
}

/// Whether the table's words for a place mean an entry point.
pub(crate) fn applies(wanted: &str, on: Option<&String>, point: &EntryPoint) -> bool {
    let at = match (point.place.role, point.place.direction) {
        (_, Direction::Egress) => "egress",
        (Role::Device, _) => "device",
        (Role::Core, _) => "core",
    };
    let link = if point.place.ethernet { "ethernet" } else { "ip" };
    assert!(matches!(wanted, "device" | "core" | "egress"), "at {wanted}");
    wanted == at && on.is_none_or(|l| l == link)
}

/// The host's verdict, and the headers that it saw.
pub(crate) fn judge(world: &World, place: Place, packet: &[u8]) -> (Verdict, Headers) {
    let (verdict, h, _) = world.judged(|tables| decide_packet(tables, place, packet, None));
    (verdict, h)
}

/// Whether the kernel's entry point did what the verdict says: action, bytes, mark, and exactly one counter. `Ok(false)`: the kernel does
/// not take so short a packet for a test run.
pub(crate) fn agrees(object: &Object, point: &EntryPoint, packet: &[u8], verdict: &Verdict, h: &Headers) -> Result<bool, String> {
    let before = object.counters();
    if verdict.answer {
        // So that it is not one too many for its source.
        let slot = mix6(words(h.source)) as u32 % 4096;
        object.set("ANSWERED", &slot, &0_u64);
    }
    let run = match object.run_with(point.name, packet, &crate::object::SkBuff::new()) {
        // bpf_prog_test_run_skb wants an Ethernet header, and behind some ethertypes an IP header; bpf_prog_test_run_xdp the former.
        Err(_) if packet.len() < if point.xdp { 14 } else { 54 } => return Ok(false),
        other => other.map_err(|e| format!("{}: {e:?}", point.name))?,
    };
    if verdict.answer && !point.xdp {
        answered(point, packet, &run).map_err(|e| format!("{}: {e}: {run:x?}", point.name))?;
    } else {
        let expected = expected(point, packet, verdict);
        if run != expected {
            return Err(format!("{}: {run:x?} instead of {expected:x?}", point.name));
        }
    }
    let mut counters = before;
    let count = &mut counters[usize::from(verdict.pool)][verdict.reason as usize];
    count.packets += 1;
    count.bytes += u64::from(h.length);
    let after = object.counters();
    if after != counters {
        return Err(format!("{}: counters {}", point.name, difference(&counters, &after)));
    }
    Ok(true)
}

/// Whether XDP has left a frame to its companion: passed, as it was, without a word, and not counted.
pub(crate) fn is_left(object: &Object, point: &EntryPoint, packet: &[u8]) -> Result<(), String> {
    let before = object.counters();
    let run = object.run(point.name, packet, 0);
    let left = Run {
        action: XDP_PASS,
        data: packet.to_vec(),
        mark: 0,
    };
    if run != left || object.counters() != before {
        return Err(format!("{}: {run:x?} instead of {left:x?}, or counted", point.name));
    }
    Ok(())
}

/// Whether a TC program has tried to answer a denied packet, as far as a test run goes. What an answer looks like, real interfaces show (`hooks`).
///
/// Over Ethernet a test run takes the frame for another host's, which is not answered. Without, it takes the protocol from where an Ethernet
/// header would have it, so that the kernel refuses to cut the answer to its size; the room for cutting stays behind it.
fn answered(point: &EntryPoint, packet: &[u8], run: &Run) -> Result<(), &'static str> {
    const CUT: usize = 256;
    if point.place.ethernet {
        return if run.action == TC_ACT_SHOT && run.data == packet {
            Ok(())
        } else {
            Err("a frame for another host was answered")
        };
    }
    let v4 = packet[0] >> 4 == 4;
    let header = if v4 { 20 } else { 40 };
    // A reset, or ICMP with at most 128 bytes of the packet.
    let plausible = |length: usize| (header + 8..=header + 8 + 128).contains(&length);
    match run.action {
        TC_ACT_REDIRECT if plausible(run.data.len()) => Ok(()),
        TC_ACT_SHOT if run.data.len() >= CUT && plausible(run.data.len() - CUT) => Ok(()),
        _ => Err("not answered"),
    }
}

/// The tag that XDP tells its companion of.
fn tag(frame: &[u8]) -> u32 {
    match frame.get(12..16) {
        Some([0x81, 0, high, low] | [0x88, 0xa8, high, low]) if frame.len() >= 18 => meta_vlan(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}

/// What the entry point does with a verdict; no mark before.
fn expected(point: &EntryPoint, packet: &[u8], verdict: &Verdict) -> Run {
    let from_device = point.place.direction == Direction::Ingress && point.place.role == Role::Device;
    let (pass, grant) = match verdict.outcome() {
        // Of another pool than the verdict's only where both ends are devices.
        Outcome::Grant if from_device && verdict.reason == Reason::Related => (true, verdict.mark),
        Outcome::Grant => (true, mark(verdict.pool, from_device)),
        Outcome::Link | Outcome::NotOurs if point.place.direction == Direction::Egress => (true, MARK_GRANT),
        Outcome::Link | Outcome::NotOurs => (true, 0),
        // Its companion is asked to answer.
        Outcome::Deny if verdict.answer => (true, MARK_ANSWER | u32::from(verdict.pool) << 16),
        Outcome::Deny => (false, 0),
    };
    let (action, data) = match (point.xdp, pass) {
        (true, true) => (
            XDP_PASS,
            [
                &meta_magic(META_KEY, IFINDEX).to_ne_bytes(),
                &(grant | tag(packet)).to_ne_bytes(),
                packet,
            ]
            .concat(),
        ),
        (true, false) => (XDP_DROP, packet.to_vec()),
        (false, true) => (TCX_NEXT, packet.to_vec()),
        (false, false) => (TC_ACT_SHOT, packet.to_vec()),
    };
    Run {
        action,
        data,
        mark: if point.xdp { 0 } else { grant },
    }
}

fn difference(expected: &[[Count; REASONS]], found: &[[Count; REASONS]]) -> String {
    let mut text = String::new();
    for (pool, (e, f)) in expected.iter().zip(found).enumerate() {
        for (reason, (e, f)) in e.iter().zip(f).enumerate() {
            if e != f {
                text += &format!("[pool {pool}, reason {reason}: {f:?} instead of {e:?}]");
            }
        }
    }
    text
}

/// Every entry gives the expected reason and pool on the host; every reason that a packet can have has an entry.
#[test]
fn the_table_on_the_host() {
    let table = Table::read();
    assert!(table.packet.len() >= 600, "{} entries", table.packet.len());
    let mut world = World::new(&table.world);
    let mut wrong = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for entry in &table.packet {
        world.control.earliest_lease_end = if entry.late { 0 } else { u64::MAX };
        let mut applied = false;
        for point in ENTRY_POINTS.iter().filter(|p| !p.xdp && entry.applies_to(p)) {
            applied = true;
            let packet = entry.is.bytes(point.place.ethernet);
            let (verdict, _) = judge(&world, point.place, &packet);
            let pool = entry.pool.as_ref().map_or(0, |p| world.number(p));
            seen.insert(verdict.reason);
            if (verdict.reason.name(), verdict.pool) != (entry.expect.as_str(), pool) {
                wrong.push(format!(
                    "{} at {}: {verdict:?} instead of {} {pool}",
                    entry.name, point.name, entry.expect
                ));
            }
        }
        assert!(applied, "{} applies nowhere", entry.name);
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    // What takes several packets.
    let sequences = crate::reference::all_sequences();
    seen.extend(sequences.iter().flat_map(|s| &s.packets).filter_map(|p| {
        let named = |r: &&Reason| r.name() == p.expect;
        Reason::ALL.iter().find(named)
    }));
    // Only the guard says the one, only a table that cannot be read gives the other.
    let no_packet = [Reason::Unjudged, Reason::Internal];
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|r| !seen.contains(r) && !no_packet.contains(r))
        .collect();
    assert!(missing.is_empty(), "no entry for {missing:?}");
}

/// The loaded object does with every entry what the host's build says.
#[test]
fn the_table_in_the_kernel() {
    let Some(object) = crate::object::open("the_table_in_the_kernel") else {
        return;
    };
    let table = Table::read();
    let mut world = World::new(&table.world);
    world.write(&object);
    let mut wrong = Vec::new();
    let (mut runs, mut short) = (0, 0);
    for entry in &table.packet {
        world.control.earliest_lease_end = if entry.late { 0 } else { u64::MAX };
        object.set(gateway_ebpf::abi::map::CONTROL, &0_u32, &world.control);
        for point in ENTRY_POINTS.iter().filter(|p| entry.applies_to(p)) {
            let packet = entry.is.bytes(point.place.ethernet);
            let (verdict, h) = judge(&world, point.place, &packet);
            match agrees(&object, point, &packet, &verdict, &h) {
                Ok(true) => runs += 1,
                Ok(false) => short += 1,
                Err(e) => wrong.push(format!("{}: {e}", entry.name)),
            }
        }
    }
    println!(
        "{runs} runs of {} entries, {short} too short for a test run",
        table.packet.len()
    );
    assert!(short <= 8, "{short} packets are not run in the kernel");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
