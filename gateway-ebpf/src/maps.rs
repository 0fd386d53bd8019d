//! The maps, and the kernel's side of [`Tables`]. Names, keys and values are those of [`gateway_ebpf::abi`]; sizes that depend on the
//! configuration are raised by the daemon when it loads the object.

use core::{arch::asm, mem::offset_of};

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, RingBuf},
};
use gateway_ebpf::{
    abi::{
        Answers, Bucket6, Class, Cold, ColdKey, Control, Count, CpuCounts, FragmentBucket, Homes6, Interface, MAX_INTERFACES,
        MAX_POOLS, MAX_RULES, POLICIES, Policy, ShadowCount, Shared, Trace,
    },
    headers::{Headers, Rare},
    tables::{Tables, read, settled},
};

/// User space may map the array and store to it.
const MMAPABLE: u32 = 1 << 10;

/// Key 0: [`Control`]. Written by the daemon through its mapping, read for each packet.
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, MMAPABLE);

/// Key 0: by the upper half of an IPv4 address, a chunk number. Written by the daemon when the configuration is loaded.
#[map]
static DIR4: Array<[u16; 65536]> = Array::with_max_entries(1, MMAPABLE);

/// By chunk number: by the lower half of an IPv4 address, its class. Written by the daemon, a byte for each move. Sized by the daemon:
/// a chunk for each /16 of the pools and the zero chunk. It cannot be full: what has no chunk is in no pool.
#[map]
static CHUNKS4: Array<[Class; 65536]> = Array::with_max_entries(2, MMAPABLE);

/// By bucket number: [`Bucket6`]. Written by the daemon, an entry for each IPv6 address of a live session. Sized by the daemon, a power of
/// two. Both buckets of an address full: the daemon refuses to open the session.
#[map]
static HASH6: Array<Bucket6> = Array::with_max_entries(1024, MMAPABLE);

/// Key 0: [`Homes6`]. Written by the daemon when the configuration is loaded.
#[map]
static HOMES6: Array<Homes6> = Array::with_max_entries(1, MMAPABLE);

/// By address: [`Cold`]. Written by the daemon, an entry for each address of a live session; read here only once a lease may have ended.
/// Full: the daemon refuses to open the session.
#[map]
static COLD: HashMap<ColdKey, Cold> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);

/// Key 0: by generation, [`Policy`]; the last is the shadow's. The daemon writes the generation that is not in force, then switches
/// [`Control::generation`].
#[map]
static POLICY: Array<[Policy; POLICIES as usize]> = Array::with_max_entries(1, MMAPABLE);

/// By interface index: [`Interface`]. Written by the daemon before a program is attached there; an entry goes with its interface. Read only
/// for VLANs, and while an interface has pools of its own. Full: one more has no VLANs and no pools, and the status says so.
#[map]
static INTERFACES: HashMap<u32, Interface> = HashMap::with_max_entries(MAX_INTERFACES as u32, BPF_F_NO_PREALLOC);

/// By bucket number: [`FragmentBucket`]. Written and read here only, by all CPUs. Sized by the daemon, a power of two. Full: the first
/// fragment of one more datagram is dropped.
#[map]
static FRAGMENTS: Array<FragmentBucket> = Array::with_max_entries(1, 0);

/// Key 0: by rule number, the digest of the rule that has it. The daemon's own memory of the numbers of rules.
#[map]
static RULE_IDS: Array<[u64; MAX_RULES]> = Array::with_max_entries(1, 0);

/// Key 0: by CPU number, [`CpuCounts`]. Written here, each CPU its own; read by the daemon. Whoever loads the object makes it as large as [`CPUS`] says.
/// No per-CPU array: those are of small values, and each look-up of one goes by a pointer of its own.
#[map]
static COUNTERS: Array<CpuCounts> = Array::with_max_entries(1, MMAPABLE);

/// [`gateway_ebpf::abi::CPUS`]. The kernel knows its value when it verifies.
#[unsafe(no_mangle)]
static CPUS: u32 = 1;

/// By pool number: [`ShadowCount`]. Written here while there is a shadow policy, each CPU its own; read by the daemon.
#[map]
pub(crate) static SHADOW: PerCpuArray<ShadowCount> = PerCpuArray::with_max_entries(MAX_POOLS as u32 + 1, 0);

/// Key 0: events suppressed by the rate limit, lost to a full ring, and not told because the same was told. Written here, each CPU its own;
/// read by the daemon.
#[map]
pub(crate) static EVENTS_LOST: PerCpuArray<[u64; 3]> = PerCpuArray::with_max_entries(1, 0);

/// The state of the rate limits: key 0 of events, key 1 of captures. Written and read here only, each CPU its own.
#[map]
pub(crate) static RATES: PerCpuArray<crate::rate::Rate> = PerCpuArray::with_max_entries(2, 0);

/// By the lowest bits of a signature: the last event told of it. Written and read here only, by all CPUs. An entry that another takes is forgotten:
/// then the same event is told twice.
#[map]
pub(crate) static TOLD: Array<Shared<u64>> = Array::with_max_entries(crate::report::TOLD as u32, 0);

