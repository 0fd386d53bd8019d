//! Where the host would send a packet that comes in at an interface with a mark: asked of the kernel (RTM_GETROUTE), changing nothing.

use std::{io, net::IpAddr};

use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteAttribute, RouteMessage, RouteType},
};

use super::{address, family};
use crate::{
    explain::{Lookup, Way},
    netlink,
};

/// Asks for the way of a packet.
///
/// # Errors
/// The kernel cannot be asked; TimedOut after a few seconds. That it would refuse the packet is an answer.
pub fn lookup(asked: &Lookup) -> io::Result<Way> {
    let message = RouteNetlinkMessage::GetRoute(request(asked));
    match netlink::ask(async move |requests| requests.one(message).await) {
        Ok(RouteNetlinkMessage::NewRoute(route)) => Ok(way(&route)),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel answered with something else",
        )),
        Err(e) => refused(&e).map(|why| Way::Refused(why.to_owned())).ok_or(e),
    }
}

fn request(asked: &Lookup) -> RouteMessage {
    let length = if asked.destination.is_ipv6() { 128 } else { 32 };
    let mut message = RouteMessage::default();
    message.header.address_family = family(asked.destination.is_ipv6());
    message.header.destination_prefix_length = length;
    message.header.source_prefix_length = length;
    message.attributes = vec![
        RouteAttribute::Destination(asked.destination.into()),
        RouteAttribute::Source(asked.source.into()),
        RouteAttribute::Iif(asked.ifindex),
        RouteAttribute::Mark(asked.mark),
    ];
    message
}

fn way(route: &RouteMessage) -> Way {
    if route.header.kind == RouteType::Local {
        return Way::Local;
    }
    let mut found: (u32, Option<IpAddr>) = (0, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.0 = *index,
            RouteAttribute::Gateway(via) => found.1 = address(via),
            _ => {}
        }
    }
    match (route.header.kind, found) {
        (RouteType::Unicast, (ifindex, via)) if ifindex != 0 => Way::Forward { ifindex, via },
        (kind, _) => Way::Refused(format!("the route is of type {kind:?}")),
    }
}

/// What the errors of the kernel's lookup for input mean (`ip_route_input_slow`, `ip6_route_input`); `None`: another failure.
fn refused(e: &io::Error) -> Option<&'static str> {
    match e.raw_os_error()? {
        libc::ENETUNREACH => Some("the host has no route to it"),
        libc::EHOSTUNREACH => Some("an unreachable route, or the interface does not forward"),
        libc::EACCES => Some("a route prohibits it"),
        libc::EXDEV => Some("the reverse path filter: the route back to the source is not through this interface"),
        libc::EINVAL => Some("a blackhole route, or an address that the host does not take from there"),
        _ => None,
    }
}
