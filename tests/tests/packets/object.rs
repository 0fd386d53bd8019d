//! The kernel's side: the object loaded into this kernel, never attached, its maps written by system call and its programs run by
//! BPF_PROG_TEST_RUN. It shares no code with the daemon's table writer.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, RawFd},
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Map, RingBuf},
    programs::{Program, ProgramInfo},
};
use gateway_ebpf::abi::{Count, Denial, Policy, REASONS, map};
use gateway_user::dataplane::object::{Loading, OBJECT};
use lazaret_tests::{
    elements,
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

/// Index of the loopback interface, on which a test run takes place.
pub(crate) const IFINDEX: u32 = 1;
/// [`gateway_ebpf::abi::Control::meta_key`] in these tests.
pub(crate) const META_KEY: u32 = 0x51f0_77aa;

/// The loaded object.
pub(crate) struct Object(Ebpf, Loading);

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

/// The loaded object, or `None` where the machine cannot load it; then `test` is listed as skipped.
pub(crate) fn open(test: &str) -> Option<Object> {
    or_skip(test, &[Need::Root, Need::Bpf]).then(|| Object::load(1 << 18))
}

impl Object {
    /// Loads every program, with room for 8 chunks of IPv4 addresses and a ring of this many bytes.
    pub(crate) fn load(ring: u32) -> Self {
        let loading = Loading::of(object().into_owned()).unwrap();
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(map::CHUNKS4, 8)
            .map_max_entries(map::DENIALS, ring)
            .map_max_entries(map::FRAGMENTS, 16)
            .load(loading.bytes())
            .unwrap_or_else(|e| panic!("{e:#?}"));
        loading.bind(&ebpf).unwrap();
        for name in PROGRAMS {
            let loaded = match ebpf.program_mut(name).unwrap_or_else(|| panic!("no program {name}")) {
                Program::Xdp(p) => p.load(),
                Program::SchedClassifier(p) => p.load(),
                _ => panic!("{name} has another type"),
            };
            loaded.unwrap_or_else(|e| panic!("{name}: {}", tail(&format!("{e:#?}"))));
        }
        Self(ebpf, loading)
    }

    /// What the kernel says of a program.
    pub(crate) fn info(&self, name: &str) -> ProgramInfo {
        match self.0.program(name).unwrap() {
            Program::Xdp(p) => p.info().unwrap(),
            Program::SchedClassifier(p) => p.info().unwrap(),
            _ => unreachable!(),
        }
    }

    /// Runs a program once. `mark`: TC, the firewall mark before.
    pub(crate) fn run(&self, name: &str, packet: &[u8], mark: u32) -> Run {
        let context = SkBuff { mark, ..SkBuff::new() };
        self.run_with(name, packet, &context)
            .unwrap_or_else(|e| panic!("{name} on {packet:02x?}: {e}"))
    }

    /// Runs a TC program once with a context of one's own; for XDP the context is ignored.
    pub(crate) fn run_with(&self, name: &str, packet: &[u8], context: &SkBuff) -> Result<Run, aya::programs::ProgramError> {
        // Metadata, or an answer in the making, is longer than the packet.
        let mut data = vec![0; packet.len() + 512];
        let mut after = [0_u8; size_of::<SkBuff>()];
        let before = context.bytes();
        let mut options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut data),
            ..TestRunOptions::default()
        };
        let done = match self.0.program(name).unwrap() {
            Program::Xdp(p) => p.test_run(options)?,
            Program::SchedClassifier(p) => {
                options.ctx_in = Some(&before);
                options.ctx_out = Some(&mut after);
                p.test_run(options)?
            }
            _ => unreachable!(),
        };
        data.truncate(done.data_size_out as usize);
        let mark = u32::from_ne_bytes(after[8..12].try_into().unwrap());
        Ok(Run {
            action: done.return_value.cast_signed(),
            data,
            mark,
        })
    }

    /// Writes one element.
    pub(crate) fn set<K, V>(&self, name: &str, key: &K, value: &V) {
        let attribute = Element::new(self.fd(name), key, value);
        bpf(BPF_MAP_UPDATE_ELEM, &attribute).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// Writes one policy.
    pub(crate) fn set_policy(&self, place: u32, policy: &Policy) {
        elements::write_policy(self.fd(map::POLICY), place, policy).unwrap();
    }

    /// Removes one element.
    pub(crate) fn remove<K>(&self, name: &str, key: &K) {
        let attribute = Element {
            value: 0,
            ..Element::new(self.fd(name), key, &0_u8)
        };
        bpf(BPF_MAP_DELETE_ELEM, &attribute).unwrap_or_else(|e| panic!("{name}: {e}"));
    }

    /// A counter array over all CPUs, and over all pools: `[pool][reason]`.
    pub(crate) fn counters(&self) -> Vec<[Count; REASONS]> {
        elements::counts(self.fd(map::COUNTERS)).unwrap().pools
    }

    /// Events suppressed, lost, and told before, over all CPUs.
    pub(crate) fn events_lost(&self) -> [u64; 3] {
        let values = vec![[0_u64; 3]; aya::util::nr_cpus().unwrap()];
        bpf(
            BPF_MAP_LOOKUP_ELEM,
            &Element::new(self.fd(map::EVENTS_LOST), &0_u32, &values[0]),
        )
        .unwrap();
        values.iter().fold([0; 3], |a, v| [a[0] + v[0], a[1] + v[1], a[2] + v[2]])
    }

    /// The denials that are in the ring now, taken out of it.
    pub(crate) fn denials(&mut self) -> Vec<Denial> {
        let mut ring = RingBuf::try_from(self.0.map_mut(map::DENIALS).unwrap()).unwrap();
        let mut denials = Vec::new();
        while let Some(record) = ring.next() {
            assert_eq!(record.len(), size_of::<Denial>());
            // SAFETY: as long as a record, which is integers only.
            denials.push(unsafe { record.as_ptr().cast::<Denial>().read_unaligned() });
        }
        denials
    }

    /// The object as it was loaded.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.1.bytes()
    }

    /// A map's descriptor, for a program that is loaded by hand.
    pub(crate) fn map_fd(&self, name: &str) -> RawFd {
        self.fd(name).as_raw_fd()
    }

    fn fd(&self, name: &str) -> BorrowedFd<'_> {
        match self.0.map(name).unwrap_or_else(|| panic!("no map {name}")) {
            Map::Array(m) | Map::HashMap(m) | Map::PerCpuArray(m) | Map::RingBuf(m) => m.fd().as_fd(),
            _ => panic!("{name} has another type"),
        }
    }
}

