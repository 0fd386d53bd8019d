//! Live: real flows through a running gateway, over Ethernet and over an OpenVPN tun, in both families, with an independent observer on the
//! far side; and what is done to the gateway meanwhile.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod changes;
mod fragments;
mod handover;
mod leases;
mod policies;
mod prefix;
mod restrict;
mod shapes;
mod stage;
