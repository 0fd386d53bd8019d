//! A change, as rows of one transaction. Statements are prepared once; aliases are touched only where they are others than before.

use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension as _, Row, Statement, Transaction, TransactionBehavior, params};

use super::{
    ChangeSet, Committed, StoreError,
    failure::Failure,
    rows::{self, address, moment, names, signed, span, unsigned},
    seen::Seen,
    trail::{self, LastEntries},
};
use crate::{
    audit::Head,
    model::{Device, DeviceId, Publication, Reach, Revision, WallTime},
};

/// Changes of GatewayURIs are kept beyond their number by this part of it, so that not each commit writes to where the oldest lie.
const KEPT_BEYOND: i64 = 64;

/// See [`super::Store::commit`]; `kept` changes of GatewayURIs stay.
pub(super) fn commit(
    connection: &mut Connection,
    seen: &mut Option<Seen>,
    changes: &ChangeSet,
    expected: Revision,
    at: WallTime,
    kept: u64,
) -> Result<Committed, Failure> {
    let t = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (found, head): (u64, Head) = t
        .prepare_cached("SELECT revision, audit_number, audit_hash FROM meta")?
        .query_row([], |r| Ok((unsigned(r.get(0)?), rows::head(r, 1)?)))?;
    if found != expected.0 {
        return Err(StoreError::Conflict {
            expected: expected.0,
            found,
        }
        .into());
    }
    let revision = Revision(found + 1);
    let mut last = LastEntries::of(&changes.audit);
    devices(&t, changes, revision, &mut last)?;
    sessions(&t, changes)?;
    uris(&t, changes, revision, kept)?;
    for publication in &changes.publications {
        publish(&t, publication)?;
    }
    trail::remember(&t, seen, &changes.requests)?;
    let audit_head = trail::append(&t, head, &changes.audit, &mut last)?;
    let next = changes.opened.last_key_value().map_or(0, |(id, _)| id.0 + 1);
    t.prepare_cached(
        "UPDATE meta SET revision = ?1, next_session = max(next_session, ?2), committed_at = ?3, audit_number = ?4, audit_hash = ?5,
         restored = iif(?6, NULL, restored), forgotten = iif(?7, NULL, forgotten)",
    )?
    .execute(params![
        signed(revision.0),
        signed(next),
        at.0,
        signed(audit_head.number),
        audit_head.hash,
        changes.restore_done,
        changes.acknowledged
    ])?;
    // Dropped without it, or failing in it, the transaction is rolled back.
    t.commit()?;
    Ok(Committed { revision, audit_head })
}

/// The aliases of a device as its row has them.
#[derive(PartialEq)]
struct Aliases {
    names: String,
    certificates: Vec<u8>,
    vpn_keys: Vec<u8>,
    /// Of certificates and keys.
    scope: i64,
}

impl Aliases {
    fn of(device: &Device, scope: i64) -> Self {
        Self {
            scope,
            names: names(&device.aliases.common_names),
            certificates: device.aliases.certificates.iter().flat_map(|c| *c.bytes()).collect(),
            vpn_keys: device.aliases.vpn_keys.iter().flat_map(|k| k.0).collect(),
        }
    }

    /// Kind, alias and scope: the key of each.
    fn rows(&self) -> impl Iterator<Item = (i64, &[u8], i64)> {
        let names = self
            .names
            .split(' ')
            .filter(|n| !n.is_empty())
            .map(|n| (rows::NAME, n.as_bytes(), rows::EVERYONE));
        let certificates = self.certificates.chunks(32).map(|c| (rows::CERTIFICATE, c, self.scope));
        names
            .chain(certificates)
            .chain(self.vpn_keys.chunks(32).map(|k| (rows::VPN_KEY, k, self.scope)))
    }
}

