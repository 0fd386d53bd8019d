//! Packets of every shape that Linux gives them: jumbo frames, super-packets of TCP and UDP, headers outside the linear part. None that is
//! allowed is lost or changed, and none that is denied passes.

use std::{io, net::IpAddr, os::fd::AsRawFd as _, sync::atomic::AtomicBool, thread, time::Duration};

use gateway_ebpf::reason::Reason;
use lazaret_tests::{
    bulk::{self, Way},
    flows,
    gateway::Gateway,
    netns::{Namespace, Tun},
    packets::{self, Watcher},
    pins, require,
    site::{self, Site},
};

use crate::stage::Stage;

const LIMIT: Duration = Duration::from_secs(20);

/// Large frames on every link of a site.
fn jumbo(site: &Site) {
    for (namespace, interface) in [
        (&site.device, "eth0"),
        (&site.gw, "dev0"),
        (&site.gw, "core0"),
        (&site.core, "eth0"),
    ] {
        namespace.ip(&format!("link set {interface} mtu 9000")).unwrap();
    }
}

/// Quarantine may use port 53 of the DM server over UDP, too.
fn with_udp(gateway: &Gateway) {
    let rule = format!(
        "ports = [\"53\"]\n\n[[policy.rule]]\nto = [\"{}\", \"{}\"]\nprotocol = \"udp\"\nports = [\"53\"]",
        site::DM,
        site::DM6
    );
    gateway.configure("ports = [\"53\"]", &rule).unwrap();
}

/// TC alone on an interface: there super-packets pass whole.
fn without_xdp(gateway: &Gateway, interface: &str, role: &str) {
    let lines = format!("name = \"{interface}\"\nrole = \"{role}\"");
    gateway.configure(&lines, &format!("{lines}\nxdp = \"off\"")).unwrap();
}

/// Nothing was dropped for how it is built.
fn no_shape_was_refused(gateway: &Gateway) {
    use Reason::{HeaderLength, Internal, TotalLength, Truncated, UdpLength, Version};
    for reason in [Truncated, TotalLength, HeaderLength, UdpLength, Version, Internal] {
        for pool in 0..3 {
            let n = pins::counted(gateway, pool, reason).unwrap();
            assert_eq!(n, 0, "{} in pool {pool}", reason.name());
        }
    }
}

/// The longest packet that the core and the device receive while `f` runs.
fn longest(stage: &Stage, f: impl FnOnce()) -> [usize; 2] {
    let own = stage.addresses;
    let up = Watcher::new(&stage.site.core, move |p| !p.outgoing && own.contains(&p.from)).unwrap();
    let down = Watcher::new(&stage.site.device, move |p| !p.outgoing && own.contains(&p.to)).unwrap();
    f();
    [up, down].map(|w| w.seen().iter().map(|p| p.length).max().unwrap_or(0))
}

/// Transfers by TCP every way, and datagrams, to what quarantine allows; and the same to what it does not.
fn transfers(stage: &Stage, mib: u64, datagram: usize, segment: bool) {
    for (to, denied) in [(site::DM, site::MAIL), (site::DM6, site::MAIL6)] {
        let near = (&stage.site.device, stage.addresses[usize::from(to.is_ipv6())]);
        for way in Way::ALL {
            let took = bulk::tcp(near, (&stage.site.core, to), 80, way, mib << 20, LIMIT).unwrap();
            eprintln!("{way:?} {to}: {mib} MiB in {took:?}");
        }
        let count = 1000;
        let arrived = bulk::udp(near, (&stage.site.core, to), 53, datagram, count, segment).unwrap();
        assert_eq!(arrived, [count; 2], "{to}: datagrams of {datagram}");
        let token = Watcher::new(&stage.site.core, move |p| !p.outgoing && p.to == denied).unwrap();
        let arrived = bulk::udp(near, (&stage.site.core, denied), 53, datagram, 100, segment).unwrap();
        assert_eq!((arrived, token.seen()), ([0; 2], vec![]), "{denied}");
    }
    no_shape_was_refused(&stage.gateway);
}

