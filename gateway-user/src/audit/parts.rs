//! Whether lines of the audit are whole that span restores. A restore takes the chain back to where a backup was made and goes on from there,
//! with numbers that were given before: what lies between two restores is a part, which is held to the part before it by the restore's
//! entry, whose `before` is the head of the chain that was left, and by the entry that it follows.

use std::collections::{BTreeMap, BTreeSet};

use super::{Finding, Flaw, Head, RESTORE, Sealed, Verifier};

/// What lines have come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The last entry of the chain that holds.
    pub head: Head,
    /// Lines.
    pub entries: u64,
    /// Chains that follow one another: 1, and one more for each restore that the lines go back for.
    pub parts: u64,
    /// All that is wrong, part by part.
    pub findings: Vec<Finding>,
}

/// Verifies entries in the order of their lines. `known` are heads from elsewhere; they may be of any part. An `export` has one chain, whose
/// restores left others that it has nothing of; a log has those, too.
#[must_use]
pub fn verify_lines(entries: &[Sealed], known: &[Head], export: bool) -> Verdict {
    let starts = if export { Vec::new() } else { starts(entries) };
    let mut parts: Vec<&[Sealed]> = Vec::new();
    let mut rest = entries;
    for start in starts.iter().rev() {
        let (before, part) = rest.split_at(*start);
        parts.push(part);
        rest = before;
    }
    parts.push(rest);
    parts.reverse();

    let (mut findings, mut count, mut head) = (Vec::new(), 0, Head::NONE);
    // The chain as it stands, and what any part has.
    let mut chain: BTreeMap<u64, [u8; 32]> = BTreeMap::new();
    let mut all: BTreeSet<(u64, [u8; 32])> = BTreeSet::new();
    for (i, part) in parts.iter().enumerate() {
        let first = part.first().map_or(0, |s| s.entry.number);
        let behind = first.checked_sub(1).and_then(|n| chain.get(&n).map(|h| (n, *h)));
        let mut verifier = match behind {
            _ if first == 1 => Verifier::new(Head::NONE, Vec::new()),
            Some((number, hash)) => Verifier::new(Head { number, hash }, Vec::new()),
            None => Verifier::of_part(Vec::new()),
        };
        part.iter().for_each(|sealed| verifier.push(sealed));
        let (last, entries, found) = verifier.finish();
        if i > 0 {
            findings.extend(left(part, head));
        }
        findings.extend(found);
        if !export {
            findings.extend(part.windows(2).filter_map(|pair| cut(&pair[0], &pair[1], &all)));
        }
        drop(chain.split_off(&first));
        chain.extend(part.iter().map(|s| (s.entry.number, s.hash)));
        all.extend(part.iter().map(|s| (s.entry.number, s.hash)));
        (head, count) = (last, count + entries);
    }
    findings.extend(unknown(known, &all, head));
    Verdict {
        head,
        entries: count,
        parts: parts.len() as u64,
        findings,
    }
}

/// Where lines go back for a restore: to its entry, or to the beginning of a chain that leads to it without a gap, where a log could not
/// know how far it had come. Whatever else goes back is out of order.
fn starts(entries: &[Sealed]) -> Vec<usize> {
    // Behind the last entry from which a restore can be reached without a gap.
    let mut leads = vec![false; entries.len()];
    for i in (0..entries.len()).rev() {
        let next = entries.get(i + 1);
        let on = next.is_some_and(|n| Some(n.entry.number) == entries[i].entry.number.checked_add(1));
        leads[i] = entries[i].entry.action == RESTORE || (on && leads[i + 1]);
    }
    let (mut found, mut reached) = (Vec::new(), 0);
    for (i, sealed) in entries.iter().enumerate() {
        if sealed.entry.number <= reached && leads[i] {
            found.push(i);
            reached = sealed.entry.number;
        }
        reached = reached.max(sealed.entry.number);
    }
    found
}