/// The change's devices, with their aliases.
pub(super) fn devices(
    t: &Transaction<'_>,
    changes: &ChangeSet,
    revision: Revision,
    last: &mut LastEntries<'_>,
) -> rusqlite::Result<()> {
    let mut old =
        t.prepare_cached("SELECT common_names, certificates, vpn_keys, last_audit, scope FROM devices WHERE id = ?1")?;
    let mut remove = t.prepare_cached("DELETE FROM aliases WHERE kind = ?1 AND alias = ?2 AND scope = ?3")?;
    let mut upsert = t.prepare_cached(&UPSERT)?;
    // All aliases that go are gone before the first comes: one may move from a device to another in the same change.
    let mut fresh = Vec::new();
    for device in changes.devices.values() {
        let of_row = |r: &Row<'_>| {
            let aliases = Aliases {
                names: r.get(0)?,
                certificates: r.get(1)?,
                vpn_keys: r.get(2)?,
                scope: r.get(4)?,
            };
            Ok((aliases, unsigned(r.get(3)?)))
        };
        let (before, entry) = old.query_row([device.id.as_str()], of_row).optional()?.unzip();
        let after = Aliases::of(device, scope(t, &device.aliases.reach)?);
        let entry = last.replaces(&device.id, entry.unwrap_or(0));
        put(&mut upsert, device, &after, revision, entry)?;
        if before.as_ref() != Some(&after) {
            for (kind, alias, scope) in before.iter().flat_map(Aliases::rows) {
                remove.execute(params![kind, alias, scope])?;
            }
            fresh.push((&device.id, after));
        }
    }
    let mut add = t.prepare_cached("INSERT INTO aliases (kind, alias, scope, device) VALUES (?1, ?2, ?3, ?4)")?;
    for (device, aliases) in fresh {
        for (kind, alias, scope) in aliases.rows() {
            add.execute(params![kind, alias, scope, device.as_str()])?;
        }
    }
    Ok(())
}

/// The number of a scope, which it gets when it first comes. There are as many as certificates have different ones.
fn scope(t: &Transaction<'_>, reach: &Reach) -> rusqlite::Result<i64> {
    let Some(patterns) = reach else { return Ok(rows::EVERYONE) };
    let text = patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let mut known = t.prepare_cached("SELECT number FROM scopes WHERE devices = ?1")?;
    if let Some(number) = known.query_row([&text], |r| r.get(0)).optional()? {
        return Ok(number);
    }
    t.prepare_cached("INSERT INTO scopes (devices) VALUES (?1)")?
        .execute([&text])?;
    Ok(t.last_insert_rowid())
}

fn put(upsert: &mut Statement<'_>, d: &Device, aliases: &Aliases, revision: Revision, entry: u64) -> rusqlite::Result<()> {
    let (offer, key, exception) = (d.keys.offer.as_ref(), d.keys.final_key.as_ref(), d.exception.as_ref());
    upsert.execute(params![
        d.id.as_str(),
        d.owner,
        d.full_service_pool.as_str(),
        d.state.as_str(),
        d.state_reason.as_str(),
        d.state_since.0,
        d.policy_revision.as_ref().map(|r| r.as_str()),
        d.release.restricted_at.map(|t| t.0),
        d.release.proved.as_ref().map(moment),
        d.release.lease.as_ref().map(span),
        d.gateway_uri,
        signed(revision.0),
        d.enrolment.enrolled_at.map(|t| t.0),
        d.enrolment.arrived_at.map(|t| t.0),
        d.enrolment.arrived_outside.map(|t| t.0),
        d.enrolment.deadline.as_ref().map(span),
        offer.map(|o| o.key.0),
        offer.map(|o| o.revision.as_str()),
        offer.map(|o| span(&o.holds)),
        key.map(rows::final_key),
        key.map(|k| k.revision.as_str()),
        exception.map(|e| e.kind.as_str()),
        exception.map(|e| e.reason.as_str()),
        exception.map(|e| e.by.as_str()),
        exception.map(|e| span(&e.holds)),
        d.enrolment.window.not_before.map(|t| t.0),
        d.enrolment.window.not_after.map(|t| t.0),
        aliases.names,
        aliases.certificates,
        aliases.vpn_keys,
        aliases.scope,
        signed(entry),
    ])?;
    Ok(())
}

