//! Counters are exact; events are told once a second for the same flow, by all CPUs together, and what is not told is counted.

use std::sync::Barrier;

use gateway_ebpf::{
    abi::{
        Count, FLAG_OBSERVE, FLAG_SHADOW, MARK_ANSWER, MARK_GRANT, MARK_OBSERVED, ShadowCount, hook, map, mark, meta_magic,
        program,
    },
    headers::Headers,
    reason::Reason,
};
use lazaret_tests::require::{Need, or_skip};

use crate::{
    frames::{ACK, SYN, ethernet, icmp, padded, tcp, udp},
    kernel::{IFINDEX, Kernel, META_KEY, TC_ACT_SHOT, TCX_NEXT, XDP_DROP, XDP_PASS, cpus, stay, stay_on},
    world::{self, RULE},
};

fn start(test: &str) -> Option<Kernel> {
    if !or_skip(test, &[Need::Root, Need::Bpf]) {
        return None;
    }
    let kernel = Kernel::load();
    world::write(&kernel, 0, false);
    Some(kernel)
}

/// What a rule passed, over all CPUs.
fn passed(kernel: &Kernel, rule: u16) -> Count {
    let [mut packets, mut bytes, ..] = kernel.by_rule(rule);
    if rule == 0 {
        // What `all` passed is counted by pool.
        for all in (0..64).map(|pool| kernel.counted(pool, Reason::All)) {
            packets += all.packets;
            bytes += all.bytes;
        }
    }
    Count { packets, bytes }
}

fn count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

/// Each granted packet is counted once by its rule, in either direction, and with rule 0 if `all` passed it; a denied one by none.
#[test]
fn what_is_granted_is_counted_by_rule() {
    let Some(kernel) = start("what_is_granted_is_counted_by_rule") else {
        return;
    };
    let asked = tcp("10.66.0.5:40000", "10.77.0.1:443", SYN, [1, 0], b"");
    let answered = tcp("[fd77::1]:443", "[fd66::5]:40000", ACK, [1, 1], b"hello");
    let free = udp("10.67.0.5:1000", "192.0.2.1:2000", b"hi");
    let denied = tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b"");
    for _ in 0..3 {
        assert_eq!(kernel.run(program::XDP_DEVICE, &ethernet(&asked), 0).action, XDP_PASS);
    }
    assert_eq!(kernel.run(program::TC_DEVICE_IP, &padded(&asked), 0).action, TCX_NEXT);
    assert_eq!(kernel.run(program::TC_CORE_IP, &padded(&answered), 0).action, TCX_NEXT);
    assert_eq!(kernel.run(program::XDP_DEVICE, &ethernet(&free), 0).action, XDP_PASS);
    assert_eq!(kernel.run(program::XDP_DEVICE, &ethernet(&denied), 0).action, XDP_DROP);
    assert_eq!(passed(&kernel, RULE), count(5, 4 * 40 + 65));
    assert_eq!(passed(&kernel, 0), count(1, 30));
    assert_eq!(kernel.counted(1, Reason::Rule), count(4, 160));
    assert_eq!(kernel.counted(1, Reason::Reply), count(1, 65));
    assert_eq!(kernel.counted(2, Reason::All), count(1, 30));
    assert_eq!(kernel.counted(1, Reason::NoRule), count(1, 40));
    let others = (1..4096).filter(|r| *r != RULE && passed(&kernel, *r) != count(0, 0)).count();
    assert_eq!(others, 0);
}

