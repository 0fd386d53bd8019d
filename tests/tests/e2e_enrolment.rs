//! End to end, enrolment: who comes too early or too late is refused, or blocked where so configured; the ledger says who is expected,
//! missed, came outside a window, is stuck or has no owner, by the command line and by RPC; packets say what is in force.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::{collections::BTreeMap, net::IpAddr};

use lazaret_proto::v1::{self, Enforcement, device_service_client::DeviceServiceClient};
use lazaret_tests::{
    desk::{Desk, LIMIT, PATIENCE},
    process, require, site,
};
use tonic_types::StatusExt as _;

/// Long before any test.
const PAST: &str = "2020-01-01T00:00:00Z";

/// With a pool for those who are blocked; `outside` is `devices.outside_window`.
fn desk(outside: &str) -> Desk {
    let blocked = "[[pool]]\nname = \"blocked\"\nkind = \"blocked\"\nprefixes = [\"10.68.0.0/24\"]\npolicy = \"nothing\"\n\
                   gateway_uri = \"blocked.vpn.example.test\"\n\n[[policy]]\nname = \"nothing\"\nallow = \"nothing\"\n\n";
    let policy = "[[policy]]\nname = \"enrolment\"";
    Desk::new(|gateway| {
        let devices = format!("unknown = \"refuse\"\noutside_window = \"{outside}\"");
        gateway.configure("unknown = \"refuse\"", &devices)?;
        gateway.configure(policy, &format!("{blocked}{policy}"))
    })
    .unwrap()
}

fn register(desk: &Desk, words: &str) {
    desk.gateway.cli(&format!("device register {words} --pool staff")).unwrap();
}

fn refused<T: std::fmt::Debug>(answer: Result<T, tonic::Status>) -> String {
    answer.unwrap_err().get_details_error_info().unwrap().reason
}

fn expect(desk: &Desk, to: IpAddr, wanted: bool) {
    let limit = if wanted { LIMIT } else { PATIENCE };
    assert_eq!(desk.reaches(to, limit), wanted, "{to}");
}

/// By kind: the devices of the command line, which are those of the RPC, and as many as both count.
fn ledger(desk: &Desk) -> BTreeMap<String, Vec<String>> {
    let mut by_kind: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for e in desk.json("ledger --list").unwrap()["entries"].as_array().unwrap() {
        let text = |key: &str| e[key].as_str().unwrap().to_owned();
        by_kind.entry(text("kind")).or_default().push(text("device_id"));
    }
    let mut service = DeviceServiceClient::new(desk.local.channel());
    let request = v1::ListLedgerEntriesRequest::default();
    let listed = desk
        .local
        .block_on(service.list_ledger_entries(request))
        .unwrap()
        .into_inner()
        .entries;
    let counted = desk
        .local
        .block_on(service.get_ledger(v1::GetLedgerRequest {}))
        .unwrap()
        .into_inner()
        .counts;
    for count in &counted {
        let kind = count
            .kind()
            .as_str_name()
            .strip_prefix("LEDGER_KIND_")
            .unwrap()
            .to_lowercase();
        let here: Vec<_> = listed
            .iter()
            .filter(|e| e.kind == count.kind)
            .map(|e| e.device_id.clone())
            .collect();
        assert_eq!(
            by_kind.get(&kind).cloned().unwrap_or_default(),
            here,
            "{kind}: command line and RPC"
        );
        assert_eq!(
            (count.devices, count.ages.iter().map(|a| a.devices).sum()),
            (here.len() as u64, here.len() as u64)
        );
    }
    assert_eq!(counted.len(), 5);
    by_kind
}

