//! The daemon's twin against the programs, over the whole table of packets: what `lazaret explain` would say is what the attached program
//! does, and asking moves no counter.

use std::os::fd::BorrowedFd;

use gateway_ebpf::{
    abi::{REASONS, map},
    decide::{Direction, Role},
    reason::Reason,
};
use gateway_user::{
    config::InterfaceRole,
    dataplane::{SHARED_MAPS, Twin},
    explain::{Probe, Prober as _},
};
use lazaret_tests::scratch::Scratch;

use crate::{
    object::{IFINDEX, Object, SkBuff, open},
    table::{ENTRY_POINTS, EntryPoint, Table},
    world::World,
};

/// The daemon's twin, on the object's maps.
fn twin(object: &Object, scratch: &mut Scratch) -> Twin {
    let share = |name: &'static str| {
        // SAFETY: the object keeps the descriptor open through the call.
        let fd = unsafe { BorrowedFd::borrow_raw(object.map_fd(name)) };
        (name, fd.try_clone_to_owned().unwrap())
    };
    let pins = scratch.bpffs("bpf").unwrap().join("twin");
    Twin::new(SHARED_MAPS.into_iter().map(share).collect(), pins)
}

fn probe(point: &EntryPoint, frame: &[u8]) -> Probe {
    Probe {
        frame: frame.to_vec(),
        ifindex: IFINDEX,
        role: match point.place.role {
            Role::Device => InterfaceRole::Device,
            Role::Core => InterfaceRole::Core,
        },
        egress: point.place.direction == Direction::Egress,
        ethernet: point.place.ethernet,
        xdp: point.xdp,
    }
}

/// Pool, reason and by how much.
fn moved(before: &[[u64; REASONS]], after: &[[u64; REASONS]]) -> Vec<(u8, u8, u64)> {
    let mut moved = Vec::new();
    for (pool, (b, a)) in before.iter().zip(after).enumerate() {
        for (reason, (b, a)) in b.iter().zip(a).enumerate() {
            if a != b {
                moved.push((pool as u8, reason as u8, a - b));
            }
        }
    }
    moved
}

fn packets(object: &Object) -> Vec<[u64; REASONS]> {
    object.counters().iter().map(|p| p.map(|c| c.packets)).collect()
}

#[test]
fn the_daemon_s_twin_says_what_the_program_does_over_the_whole_table() {
    let Some(object) = open("the_daemon_s_twin_says_what_the_program_does_over_the_whole_table") else {
        return;
    };
    let mut scratch = Scratch::new("twin").unwrap();
    let twin = twin(&object, &mut scratch);
    let table = Table::read();
    let mut world = World::new(&table.world);
    world.write(&object);
    let (mut runs, mut short, mut wrong) = (0, 0, Vec::new());
    for entry in &table.packet {
        world.control.earliest_lease_end = if entry.late { 0 } else { u64::MAX };
        object.set(map::CONTROL, &0_u32, &world.control);
        for point in ENTRY_POINTS.iter().filter(|p| entry.applies_to(p)) {
            let frame = entry.is.bytes(point.place.ethernet);
            let before = packets(&object);
            let probed = match twin.run(&probe(point, &frame)) {
                Ok(probed) => probed,
                // The kernel does not take so short a packet for a test run.
                Err(_) if frame.len() < 54 => {
                    short += 1;
                    continue;
                }
                Err(e) => panic!("{} at {}: {e}", entry.name, point.name),
            };
            assert_eq!(moved(&before, &packets(&object)), [], "{}: asking has counted", entry.name);
            assert_eq!(probed.program, point.name, "{}", entry.name);
            let run = object.run_with(point.name, &frame, &SkBuff::new()).unwrap();
            runs += 1;
            let (trace, counted) = (probed.trace, moved(&before, &packets(&object)));
            if counted != [(trace.pool, trace.reason, 1)] {
                wrong.push(format!(
                    "{} at {}: the twin {trace:?}, the program {counted:?}",
                    entry.name, point.name
                ));
            }
            if !point.xdp && trace.mark != 0 && trace.mark != run.mark {
                wrong.push(format!(
                    "{} at {}: mark {:x} and {:x}",
                    entry.name, point.name, trace.mark, run.mark
                ));
            }
            let passed = Reason::from_number(trace.reason).is_some_and(Reason::passes);
            if passed != matches!(run.action, -1 | 2 if (run.action == 2) == point.xdp) && trace.answer == 0 {
                wrong.push(format!(
                    "{} at {}: {trace:?} and action {}",
                    entry.name, point.name, run.action
                ));
            }
        }
    }
    println!(
        "{runs} runs of {} entries, {short} too short for a test run",
        table.packet.len()
    );
    assert!(runs > 400 && short <= 8, "{runs} runs, {short} too short");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
