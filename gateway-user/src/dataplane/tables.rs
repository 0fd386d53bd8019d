//! The one writer of the tables that the programs read: class bytes, sessions and leases, policy generations. Mapped memory where a store
//! is enough, system calls for the cold record beside it. At no moment is an address judged more loosely than before and after a change.

use std::{
    collections::{HashMap, HashSet},
    io,
    mem::offset_of,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence},
    },
};

use gateway_ebpf::abi::{self, Class, ClassEntry, Cold, Control, ENTRY_LEASED, Homes6, POLICIES, Policy, VERSION};

use super::{
    bpf::{self, Map},
    classes::{self, Classes, Key},
    counts::Counts,
    flags::Flags,
    force::{self, Policies, SHADOW_AT, grace},
    layout::{self, CHUNK, Layout4},
    many,
    mapping::Mapping,
    maps::Maps,
    policy::CompileError,
    readback,
    table6::{Full, SharedBucket, Table6},
};
use crate::{
    config::{Config, Mode, PoolKind},
    kernel::{Assignment, KernelError, Link},
    model::{BootTime, InterfaceName, PoolId, prefix},
};

/// The tables of one set of maps.
pub(super) struct Tables {
    config: Config,
    pub(super) layout: Layout4,
    homes6: Box<Homes6>,
    /// Content of DIR4.
    directory: Vec<u8>,
    digest: u64,
    control: Mapping,
    pub(super) chunks: Mapping,
    hash6: Mapping,
    pub(super) policy: Mapping,
    pub(super) counts: Counts,
    pub(super) classes: Classes,
    pub(super) flags: Arc<Flags>,
    /// As last told.
    indexes: HashMap<InterfaceName, u32>,
    words: Words,
}

/// Words of CONTROL that no configuration says, as last written.
#[derive(Clone, Copy, Default)]
struct Words {
    generation: u32,
    earliest_lease_end: u64,
    meta_key: u32,
}

impl Tables {
    /// Maps the memory of `maps`, which have the sizes that the configuration asks for.
    pub(super) fn new(config: &Config, maps: &Maps, flags: Arc<Flags>) -> Result<Self, TablesError> {
        let layout = Layout4::new(config)?;
        Ok(Self {
            homes6: layout::homes6(config)?,
            directory: layout.directory().into_iter().flat_map(u16::to_ne_bytes).collect(),
            digest: layout::digest(config),
            control: Mapping::new(maps.get(abi::map::CONTROL)?, size_of::<Control>())?,
            chunks: Mapping::new(maps.get(abi::map::CHUNKS4)?, layout.chunks() * CHUNK)?,
            hash6: Mapping::new(
                maps.get(abi::map::HASH6)?,
                layout::buckets6(config) as usize * size_of::<SharedBucket>(),
            )?,
            policy: Mapping::new(maps.get(abi::map::POLICY)?, POLICIES as usize * size_of::<Policy>())?,
            counts: Counts::new(maps)?,
            classes: Classes::new(config),
            flags,
            indexes: HashMap::new(),
            words: Words::default(),
            config: config.clone(),
            layout,
        })
    }

