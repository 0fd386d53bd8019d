//! Rows to domain types and back. A row that makes no valid domain value is damage, named with its table.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use rusqlite::{Connection, Row, types::Type};

use crate::{
    audit::{Entry, Head, Sealed},
    model::{
        Addresses, Aliases, BootTime, Device, DeviceId, DevicePattern, DeviceState, Enrolment, Exception, ExceptionKind,
        FinalKey, Fingerprint, Handshake, KeyHash, Lease, Now, Offer, PolicyRevision, PoolName, Publication, Rare, Reach,
        Release, Revision, Salt, Session, SessionId, StateReason, Trust, UriChange, VpnKey, WallTime, Window,
    },
    store::Request,
};

/// Kinds of the table `aliases`.
pub(super) const NAME: i64 = 1;
pub(super) const CERTIFICATE: i64 = 2;
pub(super) const VPN_KEY: i64 = 3;

/// The scope of who may act on every device: in no table.
pub(super) const EVERYONE: i64 = 0;

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

/// Both clocks and the boot id.
pub(super) fn moment(now: &Now) -> [u8; 24] {
    let mut out = [0; 24];
    out[..8].copy_from_slice(&now.wall.0.to_be_bytes());
    out[8..16].copy_from_slice(&now.boot.0.to_be_bytes());
    out[16..].copy_from_slice(&now.boot_id.to_be_bytes());
    out
}

/// A moment and a length.
pub(super) fn span(lease: &Lease) -> [u8; 32] {
    let mut out = [0; 32];
    out[..24].copy_from_slice(&moment(&lease.given));
    out[24..].copy_from_slice(&lease.length_ms.to_be_bytes());
    out
}

/// The hash, and when it was offered, where that is known.
pub(super) fn final_key(key: &FinalKey) -> Vec<u8> {
    let mut out = key.key.0.to_vec();
    out.extend(key.offered.iter().flat_map(moment));
    out
}

fn key_of(blob: &[u8]) -> Option<(KeyHash, Option<Now>)> {
    let (key, offered) = blob.split_first_chunk::<32>()?;
    match offered.len() {
        0 => Some((KeyHash(*key), None)),
        24 => Some((KeyHash(*key), Some(now(offered)))),
        _ => None,
    }
}

/// With a space between.
pub(super) fn names(names: &[DeviceId]) -> String {
    names.iter().map(DeviceId::as_str).collect::<Vec<_>>().join(" ")
}

/// Columns of [`Devices::row`], in its order; the last four are the aliases.
pub(super) const DEVICE: &str = "id, owner, full_service_pool, state, state_reason, state_since, policy_revision, restricted_at, proved, \
     lease, gateway_uri, revision, enrolled_at, arrived_at, arrived_outside, deadline, offer_key, offer_revision, offer_holds, \
     final_key, final_revision, exception_kind, exception_reason, exception_by, exception_holds, not_before, not_after, \
     common_names, certificates, vpn_keys, scope";

/// Reads devices. What many have in common is kept once.
#[derive(Default)]
pub(super) struct Devices {
    scopes: HashMap<i64, Arc<[DevicePattern]>>,
    pool: Option<PoolName>,
    revision: Option<PolicyRevision>,
    uri: Option<Arc<str>>,
}

impl Devices {
    /// Of this database.
    pub(super) fn of(connection: &Connection) -> rusqlite::Result<Self> {
        let mut statement = connection.prepare("SELECT number, devices FROM scopes")?;
        let scopes = statement.query_map([], |row| {
            let patterns = text(row, 1)?.split(' ').filter(|p| !p.is_empty()).map(str::parse);
            let patterns: Result<Arc<[DevicePattern]>, _> = patterns.collect();
            Ok((row.get(0)?, patterns.map_err(|_| damaged(1, "scopes: no names of devices"))?))
        })?;
        Ok(Self {
            scopes: scopes.collect::<rusqlite::Result<_>>()?,
            ..Self::default()
        })
    }

