//! Denied packets with their first bytes, and only while someone captures.

use gateway_ebpf::{
    abi::{Captured, FLAG_CAPTURE, FLAG_OBSERVE, SNAP, map, program},
    reason::Reason,
};
use lazaret_tests::require::{Need, or_skip};

use crate::{
    frames::{SYN, ethernet, padded, tcp, udp},
    kernel::{IFINDEX, Kernel, stay},
    world,
};

fn start(test: &str, flags: u32) -> Option<Kernel> {
    if !or_skip(test, &[Need::Root, Need::Bpf]) {
        return None;
    }
    let kernel = Kernel::load();
    world::write(&kernel, flags, false);
    Some(kernel)
}

#[test]
fn nobody_captures() {
    let Some(mut kernel) = start("nobody_captures", 0) else {
        return;
    };
    let denied = tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b"");
    kernel.run(program::XDP_DEVICE, &ethernet(&denied), 0);
    kernel.run(program::TC_DEVICE_IP, &padded(&denied), 0);
    assert!(kernel.take::<Captured>(map::CAPTURES).is_empty());
}

/// Every hook, with and without Ethernet, short and long; each denied packet, also of the same flow; and no other.
#[test]
fn denied_packets_and_no_others() {
    let Some(mut kernel) = start("denied_packets_and_no_others", FLAG_CAPTURE) else {
        return;
    };
    let short = tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b"");
    let long = udp("[fd66::5]:1", "[fd77::1]:25", &[7; 1_000]);
    let allowed = tcp("10.66.0.5:40000", "10.77.0.1:443", SYN, [1, 0], b"");
    let answered = tcp("10.77.0.1:25", "10.66.0.5:40000", SYN, [1, 0], b"");
    let sent = [
        (program::XDP_DEVICE, ethernet(&short), true),
        (program::XDP_DEVICE, ethernet(&short), true),
        (program::XDP_DEVICE, ethernet(&long), true),
        (program::XDP_CORE, ethernet(&answered), true),
        (program::TC_DEVICE_ETH, ethernet(&long), true),
        (program::TC_DEVICE_IP, padded(&short), false),
        (program::TC_EGRESS_IP, padded(&answered), false),
        (program::TC_DEVICE_IP, long.clone(), false),
    ];
    for (program, packet, _) in &sent {
        kernel.run(program, packet, 0);
        kernel.run(
            program,
            &if packet[0] == 2 {
                ethernet(&allowed)
            } else {
                padded(&allowed)
            },
            0,
        );
    }
    let found = kernel.take::<Captured>(map::CAPTURES);
    // What is allowed from a device is neither from the core nor to a device.
    let found: Vec<_> = found.iter().filter(|c| c.denial.dport != 443).collect();
    assert_eq!(found.len(), sent.len());
    for ((program, packet, ethernet), captured) in sent.iter().zip(found) {
        let n = packet.len().min(SNAP);
        assert_eq!(captured.length as usize, packet.len(), "{program}");
        assert_eq!(captured.captured as usize, n, "{program}");
        assert_eq!(captured.bytes[..n], packet[..n], "{program}");
        assert!(captured.bytes[n..].iter().all(|b| *b == 0), "{program}");
        assert_eq!((captured.ethernet, captured.vlan), (u32::from(*ethernet), 0), "{program}");
        assert_eq!((captured.denial.pool, captured.denial.ifindex), (1, IFINDEX), "{program}");
        assert!(
            [Reason::NoRule as u8, Reason::NewToDevice as u8].contains(&captured.denial.reason),
            "{program}"
        );
    }
}

/// Records are limited, and the limit and a full ring are counted.
#[test]
fn what_is_not_captured_is_counted() {
    let Some(mut kernel) = start("what_is_not_captured_is_counted", FLAG_CAPTURE | FLAG_OBSERVE) else {
        return;
    };
    stay();
    let denied = ethernet(&tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b""));
    for _ in 0..5_000 {
        kernel.run(program::XDP_DEVICE, &denied, 0);
    }
    let captured = kernel.take::<Captured>(map::CAPTURES);
    let [kept_back, lost] = kernel.sum::<2>(map::CAPTURES_LOST, 0);
    assert_eq!(captured.len() as u64 + kept_back + lost, 5_000);
    assert!(
        captured.len() >= 1_000 && kept_back + lost > 0,
        "{} captured, {kept_back} kept back, {lost} lost",
        captured.len()
    );
    assert!(captured.iter().all(|c| c.denial.observed == 1));
}
