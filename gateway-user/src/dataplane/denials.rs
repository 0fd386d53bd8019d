//! The ring buffer of denied packets, from the kernel into [`crate::events`].

use std::io;

use aya::maps::{MapData, RingBuf};
use gateway_ebpf::abi::Denial;
use tokio::io::{Interest, unix::AsyncFd};

use super::bpf;
use crate::events::Denials;

/// The user end of the ring. One reader at a time.
pub struct Ring(pub(super) RingBuf<MapData>);

/// Moves denials from the ring to those who ask, for as long as it is polled. Returns why it cannot go on.
pub async fn pump(ring: Ring, into: Denials) -> io::Error {
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
            if item.len() >= size_of::<Denial>() {
                into.push((*bpf::read_plain::<Denial>(&item)).into());
            }
        }
        ready.clear_ready();
    }
}