    fn reach(&self, row: &Row<'_>, column: usize) -> rusqlite::Result<Reach> {
        match row.get(column)? {
            EVERYONE => Ok(None),
            number => {
                let scope = self.scopes.get(&number).cloned();
                scope.map(Some).ok_or_else(|| damaged(column, "devices: an unknown scope"))
            }
        }
    }

    pub(super) fn row(&mut self, row: &Row<'_>) -> rusqlite::Result<Device> {
        Ok(Device {
            id: parse(row, 0)?,
            owner: text(row, 1)?.into(),
            full_service_pool: common(&mut self.pool, row, 2)?.ok_or_else(|| damaged(2, "devices: no pool"))?,
            state: state_of(text(row, 3)?)?,
            state_reason: StateReason::parse(text(row, 4)?).ok_or_else(|| damaged(4, "devices: an unknown reason"))?,
            state_since: WallTime(row.get(5)?),
            policy_revision: common(&mut self.revision, row, 6)?,
            release: Rare::new(Release {
                restricted_at: time(row, 7)?,
                proved: moment_of(row, 8)?,
                lease: span_of(row, 9)?,
            }),
            gateway_uri: common(&mut self.uri, row, 10)?.ok_or_else(|| damaged(10, "devices: no GatewayURI"))?,
            revision: Revision(unsigned(row.get(11)?)),
            enrolment: Rare::new(Enrolment {
                enrolled_at: time(row, 12)?,
                arrived_at: time(row, 13)?,
                arrived_outside: time(row, 14)?,
                deadline: span_of(row, 15)?,
                window: Rare::new(Window {
                    not_before: time(row, 25)?,
                    not_after: time(row, 26)?,
                }),
            }),
            keys: Rare::new(Handshake {
                offer: self.offer(row)?,
                final_key: self.final_key(row)?,
            }),
            exception: exception(row)?.map(Box::new),
            aliases: Rare::new(Aliases {
                common_names: names_of(row, 27)?,
                certificates: digests(row, 28)?.map(Fingerprint::new).collect(),
                vpn_keys: digests(row, 29)?.map(VpnKey).collect(),
                reach: self.reach(row, 30)?,
            }),
        })
    }

    fn offer(&mut self, row: &Row<'_>) -> rusqlite::Result<Option<Offer>> {
        match (bytes(row, 16)?, common(&mut self.revision, row, 17)?, span_of(row, 18)?) {
            (None, None, None) => Ok(None),
            (Some(key), Some(revision), Some(holds)) => Ok(Some(Offer {
                key: KeyHash(key),
                revision,
                holds,
            })),
            _ => Err(damaged(16, "devices: half an offer")),
        }
    }

    fn final_key(&mut self, row: &Row<'_>) -> rusqlite::Result<Option<FinalKey>> {
        let blob = row.get_ref(19)?.as_blob_or_null()?;
        let key = blob.map(|b| key_of(b).ok_or_else(|| damaged(19, "devices: a final key of the wrong length")));
        match (key.transpose()?, common(&mut self.revision, row, 20)?) {
            (None, None) => Ok(None),
            (Some((key, offered)), Some(revision)) => Ok(Some(FinalKey { key, revision, offered })),
            _ => Err(damaged(19, "devices: half a final key")),
        }
    }
}

/// A session without its addresses: `id, device, interface, source, trust, opened_at`.
pub(super) fn session(row: &Row<'_>) -> rusqlite::Result<Session> {
    let trust = match text(row, 4)? {
        "name" => Trust::Name,
        "vpn-key" => Trust::VpnKey,
        "certificate" => Trust::Certificate,
        _ => return Err(damaged(4, "sessions: an unknown trust")),
    };
    Ok(Session {
        id: SessionId(unsigned(row.get(0)?)),
        device: row.get::<_, Option<String>>(1)?.map(|_| parse(row, 1)).transpose()?,
        addresses: Addresses::default(),
        interface: parse(row, 2)?,
        source: parse(row, 3)?,
        trust,
        opened_at: WallTime(row.get(5)?),
    })
}

