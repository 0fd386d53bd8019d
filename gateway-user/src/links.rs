//! The network interfaces that exist: asked for now, or watched. From rtnetlink, of the network namespace of the calling thread. It
//! reports a set and decides nothing.

use std::{
    convert::Infallible,
    io,
    os::fd::AsRawFd,
    sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    thread,
};

use futures_util::{FutureExt as _, Stream, StreamExt as _};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkExtentMask, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached},
};
use rtnetlink::MulticastGroup;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use crate::{
    kernel::Link,
    model::InterfaceName,
    netlink::{self, Kept, Requests},
};

/// An interface with what the kernel says of its XDP program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkNow {
    /// Name, index, and whether there is an Ethernet header.
    pub link: Link,
    /// The XDP program attached now.
    pub xdp: Option<Xdp>,
    /// Index of the interface that it is a part of: a bridge, a bond, a VRF.
    pub master: Option<u32>,
    /// Index of the interface that it lies on: of a VLAN's, a macvlan's, an ipvlan's.
    pub lower: Option<u32>,
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
/// Those of the netlink socket; TimedOut after a few seconds.
pub fn now() -> io::Result<Vec<LinkNow>> {
    netlink::ask(async |requests| read(requests).await)
}

/// The same, by a connection that is kept. Its owner waits for as long as the kernel's lock of the network configuration is held.
///
/// # Errors
/// As [`now`].
pub(crate) fn now_by(kept: &mut Kept) -> io::Result<Vec<LinkNow>> {
    kept.ask(async |requests| read(requests).await)
}

/// The names of the interfaces over one: that it is a part of, or that lie on it. With any, the host routes by those.
#[must_use]
pub fn over<'a>(now: &LinkNow, all: &'a [LinkNow]) -> Vec<&'a str> {
    let over = |other: &&LinkNow| now.master == Some(other.link.ifindex) || other.lower == Some(now.link.ifindex);
    all.iter().filter(over).map(|l| l.link.name.as_str()).collect()
}

/// Watches the interfaces: the set as it is, and again whenever something about a link changes. The future ends with the error that
/// ended the watch; who spawns it ends the process then, since interfaces that appear would stay without program. Dropping it ends the
/// watch.
///
/// # Errors
/// Those of the netlink sockets and of starting a thread; TimedOut after a few seconds.
pub fn watch() -> io::Result<(watch::Receiver<Vec<Link>>, impl Future<Output = io::Error> + Send + 'static)> {
    let (begun, begins) = sync_channel(1);
    let (mut ended, mut end) = oneshot::channel();
    // A thread of its own: its sockets belong to the caller's namespace, and the caller needs no runtime.
    thread::Builder::new().name("links".to_owned()).spawn(move || {
        let Err(e) = netlink::block_on(serve(&begun, &mut ended));
        let _dropped = ended.send(e);
        // Not before: who learns that nothing has begun finds the error.
        drop(begun);
    })?;
    match begins.recv_timeout(netlink::LIMIT) {
        Ok(receiver) => Ok((receiver, async {
            end.await
                .unwrap_or_else(|_| io::Error::other("the thread that watches interfaces has panicked"))
        })),
        Err(RecvTimeoutError::Timeout) => Err(netlink::late()),
        Err(RecvTimeoutError::Disconnected) => Err(end.try_recv().unwrap_or_else(io::Error::other)),
    }
}

/// Watches until an error, or until nobody waits for `ended`.
async fn serve(begun: &SyncSender<watch::Receiver<Vec<Link>>>, ended: &mut oneshot::Sender<io::Error>) -> io::Result<Infallible> {
    // Watch first, then read: nothing is missed in between. On two sockets, since a message caused by another's request bears that one's
    // sequence number and would be taken for an answer to ours.
    let (listening, _, changes) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
    let (requests, reading) = Requests::open()?;
    tokio::select! {
        biased;
        r = follow(begun, changes, requests) => r,
        () = listening => Err(netlink::closed()),
        () = reading => Err(netlink::closed()),
        () = ended.closed() => Err(io::Error::other("nobody watches the interfaces any more")),
    }
}

