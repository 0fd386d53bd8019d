//! End to end, a device's whole life by the command line: keys, a publication, exceptions, what is told of it; packets say what is in force.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{net::TcpListener, thread, time::Duration};

use lazaret_tests::{
    gateway::Gateway,
    process, require, services,
    site::{self, Site},
};
use serde_json::Value;

/// How long something that must not arrive is waited for.
const PATIENCE: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(5);

struct Desk {
    gateway: Gateway,
    site: Site,
}

impl Desk {
    /// `phone` is connected by Ethernet, to a core with a DM server and a mail server.
    fn new() -> Self {
        let site = Site::new().unwrap();
        site.by_ethernet().unwrap();
        for at in [site::DM, site::MAIL] {
            let listener = site.core.run(|| TcpListener::bind((at, 80))).unwrap();
            thread::spawn(move || listener.incoming().for_each(drop));
        }
        let mut gateway = Gateway::new(&site, "dev0").unwrap();
        gateway.start().unwrap();
        gateway.attached("dev0").unwrap();
        gateway.attached("core0").unwrap();
        let local = gateway.local().unwrap();
        local.register("phone", "staff").unwrap();
        local.open("lab", "phone", &["10.66.0.5"], "dev0").unwrap();
        Self { gateway, site }
    }

    fn json(&self, words: &str) -> Value {
        serde_json::from_str(&self.gateway.cli(&format!("{words} --json")).unwrap()).unwrap()
    }

    /// What a command that must be refused says.
    fn refused(&self, words: &str) -> String {
        let error = process::output(self.gateway.lazaret().args(words.split_whitespace()));
        format!("{:#}", error.expect_err(words))
    }

    fn mail(&self, wanted: bool) {
        let limit = if wanted { LIMIT } else { PATIENCE };
        let reached = services::reaches(&self.site.device, site::MAIL, 80, limit);
        assert_eq!(reached, wanted, "the mail server; {}", self.why());
    }

    fn why(&self) -> String {
        self.gateway.cli("why phone").unwrap()
    }
}

#[test]
fn keys_a_publication_and_exceptions() {
    require!(Root, Bpf);
    let desk = Desk::new();
    desk.mail(false);

    desk.gateway.cli("policy publish r1 --ceiling 100 --rate 100").unwrap();
    // Only the final key releases, and the temporary one is taken once.
    let temporary = desk.json("policy offer phone --revision r1");
    let temporary = temporary["temporary_key"].as_str().unwrap();
    assert!(desk.why().contains("policy-pending"), "{}", desk.why());
    let release = format!("device release phone --policy-revision r1 --key {temporary}");
    assert!(desk.refused(&release).contains("POLICY_KEY_TEMPORARY"));
    let acknowledge = format!("policy acknowledge phone --key {temporary}");
    let key = desk.json(&acknowledge);
    let key = key["final_key"].as_str().unwrap();
    assert!(desk.refused(&acknowledge).contains("POLICY_KEY_UNKNOWN"));
    let other = format!("device release phone --policy-revision r9 --key {key}");
    assert!(desk.refused(&other).contains("POLICY_KEY_REVISION"));
    desk.mail(false);
    desk.gateway
        .cli(&format!("device release phone --policy-revision r1 --key {key}"))
        .unwrap();
    desk.mail(true);

    // A newer revision: what was proved is not enough.
    desk.gateway.cli("policy publish r2 --urgent").unwrap();
    process::until(LIMIT, "its wave comes", || Ok(desk.why().contains("stale"))).unwrap();
    desk.mail(false);
    let why = desk.why();
    assert!(
        why.contains("r1") && why.contains("r2"),
        "what is required, and what was found: {why}"
    );
    let refusal = desk.refused("device release phone --policy-revision r1");
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
    desk.mail(true);
    desk.gateway.cli("exception end phone").unwrap();
    desk.mail(false);
    grant("block").unwrap();
    assert!(
        desk.refused("device release phone --policy-revision r2")
            .contains("DEVICE_BLOCKED")
    );
    desk.gateway.cli("exception end phone").unwrap();
    desk.gateway.cli("device release phone --policy-revision r2").unwrap();
    desk.mail(true);
    assert!(desk.gateway.cli("renew phone").unwrap().contains("phone"));
    let progress = desk.json("policy progress");
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
