//! Rows to domain types and back. A row that makes no valid domain value is damage, named with its table.

use std::net::IpAddr;

use rusqlite::{Row, types::Type};

use crate::model::{
    BootTime, Device, DeviceState, Fingerprint, Lease, Now, Revision, Session, SessionId, Trust, UriChange, WallTime, Window,
};

/// SQLite's integers are signed: the same 64 bits.
pub(super) const fn signed(n: u64) -> i64 {
    n.cast_signed()
}

/// The same 64 bits.
pub(super) const fn unsigned(n: i64) -> u64 {
    n.cast_unsigned()
}

/// 4 or 16 bytes, network order.
pub(super) fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// Columns of [`device`], in its order.
pub(super) const DEVICE: &str = "id, owner, full_service_pool, state, state_reason, state_since, policy_revision, restricted_at, \
     lease_wall, lease_boot, lease_boot_id, lease_length, gateway_uri, revision";

/// A device without its aliases.
pub(super) fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    let lease: [Option<i64>; 4] = [row.get(8)?, row.get(9)?, row.get(10)?, row.get(11)?];
    let lease = match lease {
        [None, None, None, None] => None,
        [Some(wall), Some(boot), Some(id), Some(length)] => Some(Lease {
            given: Now {
                wall: WallTime(wall),
                boot: BootTime(unsigned(boot)),
                boot_id: unsigned(id),
            },
            length_ms: unsigned(length),
        }),
        _ => return Err(damaged(8, "devices: half a lease")),
    };
    Ok(Device {
        id: parse(row, 0)?,
        owner: row.get(1)?,
        full_service_pool: parse(row, 2)?,
        common_names: Vec::new(),
        certificates: Vec::new(),
        vpn_keys: Vec::new(),
        window: Window::default(),
        enrolled_at: None,
        arrived_at: None,
        arrived_outside: None,
        deadline: None,
        state: state_of(&row.get::<_, String>(3)?)?,
        state_reason: row.get(4)?,
        state_since: WallTime(row.get(5)?),
        policy_revision: row.get::<_, Option<String>>(6)?.map(|_| parse(row, 6)).transpose()?,
        restricted_at: row.get::<_, Option<i64>>(7)?.map(WallTime),
        proved: None,
        lease,
        offer: None,
        final_key: None,
        exception: None,
        gateway_uri: row.get(12)?,
        revision: Revision(unsigned(row.get(13)?)),
    })
}

/// A session without its addresses: `id, device, interface, source, opened_at`.
pub(super) fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    Ok(Session {
        id: SessionId(unsigned(row.get(0)?)),
        device: row.get::<_, Option<String>>(1)?.map(|_| parse(row, 1)).transpose()?,
        addresses: Vec::new(),
        interface: parse(row, 2)?,
        source: parse(row, 3)?,
        trust: Trust::default(),
        opened_at: WallTime(row.get(4)?),
    })
}

/// `revision, device, old, new, at, reason`.
pub(super) fn uri_change(row: &Row<'_>) -> rusqlite::Result<UriChange> {
    Ok(UriChange {
        revision: Revision(unsigned(row.get(0)?)),
        device: parse(row, 1)?,
        old: row.get(2)?,
        new: row.get(3)?,
        at: WallTime(row.get(4)?),
        reason: row.get(5)?,
    })
}

/// A fingerprint in this column.
pub(super) fn fingerprint(row: &Row<'_>, column: usize) -> rusqlite::Result<Fingerprint> {
    row.get::<_, [u8; 32]>(column).map(Fingerprint::new)
}

/// An address in this column.
pub(super) fn address_of(row: &Row<'_>, column: usize) -> rusqlite::Result<IpAddr> {
    let bytes: Vec<u8> = row.get(column)?;
    let four = <[u8; 4]>::try_from(bytes.as_slice()).map(IpAddr::from);
    let sixteen = || <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from);
    four.or_else(|_| sixteen())
        .map_err(|_| damaged(column, "session_addresses: not an address"))
}

/// A name in this column, checked like any other.
pub(super) fn parse<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: TryFrom<String>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    T::try_from(row.get::<_, String>(column)?)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn state_of(text: &str) -> rusqlite::Result<DeviceState> {
    let found = DeviceState::ALL.into_iter().find(|s| s.as_str() == text);
    found.ok_or_else(|| damaged(3, "devices: an unknown state"))
}

fn damaged(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, what.into())
}