/// What an ingress program has granted, it has counted: going out it is judged, and counted only if it is denied there, or by whatever nobody has
/// granted. By the short way and by the long one.
#[test]
fn what_was_counted_coming_in_is_not_counted_going_out() {
    let Some(mut kernel) = start("what_was_counted_coming_in_is_not_counted_going_out") else {
        return;
    };
    stay();
    world::shadow(&kernel);
    let passing = [
        (
            tcp("10.77.0.1:443", "10.66.0.5:40000", ACK, [1, 1], b"hello"),
            1,
            Reason::Reply,
        ),
        (
            tcp("[fd77::1]:443", "[fd66::5]:40000", ACK, [1, 1], b"hello"),
            1,
            Reason::Reply,
        ),
        (icmp("192.0.2.1", "10.67.0.5", [8, 0], &[0, 1, 0, 1]), 2, Reason::All),
        (udp("10.67.0.5:1000", "10.67.0.6:2000", b"between devices"), 2, Reason::All),
    ];
    let refused = [
        udp("10.77.0.1:25", "10.66.0.5:40000", b""),
        icmp("fd77::1", "fd66::5", [128, 0], &[0, 1, 0, 1]),
    ];
    let differs = |kernel: &Kernel| [1, 2].map(|pool| kernel.sum::<{ size_of::<ShadowCount>() / 8 }>(map::SHADOW, pool));
    for flags in [0, FLAG_SHADOW] {
        world::set_flags(&kernel, flags);
        for name in [program::TC_EGRESS_IP, program::TC_EGRESS_ETH] {
            let frame = |ip: &[u8]| {
                if name == program::TC_EGRESS_ETH {
                    ethernet(ip)
                } else {
                    padded(ip)
                }
            };
            for (ip, pool, reason) in &passing {
                let state = |kernel: &Kernel| (kernel.all_counters(), kernel.by_rule(RULE), differs(kernel));
                let granted = mark(*pool, false) | 0x4455;
                let before = state(&kernel);
                for given in [granted, mark(9, true) | 0x4455] {
                    let run = kernel.run(name, &frame(ip), given);
                    assert_eq!((run.action, run.mark), (TCX_NEXT, granted), "{name} {reason:?}");
                    assert_eq!(state(&kernel), before, "{name} {reason:?}");
                }
                let had = kernel.counted(*pool, *reason).packets;
                for (n, given) in [0x4455, MARK_ANSWER | 0x4455, MARK_OBSERVED | 0x4455].into_iter().enumerate() {
                    let run = kernel.run(name, &frame(ip), given);
                    assert_eq!((run.action, run.mark), (TCX_NEXT, granted), "{name} {reason:?}");
                    assert_eq!(
                        kernel.counted(*pool, *reason).packets,
                        had + n as u64 + 1,
                        "{name} {reason:?}"
                    );
                }
                assert_eq!(differs(&kernel) != before.2, flags != 0, "{name} {reason:?}");
            }
            for ip in &refused {
                let had = kernel.counted(1, Reason::NoRule).packets;
                for (n, given) in [mark(1, false), MARK_OBSERVED, 0].into_iter().enumerate() {
                    assert_eq!(kernel.run(name, &frame(ip), given).action, TC_ACT_SHOT, "{name}");
                    assert_eq!(kernel.counted(1, Reason::NoRule).packets, had + n as u64 + 1, "{name}");
                }
            }
        }
    }
    assert!(kernel.denials().len() >= refused.len(), "each is told");
}

/// In observe mode a denial passes: it is counted and told where it comes in, and not again where it leaves, also with XDP and a foreign VLAN.
#[test]
fn what_is_observed_is_counted_once() {
    let Some(mut kernel) = start("what_is_observed_is_counted_once") else {
        return;
    };
    stay();
    world::set_flags(&kernel, FLAG_OBSERVE);
    let denied = udp("10.66.0.5:1000", "10.68.0.5:25", b"");
    let came = kernel.run(program::TC_DEVICE_IP, &padded(&denied), 0x0101_4455);
    assert_eq!((came.action, came.mark), (TCX_NEXT, MARK_OBSERVED | 0x4455));
    let counted = (kernel.all_counters(), kernel.denials().len());
    assert_eq!((kernel.counted(1, Reason::NoRule), counted.1), (count(1, 28), 1));
    let left = kernel.run(program::TC_EGRESS_IP, &padded(&denied), came.mark);
    assert_eq!((left.action, left.mark), (TCX_NEXT, MARK_GRANT | 0x4455));
    assert_eq!((kernel.all_counters(), 1 + kernel.denials().len()), counted);
    // What the host sends.
    assert_eq!(
        kernel.run(program::TC_EGRESS_IP, &padded(&denied), 0x4455).mark,
        MARK_GRANT | 0x4455
    );
    assert_eq!(kernel.counted(1, Reason::NoRule), count(2, 56));
    // XDP tells its companion, which asks for no answer.
    let frame = ethernet(&denied);
    let run = kernel.run(program::XDP_DEVICE, &frame, 0);
    let words = [meta_magic(META_KEY, IFINDEX).to_ne_bytes(), MARK_OBSERVED.to_ne_bytes()].concat();
    assert_eq!((run.action, &run.data[..8]), (XDP_PASS, &words[..]));
}