/// Key 0: the headers of the packet that is being judged, on their way from one function to the next. Written and read here only, each
/// CPU its own: all hooks run with bottom halves off, so that none interrupts another. (Under PREEMPT_RT they can; the daemon refuses to start.)
#[map]
static HEADERS: PerCpuArray<Headers> = PerCpuArray::with_max_entries(1, 0);

/// Key 0: what the packet that is being judged has besides [`HEADERS`]. Written and read here only, each CPU its own.
#[map]
static RARE: PerCpuArray<Rare> = PerCpuArray::with_max_entries(1, 0);

/// [`gateway_ebpf::abi::Denial`] records. Written here, read by the daemon. Full: the record is lost and counted.
#[map]
pub(crate) static DENIALS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// [`gateway_ebpf::abi::Captured`] records, while someone captures. Written here, read by the daemon. Full: the record is lost and counted.
#[map]
pub(crate) static CAPTURES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Key 0: captures suppressed by the rate limit, lost to a full ring. Written here, each CPU its own; read by the daemon.
#[map]
pub(crate) static CAPTURES_LOST: PerCpuArray<[u64; 2]> = PerCpuArray::with_max_entries(1, 0);

/// Key 0: [`Trace`]. Written by the probing twin; each load of the object has its own.
#[map]
pub(crate) static TRACE: Array<Trace> = Array::with_max_entries(1, 0);

/// By pool number: [`Answers`]. Written here, each CPU its own; read by the daemon.
#[map]
pub(crate) static ANSWERS: PerCpuArray<Answers> = PerCpuArray::with_max_entries(MAX_POOLS as u32 + 1, 0);

/// By a hash of the source ([`crate::answer::SLOTS`]): since when, and how often it was answered. Written and read here only, by all CPUs. Sources that share an entry
/// share its answers; none is ever forgotten for another.
#[map]
pub(crate) static ANSWERED: Array<u64> = Array::with_max_entries(crate::answer::SLOTS, 0);

/// Key 0: the answer in the making. Written and read here only, each CPU its own.
#[map]
pub(crate) static ANSWER: PerCpuArray<crate::answer::Answer> = PerCpuArray::with_max_entries(1, 0);

/// Key 0: mark and interface of the answer that is on its way from ingress to egress, 0: none. Written and read here only, each CPU its own.
#[map]
pub(crate) static ANSWERING: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// [`gateway_ebpf::abi::PROBE`]. The kernel knows its value when it verifies, and removes the branches that are not taken.
#[unsafe(no_mangle)]
static PROBE: u8 = 0;

/// Whether this is the probing twin, which leaves no trace but [`TRACE`].
#[inline(always)]
pub(crate) fn probing() -> bool {
    read(&PROBE) != 0
}

/// Keeps the headers for the next function; `false`: it failed.
#[inline(always)]
pub(crate) fn keep(h: &Headers) -> bool {
    let Some(kept) = HEADERS.get_ptr_mut(0) else { return false };
    // SAFETY: the map's value of this CPU, which nobody else holds.
    unsafe { *kept = *h };
    true
}

/// The headers that were kept last.
#[inline(always)]
pub(crate) fn kept() -> Option<&'static Headers> {
    HEADERS.get(0)
}

/// Keeps the headers of a packet of which there is nothing more; `false`: it failed.
#[inline(always)]
pub(crate) fn keep_plain(h: &Headers) -> bool {
    let Some((kept, rare)) = kept_rare() else { return false };
    *kept = *h;
    rare.clear();
    true
}

/// The headers that were kept last, and what the packet has besides, to be completed by the decision.
#[inline(always)]
pub(crate) fn kept_rare() -> Option<(&'static mut Headers, &'static mut Rare)> {
    let (h, rare) = (HEADERS.get_ptr_mut(0)?, RARE.get_ptr_mut(0)?);
    // SAFETY: the maps' values of this CPU, which nobody else holds.
    Some(unsafe { (&mut *h, &mut *rare) })
}

/// The address of the only element of a map of [`gateway_ebpf::abi::map::DIRECT`]: the instruction loads the map's address, and is made to load the
/// element's when the programs are loaded. Each use has an instruction of its own, which is cheaper than an address that is kept on the stack.
macro_rules! element {
    ($map:ident: $type:ty) => {{
        let at: *mut $type;
        let _: &Array<$type> = &$map;
        // SAFETY: a load of an address.
        unsafe { asm!("{at} = {map} ll", at = out(reg) at, map = sym $map, options(nomem, nostack, preserves_flags)) };
        at
    }};
}

/// The same by reference.
macro_rules! only {
    ($map:ident: $type:ty) => {{
        let at = element!($map: $type);
        // SAFETY: the element is there as long as the map, which the program holds; what the daemon writes meanwhile is read by volatile loads.
        unsafe { &*at.cast_const() }
    }};
}

