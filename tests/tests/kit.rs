//! The namespace kit itself: what other tests build on must not leak, and must see what it says it sees.

use std::{
    net::{IpAddr, UdpSocket},
    path::Path,
    time::{Duration, SystemTime},
};

use lazaret_tests::{
    netns::{Namespace, Tun, veth},
    openvpn,
    packets::{self, Watcher},
    process::Process,
    require,
    scratch::Scratch,
    services,
    site::{self, Site},
};

#[test]
fn a_namespace_goes_with_its_owner_even_on_panic() {
    require!(Root);
    let namespace = Namespace::new("gone").unwrap();
    let path = format!("/run/netns/{}", namespace.name());
    assert!(Path::new(&path).exists());
    let panicked = std::panic::catch_unwind(move || {
        let _moved = namespace;
        panic!("as a failing test does");
    });
    assert!(panicked.is_err());
    assert!(!Path::new(&path).exists());
}

#[test]
fn packets_cross_a_veth_pair_and_are_seen() {
    require!(Root);
    let (a, b) = (Namespace::new("a").unwrap(), Namespace::new("b").unwrap());
    veth((&a, "to-b"), (&b, "to-a")).unwrap();
    for (host, interface, v4, v6) in [
        (&a, "to-b", "10.1.1.1/24", "fd01::1/64"),
        (&b, "to-a", "10.1.1.2/24", "fd01::2/64"),
    ] {
        host.address(interface, v4).unwrap();
        host.address(interface, v6).unwrap();
    }
    let watcher = Watcher::new(&b, |p| p.protocol == 17 && p.ports.1 == 4242).unwrap();
    for (from, to) in [("10.1.1.1", "10.1.1.2"), ("fd01::1", "fd01::2")] {
        let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let receiver = b.run(|| UdpSocket::bind((to, 4242))).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let sender = a.run(|| UdpSocket::bind((from, 0))).unwrap();
        let sent = SystemTime::now();
        sender.send_to(b"hello", (to, 4242)).unwrap();
        let mut buffer = [0; 16];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
        let seen = watcher.seen();
        let last = seen.last().unwrap();
        assert_eq!((last.from, last.to), (from, to));
        assert!(sent <= last.at && last.at <= SystemTime::now(), "{sent:?} {:?}", last.at);
    }
    assert_eq!(watcher.seen().len(), 2);
}

#[test]
fn a_tun_carries_packets_both_ways() {
    require!(Root, Tun);
    let gw = Namespace::new("gw").unwrap();
    let tun = Tun::new(&gw, "tun0").unwrap();
    gw.address("tun0", "10.66.0.1/24").unwrap();
    let socket = gw.run(|| UdpSocket::bind("10.66.0.1:5353")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (device, host) = ("10.66.0.5".parse().unwrap(), "10.66.0.1".parse().unwrap());
    tun.send(&packets::udp((device, 1000), (host, 5353), b"ping")).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..length], from.to_string().as_str()),
        (&b"ping"[..], "10.66.0.5:1000")
    );
    socket.send_to(b"pong", from).unwrap();
    let answer = std::iter::from_fn(|| tun.receive(Duration::from_secs(5)).unwrap())
        .find(|p| packets::parse(p, SystemTime::now()).is_some_and(|s| s.to == device))
        .unwrap();
    assert!(answer.ends_with(b"pong"));
}

#[test]
fn a_bpffs_and_a_child_go_with_their_owners() {
    require!(Root, Bpf);
    let mut scratch = Scratch::new("bpffs").unwrap();
    let bpffs = scratch.bpffs("bpf").unwrap();
    let mounted = || {
        std::fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(bpffs.to_str().unwrap())
    };
    assert!(mounted());
    let gw = Namespace::new("gw").unwrap();
    let child = Process::spawn(gw.command("sleep").arg("60"), &scratch.path().join("log")).unwrap();
    let id = child.id();
    assert_eq!(
        std::fs::read_link(format!("/proc/{id}/ns/net")).unwrap(),
        gw.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap())
    );
    drop(child);
    assert!(!Path::new(&format!("/proc/{id}")).exists());
    drop(scratch);
    assert!(!mounted());
}

#[test]
fn openvpn_carries_both_families_to_the_cores_servers() {
    require!(
        Root,
        Tun,
        Program("openvpn"),
        Program("dnsmasq"),
        Program("python3"),
        Program("curl")
    );
    let site = Site::new().unwrap();
    site.underlay().unwrap();
    let scratch = Scratch::new("openvpn").unwrap();
    let _dm = services::http(&site.core, site::DM, "enrolment", 1, scratch.path()).unwrap();
    let _mail = services::http(&site.core, site::MAIL6, "mail", 1, scratch.path()).unwrap();
    let _resolver = services::resolver(&site.core, scratch.path()).unwrap();

    let authority = openvpn::Authority::new(scratch.path()).unwrap();
    let _server = openvpn::server(&site.gw, &authority, 9, "").unwrap();
    let (_client, addresses) = openvpn::connect(&site.device, &authority, "phone-17").unwrap();
    assert!(
        addresses.iter().any(|a| a.to_string().starts_with("10.66.0.")),
        "{addresses:?}"
    );
    assert!(
        addresses.iter().any(|a| a.to_string().starts_with("fd00:66::")),
        "{addresses:?}"
    );

    let limit = Duration::from_secs(30);
    let page = services::fetch(&site.device, &format!("http://{}/", site::DM_NAME), limit, scratch.path()).unwrap();
    assert_eq!(page, "enrolment\n");
    let page = services::fetch(&site.device, &format!("http://[{}]/", site::MAIL6), limit, scratch.path()).unwrap();
    assert_eq!(page, "mail\n");
    assert!(services::fetch(&site.device, "http://mail.example.test/", limit, scratch.path()).is_err());
}
