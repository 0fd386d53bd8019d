//! Random packets, by their structure: mostly what devices and their peers send, with every way around that the verdict knows of made
//! more frequent than any network would.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    random::Random,
    scenario::{DEVICES4, DEVICES6, PEERS4, PEERS6, STRANGE4, STRANGE6, Step},
};
use crate::reference::Place;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// From where to where, and at which place.
pub(super) type Flow = (Place, IpAddr, IpAddr);

/// Adds a packet, or a datagram in pieces.
pub(super) fn some(r: &mut Random, last: &mut Option<Flow>, steps: &mut Vec<Step>) {
    let (place, source, destination) = match *last {
        // Fragments mean something together.
        Some(flow) if r.once_in(4) => flow,
        _ => {
            let place = place(r);
            let (source, destination) = ends(r, place);
            (place, source, destination)
        }
    };
    *last = Some((place, source, destination));
    let v4 = source.is_ipv4();
    let mut datagram = transport(r, v4, source, destination);
    if r.once_in(8) {
        pieces(r, last, &datagram, steps);
        if r.once_in(3) {
            // Perhaps under the same identification.
            let another = transport(r, v4, source, destination);
            pieces(r, last, &another, steps);
        }
        return;
    }
    let options = if v4 && r.once_in(8) { options(r) } else { Vec::new() };
    let packet = if v4 {
        let flags = r.one_of(&[0, 0x4000, 0x4000, 0x4000, 0x8000]);
        ipv4(r, source, destination, &options, flags, &datagram)
    } else {
        if r.once_in(6) {
            datagram = extended(r, datagram);
        }
        ipv6(r, source, destination, &datagram)
    };
    let step = framed(r, place, packet, v4);
    steps.push(step);
}

/// What is behind an IP header: its protocol or next header, and the bytes.
type Datagram = (u8, Vec<u8>);

fn place(r: &mut Random) -> Place {
    let (device, egress) = r.one_of(&[(true, false), (true, false), (true, true), (false, false)]);
    Place {
        device,
        egress,
        ethernet: r.once_in(2),
        interface: if r.once_in(12) { 2 } else { 1 },
    }
}

fn ends(r: &mut Random, place: Place) -> (IpAddr, IpAddr) {
    let v4 = r.once_in(2);
    let (devices, peers, strange) = if v4 {
        (DEVICES4, PEERS4, STRANGE4)
    } else {
        (DEVICES6, PEERS6, STRANGE6)
    };
    let mut one = |lists: &[&[&str]]| -> IpAddr {
        let list = r.one_of(lists);
        let text = r.one_of(list);
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    };
    let device = one(&[devices, devices, devices, devices, devices, devices, devices, strange, peers]);
    let peer = one(&[peers, peers, peers, peers, peers, devices, strange]);
    let from_device = place.device && !place.egress;
    if from_device { (device, peer) } else { (peer, device) }
}

fn port(r: &mut Random) -> u16 {
    r.one_of(&[443, 443, 53, 53, 8000, 8002, 8003, 40000, 0, 65535, 442, 444])
}

fn transport(r: &mut Random, v4: bool, source: IpAddr, destination: IpAddr) -> Datagram {
    let icmp = if v4 { 1 } else { 58 };
    match r.below(20) {
        0..8 => tcp(r),
        8..13 => udp(r),
        13..15 => {
            let kind = if v4 { r.one_of(&[8, 0]) } else { r.one_of(&[128, 129]) };
            (icmp, vec![kind, 0, 0, 0, 0, 1, 0, 1])
        }
        15..17 => error(r, v4, source, destination),
        17 => {
            let kinds4 = &[5, 9, 10, 13, 3, 11, 42, 17, 18];
            let kinds6 = &[133, 134, 135, 136, 137, 135, 136, 0, 5, 100, 127, 130, 143, 1, 4];
            let kind = if v4 { r.one_of(kinds4) } else { r.one_of(kinds6) };
            let mut bytes = vec![kind, if r.once_in(6) { 1 } else { 0 }, 0, 0];
            bytes.resize(8 + r.below(3) * 8, 0);
            (icmp, bytes)
        }
        _ => {
            let protocol = r.one_of(&[47, 50, 51, 4, 41, 59, 2, 132, 255, if v4 { 58 } else { 1 }]);
            (protocol, (0..r.below(5) * 8).map(|i| i as u8).collect())
        }
    }
}

