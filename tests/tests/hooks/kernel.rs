//! The object in this kernel: loaded, its maps written and read by system call, its programs run by BPF_PROG_TEST_RUN or attached.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Map, RingBuf},
    programs::{
        Program, XdpMode,
        links::LinkOrder,
        tc::{TcAttachOptions, TcAttachType},
    },
};
use gateway_ebpf::abi::{self, Count, Denial, Policy, REASONS, map};
use gateway_user::dataplane::object::Loading;
use lazaret_tests::elements;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// Index of the loopback interface, on which a test run takes place.
pub(crate) const IFINDEX: u32 = 1;
/// [`gateway_ebpf::abi::Control::meta_key`] in these tests.
pub(crate) const META_KEY: u32 = 0x51f0_77aa;
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
pub(crate) struct Kernel(Ebpf);

/// What a program did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// What it returned.
    pub(crate) action: i32,
    /// The packet, with its metadata in front.
    pub(crate) data: Vec<u8>,
    /// TC: the firewall mark afterwards.
    pub(crate) mark: u32,
}

impl Kernel {
    /// Loads the object with maps of its own.
    pub(crate) fn load() -> Self {
        Self::load_by(EbpfLoader::new().map_max_entries(map::CHUNKS4, 8))
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
        Self::load_by(&mut loader)
    }

    fn load_by(loader: &mut EbpfLoader<'_>) -> Self {
        let loading = Loading::new().unwrap();
        let mut ebpf = loader.load(loading.bytes()).unwrap_or_else(|e| panic!("{e:#?}"));
        loading.bind(&ebpf).unwrap();
        let programs: Vec<String> = ebpf.programs().map(|(n, _)| n.to_owned()).collect();
        for name in programs {
            let loaded = match ebpf.program_mut(&name).unwrap() {
                Program::Xdp(p) => p.load(),
                Program::SchedClassifier(p) => p.load(),
                _ => panic!("{name} has another type"),
            };
            loaded.unwrap_or_else(|e| panic!("{name}: {}", tail(&format!("{e:#?}"))));
        }
        Self(ebpf)
    }

    /// Pins the shared maps, each under its name.
    pub(crate) fn pin(&self, directory: &Path) {
        for name in SHARED {
            let data = match self.0.map(name).unwrap_or_else(|| panic!("no map {name}")) {
                Map::Array(m) | Map::HashMap(m) | Map::PerCpuArray(m) | Map::RingBuf(m) => m,
                _ => panic!("{name} has another type"),
            };
            data.pin(directory.join(name)).unwrap();
        }
    }

