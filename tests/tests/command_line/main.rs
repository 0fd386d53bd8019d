//! The command line and the OpenVPN hook: the real binary against the real API, controller and store over a real socket, on a kernel in
//! memory. Texts, JSON and exit codes as people and programs see them.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod gateway;
mod mistakes;
mod restore;

use std::{fs, time::Instant};

use gateway_user::kernel::HookPoint;
use lazaret_tests::require::require;
use serde_json::Value;

use self::gateway::{Gateway, lazaret};

const ADDRESS: &str = "10.66.0.2";

#[test]
fn an_operator_s_day() {
    let g = Gateway::new("cli-day");
    let status = g.ok(&["status"]);
    assert!(
        status.contains("floor             closed") && !status.contains("problem"),
        "{status}"
    );
    assert!(status.contains("tun0") && status.contains("tc egress"), "{status}");

    for (command, nothing) in [
        ("devices", "no devices"),
        ("sessions", "no live sessions"),
        ("addresses", "no addresses"),
        ("denials", "no denied packets"),
    ] {
        assert!(g.ok(&[command]).starts_with(nothing), "{command}");
    }
    assert!(g.ok(&["session", "close", "999"]).starts_with("there is no live session 999"));

    g.ok(&[
        "device",
        "register",
        "phone-1",
        "--owner",
        "A. Person",
        "--common-name",
        "a.person",
    ]);
    let digest = "ab".repeat(32);
    g.ok(&["device", "register", "phone-2", "--certificate", &digest]);
    let changed = g.json(&["device", "register", "phone-2", "--owner", "B. Person"]);
    assert_eq!(
        (&changed["owner"], &changed["aliases"]["certificate_sha256"][0]),
        (&"B. Person".into(), &digest.as_str().into()),
        "what is not named stays: {changed}"
    );
    let replaced = g.json(&["device", "register", "phone-2", "--replace"]);
    assert_eq!(replaced["owner"], "", "{replaced}");
    assert_eq!(replaced["aliases"]["certificate_sha256"], Value::Array(vec![]), "{replaced}");

    let opened = g.json(&[
        "session",
        "open",
        "--device",
        "a.person",
        "--address",
        ADDRESS,
        "--interface",
        "tun0",
        "--source",
        "by-hand",
    ]);
    assert_eq!(opened["enforcement"], "enforced");
    assert_eq!(opened["session"]["device_id"], "phone-1");
    assert_eq!(opened["gateway_uri"], "q.vpn.example");
    let session = opened["session"]["session_id"].to_string();

    let by_hand = ["device", "release", "phone-1", "--for", "8h", "--reason", "the MDM is down"];
    assert_eq!(g.run(&by_hand[..5]).code, 2, "a reason is needed");
    assert_eq!(g.run(&by_hand[..3]).code, 2, "and an end");
    let proof = g.run(&["policy", "applied", "phone-1", "--revision", "r1"]);
    assert_eq!(proof.code, 5, "{}{}", proof.out, proof.err);
    assert!(
        proof.err.contains("it is for mdm") && proof.err.contains("lazaret device release"),
        "{}",
        proof.err
    );
    let released = g.ok(&by_hand);
    for part in [
        "released (exception_release)",
        "vpn.example",
        "in force",
        "10.66.0.2/32",
        "tc ingress",
        "staff",
    ] {
        assert!(released.contains(part), "{part:?} in:\n{released}");
    }
    let device = g.json(&["device", "show", "phone-1"]);
    assert_eq!(
        (&device["state"], &device["exception"]["reason"]),
        (&"released".into(), &"the MDM is down".into())
    );
    assert_eq!(
        g.json(&["devices", "--state", "released"])["devices"][0]["device_id"],
        "phone-1"
    );
    assert_eq!(g.json(&["devices", "--state", "retired"])["devices"], Value::Array(vec![]));
    assert_eq!(g.json(&["addresses", ADDRESS])["addresses"][0]["current_pool"], "staff");
    assert_eq!(g.json(&["sessions"])["sessions"][0]["source"], "by-hand");
    assert_eq!(g.json(&["pools"])["pools"][0]["fallback"], "");
    assert!(g.ok(&["pools"]).contains("ADDRESSES NOW"));
    assert_eq!(g.json(&["counters"])["events_lost"], 0);
    assert_eq!(g.json(&["denials"])["denials"], Value::Array(vec![]));

    let quarantined = g.json(&["device", "quarantine", "phone-1", "--reason", "lost"]);
    assert_eq!(quarantined["gateway_uri"], "q.vpn.example");
    assert_eq!(quarantined["prefixes"][0]["read_backs"][0]["pool"], "quarantine");
    assert_eq!(g.json(&["session", "close", &session])["ended"], true);
    assert_eq!(
        g.json(&["session", "close", &session])["ended"],
        false,
        "a late close ends nobody's"
    );
    assert_eq!(g.json(&["device", "retire", "phone-1"])["enforcement"], "no_session");
}

