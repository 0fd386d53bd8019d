//! The network interfaces that exist: asked for now, or watched. From rtnetlink, of the network namespace of the calling thread. It
//! reports a set and decides nothing.

use std::{io, os::fd::AsRawFd};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
};

use crate::{
    kernel::Link,
    model::InterfaceName,
    netlink::{Connection, attributes, u16_at, u32_at},
};

/// An interface with what the kernel says of its XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkNow {
    /// Name, index, and whether there is an Ethernet header.
    pub link: Link,
    /// The XDP program attached now.
    pub xdp: Option<Xdp>,
}

/// An attached XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Kernel id.
    pub program: u32,
    /// In the driver or on the card; false: generic.
    pub native: bool,
}

/// The interfaces that exist now. One whose name is not an [`InterfaceName`] is left out: it cannot have a role; the floor's patterns
/// hold for it all the same.
///
/// # Errors
/// Those of the netlink socket.
pub fn now() -> io::Result<Vec<LinkNow>> {
    dump(&mut Connection::new()?)
}

/// Watches the interfaces: the set as it is, and again whenever something about a link changes. The future ends with the error that
/// ended the watch; who spawns it ends the process then, since interfaces that appear would stay without program.
///
/// # Errors
/// Those of the netlink sockets.
pub fn watch() -> io::Result<(watch::Receiver<Vec<Link>>, impl Future<Output = io::Error> + Send + 'static)> {
    // Watch first, then read: nothing is missed in between. Both sockets belong to the caller's namespace, whichever thread polls.
    let mut events = Socket::new(NETLINK_ROUTE)?;
    events.bind(&SocketAddr::new(0, 0))?;
    events.add_membership(u32::from(libc::RTNLGRP_LINK as u16))?;
    events.set_non_blocking(true)?;
    let mut reader = Connection::new()?;
    let (sender, receiver) = watch::channel(links(dump(&mut reader)?));
    Ok((receiver, async move {
        // SAFETY: a `Socket` owns its descriptor, which stays open and the same for as long as it lives.
        let events = match unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) } {
            Ok(e) => e,
            Err(e) => return e.into(),
        };
        loop {
            if let Err(e) = changed(&events).await {
                return e;
            }
            match dump(&mut reader) {
                Ok(all) => {
                    let all = links(all);
                    sender.send_if_modified(|held| std::mem::replace(held, all.clone()) != all);
                }
                // The changes that disturb the dump bring messages of their own.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return e,
            }
        }
    }))
}

/// Waits for a message, and takes all that wait: what they say is read from a dump. A lost message (ENOBUFS) is one as well.
async fn changed(events: &AsyncFd<Socket>) -> io::Result<()> {
    let mut any = false;
    loop {
        let mut ready = events.readable().await?;
        let mut taken = Vec::with_capacity(65536);
        let received = ready.try_io(|s| {
            taken.clear();
            s.get_ref().recv(&mut taken, 0)
        });
        match received {
            Ok(Ok(_)) => any = true,
            Ok(Err(e)) if e.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Ok(Err(e)) => return Err(e),
            Err(_would_block) if any => return Ok(()),
            Err(_would_block) => {}
        }
    }
}

fn links(all: Vec<LinkNow>) -> Vec<Link> {
    let mut all: Vec<Link> = all.into_iter().map(|l| l.link).collect();
    all.sort();
    all
}

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
/// `struct ifinfomsg`.
const IFINFOMSG: usize = 16;
const IFLA_IFNAME: u16 = 3;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;
const IFLA_XDP_DRV_PROG_ID: u16 = 5;
/// XDP_ATTACHED_SKB.
const GENERIC: u8 = 2;

fn dump(connection: &mut Connection) -> io::Result<Vec<LinkNow>> {
    let all = connection.dump(RTM_GETLINK, &[0; IFINFOMSG])?;
    Ok(all
        .iter()
        .filter(|m| m.kind == RTM_NEWLINK)
        .filter_map(|m| decode(&m.body))
        .collect())
}

fn decode(body: &[u8]) -> Option<LinkNow> {
    let (layer, ifindex) = (u16_at(body, 2)?, u32_at(body, 4)?);
    let mut name = None;
    let mut xdp = None;
    for (kind, value) in attributes(body, IFINFOMSG) {
        match kind {
            IFLA_IFNAME => name = std::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(value)).ok(),
            IFLA_XDP => xdp = decode_xdp(value),
            _ => {}
        }
    }
    let name: InterfaceName = name?.parse().ok()?;
    Some(LinkNow {
        link: Link {
            ifindex,
            name,
            ethernet: layer == libc::ARPHRD_ETHER,
        },
        xdp,
    })
}

fn decode_xdp(nested: &[u8]) -> Option<Xdp> {
    let (mut attached, mut program, mut driver) = (0, None, None);
    for (kind, value) in attributes(nested, 0) {
        match kind {
            IFLA_XDP_ATTACHED => attached = *value.first()?,
            IFLA_XDP_PROG_ID => program = u32_at(value, 0),
            IFLA_XDP_DRV_PROG_ID => driver = u32_at(value, 0),
            _ => {}
        }
    }
    Some(Xdp {
        program: program.or(driver)?,
        native: attached != GENERIC,
    })
}

/// Asks a driver not to hide VLAN tags from XDP. Not every driver has the choice.
///
/// # Errors
/// Those of the ioctl: EOPNOTSUPP, EPERM, ENODEV.
pub fn receive_vlan_offload_off(name: &InterfaceName) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETHTOOL_SFLAGS: u32 = 0x26;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;

    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let ethtool = |command: u32, data: u32| {
        // `struct ethtool_value` and `struct ifreq`.
        let mut value = [command, data];
        // SAFETY: integers and a union of integers and pointers: all zeros is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // At most 15 bytes, by the type, of 16.
        for (to, from) in request.ifr_name.iter_mut().zip(name.as_str().bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the kernel reads the name and reads and writes the eight bytes of `value`; both live through the call.
        let r = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(value[1])
        }
    };
    let flags = ethtool(ETHTOOL_GFLAGS, 0)?;
    if flags & ETH_FLAG_RXVLAN != 0 {
        ethtool(ETHTOOL_SFLAGS, flags & !ETH_FLAG_RXVLAN)?;
    }
    Ok(())
}
