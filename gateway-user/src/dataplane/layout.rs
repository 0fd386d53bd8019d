//! Where the pools' addresses lie in the tables: which /16s have a chunk, which class each address rests at, and the digest that tells
//! whether pinned tables were built for this configuration. Pure.

use std::net::{IpAddr, Ipv6Addr};

use gateway_ebpf::abi::{BUCKET_FRAGMENTS, Class, Home6, Homes6, MAX_HOMES6, VERSION};
use ipnetwork::IpNetwork;

use super::policy::CompileError;
use crate::config::Config;

/// Bytes of a chunk: the addresses of a /16.
pub(super) const CHUNK: usize = 65536;
/// Most /16s that pools may touch: 256 MiB of chunks.
pub(super) const MAX_CHUNKS: usize = 4096;

/// The IPv4 side: the /16s that pools touch, in ascending order. The chunk number of a /16 is its place in it, from 1.
pub(super) struct Layout4 {
    halves: Vec<u16>,
    /// By upper half of an address: its chunk number, 0: none.
    numbers: Vec<u16>,
}

impl Layout4 {
    pub(super) fn new(config: &Config) -> Result<Self, CompileError> {
        let mut halves = Vec::new();
        for (_, first, last) in ranges4(config) {
            halves.extend((first >> 16) as u16..=(last >> 16) as u16);
        }
        halves.sort_unstable();
        halves.dedup();
        if halves.len() > MAX_CHUNKS {
            return Err(CompileError::Limit {
                what: "IPv4 /16s in pools",
                limit: "MAX_CHUNKS",
                most: MAX_CHUNKS,
            });
        }
        let mut numbers = vec![0; CHUNK];
        for (number, half) in (1..).zip(&halves) {
            numbers[usize::from(*half)] = number;
        }
        Ok(Self { halves, numbers })
    }

    /// How many chunks there are, the zero chunk included.
    pub(super) fn chunks(&self) -> usize {
        self.halves.len() + 1
    }

    /// The chunk number of an address, and its place in the chunk; chunk 0: its /16 is in no pool.
    pub(super) fn place(&self, address: u32) -> (usize, usize) {
        (
            usize::from(self.numbers[(address >> 16) as usize]),
            (address & 0xffff) as usize,
        )
    }

    /// The address at an offset into CHUNKS4.
    pub(super) fn address(&self, offset: usize) -> Option<std::net::Ipv4Addr> {
        let half = self.halves.get((offset / CHUNK).checked_sub(1)?)?;
        Some((u32::from(*half) << 16 | (offset % CHUNK) as u32).into())
    }

    /// Content of DIR4.
    pub(super) fn directory(&self) -> Vec<u16> {
        self.numbers.clone()
    }

    /// Content of CHUNKS4 with no session live: every address at rest.
    pub(super) fn resting(&self, config: &Config) -> Vec<Class> {
        let mut chunks = vec![0; self.chunks() * CHUNK];
        for (class, first, last) in ranges4(config) {
            // The /16s of a range are neighbours, and so are their chunks.
            let (from, to) = (self.place(first), self.place(last));
            chunks[from.0 * CHUNK + from.1..=to.0 * CHUNK + to.1].fill(class);
        }
        for address in config.pools.iter().flat_map(|p| &p.reserved) {
            if let IpAddr::V4(a) = address {
                let (chunk, place) = self.place(u32::from(*a));
                chunks[chunk * CHUNK + place] = 0;
            }
        }
        chunks
    }
}

impl Layout4 {
    /// One chunk of [`Layout4::resting`].
    pub(super) fn resting_chunk(&self, config: &Config, chunk: usize) -> Vec<Class> {
        let mut classes = vec![0; CHUNK];
        let Some(half) = chunk.checked_sub(1).and_then(|n| self.halves.get(n)) else {
            return classes;
        };
        let (begin, end) = (u32::from(*half) << 16, u32::from(*half) << 16 | 0xffff);
        for (class, first, last) in ranges4(config).filter(|(_, first, last)| *first <= end && *last >= begin) {
            let (from, to) = (first.max(begin) - begin, last.min(end) - begin);
            classes[from as usize..=to as usize].fill(class);
        }
        let reserved = config.pools.iter().flat_map(|p| &p.reserved);
        for address in reserved.filter_map(|a| if let IpAddr::V4(a) = a { Some(u32::from(*a)) } else { None }) {
            if (begin..=end).contains(&address) {
                classes[(address - begin) as usize] = 0;
            }
        }
        classes
    }
}

/// The address tables with no session live.
pub struct AtRest {
    /// Content of DIR4.
    pub directory: Vec<u16>,
    /// Content of CHUNKS4, chunk by chunk.
    pub chunks: Vec<Class>,
    /// Content of HOMES6.
    pub homes6: Box<Homes6>,
}

/// Lays the addresses of a configuration's pools out.
///
/// # Errors
/// There is no room for them in the tables.
pub fn lay_out(config: &Config) -> Result<AtRest, CompileError> {
    let layout = Layout4::new(config)?;
    Ok(AtRest {
        directory: layout.directory(),
        chunks: layout.resting(config),
        homes6: homes6(config)?,
    })
}

