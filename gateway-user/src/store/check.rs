//! Whether a database is what it should be: SQLite's own checks, and ours.

use rusqlite::Connection;

use super::{
    read,
    reader::{self, Health},
    rows::{self, signed},
};
use crate::model::Device;

/// Problems that SQLite lists at most.
const MOST: u32 = 100;

/// Queries that must find nothing, and what it means where they do.
const NOTHING: &[(&str, &str)] = &[
    (
        "SELECT count(*) FROM aliases WHERE device NOT IN (SELECT id FROM devices)",
        "alias(es) of devices that do not exist",
    ),
    (
        "SELECT count(*) FROM devices WHERE scope <> 0 AND scope NOT IN (SELECT number FROM scopes)",
        "device(s) with the scope of nobody",
    ),
    (
        "SELECT count(*) FROM sessions, meta WHERE id >= next_session",
        "session(s) above the number that comes next",
    ),
    (
        "SELECT count(*) FROM devices, meta WHERE devices.revision > meta.revision",
        "device(s) changed after the last commit",
    ),
    (
        "SELECT count(*) FROM uri_changes, meta WHERE uri_changes.revision > meta.revision",
        "GatewayURI(s) changed after the last commit",
    ),
    (
        "SELECT count(*) FROM devices, meta WHERE last_audit > audit_number",
        "device(s) with an audit entry that is not there",
    ),
    (
        "SELECT count(*) FROM session_addresses LEFT JOIN sessions ON sessions.id = session WHERE sessions.id IS NULL",
        "address(es) of sessions that do not exist",
    ),
];

/// See [`reader::Reader::check`].
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Health> {
    let mut problems = integrity(connection)?;
    let (mut devices, mut aliases) = (0, 0);
    let mut missing = 0;
    let mut alias = connection.prepare("SELECT 1 FROM aliases WHERE kind = ?1 AND alias = ?2 AND device = ?3")?;
    let mut fault = None;
    let loaded = read::all(connection, &mut |device: Device| {
        devices += 1;
        for (kind, text) in aliases_of(&device) {
            aliases += 1;
            match alias.exists(rusqlite::params![kind, text, device.id.as_str()]) {
                Ok(there) => missing += u64::from(!there),
                Err(e) => fault = Some(e),
            }
        }
    });
    if let Some(e) = fault {
        return Err(e);
    }
    let sessions = match loaded {
        Ok(snapshot) => snapshot.sessions.len() as u64,
        Err(e) => {
            problems.push(format!("cannot be loaded: {e}"));
            0
        }
    };
    let listed: i64 = connection.query_row("SELECT count(*) FROM aliases", [], |r| r.get(0))?;
    if missing > 0 || listed != signed(aliases) {
        problems.push(format!(
            "aliases: devices have {aliases}, of which {missing} are not listed as theirs; {listed} are listed"
        ));
    }
    for (query, what) in NOTHING {
        let count: i64 = connection.query_row(query, [], |r| r.get(0))?;
        if count > 0 {
            problems.push(format!("{count} {what}"));
        }
    }
    let audit = reader::verify(connection, &[])?;
    problems.extend(audit.findings.iter().map(|f| format!("audit: {f}")));
    Ok(Health {
        problems,
        devices,
        sessions,
        audit,
    })
}

/// SQLite's own: pages, trees, indexes, types, foreign keys.
pub(super) fn integrity(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut problems: Vec<String> = connection
        .prepare(&format!("PRAGMA integrity_check({MOST})"))?
        .query_map([], |r| r.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    problems.retain(|p| p != "ok");
    let mut keys = connection.prepare("PRAGMA foreign_key_check")?;
    let table = |r: &rusqlite::Row<'_>| Ok(format!("{}: a row refers to one that does not exist", r.get::<_, String>(0)?));
    for found in keys.query_map([], table)?.take(MOST as usize) {
        problems.push(found?);
    }
    Ok(problems)
}

fn aliases_of(device: &Device) -> impl Iterator<Item = (i64, &[u8])> {
    let names = device
        .aliases
        .common_names
        .iter()
        .map(|n| (rows::NAME, n.as_str().as_bytes()));
    let certificates = device
        .aliases
        .certificates
        .iter()
        .map(|c| (rows::CERTIFICATE, c.bytes().as_slice()));
    let keys = device.aliases.vpn_keys.iter().map(|k| (rows::VPN_KEY, k.0.as_slice()));
    names.chain(certificates).chain(keys)
}
