//! Lists that change many things at once, cut off by the death of the process and told once more.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use super::kit::*;
use crate::{
    controller::{SessionReport, SignalContext},
    model::SessionId,
    store::{SqliteStore, Store as _},
};

/// More than two slices.
const MANY: u32 = 700;

fn context(g: &Gateway, request: &str) -> SignalContext {
    SignalContext {
        request: request.parse().unwrap(),
        digest: Some([7; 32]),
        ..g.seen(0)
    }
}

/// What a loss of the process leaves of the database; nobody may write meanwhile.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("lazaret.db{suffix}");
        let _ = fs::remove_file(to.join(&name));
        if from.join(&name).exists() {
            fs::copy(from.join(&name), to.join(&name)).unwrap();
        }
    }
}

fn stored(state: &Path) -> (Vec<SessionId>, Vec<String>) {
    let loaded = SqliteStore::open(state).unwrap().load().unwrap();
    let devices = |s: &crate::model::Session| s.device.as_ref().map_or_else(String::new, ToString::to_string);
    (
        loaded.sessions.iter().map(|s| s.id).collect(),
        loaded.sessions.iter().map(devices).collect(),
    )
}

/// The list comes again under its request id: it is worked off as if for the first time, and what half of it had done is not done twice.
#[tokio::test]
async fn a_list_that_was_half_worked_off_when_the_process_died_is_done_by_asking_again() {
    let mut config = config();
    config.pools[0].prefixes = vec!["10.66.0.0/24".parse().unwrap(), "10.99.0.0/16".parse().unwrap()];
    config.tables.addresses = 1 << 12;
    config.devices.unknown = crate::config::UnknownDevice::Quarantine;
    let mut g = Gateway::with(config).await;
    for device in ["old", "kept"] {
        g.register(device, "office").await;
    }
    g.open("old", &["10.66.0.5"]).await.unwrap();
    let kept = g.open("kept", &["10.66.0.6"]).await.unwrap().session.session.id;
    g.applied("old").await.unwrap();
    assert_eq!(g.judged("10.66.0.5"), OFFICE);
    let list = || -> Vec<SessionReport> {
        let guests = (0..MANY).map(|n| report(&format!("guest-{n}"), &[&format!("10.99.{}.{}", n >> 8, n & 255)]));
        [report("kept", &["10.66.0.6"])].into_iter().chain(guests).collect()
    };
    let source = || "vpn-1".parse().unwrap();
    let (controller, asked, reports) = (g.controller().clone(), context(&g, "list-1"), list());
    let under_way = tokio::spawn(async move {
        controller
            .synchronise_sessions(asked, "vpn-1".parse().unwrap(), reports)
            .await
    });
    let crashed = g.directory.path().join("crashed");
    // Between two of its slices, with some of it durable and some not there yet.
    loop {
        let go = g.hold().await;
        copy(&g.state_directory(), &crashed);
        go.send(()).unwrap();
        let there = stored(&crashed).0.len();
        assert!(there <= MANY as usize, "it was done before it could be cut off");
        if there > 2 {
            break;
        }
    }
    under_way.await.unwrap().unwrap();
    g.stop().await;
    for name in ["lazaret.db", "lazaret.db-wal", "lazaret.db-shm"] {
        let _ = fs::remove_file(g.state_directory().join(name));
    }
    copy(&crashed, &g.state_directory());
    g.start().await.unwrap();

    // The process that died has ended what the list has not; nothing of it comes back.
    assert_ne!(g.judged("10.66.0.5"), OFFICE);
    let half = g.controller().sessions(None, 2_000).await.unwrap().len();
    assert!((2..=MANY as usize).contains(&half), "{half}");
    let ask = || g.controller().synchronise_sessions(context(&g, "list-1"), source(), list());
    let done = ask().await.unwrap().first().unwrap();
    assert_eq!((done.opened as usize, done.kept as usize), (MANY as usize + 1 - half, half));
    assert_eq!((done.ended, done.refused.len()), (0, 0));
    // Once more it is a duplicate.
    let again = ask().await.unwrap().first().unwrap();
    assert_eq!((again.opened, again.kept as usize, again.ended), (0, MANY as usize + 1, 0));
    g.stop().await;
    let (ids, devices) = stored(&g.state_directory());
    assert_eq!(ids.len(), MANY as usize + 1);
    assert!(ids.contains(&kept) && !devices.contains(&"old".to_owned()));
}
