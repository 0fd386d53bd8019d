//! The boot clock, cheaply: read once a tick of the kernel's timer, and kept meanwhile. Pure; who reads the clocks hands them in.
//!
//! One CPU at a time counts the ticks for all. On a virtual machine whose host takes that CPU away, the count stands still for as long, and so does
//! the clock that others keep: a lease then ends late by that, some ticks as a rule. No packet passes for it that was not released.

/// What [`BootClock::about`] can be behind by while the host does not sleep: a tick at the slowest timer that kernels have (HZ=100), and some more.
pub const TOLERANCE: u64 = 16_000_000;

/// The boot clock as it was at the last tick. All zeros: not known yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootClock {
    /// The timer's count of ticks when it was read.
    tick: u64,
    /// Nanoseconds.
    now: u64,
}

impl BootClock {
    /// The boot clock, at most [`TOLERANCE`] behind. `tick`: the timer's count (jiffies), which stands still while the host sleeps: after that
    /// it is behind by the time slept, until the next tick. It also stands still while the CPU that counts does not run: see above.
    #[inline(always)]
    pub fn about(&mut self, tick: u64, boot: impl FnOnce() -> u64) -> u64 {
        if self.tick != tick {
            *self = Self { tick, now: boot() };
        }
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clocks of a host whose timer has a tick of 4 ms and that has slept for a while.
    fn about(kept: &mut BootClock, monotonic: u64, slept: u64) -> u64 {
        kept.about(monotonic / 4_000_000, || monotonic + slept)
    }

    #[test]
    fn it_is_close_to_the_boot_clock_and_not_ahead() {
        let mut kept = BootClock::default();
        for step in 0..if cfg!(miri) { 1_000 } else { 100_000_u64 } {
            let monotonic = 1_000_000_000 + step * 77_777;
            let found = about(&mut kept, monotonic, 5_000_000_000);
            let behind = monotonic + 5_000_000_000 - found;
            assert!(behind <= TOLERANCE, "{step}");
        }
    }

    #[test]
    fn a_sleep_is_noticed_at_the_next_tick() {
        let mut kept = BootClock::default();
        let asleep = 3_600_000_000_000;
        about(&mut kept, 1_000_000_000, 0);
        assert!(about(&mut kept, 1_001_000_000, asleep) < asleep, "the old reading");
        assert!(about(&mut kept, 1_004_000_000, asleep) >= asleep + 1_000_000_000);
    }
}
