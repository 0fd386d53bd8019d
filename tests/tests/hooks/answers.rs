//! Answers to denied packets: what they look like, byte by byte, over a tun; that real sockets understand them, over Ethernet; how many there are;
//! and that nobody else's packets pass for one.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    os::fd::{FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use aya::programs::tc::TcAttachType::{Egress, Ingress};
use gateway_ebpf::{
    abi::{Control, MARK_ANSWER, class_entry, map, program},
    reason::Reason,
};
use lazaret_tests::{
    netns::{Namespace, Tun},
    require::{Need, or_skip},
};

use crate::{
    frames::{ACK, FIN, RST, SYN, ethernet, icmp, ip, padded, tcp, udp, verify, verify_plain},
    kernel::{Kernel, TC_ACT_SHOT, TCX_NEXT, XDP_DROP},
    link::Link,
    world,
};

const NEEDS: [Need; 2] = [Need::Root, Need::Bpf];

/// Answers sent and suppressed, of a pool.
pub(crate) fn answers(kernel: &Kernel, pool: u8) -> [u64; 2] {
    kernel.sum(map::ANSWERS, pool.into())
}

/// A device interface without Ethernet, with all our programs on it. The gateway has an address in each pool's range.
fn tun(reject: bool) -> (Namespace, Tun, Kernel) {
    let gateway = Namespace::new("answers").unwrap();
    let mut kernel = Kernel::load();
    world::write(&kernel, 0, reject);
    let tun = Tun::new(&gateway, "vpn").unwrap();
    gateway.run(|| {
        kernel.attach_tc(program::TC_DEVICE_IP, "vpn", Ingress);
        kernel.attach_tc(program::TC_EGRESS_IP, "vpn", Egress);
        kernel.attach_tc(program::TC_GUARD, "vpn", Egress);
    });
    (gateway, tun, kernel)
}

/// The answer, if there is one.
fn ask(tun: &Tun, packet: &[u8]) -> Option<Vec<u8>> {
    tun.send(packet).unwrap();
    receive(tun, Duration::from_millis(150))
}

/// The next packet that is not of the host's own: what it said of itself before our programs were attached may still be waiting.
fn receive(tun: &Tun, limit: Duration) -> Option<Vec<u8>> {
    loop {
        let packet = tun.receive(limit).unwrap()?;
        let link_local = packet[0] >> 4 == 6 && (packet[8..10] == [0xfe, 0x80] || packet[8..24] == [0; 16]);
        if !link_local {
            return Some(packet);
        }
    }
}

/// Source, destination, protocol and transport of an answer whose IP header is right.
pub(crate) fn opened(answer: &[u8]) -> (String, String, u8, Vec<u8>) {
    let (from, to, protocol, transport): (IpAddr, IpAddr, u8, &[u8]) = if answer[0] == 0x45 {
        assert_eq!(verify_plain(&answer[..20]), 0, "{answer:02x?}");
        assert_eq!(usize::from(u16::from_be_bytes([answer[2], answer[3]])), answer.len());
        assert_eq!(answer[8], 64);
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&answer[at..at + 4]).unwrap());
        (address(12), address(16), answer[9], &answer[20..])
    } else {
        assert_eq!(answer[0], 0x60);
        assert_eq!(usize::from(u16::from_be_bytes([answer[4], answer[5]])) + 40, answer.len());
        assert_eq!(answer[7], 64);
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&answer[at..at + 16]).unwrap());
        (address(8), address(24), answer[6], &answer[40..])
    };
    let right = match protocol {
        1 => verify_plain(transport),
        _ => verify(from, to, protocol, transport),
    };
    assert_eq!(right, 0, "{answer:02x?}");
    (from.to_string(), to.to_string(), protocol, transport.to_vec())
}

