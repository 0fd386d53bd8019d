//! What is written is read again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use gateway_ebpf::abi::{Answers, Count, ShadowCount};

use super::*;
use crate::{
    access::{
        report::{CaReport, ListReport},
        trust::Dated,
    },
    audit::Head,
    controller::{CounterView, Counters, DriftView, Meters, Status},
    kernel::{HookState, InterfaceState, Losses},
    model::{Device, DeviceState, Fingerprint, Revision, WallTime},
    transition::{Context, Policies},
};

const NOW: WallTime = WallTime(1_800_000_000_000);

fn config() -> Config {
    let text = include_str!("../../../../deploy/lazaret.toml");
    Config::parse(Path::new("lazaret.toml"), text).unwrap()
}

fn count(packets: u64) -> Count {
    Count {
        packets,
        bytes: packets * 100,
    }
}

fn figures() -> Figures {
    let hook = |hook, program_id| HookState {
        hook,
        mode: "tcx",
        program_id,
        problem: String::new(),
    };
    let meters = Meters::default();
    meters.commits.observe(0.002);
    Figures {
        status: Status {
            mode: Mode::Enforce,
            floor: "closed".to_owned(),
            interfaces: Ok(vec![InterfaceState {
                name: "tun0".to_owned(),
                ifindex: Some(3),
                role: crate::config::InterfaceRole::Device,
                hooks: vec![hook(HookPoint::TcIngress, Some(7)), hook(HookPoint::TcEgress, None)],
            }]),
            revision: Revision(12),
            store: "the disk is full".to_owned(),
            devices: 5,
            sessions: 4,
            started_at: WallTime(NOW.0 - 90_000),
            looked_at: NOW,
            warnings: vec!["one".to_owned()],
            conflicts: Vec::new(),
            not_durable: 2,
            losses: Losses::default(),
        },
        counters: Counters {
            counters: vec![
                CounterView {
                    pool: Some(PoolId(1)),
                    reason: Reason::NoRule as u8,
                    count: count(3),
                },
                CounterView {
                    pool: None,
                    reason: Reason::NotOurs as u8,
                    count: count(u64::MAX / 100),
                },
            ],
            rules: vec![
                (
                    1,
                    RuleCount {
                        passed: count(8),
                        shadow_drops: count(0),
                    },
                ),
                (4000, RuleCount::default()),
            ],
            shadow: vec![(
                PoolId(1),
                ShadowCount {
                    would_drop: count(1),
                    would_pass: count(2),
                },
            )],
            answers: vec![(PoolId(1), Answers { sent: 5, limited: 6 })],
            losses: Losses {
                suppressed: 1,
                lost: 2,
                repeated: 3,
                captures_suppressed: 4,
                captures_lost: 5,
            },
        },
        states: DeviceState::ALL.map(|s| (s, s as u64)),
        drift: DriftView {
            compared: 100,
            found: 2,
            repaired: 1,
            ..DriftView::default()
        },
        audit_head: Head {
            number: 77,
            hash: [0xab; 32],
        },
        kernel_problem: false,
        audit_log_problem: true,
        audit_log_lost: 12,
        clock_behind_ms: 1500,
        meters,
    }
}

fn access() -> Report {
    let certificate = |subject: &str, days: u64| Dated {
        subject: subject.to_owned(),
        file: "/x.pem".into(),
        not_after: SystemTime::now() + Duration::from_secs(days * 86_400),
    };
    Report {
        server: certificate("CN=gw", 10),
        cas: vec![CaReport {
            certificate: certificate("CN=\"old\" CA\\", 400),
            fingerprint: Fingerprint::new([1; 32]),
            retiring: true,
            has_list: true,
            clients: Vec::new(),
        }],
        lists: vec![ListReport {
            issuer: "CN=old".to_owned(),
            file: "/x.crl".into(),
            this_update: UNIX_EPOCH,
            next_update: Some(UNIX_EPOCH + Duration::from_secs(5)),
            revoked: 0,
        }],
        since: 0,
        incomplete: false,
        read_at: UNIX_EPOCH,
        connections: 3,
        warnings: vec!["two".to_owned()],
    }
}

fn sample() -> Sample {
    let config = config();
    let mut counts = Counts::default();
    let policies = Policies::default();
    let context = Context {
        now: crate::model::Now {
            wall: NOW,
            boot: crate::model::BootTime(0),
            boot_id: 1,
        },
        config: &config,
        policies: &policies,
        connected: false,
        clock_behind: None,
    };
    let expected = Device::new("d-1".parse().unwrap(), "staff".parse().unwrap(), WallTime(NOW.0 - 60_000));
    counts.add(&expected, &context);
    Sample {
        config: Arc::new(config),
        figures: figures(),
        access: Some(access()),
        ledger: Some((counts, UNIX_EPOCH + Duration::from_millis(NOW.0 as u64))),
    }
}

/// Every sample by its line up to the value; families by name with their kind. Panics at what is not OpenMetrics.
fn parse(text: &str) -> (BTreeMap<String, f64>, BTreeMap<String, String>) {
    let body = text.strip_suffix("# EOF\n").unwrap();
    let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
    let mut family = String::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = name.to_owned();
            assert!(families.insert(family.clone(), kind.to_owned()).is_none(), "twice: {name}");
        } else if !line.starts_with("# HELP ") && !line.starts_with("# UNIT ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(&family), "{line} is not of {family}");
            let whole = name.split('{').next().unwrap();
            let suffix = whole.strip_prefix(family.as_str()).unwrap();
            let right: &[&str] = match families[&family].as_str() {
                "counter" => &["_total"],
                "histogram" => &["_sum", "_count", "_bucket"],
                _ => &[""],
            };
            assert!(right.contains(&suffix), "{line}");
            assert!(
                samples.insert(name.to_owned(), value.parse().unwrap()).is_none(),
                "twice: {line}"
            );
        }
    }
    (samples, families)
}

