//! The store fails under a running gateway, by real file systems and a real database: enforcement goes on, releases are refused, restrictions
//! are in force and told as not durable, and where the cause goes away all is durable again without a restart.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use lazaret_proto::v1::{DeviceState, Enforcement};
use lazaret_tests::{
    gateway::Gateway,
    lab::{self, Lab},
    packets,
    process::{self, until},
    require, site,
};
use rusqlite::Connection;

const LIMIT: Duration = Duration::from_secs(60);

/// A gateway with `phone` released and `tablet` quarantined, both connected.
fn connected(change: impl FnOnce(&mut Gateway) -> anyhow::Result<()>) -> Lab {
    let lab = Lab::new(change).unwrap();
    for (id, address) in [("phone", "10.66.0.5"), ("tablet", "10.66.0.6")] {
        lab.local.register(id, "staff").unwrap();
        lab.local.open("lab", id, &[address], "tun0").unwrap();
    }
    let released = lab.gateway.applied("phone").unwrap();
    assert_eq!(released.enforcement(), Enforcement::Enforced);
    lab
}

fn state(lab: &Lab) -> PathBuf {
    lab.gateway.folder().join("state")
}

/// Packets of the phone to the mail server that arrive, of `sent`.
fn through(lab: &Lab, sent: usize) -> usize {
    let mail = lab::arrivals(&lab.site, site::DEVICE, site::MAIL).unwrap();
    for n in 0..sent {
        let packet = packets::udp((site::DEVICE, 4001), (site::MAIL, 53), &n.to_be_bytes());
        lab.tun.send(&packet).unwrap();
    }
    mail.seen().len()
}

/// The store cannot be written: what the specification says of it.
fn holds_out(lab: &Lab) {
    assert_eq!(through(lab, 20), 20, "enforcement goes on");
    let refused = lab.gateway.applied("tablet").unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused:?}");
    assert_eq!(reason(&refused), "STORE_UNAVAILABLE");
    assert_eq!(lab.local.address("10.66.0.6").unwrap().current_pool, "quarantine");
    let opened = lab.local.register("laptop", "staff").unwrap_err();
    assert_eq!(reason(&opened), "STORE_UNAVAILABLE");
    let revoked = lab.local.revoked("phone").unwrap();
    assert_eq!(revoked.enforcement(), Enforcement::EnforcedNotDurable);
    assert_eq!(through(lab, 20), 0, "in force, though not durable");
    let status = lab.local.status().unwrap();
    assert!(status.not_durable > 0 && status.store != "ok", "{status:?}");
    assert!(lab.gateway.cli("status").is_err(), "and the exit code says so");
    // Refused again while something waits: a release must not overtake it.
    assert_eq!(reason(&lab.gateway.applied("phone").unwrap_err()), "STORE_UNAVAILABLE");
}

/// The cause is gone: no restart, nothing lost, and after one the same.
fn recovers(mut lab: Lab) {
    until(LIMIT, "the restriction is durable", || {
        let status = lab.local.status()?;
        Ok(status.not_durable == 0 && status.store == "ok")
    })
    .unwrap();
    assert_eq!(lab.gateway.applied("tablet").unwrap().enforcement(), Enforcement::Enforced);
    let check = format!("store check --config {}", lab.gateway.config().display());
    lab.gateway.cli(&check).unwrap();
    lab.restart().unwrap();
    let of = |id| lab.local.device(id).unwrap().state();
    assert_eq!([of("phone"), of("tablet")], [DeviceState::Quarantined, DeviceState::Released]);
    assert_eq!(through(&lab, 20), 0);
}

fn reason(status: &tonic::Status) -> String {
    use tonic_types::StatusExt as _;
    status.get_details_error_info().map_or_else(String::new, |i| i.reason)
}

