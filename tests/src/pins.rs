//! The counters as the kernel keeps them, read from a gateway's pins: also with its daemon dead.

use std::fs;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use gateway_ebpf::{
    abi::{self, Count, REASONS},
    reason::Reason,
};

use crate::gateway::Gateway;

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Counts([Count; REASONS]);

// SAFETY: an array of structs of two u64 each: no padding, and every bit pattern is valid.
unsafe impl aya::Pod for Counts {}

/// Packets that a reason has counted so far, in one pool (0: none).
///
/// # Errors
/// Nothing is pinned, or it cannot be read.
pub fn counted(gateway: &Gateway, pool: u8, reason: Reason) -> Result<u64> {
    let pins = gateway
        .folder()
        .join("bpf/lazaret")
        .join(format!("v{}", abi::VERSION))
        .join("maps");
    let pin = pins.join(abi::map::COUNTERS);
    let map = MapData::from_pin(&pin)
        .with_context(|| format!("{} holds {:?}", pins.display(), fs::read_dir(&pins).map(Iterator::count)))?;
    let counters: PerCpuArray<_, Counts> = PerCpuArray::try_from(Map::PerCpuArray(map))?;
    let values = counters.get(&u32::from(pool), 0)?;
    Ok(values.iter().map(|counts| counts.0[reason as usize].packets).sum())
}
