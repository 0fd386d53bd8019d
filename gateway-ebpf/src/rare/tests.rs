//! Packets with more to them than addresses and ports, as bytes, through parser and decision: VLANs, options, chains, fragments, quotes.

use std::{vec, vec::Vec};

use super::*;
use crate::{
    abi::{FRAGMENT_LIFE, POOL_REJECT, mark},
    decide::tests::{ALL, BLOCKED, FROM_CORE, FROM_DEVICE, Memory, RULES, TO_DEVICE, memory},
};

const DEVICE: u8 = RULES;
const SERVER: u8 = 0;

/// Between the addresses of [`crate::decide::tests::address`]; `protocol` and what follows the IP header.
fn ip(version: u8, from: u8, to: u8, protocol: u8, rest: &[u8]) -> Vec<u8> {
    let mut p;
    if version == 4 {
        p = vec![0x45, 0];
        p.extend((20 + rest.len() as u16).to_be_bytes());
        p.extend([0, 9, 0, 0, 64, protocol, 0, 0, 10, 66, 0, from, 10, 66, 0, to]);
    } else {
        p = vec![0x60, 0, 0, 0];
        p.extend((rest.len() as u16).to_be_bytes());
        p.extend([protocol, 64]);
        for end in [from, to] {
            p.extend([0xfd, 0x66, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, end]);
        }
    }
    p.extend(rest);
    p
}

fn udp(ports: [u16; 2], data: usize) -> Vec<u8> {
    let mut u = [
        ports[0].to_be_bytes(),
        ports[1].to_be_bytes(),
        (8 + data as u16).to_be_bytes(),
        [0; 2],
    ]
    .concat();
    u.resize(8 + data, 7);
    u
}

fn tcp(ports: [u16; 2], flags: u8) -> Vec<u8> {
    let mut t = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    t.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
    t
}

/// With an Ethernet header and these tags.
fn frame(tags: &[[u8; 4]], packet: &[u8]) -> Vec<u8> {
    let mut f = vec![2; 12];
    f.extend(tags.concat());
    f.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
    f.extend(packet);
    f
}

fn at(memory: &Memory, place: Place, packet: &[u8], now: u64) -> (Verdict, Rare) {
    memory.with(None, now, |t| {
        let (verdict, _, rare) = decide_packet(t, place, packet, None);
        (verdict, rare)
    })
}

fn name(memory: &Memory, place: Place, packet: &[u8]) -> &'static str {
    at(memory, place, packet, 1_000).0.reason.name()
}

/// [`RULES`] may go anywhere by TCP and UDP to port 443, and by ICMP.
fn world() -> Memory {
    let mut memory = memory();
    memory.policy.udp[443] = 7;
    memory
}