fn tcp(r: &mut Random) -> Datagram {
    let flags = r.one_of(&[0x02, 0x02, 0x12, 0x10, 0x18, 0x04, 0x00, 0x03, 0xc2, 0x29]);
    let words = if r.once_in(20) {
        r.one_of(&[4, 0, 15, 3])
    } else {
        r.one_of(&[5, 5, 5, 6, 10])
    };
    let mut bytes = [port(r).to_be_bytes(), port(r).to_be_bytes()].concat();
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 2, words << 4, flags, 1, 0, 0, 0, 0, 0]);
    let data = r.one_of(&[0, 0, 4, 8, 40, 44]);
    bytes.resize(bytes.len().max(usize::from(words) * 4) + data, 1);
    (TCP, bytes)
}

fn udp(r: &mut Random) -> Datagram {
    let data = r.one_of(&[0, 4, 16, 24, 48]);
    let length = if r.once_in(10) {
        r.one_of(&[0, 7, 8, 9, 60, 65535])
    } else {
        8 + data as u16
    };
    let mut bytes = [port(r).to_be_bytes(), port(r).to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    bytes.resize(8 + data, 2);
    (UDP, bytes)
}

/// An ICMP error that quotes what the destination may have sent.
fn error(r: &mut Random, v4: bool, source: IpAddr, destination: IpAddr) -> Datagram {
    let kind = if v4 {
        r.one_of(&[3, 3, 4, 11, 12])
    } else {
        r.one_of(&[1, 2, 2, 3, 4])
    };
    let (peers, devices) = if v4 { (PEERS4, DEVICES4) } else { (PEERS6, DEVICES6) };
    let mut other = |address: IpAddr| {
        let list = r.one_of(&[peers, devices]);
        let text = r.one_of(list);
        if r.once_in(4) {
            text.parse().unwrap_or(address)
        } else {
            address
        }
    };
    let (quoted_source, quoted_destination) = (other(destination), other(source));
    let mut quoted = match r.below(8) {
        0..4 => tcp(r),
        4..6 => udp(r),
        6 if r.once_in(6) => (
            if v4 { 1 } else { 58 },
            vec![r.one_of(&[3, 11, 1, 2, 5]), 0, 0, 0, 0, 0, 0, 0],
        ),
        6 => (
            if v4 { 1 } else { 58 },
            vec![
                if v4 { r.one_of(&[8, 0]) } else { r.one_of(&[128, 129]) },
                0,
                0,
                0,
                0,
                1,
                0,
                1,
            ],
        ),
        _ => (r.one_of(&[47, 50, 51, 44, 60, 1, 58]), vec![0; 8]),
    };
    if r.once_in(10) {
        quoted.1.truncate(r.below(9));
    }
    let inner = if v4 {
        let words = if r.once_in(8) { vec![1; 4 * r.below(5)] } else { Vec::new() };
        let flags = if r.once_in(10) {
            r.one_of(&[0x2000, 0x0001, 0x2010, 0x8000])
        } else {
            0x4000
        };
        ipv4(r, quoted_source, quoted_destination, &words, flags, &quoted)
    } else {
        if r.once_in(4) {
            let place = r.one_of(&[[0, 1], [0, 1], [0, 0], [0, 8], [1, 0]]);
            quoted.1.splice(0..0, [quoted.0, 0, place[0], place[1], 0, 0, 0, 9]);
            quoted.0 = 44;
        }
        ipv6(r, quoted_source, quoted_destination, &quoted)
    };
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 5, 0];
    bytes.extend(inner);
    if r.once_in(10) {
        bytes.truncate(r.below(bytes.len() + 1));
    }
    (if v4 { 1 } else { 58 }, bytes)
}

