//! The data plane, packet by packet: the decision as the host computes it and as the loaded kernel object does.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod frame;
mod kernel;
mod object;
mod random;
mod reference;
mod table;
mod twin;
mod verifier;
mod world;
