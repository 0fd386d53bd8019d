//! [`Kernel`], for real: the object loaded with maps made new or adopted from their pins, and programs on every interface with a role.
//!
//! Order of a start: lock, floor closed, maps (adopted and repaired, or new and filled), programs loaded. Then the controller assigns the
//! live sessions, and only then [`Places::set_links`] attaches or replaces programs and pins new maps. So no program ever runs on
//! tables that miss a session, and a crash in between leaves the old programs on the old maps.

use std::{collections::HashMap, net::IpAddr, os::fd::AsFd, path::PathBuf, sync::Arc};

use aya::{
    Ebpf, EbpfLoader,
    maps::Map as AyaMap,
    programs::{Program as AyaProgram, ProgramError},
};
use gateway_ebpf::{
    abi::{self, Answers, Cold, Count, MAX_POOLS, MAX_RULES, REASONS, RuleCount, ShadowCount, VERSION, map},
    reason::Reason,
};

use super::{
    bpf::Map,
    environment::{self, Error},
    flags::Flags,
    force::{self, Policies},
    hooks::{Hooks, PROGRAMS, Program},
    layout::{self, Layout4},
    many,
    maps::{self, Maps},
    memory, numbers, object, policy,
    readback::{self, pool_now},
    ring::Ring,
    tables::{self, Tables, TablesError, system},
    upkeep::{Parts, Upkeep},
};
use crate::{
    config::{Config, Mode},
    floor::{self, Floor},
    kernel::{
        AddressReading, Assignment, InterfaceState, Kernel, KernelError, Link, Losses, Places, ReadBack, Survey, TableDifference,
    },
    links,
    model::{BootTime, PoolId, SessionId},
};

/// How often a program is loaded again that a signal has interrupted.
const LOADS: usize = 10;

/// The data plane of this host's network namespace. Dropped, it leaves everything in force.
pub struct Live {
    config: Config,
    maps: Arc<Maps>,
    tables: Tables,
    /// As they are in force.
    policies: Policies,
    upkeep: Arc<Upkeep>,
    adopted: bool,
}

impl Live {
    /// Opens the data plane: takes the lock, closes the floor (in observe mode: opens it), adopts or makes the maps, loads the programs.
    /// No program is attached or replaced before the first [`Places::set_links`].
    ///
    /// # Errors
    /// See [`Error`]; nothing was loosened then, and the floor may be closed already.
    pub fn open(config: &Config) -> Result<Self, Error> {
        // What does not fit is said before anything is touched.
        policy::compile(config)?;
        policy::compile_shadow(config)?;
        let pins = &config.paths.pins;
        environment::require(pins)?;
        let lock = environment::lock(pins)?;
        // Before the floor is closed, so that no change falls in between.
        let changes = floor::Changes::listen()
            .inspect_err(|e| tracing::warn!("nftables cannot be listened to: {e}; the floor is looked at every second"))
            .ok();
        let floor = match config.mode {
            Mode::Enforce => Some(Floor::begin(config)?),
            Mode::Observe => {
                floor::open()?;
                None
            }
        };

        let version = pins.join(format!("v{VERSION}"));
        std::fs::create_dir_all(&version).map_err(Error::system(format!("making {}", version.display())))?;
        let directory = version.join("maps");
        let held = Maps::pinned(&directory).map_err(Error::system("opening the pinned maps"))?;
        let mut numbered = config.clone();
        let kept = match &held {
            Some(held) if Tables::fit(config, held).map_err(Error::system("reading the pinned maps"))? => {
                let ids = force::rule_ids(held).map_err(Error::system("reading the pinned maps"))?;
                // Where the old rules leave too few numbers for the new ones, all begin anew.
                numbers::assign(&mut numbered, &ids).ok()
            }
            _ => None,
        };
        let adopted = kept.is_some();
        let numbers = match kept {
            Some(numbers) => numbers,
            None => numbers::assign(&mut numbered, &[0; MAX_RULES])?,
        };
        let policies = Policies {
            enforced: policy::compile(&numbered)?,
            shadow: policy::compile_shadow(&numbered)?,
            numbers,
        };
        let config = &numbered;
        let (maps, programs) = load(config, adopted.then_some(&directory))?;
        let flags = Arc::new(Flags::new(&maps).map_err(Error::system("mapping CONTROL"))?);
        let mut tables = Tables::new(config, &maps, Arc::clone(&flags)).map_err(|e| match e {
            TablesError::Compile(e) => Error::Compile(e),
            TablesError::System(e) => Error::system("mapping the tables")(e),
        })?;
        let there = links::now().map_err(Error::system("listing interfaces"))?;
        tables.follow(there.iter().map(|l| &l.link));
        if adopted {
            let repaired = tables.repair(&maps, &policies).map_err(|e| Error::Load(e.to_string()))?;
            if repaired != 0 {
                tracing::warn!(repaired, "addresses without a session were not at rest in the adopted maps");
            }
            tracing::info!("adopted the pinned maps");
        } else {
            tables.fill(&maps, &policies).map_err(Error::system("filling the tables"))?;
            let why = if held.is_some() {
                "the pinned maps are of another configuration"
            } else {
                "no maps are pinned"
            };
            tracing::info!("{why}: made new ones; counters start at zero");
        }
        let hooks = Hooks::new(programs, pins, version.join("links")).map_err(Error::system("opening the pinned links"))?;
        let maps = Arc::new(maps);
        let upkeep = Upkeep::new(Parts {
            config: config.clone(),
            maps: Arc::clone(&maps),
            flags,
            hooks,
            floor,
            changes,
            to_pin: (!adopted).then_some(directory),
            lock,
        })?;
        Ok(Self {
            config: config.clone(),
            maps,
            tables,
            policies,
            upkeep: Arc::new(upkeep),
            adopted,
        })
    }

