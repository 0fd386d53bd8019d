//! The BPF object, embedded by `build.rs`, and what it needs beside a loader for maps and programs: references to maps in [`DIRECT`] become
//! references to their elements, and there are as many counters as CPUs. It is always the one that this binary was written against.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use aya::{Ebpf, maps::Map};
use gateway_ebpf::abi::{
    CPUS, CpuCounts,
    map::{COUNTERS, DIRECT},
};

use super::readback;

/// The ELF file with programs and maps, aligned for the loader. To be loaded by [`Loading`].
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lazaret.bpf.o"));

/// An object on its way into the kernel.
///
/// The loader makes each reference to a map one to the map as a whole (BPF_PSEUDO_MAP_FD), which costs a look-up for each use. So the references to
/// [`DIRECT`] are taken from its list of relocations, and written as they are to be: the address of the first element (BPF_PSEUDO_MAP_VALUE, Linux
/// 5.2) of the map behind a descriptor that is held meanwhile, and that is made the map's once it exists.
pub struct Loading {
    object: Vec<u8>,
    places: Vec<(&'static str, OwnedFd)>,
}

impl Loading {
    /// Prepares [`OBJECT`].
    ///
    /// # Errors
    /// No descriptor is free, or the object is not as the compiler makes it.
    pub fn new() -> io::Result<Self> {
        Self::of(OBJECT.to_vec())
    }

    /// Prepares another build of it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of(mut object: Vec<u8>) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "the BPF object is malformed");
        let cpus = readback::cpu_numbers()?;
        make_room(&mut object, cpus).ok_or_else(malformed)?;
        let place = |name| Ok((name, File::open("/dev/null")?.into()));
        let places = DIRECT.into_iter().map(place).collect::<io::Result<Vec<(_, OwnedFd)>>>()?;
        let found = point_at(&mut object, |name| {
            let (_, fd) = places.iter().find(|(n, _)| *n == name)?;
            Some(fd.as_raw_fd())
        });
        found.ok_or_else(malformed)?;
        Ok(Self { object, places })
    }

