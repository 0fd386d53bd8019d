//! Packets, byte by byte: enough to be judged. Checksums are right.

use std::net::{IpAddr, SocketAddr};

/// TCP flags (RFC 9293, 3.1).
pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// A UDP packet.
pub(crate) fn udp(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let (from, to) = (end(from), end(to));
    let mut udp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    udp.extend((8 + payload.len() as u16).to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    seal(&mut udp, 6, from.ip(), to.ip(), 17);
    ip(from.ip(), to.ip(), 17, &udp)
}

/// A TCP segment.
pub(crate) fn tcp(from: &str, to: &str, flags: u8, [sequence, acknowledgement]: [u32; 2], payload: &[u8]) -> Vec<u8> {
    let (from, to) = (end(from), end(to));
    let mut tcp = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgement.to_be_bytes());
    tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend(payload);
    seal(&mut tcp, 16, from.ip(), to.ip(), 6);
    ip(from.ip(), to.ip(), 6, &tcp)
}

/// An ICMP or ICMPv6 message: type and code, and what is behind the checksum.
pub(crate) fn icmp(from: &str, to: &str, [kind, code]: [u8; 2], rest: &[u8]) -> Vec<u8> {
    let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let mut icmp = vec![kind, code, 0, 0];
    icmp.extend(rest);
    let protocol = if from.is_ipv4() { 1 } else { 58 };
    if from.is_ipv4() {
        let sum = fold(add(0, &icmp));
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    } else {
        seal(&mut icmp, 2, from, to, 58);
    }
    ip(from, to, protocol, &icmp)
}

/// An IP packet without options.
pub(crate) fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut ip = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut ip = vec![0x45, 0];
            ip.extend((20 + payload.len() as u16).to_be_bytes());
            ip.extend([0x12, 0x34, 0x40, 0, 64, protocol, 0, 0]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            let sum = fold(add(0, &ip));
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            ip
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut ip = vec![0x60, 0, 0, 0];
            ip.extend((payload.len() as u16).to_be_bytes());
            ip.extend([protocol, 64]);
            ip.extend(from.octets());
            ip.extend(to.octets());
            ip
        }
        _ => panic!("{from} and {to} are of different families"),
    };
    ip.extend(payload);
    ip
}

/// With an Ethernet header, and at least as long as a test run wants it.
pub(crate) fn ethernet(packet: &[u8]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype);
    frame.extend(packet);
    frame.resize(frame.len().max(64), 0);
    frame
}

/// As long as a test run wants it.
pub(crate) fn padded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet.resize(packet.len().max(64), 0);
    packet
}

/// The Internet checksum of a whole that should have it: 0 if it is right.
pub(crate) fn verify(from: IpAddr, to: IpAddr, protocol: u8, transport: &[u8]) -> u16 {
    fold(add(pseudo(from, to, protocol, transport.len()), transport))
}

/// Likewise without a pseudo-header.
pub(crate) fn verify_plain(bytes: &[u8]) -> u16 {
    fold(add(0, bytes))
}

fn end(text: &str) -> SocketAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Writes the checksum at an offset.
fn seal(transport: &mut [u8], at: usize, from: IpAddr, to: IpAddr, protocol: u8) {
    let sum = verify(from, to, protocol, transport);
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u32 {
    let octets = |a: IpAddr| match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    };
    add(u32::from(protocol) + length as u32, &[octets(from), octets(to)].concat())
}

fn add(mut sum: u32, bytes: &[u8]) -> u32 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    sum
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
