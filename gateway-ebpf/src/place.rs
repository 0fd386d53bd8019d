//! The places at which the programs stand, as numbers: a const parameter can be one.

use gateway_ebpf::{
    abi::hook,
    decide::{Direction, Place, Role},
};

pub(crate) const DEVICE_ETH: u8 = 0;
pub(crate) const CORE_ETH: u8 = 1;
pub(crate) const DEVICE_IP: u8 = 2;
pub(crate) const CORE_IP: u8 = 3;
pub(crate) const EGRESS_ETH: u8 = 4;
pub(crate) const EGRESS_IP: u8 = 5;

#[inline(always)]
pub(crate) const fn is_egress(place: u8) -> bool {
    matches!(place, EGRESS_ETH | EGRESS_IP)
}

/// The place behind a number, which a const parameter can be.
#[inline(always)]
pub(crate) const fn at(place: u8, ifindex: u32) -> Place {
    let (role, direction, hook) = match place {
        DEVICE_ETH | DEVICE_IP => (Role::Device, Direction::Ingress, hook::TC_DEVICE),
        CORE_ETH | CORE_IP => (Role::Core, Direction::Ingress, hook::TC_CORE),
        _ => (Role::Device, Direction::Egress, hook::TC_EGRESS),
    };
    Place {
        role,
        direction,
        ethernet: matches!(place, DEVICE_ETH | CORE_ETH | EGRESS_ETH),
        ifindex,
        hook,
    }
}

/// The same at XDP.
#[inline(always)]
pub(crate) const fn xdp_place<const DEVICE: bool>(ifindex: u32) -> Place {
    let (place, hook) = if DEVICE {
        (DEVICE_ETH, hook::XDP_DEVICE)
    } else {
        (CORE_ETH, hook::XDP_CORE)
    };
    Place {
        hook,
        ..at(place, ifindex)
    }
}