/// Flags, numbers and payload of a segment; flags and numbers of the reset.
type Case = (u8, [u32; 2], &'static [u8], u8, [u32; 2]);

/// RFC 9293, 3.10.7.1, for what a closed port may get.
#[test]
fn tcp_is_reset() {
    if !or_skip("tcp_is_reset", &NEEDS) {
        return;
    }
    let (_gateway, tun, kernel) = tun(true);
    let ends = [
        ("10.66.0.5:40000", "10.77.0.1:25", "10.66.0.5", "10.77.0.1"),
        ("[fd66::6]:40000", "[fd77::1]:25", "fd66::6", "fd77::1"),
    ];
    for (from, to, device, asked) in ends {
        let cases: [Case; 5] = [
            (SYN, [1_000, 0], b"", RST | ACK, [0, 1_001]),
            (SYN, [u32::MAX, 0], b"early", RST | ACK, [0, 5]),
            (ACK, [1_000, 77], b"", RST, [77, 0]),
            (ACK | FIN, [1_000, 78], b"hello", RST, [78, 0]),
            (FIN, [1_000, 79], b"hello", RST | ACK, [0, 1_006]),
        ];
        for (flags, numbers, payload, expected, [sequence, acknowledgement]) in cases {
            let answer =
                ask(&tun, &tcp(from, to, flags, numbers, payload)).unwrap_or_else(|| panic!("no answer to {flags} from {from}"));
            let (source, destination, protocol, reset) = opened(&answer);
            assert_eq!(
                (source.as_str(), destination.as_str(), protocol, reset.len()),
                (asked, device, 6, 20)
            );
            assert_eq!(reset[..4], [25_u16.to_be_bytes(), 40_000_u16.to_be_bytes()].concat());
            assert_eq!(reset[4..8], sequence.to_be_bytes());
            assert_eq!(reset[8..12], acknowledgement.to_be_bytes());
            assert_eq!(reset[12..14], [5 << 4, expected]);
        }
        // Behind options, and extension headers.
        let answer =
            ask(&tun, &behind(&tcp(from, to, SYN, [1_000, 0], b"early"))).unwrap_or_else(|| panic!("no answer to {from}"));
        let (_, _, protocol, reset) = opened(&answer);
        assert_eq!(
            (protocol, reset[13], &reset[8..12]),
            (6, RST | ACK, &1_006_u32.to_be_bytes()[..])
        );
        // Never to a reset.
        for reset in [
            tcp(from, to, RST, [1_000, 0], b""),
            behind(&tcp(from, to, RST, [1_000, 0], b"")),
        ] {
            assert_eq!(ask(&tun, &reset), None);
        }
    }
    assert_eq!(answers(&kernel, 1), [12, 0]);
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, 16);
}

/// The same packet with two words of harmless options, no-operations, or with hop-by-hop and destination options of 8 and 16 bytes.
fn behind(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    if packet[0] >> 4 == 4 {
        packet.splice(20..20, [1; 8]);
        packet[0] = 0x47;
        packet[3] += 8;
    } else {
        let headers = [60, 0, 1, 4, 0, 0, 0, 0, packet[6], 1, 1, 12];
        packet.splice(40..40, headers.into_iter().chain([0; 12]));
        packet[6] = 0;
        packet[5] += 24;
    }
    packet
}

