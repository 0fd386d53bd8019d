//! What may stand between the IP header and the transport: IPv4 options and IPv6 extension headers. The full form only.

use super::{FragmentKind, Headers, Packet, Rare, Reason, fragment_of, load_within};
use crate::{
    headers::{
        Fragment,
        protocol::{DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, ROUTING},
    },
    wire::{Extension, Ipv6Fragment},
};

/// IPv6 extension headers that are looked through.
pub(super) const MAX_EXTENSIONS: u32 = 6;

/// What is wrong with the options of an IPv4 header of `header` bytes at `at` (RFC 791; numbers of IANA's list of IP options).
#[inline(always)]
pub(super) fn options<P: Packet + ?Sized>(p: &P, at: usize, header: usize) -> Option<Reason> {
    match p.options(at, header) {
        0 => None,
        CUT_SHORT => Some(Reason::Truncated),
        SOURCE_ROUTE => Some(Reason::SourceRoute),
        _ => Some(Reason::IpOptions),
    }
}

const CUT_SHORT: u64 = 1;
const SOURCE_ROUTE: u64 = 2;
const WRONG: u64 = 3;

/// Likewise, in a number that a function of the kernel's programs can give; 0: nothing.
#[inline(always)]
pub fn walk_options<P: Packet + ?Sized>(p: &P, at: usize, header: usize) -> u64 {
    let mut next = 20;
    for _ in 0..40 {
        if next >= header {
            break;
        }
        let Some(kind) = p.load::<u8>(at + next) else {
            return CUT_SHORT;
        };
        match kind {
            0 => break,
            1 => next += 1,
            // Loose and strict source route, whatever their length.
            131 | 137 => return SOURCE_ROUTE,
            // Record route, timestamp, security, router alert.
            7 | 68 | 130 | 148 if next + 1 < header => {
                let length = p.load::<u8>(at + next + 1).unwrap_or(0) as usize;
                if length < 2 || next + length > header {
                    return WRONG;
                }
                next += length;
            }
            _ => return WRONG,
        }
    }
    0
}

/// A header that is not a transport's: it leads to one, or is refused.
#[inline(always)]
pub(super) const fn is_extension(next: u8) -> bool {
    matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS) || is_refused(next)
}

/// Mobility, HIP, shim6, and two for experiments (IANA's list of extension headers).
#[inline(always)]
const fn is_refused(next: u8) -> bool {
    matches!(next, 135 | 139 | 140 | 253 | 254)
}

/// Walks the chain from `at`, with `left` bytes there, to the transport, and leaves its number in `h`. A later fragment's chain ends at its
/// fragment header.
#[inline(always)]
pub(super) fn extensions<P: Packet + ?Sized>(
    p: &P,
    at: &mut usize,
    left: &mut usize,
    h: &mut Headers,
    rare: &mut Rare,
) -> Option<Reason> {
    let mut short = Reason::Truncated;
    let mut fragment = false;
    for i in 0..=MAX_EXTENSIONS {
        let kind = h.protocol;
        if !is_extension(kind) {
            return None;
        }
        if is_refused(kind) || kind == HOP_BY_HOP && i != 0 {
            return Some(Reason::ExtensionHeader);
        }
        if kind == FRAGMENT && fragment {
            return Some(Reason::FragmentMalformed);
        }
        if i == MAX_EXTENSIONS {
            return Some(Reason::ExtensionDepth);
        }
        let Some(header) = load_within::<P, Extension>(p, *at, *left) else {
            return Some(short);
        };
        let mut length = size_of::<Extension>();
        if kind == FRAGMENT {
            fragment = true;
            let Some(f) = p.load::<Ipv6Fragment>(*at) else {
                return Some(short);
            };
            h.protocol = f.next;
            let field = u16::from_be(f.offset);
            // With neither, it is a whole packet (RFC 6946).
            if field & !6 != 0 {
                let place = Fragment {
                    id: f.id,
                    offset: field & !7,
                    length: (*left - length) as u16,
                    more: field & 1 != 0,
                    kind: FragmentKind::Later,
                };
                let wrong = fragment_of(place, h, rare);
                if wrong.is_some() || rare.fragment.kind == FragmentKind::Later {
                    return wrong;
                }
                short = Reason::FragmentTiny;
            }
        } else {
            if kind == ROUTING && header.segments_left != 0 {
                return Some(Reason::RoutingHeader);
            }
            length += header.length as usize * 8;
            if length > *left {
                return Some(short);
            }
            h.protocol = header.next;
        }
        *at += length;
        *left -= length;
    }
    None
}
