//! The object in this kernel, with the chunks of the world of these tests; its probing twin; and its programs attached.

use std::{
    ops::{Deref, DerefMut},
    path::Path,
};

use aya::{
    EbpfLoader, TestRun as _, TestRunOptions,
    programs::{
        Program, XdpMode,
        links::LinkOrder,
        tc::{TcAttachOptions, TcAttachType},
    },
};
use gateway_ebpf::abi::{self, Count, REASONS, map};
pub(crate) use lazaret_tests::loaded::{IFINDEX, META_KEY};
use lazaret_tests::loaded::{Loaded, Run};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// What a TC program returns.
pub(crate) const TCX_NEXT: i32 = -1;
pub(crate) const TC_ACT_SHOT: i32 = 2;
/// What an XDP program returns.
pub(crate) const XDP_DROP: i32 = 1;
pub(crate) const XDP_PASS: i32 = 2;

/// The maps that a probing twin shares with the programs that are attached: all but its own.
pub(crate) const SHARED: [&str; 18] = [
    map::CONTROL,
    map::DIR4,
    map::CHUNKS4,
    map::HASH6,
    map::HOMES6,
    map::INTERFACES,
    map::FRAGMENTS,
    map::COLD,
    map::POLICY,
    map::COUNTERS,
    map::SHADOW,
    map::EVENTS_LOST,
    map::DENIALS,
    map::CAPTURES,
    map::CAPTURES_LOST,
    map::ANSWERS,
    "TOLD",
    "RATES",
];

/// The loaded object.
pub(crate) struct Kernel(Loaded);

impl Kernel {
    /// Loads the object with maps of its own.
    pub(crate) fn load() -> Self {
        Self(Loaded::load(EbpfLoader::new().map_max_entries(map::CHUNKS4, 8)))
    }

    /// Loads its probing twin on the maps that are pinned in a directory.
    pub(crate) fn twin(pins: &Path) -> Self {
        let mut loader = EbpfLoader::new();
        loader
            .map_max_entries(map::CHUNKS4, 8)
            .override_global(abi::PROBE, &1_u8, true);
        for name in SHARED {
            loader.map_pin_path(name, pins.join(name));
        }
        Self(Loaded::load(&mut loader))
    }

    /// Pins the shared maps, each under its name.
    pub(crate) fn pin(&self, directory: &Path) {
        for name in SHARED {
            self.map(name).pin(directory.join(name)).unwrap();
        }
    }

    /// Runs an XDP program once on a frame in front of which there is as much metadata as can be, so that none can be added.
    pub(crate) fn run_without_room(&self, name: &str, frame: &[u8]) -> Run {
        // A test run has 256 bytes in front of a frame (XDP_PACKET_HEADROOM), 40 of them for the kernel (`struct xdp_frame`).
        const FULL: usize = 256 - 40;
        let given = [&[0; FULL][..], frame].concat();
        let mut data = vec![0; given.len() + 1024];
        // struct xdp_md of linux/bpf.h: where the packet begins and ends behind its metadata.
        let mut context = [0_u8; 24];
        context[..4].copy_from_slice(&(FULL as u32).to_ne_bytes());
        context[4..8].copy_from_slice(&(given.len() as u32).to_ne_bytes());
        let Program::Xdp(xdp) = self.ebpf.program(name).unwrap() else {
            unreachable!()
        };
        let done = xdp.test_run(TestRunOptions {
            data_in: Some(&given),
            data_out: Some(&mut data),
            ctx_in: Some(&context),
            ..TestRunOptions::default()
        });
        let done = done.unwrap_or_else(|e| panic!("{name} on {frame:02x?}: {e}"));
        data.truncate(done.data_size_out as usize);
        assert_eq!(data, given, "neither the frame nor what is in front of it changes");
        Run {
            action: done.return_value.cast_signed(),
            data: frame.to_vec(),
            mark: 0,
        }
    }

    /// Attaches a TC program of ours last in the chain of an interface of the namespace that the caller is in.
    pub(crate) fn attach_tc(&mut self, name: &str, interface: &str, to: TcAttachType) {
        let Program::SchedClassifier(tc) = self.ebpf.program_mut(name).unwrap() else {
            unreachable!()
        };
        let last = TcAttachOptions::TcxOrder(LinkOrder::last());
        tc.attach_with_options(interface, to, last).unwrap();
    }

    /// Likewise native XDP.
    pub(crate) fn attach_xdp(&mut self, name: &str, interface: &str) {
        let Program::Xdp(xdp) = self.ebpf.program_mut(name).unwrap() else {
            unreachable!()
        };
        xdp.attach(interface, XdpMode::Driver).unwrap();
    }

    /// Takes native XDP off again, for good.
    pub(crate) fn detach_xdp(&mut self, name: &str) {
        let Program::Xdp(xdp) = self.ebpf.program_mut(name).unwrap() else {
            unreachable!()
        };
        xdp.unload().unwrap();
    }

    /// What was counted by a pool and a reason.
    pub(crate) fn counted(&self, pool: u8, reason: gateway_ebpf::reason::Reason) -> Count {
        self.counts().pools[usize::from(pool)][reason as usize]
    }

    /// Everything that was counted.
    pub(crate) fn all_counters(&self) -> Vec<[Count; REASONS]> {
        self.counts().pools
    }

    /// What was counted by a rule: packets and bytes that it passed, and those of them that the shadow policy would have dropped.
    pub(crate) fn by_rule(&self, rule: u16) -> [u64; 4] {
        let counts = self.counts();
        let (passed, drops) = (counts.rules[usize::from(rule)], counts.shadow_drops[usize::from(rule)]);
        [passed.packets, passed.bytes, drops.packets, drops.bytes]
    }
}

impl Deref for Kernel {
    type Target = Loaded;

    fn deref(&self) -> &Loaded {
        &self.0
    }
}

impl DerefMut for Kernel {
    fn deref_mut(&mut self) -> &mut Loaded {
        &mut self.0
    }
}

/// Keeps the calling thread on one CPU: limits are by CPU, and so is what is kept of a packet.
pub(crate) fn stay() {
    stay_on(cpus()[0]);
}

/// Likewise on one of [`cpus`].
pub(crate) fn stay_on(cpu: usize) {
    let mut here = CpuSet::new();
    here.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

/// The CPUs that the calling thread may run on.
pub(crate) fn cpus() -> Vec<usize> {
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap()).collect()
}
