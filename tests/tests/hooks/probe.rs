//! The probing twin: loaded from the same object with one variable changed, on the maps of the programs that are attached, it judges as they do
//! and leaves nothing but its trace.

use gateway_ebpf::{
    abi::{self, Captured, FLAG_CAPTURE, Trace, class_entry, hook, map, mark, meta_magic, program},
    reason::Reason,
};
use lazaret_tests::{
    require::{Need, or_skip},
    scratch::Scratch,
};

use crate::{
    frames::{ACK, SYN, ethernet, padded, tcp, udp},
    kernel::{IFINDEX, Kernel, META_KEY, TC_ACT_SHOT, XDP_DROP, XDP_PASS},
    world::{self, RULE},
};

fn trace(twin: &Kernel) -> Trace {
    twin.get(map::TRACE, 0)
}

#[test]
fn the_twin_judges_alike_and_leaves_no_trace() {
    if !or_skip("the_twin_judges_alike_and_leaves_no_trace", &[Need::Root, Need::Bpf]) {
        return;
    }
    let mut scratch = Scratch::new("probe").unwrap();
    let pins = scratch.bpffs("bpf").unwrap();
    let mut kernel = Kernel::load();
    world::write(&kernel, FLAG_CAPTURE, true);
    kernel.pin(&pins);
    let twin = Kernel::twin(&pins);

    let packets = [
        tcp("10.66.0.5:40000", "10.77.0.1:443", SYN, [1, 0], b""),
        tcp("[fd66::5]:40000", "[fd77::1]:443", SYN, [1, 0], b""),
        tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b""),
        tcp("10.77.0.1:443", "10.66.0.5:40000", ACK, [1, 1], b""),
        udp("10.67.0.5:1000", "192.0.2.1:2000", b"hi"),
        udp("[fd68::5]:1000", "[fd67::1]:2000", b"hi"),
        udp("192.0.2.1:1000", "192.0.2.2:2000", b"hi"),
        tcp("10.67.0.5:40000", "10.66.0.1:443", SYN, [1, 0], b""),
    ];
    let programs = [
        program::XDP_DEVICE,
        program::XDP_CORE,
        program::TC_DEVICE_ETH,
        program::TC_CORE_ETH,
        program::TC_DEVICE_IP,
        program::TC_CORE_IP,
        program::TC_EGRESS_ETH,
        program::TC_EGRESS_IP,
    ];
    let shaped = |program: &str, packet: &[u8]| {
        if program.ends_with("_ip") {
            padded(packet)
        } else {
            ethernet(packet)
        }
    };
    // First the twin, then the programs themselves: the same, and the twin has moved nothing.
    let mut judged = 0;
    let mut reasons = Vec::new();
    for program in programs {
        for packet in &packets {
            let packet = shaped(program, packet);
            let probed = twin.run(program, &packet, 0x4455);
            judged += 1;
            let trace = trace(&twin);
            assert_eq!(trace.judged, judged);
            reasons.push((trace.pool, trace.reason));
            let before = (kernel.all_counters(), kernel.sum::<3>(map::EVENTS_LOST, 0));
            assert!(before.0.iter().flatten().all(|c| c.packets == 0), "the twin has counted");
            assert_eq!(before.1, [0; 3]);
            assert!(Reason::from_number(trace.reason).is_some());
            assert_eq!(
                trace.mark != 0,
                Reason::from_number(trace.reason).unwrap().passes() && trace.reason != Reason::NotOurs as u8
            );
            drop(probed);
        }
    }
    assert!(kernel.denials().is_empty() && kernel.take::<Captured>(map::CAPTURES).is_empty());
    for rule in (0..4096).step_by(97).chain([1, world::RULE]) {
        assert_eq!(kernel.by_rule(rule), [0; 4]);
    }
    let mut reasons = reasons.into_iter();
    for program in programs {
        for packet in &packets {
            let packet = shaped(program, packet);
            let before = kernel.all_counters();
            let own = kernel.run(program, &packet, 0x4455);
            let (pool, reason) = reasons.next().unwrap();
            let after = kernel.all_counters();
            let counter = usize::from(reason);
            assert_eq!(
                after[usize::from(pool)][counter].packets,
                before[usize::from(pool)][counter].packets + 1,
                "{program}: the twin said {reason} in pool {pool}"
            );
            assert_eq!(
                kernel.get::<Trace>(map::TRACE, 0),
                Trace::default(),
                "only the twin writes a trace"
            );
            let probed = twin.run(program, &packet, 0x4455);
            // An answer is made out of the packet, which the twin leaves as it is.
            if trace(&twin).answer == 0 {
                assert_eq!(own, probed, "{program} on {packet:02x?}");
            } else {
                let dropped = if program.starts_with("xdp") { XDP_DROP } else { TC_ACT_SHOT };
                assert_eq!(
                    (probed.action, probed.data),
                    (dropped, packet.clone()),
                    "{program} on {packet:02x?}"
                );
            }
        }
    }
}

