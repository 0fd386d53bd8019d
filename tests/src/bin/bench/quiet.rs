//! Whether this thread has its core to itself. Where virtual CPUs are hardware threads, a stranger on the other thread of the core takes up to
//! half of what the core executes, comes and goes within milliseconds, and is in no load average. So a sample is taken in short pieces, and
//! a piece during which somebody was there, or that the scheduler interrupted, is taken again; so is the piece after it, which finds the caches
//! full of what others left.

use std::{
    arch::asm,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};

use crate::run;

/// A sample is long enough when its pieces took this long together, or have this many packets.
const SAMPLE: Duration = Duration::from_millis(150);
/// After this much time of the wall, pieces are taken as they come.
const PATIENCE: Duration = Duration::from_secs(3);
/// How much slower than ever the gauge may be, in percent.
const SLOWER: u32 = 12;

/// Tells a shared core, and counts what it cost.
pub(crate) struct Quiet {
    /// The shortest time of the gauge.
    best: Duration,
    /// Pieces that were used, that were taken again, and that were used although disturbed.
    used: u64,
    again: u64,
    disturbed: u64,
}

/// What a sample came to.
pub(crate) struct Sample {
    /// Nanoseconds a packet.
    pub(crate) ns: f64,
    /// Packets that ran, those of disturbed pieces included.
    pub(crate) ran: u64,
    /// What the last piece returned.
    pub(crate) verdict: u32,
}

impl Quiet {
    pub(crate) fn new() -> Result<Self> {
        let mut quiet = Self {
            best: Duration::MAX,
            used: 0,
            again: 0,
            disturbed: 0,
        };
        for _ in 0..5000 {
            quiet.is_now()?;
        }
        Ok(quiet)
    }

    /// What it came to, for the report.
    pub(crate) fn told(&self) -> String {
        let Self {
            used, again, disturbed, ..
        } = self;
        format!("{used} pieces; {again} more were disturbed and taken again, {disturbed} were disturbed and used")
    }

    /// Takes a sample of at most `packets` packets in pieces of about `length` each. `piece` runs so many, and gives the verdict of the last and
    /// the time.
    pub(crate) fn sample(
        &mut self,
        packets: u32,
        length: Duration,
        mut piece: impl FnMut(u32) -> Result<(u32, Duration)>,
    ) -> Result<Sample> {
        let start = Instant::now();
        let (mut size, mut kept, mut took) = (1024_u32, 0_u64, Duration::ZERO);
        let (mut ran, mut verdict) = (0, 0);
        // How often the thread had lost the CPU at the end of the last piece, if that was undisturbed: caches then hold what it left.
        let mut warm = None;
        while kept < packets.into() && took < SAMPLE {
            let (lost, before) = (switches()?, self.is_now()?);
            let (last, time) = piece(size)?;
            let alone = self.is_now()? && before && switches()? == lost;
            ran += u64::from(size);
            verdict = last;
            let impatient = start.elapsed() > PATIENCE;
            if alone && warm == Some(lost) || impatient {
                kept += u64::from(size);
                took += time;
                self.used += 1;
                self.disturbed += u64::from(!alone);
            } else {
                self.again += 1;
            }
            warm = alone.then_some(lost);
            let ns = (time.as_nanos() as u64 / u64::from(size)).max(1);
            size = (length.as_nanos() as u64 / ns).clamp(1024, 250_000) as u32;
        }
        Ok(Sample {
            ns: took.as_nanos() as f64 / kept as f64,
            ran,
            verdict,
        })
    }

    /// By a loop that keeps the whole core busy: six independent additions at a time.
    fn is_now(&mut self) -> Result<bool> {
        let start = run::cpu_time()?;
        for _ in 0..20_000 {
            // SAFETY: registers of its own and the flags, nothing else.
            unsafe {
                asm!(
                    "add {a}, 1", "add {b}, 1", "add {c}, 1", "add {d}, 1", "add {e}, 1", "add {f}, 1",
                    "add {a}, 1", "add {b}, 1", "add {c}, 1", "add {d}, 1", "add {e}, 1", "add {f}, 1",
                    a = inout(reg) 0_u64 => _, b = inout(reg) 0_u64 => _, c = inout(reg) 0_u64 => _,
                    d = inout(reg) 0_u64 => _, e = inout(reg) 0_u64 => _, f = inout(reg) 0_u64 => _,
                    options(nomem, nostack)
                );
            }
        }
        let time = run::cpu_time()?.saturating_sub(start);
        self.best = self.best.min(time);
        Ok(time * 100 <= self.best * (100 + SLOWER))
    }
}

/// How often the scheduler has taken the CPU from this thread.
fn switches() -> Result<i64> {
    Ok(getrusage(UsageWho::RUSAGE_THREAD)
        .context("getrusage")?
        .involuntary_context_switches())
}
