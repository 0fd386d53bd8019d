//! What a device costs in memory, registered and connected, by the kernel's account of a process that does nothing else.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::Command,
    sync::Arc,
};

use gateway_user::{
    clock::{Clock as _, SystemClock},
    config::Config,
    controller::{Controller, Loaded, Options, Start},
    heap,
    kernel::fake::FakeKernel,
    model::{Device, DeviceState, Enrolment, Lease, Rare, Revision, Session, SessionId, StateReason, Trust, WallTime},
    store::{ChangeSet, SqliteStore, Store as _},
};
use lazaret_tests::{
    scratch::Scratch,
    site::{self, Site},
};

/// So that what the process and the store take anyhow is not counted.
const FEW: u32 = 1 << 17;
const DEVICES: u32 = 1 << 18;

/// What is in the database.
#[derive(Clone, Copy)]
enum Kind {
    /// Devices with an owner, without aliases.
    Registered,
    /// The same with a live session each, of an IPv4 and an IPv6 address, and a deadline in quarantine.
    Connected,
}

impl Kind {
    /// Most bytes a device.
    const fn most(self) -> u64 {
        match self {
            Self::Registered => 300,
            Self::Connected => 600,
        }
    }
}

fn device(n: u32, enrolment: &Enrolment) -> Device {
    Device {
        owner: format!("user{n:07}@example.org").into(),
        state: DeviceState::Quarantined,
        state_reason: StateReason::Connected,
        gateway_uri: "enrol.vpn.example.test".into(),
        enrolment: Rare::new(enrolment.clone()),
        ..Device::new(
            format!("device-{n:07}").parse().unwrap(),
            "staff".parse().unwrap(),
            WallTime(0),
        )
    }
}

fn session(n: u32) -> Session {
    let v4 = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + n);
    let v6 = Ipv6Addr::from(0xfd00_0066 << 96 | u128::from(n));
    Session {
        id: SessionId(u64::from(n) + 1),
        device: Some(format!("device-{n:07}").parse().unwrap()),
        addresses: [IpAddr::from(v4), IpAddr::from(v6)].into_iter().collect(),
        interface: "tun0".parse().unwrap(),
        source: "vpn-1".parse().unwrap(),
        trust: Trust::Name,
        opened_at: WallTime(0),
    }
}

fn fill(directory: &Path, kind: Kind, devices: u32) {
    let mut store = SqliteStore::open(directory).unwrap();
    let now = SystemClock::new().unwrap().now();
    let (enrolment, sessions) = match kind {
        Kind::Registered => (Enrolment::default(), 0),
        Kind::Connected => {
            let deadline = Lease {
                given: now,
                length_ms: 48 * 3_600_000,
            };
            let enrolment = Enrolment {
                arrived_at: Some(now.wall),
                deadline: Some(deadline),
                ..Enrolment::default()
            };
            (enrolment, devices)
        }
    };
    let changes = ChangeSet {
        devices: (0..devices)
            .map(|n| device(n, &enrolment))
            .map(|d| (d.id.clone(), d))
            .collect(),
        opened: (0..sessions).map(session).map(|s| (s.id, s)).collect(),
        ..ChangeSet::default()
    };
    store.commit(&changes, Revision(0), WallTime(0)).unwrap();
}

/// Anonymous pages of this process that are resident, bytes.
fn resident() -> u64 {
    heap::give_back();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What a controller takes with so many devices in its store.
fn started(directory: &Path) -> u64 {
    heap::bound();
    let text = Site::config("tun0", directory, directory)
        .replace(&format!("reserved = [\"{}\", \"{}\"]", site::TUNNEL, site::TUNNEL6), "")
        .replace("10.66.0.0/24", "10.64.0.0/12")
        .replace("10.67.0.0/24", "10.80.0.0/16")
        .replace("addresses = 4096", "addresses = 1048576");
    let config = Arc::new(Config::parse(Path::new("test"), &text).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let kernel = FakeKernel::new(Arc::clone(&config));
        let start = Start {
            loaded: Loaded::read(Box::new(SqliteStore::open(directory).unwrap()), &config).unwrap(),
            config,
            kernel: Box::new(kernel.clone()),
            clock: Box::new(SystemClock::new().unwrap()),
            links: Vec::new(),
            options: Options::default(),
        };
        let (controller, _thread) = Controller::start(start).await.unwrap();
        controller.status().await.unwrap();
        // What the fake holds is not the controller's; it is not asked meanwhile.
        let mut kernel = kernel.state();
        kernel.assigned.clear();
        kernel.calls = Vec::new();
        resident()
    })
}

/// What the process run again is to do: "fill" or "measure", a number of devices, and a directory.
const TASK: &str = "LAZARET_MEMORY_TASK";

/// Each step in a process of its own, which runs the same test: what the allocator keeps from one is not there in the next.
fn run_again(test: &str, task: &str, devices: u32, directory: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(TASK, format!("{task} {devices} {}", directory.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether the process was told to do a part of a test.
fn did_a_part(kind: Kind) -> bool {
    let Ok(task) = std::env::var(TASK) else { return false };
    let words: Vec<&str> = task.splitn(3, ' ').collect();
    match words[0] {
        "fill" => fill(Path::new(words[2]), kind, words[1].parse().unwrap()),
        _ => println!("RESIDENT {}", started(Path::new(words[2]))),
    }
    true
}

fn no_more_than_its_share(kind: Kind, test: &str) {
    if did_a_part(kind) {
        return;
    }
    let scratch = Scratch::new("memory").unwrap();
    let measure = |devices: u32| -> u64 {
        let state = scratch.path().join(devices.to_string());
        run_again(test, "fill", devices, &state);
        let told = run_again(test, "measure", devices, &state);
        let line = told.lines().find_map(|l| l.split_once("RESIDENT ")).unwrap().1;
        line.trim().parse().unwrap()
    };
    let (few, many) = (measure(FEW), measure(DEVICES));
    let each = (many - few) / u64::from(DEVICES - FEW);
    println!("{each} bytes a device");
    assert!(each <= kind.most(), "{each} bytes a device");
}

#[test]
fn a_registered_device_takes_no_more_than_its_share() {
    no_more_than_its_share(Kind::Registered, "a_registered_device_takes_no_more_than_its_share");
}

#[test]
fn a_connected_device_takes_no_more_than_its_share() {
    no_more_than_its_share(Kind::Connected, "a_connected_device_takes_no_more_than_its_share");
}