    /// Fills new maps, which no attached program reads yet: everything at rest.
    pub(super) fn fill(&mut self, maps: &Maps, policies: &Policies) -> io::Result<()> {
        let index = 0_u32.to_ne_bytes();
        bpf::update(maps.get(abi::map::DIR4)?.fd.as_fd(), &index, &self.directory)?;
        bpf::update(maps.get(abi::map::HOMES6)?.fd.as_fd(), &index, bpf::bytes_of(&*self.homes6))?;
        self.chunks.copy_in(0, &self.layout.resting(&self.config));
        self.policy.copy_in(0, bpf::bytes_of(&*policies.enforced));
        if let Some(shadow) = &policies.shadow {
            self.policy.copy_in(SHADOW_AT, bpf::bytes_of(&**shadow));
        }
        force::write_ids(maps, &policies.numbers.after)?;
        self.words = Words {
            generation: 0,
            earliest_lease_end: u64::MAX,
            meta_key: meta_key()?,
        };
        let flags = self.mode_flags() | if policies.shadow.is_some() { abi::FLAG_SHADOW } else { 0 };
        self.control.copy_in(0, bpf::bytes_of(&self.wanted(flags)));
        self.flags.begin(flags);
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// CONTROL as it was last written, but for its flags.
    pub(super) fn wanted(&self, flags: u32) -> Control {
        Control {
            abi: VERSION,
            flags,
            generation: self.words.generation,
            hash6_bits: layout::buckets6(&self.config).trailing_zeros(),
            earliest_lease_end: self.words.earliest_lease_end,
            config_digest: self.digest,
            fragment_bits: layout::fragment_buckets(&self.config).trailing_zeros(),
            meta_key: self.words.meta_key,
            classes: self.classes.entries(),
        }
    }

    /// Writes it, word by word while programs read, but for its flags. What ends a lease comes first.
    pub(super) fn write_control(&self, wanted: &Control) {
        let word = |at: usize, value: u32| self.control.word32(at).store(value, Ordering::SeqCst);
        let words = |at: usize, value: u64| self.control.word64(at).store(value, Ordering::SeqCst);
        words(offset_of!(Control, earliest_lease_end), wanted.earliest_lease_end);
        for (class, entry) in (0..=Class::MAX).zip(wanted.classes) {
            self.write_entry(class, entry);
        }
        word(offset_of!(Control, generation), wanted.generation);
        word(offset_of!(Control, hash6_bits), wanted.hash6_bits);
        word(offset_of!(Control, fragment_bits), wanted.fragment_bits);
        word(offset_of!(Control, meta_key), wanted.meta_key);
        word(offset_of!(Control, abi), wanted.abi);
        words(offset_of!(Control, config_digest), wanted.config_digest);
    }

    /// Whether maps that attached programs read hold what this configuration needs and no store can change: layout and directory.
    pub(super) fn fit(config: &Config, maps: &Maps) -> io::Result<bool> {
        let control = maps.get(abi::map::CONTROL)?.element::<Control>(0)?;
        let Ok(layout) = Layout4::new(config) else { return Ok(false) };
        let Ok(homes6) = layout::homes6(config) else {
            return Ok(false);
        };
        let held = maps.get(abi::map::HOMES6)?.element::<Homes6>(0)?;
        let directory = maps.get(abi::map::DIR4)?.element::<[u16; CHUNK]>(0)?;
        Ok(control.abi == VERSION
            && control.config_digest == layout::digest(config)
            && control.generation < 2
            && control.hash6_bits == layout::buckets6(config).trailing_zeros()
            && maps.get(abi::map::CHUNKS4)?.info.max_entries as usize == layout.chunks()
            && maps.get(abi::map::HASH6)?.info.max_entries == layout::buckets6(config)
            && control.fragment_bits == layout::fragment_buckets(config).trailing_zeros()
            && maps.get(abi::map::FRAGMENTS)?.info.max_entries == layout::fragment_buckets(config)
            // As many CPUs as the programs are about to be loaded for.
            && maps.get(abi::map::COUNTERS)?.info.value_size as usize == readback::cpu_numbers()? * size_of::<abi::CpuCounts>()
            && bpf::bytes_of(&*held) == bpf::bytes_of(&*homes6)
            && directory[..] == layout.directory()[..])
    }

    /// Sets adopted maps right where they differ: classes of addresses without a session, the policy, the mode. Returns how many
    /// addresses were wrong.
    pub(super) fn repair(&mut self, maps: &Maps, policies: &Policies) -> Result<usize, KernelError> {
        let assigned: HashSet<IpAddr> = many::records(maps)?.into_iter().map(|(address, _)| address).collect();
        let resting = self.layout.resting(&self.config);
        self.adopt_classes();
        // A number that means nothing is no session's.
        let means = |classes: &Classes, class: Class| classes.entry(class) != 0;
        let mut repaired = 0;
        for (place, want) in resting.iter().enumerate() {
            let byte = self.chunks.byte(place);
            let class = byte.load(Ordering::Relaxed);
            if class == *want {
                continue;
            }
            let held = self.layout.address(place).is_some_and(|a| assigned.contains(&IpAddr::V4(a)));
            if held && means(&self.classes, class) {
                self.classes.entered(class);
            } else {
                byte.store(*want, Ordering::Release);
                repaired += 1;
            }
        }
        let (hash6, classes) = (&self.hash6, &mut self.classes);
        Table6(hash6.buckets()).retain(|key, class| {
            let keep = assigned.contains(&IpAddr::V6(layout::address6(key))) && means(classes, class);
            if keep {
                classes.entered(class);
            }
            repaired += usize::from(!keep);
            keep
        });
        force::switch(self, maps, policies).map_err(|error| system("changing the policy", error))?;
        let kept = self.flags.now() & (abi::FLAG_SHADOW | abi::FLAG_INTERFACE_POOLS | abi::FLAG_DELEGATED);
        self.flags.begin(self.mode_flags() | kept);
        let meta_key = meta_key().map_err(|e| system("asking for a random number", e))?;
        self.control
            .word32(offset_of!(Control, meta_key))
            .store(meta_key, Ordering::SeqCst);
        self.words = Words {
            generation: self.generation().load(Ordering::SeqCst),
            earliest_lease_end: self
                .control
                .word64(offset_of!(Control, earliest_lease_end))
                .load(Ordering::SeqCst),
            meta_key,
        };
        Ok(repaired)
    }

    /// See [`crate::kernel::Kernel::assign`].
    pub(super) fn assign(&mut self, maps: &Maps, address: IpAddr, to: Assignment) -> Result<(), KernelError> {
        let cold = record(&to);
        let resting = self.resting(address).ok_or(KernelError::OutsidePools(address))?;
        let old = self.class(address, resting);
        let before = read_cold(maps, address)?;
        let delegated = prefix::network(address).is_some();
        if delegated {
            // Before there is an address that is found only with it.
            self.flags.set(abi::FLAG_DELEGATED, true);
        }
        let class = self.class_for(&to, delegated, before.is_some())?;
        let Some(before) = before else {
            // At rest: the cold record is not looked at, so it goes first, and back if there is no room for the class.
            write_cold(maps, address, &cold)?;
            return self
                .set_class(address, class)
                .inspect_err(|_| drop(delete_cold(maps, address)));
        };
        if to.lease.is_none() {
            // A class without lease ignores the record; the other way round the old class would take its endless lease for its own.
            self.set_class(address, class)?;
            return write_cold(maps, address, &cold);
        }
        if self.classes.entry(old) & ENTRY_LEASED != 0 && old != class {
            // Between two leased pools, the new lease must not prolong the old pool.
            let between = Assignment {
                pool: PoolId(before.fallback as u8),
                lease: None,
                ..to
            };
            // Nobody uses the new class yet: it must not be taken for an idle one.
            self.classes.entered(class);
            let between = self.class_for(&between, delegated, true);
            self.classes.left(class);
            self.set_class(address, between?)?;
        }
        write_cold(maps, address, &cold)?;
        self.set_class(address, class)
    }

    pub(super) fn is_at_rest(&self, address: IpAddr) -> bool {
        self.resting(address).is_some_and(|resting| match address {
            IpAddr::V4(a) => self.byte4(a).load(Ordering::Relaxed) == resting,
            IpAddr::V6(a) => self.table6().get(layout::words6(a)).is_none(),
        })
    }

    /// See [`crate::kernel::Kernel::clear`].
    pub(super) fn clear(&mut self, maps: &Maps, address: IpAddr) -> Result<(), KernelError> {
        match address {
            // What is in no pool has no class; whoever gave it one was not this daemon.
            IpAddr::V4(_) => self.set_class(address, self.resting(address).unwrap_or(0))?,
            IpAddr::V6(a) => {
                let key = layout::words6(a);
                if let Some(class) = self.table6().get(key).map(|b| b.load(Ordering::Relaxed)) {
                    self.table6().remove(key);
                    self.classes.left(class);
                }
            }
        }
        delete_cold(maps, address)
    }

    /// See [`crate::kernel::Kernel::set_earliest_lease_end`].
    pub(super) fn set_earliest_lease_end(&mut self, end: Option<BootTime>) {
        self.words.earliest_lease_end = end.map_or(u64::MAX, |end| end.0);
        self.control
            .word64(offset_of!(Control, earliest_lease_end))
            .store(self.words.earliest_lease_end, Ordering::SeqCst);
    }

    /// Binds classes to the interfaces that exist now.
    pub(super) fn follow<'a>(&mut self, links: impl IntoIterator<Item = &'a Link>) {
        self.indexes = links.into_iter().map(|l| (l.name.clone(), l.ifindex)).collect();
        for (class, entry) in self.classes.follow(&self.indexes) {
            self.write_entry(class, entry);
        }
    }

