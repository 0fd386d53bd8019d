//! The kernel entry points. Each parses, asks [`decide`], and does what its verdict table says: [`xdp_verdict`] or [`tc_verdict`].
//!
//! Three ways lead there. What is common is left to `short`, which decides it or leaves it to the others. What is plain: parsed inline, decided in a
//! called function. The rest: parsed by helpers in one called function, decided in the other. Between functions the headers are kept
//! in a map, not on the stack: the verifier then follows one state from there on, not one for each thing that the parser can say.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md},
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use gateway_ebpf::{
    abi::{
        FLAG_OBSERVE, MARK_ANSWER, MARK_GRANT, MARK_GRANT_MASK, MARK_OBSERVED, MARK_OURS, MARK_RESERVED, MARK_RESERVED_MASK,
        MAX_POOLS, META_VLAN, asks_answer, hook,
    },
    decide::{Outcome, Verdict},
    headers::{Headers, Judged},
    parse::{Parsed, parse_fast, parse_full},
    rare::{decide_rare, is_inner_vlan, wrong_vlan},
    reason::Reason,
    tables::{Tables, read},
};

use crate::{
    access::{Direct, IPV4, IPV6, SkbBytes, XdpBytes, protocol},
    account, answer,
    maps::{KERNEL, keep, keep_plain, kept_rare, own, probing},
    note::{has_more_tags, is_tagged, leave_word, metadata, tag, vlan},
    place::{CORE_ETH, CORE_IP, DEVICE_ETH, DEVICE_IP, EGRESS_ETH, EGRESS_IP, at, is_egress, xdp_place},
    report::{self, Denied},
    short,
};

/// The next program on the hook, or the stack. TC_ACT_OK would keep the programs behind ours from running.
pub(crate) const TCX_NEXT: i32 = -1;

#[xdp(frags)]
fn xdp_device(ctx: XdpContext) -> u32 {
    xdp_judge::<true>(ctx.ctx)
}
#[xdp(frags)]
fn xdp_core(ctx: XdpContext) -> u32 {
    xdp_judge::<false>(ctx.ctx)
}
#[classifier]
fn tc_device_eth(ctx: TcContext) -> i32 {
    tc_companion::<DEVICE_ETH>(ctx.skb.skb)
}
#[classifier]
fn tc_core_eth(ctx: TcContext) -> i32 {
    tc_companion::<CORE_ETH>(ctx.skb.skb)
}
#[classifier]
fn tc_device_ip(ctx: TcContext) -> i32 {
    tc_judge::<DEVICE_IP, false>(ctx.skb.skb)
}
#[classifier]
fn tc_core_ip(ctx: TcContext) -> i32 {
    tc_judge::<CORE_IP, false>(ctx.skb.skb)
}
#[classifier]
fn tc_egress_eth(ctx: TcContext) -> i32 {
    tc_judge::<EGRESS_ETH, true>(ctx.skb.skb)
}
#[classifier]
fn tc_egress_ip(ctx: TcContext) -> i32 {
    tc_judge::<EGRESS_IP, false>(ctx.skb.skb)
}
#[classifier]
fn tc_guard(ctx: TcContext) -> i32 {
    guard(ctx.skb.skb)
}

/// XDP's verdict table, for headers that are kept. XDP cannot set the firewall mark: metadata in front of the frame carries it to the TC program.
#[inline(always)]
fn xdp_verdict(ctx: *mut xdp_md, ifindex: u32, hook: u8, verdict: &Verdict, h: &Headers) -> u32 {
    let flags = flags();
    let observed = flags & FLAG_OBSERVE != 0;
    let word = match verdict.outcome() {
        Outcome::Grant => Some(verdict.mark),
        Outcome::Link | Outcome::NotOurs => Some(0),
        Outcome::Deny if observed => Some(MARK_OBSERVED),
        // Only with the companion's help, if the limit allows it.
        Outcome::Deny if verdict.answer && !probing() => Some(MARK_ANSWER | u32::from(verdict.pool) << 16),
        Outcome::Deny => None,
    };
    // Before anything is counted or told: what the companion cannot be told of, it judges in full, counts and tells.
    if let Some(word) = word
        && !leave_word(ctx, word | tag(ctx))
        && !probing()
    {
        return xdp_action::XDP_PASS;
    }
    let place = if hook == hook::XDP_DEVICE { DEVICE_ETH } else { CORE_ETH };
    account::enter::<true>(flags, place, ifindex, hook, verdict, h);
    let denied = matches!(verdict.outcome(), Outcome::Deny);
    if denied && !probing() {
        account::tell_frame(ctx, flags, ifindex, Denied::new(verdict, hook, observed));
    }
    let passes = !denied || observed || verdict.answer && !probing() && answer::may_answer(verdict.pool.into()) != 0;
    if passes { xdp_action::XDP_PASS } else { xdp_action::XDP_DROP }
}