/// What is not TCP is answered by ICMP, which quotes it.
#[test]
fn the_rest_is_prohibited() {
    if !or_skip("the_rest_is_prohibited", &NEEDS) {
        return;
    }
    let (_gateway, tun, kernel) = tun(true);
    let any = |from: &str, to: &str| ip(from.parse().unwrap(), to.parse().unwrap(), 47, &[9; 4]);
    let packets = [
        udp("10.66.0.5:40000", "10.77.0.1:54", b"who"),
        udp("10.66.0.5:40000", "10.77.0.1:54", &[3; 1_200]),
        icmp("10.66.0.5", "10.77.0.1", [8, 0], &[0, 1, 0, 1]),
        any("10.66.0.5", "10.77.0.1"),
        udp("10.68.0.5:40000", "192.0.2.1:54", b"who"),
        udp("[fd66::5]:40000", "[fd77::1]:54", b"who"),
        udp("[fd66::5]:40000", "[fd77::1]:54", &[3; 1_200]),
        icmp("fd66::5", "fd77::1", [128, 0], &[0, 1, 0, 1]),
        any("fd68::5", "2001:db8::1"),
        behind(&icmp("10.66.0.5", "10.77.0.2", [8, 0], &[0, 1, 0, 1, 5, 5, 5, 5])),
        behind(&udp("10.66.0.5:40000", "10.77.0.1:54", b"who")),
        behind(&any("fd66::5", "fd77::2")),
        behind(&udp("[fd66::5]:40000", "[fd77::1]:54", b"who")),
    ];
    for packet in &packets {
        let answer = ask(&tun, packet).unwrap_or_else(|| panic!("no answer to {packet:02x?}"));
        let (source, destination, protocol, icmp) = opened(&answer);
        let n = packet.len().min(128);
        if packet[0] >> 4 == 4 {
            assert_eq!((protocol, &icmp[..2]), (1, &[3, 13][..]));
            assert_eq!(answer[12..20], [&packet[16..20], &packet[12..16]].concat());
        } else {
            assert_eq!((protocol, &icmp[..2]), (58, &[1, 1][..]));
            assert_eq!(answer[8..40], [&packet[24..40], &packet[8..24]].concat());
        }
        assert_eq!(icmp[4..8], [0; 4]);
        assert_eq!(icmp[8..], packet[..n], "{source} to {destination}");
    }
    assert_eq!(answers(&kernel, 1)[0] + answers(&kernel, 3)[0], packets.len() as u64);
}

