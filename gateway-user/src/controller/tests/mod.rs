//! The controller on the real store, over the fake kernel.

mod cut_off;
mod drift;
mod durability;
mod groups;
pub(crate) mod kit;
mod leases;
mod lists;
mod proof;
mod record;
mod restart;
mod sessions;
mod signals;
mod sources;
mod turns;
mod watch;
mod waves;