/// TC's verdict table.
#[inline(always)]
fn tc_verdict<const PLACE: u8, const KEPT: bool>(
    skb: *mut __sk_buff,
    ifindex: u32,
    hook: u8,
    verdict: &Verdict,
    h: &Headers,
) -> i32 {
    let flags = flags();
    let observed = flags & FLAG_OBSERVE != 0;
    let counted = is_egress(PLACE) && account::is_counted(skb, verdict, observed);
    if !counted || probing() {
        account::enter::<KEPT>(flags, PLACE, ifindex, hook, verdict, h);
    }
    let pass = match verdict.outcome() {
        Outcome::Grant => Some(verdict.mark),
        // On its way out nothing is forwarded any more: the mark only tells the guard that we have judged.
        Outcome::Link | Outcome::NotOurs if hook == hook::TC_EGRESS => Some(MARK_GRANT),
        Outcome::Link | Outcome::NotOurs => Some(0),
        Outcome::Deny => {
            if !counted && !probing() {
                account::tell::<PLACE, KEPT>(skb, flags, ifindex, Denied::new(verdict, hook, observed), h);
            }
            if observed {
                Some(if hook == hook::TC_EGRESS { MARK_GRANT } else { MARK_OBSERVED })
            } else if (PLACE == DEVICE_ETH || PLACE == DEVICE_IP)
                && verdict.answer
                && !probing()
                && (KEPT || keep(h))
                && answer::may_answer(verdict.pool.into()) != 0
            {
                return send_answer::<PLACE>(skb, ifindex, verdict.pool);
            } else {
                None
            }
        }
    };
    match pass {
        Some(mark) => set_mark(skb, mark),
        None => TC_ACT_SHOT,
    }
}

/// Whether a packet has the mark of a grant.
#[inline(always)]
pub(crate) fn is_granted(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*skb).mark & MARK_GRANT_MASK == MARK_GRANT }
}

#[inline(always)]
fn send_answer<const PLACE: u8>(skb: *mut __sk_buff, ifindex: u32, pool: u8) -> i32 {
    match PLACE {
        DEVICE_ETH => send_eth(skb, ifindex, pool.into()),
        DEVICE_IP => send_ip(skb, ifindex, pool.into()),
        // Only devices are answered.
        _ => TC_ACT_SHOT,
    }
}

