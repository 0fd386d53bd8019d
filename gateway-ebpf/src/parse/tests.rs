//! Fields and their byte order, damage, and the fast form against the full one.

use std::{vec, vec::Vec};

use super::*;
use crate::abi::ColdKey;
use crate::headers::cold_key;

/// Ethernet, IPv4 or IPv6, and a transport of 24 bytes.
fn frame(ethertype: u16, protocol: u8) -> Vec<u8> {
    let mut f = vec![0; 12];
    f.extend(ethertype.to_be_bytes());
    if ethertype == 0x86dd {
        f.extend([0x60, 0, 0, 0, 0, 24, protocol, 64]);
        f.extend([0xfd, 0x66, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5]);
        f.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1]);
    } else {
        f.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 66, 0, 5, 10, 77, 0, 1]);
    }
    // TCP's offset is 6 words and its flags SYN; the same bytes are UDP with a length of 24.
    f.extend([
        0x9c, 0x40, 0x01, 0xbb, 0, 24, 0, 0, 0, 0, 0, 0, 0x60, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    f
}

fn full(frame: &[u8]) -> Headers {
    let (mut h, mut rare) = (Headers::default(), Rare::default());
    parse_full::<_, true>(frame, None, &mut h, &mut rare);
    h
}

fn octets(version: u8, a: crate::headers::Address) -> ColdKey {
    cold_key(version, a)
}

#[test]
fn fields_and_their_byte_order() {
    let h = full(&frame(0x0800, protocol::TCP));
    assert_eq!(octets(4, h.source), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 66, 0, 5]);
    assert_eq!(octets(4, h.destination)[12..], [10, 77, 0, 1]);
    assert_eq!((h.version, h.protocol, h.length, h.problem), (4, 6, 44, None));
    assert_eq!((h.source_port, h.destination_port), (40_000, 443));
    assert!(h.opens_tcp());

    let h = full(&frame(0x86dd, protocol::UDP));
    assert_eq!(octets(6, h.source), [0xfd, 0x66, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5]);
    assert_eq!((h.version, h.protocol, h.length, h.problem), (6, 17, 64, None));
    assert_eq!((h.source_port, h.destination_port, h.tcp_flags), (40_000, 443, 0));
    assert!(!h.opens_tcp());
}

#[test]
fn only_syn_without_ack_opens() {
    for flags in 0..=255 {
        let h = Headers {
            protocol: protocol::TCP,
            tcp_flags: flags,
            ..Headers::default()
        };
        assert_eq!(h.opens_tcp(), flags & 2 != 0 && flags & 16 == 0, "{flags:#x}");
    }
}

#[test]
fn icmp_errors() {
    for kind in 0..=255 {
        let v4 = Headers {
            version: 4,
            protocol: protocol::ICMP,
            icmp_type: kind,
            ..Headers::default()
        };
        assert_eq!(v4.is_icmp_error(), [3, 4, 5, 11, 12].contains(&kind), "{kind}");
        let v6 = Headers {
            version: 6,
            protocol: protocol::ICMPV6,
            icmp_type: kind,
            ..Headers::default()
        };
        assert_eq!(v6.is_icmp_error(), kind < 128, "{kind}");
        let strange = Headers {
            version: 6,
            protocol: protocol::ICMP,
            icmp_type: kind,
            ..Headers::default()
        };
        assert!(!strange.is_icmp());
    }
}

/// Cutting a packet short at any byte never gives headers that were not there.
#[test]
fn cut_anywhere() {
    for ethertype in [0x0800, 0x86dd] {
        let whole = frame(ethertype, protocol::TCP);
        for end in 0..whole.len() {
            let h = full(&whole[..end]);
            assert!(
                matches!(h.problem, Some(Reason::Truncated | Reason::TotalLength)),
                "{end}: {h:?}"
            );
            assert_eq!((h.source_port, h.destination_port), (0, 0));
        }
        assert_eq!(full(&whole).problem, None);
    }
}

/// The common form, of either version.
fn plain<const ETHERNET: bool>(packet: &[u8]) -> Option<Headers> {
    let both = (parse_common::<_, ETHERNET>(packet), parse_common6::<_, ETHERNET>(packet));
    assert!(both.1.is_none() || is_six::<_, ETHERNET>(packet), "{packet:02x?}");
    match both {
        (Some(_), Some(_)) => panic!("both versions: {packet:02x?}"),
        (four, six) => four.or(six),
    }
}

/// What the fast form parses, it parses as the full form does; and what is common, it does parse.
#[test]
fn fast_equals_full_or_says_rare() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below
    };
    let (mut fast, mut common, mut problems) = (0, [0; 2], 0);
    let cases = if cfg!(miri) { 400 } else { 400_000 };
    for case in 0..cases {
        let ethertype = [0x0800, 0x86dd][random(2)];
        let mut f = frame(ethertype, [6, 17, 1, 58, 50][random(5)]);
        f.resize(f.len() + random(20), 0);
        for _ in 0..random(5) {
            let at = random(f.len());
            f[at] = random(256) as u8;
        }
        if random(10) == 0 {
            f.truncate(random(f.len() + 1));
        }
        let mut quick = Headers::default();
        let (parsed, plain, whole) = if case % 2 == 0 {
            (parse_fast::<_, true>(&f[..], &mut quick), plain::<true>(&f), full(&f))
        } else {
            let ip = f.get(14..).unwrap_or_default();
            let mut whole = Headers::default();
            parse_full::<_, false>(ip, None, &mut whole, &mut Rare::default());
            (parse_fast::<_, false>(ip, &mut quick), plain::<false>(ip), whole)
        };
        if let Some(plain) = plain {
            common[usize::from(plain.version == 6)] += 1;
            assert_eq!(plain, whole, "{f:02x?}");
            assert_eq!(parsed, Parsed::Done, "{f:02x?}");
        }
        problems += u32::from(whole.problem.is_some());
        if parsed == Parsed::Done {
            fast += 1;
            assert_eq!(quick, whole, "{f:02x?}");
            assert_eq!(quick.problem, None);
        }
    }
    assert!(fast > cases / 4 && problems > cases / 8, "{fast} fast, {problems} problems");
    assert!(common.iter().all(|c| *c > cases / 40), "{common:?} common");
    for ethertype in [0x0800, 0x86dd] {
        for protocol in [protocol::TCP, protocol::UDP, 50] {
            assert_eq!(
                parse_fast::<_, true>(&frame(ethertype, protocol)[..], &mut Headers::default()),
                Parsed::Done
            );
            let plain = plain::<true>(&frame(ethertype, protocol));
            assert_eq!(plain.is_some(), protocol != 50);
        }
    }
}
