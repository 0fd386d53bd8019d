//! The API's front: listeners, certificates, roles, limits and errors, over a real TLS connection and a real Unix socket. Behind it are
//! the real controller and the real store; only the kernel is a fake, since nothing here is about packets.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod calls;
mod claims;
mod errors;
mod files;
mod floods;
mod gateway;
mod greedy;
mod handshakes;
mod limits;
mod mtls;
mod oddities;
mod raw;
mod references;
mod reload;
mod reports;
mod retirement;
mod roles;
mod scope;
mod shares;
mod socket;
mod sources;
