//! Elements of the data plane's maps that no system call reads or writes alone, by mapped memory, as the daemon does.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
    ptr,
};

use aya::maps::MapData;
use gateway_ebpf::abi::{Count, CpuCounts, MAX_RULES, NO_METADATA, POLICIES, POOLS, Policy, REASONS};
use memmap2::{MmapOptions, MmapRaw};

/// What all CPUs have counted.
pub struct Counts {
    /// By pool and reason.
    pub pools: Vec<[Count; REASONS]>,
    /// Passed, by rule.
    pub rules: Vec<Count>,
    /// What the shadow policy would have dropped of it.
    pub shadow_drops: Vec<Count>,
    /// As it stands there, of each CPU.
    pub no_metadata: Vec<[u64; NO_METADATA]>,
}

/// Reads COUNTERS, which has as many as the numbers of CPUs go: more than there can be, where numbers are left out.
///
/// # Errors
/// It cannot be mapped.
pub fn counts(map: BorrowedFd<'_>) -> io::Result<Counts> {
    let info = MapData::from_fd(map.try_clone_to_owned()?).and_then(|m| m.info());
    let size = info.map_err(io::Error::other)?.value_size() as usize;
    let (memory, cpus) = (mapped(map, size)?, size / size_of::<CpuCounts>());
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
        // SAFETY: inside the mapping; integers.
        no_metadata: (0..cpus)
            .map(|cpu| unsafe { ptr::read_volatile(&raw const (*first.add(cpu)).no_metadata) })
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

#[cfg(test)]
mod tests {
    use std::os::fd::{FromRawFd as _, OwnedFd};

    use super::*;

    /// Whatever this machine's CPUs are.
    #[test]
    fn what_the_highest_cpu_has_counted_is_read() {
        const CPUS: usize = 7;
        const BPF_MAP_CREATE: libc::c_long = 0;
        const ARRAY: u32 = 2;
        const MMAPABLE: u32 = 1 << 10;
        crate::require!(Root, Bpf);
        let size = CPUS * size_of::<CpuCounts>();
        let mut attribute = [0_u32; 16];
        attribute[..5].copy_from_slice(&[ARRAY, 4, size as u32, 1, MMAPABLE]);
        // SAFETY: the attribute is longer than the command needs, zero behind, and has no pointers.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_CREATE, attribute.as_ptr(), size_of_val(&attribute)) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the call succeeded, so this is a new descriptor of ours.
        let map = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        let memory = mapped(map.as_fd(), size).unwrap();
        for (cpu, packets) in [(0, 3), (CPUS - 1, 4)] {
            // SAFETY: inside the mapping, which nobody else has.
            unsafe { (*memory.as_mut_ptr().cast::<CpuCounts>().add(cpu)).pools[1][2].packets = packets };
        }
        assert_eq!(counts(map.as_fd()).unwrap().pools[1][2].packets, 7);
    }
}
