//! What a policy can say, live: connections to devices, answers to what is denied, a policy in the shadow, and which addresses an interface
//! may have.

use std::{
    io,
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use gateway_ebpf::reason::Reason;
use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    flows,
    gateway::Gateway,
    netns::{Namespace, Tun},
    packets::{self, Watcher},
    pins, require,
    site::{self, Site},
};

use crate::stage::Stage;

const PATIENCE: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(5);
const MAIL: [IpAddr; 2] = [site::MAIL, site::MAIL6];

/// Sockets of the core that swallow what arrives, so that no ICMP error answers it.
fn bound(site: &Site, at: &[(IpAddr, u16)]) -> Vec<UdpSocket> {
    at.iter().map(|at| site.core.run(|| UdpSocket::bind(at)).unwrap()).collect()
}

/// A listener that accepts and keeps, until the test's process ends.
fn listen(namespace: &Namespace, at: IpAddr, port: u16) {
    let listener = namespace.run(|| TcpListener::bind((at, port))).unwrap();
    thread::spawn(move || listener.incoming().map_while(Result::ok).collect::<Vec<TcpStream>>());
}

/// Appends a rule to quarantine's policy.
fn rule(gateway: &Gateway, lines: &str) {
    gateway
        .configure("ports = [\"53\"]", &format!("ports = [\"53\"]\n\n[[policy.rule]]\n{lines}"))
        .unwrap();
}

#[test]
fn the_dm_server_connects_to_a_device_where_a_rule_says_so() {
    require!(Root, Bpf, Tun, Program("openvpn"));
    let lines = format!(
        "from = [\"{}\", \"{}\"]\nprotocol = \"tcp\"\nports = [\"8443\"]",
        site::DM,
        site::DM6
    );
    let stage = Stage::openvpn(|g| rule(g, &lines));
    for own in stage.addresses {
        [8443, 8444]
            .into_iter()
            .for_each(|port| listen(&stage.site.device, own, port));
        let reached = |from: IpAddr, port: u16, limit| {
            let connected = stage.site.core.run(|| flows::connect(from, (own, port).into(), limit));
            connected.is_ok()
        };
        let [dm, mail] = if own.is_ipv4() {
            [site::DM, site::MAIL]
        } else {
            [site::DM6, site::MAIL6]
        };
        assert!(reached(dm, 8443, LIMIT), "{own}: what the rule names");
        assert!(!reached(dm, 8444, PATIENCE), "{own}: another port");
        assert!(!reached(mail, 8443, PATIENCE), "{own}: another server");
        // The rule's answers are no way out for connections of the device's own.
        listen(&stage.site.core, dm, 443);
        let from = stage.site.device.run(|| flows::connect(own, (dm, 443).into(), PATIENCE));
        assert!(from.is_err(), "{own}: to the DM server");
    }
}

#[test]
fn what_is_denied_is_answered_over_openvpn() {
    require!(Root, Bpf, Tun, Program("openvpn"));
    let stage = Stage::openvpn(|g| {
        g.configure("policy = \"enrolment\"", "policy = \"enrolment\"\ndeny = \"reject\"")
            .unwrap();
    });
    for (own, mail) in stage.addresses.into_iter().zip(MAIL) {
        listen(&stage.site.core, mail, 80);
        let seen = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.to == mail).unwrap();
        let refused = stage
            .site
            .device
            .run(|| flows::connect(own, (mail, 80).into(), LIMIT))
            .unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{mail}: {refused:?}");

        // The limit is per source, and the connection has taken one.
        let socket = stage.site.device.run(|| UdpSocket::bind((own, 0))).unwrap();
        socket.connect((mail, 53)).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        let answers = Watcher::new(&stage.site.device, move |p| {
            !p.outgoing && [1, 58].contains(&p.protocol) && p.to == own
        })
        .unwrap();
        socket.send(b"?").unwrap();
        let denied = socket.recv(&mut [0; 16]).unwrap_err();
        let wanted = if own.is_ipv4() { libc::EHOSTUNREACH } else { libc::EACCES };
        assert_eq!(denied.raw_os_error(), Some(wanted), "{mail}: administratively prohibited");
        for _ in 0..300 {
            let _perhaps_the_last_ones_error = socket.send(b"?");
        }
        let answers = answers.seen().len();
        assert!((1..=40).contains(&answers), "{mail}: limited: {answers}");
        assert_eq!(seen.seen(), [], "{mail}: nothing passed");
    }

    // A connection that a restriction cuts is reset, and does not wait for a timeout.
    stage.release();
    let open = stage.addresses.into_iter().zip(MAIL);
    let open: Vec<_> = open
        .map(|(own, mail)| {
            stage
                .site
                .device
                .run(|| flows::connect(own, (mail, 80).into(), LIMIT))
                .unwrap()
        })
        .collect();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(stage.mdm.revoked("phone").unwrap().enforcement(), Enforcement::Enforced);
    for stream in open {
        use std::io::{Read as _, Write as _};
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        (&stream).write_all(b"?").unwrap();
        let cut = (&stream).read(&mut [0; 16]).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset, "{cut:?}");
    }
}

