//! End to end, with something broken: the daemon killed under traffic, the tun re-created, a second daemon, a full disk.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    fs,
    io::Write as _,
    net::IpAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use lazaret_proto::v1::{DeviceState, Enforcement};
use lazaret_tests::{
    gateway::Gateway,
    lab::{self, Lab},
    netns::Tun,
    packets::{self, Watcher},
    process::until,
    require,
    site::{self, Site},
};

const LIMIT: Duration = Duration::from_secs(60);

fn allowed(sequence: u64) -> Vec<u8> {
    packets::udp((site::DEVICE, 4000), (site::RESOLVER, 53), &sequence.to_be_bytes())
}

fn denied(sequence: u64) -> Vec<u8> {
    packets::udp((site::DEVICE, 4001), (site::MAIL, 53), &sequence.to_be_bytes())
}

/// Packets of the device that arrive in the core for an address.
fn arrivals(site: &Site, to: IpAddr) -> Watcher {
    lab::arrivals(site, site::DEVICE, to).unwrap()
}

/// A running gateway, with `phone` registered and connected.
fn connected(change: impl FnOnce(&mut Gateway) -> anyhow::Result<()>) -> Lab {
    let lab = Lab::new(change).unwrap();
    lab.local.register("phone", "staff").unwrap();
    lab.local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    lab
}

#[test]
fn the_daemon_is_killed_and_started_under_traffic() {
    require!(Root, Bpf, Tun);
    let Lab {
        tun,
        local,
        mut gateway,
        site,
        ..
    } = connected(|_| Ok(()));
    let session = local.list_sessions().unwrap().remove(0);
    let device = Arc::new(tun);

    let (good, bad) = (arrivals(&site, site::RESOLVER), arrivals(&site, site::MAIL));
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let traffic = thread::spawn({
        let (device, stop, sent) = (Arc::clone(&device), Arc::clone(&stop), Arc::clone(&sent));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let n = sent.fetch_add(1, Ordering::Relaxed);
                device.send(&allowed(n)).unwrap();
                device.send(&denied(n)).unwrap();
                thread::sleep(Duration::from_micros(200));
            }
        }
    });
    for _ in 0..3 {
        thread::sleep(Duration::from_millis(200));
        gateway.kill().unwrap();
        thread::sleep(Duration::from_millis(200));
        gateway.start().unwrap();
        gateway.attached("tun0").unwrap();
    }
    gateway.stop().unwrap();
    thread::sleep(Duration::from_millis(200));
    gateway.start().unwrap();
    stop.store(true, Ordering::Relaxed);
    traffic.join().unwrap();

    let sent = sent.load(Ordering::Relaxed);
    assert!(sent > 1000, "there was traffic: {sent}");
    assert_eq!(bad.seen().len(), 0, "of {sent} denied packets none passes");
    assert_eq!(good.seen().len() as u64, sent, "of {sent} allowed packets none is lost");
    let sessions = gateway.local().unwrap().list_sessions().unwrap();
    assert_eq!(
        sessions.iter().map(|s| s.session_id).collect::<Vec<_>>(),
        [session.session_id],
        "the session outlives the daemon"
    );
}

