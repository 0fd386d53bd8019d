//! What must hold between the values of a file. Nothing of the host is asked.

use std::{collections::HashMap, net::IpAddr, path::Path};

use gateway_ebpf::abi;
use ipnetwork::IpNetwork;
use toml::de::DeTable;

use super::{
    Config, ConfigErrors, InterfacePattern, InterfaceRole, PoolKind, build,
    life::RawLife,
    metrics::RawMetrics,
    raw::{RawApi, RawInterface, RawPolicy, RawPool, RawSettings, Word},
    read::{At, Notes, Section, Wrong},
    source, values,
};
use crate::model::PoolName;

/// Checks a text as a whole.
pub(super) fn config(file: &Path, text: &str) -> Result<Config, ConfigErrors> {
    let notes = Notes::new(file, text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        let at = error.span().map_or(0, |s| s.start);
        notes.note(
            at,
            "",
            Wrong::new(error.message(), "mend the TOML; the keys are checked when it can be read"),
        );
    }
    if !syntax.is_empty() {
        return Err(notes.into_errors());
    }

    let document = Section::new(&notes, "", 0..0, document.get_ref());
    let settings = RawSettings::read(&document);
    let life = RawLife::read(&document);
    let api = document.section("api").map(|s| RawApi::read(&s));
    let metrics = document.section("metrics").map(|s| RawMetrics::read(&s));
    let interfaces: Vec<RawInterface> = document
        .sections("interface", "interface")
        .iter()
        .map(RawInterface::read)
        .collect();
    let pools: Vec<RawPool> = document.sections("pool", "pool").iter().map(RawPool::read).collect();
    let policies: Vec<RawPolicy> = document.sections("policy", "policy").iter().map(RawPolicy::read).collect();

    life.check(&notes);
    source::check(&notes, &life.sources, &interfaces, &pools);
    if let Some(metrics) = &metrics {
        metrics.check(&notes);
    }
    check_interfaces(&notes, &document, &interfaces);
    check_interface_pools(&notes, &interfaces, &pools);
    check_policies(&notes, &policies);
    check_pools(&notes, &document, &pools, &policies);
    check_prefixes(&notes, &pools);
    check_reserved(&notes, &pools);
    check_routes(&notes, &pools);

    if notes.is_clean() {
        // Without a mistake nothing is missing; if this said otherwise, it would be one of ours.
        match build::config(settings, life, api, metrics, interfaces, pools, policies) {
            Some(config) => return Ok(config),
            None => notes.note(0, "", Wrong::new("a value was lost in reading", "please report this file")),
        }
    }
    Err(notes.into_errors())
}

fn check_interfaces(notes: &Notes<'_>, document: &Section<'_, '_>, interfaces: &[RawInterface]) {
    let is_device = |i: &RawInterface| i.role.as_ref().is_none_or(|r| r.value == InterfaceRole::Device);
    if !interfaces.iter().any(is_device) {
        let remedy = "write an [[interface]] with role = \"device\"";
        document.lacks(
            "interface",
            Wrong::new("no interface has the role device, so nothing would be judged", remedy),
        );
    }
    for (i, interface) in interfaces.iter().enumerate() {
        let Some(name) = &interface.name else { continue };
        let covering = interfaces[..i]
            .iter()
            .filter_map(|e| e.name.as_ref())
            .find(|e| covers(&e.value, &name.value));
        if let Some(earlier) = covering {
            let line = notes.line(earlier.at);
            let problem = format!(
                "\"{}\" can never match: \"{}\" in line {line} comes first",
                name.value, earlier.value
            );
            notes.note(
                name.at,
                "interface.name",
                Wrong::new(
                    problem,
                    "the first match counts: put the narrower name first, or leave it out",
                ),
            );
        }
    }
}

