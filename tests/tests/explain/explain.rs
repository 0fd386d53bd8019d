//! What `lazaret explain` says is what becomes of the packet; asking changes nothing.

use std::{thread, time::Duration};

use lazaret_proto::v1::{self, inspect_service_client::InspectServiceClient};
use lazaret_tests::{
    process, require,
    site::{self, DEVICE, DM, MAIL},
};

use crate::stage::{LIMIT, PATIENCE, Stage};

fn text(value: &serde_json::Value) -> String {
    value.to_string()
}

#[test]
fn a_device_s_way_to_a_server_in_one_command() {
    require!(Root, Bpf);
    let stage = Stage::new();

    // Without a session: at rest in its home pool.
    let e = stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80"));
    assert_eq!((&e["passes"], &e["reason"]), (&false.into(), &"no_rule".into()), "{e:#}");
    assert_eq!(e["source"]["home_pool"], "quarantine");
    assert_eq!(e["place"]["interface"], "dev0", "the only device interface");
    assert!(text(&e["changes"]).contains("no live session"), "{e:#}");

    let session = stage.open();
    let e = stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80"));
    assert_eq!((&e["passes"], &e["pool"]), (&false.into(), &"quarantine".into()), "{e:#}");
    assert_eq!(e["source"]["session_id"], session);
    assert_eq!(e["source"]["device_id"], "phone");
    assert_eq!(e["source"]["device_state"], "quarantined");
    assert_eq!(
        (&e["place"]["attached"], &e["rule"]),
        (&true.into(), &serde_json::Value::Null)
    );
    let changes = text(&e["changes"]);
    for part in [
        format!("to = [\\\"{MAIL}/32\\\"] protocol = \\\"tcp\\\" ports = [\\\"80\\\"] in policy enrolment"),
        "releasing device phone (quarantined): policy everything of pool staff allows it".to_owned(),
    ] {
        assert!(changes.contains(&part), "{part} in {e:#}");
    }
    assert!(!stage.reaches(MAIL, PATIENCE), "and so it is");
    let shown = stage
        .gateway
        .cli(&format!("explain --from {DEVICE} --to {MAIL} --proto tcp --port 80"))
        .unwrap();
    println!("{shown}");
    for part in [
        "DROP: no_rule (16), pool quarantine",
        "session 1 on dev0, device phone (quarantined)",
        "remedy",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }

    // What a rule names, both families, and its answer on both interfaces.
    for (from, to) in [(DEVICE, DM), (site::DEVICE6, site::DM6)] {
        let both = stage.explain(&format!("--from {from} --to {to} --proto tcp --port 80 --both"));
        let steps: Vec<_> = both.iter().map(|e| e["step"].as_str().unwrap()).collect();
        assert_eq!(steps, ["packet", "answer", "answer, on its way out"]);
        let reasons: Vec<_> = both.iter().map(|e| e["reason"].as_str().unwrap()).collect();
        assert_eq!(reasons, ["rule", "reply", "reply"], "{both:#?}");
        let places: Vec<_> = both.iter().map(|e| e["place"]["interface"].as_str().unwrap()).collect();
        assert_eq!(places, ["dev0", "core0", "dev0"]);
        assert!(
            both[0]["rule"]["text"].as_str().unwrap().contains("10.9.0.10/32"),
            "{both:#?}"
        );
        assert_eq!(both[0]["rule"]["policy"], "enrolment");
        assert_ne!(both[0]["mark"], 0);
        assert!(stage.reaches(to, LIMIT), "and so it is");
    }
    // What the gateway itself answers comes in nowhere: it is judged on its way out alone.
    let steps = |to| -> Vec<String> {
        let both = stage.explain(&format!("--from {DEVICE} --to {to} --proto icmp --both"));
        both.iter().map(|e| e["step"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(steps(site::TUNNEL), ["packet", "answer, on its way out"]);
    // A near miss is named.
    let e = stage.one(&format!("--from {DEVICE} --to {DM} --proto tcp --port 443"));
    assert!(text(&e["changes"]).contains("names 10.9.0.10 already, but only"), "{e:#}");

    // The other way round: a server that connects to a device.
    let e = stage.one(&format!("--from {DM} --to {DEVICE} --proto tcp --port 22"));
    assert_eq!(
        (&e["reason"], &e["place"]["interface"]),
        (&"no_rule".into(), &"core0".into()),
        "{e:#}"
    );
    assert!(text(&e["changes"]).contains("from = [\\\"10.9.0.10/32\\\"]"), "{e:#}");

    // Released: the pool, the lease and what would end it.
    stage.gateway.applied("phone").unwrap();
    let e = stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80"));
    assert_eq!(
        (&e["passes"], &e["reason"], &e["source"]["current_pool"]),
        (&true.into(), &"all".into(), &"staff".into()),
        "{e:#}"
    );
    assert!(e["source"]["lease_ends_at"].is_string());
    assert_eq!(
        steps(site::GATEWAY),
        ["packet", "answer, on its way out"],
        "by the host's routes"
    );
    assert_eq!(steps(MAIL), ["packet", "answer", "answer, on its way out"]);
    assert!(text(&e["changes"]).contains("quarantining device phone"), "{e:#}");
    assert!(stage.reaches(MAIL, LIMIT), "and so it is");
    assert_eq!(e["route"], "out by core0", "{e:#}");
    // What passes and has no way.
    for nowhere in ["198.51.100.1", "2001:db8::1"] {
        let from = if nowhere.contains(':') { site::DEVICE6 } else { DEVICE };
        let e = stage.one(&format!("--from {from} --to {nowhere} --proto tcp --port 80"));
        assert_eq!((&e["passes"], &e["route"]), (&true.into(), &"".into()), "{e:#}");
        assert!(text(&e["warnings"]).contains("no route to it"), "{e:#}");
    }
    let e = stage.one(&format!("--from {DEVICE} --to {} --proto tcp --port 80", site::TUNNEL));
    assert_eq!(e["route"], "to the gateway itself", "{e:#}");

    // For people.
    let shown = stage
        .gateway
        .cli(&format!("explain --from {DEVICE} --to {MAIL} --proto icmp"))
        .unwrap();
    for part in [
        "PASS: all (3), pool staff",
        "icmp echo request",
        "session",
        "mark",
        "what would change it",
    ] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
}

#[test]
fn asking_leaves_no_trace() {
    require!(Root, Bpf);
    let stage = Stage::new();
    stage.open();
    // The twin is loaded now, and what the network says by itself has been said.
    stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80"));
    let asked = || {
        for (to, port) in [(MAIL, 80), (DM, 80)] {
            for _ in 0..5 {
                stage.explain(&format!("--from {DEVICE} --to {to} --proto tcp --port {port} --both"));
            }
        }
    };
    // Neighbour discovery and the like may be counted meanwhile by themselves: what was asked about is TCP over IPv4.
    let counted = |reason: &str| stage.local.counted(reason).unwrap();
    let before = [counted("no_rule"), counted("rule"), counted("reply")];
    let (_, denials) = stage.all_counted();
    asked();
    assert_eq!([counted("no_rule"), counted("rule"), counted("reply")], before);
    let tcp = |all: &[lazaret_proto::v1::Denial]| all.iter().filter(|d| d.protocol == "tcp").count();
    assert_eq!(tcp(&stage.all_counted().1), tcp(&denials));
    let rules: serde_json::Value = stage.all_counted().0["rules"].clone();
    assert!(
        rules.as_array().unwrap().iter().all(|r| r["packets"] == 0),
        "{rules:#}: nothing was sent yet"
    );
    // One real packet counts once.
    assert!(stage.reaches(DM, LIMIT));
    assert!(counted("rule") > before[1]);
}

#[test]
fn where_it_is_judged_is_found_or_asked_for() {
    require!(Root, Bpf);
    let mut stage = Stage::new();
    let packet = format!("explain --from {DEVICE} --to {MAIL} --proto tcp --port 80");
    let (code, why) = stage.refused(&format!("{packet} --in nothing0"));
    assert_eq!(code, 1);
    assert!(why.contains("UNKNOWN_INTERFACE"), "{why}");
    let (_, why) = stage.refused(&format!("{packet} --in lo"));
    assert!(why.contains("NO_ROLE_INTERFACE"), "{why}");
    let (_, why) = stage.refused(&format!("{packet} --out --in core0"));
    assert!(why.contains("CORE_EGRESS"), "{why}");
    let e = stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80 --out"));
    assert_eq!(
        (&e["reason"], &e["place"]["interface"]),
        (&"destination_not_in_pool".into(), &"dev0".into()),
        "{e:#}"
    );
    let (_, why) = stage.refused(&format!("explain --from {DEVICE} --to fd00::1 --proto udp --port 1"));
    assert!(why.contains("INVALID_ADDRESS"), "{why}");
    assert_eq!(stage.refused("explain --from x --to y --proto tcp").0, 2);

    // On the wrong side, and spoofed.
    let e = stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80 --in core0"));
    assert_eq!(e["reason"], "pool_source_from_core", "{e:#}");
    let e = stage.one(&format!("--from 192.0.2.1 --to {MAIL} --proto udp --port 53 --in dev0"));
    assert_eq!(e["reason"], "not_in_pool", "{e:#}");
    let e = stage.one(&format!("--from 192.0.2.1 --to {MAIL} --proto udp --port 53"));
    assert_eq!(
        (&e["reason"], &e["place"]["interface"]),
        (&"not_ours".into(), &"core0".into()),
        "{e:#}"
    );
    // A tag that is not configured.
    let e = stage.one(&format!("--from {DEVICE} --to {DM} --proto tcp --port 80 --vlan 7"));
    assert_eq!(e["reason"], "vlan", "{e:#}");
    let e = stage.one(&format!("--from {DM} --to {DEVICE} --proto udp --port 5 --out"));
    assert_eq!(
        (&e["place"]["direction"], &e["place"]["program"]),
        (&"egress".into(), &"tc_egress_eth".into()),
        "{e:#}"
    );

    // Over a restart: the same answer, by the program that is adopted, and no pins of the twin meanwhile.
    let before = stage.one(&format!("--from {DEVICE} --to {DM} --proto tcp --port 80"));
    assert_eq!(
        (&before["place"]["hook"], &before["place"]["program"]),
        (&"xdp".into(), &"xdp_device".into())
    );
    stage.gateway.stop().unwrap();
    let ifindex = stage.site.gw.ifindex("dev0").unwrap();
    let pins = stage
        .gateway
        .folder()
        .join(format!("bpf/lazaret/v{}", gateway_ebpf::abi::VERSION));
    assert!(!pins.join("maps-probe").exists(), "no pins of the twin are left");
    assert!(pins.join(format!("links/{ifindex}-xdp")).exists());
    stage.gateway.start().unwrap();
    stage.gateway.attached("dev0").unwrap();
    let again = stage.one(&format!("--from {DEVICE} --to {DM} --proto tcp --port 80"));
    assert_eq!(again["reason"], before["reason"], "after a restart");
}

#[test]
fn many_questions_at_once_are_bounded_and_do_not_hold_up_a_restriction() {
    require!(Root, Bpf);
    let stage = Stage::new();
    stage.open();
    stage.gateway.applied("phone").unwrap();
    let command = |words: &str| {
        let mut c = stage.gateway.lazaret();
        c.args(words.split_whitespace());
        c
    };
    let question = format!("explain --from {DEVICE} --to {MAIL} --proto tcp --port 80 --both");
    let mut running: Vec<_> = (0..12)
        .map(|_| {
            let mut c = command(&question);
            c.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
            c.spawn().unwrap()
        })
        .collect();
    thread::sleep(Duration::from_millis(20));
    stage.local.revoked("phone").unwrap();
    for child in running.drain(..) {
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() || said.contains("BUSY"), "{said}");
    }
    // More than are worked on at a time, on one connection: some are answered, the rest is refused at once.
    const ASKED: usize = 200;
    let asked = v1::ExplainRequest {
        source: DEVICE.to_string(),
        destination: MAIL.to_string(),
        protocol: 6,
        destination_port: 80,
        both: true,
        ..v1::ExplainRequest::default()
    };
    let said = stage.local.block_on(async {
        let mut asking = tokio::task::JoinSet::new();
        for _ in 0..ASKED {
            let (mut client, asked) = (InspectServiceClient::new(stage.local.channel()), asked.clone());
            asking.spawn(async move { client.explain(asked).await });
        }
        asking.join_all().await
    });
    let refused: Vec<_> = said.iter().filter_map(|s| s.as_ref().err()).collect();
    assert!(refused.iter().all(|s| s.code() == tonic::Code::Unavailable), "{refused:?}");
    assert!((1..ASKED).contains(&refused.len()), "{} of {ASKED} refused", refused.len());
    let e = stage.one(&format!("--from {DEVICE} --to {MAIL} --proto tcp --port 80"));
    assert_eq!(e["reason"], "no_rule", "{e:#}");
    process::output(&mut command("status")).unwrap();
}
