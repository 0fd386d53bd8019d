//! Lazaret's data plane, the half that is the same everywhere: the contract between kernel and user space ([`abi`], [`reason`]) and the
//! pure parser and decision ([`parse`], [`decide`]). No aya, no allocation, no I/O: it is compiled for the BPF target, for the daemon,
//! and for tests.
#![no_std]
#[cfg(test)]
extern crate std;

pub mod abi;
pub mod clock;
pub mod decide;
pub mod fragment;
pub mod headers;
pub mod judge;
pub mod packet;
pub mod parse;
pub mod quick;
pub mod rare;
pub mod reason;
pub mod special;
pub mod tables;
pub mod wire;
