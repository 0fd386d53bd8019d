//! End to end, with programs detached behind the daemon's back: nothing loosens, and a release is not answered as enforced where a program
//! is missing.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    fs,
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant, SystemTime},
};

use aya::programs::{Xdp, XdpMode};
use gateway_ebpf::abi::{VERSION, program};
use gateway_user::dataplane::object::Loading;
use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    desk::{Desk, LIMIT},
    gateway::Gateway,
    lab::Lab,
    netns::Tun,
    packets,
    process::{self, until},
    require, site,
};
use nix::sys::signal::{SIGCONT, SIGSTOP};

/// Detaches a program by its link's pin, as root can: the link stays, and is attached to nothing.
fn detach(gateway: &Gateway, interface: &str, slot: &str) {
    let ifindex = gateway.site.gw.ifindex(interface).unwrap();
    let pin = gateway
        .folder()
        .join(format!("bpf/lazaret/v{VERSION}/links/{ifindex}-{slot}"));
    process::output(Command::new("bpftool").args(["link", "detach", "pinned"]).arg(pin)).unwrap();
}

#[test]
fn a_release_is_not_enforced_where_a_foreign_program_holds_the_hook() {
    require!(Root, Bpf, Program("bpftool"));
    let mut desk = Desk::new(|_| Ok(())).unwrap();
    desk.local.register("phone", "staff").unwrap();
    desk.open().unwrap();
    let Desk { local, gateway, site } = &mut desk;

    // Stopped, so that it cannot repair in between: ours goes, another one takes its place.
    gateway.daemon().unwrap().signal(SIGSTOP).unwrap();
    detach(gateway, "core0", "xdp");
    let ifindex = site.gw.ifindex("core0").unwrap();
    let loading = Loading::new().unwrap();
    let mut foreign = aya::Ebpf::load(loading.bytes()).unwrap();
    loading.bind(&foreign).unwrap();
    site.gw.run(|| {
        let xdp: &mut Xdp = foreign.program_mut(program::XDP_CORE).unwrap().try_into().unwrap();
        xdp.load().unwrap();
        xdp.attach_to_if_index(ifindex, XdpMode::Driver).unwrap();
    });
    gateway.daemon().unwrap().signal(SIGCONT).unwrap();

    let released = gateway.applied("phone").unwrap();
    assert_eq!(released.enforcement(), Enforcement::Committed, "{released:#?}");
    // The other one is a copy of ours on tables of its own, which say nothing of the device.
    let missing = |r: &lazaret_proto::v1::ReadBack| r.interface == "core0" && r.hook == "xdp" && !r.as_wanted;
    assert!(
        released.prefixes.iter().all(|p| p.read_backs.iter().any(missing)),
        "{released:#?}"
    );
    // Its name is ours, its tables are not: status is not deceived.
    let status = local.status().unwrap();
    let hooks = status.interfaces.iter().find(|i| i.name == "core0").map(|i| &i.hooks);
    let xdp = hooks.and_then(|h| h.iter().find(|h| h.hook == "xdp"));
    assert!(
        xdp.is_some_and(|h| h.program_id == 0 && h.problem.contains("foreign")),
        "{status:#?}"
    );
    // The foreign program gone, ours is back by itself, and the same signal is answered as enforced.
    drop(foreign);
    gateway.attached("core0").unwrap();
    assert_eq!(gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
}

#[test]
fn with_programs_detached_the_floor_denies() {
    require!(Root, Bpf, Tun, Program("bpftool"));
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    let arrived = lab.arrivals(site::DEVICE, site::MAIL).unwrap();
    let Lab { tun, local, gateway, .. } = &mut lab;
    local.register("phone", "staff").unwrap();
    local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    assert_eq!(gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);

    let to_mail = |n: u8| packets::udp((site::DEVICE, 4000), (site::MAIL, 9999), &[n]);
    (0..50).for_each(|n| tun.send(&to_mail(n)).unwrap());
    assert_eq!(arrived.seen().len(), 50, "released: all pass");

    gateway.daemon().unwrap().signal(SIGSTOP).unwrap();
    detach(gateway, "tun0", "ingress");
    (0..50).for_each(|n| tun.send(&to_mail(n)).unwrap());
    assert_eq!(arrived.seen().len(), 50, "no judge, no pass: even of a released device");
    gateway.daemon().unwrap().signal(SIGCONT).unwrap();

    // Repaired by itself.
    until(LIMIT, "the daemon attaches again", || {
        tun.send(&to_mail(0))?;
        thread::sleep(Duration::from_millis(20));
        Ok(arrived.seen().len() > 50)
    })
    .unwrap();
}

/// Sends a datagram to the device on each way that does not begin at a device: by the host, from the core, from the core with its
/// destination translated, and from an interface without a role. Returns which of them leave to the device.
fn ways_in(lab: &Lab, other: &Tun) -> [bool; 4] {
    while lab.tun.receive(Duration::ZERO).unwrap().is_some() {}
    let gw = &lab.site.gw;
    let _denied_by_the_floor = gw.run(|| UdpSocket::bind("0.0.0.0:7001")?.send_to(b"!", (site::DEVICE, 9)));
    let from_core = |port: u16, to| {
        lab.site
            .core
            .run(|| UdpSocket::bind((site::MAIL, port))?.send_to(b"!", to))
            .unwrap();
    };
    from_core(7002, (site::DEVICE, 9));
    from_core(7003, (site::GATEWAY, 7999));
    other
        .send(&packets::udp(("192.0.2.7".parse().unwrap(), 7004), (site::DEVICE, 9), b"!"))
        .unwrap();
    let mut left = [false; 4];
    let limit = Instant::now() + Duration::from_millis(400);
    while let Some(wait) = limit.checked_duration_since(Instant::now()) {
        let Some(packet) = lab.tun.receive(wait).unwrap() else { break };
        if let Some(p) = packets::parse(&packet, SystemTime::now())
            && let Some(way) = p.ports.0.checked_sub(7001).and_then(|n| left.get_mut(usize::from(n)))
        {
            *way = true;
        }
    }
    left
}

#[test]
fn with_every_program_gone_nothing_gets_to_a_device() {
    require!(Root, Bpf, Tun, Program("bpftool"), Program("nft"), Program("tc"));
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    let gw = lab.site.gw.clone();
    let other = Tun::new(&gw, "other0").unwrap();
    gw.ip("route add 192.0.2.0/24 dev other0").unwrap();
    for line in [
        "nft add table ip nat",
        "nft add chain ip nat pre { type nat hook prerouting priority dstnat ; }",
        &format!(
            "nft add rule ip nat pre iifname core0 udp dport 7999 dnat to {}:9",
            site::DEVICE
        ),
    ] {
        gw.exec(line).unwrap();
    }
    lab.local.register("phone", "staff").unwrap();
    lab.local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    assert_eq!(ways_in(&lab, &other), [false; 4], "quarantined");
    assert_eq!(lab.gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
    assert_eq!(ways_in(&lab, &other), [true; 4], "released");

    let folder = lab.gateway.folder().join(format!("bpf/lazaret/v{VERSION}/links"));
    let all = |folder: &std::path::Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    // The daemon alive, and not in time to repair it.
    lab.gateway.daemon().unwrap().signal(SIGSTOP).unwrap();
    assert_eq!(ways_in(&lab, &other), [true; 4], "a release needs no daemon");
    let links = all(&folder);
    assert!(links.len() >= 5, "{links:?}");
    for link in &links {
        let mut detach = Command::new("bpftool");
        process::output(detach.args(["link", "detach", "pinned"]).arg(folder.join(link))).unwrap();
    }
    assert_eq!(ways_in(&lab, &other), [false; 4], "detached, the daemon stopped");
    lab.gateway.daemon().unwrap().signal(SIGCONT).unwrap();
    let repaired = || until(LIMIT, "the daemon repairs it", || Ok(ways_in(&lab, &other) == [true; 4]));
    repaired().unwrap();

    // The filter gone, the programs judge, and the daemon puts it back.
    gw.exec("tc qdisc del dev tun0 clsact").unwrap();
    until(LIMIT, "the filter is put back", || {
        Ok(gw.exec("tc filter show dev tun0 egress")?.contains("pref 76 bpf"))
    })
    .unwrap();
    let repaired = || until(LIMIT, "the daemon repairs it", || Ok(ways_in(&lab, &other) == [true; 4]));
    repaired().unwrap();

    lab.gateway.kill().unwrap();
    assert_eq!(ways_in(&lab, &other), [true; 4], "a release needs no daemon");
    for link in all(&folder) {
        fs::remove_file(folder.join(link)).unwrap();
    }
    // The kernel ends a link a moment after its last reference.
    let attached = || gw.exec("bpftool net show").unwrap();
    until(LIMIT, "the programs are gone", || Ok(!attached().contains("tc_"))).unwrap();
    for _ in 0..3 {
        assert_eq!(ways_in(&lab, &other), [false; 4], "no daemon, no link: {}", attached());
    }
    // Taken out of the kernel as documented, nothing of it is left.
    let config = lab.gateway.config();
    process::output(lab.gateway.lazaret().arg("detach").arg("--open").arg("--config").arg(config)).unwrap();
    assert!(!gw.exec("tc filter show dev tun0 egress").unwrap().contains("bpf"));
    assert_eq!(ways_in(&lab, &other), [true; 4], "nothing is denied any more");
}
