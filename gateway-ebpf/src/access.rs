//! The ways to a packet's bytes in the kernel: directly, for the fast parser, and by helper, for the full one. The only unsafe packet
//! access there is.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET, xdp_md},
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
};
use gateway_ebpf::{
    packet::{MAX_OFFSET, Packet},
    parse::walk_options,
    wire::{Ethernet, Wire},
};

/// Packet memory between two pointers that the verifier knows as packet pointers. Offsets must be constants after inlining, so this must
/// never cross a call: the fast parser only.
pub(crate) struct Direct {
    data: usize,
    end: usize,
}

impl Direct {
    /// The linear part of an XDP frame.
    #[inline(always)]
    pub(crate) fn xdp(ctx: *mut xdp_md) -> Self {
        // SAFETY: the kernel gives a valid context.
        unsafe {
            Self {
                data: (*ctx).data as usize,
                end: (*ctx).data_end as usize,
            }
        }
    }

    /// The linear part of a socket buffer.
    #[inline(always)]
    pub(crate) fn skb(skb: *mut __sk_buff) -> Self {
        // SAFETY: the kernel gives a valid context.
        unsafe {
            Self {
                data: (*skb).data as usize,
                end: (*skb).data_end as usize,
            }
        }
    }
}

impl Packet for Direct {
    #[inline(always)]
    fn size(&self) -> usize {
        self.end - self.data
    }
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let p = self.data + offset;
        if p + size_of::<T>() > self.end {
            return None;
        }
        // SAFETY: the comparison above is the one by which the verifier proves the access; every bit pattern is a `T`, and packet
        // memory may be read at any alignment on the targets of this program.
        Some(unsafe { *(p as *const T) })
    }
}

/// An XDP frame, also in several pieces.
pub(crate) struct XdpBytes(pub(crate) *mut xdp_md);

impl Packet for XdpBytes {
    #[inline(always)]
    fn size(&self) -> usize {
        // SAFETY: the context is the one that the kernel gave.
        unsafe { bpf_xdp_get_buff_len(self.0) as usize }
    }
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let mut t = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of `t` or fails.
        let failed = offset > MAX_OFFSET
            || unsafe { bpf_xdp_load_bytes(self.0, offset as u32, t.as_mut_ptr().cast(), size_of::<T>() as u32) } != 0;
        // SAFETY: the helper has written all of it, and every bit pattern is a `T`.
        if failed { None } else { Some(unsafe { t.assume_init() }) }
    }
    #[inline(always)]
    fn options(&self, at: usize, header: usize) -> u64 {
        xdp_options(self.0, at as u32, header as u32)
    }
}

/// A socket buffer, linear or not.
pub(crate) struct SkbBytes(pub(crate) *mut __sk_buff);

impl Packet for SkbBytes {
    #[inline(always)]
    fn size(&self) -> usize {
        // SAFETY: the kernel gives a valid context.
        unsafe { (*self.0).len as usize }
    }
    #[inline(always)]
    fn load<T: Wire>(&self, offset: usize) -> Option<T> {
        let mut t = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes all of `t` or fails.
        let failed = offset > MAX_OFFSET
            || unsafe { bpf_skb_load_bytes(self.0.cast(), offset as u32, t.as_mut_ptr().cast(), size_of::<T>() as u32) } != 0;
        // SAFETY: the helper has written all of it, and every bit pattern is a `T`.
        if failed { None } else { Some(unsafe { t.assume_init() }) }
    }
    /// By the last byte of the linear part that there would be behind an Ethernet header: counted from the kernel's network header, it is there if
    /// none stands in front. A test run always has one in front (bpf_prog_test_run_skb), so there nobody can tell.
    #[inline(always)]
    fn is_ip_first(&self) -> bool {
        const ETHERNET: usize = size_of::<Ethernet>();
        let linear = Direct::skb(self.0).size();
        let mut byte = 0_u8;
        // SAFETY: the helper writes the byte in any case.
        linear < ETHERNET
            || unsafe {
                bpf_skb_load_bytes_relative(
                    self.0.cast(),
                    (linear - ETHERNET) as u32,
                    (&raw mut byte).cast(),
                    1,
                    BPF_HDR_START_NET,
                )
            } == 0
    }
    /// Where the kernel's own header is not the packet's first, nobody can tell: of a test run's packet, it has taken 14 bytes for an Ethernet header.
    #[inline(always)]
    fn taken_for(&self) -> Option<u8> {
        let version = match protocol(self.0) {
            IPV4 => 4,
            IPV6 => 6,
            _ => 0,
        };
        self.is_ip_first().then_some(version)
    }
    #[inline(always)]
    fn options(&self, at: usize, header: usize) -> u64 {
        skb_options(self.0, at as u32, header as u32)
    }
}

/// Ethertypes, in network order.
pub(crate) const IPV4: u16 = 0x0800_u16.to_be();
pub(crate) const IPV6: u16 = 0x86dd_u16.to_be();

/// The ethertype by which the kernel hands a packet on, in network order.
#[inline(always)]
pub(crate) fn protocol(skb: *mut __sk_buff) -> u16 {
    // SAFETY: the kernel gives a valid context.
    unsafe { (*skb).protocol as u16 }
}

/// Whether [`protocol`] tells what the packet is that lies at offset 0; not in a test run, see [`Packet::is_ip_first`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn is_told(skb: *mut __sk_buff) -> u64 {
    SkbBytes(skb).is_ip_first().into()
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn xdp_options(ctx: *mut xdp_md, at: u32, header: u32) -> u64 {
    walk_options(&XdpBytes(ctx), at as usize, header as usize)
}
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn skb_options(skb: *mut __sk_buff, at: u32, header: u32) -> u64 {
    walk_options(&SkbBytes(skb), at as usize, header as usize)
}
