//! Lazaret's part in the kernel: BPF programs, their maps and links. The only place that names aya.

mod layout;
pub mod object;
pub mod policy;

#[cfg(test)]
pub(crate) mod fixtures;

pub use policy::{CompileError, compile};
