//! How much one CPU may tell in a window of time.

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};

use crate::maps::RATES;

/// The window, nanoseconds: a few ticks of the coarse clock.
const WINDOW: u64 = 16_000_000;

/// State of one limit. All zeros is a window that is over.
#[repr(C)]
pub(crate) struct Rate {
    /// When the window began, on the coarse clock.
    began: u64,
    /// What was told since.
    told: u64,
    /// The tick in which the window was found full: for the rest of it the clock need not be asked.
    full: u64,
}

/// Which limit, as a key of [`RATES`], and how much it lets through in a window.
#[derive(Clone, Copy)]
pub(crate) struct Limit {
    key: u32,
    window: u64,
}

/// Two CPUs then write at most 8,000 events a second, half a megabyte.
pub(crate) const EVENTS: Limit = Limit { key: 0, window: 64 };
/// Two CPUs then write at most 125,000 records a second.
pub(crate) const CAPTURES: Limit = Limit { key: 1, window: 1_000 };

/// Whether this CPU has told enough for now.
#[inline(always)]
pub(crate) fn exhausted(limit: Limit) -> bool {
    let Some(rate) = RATES.get_ptr_mut(limit.key) else {
        return true;
    };
    // SAFETY: the map's value of this CPU, which no other program interrupts.
    let rate = unsafe { &mut *rate };
    if rate.told < limit.window {
        return false;
    }
    // SAFETY: a helper without arguments.
    let tick = unsafe { bpf_jiffies64() };
    if rate.full == tick {
        return true;
    }
    // SAFETY: likewise.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    if now - rate.began < WINDOW {
        rate.full = tick;
        return true;
    }
    rate.began = now;
    rate.told = 0;
    false
}

/// Counts something told.
#[inline(always)]
pub(crate) fn spend(limit: Limit) {
    if let Some(rate) = RATES.get_ptr_mut(limit.key) {
        // SAFETY: the map's value of this CPU, which no other program interrupts.
        unsafe { (*rate).told += 1 };
    }
}
