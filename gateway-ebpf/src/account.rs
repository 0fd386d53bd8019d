//! What is kept of a packet that was judged: counters, the shadow policy's score, or the probe's trace; of a denied one, the event and the capture.
//! Nothing of it changes what becomes of the packet.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use gateway_ebpf::{
    abi::{FLAG_CAPTURE, FLAG_SHADOW, MARK_OBSERVED, MARK_OURS},
    decide::{Outcome, Verdict, shadow},
    headers::Headers,
};

use crate::{
    capture,
    hooks::is_granted,
    maps::{KERNEL, keep, kept_rare, own, probing},
    place::at,
    report::{self, Denied},
    trace,
};

/// Counts; and with a shadow policy, what it would have done. The probing twin writes its trace instead.
#[inline(always)]
pub(crate) fn enter<const KEPT: bool>(flags: u32, place: u8, ifindex: u32, hook: u8, verdict: &Verdict, h: &Headers) {
    let score = flags & FLAG_SHADOW != 0;
    if probing() {
        if KEPT || keep(h) {
            let (what, rule) = trace::packed(verdict, hook);
            let would = if score { would(place.into(), ifindex) } else { 0 };
            write_trace(verdict.mark, what, rule, would);
        }
        return;
    }
    if let Some(own) = own() {
        report::count(own, verdict, h.length);
    }
    if score && (KEPT || keep(h)) {
        let passed = verdict.reason.passes();
        report::differ(
            passed.into(),
            would(place.into(), ifindex),
            verdict.rule.into(),
            verdict.pool.into(),
        );
    }
}

/// On its way out: whether one of our programs has counted this packet where it came in, so that this one only judges it. A denial of what was granted
/// there (since then an address was translated, or a table has changed) is counted as well. Whoever else sets a mark of this form keeps his packet
/// from being counted, and from nothing else.
#[inline(always)]
pub(crate) fn is_counted(skb: *mut __sk_buff, verdict: &Verdict, observed: bool) -> bool {
    // SAFETY: the kernel gives a valid context.
    let mark = unsafe { (*skb).mark };
    is_granted(skb) && matches!(verdict.outcome(), Outcome::Grant) || observed && mark & MARK_OURS == MARK_OBSERVED
}

/// Tells of a denied frame at XDP, whose headers are kept, and captures it.
#[inline(always)]
pub(crate) fn tell_frame(ctx: *mut xdp_md, flags: u32, ifindex: u32, denied: Denied) {
    let what = denied.word();
    if flags & FLAG_CAPTURE != 0 {
        capture_frame(ctx, what, ifindex);
    }
    if report::may_tell() {
        report::tell(what, ifindex);
    }
}

/// The same of a denied packet at TC. Its headers are kept now, if they were not.
#[inline(always)]
pub(crate) fn tell<const PLACE: u8, const KEPT: bool>(
    skb: *mut __sk_buff,
    flags: u32,
    ifindex: u32,
    denied: Denied,
    h: &Headers,
) {
    let what = denied.word();
    if flags & FLAG_CAPTURE != 0 && (KEPT || keep(h)) {
        if at(PLACE, 0).ethernet {
            capture_eth(skb, what, ifindex);
        } else {
            capture_ip(skb, what, ifindex);
        }
    }
    if report::may_tell() && (KEPT || keep(h)) {
        report::tell(what, ifindex);
    }
}

// Global functions: see `hooks`.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn capture_frame(ctx: *mut xdp_md, what: u32, ifindex: u32) -> u64 {
    capture::xdp(ctx, what, ifindex)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn capture_eth(skb: *mut __sk_buff, what: u32, ifindex: u32) -> u64 {
    capture::skb::<true>(skb, what, ifindex)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn capture_ip(skb: *mut __sk_buff, what: u32, ifindex: u32) -> u64 {
    capture::skb::<false>(skb, what, ifindex)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn write_trace(mark: u32, what: u32, rule: u32, would: u32) -> u64 {
    trace::write(mark, what, rule, would as u8)
}

/// What the shadow policy says of the packet whose headers were kept last: see [`shadow`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn would(place: u32, ifindex: u32) -> u32 {
    match kept_rare() {
        Some((h, rare)) => shadow(&KERNEL, at(place as u8, ifindex), h, Some(rare)),
        None => 0,
    }
}