/// Field by field.
#[test]
fn a_trace_says_how_it_was_judged() {
    if !or_skip("a_trace_says_how_it_was_judged", &[Need::Root, Need::Bpf]) {
        return;
    }
    let mut scratch = Scratch::new("trace").unwrap();
    let pins = scratch.bpffs("bpf").unwrap();
    let kernel = Kernel::load();
    world::write(&kernel, abi::FLAG_OBSERVE, false);
    kernel.pin(&pins);
    let twin = Kernel::twin(&pins);

    let allowed = ethernet(&tcp("10.66.0.5:40000", "10.77.0.1:443", SYN, [1, 0], b""));
    let run = twin.run(program::XDP_DEVICE, &allowed, 0);
    let grant = mark(1, true);
    assert_eq!(
        run.data,
        [
            &meta_magic(META_KEY, IFINDEX).to_ne_bytes(),
            &grant.to_ne_bytes(),
            &allowed[..]
        ]
        .concat()
    );
    let expected = Trace {
        judged: 1,
        entries: [class_entry(1, false, 0), 0],
        mark: grant,
        rule: RULE,
        classes: [1, 0],
        reason: Reason::Rule as u8,
        pool: 1,
        hook: hook::XDP_DEVICE,
        observed: 1,
        ..Trace::default()
    };
    assert_eq!(trace(&twin), expected);

    twin.run(
        program::TC_EGRESS_IP,
        &padded(&udp("[fd68::5]:1000", "[fd67::1]:2000", b"hi")),
        0,
    );
    let expected = Trace {
        judged: 2,
        entries: [class_entry(3, false, 0), class_entry(2, false, 0)],
        classes: [3, 2],
        reason: Reason::Blocked as u8,
        pool: 3,
        hook: hook::TC_EGRESS,
        observed: 1,
        ..Trace::default()
    };
    assert_eq!(trace(&twin), expected);
    twin.run(program::TC_DEVICE_ETH, &[0; 64], 0);
    assert_eq!((trace(&twin).classes, trace(&twin).reason), ([0, 0], Reason::Llc as u8));
}

/// A packet that somebody asks about takes no room in the memory of fragments, is in no real fragment's way, and spoils no datagram.
#[test]
fn the_twin_remembers_no_fragments() {
    if !or_skip("the_twin_remembers_no_fragments", &[Need::Root, Need::Bpf]) {
        return;
    }
    let mut scratch = Scratch::new("fragments").unwrap();
    let pins = scratch.bpffs("bpf").unwrap();
    let kernel = Kernel::load();
    world::write(&kernel, 0, false);
    kernel.pin(&pins);
    let twin = Kernel::twin(&pins);
    let whole = udp("10.66.0.5:40000", "10.77.0.1:53", &[7; 64]);
    let mut first = whole.clone();
    first[6] = 0x20;
    let mut last = whole;
    last[7] = 72 / 8;
    let [first, last] = [first, last].map(|p| ethernet(&p));
    let asked = |packet: &[u8]| {
        twin.run(program::XDP_DEVICE, packet, 0);
        trace(&twin).reason
    };
    let own = |packet: &[u8]| kernel.run(program::XDP_DEVICE, packet, 0).action;

    assert_eq!(asked(&first), Reason::Rule as u8);
    assert_eq!(asked(&first), Reason::Rule as u8, "it was not remembered");
    assert_eq!(asked(&last), Reason::Fragment as u8);
    assert_eq!(own(&first), XDP_PASS);
    assert_eq!(asked(&first), Reason::Rule as u8, "a duplicate");
    let mut other = first.clone();
    // Another source port.
    other[14 + 20] ^= 1;
    assert_eq!(asked(&other), Reason::FragmentOverlap as u8);
    assert_eq!(asked(&last), Reason::Rule as u8);
    assert_eq!(asked(&last), Reason::Rule as u8, "it was not entered");
    assert_eq!(own(&last), XDP_PASS, "the questions have not spoiled it");
    assert_eq!(asked(&last), Reason::Fragment as u8, "the datagram is complete");
}
