//! The floor, with our programs attached, detached, and never there.

use std::net::IpAddr;

use gateway_user::floor;
use lazaret_tests::{
    netns::{Namespace, Tun},
    packets::{self, Watcher},
    require,
    site::{DEVICE, DEVICE6, GATEWAY, MAIL, MAIL6, RESOLVER, TUNNEL, TUNNEL6},
};

use crate::gateway::{Gateway, STAFF, talks, unique_port};

#[test]
fn closed_before_any_program_it_denies_forward_input_and_output_in_both_families() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (g, tun) = Gateway::tun(|c| c);
    let config = g.config.clone();
    g.site.gw.address("vpn0", &format!("{TUNNEL}/32")).unwrap();
    g.site.gw.address("vpn0", &format!("{TUNNEL6}/128")).unwrap();
    // The paths work while nothing denies them.
    let all = |g: &Gateway, tun: &Tun| {
        [(DEVICE, MAIL, TUNNEL), (DEVICE6, MAIL6, TUNNEL6)].map(|(device, mail, own)| {
            [
                g.reaches(tun, device, mail, 25),
                g.core_sends(tun, mail, unique_port(), device),
                g.delivered(tun, device, own),
                g.host_sends(tun, device),
            ]
        })
    };
    assert_eq!(all(&g, &tun), [[true; 4]; 2]);
    g.site.gw.run(|| floor::close(&config)).unwrap();
    assert_eq!(all(&g, &tun), [[false; 4]; 2]);
    // An established connection is no exception: conntrack knows this one.
    g.site.gw.exec("nft add table inet stateful").unwrap();
    g.site
        .gw
        .exec("nft add chain inet stateful f { type filter hook forward priority 0 ; }")
        .unwrap();
    g.site
        .gw
        .exec("nft add rule inet stateful f ct state established,related accept")
        .unwrap();
    assert_eq!(all(&g, &tun), [[false; 4]; 2]);

    // It holds for interfaces to come, and says what it dropped.
    drop(tun);
    let tun = g.make_tun();
    assert_eq!(all(&g, &tun).map(|f| [f[0], f[1], f[3]]), [[false; 3]; 2]);
    let counters = g.site.gw.exec("nft list counters table inet lazaret").unwrap();
    for name in [
        "forward_from_device",
        "forward_to_device",
        "input_from_device",
        "output_to_device",
    ] {
        let count = counters.split(&format!("counter {name} {{")).nth(1).unwrap();
        assert!(!count.trim_start().starts_with("packets 0 "), "{counters}");
    }
    g.site.gw.run(floor::open).unwrap();
    assert_eq!(all(&g, &tun).map(|f| f[0]), [true; 2]);
}

#[test]
fn where_the_kernels_own_filter_cannot_stand_the_floor_stays_closed() {
    require!(Root, Bpf, Tun, Program("nft"), Program("tc"));
    let (mut g, tun) = Gateway::tun(|c| c);
    let gw = g.site.gw.clone();
    gw.exec("tc qdisc add dev vpn0 ingress").unwrap();
    g.open();
    g.assign(DEVICE, STAFF);
    let told = |g: &mut Gateway, what: &str| {
        g.problems()
            .iter()
            .any(|p| p.contains("filter is not in place") && p.contains(what))
    };
    assert!(told(&mut g, "ingress"), "{:?}", g.problems());
    assert!(!g.host_sends(&tun, DEVICE));
    assert!(g.reaches(&tun, DEVICE, MAIL, 25), "what is judged at ingress passes");

    // Another's clsact serves, and another's filter in our place does not.
    gw.exec("tc qdisc del dev vpn0 ingress").unwrap();
    gw.exec("tc qdisc add dev vpn0 clsact").unwrap();
    let mut foreign = gw.command("tc");
    foreign.args("filter add dev vpn0 egress pref 76 protocol all handle 76 bpf bytecode".split(' '));
    lazaret_tests::process::output(foreign.arg("1,6 0 0 0")).unwrap();
    g.set_links();
    assert!(told(&mut g, "foreign filter"), "{:?}", g.problems());
    assert!(!g.host_sends(&tun, DEVICE));
    let theirs = gw.exec("tc filter show dev vpn0 egress").unwrap();
    assert!(theirs.contains("bytecode '1,6 0 0 0'"), "{theirs}");
    gw.exec("tc filter del dev vpn0 egress pref 76").unwrap();
    g.set_links();
    assert_eq!(g.problems(), [""; 0]);
    assert!(g.host_sends(&tun, DEVICE));
    // Nobody marks, nothing leaves, whatever nftables thinks of it.
    g.site.gw.run(floor::open).unwrap();
    for pin in std::fs::read_dir(g.config.paths.pins.join(format!("v{}/links", gateway_ebpf::abi::VERSION))).unwrap() {
        std::fs::remove_file(pin.unwrap().path()).unwrap();
    }
    lazaret_tests::process::until(std::time::Duration::from_secs(10), "no program is left", || {
        Ok(!g.host_sends(&tun, DEVICE))
    })
    .unwrap();
}