fn options(r: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + r.below(4) {
        match r.below(12) {
            0 => bytes.push(0),
            1..4 => bytes.push(1),
            4..8 => {
                let length = r.one_of(&[3, 4, 7, 8, 2, 11]);
                bytes.extend([r.one_of(&[7, 68, 130, 148]), length]);
                bytes.resize(bytes.len() + usize::from(length) - 2, 4);
            }
            8 => bytes.extend([r.one_of(&[131, 137]), 7, 4, 192, 0, 2, 9]),
            9 => bytes.extend([r.one_of(&[7, 68, 130, 148]), r.one_of(&[0, 1, 41, 255])]),
            10 => bytes.extend([r.byte(), r.below(6) as u8]),
            _ => bytes.push(148),
        }
    }
    bytes.truncate(40);
    bytes.resize(bytes.len().next_multiple_of(4), if r.once_in(2) { 0 } else { 1 });
    bytes
}

/// IPv6 extension headers in front of the transport.
fn extended(r: &mut Random, (protocol, mut bytes): Datagram) -> Datagram {
    let count = if r.once_in(8) { r.below(9) } else { 1 + r.below(3) };
    let (mut next, mut made) = (protocol, Vec::new());
    for n in (0..count).rev() {
        let kinds: &[u8] = if n == 0 { &[0, 0, 60, 43, 44] } else { &[60, 60, 60, 43, 44] };
        let kind = if r.once_in(12) {
            r.one_of(&[0, 135, 139, 140, 253, 254, 51, 59])
        } else {
            r.one_of(kinds)
        };
        let words = match kind {
            44 => 0,
            _ if r.once_in(30) => r.one_of(&[20, 40, 120, 255]),
            _ => r.one_of(&[0, 0, 0, 1, 3]),
        };
        let mut header = vec![next, words, 0, 0, 0, 0, 0, 0];
        header.resize(8 + usize::from(words) * 8, 0);
        match kind {
            43 => header[3] = if r.once_in(3) { 1 } else { 0 },
            44 => header[2..4].copy_from_slice(&r.one_of(&[0_u16, 0, 0, 6, 1, 8]).to_be_bytes()),
            _ => {}
        }
        made.splice(0..0, header);
        next = kind;
    }
    if r.once_in(20) {
        let at = r.below(made.len().max(1));
        if let Some(byte) = made.get_mut(at) {
            *byte = r.byte();
        }
    }
    made.append(&mut bytes);
    (next, made)
}

fn ipv4(r: &mut Random, source: IpAddr, destination: IpAddr, options: &[u8], flags: u16, (protocol, data): &Datagram) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (source, destination) else {
        return Vec::new();
    };
    let words = 5 + options.len() as u8 / 4;
    let words = if r.once_in(60) { r.below(16) as u8 } else { words };
    let mut total = (20 + options.len() + data.len()) as u16;
    if r.once_in(60) {
        total = r.one_of(&[0, 19, 20, total + 1, total - 1, 28]);
    }
    let version = if r.once_in(150) { r.below(16) as u8 } else { 4 };
    let mut bytes = vec![version << 4 | words, 0];
    for field in [total, 0x1234, flags, u16::from_be_bytes([64, *protocol]), 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(Ipv4Addr::octets(&source));
    bytes.extend(Ipv4Addr::octets(&destination));
    bytes.extend(options);
    bytes.extend(data);
    bytes
}

