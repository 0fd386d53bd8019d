//! What is kept of the past: remembered requests and the audit's chain; how they grow, are found and are pruned.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, Row, Transaction, TransactionBehavior, params};

use super::{
    AuditQuery, PRUNED_AT_ONCE, Request, StoreError,
    aside::{self, Aside},
    failure::Failure,
    rows::{self, signed, unsigned},
    seen::Seen,
};
use crate::{
    audit::{Entry, Head, Sealed, sha256},
    model::{DeviceId, RequestId},
};

/// Entries of the audit that are looked through for a device that the registry does not know, and of a device before those that are asked
/// for.
const LOOKED_THROUGH: u32 = 20_000;

/// Adds requests, or the answers of those that are there.
pub(super) fn remember(t: &Transaction<'_>, seen: &mut Option<Seen>, requests: &[Request]) -> rusqlite::Result<()> {
    if requests.is_empty() {
        return Ok(());
    }
    let mut answer = t.prepare_cached("UPDATE requests SET answer = ?2 WHERE number = ?1")?;
    // What was added in a transaction that was rolled back is not there, or another's.
    let mut awaited = t.prepare_cached(
        "UPDATE requests SET answer = ?2 WHERE number = ?1 AND key = ?3 AND digest = ?4 AND at = ?5 AND client = ?6 AND id = ?7",
    )?;
    let mut forget = t.prepare_cached("DELETE FROM requests WHERE number = ?1")?;
    let mut insert =
        t.prepare_cached("INSERT INTO requests (key, client, id, digest, at, answer) VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?;
    for r in requests {
        let (key, kept) = (request_key(&r.client, &r.id), rows::kept(r));
        if r.answer.is_some()
            && let Some(number) = seen.as_mut().and_then(|s| s.awaited(key))
            && awaited.execute(params![number, kept, key, r.digest, r.at.0, r.client, r.id.as_str()])? == 1
        {
            continue;
        }
        match find(t, seen, key, &r.client, &r.id)? {
            Some((number, old)) if old.digest == r.digest && old.at == r.at => {
                if r.answer.is_some() {
                    answer.execute(params![number, kept])?;
                }
                continue;
            }
            // Its time was over, and the id is used anew: it takes its place at the end, since the oldest are pruned first.
            Some((number, ..)) => {
                forget.execute([number])?;
            }
            None => {}
        }
        insert.execute(params![key, r.client, r.id.as_str(), r.digest, r.at.0, kept])?;
        let number = t.last_insert_rowid();
        if let Some(seen) = seen {
            seen.add(unsigned(number), key);
            if r.answer.is_none() {
                seen.await_answer(number, key);
            }
        }
    }
    Ok(())
}

/// See [`super::Store::request`].
pub(super) fn request(
    connection: &Connection,
    seen: &mut Option<Seen>,
    client: &str,
    id: &RequestId,
) -> rusqlite::Result<Option<Request>> {
    let found = find(connection, seen, request_key(client, id), client, id)?;
    Ok(found.map(|(_, request)| request))
}

/// The last entry of each device in a change, before and after it, so that a device's entries can be followed back.
#[derive(Debug, Default)]
pub(super) struct LastEntries<'c> {
    after: HashMap<&'c DeviceId, u64>,
    before: HashMap<&'c DeviceId, u64>,
}

impl<'c> LastEntries<'c> {
    /// Of what a change is going to add.
    pub(super) fn of(entries: &'c [Entry]) -> Self {
        let after = entries.iter().filter_map(|e| Some((e.device.as_ref()?, e.number)));
        Self {
            after: after.collect(),
            before: HashMap::with_capacity(entries.len()),
        }
    }

    /// A device's row has had this number; gives the one that it is to have.
    pub(super) fn replaces(&mut self, device: &DeviceId, before: u64) -> u64 {
        let Some((device, after)) = self.after.get_key_value(device) else {
            return before;
        };
        self.before.insert(device, before);
        *after
    }
}