/// In a bridge the port is not what netfilter sees a packet come in by. What the port's programs grant passes, and with them gone nothing does.
#[test]
fn a_device_interface_in_a_bridge_is_a_named_problem_and_stays_closed() {
    require!(Root, Bpf, Program("nft"), Program("tc"));
    let mut g = Gateway::new("dev0", |c| c);
    let (gw, device) = (g.site.gw.clone(), g.site.device.clone());
    for line in ["link add br0 type bridge", "link set dev0 master br0", "link set br0 up"] {
        gw.ip(line).unwrap();
    }
    for (namespace, interface, address) in [(&gw, "br0", TUNNEL), (&device, "eth0", DEVICE)] {
        namespace.address(interface, &format!("{address}/24")).unwrap();
    }
    for (namespace, interface, address) in [(&gw, "br0", TUNNEL6), (&device, "eth0", DEVICE6)] {
        namespace.address(interface, &format!("{address}/64")).unwrap();
    }
    device.route("default", TUNNEL).unwrap();
    device.route("default", TUNNEL6).unwrap();
    let spoofed: IpAddr = "172.16.0.9".parse().unwrap();
    device.address("eth0", &format!("{spoofed}/32")).unwrap();
    for interface in ["all", "br0"] {
        gw.sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0").unwrap();
    }
    // From a source of no pool, which only the interface tells.
    let routed = |core: &Namespace| {
        let port = unique_port();
        let watcher = Watcher::new(core, move |p| p.from == spoofed && p.ports.1 == port && !p.outgoing).unwrap();
        let sent = device.run(|| std::net::UdpSocket::bind((spoofed, 0))?.send_to(b"!", (MAIL, port)));
        sent.unwrap();
        !watcher.seen().is_empty()
    };
    assert!(routed(&g.site.core), "the way works");
    g.open();
    let problem = |g: &mut Gateway| g.problems().iter().any(|p| p.contains("the host routes by br0"));
    assert!(problem(&mut g), "{:?}", g.problems());
    let links = g.config.paths.pins.join(format!("v{}/links", gateway_ebpf::abi::VERSION));
    for (address, mail) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        assert!(!talks(&device, &g.site.core, mail));
        g.assign(address, STAFF);
        gw.ip("neigh flush all").unwrap();
        assert!(talks(&device, &g.site.core, mail), "judged at the port: {:?}", g.problems());
    }
    g.live = None;
    for pin in std::fs::read_dir(links).unwrap() {
        std::fs::remove_file(pin.unwrap().path()).unwrap();
    }
    lazaret_tests::process::until(std::time::Duration::from_secs(10), "no program is left", || {
        Ok(!gw.exec("bpftool net show")?.contains("tc_"))
    })
    .unwrap();
    assert!(!routed(&g.site.core), "nobody has judged it");
    assert!(!talks(&device, &g.site.core, MAIL));
    // Neighbours are found all the same.
    gw.exec("nft delete table inet lazaret").unwrap();
    assert!(!routed(&g.site.core), "by the filter alone");
    let neighbours = device.ip("neigh").unwrap();
    assert!(
        neighbours.lines().any(|l| l.contains("10.66.0.1 ") && l.contains("lladdr")),
        "{neighbours}"
    );
}

