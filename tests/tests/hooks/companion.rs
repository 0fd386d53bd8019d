//! XDP and its TC companion on one interface, attached, with real packets between two namespaces: the mark crosses from one to the other,
//! nothing is counted twice, and a tag that the network card takes off the frame does not slip by.

use std::{io, net::UdpSocket, os::fd::AsRawFd as _, time::Duration};

use gateway_ebpf::{
    abi::{Control, FLAG_OBSERVE, map, mark, program},
    reason::Reason,
};
use lazaret_tests::{
    netns::Namespace,
    process::until,
    require::{Need, or_skip},
    wire::push_tag,
};
use nix::{
    cmsg_space,
    sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg},
};

use crate::{
    kernel::{Kernel, META_KEY},
    link::Link,
    world,
};

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
    let Link {
        device,
        gateway,
        mut kernel,
    } = Link::addressed(false, false);
    gateway.address("lo", "10.77.0.53/32").unwrap();
    gateway.address("lo", "fd77::53/128").unwrap();
    let rule = |kernel: &Kernel| kernel.counted(1, Reason::Rule).packets;
    let reason = |kernel: &Kernel, reason: Reason| (0..4).map(|pool| kernel.counted(pool, reason).packets).sum::<u64>();
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
    assert_eq!(rule(&kernel), 2);
    assert!(reason(&kernel, Reason::Arp) > 0 && reason(&kernel, Reason::NeighbourDiscovery) > 0);

    // With XDP, XDP judges and TC takes its word: the same mark, counted once.
    gateway.run(|| kernel.attach_xdp(program::XDP_DEVICE, "inside"));
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!(rule(&kernel), 4);
    send(54);
    denied.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(denied.mark(), None);
    assert_eq!(reason(&kernel, Reason::NoRule), 2);

    // A tag in the buffer's own field: XDP sees an untagged frame and counts a rule; TC sees the tag.
    let pusher = push_tag(&device, "vpn", 8).unwrap();
    send(53);
    allowed.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(allowed.mark(), None);
    assert!(reason(&kernel, Reason::Vlan) >= 2);
    drop(pusher);

    // Without XDP again, TC judges in full again.
    kernel.detach_xdp(program::XDP_DEVICE);
    // A process that another test is about to start holds a copy of the link until it runs its program.
    until(Duration::from_secs(5), "XDP is gone", || {
        Ok(!gateway.ip("link show inside")?.contains("prog/xdp"))
    })
    .unwrap();
    let before = rule(&kernel);
    allowed.0.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!(rule(&kernel), before + 2);

    // Metadata by one that does not know the key means nothing: TC judges in full again, and what the other has passed is denied.
    let mut forger = Kernel::load();
    world::write(&forger, FLAG_OBSERVE, false);
    let control: Control = forger.get(map::CONTROL, 0);
    let meta_key = META_KEY ^ 1;
    forger.set(map::CONTROL, &0_u32, &Control { meta_key, ..control });
    gateway.run(|| forger.attach_xdp(program::XDP_DEVICE, "inside"));
    send(53);
    assert_eq!([allowed.mark(), allowed.mark()], [Some(mark(1, true)); 2]);
    assert_eq!((rule(&forger), rule(&kernel)), (2, before + 4));
    send(54);
    assert_eq!(denied.mark(), None);
    assert_eq!(reason(&kernel, Reason::NoRule), 4);
}
