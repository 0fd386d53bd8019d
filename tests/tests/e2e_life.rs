//! End to end, a device's whole life by the command line: keys, a publication, exceptions, what is told of it; packets say what is in force.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use lazaret_tests::{
    desk::{Desk, LIMIT, PATIENCE},
    process, require, site,
};

/// What a command that must be refused says, with the MDM's certificate.
fn refused(desk: &Desk, words: &str) -> String {
    format!("{:#}", desk.gateway.cli_as_mdm(words).expect_err(words))
}

/// What a command of an MDM's gives.
fn mdm(desk: &Desk, words: &str) -> serde_json::Value {
    let text = desk.gateway.cli_as_mdm(&format!("{words} --json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn mail(desk: &Desk, wanted: bool) {
    let reached = desk.reaches(site::MAIL, if wanted { LIMIT } else { PATIENCE });
    assert_eq!(reached, wanted, "the mail server; {}", why(desk));
}

fn why(desk: &Desk) -> String {
    desk.gateway.cli("why phone").unwrap()
}

#[test]
fn keys_a_publication_and_exceptions() {
    require!(Root, Bpf);
    let desk = Desk::new(|_| Ok(())).unwrap();
    desk.local.register("phone", "staff").unwrap();
    desk.open().unwrap();
    mail(&desk, false);

    desk.gateway.cli("policy publish r1 --ceiling 100 --rate 100").unwrap();
    // Only the final key releases, and the temporary one is taken once.
    let temporary = mdm(&desk, "policy offer phone --revision r1");
    let temporary = temporary["temporary_key"].as_str().unwrap();
    assert!(why(&desk).contains("policy-pending"), "{}", why(&desk));
    let applied = format!("policy applied phone --revision r1 --key {temporary}");
    assert!(refused(&desk, &applied).contains("POLICY_KEY_TEMPORARY"));
    let acknowledge = format!("policy acknowledge phone --key {temporary}");
    let key = mdm(&desk, &acknowledge);
    let key = key["final_key"].as_str().unwrap();
    assert!(refused(&desk, &acknowledge).contains("POLICY_KEY_UNKNOWN"));
    let other = format!("policy applied phone --revision r9 --key {key}");
    assert!(refused(&desk, &other).contains("POLICY_KEY_REVISION"));
    mail(&desk, false);
    // An operator proves nothing, not even with the key; by hand he releases for a time and with a reason alone.
    let applied = format!("policy applied phone --revision r1 --key {key}");
    let by_root = desk.gateway.lazaret().args(applied.split_whitespace()).output().unwrap();
    let said = String::from_utf8_lossy(&by_root.stderr).into_owned();
    assert_eq!(by_root.status.code(), Some(5), "{said}");
    assert!(said.contains("--api") && said.contains("lazaret device release"), "{said}");
    for incomplete in ["", "--for 1h", "--reason test"] {
        let words = format!("device release phone {incomplete}");
        let code = desk
            .gateway
            .lazaret()
            .args(words.split_whitespace())
            .output()
            .unwrap()
            .status
            .code();
        assert_eq!(code, Some(2), "{words}");
    }
    mail(&desk, false);
    desk.gateway.cli("device release phone --for 1h --reason test").unwrap();
    mail(&desk, true);
    let told = why(&desk);
    assert!(
        told.contains("an operator released it by an exception") && told.contains("uid:0"),
        "{told}"
    );
    // The MDM's proof takes the exception's place, and that is told.
    desk.gateway.cli_as_mdm(&applied).unwrap();
    mail(&desk, true);
    let told = why(&desk);
    assert!(
        told.contains("policy revision r1 was reported as applied") && told.contains("By mdm"),
        "{told}"
    );
    assert!(!told.contains("an operator released"), "{told}");

    // A newer revision: what was proved is not enough.
    desk.gateway.cli("policy publish r2 --urgent").unwrap();
    process::until(LIMIT, "its wave comes", || Ok(why(&desk).contains("stale"))).unwrap();
    mail(&desk, false);
    let why = why(&desk);
    assert!(
        why.contains("r1") && why.contains("r2"),
        "what is required, and what was found: {why}"
    );
    let refusal = refused(&desk, "policy applied phone --revision r1");
    assert!(refusal.contains("STALE_POLICY_REVISION"), "{refusal}");
    let code = refusal.split(|c: char| !c.is_ascii_alphanumeric()).find(|word| {
        word.strip_prefix('A')
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    });
    let found = desk
        .gateway
        .cli(&format!("why --reference {}", code.expect("a reference code")))
        .unwrap();
    assert!(found.contains("STALE_POLICY_REVISION") && found.contains("phone"), "{found}");

    // An operator's exceptions.
    let grant = |what: &str| {
        desk.gateway
            .cli(&format!("exception grant phone --{what} --for 1h --reason replacement"))
    };
    grant("release").unwrap();
    mail(&desk, true);
    desk.gateway.cli("exception end phone").unwrap();
    mail(&desk, false);
    grant("block").unwrap();
    assert!(refused(&desk, "policy applied phone --revision r2").contains("DEVICE_BLOCKED"));
    desk.gateway.cli("exception end phone").unwrap();
    desk.gateway.cli_as_mdm("policy applied phone --revision r2").unwrap();
    mail(&desk, true);
    assert!(desk.gateway.cli_as_mdm("renew phone").unwrap().contains("phone"));
    let progress = desk.json("policy progress").unwrap();
    assert_eq!(progress["policy_revision"], "r2", "{progress}");
    let drift = desk.gateway.cli("drift").unwrap();
    assert!(drift.contains(" 0 differed"), "{drift}");

    // All of it is in the audit, and the chain holds.
    let config = desk.gateway.config();
    let audit = desk
        .gateway
        .cli(&format!("audit list --limit 100 --config {}", config.display()))
        .unwrap();
    for action in ["AcknowledgePolicy", "PublishPolicyRevision", "GrantException", "EndException"] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
    let verified = desk
        .gateway
        .cli(&format!("audit verify --config {}", config.display()))
        .unwrap();
    assert!(verified.contains("the chain is whole"), "{verified}");
}

/// Offline devices and one that was never released hold no wave up; a ceiling that is full does, and says so.
#[test]
fn a_wave_waits_for_room_under_its_ceiling_and_says_so() {
    require!(Root, Bpf);
    let desk = Desk::new(|_| Ok(())).unwrap();
    let address = |n: usize| format!("10.66.0.{}", 10 + n);
    let open = |name: &str, n: usize| desk.local.open("lab", name, &[&address(n)], "dev0").unwrap().session.unwrap();
    let mut sessions = Vec::new();
    for n in 0..4 {
        let name = format!("w{n}");
        desk.local.register(&name, "staff").unwrap();
        sessions.push(open(&name, n).session_id);
        desk.gateway.applied(&name).unwrap();
    }
    for offline in &sessions[2..] {
        desk.local.close(*offline).unwrap();
    }
    desk.local.register("new", "staff").unwrap();
    open("new", 5);
    desk.gateway.cli_as_mdm("policy offer new --revision baseline-7").unwrap();

    let pool = |n: usize| desk.local.address(&address(n)).unwrap().current_pool;
    let comes = |what: &str, n: usize| process::until(LIMIT, what, || Ok(pool(n) == "quarantine")).unwrap();
    desk.gateway.cli("policy publish r2 --ceiling 1 --rate 600").unwrap();
    comes("the first wave", 0);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!(pool(1), "staff", "the ceiling is full");
    let stands = || desk.json("policy progress").unwrap();
    let told = stands();
    let figures = ["waiting", "waiting_connected", "stale", "stale_counted"].map(|f| told[f].as_u64().unwrap());
    assert_eq!(figures, [3, 1, 1, 1], "{told}");
    assert!(told["ceiling_full_since"].is_string(), "{told}");
    for words in ["policy progress", "why w1"] {
        let text = desk.gateway.cli(words).unwrap();
        assert!(text.contains("the ceiling of 1 is full"), "{words}: {text}");
    }
    let text = desk.gateway.cli("why w2").unwrap();
    assert!(text.contains("its wave comes when it is"), "{text}");

    // Whoever goes makes room; offered the policy, it still counts when it is back.
    desk.local.close(sessions[0]).unwrap();
    comes("the second wave", 1);
    desk.gateway.cli_as_mdm("policy offer w0 --revision r2").unwrap();
    open("w0", 0);
    open("w2", 2);
    std::thread::sleep(std::time::Duration::from_millis(2500));
    assert_eq!((pool(2).as_str(), stands()["stale_counted"].as_u64()), ("staff", Some(2)));
    for proved in ["w0", "w1"] {
        desk.gateway
            .cli_as_mdm(&format!("policy applied {proved} --revision r2"))
            .unwrap();
    }
    comes("the third wave", 2);
    desk.gateway.cli_as_mdm("policy applied w2 --revision r2").unwrap();
    process::until(LIMIT, "nobody who waits is connected", || {
        Ok(stands()["standstill"]
            .as_str()
            .is_some_and(|why| why.starts_with("none of the 1 ")))
    })
    .unwrap();
    // What is urgent asks nobody whether he is there.
    desk.gateway.cli("policy publish r2 --urgent").unwrap();
    process::until(LIMIT, "all are stale", || Ok(stands()["waiting"] == 0)).unwrap();
    assert!(desk.gateway.cli("why w3").unwrap().contains("w3 is stale"));
}