    /// What is to be given to the loader.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.object
    }

    /// Tells the references which maps there are now; before programs are loaded.
    ///
    /// # Errors
    /// A map is missing.
    pub fn bind(&self, loaded: &Ebpf) -> io::Result<()> {
        for (name, place) in &self.places {
            let Some(Map::Array(map)) = loaded.map(name) else {
                let what = format!("the BPF object has no array {name}");
                return Err(io::Error::new(io::ErrorKind::NotFound, what));
            };
            // SAFETY: a system call without pointers; the second descriptor is ours, and stays so under the same number.
            if unsafe { libc::dup3(map.fd().as_fd().as_raw_fd(), place.as_raw_fd(), libc::O_CLOEXEC) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// BPF's instruction that loads 64 bits, of two slots of 8 bytes (linux/bpf.h).
const LOAD_64: u8 = 0x18;
/// In its source register: the address of an element of the map whose descriptor stands in the first slot, at the offset in the second.
const MAP_VALUE: u8 = 2 << 4;
/// `R_BPF_64_64`: a 64-bit load of a symbol's address.
const LOADS_ADDRESS: u64 = 1;

/// Makes room for what so many CPUs count: COUNTERS holds one value, whose size stands in the map's definition (`struct bpf_map_def`: type, size of a
/// key, size of a value), and the programs are told by a constant.
fn make_room(object: &mut [u8], cpus: usize) -> Option<()> {
    let size = u32::try_from(cpus.checked_mul(size_of::<CpuCounts>())?).ok()?;
    let (definition, constant) = (symbol(object, COUNTERS)?, symbol(object, CPUS)?);
    object
        .get_mut(definition + 8..definition + 12)?
        .copy_from_slice(&size.to_ne_bytes());
    let cpus = u32::try_from(cpus).ok()?.to_ne_bytes();
    object.get_mut(constant..constant + 4)?.copy_from_slice(&cpus);
    Some(())
}

/// Where in the file what a symbol names lies.
fn symbol(object: &[u8], name: &str) -> Option<usize> {
    let sections = sections(object)?;
    let symbols = sections.iter().find(|s| s.kind == Section::SYMBOLS)?;
    let names = sections.get(symbols.link)?;
    (0..symbols.size / 24).map(|i| symbols.offset + i * 24).find_map(|entry| {
        let found = text(object, names.offset + number(object, entry, 4)?)?;
        let section = sections.get(number(object, entry + 6, 2)?)?;
        Some(section.offset + number(object, entry + 8, 8)?).filter(|_| found == name)
    })
}

/// Points loads of symbols' addresses at first elements, and takes them from the relocations; how many. `descriptor`: of a symbol by name. `None`: this
/// is no ELF file of 64 bits, little-endian.
fn point_at(object: &mut [u8], descriptor: impl Fn(&str) -> Option<i32>) -> Option<usize> {
    let sections = sections(object)?;
    let mut pointed = 0;
    for relocations in sections.iter().filter(|s| s.kind == Section::RELOCATIONS) {
        let (symbols, code) = (sections.get(relocations.link)?, sections.get(relocations.info)?);
        let names = sections.get(symbols.link)?;
        let mut kept = 0;
        for i in 0..relocations.size / 16 {
            let entry = relocations.offset + i * 16;
            let (place, what) = (number(object, entry, 8)?, number(object, entry + 8, 8)? as u64);
            let name = names.offset + number(object, symbols.offset + (what >> 32) as usize * 24, 4)?;
            let fd = text(object, name).and_then(&descriptor);
            let at = code.offset + place;
            match (fd, object.get(at)) {
                (Some(fd), Some(&LOAD_64)) if what as u32 as u64 == LOADS_ADDRESS => {
                    let load = object.get_mut(at..at + 16)?;
                    load[1] = load[1] & 0xf | MAP_VALUE;
                    load[4..8].copy_from_slice(&fd.to_ne_bytes());
                    load[12..16].fill(0);
                    pointed += 1;
                }
                _ => {
                    object.copy_within(entry..entry + 16, relocations.offset + kept * 16);
                    kept += 1;
                }
            }
        }
        let size = object.get_mut(relocations.header + 32..relocations.header + 40)?;
        size.copy_from_slice(&(kept as u64 * 16).to_le_bytes());
    }
    Some(pointed)
}

/// `None`: this is no ELF file of 64 bits, little-endian.
fn sections(object: &[u8]) -> Option<Vec<Section>> {
    if object.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, count) = (number(object, 40, 8)?, number(object, 60, 2)?);
    (0..count).map(|i| Section::at(object, table + i * 64)).collect()
}

/// What a section header says (`Elf64_Shdr`).
struct Section {
    /// Where the header is.
    header: usize,
    kind: usize,
    offset: usize,
    size: usize,
    link: usize,
    info: usize,
}

impl Section {
    /// `SHT_SYMTAB`.
    const SYMBOLS: usize = 2;
    /// `SHT_REL`.
    const RELOCATIONS: usize = 9;

    fn at(object: &[u8], header: usize) -> Option<Self> {
        Some(Self {
            header,
            kind: number(object, header + 4, 4)?,
            offset: number(object, header + 24, 8)?,
            size: number(object, header + 32, 8)?,
            link: number(object, header + 40, 4)?,
            info: number(object, header + 44, 4)?,
        })
    }
}

/// A name, up to its zero.
fn text(object: &[u8], at: usize) -> Option<&str> {
    let rest = object.get(at..)?;
    std::str::from_utf8(rest.get(..rest.iter().position(|b| *b == 0)?)?).ok()
}

/// A number of so many bytes, least significant first.
fn number(object: &[u8], at: usize, bytes: usize) -> Option<usize> {
    let bytes = object.get(at..at.checked_add(bytes)?)?;
    usize::try_from(bytes.iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is addressed by several programs; once pointed at, nothing is left for the loader.
    #[test]
    fn every_reference_to_a_direct_map_is_pointed_at_its_element() {
        for name in DIRECT {
            let mut object = OBJECT.to_vec();
            let fd = |n: &str| (n == name).then_some(77);
            assert!(point_at(&mut object, fd).unwrap() > 0, "{name}");
            assert_eq!(point_at(&mut object, fd), Some(0), "{name}");
        }
        let mut object = OBJECT.to_vec();
        assert_eq!(point_at(&mut object, |_| None), Some(0));
        assert_eq!(object, OBJECT);
    }

    #[test]
    fn there_is_room_for_what_each_cpu_counts() {
        let mut object = OBJECT.to_vec();
        make_room(&mut object, 3).unwrap();
        let word = |name, at| number(&object, symbol(&object, name).unwrap() + at, 4).unwrap();
        assert_eq!((word(COUNTERS, 8), word(CPUS, 0)), (3 * size_of::<CpuCounts>(), 3));
        // A key of 4 bytes before, one element behind.
        assert_eq!((word(COUNTERS, 4), word(COUNTERS, 12)), (4, 1));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(Loading::of(Vec::new()).is_err());
        assert!(Loading::of(b"\x7fELF\x02\x01".to_vec()).is_err());
        assert!(Loading::of(OBJECT[..OBJECT.len() / 2].to_vec()).is_err());
    }
}
