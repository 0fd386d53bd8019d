//! The daemon is killed at random moments under a mixed load of several clients. After each death, before anything runs again: no address
//! is released in the kernel that the store does not release, and every answer holds in both. After the restart the same, by the daemon's
//! own account too.
//!
//! `LAZARET_CRASH_ROUNDS` (default 8) and `LAZARET_CRASH_SEED` (default 1).

use std::{
    collections::HashSet,
    fs,
    net::IpAddr,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use gateway_user::{
    audit::Head,
    model::DeviceState as Stored,
    store::{Reader, Snapshot, SqliteStore, Store as _},
};
use lazaret_proto::v1::DeviceState;
use lazaret_tests::{
    differential::random::Random,
    lab::Lab,
    packets::{self, Watcher},
    require, site,
};

use super::load::{Device, Done, work};

const CLIENTS: usize = 4;
const DEVICES: u8 = 8;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

#[test]
fn nothing_answered_is_lost_and_nothing_is_released_that_the_store_does_not_release() {
    require!(Root, Bpf, Tun);
    let (rounds, seed) = (number("LAZARET_CRASH_ROUNDS", 8), number("LAZARET_CRASH_SEED", 1));
    let mut random = Random::new(seed);
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    let mut clients: Vec<Vec<Device>> = (0..CLIENTS as u8)
        .map(|c| (0..DEVICES).map(|d| Device::new(c * DEVICES + d)).collect())
        .collect();
    let (done, mut head, mut in_doubt) = (Done::default(), Head::NONE, 0);
    for round in 0..rounds {
        let context = format!("seed {seed}, round {round}");
        let life = Duration::from_millis(20 + random.below(600) as u64);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for (n, devices) in clients.iter_mut().enumerate() {
                let client = if n % 2 == 0 {
                    lab.gateway.local().unwrap()
                } else {
                    lab.gateway.operator().unwrap()
                };
                let mut random = Random::new(random.word());
                let (stop, done) = (&stop, &done);
                scope.spawn(move || work(&client, devices, &mut random, stop, done));
            }
            thread::sleep(life);
            lab.gateway.kill().unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        in_doubt += clients.iter().flatten().filter(|d| d.doubt.is_some()).count();

        // Dead: the kernel by what it lets through, the store by its files.
        let through = reaching(&lab, &clients);
        let stored = as_stored(&lab.gateway.folder().join("state"), &mut head, &context);
        for device in clients.iter().flatten() {
            dead(device, &through, &stored, &context);
        }

        lab.restart().unwrap();
        for device in clients.iter_mut().flatten() {
            settle(device, &lab, &context);
        }
        let through = reaching(&lab, &clients);
        for device in clients.iter().flatten() {
            let both = device.addresses.map(|a| through.contains(&a));
            assert_eq!(both, [device.reaches(); 2], "{context}: after the restart: {device:?}");
        }
        if round % 16 == 15 {
            println!("{} deaths survived", round + 1);
            let check = format!("store check --config {}", lab.gateway.config().display());
            lab.gateway.cli(&check).unwrap();
        }
    }
    let (answered, refused) = (done.answered.into_inner(), done.refused.into_inner());
    println!(
        "{rounds} deaths, seed {seed}: {answered} changes answered, {refused} refused, {in_doubt} under way at a death; audit head {head}"
    );
    assert!(answered > rounds * 2, "there was load: {answered}");
    assert!(
        refused * 5 < answered,
        "the load is changes, not refusals: {refused} of {answered}"
    );
    assert!(rounds < 8 || in_doubt > 0, "deaths come in the middle of changes");
}

/// Addresses from which a packet to the mail server arrives, which quarantine does not allow.
fn reaching(lab: &Lab, clients: &[Vec<Device>]) -> HashSet<IpAddr> {
    let watcher = Watcher::new(&lab.site.core, |p| !p.outgoing && [site::MAIL, site::MAIL6].contains(&p.to)).unwrap();
    for address in clients.iter().flatten().flat_map(|d| d.addresses) {
        let to = if address.is_ipv4() { site::MAIL } else { site::MAIL6 };
        lab.tun.send(&packets::udp((address, 4001), (to, 53), b"released?")).unwrap();
    }
    watcher.seen().iter().map(|p| p.from).collect()
}

/// What a copy of the files of a dead daemon says, with its audit held to what was seen of it before.
fn as_stored(state: &Path, head: &mut Head, context: &str) -> Snapshot {
    let copy = tempfile::tempdir().unwrap();
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o700)).unwrap();
    for name in ["lazaret.db", "lazaret.db-wal"] {
        if state.join(name).exists() {
            fs::copy(state.join(name), copy.path().join(name)).unwrap();
        }
    }
    let snapshot = SqliteStore::open(copy.path()).and_then(|mut s| s.load());
    let health = Reader::of_directory(copy.path()).and_then(|r| r.check()).unwrap();
    assert!(health.problems.is_empty(), "{context}: {:?}", health.problems);
    let verified = Reader::of_directory(copy.path()).and_then(|r| r.verify(&[*head])).unwrap();
    assert!(verified.findings.is_empty(), "{context}: {:?}", verified.findings);
    *head = verified.head;
    snapshot.unwrap()
}