/// Class at rest, first and last address of each IPv4 prefix.
fn ranges4(config: &Config) -> impl Iterator<Item = (Class, u32, u32)> {
    config.pools.iter().flat_map(|pool| {
        pool.prefixes.iter().filter_map(|n| match n {
            IpNetwork::V4(n) => Some((pool.id.0, u32::from(n.network()), u32::from(n.broadcast()))),
            IpNetwork::V6(_) => None,
        })
    })
}

/// Content of HOMES6: reserved addresses, then prefixes.
pub(super) fn homes6(config: &Config) -> Result<Box<Homes6>, CompileError> {
    let reserved = config.pools.iter().flat_map(|p| &p.reserved).filter_map(|a| match a {
        IpAddr::V6(a) => Some(Home6 {
            prefix: words6(*a),
            mask: [u64::MAX; 2],
            class: 0,
        }),
        IpAddr::V4(_) => None,
    });
    let mut homes: Vec<Home6> = reserved.collect();
    for pool in &config.pools {
        for prefix in &pool.prefixes {
            let IpNetwork::V6(n) = prefix else { continue };
            let network = words6(n.network());
            if network[0] == 0 {
                return Err(CompileError::ZeroPrefix { prefix: *prefix });
            }
            homes.push(Home6 {
                prefix: network,
                mask: words6(n.mask()),
                class: u64::from(pool.id.0),
            });
        }
    }
    if homes.len() > MAX_HOMES6 {
        return Err(CompileError::Limit {
            what: "IPv6 prefixes and reserved addresses in pools",
            limit: "MAX_HOMES6",
            most: MAX_HOMES6,
        });
    }
    Ok(Box::new(Homes6::new(&homes)))
}

/// An address as the tables hold it: two words as loaded from memory.
pub(super) fn words6(address: Ipv6Addr) -> [u64; 2] {
    let bytes = u128::from(address).to_be_bytes();
    let word = |from: usize| u64::from_ne_bytes(std::array::from_fn(|i| bytes[from + i]));
    [word(0), word(8)]
}

/// The address of two words.
pub(super) fn address6(words: [u64; 2]) -> Ipv6Addr {
    let bytes = words.map(u64::to_ne_bytes);
    let all: [u8; 16] = std::array::from_fn(|i| bytes[i / 8][i % 8]);
    all.into()
}

/// Buckets of HASH6: a power of two, at least one.
pub(super) fn buckets6(config: &Config) -> u32 {
    config.tables.buckets6.max(1).checked_next_power_of_two().unwrap_or(1 << 31)
}

/// Buckets of FRAGMENTS: a power of two, at least four, of which addresses at rest have one.
pub(super) fn fragment_buckets(config: &Config) -> u32 {
    (config.tables.fragments / BUCKET_FRAGMENTS as u32).max(4).next_power_of_two()
}

/// Digest of what the address tables depend on: pools, their order, prefixes and fallbacks, and table sizes. Policies are not in it:
/// they are changed in place.
pub(super) fn digest(config: &Config) -> u64 {
    let mut text = format!(
        "{VERSION} {} {} {} {}",
        config.tables.addresses,
        buckets6(config),
        config.tables.denials_bytes,
        config.tables.fragments
    );
    for pool in &config.pools {
        text += &format!("\n{} {} {}", pool.id.0, pool.name, config.resting(pool).0);
        for prefix in &pool.prefixes {
            text += &format!(" {prefix}");
        }
        for address in &pool.reserved {
            text += &format!(" -{address}");
        }
    }
    fnv(&text)
}

