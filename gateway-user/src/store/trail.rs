//! What is kept of the past: remembered requests and the audit's chain; how they grow, are found and are pruned.

use rusqlite::{Connection, OptionalExtension as _, Transaction, TransactionBehavior, params};

use super::{
    AuditQuery, KEPT_REQUESTS, PRUNED_AT_ONCE, Request, StoreError,
    failure::Failure,
    rows::{self, signed},
};
use crate::{
    audit::{Entry, Head, Sealed, sha256},
    model::{DeviceId, RequestId, WallTime},
};

/// Adds requests, or the answers of those that are there.
pub(super) fn remember(t: &Transaction<'_>, requests: &[Request]) -> rusqlite::Result<()> {
    if requests.is_empty() {
        return Ok(());
    }
    let mut find = t.prepare_cached("SELECT number, digest, at FROM requests WHERE key = ?1 AND client = ?2 AND id = ?3")?;
    let mut answer = t.prepare_cached("UPDATE requests SET answer = ?2 WHERE number = ?1")?;
    let mut forget = t.prepare_cached("DELETE FROM requests WHERE number = ?1")?;
    let mut insert =
        t.prepare_cached("INSERT INTO requests (key, client, id, digest, at, answer) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for r in requests {
        let key = request_key(&r.client, &r.id);
        let found: Option<(i64, [u8; 32], i64)> = find
            .query_row(params![key, r.client, r.id.as_str()], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        match found {
            Some((number, digest, at)) if digest == r.digest && at == r.at.0 => {
                if r.answer.is_some() {
                    answer.execute(params![number, r.answer])?;
                }
                continue;
            }
            // Its time was over, and the id is used anew: it takes its place at the end, since the oldest are pruned first.
            Some((number, ..)) => {
                forget.execute([number])?;
            }
            None => {}
        }
        insert.execute(params![key, r.client, r.id.as_str(), r.digest, r.at.0, r.answer])?;
    }
    Ok(())
}

/// See [`super::Store::request`].
pub(super) fn request(connection: &Connection, client: &str, id: &RequestId) -> rusqlite::Result<Option<Request>> {
    connection
        .prepare_cached("SELECT client, id, digest, at, answer FROM requests WHERE key = ?1 AND client = ?2 AND id = ?3")?
        .query_row(params![request_key(client, id), client, id.as_str()], rows::request)
        .optional()
}

/// Adds entries to the chain and gives its new head.
pub(super) fn append(t: &Transaction<'_>, mut head: Head, entries: &[Entry]) -> Result<Head, Failure> {
    if entries.is_empty() {
        return Ok(head);
    }
    let text = format!(
        "INSERT INTO audit ({}, device_key) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        rows::AUDIT
    );
    let mut insert = t.prepare_cached(&text)?;
    for e in entries {
        if e.number != head.number + 1 {
            return Err(StoreError::AuditNumber {
                expected: head.number + 1,
                found: e.number,
            }
            .into());
        }
        head = Head {
            number: e.number,
            hash: e.hash_after(&head.hash),
        };
        insert.execute(params![
            signed(e.number),
            e.at.0,
            e.by,
            e.action,
            e.device.as_ref().map(DeviceId::as_str),
            e.subject,
            e.before,
            e.after,
            e.reason,
            e.request,
            e.result,
            head.hash,
            e.device.as_ref().map(device_key),
        ])?;
    }
    Ok(head)
}

/// See [`super::Store::audit`].
pub(super) fn audit(connection: &Connection, query: &AuditQuery) -> rusqlite::Result<Vec<Sealed>> {
    let select = |rest: &str| format!("SELECT {} FROM audit WHERE {rest}", rows::AUDIT);
    let below = |number: &Option<u64>| number.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
    match query {
        AuditQuery::Number(number) => connection
            .prepare_cached(&select("number = ?1"))?
            .query_map([signed(*number)], rows::sealed)?
            .collect(),
        AuditQuery::After { number, limit } => connection
            .prepare_cached(&select("number > ?1 ORDER BY number LIMIT ?2"))?
            .query_map(params![i64::try_from(*number).unwrap_or(i64::MAX), limit], rows::sealed)?
            .collect(),
        AuditQuery::Before {
            number,
            device: None,
            limit,
        } => connection
            .prepare_cached(&select("number < ?1 ORDER BY number DESC LIMIT ?2"))?
            .query_map(params![below(number), limit], rows::sealed)?
            .collect(),
        AuditQuery::Before {
            number,
            device: Some(device),
            limit,
        } => connection
            .prepare_cached(&select(
                "device_key = ?3 AND device = ?4 AND number < ?1 ORDER BY number DESC LIMIT ?2",
            ))?
            .query_map(
                params![below(number), limit, device_key(device), device.as_str()],
                rows::sealed,
            )?
            .collect(),
    }
}

/// See [`super::Store::prune`].
pub(super) fn prune(connection: &mut Connection, requests_before: WallTime, audit_entries: u64) -> rusqlite::Result<bool> {
    let requests = requests_to_prune(connection, requests_before)?;
    let audit = audit_to_prune(connection, audit_entries)?;
    if requests.is_none() && audit.is_none() {
        return Ok(false);
    }
    let t = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if let Some((up_to, _)) = requests {
        t.prepare_cached("DELETE FROM requests WHERE number <= ?1")?
            .execute([up_to])?;
    }
    if let Some((up_to, _)) = audit {
        t.prepare_cached(
            "UPDATE meta SET (anchor_number, anchor_hash) = (SELECT number, hash FROM audit WHERE number <= ?1
             ORDER BY number DESC LIMIT 1)",
        )?
        .execute([up_to])?;
        t.prepare_cached("DELETE FROM audit WHERE number <= ?1")?.execute([up_to])?;
    }
    t.commit()?;
    Ok(requests.is_some_and(|r| r.1) || audit.is_some_and(|a| a.1))
}

