//! Randomness that a seed repeats.

/// xorshift64*, Vigna 2016.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; neighbouring seeds give unlike sequences.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // splitmix64, Steele 2014: xorshift's state is never 0 and starts well mixed.
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }
    /// Any word.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    /// Any byte.
    pub fn byte(&mut self) -> u8 {
        (self.word() >> 24) as u8
    }
    /// 0 to `n` - 1.
    pub fn below(&mut self, n: usize) -> usize {
        ((self.word() >> 16) % n as u64) as usize
    }
    /// Once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    /// One of them.
    pub fn one_of<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
    /// Up to `n` of them, in any order, repeated or not.
    pub fn some_of<T: Copy>(&mut self, from: &[T], n: usize) -> Vec<T> {
        (0..1 + self.below(n)).map(|_| self.one_of(from)).collect()
    }
}
