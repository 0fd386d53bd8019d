//! XDP and its TC companion on one interface, attached, with real packets between two namespaces: the mark crosses from one to the other,
//! nothing is counted twice, and a tag that the network card takes off the frame does not slip by.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _, time::Duration};

use aya::programs::{
    Program, XdpMode,
    links::LinkOrder,
    tc::{TcAttachOptions, TcAttachType},
};
use gateway_ebpf::{
    abi::{FLAG_INTERFACE_POOLS, FLAG_OBSERVE, mark, program},
    reason::Reason,
};
use lazaret_tests::{
    netns::{Namespace, veth},
    require::{Need, or_skip},
    wire::push_tag,
};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
};

use crate::{object::Object, table::Table, world::World};

/// A socket that says with which mark a packet came.
struct Receiver(UdpSocket);

impl Receiver {
    fn new(at: &Namespace, port: u16) -> Self {
        let socket = at.run(|| UdpSocket::bind(("::", port))).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let on = 1_i32;
        // SAFETY: the option is an int, and its length is said.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVMARK,
                (&raw const on).cast(),
                size_of::<i32>() as u32,
            )
        };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        Self(socket)
    }

    /// The next packet's mark; `None`: none came in time.
    fn mark(&self) -> Option<u32> {
        let (mut data, mut control) = ([0; 64], cmsg_space!([u32; 4]));
        let mut into = [io::IoSliceMut::new(&mut data)];
        let message = recvmsg::<SockaddrStorage>(self.0.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::empty()).ok()?;
        let mark = message.cmsgs().unwrap().find_map(|c| match c {
            ControlMessageOwned::Unknown(u) if u.cmsg_header.cmsg_type == libc::SO_MARK => {
                Some(u32::from_ne_bytes(u.data_bytes[..4].try_into().unwrap()))
            }
            _ => None,
        });
        Some(mark.unwrap_or(0))
    }
}

#[test]
fn the_mark_crosses_from_xdp_to_tc() {
    if !or_skip("the_mark_crosses_from_xdp_to_tc", &[Need::Root, Need::Bpf]) {
        return;
    }
    let (device, gateway) = (Namespace::new("device").unwrap(), Namespace::new("gateway").unwrap());
    veth((&device, "vpn"), (&gateway, "inside")).unwrap();
    for (at, interface, address) in [
        (&device, "vpn", "10.66.0.5/16"),
        (&device, "vpn", "fd66::5/64"),
        (&gateway, "inside", "10.66.0.1/16"),
        (&gateway, "inside", "fd66::1/64"),
        (&gateway, "lo", "10.77.0.53/32"),
        (&gateway, "lo", "fd77::53/128"),
    ] {
        at.address(interface, address).unwrap();
    }
    device.route("10.77.0.0/24", "10.66.0.1".parse().unwrap()).unwrap();
    device.route("fd77::/64", "fd66::1".parse().unwrap()).unwrap();

    let mut object = Object::load(1 << 18);
    let mut world = World::new(&Table::read().world);
    // The table says nothing of this veth's pools.
    world.control.flags &= !FLAG_INTERFACE_POOLS;
    world.write(&object);
    let rule = |object: &Object| object.counters()[1][Reason::Rule as usize].packets;
    let reason = |object: &Object, reason: Reason| object.counters().iter().map(|p| p[reason as usize].packets).sum::<u64>();
    gateway.run(|| {
        let Program::SchedClassifier(tc) = object.program(program::TC_DEVICE_ETH) else {
            unreachable!()
        };
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        tc.attach_with_options("inside", TcAttachType::Ingress, first).unwrap();
    });
    let sender = device.run(|| UdpSocket::bind("[::]:0")).unwrap();
    let (allowed, denied) = (Receiver::new(&gateway, 53), Receiver::new(&gateway, 54));
    let send = |port: u16| {
        for to in ["::ffff:10.77.0.53", "fd77::53"] {
            sender
                .send_to(b"who", (to.parse::<std::net::Ipv6Addr>().unwrap(), port))
                .unwrap();
        }
    };

    // TC alone judges in full. Address resolution has passed, or nothing would arrive.
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!(rule(&object), 2);
    assert!(reason(&object, Reason::Arp) > 0 && reason(&object, Reason::NeighbourDiscovery) > 0);

    // With XDP, XDP judges and TC takes its word: the same mark, counted once.
    let xdp_link = gateway.run(|| {
        let Program::Xdp(xdp) = object.program(program::XDP_DEVICE) else {
            unreachable!()
        };
        xdp.attach("inside", XdpMode::Driver).unwrap()
    });
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!(rule(&object), 4);
    send(54);
    denied.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(denied.mark(), None);
    assert_eq!(reason(&object, Reason::NoRule), 2);

    // A tag in the buffer's own field: XDP sees an untagged frame and counts a rule; TC sees the tag.
    let pusher = push_tag(&device, "vpn", 7).unwrap();
    send(53);
    allowed.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(allowed.mark(), None);
    assert!(reason(&object, Reason::Vlan) >= 2);
    drop(pusher);

    // Without XDP again, TC judges in full again.
    let Program::Xdp(xdp) = object.program(program::XDP_DEVICE) else {
        unreachable!()
    };
    xdp.detach(xdp_link).unwrap();
    let before = rule(&object);
    allowed.0.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!(rule(&object), before + 2);

    // Metadata by one that does not know the key means nothing: TC judges in full again, and what the other has passed is denied.
    let mut forger = Object::load(1 << 18);
    world.control.meta_key ^= 1;
    world.control.flags |= FLAG_OBSERVE;
    world.write(&forger);
    gateway.run(|| {
        let Program::Xdp(xdp) = forger.program(program::XDP_DEVICE) else {
            unreachable!()
        };
        xdp.attach("inside", XdpMode::Driver).unwrap();
    });
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!((rule(&forger), rule(&object)), (2, before + 4));
    send(54);
    assert_eq!(denied.mark(), None);
    assert_eq!(reason(&object, Reason::NoRule), 4);
}
