//! Counting, always and exactly; and telling of denials, as far as the rate limit and the ring allow.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns};
use gateway_ebpf::{
    abi::{Denial, REASONS},
    decide::Verdict,
    headers::{Headers, cold_key},
    tables::read,
};

use crate::maps::{COUNTERS, DENIALS, EVENT_RATE, EVENTS_LOST, keep, kept};

/// Events of one CPU in one window, at most. Two CPUs then write at most 8,000 a second, half a megabyte.
const EVENTS: u64 = 64;
/// The window, nanoseconds: a few ticks of the coarse clock.
const WINDOW: u64 = 16_000_000;

/// State of the rate limit.
#[repr(C)]
pub(crate) struct Rate {
    /// When the window began, on the coarse clock.
    began: u64,
    /// Events since.
    events: u64,
}

/// Counts a judged packet.
#[inline(always)]
pub(crate) fn count(verdict: &Verdict, length: u32) {
    let Some(counts) = COUNTERS.get_ptr_mut(verdict.pool.into()) else {
        return;
    };
    // The compiler knows which numbers there are and drops the bound; the verifier does not, and wants it. `read` hides them.
    let i = read(&(verdict.reason as u8)) as usize % REASONS;
    // SAFETY: the map's value of this CPU, which no other program interrupts: all hooks run with bottom halves off.
    unsafe {
        (*counts)[i].packets += 1;
        (*counts)[i].bytes += u64::from(length);
    }
}

/// Tells of a denied packet, `hook` and `ifindex` being where. `KEPT`: `h` are the headers that were kept.
#[inline(always)]
pub(crate) fn deny<const KEPT: bool>(verdict: &Verdict, h: &Headers, hook: u8, ifindex: u32, observed: bool) {
    if limited() == 0 && (KEPT || keep(h)) {
        tell(
            u32::from_ne_bytes([verdict.reason as u8, verdict.pool, hook, observed.into()]),
            ifindex,
        );
    }
}

/// Tells of the packet whose headers were kept last. `what`: reason, pool, hook, observed, a byte each.
#[inline(never)]
fn tell(what: u32, ifindex: u32) -> u64 {
    let Some(h) = kept() else { return 0 };
    let Some(mut record) = DENIALS.reserve::<Denial>(0) else {
        lost(1);
        return 0;
    };
    let [reason, pool, hook, observed] = what.to_ne_bytes();
    record.write(Denial {
        // SAFETY: a helper without arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        ifindex,
        len: h.length,
        // Zeros without a version.
        src: cold_key(h.version, h.source),
        dst: cold_key(h.version, h.destination),
        sport: h.source_port,
        dport: h.destination_port,
        protocol: h.protocol,
        reason,
        pool,
        hook,
        version: h.version,
        icmp_type: h.icmp_type,
        observed,
        spare: [0; 5],
    });
    record.submit(0);
    0
}

/// 1: this CPU has told enough for now. It counts what it suppresses.
#[inline(never)]
fn limited() -> u64 {
    let Some(rate) = EVENT_RATE.get_ptr_mut(0) else { return 1 };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: the map's value of this CPU, which no other program interrupts.
    let rate = unsafe { &mut *rate };
    if now - rate.began >= WINDOW {
        rate.began = now;
        rate.events = 0;
    }
    if rate.events < EVENTS {
        rate.events += 1;
        return 0;
    }
    lost(0);
    1
}

#[inline(always)]
fn lost(i: usize) {
    if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: the map's value of this CPU, which no other program interrupts.
        unsafe { (*lost)[i] += 1 };
    }
}
