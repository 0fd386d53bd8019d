//! Answers to frames with VLAN tags go back in the same VLANs, whether the tags lie in the frame or the card takes them off. The frames are
//! written byte by byte.

use std::{path::Path, time::Duration};

use gateway_ebpf::{
    abi::{Captured, FLAG_CAPTURE, map},
    reason::Reason,
};
use gateway_user::{api::decoded, config::Config};
use lazaret_tests::{
    differential::scenario::scenario,
    process::until,
    require::{Need, or_skip},
    wire::{Frame, Tag, Wire, hardware_address, push_tag},
};

use crate::{
    answers::{answers, opened},
    frames::{ACK, RST, SYN, tcp, udp},
    link::Link,
    world,
};

/// IEEE 802.1Q and 802.1ad.
const Q: u16 = 0x8100;
const AD: u16 = 0x88a8;

/// A device that writes its frames itself.
struct Site {
    link: Link,
    wire: Wire,
    /// The gateway's, the device's.
    addresses: [[u8; 6]; 2],
}

impl Site {
    fn new(xdp: bool) -> Self {
        let link = Link::new(xdp, true);
        let at = |namespace, interface| hardware_address(namespace, interface).unwrap();
        Self {
            wire: Wire::new(&link.device, "vpn").unwrap(),
            addresses: [at(&link.gateway, "inside"), at(&link.device, "vpn")],
            link,
        }
    }

    /// A packet to the gateway with these tags, outermost first.
    fn frame(&self, tags: &[Tag], packet: &[u8]) -> Frame {
        Frame {
            addresses: self.addresses,
            tags: tags.to_vec(),
            ethertype: if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd },
            packet: packet.to_vec(),
        }
    }

    /// Sends a packet, and gives the tags and the IP packet of its answer. `pushed`: a tag that the card adds in front.
    fn ask(&self, tags: &[Tag], pushed: Option<u16>, packet: &[u8]) -> Option<(Vec<Tag>, Vec<u8>)> {
        let _pusher = pushed.map(|tci| push_tag(&self.link.device, "vpn", tci).unwrap());
        let frame = self.frame(tags, packet);
        self.wire.send(&frame).unwrap();
        let [gateway, device] = self.addresses;
        // What the host says of itself is not tagged, and of other addresses.
        let ours = |f: &Frame| f.addresses == [device, gateway] && f.ethertype == frame.ethertype;
        let answer = self.wire.receive(Duration::from_millis(400), ours)?;
        Some((answer.tags, answer.packet))
    }
}