/// What the end of a lease denies is answered by the flag of the pool that denied.
#[test]
fn the_end_of_a_lease_is_answered() {
    if !or_skip("the_end_of_a_lease_is_answered", &NEEDS) {
        return;
    }
    let (_gateway, answering, kernel) = tun(true);
    let control = Control {
        earliest_lease_end: 0,
        classes: {
            let mut classes = Control::default().classes;
            classes[2] = class_entry(2, true, 0);
            classes
        },
        ..kernel.get(map::CONTROL, 0)
    };
    kernel.set(map::CONTROL, &0_u32, &control);
    let packet = tcp("10.67.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b"");
    let answer = ask(&answering, &packet).unwrap();
    assert_eq!(answer[9], 6);
    assert_eq!(answer[33], RST | ACK);
    assert_eq!(kernel.counted(2, Reason::LeaseEnded).packets, 1);
    assert_eq!(answers(&kernel, 2), [1, 0]);
}

/// Errors, fragments and multicast never; nor a pool that does not say so, nor what a device may not have sent.
#[test]
fn what_is_never_answered() {
    if !or_skip("what_is_never_answered", &NEEDS) {
        return;
    }
    let (_gateway, answering, kernel) = tun(true);
    let denied = udp("10.66.0.5:40000", "10.77.0.1:54", &[7; 64]);
    let mut first = denied.clone();
    first[6] = 0x20;
    let mut later = denied.clone();
    later[7] = 8;
    let fragment6 = ip(
        "fd66::5".parse().unwrap(),
        "fd77::1".parse().unwrap(),
        44,
        &[
            &[17, 0, 0, 1, 0, 0, 0, 9][..],
            &udp("[fd66::5]:1", "[fd77::1]:54", &[7; 64])[40..],
        ]
        .concat(),
    );
    let quote = udp("10.77.0.1:54", "10.66.0.5:40000", b"what");
    let quote6 = udp("[fd77::1]:54", "[fd66::5]:40000", b"what");
    let packets = [
        first,
        later,
        fragment6,
        icmp("10.66.0.5", "10.77.0.1", [3, 3], &[&[0; 4][..], &quote].concat()),
        icmp("fd66::5", "fd77::1", [1, 4], &[&[0; 4][..], &quote6].concat()),
        udp("10.66.0.5:40000", "224.0.0.251:5353", b"who"),
        udp("[fd66::5]:40000", "[ff02::fb]:5353", b"who"),
        udp("10.66.0.5:40000", "255.255.255.255:67", b"who"),
        // Spoofed.
        udp("192.0.2.1:40000", "10.77.0.1:54", b"who"),
    ];
    for packet in &packets {
        let answer = ask(&answering, packet);
        assert_eq!(answer, None, "to {packet:02x?}");
    }
    assert_eq!([answers(&kernel, 0), answers(&kernel, 1)], [[0; 2]; 2]);
    drop((answering, kernel));

    let (_gateway, silent, kernel) = tun(false);
    assert_eq!(ask(&silent, &denied), None);
    assert_eq!(kernel.counted(1, Reason::NoRule).packets, 1);
}

/// How many of these packets are answered.
fn answered(tun: &Tun, packets: impl Iterator<Item = Vec<u8>>) -> u64 {
    packets.for_each(|p| tun.send(&p).unwrap());
    std::iter::from_fn(|| receive(tun, Duration::from_millis(50)))
        .map(|_| 1)
        .sum()
}

/// Ten a second, for each source.
#[test]
fn answers_are_limited() {
    if !or_skip("answers_are_limited", &NEEDS) {
        return;
    }
    let (_gateway, tun, kernel) = tun(true);
    let burst = |from: &str, n: u32| answered(&tun, (0..n).map(|i| tcp(from, "10.77.0.1:25", SYN, [i, 0], b"")));
    let began = Instant::now();
    let got = burst("10.66.0.5:40000", 100);
    // A burst can lie across the beginning of a second.
    let seconds = began.elapsed().as_secs() + 2;
    assert!((10..=10 * seconds).contains(&got), "{got} in {seconds} s");
    assert_eq!(answers(&kernel, 1), [got, 100 - got]);
    assert_eq!(burst("10.66.0.9:40000", 3), 3, "others are not concerned");
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(burst("10.66.0.5:40000", 3), 3, "a second later there are answers again");
}

/// Whoever has an IPv6 /64, or is in one without a session, gets no more answers by inventing sources in it; the others get theirs.
#[test]
fn an_ipv6_64_is_one_source() {
    if !or_skip("an_ipv6_64_is_one_source", &NEEDS) {
        return;
    }
    let (_gateway, tun, kernel) = tun(true);
    world::bind(&kernel, "fd66:0:0:7::", true);
    for own in ["fd66::9", "fd66::a"] {
        world::bind(&kernel, own, false);
    }
    let one = |from: &str, i: u32| tcp(&format!("[{from}]:40000"), "[fd77::1]:25", SYN, [i, 0], b"");
    for prefix in ["fd66:0:0:7::", "fd66:0:0:8::"] {
        let began = Instant::now();
        let got = answered(&tun, (0..400).map(|i| one(&format!("{prefix}{:x}:{:x}", i * 7, i), i)));
        let seconds = began.elapsed().as_secs() + 2;
        assert!((10..=10 * seconds).contains(&got), "{got} in {seconds} s to {prefix}");
    }
    for (own, what) in [
        ("fd66::9", "a session's own address"),
        ("fd66::a", "its neighbour"),
        ("fd66:0:0:9::1", "another /64"),
    ] {
        assert_eq!(answered(&tun, (0..6).map(|i| one(own, i))), 6, "{what}");
    }
    let [sent, limited] = answers(&kernel, 1);
    assert_eq!(sent + limited, 2 * 400 + 18);
}

/// Real sockets, over Ethernet: by TC alone, and by XDP with its companion. They send with checksums left to the card.
#[test]
fn sockets_understand() {
    if !or_skip("sockets_understand", &NEEDS) {
        return;
    }
    for xdp in [false, true] {
        let Link { device, kernel, .. } = &Link::addressed(xdp, true);
        device.sysctl("net.ipv4.ping_group_range", "0 0").unwrap();
        device.run(|| {
            for to in ["10.77.0.1:25", "[fd77::1]:25"] {
                let to: SocketAddr = to.parse().unwrap();
                let [before, _] = answers(kernel, 1);
                let refused = TcpStream::connect_timeout(&to, Duration::from_secs(5)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}, xdp: {xdp}: {refused}");
                assert_eq!(answers(kernel, 1)[0], before + 1, "{to}: the first answer is understood");
            }
            // What RFC 1122, 4.1.3.3 has the application told.
            for (from, to, error) in [
                ("0.0.0.0:0", "10.77.0.1:54", libc::EHOSTUNREACH),
                ("[::]:0", "[fd77::1]:54", libc::EACCES),
            ] {
                let told = |socket: UdpSocket, message: &[u8]| {
                    socket.connect(to).unwrap();
                    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                    socket.send(message).unwrap();
                    let told = socket.recv(&mut [0; 64]).unwrap_err();
                    assert_eq!(told.raw_os_error(), Some(error), "{to}, xdp: {xdp}: {told}");
                };
                told(UdpSocket::bind(from).unwrap(), b"who");
                told(
                    ping(to.starts_with('[')),
                    &[if to.starts_with('[') { 128 } else { 8 }, 0, 0, 0, 0, 0, 0, 1],
                );
            }
        });
        assert_eq!(answers(kernel, 1), [6, 0], "xdp: {xdp}");
        assert_eq!(kernel.counted(1, Reason::NoRule).packets, 6, "once each, xdp: {xdp}");
        assert_eq!(kernel.counted(0, Reason::Unjudged).packets, 0);
    }
}

/// A socket for echo requests (ping sockets, Linux 3.0), with the methods that it shares with UDP's.
fn ping(v6: bool) -> UdpSocket {
    let (family, protocol) = if v6 {
        (libc::AF_INET6, libc::IPPROTO_ICMPV6)
    } else {
        (libc::AF_INET, libc::IPPROTO_ICMP)
    };
    // SAFETY: socket(2) takes three integers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, protocol) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just given us this descriptor; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }.into()
}

/// The mark of an answer means nothing on what we have not made; ingress takes it off.
#[test]
fn nobody_else_carries_the_mark() {
    if !or_skip("nobody_else_carries_the_mark", &NEEDS) {
        return;
    }
    let kernel = Kernel::load();
    world::write(&kernel, 0, true);
    let to_device = padded(&tcp("10.77.0.1:25", "10.66.0.5:40000", SYN, [1, 0], b""));
    for mark in [MARK_ANSWER, MARK_ANSWER | 0x12_3456] {
        let run = kernel.run(program::TC_EGRESS_IP, &to_device, mark);
        assert_eq!(run.action, TC_ACT_SHOT);
        assert_eq!(kernel.run(program::TC_GUARD, &to_device, mark).action, TC_ACT_SHOT);
        let foreign = padded(&udp("192.0.2.1:1", "192.0.2.2:2", b""));
        let run = kernel.run(program::TC_CORE_IP, &foreign, mark);
        assert_eq!((run.action, run.mark), (TCX_NEXT, mark & 0xffff));
    }
    // Without a companion that answers, XDP's request is metadata and nothing else.
    let denied = ethernet(&tcp("10.66.0.5:40000", "10.77.0.1:25", SYN, [1, 0], b""));
    let run = kernel.run(program::XDP_DEVICE, &denied, 0);
    assert_ne!(run.action, XDP_DROP);
    assert_eq!(run.data[4..8], (MARK_ANSWER | 1 << 16).to_ne_bytes());
}
