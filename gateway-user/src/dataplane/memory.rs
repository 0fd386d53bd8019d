//! How much memory the maps take: the figures of docs/memory.md, from the sizes that a configuration asks for. Pure. By the kernel's own
//! account (`memlock` in fdinfo, Linux 6.4 and later); 64-bit, 4 KiB pages.

use gateway_ebpf::abi::{
    Answers, Cold, ColdKey, Control, CpuCounts, FragmentBucket, Homes6, Interface, MAX_INTERFACES, MAX_POOLS, MAX_RULES,
    POLICIES, Policy, ShadowCount, map,
};

use super::{
    layout::{self, CHUNK, Layout4},
    policy::CompileError,
};
use crate::config::Config;

const PAGE: u64 = 4096;
/// `struct bucket` of the kernel's hash tables: as many as the next power of two has.
const HASH_BUCKET: u64 = 16;
/// `struct htab_elem` and the list node of an allocated one.
const HASH_ELEMENT: u64 = 48 + 8;
/// Buckets of HASH6.
const BUCKET6: u64 = 64;

/// Most bytes of each map, with every table full, by name; `cpus`: possible CPUs, of whose numbers none is left out.
///
/// # Errors
/// [`CompileError`] names the limit that the pools exceed.
pub fn memory(config: &Config, cpus: usize) -> Result<Vec<(&'static str, u64)>, CompileError> {
    let chunks = Layout4::new(config)?.chunks() as u64;
    let tables = &config.tables;
    let pools = u64::from(MAX_POOLS) + 1;
    let per_cpu = |entries: u64, size: usize| entries * (size as u64 * cpus as u64 + 8);
    let hash =
        |entries: u64, element: usize| HASH_BUCKET * entries.next_power_of_two() + entries * (HASH_ELEMENT + element as u64);
    // The rings have three pages of their own beside the data.
    let ring = |bytes: u32| u64::from(bytes) + 3 * PAGE;
    Ok(vec![
        (map::CONTROL, mapped(size_of::<Control>() as u64)),
        (map::DIR4, mapped(2 * CHUNK as u64)),
        (map::CHUNKS4, mapped(chunks * CHUNK as u64)),
        (map::HASH6, mapped(u64::from(layout::buckets6(config)) * BUCKET6)),
        (map::HOMES6, mapped(size_of::<Homes6>() as u64)),
        (
            map::COLD,
            hash(tables.addresses.into(), size_of::<ColdKey>() + size_of::<Cold>()),
        ),
        (map::POLICY, mapped(u64::from(POLICIES) * size_of::<Policy>() as u64)),
        (map::INTERFACES, hash(MAX_INTERFACES as u64, 8 + size_of::<Interface>())),
        (
            map::FRAGMENTS,
            u64::from(layout::fragment_buckets(config)) * size_of::<FragmentBucket>() as u64,
        ),
        (map::COUNTERS, mapped(cpus as u64 * size_of::<CpuCounts>() as u64)),
        (map::RULE_IDS, MAX_RULES as u64 * 8),
        (map::SHADOW, per_cpu(pools, size_of::<ShadowCount>())),
        (map::ANSWERS, per_cpu(pools, size_of::<Answers>())),
        (map::EVENTS_LOST, per_cpu(1, 24)),
        (map::DENIALS, ring(tables.denials_bytes)),
        (map::CAPTURES, ring(CAPTURES_BYTES)),
        (map::CAPTURES_LOST, per_cpu(1, 16)),
    ])
}

/// The ring of captured packets, bytes.
pub(super) const CAPTURES_BYTES: u32 = 1 << 20;

/// A mappable array: a page for itself, and its elements in whole pages.
fn mapped(bytes: u64) -> u64 {
    PAGE + bytes.next_multiple_of(PAGE)
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    /// The example of docs/memory.md.
    #[test]
    fn a_million_addresses_take_what_the_page_says() {
        let mut config = fixtures::config();
        config.pools[0].prefixes = vec!["10.16.0.0/12".parse().unwrap(), "fd66::/64".parse().unwrap()];
        config.pools[0].reserved.clear();
        config.tables.addresses = 1_000_000;
        config.tables.buckets6 = crate::config::Tables::buckets6_for(1_000_000);
        config.tables.denials_bytes = 262_144;
        config.tables.fragments = 4096;
        let of = |name| memory(&config, 2).unwrap().iter().find(|(n, _)| *n == name).unwrap().1;
        assert_eq!(
            of(map::CHUNKS4),
            PAGE + 19 * 65536,
            "sixteen /16s, one of each other pool, and the empty one"
        );
        assert_eq!(of(map::HASH6), PAGE + (64 << 20));
        assert_eq!(of(map::COLD), (16 << 20) + 96_000_000);
        let bytes: u64 = memory(&config, 2).unwrap().iter().map(|(_, b)| b).sum();
        assert_eq!((bytes as f64 / f64::from(1 << 20)).round(), 180.0, "docs/memory.md");
    }
}
