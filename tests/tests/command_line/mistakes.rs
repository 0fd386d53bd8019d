//! What an administrator mistypes: every message names the cause and what to do, and every exit code says what happened.

use std::{fs, os::unix::fs::PermissionsExt as _};

use super::gateway::{CONFIG, Gateway, Ran, lazaret};

/// It failed so, and says all of this on standard error.
fn fails(ran: &Ran, code: i32, words: &[&str]) {
    assert_eq!(ran.code, code, "{}{}", ran.out, ran.err);
    for word in words {
        assert!(ran.err.contains(word), "{word:?} is not in: {}", ran.err);
    }
}

#[test]
fn a_code_that_stands_for_nothing_does_not_lead_to_itself() {
    let g = Gateway::new("cli-code");
    for (code, words) in [("A99999999", "audit list"), ("R99999999", "many have come since")] {
        let ran = g.run(&["why", "--reference", code]);
        fails(&ran, 1, &[code, words]);
        assert!(!ran.err.contains("--reference"), "{}", ran.err);
    }
}

#[test]
fn vpn_keys_are_shown() {
    let g = Gateway::new("cli-keys");
    let key = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let registered = g.ok(&["device", "register", "phone", "--pool", "staff", "--vpn-key", key]);
    assert!(registered.contains(key), "{registered}");
    assert!(g.ok(&["device", "show", "phone"]).contains(key));
}

#[test]
fn an_address_of_no_pool_is_said_to_be_in_none() {
    let g = Gateway::new("cli-no-pool");
    assert!(g.ok(&["addresses", "192.0.2.1"]).contains("in no pool"));
    assert!(!g.ok(&["addresses", "10.66.0.9"]).contains("in no pool"));
}

#[test]
fn check_looks_at_what_the_daemon_will_find() {
    let g = Gateway::new("cli-check-state");
    let state = g.path("other-state");
    let config = |more: &str| {
        let state = state.display();
        g.file("state.toml", &format!("{CONFIG}[paths]\nstate = \"{state}\"\n{more}"))
    };
    let mode = |mode| fs::set_permissions(&state, fs::Permissions::from_mode(mode)).unwrap();
    let file = config("");
    assert_eq!(lazaret(&["check", &file]).code, 0, "one that is not there is made");
    fs::create_dir(&state).unwrap();
    mode(0o755);
    let loose = lazaret(&["check", &file]);
    assert_eq!(loose.code, 1, "{}", loose.out);
    let place = format!("{file}:33: paths.state: ");
    assert!(
        loose.out.starts_with(&place) && loose.out.contains("chmod 0700"),
        "{}",
        loose.out
    );
    mode(0o700);
    fs::write(state.join("lazaret.db"), "").unwrap();
    fs::set_permissions(state.join("lazaret.db"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(lazaret(&["check", &file]).out.contains("chmod 0600"));
    fs::remove_file(state.join("lazaret.db")).unwrap();
    assert_eq!(lazaret(&["check", &file]).code, 0);

    // Without its audit log the daemon runs: a warning.
    let directory = g.path("logs");
    let log = format!("[store]\naudit_log = \"{}\"\n", directory.join("audit.jsonl").display());
    let file = config(&log);
    let said = || {
        let ran = lazaret(&["check", &file]);
        assert_eq!(ran.code, 0, "{}", ran.out);
        ran.out
    };
    assert!(
        said().contains("audit_log is not going to be written") && said().contains("make it"),
        "{}",
        said()
    );
    fs::write(&directory, "").unwrap();
    assert!(said().contains("is not a directory"));
    fs::remove_file(&directory).unwrap();
    fs::create_dir(&directory).unwrap();
    assert!(!said().contains("audit_log"), "{}", said());
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o500)).unwrap();
    assert!(said().contains("cannot write there"), "{}", said());
}

#[test]
fn certificates_by_the_wrong_files() {
    let g = Gateway::new("cli-pki-wrong");
    let (ca, none) = (g.path("ca").display().to_string(), g.path("none").display().to_string());
    let config = g.file("lazaret.toml", CONFIG);
    assert_eq!(lazaret(&["pki", "init", "--dir", &ca]).code, 0);
    let issue = |dir: &str| lazaret(&["pki", "issue", "--dir", dir, "--role", "mdm", "--name", "m"]);
    fails(&issue(&none), 1, &[&none, "lazaret pki init --dir"]);
    let renew = |dir: &str, file: &str| lazaret(&["pki", "renew", "--dir", dir, file]);
    fails(
        &renew(&ca, &config),
        1,
        &[&config, "has no certificate (PEM, BEGIN CERTIFICATE)"],
    );
    assert_eq!(issue(&ca).code, 0);
    let made = g.path("ca/m.pem").display().to_string();
    fails(&renew(&none, &made), 1, &[&none, "lazaret pki init --dir"]);
    fails(
        &renew(&ca, &g.path("ca/m.key").display().to_string()),
        1,
        &["has no certificate"],
    );
}