    /// The interface that a class is bound to by an entry that was read from CONTROL: by the name that it was given for, as long as that is
    /// the entry that was written.
    pub(super) fn interface(&self, class: Class, entry: ClassEntry) -> Option<&InterfaceName> {
        if entry == self.classes.entry(class) {
            self.classes.interface(class)
        } else {
            self.interface_at(abi::entry_ifindex(entry))
        }
    }

    /// The interface that has an index.
    pub(super) fn interface_at(&self, index: u32) -> Option<&InterfaceName> {
        self.indexes.iter().find(|(_, i)| **i == index).map(|(name, _)| name)
    }

    pub(super) fn directory(&self) -> &[u8] {
        &self.directory
    }

    pub(super) const fn homes6(&self) -> &Homes6 {
        &self.homes6
    }

    /// Takes over the numbers that are given out, and sets those of addresses at rest right.
    fn adopt_classes(&mut self) {
        let entries = std::array::from_fn(|i| self.entry_word(i as Class).load(Ordering::Acquire));
        let names: HashMap<u32, &InterfaceName> = self.indexes.iter().map(|(name, index)| (*index, name)).collect();
        self.classes.adopt(&entries, |index| names.get(&index).map(|n| (*n).clone()));
        for (class, entry) in (0..=Class::MAX).zip(self.classes.entries()) {
            if entries[usize::from(class)] != entry {
                self.write_entry(class, entry);
            }
        }
    }

