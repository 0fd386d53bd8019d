//! How the access layer stands: what is trusted until when, who has shown what, whom a retiring CA would shut out, and what to warn of. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    clients::{Clients, Seen},
    trust::{Ca, Dated, List, Trust},
};
use crate::{config::Api, model::Fingerprint};

const DAY: Duration = Duration::from_secs(86_400);

/// How it stands.
#[derive(Clone, Debug)]
pub struct Report {
    /// The gateway's own certificate.
    pub server: Dated,
    /// The CAs that are trusted.
    pub cas: Vec<CaReport>,
    /// Revocation lists in force.
    pub lists: Vec<ListReport>,
    /// Since when clients have been remembered.
    pub since: i64,
    /// There were more clients than are remembered.
    pub incomplete: bool,
    /// When the files were read.
    pub read_at: SystemTime,
    /// Open connections, local ones among them.
    pub connections: usize,
    /// What an operator should know or do.
    pub warnings: Vec<String>,
}

/// A CA.
#[derive(Clone, Debug)]
pub struct CaReport {
    /// Its certificate.
    pub certificate: Dated,
    /// SHA-256 of it.
    pub fingerprint: Fingerprint,
    /// It is to go.
    pub retiring: bool,
    /// Whether one of the revocation lists is its.
    pub has_list: bool,
    /// Whose certificates of it were seen, by client.
    pub clients: Vec<ClientReport>,
}

/// A certificate that was seen.
#[derive(Clone, Debug)]
pub struct ClientReport {
    /// What was seen.
    pub seen: Seen,
    /// A list revokes it.
    pub revoked: bool,
    /// The CA is retiring, and the client needs it.
    pub pending: bool,
    /// It is to be renewed: its end is near, and no later one was seen.
    pub due: bool,
}

/// A revocation list.
#[derive(Clone, Debug)]
pub struct ListReport {
    /// Of which CA.
    pub issuer: String,
    /// Where it was read.
    pub file: std::path::PathBuf,
    /// When it was made.
    pub this_update: SystemTime,
    /// When the next one is due.
    pub next_update: Option<SystemTime>,
    /// How many certificates it revokes.
    pub revoked: usize,
}

pub(super) fn report(api: &Api, trust: &Trust, clients: &Clients, now: SystemTime) -> Report {
    let cas: Vec<CaReport> = trust.cas.iter().map(|ca| of_ca(api, trust, ca, clients, now)).collect();
    let mut warnings = trust.warnings.clone();
    let soon = DAY * api.warn_days;
    warnings.extend(ending("the gateway's certificate", &trust.server, soon, now));
    warnings.extend(
        trust
            .cas
            .iter()
            .filter_map(|ca| ending(&format!("the CA {}", ca.certificate.subject), &ca.certificate, soon, now)),
    );
    warnings.extend(trust.lists.iter().filter_map(|list| outdated(list, soon, now)));
    for ca in cas.iter().filter(|ca| ca.retiring) {
        let pending = ca.clients.iter().filter(|c| c.pending).count();
        warnings.push(match pending {
            0 => format!(
                "nobody was seen to need the retiring CA {}: `lazaret pki finish-retirement {}` ends it",
                ca.certificate.subject, ca.fingerprint
            ),
            n => format!(
                "{n} client(s) still need the retiring CA {}: see `lazaret pki status`",
                ca.certificate.subject
            ),
        });
    }
    Report {
        server: trust.server.clone(),
        cas,
        lists: trust.lists.iter().map(of_list).collect(),
        since: clients.since,
        incomplete: clients.incomplete,
        read_at: now,
        connections: 0,
        warnings,
    }
}

fn of_ca(api: &Api, trust: &Trust, ca: &Ca, clients: &Clients, now: SystemTime) -> CaReport {
    let fingerprint = ca.fingerprint.to_string();
    let now = seconds(now);
    let stays = |other: &str| trust.cas.iter().any(|c| !c.retiring && c.fingerprint.to_string() == other);
    let revoked = |seen: &Seen| trust.revokes(ca, &seen.serial);
    let pending: Vec<&Seen> = if ca.retiring {
        clients.pending(&fingerprint, now, stays, revoked).collect()
    } else {
        Vec::new()
    };
    let window = i64::from(api.renewal_days) * 86_400;
    let of_client = |seen: &Seen| {
        let later =
            |other: &Seen| other.client == seen.client && other.not_after > seen.not_after && other.last_seen >= seen.last_seen;
        let near = seen.not_after >= now && seen.not_after < now.saturating_add(window);
        ClientReport {
            revoked: revoked(seen),
            pending: pending.contains(&seen),
            due: near && !clients.iter().any(later),
            seen: seen.clone(),
        }
    };
    CaReport {
        certificate: ca.certificate.clone(),
        fingerprint: ca.fingerprint,
        retiring: ca.retiring,
        has_list: trust.list_of(ca).is_some(),
        clients: clients.iter().filter(|s| s.ca == fingerprint).map(of_client).collect(),
    }
}

fn of_list(list: &List) -> ListReport {
    ListReport {
        issuer: list.issuer.clone(),
        file: list.file.clone(),
        this_update: list.this_update,
        next_update: list.next_update,
        revoked: list.len(),
    }
}

fn ending(what: &str, certificate: &Dated, soon: Duration, now: SystemTime) -> Option<String> {
    let file = certificate.file.display();
    match certificate.not_after.duration_since(now) {
        Err(_) => Some(format!("{what} in {file} has expired")),
        Ok(left) if left < soon => Some(format!("{what} in {file} expires in {}", days(left))),
        Ok(_) => None,
    }
}

/// A list is made anew more often than certificates: the last quarter of its time is soon.
fn outdated(list: &List, soon: Duration, now: SystemTime) -> Option<String> {
    let next = list.next_update?;
    let quarter = next.duration_since(list.this_update).unwrap_or_default() / 4;
    let (issuer, file) = (&list.issuer, list.file.display());
    match next.duration_since(now) {
        Err(_) => Some(format!(
            "the revocation list of {issuer} in {file} is out of date; what it revokes stays revoked, and nothing newer is known"
        )),
        Ok(left) if left < soon.min(quarter) => Some(format!(
            "the revocation list of {issuer} in {file} is due anew in {}",
            days(left)
        )),
        Ok(_) => None,
    }
}

fn days(left: Duration) -> String {
    match left.as_secs() / DAY.as_secs() {
        0 => "less than a day".into(),
        1 => "1 day".into(),
        n => format!("{n} days"),
    }
}

/// Seconds since 1970-01-01 UTC; 0 before.
pub(super) fn seconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
