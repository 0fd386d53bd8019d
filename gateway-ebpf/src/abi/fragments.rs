//! The values of [`super::map::FRAGMENTS`]: what the programs remember of datagrams in fragments. How it is used says [`crate::fragment`].

use core::cell::UnsafeCell;

/// An integer that the programs of all CPUs read and write in place: every access is one load or one store.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Shared<T>(UnsafeCell<T>);

// SAFETY: what is more than a single load or store of an integer is done under a lock of the structure that it is in.
unsafe impl<T: Copy + Send> Sync for Shared<T> {}

impl<T: Copy> Shared<T> {
    /// Loads it.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> T {
        // SAFETY: the cell is valid for as long as it is borrowed; volatile, since others may be storing.
        unsafe { self.0.get().read_volatile() }
    }
    /// Stores it.
    #[inline(always)]
    pub fn set(&self, to: T) {
        // SAFETY: likewise.
        unsafe { self.0.get().write_volatile(to) };
    }
    /// Where it is, for an atomic instruction.
    #[inline(always)]
    #[must_use]
    pub fn at(&self) -> *mut T {
        self.0.get()
    }
}

/// Datagrams in fragments that a [`FragmentBucket`] remembers: what one device can fill.
pub const BUCKET_FRAGMENTS: usize = 16;
/// Separate pieces in which a datagram may arrive: as many as it has gaps at a time, and one.
pub const FRAGMENT_PIECES: usize = 8;
/// How long a datagram's record lives, in nanoseconds of the coarse clock.
pub const FRAGMENT_LIFE: u64 = 15_000_000_000;

/// What is remembered of a datagram in fragments.
#[repr(C)]
#[derive(Debug)]
pub struct FragmentRecord {
    /// See [`crate::fragment::Key`].
    pub key: [Shared<u64>; 6],
    /// Until when it lives, on the coarse clock; 0: free.
    pub expires: Shared<u64>,
    /// Ports of the first fragment, host order: source in bits 0-15, destination in bits 16-31.
    pub ports: Shared<u32>,
    /// TCP flags, ICMP type, ICMP code, protocol of the first fragment, from the lowest byte up.
    pub kind: Shared<u32>,
    /// 1: a fragment overlapped; none passes any more.
    pub poisoned: Shared<u32>,
    /// End of the data that has arrived, bytes.
    pub highest: Shared<u32>,
    /// Length of the datagram's data, bytes; 0: its last fragment has not arrived.
    pub total: Shared<u32>,
    /// Length of the first fragment's data, bytes. 0: nobody knows.
    pub first: Shared<u32>,
    /// What has arrived, bytes: begin in bits 0-31, end in bits 32-63; 0: free. No two touch.
    pub pieces: [Shared<u64>; FRAGMENT_PIECES],
}
const _: () = assert!(size_of::<FragmentRecord>() == 80 + 8 * FRAGMENT_PIECES);

/// What a program has found out so far, while it holds a bucket's lock. In memory, of which the verifier knows nothing: it then follows every
/// loop once, not once for each thing that may have been found.
#[repr(C)]
#[derive(Debug)]
pub struct FragmentWork {
    /// Record of the datagram; [`BUCKET_FRAGMENTS`]: none.
    pub known: Shared<u64>,
    /// A free record; [`BUCKET_FRAGMENTS`]: none.
    pub free: Shared<u64>,
    /// The fragment's data, bytes: where it begins and ends.
    pub data: [Shared<u64>; 2],
    /// The same with its neighbours.
    pub joined: [Shared<u64>; 2],
    /// 1: some of it was there; 2: there is room for it; 4: all of it was there.
    pub flags: Shared<u64>,
}

/// The datagrams of the devices whose addresses share this bucket.
#[repr(C)]
#[derive(Debug)]
pub struct FragmentBucket {
    /// 0: free; 1: a program is at it.
    pub lock: Shared<u64>,
    /// Of the program that is at it: what it is working with.
    pub work: FragmentWork,
    /// In no order.
    pub records: [FragmentRecord; BUCKET_FRAGMENTS],
}
const _: () = assert!(size_of::<FragmentBucket>() == 64 + 144 * BUCKET_FRAGMENTS);
