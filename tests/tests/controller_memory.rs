//! What a registered device costs in memory, by the kernel's account of this process: it has one test, so that nothing else is counted.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{path::Path, process::Command, sync::Arc};

use gateway_user::{
    clock::SystemClock,
    config::Config,
    controller::{Controller, Loaded, Options, Start},
    kernel::fake::FakeKernel,
    model::{Device, DeviceState, Revision, StateReason, WallTime},
    store::{ChangeSet, SqliteStore, Store as _},
};
use lazaret_tests::{scratch::Scratch, site::Site};

/// So that what the process and the store take anyhow is not counted.
const FEW: u32 = 1 << 17;
const DEVICES: u32 = 1 << 18;
/// Bytes.
const MOST: u64 = 300;

/// With an owner, without aliases.
fn device(n: u32) -> Device {
    Device {
        owner: format!("user{n:07}@example.org").into(),
        state: DeviceState::Quarantined,
        state_reason: StateReason::Connected,
        gateway_uri: "enrol.vpn.example.test".into(),
        ..Device::new(
            format!("device-{n:07}").parse().unwrap(),
            "staff".parse().unwrap(),
            WallTime(0),
        )
    }
}

fn fill(directory: &Path, devices: u32) {
    let mut store = SqliteStore::open(directory).unwrap();
    let changes = ChangeSet {
        devices: (0..devices).map(device).map(|d| (d.id.clone(), d)).collect(),
        ..ChangeSet::default()
    };
    store.commit(&changes, Revision(0), WallTime(0)).unwrap();
}

/// Anonymous pages of this process that are resident, bytes.
fn resident() -> u64 {
    // SAFETY: it takes no pointer, and the allocator is glibc's.
    unsafe { libc::malloc_trim(0) };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// What a controller takes with so many devices in its store.
fn started(directory: &Path) -> u64 {
    let text = Site::config("tun0", directory, directory);
    let config = Arc::new(Config::parse(Path::new("test"), &text).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let kernel = FakeKernel::new(Arc::clone(&config));
        let start = Start {
            loaded: Loaded::read(Box::new(SqliteStore::open(directory).unwrap()), &config).unwrap(),
            config,
            kernel: Box::new(kernel),
            clock: Box::new(SystemClock::new().unwrap()),
            links: Vec::new(),
            options: Options::default(),
        };
        let (controller, _thread) = Controller::start(start).await.unwrap();
        controller.status().await.unwrap();
        resident()
    })
}

/// The test's own name, to be run again.
const NAME: &str = "a_registered_device_takes_no_more_than_its_share";
/// What the process run again is to do: "fill" or "measure", and a directory.
const TASK: &str = "LAZARET_MEMORY_TASK";

/// Each step in a process of its own: what the allocator keeps from one is not there in the next.
fn run_again(task: &str, devices: u32, directory: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", NAME, "--nocapture"])
        .env(TASK, format!("{task} {devices} {}", directory.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_registered_device_takes_no_more_than_its_share() {
    if let Ok(task) = std::env::var(TASK) {
        let words: Vec<&str> = task.splitn(3, ' ').collect();
        match words[0] {
            "fill" => fill(Path::new(words[2]), words[1].parse().unwrap()),
            _ => println!("RESIDENT {}", started(Path::new(words[2]))),
        }
        return;
    }
    let scratch = Scratch::new("memory").unwrap();
    let measure = |devices: u32| -> u64 {
        let state = scratch.path().join(devices.to_string());
        run_again("fill", devices, &state);
        let told = run_again("measure", devices, &state);
        let line = told.lines().find_map(|l| l.split_once("RESIDENT ")).unwrap().1;
        line.trim().parse().unwrap()
    };
    let (few, many) = (measure(FEW), measure(DEVICES));
    let each = (many - few) / u64::from(DEVICES - FEW);
    println!("{each} bytes a device");
    assert!(each <= MOST, "{each} bytes a device");
}
