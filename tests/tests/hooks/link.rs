//! A device and a gateway with a wire between them, and our programs on the gateway's end of it: what tests of attached programs set up alike.

use std::{net::UdpSocket, time::Duration};

use aya::programs::tc::TcAttachType::{Egress, Ingress};
use gateway_ebpf::abi::{Interface, map, program};
use lazaret_tests::{
    netns::{Namespace, veth},
    process::until,
};

use crate::{kernel::Kernel, world};

/// `vpn` of the device is joined to `inside` of the gateway, which has VLAN 7, 9 in 100, and 5 in 7. TC judges there, both ways, with the guard behind.
pub(crate) struct Link {
    pub(crate) device: Namespace,
    pub(crate) gateway: Namespace,
    pub(crate) kernel: Kernel,
}

impl Link {
    /// `xdp`: native XDP judges first; `reject`: denials are answered. Nobody has an address.
    pub(crate) fn new(xdp: bool, reject: bool) -> Self {
        Self::between(wire(), xdp, reject)
    }

    /// Likewise; the device has addresses of pool 1, and a route to DM by the gateway, which has addresses too.
    pub(crate) fn addressed(xdp: bool, reject: bool) -> Self {
        let (device, gateway) = wire();
        for (at, interface, [v4, v6]) in [
            (&device, "vpn", ["10.66.0.5/16", "fd66::5/64"]),
            (&gateway, "inside", ["10.66.0.1/16", "fd66::1/64"]),
        ] {
            at.address(interface, v4).unwrap();
            at.address(interface, v6).unwrap();
        }
        device.route("10.77.0.0/16", "10.66.0.1".parse().unwrap()).unwrap();
        device.route("fd77::/64", "fd66::1".parse().unwrap()).unwrap();
        ready(&device, &gateway);
        Self::between((device, gateway), xdp, reject)
    }

    fn between((device, gateway): (Namespace, Namespace), xdp: bool, reject: bool) -> Self {
        let mut kernel = Kernel::load();
        world::write(&kernel, 0, reject);
        let mut vlans = [0; 16];
        vlans[..3].copy_from_slice(&[7, 100 | 9 << 16, 7 | 5 << 16]);
        let interface = Interface { pools: !0, vlans };
        kernel.set(map::INTERFACES, &gateway.ifindex("inside").unwrap(), &interface);
        gateway.run(|| {
            kernel.attach_tc(program::TC_DEVICE_ETH, "inside", Ingress);
            kernel.attach_tc(program::TC_EGRESS_ETH, "inside", Egress);
            kernel.attach_tc(program::TC_GUARD, "inside", Egress);
            if xdp {
                kernel.attach_xdp(program::XDP_DEVICE, "inside");
            }
        });
        Self { device, gateway, kernel }
    }
}

/// Waits until IPv6 works: an interface that has just come up takes part in it a moment later, on a busy machine seconds later. Afterwards
/// neighbours have to be found again.
fn ready(device: &Namespace, gateway: &Namespace) {
    let there = gateway.run(|| UdpSocket::bind("[fd66::1]:9")).unwrap();
    there.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let here = device.run(|| UdpSocket::bind("[::]:0")).unwrap();
    until(Duration::from_secs(30), "IPv6 works", || {
        let _not_yet = here.send_to(b"?", "[fd66::1]:9");
        Ok(there.recv(&mut [0; 1]).is_ok())
    })
    .unwrap();
    device.ip("neigh flush dev vpn").unwrap();
    gateway.ip("neigh flush dev inside").unwrap();
}

fn wire() -> (Namespace, Namespace) {
    let (device, gateway) = (Namespace::new("device").unwrap(), Namespace::new("gateway").unwrap());
    veth((&device, "vpn"), (&gateway, "inside")).unwrap();
    (device, gateway)
}