#[test]
fn figures_are_shown_with_their_labels() {
    let text = text(sample());
    let (samples, _) = parse(&text);
    let holds = |name: &str, value: f64| {
        let found = samples.get(name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        assert!(
            (found - value).abs() < 1e-6 * value.abs().max(1.0),
            "{name}: {found}, not {value}"
        );
    };
    let pool = config().pools[0].name.to_string();
    holds("lazaret_floor_closed", 1.0);
    holds("lazaret_start_time_seconds", (NOW.0 / 1000 - 90) as f64);
    holds(r#"lazaret_hook_attached{interface="tun0",hook="tc_ingress"}"#, 1.0);
    holds(r#"lazaret_hook_attached{interface="tun0",hook="tc_egress"}"#, 0.0);
    holds("lazaret_warnings", 2.0);
    holds(r#"lazaret_devices{state="released"}"#, 3.0);
    holds(r#"lazaret_devices{state="retired"}"#, 6.0);
    holds(r#"lazaret_ledger_devices{kind="expected"}"#, 1.0);
    holds(r#"lazaret_ledger_devices{kind="stuck"}"#, 0.0);
    holds(r#"lazaret_ledger_oldest_seconds{kind="placeholder"}"#, 60.0);
    assert!(!samples.contains_key(r#"lazaret_ledger_oldest_seconds{kind="stuck"}"#));
    holds(
        &format!(r#"lazaret_packets_total{{pool="{pool}",reason="no_rule",verdict="deny"}}"#),
        3.0,
    );
    holds(
        &format!(r#"lazaret_packet_bytes_total{{pool="{pool}",reason="no_rule",verdict="deny"}}"#),
        300.0,
    );
    holds(
        r#"lazaret_packets_total{pool="",reason="not_ours",verdict="pass"}"#,
        (u64::MAX / 100) as f64,
    );
    let rules: Vec<_> = samples
        .keys()
        .filter(|k| k.starts_with("lazaret_rule_packets_total"))
        .collect();
    assert_eq!(
        rules.len(),
        1,
        "what is not configured and has not counted is left out: {rules:?}"
    );
    assert!(
        rules[0].contains(r#"number="1""#) && !rules[0].contains(r#"policy="""#),
        "{rules:?}"
    );
    holds(&format!(r#"lazaret_shadow_packets_total{{pool="{pool}",would="pass"}}"#), 2.0);
    holds(
        &format!(r#"lazaret_denial_answers_total{{pool="{pool}",result="limited"}}"#),
        6.0,
    );
    holds(r#"lazaret_denials_untold_total{why="lost"}"#, 2.0);
    holds(r#"lazaret_captures_missed_total{why="lost"}"#, 5.0);
    holds("lazaret_store_problem", 1.0);
    holds("lazaret_restrictions_not_durable", 2.0);
    holds("lazaret_clock_behind_seconds", 1.5);
    holds("lazaret_audit_head_number", 77.0);
    holds(&format!(r#"lazaret_audit_head_info{{head="77:{}"}}"#, "ab".repeat(32)), 1.0);
    holds("lazaret_audit_log_problem", 1.0);
    holds("lazaret_audit_log_lost_total", 12.0);
    holds("lazaret_drift_found_total", 2.0);
    holds("lazaret_commit_seconds_count", 1.0);
    holds("lazaret_commit_seconds_sum", 0.002);
    let days = samples
        .iter()
        .find(|(k, _)| k.starts_with(r#"lazaret_certificate_days_left{what="server""#))
        .unwrap();
    assert!((days.1 - 10.0).abs() < 0.01, "{days:?}");
    let hostile = r#"lazaret_retiring_ca_pending{subject="CN=\"old\" CA\\",sha256=""#;
    assert!(samples.keys().any(|k| k.starts_with(hostile)), "names are escaped:\n{text}");
    holds(
        r#"lazaret_revocation_list_next_update_timestamp_seconds{issuer="CN=old"}"#,
        5.0,
    );
}

#[test]
fn the_page_lists_what_is_exported_and_nothing_else() {
    let (_, families) = parse(&text(sample()));
    let page = include_str!("../../../../docs/metrics.md");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.trim().trim_end_matches('`').to_owned();
        let kind = cells.next()?.trim().to_owned();
        Some((name.strip_suffix("_total").unwrap_or(&name).to_owned(), kind))
    };
    let listed: BTreeSet<(String, String)> = page.lines().filter_map(row).collect();
    let exported: BTreeSet<(String, String)> = families.into_iter().collect();
    assert_eq!(listed, exported);
}

#[test]
fn without_a_network_api_and_a_count_their_figures_are_left_out() {
    let sample = Sample {
        access: None,
        ledger: None,
        ..sample()
    };
    let (samples, _) = parse(&text(sample));
    assert!(samples.keys().all(|k| !k.contains("certificate") && !k.contains("ledger")));
}