/// Adds entries to the chain and gives its new head.
pub(super) fn append<'c>(
    t: &Transaction<'_>,
    mut head: Head,
    entries: &'c [Entry],
    last: &mut LastEntries<'c>,
) -> Result<Head, Failure> {
    if entries.is_empty() {
        return Ok(head);
    }
    let mut known = t.prepare_cached("SELECT last_audit FROM devices WHERE id = ?1")?;
    let mut update = t.prepare_cached("UPDATE devices SET last_audit = ?2 WHERE id = ?1")?;
    let text = format!(
        "INSERT INTO audit ({}, previous) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
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
        let previous = match &e.device {
            None => 0,
            Some(device) => match last.before.insert(device, e.number) {
                Some(before) => before,
                // A refusal: nothing else of the device changes.
                None => {
                    let before: Option<i64> = known.query_row([device.as_str()], |r| r.get(0)).optional()?;
                    if let Some(after) = last.after.get(device).filter(|_| before.is_some()) {
                        update.execute(params![device.as_str(), signed(*after)])?;
                    }
                    unsigned(before.unwrap_or(0))
                }
            },
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
            signed(previous),
        ])?;
    }
    Ok(head)
}

/// See [`super::Store::audit`].
pub(super) fn audit(connection: &Connection, query: &AuditQuery) -> rusqlite::Result<Vec<Sealed>> {
    let select = |rest: &str| format!("SELECT {} FROM audit WHERE {rest}", rows::AUDIT);
    let below = |number: &Option<u64>| number.map_or(i64::MAX, |n| i64::try_from(n).unwrap_or(i64::MAX));
    match query {
        AuditQuery::Number(number) => {
            let text = select("number = ?1");
            let found = connection
                .prepare_cached(&text)?
                .query_row([signed(*number)], rows::sealed)
                .optional()?;
            let found = found.map_or_else(|| aside::entry(connection, *number), |f| Ok(Some(f)))?;
            Ok(found.into_iter().collect())
        }
        AuditQuery::After { number, limit } => connection
            .prepare_cached(&select("number > ?1 ORDER BY number LIMIT ?2"))?
            .query_map(params![i64::try_from(*number).unwrap_or(i64::MAX), limit], rows::sealed)?
            .collect(),
        AuditQuery::Before {
            number,
            device: None,
            limit,
        } => {
            let text = select("number < ?1 ORDER BY number DESC LIMIT ?2");
            let mut statement = connection.prepare_cached(&text)?;
            let found = statement.query_map(params![below(number), limit], rows::sealed)?;
            and_aside(
                connection,
                found.collect::<rusqlite::Result<_>>()?,
                below(number),
                None,
                *limit,
            )
        }
        AuditQuery::Before {
            number,
            device: Some(device),
            limit,
        } => {
            let found = of_device(connection, below(number), device, *limit)?;
            and_aside(connection, found, below(number), Some(device), *limit)
        }
    }
}

/// Where the chain has no more, goes on with what is kept beside it.
fn and_aside(
    connection: &Connection,
    mut found: Vec<Sealed>,
    below: i64,
    device: Option<&DeviceId>,
    limit: u32,
) -> rusqlite::Result<Vec<Sealed>> {
    let left = (limit as usize).saturating_sub(found.len());
    if left > 0 {
        found.extend(aside::before(connection, below, device, left, LOOKED_THROUGH)?);
    }
    Ok(found)
}

/// The chain's last entry, and the last that was pruned.
pub(super) fn ends(connection: &Connection) -> rusqlite::Result<(Head, Head)> {
    let text = "SELECT audit_number, audit_hash, anchor_number, anchor_hash FROM meta";
    connection
        .prepare_cached(text)?
        .query_row([], |r| Ok((rows::head(r, 0)?, rows::head(r, 2)?)))
}

