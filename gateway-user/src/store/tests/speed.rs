//! What the store's work depends on; and how fast it is, for people: `cargo test --release -p gateway-user --lib store::tests::speed -- --ignored --nocapture`, with
//! LAZARET_STORE_DEVICES (default 100,000) and TMPDIR on the disk in question.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use super::*;

fn count() -> u64 {
    std::env::var("LAZARET_STORE_DEVICES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(100_000)
}

fn of(number: u64) -> Device {
    Device {
        owner: format!("Person {number}").into(),
        aliases: Rare::new(Aliases {
            certificates: [Fingerprint::new(crate::audit::sha256(&number.to_be_bytes()))].into(),
            ..Aliases::default()
        }),
        ..device(&format!("phone-{number:07}"))
    }
}

/// What a signal leaves: the device, an audit entry, a request, and half the time a new GatewayURI.
fn signal(changes: &mut ChangeSet, number: u64, serial: u64) {
    let device = of(number);
    changes.audit.push(Entry {
        number: serial + 1,
        at: AT,
        by: "CN=mdm.example.org,serial=1234567890".to_owned(),
        action: "ReportPolicyApplied".to_owned(),
        device: Some(device.id.clone()),
        subject: String::new(),
        before: "quarantined".to_owned(),
        after: "released".to_owned(),
        reason: "policy_applied".to_owned(),
        request: format!("0c2f1c1e-7d5f-4d9d-9a55-{serial:012}"),
        result: "done".to_owned(),
    });
    changes.requests.push(Request {
        client: "CN=mdm.example.org,serial=1234567890".to_owned(),
        id: format!("0c2f1c1e-7d5f-4d9d-9a55-{serial:012}").parse().unwrap(),
        digest: [7; 32],
        at: AT,
        salt: None,
        answer: Some(vec![9; 60]),
    });
    if serial.is_multiple_of(2) {
        changes.uris.push(UriChange {
            revision: Revision(0),
            device: device.id.clone(),
            old: "quarantine.vpn.example.org".to_owned(),
            new: "office.vpn.example.org".to_owned(),
            at: AT,
            reason: "policy_applied".to_owned(),
        });
    }
    changes.devices.insert(device.id.clone(), device);
}

/// Instructions of SQLite's machine.
fn steps<T>(store: &mut SqliteStore, work: impl FnOnce(&mut SqliteStore) -> T) -> u64 {
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let each = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        false
    };
    store.connection_mut().progress_handler(1, Some(each)).unwrap();
    work(store);
    store.connection_mut().progress_handler(0, None::<fn() -> bool>).unwrap();
    count.load(Ordering::Relaxed)
}

#[test]
fn a_signal_costs_the_same_however_much_is_kept() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let (mut revision, mut serial) = (Revision(0), 0);
    let mut signals = |store: &mut SqliteStore, count: u64| {
        let mut changes = ChangeSet::default();
        for number in serial..serial + count {
            // One device, so that only what is kept of signals grows.
            signal(&mut changes, 0, number);
        }
        serial += count;
        revision = store.commit(&changes, revision, AT).unwrap().revision;
    };
    let mut measure = |more| {
        signals(&mut store, more);
        // The second has a change of the GatewayURI.
        let commit = steps(&mut store, |s| signals(s, 2));
        let prune = steps(&mut store, |s| s.prune(WallTime(0), u64::MAX).unwrap());
        // What a watcher that has all of it asks, and the second page of the device's first entries.
        let uris = steps(&mut store, |s| {
            assert!(s.uri_changes(Revision(u32::MAX.into()), 1000).unwrap().is_some())
        });
        let page = AuditQuery::Before {
            number: Some(7),
            device: Some(of(0).id),
            limit: 3,
        };
        let page = steps(&mut store, |s| assert_eq!(s.audit(&page).unwrap().len(), 3));
        [commit, prune, uris, page]
    };
    let (first, later) = (measure(10), measure(10_000));
    assert!(first.iter().all(|n| *n > 5), "{first:?}: nothing was counted");
    let same = first.iter().zip(later).all(|(first, later)| later < 2 * first);
    assert!(same, "commit, prune, changes of URIs, a page: {first:?}, then {later:?}");
}