#[test]
fn what_pki_prints_for_the_configuration_can_stand_there() {
    let g = Gateway::new("cli-pki-out");
    let ca = g.path("ca");
    assert_eq!(lazaret(&["pki", "init", "--dir", &ca.display().to_string()]).code, 0);
    let out = g.path("out");
    fs::create_dir(&out).unwrap();
    let ran = std::process::Command::new(lazaret_tests::gateway::binary())
        .current_dir(&out)
        .args([
            "pki",
            "issue",
            "--dir",
            "../ca",
            "--server",
            "--name",
            "server",
            "--ip",
            "127.0.0.1",
            "--out",
            ".",
        ])
        .output()
        .unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    let api: Vec<&str> = text.lines().map(str::trim).filter(|l| l.contains(" = \"")).collect();
    assert_eq!(api.len(), 3, "{text}");
    // As printed.
    let file = g.file(
        "printed.toml",
        &format!(
            "{CONFIG}[paths]\nstate = \"{}\"\n[api]\nlisten = \"127.0.0.1:9443\"\n{}\n",
            g.path("state3").display(),
            api.join("\n")
        ),
    );
    let checked = lazaret(&["check", &file]);
    assert_eq!(checked.code, 0, "{}", checked.out);
}

#[test]
fn databases_that_are_none() {
    let g = Gateway::new("cli-no-database");
    let state = g.path("never").display().to_string();
    let config = g.file("lazaret.toml", &format!("{CONFIG}[paths]\nstate = \"{state}\"\n"));
    let (directory, none) = (g.path("run").display().to_string(), g.path("none.db").display().to_string());
    for args in [
        &["store", "check"][..],
        &["audit", "verify"],
        &["audit", "list"],
        &["audit", "show", "A1"],
    ] {
        let of = |more: &[&str]| lazaret(&[args, more].concat());
        fails(
            &of(&["--config", &config]),
            1,
            &[&state, &config, "when it first runs", "--database"],
        );
        fails(&of(&["--database", &none]), 1, &["there is no file", &none]);
        fails(&of(&["--database", &directory]), 1, &[&directory, "is not a file"]);
        fails(&of(&["--database", &config]), 1, &[&config, "is not a database of lazaret"]);
    }
    for (backup, words) in [(&none, "there is no file"), (&directory, "is not a file")] {
        fails(
            &lazaret(&["store", "restore", backup, "--config", &config]),
            1,
            &[backup, words],
        );
    }
    let lines = |text: &str| lazaret(&["audit", "verify", "--lines", &g.file("lines", text)]);
    fails(&lines(""), 1, &["lines", "empty"]);
    fails(&lines("x\n"), 1, &["line 1 is none of the audit's", "audit export"]);
    assert_eq!(lazaret(&["audit", "list", "--limit", "0"]).code, 2);
}

#[test]
fn directories_and_certificates_that_pki_cannot_use() {
    let g = Gateway::new("cli-pki-dirs");
    let path = |name: &str| g.path(name).display().to_string();
    let (ca, file) = (path("ca"), g.file("file", ""));
    fails(&lazaret(&["pki", "init", "--dir", &file]), 1, &[&file, "not a directory"]);
    fails(
        &lazaret(&["pki", "init", "--dir", &path("no/such")]),
        1,
        &["make the directory first"],
    );
    assert_eq!(lazaret(&["pki", "init", "--dir", &ca]).code, 0);
    let issue = |more: &[&str]| lazaret(&[&["pki", "issue", "--dir", &ca, "--name", "x"][..], more].concat());
    fails(&issue(&[]), 2, &["--role", "--server"]);
    fails(
        &issue(&["--server", "--role", "mdm", "--ip", "::1"]),
        2,
        &["cannot be used with"],
    );
    fails(
        &issue(&["--role", "mdm", "--out", &path("nowhere")]),
        1,
        &["nowhere", "make the directory first"],
    );
    assert_eq!(issue(&["--role", "mdm"]).code, 0);
    fails(&issue(&["--role", "mdm"]), 1, &["exists already", "pki renew"]);
    let renewed = lazaret(&["pki", "renew", "--dir", &ca, &path("ca/ca.pem")]);
    fails(&renewed, 1, &["CA's certificate", "retiring_ca"]);
}