#[test]
fn vlans() {
    let mut memory = world();
    let place = Place {
        ethernet: true,
        ..FROM_DEVICE()
    };
    let core = Place {
        ethernet: true,
        ..FROM_CORE()
    };
    let packet = ip(4, DEVICE, SERVER, 17, &udp([9, 443], 4));
    let tag = |kind: u16, id: u16| [kind.to_be_bytes(), id.to_be_bytes()].concat().try_into().unwrap();
    let (q7, s9, priority) = (tag(0x8100, 7), tag(0x88a8, 0xf009), tag(0x8100, 0xe000));
    let judged = |memory: &Memory, place, tags: &[[u8; 4]]| name(memory, place, &frame(tags, &packet));
    assert_eq!(judged(&memory, place, &[q7]), "vlan");
    assert_eq!(judged(&memory, place, &[priority]), "rule");
    let set = |memory: &mut Memory, vlan| {
        let mut interface = Interface::default();
        interface.vlans[..2].copy_from_slice(&[99, vlan]);
        memory.interfaces = vec![(1, interface)];
    };
    set(&mut memory, 7);
    assert_eq!(judged(&memory, place, &[q7]), "rule");
    assert_eq!(judged(&memory, place, &[priority, q7]), "rule");
    assert_eq!(judged(&memory, place, &[q7, priority]), "rule");
    assert_eq!(judged(&memory, place, &[s9]), "vlan");
    assert_eq!(judged(&memory, place, &[s9, q7]), "vlan");
    set(&mut memory, 9 | 7 << 16);
    assert_eq!(judged(&memory, place, &[s9, q7]), "rule");
    assert_eq!(judged(&memory, place, &[q7, s9]), "vlan");
    assert_eq!(judged(&memory, place, &[s9, q7, q7]), "vlan", "a third tag");
    assert_eq!(
        judged(&memory, core, &[q7]),
        "vlan",
        "from the core too, if it touches a pool"
    );
    assert_eq!(
        name(&memory, core, &frame(&[q7], &ip(4, 0, 99, 17, &udp([1, 2], 0)))),
        "not_ours"
    );
    assert_eq!(
        name(&memory, place, &frame(&[s9, q7], &packet)[..20]),
        "vlan",
        "9 alone is not the interface's"
    );
    assert_eq!(name(&memory, place, &frame(&[s9, q7], &packet)[..17]), "truncated");
    // The tag that the driver took off is the outermost.
    let outer = |tags: &[[u8; 4]], tci| {
        memory.with(None, 0, |t| {
            decide_packet(t, place, &frame(tags, &packet)[..], Some(tci)).0.reason.name()
        })
    };
    assert_eq!(outer(&[q7], 0x2009), "rule");
    assert_eq!(outer(&[], 7), "vlan");
    assert_eq!(outer(&[], 0), "rule");
    assert_eq!(outer(&[q7, q7], 9), "vlan");
    // ARP in a VLAN of the interface.
    let mut arp = vec![2; 12];
    arp.extend(s9);
    arp.extend(q7);
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.resize(arp.len() + 20, 0);
    assert_eq!(name(&memory, place, &arp), "arp");
    memory.interfaces.clear();
    assert_eq!(name(&memory, place, &arp), "vlan");
    assert_eq!(name(&memory, core, &arp), "not_ours");
}

#[test]
fn a_stale_ethernet_header_on_a_device_without() {
    let memory = world();
    for version in [4, 6] {
        let packet = ip(version, DEVICE, SERVER, 17, &udp([9, 443], 4));
        let stale = frame(&[], &packet);
        assert_eq!(name(&memory, FROM_DEVICE(), &packet), "rule");
        assert_eq!(name(&memory, FROM_DEVICE(), &stale), "rule");
        // Anything that does not fit exactly is read from its beginning.
        let mut longer = stale.clone();
        longer.push(0);
        assert_eq!(name(&memory, FROM_DEVICE(), &longer), "version");
        let mut other = stale.clone();
        other[12] ^= 8 ^ 0x86;
        assert_eq!(name(&memory, FROM_DEVICE(), &other), "version");
        // No answer could be sent with it, and none is made of it.
        let mut rejecting = world();
        rejecting.policy.pools[usize::from(RULES)].flags = POOL_REJECT;
        let denied = ip(version, DEVICE, SERVER, 17, &udp([9, 25], 4));
        let answer = |p: &[u8]| {
            let verdict = at(&rejecting, FROM_DEVICE(), p, 1_000).0;
            (verdict.reason.name(), verdict.answer)
        };
        assert_eq!(answer(&denied), ("no_rule", true));
        assert_eq!(answer(&frame(&[], &denied)), ("no_rule", false));
        // A packet that is whole at offset 0 is never read from elsewhere.
        let mut inside = ip(4, BLOCKED, SERVER, 50, &[0; 80]);
        inside[12] = 8;
        assert_ne!(name(&memory, FROM_DEVICE(), &inside), "rule");
    }
}