#[test]
fn exit_codes_say_what_happened() {
    let mut g = Gateway::new("cli-codes");
    let refused = g.run(&["device", "show", "nobody"]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.err.starts_with("lazaret: UNKNOWN_DEVICE: ") && refused.err.contains("lazaret devices"),
        "{}",
        refused.err
    );
    assert_eq!(g.run(&["device", "show", "no/body"]).code, 2, "an id that can be none");
    assert_eq!(g.run(&["nothing"]).code, 2);
    assert_eq!(g.run(&["device", "show", "nobody", "--socket", "/nonexistent"]).code, 3);

    // A program detached by hand, which cannot be attached again: committed, not in force.
    g.ok(&["device", "register", "phone-1"]);
    g.ok(&[
        "session",
        "open",
        "--device",
        "phone-1",
        "--address",
        ADDRESS,
        "--interface",
        "tun0",
        "--source",
        "s",
    ]);
    {
        let mut kernel = g.kernel.state();
        kernel.stuck = true;
        kernel.detached.insert((3, HookPoint::TcIngress));
    }
    let half = g.run(&["device", "release", "phone-1", "--for", "8h", "--reason", "test"]);
    assert_eq!(half.code, 4, "{}{}", half.out, half.err);
    assert!(
        half.out.contains("NOT IN FORCE EVERYWHERE") && half.out.contains("not attached"),
        "{}",
        half.out
    );
    let degraded = g.run(&["status"]);
    assert_eq!(degraded.code, 4);
    assert!(
        degraded.out.contains("NOT ATTACHED") && degraded.out.contains("problem: tun0 tc ingress"),
        "{}",
        degraded.out
    );
    assert_eq!(g.run(&["status", "--json"]).code, 4);

    g.stop();
    let unreachable = g.run(&["status"]);
    assert_eq!(unreachable.code, 3);
    assert!(unreachable.err.contains("systemctl status lazaret"), "{}", unreachable.err);
}

#[test]
fn a_role_that_may_not_is_told_so() {
    require!(Root);
    let g = Gateway::new("cli-role");
    g.open_to_everyone();
    let denied = g.run_as_nobody(&["status"]);
    assert_eq!(denied.code, 5, "{}{}", denied.out, denied.err);
    // As it is installed: the file's mode keeps others away.
    g.close_to_others();
    let kept = g.run_as_nobody(&["status"]);
    assert_eq!(kept.code, 5, "{}{}", kept.out, kept.err);
    assert!(
        kept.err.contains("permission denied") && kept.err.contains("[socket]"),
        "{}",
        kept.err
    );
}

#[test]
fn observe_mode_is_loud() {
    let g = Gateway::observing("cli-observe");
    let status = g.run(&["status"]);
    assert_eq!(status.code, 4);
    assert!(
        status.out.starts_with("OBSERVE MODE") && status.out.contains("NOTHING IS DENIED"),
        "{}",
        status.out
    );
    assert_eq!(g.run_json(&["status"]).1["healthy"], false);
}