#[test]
fn a_shadow_policy_is_counted_and_decides_nothing() {
    require!(Root, Bpf);
    let stage = Stage::ethernet(|g| {
        g.configure("policy = \"enrolment\"", "policy = \"enrolment\"\nshadow_policy = \"tried\"")
            .unwrap();
        let tried = format!(
            "[[policy]]\nname = \"tried\"\n\n[[policy.rule]]\nto = [\"{}\"]\nprotocol = \"udp\"\nports = [\"53\"]\n\n[[policy]]\nname = \"enrolment\"",
            site::MAIL
        );
        g.configure("[[policy]]\nname = \"enrolment\"", &tried).unwrap();
    });
    let _bound = bound(&stage.site, &[(site::RESOLVER, 53), (site::MAIL, 53)]);
    let sent = |to: IpAddr| {
        let seen = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.to == to).unwrap();
        let socket = stage.site.device.run(|| UdpSocket::bind((site::DEVICE, 0))).unwrap();
        (0..100).for_each(|_| assert_eq!(socket.send_to(b"?", (to, 53)).unwrap(), 1));
        seen.seen().len()
    };
    assert_eq!(pins::shadow(&stage.gateway, 1).unwrap(), [0, 0]);
    assert_eq!(sent(site::RESOLVER), 100, "allowed, and not by the shadow");
    assert_eq!(pins::shadow(&stage.gateway, 1).unwrap(), [100, 0]);
    assert_eq!(sent(site::MAIL), 0, "denied, and not by the shadow");
    assert_eq!(pins::shadow(&stage.gateway, 1).unwrap(), [100, 100]);
}

/// A gateway with two tuns to devices, tun0 for quarantine's pool alone.
fn two_tuns() -> (Gateway, Site, [Tun; 2]) {
    let site = Site::new().unwrap();
    let mut gateway = Gateway::new(&site, "tun*").unwrap();
    gateway
        .configure(
            "[[interface]]\nname = \"tun*\"",
            "[[interface]]\nname = \"tun0\"\nrole = \"device\"\npools = [\"quarantine\"]\n\n[[interface]]\nname = \"tun*\"",
        )
        .unwrap();
    let tuns = ["tun0", "tun1"].map(|name| Tun::new(&site.gw, name).unwrap());
    gateway.start().unwrap();
    for interface in ["tun0", "tun1", "core0"] {
        gateway.attached(interface).unwrap();
    }
    (gateway, site, tuns)
}

#[test]
fn an_address_counts_only_on_its_own_interface() {
    require!(Root, Bpf, Tun);
    let (gateway, site, [tun0, tun1]) = two_tuns();
    let _bound = bound(&site, &[(site::MAIL, 5001), (site::MAIL6, 5001), (site::RESOLVER, 53)]);
    let local = gateway.local().unwrap();
    let passes = |tun: &Tun, from: &str, to: IpAddr, port: u16| {
        let (token, from): (_, IpAddr) = (flows::token(), from.parse().unwrap());
        let seen = Watcher::of(&site.core, token, |p| !p.outgoing).unwrap();
        tun.send(&packets::udp((from, 4000), (to, port), &token)).unwrap();
        seen.seen().len() == 1
    };
    let refused = || {
        (0..3)
            .map(|pool| pins::counted(&gateway, pool, Reason::WrongInterface).unwrap())
            .sum::<u64>()
    };

    // At rest: by the interface's pools.
    assert!(passes(&tun0, "10.66.0.5", site::RESOLVER, 53));
    assert!(!passes(&tun0, "10.67.0.5", site::RESOLVER, 53), "another pool's address");
    assert_eq!(refused(), 1);
    assert!(passes(&tun1, "10.67.0.5", site::RESOLVER, 53), "an interface for all pools");

    // Released: on the session's interface alone, whatever the interface's pools.
    local.register("phone", "staff").unwrap();
    local.open("vpn", "phone", &["10.67.0.9", "fd00:66::9"], "tun0").unwrap();
    assert_eq!(gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
    for (from, mail) in ["10.67.0.9", "fd00:66::9"].into_iter().zip(MAIL) {
        assert!(passes(&tun0, from, mail, 5001), "{from}: the session's interface");
        let before = refused();
        assert!(!passes(&tun1, from, mail, 5001), "{from}: from another device's interface");
        assert_eq!(refused(), before + 1);
        // And what is for the device does not leave through another's interface, whatever the routes say.
        let sender = site.core.run(|| UdpSocket::bind((mail, 0))).unwrap();
        for (device, tun, wanted) in [("tun0", &tun0, true), ("tun1", &tun1, false)] {
            let (token, length) = (flows::token(), if from.contains(':') { 128 } else { 32 });
            site.gw.ip(&format!("route replace {from}/{length} dev {device}")).unwrap();
            sender.send_to(&token, (from.parse::<IpAddr>().unwrap(), 4000)).unwrap();
            let mut got = false;
            while let Some(packet) = tun.receive(Duration::from_millis(200)).unwrap() {
                got |= flows::holds(&packet, &token);
            }
            assert_eq!(got, wanted, "{from} through {device}");
        }
    }
}
