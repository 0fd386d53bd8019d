//! In which chapters of the requests a key may be: a Bloom filter for each chapter, laid side by side, so that one look answers for all
//! of them. It may say yes where the answer is no, never no where it is yes.

use std::collections::HashMap;

/// Requests of a chapter: 2 to this power. The index of the table has the same.
pub(super) const CHAPTER_BITS: u32 = 14;
/// Rows, each a bit for 128 chapters: 16 bits for each request of a full chapter; 4 MiB.
const ROWS: usize = 1 << 18;
/// Rows of a key: with 16 bits a request, one look in a thousand at a chapter is in vain.
const HASHES: u32 = 6;

/// The filters.
#[derive(Debug)]
pub(super) struct Seen {
    rows: Vec<u128>,
    /// The first and the last chapter that may have requests.
    first: u64,
    last: u64,
    /// Where the last requests are that were added without their answers, by key: mostly the next commit brings those.
    unanswered: HashMap<i64, i64>,
}

/// Requests without answers that are found without a look; beyond it all are looked up.
const UNANSWERED: usize = 4096;

impl Seen {
    pub(super) fn new() -> Self {
        Self {
            rows: vec![0; ROWS],
            first: u64::MAX,
            last: 0,
            unanswered: HashMap::new(),
        }
    }

    /// The request with this number has this key. Numbers come in ascending order, but for those that were taken back.
    pub(super) fn add(&mut self, number: u64, key: i64) {
        let chapter = number >> CHAPTER_BITS;
        self.first = self.first.min(chapter);
        if chapter > self.last {
            // The column is free if its last owner is gone; if not, the two share it.
            if chapter - self.first < 128 {
                let others = !bit(chapter);
                self.rows.iter_mut().for_each(|row| *row &= others);
            }
            self.last = chapter;
        }
        for row in places(key) {
            self.rows[row] |= bit(chapter);
        }
    }

    /// A request was added without its answer.
    pub(super) fn await_answer(&mut self, number: i64, key: i64) {
        if self.unanswered.len() >= UNANSWERED {
            self.unanswered.clear();
        }
        self.unanswered.insert(key, number);
    }

    /// Where such a request may be, once.
    pub(super) fn awaited(&mut self, key: i64) -> Option<i64> {
        self.unanswered.remove(&key)
    }

    /// Requests before this number are gone.
    pub(super) fn forget_before(&mut self, number: u64) {
        self.first = self.first.max(number >> CHAPTER_BITS);
    }

    /// Chapters that may hold a request with this key, the latest first.
    pub(super) fn chapters(&self, key: i64) -> impl Iterator<Item = u64> + use<> {
        let columns = places(key).fold(u128::MAX, |all, row| all & self.rows[row]);
        (self.first..=self.last)
            .rev()
            .filter(move |chapter| columns & bit(*chapter) != 0)
    }
}

const fn bit(chapter: u64) -> u128 {
    1 << (chapter % 128)
}

/// Six rows; the key is a digest, so its parts are as good as hashes of their own.
fn places(key: i64) -> impl Iterator<Item = usize> {
    let (a, b) = (key.cast_unsigned() & 0xffff_ffff, key.cast_unsigned() >> 32 | 1);
    (0..u64::from(HASHES)).map(move |n| usize::try_from(a.wrapping_add(n.wrapping_mul(b)) % ROWS as u64).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u64) -> i64 {
        i64::from_be_bytes(crate::audit::sha256(&number.to_be_bytes())[..8].try_into().unwrap())
    }

    #[test]
    fn what_was_added_is_always_found_and_little_else() {
        let mut seen = Seen::new();
        assert_eq!(seen.chapters(key(0)).count(), 0);
        // Every eighth request of 200 chapters: columns are used a second time.
        let numbers = || (1..200 << CHAPTER_BITS).step_by(8);
        for number in numbers() {
            if number >> CHAPTER_BITS > 100 {
                seen.forget_before(number - (100 << CHAPTER_BITS));
            }
            seen.add(number, key(number));
        }
        let live = || numbers().filter(|n| n >> CHAPTER_BITS >= 100);
        for number in live().step_by(97) {
            assert!(seen.chapters(key(number)).any(|c| c == number >> CHAPTER_BITS), "{number}");
        }
        let vain: usize = (0..10_000).map(|n| seen.chapters(key(u64::MAX - n)).count()).sum();
        assert!(vain < 1_000, "{vain} looks in vain for 10,000 keys");
    }

    #[test]
    fn chapters_that_share_a_column_are_both_named() {
        let mut seen = Seen::new();
        for chapter in 0..300 {
            seen.add(chapter << CHAPTER_BITS, key(chapter));
        }
        assert_eq!(seen.chapters(key(7)).collect::<Vec<_>>(), [263, 135, 7]);
    }
}
