//! What was answered is held to the store's files, to what the kernel lets through, and to what the daemon says after a restart.

use std::{collections::HashSet, fs, net::IpAddr, path::Path};

use gateway_user::{
    audit::Head,
    model::DeviceState as Stored,
    store::{Reader, Snapshot, SqliteStore, Store as _},
};
use lazaret_proto::v1::DeviceState;
use lazaret_tests::{
    lab::Lab,
    lossy::copies,
    packets::{self, Watcher},
    site,
};

use super::load::Device;

/// Addresses from which a packet to the mail server arrives, which quarantine does not allow.
pub(super) fn reaching(lab: &Lab, clients: &[Vec<Device>]) -> HashSet<IpAddr> {
    let watcher = Watcher::new(&lab.site.core, |p| !p.outgoing && [site::MAIL, site::MAIL6].contains(&p.to)).unwrap();
    for address in clients.iter().flatten().flat_map(|d| d.addresses) {
        let to = if address.is_ipv4() { site::MAIL } else { site::MAIL6 };
        lab.tun.send(&packets::udp((address, 4001), (to, 53), b"released?")).unwrap();
    }
    watcher.seen().iter().map(|p| p.from).collect()
}

/// What a copy of the files of a dead daemon says, with its audit held to what was seen of it before.
pub(super) fn as_stored(state: &Path, head: &mut Head, context: &str) -> Snapshot {
    let copy = copies().unwrap();
    for name in ["lazaret.db", "lazaret.db-wal"] {
        if state.join(name).exists() {
            let bytes = fs::copy(state.join(name), copy.path().join(name));
            bytes.unwrap_or_else(|e| panic!("{context}: {name}: {e}: {:?}", fs::metadata(state.join(name))));
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
pub(super) fn dead(device: &Device, through: &HashSet<IpAddr>, stored: &Snapshot, context: &str) {
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
    durable(device, stored, context);
    if !device.unsure {
        assert!(device.may_reach(four) && device.may_reach(six), "{what}");
    }
}

/// Every answer is in the store.
pub(super) fn durable(device: &Device, stored: &Snapshot, context: &str) {
    let found = stored.devices.iter().find(|d| d.id.as_str() == device.id);
    let session = stored
        .sessions
        .iter()
        .find(|s| s.device.as_ref().is_some_and(|d| d.as_str() == device.id));
    if device.doubt.is_none() {
        let what = format!("{context}: {device:?}, stored {found:?} {session:?}");
        assert_eq!(found.is_some_and(|d| d.state == Stored::Released), device.released, "{what}");
        assert_eq!(session.map(|s| s.id.0), device.session, "{what}");
        assert_eq!(found.map_or(String::new(), |d| d.owner.to_string()), owner(device), "{what}");
    }
}

/// After the restart: what was in doubt is one or the other, and from here on known.
pub(super) fn settle(device: &mut Device, lab: &Lab, context: &str) {
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
