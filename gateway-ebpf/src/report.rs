//! Counting, always and exactly; and telling of denials, as far as the rate limit and the ring allow.

use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns};
use gateway_ebpf::{
    abi::{Count, CpuCounts, Denial, MAX_RULES, POOLS, REASONS, Shared, mix6},
    decide::{Outcome, Verdict},
    headers::{Headers, cold_key, words},
    quick::Common,
    reason::Reason,
    tables::read,
};

use crate::{
    maps::{DENIALS, EVENTS_LOST, SHADOW, TOLD as TOLD_MAP, exchange, kept, own, rules},
    rate::{self, EVENTS},
};

/// Events that are remembered; a power of two.
pub(crate) const TOLD: usize = 1024;

/// An event that was told, in one word, which the CPUs exchange as a whole: in the upper half that of the event's signature, in the lower one when, in units
/// of 2^20 ns of the coarse clock. All zeros is none: the clock is past [`SAME`] when the first program runs.
///
/// The signature is a hash of source, destination, destination port and reason. Whoever finds two that collide can hide one denial of his own from the
/// events, which a flood of denials does as well; the counters have it.
#[derive(Clone, Copy)]
struct Told(u64);

/// For so long the same is told only once, by all CPUs together: a second, in units of [`Told`], of which the first and the last may be in part.
const SAME: u32 = (1_000_000_000_u64 >> UNIT) as u32 + 2;
/// log2 of the nanoseconds of a unit.
const UNIT: u32 = 20;

impl Told {
    /// This event, now.
    #[inline(always)]
    fn now(signature: u64) -> Self {
        // SAFETY: a helper without arguments.
        let now = unsafe { bpf_ktime_get_coarse_ns() } >> UNIT;
        Self(signature & !u64::from(u32::MAX) | now & u64::from(u32::MAX))
    }
    /// Whether it is one that `before` has told within [`SAME`]. (In 52 days the time comes round: who is denied then, and was last told, is told a second later.)
    #[inline(always)]
    const fn repeats(self, before: Self) -> bool {
        (self.0 ^ before.0) >> 32 == 0 && (self.0 as u32).wrapping_sub(before.0 as u32) < SAME
    }
}

/// Where a denied packet was met, and why it was denied, in the one word that a called function takes.
#[derive(Clone, Copy)]
pub(crate) struct Denied(u32);

impl Denied {
    #[inline(always)]
    pub(crate) fn new(verdict: &Verdict, hook: u8, observed: bool) -> Self {
        Self(u32::from_ne_bytes([
            verdict.reason as u8,
            verdict.pool,
            hook,
            observed.into(),
        ]))
    }
    #[inline(always)]
    pub(crate) const fn word(self) -> u32 {
        self.0
    }
    /// Back from the word.
    #[inline(always)]
    pub(crate) const fn from_word(word: u32) -> Self {
        Self(word)
    }
    /// The record of the packet whose headers are given.
    #[inline(always)]
    pub(crate) fn record(self, h: &Headers, ifindex: u32) -> Denial {
        let [reason, pool, hook, observed] = self.0.to_ne_bytes();
        Denial {
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
        }
    }
}

/// Counts a judged packet: by pool and reason, and what is granted by rule. What `all` passed has no rule and is counted once: whoever reads
/// the rules' counters adds it to rule 0. `own`: of this CPU.
#[inline(always)]
pub(crate) fn count(own: *mut CpuCounts, verdict: &Verdict, length: u32) {
    tally(own, verdict.reason, verdict.pool, length);
    if verdict.reason != Reason::All && matches!(verdict.outcome(), Outcome::Grant) {
        let rule = usize::from(verdict.rule) % MAX_RULES;
        // SAFETY: this CPU's, which no other program interrupts: all hooks run with bottom halves off.
        unsafe { add(&raw mut (*own).rules[rule], length) };
    }
}

/// The same on the short way, where the verifier sees which reasons there can be.
#[inline(always)]
pub(crate) fn count_common(own: *mut CpuCounts, common: Common, length: u32) {
    let Common { reason, pool, rule, .. } = common;
    // SAFETY: as in `count`.
    unsafe {
        add(&raw mut (*own).pools[pool as usize % POOLS][reason as usize], length);
        if matches!(reason, Reason::Rule | Reason::Reply) {
            add(&raw mut (*rules(own))[usize::from(rule) % MAX_RULES], length);
        }
    }
}

