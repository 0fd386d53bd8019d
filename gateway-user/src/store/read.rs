//! All that a daemon loads when it starts, in one pass over each table in the order of its key.

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::{
    Snapshot,
    rows::{self, Devices, unsigned},
};
use crate::{
    audit::Head,
    model::{Device, Publication, Revision, Session, UriChange, WallTime},
};

/// See [`super::Store::load_each`].
pub(super) fn load(connection: &mut Connection, device: &mut dyn FnMut(Device)) -> rusqlite::Result<Snapshot> {
    all(&*connection.transaction()?, device)
}

/// As [`load`], in a transaction that there is.
pub(super) fn all(t: &Connection, device: &mut dyn FnMut(Device)) -> rusqlite::Result<Snapshot> {
    let snapshot = head(t)?;
    let mut statement = t.prepare(&format!("SELECT {} FROM devices ORDER BY id", rows::DEVICE))?;
    let (mut found, mut reader) = (statement.query([])?, Devices::of(t)?);
    while let Some(row) = found.next()? {
        device(reader.row(row)?);
    }
    Ok(Snapshot {
        sessions: sessions(t)?,
        publications: publications(t)?,
        ..snapshot
    })
}

/// What there is one of.
pub(super) fn head(connection: &Connection) -> rusqlite::Result<Snapshot> {
    let of_meta = |r: &Row<'_>| {
        Ok(Snapshot {
            revision: Revision(unsigned(r.get(0)?)),
            next_session: unsigned(r.get(1)?),
            committed_at: r.get::<_, Option<i64>>(2)?.map(WallTime),
            restored: r.get::<_, Option<i64>>(3)?.map(WallTime),
            forgotten: r.get::<_, Option<i64>>(4)?.map(WallTime),
            audit_head: Some(rows::head(r, 5)?).filter(|h| *h != Head::NONE),
            ..Snapshot::default()
        })
    };
    let text = "SELECT revision, next_session, committed_at, restored, forgotten, audit_number, audit_hash FROM meta";
    connection.query_row(text, [], of_meta)
}

/// See [`super::Store::uri_changes`].
pub(super) fn uri_changes(connection: &Connection, after: Revision, most: usize) -> rusqlite::Result<Option<Vec<UriChange>>> {
    let floor = unsigned(connection.query_row("SELECT uri_floor FROM meta", [], |r| r.get(0))?);
    if after.0 < floor {
        return Ok(None);
    }
    let Some(first) = first_after(connection, after)? else {
        return Ok(Some(Vec::new()));
    };
    let text = "SELECT revision, device, old, new, at, reason FROM uri_changes WHERE number >= ?1 ORDER BY number";
    let mut statement = connection.prepare_cached(text)?;
    let mut changes: Vec<UriChange> = Vec::new();
    for change in statement.query_map([first], rows::uri_change)? {
        let change = change?;
        if changes.len() >= most && changes.last().is_some_and(|last| last.revision < change.revision) {
            break;
        }
        changes.push(change);
    }
    Ok(Some(changes))
}

/// The number of the first change after a revision. Halving, since revisions ascend with numbers: there is no index that each commit would have
/// to write.
fn first_after(connection: &Connection, after: Revision) -> rusqlite::Result<Option<i64>> {
    let pair = |r: &rusqlite::Row<'_>| Ok((r.get::<_, i64>(0)?, unsigned(r.get(1)?)));
    let last = "SELECT number, revision FROM uri_changes ORDER BY number DESC LIMIT 1";
    let last = connection.prepare_cached(last)?.query_row([], pair).optional()?;
    let Some((mut high, _)) = last.filter(|(_, revision)| *revision > after.0) else {
        return Ok(None);
    };
    let from = "SELECT number, revision FROM uri_changes WHERE number >= ?1 ORDER BY number LIMIT 1";
    let mut from = connection.prepare_cached(from)?;
    let mut low = 0;
    // What is at `high`, or behind it, is later; what is before `low` is not.
    while low < high {
        let middle = low + (high - low) / 2;
        match from.query_row([middle], pair).optional()? {
            Some((number, revision)) if revision <= after.0 => low = number + 1,
            _ => high = middle,
        }
    }
    Ok(Some(low))
}

/// Sessions and addresses, both by the session's number.
fn sessions(connection: &Connection) -> rusqlite::Result<Vec<Session>> {
    let text = "SELECT id, device, interface, source, trust, opened_at FROM sessions ORDER BY id";
    let mut sessions: Vec<Session> = connection
        .prepare(text)?
        .query_map([], rows::session)?
        .collect::<rusqlite::Result<_>>()?;
    let mut statement = connection.prepare("SELECT session, address FROM session_addresses ORDER BY session, place")?;
    let mut found = statement.query([])?;
    let mut at = 0;
    while let Some(row) = found.next()? {
        let session = unsigned(row.get(0)?);
        while sessions.get(at).is_some_and(|s| s.id.0 < session) {
            at += 1;
        }
        // A foreign key holds each address to a session.
        if let Some(s) = sessions.get_mut(at).filter(|s| s.id.0 == session) {
            s.addresses.push(rows::address_of(row, 1)?);
        }
    }
    Ok(sessions)
}

/// Oldest first.
pub(super) fn publications(connection: &Connection) -> rusqlite::Result<Vec<Publication>> {
    connection
        .prepare("SELECT revision, at, ceiling, rate, paused FROM publications ORDER BY number")?
        .query_map([], rows::publication)?
        .collect()
}
