//! The counters as the kernel keeps them, read from a gateway's pins: also with its daemon dead.

use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray};
use gateway_ebpf::{
    abi::{self, ShadowCount},
    reason::Reason,
};

use crate::{elements, gateway::Gateway};

/// Packets that a reason has counted so far, in one pool (0: none).
///
/// # Errors
/// Nothing is pinned, or it cannot be read.
pub fn counted(gateway: &Gateway, pool: u8, reason: Reason) -> Result<u64> {
    let map = pinned(gateway, abi::map::COUNTERS)?;
    let counts = elements::counts(map.fd().as_fd())?;
    Ok(counts.pools[usize::from(pool)][reason as usize].packets)
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct Shadow(ShadowCount);

// SAFETY: a struct of four u64: no padding, and every bit pattern is valid.
unsafe impl aya::Pod for Shadow {}

/// Packets of one pool that passed and that its shadow policy would have dropped, and those that were dropped and that it would have passed.
///
/// # Errors
/// As [`counted`].
pub fn shadow(gateway: &Gateway, pool: u8) -> Result<[u64; 2]> {
    let shadows: PerCpuArray<_, Shadow> = PerCpuArray::try_from(Map::PerCpuArray(pinned(gateway, abi::map::SHADOW)?))?;
    let values = shadows.get(&u32::from(pool), 0)?;
    let sum = |of: fn(&ShadowCount) -> u64| values.iter().map(|v| of(&v.0)).sum();
    Ok([sum(|s| s.would_drop.packets), sum(|s| s.would_pass.packets)])
}

fn pinned(gateway: &Gateway, map: &str) -> Result<MapData> {
    let pins = gateway
        .folder()
        .join("bpf/lazaret")
        .join(format!("v{}", abi::VERSION))
        .join("maps");
    MapData::from_pin(pins.join(map)).with_context(|| format!("{map} in {}", pins.display()))
}