/// Counts by pool and reason.
#[inline(always)]
pub(crate) fn tally(own: *mut CpuCounts, reason: Reason, pool: u8, length: u32) {
    // The compiler knows which numbers there are and drops the bound; the verifier does not, and wants it. `read` hides them.
    let i = read(&(reason as u8)) as usize;
    if i >= REASONS {
        return;
    }
    // SAFETY: as in `count`.
    unsafe { add(&raw mut (*own).pools[pool as usize % POOLS][i], length) };
}

/// Counts how the shadow policy differs about the packet whose headers were kept last. `passed`: 1, the policy in force passed it; `would`: 1,
/// the shadow policy would pass it; 2, it would drop it; 0, it has no say.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn differ(passed: u32, would: u32, rule: u32, pool: u32) -> u64 {
    let (Some(h), Some(shadow)) = (kept(), SHADOW.get_ptr_mut(pool)) else {
        return 0;
    };
    if passed != 0 && would == 2 {
        // SAFETY: as in `count`.
        unsafe { add(&raw mut (*shadow).would_drop, h.length) };
        if let Some(own) = own() {
            // SAFETY: as in `count`.
            unsafe { add(&raw mut (*own).shadow_drops[rule as usize % MAX_RULES], h.length) };
        }
    } else if passed == 0 && would == 1 {
        // SAFETY: as in `count`.
        unsafe { add(&raw mut (*shadow).would_pass, h.length) };
    }
    0
}

/// Whether this CPU can tell of a denial now. It counts what it keeps back.
#[inline(always)]
pub(crate) fn may_tell() -> bool {
    let full = rate::exhausted(EVENTS);
    if full {
        lost(0);
    }
    !full
}

/// Whether the same as this denial was told a moment ago; then it is counted as not told, and there is nothing else to do about it.
#[inline(always)]
pub(crate) fn repeats(h: &Headers, reason: Reason) -> bool {
    repeated(signature(h, reason as u8)) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn repeated(signature: u64) -> u64 {
    let same = place(signature).is_some_and(|told| Told::now(signature).repeats(Told(told.get())));
    if same {
        lost(2);
    }
    same.into()
}

/// Tells of the packet whose headers were kept last, if the same was not told a moment ago. So a flood of one flow spends none of the
/// limit, and others are heard. `what`: [`Denied`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn tell(what: u32, ifindex: u32) -> u64 {
    let denied = Denied::from_word(what);
    let Some(h) = kept() else { return 0 };
    let signature = signature(h, what as u8);
    if repeated(signature) != 0 {
        return 0;
    }
    rate::spend(EVENTS);
    let Some(mut record) = DENIALS.reserve::<Denial>(0) else {
        // What finds no room has not been told.
        lost(1);
        return 0;
    };
    // Of CPUs that are here with the same at the same time, one finds that nobody has told it.
    let now = Told::now(signature);
    if place(signature).is_some_and(|told| now.repeats(Told(exchange(told, now.0)))) {
        record.discard(0);
        lost(2);
        return 0;
    }
    record.write(denied.record(h, ifindex));
    record.submit(0);
    0
}

#[inline(always)]
fn signature(h: &Headers, reason: u8) -> u64 {
    let [s, d] = [words(h.source), words(h.destination)].map(mix6);
    mix6([s, d.rotate_left(7) ^ (u64::from(h.destination_port) << 8 | u64::from(reason))])
}

/// Where it is remembered that this was told.
#[inline(always)]
fn place(signature: u64) -> Option<&'static Shared<u64>> {
    TOLD_MAP.get(signature as u32 % TOLD as u32)
}

/// # Safety
/// `to` is this CPU's.
#[inline(always)]
unsafe fn add(to: *mut Count, length: u32) {
    // SAFETY: the caller's.
    unsafe {
        (*to).packets += 1;
        (*to).bytes += u64::from(length);
    }
}

#[inline(always)]
fn lost(i: usize) {
    if let Some(lost) = EVENTS_LOST.get_ptr_mut(0) {
        // SAFETY: the map's value of this CPU, which no other program interrupts.
        unsafe { (*lost)[i] += 1 };
    }
}