/// A trust as a word.
pub(super) const fn trust(trust: Trust) -> &'static str {
    match trust {
        Trust::Name => "name",
        Trust::VpnKey => "vpn-key",
        Trust::Certificate => "certificate",
    }
}

/// `revision, at, ceiling, rate, paused`.
pub(super) fn publication(row: &Row<'_>) -> rusqlite::Result<Publication> {
    Ok(Publication {
        revision: parse(row, 0)?,
        at: WallTime(row.get(1)?),
        ceiling: row.get(2)?,
        rate: row.get(3)?,
        paused: row.get(4)?,
    })
}

/// `client, id, digest, at, answer`.
pub(super) fn request(row: &Row<'_>) -> rusqlite::Result<Request> {
    let (salt, answer) = match row.get_ref(4)?.as_blob_or_null()? {
        Some([SALTED, rest @ ..]) => {
            let (salt, answer) = rest.split_first_chunk().ok_or_else(|| damaged(4, "requests: half a salt"))?;
            (Some(Salt(*salt)), Some(answer).filter(|a| !a.is_empty()))
        }
        answer => (None, answer),
    };
    Ok(Request {
        client: row.get(0)?,
        id: parse(row, 1)?,
        digest: row.get(2)?,
        at: WallTime(row.get(3)?),
        salt,
        answer: answer.map(<[u8]>::to_vec),
    })
}

/// What the column `answer` has of a request: the answer; or, where there is one, [`SALTED`], the salt, and the answer if it is known.
pub(super) fn kept(request: &Request) -> Option<Vec<u8>> {
    let answer = request.answer.as_deref();
    match request.salt {
        Some(Salt(salt)) => Some([&[SALTED][..], &salt, answer.unwrap_or_default()].concat()),
        None => answer.map(<[u8]>::to_vec),
    }
}

/// The first byte of what has a salt: no encoded message begins with it, since no field has the number 0.
const SALTED: u8 = 0;

/// Columns of [`sealed`], in its order.
pub(super) const AUDIT: &str = "number, at, by, action, device, subject, before, after, reason, request, result, hash";

/// An entry of the audit.
pub(super) fn sealed(row: &Row<'_>) -> rusqlite::Result<Sealed> {
    Ok(Sealed {
        entry: Entry {
            number: unsigned(row.get(0)?),
            at: WallTime(row.get(1)?),
            by: row.get(2)?,
            action: row.get(3)?,
            device: row.get::<_, Option<String>>(4)?.map(|_| parse(row, 4)).transpose()?,
            subject: row.get(5)?,
            before: row.get(6)?,
            after: row.get(7)?,
            reason: row.get(8)?,
            request: row.get(9)?,
            result: row.get(10)?,
        },
        hash: row.get(11)?,
    })
}