    /// Runs a program once. `mark`: TC, the firewall mark before.
    pub(crate) fn run(&self, name: &str, packet: &[u8], mark: u32) -> Run {
        let mut data = vec![0; packet.len() + 1024];
        // struct __sk_buff of linux/bpf.h; the mark is its third word.
        let (mut before, mut after) = ([0_u8; 192], [0_u8; 192]);
        before[8..12].copy_from_slice(&mark.to_ne_bytes());
        let mut options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut data),
            ..TestRunOptions::default()
        };
        let done = match self.0.program(name).unwrap() {
            Program::Xdp(p) => p.test_run(options),
            Program::SchedClassifier(p) => {
                options.ctx_in = Some(&before);
                options.ctx_out = Some(&mut after);
                p.test_run(options)
            }
            _ => unreachable!(),
        };
        let done = done.unwrap_or_else(|e| panic!("{name} on {packet:02x?}: {e}"));
        data.truncate(done.data_size_out as usize);
        Run {
            action: done.return_value.cast_signed(),
            data,
            mark: u32::from_ne_bytes(after[8..12].try_into().unwrap()),
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
        let Program::Xdp(xdp) = self.0.program(name).unwrap() else {
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
        let Program::SchedClassifier(tc) = self.0.program_mut(name).unwrap() else {
            unreachable!()
        };
        let last = TcAttachOptions::TcxOrder(LinkOrder::last());
        tc.attach_with_options(interface, to, last).unwrap();
    }

    /// Likewise native XDP.
    pub(crate) fn attach_xdp(&mut self, name: &str, interface: &str) {
        let Program::Xdp(xdp) = self.0.program_mut(name).unwrap() else {
            unreachable!()
        };
        xdp.attach(interface, XdpMode::Driver).unwrap();
    }

    /// Takes native XDP off again, for good.
    pub(crate) fn detach_xdp(&mut self, name: &str) {
        let Program::Xdp(xdp) = self.0.program_mut(name).unwrap() else {
            unreachable!()
        };
        xdp.unload().unwrap();
    }

    /// Writes one element.
    pub(crate) fn set<K, V>(&self, name: &str, key: &K, value: &V) {
        let attribute = Element::new(self.fd(name), key, std::ptr::from_ref(value) as u64);
        bpf(BPF_MAP_UPDATE_ELEM, &attribute).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Reads one element of an array; every bit pattern must be a `V`.
    pub(crate) fn get<V: Copy>(&self, name: &str, key: u32) -> V {
        let mut value = std::mem::MaybeUninit::<V>::zeroed();
        let attribute = Element::new(self.fd(name), &key, value.as_mut_ptr() as u64);
        bpf(BPF_MAP_LOOKUP_ELEM, &attribute).unwrap_or_else(|e| panic!("{name}: {e}"));
        // SAFETY: the kernel has written it.
        unsafe { value.assume_init() }
    }

    /// The values of all CPUs; every bit pattern must be a `V`, whose size is a multiple of eight.
    pub(crate) fn each_cpu<V: Copy>(&self, name: &str, key: u32) -> Vec<V> {
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let cpus = aya::util::nr_cpus().unwrap();
        let mut values = Vec::<V>::with_capacity(cpus);
        let attribute = Element::new(self.fd(name), &key, values.as_mut_ptr() as u64);
        bpf(BPF_MAP_LOOKUP_ELEM, &attribute).unwrap_or_else(|e| panic!("{name}: {e}"));
        // SAFETY: the kernel has written a value for each CPU.
        unsafe { values.set_len(cpus) };
        values
    }

    /// Words of a per-CPU value, summed over all CPUs.
    pub(crate) fn sum<const N: usize>(&self, name: &str, key: u32) -> [u64; N] {
        let mut sum = [0; N];
        for cpu in self.each_cpu::<[u64; N]>(name, key) {
            for (s, c) in sum.iter_mut().zip(cpu) {
                *s += c;
            }
        }
        sum
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

    fn counts(&self) -> elements::Counts {
        elements::counts(self.fd(map::COUNTERS)).unwrap()
    }

    /// Writes one policy.
    pub(crate) fn set_policy(&self, place: u32, policy: &Policy) {
        elements::write_policy(self.fd(map::POLICY), place, policy).unwrap();
    }

    /// The denials that are in the ring now, taken out of it.
    pub(crate) fn denials(&mut self) -> Vec<Denial> {
        self.take(map::DENIALS)
    }

    /// The records that are in a ring now, taken out of it; every bit pattern must be an `R`.
    pub(crate) fn take<R: Copy>(&mut self, ring: &str) -> Vec<R> {
        let mut ring = RingBuf::try_from(self.0.map_mut(ring).unwrap()).unwrap();
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            assert_eq!(record.len(), size_of::<R>());
            // SAFETY: as long as a record.
            records.push(unsafe { record.as_ptr().cast::<R>().read_unaligned() });
        }
        records
    }

    fn fd(&self, name: &str) -> BorrowedFd<'_> {
        match self.0.map(name).unwrap_or_else(|| panic!("no map {name}")) {
            Map::Array(m) | Map::HashMap(m) | Map::PerCpuArray(m) | Map::RingBuf(m) => m.fd().as_fd(),
            _ => panic!("{name} has another type"),
        }
    }
}

/// Keeps the calling thread on one CPU: limits, and what is told twice, are by CPU.
pub(crate) fn stay() {
    let mut here = CpuSet::new();
    here.set(0).unwrap();
    sched_setaffinity(Pid::from_raw(0), &here).unwrap();
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;

/// bpf(2)'s attribute for commands on one element.
#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Element {
    fn new<K>(map: BorrowedFd<'_>, key: &K, value: u64) -> Self {
        Self {
            map: map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value,
            flags: 0,
        }
    }
}

fn bpf(command: libc::c_long, attribute: &Element) -> io::Result<()> {
    // SAFETY: the attribute points at a key and a value of the map's sizes, which the callers give.
    match unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attribute), size_of::<Element>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The last lines of a verifier's log.
fn tail(log: &str) -> String {
    let log = log.replace("\\n", "\n");
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
