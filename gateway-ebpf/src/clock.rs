//! The boot clock, cheaply: the coarse clock and how far the boot clock is from it, read once in a while. Pure; who reads the clocks hands
//! them in.

/// How long an offset is used, in nanoseconds of the coarse clock.
pub const RENEWAL: u64 = 16_000_000;
/// What an [`BootOffset::about`] can be off by while the host does not sleep: a tick of the coarse clock, at the slowest tick that kernels
/// have (HZ=100), and some more.
pub const TOLERANCE: u64 = 16_000_000;

/// How far the boot clock is ahead of the coarse clock. All zeros: not known yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootOffset {
    /// When it was found, on the coarse clock.
    found: u64,
    /// Nanoseconds.
    offset: u64,
}

impl BootOffset {
    /// The boot clock, at most [`TOLERANCE`] off. After a sleep of the host it is behind by the time slept, for at most [`RENEWAL`] of
    /// the coarse clock, which stands still meanwhile.
    #[inline(always)]
    pub fn about(&mut self, coarse: u64, boot: impl FnOnce() -> u64) -> u64 {
        if self.found == 0 || coarse.wrapping_sub(self.found) >= RENEWAL {
            self.offset = boot().wrapping_sub(coarse);
            self.found = coarse;
        }
        coarse.wrapping_add(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clocks of a host whose coarse clock has a tick of 4 ms and that has slept for a while.
    fn about(cached: &mut BootOffset, monotonic: u64, slept: u64) -> u64 {
        cached.about(monotonic - monotonic % 4_000_000, || monotonic + slept)
    }

    #[test]
    fn it_is_close_to_the_boot_clock() {
        let mut cached = BootOffset::default();
        for step in 0..if cfg!(miri) { 1_000 } else { 100_000_u64 } {
            let monotonic = 1_000_000_000 + step * 77_777;
            let found = about(&mut cached, monotonic, 5_000_000_000);
            assert!(found.abs_diff(monotonic + 5_000_000_000) <= TOLERANCE, "{step}");
        }
    }

    #[test]
    fn a_sleep_is_noticed_within_one_renewal() {
        let mut cached = BootOffset::default();
        let asleep = 3_600_000_000_000;
        about(&mut cached, 1_000_000_000, 0);
        assert!(about(&mut cached, 1_001_000_000, asleep) < asleep, "the old offset");
        assert!(about(&mut cached, 1_000_000_000 + RENEWAL, asleep) >= asleep + 1_000_000_000);
    }
}
