//! What crosses the gateway is counted once, however many of our programs judge it on its way.

use std::{
    net::{IpAddr, UdpSocket},
    time::{Duration, Instant},
};

use gateway_ebpf::reason::Reason;
use gateway_user::kernel::Kernel as _;
use lazaret_tests::{
    netns::{Namespace, Tun},
    packets, require,
    site::{DEVICE, DEVICE6, MAIL, MAIL6, RESOLVER, TUNNEL, TUNNEL6},
};

use crate::gateway::{Gateway, STAFF, unique_port};

/// Questions, and answers, of a conversation.
const TIMES: u64 = 10;
/// For what is on its way.
const PATIENCE: Duration = Duration::from_secs(5);

/// The rule for the resolver also names the mail server's IPv6 address.
fn with_both(config: String) -> String {
    let named = config.replace(&format!("\"{RESOLVER}/32\""), &format!("\"{RESOLVER}/32\", \"{MAIL6}/128\""));
    assert_ne!(named, config);
    named
}

/// Packets by a pool and a reason.
fn counts<const N: usize>(g: &mut Gateway, what: [(u8, Reason); N]) -> [u64; N] {
    what.map(|(pool, reason)| g.counted(pool, reason))
}

/// Packets and bytes that rules have passed, of all rules.
fn by_rules(g: &mut Gateway) -> [u64; 2] {
    let all = g.live(|l| l.rule_counters()).unwrap();
    all.iter().fold([0; 2], |[packets, bytes], (_, c)| {
        [packets + c.passed.packets, bytes + c.passed.bytes]
    })
}

fn bound(at: &Namespace, address: IpAddr, port: u16) -> UdpSocket {
    let socket = at.run(|| UdpSocket::bind((address, port))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Waits for a packet on the tun.
fn comes(tun: &Tun, ports: (u16, u16)) {
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let packet = tun.receive(left).unwrap().expect("it comes");
        if packets::parse(&packet, std::time::SystemTime::now()).is_some_and(|p| p.ports == ports) {
            return;
        }
    }
}

const ASKED: [(u8, Reason); 2] = [(1, Reason::Rule), (1, Reason::Reply)];

#[test]
fn questions_and_answers_on_a_tun() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(with_both);
    g.open();
    for (device, server, header) in [(DEVICE, RESOLVER, 28), (DEVICE6, MAIL6, 48)] {
        let (counted, [packets, bytes]) = (counts(&mut g, ASKED), by_rules(&mut g));
        let (there, port) = (bound(&g.site.core, server, 53), unique_port());
        for _ in 0..TIMES {
            tun.send(&packets::udp((device, port), (server, 53), b"question")).unwrap();
            let (_, back) = there.recv_from(&mut [0; 64]).unwrap();
            there.send_to(b"an answer", back).unwrap();
            comes(&tun, (53, port));
        }
        assert_eq!(counts(&mut g, ASKED), counted.map(|n| n + TIMES), "{device}");
        let both = [packets + 2 * TIMES, bytes + TIMES * (2 * header + 8 + 9)];
        assert_eq!(by_rules(&mut g), both, "{device}");
    }
}

#[test]
fn questions_and_answers_between_ethernets() {
    require!(Root, Bpf, Program("nft"));
    let mut g = Gateway::new("dev0", with_both);
    g.site.by_ethernet().unwrap();
    g.open();
    for (device, server, header) in [(DEVICE, RESOLVER, 28), (DEVICE6, MAIL6, 48)] {
        let (counted, [packets, bytes]) = (counts(&mut g, ASKED), by_rules(&mut g));
        let (there, here) = (bound(&g.site.core, server, 53), bound(&g.site.device, device, 0));
        for _ in 0..TIMES {
            here.send_to(b"question", (server, 53)).unwrap();
            let (_, back) = there.recv_from(&mut [0; 64]).unwrap();
            there.send_to(b"an answer", back).unwrap();
            here.recv_from(&mut [0; 64]).unwrap();
        }
        assert_eq!(counts(&mut g, ASKED), counted.map(|n| n + TIMES), "{device}");
        let both = [packets + 2 * TIMES, bytes + TIMES * (2 * header + 8 + 9)];
        assert_eq!(by_rules(&mut g), both, "{device}");
    }
}

/// What the host sends is counted where it leaves, and what it gets where it came in; what one device sends another, by the sender's pool.
#[test]
fn with_the_host_and_between_devices() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(with_both);
    for (tunnel, length) in [(TUNNEL, 32), (TUNNEL6, 128)] {
        g.site.gw.address("vpn0", &format!("{tunnel}/{length}")).unwrap();
    }
    g.open();
    let beside = ["10.66.0.6", "fd00:66::6"].map(|a| a.parse::<IpAddr>().unwrap());
    for (device, tunnel, other) in [(DEVICE, TUNNEL, beside[0]), (DEVICE6, TUNNEL6, beside[1])] {
        g.assign(device, STAFF);
        g.assign(other, STAFF);
        let (host, port) = (bound(&g.site.gw, tunnel, 0), unique_port());
        let at = host.local_addr().unwrap().port();
        let had = g.counted(2, Reason::All);
        for _ in 0..TIMES {
            tun.send(&packets::udp((device, port), (tunnel, at), b"question")).unwrap();
            let (_, back) = host.recv_from(&mut [0; 64]).unwrap();
            host.send_to(b"an answer", back).unwrap();
            comes(&tun, (at, port));
        }
        assert_eq!(g.counted(2, Reason::All), had + 2 * TIMES, "{device} and the host");
        for _ in 0..TIMES {
            tun.send(&packets::udp((device, port), (other, 9), b"to a neighbour"))
                .unwrap();
            comes(&tun, (port, 9));
        }
        assert_eq!(g.counted(2, Reason::All), had + 3 * TIMES, "{device} and {other}");
    }
}

/// What is denied passes in observe mode, and is counted once all the same.
#[test]
fn what_is_observed() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c.replace("mode = \"enforce\"", "mode = \"observe\""));
    g.open();
    for (device, server) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        let (there, port) = (bound(&g.site.core, server, 2525), unique_port());
        let had = g.counted(1, Reason::NoRule);
        for _ in 0..TIMES {
            tun.send(&packets::udp((device, port), (server, 2525), b"question")).unwrap();
            let (_, back) = there.recv_from(&mut [0; 64]).unwrap();
            there.send_to(b"an answer", back).unwrap();
            comes(&tun, (2525, port));
        }
        assert_eq!(g.counted(1, Reason::NoRule), had + 2 * TIMES, "{device}");
    }
}