#[test]
fn check_says_every_mistake_and_touches_nothing() {
    let g = Gateway::new("cli-check");
    let good = lazaret(&["check", g.file("good.toml", gateway::CONFIG).as_str()]);
    assert_eq!(good.code, 0, "{}{}", good.out, good.err);
    assert!(
        good.out.contains("ok: 2 pools") && good.out.contains("there is no [api]"),
        "{}",
        good.out
    );
    let text = gateway::CONFIG.replace("mode", "mod").replace("\"443\"", "\"0\"") + "[socket]\nvpn_group = 5\n";
    let file = g.file("bad.toml", &text);
    let bad = lazaret(&["check", &file]);
    assert_eq!(bad.code, 1);
    assert_eq!(
        bad.out.lines().filter(|l| l.starts_with(&format!("{file}:"))).count(),
        4,
        "{}",
        bad.out
    );
    let group = g.file(
        "group.toml",
        &(gateway::CONFIG.to_owned() + "[socket]\nvpn_group = \"no-such-group-here\"\n"),
    );
    let missing = lazaret(&["check", &group, "--json"]);
    assert_eq!(missing.code, 1);
    let said: Value = serde_json::from_str(&missing.out).unwrap();
    assert!(said["errors"][0].as_str().unwrap().contains("groupadd"), "{said}");
    assert!(
        said["errors"][0]
            .as_str()
            .unwrap()
            .starts_with(&format!("{group}:33: socket.vpn_group: ")),
        "{said}"
    );
    assert_eq!(lazaret(&["check", "/nonexistent"]).code, 1);
}

/// What is right in the file and wrong outside it has its place in the file too; `run` says the same, and touches nothing.
#[test]
fn files_that_cannot_be_used_are_named_with_the_line_of_their_key() {
    let g = Gateway::new("cli-api");
    let (missing, loose) = (g.path("missing.pem").display().to_string(), g.file("loose.key", "x"));
    let api = |certificate: &str, key: &str| {
        let state = g.path("state2").display().to_string();
        let api = format!("[api]\nlisten = \"127.0.0.1:9443\"\ncertificate = \"{certificate}\"\nkey = \"{key}\"\n");
        let text = format!(
            "{}{api}client_ca = \"{missing}\"\n[paths]\nstate = \"{state}\"\n",
            gateway::CONFIG
        );
        g.file("api.toml", &text)
    };
    let ca = g.path("ca").display().to_string();
    assert_eq!(lazaret(&["pki", "init", "--dir", &ca]).code, 0);
    let server = ["pki", "issue", "--dir", &ca, "--server", "--name", "gw", "--ip", "127.0.0.1"];
    assert_eq!(lazaret(&server).code, 0);
    let made = |name: &str| g.path("ca").join(name).display().to_string();
    for (certificate, key, place) in [
        (missing.as_str(), made("gw.key"), "34: api.certificate: cannot read "),
        (&made("gw.pem"), loose.clone(), "35: api.key: the key "),
        (&made("gw.pem"), made("gw.key"), "36: api.client_ca: cannot read "),
    ] {
        let file = api(certificate, &key);
        let said = format!("{file}:{place}");
        let checked = lazaret(&["check", &file]);
        assert_eq!(checked.code, 1);
        assert!(checked.out.starts_with(&said), "{}", checked.out);
        let ran = lazaret(&["run", "--config", &file]);
        assert_eq!(ran.code, 1);
        assert!(ran.err.starts_with(&format!("lazaret: {said}")), "{}", ran.err);
        assert_eq!(
            ran.err.matches("os error").count(),
            usize::from(place.contains("read")),
            "said once: {}",
            ran.err
        );
        assert!(!g.path("state2").exists(), "nothing was made");
    }
}

/// What OpenVPN 2.6.14 sets for a client.
fn client(script: &str) -> Vec<(&'static str, String)> {
    let digest = "08:da:7f:3e:75:6a:a2:38:a7:c0:50:84:6e:a8:2e:e2:b5:b5:89:f1:75:d9:cd:1a:ac:ca:71:c9:51:13:a5:a6";
    vec![
        ("script_type", script.into()),
        ("common_name", "phone-1".into()),
        ("dev", "tun0".into()),
        ("dev_type", "tun".into()),
        ("ifconfig_pool_remote_ip", ADDRESS.into()),
        ("ifconfig_pool_remote_ip6", "fd00:66::1000".into()),
        ("time_unix", "1795314052".into()),
        ("tls_digest_sha256_0", digest.into()),
    ]
}

