//! The daemon with what it needs and nothing more: as root without the other capabilities, and as another user. Everything that it does in
//! its life is done in both: programs on interfaces that come later, releases read back, the floor, a packet explained, a restart that adopts.
//! And nothing that is secret reaches its log, at its most talkative.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::Path,
    time::Duration,
};

use lazaret_proto::v1::Enforcement;
use lazaret_tests::{lab::Lab, process::until, require, site};
use nix::{
    sys::signal::Signal,
    unistd::{Pid, User},
};

const KEPT: [&str; 4] = ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_PERFMON", "CAP_BPF"];
/// Their bits, by linux/capability.h: 12, 21, 38, 39.
const BITS: u64 = 1 << 12 | 1 << 21 | 1 << 38 | 1 << 39;
const LIMIT: Duration = Duration::from_secs(30);

/// A line of /proc/PID/task/TID/status.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').trim().to_owned()
}

/// Every thread of the daemon, by the kernel's account.
fn check_threads(lab: &mut Lab, uid: u32) {
    let pid = lab.gateway.daemon().unwrap().id();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut seen = 0;
    for thread in threads {
        let Ok(status) = fs::read_to_string(thread.unwrap().path().join("status")) else {
            continue;
        };
        let bits = |name: &str| u64::from_str_radix(&field(&status, name), 16).unwrap();
        assert_eq!(bits("CapPrm") & !BITS, 0, "{status}");
        assert_eq!(
            (bits("CapPrm"), bits("CapEff"), bits("CapBnd")),
            (BITS, BITS, BITS),
            "{status}"
        );
        assert_eq!((bits("CapInh"), bits("CapAmb")), (1 << 12, 1 << 12), "{status}");
        assert_eq!(field(&status, "NoNewPrivs"), "1", "{status}");
        let uids: Vec<u32> = field(&status, "Uid").split_whitespace().map(|u| u.parse().unwrap()).collect();
        assert_eq!(uids, [uid; 4], "{status}");
        seen += 1;
    }
    assert!(seen > 2, "{seen} threads");
}

/// What the daemon does all its life.
fn live(lab: &mut Lab, uid: u32, user: &str) {
    check_threads(lab, uid);
    let status = lab.local.status().unwrap();
    assert_eq!((status.user.as_str(), status.floor.as_str()), (user, "closed"));
    assert_eq!(status.capabilities, KEPT);
    assert!(lab.gateway.cli("status").unwrap().contains("CAP_BPF"), "people see it too");

    // Read back from what is attached now.
    lab.local.register("phone", "staff").unwrap();
    lab.local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    assert_eq!(lab.gateway.applied("phone").unwrap().enforcement(), Enforcement::Enforced);
    assert_eq!(lab.local.revoked("phone").unwrap().enforcement(), Enforcement::Enforced);

    // An interface that comes anew, and a floor that was taken away.
    let old = lab.site.gw.ifindex("tun0").unwrap();
    let (new, again) = (|| Lab::tun(&lab.site), &lab.gateway);
    lab.site.gw.exec("ip link del tun0").unwrap();
    until(LIMIT, "the interface is gone", || Ok(lab.site.gw.ifindex("tun0").is_err())).unwrap();
    let tun = new().unwrap();
    assert_ne!(lab.site.gw.ifindex("tun0").unwrap(), old);
    again.attached("tun0").unwrap();
    lab.tun = tun;
    lab.site.gw.exec("nft delete table inet lazaret").unwrap();
    let local = &lab.local;
    let mended = until(LIMIT, "the floor is closed again", || {
        let listed = lab.site.gw.exec("nft list tables")?;
        Ok(local.status()?.floor == "closed" && listed.contains("lazaret"))
    });
    mended.unwrap_or_else(|e| panic!("{e}: {}", local.status().unwrap().floor));
    lab.gateway.applied("phone").unwrap();

    // The twin is loaded when it is first asked.
    let explained = lab.gateway.cli(&format!(
        "explain --from {} --to {} --proto udp --port 53",
        site::DEVICE,
        site::RESOLVER
    ));
    explained.unwrap();
    // Another start adopts what this one left.
    lab.restart().unwrap();
    assert_eq!(lab.local.status().unwrap().floor, "closed");
    check_threads(lab, uid);
}