/// The counters of rules in a CPU's own. The compiler, which does not see how they are found, reaches both fields of one from one address.
#[inline(always)]
pub(crate) fn rules(own: *mut CpuCounts) -> *mut [Count; MAX_RULES] {
    let mut at = own;
    // SAFETY: arithmetic on one register, which stays inside what it points into.
    unsafe { asm!("{at} += {n}", at = inout(reg) at, n = const offset_of!(CpuCounts, rules), options(pure, nomem, nostack)) };
    at.cast()
}

/// This CPU's counters. The result is no reference: two may be asked for.
#[inline(always)]
pub(crate) fn own() -> Option<*mut CpuCounts> {
    // SAFETY: a helper without arguments, which the kernel replaces by a load (Linux 6.10, x86-64).
    let cpu = unsafe { bpf_get_smp_processor_id() };
    (cpu < read(&CPUS)).then(|| {
        let all = element!(COUNTERS: CpuCounts);
        // SAFETY: the map has room for so many.
        unsafe { all.add(cpu as usize) }
    })
}

/// Stores a word of a map and gives what was there, as one.
#[inline(always)]
pub(crate) fn exchange(word: &Shared<u64>, to: u64) -> u64 {
    let mut value = to;
    // SAFETY: an atomic exchange (BPF_XCHG, kernel 5.12) with a word of a map. The target's core library has no atomic operations.
    unsafe { asm!("{value} = xchg_64({word} + 0, {value})", value = inout(reg) value, word = in(reg) word.at()) };
    value
}

/// The kernel's tables and clocks; with this CPU's counters, if they are known already.
pub(crate) struct Kernel {
    pub(crate) own: Option<*mut CpuCounts>,
}

/// Without the counters.
pub(crate) const KERNEL: Kernel = Kernel { own: None };

impl Tables for Kernel {
    #[inline(always)]
    fn control(&self) -> Option<&Control> {
        Some(only!(CONTROL: Control))
    }
    #[inline(always)]
    fn directory4(&self) -> Option<&[u16; 65536]> {
        Some(only!(DIR4: [u16; 65536]))
    }
    #[inline(always)]
    fn chunk4(&self, chunk: u16, lower: u16) -> Option<Class> {
        CHUNKS4.get(chunk.into()).map(|c| read(&c[lower as usize]))
    }
    #[inline(always)]
    fn bucket6(&self, index: u32) -> Option<&Bucket6> {
        HASH6.get(index)
    }
    #[inline(always)]
    fn homes6(&self) -> Option<&Homes6> {
        Some(only!(HOMES6: Homes6))
    }
    #[inline(always)]
    fn policy(&self, index: u32) -> Option<&Policy> {
        only!(POLICY: [Policy; POLICIES as usize]).get(index as usize)
    }
    #[inline(always)]
    fn interface(&self, ifindex: u32) -> Option<&Interface> {
        // SAFETY: memory of the map, which stays valid as long as this program runs; whose it is, is the caller's business.
        unsafe { INTERFACES.get(ifindex) }
    }
    #[inline(always)]
    fn fragments(&self, index: u32) -> Option<&FragmentBucket> {
        FRAGMENTS.get(index)
    }
    #[inline(always)]
    fn remembers(&self) -> bool {
        !probing()
    }
    #[inline(always)]
    fn exchange(&self, word: &Shared<u64>, to: u64) -> u64 {
        exchange(word, to)
    }
    #[inline(always)]
    fn after(&self, word: u64) -> usize {
        let mut zero = word;
        // SAFETY: arithmetic on one register. Neither compiler nor JIT knows that the result is 0; the verifier does.
        unsafe { asm!("{zero} &= 0", zero = inout(reg) zero, options(pure, nomem, nostack)) };
        zero as usize
    }
    #[inline(always)]
    fn upper(&self, word: u64) -> u64 {
        let mut upper = word;
        // SAFETY: arithmetic on one register.
        unsafe { asm!("{upper} >>= 32", upper = inout(reg) upper, options(pure, nomem, nostack)) };
        upper
    }
    #[inline(always)]
    fn cold(&self, key: &ColdKey) -> Option<Cold> {
        settled(|| {
            // SAFETY: memory of the map, which stays valid as long as this program runs; whose it is, `settled` finds out.
            let found = unsafe { COLD.get(key) }?;
            Some(Cold {
                lease_end: read(&found.lease_end),
                session: read(&found.session),
                fallback: read(&found.fallback),
            })
        })
    }
    #[inline(always)]
    fn coarse_now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
    #[inline(always)]
    fn about_boot_now(&self) -> u64 {
        match self.own.or_else(own) {
            // SAFETY: this CPU's, which nobody else holds; a helper without arguments, which the kernel replaces by a load.
            Some(own) => unsafe { (*own).clock.about(bpf_jiffies64(), || self.boot_now()) },
            None => self.boot_now(),
        }
    }
    #[inline(always)]
    fn boot_now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_boot_ns() }
    }
}