#[test]
fn openvpn_s_calls() {
    let mut g = Gateway::new("cli-hook");
    let refused = g.hook(&client("client-connect"), &["/tmp/cc"]);
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("UNKNOWN_DEVICE"), "{}", refused.err);
    assert!(g.states().is_empty(), "a refused client leaves nothing");

    g.ok(&["device", "register", "phone-1"]);
    assert_eq!(g.hook(&client("client-connect"), &["/tmp/cc"]).code, 0);
    let sessions = g.json(&["sessions"]);
    let session = &sessions["sessions"][0];
    assert_eq!(session["source"], "openvpn-tun0");
    assert_eq!(session["prefixes"], serde_json::json!(["10.66.0.2/32", "fd00:66::1000/128"]));

    let learn = client("learn-address");
    for (args, code) in [
        (["add", ADDRESS, "phone-1"], 0),
        (["add", "fd00:66::1000", "phone-1"], 0),
        (["update", ADDRESS, "phone-1"], 0),
        // Not the address that the session was opened on.
        (["add", "10.66.0.3", "phone-1"], 1),
        // A network behind the client.
        (["add", "10.66.0.0/24", "phone-1"], 1),
    ] {
        assert_eq!(g.hook(&learn, &args).code, code, "{args:?}");
    }
    // OpenVPN changed its mind about the address after client-connect: it is another client, for which no session was opened.
    let mut moved = learn.clone();
    moved[4].1 = "10.66.0.9".into();
    assert_eq!(g.hook(&moved, &["add", "10.66.0.9", "phone-1"]).code, 1);
    let late = vec![("script_type", "learn-address".to_owned())];
    assert_eq!(g.hook(&late, &["delete", ADDRESS]).code, 0);

    assert_eq!(g.hook(&client("client-disconnect"), &[]).code, 0);
    assert_eq!(g.json(&["sessions"])["sessions"], Value::Array(vec![]));
    assert!(g.states().is_empty());
    assert_eq!(g.hook(&learn, &["add", ADDRESS, "phone-1"]).code, 1, "it has left");

    // A client that leaves while the daemon is away is told of at the next connection; else the device could not come back.
    assert_eq!(g.hook(&client("client-connect"), &["/tmp/cc"]).code, 0);
    g.stop();
    assert_eq!(g.hook(&client("client-disconnect"), &[]).code, 1);
    assert_eq!(
        g.hook(&client("client-connect"), &["/tmp/cc"]).code,
        1,
        "refused without the daemon"
    );
    g.start();
    let mut again = client("client-connect");
    again[4].1 = "10.66.0.7".into();
    again[6].1 = "1795314999".into();
    let back = g.hook(&again, &["/tmp/cc"]);
    assert_eq!(back.code, 0, "{}", back.err);
    assert_eq!(g.json(&["sessions"])["sessions"][0]["prefixes"][0], "10.66.0.7/32");

    // The server crashed and starts again: nobody is connected.
    let up = vec![
        ("script_type", "up".to_owned()),
        ("dev", "tun0".into()),
        ("dev_type", "tun".into()),
    ];
    assert_eq!(
        g.hook(&up, &["tun0", "1500", "0", "10.66.0.1", "255.255.0.0", "init"]).code,
        0
    );
    assert_eq!(g.json(&["sessions"])["sessions"], Value::Array(vec![]));
    assert!(g.states().is_empty());
}

#[test]
fn openvpn_s_calls_with_hostile_values() {
    let g = Gateway::new("cli-hostile");
    let canary = g.path("canary");
    let touch = format!("$(touch {})", canary.display());
    for (place, bad) in [
        (1, touch.as_str()),
        (1, "../../x"),
        (1, "a\u{1b}[31mb"),
        (2, "../x"),
        (4, "10.66.0.2;id"),
        (7, "zz"),
    ] {
        let mut env = client("client-connect");
        env[place].1 = bad.into();
        let refused = g.hook(&env, &[&touch]);
        assert_eq!(refused.code, 1);
        assert_eq!(refused.err.lines().count(), 1, "one line: {}", refused.err);
        assert!(
            !refused.err.contains(bad) && !refused.err.contains('\u{1b}'),
            "{}",
            refused.err
        );
    }
    // What OpenVPN appends is no option of ours, whatever it looks like.
    let learn = client("learn-address");
    assert_eq!(g.hook(&learn, &["add", ADDRESS, "--socket=/tmp/evil"]).code, 1);
    assert!(!canary.exists());
    let tap = client("client-connect")
        .into_iter()
        .map(|(k, v)| (k, if k == "dev_type" { "tap".to_owned() } else { v }));
    assert!(g.hook(&tap.collect::<Vec<_>>(), &[]).err.contains("use dev tun"));
    let config = g.file("server.conf", "dev tun\nclient-to-client\n");
    let mut env = client("client-connect");
    env.push(("config", config));
    assert!(g.hook(&env, &[]).err.contains("client-to-client"));
}

