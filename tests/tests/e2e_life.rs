//! End to end, a device's whole life by the command line: keys, a publication, exceptions, what is told of it; packets say what is in force.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use lazaret_tests::{
    desk::{Desk, LIMIT, PATIENCE},
    process, require, site,
};

/// What a command that must be refused says.
fn refused(desk: &Desk, words: &str) -> String {
    let error = process::output(desk.gateway.lazaret().args(words.split_whitespace()));
    format!("{:#}", error.expect_err(words))
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
    let temporary = desk.json("policy offer phone --revision r1").unwrap();
    let temporary = temporary["temporary_key"].as_str().unwrap();
    assert!(why(&desk).contains("policy-pending"), "{}", why(&desk));
    let release = format!("device release phone --policy-revision r1 --key {temporary}");
    assert!(refused(&desk, &release).contains("POLICY_KEY_TEMPORARY"));
    let acknowledge = format!("policy acknowledge phone --key {temporary}");
    let key = desk.json(&acknowledge).unwrap();
    let key = key["final_key"].as_str().unwrap();
    assert!(refused(&desk, &acknowledge).contains("POLICY_KEY_UNKNOWN"));
    let other = format!("device release phone --policy-revision r9 --key {key}");
    assert!(refused(&desk, &other).contains("POLICY_KEY_REVISION"));
    mail(&desk, false);
    desk.gateway
        .cli(&format!("device release phone --policy-revision r1 --key {key}"))
        .unwrap();
    mail(&desk, true);

    // A newer revision: what was proved is not enough.
    desk.gateway.cli("policy publish r2 --urgent").unwrap();
    process::until(LIMIT, "its wave comes", || Ok(why(&desk).contains("stale"))).unwrap();
    mail(&desk, false);
    let why = why(&desk);
    assert!(
        why.contains("r1") && why.contains("r2"),
        "what is required, and what was found: {why}"
    );
    let refusal = refused(&desk, "device release phone --policy-revision r1");
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
    assert!(refused(&desk, "device release phone --policy-revision r2").contains("DEVICE_BLOCKED"));
    desk.gateway.cli("exception end phone").unwrap();
    desk.gateway.cli("device release phone --policy-revision r2").unwrap();
    mail(&desk, true);
    assert!(desk.gateway.cli("renew phone").unwrap().contains("phone"));
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