fn ipv6(r: &mut Random, source: IpAddr, destination: IpAddr, (next, data): &Datagram) -> Vec<u8> {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (source, destination) else {
        return Vec::new();
    };
    let mut length = data.len() as u16;
    if r.once_in(60) {
        length = r.one_of(&[0, 7, length + 1, length.saturating_sub(1), 65535]);
    }
    let version = if r.once_in(150) { r.below(16) as u8 } else { 6 };
    let mut bytes = vec![version << 4, 0, 0, 0];
    bytes.extend(length.to_be_bytes());
    bytes.extend([*next, if r.once_in(4) { 64 } else { 255 }]);
    bytes.extend(Ipv6Addr::octets(&source));
    bytes.extend(Ipv6Addr::octets(&destination));
    bytes.extend(data);
    bytes
}

/// A datagram in fragments: whole and in order, or with pieces lost, doubled, moved, overlapping, cut unevenly.
fn pieces(r: &mut Random, last: &mut Option<Flow>, (protocol, data): &Datagram, steps: &mut Vec<Step>) {
    let Some((place, source, destination)) = *last else { return };
    let mut data = data.clone();
    data.resize(data.len().max(48 + r.below(8) * 8) + r.below(5), 3);
    let mut protocol = *protocol;
    if source.is_ipv6() && r.once_in(5) {
        // An extension header behind the fragment header; sometimes one that does not fit.
        data.splice(0..0, [protocol, if r.once_in(3) { 20 } else { 0 }, 1, 4, 0, 0, 0, 0]);
        protocol = 60;
    }
    let id = r.below(3) as u16;
    let (mut cuts, mut at) = (vec![0], 0);
    while at < data.len() && cuts.len() < 5 {
        let least = if at == 0 && !r.once_in(6) { 5 } else { 1 };
        at += 8 * (least + r.below(3));
        cuts.push(at.min(data.len()));
    }
    if let Some(last) = cuts.last_mut() {
        *last = data.len();
    }
    let mut pieces: Vec<(usize, usize)> = cuts
        .windows(2)
        .map(|w| (w[0], w[1]))
        .filter(|(a, b)| a < b || *a == 0)
        .collect();
    for _ in 0..r.below(4).saturating_sub(1) {
        let n = r.below(pieces.len());
        match r.below(7) {
            0 => drop(pieces.remove(n)),
            1 => pieces.push(pieces[n]),
            2 => pieces.swap(n, 0),
            6 => {
                let m = 1 + r.below(pieces.len());
                let (n, m) = (n.max(1).min(pieces.len() - 1), m.min(pieces.len() - 1));
                pieces.swap(n, m);
            }
            3 => pieces[n].0 = pieces[n].0.saturating_sub(8),
            4 => pieces[n].1 = (pieces[n].1 + r.below(9)).min(data.len()),
            _ => pieces.push((8 * r.below(5), data.len().min(48))),
        }
        if pieces.is_empty() {
            return;
        }
    }
    let v4 = source.is_ipv4();
    let damaged = r.once_in(8);
    for (from, to) in pieces {
        // A router may spread them over several links.
        let interface = if r.once_in(12) { 3 - place.interface } else { place.interface };
        let place = Place { interface, ..place };
        let part = data.get(from..to).unwrap_or_default().to_vec();
        let more = if r.once_in(12) { r.once_in(2) } else { to < data.len() };
        let offset = if r.once_in(60) { r.one_of(&[65_528, 65_520, 8]) } else { from };
        let packet = if v4 {
            let flags = (offset as u16 >> 3) | if more { 0x2000 } else { 0 };
            let options = if r.once_in(20) { options(r) } else { Vec::new() };
            let mut bytes = ipv4(r, source, destination, &options, flags, &(protocol, part));
            if let Some(field) = bytes.get_mut(4..6) {
                field.copy_from_slice(&id.to_be_bytes());
            }
            bytes
        } else {
            let word = offset as u16 & !7 | u16::from(more);
            let mut body = vec![protocol, 0];
            body.extend(word.to_be_bytes());
            body.extend([0, 0]);
            body.extend(id.to_be_bytes());
            body.extend(part);
            let mut next = 44;
            if r.once_in(10) {
                body.splice(0..0, [next, 0, 1, 4, 0, 0, 0, 0]);
                next = r.one_of(&[0, 60]);
            }
            ipv6(r, source, destination, &(next, body))
        };
        let mut step = if damaged {
            framed(r, place, packet, v4)
        } else {
            plain(place, packet, v4)
        };
        // A record lives for 15 seconds.
        step.wait = if r.once_in(12) {
            r.one_of(&[1, 14_999_999_999, 15_000_000_000, 31_000_000_000])
        } else {
            0
        };
        steps.push(step);
        if r.once_in(12) {
            some(r, last, steps);
        }
    }
}

