//! The ledger, in figures and by pages. Each answer looks at every device once, in slices; what changes meanwhile may be seen before or after.

use lazaret_proto::v1;
use tonic::Status;

use super::{page, parse, render, scope};
use crate::{
    controller::Controller,
    ledger::{AGES, Counts, Kind, age_s, lines},
    model::{Device, DeviceId, Identity, WallTime},
    transition::deadline_end,
};

/// All kinds, by age.
pub(super) async fn counts(controller: &Controller) -> Result<v1::GetLedgerResponse, Status> {
    let counts = controller
        .fold_devices(Counts::default(), |counts, device, context| counts.add(device, context))
        .await?;
    let one = |kind: Kind| {
        let of = counts.of(kind);
        let limits = AGES.into_iter().chain([0]);
        v1::LedgerCount {
            kind: number(kind).into(),
            devices: of.iter().sum(),
            ages: limits
                .zip(of)
                .map(|(below_seconds, devices)| v1::LedgerAge { below_seconds, devices })
                .collect(),
        }
    };
    Ok(v1::GetLedgerResponse {
        counts: Kind::ALL.into_iter().map(one).collect(),
    })
}

/// One page.
pub(super) async fn entries(
    controller: &Controller,
    by: &Identity,
    r: v1::ListLedgerEntriesRequest,
) -> Result<v1::ListLedgerEntriesResponse, Status> {
    let only = kind_filter(r.kind)?;
    let list = format!("ledger/{}/{}", r.kind, r.min_age_seconds);
    let page = page::parse(&list, r.page_size, &r.page_token)?;
    let after = page.after.as_deref().map(place).transpose()?;
    let size = page.size as usize;
    let (by, min_age) = (by.clone(), u64::from(r.min_age_seconds));
    // For each kind the first after the page before, one more than is answered.
    let found: [Vec<v1::LedgerEntry>; Kind::ALL.len()] = Default::default();
    let found = controller
        .fold_devices(found, move |found, device, context| {
            for (kind, since) in lines(device, context) {
                let before = after.as_ref().is_some_and(|(k, id)| (kind, &device.id) <= (*k, id));
                let wanted = only.is_none_or(|o| o == kind) && age_s(since, context.now.wall) >= min_age;
                let list = &mut found[kind as usize];
                if wanted && !before && list.len() <= size && scope::sees_device(&by, device.id.as_str()) {
                    let left = deadline_end(device, context).map(|end| ahead(end.0, context.now.boot.0));
                    let deadline = left.map(|ms| WallTime(context.now.wall.0.saturating_add(ms)));
                    list.push(entry(kind, device, since, deadline));
                }
            }
        })
        .await?;
    let mut entries: Vec<v1::LedgerEntry> = found.into_iter().flatten().collect();
    let more = entries.len() > size;
    entries.truncate(size);
    let next_page_token = match entries.last() {
        Some(last) if more => page::token(&list, &format!("{}/{}", last.kind, last.device_id)),
        _ => String::new(),
    };
    Ok(v1::ListLedgerEntriesResponse {
        entries,
        next_page_token,
    })
}

fn entry(kind: Kind, device: &Device, since: WallTime, deadline: Option<WallTime>) -> v1::LedgerEntry {
    v1::LedgerEntry {
        kind: number(kind).into(),
        device_id: device.id.to_string(),
        owner: device.owner.to_string(),
        state: render::state(device.state).into(),
        since: Some(render::timestamp(since)),
        window: Some(render::window(&device.enrolment.window)),
        deadline_at: deadline.map(render::timestamp),
    }
}

/// How far a point of the boot clock lies ahead of another, milliseconds; behind it, below zero.
fn ahead(end: u64, now: u64) -> i64 {
    let ns = i128::from(end) - i128::from(now);
    i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX)
}

const fn number(kind: Kind) -> v1::LedgerKind {
    match kind {
        Kind::Expected => v1::LedgerKind::Expected,
        Kind::Missed => v1::LedgerKind::Missed,
        Kind::Outside => v1::LedgerKind::Outside,
        Kind::Stuck => v1::LedgerKind::Stuck,
        Kind::Placeholder => v1::LedgerKind::Placeholder,
    }
}

fn kind_filter(kind: i32) -> Result<Option<Kind>, parse::Invalid> {
    let wanted = v1::LedgerKind::try_from(kind).map_err(|_| parse::Invalid::new("kind", "is no LedgerKind"))?;
    Ok(Kind::ALL.into_iter().find(|k| number(*k) == wanted))
}

/// The last entry of the page before.
fn place(token: &str) -> Result<(Kind, DeviceId), parse::Invalid> {
    let place = token.split_once('/').and_then(|(kind, id)| {
        let kind = kind_filter(kind.parse().ok()?).ok()??;
        Some((kind, id.parse().ok()?))
    });
    place.ok_or_else(page::invalid)
}
