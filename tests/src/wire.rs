//! Ethernet frames as they are, tags included, sent and received on an interface; and a program that tags what leaves one.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg};

use crate::netns::{self, Namespace};

/// A VLAN tag: its ethertype and its control information (priority and id).
pub type Tag = (u16, u16);

/// A frame taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Receiver and sender.
    pub addresses: [[u8; 6]; 2],
    /// Outermost first.
    pub tags: Vec<Tag>,
    /// Behind the tags.
    pub ethertype: u16,
    /// From the IP header on, with padding.
    pub packet: Vec<u8>,
}

impl Frame {
    /// The bytes, with all tags in them.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let tags = self
            .tags
            .iter()
            .flat_map(|(kind, tci)| [kind.to_be_bytes(), tci.to_be_bytes()]);
        let tags: Vec<u8> = tags.flatten().collect();
        [
            &self.addresses.concat(),
            &tags,
            &self.ethertype.to_be_bytes()[..],
            &self.packet,
        ]
        .concat()
    }

    /// Taken apart; `outer`: a tag that is not among the bytes any more.
    fn parse(bytes: &[u8], outer: Option<Tag>) -> Option<Self> {
        let address = |at: usize| bytes.get(at..at + 6)?.try_into().ok();
        let word = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let (mut tags, mut at): (Vec<Tag>, usize) = (outer.into_iter().collect(), 12);
        while let kind @ (0x8100 | 0x88a8 | 0x9100) = word(at)? {
            tags.push((kind, word(at + 2)?));
            at += 4;
        }
        Some(Self {
            addresses: [address(0)?, address(6)?],
            tags,
            ethertype: word(at)?,
            packet: bytes[at + 2..].to_vec(),
        })
    }
}

/// A packet socket on one interface: what it sends goes out as it is, what is received on the interface is seen before any program of the host's.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// On an interface of a namespace.
    ///
    /// # Errors
    /// No privilege; there is no such interface.
    pub fn new(namespace: &Namespace, interface: &str) -> Result<Self> {
        let ifindex = i32::try_from(namespace.ifindex(interface)?)?;
        let protocol = u16::try_from(libc::ETH_P_ALL)?.to_be();
        namespace.run(|| {
            // SAFETY: socket(2) takes three integers.
            let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
            nix::errno::Errno::result(fd)?;
            // SAFETY: the kernel has just given us this descriptor; nobody else has it.
            let socket = unsafe { OwnedFd::from_raw_fd(fd) };
            // SAFETY: zeros are a link address.
            let mut at: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            (at.sll_family, at.sll_protocol, at.sll_ifindex) = (libc::AF_PACKET as u16, protocol, ifindex);
            let on: libc::c_int = 1;
            // SAFETY: the address and the option live through the calls, and their sizes are said.
            let done = unsafe {
                let size = size_of_val(&at) as libc::socklen_t;
                libc::bind(fd, (&raw const at).cast(), size) == 0
                    && libc::setsockopt(
                        fd,
                        libc::SOL_PACKET,
                        libc::PACKET_AUXDATA,
                        (&raw const on).cast(),
                        size_of_val(&on) as libc::socklen_t,
                    ) == 0
            };
            anyhow::ensure!(done, "a packet socket on {interface}: {}", io::Error::last_os_error());
            Ok(Self(socket))
        })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// The interface is down.
    pub fn send(&self, frame: &Frame) -> Result<()> {
        let bytes = frame.bytes();
        // SAFETY: the bytes live through the call, and their number is said.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        anyhow::ensure!(sent == bytes.len() as isize, "sent {sent}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// The next frame that comes in within `limit` and is `wanted`.
    #[must_use]
    pub fn receive(&self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let end = Instant::now() + limit;
        loop {
            match self.next() {
                Some(Some(frame)) if wanted(&frame) => return Some(frame),
                Some(_) => {}
                None => {
                    let left = end.checked_duration_since(Instant::now())?;
                    netns::readable(&self.0, left).ok()?;
                }
            }
        }
    }

    /// `None`: there is none now; `Some(None)`: it was sent from here, or is no whole frame.
    fn next(&self) -> Option<Option<Frame>> {
        let mut data = [0; 2048];
        let mut control = nix::cmsg_space!(libc::tpacket_auxdata);
        let mut into = [io::IoSliceMut::new(&mut data)];
        let message = recvmsg::<LinkAddr>(self.0.as_raw_fd(), &mut into, Some(&mut control), MsgFlags::MSG_DONTWAIT).ok()?;
        let incoming = message.address.is_some_and(|a| a.pkttype() != libc::PACKET_OUTGOING);
        let outer = message.cmsgs().ok()?.find_map(|c| match c {
            ControlMessageOwned::Unknown(u) if u.cmsg_header.cmsg_type == libc::PACKET_AUXDATA => outer_tag(&u.data_bytes),
            _ => None,
        });
        let length = message.bytes;
        Some(
            data.get(..length)
                .filter(|_| incoming)
                .and_then(|bytes| Frame::parse(bytes, outer)),
        )
    }
}

/// The tag that the kernel has taken off the frame, from `struct tpacket_auxdata` (packet(7)).
fn outer_tag(aux: &[u8]) -> Option<Tag> {
    let word = |at: usize| Some(u16::from_ne_bytes(aux.get(at..at + 2)?.try_into().ok()?));
    let status = u32::from_ne_bytes(aux.get(..4)?.try_into().ok()?);
    let tci = word(std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci))?;
    let kind = word(std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tpid))?;
    (status & libc::TP_STATUS_VLAN_VALID != 0).then_some((kind, tci))
}