/// The same flow is told once; another port, another address or another reason is another event; and however often the one is denied, the
/// others are told.
#[test]
fn a_flood_of_one_flow_does_not_silence_others() {
    let Some(mut kernel) = start("a_flood_of_one_flow_does_not_silence_others") else {
        return;
    };
    stay();
    let send = |from: &str, to: &str| {
        let frame = ethernet(&udp(from, to, b""));
        assert_eq!(kernel.run(program::XDP_DEVICE, &frame, 0).action, XDP_DROP);
    };
    for i in 0..1_000 {
        // Another source port is the same event.
        send(&format!("10.66.0.5:{}", 1000 + i % 7), "10.77.0.1:25");
    }
    send("10.66.0.5:1000", "10.77.0.1:26");
    send("10.66.0.6:1000", "10.77.0.1:25");
    send("10.66.0.5:1000", "10.77.0.2:25");
    send("10.68.0.5:1000", "10.77.0.1:25");
    send("[fd66::5]:1000", "[fd77::1]:25");
    let told: Vec<_> = kernel
        .denials()
        .iter()
        .map(|d| (d.src[15], d.dst[15], d.dport, d.pool, d.version))
        .collect();
    assert_eq!(
        told,
        [
            (5, 1, 25, 1, 4),
            (5, 1, 26, 1, 4),
            (6, 1, 25, 1, 4),
            (5, 2, 25, 1, 4),
            (5, 1, 25, 3, 4),
            (5, 1, 25, 1, 6)
        ]
    );
    assert_eq!(kernel.sum::<3>(map::EVENTS_LOST, 0), [0, 0, 999]);
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, 1_004);

    // A second later it is told again.
    std::thread::sleep(std::time::Duration::from_millis(1_050));
    let frame = ethernet(&udp("10.66.0.5:1000", "10.77.0.1:25", b""));
    kernel.run(program::XDP_DEVICE, &frame, 0);
    assert_eq!(kernel.denials().len(), 1);
}

/// CPUs tell no more than one of them does: each flow once, also where all of them meet it at the same moment.
#[test]
fn the_same_is_told_once_by_all_cpus() {
    const FLOWS: u16 = 50;
    let Some(mut kernel) = start("the_same_is_told_once_by_all_cpus") else {
        return;
    };
    let cpus = cpus();
    let together = Barrier::new(cpus.len());
    std::thread::scope(|s| {
        for cpu in &cpus {
            let (kernel, together) = (&kernel, &together);
            s.spawn(move || {
                stay_on(*cpu);
                for port in 1..=FLOWS {
                    let frame = ethernet(&udp("10.66.0.5:1000", &format!("10.77.0.1:{port}"), b""));
                    together.wait();
                    assert_eq!(kernel.run(program::XDP_DEVICE, &frame, 0).action, XDP_DROP);
                }
            });
        }
    });
    let (each, met) = (u64::from(FLOWS), cpus.len() as u64);
    // Port 53 is allowed, and not among them.
    let mut told: Vec<_> = kernel.denials().iter().map(|d| d.dport).collect();
    told.sort_unstable();
    assert_eq!(told, (1..=FLOWS).collect::<Vec<_>>());
    assert_eq!(kernel.sum::<3>(map::EVENTS_LOST, 0), [0, 0, each * (met - 1)]);
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, each * met);
}

