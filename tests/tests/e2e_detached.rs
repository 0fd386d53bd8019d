//! End to end, with programs detached behind the daemon's back: nothing loosens, and a release is not answered as enforced where a program
//! is missing.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{process::Command, thread, time::Duration};

use aya::programs::{Xdp, XdpMode};
use gateway_ebpf::abi::{VERSION, program};
use gateway_user::dataplane::object::Loading;
use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    desk::{Desk, LIMIT},
    gateway::Gateway,
    lab::Lab,
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

    let released = local.applied("phone").unwrap();
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
    assert_eq!(local.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
}

#[test]
fn with_programs_detached_the_floor_denies() {
    require!(Root, Bpf, Tun, Program("bpftool"));
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    let arrived = lab.arrivals(site::DEVICE, site::MAIL).unwrap();
    let Lab { tun, local, gateway, .. } = &mut lab;
    local.register("phone", "staff").unwrap();
    local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    assert_eq!(local.applied("phone").unwrap().enforcement(), Enforcement::Enforced);

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
