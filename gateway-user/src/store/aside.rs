//! What leaves the audit's chain and is kept beside it for a while: entries of identities that have few, so that one that makes many does not
//! take everyone else's with it. They can be looked up; the chain, and what is verified, begins behind them.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::rows::{self, signed, unsigned};
use crate::{audit::Sealed, model::DeviceId};

/// Entries are kept beside the chain for each so many in it.
pub(super) const FOR_EACH: u64 = 4;
/// Of one identity at most this part of them,
const OF_ONE: u64 = 8;
/// which are not those that an identity has more of than this part of what leaves the chain at a time.
const CROWD: u64 = 4;

/// How many each identity has, once that was counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Aside(Option<HashMap<String, u64>>);

impl Aside {
    /// Puts aside what is to be kept of the entries up to a number; `kept` of all at most.
    pub(super) fn put(&mut self, t: &Transaction<'_>, up_to: i64, kept: u64) -> rusqlite::Result<()> {
        let mut of = match self.0.take() {
            Some(of) => of,
            None => counts(t, "SELECT by, count(*) FROM audit_aside GROUP BY by", [])?,
        };
        let leaving = counts(t, "SELECT by, count(*) FROM audit WHERE number <= ?1 GROUP BY by", [up_to])?;
        let (all, cap) = (leaving.values().sum::<u64>(), kept / OF_ONE);
        let mut copy = t.prepare_cached(&format!(
            "INSERT OR IGNORE INTO audit_aside ({0}) SELECT {0} FROM audit WHERE number <= ?1 AND by = ?2 ORDER BY number DESC LIMIT ?3",
            rows::AUDIT
        ))?;
        for (by, leave) in leaving {
            let has = of.entry(by.clone()).or_default();
            // Whoever is the reason why they leave, and has his part, does not write it anew each time.
            if *has >= cap && leave > all / CROWD {
                continue;
            }
            *has += copy.execute(params![up_to, by, signed(cap)])? as u64;
            drop_oldest(t, &by, has, cap)?;
        }
        let mut over = of.values().sum::<u64>().saturating_sub(kept);
        while over > 0
            && let Some((by, has)) = of.iter_mut().max_by_key(|(_, has)| **has)
        {
            let before = *has;
            drop_oldest(t, by, has, before.saturating_sub(over.div_ceil(OF_ONE)))?;
            over = over.saturating_sub(before - *has);
        }
        of.retain(|_, has| *has > 0);
        self.0 = Some(of);
        Ok(())
    }
}

fn drop_oldest(t: &Transaction<'_>, by: &str, has: &mut u64, cap: u64) -> rusqlite::Result<()> {
    let over = has.saturating_sub(cap);
    if over > 0 {
        let text =
            "DELETE FROM audit_aside WHERE number IN (SELECT number FROM audit_aside WHERE by = ?1 ORDER BY number LIMIT ?2)";
        t.prepare_cached(text)?.execute(params![by, signed(over)])?;
        *has -= over;
    }
    Ok(())
}

fn counts(t: &Transaction<'_>, text: &str, about: impl rusqlite::Params) -> rusqlite::Result<HashMap<String, u64>> {
    let mut statement = t.prepare_cached(text)?;
    let found = statement.query_map(about, |r| Ok((r.get(0)?, unsigned(r.get(1)?))))?;
    found.collect()
}

/// One of them.
pub(super) fn entry(connection: &Connection, number: u64) -> rusqlite::Result<Option<Sealed>> {
    let text = format!("SELECT {} FROM audit_aside WHERE number = ?1", rows::AUDIT);
    let mut statement = connection.prepare_cached(&text)?;
    statement.query_row([signed(number)], rows::sealed).optional()
}

/// The last of them before a number, newest first; all devices' or one's. So many are looked through.
pub(super) fn before(
    connection: &Connection,
    number: i64,
    device: Option<&DeviceId>,
    limit: usize,
    looked_through: u32,
) -> rusqlite::Result<Vec<Sealed>> {
    let text = format!(
        "SELECT {} FROM (SELECT * FROM audit_aside WHERE number < ?1 ORDER BY number DESC LIMIT ?4)
         WHERE ?2 IS NULL OR device = ?2 LIMIT ?3",
        rows::AUDIT
    );
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let about = params![number, device.map(DeviceId::as_str), limit, looked_through];
    let mut statement = connection.prepare_cached(&text)?;
    statement.query_map(about, rows::sealed)?.collect()
}
