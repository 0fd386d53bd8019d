//! Reading an address by system call through the programs that are attached now: which maps a program has, and what they say.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::IpAddr,
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
};

use gateway_ebpf::abi::{
    BUCKET6_SLOTS, Bucket6, Class, ClassEntry, Cold, Control, ENTRY_LEASED, Homes6, delegated, entry_ifindex, entry_pool, map,
};

use super::{
    bpf::{self, Map, Plain},
    hooks,
    layout::{self, CHUNK},
    maps::Maps,
    programs::{Held, Programs},
    table6,
    tables::system,
};
use crate::{
    config::Config,
    kernel::{Attached, HookPoint, KernelError, Link, ProgramReading, ReadBack},
    links,
    model::{BootTime, PoolId, SessionId},
    netlink::Kept,
};

/// What looking keeps from one time to the next: nothing that it tells.
#[derive(Default)]
pub(super) struct Reader {
    netlink: Kept,
    programs: Programs,
    large: Arc<Mutex<Large>>,
}

impl Reader {
    /// What is attached now: for each hook of an interface with a role, the program of ours or that one should be there.
    pub(super) fn look(&mut self, config: &Config) -> Result<Look, KernelError> {
        let links = links::now_by(&mut self.netlink).map_err(|e| system("listing interfaces", e))?;
        let mut places = Vec::new();
        for now in links.into_iter().filter(|l| config.role(&l.link.name).is_some()) {
            let attached = hooks::attached(config, &now, &mut self.programs).map_err(|e| system("asking what is attached", e))?;
            places.extend(attached.into_iter().map(|(hook, program)| (now.link.clone(), hook, program)));
        }
        self.programs
            .keep(|id| places.iter().any(|(.., p)| p.as_ref().is_some_and(|p| p.id == id)));
        Ok(Look {
            places,
            large: Arc::clone(&self.large),
        })
    }
}

/// What was attached at one moment, held open.
pub(super) struct Look {
    places: Vec<(Link, HookPoint, Option<Arc<Held>>)>,
    /// Memory, that it need not be asked for each time.
    large: Arc<Mutex<Large>>,
}

impl Attached for Look {
    fn read_back(&self, addresses: &[IpAddr]) -> Result<Vec<Vec<ReadBack>>, KernelError> {
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        large.forget();
        let mut tables = Tables {
            large: &mut large,
            controls: HashMap::new(),
            read: HashMap::new(),
        };
        let mut one = |address: &IpAddr| {
            let read = |(link, hook, program): &(Link, HookPoint, Option<Arc<Held>>)| {
                Ok(ReadBack {
                    interface: link.name.clone(),
                    ifindex: link.ifindex,
                    hook: *hook,
                    reading: program.as_ref().map(|p| tables.through(p, *address)).transpose()?.flatten(),
                })
            };
            self.places.iter().map(read).collect::<io::Result<_>>()
        };
        let read: io::Result<_> = addresses.iter().map(&mut one).collect();
        read.map_err(|e| system("reading back", e))
    }
}

/// A class byte, and the map that it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) class: Class,
    pub(super) map_id: u32,
}

/// The classes of addresses by our own tables, in order.
pub(super) fn classes(maps: &Maps, addresses: &[IpAddr]) -> Result<Vec<Reading>, KernelError> {
    let mut large = Large::default();
    let mut one = |address: &IpAddr| {
        let names = if address.is_ipv4() {
            [map::DIR4, map::CHUNKS4]
        } else {
            [map::HASH6, map::HOMES6]
        };
        let open = |n| maps.get(n).map_err(|e| system(n, e));
        class_of([open(names[0])?, open(names[1])?], *address, &mut large).map_err(|e| system("reading the tables", e))
    };
    addresses.iter().map(&mut one).collect()
}

/// The class of an address by two tables: DIR4 and CHUNKS4, or HASH6 and HOMES6.
fn class_of(tables: [&Map; 2], address: IpAddr, large: &mut Large) -> io::Result<Reading> {
    let [first, second] = tables;
    match address {
        IpAddr::V4(a) => {
            let (upper, lower) = ((u32::from(a) >> 16) as usize, (u32::from(a) & 0xffff) as usize);
            let chunk = large.directory(first)?[upper];
            let class = large.chunk(second, u32::from(chunk))?[lower];
            Ok(Reading {
                class,
                map_id: second.info.id,
            })
        }
        IpAddr::V6(a) => {
            let key = layout::words6(a);
            let buckets = first.info.max_entries as usize;
            if buckets.is_power_of_two() && key[0] != 0 {
                // By itself, or with its whole /64.
                for key in [key, delegated(key[0])] {
                    for bucket in table6::choices(key, buckets) {
                        let bucket = first.element::<Bucket6>(bucket as u32)?;
                        if let Some(slot) = (0..BUCKET6_SLOTS).find(|s| bucket.keys[*s] == key) {
                            return Ok(Reading {
                                class: bucket.classes[slot],
                                map_id: first.info.id,
                            });
                        }
                    }
                }
            }
            let homes = second.element::<Homes6>(0)?;
            let in_use = homes.homes.iter().take(homes.count as usize);
            let home = in_use.into_iter().find(|h| (0..2).all(|i| key[i] & h.mask[i] == h.prefix[i]));
            Ok(Reading {
                class: home.map_or(0, |h| h.class as Class),
                map_id: second.info.id,
            })
        }
    }
}

