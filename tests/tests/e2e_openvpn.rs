//! End to end over a real OpenVPN tun, with `lazaret hook openvpn` reporting the sessions.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    fs, thread,
    time::{Duration, SystemTime},
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{
    gateway::Gateway,
    openvpn::{self, Authority},
    packets::Watcher,
    process::{Process, until},
    require, services,
    site::{self, Site},
};

const PATIENCE: Duration = Duration::from_millis(600);
const LIMIT: Duration = Duration::from_secs(30);

struct Stage {
    server: Process,
    authority: Authority,
    gateway: Gateway,
    _mail: Process,
    _dm: Process,
    site: Site,
}

fn stage(clients: u8) -> Stage {
    let site = Site::new().unwrap();
    site.underlay().unwrap();
    let mut gateway = Gateway::new(&site, "tun0").unwrap();
    let dm = services::http(&site.core, site::DM, "enrolment", 1, gateway.folder()).unwrap();
    let mail = services::http(&site.core, site::MAIL, "mail", 400, gateway.folder()).unwrap();
    gateway.start().unwrap();
    let authority = Authority::new(gateway.folder()).unwrap();
    let server = openvpn::server(&site.gw, &authority, clients, &openvpn::hooks(&gateway)).unwrap();
    gateway.attached("tun0").unwrap();
    Stage {
        server,
        authority,
        gateway,
        _mail: mail,
        _dm: dm,
        site,
    }
}

impl Stage {
    fn page(&self, at: std::net::IpAddr, limit: Duration) -> Option<String> {
        services::fetch(&self.site.device, &format!("http://{at}/"), limit, self.gateway.folder()).ok()
    }
}

#[test]
fn a_device_connects_is_released_and_is_cut_off_in_a_download() {
    require!(Root, Bpf, Tun, Program("openvpn"), Program("python3"), Program("curl"));
    let stage = stage(9);
    let mdm = stage.gateway.mdm().unwrap();
    mdm.register("phone", "staff").unwrap();
    let (_client, addresses) = openvpn::connect(&stage.site.device, &stage.authority, "phone").unwrap();
    let sessions = stage.gateway.local().unwrap().list_sessions().unwrap();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    for address in &addresses {
        assert!(
            sessions[0].prefixes.iter().any(|p| p.starts_with(&format!("{address}/"))),
            "{address} in {sessions:?}"
        );
    }
    assert_eq!(stage.page(site::DM, LIMIT).as_deref(), Some("enrolment\n"));
    assert_eq!(stage.page(site::MAIL, PATIENCE), None);

    let released = mdm.applied("phone").unwrap();
    assert_eq!(released.enforcement(), Enforcement::Enforced, "{released:#?}");
    assert_eq!(stage.page(site::MAIL, LIMIT).as_deref(), Some("mail\n"));

    let device = *addresses.iter().find(|a| a.is_ipv4()).unwrap();
    let tun = stage.site.gw.ifindex("tun0").unwrap();
    let up = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.from == device).unwrap();
    let down = Watcher::new(&stage.site.gw, move |p| p.outgoing && p.ifindex == tun && p.to == device).unwrap();
    let file = stage.gateway.folder().join("download");
    let mut curl = services::curl(&stage.site.device, stage.gateway.folder()).unwrap();
    curl.args(["--limit-rate", "8M", "--output"])
        .arg(&file)
        .arg(format!("http://{}/big", site::MAIL));
    let mut download = Process::spawn(&mut curl, &stage.gateway.folder().join("curl.log")).unwrap();
    let size = || fs::metadata(&file).map_or(0, |m| m.len());
    until(LIMIT, "the download runs", || Ok(size() > 4 << 20)).unwrap();
    let revoked = mdm.revoked("phone").unwrap();
    let acknowledged = SystemTime::now();
    assert_eq!(revoked.enforcement(), Enforcement::Enforced);
    thread::sleep(Duration::from_secs(1));
    let seen = [up.seen(), down.seen()].concat();
    assert!(seen.len() > 100, "the download was seen: {}", seen.len());
    let late: Vec<_> = seen.iter().filter(|p| p.at > acknowledged).collect();
    assert!(late.is_empty(), "{late:?}");
    // What had arrived it may still be writing, at its own rate.
    until(LIMIT, "the download stands still", || {
        let cut = size();
        thread::sleep(Duration::from_millis(300));
        Ok(size() == cut)
    })
    .unwrap();
    assert_eq!(download.ended().unwrap(), None, "and is unfinished");
}

#[test]
fn an_unknown_device_does_not_connect() {
    require!(Root, Bpf, Tun, Program("openvpn"), Program("python3"));
    let mut stage = stage(9);
    let mut client = openvpn::client(&stage.site.device, &stage.authority, "stranger").unwrap();
    stage.server.prints("stranger", LIMIT).unwrap();
    assert!(
        client
            .prints("Initialization Sequence Completed", Duration::from_secs(3))
            .is_err(),
        "{}",
        client.log()
    );
    assert_eq!(stage.gateway.local().unwrap().list_sessions().unwrap(), []);
}

#[test]
fn an_address_that_changes_hands_starts_in_quarantine() {
    require!(Root, Bpf, Tun, Program("openvpn"), Program("python3"), Program("curl"));
    let stage = stage(2);
    let mdm = stage.gateway.mdm().unwrap();
    let local = stage.gateway.local().unwrap();
    for name in ["first", "second", "third"] {
        mdm.register(name, "staff").unwrap();
    }
    let leave = |mut client: Process| {
        client.terminate(LIMIT).unwrap();
        until(LIMIT, "the session ends", || Ok(local.list_sessions()?.is_empty())).unwrap();
    };
    let (client, before) = openvpn::connect(&stage.site.device, &stage.authority, "first").unwrap();
    assert_eq!(mdm.applied("first").unwrap().enforcement(), Enforcement::Enforced);
    assert_eq!(stage.page(site::MAIL, LIMIT).as_deref(), Some("mail\n"));
    leave(client);
    let (client, _) = openvpn::connect(&stage.site.device, &stage.authority, "second").unwrap();
    leave(client);
    // OpenVPN gives out the address that was free for longest.
    let (client, after) = openvpn::connect(&stage.site.device, &stage.authority, "third").unwrap();
    assert_eq!(before, after, "the address has changed hands");
    assert_eq!(stage.page(site::MAIL, PATIENCE), None);
    assert_eq!(stage.page(site::DM, LIMIT).as_deref(), Some("enrolment\n"));
    leave(client);

    // The release is the device's, and comes back with it.
    let (_client, _) = openvpn::connect(&stage.site.device, &stage.authority, "first").unwrap();
    assert_eq!(stage.page(site::MAIL, LIMIT).as_deref(), Some("mail\n"));
}