#[test]
fn as_root_with_what_it_needs() {
    require!(Root, Bpf, Tun);
    let mut lab = Lab::new(|_| Ok(())).unwrap();
    live(&mut lab, 0, "root");
    for file in ["state/lazaret.db", "lazaret.sock"] {
        let path = lab.gateway.folder().join(file);
        let mode = fs::metadata(&path).map(|m| m.permissions().mode() & 0o7777);
        assert!(
            mode.as_ref().is_ok_and(|m| m & 0o077 == 0 || file.ends_with("sock")),
            "{file}: {mode:?}"
        );
    }
}

#[test]
fn as_another_user() {
    require!(Root, Bpf, Tun);
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let uid = nobody.uid.as_raw();
    let mut lab = Lab::new(|gateway| {
        gateway.configure("[devices]\n", "[process]\nuser = \"nobody\"\n\n[devices]\n")?;
        // The user has to get at the state, and at what is read again.
        fs::set_permissions(gateway.folder(), fs::Permissions::from_mode(0o711))?;
        chown(gateway.folder().join("server.key"), Some(uid), None)?;
        Ok(())
    })
    .unwrap();
    live(&mut lab, uid, "nobody");
    let state = lab.gateway.folder().join("state");
    let owned = |path: &Path| {
        let m = fs::symlink_metadata(path).unwrap();
        assert_eq!((m.uid(), m.mode() & 0o077), (uid, 0), "{}", path.display());
    };
    owned(&state);
    fs::read_dir(&state).unwrap().for_each(|f| owned(&f.unwrap().path()));

    // Certificates are read again by it.
    let daemon = lab.gateway.daemon().unwrap();
    let pid = Pid::from_raw(i32::try_from(daemon.id()).unwrap());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    daemon.prints("revocation lists were read again", LIMIT).unwrap();
    lab.gateway.mdm().unwrap().applied("phone").unwrap();
    lab.gateway.stop().unwrap();
}

#[test]
fn a_user_that_does_not_exist() {
    require!(Root, Bpf, Tun);
    let (mut gateway, _sinks) = Lab::prepare().unwrap();
    gateway
        .configure("[devices]\n", "[process]\nuser = \"nosuchuser\"\n\n[devices]\n")
        .unwrap();
    let error = format!("{:#}", gateway.start().unwrap_err());
    assert!(error.contains("nosuchuser"), "{error}");
}

/// Keys of certificates and of policies, at the level at which every part of the daemon says all that it has to say.
#[test]
fn nothing_secret_reaches_the_log() {
    require!(Root, Bpf, Tun);
    let mut lab = Lab::new(|gateway| gateway.configure("level = \"info\"", "level = \"trace\"")).unwrap();
    let mdm = lab.gateway.mdm().unwrap();
    mdm.register("phone", "staff").unwrap();
    lab.local.open("lab", "phone", &["10.66.0.5"], "tun0").unwrap();
    let mut secrets = vec!["00112233445566778899aabbccddeeff".to_owned()];
    // A key that is wrong is no less secret: it may be another device's.
    let refused = mdm.applied_with("phone", secrets[0].clone()).unwrap_err();
    println!("{}", refused.message());
    let temporary = mdm.offer("phone").unwrap();
    let last = mdm.acknowledge("phone", temporary.clone()).unwrap();
    mdm.applied_with("phone", last.clone()).unwrap();
    secrets.extend([temporary, last]);
    for file in ["server.key", "mdm.key", "ca/ca.key"] {
        let pem = fs::read_to_string(lab.gateway.folder().join(file)).unwrap();
        let lines: Vec<&str> = pem.lines().filter(|l| !l.starts_with("-----")).collect();
        // The first line is the algorithm's name, which any key of the kind begins with.
        secrets.extend(lines.iter().skip(1).map(|l| (*l).to_owned()));
    }
    let log = lab.gateway.daemon().unwrap().log();
    lab.gateway.stop().unwrap();
    assert!(
        log.contains("TRACE") && log.len() > 10_000,
        "it says a lot: {} bytes",
        log.len()
    );
    for secret in &secrets {
        assert!(secret.len() >= 16, "{secret:?}");
        let as_bytes = secret.bytes().map(|b| b.to_string()).collect::<Vec<_>>().join(", ");
        assert!(
            !log.contains(secret.as_str()) && !log.contains(&as_bytes),
            "{secret} is in the log"
        );
    }
}