fn check_interface_pools(notes: &Notes<'_>, interfaces: &[RawInterface], pools: &[RawPool]) {
    for interface in interfaces {
        if let Some(list) = &interface.pools {
            if interface.role.as_ref().is_some_and(|r| r.value == InterfaceRole::Core) {
                let problem = "only a device interface has pools";
                let remedy = "leave pools out: on a core interface every pool address is a destination, and none a source";
                notes.note(list.at, "interface.pools", Wrong::new(problem, remedy));
            }
            duplicates(notes, "interface.pools", list.value.iter());
            for name in &list.value {
                if !pools.iter().any(|p| p.name.as_ref().is_some_and(|n| n.value == name.value)) {
                    let problem = format!("there is no pool {:?}", name.value.as_str());
                    let remedy = known("pools", pools.iter().filter_map(|p| p.name.as_ref()));
                    notes.note(name.at, "interface.pools", Wrong::new(problem, remedy));
                }
            }
        }
        let mut seen = HashMap::new();
        for vlan in &interface.vlans {
            if let Some(first) = seen.insert(vlan.value, vlan.at) {
                let problem = format!("VLAN {} stands twice, first in line {}", vlan.value, notes.line(first));
                notes.note(vlan.at, "interface.vlans", Wrong::new(problem, "leave one out"));
            }
        }
    }
}

/// Whether every name that `b` means is meant by `a`.
fn covers(a: &InterfacePattern, b: &InterfacePattern) -> bool {
    match (a, b) {
        (_, InterfacePattern::Name(name)) => a.matches(name),
        (InterfacePattern::Prefix(short), InterfacePattern::Prefix(long)) => long.as_str().starts_with(short.as_str()),
        (InterfacePattern::Name(_), InterfacePattern::Prefix(_)) => false,
    }
}

fn check_policies(notes: &Notes<'_>, policies: &[RawPolicy]) {
    duplicates(notes, "policy.name", policies.iter().filter_map(|p| p.name.as_ref()));
    for policy in policies {
        match (policy.has_allow, policy.has_rules) {
            (true, true) => {
                let problem = "the policy has both allow and rules";
                notes.note(
                    policy.at,
                    "policy.allow",
                    Wrong::new(problem, "leave one of them out: allow speaks for everything"),
                );
            }
            (false, false) => {
                let remedy = "write [[policy.rule]] sections, or allow = \"all\" or \"nothing\"";
                notes.note(
                    policy.at,
                    "policy.rule",
                    Wrong::new("the policy says nothing of what it allows", remedy),
                );
            }
            _ => {}
        }
    }
    let rules = policies.iter().flat_map(|p| &p.rules);
    // Number 0 is no rule's.
    if let Some(rule) = rules.clone().nth(abi::MAX_RULES - 1) {
        let problem = format!("there are more than {} rules", abi::MAX_RULES - 1);
        notes.note(
            rule.at,
            "policy.rule",
            Wrong::new(problem, "join rules: each takes many prefixes and ports"),
        );
    }
}

fn check_pools(notes: &Notes<'_>, document: &Section<'_, '_>, pools: &[RawPool], policies: &[RawPolicy]) {
    let of_kind = |kind| move |p: &&RawPool| p.kind.as_ref().is_none_or(|k| k.value == kind);
    if pools.iter().find(of_kind(PoolKind::Quarantine)).is_none() {
        let remedy = "write a [[pool]] with kind = \"quarantine\"";
        document.lacks(
            "pool",
            Wrong::new("no pool is of kind quarantine, where every device starts", remedy),
        );
    }
    if let Some(pool) = pools.get(usize::from(abi::MAX_POOLS)) {
        let problem = format!("there are more than {} pools", abi::MAX_POOLS);
        notes.note(
            pool.at,
            "pool",
            Wrong::new(problem, "join pools of one policy: a pool takes many prefixes"),
        );
    }
    duplicates(notes, "pool.name", pools.iter().filter_map(|p| p.name.as_ref()));
    for pool in pools {
        let named = |name: &At<PoolName>, key: &str| {
            let found = policies
                .iter()
                .find(|p| p.name.as_ref().is_some_and(|n| n.value == name.value));
            if found.is_none() {
                let problem = format!("there is no policy {:?}", name.value.as_str());
                let remedy = known("policies", policies.iter().filter_map(|p| p.name.as_ref()));
                notes.note(name.at, key, Wrong::new(problem, remedy));
            }
            found
        };
        let policy = pool.policy.as_ref().and_then(|name| named(name, "pool.policy"));
        if let Some(name) = &pool.shadow_policy {
            named(name, "pool.shadow_policy");
        }
        if let Some(kind) = &pool.kind {
            check_kind(notes, pool, kind, policy, pools);
        }
    }
}

