//! What the programs have counted, summed over the CPUs: read from the memory that they write, without a system call. A word is read whole; packets
//! and bytes of one counter may be a packet apart.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use gateway_ebpf::abi::{Count, CpuCounts, NO_METADATA, POOLS, REASONS, RuleCount, map};

use super::{mapping::Mapping, maps::Maps, readback};

/// The counters of all CPUs.
pub(super) struct Counts {
    memory: Mapping,
    cpus: usize,
}

impl Counts {
    pub(super) fn new(maps: &Maps) -> io::Result<Self> {
        let cpus = readback::cpu_numbers()?;
        let memory = Mapping::new(maps.get(map::COUNTERS)?, cpus * size_of::<CpuCounts>())?;
        Ok(Self { memory, cpus })
    }

    /// By reason; `pool` 0 for none.
    pub(super) fn pool(&self, pool: u8) -> [Count; REASONS] {
        let first = std::mem::offset_of!(CpuCounts, pools) + usize::from(pool) % POOLS * size_of::<[Count; REASONS]>();
        std::array::from_fn(|reason| self.sum(first + reason * size_of::<Count>()))
    }

    /// What rule 0 passed is without the reason `all`.
    pub(super) fn rule(&self, number: u16) -> RuleCount {
        let [passed, shadow_drops] = of_rule(number).map(|at| self.sum(at));
        RuleCount { passed, shadow_drops }
    }

    /// Counts a rule's from zero again, while nothing names it.
    pub(super) fn forget(&self, number: u16) {
        for (cpu, at) in (0..self.cpus).flat_map(|cpu| of_rule(number).map(|at| (cpu, at))) {
            for word in self.words(cpu, at) {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    /// Frames of an interface that XDP has left to its companion, since the driver has no room to tell it anything.
    pub(super) fn no_metadata(&self, ifindex: u32) -> u64 {
        let at = std::mem::offset_of!(CpuCounts, no_metadata) + ifindex as usize % NO_METADATA * size_of::<u64>();
        (0..self.cpus)
            .map(|cpu| self.memory.word64(cpu * size_of::<CpuCounts>() + at).load(Ordering::Relaxed))
            .filter(|word| word >> 32 == u64::from(ifindex))
            .map(|word| word & u64::from(u32::MAX))
            .sum()
    }

    fn sum(&self, at: usize) -> Count {
        (0..self.cpus).fold(Count::default(), |sum, cpu| {
            let [packets, bytes] = self.words(cpu, at).map(|w| w.load(Ordering::Relaxed));
            Count {
                packets: sum.packets.wrapping_add(packets),
                bytes: sum.bytes.wrapping_add(bytes),
            }
        })
    }

    /// Packets and bytes of the counter at an offset of one CPU's.
    fn words(&self, cpu: usize, at: usize) -> [&AtomicU64; 2] {
        let at = cpu * size_of::<CpuCounts>() + at;
        [std::mem::offset_of!(Count, packets), std::mem::offset_of!(Count, bytes)].map(|word| self.memory.word64(at + word))
    }
}

/// Where the two counters of a rule are.
fn of_rule(number: u16) -> [usize; 2] {
    let number = usize::from(number) % gateway_ebpf::abi::MAX_RULES;
    [
        std::mem::offset_of!(CpuCounts, rules),
        std::mem::offset_of!(CpuCounts, shadow_drops),
    ]
    .map(|first| first + number * size_of::<Count>())
}
