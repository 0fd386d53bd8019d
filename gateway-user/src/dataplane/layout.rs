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
