//! What a correct configuration may still get wrong, in sentences for people.

use ipnetwork::IpNetwork;

use super::{
    Allow, Config, InterfaceRole, Mode, OutsideWindow, Pool, PoolKind, Protocol, Rule, RuleDirection, UnknownDevice, special,
};
use crate::model::Trust;

/// See [`Config::warnings`].
pub(super) fn warnings(config: &Config) -> Vec<String> {
    let mut found = Vec::new();
    if config.mode == Mode::Observe {
        found.push("mode is \"observe\": everything is judged and counted, NOTHING is denied, and the floor is open".into());
    }
    if config.api.is_none() {
        found.push("there is no [api]: an MDM on another host cannot report policy; only the Unix socket is served".into());
    }
    interfaces(config, &mut found);
    for pool in &config.pools {
        if pool.kind == PoolKind::FullService && pool.lease.is_none() {
            found.push(format!(
                "pool {}: there is no lease, so a release holds until it is revoked, even if the MDM is never heard of again",
                pool.name
            ));
        }
        if pool.kind == PoolKind::Quarantine {
            quarantine_policy(config, pool, &mut found);
        }
        if pool.kind == PoolKind::FullService && config.policy(pool).is_some_and(|p| p.allow == Allow::Nothing) {
            found.push(format!(
                "pool {}: its policy allows nothing, so a released device reaches less than one in quarantine",
                pool.name
            ));
        }
    }
    life(config, &mut found);
    sources(config, &mut found);
    if !config.pools.iter().any(|p| p.kind == PoolKind::FullService) {
        found.push("there is no pool of kind full-service: no device can be released".into());
    }
    for policy in config.policies.iter().filter(|policy| {
        let uses = |pool: &Pool| pool.policy == policy.name || pool.shadow_policy.as_ref() == Some(&policy.name);
        !config.pools.iter().any(uses)
    }) {
        found.push(format!("policy {}: no pool uses it", policy.name));
    }
    special_rules(config, &mut found);
    let tables = slash16s(config);
    if tables > MANY_TABLES {
        found.push(format!(
            "the pools touch {tables} IPv4 networks of /16, which takes {} MiB of kernel memory; narrower prefixes take less",
            tables / 16
        ));
    }
    found
}

/// One VPN server's word counts on another's interface where neither lists any.
fn sources(config: &Config, found: &mut Vec<String>) {
    let unlisted: Vec<&str> = config
        .sources
        .iter()
        .filter(|s| s.interfaces.is_none())
        .map(|s| s.name.as_str())
        .collect();
    if config.sources.len() > 1 && !unlisted.is_empty() {
        found.push(format!(
            "there are several sources, and {} list(s) no interfaces: an interface that nobody lists is whose first session is there",
            unlisted.join(", ")
        ));
    }
}

/// Settings of a device's life that together say something else than each alone.
fn life(config: &Config, found: &mut Vec<String>) {
    let devices = &config.devices;
    if devices.deadline.is_none() {
        found.push("quarantine_deadline is \"off\": a device that never proves its policy stays in quarantine for ever".into());
    }
    if devices.outside_window == OutsideWindow::Block && !config.pools.iter().any(|p| p.kind == PoolKind::Blocked) {
        found.push(
            "outside_window is \"block\", but there is no pool of kind blocked: a quarantine policy judges who is blocked".into(),
        );
    }
    let trusted = config.pools.iter().find(|p| p.min_trust > Trust::Name);
    if let Some(pool) = trusted.filter(|_| devices.unknown == UnknownDevice::Quarantine) {
        found.push(format!(
            "pool {}: min_trust demands a registered certificate or key, but unknown = \"quarantine\" lets in who is not registered at all",
            pool.name
        ));
    }
    for pool in config
        .pools
        .iter()
        .filter(|p| p.lease.is_some_and(|l| l > config.proofs.max_signal_age))
    {
        found.push(format!(
            "pool {}: its lease is longer than max_signal_age, so a signal that has become too old still holds",
            pool.name
        ));
    }
}

/// 256 MiB.
const MANY_TABLES: usize = 4096;

