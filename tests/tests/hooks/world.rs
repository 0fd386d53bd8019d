//! A small world to judge in: pool 1 is a quarantine (10.66.0.0/16, fd66::/48) that may reach DM (10.77.0.0/16, fd77::/64) by TCP 443 and UDP 53,
//! by rule 7; pool 2 (10.67.0.0/16, fd67::/48) may do everything; pool 3 (10.68.0.0/16, fd68::/48) nothing, and is told so, as are the others.

use std::net::Ipv6Addr;

use gateway_ebpf::abi::{
    BUCKET6_SLOTS, Bucket6, Control, Dst6, ENTRY_DELEGATED, FLAG_DELEGATED, Home6, Homes6, MAX_POOLS, POLICY_SHADOW, POOL_ALL,
    POOL_BLOCKED, POOL_REJECT, Policy, VERSION, class_entry, delegated, map, mix6,
};

use crate::kernel::{Kernel, META_KEY};

/// The rule of pool 1.
pub(crate) const RULE: u16 = 7;

/// Writes it, with these [`Control::flags`]; `reject`: denials are answered.
pub(crate) fn write(kernel: &Kernel, flags: u32, reject: bool) {
    let mut directory = Box::new([0_u16; 65536]);
    let mut homes = [Home6::default(); 3];
    for pool in 1..=3_u16 {
        directory[usize::from(0x0a00 + 65 + pool)] = pool;
        kernel.set(map::CHUNKS4, &u32::from(pool), &[pool as u8; 65536]);
        homes[usize::from(pool) - 1] = Home6 {
            prefix: [high(0xfd65 + pool), 0],
            mask: [u64::from_ne_bytes([255, 255, 255, 255, 255, 255, 0, 0]), 0],
            class: pool.into(),
        };
    }
    kernel.set(map::DIR4, &0_u32, &*directory);
    kernel.set(map::HOMES6, &0_u32, &Homes6::new(&homes));

    let mut policy = zeroed();
    let answered = if reject { POOL_REJECT } else { 0 };
    policy.pools[1].flags = answered;
    policy.pools[2].flags = POOL_ALL | answered;
    policy.pools[3].flags = POOL_BLOCKED | answered;
    policy.level1[0x0a4d] = 1;
    policy.dst6_count = 1;
    policy.dst6[0] = Dst6 {
        prefix: [high(0xfd77), 0],
        mask: [u64::MAX, 0],
        group: 1,
    };
    policy.tcp[443] = 1;
    policy.udp[53] = 1;
    policy.rules[1][1][1] = RULE;
    kernel.set_policy(0, &policy);
    set_flags(kernel, flags);
}

/// Gives a session of pool 1 an IPv6 address, or the whole /64 that it is in. Others go on.
pub(crate) fn bind(kernel: &Kernel, address: &str, whole: bool) {
    const BITS: u32 = 10;
    let class = if whole { MAX_POOLS + 2 } else { MAX_POOLS + 1 };
    let mut control: Control = kernel.get(map::CONTROL, 0);
    control.hash6_bits = BITS;
    control.flags |= if whole { FLAG_DELEGATED } else { 0 };
    control.classes[usize::from(class)] = class_entry(1, false, 0) | if whole { ENTRY_DELEGATED } else { 0 };
    kernel.set(map::CONTROL, &0_u32, &control);
    let octets = address.parse::<Ipv6Addr>().unwrap().octets();
    let word = |at: usize| u64::from_ne_bytes(octets[at..at + 8].try_into().unwrap());
    let key = if whole { delegated(word(0)) } else { [word(0), word(8)] };
    let index = mix6(key) as u32 & ((1 << BITS) - 1);
    let mut bucket: Bucket6 = kernel.get(map::HASH6, index);
    let free = (0..BUCKET6_SLOTS).find(|s| bucket.keys[*s][0] == 0).unwrap();
    (bucket.keys[free], bucket.classes[free]) = (key, class);
    kernel.set(map::HASH6, &index, &bucket);
}

/// Writes a shadow policy: pool 1 may reach DM by TCP 25, by rule 9, and nothing else; pool 2 may do nothing, pool 3 everything.
pub(crate) fn shadow(kernel: &Kernel) {
    let mut policy = zeroed();
    policy.pools[2].flags = POOL_BLOCKED;
    policy.pools[3].flags = POOL_ALL;
    policy.level1[0x0a4d] = 1;
    policy.dst6_count = 1;
    policy.dst6[0] = Dst6 {
        prefix: [high(0xfd77), 0],
        mask: [u64::MAX, 0],
        group: 1,
    };
    policy.tcp[25] = 1;
    policy.rules[1][1][1] = 9;
    kernel.set_policy(POLICY_SHADOW, &policy);
}

fn zeroed() -> Box<Policy> {
    // SAFETY: the layout is that of a policy, for which zeros are a value.
    unsafe { Box::from_raw(std::alloc::alloc_zeroed(std::alloc::Layout::new::<Policy>()).cast()) }
}

/// Sets [`Control::flags`].
pub(crate) fn set_flags(kernel: &Kernel, flags: u32) {
    let control = Control {
        abi: VERSION,
        flags,
        hash6_bits: 10,
        earliest_lease_end: u64::MAX,
        meta_key: META_KEY,
        ..Control::default()
    };
    kernel.set(map::CONTROL, &0_u32, &control);
}

fn high(first: u16) -> u64 {
    let octets = Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0).octets();
    u64::from_ne_bytes(octets[..8].try_into().unwrap())
}
