//! The decision about packets that have more to them than addresses and ports ([`Rare`]): a VLAN, fragments, ICMP errors. The same steps as in
//! [`crate::decide`], which they share, and the ones between them that only such packets take.

use crate::{
    abi::{Control, Interface, mark},
    decide::{Place, Verdict, because, finish, link_icmp, misplaced, without_addresses},
    fragment::{Answer, Ask, Share, ask},
    headers::{FragmentKind, Headers, Judged, Rare},
    judge::{Ends, both_apart, no_source},
    packet::Packet,
    parse::parse_full,
    reason::Reason,
    tables::{Tables, confirmed, read},
};

/// The decision about any packet. A later fragment's transport is filled into `h`; `rare` says what was judged.
#[inline(always)]
pub fn decide<T: Tables>(t: &T, place: Place, h: &mut Headers, rare: &mut Rare) -> Verdict {
    if !h.rare {
        rare.clear();
    }
    decide_rare(t, place, h, rare)
}

/// Reads a packet and decides, on the host. `outer`: the TCI of a VLAN tag that the driver has taken off.
pub fn decide_packet<T: Tables>(
    t: &T,
    place: Place,
    packet: &(impl Packet + ?Sized),
    outer: Option<u16>,
) -> (Verdict, Headers, Rare) {
    let (mut h, mut rare) = (Headers::default(), Rare::default());
    if place.ethernet {
        parse_full::<_, true>(packet, outer, &mut h, &mut rare);
    } else {
        parse_full::<_, false>(packet, outer, &mut h, &mut rare);
    }
    let verdict = decide(t, place, &mut h, &mut rare);
    (verdict, h, rare)
}

/// The decision about a packet whether [`Headers::rare`] is set or not.
///
/// In the kernel each stage is a called function that hands on by `rare` alone: the verifier then follows each from one state, not from every
/// way that leads there.
#[inline(always)]
pub fn decide_rare<T: Tables>(t: &T, place: Place, h: &mut Headers, rare: &mut Rare) -> Verdict {
    if before_policies(t, place, h, rare) && in_its_datagram(t, place, h, rare) {
        policies(t, h, rare);
        remember(t, place, h, rare);
        finish_rare(t, place, h, rare);
    }
    rare.verdict
}

/// The steps before fragments and policies; `false`: they have decided.
#[inline(never)]
fn before_policies<T: Tables>(t: &T, place: Place, h: &Headers, rare: &mut Rare) -> bool {
    rare.verdict = match early(t, place, h, rare) {
        Err(verdict) => verdict,
        Ok((judged, ends)) => {
            rare.judged = judged;
            rare.ends = ends;
            return true;
        }
    };
    false
}

#[inline(always)]
fn early<T: Tables>(t: &T, place: Place, h: &Headers, rare: &Rare) -> Result<(Judged, Ends), Verdict> {
    let foreign = rare.vlan != 0 && !has_vlan(t, place.ifindex, rare.vlan);
    if h.version == 0 {
        return Err(if foreign && !place.is_core() {
            because(Reason::Vlan, 0)
        } else if foreign {
            because(Reason::NotOurs, 0)
        } else {
            without_addresses(place, h)
        });
    }
    let Some(control) = t.control() else {
        return Err(because(Reason::Internal, 0));
    };
    let Some(ends) = Ends::called(t, control, h) else {
        return Err(because(Reason::Internal, 0));
    };
    let touched = ends.touched();
    let stop = |reason| Err(because(reason, touched));
    if place.is_core() && touched == 0 {
        return stop(Reason::NotOurs);
    }
    if foreign {
        return stop(Reason::Vlan);
    }
    if let Some(problem) = h.problem {
        return stop(problem);
    }
    let kind = rare.fragment.kind;
    // A later fragment has no type to tell it by; and since a first one of these does not pass, none of them does.
    let icmp = kind != FragmentKind::Later && h.is_icmp();
    if icmp && let Some(reason) = link_icmp(place, h) {
        return stop(match reason {
            // Never in fragments (RFC 6980).
            Reason::NeighbourDiscovery if kind != FragmentKind::None => Reason::NeighbourUnsafe,
            other => other,
        });
    }
    if let Some(verdict) = misplaced(t, control, place, &ends, h) {
        return Err(verdict);
    }
    if !icmp || !h.is_icmp_error() {
        return Ok((Judged::Packet, ends));
    }
    match may_quote(t, control, &ends, h, &rare.quote) {
        Ok(quoted) => Ok((Judged::Quote, quoted)),
        Err(reason) => stop(reason),
    }
}

/// A fragment among those of its datagram; `false`: that has decided.
#[inline(always)]
fn in_its_datagram<T: Tables>(t: &T, place: Place, h: &mut Headers, rare: &mut Rare) -> bool {
    let what = match rare.fragment.kind {
        FragmentKind::None => return true,
        FragmentKind::First => Ask::First,
        FragmentKind::Later => Ask::Later,
    };
    let reason = match ask(t, what, Share::of(place, &rare.ends), place, &rare.fragment, h) {
        Answer::Fine => return true,
        Answer::Unknown => Reason::Fragment,
        Answer::Overlap => Reason::FragmentOverlap,
        Answer::Full => Reason::FragmentTableFull,
    };
    rare.judged = Judged::Nothing;
    rare.verdict = because(reason, rare.ends.touched());
    false
}