fn interfaces(config: &Config, found: &mut Vec<String>) {
    for rule in config.interfaces.iter().filter(|r| r.role == InterfaceRole::Device) {
        if rule.name.to_string().starts_with("tap") {
            found.push(format!(
                "interface {}: OpenVPN with dev tap does not bind a client to its source address, so one device can pose as another; use dev tun",
                rule.name
            ));
        }
    }
    let device = || config.interfaces.iter().filter(|r| r.role == InterfaceRole::Device);
    for pool in config.pools.iter().filter(|p| !p.prefixes.is_empty()) {
        if device().all(|r| r.pools.as_ref().is_some_and(|pools| !pools.contains(&pool.id))) {
            found.push(format!(
                "pool {}: no device interface has it among its pools, so its addresses pass nowhere without a session",
                pool.name
            ));
        }
    }
    if !config.interfaces.iter().any(|r| r.role == InterfaceRole::Core) {
        found.push("no [[interface]] has role = \"core\": packets to devices are judged only where they leave to them".into());
    }
}

fn quarantine_policy(config: &Config, pool: &Pool, found: &mut Vec<String>) {
    let Some(Allow::Rules(rules)) = config.policy(pool).map(|p| &p.allow) else {
        return;
    };
    for rule in rules.iter().filter(|r| r.direction == RuleDirection::ToDevice) {
        if let Some(prefix) = rule.peers.iter().find(|p| p.prefix() == 0) {
            found.push(format!(
                "pool {}: rule {} lets {prefix}, every address there is, connect to devices in quarantine",
                pool.name, rule.id
            ));
        }
        if let Some(prefix) = rule.peers.iter().find(|p| rule.protocol != Protocol::Tcp && is_broad(p)) {
            found.push(format!(
                "pool {}: rule {} is a way out, too: devices in quarantine can send to {prefix} from its ports, to any port there, since of \
                 other protocols than TCP nothing tells an answer from a question; name few addresses",
                pool.name, rule.id
            ));
        }
    }
    for rule in rules.iter().filter(|r| r.direction == RuleDirection::FromDevice) {
        if let Some(prefix) = rule.peers.iter().find(|to| allows_dns(rule) && is_broad(to)) {
            found.push(format!(
                "pool {}: rule {} lets devices in quarantine ask any resolver in {prefix} (port 53); an open resolver is a tunnel: name \
                 one that serves only what they need",
                pool.name, rule.id
            ));
        }
        if let Some(prefix) = rule.peers.iter().find(|to| to.prefix() == 0) {
            found.push(format!(
                "pool {}: rule {} names {prefix}, every address there is, for devices in quarantine",
                pool.name, rule.id
            ));
        }
    }
}

/// Rules that name addresses which a wide prefix leaves out: meant, perhaps.
fn special_rules(config: &Config, found: &mut Vec<String>) {
    for policy in &config.policies {
        let Allow::Rules(rules) = &policy.allow else { continue };
        for rule in rules {
            for prefix in &rule.peers {
                if let Some(reason) = special::within(prefix) {
                    found.push(format!(
                        "policy {}: rule {} names {prefix}, which is {}: {}",
                        policy.name,
                        rule.id,
                        reason.name(),
                        reason.sentence()
                    ));
                }
            }
        }
    }
}

fn allows_dns(rule: &Rule) -> bool {
    match rule.protocol {
        Protocol::Any => true,
        Protocol::Tcp | Protocol::Udp => rule.ports.is_empty() || rule.ports.iter().any(|r| r.contains(&53)),
        Protocol::Icmp | Protocol::Number(_) => false,
    }
}

/// More than four addresses.
fn is_broad(prefix: &IpNetwork) -> bool {
    let length = if prefix.is_ipv4() { 32 } else { 128 };
    prefix.prefix() < length - 2
}

fn slash16s(config: &Config) -> usize {
    let four = config.pools.iter().flat_map(|p| &p.prefixes).filter(|n| n.is_ipv4());
    // Prefixes of pools do not overlap, but several may share a /16: an upper bound.
    four.map(|n| 1_usize << 16_u8.saturating_sub(n.prefix())).sum()
}