/// Up to which number, and whether there is more after it.
fn requests_to_prune(connection: &Connection, before: WallTime) -> rusqlite::Result<Option<(i64, bool)>> {
    let Some((first, last)) = bounds(connection, "SELECT min(number), max(number) FROM requests")? else {
        return Ok(None);
    };
    let above = last.saturating_sub(i64::try_from(KEPT_REQUESTS).unwrap_or(i64::MAX));
    // The number before the first that is young enough; ones after it that are older, after a step of the clock, go later.
    let mut young = connection.prepare_cached(
        "SELECT number FROM (SELECT number, at FROM requests ORDER BY number LIMIT ?1) WHERE at >= ?2 ORDER BY number LIMIT 1",
    )?;
    let young: Option<i64> = young
        .query_row(params![signed(PRUNED_AT_ONCE + 1), before.0], |r| r.get(0))
        .optional()?;
    Ok(part(first, last, young.map_or(last, |y| y - 1).max(above)))
}

fn audit_to_prune(connection: &Connection, kept: u64) -> rusqlite::Result<Option<(i64, bool)>> {
    let found = bounds(connection, "SELECT min(number), max(number) FROM audit")?;
    Ok(found.and_then(|(first, last)| part(first, last, last.saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX)))))
}

fn bounds(connection: &Connection, text: &str) -> rusqlite::Result<Option<(i64, i64)>> {
    let found: (Option<i64>, Option<i64>) = connection
        .prepare_cached(text)?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(found.0.zip(found.1))
}

fn part(first: i64, last: i64, up_to: i64) -> Option<(i64, bool)> {
    let most = first.saturating_add(i64::try_from(PRUNED_AT_ONCE).unwrap_or(i64::MAX) - 1);
    let up_to = up_to.min(last);
    (up_to >= first).then_some((up_to.min(most), up_to > most))
}

fn request_key(client: &str, id: &RequestId) -> i64 {
    let mut bytes = Vec::with_capacity(client.len() + 1 + id.as_str().len());
    bytes.extend_from_slice(client.as_bytes());
    // In no client's name: control characters are escaped there; and were it, rows are compared whole.
    bytes.push(0);
    bytes.extend_from_slice(id.as_str().as_bytes());
    key(&bytes)
}

fn device_key(device: &DeviceId) -> i64 {
    key(device.as_str().as_bytes())
}

fn key(bytes: &[u8]) -> i64 {
    let digest = sha256(bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}
