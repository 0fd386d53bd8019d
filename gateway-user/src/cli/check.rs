//! `lazaret check`: what is wrong with a configuration, what may not be meant, and what it says in short. Reads; changes nothing.

use std::{collections::BTreeSet, fs, io::ErrorKind, net::UdpSocket, os::unix::fs::MetadataExt as _, path::Path};

use nix::unistd::{User, geteuid};
use serde_json::json;

use super::{
    Outcome,
    args::CheckArgs,
    client::Failure,
    table::{Cell, Page, Tone, toned, write_out},
};
use crate::{
    access::trust,
    config::{Allow, Config, ConfigError, ConfigErrors, InterfacePattern, InterfaceRole, InterfaceRule, Metrics},
    store,
};

pub(super) fn run(args: &CheckArgs) -> Result<Outcome, Failure> {
    let (config, mut errors) = match Config::load(&args.file) {
        Ok(config) => (Some(config), Vec::new()),
        Err(errors) => (None, errors.0.iter().map(ToString::to_string).collect()),
    };
    let mut warnings = Vec::new();
    if let Some(config) = &config {
        errors.extend(beyond_the_file(&args.file, config).iter().map(ToString::to_string));
        errors.extend(state(&args.file, config).iter().map(ToString::to_string));
        warnings = config.warnings();
        warnings.extend(certificates(config));
        warnings.extend(audit_log(config));
        warnings.extend(listens(config));
        warnings.extend(on_this_host(config));
    }
    let good = errors.is_empty();
    let written = if args.json {
        write_out(&format!(
            "{:#}\n",
            json!({ "ok": good, "errors": errors, "warnings": warnings })
        ))
    } else {
        let mut page = Page::new();
        for error in &errors {
            page.line(toned(error, Tone::Bad));
        }
        for warning in &warnings {
            page.line(toned(format!("warning: {warning}"), Tone::Warn));
        }
        match &config {
            Some(config) if good => summary(&mut page, config),
            _ => page.line(format!(
                "{}: {} error(s); nothing was touched",
                args.file.display(),
                errors.len()
            )),
        }
        page.print()
    };
    written.map_err(|e| Failure::Local(format!("standard output: {e}")))?;
    Ok(if good { Outcome::Done } else { Outcome::Failed })
}

/// What would stop the daemon, said before it starts, each mistake with its place.
pub(super) fn before_running(file: &Path) -> Result<(), Failure> {
    let config = Config::load(file).map_err(|e| Failure::Local(e.to_string()))?;
    let errors = beyond_the_file(file, &config);
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Failure::Local(ConfigErrors(errors).to_string()))
    }
}

/// What a right file may still name wrongly: errors that would stop the daemon.
fn beyond_the_file(file: &Path, config: &Config) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    if let Some(user) = &config.user {
        let problem = match User::from_name(user) {
            Ok(Some(_)) => None,
            Ok(None) => Some(format!("there is no user {user:?}")),
            Err(e) => Some(format!("user {user:?} cannot be looked up: {e}")),
        };
        let remedy = "add it with useradd --system, or leave the key out";
        errors.extend(problem.map(|problem| ConfigError::at_key(file, "process", "user", problem, remedy)));
    }
    let metrics = match &config.metrics {
        Some(Metrics::Socket { group, .. }) => group.as_ref(),
        _ => None,
    };
    for (section, key, group) in [
        ("socket", "vpn_group", config.socket.vpn_group.as_ref()),
        ("socket", "viewer_group", config.socket.viewer_group.as_ref()),
        ("metrics", "group", metrics),
    ] {
        if let Some(group) = group {
            let problem = match nix::unistd::Group::from_name(group) {
                Ok(Some(_)) => continue,
                Ok(None) => format!("there is no group {group:?}"),
                Err(e) => format!("group {group:?} cannot be looked up: {e}"),
            };
            let remedy = "add it with groupadd, or leave the key out";
            errors.push(ConfigError::at_key(file, section, key, problem, remedy));
        }
    }
    if let Some(api) = &config.api
        && let Err(e) = trust::load(api, &BTreeSet::new())
    {
        errors.push(ConfigError::at_key(file, "api", e.key(api), e.to_string(), ""));
    }
    let compiled = crate::dataplane::policy::compile(config).map(|_| ());
    if let Err(e) = compiled.and_then(|()| crate::dataplane::policy::compile_shadow(config).map(|_| ())) {
        errors.push(ConfigError::at_key(file, "policy", "rule", e.to_string(), ""));
    }
    errors
}

/// The database's directory and files, if they are there: the daemon refuses loose ones, when it has closed the floor.
fn state(file: &Path, config: &Config) -> Option<ConfigError> {
    let user = daemon(config).map_or(0, |user| user.uid.as_raw());
    let owners = [geteuid().as_raw(), 0, user];
    let e = store::fit(&config.paths.state, &owners).err()?;
    Some(ConfigError::at_key(file, "paths", "state", e.to_string(), ""))
}

/// What of the files of `[api]` the daemon leaves out, and what not every client takes.
fn certificates(config: &Config) -> Vec<String> {
    let trust = config.api.as_ref().map(|api| trust::load(api, &BTreeSet::new()));
    trust.and_then(Result::ok).map(|trust| trust.warnings).unwrap_or_default()
}