    /// What the controller and its threads do when interfaces change, at once and in turn: [`Kernel::follow`] and [`Places::set_links`], for
    /// the interfaces that exist now.
    pub fn set_links(&mut self) {
        match links::now() {
            Ok(links) => {
                self.tables.follow(links.iter().map(|l| &l.link));
                self.upkeep.look_after(&links);
            }
            Err(e) => tracing::error!("listing interfaces: {e}"),
        }
    }

    /// See [`Places::interfaces`].
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn interfaces(&self) -> Result<Vec<InterfaceState>, KernelError> {
        self.upkeep.interfaces()
    }

    /// See [`Places::floor`].
    #[must_use]
    pub fn floor(&self) -> String {
        self.upkeep.floor()
    }

    /// See [`Places::read_back`].
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn read_back(&self, addresses: &[IpAddr]) -> Result<Vec<Vec<ReadBack>>, KernelError> {
        self.upkeep.read_back(addresses)
    }

    /// The configuration in force: as it was given, with the numbers that its rules have.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the maps were adopted from their pins: sessions in them are to be reconciled, counters go on.
    #[must_use]
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// For class bytes by themselves.
    pub(super) fn tables(&mut self) -> &mut Tables {
        &mut self.tables
    }

    /// The ring of denied packets.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn denials(&self) -> Result<Ring<abi::Denial>, Error> {
        Ring::open(&self.maps, map::DENIALS)
    }

    /// Who sets flags, and knows who did.
    pub(super) fn flags(&self) -> Arc<Flags> {
        Arc::clone(&self.tables.flags)
    }

    pub(super) fn maps(&self) -> &Maps {
        &self.maps
    }

    /// Where this version's pins are.
    pub(super) fn version_pins(&self) -> PathBuf {
        self.config.paths.pins.join(format!("v{VERSION}"))
    }

    /// What the classes of our own tables mean.
    fn entries(&self) -> Result<Box<abi::Control>, KernelError> {
        let control = self.maps.get(map::CONTROL).map_err(|e| system("opening CONTROL", e))?;
        readback::control(control).map_err(|e| system("reading CONTROL", e))
    }

    /// What a class and the record beside it say of an address.
    fn reading(&self, entries: &abi::Control, of: readback::Reading, record: Option<Cold>) -> AddressReading {
        let lease = record.filter(|c| c.lease_end != u64::MAX);
        let entry = entries.classes[usize::from(of.class)];
        AddressReading {
            pool: pool_now(entry, record, tables::boot_now()),
            session: record.map(|c| SessionId(c.session)),
            interface: self.tables.interface(of.class, entry).cloned(),
            lease_end: lease.map(|c| BootTime(c.lease_end)),
            fallback: lease.and_then(|c| u8::try_from(c.fallback).ok()).map(PoolId),
            map_id: of.map_id,
        }
    }

    /// Number 0, no pool, and those of the configuration.
    fn pool_numbers(&self) -> impl Iterator<Item = u8> {
        let pools = self.config.pools.len();
        (0..=MAX_POOLS).filter(move |p| usize::from(*p) <= pools)
    }

    /// An element of a per-CPU array, over all CPUs.
    fn summed<const N: usize>(&self, name: &'static str, index: u32) -> Result<Box<[u64; N]>, KernelError> {
        let of = |e| system(name, e);
        readback::per_cpu(self.maps.get(name).map_err(of)?, index).map_err(of)
    }
}

