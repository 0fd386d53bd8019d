//! Denied packets with their first bytes: their ring, and the word that tells the programs whether anyone wants them.

use gateway_ebpf::abi::{Captured, FLAG_CAPTURE, map};

use super::{bpf::Plain, environment::Error, live::Live, ring::Ring};
use crate::events::Captures;

impl Live {
    /// The ring of captured packets, and who switches capturing on and off. It is off now, whatever an earlier process left.
    ///
    /// # Errors
    /// The ring cannot be mapped.
    pub fn captures(&self) -> Result<(Ring<Captured>, Captures), Error> {
        let ring = Ring::open(self.maps(), map::CAPTURES)?;
        let flags = self.flags();
        flags.set(FLAG_CAPTURE, false);
        Ok((ring, Captures::new(move |on| flags.set(FLAG_CAPTURE, on))))
    }
}

// SAFETY: integers and arrays of them, `repr(C)`, without padding, as `gateway_ebpf::abi` asserts.
unsafe impl Plain for Captured {}
