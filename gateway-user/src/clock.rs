//! The clocks, as something that is handed in: the controller reads time only here, so that tests can step it.

use std::io;

use nix::time::{ClockId, clock_gettime};

use crate::model::{BootTime, Now, WallTime};

/// Reads the clocks.
pub trait Clock: Send {
    /// All of them, together.
    fn now(&self) -> Now;
}

/// The machine's clocks: CLOCK_REALTIME, CLOCK_BOOTTIME, and the kernel's boot id.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    boot_id: u64,
}

impl SystemClock {
    /// Reads the boot id, which holds for as long as the process can live.
    ///
    /// # Errors
    /// `/proc/sys/kernel/random/boot_id` cannot be read or is no UUID, or the boot clock does not exist.
    pub fn new() -> io::Result<Self> {
        clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        clock_gettime(ClockId::CLOCK_REALTIME)?;
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
        let id = u128::from_str_radix(&digits, 16).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
        Ok(Self {
            boot_id: (id >> 64) as u64 ^ id as u64,
        })
    }
}

impl SystemClock {
    /// What is to be added to the boot clock to get the wall clock as it stands now, nanoseconds; for dating many records of one moment
    /// alike. 0 if a clock cannot be read, which [`SystemClock::new`] has ruled out.
    #[must_use]
    pub fn wall_of_boot(&self) -> i64 {
        let ns = |clock| clock_gettime(clock).map_or(0, |t| t.tv_sec() * 1_000_000_000 + t.tv_nsec());
        ns(ClockId::CLOCK_REALTIME).saturating_sub(ns(ClockId::CLOCK_BOOTTIME))
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Now {
        // Both clocks were read in `new`, so the call cannot fail for want of the clock. Should it: a wall clock at its start is before
        // every lease and every restriction, a boot clock at its end is after every lease, so nothing is loosened by it.
        let wall = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |t| t.tv_sec() * 1000 + t.tv_nsec() / 1_000_000);
        let boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok().and_then(|t| {
            u64::try_from(t.tv_sec())
                .ok()?
                .checked_mul(1_000_000_000)?
                .checked_add(u64::try_from(t.tv_nsec()).ok()?)
        });
        Now {
            wall: WallTime(wall),
            boot: BootTime(boot.unwrap_or(u64::MAX)),
            boot_id: self.boot_id,
        }
    }
}

/// A clock that stands still until it is set, but for what it is told to go on at each look. Clones share one time.
#[cfg(any(test, feature = "fake-kernel"))]
#[derive(Clone, Debug)]
pub struct ManualClock(
    std::sync::Arc<std::sync::Mutex<Now>>,
    std::sync::Arc<std::sync::atomic::AtomicU64>,
);

#[cfg(any(test, feature = "fake-kernel"))]
impl ManualClock {
    /// Starts here.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self(std::sync::Arc::new(std::sync::Mutex::new(now)), std::sync::Arc::default())
    }
    /// Sets it.
    pub fn set(&self, now: Now) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = now;
    }
    /// The boot clock goes on by so many nanoseconds at each look.
    pub fn tick_ns(&self, ns: u64) {
        self.1.store(ns, std::sync::atomic::Ordering::SeqCst);
    }
    /// Lets time pass on both clocks.
    pub fn advance_ms(&self, ms: u64) {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        now.wall.0 += i64::try_from(ms).unwrap_or(i64::MAX);
        now.boot.0 += ms * 1_000_000;
    }
}

#[cfg(any(test, feature = "fake-kernel"))]
impl Clock for ManualClock {
    fn now(&self) -> Now {
        let mut now = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        now.boot.0 += self.1.load(std::sync::atomic::Ordering::SeqCst);
        *now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_runs_and_its_boot_id_holds() {
        let (a, b) = (SystemClock::new().unwrap(), SystemClock::new().unwrap());
        let (first, second) = (a.now(), b.now());
        assert_eq!(first.boot_id, second.boot_id);
        assert!(second.boot >= first.boot && first.boot.0 > 0);
        assert!(first.wall.0 > 1_700_000_000_000);
    }
}
