//! A backup put back by the real binary: what was restricted since stays restricted, and what cannot be known is said until it is taken note of.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use gateway_user::{
    model::{Device, DeviceId, DeviceState, Revision, WallTime},
    store::{ChangeSet, Reader, SqliteStore, Store as _},
};
use lazaret_tests::gateway::binary;

use super::gateway::{CONFIG, Gateway, lazaret};

/// A gateway, its configuration as a file, and where a backup goes.
fn stage(label: &str) -> (Gateway, String, String) {
    let g = Gateway::new(label);
    let state = g.path("state").display().to_string();
    let config = g.file("lazaret.toml", &format!("{CONFIG}[paths]\nstate = \"{state}\"\n"));
    let backup = g.path("backup.db").display().to_string();
    (g, config, backup)
}

fn ok(args: &[&str]) -> String {
    let ran = lazaret(args);
    assert_eq!(ran.code, 0, "{args:?}: {}{}", ran.out, ran.err);
    ran.out
}

#[test]
fn a_restore_forgets_no_restriction_that_is_at_hand() {
    let (mut g, config, backup) = stage("cli-restore");
    for device in ["w1", "w2", "w3"] {
        g.ok(&["device", "register", device, "--pool", "staff"]);
    }
    g.ok(&["policy", "publish", "v2", "--urgent"]);
    ok(&["store", "backup", &backup, "--config", &config]);
    g.ok(&["policy", "publish", "v3", "--urgent"]);
    g.ok(&[
        "exception",
        "grant",
        "w1",
        "--block",
        "--for",
        "20d",
        "--reason",
        "reported stolen",
    ]);
    g.ok(&["device", "retire", "w2"]);
    g.ok(&["device", "register", "w4", "--pool", "staff"]);
    g.ok(&["device", "quarantine", "w4", "--reason", "jailbroken"]);
    g.stop();
    let out = ok(&["store", "restore", &backup, "--config", &config]);
    for words in [
        "1 publication(s)",
        "1 retirement(s)",
        "1 block(s)",
        "policy revision v3 is required",
        "1 restricted device(s) that the backup does not have",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    assert!(!out.contains("forgotten"), "{out}");
    let verified = ok(&["audit", "verify", "--config", &config]);
    assert!(verified.contains("whole"), "{verified}");
    g.start();
    let state = |device: &str| g.json(&["device", "show", device])["state"].as_str().unwrap().to_owned();
    assert_eq!(["w1", "w2", "w3"].map(state), ["blocked", "retired", "registered"]);
    assert!(g.ok(&["policy", "progress"]).contains("v3"));
    // Nor does an operator get it back by mistake.
    let release = ["exception", "grant", "w2", "--release", "--for", "1h", "--reason", "x"];
    assert!(g.run(&release).err.contains("DEVICE_RETIRED"));
    let why = g.ok(&["why", "w1"]);
    assert!(why.contains("reported stolen") && why.contains("CarryOver"), "{why}");
    assert!(!g.ok(&["status"]).contains("forgotten"));
    // Who came since is registered anew before it is let in.
    let open = [
        "session",
        "open",
        "--source",
        "vpn",
        "--device",
        "w4",
        "--interface",
        "tun0",
        "--address",
        "10.66.0.9",
    ];
    let refused = g.run(&open);
    assert!(
        refused.code != 0 && refused.err.contains("ENROLMENT_CLOSED"),
        "{}",
        refused.err
    );
    g.ok(&["device", "register", "w4", "--pool", "staff", "--replace"]);
    assert_eq!(g.run(&open).code, 0);
}

#[test]
fn what_is_forgotten_is_said_until_a_policy_is_published() {
    let (mut g, config, backup) = stage("cli-forgotten");
    g.ok(&["device", "register", "w1", "--pool", "staff"]);
    g.ok(&["policy", "publish", "v2", "--urgent"]);
    ok(&["store", "backup", &backup, "--config", &config]);
    g.stop();
    fs::write(g.path("state").join("lazaret.db"), [b'?'; 8192]).unwrap();
    let out = ok(&["store", "restore", &backup, "--config", &config]);
    assert!(out.contains("are forgotten") && out.contains("cannot be read"), "{out}");
    let listed = ok(&["audit", "list", "--config", &config]);
    assert!(listed.contains("are forgotten"), "{listed}");
    for _ in 0..2 {
        g.start();
        let status = g.ok(&["status"]);
        assert!(
            status.contains("is forgotten") && status.contains("policy publish"),
            "{status}"
        );
        g.stop();
    }
    g.start();
    // Terms alone are no word of it, the same revision again is.
    g.ok(&["policy", "pause"]);
    assert!(g.ok(&["status"]).contains("is forgotten"));
    g.ok(&["policy", "publish", "v2", "--urgent"]);
    assert!(!g.ok(&["status"]).contains("is forgotten"));
    g.stop();
    g.start();
    assert!(!g.ok(&["status"]).contains("is forgotten"));
}

/// Killed at whatever moment, a restore has been done with all that it takes over, or not at all; and done once more, it is done.
#[test]
fn a_restore_that_is_killed_is_done_or_is_not() {
    const MANY: usize = 3_000;
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path().join("state");
    let config = scratch.path().join("lazaret.toml");
    fs::write(&config, format!("{CONFIG}[paths]\nstate = \"{}\"\n", state.display())).unwrap();
    let config = config.display().to_string();
    let backup = scratch.path().join("backup.db").display().to_string();
    let device = |n: usize, state| {
        let id: DeviceId = format!("w{n:06}").parse().unwrap();
        Device {
            state,
            ..Device::new(id, "staff".parse().unwrap(), WallTime(5))
        }
    };
    let all = |state| ChangeSet {
        devices: (0..MANY).map(|n| device(n, state)).map(|d| (d.id.clone(), d)).collect(),
        ..ChangeSet::default()
    };
    let mut store = SqliteStore::open(&state).unwrap();
    store.commit(&all(DeviceState::Registered), Revision(0), WallTime(7)).unwrap();
    ok(&["store", "backup", &backup, "--config", &config]);
    store.commit(&all(DeviceState::Blocked), Revision(1), WallTime(8)).unwrap();
    drop(store);
    let restore = || {
        let mut command = Command::new(binary());
        command.env_clear().args(["store", "restore", &backup, "--config", &config]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    // A clean run says how long it takes, and leaves a database that is restored already: the next ones take over from that.
    let begin = Instant::now();
    assert!(restore().status().unwrap().success());
    let takes = begin.elapsed();
    let (mut done, mut left) = (0, 0);
    let mut before = SqliteStore::open(&state).unwrap().load().unwrap().revision;
    for n in 0..24_u32 {
        let mut child = restore().spawn().unwrap();
        std::thread::sleep(takes * n / 22 + Duration::from_millis(1));
        child.kill().unwrap();
        child.wait().unwrap();
        let files: Vec<PathBuf> = fs::read_dir(&state).unwrap().map(|e| e.unwrap().path()).collect();
        let mut store = SqliteStore::open(&state).unwrap_or_else(|e| panic!("after {n}: {e}: {files:?}"));
        let loaded = store.load().unwrap();
        drop(store);
        let blocked = loaded.devices.iter().filter(|d| d.state == DeviceState::Blocked).count();
        assert_eq!((loaded.devices.len(), blocked), (MANY, MANY), "after {n}: all of it");
        assert!(loaded.restored.is_some() && loaded.forgotten.is_none(), "{n}");
        let problems = Reader::of_directory(&state).unwrap().check().unwrap().problems;
        assert_eq!(problems, [""; 0], "after {n}");
        *(if loaded.revision == before { &mut left } else { &mut done }) += 1;
        before = loaded.revision;
    }
    println!("{done} were done, {left} were not; one takes {takes:?}");
    assert!(left > 0, "none was cut off");
    assert!(restore().status().unwrap().success());
}