impl Kernel for Live {
    fn assign(&mut self, address: IpAddr, to: Assignment) -> Result<(), KernelError> {
        self.tables.assign(&self.maps, address, to)
    }

    fn assign_all(&mut self, all: &[(IpAddr, Assignment)]) -> Vec<(usize, KernelError)> {
        self.tables.assign_all(&self.maps, all)
    }

    fn clear(&mut self, address: IpAddr) -> Result<(), KernelError> {
        self.tables.clear(&self.maps, address)
    }

    fn assigned(&self) -> Result<Vec<(IpAddr, AddressReading)>, KernelError> {
        let id = |name| Ok(self.maps.get(name).map_err(|e| system(name, e))?.info.id);
        let (id4, id6, entries) = (id(map::CHUNKS4)?, id(map::HASH6)?, self.entries()?);
        let one = |(address, record): (IpAddr, Cold)| {
            let reading = readback::Reading {
                class: self.tables.class_now(address),
                map_id: if address.is_ipv4() { id4 } else { id6 },
            };
            (address, self.reading(&entries, reading, Some(record)))
        };
        Ok(many::records(&self.maps)?.into_iter().map(one).collect())
    }

    fn set_earliest_lease_end(&mut self, end: Option<BootTime>) {
        self.tables.set_earliest_lease_end(end);
    }

    fn read_all(&self, addresses: &[IpAddr]) -> Result<Vec<AddressReading>, KernelError> {
        let classes = readback::classes(&self.maps, addresses)?;
        let entries = self.entries()?;
        let cold = self.maps.get(map::COLD).map_err(|e| system("opening COLD", e))?;
        let one = |(address, reading): (&IpAddr, readback::Reading)| {
            let record = tables::cold_record(cold, *address).map_err(|e| system("reading COLD", e))?;
            Ok(self.reading(&entries, reading, record))
        };
        addresses.iter().zip(classes).map(one).collect()
    }

    fn survey(&self, part: usize) -> Result<Survey, KernelError> {
        Ok(self.tables.survey(part))
    }

    fn compare_tables(&mut self, part: usize, found: &mut Vec<TableDifference>) -> Result<Option<usize>, KernelError> {
        match part {
            0 => self.tables.compare_control(&self.maps, found)?,
            1 => self.upkeep.compare_interfaces(found)?,
            2 => self.tables.compare_homes(&self.maps, &self.policies, found)?,
            _ => {
                self.tables.compare_policies(&self.policies, found);
                return Ok(None);
            }
        }
        Ok(Some(part + 1))
    }

    fn recount(&mut self) {
        self.tables.recount();
    }

    fn follow(&mut self, links: &[Link]) {
        self.tables.follow(links);
    }

    fn places(&self) -> Arc<dyn Places> {
        Arc::clone(&self.upkeep) as Arc<dyn Places>
    }

    fn counters(&self) -> Result<Vec<(u8, Box<[Count; REASONS]>)>, KernelError> {
        let one = |pool| (pool, Box::new(self.tables.counts.pool(pool)));
        Ok(self.pool_numbers().map(one).collect())
    }

    fn rule_counters(&self) -> Result<Vec<(u16, RuleCount)>, KernelError> {
        let one = |number: u16| {
            let mut counted = self.tables.counts.rule(number);
            if number == 0 {
                // What `all` passed is counted by pool only.
                for pool in 0..=MAX_POOLS {
                    let all = self.tables.counts.pool(pool)[Reason::All as usize];
                    counted.passed.packets += all.packets;
                    counted.passed.bytes += all.bytes;
                }
            }
            (number, counted)
        };
        Ok(numbers::all(&self.config).into_iter().map(one).collect())
    }

    fn shadow_counters(&self) -> Result<Vec<(u8, ShadowCount)>, KernelError> {
        let one = |pool: u8| {
            let w: Box<[u64; 4]> = self.summed(map::SHADOW, u32::from(pool))?;
            let (would_drop, would_pass) = (count(w[0], w[1]), count(w[2], w[3]));
            Ok((pool, ShadowCount { would_drop, would_pass }))
        };
        self.pool_numbers().map(one).collect()
    }

