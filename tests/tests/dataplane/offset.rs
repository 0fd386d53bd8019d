//! Where a packet begins is the kernel's word, not the packet's.

use std::net::IpAddr;

use gateway_ebpf::reason::Reason;
use lazaret_tests::{
    packets::{self, Watcher},
    require,
    site::{DEVICE6, DM6, MAIL},
};

use crate::gateway::{Gateway, unique_port};

/// What an interface without link-layer header may carry behind a stale Ethernet header is a packet that a rule names. What the kernel reads
/// is another, in front of it: IPv4 from 134.221.96.0 (0x86dd, and the first bytes of the IPv6 header) to the mail server, with padding.
fn two_in_one() -> Vec<u8> {
    let mut inner = packets::syn((DEVICE6, unique_port()), (DM6, 80));
    // Its flow label and its payload length are the destination's last bytes.
    assert_eq!(inner[4..6], [0, 20]);
    inner[2..4].copy_from_slice(&[10, 9]);
    let mut packet = vec![0x45, 0, 0, 60, 0, 9, 0, 0, 64, 47, 0, 0, 0x86, 0xdd];
    packet.extend(inner);
    let sum = packets::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_packet_in_the_padding_of_another_is_not_what_is_judged() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, tun) = Gateway::tun(|c| c);
    g.open();
    for interface in ["all", "vpn0"] {
        g.site
            .gw
            .sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0")
            .unwrap();
    }
    let outside = IpAddr::from([134, 221, 96, 0]);
    let watcher = Watcher::new(&g.site.core, move |p| (p.from, p.to) == (outside, MAIL) && !p.outgoing).unwrap();
    let before = g.counted(0, Reason::NotInPool);
    tun.send(&two_in_one()).unwrap();
    assert_eq!(watcher.seen(), []);
    assert_eq!(g.counted(0, Reason::NotInPool), before + 1);
}
