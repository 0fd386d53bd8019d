//! A driver that has no room for metadata: XDP cannot tell its companion what it has decided, so of what is to pass, or to be answered, it decides
//! nothing, and the companion judges in full. What XDP drops without an answer, it drops and counts as elsewhere.

use gateway_ebpf::{
    abi::{Count, FLAG_OBSERVE, MARK_GRANT, MARK_GRANT_MASK, REASONS, map, mark, program},
    reason::Reason,
};
use lazaret_tests::require::{Need, or_skip};

use crate::{
    frames::{ACK, SYN, ethernet, icmp, tcp, udp},
    kernel::{IFINDEX, Kernel, TC_ACT_SHOT, TCX_NEXT, XDP_DROP, XDP_PASS, stay},
    world::{self, RULE},
};

const NEEDS: [Need; 2] = [Need::Root, Need::Bpf];

/// Everything that the programs count.
fn counted(kernel: &Kernel) -> (Vec<[Count; REASONS]>, [u64; 4], [u64; 2]) {
    let answers = kernel.sum(map::ANSWERS, 1);
    (kernel.all_counters(), kernel.by_rule(RULE), answers)
}

/// Frames that were left to the companion of the interface of test runs.
fn left(kernel: &Kernel) -> u32 {
    let words = kernel.counts().no_metadata.into_iter().flatten();
    words.filter(|w| w >> 32 == u64::from(IFINDEX)).map(|w| w as u32).sum()
}

/// A question for an address (RFC 826).
fn arp() -> Vec<u8> {
    let mut frame = [&[2; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    frame.resize(60, 0);
    frame
}

/// What passes is judged and counted by the companion, once; at XDP nothing is counted, told or remembered.
#[test]
fn what_passes_is_left_to_the_companion() {
    if !or_skip("what_passes_is_left_to_the_companion", &NEEDS) {
        return;
    }
    stay();
    let mut kernel = Kernel::load();
    world::write(&kernel, 0, false);
    let mut fragment = udp("10.66.0.5:40000", "10.77.0.1:53", &[7; 64]);
    fragment[6] = 0x20;
    // Each with the reason, the pool and the mark.
    let granted = mark(1, true);
    let frames = [
        (
            tcp("10.66.0.5:40000", "10.77.0.1:443", SYN, [1, 0], b""),
            Reason::Rule,
            granted,
        ),
        (
            tcp("[fd66::5]:40000", "[fd77::1]:443", SYN, [1, 0], b""),
            Reason::Rule,
            granted,
        ),
        (fragment, Reason::Rule, granted),
        (udp("10.67.0.5:1", "192.0.2.1:2", b""), Reason::All, mark(2, true)),
    ];
    let frames = frames.into_iter().map(|(ip, reason, mark)| (ethernet(&ip), reason, mark));
    for (frame, reason, mark) in frames.chain([(arp(), Reason::Arp, 0)]) {
        let before = counted(&kernel);
        assert_eq!(
            kernel.run_without_room(program::XDP_DEVICE, &frame).action,
            XDP_PASS,
            "{frame:02x?}"
        );
        assert_eq!(counted(&kernel), before, "{frame:02x?}");
        let all = |kernel: &Kernel| (0..4).map(|pool| kernel.counted(pool, reason).packets).sum::<u64>();
        let had = all(&kernel);
        let run = kernel.run(program::TC_DEVICE_ETH, &frame, 0);
        assert_eq!((run.action, run.mark), (TCX_NEXT, mark), "{frame:02x?}");
        assert_eq!(all(&kernel), had + 1);
    }
    assert_eq!(left(&kernel), 5);
    // From the core, what is for a device and what is not ours.
    for (ip, mark) in [
        (tcp("10.77.0.1:443", "10.66.0.5:40000", ACK, [1, 1], b""), mark(1, false)),
        (icmp("192.0.2.1", "198.51.100.1", [8, 0], &[0, 1, 0, 1]), 0),
    ] {
        let before = counted(&kernel);
        assert_eq!(kernel.run_without_room(program::XDP_CORE, &ethernet(&ip)).action, XDP_PASS);
        assert_eq!(counted(&kernel), before);
        let run = kernel.run(program::TC_CORE_ETH, &ethernet(&ip), 0);
        assert_eq!((run.action, run.mark & (MARK_GRANT_MASK | 0x00ff_0000)), (TCX_NEXT, mark));
        assert_ne!(counted(&kernel), before);
    }
    assert_eq!(left(&kernel), 7);
    assert_eq!(kernel.denials(), []);
    assert_eq!(mark(1, false) & MARK_GRANT_MASK, MARK_GRANT);

    // In observe mode everything passes, so everything is the companion's.
    world::set_flags(&kernel, FLAG_OBSERVE);
    let denied = ethernet(&tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b""));
    let before = counted(&kernel);
    assert_eq!(kernel.run_without_room(program::XDP_DEVICE, &denied).action, XDP_PASS);
    assert_eq!((counted(&kernel), kernel.denials()), (before, vec![]));
    assert_eq!(kernel.run(program::TC_DEVICE_ETH, &denied, 0).action, TCX_NEXT);
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, 1);
    assert_eq!(kernel.denials().len(), 1);
}

/// What is denied is dropped at XDP, or if it is to be answered, left to the companion with its share of answers untouched.
#[test]
fn what_is_denied_is_counted_once() {
    if !or_skip("what_is_denied_is_counted_once", &NEEDS) {
        return;
    }
    stay();
    let mut kernel = Kernel::load();
    world::write(&kernel, 0, false);
    let denied = ethernet(&tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b""));
    for n in 1..=2 {
        assert_eq!(kernel.run_without_room(program::XDP_DEVICE, &denied).action, XDP_DROP);
        assert_eq!(kernel.counted(1, Reason::NoRule).packets, n);
    }
    assert_eq!(left(&kernel), 0);
    assert_eq!(kernel.denials().len(), 1);

    let mut kernel = Kernel::load();
    world::write(&kernel, 0, true);
    let before = counted(&kernel);
    for _ in 0..30 {
        assert_eq!(kernel.run_without_room(program::XDP_DEVICE, &denied).action, XDP_PASS);
    }
    assert_eq!(
        (counted(&kernel), kernel.denials()),
        (before, vec![]),
        "neither counted, nor told, nor answered"
    );
    assert_eq!(left(&kernel), 30);
    // A test run takes the frame for another host's, which is denied, counted, and not answered.
    assert_eq!(kernel.run(program::TC_DEVICE_ETH, &denied, 0).action, TC_ACT_SHOT);
    assert_eq!((kernel.counted(1, Reason::NoRule).packets, kernel.denials().len()), (1, 1));
    // A second can begin in between.
    for _ in 1..25 {
        kernel.run(program::TC_DEVICE_ETH, &denied, 0);
    }
    assert_ne!(
        kernel.sum::<2>(map::ANSWERS, 1)[1],
        0,
        "the companion has tried to answer, up to the limit"
    );
}