    /// The class of an assignment. Where none is free, what restricts an address that is assigned already takes the class of its pool at
    /// rest, which is bound to no interface: rather that than not restricted.
    pub(super) fn class_for(&mut self, to: &Assignment, delegated: bool, assigned: bool) -> Result<Class, KernelError> {
        let key = Key {
            pool: to.pool,
            leased: to.lease.is_some(),
            delegated,
            interface: to.interface.clone(),
        };
        if let Some(class) = self.classes.find(&key) {
            return Ok(class);
        }
        if self.classes.free().is_none() && self.classes.any_idle() {
            grace();
            for class in self.classes.forget_idle() {
                self.write_entry(class, 0);
            }
        }
        let Some(class) = self.classes.free() else {
            let restricts = self
                .config
                .pool_by_id(to.pool)
                .is_some_and(|p| p.kind != PoolKind::FullService);
            if assigned && restricts && to.lease.is_none() {
                tracing::error!(
                    session = to.session.0,
                    "{}; the address is restricted, but not bound",
                    KernelError::ClassesFull
                );
                return Ok(to.pool.0);
            }
            return Err(KernelError::ClassesFull);
        };
        let ifindex = self.indexes.get(&to.interface).copied().unwrap_or(classes::NOWHERE);
        let entry = self.classes.give(class, key, ifindex);
        self.write_entry(class, entry);
        Ok(class)
    }

    fn entry_word(&self, class: Class) -> &AtomicU64 {
        self.control
            .word64(offset_of!(Control, classes) + usize::from(class) * size_of::<ClassEntry>())
    }

    /// Before a byte names it.
    fn write_entry(&self, class: Class, entry: ClassEntry) {
        self.entry_word(class).store(entry, Ordering::SeqCst);
    }

    fn mode_flags(&self) -> u32 {
        match self.config.mode {
            Mode::Enforce => 0,
            Mode::Observe => abi::FLAG_OBSERVE,
        }
    }

    pub(super) fn generation(&self) -> &AtomicU32 {
        self.control.word32(offset_of!(Control, generation))
    }

    pub(super) fn set_generation(&mut self, generation: u32) {
        self.words.generation = generation;
        self.generation().store(generation, Ordering::SeqCst);
    }

    /// By what an address is judged, in the memory that the programs read; 0: it is in no pool.
    pub(super) fn class_now(&self, address: IpAddr) -> Class {
        self.resting(address).map_or(0, |resting| self.class(address, resting))
    }

    /// The class of an address without session; `None`: it is in no pool, or reserved.
    fn resting(&self, address: IpAddr) -> Option<Class> {
        self.config.home(address).map(|home| home.id.0)
    }

    fn class(&self, address: IpAddr, resting: Class) -> Class {
        match address {
            IpAddr::V4(a) => self.byte4(a).load(Ordering::Relaxed),
            IpAddr::V6(a) => self
                .table6()
                .get(layout::words6(a))
                .map_or(resting, |b| b.load(Ordering::Relaxed)),
        }
    }