#[test]
fn options_of_ipv4() {
    let memory = world();
    let with = |options: &[u8]| {
        let mut p = ip(4, DEVICE, SERVER, 17, &[options, &udp([9, 443], 4)].concat());
        p[0] = 0x45 + options.len() as u8 / 4;
        name(&memory, FROM_DEVICE(), &p)
    };
    assert_eq!(with(&[1, 1, 1, 1]), "rule");
    assert_eq!(with(&[1; 40]), "rule");
    assert_eq!(with(&[148, 4, 0, 0]), "rule");
    assert_eq!(with(&[0, 131, 3, 4]), "rule", "behind the end is padding");
    assert_eq!(with(&[7, 7, 4, 0, 0, 0, 0, 0]), "rule");
    assert_eq!(with(&[68, 4, 5, 0, 130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]), "rule");
    assert_eq!(with(&[1, 131, 3, 4]), "source_route");
    assert_eq!(with(&[137, 3, 4, 0]), "source_route");
    assert_eq!(with(&[1, 1, 1, 137]), "source_route", "without a length");
    assert_eq!(with(&[148, 5, 0, 0]), "ip_options", "longer than the header");
    assert_eq!(with(&[148, 1, 0, 0]), "ip_options");
    assert_eq!(with(&[1, 1, 1, 148]), "ip_options", "no room for its length");
    assert_eq!(with(&[82, 4, 0, 0]), "ip_options", "traceroute");
    assert_eq!(with(&[82, 4, 0, 0, 131, 3, 4, 0]), "ip_options", "the first counts");
}

#[test]
fn chains_of_ipv6() {
    let memory = world();
    // Kinds; each header of 8 bytes but for the fragment's, atomic.
    let chain = |kinds: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut rest = Vec::new();
        for next in kinds[1..].iter().chain(&[17]) {
            rest.extend([*next, 0, 0, 0, 0, 0, 0, 0]);
        }
        rest.extend(udp([9, 443], 4));
        change(&mut rest);
        name(&memory, FROM_DEVICE(), &ip(6, DEVICE, SERVER, kinds[0], &rest))
    };
    let same = |_: &mut Vec<u8>| {};
    assert_eq!(chain(&[0], &same), "rule");
    assert_eq!(chain(&[0, 60, 43, 44, 60, 60], &same), "rule");
    assert_eq!(chain(&[0, 60, 43, 44, 60, 60, 60], &same), "extension_depth");
    assert_eq!(chain(&[60, 0], &same), "extension_header");
    assert_eq!(chain(&[44, 44], &same), "fragment_malformed");
    for refused in [135, 139, 140, 253, 254] {
        assert_eq!(chain(&[refused], &same), "extension_header");
        assert_eq!(chain(&[60, refused], &same), "extension_header");
    }
    for judged in [51, 50, 4, 41, 47, 59] {
        assert_eq!(chain(&[60, judged], &same), "no_rule", "protocol {judged}");
    }
    assert_eq!(chain(&[43], &|r| r[3] = 1), "routing_header");
    assert_eq!(chain(&[60], &|r| r[1] = 1), "truncated", "it eats the transport");
    assert_eq!(chain(&[60], &|r| r[1] = 255), "truncated");
    assert_eq!(chain(&[60], &|r| r.truncate(7)), "truncated");
    let long = [&[17, 255][..], &[0; 2046], &udp([9, 443], 4)].concat();
    assert_eq!(
        name(&memory, FROM_DEVICE(), &ip(6, DEVICE, SERVER, 60, &long)),
        "rule",
        "2048 bytes of options"
    );
}