/// What is denied again and was told a moment ago costs no more than a look: the headers that the long way keeps stay as they are.
#[test]
fn a_repeat_takes_the_short_way() {
    const WORDS: usize = size_of::<Headers>().div_ceil(8);
    let Some(mut kernel) = start("a_repeat_takes_the_short_way") else {
        return;
    };
    stay();
    let kept = |kernel: &Kernel| kernel.each_cpu::<[u64; WORDS]>("HEADERS", 0);
    let hooks = [(program::XDP_DEVICE, 100), (program::TC_DEVICE_IP, 200)];
    for (name, first) in hooks {
        for (from, to) in [("10.66.0.5:1000", "10.77.0.1"), ("[fd66::5]:1000", "[fd77::1]")] {
            let run = |port: u16| {
                // Nothing behind the packet: on a tun that is not plain.
                let packet = udp(from, &format!("{to}:{port}"), &[0; 40]);
                let frame = if first == 100 { ethernet(&packet) } else { packet };
                let action = kernel.run(name, &frame, 0).action;
                assert!(matches!(action, XDP_DROP | TC_ACT_SHOT), "{name} from {from}");
                (kept(&kernel), kernel.sum::<3>(map::EVENTS_LOST, 0))
            };
            run(first);
            let (headers, [kept_back, lost, same]) = run(first + 1);
            for i in 1..=20 {
                assert_eq!(
                    run(first),
                    (headers.clone(), [kept_back, lost, same + i]),
                    "{name} from {from}"
                );
            }
            let another = run(first + 2);
            assert_ne!(another.0, headers, "{name} from {from}");
            assert_eq!(another.1, [kept_back, lost, same + 20], "{name} from {from}");
        }
    }
    assert_eq!(kernel.denials().len(), 4 * 3);
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, 4 * 23);
}

/// Different flows come up against the limit; then they are counted as kept back.
#[test]
fn a_flood_of_many_flows_is_limited() {
    let Some(mut kernel) = start("a_flood_of_many_flows_is_limited") else {
        return;
    };
    stay();
    for i in 0..3_000_u32 {
        let to = format!("10.77.{}.{}:25", i >> 8, i & 255);
        kernel.run(program::TC_DEVICE_IP, &padded(&udp("10.66.0.5:1000", &to, b"")), 0);
    }
    let told = kernel.denials().len() as u64;
    let [kept_back, lost, same] = kernel.sum::<3>(map::EVENTS_LOST, 0);
    assert_eq!((told + kept_back, lost, same), (3_000, 0, 0));
    assert!(told >= 64 && kept_back > 0, "{told} told, {kept_back} kept back");
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, 3_000);
}

/// Observe mode tells, and grants nothing.
#[test]
fn observe_mode() {
    let Some(mut kernel) = start("observe_mode") else { return };
    world::set_flags(&kernel, FLAG_OBSERVE);
    let denied = udp("10.68.0.5:1000", "192.0.2.1:25", b"");
    let run = kernel.run(program::TC_DEVICE_IP, &padded(&denied), 0);
    assert_eq!((run.action, run.mark), (TCX_NEXT, MARK_OBSERVED));
    let told = kernel.denials();
    assert_eq!(
        told.iter().map(|d| (d.observed, d.hook)).collect::<Vec<_>>(),
        [(1, hook::TC_DEVICE)]
    );
    // On its way out, what is let through has been judged: the guard has nothing to say.
    let out = padded(&udp("192.0.2.1:25", "10.68.0.5:1000", b""));
    let run = kernel.run(program::TC_EGRESS_IP, &out, 0);
    assert_eq!((run.action, run.mark), (TCX_NEXT, MARK_GRANT));
    assert_eq!(kernel.run(program::TC_GUARD, &out, run.mark).action, TCX_NEXT);
    assert_eq!(kernel.counted(0, Reason::Unjudged), count(0, 0));
    world::set_flags(&kernel, 0);
    assert_eq!(kernel.run(program::TC_DEVICE_IP, &padded(&denied), 0).action, TC_ACT_SHOT);
}
