//! The two-choice hash of single IPv6 addresses in mapped memory: the single writer's side of `abi::Bucket6`'s protocol. Which address
//! has which class is not decided here.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use gateway_ebpf::abi::{BUCKET6_SLOTS, Bucket6, Class, mix6};

/// [`Bucket6`], as the writer sees it while programs read.
#[repr(C, align(64))]
#[derive(Default)]
pub(super) struct SharedBucket {
    keys: [[AtomicU64; 2]; BUCKET6_SLOTS],
    classes: [AtomicU8; 8],
    spare: AtomicU64,
}
const _: () = assert!(size_of::<SharedBucket>() == size_of::<Bucket6>());

/// Both buckets of an address are full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The table. The number of buckets is a power of two.
pub(super) struct Table6<'a>(pub(super) &'a [SharedBucket]);

impl<'a> Table6<'a> {
    /// The class byte of an address that is in the table.
    pub(super) fn get(&self, key: [u64; 2]) -> Option<&'a AtomicU8> {
        self.find(key).map(|(b, slot)| &b.classes[slot])
    }

    /// Sets the class of an address; one that is in the table already always has room. The address is not in `::/64`.
    pub(super) fn set(&self, key: [u64; 2], class: Class) -> Result<(), Full> {
        if let Some(byte) = self.get(key) {
            byte.store(class, Ordering::Release);
            return Ok(());
        }
        let free = |b: &SharedBucket| (0..BUCKET6_SLOTS).filter(|s| b.hi(*s) == 0).count();
        let [first, second] = self.choices(key);
        // Programs look into the first one first, and the second is another cache line: it is taken only where the first fills up. Then
        // the emptier one keeps both far from full.
        let bucket = if free(first) > 1 || free(first) >= free(second) {
            first
        } else {
            second
        };
        let slot = (0..BUCKET6_SLOTS).find(|s| bucket.hi(*s) == 0).ok_or(Full)?;
        bucket.classes[slot].store(class, Ordering::Release);
        bucket.keys[slot][1].store(key[1], Ordering::Release);
        bucket.keys[slot][0].store(key[0], Ordering::Release);
        Ok(())
    }

    /// Takes an address out; one that is not in it is fine.
    pub(super) fn remove(&self, key: [u64; 2]) {
        if let Some((bucket, slot)) = self.find(key) {
            bucket.empty(slot);
        }
    }

    /// Takes out every address that is not to be kept, by its key and its class.
    pub(super) fn retain(&self, mut keep: impl FnMut([u64; 2], Class) -> bool) {
        for bucket in self.0 {
            for slot in 0..BUCKET6_SLOTS {
                let key = [bucket.hi(slot), bucket.keys[slot][1].load(Ordering::Relaxed)];
                if key[0] != 0 && !keep(key, bucket.classes[slot].load(Ordering::Relaxed)) {
                    bucket.empty(slot);
                }
            }
        }
    }

    /// Every address that is in the table, by its key and its class.
    pub(super) fn each(&self, mut see: impl FnMut([u64; 2], Class)) {
        for bucket in self.0 {
            for slot in 0..BUCKET6_SLOTS {
                let key = [bucket.hi(slot), bucket.keys[slot][1].load(Ordering::Relaxed)];
                if key[0] != 0 {
                    see(key, bucket.classes[slot].load(Ordering::Relaxed));
                }
            }
        }
    }

    fn find(&self, key: [u64; 2]) -> Option<(&'a SharedBucket, usize)> {
        if key[0] == 0 {
            return None;
        }
        let holds = |b: &SharedBucket, s: usize| b.hi(s) == key[0] && b.keys[s][1].load(Ordering::Relaxed) == key[1];
        let slot = |b: &'a SharedBucket| (0..BUCKET6_SLOTS).find(|s| holds(b, *s)).map(|s| (b, s));
        self.choices(key).into_iter().find_map(slot)
    }

    fn choices(&self, key: [u64; 2]) -> [&'a SharedBucket; 2] {
        choices(key, self.0.len()).map(|i| &self.0[i])
    }
}

/// The places of an address's two buckets among `buckets`, a power of two.
pub(super) fn choices(key: [u64; 2], buckets: usize) -> [usize; 2] {
    let mixed = mix6(key);
    [mixed as u32 as usize & (buckets - 1), (mixed >> 32) as usize & (buckets - 1)]
}

impl SharedBucket {
    fn hi(&self, slot: usize) -> u64 {
        self.keys[slot][0].load(Ordering::Relaxed)
    }

    fn empty(&self, slot: usize) {
        // A reader that finds `hi` does not find the rest half written.
        self.keys[slot][0].store(0, Ordering::SeqCst);
        self.keys[slot][1].store(0, Ordering::Release);
        self.classes[slot].store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{super::fixtures::Random, *};

    fn buckets(n: usize) -> Vec<SharedBucket> {
        (0..n).map(|_| SharedBucket::default()).collect()
    }
    fn class(t: &Table6<'_>, key: [u64; 2]) -> Option<Class> {
        t.get(key).map(|c| c.load(Ordering::Relaxed))
    }

    #[test]
    fn agrees_with_a_map_through_inserts_changes_and_removals() {
        let memory = buckets(256);
        let (table, mut model, mut random) = (Table6(&memory), HashMap::new(), Random(6));
        for _ in 0..20_000 {
            // 300 keys in 768 slots.
            let key = [1 + random.below(3), random.below(100)];
            if random.below(3) == 0 {
                table.remove(key);
                model.remove(&key);
            } else {
                let c = random.below(64) as u8;
                table.set(key, c).unwrap();
                model.insert(key, c);
            }
            let other = [1 + random.below(3), random.below(100)];
            assert_eq!(class(&table, other), model.get(&other).copied());
        }
    }

    #[test]
    fn full_is_told_and_changes_nothing() {
        let memory = buckets(1);
        let table = Table6(&memory);
        for lo in 0..3 {
            table.set([5, lo], 1).unwrap();
        }
        assert_eq!(table.set([5, 3], 1), Err(Full));
        assert_eq!(class(&table, [5, 3]), None);
        table.set([5, 2], 9).unwrap();
        assert_eq!(class(&table, [5, 2]), Some(9), "an address that is in it always has room");
        table.remove([5, 1]);
        table.set([5, 3], 4).unwrap();
        assert_eq!(
            [0, 1, 2, 3].map(|lo| class(&table, [5, lo])),
            [Some(1), None, Some(9), Some(4)]
        );
    }

    #[test]
    fn the_size_that_is_configured_by_default_holds_what_is_configured() {
        // 4/3 buckets an address, rounded up to a power of two: 98,304 slots for 24,576 addresses.
        let memory = buckets(32_768);
        let (table, mut random) = (Table6(&memory), Random(1));
        for i in 0..24_576 {
            // Random, and neighbours in one /64.
            let key = if i % 2 == 0 {
                [random.next() | 1, random.next()]
            } else {
                [7, u64::from_ne_bytes(u64::to_be_bytes(i))]
            };
            table.set(key, 1).unwrap();
        }
    }

    #[test]
    fn retain_takes_out_the_others() {
        let memory = buckets(8);
        let table = Table6(&memory);
        for lo in 0..8 {
            table.set([9, lo], 1).unwrap();
        }
        table.retain(|k, class| k[1] % 2 == 0 && class == 1);
        assert_eq!(
            (0..8).filter(|lo| class(&table, [9, *lo]).is_some()).collect::<Vec<_>>(),
            [0, 2, 4, 6]
        );
    }
}