/// With the daemon dead.
fn dead(device: &Device, through: &HashSet<IpAddr>, stored: &Snapshot, context: &str) {
    let found = stored.devices.iter().find(|d| d.id.as_str() == device.id);
    let session = stored
        .sessions
        .iter()
        .find(|s| s.device.as_ref().is_some_and(|d| d.as_str() == device.id));
    let released = found.is_some_and(|d| d.state == Stored::Released);
    let [four, six] = device.addresses.map(|a| through.contains(&a));
    let what = format!("{context}: {device:?}, stored {found:?} {session:?}, through {four} {six}");
    // The invariant: the kernel releases nothing that the store does not.
    assert!(
        !(four || six) || (released && session.is_some()),
        "released in the kernel alone: {what}"
    );
    if device.doubt.is_none() {
        assert_eq!(released, device.released, "{what}");
        assert_eq!(session.map(|s| s.id.0), device.session, "{what}");
        assert_eq!(found.map_or(String::new(), |d| d.owner.to_string()), owner(device), "{what}");
    }
    if !device.unsure {
        assert!(device.may_reach(four) && device.may_reach(six), "{what}");
    }
}

/// After the restart: what was in doubt is one or the other, and from here on known.
fn settle(device: &mut Device, lab: &Lab, context: &str) {
    let before = device.clone();
    let told = lab.local.device(&device.id).ok();
    let released = told.as_ref().is_some_and(|d| d.state() == DeviceState::Released);
    let number = told
        .as_ref()
        .and_then(|d| d.owner.strip_prefix("owner ")?.parse().ok())
        .unwrap_or(0);
    let session = lab
        .local
        .list_sessions()
        .unwrap()
        .into_iter()
        .find(|s| s.device_id == device.id)
        .map(|s| s.session_id);
    if before.doubt.is_none() {
        assert_eq!(
            (before.released, before.session, before.owner),
            (released, session, number),
            "{context}: {told:?} {before:?}"
        );
    }
    (device.released, device.session, device.owner) = (released, session, number);
    (device.doubt, device.unsure) = (None, false);
    let reaches = device.reaches();
    assert!(before.may_reach(reaches), "{context}: {before:?} became {device:?}");
    for address in device.addresses {
        let pool = lab
            .local
            .address(&address.to_string())
            .map(|a| a.current_pool)
            .unwrap_or_default();
        assert_eq!(pool == "staff", reaches, "{context}: {address} is in {pool:?}: {device:?}");
    }
}

fn owner(device: &Device) -> String {
    if device.owner == 0 {
        String::new()
    } else {
        format!("owner {}", device.owner)
    }
}
