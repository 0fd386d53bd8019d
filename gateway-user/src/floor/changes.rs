//! Whether anything of nftables, or of the filters on interfaces, has changed in a network namespace: the kernel tells every listener of
//! each change. What has changed is not looked at.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket},
};

/// NFNLGRP_NFTABLES of linux/netfilter/nfnetlink.h, as a bit of the address.
const NFTABLES: u32 = 1 << (7 - 1);
/// RTNLGRP_TC of linux/rtnetlink.h, likewise.
const FILTERS: u32 = 1 << (4 - 1);

/// A listener. Cheap to ask; it never waits.
pub struct Changes(OwnedFd);

impl Changes {
    /// Listens for changes of nftables, in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of the netlink socket.
    pub fn listen() -> io::Result<Self> {
        Self::to(SockProtocol::NetlinkNetFilter, NFTABLES)
    }

    /// Listens for changes of queueing disciplines and their filters (tc), in the network namespace of this thread.
    ///
    /// # Errors
    /// Those of the netlink socket.
    pub fn listen_for_filters() -> io::Result<Self> {
        Self::to(SockProtocol::NetlinkRoute, FILTERS)
    }

    fn to(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self(fd))
    }

    /// Whether there was a change since the last call. If the socket cannot tell, there was one.
    #[must_use]
    pub fn any(&self) -> bool {
        // What does not fit is cut off: it is not read.
        let (mut head, mut any) = ([0; 64], false);
        // A bound, so that a storm of changes cannot hold the caller; what is left is told at the next call.
        for _ in 0..4096 {
            match recv(self.0.as_raw_fd(), &mut head, MsgFlags::empty()) {
                Ok(_) | Err(Errno::EINTR) => any = true,
                Err(Errno::EAGAIN) => return any,
                // ENOBUFS: messages were lost, of changes.
                Err(_) => return true,
            }
        }
        any
    }
}