/// Each page is a write, and time of the disk, for whoever waits for one signal alone.
#[test]
fn a_signal_writes_to_few_pages() {
    const SIGNALS: u64 = 256;
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    store.keep(2 * SIGNALS);
    let mut revision = Revision(0);
    let mut signals = |store: &mut SqliteStore, from: u64| {
        for serial in from..from + SIGNALS {
            let mut changes = ChangeSet::default();
            // Each has a change of the GatewayURI.
            signal(&mut changes, 0, 2 * serial);
            changes.audit[0].number = serial + 1;
            revision = store.commit(&changes, revision, AT).unwrap().revision;
        }
    };
    // Until the oldest changes of GatewayURIs go.
    (0..4).for_each(|n| signals(&mut store, n * SIGNALS));
    let log = || fs::metadata(path.join("lazaret.db-wal")).unwrap().len();
    let before = log();
    signals(&mut store, 4 * SIGNALS);
    let pages = (log() - before) / (4096 + 24);
    // The device, the request and its key, the entry of the audit, the change of the GatewayURI, the revision; and pages that are full.
    assert!(
        (6 * SIGNALS..8 * SIGNALS).contains(&pages),
        "{pages} pages of the log for {SIGNALS} signals"
    );
}

#[test]
#[ignore = "a measurement, run by hand"]
fn speed() {
    let (_temp, path) = directory();
    let mut store = SqliteStore::open(&path).unwrap();
    let total = count();
    let (mut revision, mut serial) = (Revision(0), 0);
    let since = Instant::now();
    for from in (0..total).step_by(10_000) {
        let mut changes = ChangeSet::default();
        for n in from..(from + 10_000).min(total) {
            changes.devices.insert(of(n).id, of(n));
            let a = std::net::Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap());
            let six = std::net::Ipv6Addr::from(0xfd00 << 112 | u128::from(n));
            let s = Session {
                addresses: [a.into(), six.into()].into_iter().collect(),
                ..session(n + 1, Some(of(n).id.as_str()), &[])
            };
            changes.opened.insert(s.id, s);
        }
        revision = store.commit(&changes, revision, AT).unwrap().revision;
    }
    println!(
        "register and open {total}: {:.0} devices/s",
        total as f64 / since.elapsed().as_secs_f64()
    );
    for (group, random) in [(1, true), (64, true), (1000, false), (1000, true), (10_000, true)] {
        let commits = if group == 1 { 500 } else { 60 };
        let mut next = 12_345_u64;
        let mut took = Vec::new();
        for round in 0..commits {
            let mut changes = ChangeSet::default();
            for n in 0..group {
                next = next
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let number = if random { next >> 33 } else { round * group + n } % total;
                signal(&mut changes, number, serial);
                serial += 1;
            }
            let since = Instant::now();
            revision = store.commit(&changes, revision, AT).unwrap().revision;
            took.push(since.elapsed().as_secs_f64());
        }
        let sum: f64 = took.iter().sum();
        took.sort_by(f64::total_cmp);
        println!(
            "{group} signals a commit, {}: {:.0}/s, commit p50 {:.2} ms, p99 {:.2} ms, most {:.2} ms",
            if random { "at random" } else { "in order" },
            (commits * group) as f64 / sum,
            took[took.len() / 2] * 1e3,
            took[took.len() * 99 / 100] * 1e3,
            took[took.len() - 1] * 1e3,
        );
    }
    let since = Instant::now();
    let asked = 10_000.min(serial);
    for n in 0..asked {
        let id = format!("0c2f1c1e-7d5f-4d9d-9a55-{:012}", n * serial / asked).parse().unwrap();
        assert!(store.request("CN=mdm.example.org,serial=1234567890", &id).unwrap().is_some());
    }
    println!("request by id: {:.2} us", since.elapsed().as_secs_f64() * 1e6 / asked as f64);
    drop(store);
    println!("database: {} MiB", fs::metadata(path.join("lazaret.db")).unwrap().len() >> 20);
    let since = Instant::now();
    let mut store = SqliteStore::open(&path).unwrap();
    let opened = since.elapsed().as_secs_f64();
    let mut devices = 0_u64;
    let snapshot = store
        .load_each(&mut |d| devices += u64::from(!d.id.as_str().is_empty()))
        .unwrap();
    assert_eq!((devices, snapshot.sessions.len() as u64), (total, total));
    println!("open {opened:.2} s, open and load {:.2} s", since.elapsed().as_secs_f64());
}