/// What is wrong with the end of a part, as the restore behind it has noted it.
fn left(next: &[Sealed], last: Head) -> Option<Finding> {
    let mut restores = next.iter().filter(|s| s.entry.action == RESTORE);
    let restore = restores.next()?;
    // Where the chain is there from its beginning, earlier restores may be, too.
    let anew = !std::ptr::eq(restore, next.first()?);
    if anew && restores.any(|s| s.entry.before == last.to_string()) {
        return None;
    }
    let noted: Head = match restore.entry.before.parse() {
        Ok(noted) => noted,
        // The database was gone or could not be read: nothing says how far its chain had come.
        Err(_) if restore.entry.before.is_empty() => return None,
        Err(_) => return Some(finding(restore.entry.number, Flaw::Edited)),
    };
    let flaw = match noted.number {
        reached if reached > last.number => Flaw::CutOff { reached },
        left if left < last.number => Flaw::Beyond { left },
        _ if noted.hash != last.hash => Flaw::Replaced,
        _ => return None,
    };
    Some(finding(last.number, flaw))
}

/// Of a log that does not go back for a restore, what the chain had that was left is missing, if it does not stand before.
fn cut(last: &Sealed, restore: &Sealed, before: &BTreeSet<(u64, [u8; 32])>) -> Option<Finding> {
    let follows = restore.entry.action == RESTORE && restore.entry.number == last.entry.number.checked_add(1)?;
    let noted: Head = follows.then(|| restore.entry.before.parse().ok())??;
    let reached = noted.number;
    let missing = reached > last.entry.number && !before.contains(&(reached, noted.hash));
    missing.then(|| finding(last.entry.number, Flaw::CutOff { reached }))
}

/// What is known from elsewhere and is not so in any part.
fn unknown(known: &[Head], all: &BTreeSet<(u64, [u8; 32])>, head: Head) -> Vec<Finding> {
    let first = all.first().map_or(0, |(number, _)| *number);
    let most = all.last().map_or(0, |(number, _)| *number);
    let has = |k: &Head| all.range((k.number, [0; 32])..=(k.number, [0xff; 32])).next().is_some();
    let one = |k: &Head| match k.number {
        0 => None,
        _ if all.contains(&(k.number, k.hash)) => None,
        number if has(k) => Some(finding(number, Flaw::Replaced)),
        reached if reached > most => Some(finding(head.number, Flaw::CutOff { reached })),
        number if number.saturating_add(1) < first => Some(finding(number, Flaw::Pruned)),
        _ => None,
    };
    known.iter().filter_map(one).collect()
}