/// A fragment with `data` at `offset`.
fn piece(version: u8, from: u8, to: u8, protocol: u8, offset: u16, more: bool, data: &[u8]) -> Vec<u8> {
    if version == 4 {
        let mut p = ip(4, from, to, protocol, data);
        p[6..8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        return p;
    }
    let field = (offset | u16::from(more)).to_be_bytes();
    let header = [protocol, 0, field[0], field[1], 0, 0, 0, 9];
    ip(6, from, to, 44, &[&header, data].concat())
}

#[test]
fn fragments() {
    for version in [4, 6] {
        let mut memory = world();
        memory.policy.pools[usize::from(RULES)].flags = POOL_REJECT;
        let first = piece(version, DEVICE, SERVER, 17, 0, true, &udp([9, 443], 8));
        let other = piece(version, DEVICE, SERVER, 17, 0, true, &udp([9, 25], 8));
        let later = |offset, more| piece(version, DEVICE, SERVER, 17, offset, more, &[0; 16]);
        let judged = |memory: &Memory, p: &[u8]| name(memory, FROM_DEVICE(), p);
        assert_eq!(judged(&memory, &later(16, false)), "fragment");
        let (denied, _) = at(&memory, FROM_DEVICE(), &other, 1_000);
        assert_eq!(
            (denied.reason.name(), denied.answer),
            ("no_rule", false),
            "fragments are not answered"
        );
        assert_eq!(
            judged(&memory, &later(16, false)),
            "fragment",
            "a denied first is not remembered"
        );
        let (granted, rare) = at(&memory, FROM_DEVICE(), &first, 1_000);
        assert_eq!(
            (granted.reason.name(), granted.mark, rare.judged),
            ("rule", mark(RULES, true), Judged::Packet)
        );
        assert_eq!(judged(&memory, &later(32, true)), "rule");
        assert_eq!(name(&memory, TO_DEVICE(), &later(48, true)), "destination_not_in_pool");
        // Judged anew each time.
        memory.policy.rules[7][0][usize::from(RULES)] = 0;
        assert_eq!(judged(&memory, &later(48, true)), "no_rule");
        memory.policy.rules[7][0][usize::from(RULES)] = 1;
        assert_eq!(judged(&memory, &later(48, true)), "rule", "what was denied comes again");
        assert_eq!(judged(&memory, &first), "rule", "so does the first");
        assert_eq!(judged(&memory, &later(56, true)), "fragment_overlap");
        assert_eq!(judged(&memory, &later(16, true)), "fragment_overlap", "poisoned");
        assert_eq!(judged(&memory, &first), "fragment_overlap");
        let (v, _) = at(&memory, FROM_DEVICE(), &first, 1_000 + FRAGMENT_LIFE);
        assert_eq!(v.reason.name(), "rule");
        for (data, offset, more, expected) in [
            (&[0; 0][..], 16, true, "fragment_malformed"),
            (&[0; 9], 16, true, "fragment_malformed"),
            (&[0; 16], 65_520, false, "fragment_malformed"),
            (&[0; 24], 65_504, true, "fragment"),
        ] {
            let mut other = piece(version, DEVICE, SERVER, 17, offset, more, data);
            // Another datagram.
            let id = if version == 4 { 5 } else { 47 };
            other[id] = 77;
            assert_eq!(judged(&memory, &other), expected, "{} at {offset}", data.len());
        }
        assert_eq!(
            judged(&memory, &piece(version, DEVICE, SERVER, 6, 8, false, &[0; 16])),
            "fragment_tiny"
        );
        assert_eq!(
            judged(&memory, &piece(version, DEVICE, SERVER, 6, 0, true, &tcp([9, 443], 2)[..16])),
            "fragment_tiny"
        );
        let mut long = tcp([9, 443], 2);
        long[12] = 0xf0;
        long.resize(24, 0);
        assert_eq!(
            judged(&memory, &piece(version, DEVICE, SERVER, 6, 0, true, &long)),
            "fragment_tiny",
            "options cut"
        );
        long[12] = 0x40;
        assert_eq!(
            judged(&memory, &piece(version, DEVICE, SERVER, 6, 0, true, &long)),
            "header_length"
        );
        let mut u = udp([9, 443], 8);
        u[5] = 200;
        let mut whole_is_longer = piece(version, DEVICE, SERVER, 17, 0, true, &u);
        whole_is_longer[if version == 4 { 5 } else { 47 }] = 78;
        assert_eq!(judged(&memory, &whole_is_longer), "rule");
        u[5] = 7;
        assert_eq!(
            judged(&memory, &piece(version, DEVICE, SERVER, 17, 0, true, &u)),
            "udp_length"
        );
        let error = [if version == 4 { 3 } else { 1 }, 0, 0, 0, 0, 0, 0, 0];
        let icmp = if version == 4 { 1 } else { 58 };
        assert_eq!(
            judged(&memory, &piece(version, DEVICE, SERVER, icmp, 0, true, &error)),
            "icmp_error"
        );
    }
}

/// What finds no room passes by no policy, so the shadow policy is not asked; what a policy denies, it is asked about.
#[test]
fn without_room_the_shadow_policy_has_no_say() {
    for version in [4, 6] {
        let memory = world();
        for id in 0..17_u8 {
            let mut first = piece(version, DEVICE, SERVER, 17, 0, true, &udp([9, 443], 8));
            first[if version == 4 { 5 } else { 47 }] = id + 100;
            let (verdict, rare) = at(&memory, FROM_DEVICE(), &first, 1_000);
            let expected = match id {
                16 => ("fragment_table_full", RULES, Judged::Nothing),
                _ => ("rule", RULES, Judged::Packet),
            };
            assert_eq!((verdict.reason.name(), verdict.pool, rare.judged), expected, "{id}");
        }
        let denied = piece(version, DEVICE, SERVER, 17, 0, true, &udp([9, 25], 8));
        assert_eq!(at(&memory, FROM_DEVICE(), &denied, 1_000).1.judged, Judged::Packet);
    }
}

/// With extension headers behind the fragment header, the first one's transport counts for the others.
#[test]
fn fragments_with_a_chain() {
    let memory = world();
    let first = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp([9, 443], 8)].concat();
    assert_eq!(
        name(&memory, FROM_DEVICE(), &piece(6, DEVICE, SERVER, 60, 0, true, &first[..8])),
        "fragment_tiny"
    );
    assert_eq!(
        name(
            &memory,
            FROM_DEVICE(),
            &piece(6, DEVICE, SERVER, 60, 0, true, &[17, 1, 0, 0, 0, 0, 0, 0])
        ),
        "fragment_tiny"
    );
    assert_eq!(
        name(&memory, FROM_DEVICE(), &piece(6, DEVICE, SERVER, 60, 0, true, &first)),
        "rule"
    );
    assert_eq!(
        name(&memory, FROM_DEVICE(), &piece(6, DEVICE, SERVER, 60, 24, false, &[0; 5])),
        "rule"
    );
}

