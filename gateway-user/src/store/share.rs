//! How requests are forgotten: when their time is over, and before it of whoever has most, so that nobody pushes out another's. What each client
//! has is counted only where there may be too much in all, in parts, beside what writes. It remembers nothing.

use std::collections::HashMap;

use rusqlite::{Connection, Row, TransactionBehavior, params};

use super::{
    PRUNED_AT_ONCE,
    rows::{signed, unsigned},
    seen::Seen,
    trail::bounds,
};
use crate::model::WallTime;

/// Bytes of an answer that weigh as much as a request does.
const HEAVY: u64 = 1024;
/// The answer of a request among the last ones may be yet to come: only then is its weight known.
const AWAITED: i64 = 65_536;
/// Most weight that is looked at in one call.
const WEIGHED_AT_ONCE: u64 = 4 * PRUNED_AT_ONCE;

/// What each client has of the requests.
#[derive(Debug, Default)]
pub(super) struct Tally {
    of: HashMap<String, u64>,
    total: u64,
    /// Up to which number.
    counted: i64,
}

impl Tally {
    /// Takes in a part of what has come since; true: there is more. Where all is little enough whosever it is, nothing is counted.
    fn follow(&mut self, connection: &Connection, first: i64, last: i64, most: u64) -> rusqlite::Result<bool> {
        let pragma = |name| connection.pragma_query_value(None, name, |r| r.get(0)).map(unsigned);
        let bytes = pragma("page_count")?.saturating_mul(pragma("page_size")?);
        if unsigned(last - first + 1) + bytes / HEAVY <= most {
            *self = Self::default();
            return Ok(false);
        }
        let mut statement = connection.prepare_cached(
            "SELECT number, client, coalesce(length(answer), 0), answer IS NULL FROM requests WHERE number > ?1 ORDER BY number LIMIT ?2",
        )?;
        let mut rows = statement.query(params![self.counted, signed(PRUNED_AT_ONCE)])?;
        let mut taken = 0;
        while let Some(row) = rows.next()? {
            let number: i64 = row.get(0)?;
            if row.get(3)? && number > last - AWAITED {
                break;
            }
            self.add(row.get(1)?, weight(row, 2)?);
            self.counted = number;
            taken += 1;
        }
        Ok(taken == PRUNED_AT_ONCE)
    }

    fn add(&mut self, client: String, weight: u64) {
        *self.of.entry(client).or_default() += weight;
        self.total += weight;
    }

    fn remove(&mut self, client: &str, weight: u64) {
        if let Some(of) = self.of.get_mut(client) {
            let weight = weight.min(*of);
            *of -= weight;
            self.total -= weight;
            if *of == 0 {
                self.of.remove(client);
            }
        }
    }

    fn has(&self, client: &str) -> u64 {
        self.of.get(client).copied().unwrap_or_default()
    }

    /// What each may have, so that all together have no more than `most` and nobody loses for one who has more.
    fn level(&self, most: u64) -> u64 {
        let mut all: Vec<u64> = self.of.values().copied().collect();
        all.sort_unstable();
        let (mut left, mut sharing) = (most, all.len() as u64);
        for has in all {
            let even = left / sharing;
            if has > even {
                return even;
            }
            left -= has;
            sharing -= 1;
        }
        u64::MAX
    }
}

fn weight(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(1 + unsigned(row.get(column)?) / HEAVY)
}

/// Forgets requests from before a time, of the oldest; and where they are more than `most`, those of whoever has more than an even part, the
/// oldest first. Whoever has less keeps his: they move to the end. The last number stays, for numbers to go on from. True: there is more to do.
pub(super) fn prune(
    connection: &mut Connection,
    seen: &mut Option<Seen>,
    tally: &mut Tally,
    before: WallTime,
    most: u64,
) -> rusqlite::Result<bool> {
    let text = "SELECT (SELECT min(number) FROM requests), (SELECT max(number) FROM requests)";
    let Some((first, last)) = bounds(connection, text)? else {
        return Ok(false);
    };
    let mut more = tally.follow(connection, first, last, most)?;
    let level = tally.level(most);
    let (mut up_to, mut staying) = (None, Vec::new());
    {
        let mut statement = connection.prepare_cached(
            "SELECT number, client, coalesce(length(answer), 0), at, key FROM requests ORDER BY number LIMIT ?1",
        )?;
        let mut rows = statement.query([signed(PRUNED_AT_ONCE)])?;
        let (mut taken, mut weighed) = (0, 0);
        while let Some(row) = rows.next()? {
            let (number, client, weight): (i64, String, u64) = (row.get(0)?, row.get(1)?, weight(row, 2)?);
            let over = WallTime(row.get(3)?) < before;
            if number == last || !(over || tally.total > most) {
                break;
            }
            if !over && tally.has(&client) <= level {
                staying.push((number, row.get(4)?));
            }
            // What moves is counted where it comes to lie.
            if number <= tally.counted {
                tally.remove(&client, weight);
            }
            up_to = Some(number);
            (taken, weighed) = (taken + 1, weighed + weight);
            if taken == PRUNED_AT_ONCE || weighed >= WEIGHED_AT_ONCE {
                more = true;
                break;
            }
        }
    }
    let Some(up_to) = up_to else { return Ok(more) };
    let done = forget(connection, up_to, &staying);
    match &done {
        Ok(moved) => {
            if let Some(seen) = seen {
                moved.iter().for_each(|(number, key)| seen.add(unsigned(*number), *key));
                seen.forget_before(unsigned(up_to));
            }
        }
        // Counted anew.
        Err(_) => *tally = Tally::default(),
    }
    done.map(|_| more)
}

/// Removes all up to a number, but for those that stay; where these are now.
fn forget(connection: &mut Connection, up_to: i64, staying: &[(i64, i64)]) -> rusqlite::Result<Vec<(i64, i64)>> {
    let t = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut moved = Vec::with_capacity(staying.len());
    {
        let mut copy = t.prepare_cached(
            "INSERT INTO requests (key, client, id, digest, at, answer)
             SELECT key, client, id, digest, at, answer FROM requests WHERE number = ?1",
        )?;
        for (number, key) in staying {
            copy.execute([number])?;
            moved.push((t.last_insert_rowid(), *key));
        }
    }
    t.prepare_cached("DELETE FROM requests WHERE number <= ?1")?
        .execute([up_to])?;
    t.commit()?;
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_less_than_an_even_part_pays_for_nobody() {
        let of = |all: &[u64]| {
            let mut tally = Tally::default();
            all.iter().enumerate().for_each(|(n, has)| tally.add(n.to_string(), *has));
            tally
        };
        assert_eq!(of(&[]).level(10), u64::MAX);
        assert_eq!(of(&[3, 7]).level(10), u64::MAX);
        assert_eq!(of(&[3, 8]).level(10), 7);
        assert_eq!(of(&[1, 100, 1, 100]).level(10), 4);
        assert_eq!(of(&[100, 100, 100]).level(10), 3);
        let mut tally = of(&[3, 8]);
        tally.remove("0", 9);
        assert_eq!((tally.total, tally.has("0"), tally.has("1")), (8, 0, 8));
    }
}