#[test]
fn a_release_outlives_the_daemon() {
    require!(Root, Bpf, Tun);
    let mut lab = connected(|_| Ok(()));
    assert_eq!(lab.gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
    let mail = arrivals(&lab.site, site::MAIL);
    lab.gateway.kill().unwrap();
    (0..100).for_each(|n| lab.tun.send(&denied(n)).unwrap());
    assert_eq!(mail.seen().len(), 100, "daemon dead");
    lab.restart().unwrap();
    (0..100).for_each(|n| lab.tun.send(&denied(n)).unwrap());
    assert_eq!(mail.seen().len(), 200, "daemon back");
    assert_eq!(lab.local.revoked("phone").unwrap().enforcement(), Enforcement::Enforced);
    lab.gateway.kill().unwrap();
    (0..100).for_each(|n| lab.tun.send(&denied(n)).unwrap());
    assert_eq!(mail.seen().len(), 200, "revoked, daemon dead");
}

#[test]
fn detached_by_the_command_line_the_floor_stays_closed_until_told() {
    require!(Root, Bpf, Tun);
    let Lab {
        tun: device,
        mut gateway,
        site,
        ..
    } = Lab::new(|_| Ok(())).unwrap();
    let detach = format!("detach --config {}", gateway.config().display());
    assert!(gateway.cli(&detach).is_err(), "not under a running daemon");
    gateway.stop().unwrap();
    let (good, mail) = (arrivals(&site, site::RESOLVER), arrivals(&site, site::MAIL));
    let flood = || (0..50).for_each(|n| [allowed(n), denied(n)].iter().for_each(|p| device.send(p).unwrap()));
    flood();
    assert_eq!((good.seen().len(), mail.seen().len()), (50, 0), "stopped");
    gateway.cli(&detach).unwrap();
    flood();
    assert_eq!((good.seen().len(), mail.seen().len()), (50, 0), "detached: nothing passes");
    gateway.cli(&format!("{detach} --open")).unwrap();
    flood();
    assert_eq!((good.seen().len(), mail.seen().len()), (100, 50), "open: everything does");
}

#[test]
fn a_daemon_that_cannot_start_leaves_the_floor_closed() {
    require!(Root, Bpf, Tun);
    let Lab {
        tun: device,
        mut gateway,
        site,
        ..
    } = Lab::new(|_| Ok(())).unwrap();
    gateway.stop().unwrap();
    let (good, mail) = (arrivals(&site, site::RESOLVER), arrivals(&site, site::MAIL));
    let flood = || (0..50).for_each(|n| [allowed(n), denied(n)].iter().for_each(|p| device.send(p).unwrap()));
    // As after a boot: neither programs nor floor.
    gateway
        .cli(&format!("detach --open --config {}", gateway.config().display()))
        .unwrap();
    flood();
    assert_eq!((good.seen().len(), mail.seen().len()), (50, 50), "nobody judges");
    let state = gateway.folder().join("state");
    for beside in ["lazaret.db-wal", "lazaret.db-shm"] {
        let _perhaps = fs::remove_file(state.join(beside));
    }
    fs::write(state.join("lazaret.db"), [b'?'; 8192]).unwrap();
    let refused = gateway
        .cli(&format!("run --config {}", gateway.config().display()))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("is not a database of lazaret"), "{refused}");
    flood();
    assert_eq!((good.seen().len(), mail.seen().len()), (50, 50), "nothing passes");
}

#[test]
fn in_observe_mode_everything_is_judged_and_nothing_denied() {
    require!(Root, Bpf, Tun);
    let Lab {
        tun: device,
        local,
        gateway,
        site,
        ..
    } = Lab::new(|g| g.configure("mode = \"enforce\"", "mode = \"observe\"")).unwrap();
    let mail = arrivals(&site, site::MAIL);
    let before = local.counted("no_rule").unwrap();
    (0..50).for_each(|n| device.send(&denied(n)).unwrap());
    assert_eq!(mail.seen().len(), 50);
    assert_eq!(local.counted("no_rule").unwrap() - before, 50, "judged and counted");
    assert!(
        local.denials().unwrap().iter().all(|d| d.observed),
        "and shown as let through"
    );
    let status = local.status().unwrap();
    assert_eq!((status.mode.as_str(), status.floor.as_str()), ("observe", "open"));
    assert!(status.warnings.iter().any(|w| w.contains("observe")), "{:?}", status.warnings);
    assert!(gateway.cli("status").is_err(), "and the exit code says so");
}

#[test]
fn the_tun_is_created_again_with_the_daemon_alive_and_dead() {
    require!(Root, Bpf, Tun);
    let (mut gateway, _sinks) = Lab::prepare().unwrap();
    let site = gateway.site.clone();
    let flood = |device: &Tun| {
        for n in 0..300 {
            device.send(&denied(n)).unwrap();
            if n % 50 == 0 {
                // Also over the time that it takes to attach.
                thread::sleep(Duration::from_millis(1));
            }
        }
    };
    // Without Lazaret these packets do arrive: the figures below mean something.
    let control = arrivals(&site, site::MAIL);
    let device = Lab::tun(&site).unwrap();
    flood(&device);
    assert_eq!(control.seen().len(), 300);
    drop((device, control));

    gateway.start().unwrap();
    gateway.attached("core0").unwrap();
    let status = gateway.local().unwrap().status().unwrap();
    let waiting = status.interfaces.iter().find(|i| i.name == "tun0").unwrap();
    assert_eq!((waiting.ifindex, waiting.hooks.len()), (0, 0), "{waiting:?}");
    assert!(
        status.warnings.iter().any(|w| w.contains("tun0") && w.contains("waited for")),
        "{:?}",
        status.warnings
    );
    let passed = arrivals(&site, site::MAIL);
    for round in 0..10 {
        let device = Lab::tun(&site).unwrap();
        flood(&device);
        if round % 3 == 0 {
            gateway.attached("tun0").unwrap();
            flood(&device);
        }
    }
    assert_eq!(passed.seen().len(), 0, "daemon alive");

    gateway.kill().unwrap();
    for _ in 0..10 {
        flood(&Lab::tun(&site).unwrap());
    }
    assert_eq!(passed.seen().len(), 0, "daemon dead");

    let device = Lab::tun(&site).unwrap();
    gateway.start().unwrap();
    gateway.attached("tun0").unwrap();
    let good = arrivals(&site, site::RESOLVER);
    flood(&device);
    (0..100).for_each(|n| device.send(&allowed(n)).unwrap());
    assert_eq!((passed.seen().len(), good.seen().len()), (0, 100), "daemon back");
}

