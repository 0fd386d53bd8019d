//! The keys of a device's life: what is refused, and what is warned of.

use super::*;

fn head(section: &'static str) -> String {
    File { head: section, ..GOOD }.text()
}

#[test]
fn left_out_they_are_as_documented() {
    let config = parse(&GOOD.text()).unwrap();
    assert_eq!((config.devices, config.proofs, config.keep), Default::default());
    assert!(config.sources.is_empty());
    let devices = Devices::default();
    assert_eq!(devices.deadline, Some(Duration::from_secs(48 * 3600)));
    assert_eq!(
        (devices.outside_window, devices.after_deadline),
        (OutsideWindow::Refuse, AfterDeadline::Block)
    );
}

#[test]
fn wrong_values_are_named_with_what_would_be_right() {
    for (text, parts) in [
        (
            "[devices]\noutside_window = \"deny\"\n",
            &["devices.outside_window", "\"refuse\" or \"block\""][..],
        ),
        (
            "[devices]\nquarantine_deadline = \"never\"\n",
            &["devices.quarantine_deadline", "not a duration", "or \"off\""],
        ),
        (
            "[devices]\nquarantine_deadline = \"1s\"\n",
            &["out of range", "60s", "or \"off\""],
        ),
        (
            "[devices]\nquarantine_deadline = false\n",
            &["type is boolean", "string, in quotes"],
        ),
        ("[devices]\nafter_deadline = \"refuse\"\n", &["\"block\" or \"report\""]),
        (
            "[devices]\nmax_exception = \"366d\"\n",
            &["devices.max_exception", "out of range"],
        ),
        (
            "[devices]\nmax_exeption = \"1d\"\n",
            &["devices.max_exeption: unknown key", "did you mean max_exception?"],
        ),
        (
            "[proof]\ndirect_signal = \"false\"\n",
            &["proof.direct_signal", "type is string", "true or false, without quotes"],
        ),
        (
            "[proof]\nmax_signal_age = \"31d\"\n",
            &["proof.max_signal_age", "out of range"],
        ),
        ("[proof]\noffer_ttl = \"0s\"\n", &["proof.offer_ttl", "out of range"]),
        (
            "[store]\nrequest_memory = \"1ms\"\n",
            &["store.request_memory", "out of range"],
        ),
        ("[store]\naudit_entries = 1\n", &["store.audit_entries", "from 1000 to"]),
        ("[store]\naudit_log = \"audit.jsonl\"\n", &["store.audit_log", "relative"]),
    ] {
        at(&head(text), 2, parts);
    }
    at(&head("[source]\nname = \"a\"\n"), 1, &["source", "[[source]]"]);
    at(
        &head("[[source]]\nheartbeat = \"5m\"\n"),
        1,
        &["source.name", "name = \"vpn-1\""],
    );
    at(
        &head("[[source]]\nname = \"a b\"\nheartbeat = \"5m\"\n"),
        2,
        &["source.name", "a source name must be"],
    );
    at(
        &head("[[source]]\nname = \"a\"\nheartbeat = \"1s\"\n"),
        3,
        &["source.heartbeat", "out of range"],
    );
}

#[test]
fn values_that_contradict_each_other() {
    let twice = "[[source]]\nname = \"a\"\nheartbeat = \"5m\"\n[[source]]\nname = \"a\"\nheartbeat = \"6m\"\n";
    at(&head(twice), 5, &["source.name", "stands twice, first in line 2"]);
    let off = "[devices]\nquarantine_deadline = \"off\"\nafter_deadline = \"report\"\n";
    at(&head(off), 3, &["devices.after_deadline", "no deadline that could pass"]);
    one(
        &with("kind = \"quarantine\"", "kind = \"quarantine\"\nmin_trust = \"certificate\""),
        "min_trust",
        &["pool.min_trust", "only a pool of kind full-service"],
    );
    one(
        &with("lease = \"24h\"", "lease = \"24h\"\nmin_trust = \"key\""),
        "min_trust",
        &["\"name\" or \"vpn-key\" or \"certificate\""],
    );
}

#[test]
fn what_an_operator_may_not_have_meant() {
    let warned = |text: &str| parse(text).unwrap().warnings().join("\n");
    assert!(warned(&head("[devices]\nquarantine_deadline = \"off\"\n")).contains("stays in quarantine for ever"));
    assert!(warned(&head("[devices]\noutside_window = \"block\"\n")).contains("no pool of kind blocked"));
    assert!(warned(&head("[proof]\nmax_signal_age = \"1h\"\n")).contains("pool staff: its lease is longer than max_signal_age"));
    let lax =
        head("[devices]\nunknown = \"quarantine\"\n").replace("lease = \"24h\"", "lease = \"24h\"\nmin_trust = \"vpn-key\"");
    assert!(warned(&lax).contains("pool staff: min_trust"));
}
