//! The IPv6 prefixes of the pools, as [`super::map::HOMES6`] holds them.

/// Most IPv6 prefixes over all pools.
pub const MAX_HOMES6: usize = 64;

/// One IPv6 prefix of a pool. The first match counts; prefixes of pools do not overlap, reserved addresses (class 0) come first.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Home6 {
    /// Prefix, as loaded from memory.
    pub prefix: [u64; 2],
    /// Mask, as loaded from memory.
    pub mask: [u64; 2],
    /// Class of an address that is not in [`super::map::HASH6`].
    pub class: u64,
}
const _: () = assert!(size_of::<Home6>() == 40);

/// The IPv6 prefixes of the pools.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Homes6 {
    /// How many of `homes` count.
    pub count: u64,
    /// An address whose upper half has other bits than `common` where this has ones is in none of them, nor does it stand in [`super::map::HASH6`].
    pub common_mask: u64,
    /// The bits that the upper halves of all prefixes have in common.
    pub common: u64,
    /// In order of search.
    pub homes: [Home6; MAX_HOMES6],
}
const _: () = assert!(size_of::<Homes6>() == 24 + 64 * 40);

impl Homes6 {
    /// The prefixes, of which the first [`MAX_HOMES6`] count.
    #[must_use]
    pub fn new(prefixes: &[Home6]) -> Self {
        let mut all = Self {
            count: 0,
            common_mask: u64::MAX,
            common: 0,
            homes: [Home6::default(); MAX_HOMES6],
        };
        for (home, prefix) in all.homes.iter_mut().zip(prefixes) {
            if all.count == 0 {
                all.common = prefix.prefix[0];
            }
            all.common_mask &= prefix.mask[0] & !(all.common ^ prefix.prefix[0]);
            all.count += 1;
            *home = *prefix;
        }
        all.common &= all.common_mask;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(prefix: u64, bits: u32) -> Home6 {
        Home6 {
            prefix: [prefix.to_be(), 0],
            mask: [(u64::MAX << (64 - bits)).to_be(), 0],
            class: 1,
        }
    }

    /// No address of a prefix is far from it, and most others are.
    #[test]
    fn what_prefixes_have_in_common_is_in_each() {
        let homes = [
            home(0xfd66_0000_0000_0000, 48),
            home(0xfd66_0001_0000_0000, 56),
            home(0xfd66_8000_ff00_0000, 40),
        ];
        for n in 0..=homes.len() {
            let all = Homes6::new(&homes[..n]);
            let far = |hi: u64| (hi.to_be() ^ all.common) & all.common_mask != 0;
            for home in &homes[..n] {
                for low in [0, !u64::from_be(home.mask[0]), 0x1234_5678] {
                    assert!(!far(u64::from_be(home.prefix[0]) | low & !u64::from_be(home.mask[0])), "{n}");
                }
            }
            assert!(far(0x2001_0db8_0000_0000), "{n}");
            assert_eq!(all.count, n as u64);
        }
        assert_eq!(Homes6::new(&homes).common_mask, 0xffff_7ffe_0000_0000_u64.to_be());
    }
}