/// Columns in the order of [`rows::DEVICE`], and the last entry of the audit.
static UPSERT: LazyLock<String> = LazyLock::new(|| {
    let columns: Vec<&str> = rows::DEVICE.split(',').map(str::trim).chain(["last_audit"]).collect();
    let values: Vec<String> = (1..=columns.len()).map(|n| format!("?{n}")).collect();
    let set: Vec<String> = columns
        .iter()
        .zip(&values)
        .skip(1)
        .map(|(c, v)| format!("{c} = {v}"))
        .collect();
    format!(
        "INSERT INTO devices ({}) VALUES ({}) ON CONFLICT (id) DO UPDATE SET {}",
        columns.join(", "),
        values.join(", "),
        set.join(", ")
    )
});

fn sessions(t: &Transaction<'_>, changes: &ChangeSet) -> rusqlite::Result<()> {
    let mut close = t.prepare_cached("DELETE FROM sessions WHERE id = ?1")?;
    for id in &changes.closed {
        close.execute([signed(id.0)])?;
    }
    let mut open = t.prepare_cached(
        "INSERT INTO sessions (id, device, interface, source, trust, opened_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let mut hold = t.prepare_cached("INSERT INTO session_addresses VALUES (?1, ?2, ?3)")?;
    for s in changes.opened.values() {
        open.execute(params![
            signed(s.id.0),
            s.device.as_ref().map(DeviceId::as_str),
            s.interface.as_str(),
            s.source.as_str(),
            rows::trust(s.trust),
            s.opened_at.0
        ])?;
        for (place, a) in (0_i64..).zip(s.addresses.iter()) {
            hold.execute(params![address(a), signed(s.id.0), place])?;
        }
    }
    Ok(())
}

fn uris(t: &Transaction<'_>, changes: &ChangeSet, revision: Revision, kept: u64) -> rusqlite::Result<()> {
    if changes.uris.is_empty() {
        return Ok(());
    }
    let mut insert =
        t.prepare_cached("INSERT INTO uri_changes (revision, device, old, new, at, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for u in &changes.uris {
        insert.execute(params![signed(revision.0), u.device.as_str(), u.old, u.new, u.at.0, u.reason])?;
    }
    let last = t.last_insert_rowid();
    let first: i64 = t
        .prepare_cached("SELECT number FROM uri_changes ORDER BY number LIMIT 1")?
        .query_row([], |r| r.get(0))?;
    let kept = i64::try_from(kept).unwrap_or(i64::MAX);
    if last - first < kept.saturating_add(kept / KEPT_BEYOND) {
        return Ok(());
    }
    // The oldest go; what has gone is remembered by its revision, so that a watcher that needs it is told.
    let cut = last.saturating_sub(kept);
    t.prepare_cached(
        "UPDATE meta SET uri_floor = (SELECT revision FROM uri_changes WHERE number <= ?1 ORDER BY number DESC LIMIT 1)",
    )?
    .execute([cut])?;
    t.prepare_cached("DELETE FROM uri_changes WHERE number <= ?1")?
        .execute([cut])?;
    Ok(())
}

/// The last one is changed in place; any other, published again, becomes the last one.
fn publish(t: &Transaction<'_>, p: &Publication) -> rusqlite::Result<()> {
    let values = params![p.revision.as_str(), p.at.0, p.ceiling, p.rate, p.paused];
    let changed = t
        .prepare_cached(
            "UPDATE publications SET at = ?2, ceiling = ?3, rate = ?4, paused = ?5
             WHERE revision = ?1 AND number = (SELECT max(number) FROM publications)",
        )?
        .execute(values)?;
    if changed == 0 {
        t.prepare_cached("DELETE FROM publications WHERE revision = ?1")?
            .execute([p.revision.as_str()])?;
        t.prepare_cached("INSERT INTO publications (revision, at, ceiling, rate, paused) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(values)?;
    }
    Ok(())
}