#[test]
fn jumbo_frames_under_native_xdp() {
    require!(Root, Bpf);
    let stage = Stage::ethernet(|gateway| {
        jumbo(&gateway.site);
        with_udp(gateway);
    });
    for interface in stage.local.status().unwrap().interfaces {
        assert!(
            interface.hooks.iter().any(|h| h.hook == "xdp" && h.mode == "native"),
            "{interface:?}"
        );
    }
    let longest = longest(&stage, || transfers(&stage, 24, 8900, false));
    assert!(
        longest[0] > 8900 && longest[1] > 8900,
        "jumbo frames were among them: {longest:?}"
    );
    frames_with_headers_in_fragments(&stage);
}

#[test]
fn super_packets_at_tc() {
    require!(Root, Bpf);
    let stage = Stage::ethernet(|gateway| {
        with_udp(gateway);
        without_xdp(gateway, "dev0", "device");
        without_xdp(gateway, "core0", "core");
    });
    let longest = longest(&stage, || transfers(&stage, 64, 1200, true));
    assert!(
        longest[0] > 20_000 && longest[1] > 20_000,
        "super-packets were among them: {longest:?}"
    );
}

#[test]
fn jumbo_frames_at_tc() {
    require!(Root, Bpf);
    let stage = Stage::ethernet(|gateway| {
        jumbo(&gateway.site);
        with_udp(gateway);
        without_xdp(gateway, "dev0", "device");
        without_xdp(gateway, "core0", "core");
    });
    frames_with_headers_in_fragments(&stage);
}

/// A virtio_net_hdr, which says how a packet is built.
fn header(flags: u8, gso: u8, linear: u16, size: u16, checksum: (u16, u16)) -> Vec<u8> {
    let words = [linear, size, checksum.0, checksum.1];
    [vec![flags, gso], words.iter().flat_map(|w| w.to_ne_bytes()).collect()].concat()
}

/// Frames of which the kernel keeps the Ethernet header alone in the linear part: everything behind it is in page fragments.
fn frames_with_headers_in_fragments(stage: &Stage) {
    let count = 50;
    let addresses = stage.site.device.ip("-json link show dev eth0").unwrap();
    let own = mac(&addresses);
    let gateway = mac(&stage.site.gw.ip("-json link show dev dev0").unwrap());
    for (to, passes) in [(site::DM, true), (site::DM6, true), (site::MAIL, false), (site::MAIL6, false)] {
        let socket = stage.site.core.run(|| bulk::large_socket((to, 53).into())).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let from = stage.addresses[usize::from(to.is_ipv6())];
        let ethertype: [u8; 2] = if to.is_ipv4() { [0x08, 0] } else { [0x86, 0xdd] };
        let stop = AtomicBool::new(false);
        let arrived = thread::scope(|s| {
            let receiver = s.spawn(|| bulk::receive(&socket, 8000, count, &stop));
            let frames: Vec<_> = (0..count)
                .map(|n| {
                    let packet = packets::udp((from, 4000), (to, 53), &bulk::datagram(n, 8000));
                    [&header(0, 0, 14, 0, (0, 0))[..], &gateway, &own, &ethertype, &packet].concat()
                })
                .collect();
            inject(&stage.site.device, &frames).unwrap();
            thread::sleep(Duration::from_millis(200));
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            receiver.join().unwrap()
        });
        assert_eq!(arrived, if passes { count } else { 0 }, "{to}");
    }
    no_shape_was_refused(&stage.gateway);
}

/// The hardware address in the output of `ip -json link show`.
fn mac(json: &str) -> [u8; 6] {
    let links: serde_json::Value = serde_json::from_str(json).unwrap();
    let text = links[0]["address"].as_str().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// Sends frames, each behind its virtio_net_hdr, from eth0.
fn inject(namespace: &Namespace, frames: &[Vec<u8>]) -> io::Result<()> {
    namespace.run(|| {
        let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, None)?;
        let one: libc::c_int = 1;
        // SAFETY: the descriptor is open and the option's value is an int that lives through the call.
        let done = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_VNET_HDR,
                (&raw const one).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        nix::errno::Errno::result(done)?;
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: nix::net::if_::if_nametoindex("eth0")? as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [0; 8],
        };
        for frame in frames {
            // SAFETY: the frame and the address live through the call, and the lengths are theirs.
            let sent = unsafe {
                libc::sendto(
                    socket.as_raw_fd(),
                    frame.as_ptr().cast(),
                    frame.len(),
                    0,
                    (&raw const to).cast(),
                    size_of_val(&to) as libc::socklen_t,
                )
            };
            nix::errno::Errno::result(sent)?;
        }
        Ok(())
    })
}