#[test]
fn tagged_frames_are_answered_in_their_vlans() {
    if !or_skip("tagged_frames_are_answered_in_their_vlans", &[Need::Root, Need::Bpf]) {
        return;
    }
    /// Tags in the frame, tag that the card adds, tags of the answer.
    type Case<'a> = (&'a [Tag], Option<u16>, &'a [Tag]);
    let cases: [Case; 9] = [
        (&[], None, &[]),
        (&[(Q, 7)], None, &[(Q, 7)]),
        (&[], Some(7), &[(Q, 7)]),
        (&[(Q, 5 << 13)], None, &[(Q, 5 << 13)]),
        (&[(AD, 100), (Q, 9)], None, &[(AD, 100), (Q, 9)]),
        (&[(Q, 100), (Q, 9)], None, &[(Q, 100), (Q, 9)]),
        (
            &[(AD, 3 << 13 | 100), (AD, 6 << 13 | 9)],
            None,
            &[(AD, 3 << 13 | 100), (AD, 6 << 13 | 9)],
        ),
        // A priority tag in front.
        (&[(Q, 5 << 13), (Q, 7)], None, &[(Q, 5 << 13), (Q, 7)]),
        (&[(Q, 0), (Q, 7)], None, &[(Q, 0), (Q, 7)]),
    ];
    for xdp in [false, true] {
        let site = Site::new(xdp);
        let mut sent = 0;
        for (i, (tags, pushed, expected)) in cases.iter().enumerate() {
            // Sources share no limit.
            let (from4, from6) = (format!("10.66.{i}.5"), format!("fd66:0:0:a{i}::5"));
            for (from, to) in [(from4.clone(), "10.77.0.1"), (format!("[{from6}]"), "[fd77::1]")] {
                let what = format!("{tags:x?}, {pushed:?} from {from}, xdp: {xdp}");
                let (from, to) = (format!("{from}:40000"), format!("{to}:25"));
                let packets = [tcp(&from, &to, SYN, [1_000, 0], b""), udp(&from, &to, &[3; 200])];
                for (packet, protocol) in packets.iter().zip([[6, 6], [1, 58]]) {
                    let answer = site.ask(tags, *pushed, packet);
                    let (back, answer) = answer.unwrap_or_else(|| panic!("no answer to {what}"));
                    assert_eq!(back, *expected, "{what}");
                    let (source, destination, told, transport) = opened(whole(&answer));
                    assert_eq!(told, protocol[usize::from(from.starts_with('['))], "{what}");
                    assert!(
                        to.contains(&source) && from.contains(&destination),
                        "{what}: {source} to {destination}"
                    );
                    match told {
                        6 => assert_eq!(
                            (transport[13], &transport[8..12]),
                            (RST | ACK, &1_001_u32.to_be_bytes()[..]),
                            "{what}"
                        ),
                        _ => assert_eq!(transport[8..], packet[..128], "{what}"),
                    }
                    sent += 1;
                }
            }
        }
        assert_eq!(answers(&site.link.kernel, 1), [sent, 0]);
        assert_eq!(
            site.link.kernel.counted(1, Reason::NoRule).packets,
            sent,
            "once each, xdp: {xdp}"
        );
        assert_eq!(site.link.kernel.counted(0, Reason::Unjudged).packets, 0);

        // In a VLAN that the interface does not have, or behind a third tag; and where the kernel sees no tag (0x9100).
        let denied = udp("10.66.99.5:40000", "10.77.0.1:25", b"who");
        for (tags, pushed) in [
            (&[(Q, 8)][..], None),
            (&[(AD, 9), (Q, 100)], None),
            (&[(Q, 7), (Q, 0), (Q, 0)], None),
            (&[(Q, 9)], Some(7)),
            (&[(0x9100, 7)], None),
            (&[(0x9100, 100), (Q, 9)], None),
            (&[(Q, 100), (0x9100, 9)], None),
        ] {
            assert_eq!(site.ask(tags, pushed, &denied), None, "{tags:x?}, {pushed:?}, xdp: {xdp}");
        }
    }
}

/// A capture shows what was on the wire: the tag that the kernel has taken off is put back as it was.
#[test]
fn tagged_frames_are_captured_as_they_were() {
    if !or_skip("tagged_frames_are_captured_as_they_were", &[Need::Root, Need::Bpf]) {
        return;
    }
    let config = Config::parse(Path::new("any.toml"), &scenario(2, 0).configuration).unwrap();
    let denied = udp("10.66.0.5:40000", "10.77.0.1:25", &[3; 100]);
    for xdp in [false, true] {
        let mut site = Site::new(xdp);
        world::set_flags(&site.link.kernel, FLAG_CAPTURE);
        for tags in [
            &[][..],
            &[(Q, 7)],
            &[(AD, 7)],
            &[(Q, 0)],
            &[(AD, 5 << 13 | 100), (Q, 9)],
            &[(AD, 100), (AD, 9)],
            &[(Q, 100), (AD, 9)],
            &[(AD, 8), (Q, 0), (Q, 0)],
            &[(0x9100, 7)],
        ] {
            let frame = site.frame(tags, &denied);
            site.wire.send(&frame).unwrap();
            let mut captured = Vec::new();
            until(Duration::from_secs(5), "it is captured", || {
                captured.extend(site.link.kernel.take::<Captured>(map::CAPTURES));
                // The host's own, which says of itself that it is there, is without a port.
                captured.retain(|c| c.denial.version == 0 || c.denial.dport == 25);
                Ok(!captured.is_empty())
            })
            .unwrap();
            assert_eq!(decoded(&config, &captured[0]).1, frame.bytes(), "{tags:x?}, xdp: {xdp}");
        }
    }
}

/// Without the padding that brings a frame to its least length.
fn whole(packet: &[u8]) -> &[u8] {
    let length = if packet[0] >> 4 == 4 {
        usize::from(u16::from_be_bytes([packet[2], packet[3]]))
    } else {
        40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]))
    };
    &packet[..length]
}