/// Reads the set, and anew after each change; what changed is not looked at. That messages were lost (ENOBUFS) is a message as well: an
/// `Overrun`.
async fn follow(
    begun: &SyncSender<watch::Receiver<Vec<Link>>>,
    mut changes: impl Stream + Unpin,
    mut requests: Requests,
) -> io::Result<Infallible> {
    let (sender, receiver) = watch::channel(links(read(&mut requests).await?));
    begun.send(receiver).map_err(io::Error::other)?;
    let mut again = false;
    while again || changes.next().await.is_some() {
        while let Some(Some(_)) = changes.next().now_or_never() {}
        again = false;
        match timeout(netlink::LIMIT, read(&mut requests)).await {
            Ok(Ok(all)) => {
                let all = links(all);
                sender.send_if_modified(|held| std::mem::replace(held, all.clone()) != all);
            }
            // The changes that disturb the dump bring messages of their own.
            Ok(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            Ok(Err(e)) => return Err(e),
            // Someone holds the kernel's lock of the network configuration. What is known stays until it is let go.
            Err(_) => {
                tracing::warn!("{}; interfaces are listed again", netlink::late());
                again = true;
            }
        }
    }
    Err(netlink::closed())
}

fn links(all: Vec<LinkNow>) -> Vec<Link> {
    let mut all: Vec<Link> = all.into_iter().map(|l| l.link).collect();
    all.sort();
    all
}

async fn read(requests: &mut Requests) -> io::Result<Vec<LinkNow>> {
    let mut all = LinkMessage::default();
    // IPv6 would count its statistics of each interface on every CPU.
    all.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    let decode = |message| match message {
        RouteNetlinkMessage::NewLink(link) => decode(&link),
        _ => None,
    };
    requests.dump(RouteNetlinkMessage::GetLink(all), decode).await
}

fn decode(message: &LinkMessage) -> Option<LinkNow> {
    let mut name = None;
    let (mut xdp, mut master, mut below, mut stacked, mut elsewhere) = (None, None, None, false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(n) => name = n.parse::<InterfaceName>().ok(),
            LinkAttribute::Xdp(all) => xdp = decode_xdp(all),
            LinkAttribute::Controller(index) => master = Some(*index).filter(|i| *i != 0),
            // Of a veth it is its other end, of a tunnel that it may use.
            LinkAttribute::Link(index) => below = Some(*index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(info) => stacked = info.iter().any(lies_on_another),
            _ => {}
        }
    }
    Some(LinkNow {
        link: Link {
            ifindex: message.header.index,
            name: name?,
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        },
        xdp,
        master,
        lower: below.filter(|_| stacked && !elsewhere),
    })
}

fn lies_on_another(info: &LinkInfo) -> bool {
    use InfoKind::{IpVlan, IpVtap, MacVlan, MacVtap, Vlan};
    matches!(info, LinkInfo::Kind(Vlan | MacVlan | MacVtap | IpVlan | IpVtap))
}

fn decode_xdp(all: &[LinkXdp]) -> Option<Xdp> {
    let (mut attached, mut program, mut driver) = (XdpAttached::None, None, None);
    for one in all {
        match one {
            LinkXdp::Attached(a) => attached = *a,
            LinkXdp::ProgId(id) => program = Some(*id),
            LinkXdp::DrvProgId(id) => driver = Some(*id),
            _ => {}
        }
    }
    Some(Xdp {
        // With programs in several modes there is no one program.
        program: program.or(driver)?,
        native: attached != XdpAttached::SocketBuffer,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, xdp: Vec<LinkXdp>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes = vec![LinkAttribute::Xdp(xdp), LinkAttribute::IfName(name.to_owned())];
        message
    }

    #[test]
    fn a_link_is_its_name_index_layer_and_program() {
        use XdpAttached::{Driver, Hardware, Multiple, None as Nowhere, SocketBuffer};
        let xdp = |attached, more: &[LinkXdp]| {
            let all = [&[LinkXdp::Attached(attached)], more].concat();
            decode(&message("tun0", all)).unwrap().xdp.map(|x| (x.program, x.native))
        };
        assert_eq!(xdp(Nowhere, &[]), None);
        assert_eq!(xdp(Driver, &[LinkXdp::ProgId(5), LinkXdp::DrvProgId(5)]), Some((5, true)));
        assert_eq!(xdp(Hardware, &[LinkXdp::ProgId(5), LinkXdp::HwProgId(5)]), Some((5, true)));
        assert_eq!(
            xdp(SocketBuffer, &[LinkXdp::ProgId(6), LinkXdp::SkbProgId(6)]),
            Some((6, false))
        );
        assert_eq!(
            xdp(Multiple, &[LinkXdp::DrvProgId(5), LinkXdp::SkbProgId(6)]),
            Some((5, true))
        );

        let mut tun = message("tun0", Vec::new());
        tun.header.link_layer_type = LinkLayerType::None;
        let link = decode(&tun).unwrap().link;
        assert_eq!((link.ifindex, link.name.as_str(), link.ethernet), (7, "tun0", false));
        assert!(decode(&message("tun0", Vec::new())).unwrap().link.ethernet);
        assert_eq!(decode(&message("", Vec::new())), None);

        // What lies over it: its master, and a VLAN on it; not the other end of a veth, nor what lies on another namespace's 7.
        let mut port = message("eth1", Vec::new());
        port.attributes.push(LinkAttribute::Controller(9));
        let upper = |name: &str, kind, more: &[LinkAttribute]| {
            let mut upper = message(name, Vec::new());
            upper.header.index = 9;
            upper.attributes.push(LinkAttribute::Link(7));
            upper.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
            upper.attributes.extend_from_slice(more);
            decode(&upper).unwrap()
        };
        let all = [
            upper("br0", InfoKind::Bridge, &[]),
            LinkNow {
                link: Link {
                    ifindex: 10,
                    ..upper("eth1.5", InfoKind::Vlan, &[]).link
                },
                ..upper("eth1.5", InfoKind::Vlan, &[])
            },
            LinkNow {
                master: Some(9),
                ..upper("peer", InfoKind::Veth, &[])
            },
        ];
        let port = decode(&port).unwrap();
        assert_eq!(over(&port, &all[..2]), ["br0", "eth1.5"]);
        assert_eq!(over(&decode(&message("eth1", Vec::new())).unwrap(), &all), ["eth1.5"]);
        let elsewhere = upper("eth1.6", InfoKind::Vlan, &[LinkAttribute::LinkNetNsId(3)]);
        assert_eq!(elsewhere.lower, None);
        assert_eq!(decode(&LinkMessage::default()), None);
    }
}