/// FNV-1a: the same from build to build, unlike the standard library's hasher.
pub(super) fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::{super::fixtures, *};

    /// The fixture's pools, and one over three /16s that are not in order with the others.
    fn config() -> Config {
        let mut config = fixtures::config();
        let pool = config.pools.first_mut().unwrap();
        pool.prefixes.push("10.12.0.0/15".parse().unwrap());
        pool.prefixes.push("10.11.255.128/25".parse().unwrap());
        pool.reserved.push("10.13.0.0".parse().unwrap());
        config
    }

    /// The same, the slow way.
    fn class(config: &Config, address: u32) -> Class {
        let address = std::net::Ipv4Addr::from(address);
        let holds = |n: &IpNetwork| matches!(n, IpNetwork::V4(n) if n.contains(address));
        let home = config.pools.iter().find(|p| p.prefixes.iter().any(holds));
        home.filter(|p| !p.reserved.contains(&address.into())).map_or(0, |p| p.id.0)
    }

    #[test]
    fn every_address_lies_in_its_chunk_and_rests_at_its_home_pool() {
        let config = config();
        let layout = Layout4::new(&config).unwrap();
        let (directory, chunks) = (layout.directory(), layout.resting(&config));
        assert_eq!(chunks.len(), layout.chunks() * CHUNK);
        assert!(chunks[..CHUNK].iter().all(|c| *c == 0), "the zero chunk");
        let mut last = 0;
        assert_eq!(directory.len(), CHUNK);
        for (half, chunk) in directory.iter().enumerate() {
            let chunk = usize::from(*chunk);
            if chunk == 0 {
                assert_eq!(class(&config, (half as u32) << 16), 0);
                continue;
            }
            assert_eq!(chunk, last + 1, "in ascending order, each its own");
            last = chunk;
            let resting = layout.resting_chunk(&config, chunk);
            assert_eq!(resting, chunks[chunk * CHUNK..(chunk + 1) * CHUNK], "{half:#x}");
            for (lower, rests) in resting.iter().enumerate() {
                let address = (half << 16 | lower) as u32;
                assert_eq!(layout.place(address), (chunk, lower));
                assert_eq!(layout.address(chunk * CHUNK + lower), Some(address.into()));
                assert_eq!(*rests, class(&config, address), "{}", std::net::Ipv4Addr::from(address));
            }
        }
        assert_eq!(layout.chunks(), last + 1);
        assert!(layout.chunks() >= 5);
        assert_eq!(
            (layout.address(CHUNK - 1), layout.address(layout.chunks() * CHUNK)),
            (None, None)
        );
        assert!(layout.resting_chunk(&config, 0).iter().all(|c| *c == 0));
        assert!(layout.resting_chunk(&config, last + 1).iter().all(|c| *c == 0));
    }

    #[test]
    fn reserved_ipv6_addresses_come_before_the_prefix_that_holds_them() {
        let config = config();
        let homes = homes6(&config).unwrap();
        let found = |address: &str| {
            let key = words6(address.parse().unwrap());
            let homes = &homes.homes[..homes.count as usize];
            let home = homes.iter().find(|h| (0..2).all(|i| key[i] & h.mask[i] == h.prefix[i]));
            home.map(|h| h.class)
        };
        assert_eq!(
            [found("fd66::1"), found("fd66::2"), found("fd66:0:0:1::1")],
            [Some(0), Some(1), None]
        );
        for address in ["fd66::1", "2001:db8::ff00:1"] {
            assert_eq!(
                address6(words6(address.parse().unwrap())),
                address.parse::<Ipv6Addr>().unwrap()
            );
        }
        let mut zero = config;
        zero.pools[0].prefixes.push("::1:0:0:0/80".parse().unwrap());
        assert!(matches!(homes6(&zero), Err(CompileError::ZeroPrefix { .. })));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut config = fixtures::config();
        config.pools.truncate(1);
        config.pools[0].prefixes = vec!["16.0.0.0/4".parse().unwrap()];
        assert!(Layout4::new(&config).is_ok(), "4096 /16s");
        config.pools[0].prefixes.push("9.0.0.0/32".parse().unwrap());
        assert!(matches!(
            Layout4::new(&config),
            Err(CompileError::Limit { most: MAX_CHUNKS, .. })
        ));
        let reserve = |n: usize| {
            let mut config = fixtures::config();
            config.pools[0].reserved = (0..n as u128).map(|i| IpAddr::V6((0xfd66_u128 << 112 | i).into())).collect();
            homes6(&config).is_ok()
        };
        let prefixes = homes6(&fixtures::config()).unwrap().count as usize - 1;
        assert!(reserve(MAX_HOMES6 - prefixes) && !reserve(MAX_HOMES6 - prefixes + 1));
    }

    /// Pinned tables are adopted by it alone: each of what they are made from changes it, and what they are not made from does not.
    #[test]
    fn the_digest_tells_what_tables_were_made_from() {
        let changed = |change: &dyn Fn(&mut Config)| {
            let mut config = fixtures::config();
            change(&mut config);
            digest(&config) != digest(&fixtures::config())
        };
        let changes: [&dyn Fn(&mut Config); 9] = [
            &|c| c.tables.addresses += 1,
            &|c| c.tables.buckets6 *= 2,
            &|c| c.tables.denials_bytes *= 2,
            &|c| c.tables.fragments += 1,
            &|c| c.pools[0].prefixes.reverse(),
            &|c| c.pools[0].reserved.clear(),
            &|c| c.pools[0].name = "other".parse().unwrap(),
            &|c| c.pools.swap(0, 1),
            &|c| {
                c.pools
                    .iter_mut()
                    .for_each(|p| p.fallback = p.fallback.map(|_| crate::model::PoolId(3)))
            },
        ];
        for (n, change) in changes.iter().enumerate() {
            assert!(changed(change), "{n}");
        }
        assert!(!changed(&|c| c.pools[0].policy = "other".parse().unwrap()));
        assert!(!changed(&|c| c.interfaces.clear()));
    }

    #[test]
    fn sizes_are_powers_of_two() {
        let sizes = |buckets6, fragments| {
            let mut config = fixtures::config();
            (config.tables.buckets6, config.tables.fragments) = (buckets6, fragments);
            (super::buckets6(&config), fragment_buckets(&config))
        };
        assert_eq!(sizes(0, 0), (1, 4));
        assert_eq!(sizes(1025, 64), (2048, 4));
        assert_eq!(sizes(2048, 65), (2048, 4));
        assert_eq!(sizes(u32::MAX, 80), (1 << 31, 8));
    }
}