fn check_kind(notes: &Notes<'_>, pool: &RawPool, kind: &At<PoolKind>, policy: Option<&RawPolicy>, pools: &[RawPool]) {
    let note = |at, key: &str, problem: String, remedy: &str| notes.note(at, format!("pool.{key}"), Wrong::new(problem, remedy));
    let word = policy.and_then(|p| p.allow.as_ref()).map(|a| a.value);
    let policy_at = pool.policy.as_ref().map_or(pool.at, |p| p.at);
    match kind.value {
        PoolKind::Quarantine => {
            if !pool.has_prefixes {
                let problem = "a quarantine pool without prefixes holds no device".into();
                note(pool.at, "prefixes", problem, "write prefixes = [\"10.66.0.0/16\"]");
            }
            if word == Some(Word::All) {
                let problem = "a quarantine pool's policy allows everything".into();
                note(
                    policy_at,
                    "policy",
                    problem,
                    "name a policy with rules for what devices in quarantine need",
                );
            }
        }
        PoolKind::FullService => match &pool.fallback {
            Some(name) => {
                let target = pools.iter().find(|p| p.name.as_ref().is_some_and(|n| n.value == name.value));
                let quarantine = target.is_some_and(|p| p.kind.as_ref().is_none_or(|k| k.value == PoolKind::Quarantine));
                if !quarantine {
                    let what = if target.is_some() {
                        "is not of kind quarantine"
                    } else {
                        "does not exist"
                    };
                    let choices = pools
                        .iter()
                        .filter(|p| p.kind.as_ref().is_some_and(|k| k.value == PoolKind::Quarantine));
                    let remedy = known("quarantine pools", choices.filter_map(|p| p.name.as_ref()));
                    note(name.at, "fallback", format!("pool {:?} {what}", name.value.as_str()), &remedy);
                }
            }
            None if !pool.has_fallback => {
                let problem = "a full-service pool has no fallback".into();
                note(
                    pool.at,
                    "fallback",
                    problem,
                    "name the quarantine pool that judges its addresses without a released device",
                );
            }
            None => {}
        },
        PoolKind::Blocked => {
            if let Some(policy) = policy
                && (word != Some(Word::Nothing) && (policy.allow.is_some() || policy.has_rules))
            {
                let problem = "a blocked pool's policy allows something".into();
                note(policy_at, "policy", problem, "name a policy with allow = \"nothing\"");
            }
        }
    }
    if kind.value != PoolKind::FullService {
        let only = "leave it out: only a pool of kind full-service has one";
        if let Some(fallback) = &pool.fallback {
            note(fallback.at, "fallback", "nobody is released to this pool".into(), only);
        }
        if let Some(lease) = &pool.lease {
            note(lease.at, "lease", "nobody is released to this pool".into(), only);
        }
        if let Some(trust) = &pool.min_trust {
            note(trust.at, "min_trust", "nobody is released to this pool".into(), only);
        }
    }
}

/// Overlaps, and the room that the kernel's tables have for IPv6 prefixes.
fn check_prefixes(notes: &Notes<'_>, pools: &[RawPool]) {
    let mut all: Vec<(&At<IpNetwork>, &RawPool)> = pools.iter().flat_map(|p| p.prefixes.iter().map(move |n| (n, p))).collect();
    // Sorted by start, the wider first, prefixes nest or follow one another: only the one that still lasts can overlap the next.
    all.sort_by_key(|(n, _)| (n.value.is_ipv6(), n.value.network(), n.value.prefix()));
    let mut lasting: Option<(&At<IpNetwork>, &RawPool)> = None;
    for (prefix, pool) in all {
        match lasting {
            Some((wide, other)) if values::overlaps(&wide.value, &prefix.value) => {
                // The later in the file is the one to change.
                let ((first, first_pool), (second, second_pool)) = if wide.at < prefix.at {
                    ((wide, other), (prefix, pool))
                } else {
                    ((prefix, pool), (wide, other))
                };
                let problem = format!(
                    "{} of {} overlaps {} of {} in line {}",
                    second.value,
                    named(second_pool),
                    first.value,
                    named(first_pool),
                    notes.line(first.at)
                );
                notes.note(
                    second.at,
                    "pool.prefixes",
                    Wrong::new(problem, "an address has one home: make the prefixes disjoint"),
                );
            }
            _ => lasting = Some((prefix, pool)),
        }
    }
    let six = pools.iter().flat_map(|p| {
        let prefixes = p.prefixes.iter().filter(|n| n.value.is_ipv6()).map(|n| n.at);
        prefixes.chain(p.reserved.iter().filter(|r| r.value.is_ipv6()).map(|r| r.at))
    });
    if let Some(at) = six.clone().nth(abi::MAX_HOMES6) {
        let problem = format!(
            "there are {} IPv6 prefixes and reserved addresses over all pools",
            six.count()
        );
        notes.note(
            at,
            "pool.prefixes",
            Wrong::new(
                problem,
                format!("the kernel's table has room for {}: join prefixes", abi::MAX_HOMES6),
            ),
        );
    }
}

