//! `deploy/lazaret.toml`, as it is, and with every key that it shows commented out.

use super::*;
use crate::config::raw::SCHEMA;

const TEXT: &str = include_str!("../../../../deploy/lazaret.toml");

fn shown(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
        _ => line,
    }
}

fn all_shown() -> String {
    TEXT.lines().map(|l| shown(l).to_owned() + "\n").collect()
}

#[test]
fn it_is_right_and_warns_of_nothing() {
    let config = parse(TEXT).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(config.warnings(), [""; 0]);
    let whole = all_shown();
    assert!(whole.len() < TEXT.len(), "keys are shown commented out");
    parse(&whole).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn every_key_is_in_it() {
    let whole: toml::Table = all_shown().parse().unwrap();
    for (section, keys) in SCHEMA {
        for key in *keys {
            assert!(has(&whole, section, key), "[{section}] {key}");
        }
    }
}

/// Whether any table of the section has the key.
fn has(table: &toml::Table, section: &str, key: &str) -> bool {
    let Some((first, rest)) = section.split_once('.').or((!section.is_empty()).then_some((section, ""))) else {
        return table.contains_key(key);
    };
    match table.get(first) {
        Some(toml::Value::Table(t)) => has(t, rest, key),
        Some(toml::Value::Array(a)) => a.iter().filter_map(toml::Value::as_table).any(|t| has(t, rest, key)),
        _ => false,
    }
}

/// A default that is shown is the default.
#[test]
fn its_defaults_are_the_defaults() {
    let (bare, whole) = (parse(&GOOD.text()).unwrap(), parse(&all_shown()).unwrap());
    assert_eq!(whole.paths, bare.paths);
    assert_eq!(whole.socket.path, bare.socket.path);
    assert_eq!(whole.log, bare.log);
    assert_eq!(whole.devices, bare.devices);
    assert_eq!(whole.proofs, bare.proofs);
    assert_eq!((whole.keep.requests, whole.keep.audit), (bare.keep.requests, bare.keep.audit));
    assert_eq!(whole.pools[1].min_trust, bare.pools[1].min_trust);
    assert_eq!(whole.tables, bare.tables);
    let api = whole.api.unwrap();
    assert_eq!(
        (api.max_message, api.max_connections, api.max_streams, api.handshake_timeout),
        (
            Api::MAX_MESSAGE as usize,
            Api::MAX_CONNECTIONS as usize,
            Api::MAX_STREAMS,
            Api::HANDSHAKE_TIMEOUT
        )
    );
    assert_eq!(
        (
            api.max_connections_per_client,
            api.idle_timeout,
            api.renewal_days,
            api.warn_days
        ),
        (
            Api::MAX_CONNECTIONS_PER_CLIENT as usize,
            Api::IDLE_TIMEOUT,
            Api::DAYS,
            Api::DAYS
        )
    );
    assert!(!api.vpn_without_source);
}