/// What the policies say, into the verdict, without mark and answer.
#[inline(always)]
fn policies<T: Tables>(t: &T, h: &Headers, rare: &mut Rare) {
    let Rare {
        judged,
        quote,
        verdict,
        second,
        ends,
        ..
    } = rare;
    let error = *judged == Judged::Quote;
    both_apart(t, if error { quote } else { h }, ends, verdict, second);
    if error {
        verdict.reason = match verdict.reason {
            Reason::Blocked | Reason::LeaseEnded | Reason::NewToDevice | Reason::Internal => verdict.reason,
            reason if !reason.passes() => Reason::IcmpError,
            // What no packet may come from, also the error itself may not. No pool holds such an address.
            _ => no_source(h).unwrap_or(Reason::Related),
        };
        if !verdict.reason.passes() {
            verdict.rule = 0;
        }
    }
}

/// Remembers a first fragment that passes.
#[inline(always)]
fn remember<T: Tables>(t: &T, place: Place, h: &mut Headers, rare: &mut Rare) {
    if rare.fragment.kind == FragmentKind::First && rare.verdict.reason.passes() {
        let reason = match ask(t, Ask::Remember, Share::of(place, &rare.ends), place, &rare.fragment, h) {
            Answer::Fine => return,
            Answer::Overlap => Reason::FragmentOverlap,
            Answer::Unknown | Answer::Full => Reason::FragmentTableFull,
        };
        // It is not the policy's denial, so the shadow policy has no other.
        rare.judged = Judged::Nothing;
        rare.verdict = because(reason, rare.verdict.pool);
    }
}

/// Adds mark and answer.
#[inline(never)]
fn finish_rare<T: Tables>(t: &T, place: Place, h: &Headers, rare: &mut Rare) -> bool {
    let Some(policy) = t.control().and_then(|c| t.policy(read(&c.generation) & 1)) else {
        rare.verdict = because(Reason::Internal, 0);
        return false;
    };
    let verdict = finish(policy, place, h, rare.verdict);
    // Fragments are not answered; nor is what an answer could not be sent in front of.
    let answer = verdict.answer && rare.fragment.kind == FragmentKind::None && !rare.stale;
    rare.verdict = Verdict { answer, ..verdict };
    // An error that a device sends takes the way of its own pool, though the verdict is by that of the device which it goes to.
    if rare.judged == Judged::Quote && verdict.reason.passes() && place.is_device_ingress() {
        rare.verdict.mark = mark(rare.second.pool, true);
    }
    true
}

/// The ends of what an ICMP error quotes, if it may quote it.
#[inline(always)]
fn may_quote<T: Tables>(t: &T, control: &Control, ends: &Ends, h: &Headers, quote: &Headers) -> Result<Ends, Reason> {
    if quote.version == 0 {
        return Err(Reason::IcmpError);
    }
    // It comes from the destination of what it quotes, or from a router, which is in no pool, and goes to the source.
    if quote.source != h.destination || ends.from() != 0 && quote.destination != h.source {
        return Err(Reason::IcmpQuote);
    }
    match Ends::called(t, control, quote) {
        None => Err(Reason::Internal),
        Some(quoted) if quoted.touched() == 0 => Err(Reason::IcmpError),
        Some(quoted) => Ok(quoted),
    }
}

/// Only whether a packet is in a VLAN that its interface has not, the third step of the specification; `None`: that is not what is wrong with
/// it. For a packet that has been judged without its outermost tag.
#[inline(always)]
pub fn wrong_vlan<T: Tables>(t: &T, place: Place, h: &Headers, rare: &Rare) -> Option<Verdict> {
    let foreign = h.rare && rare.vlan != 0 && !has_vlan(t, place.ifindex, rare.vlan) || h.problem == Some(Reason::Vlan);
    if !foreign {
        return None;
    }
    if h.version == 0 {
        return (!place.is_core()).then(|| because(Reason::Vlan, 0));
    }
    let ends = t.control().and_then(|control| Ends::called(t, control, h));
    match ends.map(|ends| ends.touched()) {
        None => Some(because(Reason::Internal, 0)),
        Some(0) if place.is_core() => None,
        Some(touched) => Some(because(Reason::Vlan, touched)),
    }
}

/// Whether an interface has a VLAN. A called function in the kernel.
#[inline(never)]
fn has_vlan<T: Tables>(t: &T, ifindex: u32, vlan: u32) -> bool {
    confirmed(|| seems_to_have_vlan(t, ifindex, vlan))
}

#[inline(always)]
fn seems_to_have_vlan<T: Tables>(t: &T, ifindex: u32, vlan: u32) -> bool {
    let Some(Interface { vlans, .. }) = t.interface(ifindex) else {
        return false;
    };
    for known in vlans.iter().map(read) {
        if known == 0 {
            break;
        }
        if known == vlan {
            return true;
        }
    }
    false
}

/// Whether an id is the inner one of a VLAN of two tags that the interface has; then it is asked about again where both tags are seen. A called function in
/// the kernel.
#[inline(never)]
pub fn is_inner_vlan<T: Tables>(t: &T, ifindex: u32, id: u32) -> bool {
    let Some(Interface { vlans, .. }) = t.interface(ifindex) else {
        return false;
    };
    id != 0 && vlans.iter().any(|known| read(known) >> 16 == id)
}

#[cfg(test)]
mod tests;
