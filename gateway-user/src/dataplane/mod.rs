//! Lazaret's part in the kernel: BPF programs, their maps and links. The only place that names aya.
//!
//! In the order of the flow: `numbers`, `policy` and `layout` make tables of a configuration, purely; `tables` writes them; `hooks` attaches what
//! reads them; `readback` asks what attached programs see; `upkeep` is what may wait for
//! the kernel's lock of the network configuration, as [`crate::kernel::Places`]; `live` is all of it, as [`crate::kernel::Kernel`].

mod bpf;
mod captures;
mod classes;
mod counts;
mod detach;
mod environment;
mod filter;
mod flags;
mod force;
mod foreign;
mod hooks;
mod interfaces;
mod layout;
mod live;
mod many;
mod mapping;
mod maps;
mod memory;
mod mover;
mod numbers;
pub mod object;
pub mod policy;
mod probe;
mod programs;
mod readback;
mod ring;
mod survey;
mod table6;
mod tables;
mod upkeep;

#[cfg(test)]
pub(crate) mod fixtures;

pub use detach::{detach, stay_closed};
pub use environment::Error;
pub(crate) use hooks::routed_by;
pub use layout::{AtRest, lay_out};
pub use live::Live;
pub use maps::NAMES as SHARED_MAPS;
pub use memory::memory;
pub use mover::{Bound, LoadError, Mover};
pub use policy::{CompileError, compile};
pub use probe::Twin;
pub use ring::Ring;