const fn finding(number: u64, flaw: Flaw) -> Finding {
    Finding { number, flaw }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::Entry, model::WallTime};

    /// So many entries behind `head`; `by` tells chains apart.
    fn chain(head: Head, many: u64, by: &str) -> Vec<Sealed> {
        let mut last = head;
        let one = |_| {
            let sealed = seal(last, by, "RetireDevice", "");
            last = head_of(&sealed);
            sealed
        };
        (0..many).map(one).collect()
    }

    fn seal(last: Head, by: &str, action: &str, before: &str) -> Sealed {
        let entry = Entry {
            number: last.number + 1,
            at: WallTime(1),
            by: by.into(),
            action: action.into(),
            device: None,
            subject: String::new(),
            before: before.into(),
            after: String::new(),
            reason: String::new(),
            request: String::new(),
            result: "done".into(),
        };
        let hash = entry.hash_after(&last.hash);
        Sealed { entry, hash }
    }

    fn head_of(sealed: &Sealed) -> Head {
        Head {
            number: sealed.entry.number,
            hash: sealed.hash,
        }
    }

    /// 1 to 40, back to a backup of 9 and on to 60, back to one of 20 of the second chain and on to 25.
    fn log() -> Vec<Sealed> {
        let first = chain(Head::NONE, 40, "one");
        let mut second = vec![seal(head_of(&first[8]), "two", RESTORE, &head_of(&first[39]).to_string())];
        second.extend(chain(head_of(&second[0]), 50, "two"));
        // Its 20 is the eleventh of the second part.
        let mut third = vec![seal(
            head_of(&second[10]),
            "three",
            RESTORE,
            &head_of(&second[50]).to_string(),
        )];
        third.extend(chain(head_of(&third[0]), 4, "three"));
        [first, second, third].concat()
    }

    fn flaws(entries: &[Sealed]) -> Vec<Finding> {
        verify_lines(entries, &[], false).findings
    }

    #[test]
    fn a_log_that_spans_restores_is_whole() {
        let log = log();
        let known = [39, 90, 95].map(|i| head_of(&log[i]));
        let found = verify_lines(&log, &known, false);
        assert_eq!(found.findings, []);
        assert_eq!((found.entries, found.parts, found.head), (96, 3, head_of(&log[95])));
        // A part of it, after a rotation; nothing; and one without a restore.
        assert_eq!((flaws(&log[30..]), flaws(&log[50..])), (vec![], vec![]));
        assert_eq!(verify_lines(&[], &[], false).parts, 1);
        assert_eq!(verify_lines(&log[..40], &[], false).parts, 1);
    }

    #[test]
    fn each_part_is_held_to_its_chain() {
        let log = log();
        // Whatever line is changed, or taken out, that is found; but for the first of all, which may be rotated away, and the last, which
        // only a head from elsewhere can tell.
        for i in 0..log.len() {
            let mut edited = log.clone();
            edited[i].entry.reason = "x".into();
            assert_ne!(flaws(&edited), [], "line {i} edited");
            let mut shorter = log.clone();
            shorter.remove(i);
            if i > 0 && i + 1 < log.len() {
                assert_ne!(flaws(&shorter), [], "line {i} taken out");
            }
        }
        assert_eq!(verify_lines(&log[..95], &[head_of(&log[95])], false).findings.len(), 1);
    }

    #[test]
    fn the_end_of_each_part_is_what_the_restore_noted() {
        let log = log();
        // Cut off before the first restore, by some lines, and by all that the backup had not.
        for from in [9, 20, 39] {
            let cut = [&log[..from], &log[40..]].concat();
            let found = flaws(&cut);
            let expected = finding(from as u64, Flaw::CutOff { reached: 40 });
            assert_eq!(found, [expected], "{from}");
        }
        // Longer than the restore has noted; another chain of the same length.
        let more = chain(head_of(&log[39]), 2, "more");
        let longer = [&log[..40], &more, &log[40..]].concat();
        assert_eq!(flaws(&longer), [finding(42, Flaw::Beyond { left: 40 })]);
        let other = chain(head_of(&log[38]), 1, "other");
        let replaced = [&log[..39], &other, &log[40..]].concat();
        assert_eq!(flaws(&replaced), [finding(40, Flaw::Replaced)]);
        // A head that is in none.
        let foreign = Head {
            number: 30,
            hash: [7; 32],
        };
        assert_eq!(verify_lines(&log, &[foreign], false).findings, [finding(30, Flaw::Replaced)]);
    }

    #[test]
    fn an_export_has_one_chain_and_a_log_may_begin_anew() {
        let log = log();
        // What the database has in the end.
        let export = [&log[..9], &log[40..51], &log[91..]].concat();
        let found = verify_lines(&export, &[head_of(&log[95])], true);
        assert_eq!((found.findings.as_slice(), found.parts), (&[][..], 1));
        // The first part's end, and then all of the chain once more, since nobody knew how far the log had come.
        let anew = [&log[30..40], &log[..9], &log[40..91]].concat();
        let found = verify_lines(&anew, &[], false);
        assert_eq!((found.findings.as_slice(), found.parts), (&[][..], 2));
        // What goes back for no restore is out of order.
        let twice = [&log[..20], &log[10..30]].concat();
        assert!(flaws(&twice).iter().all(|f| f.flaw == Flaw::OutOfOrder { after: 20 }));
    }
}
