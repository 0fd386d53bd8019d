//! All that a daemon loads when it starts, in one pass over each table in the order of its key.

use rusqlite::{Connection, Row};

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
pub(super) fn uri_changes(connection: &Connection, after: Revision) -> rusqlite::Result<Option<Vec<UriChange>>> {
    let floor = unsigned(connection.query_row("SELECT uri_floor FROM meta", [], |r| r.get(0))?);
    if after.0 < floor {
        return Ok(None);
    }
    // Back from the last one, since revisions ascend with numbers: there is no index that each commit would have to write.
    let text = "SELECT revision, device, old, new, at, reason FROM uri_changes ORDER BY number DESC";
    let mut statement = connection.prepare_cached(text)?;
    let mut changes = statement
        .query_map([], rows::uri_change)?
        .take_while(|c| !matches!(c, Ok(c) if c.revision <= after))
        .collect::<rusqlite::Result<Vec<_>>>()?;
    changes.reverse();
    Ok(Some(changes))
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
