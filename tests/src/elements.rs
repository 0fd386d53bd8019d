//! Elements of the data plane's maps that no system call reads or writes alone, by mapped memory, as the daemon does.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr,
};

use gateway_ebpf::abi::{Count, CpuCounts, MAX_RULES, POLICIES, POOLS, Policy, REASONS};
use memmap2::{MmapOptions, MmapRaw};

/// What all CPUs have counted.
pub struct Counts {
    /// By pool and reason.
    pub pools: Vec<[Count; REASONS]>,
    /// Passed, by rule.
    pub rules: Vec<Count>,
    /// What the shadow policy would have dropped of it.
    pub shadow_drops: Vec<Count>,
}

/// Reads COUNTERS.
///
/// # Errors
/// It cannot be mapped.
pub fn counts(map: BorrowedFd<'_>) -> io::Result<Counts> {
    let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
    let memory = mapped(map, cpus * size_of::<CpuCounts>())?;
    let first = memory.as_ptr().cast::<CpuCounts>();
    let sum = |of: &dyn Fn(*const CpuCounts) -> *const Count| {
        (0..cpus).fold(Count::default(), |sum, cpu| {
            // SAFETY: inside the mapping; integers, which programs may be writing.
            let count = unsafe { ptr::read_volatile(of(first.add(cpu))) };
            Count {
                packets: sum.packets + count.packets,
                bytes: sum.bytes + count.bytes,
            }
        })
    };
    // SAFETY: places in an element, of which no reference is made.
    let pool = |p: usize, r: usize| sum(&|c| unsafe { &raw const (*c).pools[p][r] });
    Ok(Counts {
        pools: (0..POOLS).map(|p| std::array::from_fn(|r| pool(p, r))).collect(),
        // SAFETY: likewise.
        rules: (0..MAX_RULES)
            .map(|n| sum(&|c| unsafe { &raw const (*c).rules[n] }))
            .collect(),
        // SAFETY: likewise.
        shadow_drops: (0..MAX_RULES)
            .map(|n| sum(&|c| unsafe { &raw const (*c).shadow_drops[n] }))
            .collect(),
    })
}

/// Writes one policy into POLICY.
///
/// # Errors
/// It cannot be mapped.
pub fn write_policy(map: BorrowedFd<'_>, place: u32, policy: &Policy) -> io::Result<()> {
    assert!(place < POLICIES, "no place {place}");
    let memory = mapped(map, POLICIES as usize * size_of::<Policy>())?;
    // SAFETY: inside the mapping, which nobody else has here.
    unsafe { ptr::copy_nonoverlapping(policy, memory.as_mut_ptr().cast::<Policy>().add(place as usize), 1) };
    Ok(())
}

fn mapped(map: BorrowedFd<'_>, len: usize) -> io::Result<MmapRaw> {
    MmapOptions::new().len(len).map_raw(map.as_fd().as_raw_fd())
}
