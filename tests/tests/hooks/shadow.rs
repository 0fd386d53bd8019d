//! The shadow policy: what it would have done is counted exactly where it differs, and changes nothing.

use gateway_ebpf::abi::{self, FLAG_OBSERVE, FLAG_SHADOW, Trace, map, program};
use lazaret_tests::{
    require::{Need, or_skip},
    scratch::Scratch,
};

use crate::{
    frames::{SYN, ethernet, icmp, padded, tcp, udp},
    kernel::Kernel,
    world::{self, RULE},
};

/// Packets that the shadow policy would drop of pools 1 and 2, and would pass of pools 1 and 3; bytes likewise.
fn differences(kernel: &Kernel) -> [[u64; 4]; 3] {
    [1, 2, 3].map(|pool| kernel.sum(map::SHADOW, pool))
}

/// Of both families, of every pool; and a quoted packet, a first fragment, and what no policy is asked about.
fn packets() -> Vec<Vec<u8>> {
    let mut fragment = udp("10.66.0.5:40000", "10.77.0.1:53", &[7; 64]);
    fragment[6] = 0x20;
    let quote = udp("10.77.0.1:53", "10.66.0.5:40000", b"what");
    vec![
        tcp("10.66.0.5:40000", "10.77.0.1:443", SYN, [1, 0], b""),
        tcp("[fd66::5]:40000", "[fd77::1]:443", SYN, [1, 0], b""),
        tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b""),
        tcp("[fd66::5]:40000", "[fd77::1]:25", SYN, [1, 0], b""),
        tcp("10.66.0.5:40000", "10.77.0.1:80", SYN, [1, 0], b""),
        udp("10.67.0.5:1000", "192.0.2.1:2000", b"hi"),
        udp("[fd68::5]:1000", "[fd77::1]:2000", b"hi"),
        fragment,
        icmp("10.66.0.5", "10.77.0.1", [3, 3], &[&[0; 4][..], &quote].concat()),
        icmp("10.66.0.5", "10.77.0.1", [5, 0], &[&[0; 4][..], &quote].concat()),
        udp("192.0.2.1:1000", "192.0.2.2:2000", b"hi"),
    ]
}

#[test]
fn differences_are_counted_exactly() {
    if !or_skip("differences_are_counted_exactly", &[Need::Root, Need::Bpf]) {
        return;
    }
    let kernel = Kernel::load();
    world::write(&kernel, 0, false);
    world::shadow(&kernel);
    let all = |program: &str| {
        for packet in packets() {
            let ip = program == program::TC_DEVICE_IP;
            kernel.run(program, &if ip { padded(&packet) } else { ethernet(&packet) }, 0);
        }
    };
    all(program::XDP_DEVICE);
    assert_eq!(differences(&kernel), [[0; 4]; 3], "without the flag nothing is scored");
    assert_eq!(kernel.by_rule(RULE)[2..], [0, 0]);

    // Where rule 7 passes: two segments, a fragment of 92 bytes and a quote in 60. Where nothing does: two to port 25.
    let (dropped, passed) = ([4, 40 + 60 + 92 + 60], [2, 40 + 60]);
    let mut times = 0;
    for (program, flags) in [
        (program::XDP_DEVICE, FLAG_SHADOW),
        (program::TC_DEVICE_ETH, FLAG_SHADOW),
        (program::TC_DEVICE_IP, FLAG_SHADOW),
        (program::XDP_DEVICE, FLAG_SHADOW | FLAG_OBSERVE),
    ] {
        // A datagram that has begun is not begun again.
        kernel.set(map::FRAGMENTS, &0_u32, &[0_u8; size_of::<abi::FragmentBucket>()]);
        world::set_flags(&kernel, flags);
        all(program);
        times += 1;
        let expected = [[dropped[0], dropped[1], passed[0], passed[1]], [1, 30, 0, 0], [0, 0, 1, 50]];
        assert_eq!(
            differences(&kernel),
            expected.map(|p| p.map(|n| n * times)),
            "{program}, {flags}"
        );
        let rule = kernel.by_rule(RULE);
        assert_eq!(rule[2..], dropped.map(|n| n * times), "{program}, {flags}");
        assert_eq!(kernel.by_rule(0)[2..], [times, 30 * times]);
    }
}

/// The twin scores into its trace alone.
#[test]
fn a_trace_says_what_the_shadow_policy_would_do() {
    if !or_skip("a_trace_says_what_the_shadow_policy_would_do", &[Need::Root, Need::Bpf]) {
        return;
    }
    let mut scratch = Scratch::new("shadow").unwrap();
    let pins = scratch.bpffs("bpf").unwrap();
    let kernel = Kernel::load();
    world::write(&kernel, FLAG_SHADOW, false);
    world::shadow(&kernel);
    kernel.pin(&pins);
    let twin = Kernel::twin(&pins);
    let expected = [2, 2, 1, 1, 2, 2, 1, 2, 2, 0, 0];
    for program in [program::XDP_DEVICE, program::TC_DEVICE_ETH, program::TC_DEVICE_IP] {
        for (i, (packet, expected)) in packets().iter().zip(expected).enumerate() {
            let ip = program == program::TC_DEVICE_IP;
            twin.run(program, &if ip { padded(packet) } else { ethernet(packet) }, 0);
            assert_eq!(twin.get::<Trace>(map::TRACE, 0).shadow, expected, "{program}, packet {i}");
        }
    }
    assert_eq!(differences(&kernel), [[0; 4]; 3]);
    world::set_flags(&kernel, 0);
    twin.run(program::XDP_DEVICE, &ethernet(&packets()[0]), 0);
    assert_eq!(twin.get::<Trace>(map::TRACE, 0).shadow, 0);
}
