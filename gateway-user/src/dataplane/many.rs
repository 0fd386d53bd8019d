//! Many sessions' addresses at once, for a million of them: rows of addresses at rest are assigned by few system calls, with many elements of
//! a hash in one bpf(2) command (kernel 5.6). What is no such row goes one by one, as [`super::tables`] has it.

use std::{
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::AsRawFd,
};

use gateway_ebpf::abi::{self, Class, Cold};

use super::{
    bpf::{self, Map, call},
    maps::Maps,
    tables::{self, Tables},
};
use crate::{
    kernel::{Assignment, KernelError},
    model::prefix,
};

/// Addresses whose cold records are written in one command.
const AT_ONCE: usize = 4096;

const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;

impl Tables {
    /// See [`crate::kernel::Kernel::assign_all`].
    pub(super) fn assign_all(&mut self, maps: &Maps, all: &[(IpAddr, Assignment)]) -> Vec<(usize, KernelError)> {
        let (mut at, mut failed) = (0, Vec::new());
        while at < all.len() {
            let fresh = self.hold_fresh(&all[at..]);
            let (next, _) = all[at..].split_at(fresh.len());
            let written = write_records(maps, next);
            for (n, (class, (address, _))) in fresh.iter().zip(next).enumerate() {
                // It was held for this address, so that it did not fall idle meanwhile.
                self.classes.left(*class);
                if n < written {
                    if self.set_class(*address, *class).is_ok() {
                        continue;
                    }
                    // No room for the class: the record goes back, as in [`Self::assign`], which says so then.
                    drop(tables::delete_cold(maps, *address));
                }
                failed.extend(self.assign_one(maps, all, at + n));
            }
            at += fresh.len();
            // What ended the row is no address at rest, or there are enough in it.
            if fresh.len() < AT_ONCE && at < all.len() {
                failed.extend(self.assign_one(maps, all, at));
                at += 1;
            }
        }
        failed
    }

    fn assign_one(&mut self, maps: &Maps, all: &[(IpAddr, Assignment)], place: usize) -> Option<(usize, KernelError)> {
        let (address, to) = all[place].clone();
        self.assign(maps, address, to).err().map(|e| (place, e))
    }

    /// The classes of those that come first and are at rest, so that nobody looks at their cold records. Each is held for its address.
    fn hold_fresh(&mut self, all: &[(IpAddr, Assignment)]) -> Vec<Class> {
        let mut held: Vec<Class> = Vec::new();
        let mut last: Option<(&Assignment, Class)> = None;
        for (address, to) in all.iter().take(AT_ONCE) {
            let like =
                |l: &Assignment| l.pool == to.pool && l.interface == to.interface && l.lease.is_some() == to.lease.is_some();
            let class = match last {
                _ if prefix::network(*address).is_some() || !self.is_at_rest(*address) => None,
                Some((known, class)) if like(known) => Some(class),
                _ => self.class_for(to, false, false).ok(),
            };
            let Some(class) = class else { break };
            self.classes.entered(class);
            last = Some((to, class));
            held.push(class);
        }
        held
    }
}

/// Writes the cold records of addresses at rest; says how many, from the first on.
fn write_records(maps: &Maps, all: &[(IpAddr, Assignment)]) -> usize {
    let keys: Vec<u8> = all.iter().flat_map(|(address, _)| tables::cold_key(*address)).collect();
    let mut records = Vec::with_capacity(size_of_val(all));
    for (_, to) in all {
        records.extend_from_slice(bpf::bytes_of(&tables::record(to)));
    }
    match maps.get(abi::map::COLD) {
        Ok(cold) if !all.is_empty() => update(cold, &keys, &records).0,
        _ => 0,
    }
}

/// Writes many elements of a hash, new or not: keys and values one after the other, of the sizes that the map has. Returns how many were written,
/// from the beginning, and what kept the next one from it.
fn update(map: &Map, keys: &[u8], values: &[u8]) -> (usize, io::Result<()>) {
    let count = keys.len() / map.info.key_size as usize;
    assert_eq!(values.len(), count * map.info.value_size as usize, "a value for each key");
    let mut attr = Elements {
        from: 0,
        to: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: count as u32,
        map: map.fd.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    match call(MAP_UPDATE_BATCH, &mut attr) {
        Ok(_) => (count, Ok(())),
        // Only a map without room says how far it came; writing an element again is harmless.
        Err(e) if matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM)) => ((attr.count as usize).min(count), Err(e)),
        Err(e) => (0, Err(e)),
    }
}

/// Every address with a cold record, and that.
pub(super) fn records(maps: &Maps) -> Result<Vec<(IpAddr, Cold)>, KernelError> {
    let cold = maps.get(abi::map::COLD).map_err(|e| tables::system("COLD", e))?;
    // One writer, this thread: the walk meets no change.
    let (keys, values) = read(cold).map_err(|e| tables::system("walking COLD", e))?;
    let (keys, _) = keys.as_chunks::<{ size_of::<abi::ColdKey>() }>();
    let (values, _) = values.as_chunks::<{ size_of::<Cold>() }>();
    let address = |key: &abi::ColdKey| Ipv6Addr::from(*key).to_canonical();
    let records = keys.iter().map(address).zip(values.iter().map(|v| *bpf::read_plain(v)));
    Ok(records.collect())
}

/// Reads a whole hash, which only the caller changes: keys and values, one after the other.
pub(super) fn read(map: &Map) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (key, value) = (map.info.key_size as usize, map.info.value_size as usize);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    // More than any bucket of the hash has: the kernel hands over whole buckets.
    let mut most = (map.info.max_entries as usize).clamp(1, 16_384);
    let (mut from, mut next) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let held = keys.len() / key;
        keys.resize((held + most) * key, 0_u8);
        values.resize((held + most) * value, 0_u8);
        let mut attr = Elements {
            from: if first { 0 } else { std::ptr::from_mut(&mut from) as u64 },
            to: std::ptr::from_mut(&mut next) as u64,
            keys: keys[held * key..].as_mut_ptr() as u64,
            values: values[held * value..].as_mut_ptr() as u64,
            count: most as u32,
            map: map.fd.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let done = call(MAP_LOOKUP_BATCH, &mut attr);
        let found = match &done {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => 0,
            _ => (attr.count as usize).min(most),
        };
        keys.truncate((held + found) * key);
        values.truncate((held + found) * value);
        match done {
            Ok(_) => (from, first) = (next, false),
            // That was the last of it.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok((keys, values)),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && most < 1 << 24 => most *= 2,
            Err(e) => return Err(e),
        }
    }
}

/// `batch` of `union bpf_attr`.
#[repr(C)]
struct Elements {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}
const _: () = assert!(size_of::<Elements>() == 56);