/// A set's hot words, what classes mean among them.
pub(super) fn control(control: &Map) -> io::Result<Box<Control>> {
    control.element::<Control>(0)
}

/// The pool that judges an address of a class now: past its lease, the fallback. `None`: no pool, or a leased class without a record.
pub(super) fn pool_now(entry: ClassEntry, cold: Option<Cold>, boot_now: u64) -> Option<PoolId> {
    let pool = if entry & ENTRY_LEASED == 0 {
        entry_pool(entry)
    } else {
        match cold {
            Some(c) if boot_now < c.lease_end => entry_pool(entry),
            Some(c) => c.fallback as u8,
            None => 0,
        }
    };
    (pool != 0).then_some(PoolId(pool))
}

/// The elements of the IPv4 tables that were read: a system call copies 64 KiB or more, and the addresses of a batch share them.
#[derive(Default)]
struct Large {
    directories: HashMap<u32, Box<[u16; CHUNK]>>,
    chunks: HashMap<(u32, u32), Box<[u8; CHUNK]>>,
    /// Memory of what is forgotten.
    spare: Option<Box<[u16; CHUNK]>>,
    spare_chunk: Option<Box<[u8; CHUNK]>>,
}

impl Large {
    /// Everything is read anew.
    fn forget(&mut self) {
        self.spare = self.directories.drain().next().map(|(_, d)| d).or(self.spare.take());
        self.spare_chunk = self.chunks.drain().next().map(|(_, c)| c).or(self.spare_chunk.take());
    }

    fn directory(&mut self, map: &Map) -> io::Result<&[u16; CHUNK]> {
        Ok(match self.directories.entry(map.info.id) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => e.insert(read_into(map, 0, self.spare.take())?),
        })
    }

    fn chunk(&mut self, map: &Map, index: u32) -> io::Result<&[u8; CHUNK]> {
        Ok(match self.chunks.entry((map.info.id, index)) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => e.insert(read_into(map, index, self.spare_chunk.take())?),
        })
    }
}

/// Reads an element into memory that is there, or new.
fn read_into<T: Plain>(map: &Map, index: u32, spare: Option<Box<T>>) -> io::Result<Box<T>> {
    match spare {
        Some(mut value) => map.element_into(index, &mut *value).map(|()| value),
        None => map.element(index),
    }
}

/// An address's tables, by their maps' ids, with the address.
type Place = ([u32; 4], IpAddr);

/// Within one call, each table is looked up once, however many programs share it.
struct Tables<'a> {
    large: &'a mut Large,
    controls: HashMap<u32, Box<Control>>,
    read: HashMap<Place, (Reading, ClassEntry, Option<Cold>)>,
}

impl Tables<'_> {
    /// `None`: the program does not have our tables.
    fn through(&mut self, program: &Held, address: IpAddr) -> io::Result<Option<ProgramReading>> {
        let Some([first, second, cold, control]) = program.tables(address.is_ipv4()) else {
            return Ok(None);
        };
        let key = ([first.info.id, second.info.id, cold.info.id, control.info.id], address);
        let (reading, entry, record) = match self.read.get(&key) {
            Some(r) => *r,
            None => {
                let reading = class_of([first, second], address, self.large)?;
                let entry = self.control(control)?.classes[usize::from(reading.class)];
                let r = (reading, entry, super::tables::cold_record(cold, address)?);
                self.read.insert(key, r);
                r
            }
        };
        Ok(Some(ProgramReading {
            program_id: program.id,
            map_id: reading.map_id,
            pool: pool_now(entry, record, super::tables::boot_now()),
            session: record.map(|c| SessionId(c.session)),
            lease_end: record.filter(|c| c.lease_end != u64::MAX).map(|c| BootTime(c.lease_end)),
            bound_to: entry_ifindex(entry),
        }))
    }

    fn control(&mut self, map: &Map) -> io::Result<&Control> {
        Ok(match self.controls.entry(map.info.id) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => e.insert(map.element(0)?),
        })
    }
}

/// How many CPUs a per-CPU map has room for.
pub(super) fn cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(what, e)| io::Error::new(e.kind(), format!("{what}: {e}")))
}

/// One more than the highest number that a CPU can have.
pub(super) fn cpu_numbers() -> io::Result<usize> {
    // Ranges in order, like "0-3,8-11".
    let possible = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let highest = possible
        .trim()
        .rsplit([',', '-'])
        .next()
        .and_then(|n| n.parse::<usize>().ok());
    highest
        .map(|n| n + 1)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("possible CPUs: {possible}")))
}

/// Sums a per-CPU array's element over the CPUs.
pub(super) fn per_cpu<const N: usize>(map: &Map, index: u32) -> io::Result<Box<[u64; N]>> {
    let cpus = cpus()?;
    if map.info.value_size as usize != size_of::<[u64; N]>() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("map {} has another layout", map.info.name),
        ));
    }
    let mut value = vec![0; size_of::<[u64; N]>() * cpus];
    bpf::lookup(map.fd.as_fd(), &index.to_ne_bytes(), &mut value)?;
    let mut sum = Box::new([0_u64; N]);
    for (i, word) in value.chunks_exact(8).enumerate() {
        let word = word.try_into().map_or(0, u64::from_ne_bytes);
        sum[i % N] = sum[i % N].wrapping_add(word);
    }
    Ok(sum)
}
