//! Class bytes of many addresses, without the session records beside them: for lists of addresses and for waves of moves, where a system call
//! an address is too much. One writer, as everywhere: it borrows the data plane.

use std::{
    net::Ipv4Addr,
    sync::atomic::{AtomicU8, Ordering, fence},
};

use gateway_ebpf::abi::Class;

use super::{layout::CHUNK, live::Live, tables::Tables};
use crate::{
    kernel::{Assignment, KernelError},
    model::{InterfaceName, PoolId, SessionId},
};

/// Moves addresses. From its drop on, the next packet is judged by what was set.
pub struct Mover<'a>(pub(super) &'a mut Tables);

/// A class without lease: an address in it needs no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound(Class);

impl Live {
    /// Sets class bytes, and nothing else of a session.
    pub fn mover(&mut self) -> Mover<'_> {
        Mover(self.tables())
    }
}

impl Mover<'_> {
    /// The class of a pool on an interface.
    ///
    /// # Errors
    /// [`KernelError::ClassesFull`].
    pub fn class(&mut self, pool: PoolId, interface: &InterfaceName) -> Result<Bound, KernelError> {
        let like = Assignment {
            pool,
            session: SessionId(0),
            interface: interface.clone(),
            lease: None,
        };
        self.0.class_for(&like, false, false).map(Bound)
    }

    /// Sets the class of one address.
    ///
    /// # Errors
    /// [`KernelError::OutsidePools`]; nothing was changed then.
    pub fn set(&mut self, address: Ipv4Addr, to: Bound) -> Result<(), KernelError> {
        let byte = self.store(u32::from(address), to.0);
        byte.map(hand_over).ok_or(KernelError::OutsidePools(address.into()))
    }

    /// Sets the class of each address of a text, one a line; says how many there were.
    ///
    /// # Errors
    /// The first line that is not an address in a pool; those before it are set.
    pub fn load(&mut self, text: &[u8], to: Bound) -> Result<usize, LoadError> {
        let (mut at, mut line) = (0, 0);
        while at < text.len() {
            line += 1;
            let (address, next) = address(text, at).ok_or(LoadError::Malformed { line })?;
            if self.store(address, to.0).is_none() {
                return Err(LoadError::Outside {
                    line,
                    address: address.into(),
                });
            }
            at = next;
        }
        Ok(line)
    }

    /// Its class byte, which is set; `None`: it is in no pool.
    #[inline]
    fn store(&mut self, address: u32, class: Class) -> Option<&AtomicU8> {
        let (chunk, place) = self.0.layout.place(address);
        let byte = self.0.chunks.byte(chunk * CHUNK + place);
        // What is in no pool, or reserved, is 0 and stays so.
        let old = byte.load(Ordering::Relaxed);
        if old == 0 {
            return None;
        }
        byte.store(class, Ordering::Release);
        self.0.classes.moved(old, class);
        Some(byte)
    }
}

/// Lets the processor move the line of a byte to the cache that all have in common, where the program that judges the address looks next: else
/// it fetches it from this one's own cache. A hint; processors without it do nothing (Intel SDM, CLDEMOTE).
#[inline]
fn hand_over(byte: &AtomicU8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction changes no memory and no register, for any address.
    unsafe {
        std::arch::asm!("cldemote [{}]", in(reg) byte.as_ptr(), options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = byte;
}

impl Drop for Mover<'_> {
    fn drop(&mut self) {
        // The stores have left this CPU before anyone is told that they are in force.
        fence(Ordering::SeqCst);
    }
}

/// Why a list of addresses was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Not an IPv4 address.
    #[error("line {line} is not an IPv4 address")]
    Malformed {
        /// From 1.
        line: usize,
    },
    /// In no pool, or reserved.
    #[error("line {line}: {address} is in no pool")]
    Outside {
        /// From 1.
        line: usize,
        /// The address.
        address: Ipv4Addr,
    },
}

/// The address on the line that begins at `at`, and where the next one begins. As strict as the standard library's parser: four numbers of one to
/// three digits, without leading zeros.
#[inline]
fn address(text: &[u8], mut at: usize) -> Option<(u32, usize)> {
    let mut address = 0;
    for part in 0..4 {
        let (mut number, mut digits) = (0_u32, 0);
        while let Some(digit) = text.get(at).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
            if digits == 3 || digits > 0 && number == 0 {
                return None;
            }
            number = number * 10 + u32::from(digit);
            digits += 1;
            at += 1;
        }
        if digits == 0 || number > 255 {
            return None;
        }
        address = address << 8 | number;
        if part < 3 {
            if text.get(at) != Some(&b'.') {
                return None;
            }
            at += 1;
        }
    }
    match text.get(at) {
        None => Some((address, at)),
        Some(b'\n') => Some((address, at + 1)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::address;

    #[test]
    fn addresses_are_read_as_the_standard_library_reads_them() {
        let odd = [
            "",
            "1.2.3",
            "1.2.3.4",
            "01.2.3.4",
            "1.2.3.04",
            "0.0.0.0",
            "255.255.255.255",
            "256.1.1.1",
            "1.1.1.256",
            "1.2.3.4.5",
            "1..2.3",
            "1.2.3.4 ",
            " 1.2.3.4",
            "1.2.3.4444",
            "1.2.3.4\r",
            "a.b.c.d",
            "1.2.3.-4",
            "00.0.0.0",
            "10.200.30.1",
        ];
        for text in odd {
            let ours = address(text.as_bytes(), 0).map(|(a, _)| Ipv4Addr::from(a));
            assert_eq!(ours, text.parse().ok(), "{text:?}");
        }
        assert_eq!(address(b"1.2.3.4\n5.6.7.8\n", 8), Some((0x0506_0708, 16)));
        assert_eq!(address(b"1.2.3.4\n\n", 8), None, "an empty line is not an address");
    }
}
