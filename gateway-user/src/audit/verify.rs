//! Whether a chain is whole: what was edited, put elsewhere, taken out, cut off or replaced, and where.

use std::fmt;

use super::{Head, Sealed};

/// What is wrong with an entry or with the place where one should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Its hash is not that of its content and of the hash before.
    Edited,
    /// Entries before it are missing, from this number on.
    Missing {
        /// The first of them.
        from: u64,
    },
    /// It comes after one whose number is not smaller.
    OutOfOrder {
        /// That number.
        after: u64,
    },
    /// The chain ends here, and is known to have been longer.
    CutOff {
        /// Up to where it is known to have reached.
        reached: u64,
    },
    /// The chain has this number with another hash than is known of it: from some earlier entry on it was written anew.
    Replaced,
    /// It comes behind what a restore has noted as the end of its part of the lines.
    Beyond {
        /// That end.
        left: u64,
    },
    /// It was pruned, so nothing says whether what is known of it was true.
    Pruned,
}

/// A flaw and its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Number of the entry.
    pub number: u64,
    /// What is wrong.
    pub flaw: Flaw,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.number;
        match self.flaw {
            Flaw::Edited => write!(f, "A{number}: what it says, or its hash, was changed"),
            Flaw::Missing { from } if from + 1 == number => write!(f, "A{from}: missing"),
            Flaw::Missing { from } => write!(f, "A{from} to A{}: missing", number - 1),
            Flaw::OutOfOrder { after } => write!(f, "A{number}: out of order, after A{after}"),
            Flaw::CutOff { reached } => write!(f, "cut off after A{number}: the chain is known to have reached A{reached}"),
            Flaw::Replaced => write!(
                f,
                "A{number}: another hash than is known of it: the chain was written anew up to here"
            ),
            Flaw::Beyond { left } => write!(
                f,
                "A{number}: the chain that a restore has left ended with A{left}, by what the restore has noted"
            ),
            Flaw::Pruned => write!(
                f,
                "A{number}: no longer kept, so it cannot be compared with what is known of it"
            ),
        }
    }
}

/// Looks at the entries of a chain, one after the other.
#[derive(Debug)]
pub struct Verifier {
    /// `None`: what comes first is taken at its word.
    last: Option<Head>,
    anchor: Head,
    /// What is known of the chain from elsewhere.
    known: Vec<Head>,
    findings: Vec<Finding>,
    entries: u64,
}

impl Verifier {
    /// For a chain that begins after `anchor` ([`Head::NONE`]: from the start) and of which these entries are known from elsewhere.
    #[must_use]
    pub fn new(anchor: Head, known: Vec<Head>) -> Self {
        Self {
            last: Some(anchor),
            anchor,
            known,
            findings: Vec::new(),
            entries: 0,
        }
    }

    /// For a part of a chain whose beginning is not known: an export, a log that was rotated.
    #[must_use]
    pub fn of_part(known: Vec<Head>) -> Self {
        Self {
            last: None,
            ..Self::new(Head::NONE, known)
        }
    }

    /// The next entry, in the order in which they are kept.
    pub fn push(&mut self, sealed: &Sealed) {
        self.next(sealed.entry.number, sealed.hash, |before| {
            sealed.entry.hash_after(&before.hash) == sealed.hash
        });
    }

    /// The next entry, of which what it says cannot be read.
    pub fn push_unreadable(&mut self, number: u64, hash: [u8; 32]) {
        self.next(number, hash, |_| false);
    }

    /// The end of the chain: where it ends, how many entries there were, and all that is wrong, in the order in which it was found.
    #[must_use]
    pub fn finish(mut self) -> (Head, u64, Vec<Finding>) {
        // Of a part, the hash before it is not known.
        if self.anchor.hash != Head::NONE.hash {
            self.compare(self.anchor);
        }
        let (last, anchor) = (self.last.unwrap_or(Head::NONE), self.anchor.number);
        let reached = self.known.iter().map(|k| k.number).max().filter(|n| *n > last.number);
        if let Some(reached) = reached {
            self.find(last.number, Flaw::CutOff { reached });
        }
        for known in self.known.clone() {
            if known.number != 0 && known.number < anchor {
                self.find(known.number, Flaw::Pruned);
            }
        }
        (last, self.entries, self.findings)
    }

    fn next(&mut self, number: u64, hash: [u8; 32], follows: impl Fn(Head) -> bool) {
        self.entries += 1;
        match self.last {
            Some(last) if number <= last.number => {
                let after = last.number;
                return self.find(number, Flaw::OutOfOrder { after });
            }
            Some(last) if number == last.number + 1 => {
                if !follows(last) {
                    self.find(number, Flaw::Edited);
                }
            }
            // Past a gap, the hash before is not known: the entry is taken at its word, and those after it are held to it.
            Some(last) => {
                let from = last.number + 1;
                self.find(number, Flaw::Missing { from });
            }
            None => self.anchor.number = number - u64::from(number > 0),
        }
        let head = Head { number, hash };
        self.last = Some(head);
        self.compare(head);
    }

    fn compare(&mut self, head: Head) {
        if self.known.iter().any(|k| k.number == head.number && k.hash != head.hash) {
            self.find(head.number, Flaw::Replaced);
        }
    }

    fn find(&mut self, number: u64, flaw: Flaw) {
        self.findings.push(Finding { number, flaw });
    }
}
