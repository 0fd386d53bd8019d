//! The ring buffer of denied packets with their first bytes, from the kernel into [`crate::events`]; and the word that tells the programs
//! whether anyone wants them.

use std::{
    io,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::maps::{Map as AyaMap, MapData, RingBuf};
use gateway_ebpf::abi::{Captured, Control, FLAG_CAPTURE, map};
use memmap2::{MmapOptions, MmapRaw};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    bpf::{self, Map, Plain},
    environment::{self, Error},
    live::Live,
};
use crate::events::Captures;

/// The user end of the ring. One reader at a time.
pub struct CaptureRing(RingBuf<MapData>);

impl Live {
    /// The ring buffer of captured packets, for [`pump_captures`], and who switches capturing on and off. It is off now, whatever an earlier
    /// process left.
    ///
    /// # Errors
    /// The ring or the control word cannot be mapped.
    pub fn captures(&self) -> Result<(CaptureRing, Captures), Error> {
        let fd = |name| self.maps().get(name).and_then(|m| m.fd.try_clone());
        let ring = fd(map::CAPTURES).map_err(Error::system("CAPTURES"))?;
        let data = MapData::from_fd(ring).map_err(environment::load_error)?;
        let ring = AyaMap::RingBuf(data).try_into().map_err(environment::load_error)?;
        let control = self.maps().get(map::CONTROL).map_err(Error::system("CONTROL"))?;
        let flags = Flags::new(control).map_err(Error::system("mapping CONTROL"))?;
        flags.capture(false);
        Ok((CaptureRing(ring), Captures::new(move |on| flags.capture(on))))
    }
}

/// Moves captured packets from the ring to those who capture, for as long as it is polled. Returns why it cannot go on.
pub async fn pump_captures(ring: CaptureRing, into: Captures) -> io::Error {
    // SAFETY: a `RingBuf` owns its map's descriptor, which stays open and the same for as long as it lives.
    let mut ring = match unsafe { AsyncFd::register_with_interest(ring.0, Interest::READABLE) } {
        Ok(r) => r,
        Err(e) => return e.into(),
    };
    loop {
        let mut ready = match ring.readable_mut().await {
            Ok(r) => r,
            Err(e) => return e,
        };
        while let Some(item) = ready.get_inner_mut().next() {
            // A record of another size is of another program's making; the ring is ours alone.
            if item.len() >= size_of::<Captured>() {
                into.push(*bpf::read_plain::<Captured>(&item));
            }
        }
        ready.clear_ready();
        // Under a flood the ring is never empty for long; who reads the streams has to run, too.
        tokio::task::yield_now().await;
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
