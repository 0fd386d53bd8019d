//! Lazaret's part in the kernel: BPF programs, their maps and links. The only place that names aya.

mod bpf;
mod layout;
mod maps;
pub mod object;
pub mod policy;
mod table6;
mod tables;

#[cfg(test)]
pub(crate) mod fixtures;

pub use policy::{CompileError, compile};