// Global functions, as are others with a C name: the verifier follows each once, from any arguments, not once for each state that a caller
// can be in.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_eth(skb: *mut __sk_buff, ifindex: u32, pool: u32) -> i32 {
    answer::send::<true>(skb, ifindex, pool)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn send_ip(skb: *mut __sk_buff, ifindex: u32, pool: u32) -> i32 {
    answer::send::<false>(skb, ifindex, pool)
}
#[inline(always)]
fn xdp_judge<const DEVICE: bool>(ctx: *mut xdp_md) -> u32 {
    if let Some(action) = short::xdp::<DEVICE>(ctx) {
        return action;
    }
    let mut h = Headers::default();
    let kept = match parse_fast::<_, true>(&Direct::xdp(ctx), &mut h) {
        Parsed::Done => keep_plain(&h),
        Parsed::Rare => xdp_read(ctx) != 0,
    };
    match (kept, DEVICE) {
        (false, _) => xdp_action::XDP_DROP,
        (true, true) => xdp_kept_device(ctx),
        (true, false) => xdp_kept_core(ctx),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_read(ctx: *mut xdp_md) -> u64 {
    let Some((h, rare)) = kept_rare() else { return 0 };
    *h = Headers::default();
    parse_full::<_, true>(&XdpBytes(ctx), None, h, rare);
    1
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_kept_device(ctx: *mut xdp_md) -> u32 {
    xdp_kept::<true>(ctx)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_kept_core(ctx: *mut xdp_md) -> u32 {
    xdp_kept::<false>(ctx)
}

#[inline(always)]
fn xdp_kept<const DEVICE: bool>(ctx: *mut xdp_md) -> u32 {
    let Some((h, rare)) = kept_rare() else {
        return xdp_action::XDP_DROP;
    };
    // SAFETY: the kernel gives a valid context.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    let place = xdp_place::<DEVICE>(ifindex);
    let verdict = decide_rare(&KERNEL, place, h, rare);
    // What may be the inner one of two tags, the outer of which the card has taken off, only the companion can tell. Nothing is counted yet.
    if verdict.reason as u8 == Reason::Vlan as u8 && !probing() && is_inner_vlan(&KERNEL, ifindex, rare.vlan) {
        return xdp_action::XDP_PASS;
    }
    xdp_verdict(ctx, ifindex, place.hook, &verdict, h)
}

/// On an interface with XDP: what its metadata says, without judging or counting again. What has none (XDP is not attached, or could not
/// write it) is judged in full.
#[inline(always)]
fn tc_companion<const PLACE: u8>(skb: *mut __sk_buff) -> i32 {
    let ifindex = ifindex(skb);
    match metadata(skb, ifindex) {
        Some(word) if word & META_VLAN == vlan(skb) && !has_more_tags(skb) => {
            if asks_answer(word) {
                send_answer::<PLACE>(skb, ifindex, (word >> 16) as u8 & MAX_POOLS)
            } else {
                set_mark(skb, word & !META_VLAN)
            }
        }
        Some(word) if PLACE == DEVICE_ETH => tc_retagged_device(skb, word),
        Some(word) => tc_retagged_core(skb, word),
        None => tc_fast::<PLACE, true>(skb),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_retagged_device(skb: *mut __sk_buff, word: u32) -> i32 {
    tc_retagged::<DEVICE_ETH>(skb, word)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_retagged_core(skb: *mut __sk_buff, word: u32) -> i32 {
    tc_retagged::<CORE_ETH>(skb, word)
}

/// The companion where XDP has seen another tag than there is, so that the card has taken one off, or may have seen one less. XDP has judged and
/// counted all but the VLAN.
#[inline(always)]
fn tc_retagged<const PLACE: u8>(skb: *mut __sk_buff, word: u32) -> i32 {
    if tc_read_eth(skb) == 0 {
        return TC_ACT_SHOT;
    }
    let Some((h, rare)) = kept_rare() else { return TC_ACT_SHOT };
    let ifindex = ifindex(skb);
    let denied = asks_answer(word);
    let observed = word & MARK_OURS & !META_VLAN == MARK_OBSERVED;
    match wrong_vlan(&KERNEL, at(PLACE, ifindex), h, rare) {
        // A denial is counted already.
        Some(_) if denied => TC_ACT_SHOT,
        Some(_) if observed && flags() & FLAG_OBSERVE != 0 => set_mark(skb, MARK_OBSERVED),
        Some(verdict) => {
            rare.judged = Judged::Nothing;
            tc_verdict::<PLACE, true>(skb, ifindex, at(PLACE, ifindex).hook, &verdict, h)
        }
        None if denied => send_answer::<PLACE>(skb, ifindex, (word >> 16) as u8 & MAX_POOLS),
        None => set_mark(skb, word & !META_VLAN),
    }
}

#[inline(always)]
fn tc_judge<const PLACE: u8, const ETHERNET: bool>(skb: *mut __sk_buff) -> i32 {
    let ifindex = ifindex(skb);
    if is_egress(PLACE) {
        // SAFETY: the kernel gives a valid context.
        let mark = unsafe { (*skb).mark };
        if mark & MARK_GRANT_MASK == MARK_ANSWER && !probing() && answer::is_ours(mark, ifindex) {
            // SAFETY: likewise; the mark may be written.
            unsafe { (*skb).mark = MARK_GRANT };
            return TCX_NEXT;
        }
    }
    tc_fast::<PLACE, ETHERNET>(skb)
}

#[inline(always)]
fn tc_fast<const PLACE: u8, const ETHERNET: bool>(skb: *mut __sk_buff) -> i32 {
    let tagged = is_tagged(skb);
    if !tagged && let Some(action) = short::tc::<PLACE, ETHERNET>(skb) {
        return action;
    }
    let mut h = Headers::default();
    let parsed = if tagged {
        Parsed::Rare
    } else {
        parse_fast::<_, ETHERNET>(&Direct::skb(skb), &mut h)
    };
    let kept = match parsed {
        Parsed::Done if ETHERNET || is_taken_for(skb, h.version) => keep_plain(&h),
        _ if ETHERNET => tc_read_eth(skb) != 0,
        _ => tc_read_ip(skb) != 0,
    };
    if !kept {
        return TC_ACT_SHOT;
    }
    match PLACE {
        DEVICE_ETH => tc_kept_device_eth(skb),
        CORE_ETH => tc_kept_core_eth(skb),
        DEVICE_IP => tc_kept_device_ip(skb),
        CORE_IP => tc_kept_core_ip(skb),
        EGRESS_ETH => tc_kept_egress_eth(skb),
        _ => tc_kept_egress_ip(skb),
    }
}

/// Whether the kernel hands a packet on as what it says first. In a test run it seems not to; then the full form decides.
#[inline(always)]
fn is_taken_for(skb: *mut __sk_buff, version: u8) -> bool {
    protocol(skb) == if version == 4 { IPV4 } else { IPV6 }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_read_eth(skb: *mut __sk_buff) -> u64 {
    tc_read::<true>(skb).into()
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_read_ip(skb: *mut __sk_buff) -> u64 {
    tc_read::<false>(skb).into()
}

#[inline(always)]
fn tc_read<const ETHERNET: bool>(skb: *mut __sk_buff) -> bool {
    let Some((h, rare)) = kept_rare() else { return false };
    *h = Headers::default();
    // SAFETY: the kernel gives a valid context.
    let outer = is_tagged(skb).then(|| unsafe { (*skb).vlan_tci } as u16);
    parse_full::<_, ETHERNET>(&SkbBytes(skb), outer, h, rare);
    true
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_kept_device_eth(skb: *mut __sk_buff) -> i32 {
    tc_kept::<DEVICE_ETH>(skb)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_kept_core_eth(skb: *mut __sk_buff) -> i32 {
    tc_kept::<CORE_ETH>(skb)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_kept_device_ip(skb: *mut __sk_buff) -> i32 {
    tc_kept::<DEVICE_IP>(skb)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_kept_core_ip(skb: *mut __sk_buff) -> i32 {
    tc_kept::<CORE_IP>(skb)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_kept_egress_eth(skb: *mut __sk_buff) -> i32 {
    tc_kept::<EGRESS_ETH>(skb)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn tc_kept_egress_ip(skb: *mut __sk_buff) -> i32 {
    tc_kept::<EGRESS_IP>(skb)
}

#[inline(always)]
fn tc_kept<const PLACE: u8>(skb: *mut __sk_buff) -> i32 {
    let Some((h, rare)) = kept_rare() else { return TC_ACT_SHOT };
    let ifindex = ifindex(skb);
    let place = at(PLACE, ifindex);
    let verdict = decide_rare(&KERNEL, place, h, rare);
    tc_verdict::<PLACE, true>(skb, ifindex, place.hook, &verdict, h)
}

/// Drops what no judge has marked. A mark from the ingress of a core interface satisfies it too: that packet was judged by the same
/// decision, at most moments ago.
#[inline(always)]
fn guard(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel gives a valid context.
    let length = unsafe { (*skb).len };
    if is_granted(skb) {
        return TCX_NEXT;
    }
    if let Some(own) = own() {
        report::tally(own, Reason::Unjudged, 0, length);
    }
    if flags() & FLAG_OBSERVE != 0 { TCX_NEXT } else { TC_ACT_SHOT }
}

/// [`gateway_ebpf::abi::Control::flags`]. A control word that cannot be read enforces.
#[inline(always)]
fn flags() -> u32 {
    KERNEL.control().map_or(0, |c| read(&c.flags))
}

#[inline(always)]
pub(crate) fn ifindex(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*skb).ifindex }
}

/// Passes a packet with a grant, or with 0 without one: other people's marks stay, unless they look like one of ours.
#[inline(always)]
pub(crate) fn set_mark(skb: *mut __sk_buff, grant: u32) -> i32 {
    // SAFETY: the kernel gives a valid context, in which the mark may be written.
    unsafe {
        let mark = (*skb).mark;
        if grant != 0 || mark & MARK_RESERVED_MASK == MARK_RESERVED {
            // Whole: half of it may not be written alone.
            (&raw mut (*skb).mark).write_volatile(mark & !MARK_OURS | grant);
        }
    }
    TCX_NEXT
}
