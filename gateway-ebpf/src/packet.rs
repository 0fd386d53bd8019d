//! How the parser reaches a packet: the host reads a slice, the kernel reads packet memory or calls a helper. What the bytes mean is the
//! parser's business.

use crate::{parse::walk_options, wire::Wire};

/// No header begins beyond this offset; it bounds every read for the verifier. Two VLAN tags, IPv6 and six extension headers of 2,048 bytes end
/// at 12,350, and the packet that an ICMP error quotes ends soon behind.
pub const MAX_OFFSET: usize = 16_383;

/// A packet, from the parser's offset 0 on.
pub trait Packet {
    /// Length in bytes. Where only a part can be reached (buffers in several pieces), the fast parser may be given the length of that
    /// part: it takes a longer packet for rare.
    fn size(&self) -> usize;
    /// What lies at `offset`; `None` past the end or past [`MAX_OFFSET`].
    fn load<T: Wire>(&self, offset: usize) -> Option<T>;
    /// Whether the kernel's own IP header is what lies at offset 0, whatever that looks like; `false`: it is elsewhere, or nobody can tell.
    #[inline(always)]
    fn is_ip_first(&self) -> bool {
        false
    }
    /// The IP version by which the kernel hands the packet on, whatever the packet itself says first: 4, 6, or 0 for something else. `None`: nobody can tell.
    #[inline(always)]
    fn taken_for(&self) -> Option<u8> {
        None
    }
    /// [`walk_options`] on it. The kernel's programs call a function for it.
    #[inline(always)]
    fn options(&self, at: usize, header: usize) -> u64 {
        walk_options(self, at, header)
    }
}

impl Packet for [u8] {
    fn size(&self) -> usize {
        self.len()
    }
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let bytes = self.get(offset..offset + size_of::<T>())?;
        // SAFETY: `bytes` is as long as `T`, and every bit pattern is a `T`.
        Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
    }
}