/// Fills a file system to the last byte.
fn fill(file: &Path) {
    let mut file = File::options().create(true).append(true).open(file).unwrap();
    for block in [65536, 4096, 512, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
}

#[test]
fn a_disk_that_is_full() {
    require!(Root, Bpf, Tun);
    let lab = connected(|g| g.small_state(2048).map(drop));
    let ballast = state(&lab).join("ballast");
    fill(&ballast);
    // The log has room left inside for some commits; then it has to grow. Each of these is answered, and none may be lost.
    let mut owner = 0;
    while owner < 2000
        && lab
            .local
            .register_as("spare", "staff", &format!("{}{owner}", "x".repeat(200)))
            .is_ok()
    {
        owner += 1;
    }
    assert!(owner < 2000, "it never was full");
    holds_out(&lab);
    fs::remove_file(&ballast).unwrap();
    let local = lab.gateway.local().unwrap();
    until(LIMIT, "there is room again", || Ok(local.status()?.not_durable == 0)).unwrap();
    if owner > 0 {
        let last = local.device("spare").unwrap().owner;
        assert_eq!(
            last,
            format!("{}{}", "x".repeat(200), owner - 1),
            "the last that was answered"
        );
    }
    recovers(lab);
}

#[test]
fn a_file_system_that_turns_read_only() {
    require!(Root, Bpf, Tun, Loop);
    let mut lab = connected(|g| g.ext4_state(16 * 1024).map(drop));
    let state = state(&lab);
    // What ext4 does by itself after an error of the disk.
    process::output(std::process::Command::new("mount").args(["-o", "remount,abort"]).arg(&state)).unwrap();
    holds_out(&lab);
    // No daemon starts on it; and what is attached goes on judging, by what was in force.
    lab.gateway.kill().unwrap();
    let run = format!("run --config {}", lab.gateway.config().display());
    let refused = lab.gateway.cli(&run).unwrap_err().to_string();
    assert!(
        refused.contains("cannot be written") || refused.contains("ead-only"),
        "{refused}"
    );
    assert_eq!(through(&lab, 20), 0, "restricted, and not opened by anything");
}

#[test]
fn another_program_that_holds_the_lock() {
    require!(Root, Bpf, Tun);
    let lab = connected(|_| Ok(()));
    let other = Connection::open(state(&lab).join("lazaret.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    holds_out(&lab);
    let run = format!("run --config {}", lab.gateway.config().display());
    let second = lab.gateway.cli(&run).unwrap_err().to_string();
    assert!(second.contains("in use by another process"), "{second}");
    other.execute_batch("ROLLBACK").unwrap();
    recovers(lab);
}

#[test]
fn pages_that_are_damaged() {
    require!(Root, Bpf, Tun);
    let mut lab = connected(|_| Ok(()));
    let state = state(&lab);
    let backup = lab.gateway.folder().join("backup.db");
    let config = lab.gateway.config().display().to_string();
    lab.gateway
        .cli(&format!("store backup --config {config} {}", backup.display()))
        .unwrap();

    let other = Connection::open(state.join("lazaret.db")).unwrap();
    other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    let root: u32 = other
        .query_row("SELECT rootpage FROM sqlite_master WHERE name = 'devices'", [], |r| r.get(0))
        .unwrap();
    let file = File::options().write(true).open(state.join("lazaret.db")).unwrap();
    file.write_all_at(&[0x5a; 4096], u64::from(root - 1) * 4096).unwrap();
    // The daemon has the page in memory until somebody else writes.
    other.execute_batch("UPDATE meta SET one = 1").unwrap();
    drop(other);
    holds_out(&lab);
    let found = lab
        .gateway
        .cli(&format!("store check --config {config}"))
        .unwrap_err()
        .to_string();
    assert!(found.contains("malformed") || found.contains("DAMAGED"), "{found}");

    // The way back: stop, restore, start. The phone's release of the time of the backup does not come back with it.
    assert!(
        lab.gateway
            .cli(&format!("store restore --config {config} {}", backup.display()))
            .is_err(),
        "not under a daemon"
    );
    lab.gateway.kill().unwrap();
    assert!(
        lab.gateway.cli(&format!("run --config {config}")).is_err(),
        "it does not start on it"
    );
    lab.gateway
        .cli(&format!("store restore --config {config} {}", backup.display()))
        .unwrap();
    lab.restart().unwrap();
    assert_eq!(
        lab.local.device("phone").unwrap().state(),
        DeviceState::Quarantined,
        "fresh proof is needed"
    );
    assert_eq!(lab.local.list_sessions().unwrap().len(), 0);
    lab.local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    assert_eq!(through(&lab, 20), 0);
    assert_eq!(lab.gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
    assert_eq!(through(&lab, 20), 20);
    lab.gateway.cli(&format!("store check --config {config}")).unwrap();
    let listed = lab.gateway.cli(&format!("audit list --config {config} --limit 100")).unwrap();
    assert!(listed.contains("RestoreStore"), "{listed}");
}

#[test]
fn a_directory_that_is_taken_away() {
    require!(Root, Bpf, Tun);
    let lab = connected(|_| Ok(()));
    let (state, away) = (state(&lab), lab.gateway.folder().join("away"));
    fs::rename(&state, &away).unwrap();
    holds_out(&lab);
    fs::rename(&away, &state).unwrap();
    recovers(lab);
}

/// The file that gets the audit's entries: the daemon runs without it, says so, and what it lacks is written once it is there.
#[test]
fn an_audit_log_whose_directory_is_missing() {
    require!(Root, Bpf, Tun);
    let lab = connected(|g| {
        let log = g.folder().join("logs/audit.jsonl");
        g.configure("[log]\n", &format!("[store]\naudit_log = \"{}\"\n\n[log]\n", log.display()))
    });
    let said = || {
        let status = lab.local.status()?;
        Ok(status
            .warnings
            .iter()
            .any(|w| w.contains("audit log") && w.contains("make its directory")))
    };
    until(LIMIT, "status says so", said).unwrap();
    assert_eq!(through(&lab, 20), 20, "it holds nothing up");
    fs::create_dir(lab.gateway.folder().join("logs")).unwrap();
    until(LIMIT, "status is well again", || Ok(!said()?)).unwrap();
    let lines = fs::read_to_string(lab.gateway.folder().join("logs/audit.jsonl")).unwrap();
    assert!(
        lines.contains("\"number\":1,") && lines.contains("ReportPolicyApplied"),
        "{lines}"
    );
}
