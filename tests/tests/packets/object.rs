//! The kernel's side: the object loaded into this kernel, never attached.

use std::{
    ops::{Deref, DerefMut},
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya::{
    EbpfLoader,
    programs::{Program, ProgramInfo},
};
use gateway_ebpf::abi::{Count, REASONS, map};
pub(crate) use lazaret_tests::loaded::{IFINDEX, META_KEY, Run, SkBuff};
use lazaret_tests::{
    loaded::Loaded,
    require::{Need, or_skip},
};

/// Every program of the object.
pub(crate) const PROGRAMS: [&str; 9] = {
    use gateway_ebpf::abi::program as p;
    [
        p::XDP_DEVICE,
        p::XDP_CORE,
        p::TC_DEVICE_ETH,
        p::TC_CORE_ETH,
        p::TC_DEVICE_IP,
        p::TC_CORE_IP,
        p::TC_EGRESS_ETH,
        p::TC_EGRESS_IP,
        p::TC_GUARD,
    ]
};

/// The loaded object.
pub(crate) struct Object(Loaded);

/// The loaded object, or `None` where the machine cannot load it; then `test` is listed as skipped.
pub(crate) fn open(test: &str) -> Option<Object> {
    or_skip(test, &[Need::Root, Need::Bpf]).then(|| Object::load(1 << 18))
}

impl Object {
    /// Loads every program, with room for 8 chunks of IPv4 addresses and a ring of this many bytes.
    pub(crate) fn load(ring: u32) -> Self {
        Self(Loaded::load(
            EbpfLoader::new()
                .map_max_entries(map::CHUNKS4, 8)
                .map_max_entries(map::DENIALS, ring)
                .map_max_entries(map::FRAGMENTS, 16),
        ))
    }

    /// What the kernel says of a program.
    pub(crate) fn info(&self, name: &str) -> ProgramInfo {
        match self.ebpf.program(name).unwrap() {
            Program::Xdp(p) => p.info().unwrap(),
            Program::SchedClassifier(p) => p.info().unwrap(),
            _ => unreachable!(),
        }
    }

    /// A counter array over all CPUs, and over all pools: `[pool][reason]`.
    pub(crate) fn counters(&self) -> Vec<[Count; REASONS]> {
        self.counts().pools
    }

    /// Events suppressed, lost, and told before, over all CPUs.
    pub(crate) fn events_lost(&self) -> [u64; 3] {
        self.sum(map::EVENTS_LOST, 0)
    }

    /// A map's descriptor, for a program that is loaded by hand.
    pub(crate) fn map_fd(&self, name: &str) -> RawFd {
        self.map(name).fd().as_fd().as_raw_fd()
    }
}

impl Deref for Object {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.0
    }
}

impl DerefMut for Object {
    fn deref_mut(&mut self) -> &mut Loaded {
        &mut self.0
    }
}
