//! The data plane, the floor and the routes on the real kernel, without the daemon: each invariant that the controller's tests take for
//! granted is anchored here once.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod adopt;
mod bound;
mod counted;
mod drift;
mod floor;
mod foreign;
mod gateway;
mod judge;
mod links;
mod many;
mod memory;
mod offset;
mod routes;