/// A number and a hash from this column on.
pub(super) fn head(row: &Row<'_>, column: usize) -> rusqlite::Result<Head> {
    Ok(Head {
        number: unsigned(row.get(column)?),
        hash: row.get(column + 1)?,
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

/// An address in this column.
pub(super) fn address_of(row: &Row<'_>, column: usize) -> rusqlite::Result<IpAddr> {
    let bytes = row.get_ref(column)?.as_blob()?;
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let sixteen = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    four.or_else(|_| sixteen())
        .map_err(|_| damaged(column, "session_addresses: not an address"))
}

/// A name in this column, checked like any other.
pub(super) fn parse<T>(row: &Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: TryFrom<String>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    name(column, row.get(column)?)
}

fn name<T>(column: usize, text: String) -> rusqlite::Result<T>
where
    T: TryFrom<String>,
    T::Error: std::error::Error + Send + Sync + 'static,
{
    T::try_from(text).map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

/// A name that the last row probably had, too.
fn common<T>(last: &mut Option<T>, row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>>
where
    T: Shared,
{
    let Some(text) = row.get_ref(column)?.as_str_or_null()? else {
        return Ok(None);
    };
    if last.as_ref().is_none_or(|l| l.text() != text) {
        *last = Some(T::of(column, text)?);
    }
    Ok(last.clone())
}

trait Shared: Clone {
    fn text(&self) -> &str;
    fn of(column: usize, text: &str) -> rusqlite::Result<Self>;
}
impl Shared for PoolName {
    fn text(&self) -> &str {
        self.as_str()
    }
    fn of(column: usize, text: &str) -> rusqlite::Result<Self> {
        name(column, text.to_owned())
    }
}
impl Shared for PolicyRevision {
    fn text(&self) -> &str {
        self.as_str()
    }
    fn of(column: usize, text: &str) -> rusqlite::Result<Self> {
        name(column, text.to_owned())
    }
}
impl Shared for Arc<str> {
    fn text(&self) -> &str {
        self
    }
    fn of(_: usize, text: &str) -> rusqlite::Result<Self> {
        Ok(text.into())
    }
}

fn exception(row: &Row<'_>) -> rusqlite::Result<Option<Exception>> {
    let kind = match row.get_ref(21)?.as_str_or_null()? {
        None => None,
        Some(word) => Some(ExceptionKind::parse(word).ok_or_else(|| damaged(21, "devices: an unknown kind of exception"))?),
    };
    match (kind, row.get(22)?, row.get(23)?, span_of(row, 24)?) {
        (None, None, None, None) => Ok(None),
        (Some(kind), Some(reason), Some(by), Some(holds)) => Ok(Some(Exception { kind, reason, by, holds })),
        _ => Err(damaged(21, "devices: half an exception")),
    }
}

fn text<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<&'r str> {
    Ok(row.get_ref(column)?.as_str()?)
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<WallTime>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(WallTime))
}

fn bytes<const N: usize>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<[u8; N]>> {
    let blob = row.get_ref(column)?.as_blob_or_null()?;
    blob.map(|b| <[u8; N]>::try_from(b).map_err(|_| damaged(column, "devices: a blob of the wrong length")))
        .transpose()
}

fn moment_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Now>> {
    Ok(bytes::<24>(row, column)?.map(|b| now(&b)))
}

fn span_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Lease>> {
    Ok(bytes::<32>(row, column)?.map(|b| Lease {
        given: now(&b),
        length_ms: u64::from_be_bytes(eight(&b, 24)),
    }))
}

/// Of at least 24 bytes.
fn now(b: &[u8]) -> Now {
    Now {
        wall: WallTime(i64::from_be_bytes(eight(b, 0))),
        boot: BootTime(u64::from_be_bytes(eight(b, 8))),
        boot_id: u64::from_be_bytes(eight(b, 16)),
    }
}

fn eight(b: &[u8], from: usize) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&b[from..from + 8]);
    out
}

fn names_of(row: &Row<'_>, column: usize) -> rusqlite::Result<Box<[DeviceId]>> {
    text(row, column)?
        .split(' ')
        .filter(|n| !n.is_empty())
        .map(|n| name(column, n.to_owned()))
        .collect()
}

fn digests<'r>(row: &'r Row<'_>, column: usize) -> rusqlite::Result<impl Iterator<Item = [u8; 32]> + use<'r>> {
    let (all, rest) = row.get_ref(column)?.as_blob()?.as_chunks::<32>();
    if rest.is_empty() {
        Ok(all.iter().copied())
    } else {
        Err(damaged(column, "devices: half an alias"))
    }
}

fn state_of(text: &str) -> rusqlite::Result<DeviceState> {
    DeviceState::parse(text).ok_or_else(|| damaged(3, "devices: an unknown state"))
}

fn damaged(column: usize, what: &'static str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Blob, what.into())
}