/// `struct __sk_buff` of linux/bpf.h, as far as test runs take it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct SkBuff {
    len: u32,
    packet_type: u32,
    pub(crate) mark: u32,
    queue_and_vlan: [u32; 5],
    priority: u32,
    pub(crate) ingress_ifindex: u32,
    pub(crate) ifindex: u32,
    to_data: [u32; 8],
    pub(crate) data: u32,
    pub(crate) data_end: u32,
    to_meta: [u32; 14],
    pub(crate) data_meta: u32,
    rest: [u64; 6],
}
const _: () = assert!(size_of::<SkBuff>() == 192 && std::mem::offset_of!(SkBuff, data_meta) == 140);

impl SkBuff {
    pub(crate) fn new() -> Self {
        // SAFETY: integers only.
        unsafe { std::mem::zeroed() }
    }

    fn bytes(&self) -> [u8; size_of::<Self>()] {
        // SAFETY: integers only, without padding: all fields of four bytes up to an offset divisible by eight.
        unsafe { std::mem::transmute_copy(self) }
    }
}

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

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
    fn new<K, V>(map: BorrowedFd<'_>, key: &K, value: &V) -> Self {
        Self {
            map: map.as_raw_fd().cast_unsigned(),
            pad: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
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

/// The object that the daemon embeds, or the one that `LAZARET_TEST_OBJECT` names: to try one without building the daemon.
pub(crate) fn object() -> std::borrow::Cow<'static, [u8]> {
    match std::env::var_os("LAZARET_TEST_OBJECT") {
        Some(path) => std::fs::read(path).unwrap().into(),
        None => OBJECT.into(),
    }
}

/// The last lines of a verifier's log.
fn tail(log: &str) -> String {
    let log = log.replace("\\n", "\n");
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
