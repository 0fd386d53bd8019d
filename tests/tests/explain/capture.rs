//! `lazaret capture --denied`: what it writes opens in tshark, which shares no code with what wrote it.

use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Command, thread, time::Duration};

use gateway_ebpf::abi::{Control, FLAG_CAPTURE, VERSION};
use lazaret_tests::{
    process::{self, Process, until},
    require,
    site::{DEVICE6, MAIL, MAIL6},
};

use crate::stage::{LIMIT, PATIENCE, Stage};

/// What the programs' control word says of capturing.
fn capturing(stage: &Stage) -> bool {
    let pin = stage.gateway.folder().join(format!("bpf/lazaret/v{VERSION}/maps/CONTROL"));
    let mut dump = Command::new("bpftool");
    dump.args(["-j", "map", "lookup", "pinned"])
        .arg(pin)
        .args(["key", "0", "0", "0", "0"]);
    let value: serde_json::Value = serde_json::from_str(&process::output(&mut dump).unwrap()).unwrap();
    let bytes: Vec<u8> = value["value"].as_array().unwrap()[..size_of::<Control>().min(8)]
        .iter()
        .map(|b| u8::from_str_radix(b.as_str().unwrap().trim_start_matches("0x"), 16).unwrap())
        .collect();
    let at = std::mem::offset_of!(Control, flags);
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()) & FLAG_CAPTURE != 0
}

/// The fields of each packet, as tshark reads them.
pub(crate) fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.arg("-r").arg(file).args(["-n", "-T", "fields", "-E", "separator=|"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let text = process::output(&mut command).unwrap();
    // As root it says so first.
    let lines = text.lines().filter(|l| l.contains('|'));
    lines.map(|l| l.split('|').map(str::to_owned).collect()).collect()
}

pub(crate) fn start(stage: &Stage, words: &str, file: &Path) -> Process {
    let mut c = stage.gateway.lazaret();
    c.args(["capture", "--denied", "-w"]).arg(file).args(words.split_whitespace());
    let running = Process::spawn(&mut c, &stage.gateway.folder().join("capture.log")).unwrap();
    until(LIMIT, "the capture has begun", || Ok(file.exists() && capturing(stage))).unwrap();
    running
}

#[test]
fn a_capture_opens_in_tshark_with_reason_pool_and_device() {
    require!(Root, Bpf, Program("bpftool"), Program("tshark"));
    let stage = Stage::new();
    stage.open();
    assert!(!capturing(&stage), "nobody captures yet");
    let file = stage.gateway.folder().join("denied.pcapng");
    let mut running = start(&stage, "--for 10s --device phone", &file);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let began = std::time::SystemTime::now();
    for at in [MAIL, MAIL6] {
        assert!(!stage.reaches(at, PATIENCE));
    }
    let ended = running.wait(Duration::from_secs(60)).unwrap();
    assert!(ended.success(), "{}", running.log());
    assert!(running.log().contains("the time is up"), "{}", running.log());
    until(LIMIT, "capturing is switched off", || Ok(!capturing(&stage))).unwrap();

    let fields = [
        "frame.interface_name",
        "frame.encap_type",
        "frame.time_epoch",
        "frame.comment",
        "ip.dst",
        "ipv6.dst",
        "tcp.dstport",
        "frame.len",
    ];
    let packets = tshark(&file, &fields);
    println!("{packets:#?}");
    let syns: Vec<_> = packets.iter().filter(|p| p[6] == "80").collect();
    assert!(syns.iter().any(|p| p[4] == MAIL.to_string()), "{packets:#?}");
    assert!(syns.iter().any(|p| p[5] == MAIL6.to_string()), "{packets:#?}");
    for p in syns {
        assert_eq!((p[0].as_str(), p[1].as_str()), ("dev0", "1"), "Ethernet at dev0: {p:?}");
        for part in ["no_rule (16)", "pool quarantine", "device phone", "dev0, xdp device"] {
            assert!(p[3].contains(part), "{part} in {p:?}");
        }
        let at: f64 = p[2].parse().unwrap();
        let wall = began.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((at - wall).abs() < 10.0, "{at} beside {wall}");
    }
    let (code, why) = stage.refused(&format!("capture --denied -w {}", file.display()));
    assert_eq!(code, 1);
    assert!(why.contains("--force"), "{why}");
    // A second reader, which shares no code with the first.
    let listed = process::output(Command::new("tcpdump").args(["-nr"]).arg(&file)).unwrap();
    assert!(
        listed.contains(&format!("{DEVICE6}.")) && listed.contains(".80: Flags [S]"),
        "{listed}"
    );
}

#[test]
fn a_capture_is_bounded_in_size_and_ends_with_its_reader() {
    require!(Root, Bpf, Program("bpftool"));
    let mut stage = Stage::new();
    stage.open();
    let file = stage.gateway.folder().join("small.pcapng");
    let mut running = start(&stage, "--max-bytes 200 --for 30s", &file);
    until(LIMIT, "the size is reached", || {
        stage.reaches(MAIL, PATIENCE);
        Ok(running.ended()?.is_some())
    })
    .unwrap();
    assert!(running.log().contains("the size is reached"), "{}", running.log());
    assert!(file.metadata().unwrap().len() < 2000);
    until(LIMIT, "capturing is switched off", || Ok(!capturing(&stage))).unwrap();

    // A reader that is killed, and two at once: off with the last.
    let (a, b) = (stage.gateway.folder().join("a"), stage.gateway.folder().join("b"));
    let (mut first, mut second) = (start(&stage, "--for 60s", &a), start(&stage, "--for 60s", &b));
    first.kill().unwrap();
    thread::sleep(PATIENCE);
    assert!(capturing(&stage), "one still captures");
    second.kill().unwrap();
    until(LIMIT, "capturing is switched off", || Ok(!capturing(&stage))).unwrap();

    // The daemon is killed in the middle: its successor switches off what nobody reads.
    let c = stage.gateway.folder().join("c");
    let _broken = start(&stage, "--for 60s", &c);
    stage.gateway.kill().unwrap();
    assert!(capturing(&stage));
    stage.gateway.start().unwrap();
    assert!(!capturing(&stage));
    let log = std::fs::read_to_string(stage.gateway.folder().join("lazaret.log")).unwrap();
    assert!(log.contains("a capture outlived the daemon"), "{log}");
}