fn check_reserved(notes: &Notes<'_>, pools: &[RawPool]) {
    for pool in pools {
        let mut seen: HashMap<IpAddr, usize> = HashMap::new();
        for address in &pool.reserved {
            if let Some(first) = seen.insert(address.value, address.at) {
                let problem = format!("{} stands twice, first in line {}", address.value, notes.line(first));
                notes.note(address.at, "pool.reserved", Wrong::new(problem, "leave one out"));
            }
            if !pool.prefixes.iter().any(|p| p.value.contains(address.value)) {
                let problem = format!("{} is outside the pool's prefixes", address.value);
                notes.note(
                    address.at,
                    "pool.reserved",
                    Wrong::new(problem, "reserve addresses of this pool; others need no reserving"),
                );
            }
        }
    }
}

fn check_routes(notes: &Notes<'_>, pools: &[RawPool]) {
    let mut tables: HashMap<u32, usize> = HashMap::new();
    for pool in pools {
        if let Some(table) = &pool.table {
            let number = table.value;
            // RT_TABLE_COMPAT, DEFAULT, MAIN, LOCAL (rtnetlink.h).
            if (252..=255).contains(&number) {
                let remedy = "write a number of your own, e.g. 1066; `ip route show table all` shows those in use";
                notes.note(
                    table.at,
                    "pool.table",
                    Wrong::new(format!("table {number} is the system's"), remedy),
                );
            }
            if let Some(first) = tables.insert(number, table.at) {
                let problem = format!("table {number} is another pool's, in line {}", notes.line(first));
                notes.note(
                    table.at,
                    "pool.table",
                    Wrong::new(problem, "give each pool a table of its own"),
                );
            }
            if pool.routes.is_empty() {
                let remedy = "write [[pool.route]] sections, or leave table out for the host's own routes";
                notes.note(table.at, "pool.table", Wrong::new("the table has no routes", remedy));
            }
        } else if let Some(route) = pool.routes.first().filter(|_| !pool.has_table) {
            notes.note(
                route.at,
                "pool.table",
                Wrong::new("routes without a table", "write table = 1066 in the pool, above its routes"),
            );
        }
        let mut seen: HashMap<IpNetwork, usize> = HashMap::new();
        for route in &pool.routes {
            let Some(to) = &route.to else { continue };
            if let Some(first) = seen.insert(to.value, to.at) {
                let problem = format!("the pool has a route to {} already, in line {}", to.value, notes.line(first));
                notes.note(to.at, "pool.route.to", Wrong::new(problem, "leave one out"));
            }
            if let Some(via) = route.via.as_ref().filter(|v| v.value.is_ipv4() != to.value.is_ipv4()) {
                let problem = format!("{} is of another IP version than {}", via.value, to.value);
                notes.note(
                    via.at,
                    "pool.route.via",
                    Wrong::new(problem, "name a next hop of the destination's version"),
                );
            }
        }
    }
}

fn duplicates<'a>(notes: &Notes<'_>, key: &str, names: impl Iterator<Item = &'a At<PoolName>>) {
    let mut seen: HashMap<&PoolName, usize> = HashMap::new();
    for name in names {
        if let Some(first) = seen.get(&name.value) {
            let problem = format!("{:?} is taken, in line {}", name.value.as_str(), notes.line(*first));
            notes.note(name.at, key, Wrong::new(problem, "choose another name"));
        } else {
            seen.insert(&name.value, name.at);
        }
    }
}

fn known<'a>(what: &str, names: impl Iterator<Item = &'a At<PoolName>>) -> String {
    let names: Vec<&str> = names.map(|n| n.value.as_str()).collect();
    if names.is_empty() {
        format!("the file has no {what} yet")
    } else {
        format!("{what} of this file: {}", names.join(", "))
    }
}

fn named(pool: &RawPool) -> String {
    pool.name
        .as_ref()
        .map_or("a pool without name".into(), |n| format!("pool {:?}", n.value.as_str()))
}
