//! A ring buffer of the programs' records, and what moves them from there to those who want them.

use std::{io, marker::PhantomData};

use aya::maps::{Map as AyaMap, MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

use super::{
    bpf::{self, Plain},
    environment::{self, Error},
    maps::Maps,
};

/// Records that are handed over before others have their turn.
const AT_ONCE: u32 = 1024;

/// The user end of a ring of `T`s. One reader at a time.
pub struct Ring<T> {
    buffer: RingBuf<MapData>,
    records: PhantomData<fn() -> T>,
}

impl<T: Plain> Ring<T> {
    /// The ring of this name, which holds `T`s.
    pub(super) fn open(maps: &Maps, name: &'static str) -> Result<Self, Error> {
        let fd = maps.get(name).and_then(|m| m.fd.try_clone()).map_err(Error::system(name))?;
        let data = MapData::from_fd(fd).map_err(environment::load_error)?;
        Ok(Self {
            buffer: AyaMap::RingBuf(data).try_into().map_err(environment::load_error)?,
            records: PhantomData,
        })
    }

    /// Hands record after record to `each`, for as long as it is polled. Returns why it cannot go on.
    pub async fn pump(self, mut each: impl FnMut(T)) -> io::Error {
        // SAFETY: a `RingBuf` owns its map's descriptor, which stays open and the same for as long as it lives.
        let mut ring = match unsafe { AsyncFd::register_with_interest(self.buffer, Interest::READABLE) } {
            Ok(r) => r,
            Err(e) => return e.into(),
        };
        loop {
            let mut ready = match ring.readable_mut().await {
                Ok(r) => r,
                Err(e) => return e,
            };
            let mut empty = false;
            for _ in 0..AT_ONCE {
                let Some(item) = ready.get_inner_mut().next() else {
                    empty = true;
                    break;
                };
                // A record of another size is of another program's making; the ring is ours alone.
                if item.len() >= size_of::<T>() {
                    each(*bpf::read_plain::<T>(&item));
                }
            }
            if empty {
                ready.clear_ready();
            }
            // Under a flood the ring is never empty for long; those for whom the records are have to run, too.
            tokio::task::yield_now().await;
        }
    }
}
