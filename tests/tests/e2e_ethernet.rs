//! End to end over Ethernet (veth on both sides, native XDP): both families, both directions, and what is not ours.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    net::{IpAddr, TcpListener, UdpSocket},
    thread,
    time::Duration,
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    api::{Client, read_back_everywhere},
    gateway::Gateway,
    packets::Watcher,
    require, services,
    site::{self, Site},
};

/// How long something that must not arrive is waited for.
const PATIENCE: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(5);

struct Stage {
    local: Client,
    gateway: Gateway,
    site: Site,
}

/// A running gateway between a device by Ethernet and a core with TCP listeners for DM and mail, and `phone` registered.
fn stage() -> Stage {
    let site = Site::new().unwrap();
    site.by_ethernet().unwrap();
    for at in [site::DM, site::DM6, site::MAIL, site::MAIL6] {
        let listener = site.core.run(|| TcpListener::bind((at, 80))).unwrap();
        thread::spawn(move || listener.incoming().for_each(drop));
    }
    let mut gateway = Gateway::new(&site, "dev0").unwrap();
    gateway.start().unwrap();
    gateway.attached("dev0").unwrap();
    gateway.attached("core0").unwrap();
    let local = gateway.local().unwrap();
    local.register("phone", "staff").unwrap();
    Stage { local, gateway, site }
}

impl Stage {
    fn device_reaches(&self, at: IpAddr, limit: Duration) -> bool {
        services::reaches(&self.site.device, at, 80, limit)
    }

    fn expect_quarantine(&self, when: &str) {
        for at in [site::DM, site::DM6] {
            assert!(self.device_reaches(at, LIMIT), "{when}: the DM server is reached at {at}");
        }
        let inside = Watcher::new(&self.site.core, |p| !p.outgoing && [site::MAIL, site::MAIL6].contains(&p.to)).unwrap();
        for at in [site::MAIL, site::MAIL6] {
            assert!(
                !self.device_reaches(at, PATIENCE),
                "{when}: the mail server is not reached at {at}"
            );
        }
        assert_eq!(inside.seen(), [], "{when}: nothing for the mail server arrives in the core");
    }
}

#[test]
fn a_device_is_quarantined_released_and_put_back() {
    require!(Root, Bpf);
    let stage = stage();
    let status = stage.local.status().unwrap();
    for interface in &status.interfaces {
        let xdp = interface.hooks.iter().find(|h| h.hook == "xdp").unwrap();
        assert_eq!(xdp.mode, "native", "{}", interface.name);
    }
    stage.expect_quarantine("without a session");

    let opened = stage
        .local
        .open("lab", "phone", &["10.66.0.5", "fd00:66::5"], "dev0")
        .unwrap();
    assert_eq!(opened.gateway_uri, "enrol.vpn.example.test");
    stage.expect_quarantine("with a session");
    let denials = stage.local.denials().unwrap();
    assert!(
        denials
            .iter()
            .any(|d| d.reason == "no_rule" && d.device_id == "phone" && d.destination == site::MAIL.to_string()),
        "{denials:?}"
    );

    let mdm = stage.gateway.mdm().unwrap();
    let released = mdm.applied("phone").unwrap();
    assert_eq!(released.enforcement(), Enforcement::Enforced, "{released:#?}");
    assert_eq!(released.prefixes.len(), 2, "both families at once");
    assert!(read_back_everywhere(&released.prefixes), "{released:#?}");
    assert_eq!(released.gateway_uri, "vpn.example.test");
    for at in [site::DM, site::DM6, site::MAIL, site::MAIL6] {
        assert!(stage.device_reaches(at, LIMIT), "released: {at}");
    }

    let revoked = mdm.revoked("phone").unwrap();
    assert_eq!(revoked.enforcement(), Enforcement::Enforced);
    assert_eq!(revoked.gateway_uri, "enrol.vpn.example.test");
    stage.expect_quarantine("revoked");

    // A release ends for an address with the session.
    mdm.applied("phone").unwrap();
    assert!(stage.device_reaches(site::MAIL, LIMIT));
    assert!(stage.local.close(opened.session.unwrap().session_id).unwrap().ended);
    stage.expect_quarantine("after the session");
}

#[test]
fn the_other_direction_the_host_and_what_is_not_ours() {
    require!(Root, Bpf);
    let stage = stage();
    stage
        .local
        .open("lab", "phone", &["10.66.0.5", "fd00:66::5"], "dev0")
        .unwrap();

    // A new connection from the core to a device in quarantine, from the DM server's own address too.
    let listener = stage.site.device.run(|| TcpListener::bind((site::DEVICE, 22))).unwrap();
    thread::spawn(move || listener.incoming().for_each(drop));
    let arrives = Watcher::new(&stage.site.device, |p| !p.outgoing && p.ports.1 == 22).unwrap();
    assert!(
        !services::reaches(&stage.site.core, site::DEVICE, 22, PATIENCE),
        "core to device"
    );
    assert!(
        !services::reaches(&stage.site.gw, site::DEVICE, 22, PATIENCE),
        "host to device"
    );
    assert_eq!(arrives.seen(), []);

    // The gateway's own services, the API's port included, are behind the policy too; for the core they are not ours.
    for at in [site::GATEWAY, site::TUNNEL] {
        assert!(
            !services::reaches(&stage.site.device, at, 9443, PATIENCE),
            "device to the API at {at}"
        );
    }
    assert!(
        services::reaches(&stage.site.core, site::GATEWAY, 9443, LIMIT),
        "core to the API"
    );

    // A source that is in no pool.
    let before = stage.local.counted("not_in_pool").unwrap();
    stage.site.device.address("eth0", "10.1.2.3/32").unwrap();
    let spoofer = stage.site.device.run(|| UdpSocket::bind("10.1.2.3:0")).unwrap();
    let arrives = Watcher::new(&stage.site.core, |p| p.from.to_string() == "10.1.2.3").unwrap();
    spoofer.send_to(b"x", (site::RESOLVER, 53)).unwrap();
    assert_eq!(arrives.seen(), []);
    assert!(stage.local.counted("not_in_pool").unwrap() > before);

    // Released, both directions are open.
    stage.gateway.mdm().unwrap().applied("phone").unwrap();
    assert!(services::reaches(&stage.site.core, site::DEVICE, 22, LIMIT));
}