/// The hardware address of an interface.
///
/// # Errors
/// It has none.
pub fn hardware_address(namespace: &Namespace, interface: &str) -> Result<[u8; 6]> {
    let shown = namespace.ip(&format!("-o link show {interface}"))?;
    let text = shown.split("link/ether ").nth(1).and_then(|s| s.split(' ').next());
    let bytes = text.into_iter().flat_map(|t| t.split(':')).map(|b| u8::from_str_radix(b, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>()?;
    <[u8; 6]>::try_from(bytes)
        .ok()
        .with_context(|| format!("{interface} has no Ethernet address: {shown}"))
}

/// Tags what leaves through an interface, until dropped.
#[derive(Debug)]
pub struct Pusher(OwnedFd);

impl Drop for Pusher {
    fn drop(&mut self) {
        const BPF_LINK_DETACH: libc::c_long = 34;
        // To close it would not do: a process that another thread is about to start holds a copy until it runs its program.
        let link = self.0.as_raw_fd();
        // SAFETY: the attribute is the open link's descriptor, and outlives the call.
        let _gone_with_its_interface =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, &raw const link, size_of_val(&link)) };
    }
}

/// Tags what leaves through an interface: `bpf_skb_vlan_push(skb, htons(0x8100), tci)`, assembled by hand, for as long as the link lives. A tag
/// that is there already goes into the frame.
///
/// # Errors
/// No privilege.
pub fn push_tag(namespace: &Namespace, interface: &str, tci: u16) -> Result<Pusher> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_PROG_TYPE_SCHED_CLS: u64 = 3;
    const BPF_TCX_EGRESS: u64 = 47;
    // Opcode, registers, offset, immediate: r2 = 0x0081; r3 = tci; call 18; r0 = TCX_NEXT; exit.
    let [low, high] = tci.to_le_bytes();
    let code: [[u8; 8]; 5] = [
        [0xb7, 2, 0, 0, 0x81, 0, 0, 0],
        [0xb7, 3, 0, 0, low, high, 0, 0],
        [0x85, 0, 0, 0, 18, 0, 0, 0],
        [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    let bpf = |command: libc::c_long, attribute: [u64; 16]| {
        // SAFETY: the attribute is longer than the command needs and zero behind; what it points at outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(&attribute)) };
        nix::errno::Errno::result(fd)?;
        // SAFETY: the call succeeded, so this is a new descriptor of ours.
        Ok::<_, anyhow::Error>(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
    };
    let mut load = [0; 16];
    load[0] = BPF_PROG_TYPE_SCHED_CLS | (code.len() as u64) << 32;
    load[1] = code.as_ptr() as u64;
    load[2] = c"GPL".as_ptr() as u64;
    let program = bpf(BPF_PROG_LOAD, load)?;
    let ifindex = namespace.ifindex(interface)?;
    let mut create = [0; 16];
    create[0] = u64::try_from(program.as_raw_fd())? | u64::from(ifindex) << 32;
    create[1] = BPF_TCX_EGRESS;
    Ok(Pusher(namespace.run(|| bpf(BPF_LINK_CREATE, create))?))
}
