//! End to end over Ethernet (veth on both sides, native XDP): both families, both directions, and what is not ours.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::net::UdpSocket;

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    api::read_back_everywhere,
    desk::{Desk, LIMIT, PATIENCE},
    packets::Watcher,
    require, services, site,
};

fn expect_quarantine(desk: &Desk, when: &str) {
    for at in [site::DM, site::DM6] {
        assert!(desk.reaches(at, LIMIT), "{when}: the DM server is reached at {at}");
    }
    let inside = Watcher::new(&desk.site.core, |p| !p.outgoing && [site::MAIL, site::MAIL6].contains(&p.to)).unwrap();
    for at in [site::MAIL, site::MAIL6] {
        assert!(!desk.reaches(at, PATIENCE), "{when}: the mail server is not reached at {at}");
    }
    assert_eq!(inside.seen(), [], "{when}: nothing for the mail server arrives in the core");
}

#[test]
fn a_device_is_quarantined_released_and_put_back() {
    require!(Root, Bpf);
    let desk = Desk::new(|_| Ok(())).unwrap();
    desk.local.register("phone", "staff").unwrap();
    let status = desk.local.status().unwrap();
    for interface in &status.interfaces {
        let xdp = interface.hooks.iter().find(|h| h.hook == "xdp").unwrap();
        assert_eq!(xdp.mode, "native", "{}", interface.name);
    }
    expect_quarantine(&desk, "without a session");
    let checked = desk
        .gateway
        .cli(&format!("check {}", desk.gateway.config().display()))
        .unwrap();
    assert!(checked.contains("interface dev0: it is Ethernet"), "{checked}");
    assert!(!checked.contains("interface core0: it is Ethernet"), "{checked}");

    let opened = desk.open().unwrap();
    assert_eq!(opened.gateway_uri, "enrol.vpn.example.test");
    expect_quarantine(&desk, "with a session");
    let denials = desk.local.denials().unwrap();
    assert!(
        denials
            .iter()
            .any(|d| d.reason == "no_rule" && d.device_id == "phone" && d.destination == site::MAIL.to_string()),
        "{denials:?}"
    );

    let mdm = desk.gateway.mdm().unwrap();
    let released = mdm.applied("phone").unwrap();
    assert_eq!(released.enforcement(), Enforcement::Enforced, "{released:#?}");
    assert_eq!(released.prefixes.len(), 2, "both families at once");
    assert!(read_back_everywhere(&released.prefixes), "{released:#?}");
    assert_eq!(released.gateway_uri, "vpn.example.test");
    for at in [site::DM, site::DM6, site::MAIL, site::MAIL6] {
        assert!(desk.reaches(at, LIMIT), "released: {at}");
    }

    let revoked = mdm.revoked("phone").unwrap();
    assert_eq!(revoked.enforcement(), Enforcement::Enforced);
    assert_eq!(revoked.gateway_uri, "enrol.vpn.example.test");
    expect_quarantine(&desk, "revoked");

    // A release ends for an address with the session.
    mdm.applied("phone").unwrap();
    assert!(desk.reaches(site::MAIL, LIMIT));
    assert!(desk.local.close(opened.session.unwrap().session_id).unwrap().ended);
    expect_quarantine(&desk, "after the session");
}

#[test]
fn the_other_direction_the_host_and_what_is_not_ours() {
    require!(Root, Bpf);
    let desk = Desk::new(|_| Ok(())).unwrap();
    desk.local.register("phone", "staff").unwrap();
    desk.open().unwrap();

    // A new connection from the core to a device in quarantine, from the DM server's own address too.
    services::listen(&desk.site.device, site::DEVICE, 22).unwrap();
    let arrives = Watcher::new(&desk.site.device, |p| !p.outgoing && p.ports.1 == 22).unwrap();
    assert!(
        !services::reaches(&desk.site.core, site::DEVICE, 22, PATIENCE),
        "core to device"
    );
    assert!(
        !services::reaches(&desk.site.gw, site::DEVICE, 22, PATIENCE),
        "host to device"
    );
    assert_eq!(arrives.seen(), []);

    // The gateway's own services, the API's port included, are behind the policy too; for the core they are not ours.
    for at in [site::GATEWAY, site::TUNNEL] {
        assert!(
            !services::reaches(&desk.site.device, at, 9443, PATIENCE),
            "device to the API at {at}"
        );
    }
    assert!(
        services::reaches(&desk.site.core, site::GATEWAY, 9443, LIMIT),
        "core to the API"
    );

    // A source that is in no pool.
    let before = desk.local.counted("not_in_pool").unwrap();
    desk.site.device.address("eth0", "10.1.2.3/32").unwrap();
    let spoofer = desk.site.device.run(|| UdpSocket::bind("10.1.2.3:0")).unwrap();
    let arrives = Watcher::new(&desk.site.core, |p| p.from.to_string() == "10.1.2.3").unwrap();
    spoofer.send_to(b"x", (site::RESOLVER, 53)).unwrap();
    assert_eq!(arrives.seen(), []);
    assert!(desk.local.counted("not_in_pool").unwrap() > before);

    // Released, both directions are open.
    desk.gateway.mdm().unwrap().applied("phone").unwrap();
    assert!(services::reaches(&desk.site.core, site::DEVICE, 22, LIMIT));
}