#[test]
fn the_host_itself_is_not_locked_out() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    g.site.gw.address("vpn0", &format!("{TUNNEL}/32")).unwrap();
    g.site.gw.address("vpn0", &format!("{TUNNEL6}/128")).unwrap();
    g.open();
    for to in [TUNNEL, TUNNEL6, GATEWAY] {
        assert!(talks(&g.site.gw, &g.site.gw, to), "{to}");
    }
    // From and to the core, where no pool is touched; neighbours are found again.
    g.site.gw.ip("neigh flush all").unwrap();
    for (to, own) in [(MAIL, GATEWAY), (MAIL6, "fd00:9::1".parse().unwrap())] {
        assert!(talks(&g.site.gw, &g.site.core, to), "{to}");
        assert!(talks(&g.site.core, &g.site.gw, own), "{own}");
    }
}

#[test]
fn neighbours_are_found_on_a_closed_device_interface_and_no_more() {
    require!(Root, Bpf, Program("nft"));
    let g = Gateway::new("dev0", |c| c);
    g.site.by_ethernet().unwrap();
    let config = g.config.clone();
    g.site.gw.run(|| floor::close(&config)).unwrap();
    assert!(!talks(&g.site.device, &g.site.gw, TUNNEL6));
    let neighbours = g.site.device.ip("-6 neigh").unwrap();
    let own = neighbours.lines().find(|l| l.starts_with(&TUNNEL6.to_string())).unwrap();
    assert!(own.contains("lladdr"), "{neighbours}");
}

#[test]
fn a_pool_source_behind_an_interface_without_role_is_denied() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    g.open();
    let other = Tun::new(&g.site.gw, "other0").unwrap();
    for (device, mail) in [(DEVICE, MAIL), (DEVICE6, MAIL6)] {
        g.assign(device, STAFF);
        assert!(!g.reaches(&other, device, mail, 25), "released, but not from here");
        assert!(!g.delivered(
            &other,
            device,
            if device.is_ipv4() {
                GATEWAY
            } else {
                "fd00:9::1".parse().unwrap()
            }
        ));
    }
    let foreign: IpAddr = "192.0.2.7".parse().unwrap();
    g.site.gw.ip("route add 192.0.2.0/24 dev other0").unwrap();
    assert!(g.reaches(&other, foreign, MAIL, 25), "what touches no pool is not ours");
}

/// A packet that is granted to the gateway itself, and carries another one to a tunnel that has no role: the other one has no grant. (VXLAN stands
/// for all tunnels that end in the kernel: they take a packet's payload out behind the input hook, and keep its mark.)
#[test]
fn what_a_granted_packet_carries_is_not_granted() {
    require!(Root, Bpf, Tun, Vxlan, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    let add = format!("link add inner0 type vxlan id 5 remote {DEVICE} dstport 4789");
    g.site.gw.ip(&add).unwrap();
    g.site.gw.ip("link set inner0 address 02:00:00:00:00:99 up").unwrap();
    g.open();
    g.assign(DEVICE, STAFF);
    let carries = |g: &Gateway, from: IpAddr| {
        let source = unique_port();
        let watcher = Watcher::new(&g.site.core, move |p| p.ports == (source, 25) && !p.outgoing).unwrap();
        let ethertype: &[u8] = if from.is_ipv4() { &[8, 0] } else { &[0x86, 0xdd] };
        let mail = if from.is_ipv4() { MAIL } else { MAIL6 };
        let frame = [
            // RFC 7348: network 5.
            &[8, 0, 0, 0, 0, 0, 5, 0][..],
            &[2, 0, 0, 0, 0, 0x99, 2, 0, 0, 0, 0, 0x98],
            ethertype,
            &packets::udp((from, source), (mail, 25), b"?"),
        ]
        .concat();
        tun.send(&packets::udp((DEVICE, 4789), (GATEWAY, 4789), &frame)).unwrap();
        !watcher.seen().is_empty()
    };
    let quarantined: [IpAddr; 2] = ["10.66.0.6".parse().unwrap(), "fd00:66::6".parse().unwrap()];
    for from in quarantined {
        assert!(!carries(&g, from), "{from} by the mark of {DEVICE}");
    }
    // The tunnel works, and what touches no pool in it is not ours.
    g.site.gw.ip("route add 192.0.2.0/24 dev inner0").unwrap();
    assert!(carries(&g, "192.0.2.7".parse().unwrap()));
    g.site.gw.run(floor::open).unwrap();
    assert_eq!(quarantined.map(|from| carries(&g, from)), [true; 2], "without the floor");
}

#[test]
fn destination_nat_of_what_the_host_sends_is_no_way_around() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (g, tun) = Gateway::tun(|c| c);
    let config = g.config.clone();
    g.site.gw.exec("nft add table ip nat").unwrap();
    g.site
        .gw
        .exec("nft add chain ip nat output { type nat hook output priority -100 ; }")
        .unwrap();
    g.site
        .gw
        .exec("nft add rule ip nat output ip daddr 10.9.0.99 dnat to 10.66.0.5")
        .unwrap();
    let sends = |g: &Gateway| {
        let port = unique_port();
        g.site.gw.run(|| {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", port)).unwrap();
            let _denied = socket.send_to(b"!", "10.9.0.99:9");
        });
        crate::gateway::arrives(&tun, |p| p.to == DEVICE && p.ports.0 == port)
    };
    assert!(sends(&g), "the translation works");
    g.site.gw.run(|| floor::close(&config)).unwrap();
    assert!(!sends(&g));
}