/// Whether the file can be written that gets the audit's entries. Without it the daemon runs, and `status` warns.
fn audit_log(config: &Config) -> Option<String> {
    let log = config.keep.audit_log.as_ref()?;
    let directory = log.parent()?;
    let problem = match (fs::metadata(directory), fs::symlink_metadata(log)) {
        (Err(e), _) => format!("{}: {e}: make it, for the daemon to write in", directory.display()),
        (Ok(d), _) if !d.is_dir() => format!("{} is not a directory", directory.display()),
        (_, Ok(f)) if !f.is_file() => format!("{} is not a plain file", log.display()),
        (Ok(d), f) => {
            let user = daemon(config)?;
            let may = |m: &fs::Metadata, bits: u32| {
                let shift = if m.uid() == user.uid.as_raw() {
                    6
                } else if m.gid() == user.gid.as_raw() {
                    3
                } else {
                    0
                };
                (m.mode() >> shift) & bits == bits
            };
            let kept = [(directory, Some(&d), 3), (log.as_path(), f.as_ref().ok(), 6)];
            let (path, found) = kept
                .into_iter()
                .find_map(|(path, m, bits)| m.filter(|m| !may(m, bits)).map(|m| (path, m)))?;
            format!(
                "{} belongs to uid {}, mode {:04o}: {} cannot write there, without capabilities that it gives up",
                path.display(),
                found.uid(),
                found.mode() & 0o7777,
                user.name
            )
        }
    };
    Some(format!("[store] audit_log is not going to be written: {problem}"))
}

/// An address to listen on that this host does not have: the daemon does not start before it has.
fn listens(config: &Config) -> Option<String> {
    let at = config.api.as_ref()?.listen;
    let absent = UdpSocket::bind((at.ip(), 0)).is_err_and(|e| e.kind() == ErrorKind::AddrNotAvailable);
    absent.then(|| {
        format!(
            "[api] listen: no interface of this host has {} yet, and the daemon does not start without",
            at.ip()
        )
    })
}

/// Who the daemon is going to be.
fn daemon(config: &Config) -> Option<User> {
    let named = config.user.as_deref().unwrap_or("root");
    User::from_name(named).ok().flatten()
}

/// What is not there yet, in this network namespace.
fn on_this_host(config: &Config) -> Vec<String> {
    let there = match crate::links::now() {
        Ok(links) => links,
        Err(e) => return vec![format!("the interfaces of this host cannot be listed: {e}")],
    };
    let shared = there
        .iter()
        .filter(|now| now.link.ethernet && config.role(&now.link.name) == Some(InterfaceRole::Device))
        .map(|now| {
            format!(
                "interface {}: it is Ethernet, where an address is bound to the interface, not to a MAC; if several devices share it, one can pose \
                 as another, unless the switch or concentrator before it binds each to its address",
                now.link.name
            )
        });
    let covered = there
        .iter()
        .filter(|now| config.role(&now.link.name) == Some(InterfaceRole::Device))
        .filter_map(|now| {
            let over = crate::links::over(now, &there);
            (!over.is_empty()).then(|| format!("interface {}: {}", now.link.name, crate::dataplane::routed_by(&over)))
        });
    let missing = |r: &&InterfaceRule| !there.iter().any(|now| r.name.matches(&now.link.name));
    let sentence = |r: &InterfaceRule| match &r.name {
        InterfacePattern::Name(name) => format!("interface {name} does not exist yet; it is waited for"),
        InterfacePattern::Prefix(_) => format!("no interface {} exists yet; they are waited for", r.name),
    };
    let waited_for = config.interfaces.iter().filter(missing).map(sentence);
    waited_for.chain(shared).chain(covered).collect()
}

fn summary(page: &mut Page, config: &Config) {
    let row = |p: &crate::config::Pool| {
        vec![
            Cell::from(p.id.0),
            Cell::from(&p.name),
            Cell::from(kind(p.kind)),
            Cell::from(p.prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            Cell::from(&p.policy),
            Cell::from(
                p.fallback
                    .and_then(|f| config.pool_by_id(f))
                    .map_or(String::new(), |f| f.name.to_string()),
            ),
            Cell::from(p.lease.map_or(String::new(), |l| humantime::format_duration(l).to_string())),
        ]
    };
    page.table(
        &["N", "POOL", "KIND", "PREFIXES", "POLICY", "FALLBACK", "LEASE"],
        &config.pools.iter().map(row).collect::<Vec<_>>(),
    );
    let rules = config
        .policies
        .iter()
        .map(|p| if let Allow::Rules(rules) = &p.allow { rules.len() } else { 0 })
        .sum::<usize>();
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    page.line(toned(
        format!(
            "ok: {}, {}, {}",
            count(config.pools.len(), "pool"),
            count(config.interfaces.len(), "interface rule"),
            count(rules, "policy rule")
        ),
        Tone::Good,
    ));
}

fn kind(kind: crate::config::PoolKind) -> &'static str {
    match kind {
        crate::config::PoolKind::Quarantine => "quarantine",
        crate::config::PoolKind::FullService => "full-service",
        crate::config::PoolKind::Blocked => "blocked",
    }
}