/// An ICMP error from `from` to `to` about `quoted`.
fn error(version: u8, from: u8, to: u8, kind: u8, quoted: &[u8]) -> Vec<u8> {
    let icmp = if version == 4 { 1 } else { 58 };
    ip(version, from, to, icmp, &[&[kind, 0, 0, 0, 0, 0, 0, 0], quoted].concat())
}

#[test]
fn icmp_errors_by_what_they_quote() {
    for version in [4, 6] {
        let memory = world();
        let (unreachable, icmp) = if version == 4 { (3, 1) } else { (1, 58) };
        let too_big = if version == 4 { 3 } else { 2 };
        let quote = |from, to, rest: &[u8]| ip(version, from, to, if rest.len() == 20 { 6 } else { 17 }, rest);
        let sent = quote(DEVICE, SERVER, &tcp([9, 443], 2));
        // A router on the way, which is in no pool, and the server itself.
        for router in [99, SERVER] {
            let (v, rare) = at(&memory, FROM_CORE(), &error(version, router, DEVICE, too_big, &sent), 0);
            assert_eq!(
                (v.reason.name(), v.pool, v.mark, rare.judged),
                ("related", RULES, mark(RULES, false), Judged::Quote)
            );
        }
        // About an answer, from the device.
        let answer = quote(SERVER, DEVICE, &tcp([443, 9], 0x12));
        let (v, _) = at(
            &memory,
            FROM_DEVICE(),
            &error(version, DEVICE, SERVER, unreachable, &answer),
            0,
        );
        assert_eq!((v.reason.name(), v.mark), ("related", mark(RULES, true)));
        // Also about a connection's first segment, though the device's side would not be asked.
        let opening = quote(SERVER, DEVICE, &tcp([443, 9], 2));
        assert_eq!(
            name(&memory, FROM_DEVICE(), &error(version, DEVICE, SERVER, unreachable, &opening)),
            "related"
        );
        let denied = quote(DEVICE, SERVER, &tcp([9, 25], 2));
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, DEVICE, unreachable, &denied)),
            "icmp_error"
        );
        let blocked = quote(BLOCKED, SERVER, &tcp([9, 443], 2));
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, BLOCKED, unreachable, &blocked)),
            "blocked"
        );
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, ALL, unreachable, &sent)),
            "icmp_quote",
            "to another"
        );
        let elsewhere = quote(SERVER, 99, &tcp([443, 9], 0x12));
        assert_eq!(
            name(
                &memory,
                FROM_DEVICE(),
                &error(version, DEVICE, SERVER, unreachable, &elsewhere)
            ),
            "icmp_quote"
        );
        // Nobody of ours is in what is quoted, but the error itself goes to a device's address: it cannot be.
        let strangers = quote(98, 99, &tcp([443, 9], 0x12));
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 97, DEVICE, unreachable, &strangers)),
            "icmp_quote"
        );
        // Cut short, by bytes of the quoted packet.
        let header = if version == 4 { 20 } else { 40 };
        for length in 0..header + 8 {
            assert_eq!(
                name(
                    &memory,
                    FROM_CORE(),
                    &error(version, 99, DEVICE, unreachable, &sent[..length])
                ),
                "icmp_quote",
                "{length}"
            );
        }
        assert_eq!(
            name(
                &memory,
                FROM_CORE(),
                &error(version, 99, DEVICE, unreachable, &sent[..header + 8])
            ),
            "related"
        );
        let esp = ip(version, ALL, SERVER, 50, &[]);
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, ALL, unreachable, &esp)),
            "related",
            "no transport to read"
        );
        // Echo quoted, and errors quoted.
        let request = if version == 4 { 8 } else { 128 };
        let echo = ip(version, DEVICE, SERVER, icmp, &[request, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, DEVICE, unreachable, &echo)),
            "related"
        );
        let errors = ip(version, DEVICE, SERVER, icmp, &[unreachable, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, DEVICE, unreachable, &errors)),
            "icmp_quote"
        );
        let other = ip(10 - version, DEVICE, SERVER, 6, &tcp([9, 443], 2));
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, DEVICE, unreachable, &other)),
            "icmp_quote"
        );
        let late = piece(version, DEVICE, SERVER, 17, 16, true, &[0; 16]);
        assert_eq!(
            name(&memory, FROM_CORE(), &error(version, 99, DEVICE, unreachable, &late)),
            "icmp_quote"
        );
    }
    let memory = world();
    let sent = ip(4, DEVICE, SERVER, 6, &tcp([9, 443], 2));
    assert_eq!(name(&memory, FROM_CORE(), &error(4, 99, DEVICE, 5, &sent)), "redirect");
    // An IPv4 header length is honoured.
    let mut options = ip(4, DEVICE, SERVER, 6, &[&[1; 8][..], &tcp([9, 443], 2)].concat());
    options[0] = 0x47;
    assert_eq!(name(&memory, FROM_CORE(), &error(4, 99, DEVICE, 11, &options)), "related");
    let sent = ip(6, DEVICE, SERVER, 6, &tcp([9, 443], 2));
    assert_eq!(name(&memory, FROM_CORE(), &error(6, 99, DEVICE, 100, &sent)), "icmp_error");
    let chain = ip(6, DEVICE, SERVER, 60, &[0; 16]);
    assert_eq!(name(&memory, FROM_CORE(), &error(6, 99, DEVICE, 1, &chain)), "icmp_quote");
}