#[test]
fn a_changed_floor_is_told_and_closed_again_and_others_tables_stay() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    for line in [
        "nft add table inet theirs",
        "nft add chain inet theirs c",
        "nft add table ip lazaret",
    ] {
        g.site.gw.exec(line).unwrap();
    }
    let theirs = |g: &Gateway| {
        g.site.gw.exec("nft list table inet theirs").unwrap() + &g.site.gw.exec("nft list table ip lazaret").unwrap()
    };
    let before = theirs(&g);
    g.open();
    assert_eq!(g.floor(), "closed");
    for (change, told) in [
        ("flush chain inet lazaret forward_in", "rule forward_in"),
        (
            "insert rule inet lazaret forward accept",
            "rule forward of table inet lazaret was added",
        ),
        ("add element inet lazaret pools4 { 192.0.2.1 }", "set pools4"),
        ("delete table inet lazaret", "is gone"),
    ] {
        g.site.gw.exec(&format!("nft {change}")).unwrap();
        let state = g.floor();
        assert!(state.starts_with("broken: ") && state.contains(told), "{change}: {state}");
        g.set_links();
        assert_eq!(g.floor(), "closed", "{change}");
        assert!(g.reaches(&tun, DEVICE, RESOLVER, 53));
        g.assign(DEVICE, STAFF);
        assert!(g.host_sends(&tun, DEVICE), "still judged after {change}");
    }
    assert_eq!(theirs(&g), before);
    let config = g.config.clone();
    g.live = None;
    g.site.gw.run(|| gateway_user::dataplane::detach(&config, true)).unwrap();
    assert_eq!(theirs(&g), before);
}

#[test]
fn a_core_name_before_a_device_pattern_stays_core() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _vpn) = Gateway::tun(|c| {
        let c = c
            .replace("name = \"vpn0\"", "name = \"tun9\"")
            .replacen("role = \"device\"", "role = \"core\"", 1);
        c.replacen("[[pool]]", "[[interface]]\nname = \"tun*\"\nrole = \"device\"\n\n[[pool]]", 1)
    });
    let core = Tun::new(&g.site.gw, "tun9").unwrap();
    let device = Tun::new(&g.site.gw, "tun4").unwrap();
    g.site.gw.ip("route add 192.0.2.0/24 dev tun9").unwrap();
    g.open();
    let foreign: IpAddr = "192.0.2.7".parse().unwrap();
    assert!(
        g.reaches(&core, foreign, MAIL, 25),
        "{:?}",
        g.live(|l| l.interfaces().unwrap())
    );
    assert!(!g.reaches(&device, foreign, MAIL, 25));
}