/// Certificate and key of `openssl req -x509`: CA:TRUE, and no key usage.
fn self_signed_as_openssl_makes_it() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["gateway.test".to_owned()]).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

#[test]
fn check_finds_what_would_end_the_daemon_on_this_host() {
    let g = Gateway::new("cli-check-host");
    let path = |name: &str| g.path(name).display().to_string();
    let ca = path("ca");
    assert_eq!(lazaret(&["pki", "init", "--dir", &ca]).code, 0);
    for (role, name) in [(&["--server", "--ip", "127.0.0.1"][..], "gw"), (&["--role", "mdm"], "mdm")] {
        let args = [&["pki", "issue", "--dir", &ca, "--name", name][..], role].concat();
        assert_eq!(lazaret(&args).code, 0);
    }
    let pair = self_signed_as_openssl_makes_it();
    g.file("ca/own.pem", &pair.0);
    let key = g.file("ca/own.key", &pair.1);
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    let checked = |more: &str| lazaret(&["check", &g.file("host.toml", &format!("{CONFIG}{more}"))]);
    let api = |at: &str, pair: &str, trusted: &str| {
        checked(&format!(
            "[api]\nlisten = \"{at}\"\ncertificate = \"{ca}/{pair}.pem\"\nkey = \"{ca}/{pair}.key\"\nclient_ca = \"{trusted}\"\n"
        ))
    };
    let (good, trusted) = ("127.0.0.1:9443", path("ca/ca.pem"));
    let whole = api(good, "gw", &trusted);
    assert!(whole.code == 0 && !whole.out.contains("listen"), "{}", whole.out);
    let below = format!("[paths]\nstate = \"{}/state\"\n", g.file("file", ""));
    for (ran, place, words) in [
        (
            checked("[process]\nuser = \"nobody-of-this-name\"\n"),
            "process.user",
            "useradd",
        ),
        (
            checked("[metrics]\nlisten = \"/run/x/m.sock\"\ngroup = \"no-group-of-this-name\"\n"),
            "metrics.group",
            "groupadd",
        ),
        (checked(&below), "paths.state", "Not a directory"),
        (api(good, "mdm", &trusted), "api.certificate", "not for servers"),
        (api(good, "ca", &trusted), "api.certificate", "pki issue --server"),
        (api(good, "gw", &path("ca/gw.key")), "api.client_ca", "has no certificate"),
        (api(good, "gw", &path("ca/gw.pem")), "api.client_ca", "not a CA's"),
    ] {
        assert_eq!(ran.code, 1, "{}", ran.out);
        let line = ran.out.lines().next().unwrap();
        assert!(line.contains(&format!(": {place}: ")) && line.contains(words), "{line}");
    }
    // One that some clients take and some do not is theirs to judge.
    let self_signed = api(good, "own", &trusted);
    assert!(
        self_signed.code == 0 && self_signed.out.contains("is a CA's, too"),
        "{}",
        self_signed.out
    );
    let elsewhere = api("192.0.2.77:9443", "gw", &trusted);
    assert_eq!(elsewhere.code, 0);
    assert!(
        elsewhere.out.contains("no interface of this host has 192.0.2.77"),
        "{}",
        elsewhere.out
    );
}

#[test]
fn numbers_that_make_no_sense_are_the_command_line_s() {
    for args in [
        &["exception", "grant", "x", "--block", "--for", "1ms", "--reason", "y"][..],
        &["exception", "grant", "x", "--block", "--for", "2", "--reason", "y"],
        &["addresses", "--limit", "0"],
        &["status", "--timeout", "0"],
        &["session", "close", "abc"],
    ] {
        assert_eq!(lazaret(args).code, 2, "{args:?}");
    }
    let g = Gateway::new("cli-remedies");
    let certificate = "00".repeat(32);
    g.ok(&["device", "register", "a", "--certificate", &certificate]);
    for (args, words) in [
        (
            &["device", "register", "b", "--certificate", &certificate][..],
            "retire the other device",
        ),
        (&["exception", "end", "a"], "lazaret why"),
    ] {
        fails(&g.run(args), 1, &[words]);
    }
}
