//! The data plane's object in this kernel: its maps written and read by system call, its programs run by BPF_PROG_TEST_RUN. It shares no code with
//! the daemon's table writer, and attaches nothing by itself. What goes wrong ends the test.

use std::{
    borrow::Cow,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    ptr,
};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::{Map, MapData, RingBuf},
    programs::{Program, ProgramError},
};
use gateway_ebpf::abi::{Denial, Policy, map};
use gateway_user::dataplane::object::{Loading, OBJECT};

use crate::elements;

/// Index of the loopback interface, on which a test run takes place.
pub const IFINDEX: u32 = 1;
/// [`gateway_ebpf::abi::Control::meta_key`] in tests.
pub const META_KEY: u32 = 0x51f0_77aa;

/// The loaded object.
pub struct Loaded {
    /// Its maps and programs.
    pub ebpf: Ebpf,
    /// The file that was loaded.
    pub file: Loading,
}

/// What a program did.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// What it returned.
    pub action: i32,
    /// The packet, with its metadata in front.
    pub data: Vec<u8>,
    /// TC: the firewall mark afterwards.
    pub mark: u32,
}

impl Loaded {
    /// Loads the object that the daemon embeds, or the one that `LAZARET_TEST_OBJECT` names (to try one without building the daemon), and all its
    /// programs.
    ///
    /// # Panics
    /// The kernel refuses it.
    pub fn load(loader: &mut EbpfLoader<'_>) -> Self {
        let object = match std::env::var_os("LAZARET_TEST_OBJECT") {
            Some(path) => Cow::from(std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))),
            None => OBJECT.into(),
        };
        let file = Loading::of(object.into_owned()).unwrap_or_else(|e| panic!("{e}"));
        let mut ebpf = loader.load(file.bytes()).unwrap_or_else(|e| panic!("{e:#?}"));
        file.bind(&ebpf).unwrap_or_else(|e| panic!("{e}"));
        for (name, program) in ebpf.programs_mut() {
            let loaded = match program {
                Program::Xdp(p) => p.load(),
                Program::SchedClassifier(p) => p.load(),
                _ => panic!("{name} has another type"),
            };
            loaded.unwrap_or_else(|e| panic!("{name}: {}", tail(&format!("{e:#?}"))));
        }
        Self { ebpf, file }
    }

    /// Runs a program once. `mark`: TC, the firewall mark before.
    ///
    /// # Panics
    /// It cannot be run.
    pub fn run(&self, name: &str, packet: &[u8], mark: u32) -> Run {
        let context = SkBuff { mark, ..SkBuff::new() };
        self.run_with(name, packet, &context)
            .unwrap_or_else(|e| panic!("{name} on {packet:02x?}: {e}"))
    }

    /// Runs a TC program once with a context of one's own; for XDP the context is ignored.
    ///
    /// # Errors
    /// The kernel does not take packet or context.
    ///
    /// # Panics
    /// There is no such program.
    pub fn run_with(&self, name: &str, packet: &[u8], context: &SkBuff) -> Result<Run, ProgramError> {
        // Metadata, or an answer in the making, is longer than the packet.
        let mut data = vec![0; packet.len() + 1024];
        let mut after = [0_u8; size_of::<SkBuff>()];
        let before = context.bytes();
        let mut options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut data),
            ..TestRunOptions::default()
        };
        let done = match self.ebpf.program(name) {
            Some(Program::Xdp(p)) => p.test_run(options)?,
            Some(Program::SchedClassifier(p)) => {
                options.ctx_in = Some(&before);
                options.ctx_out = Some(&mut after);
                p.test_run(options)?
            }
            _ => panic!("no program {name}"),
        };
        data.truncate(done.data_size_out as usize);
        // The third word.
        let mark = u32::from_ne_bytes([after[8], after[9], after[10], after[11]]);
        Ok(Run {
            action: done.return_value.cast_signed(),
            data,
            mark,
        })
    }

    /// Writes one element.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn set<K, V>(&self, name: &str, key: &K, value: &V) {
        self.element(BPF_MAP_UPDATE_ELEM, name, key, ptr::from_ref(value) as u64, size_of::<V>());
    }

    /// Removes one element.
    ///
    /// # Panics
    /// It cannot be removed.
    pub fn remove<K>(&self, name: &str, key: &K) {
        self.element(BPF_MAP_DELETE_ELEM, name, key, 0, 0);
    }

    /// Reads one element of an array; every bit pattern must be a `V`.
    ///
    /// # Panics
    /// It cannot be read.
    #[must_use]
    pub fn get<V: Copy>(&self, name: &str, key: u32) -> V {
        let mut value = MaybeUninit::<V>::zeroed();
        self.element(BPF_MAP_LOOKUP_ELEM, name, &key, value.as_mut_ptr() as u64, size_of::<V>());
        // SAFETY: the kernel has written it.
        unsafe { value.assume_init() }
    }

    /// The values of all CPUs; every bit pattern must be a `V`, whose size is a multiple of eight.
    ///
    /// # Panics
    /// They cannot be read.
    #[must_use]
    pub fn each_cpu<V: Copy>(&self, name: &str, key: u32) -> Vec<V> {
        const { assert!(size_of::<V>().is_multiple_of(8), "the kernel rounds up") };
        let cpus = aya::util::nr_cpus().unwrap_or_else(|(what, e)| panic!("{what}: {e}"));
        let mut values = Vec::<V>::with_capacity(cpus);
        self.element(BPF_MAP_LOOKUP_ELEM, name, &key, values.as_mut_ptr() as u64, size_of::<V>());
        // SAFETY: the kernel has written a value for each CPU that there can be.
        unsafe { values.set_len(cpus) };
        values
    }

    /// Words of a per-CPU value, summed over all CPUs.
    #[must_use]
    pub fn sum<const N: usize>(&self, name: &str, key: u32) -> [u64; N] {
        let add = |sum: [u64; N], cpu: [u64; N]| std::array::from_fn(|i| sum[i] + cpu[i]);
        self.each_cpu(name, key).into_iter().fold([0; N], add)
    }

    /// Everything that was counted.
    ///
    /// # Panics
    /// It cannot be read.
    #[must_use]
    pub fn counts(&self) -> elements::Counts {
        elements::counts(self.fd(map::COUNTERS)).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Writes one policy.
    ///
    /// # Panics
    /// It cannot be written.
    pub fn set_policy(&self, place: u32, policy: &Policy) {
        elements::write_policy(self.fd(map::POLICY), place, policy).unwrap_or_else(|e| panic!("{e}"));
    }

    /// The denials that are in the ring now, taken out of it.
    #[must_use]
    pub fn denials(&mut self) -> Vec<Denial> {
        self.take(map::DENIALS)
    }

    /// The records that are in a ring now, taken out of it; every bit pattern must be an `R`.
    ///
    /// # Panics
    /// There is no such ring, or a record is no `R`.
    #[must_use]
    pub fn take<R: Copy>(&mut self, name: &str) -> Vec<R> {
        let ring = self.ebpf.map_mut(name).map(RingBuf::try_from);
        let Some(Ok(mut ring)) = ring else { panic!("no ring {name}") };
        let mut records = Vec::new();
        while let Some(record) = ring.next() {
            assert_eq!(record.len(), size_of::<R>());
            // SAFETY: as long as a record.
            records.push(unsafe { record.as_ptr().cast::<R>().read_unaligned() });
        }
        records
    }

    /// A map.
    ///
    /// # Panics
    /// There is none of this name.
    #[must_use]
    pub fn map(&self, name: &str) -> &MapData {
        match self.ebpf.map(name) {
            Some(Map::Array(m) | Map::HashMap(m) | Map::PerCpuArray(m) | Map::RingBuf(m)) => m,
            _ => panic!("no map {name}"),
        }
    }

    fn fd(&self, name: &str) -> BorrowedFd<'_> {
        self.map(name).fd().as_fd()
    }

    /// bpf(2) on one element; `size`: of what is at `value`, 0 for nothing.
    fn element<K>(&self, command: libc::c_long, name: &str, key: &K, value: u64, size: usize) {
        let info = self.map(name).info().unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(info.key_size() as usize, size_of::<K>(), "{name}: the key's size");
        let wanted = match self.ebpf.map(name) {
            _ if value == 0 => 0,
            Some(Map::PerCpuArray(_)) => info.value_size().next_multiple_of(8),
            _ => info.value_size(),
        };
        assert_eq!(wanted as usize, size, "{name}: the value's size");
        // Map, key, value, flags.
        let map = u64::from(self.fd(name).as_raw_fd().cast_unsigned());
        let attribute = [map, ptr::from_ref(key) as u64, value, 0];
        // SAFETY: the attribute points at a key of the map's size, and at a value of its size if the command has one.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(&attribute)) };
        assert_eq!(done, 0, "{name}: {}", io::Error::last_os_error());
    }
}

/// `struct __sk_buff` of linux/bpf.h, as far as test runs take it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SkBuff {
    len: u32,
    packet_type: u32,
    /// The firewall mark.
    pub mark: u32,
    queue_and_vlan: [u32; 5],
    priority: u32,
    /// Where it came from.
    pub ingress_ifindex: u32,
    /// Where it is.
    pub ifindex: u32,
    to_data: [u32; 8],
    /// Not the caller's.
    pub data: u32,
    /// Not the caller's.
    pub data_end: u32,
    to_meta: [u32; 14],
    /// Not the caller's.
    pub data_meta: u32,
    rest: [u64; 6],
}
const _: () = assert!(size_of::<SkBuff>() == 192 && std::mem::offset_of!(SkBuff, data_meta) == 140);

impl SkBuff {
    /// All zeros.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "nobody asks for it")]
    pub fn new() -> Self {
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

/// The last lines of a verifier's log.
fn tail(log: &str) -> String {
    let log = log.replace("\\n", "\n");
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