#[test]
fn super_packets_and_empty_linear_parts_on_a_tun() {
    require!(Root, Bpf, Tun);
    let site = Site::new().unwrap();
    jumbo(&site);
    let mut gateway = Gateway::new(&site, "tun0").unwrap();
    with_udp(&gateway);
    without_xdp(&gateway, "core0", "core");
    let tun = Tun::with_offloads(&site.gw, "tun0").unwrap();
    site.gw.ip("link set tun0 mtu 9000").unwrap();
    for pool in ["10.66.0.0/24", "fd00:66::/64"] {
        site.gw.ip(&format!("route add {pool} dev tun0")).unwrap();
    }
    gateway.start().unwrap();
    for interface in ["tun0", "core0"] {
        gateway.attached(interface).unwrap();
    }
    let count = 200;
    for (to, passes) in [(site::DM, true), (site::DM6, true), (site::MAIL, false), (site::MAIL6, false)] {
        let from: IpAddr = if to.is_ipv4() { site::DEVICE } else { site::DEVICE6 };
        let expected = if passes { count } else { 0 };
        // One byte of the packet in the linear part: all headers are in page fragments.
        let socket = site.core.run(|| bulk::large_socket((to, 53).into())).unwrap();
        let small = |n| {
            [
                header(0, 0, 1, 0, (0, 0)),
                packets::udp((from, 4000), (to, 53), &bulk::datagram(n, 8000)),
            ]
            .concat()
        };
        let arrived = arrive(&tun, &socket, 8000, count, (0..count).map(small));
        assert_eq!(arrived, expected, "{to}: with nothing linear");

        // Super-packets of 20 datagrams each, checksums left to the device.
        let begin: u16 = if to.is_ipv4() { 20 } else { 40 };
        let great = |first: u32| {
            let payload: Vec<u8> = (first..first + 20).flat_map(|n| bulk::datagram(n, 1000)).collect();
            let mut packet = packets::udp((from, 4000), (to, 53), &payload);
            let at = usize::from(begin) + 6;
            let partial = packets::pseudo_checksum(from, to, 17, payload.len() + 8);
            packet[at..at + 2].copy_from_slice(&partial.to_be_bytes());
            // VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP_L4.
            [header(1, 5, begin + 8, 1000, (begin, 6)), packet].concat()
        };
        let arrived = arrive(&tun, &socket, 1000, count, (0..count).step_by(20).map(great));
        assert_eq!(arrived, expected, "{to}: super-packets");
        drop(socket);

        // And to the device, which takes them whole.
        let sender = site.core.run(|| bulk::large_socket((to, 53).into())).unwrap();
        nix::sys::socket::setsockopt(&sender, nix::sys::socket::sockopt::UdpGsoSegment, &1000).unwrap();
        sender.connect((from, 4000)).unwrap();
        let token = flows::token();
        let payload: Vec<u8> = (0..20).flat_map(|_| [&token[..], &[b'.'; 984]].concat()).collect();
        sender.send(&payload).unwrap();
        let (mut bytes, mut longest) = (0, 0);
        while let Some(packet) = tun.receive(Duration::from_millis(150)).unwrap() {
            if flows::holds(&packet, &token) {
                longest = longest.max(packet.len());
                bytes += packet.len() - 10 - usize::from(begin) - 8;
            }
        }
        assert_eq!(bytes, if passes { 20_000 } else { 0 }, "{to}: to the device");
        assert!(!passes || longest > 20_000, "in one piece: {longest}");
    }
    no_shape_was_refused(&gateway);
}

/// How many of some packets arrive at a socket.
fn arrive(tun: &Tun, socket: &std::net::UdpSocket, size: usize, count: u32, sent: impl Iterator<Item = Vec<u8>>) -> u32 {
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|s| {
        let receiver = s.spawn(|| bulk::receive(socket, size, count, &stop));
        sent.for_each(|packet| tun.send(&packet).unwrap());
        thread::sleep(Duration::from_millis(200));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        receiver.join().unwrap()
    })
}
