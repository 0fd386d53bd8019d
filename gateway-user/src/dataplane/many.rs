//! Many elements of a hash in one bpf(2) command (kernel 5.6), for a million sessions at once.

use std::{io, os::fd::AsRawFd};

use super::bpf::{Map, call};

const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;

/// Writes many elements of a hash, new or not: keys and values one after the other, of the sizes that the map has. Returns how many were written,
/// from the beginning, and what kept the next one from it.
pub(super) fn update(map: &Map, keys: &[u8], values: &[u8]) -> (usize, io::Result<()>) {
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

/// Reads a whole hash, which only the caller changes: keys and values, one after the other.
pub(super) fn read(map: &Map) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let (key, value) = (map.info.key_size as usize, map.info.value_size as usize);
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    // More than any bucket of the hash has: the kernel hands over whole buckets.
    let mut most = 16_384_usize;
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