#[test]
fn outside_its_window_a_device_is_refused_and_the_ledger_knows() {
    require!(Root, Bpf);
    let desk = desk("refuse");
    register(&desk, "early --owner E --not-before 4s");
    register(&desk, &format!("late --owner L --not-after {PAST}"));
    register(&desk, "waiting --owner W");
    register(&desk, "good --owner G --not-after 2d");
    register(&desk, "spare");
    let open = |name: &str, address: &str| desk.local.open("lab", name, &[address], "dev0");
    let begun = ledger(&desk);
    assert_eq!(begun["expected"], ["early", "good", "spare", "waiting"], "{begun:?}");
    assert_eq!(
        (&begun["missed"][..], &begun["placeholder"][..]),
        (&["late".to_owned()][..], &["spare".to_owned()][..])
    );

    assert_eq!(refused(open("early", "10.66.0.5")), "ENROLMENT_NOT_OPEN");
    assert_eq!(refused(open("late", "10.66.0.7")), "ENROLMENT_CLOSED");
    assert_eq!(refused(desk.gateway.applied("late")), "ENROLMENT_CLOSED", "nor by proof");
    assert!(desk.local.list_sessions().unwrap().is_empty());
    expect(&desk, site::MAIL, false);
    open("good", "10.66.0.8").unwrap();
    let outside = ledger(&desk);
    assert_eq!(outside["outside"], ["early", "late"], "{outside:?}");
    assert_eq!(
        outside["stuck"],
        ["good"],
        "it is in quarantine, and its deadline runs: {outside:?}"
    );
    assert_eq!(outside["expected"], ["early", "spare", "waiting"], "{outside:?}");
    let only = desk.gateway.cli("ledger --kind missed").unwrap();
    assert!(only.contains("late") && !only.contains("spare"), "{only}");
    assert!(
        desk.gateway
            .cli("ledger --kind stuck --older 1h")
            .unwrap()
            .contains("no such devices")
    );
    let why = desk.gateway.cli("why late").unwrap();
    assert!(
        why.contains("closed at 2020-01-01T00:00:00Z") && why.contains("--not-after 2d"),
        "{why}"
    );

    // What is refused is in the audit, within a second.
    let list = format!("audit list --limit 100 --config {}", desk.gateway.config().display());
    process::until(LIMIT, "both refusals have entries", || {
        let audit = desk.gateway.cli(&list)?;
        Ok(audit.contains("ENROLMENT_NOT_OPEN") && audit.contains("ENROLMENT_CLOSED"))
    })
    .unwrap();

    // Its time comes; and another window is another enrolment.
    process::until(LIMIT, "the window opens", || Ok(open("early", "10.66.0.5").is_ok())).unwrap();
    assert_eq!(desk.gateway.applied("early").unwrap().enforcement(), Enforcement::Enforced);
    expect(&desk, site::MAIL, true);
    register(&desk, "late --not-after 1h");
    open("late", "10.66.0.7").unwrap();
    assert_eq!(desk.gateway.applied("late").unwrap().enforcement(), Enforcement::Enforced);
    desk.gateway.applied("good").unwrap();
    let last = ledger(&desk);
    assert_eq!(last["expected"], ["spare", "waiting"], "{last:?}");
    assert_eq!(
        (last.get("outside"), last.get("missed"), last.get("stuck")),
        (None, None, None),
        "{last:?}"
    );
}

#[test]
fn outside_its_window_a_device_is_blocked_where_so_configured() {
    require!(Root, Bpf);
    let desk = desk("block");
    let open = |name: &str, address: &str| desk.local.open("lab", name, &[address], "dev0");
    register(&desk, &format!("late --owner L --not-after {PAST}"));
    register(&desk, "early --owner E --not-before 1h");
    expect(&desk, site::DM, true);
    let opened = open("late", "10.66.0.5").unwrap();
    assert_eq!(opened.enforcement(), Enforcement::Enforced, "{opened:?}");
    assert_eq!(desk.local.address("10.66.0.5").unwrap().current_pool, "blocked");
    expect(&desk, site::DM, false);
    expect(&desk, site::MAIL, false);
    open("early", "10.66.0.6").unwrap();
    assert_eq!(desk.local.address("10.66.0.6").unwrap().current_pool, "blocked");
    assert_eq!(ledger(&desk)["outside"], ["early", "late"]);
    // Neither a new connection nor proof opens what is shut.
    let session = opened.session.unwrap().session_id;
    desk.local.close(session).unwrap();
    open("late", "10.66.0.5").unwrap();
    expect(&desk, site::DM, false);
    let reason = refused(desk.gateway.applied("late"));
    assert!(["ENROLMENT_CLOSED", "DEVICE_BLOCKED"].contains(&reason.as_str()), "{reason}");
    let why = desk.gateway.cli("why late").unwrap();
    assert!(why.contains("it arrived outside its enrolment window"), "{why}");
    // Another window does.
    register(&desk, "late --not-after 1h");
    expect(&desk, site::DM, true);
    expect(&desk, site::MAIL, false);
    assert_eq!(desk.gateway.applied("late").unwrap().enforcement(), Enforcement::Enforced);
    expect(&desk, site::MAIL, true);
    assert_eq!(ledger(&desk)["outside"], ["early"]);
}
