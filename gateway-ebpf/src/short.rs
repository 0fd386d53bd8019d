//! The short way of a common packet at a hook, whole: decided, counted, marked. `None` is not a verdict: the packet goes the long way, in `hooks`.

use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, xdp_action, xdp_md};
use gateway_ebpf::{
    abi::{CpuCounts, FLAG_DELEGATED, FLAG_INTERFACE_POOLS},
    decide::Place,
    headers::Headers,
    parse::{is_six, parse_common, parse_common6},
    quick::{Act, Common, quick},
    tables::{Tables as _, read},
};

use crate::{
    access::{Direct, IPV4, IPV6, is_told, protocol},
    hooks::{ifindex, is_granted, set_mark},
    maps::{KERNEL, Kernel, own, probing},
    note::leave_word,
    place::{CORE_ETH, CORE_IP, DEVICE_ETH, DEVICE_IP, EGRESS_ETH, at, is_egress, xdp_place},
    report,
};

/// What becomes of a common packet at XDP. Of IPv4, nothing is kept for the long way, which reads it anew: registers are few. IPv6 is read in a called
/// function for the same reason.
#[inline(always)]
pub(crate) fn xdp<const DEVICE: bool>(ctx: *mut xdp_md) -> Option<u32> {
    let frame = Direct::xdp(ctx);
    if let Some(h) = parse_common::<_, true>(&frame) {
        return xdp_of::<DEVICE>(ctx, &h);
    }
    if !is_six::<_, true>(&frame) {
        return None;
    }
    let action = if DEVICE { xdp_six_device(ctx) } else { xdp_six_core(ctx) };
    (action != LONG).then_some(action as u32)
}

/// What becomes of a common packet at TC, likewise.
#[inline(always)]
pub(crate) fn tc<const PLACE: u8, const ETHERNET: bool>(skb: *mut __sk_buff) -> Option<i32> {
    // Asked first, while no register is taken.
    if !ETHERNET && !matches!(protocol(skb), IPV4 | IPV6) && is_told(skb) != 0 {
        return None;
    }
    let packet = Direct::skb(skb);
    if let Some(h) = parse_common::<_, ETHERNET>(&packet) {
        // What says that it is IPv4, the kernel may hand on as IPv6.
        if !ETHERNET && protocol(skb) == IPV6 {
            return None;
        }
        return tc_of::<PLACE>(skb, &h);
    }
    if !is_six::<_, ETHERNET>(&packet) || !ETHERNET && protocol(skb) == IPV4 {
        return None;
    }
    let action = match PLACE {
        DEVICE_ETH => tc_six_device_eth(skb),
        CORE_ETH => tc_six_core_eth(skb),
        DEVICE_IP => tc_six_device_ip(skb),
        CORE_IP => tc_six_core_ip(skb),
        EGRESS_ETH => tc_six_egress_eth(skb),
        _ => tc_six_egress_ip(skb),
    };
    (action != LONG).then_some(action)
}

#[inline(always)]
fn xdp_of<const DEVICE: bool>(ctx: *mut xdp_md, h: &Headers) -> Option<u32> {
    // SAFETY: the kernel gives a valid context.
    let ifindex = unsafe { (*ctx).ingress_ifindex };
    judge(xdp_place::<DEVICE>(ifindex), h, Xdp { ctx, h })
}

#[inline(always)]
fn tc_of<const PLACE: u8>(skb: *mut __sk_buff, h: &Headers) -> Option<i32> {
    judge(at(PLACE, ifindex(skb)), h, Tc::<PLACE> { skb, h })
}

/// Judges a common packet. While the mode, the shadow policy or a capture wants to know more, every packet goes the long way.
#[inline(always)]
fn judge<A: Act>(place: Place, h: &Headers, act: A) -> Option<A::Done> {
    if probing() || read(&KERNEL.control()?.flags) & !(FLAG_INTERFACE_POOLS | FLAG_DELEGATED) != 0 {
        return None;
    }
    quick(&KERNEL, place, h, act)
}

/// This CPU's counters, if what is said of a packet holds, and there is nothing to tell of it.
#[inline(always)]
fn settled(common: Common, h: &Headers) -> Option<*mut CpuCounts> {
    let own = own()?;
    let goes = common.holds(&Kernel { own: Some(own) })
        && (common.reason.passes() || !report::may_tell() || report::repeats(h, common.reason));
    goes.then_some(own)
}

struct Xdp<'a> {
    ctx: *mut xdp_md,
    h: &'a Headers,
}

impl Act for Xdp<'_> {
    type Done = u32;
    #[inline(always)]
    fn act(self, common: Common) -> Option<u32> {
        let own = settled(common, self.h)?;
        let mut action = xdp_action::XDP_DROP;
        if common.reason.passes() {
            action = xdp_action::XDP_PASS;
            if !leave_word(self.ctx, common.mark()) {
                // Without a word, the companion judges it in full, and counts it.
                return Some(action);
            }
        }
        report::count_common(own, common, self.h.length);
        Some(action)
    }
}

struct Tc<'a, const PLACE: u8> {
    skb: *mut __sk_buff,
    h: &'a Headers,
}

impl<const PLACE: u8> Act for Tc<'_, PLACE> {
    type Done = i32;
    #[inline(always)]
    fn act(self, common: Common) -> Option<i32> {
        let own = settled(common, self.h)?;
        let passes = common.reason.passes();
        // What was granted where it came in is counted.
        if !(is_egress(PLACE) && passes && is_granted(self.skb)) {
            report::count_common(own, common, self.h.length);
        }
        Some(if passes {
            set_mark(self.skb, common.mark())
        } else {
            TC_ACT_SHOT
        })
    }
}

/// In place of an action: none.
const LONG: i32 = i32::MAX;

#[inline(always)]
fn xdp_read<const DEVICE: bool>(ctx: *mut xdp_md) -> i32 {
    let packet = parse_common6::<_, true>(&Direct::xdp(ctx));
    packet
        .and_then(|h| xdp_of::<DEVICE>(ctx, &h))
        .map_or(LONG, |action| action as i32)
}

#[inline(always)]
fn tc_read<const PLACE: u8, const ETHERNET: bool>(skb: *mut __sk_buff) -> i32 {
    let packet = parse_common6::<_, ETHERNET>(&Direct::skb(skb));
    packet.and_then(|h| tc_of::<PLACE>(skb, &h)).unwrap_or(LONG)
}

macro_rules! called {
    ($($name:ident($context:ty) = $read:expr;)*) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(context: *mut $context) -> i32 {
            $read(context)
        }
    )* };
}

called! {
    xdp_six_device(xdp_md) = xdp_read::<true>;
    xdp_six_core(xdp_md) = xdp_read::<false>;
    tc_six_device_eth(__sk_buff) = tc_read::<DEVICE_ETH, true>;
    tc_six_core_eth(__sk_buff) = tc_read::<CORE_ETH, true>;
    tc_six_device_ip(__sk_buff) = tc_read::<DEVICE_IP, false>;
    tc_six_core_ip(__sk_buff) = tc_read::<CORE_IP, false>;
    tc_six_egress_eth(__sk_buff) = tc_read::<EGRESS_ETH, true>;
    tc_six_egress_ip(__sk_buff) = tc_read::<{ crate::place::EGRESS_IP }, false>;
}
