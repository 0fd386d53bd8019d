//! Denied packets with their first bytes: their ring, and the word that tells the programs whether anyone wants them.

use std::{
    io,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU32, Ordering},
};

use gateway_ebpf::abi::{Captured, Control, FLAG_CAPTURE, map};
use memmap2::{MmapOptions, MmapRaw};

use super::{
    bpf::{Map, Plain},
    environment::Error,
    live::Live,
    ring::Ring,
};
use crate::events::Captures;

impl Live {
    /// The ring of captured packets, and who switches capturing on and off. It is off now, whatever an earlier process left.
    ///
    /// # Errors
    /// The ring or the control word cannot be mapped.
    pub fn captures(&self) -> Result<(Ring<Captured>, Captures), Error> {
        let ring = Ring::open(self.maps(), map::CAPTURES)?;
        let control = self.maps().get(map::CONTROL).map_err(Error::system("CONTROL"))?;
        let flags = Flags::new(control).map_err(Error::system("mapping CONTROL"))?;
        flags.capture(false);
        Ok((ring, Captures::new(move |on| flags.capture(on))))
    }
}

// SAFETY: integers and arrays of them, `repr(C)`, without padding, as `gateway_ebpf::abi` asserts.
unsafe impl Plain for Captured {}

/// The flags of the control word, mapped. Changed by bits, so that this and the table writer do not undo each other's.
struct Flags(MmapRaw);

impl Flags {
    fn new(control: &Map) -> io::Result<Self> {
        if (control.info.value_size as usize) < size_of::<Control>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "CONTROL has another layout"));
        }
        let map = MmapOptions::new().len(size_of::<Control>()).map_raw(control.fd.as_raw_fd())?;
        Ok(Self(map))
    }

    fn capture(&self, on: bool) {
        const AT: usize = std::mem::offset_of!(Control, flags);
        const { assert!(AT.is_multiple_of(align_of::<AtomicU32>()) && AT + 4 <= size_of::<Control>()) };
        // SAFETY: the word lies within the mapping, which is page-aligned and lives as long as `self`; programs and other mappings of it
        // touch it as an aligned word, too.
        let flags = unsafe { AtomicU32::from_ptr(self.0.as_mut_ptr().add(AT).cast()) };
        if on {
            flags.fetch_or(FLAG_CAPTURE, Ordering::SeqCst);
        } else {
            flags.fetch_and(!FLAG_CAPTURE, Ordering::SeqCst);
        }
    }
}
