//! `lazaret denials --follow` and `lazaret counters`, with real denied packets.

use lazaret_tests::{
    netns::Namespace,
    process::{Process, until},
    require,
    site::{self, DM, MAIL},
};

use crate::stage::{LIMIT, PATIENCE, Stage};

#[test]
fn denials_are_followed_as_they_happen() {
    require!(Root, Bpf);
    let stage = Stage::new();
    stage.open();
    let follow = |words: &str, log: &str| -> Process {
        let mut c = stage.gateway.lazaret();
        c.args(["denials", "--follow", "--limit", "0"]).args(words.split_whitespace());
        Process::spawn(&mut c, &stage.gateway.folder().join(log)).unwrap()
    };
    let mut all = follow("", "all.log");
    let mut phone = follow("--device phone --pool quarantine --reason no_rule --json", "phone.log");
    let nobody = follow("--device phone --reason blocked", "nobody.log");
    // They follow from when they are connected; each attempt is another flow, so that it is told again.
    let (all_log, phone_log) = (
        stage.gateway.folder().join("all.log"),
        stage.gateway.folder().join("phone.log"),
    );
    let both = |path: &std::path::Path, part: &str| std::fs::read_to_string(path).unwrap_or_default().contains(part);
    until(LIMIT, "both have shown a denial", || {
        stage.reaches(MAIL, PATIENCE);
        Ok(both(&all_log, "no_rule") && both(&phone_log, "no_rule"))
    })
    .unwrap();
    let shown = all.log();
    println!("{shown}");
    assert!(shown.contains("phone tcp 10.66.0.5:"), "{shown}");
    assert!(shown.contains("10.9.0.20:80 no_rule (pool quarantine)"), "{shown}");
    assert_eq!(
        shown.matches("If the device should reach it").count(),
        1,
        "the remedy is said once:\n{shown}"
    );
    for line in phone.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let d = &line["denial"];
        assert!(d.is_null() || d["device_id"] == "phone" && d["reason"] == "no_rule", "{line}");
    }
    assert!(!nobody.log().contains("no_rule"), "{}", nobody.log());
    for words in ["denials --device stranger", "denials --follow --device stranger"] {
        let (code, why) = stage.refused(words);
        assert_eq!(code, 1, "{why}");
        assert!(why.contains("UNKNOWN_DEVICE"), "{why}");
    }

    // What is listed afterwards is filtered alike.
    for (words, some) in [
        ("--device phone", true),
        ("--pool quarantine", true),
        ("--pool staff", false),
        ("--reason vlan", false),
    ] {
        let listed = stage.gateway.cli(&format!("denials {words}")).unwrap();
        assert_eq!(listed.contains("no_rule"), some, "{words}: {listed}");
    }
    all.kill().unwrap();
    phone.kill().unwrap();
}

#[test]
fn counters_by_rule_are_exact_and_say_which_rule() {
    require!(Root, Bpf);
    let stage = Stage::new();
    stage.open();
    let rule = |number: u64| -> serde_json::Value {
        let (counters, _) = stage.all_counted();
        let rules = counters["rules"].as_array().unwrap();
        rules.iter().find(|r| r["number"] == number).cloned().unwrap_or_default()
    };
    // It listens and is silent: an ICMP error about the query would count under the rule, too, as `related`.
    let _resolver = stage
        .site
        .core
        .run(|| std::net::UdpSocket::bind((site::RESOLVER, 53)).unwrap());
    let dns = |_: &Namespace| {
        let socket = stage.site.device.run(|| std::net::UdpSocket::bind("10.66.0.5:0")).unwrap();
        for _ in 0..3 {
            socket.send_to(b"?", (site::RESOLVER, 53)).unwrap();
        }
    };
    assert!(stage.reaches(DM, LIMIT));
    dns(&stage.site.device);
    until(LIMIT, "three packets are counted under the resolver's rule", || {
        Ok(rule(2)["packets"] == 3)
    })
    .unwrap();
    let two = rule(2);
    assert_eq!(two["policy"], "enrolment");
    assert_eq!(two["text"], "to = [\"10.9.0.53/32\"] protocol = \"udp\" ports = [\"53\"]");
    assert_eq!(two["bytes"], 3 * (20 + 8 + 1), "{two}");
    let shown = stage.gateway.cli("counters --rules").unwrap();
    println!("{shown}");
    assert!(shown.contains("10.9.0.53/32"), "{shown}");
    let shown = stage.gateway.cli("counters --shadow").unwrap();
    assert!(shown.contains("no pool has a shadow policy"), "{shown}");
}
