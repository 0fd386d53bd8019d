//! The memory of an array map, shared with the programs: every access by atomics, or copies where nothing reads. What lies where is not known here.

use std::{
    io,
    os::fd::AsRawFd,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};

use super::{bpf::Map, table6::SharedBucket};

/// The memory of an array map, shared with the programs.
pub(super) struct Mapping {
    memory: MmapRaw,
    len: usize,
}

impl Mapping {
    pub(super) fn new(map: &Map, len: usize) -> io::Result<Self> {
        let has = (map.info.value_size as usize).next_multiple_of(8) * map.info.max_entries as usize;
        if has < len {
            let what = format!("map {} has {has} bytes, not {len}", map.info.name);
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(Self {
            memory: MmapOptions::new().len(len).map_raw(map.fd.as_raw_fd())?,
            len,
        })
    }

    /// A byte at an offset; out of range is an error of this module's.
    pub(super) fn byte(&self, offset: usize) -> &AtomicU8 {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, which lives as long as `self`; all access to it is by atomics or, where nothing reads yet, copies.
        unsafe { AtomicU8::from_ptr(self.memory.as_mut_ptr().add(offset)) }
    }

    pub(super) fn word32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len);
        // SAFETY: as in `byte`; a mapping starts at a page, so the word is aligned.
        unsafe { AtomicU32::from_ptr(self.memory.as_mut_ptr().add(offset).cast()) }
    }

    pub(super) fn word64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.len);
        // SAFETY: as in `word32`.
        unsafe { AtomicU64::from_ptr(self.memory.as_mut_ptr().add(offset).cast()) }
    }

    pub(super) fn buckets(&self) -> &[SharedBucket] {
        // SAFETY: the mapping starts at a page and holds whole buckets, which are made of atomics.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len / size_of::<SharedBucket>()) }
    }

    pub(super) fn copy_in(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.len);
        // SAFETY: inside the mapping; `bytes` is ordinary memory elsewhere. No program is directed here yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory.as_mut_ptr().add(offset), bytes.len()) }
    }

    pub(super) fn holds(&self, offset: usize, bytes: &[u8]) -> bool {
        self.first_difference(offset, bytes).is_none()
    }

    /// Where `bytes`, of whole words, begin to differ from what is at `offset`, down to a word of eight bytes.
    pub(super) fn first_difference(&self, offset: usize, bytes: &[u8]) -> Option<usize> {
        let (words, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty(), "tables are made of whole words");
        let differs =
            |(n, word): &(usize, &[u8; 8])| self.word64(offset + n * 8).load(Ordering::Relaxed) != u64::from_ne_bytes(**word);
        words.iter().enumerate().find(differs).map(|(n, _)| n * 8)
    }
}