#[test]
fn a_second_daemon_on_the_same_pins_is_refused() {
    require!(Root, Bpf);
    let (mut gateway, _sinks) = Lab::prepare().unwrap();
    gateway.start().unwrap();
    let other = gateway.folder().join("other.toml");
    let folder = gateway.folder().display().to_string();
    let text = fs::read_to_string(gateway.config()).unwrap();
    let text = text.replace(&format!("{folder}/state"), &format!("{folder}/state2"));
    let text = text.replace("lazaret.sock", "other.sock").replace(":9443", ":9444");
    fs::write(&other, text).unwrap();
    let refused = gateway
        .cli(&format!("run --config {}", other.display()))
        .unwrap_err()
        .to_string();
    assert!(refused.contains("another lazaret owns"), "{refused}");
    assert_eq!(
        gateway.local().unwrap().status().unwrap().floor,
        "closed",
        "the first is not harmed"
    );
}

#[test]
fn a_full_disk_refuses_a_release_and_never_a_restriction() {
    require!(Root, Bpf, Tun);
    let Lab {
        tun: device,
        local,
        mut gateway,
        site,
        ..
    } = connected(|g| g.small_state(2048).map(drop));
    let state = gateway.folder().join("state");
    local.register("tablet", "staff").unwrap();

    // A release is refused, and changes nothing. (A write may still fit into what the database has already; then the next does not.)
    let ballast = state.join("ballast");
    fill(&ballast);
    let refused = (0..50).find_map(|_| match gateway.applied("phone") {
        Ok(_) => local.revoked("phone").map(|_| None).unwrap_or(None),
        Err(status) => Some(status),
    });
    let refused = refused.expect("the disk is full");
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_eq!(local.address("10.66.0.5").unwrap().current_pool, "quarantine");
    fs::remove_file(&ballast).unwrap();
    until(LIMIT, "what was restricted is durable", || {
        Ok(local.status()?.not_durable == 0)
    })
    .unwrap();

    // A restriction is in force at once, and durable later.
    let mail = arrivals(&site, site::MAIL);
    let released = gateway.applied("phone").unwrap();
    assert_eq!(released.enforcement(), Enforcement::Enforced, "{released:#?}");
    (0..50).for_each(|n| device.send(&denied(n)).unwrap());
    assert_eq!(mail.seen().len(), 50);
    fill(&ballast);
    let mut revoked = local.revoked("phone").unwrap();
    for _ in 0..50 {
        if revoked.enforcement() == Enforcement::EnforcedNotDurable {
            break;
        }
        if gateway.applied("phone").is_ok() {
            revoked = local.revoked("phone").unwrap();
        } else {
            // Full now, and restricted: nothing is left to write. Room for exactly one release.
            fs::remove_file(&ballast).unwrap();
            gateway.applied("phone").unwrap();
            fill(&ballast);
            revoked = local.revoked("phone").unwrap();
        }
    }
    assert_eq!(revoked.enforcement(), Enforcement::EnforcedNotDurable);
    assert!(local.status().unwrap().not_durable > 0);
    let before = mail.seen().len();
    (0..50).for_each(|n| device.send(&denied(n)).unwrap());
    assert_eq!(mail.seen().len(), before, "in force though not durable");
    fs::remove_file(&ballast).unwrap();
    until(LIMIT, "the restriction is durable", || Ok(local.status()?.not_durable == 0)).unwrap();
    gateway.kill().unwrap();
    gateway.start().unwrap();
    let device = gateway.local().unwrap().device("phone").unwrap();
    assert_eq!(device.state(), DeviceState::Quarantined);
}

/// Fills the file system of `file` to the last byte.
fn fill(file: &Path) {
    let mut file = fs::File::options().create(true).append(true).open(file).unwrap();
    for block in [65536, 4096, 512, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
}
