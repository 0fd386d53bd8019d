//! Seen and explained: `lazaret explain`, `denials`, `capture` and `counters` of a real gateway, against what really becomes of packets.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod capture;
mod denials;
mod explain;
mod prefix;
mod stage;
mod tun;