/// Follows a device's entries back. Of one that the registry does not know, what the last entries say.
fn of_device(connection: &Connection, below: i64, device: &DeviceId, limit: u32) -> rusqlite::Result<Vec<Sealed>> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT last_audit FROM devices WHERE id = ?1")?
        .query_row([device.as_str()], |r| r.get(0))
        .optional()?;
    let Some(mut next) = last else {
        let text = format!(
            "SELECT {} FROM (SELECT * FROM audit WHERE number < ?1 ORDER BY number DESC LIMIT ?4) WHERE device = ?2 LIMIT ?3",
            rows::AUDIT
        );
        return connection
            .prepare_cached(&text)?
            .query_map(params![below, device.as_str(), limit, LOOKED_THROUGH], rows::sealed)?
            .collect();
    };
    // A page begins where the one before ended: at an entry of the device.
    let before: Option<i64> = connection
        .prepare_cached("SELECT previous FROM audit WHERE number = ?1 AND device = ?2")?
        .query_row(params![below, device.as_str()], |r| r.get(0))
        .optional()?;
    next = before.map_or(next, |before| before.min(below - 1));
    let text = format!(
        "SELECT {}, previous FROM audit WHERE number = ?1 AND device = ?2",
        rows::AUDIT
    );
    let mut statement = connection.prepare_cached(&text)?;
    let mut found = Vec::new();
    // From another number, the way back is followed only so far.
    for _ in 0..LOOKED_THROUGH {
        if next <= 0 || found.len() >= limit as usize {
            break;
        }
        let row = |r: &Row<'_>| Ok((rows::sealed(r)?, r.get(12)?));
        // The one before may be pruned.
        let Some((sealed, previous)) = statement.query_row(params![next, device.as_str()], row).optional()? else {
            break;
        };
        if next < below {
            found.push(sealed);
        }
        // Always further back, whatever the row says.
        next = i64::min(previous, next - 1);
    }
    Ok(found)
}

/// Leaves the last entries of the audit, `kept` at most, and beside them some of those before; true: there is more to do.
pub(super) fn prune(connection: &mut Connection, aside: &mut Aside, kept: u64) -> rusqlite::Result<bool> {
    let text = "SELECT (SELECT min(number) FROM audit), (SELECT max(number) FROM audit)";
    let above = |last: i64| last.saturating_sub(i64::try_from(kept).unwrap_or(i64::MAX));
    let found = bounds(connection, text)?.and_then(|(first, last)| part(first, last, above(last)));
    let Some((up_to, more)) = found else { return Ok(false) };
    let done = drop_audit(connection, aside, up_to, kept);
    if done.is_err() {
        *aside = Aside::default();
    }
    done.map(|()| more)
}

fn drop_audit(connection: &mut Connection, aside: &mut Aside, up_to: i64, kept: u64) -> rusqlite::Result<()> {
    let t = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    aside.put(&t, up_to, kept / aside::FOR_EACH)?;
    t.prepare_cached(
        "UPDATE meta SET (anchor_number, anchor_hash) = (SELECT number, hash FROM audit WHERE number <= ?1
         ORDER BY number DESC LIMIT 1)",
    )?
    .execute([up_to])?;
    t.prepare_cached("DELETE FROM audit WHERE number <= ?1")?.execute([up_to])?;
    t.commit()
}

/// With both in one SELECT, SQLite would read the whole table.
pub(super) fn bounds(connection: &Connection, text: &str) -> rusqlite::Result<Option<(i64, i64)>> {
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

/// By digest and text, its number and what is remembered of it.
fn find(
    connection: &Connection,
    seen: &mut Option<Seen>,
    key: i64,
    client: &str,
    id: &RequestId,
) -> rusqlite::Result<Option<(i64, Request)>> {
    let seen = match seen {
        Some(seen) => seen,
        None => seen.insert(all_seen(connection)?),
    };
    let text = "SELECT client, id, digest, at, answer, number FROM requests
        WHERE number >> 14 = ?1 AND key = ?2 AND client = ?3 AND id = ?4";
    for chapter in seen.chapters(key) {
        let mut statement = connection.prepare_cached(text)?;
        let row = |r: &Row<'_>| Ok((r.get(5)?, rows::request(r)?));
        let found = statement
            .query_row(params![signed(chapter), key, client, id.as_str()], row)
            .optional()?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn all_seen(connection: &Connection) -> rusqlite::Result<Seen> {
    let mut seen = Seen::new();
    let mut statement = connection.prepare("SELECT number, key FROM requests INDEXED BY requests_key ORDER BY number >> 14")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        seen.add(unsigned(row.get(0)?), row.get(1)?);
    }
    Ok(seen)
}

fn request_key(client: &str, id: &RequestId) -> i64 {
    let mut bytes = Vec::with_capacity(client.len() + 1 + id.as_str().len());
    bytes.extend_from_slice(client.as_bytes());
    // In no client's name: control characters are escaped there; and were it, rows are compared whole.
    bytes.push(0);
    bytes.extend_from_slice(id.as_str().as_bytes());
    let digest = sha256(&bytes);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(first)
}