/// Path MTU discovery of a datagram that its sender has cut.
#[test]
fn a_quoted_first_fragment() {
    let memory = world();
    let asked = udp([9, 443], 40);
    for version in [4, 6] {
        let too_big = if version == 4 { 3 } else { 2 };
        let quoted = |quoted: &[u8]| name(&memory, FROM_CORE(), &error(version, 99, DEVICE, too_big, quoted));
        let first = piece(version, DEVICE, SERVER, 17, 0, true, &asked);
        assert_eq!(quoted(&first), "related", "{version}");
        let header = if version == 4 { 20 } else { 48 };
        for length in 0..header + 8 {
            assert_eq!(quoted(&first[..length]), "icmp_quote", "{version}, {length}");
        }
        assert_eq!(quoted(&first[..header + 8]), "related");
        assert_eq!(quoted(&piece(version, DEVICE, SERVER, 17, 8, true, &asked)), "icmp_quote");
    }
    // Whole, with a fragment header all the same (RFC 6946); and with another header behind it.
    let atomic = piece(6, DEVICE, SERVER, 17, 0, false, &asked);
    assert_eq!(name(&memory, FROM_CORE(), &error(6, 99, DEVICE, 2, &atomic)), "related");
    for next in [0, 43, 44, 60, 135] {
        let behind = piece(
            6,
            DEVICE,
            SERVER,
            next,
            0,
            true,
            &[17, 0, 0, 0, 0, 0, 0, 0, 0, 9, 1, 187, 0, 8, 0, 0],
        );
        assert_eq!(
            name(&memory, FROM_CORE(), &error(6, 99, DEVICE, 2, &behind)),
            "icmp_quote",
            "{next}"
        );
    }
}