/// A socket that takes connections and never answers.
#[test]
fn openvpn_waits_no_longer_than_two_seconds() {
    let g = Gateway::new("cli-slow");
    let silent = g.path("silent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&silent).unwrap();
    let started = Instant::now();
    let refused = g.hook_at(&silent, &client("client-connect"), &["/tmp/cc"]);
    let took = started.elapsed();
    assert_eq!(refused.code, 1);
    assert!(took.as_millis() < 2000, "{took:?}");
    assert!(g.states().is_empty());
}

#[test]
fn pki_by_the_command_line() {
    let g = Gateway::new("cli-pki");
    let dir = g.path("ca").display().to_string();
    assert_eq!(lazaret(&["pki", "init", "--dir", &dir]).code, 0);
    assert_eq!(lazaret(&["pki", "init", "--dir", &dir]).code, 1, "nothing is overwritten");
    let made = lazaret(&["pki", "issue", "--dir", &dir, "--role", "mdm", "--name", "mdm-1"]);
    assert_eq!(made.code, 0, "{}", made.err);
    assert!(fs::metadata(g.path("ca").join("mdm-1.pem")).is_ok());
    assert_eq!(
        lazaret(&["pki", "issue", "--dir", &dir, "--role", "root", "--name", "x"]).code,
        2
    );
}

#[test]
fn questions_about_packets() {
    // A reason needs no daemon.
    let one = lazaret(&["reason", "23"]);
    assert_eq!(one.code, 0, "{}", one.err);
    for part in ["wrong_interface", "drop", "Have the VPN server report the session"] {
        assert!(one.out.contains(part), "{part} in {}", one.out);
    }
    let all: Value = serde_json::from_str(&lazaret(&["reason", "--json"]).out).unwrap();
    assert!(all["reasons"].as_array().unwrap().len() > 40);
    let none = lazaret(&["reason", "no_rul"]);
    assert_eq!(none.code, 1);
    assert!(none.err.contains("no_rule"), "{}", none.err);

    // What cannot be asked is said by name; nothing is guessed.
    let g = Gateway::new("cli-packets");
    let explain = |words: &[&str]| g.run(&[&["explain", "--proto", "tcp"], words].concat());
    let tcp = explain(&["--from", ADDRESS, "--to", "10.1.0.5", "--port", "443"]);
    assert_eq!(tcp.code, 1);
    assert!(
        tcp.err.contains("PROBE_FAILED: ") && tcp.err.contains("no data plane"),
        "{}",
        tcp.err
    );
    let port = explain(&["--from", ADDRESS, "--to", "10.1.0.5"]);
    assert!(port.err.contains("--port 443"), "{}", port.err);
    let two = explain(&["--from", ADDRESS, "--to", "10.1.0.5:80", "--port", "443"]);
    assert!(two.err.contains("--to names port 80 and --port 443"), "{}", two.err);
    let flags = explain(&["--from", ADDRESS, "--to", "10.1.0.5:80", "--flags", "X"]);
    assert!(flags.err.contains("tcp_flags"), "{}", flags.err);
    assert_eq!(explain(&["--from", "10.66.0.2:http", "--to", "10.1.0.5:80"]).code, 2);
    assert_eq!(g.run(&["capture", "-w", "x"]).code, 2, "--denied is said");
    let missing = g.run(&["capture", "--denied", "-w", "/nonexistent/x", "--for", "1s"]);
    assert_eq!(missing.code, 1);
    assert!(missing.err.contains("/nonexistent/x"), "{}", missing.err);
    let file = g.path("empty.pcapng");
    let ran = g.run(&["capture", "--denied", "-w", &file.display().to_string(), "--for", "1s"]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains("0 packets; the time is up"), "{}", ran.err);
    assert!(file.metadata().unwrap().len() > 0, "a file without packets is a file");
    let counters = g.json(&["counters"]);
    assert_eq!(
        (&counters["events_repeated"], &counters["captures_lost"]),
        (&0.into(), &0.into())
    );
}
