//! What the kernel programs do around the verdict: counting, telling, capturing, probing, answering, and what XDP and its companion tell
//! each other. The verdict itself is the business of `packets`.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod answers;
mod capture;
mod companion;
mod counting;
mod ethertype;
mod frames;
mod kernel;
mod link;
mod no_metadata;
mod probe;
mod shadow;
mod tagged;
mod vlan;
mod world;
