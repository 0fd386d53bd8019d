//! Header layouts as they lie on the wire, every field in network byte order. Natural alignment, so that the BPF target gets one load a
//! field; nothing here interprets.

/// A type that packet bytes can be read as.
///
/// # Safety
/// Every bit pattern is a value, and there is no padding.
pub unsafe trait Wire: Copy + 'static {}

// SAFETY: integers have no padding and no invalid values.
unsafe impl Wire for u8 {}
// SAFETY: likewise.
unsafe impl Wire for u16 {}
// SAFETY: likewise.
unsafe impl Wire for u32 {}
// SAFETY: likewise.
unsafe impl Wire for u64 {}

macro_rules! wire {
    ($( $(#[$doc:meta])* $name:ident: $size:literal { $( $field:ident: $type:ty, )* } )*) => { $(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        #[allow(missing_docs, reason = "the fields are named as in the standard that the type's documentation names")]
        pub struct $name { $( pub $field: $type, )* }
        // SAFETY: integers and arrays of integers only, and the assertion below excludes padding.
        unsafe impl Wire for $name {}
        const _: () = assert!(size_of::<$name>() == $size && $size == 0 $( + size_of::<$type>() )*);
    )* };
}

wire! {
    /// IEEE 802.3.
    Ethernet: 14 { destination: [u16; 3], source: [u16; 3], ethertype: u16, }
    /// IEEE 802.1Q, behind the ethertype that announces it.
    Vlan: 4 { tci: u16, ethertype: u16, }
    /// RFC 826, for IPv4 over Ethernet.
    Arp: 28 {
        hardware: u16, protocol: u16, hardware_length: u8, protocol_length: u8, operation: u16,
        sender_mac: [u16; 3], sender: [u16; 2], target_mac: [u16; 3], target: [u16; 2],
    }
    /// RFC 791.
    Ipv4: 20 {
        version_ihl: u8, tos: u8, total_length: u16, id: u16, fragment: u16, ttl: u8, protocol: u8, checksum: u16,
        source: u32, destination: u32,
    }
    /// RFC 8200.
    Ipv6: 40 { first: u32, payload_length: u16, next_header: u8, hop_limit: u8, source: [u32; 4], destination: [u32; 4], }
    /// RFC 8200, 4: what hop-by-hop, routing and destination options headers begin with. `length`: in units of 8 bytes, without the first.
    Extension: 8 { next: u8, length: u8, kind: u8, segments_left: u8, rest: u32, }
    /// RFC 8200, 4.5. `offset`: in bytes, with the flag "more" in bit 0.
    Ipv6Fragment: 8 { next: u8, reserved: u8, offset: u16, id: u32, }
    /// RFC 9293.
    Tcp: 20 {
        source: u16, destination: u16, sequence: u32, acknowledgement: u32, offset: u8, flags: u8, window: u16, checksum: u16, urgent: u16,
    }
    /// RFC 768, in words, which are loaded at once: source and destination; length and checksum.
    Udp: 8 { ports: u32, length_checksum: u32, }
    /// RFC 792 and RFC 4443: what every message begins with.
    Icmp: 8 { kind: u8, code: u8, checksum: u16, rest: u32, }
}
