//! What a policy can say, live: connections to devices, and answers to what is denied.

use std::{
    io,
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{flows, gateway::Gateway, netns::Namespace, packets::Watcher, require, site};

use crate::stage::Stage;

const PATIENCE: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(5);
const MAIL: [IpAddr; 2] = [site::MAIL, site::MAIL6];

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
        let begun = Instant::now();
        let refused = stage
            .site
            .device
            .run(|| flows::connect(own, (mail, 80).into(), LIMIT))
            .unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused, "{mail}: {refused:?}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{mail}: at once, not by a timeout");

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