/// What a device sends takes the routes of its own pool, also where another's policy lets it pass.
#[test]
fn the_mark_of_an_error_between_devices() {
    let memory = world();
    for version in [4, 6] {
        let unreachable = if version == 4 { 3 } else { 1 };
        // A released device has sent to a quarantined one, which the rules of both allow, and gets an error.
        let sent = ip(version, ALL, DEVICE, 17, &udp([443, 9], 8));
        let (v, _) = at(&memory, FROM_DEVICE(), &error(version, DEVICE, ALL, unreachable, &sent), 0);
        assert_eq!((v.reason.name(), v.pool, v.mark), ("related", ALL, mark(RULES, true)));
    }
}

#[test]
fn neighbour_discovery_on_its_own_link() {
    let memory = world();
    let message = |kind: u8, hops: u8| {
        let mut p = ip(6, DEVICE, SERVER, 58, &[kind, 0, 0, 0, 0, 0, 0, 0]);
        p[7] = hops;
        p
    };
    let ethernet = Place {
        ethernet: true,
        ..FROM_DEVICE()
    };
    assert_eq!(
        name(&memory, ethernet, &frame(&[], &message(135, 255))),
        "neighbour_discovery"
    );
    assert_eq!(name(&memory, ethernet, &frame(&[], &message(136, 254))), "neighbour_unsafe");
    assert_eq!(name(&memory, ethernet, &frame(&[], &message(134, 255))), "neighbour_unsafe");
    assert_eq!(name(&memory, FROM_DEVICE(), &message(135, 255)), "neighbour_unsafe");
    let mut fragmented = piece(6, DEVICE, SERVER, 58, 0, true, &[135, 0, 0, 0, 0, 0, 0, 0]);
    fragmented[7] = 255;
    assert_eq!(
        name(&memory, ethernet, &frame(&[], &fragmented)),
        "neighbour_unsafe",
        "RFC 6980"
    );
}