    pub(super) fn set_class(&mut self, address: IpAddr, class: Class) -> Result<(), KernelError> {
        let old = match address {
            IpAddr::V4(a) => Some(self.byte4(a).load(Ordering::Relaxed)),
            IpAddr::V6(a) => self.table6().get(layout::words6(a)).map(|b| b.load(Ordering::Relaxed)),
        };
        match address {
            IpAddr::V4(a) => self.byte4(a).store(class, Ordering::SeqCst),
            IpAddr::V6(a) => {
                self.table6()
                    .set(layout::words6(a), class)
                    .map_err(|Full| KernelError::TableFull)?;
                fence(Ordering::SeqCst);
            }
        }
        match old {
            Some(old) => self.classes.moved(old, class),
            None => self.classes.entered(class),
        }
        Ok(())
    }

    /// In a /16 that no pool touches it is one that they all share.
    fn byte4(&self, address: Ipv4Addr) -> &AtomicU8 {
        let (chunk, place) = self.layout.place(u32::from(address));
        self.chunks.byte(chunk * CHUNK + place)
    }

    fn table6(&self) -> Table6<'_> {
        Table6(self.buckets())
    }

    pub(super) fn buckets(&self) -> &[SharedBucket] {
        self.hash6.buckets()
    }

    pub(super) const fn config(&self) -> &Config {
        &self.config
    }
}

/// The cold record that counts for an address: its own, or that of its whole /64.
pub(super) fn cold_record(cold: &Map, address: IpAddr) -> io::Result<Option<Cold>> {
    match (own_record(cold, address)?, prefix::around(address)) {
        (None, Some(network)) => own_record(cold, network),
        (own, _) => Ok(own),
    }
}

fn own_record(cold: &Map, address: IpAddr) -> io::Result<Option<Cold>> {
    let mut value = [0_u8; size_of::<Cold>()];
    let found = bpf::lookup(cold.fd.as_fd(), &cold_key(address), &mut value)?;
    Ok(found.map(|()| *bpf::read_plain(&value)))
}

/// What no other program knows: see [`Control::meta_key`].
fn meta_key() -> io::Result<u32> {
    getrandom::u32().map_err(io::Error::other)
}

/// The boot clock, nanoseconds.
pub(super) fn boot_now() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a timespec that lives through the call; the clock exists on every kernel with TCX.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

fn read_cold(maps: &Maps, address: IpAddr) -> Result<Option<Cold>, KernelError> {
    let cold = maps.get(abi::map::COLD).map_err(|error| system("COLD", error))?;
    own_record(cold, address).map_err(|error| system("reading COLD", error))
}

fn write_cold(maps: &Maps, address: IpAddr, record: &Cold) -> Result<(), KernelError> {
    let cold = maps.get(abi::map::COLD).map_err(|error| system("COLD", error))?;
    bpf::update(cold.fd.as_fd(), &cold_key(address), bpf::bytes_of(record)).map_err(|e| match e.raw_os_error() {
        Some(libc::E2BIG) => KernelError::TableFull,
        _ => system("writing COLD", e),
    })
}

pub(super) fn delete_cold(maps: &Maps, address: IpAddr) -> Result<(), KernelError> {
    let cold = maps.get(abi::map::COLD).map_err(|error| system("COLD", error))?;
    bpf::delete(cold.fd.as_fd(), &cold_key(address)).map_err(|error| system("removing from COLD", error))
}

/// What is stored beside an address.
pub(super) fn record(to: &Assignment) -> Cold {
    Cold {
        lease_end: to.lease.map_or(u64::MAX, |(end, _)| end.0),
        session: to.session.0,
        fallback: u64::from(to.lease.map_or(to.pool, |(_, fallback)| fallback).0),
    }
}

pub(super) fn cold_key(address: IpAddr) -> abi::ColdKey {
    match address {
        IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
        IpAddr::V6(a) => a.octets(),
    }
}

/// Why tables could not be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum TablesError {
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error(transparent)]
    System(#[from] io::Error),
}

pub(super) fn system(what: &str, error: io::Error) -> KernelError {
    KernelError::System {
        what: what.to_owned(),
        error,
    }
}
