//! The controller on the real store, over the fake kernel.

mod durability;
mod groups;
pub(crate) mod kit;
mod leases;
mod restart;
mod sessions;
mod signals;
mod watch;
