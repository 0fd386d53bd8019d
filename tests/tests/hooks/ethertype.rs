//! Without Ethernet, what the kernel takes a packet for counts as much as what the packet says first.

use std::time::Duration;

use aya::programs::tc::TcAttachType::Ingress;
use gateway_ebpf::{abi::program, reason::Reason};
use lazaret_tests::{
    netns::{Namespace, Tun},
    process::until,
    require::{Need, or_skip},
};

use crate::{
    frames::{icmp, udp},
    kernel::Kernel,
    world,
};

#[test]
fn a_packet_is_what_the_kernel_takes_it_for() {
    if !or_skip(
        "a_packet_is_what_the_kernel_takes_it_for",
        &[Need::Root, Need::Bpf, Need::Tun],
    ) {
        return;
    }
    let [ip, ipv6, mpls] = [0x0800_u16, 0x86dd, 0x8847];
    let gateway = Namespace::new("gateway").unwrap();
    let tun = Tun::with_ethertypes(&gateway, "vpn0").unwrap();
    let mut kernel = Kernel::load();
    world::write(&kernel, 0, false);
    gateway.run(|| kernel.attach_tc(program::TC_DEVICE_IP, "vpn0", Ingress));
    // What the short way takes, and what it does not: pool 2 may do everything.
    let short = [
        udp("10.67.0.5:1000", "192.0.2.1:2000", b"hi"),
        udp("[fd67::5]:1000", "[2001:db8::1]:2000", b"hi"),
    ];
    let long = [
        icmp("10.67.0.5", "192.0.2.1", [8, 0], &[0, 1, 0, 1]),
        icmp("fd67::5", "2001:db8::1", [128, 0], &[0, 1, 0, 1]),
    ];
    let mut counted = [0, 0];
    for [v4, v6] in [short, long] {
        for (packet, ethertype, right) in [
            (&v4, ip, true),
            (&v6, ipv6, true),
            (&v4, ipv6, false),
            (&v6, ip, false),
            (&v4, mpls, false),
            (&v6, mpls, false),
        ] {
            tun.send(&[&[0, 0], &ethertype.to_be_bytes()[..], packet].concat()).unwrap();
            counted[usize::from(!right)] += 1;
            until(Duration::from_secs(5), "it is judged", || {
                let now = [(2, Reason::All), (0, Reason::Ethertype)].map(|(pool, reason)| kernel.counted(pool, reason).packets);
                Ok(now == counted)
            })
            .unwrap();
        }
    }
}