    fn losses(&self) -> Result<Losses, KernelError> {
        let events: Box<[u64; 3]> = self.summed(map::EVENTS_LOST, 0)?;
        let captures: Box<[u64; 2]> = self.summed(map::CAPTURES_LOST, 0)?;
        Ok(Losses {
            suppressed: events[0],
            lost: events[1],
            repeated: events[2],
            captures_suppressed: captures[0],
            captures_lost: captures[1],
        })
    }

    fn answers(&self) -> Result<Vec<(u8, Answers)>, KernelError> {
        let one = |pool: u8| {
            let words: Box<[u64; 2]> = self.summed(map::ANSWERS, u32::from(pool))?;
            let [sent, limited] = *words;
            Ok((pool, Answers { sent, limited }))
        };
        self.pool_numbers().map(one).collect()
    }

    fn mode(&self) -> Result<Mode, KernelError> {
        let control = self.maps.get(map::CONTROL).and_then(readback::control);
        let flags = control.map_err(|e| system("reading CONTROL", e))?.flags;
        Ok(if flags & abi::FLAG_OBSERVE == 0 {
            Mode::Enforce
        } else {
            Mode::Observe
        })
    }
}

const fn count(packets: u64, bytes: u64) -> Count {
    Count { packets, bytes }
}

/// Loads the object: on pinned maps, or on new ones of the sizes that the configuration asks for.
fn load(config: &Config, adopt: Option<&PathBuf>) -> Result<(Maps, HashMap<&'static str, Program>), Error> {
    let chunks = Layout4::new(config)?.chunks();
    let paths: Vec<_> = maps::NAMES.into_iter().filter_map(|n| Some((n, adopt?.join(n)))).collect();
    let loading = object::Loading::new().map_err(Error::system("preparing the BPF object"))?;
    let mut loader = EbpfLoader::new();
    loader
        // At most MAX_CHUNKS + 1.
        .map_max_entries(map::CHUNKS4, chunks as u32)
        .map_max_entries(map::HASH6, layout::buckets6(config))
        .map_max_entries(map::FRAGMENTS, layout::fragment_buckets(config))
        .map_max_entries(map::COLD, config.tables.addresses)
        .map_max_entries(map::DENIALS, config.tables.denials_bytes)
        .map_max_entries(map::CAPTURES, memory::CAPTURES_BYTES);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut object = loader.load(loading.bytes()).map_err(environment::load_error)?;
    loading
        .bind(&object)
        .map_err(Error::system("pointing the programs at their maps"))?;
    let mut programs = HashMap::new();
    for name in PROGRAMS {
        programs.insert(name, load_program(&mut object, name)?);
    }
    let maps = Maps::open(|name| {
        let missing = || std::io::Error::new(std::io::ErrorKind::NotFound, format!("the BPF object has no map {name}"));
        let data = match object.map(name).ok_or_else(missing)? {
            AyaMap::Array(d) | AyaMap::HashMap(d) | AyaMap::PerCpuArray(d) | AyaMap::RingBuf(d) => d,
            _ => {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::InvalidData,
                    format!("map {name} is of another kind"),
                ));
            }
        };
        Map::new(data.fd().as_fd().try_clone_to_owned()?)
    });
    Ok((maps.map_err(Error::system("opening the maps"))?, programs))
}

/// The verifier gives up with EAGAIN when a signal arrives, SIGHUP for one; it begins anew.
fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 0..LOADS {
        match load() {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            done => return done,
        }
    }
    load()
}

fn load_program(object: &mut Ebpf, name: &str) -> Result<Program, Error> {
    let missing = || Error::Load(format!("the BPF object has no program {name}"));
    let named = |e| match environment::load_error(e) {
        Error::Load(text) => Error::Load(format!("{name}: {text}")),
        other => other,
    };
    let fd = match object.program_mut(name).ok_or_else(missing)? {
        AyaProgram::Xdp(p) => {
            patiently(|| p.load()).map_err(named)?;
            p.fd().map_err(named)?.try_clone()
        }
        AyaProgram::SchedClassifier(p) => {
            patiently(|| p.load()).map_err(named)?;
            p.fd().map_err(named)?.try_clone()
        }
        _ => return Err(Error::Load(format!("program {name} is of another type"))),
    };
    let fd = fd
        .and_then(|fd| fd.as_fd().try_clone_to_owned())
        .map_err(Error::system(format!("program {name}")))?;
    let id = super::bpf::program_info(fd.as_fd())
        .map_err(Error::system(format!("asking about program {name}")))?
        .id;
    Ok(Program { fd, id })
}