/// With an Ethernet header in front where the place has one.
fn plain(place: Place, mut packet: Vec<u8>, v4: bool) -> Step {
    let mut bytes = Vec::new();
    if place.ethernet {
        bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        bytes.extend(if v4 { 0x0800_u16 } else { 0x86dd }.to_be_bytes());
    }
    bytes.append(&mut packet);
    Step {
        place,
        tag: None,
        bytes,
        wait: 0,
    }
}

/// Likewise, and some with tags, with other ethertypes, cut short, padded or damaged.
fn framed(r: &mut Random, place: Place, mut packet: Vec<u8>, v4: bool) -> Step {
    if r.once_in(25) {
        packet.truncate(r.below(packet.len() + 1));
    }
    if r.once_in(6) {
        packet.resize(packet.len() + 1 + r.below(40), 0);
    }
    let mut tag = None;
    let mut bytes = Vec::new();
    if place.ethernet {
        bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        if r.once_in(8) {
            let most = if r.once_in(4) { 3 } else { 2 };
            for _ in 0..1 + r.below(most) {
                bytes.extend(r.one_of(&[0x8100_u16, 0x8100, 0x88a8, 0x9100]).to_be_bytes());
                bytes.extend(tci(r).to_be_bytes());
            }
        }
        if r.once_in(20) {
            tag = Some(tci(r));
        }
        let mut ethertype = if v4 { 0x0800_u16 } else { 0x86dd };
        if r.once_in(60) {
            ethertype = r.one_of(&[0x0026, 0x05ff, 0x0600, 0x888e, 0x8863, 0x86dd, 0x0800, 0x88e5]);
        }
        if r.once_in(40) {
            ethertype = 0x0806;
            packet = vec![0, 1, 8, 0, 6, 4, 0, 1 + r.below(2) as u8];
            packet.extend([2, 0, 0, 0, 0, 2, 10, 66, 0, 5, 0, 0, 0, 0, 0, 0, 10, 66, 0, 1]);
            if r.once_in(3) {
                let at = r.below(8);
                packet[at] = r.below(9) as u8;
            }
            if r.once_in(6) {
                packet.truncate(r.below(28));
            }
        }
        bytes.extend(ethertype.to_be_bytes());
    } else if r.once_in(40) {
        // The stale header of an xfrm interface.
        bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        let ethertype = if v4 { 0x0800_u16 } else { 0x86dd };
        bytes.extend(if r.once_in(8) { 0x0806_u16 } else { ethertype }.to_be_bytes());
    }
    bytes.append(&mut packet);
    if r.once_in(150) {
        bytes.truncate(r.below(bytes.len() + 1));
    }
    if r.once_in(25) {
        for _ in 0..1 + r.below(3) {
            let at = r.below(bytes.len() + 1);
            let bit = 1 << r.below(8);
            let byte = r.byte();
            let whole = r.once_in(2);
            if let Some(b) = bytes.get_mut(at) {
                *b = if whole { byte } else { *b ^ bit };
            }
        }
    }
    Step {
        place,
        tag,
        bytes,
        wait: match r.below(200) {
            0 => 31_000_000_000,
            1..16 => 3_000_000,
            _ => 0,
        },
    }
}

fn tci(r: &mut Random) -> u16 {
    r.one_of(&[7, 7, 9, 0, 0, 4094, 8]) | r.one_of(&[0, 0xe000, 0x1000])
}
