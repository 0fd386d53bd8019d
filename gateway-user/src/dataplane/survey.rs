//! Looking over the tables for what no session accounts for: part by part, in the memory that the programs read.

use std::{net::IpAddr, sync::atomic::Ordering};

use gateway_ebpf::abi::BUCKET6_SLOTS;

use super::{
    layout::{self, CHUNK},
    table6::{SharedBucket, Table6},
    tables::Tables,
};
use crate::kernel::Survey;

/// Buckets of the IPv6 table in one part.
const BUCKETS: usize = 4096;

impl Tables {
    /// See [`crate::kernel::Kernel::survey`]: a part is a /16 in use, then so many buckets of the IPv6 table.
    pub(super) fn survey(&self, part: usize) -> Survey {
        // Chunk 0 is that of all addresses that are in no pool.
        let (chunks, buckets) = (self.layout.chunks(), self.buckets());
        let parts = (chunks - 1) + buckets.len().div_ceil(BUCKETS);
        let addresses = if part + 1 < chunks {
            self.survey4(part + 1)
        } else {
            let from = (part + 1 - chunks) * BUCKETS;
            survey6(buckets.get(from..(from + BUCKETS).min(buckets.len())).unwrap_or_default())
        };
        Survey {
            addresses,
            next: (part + 1 < parts).then_some(part + 1),
        }
    }

    /// See [`crate::kernel::Kernel::recount`].
    pub(super) fn recount(&mut self) {
        let mut users = [0_u32; 256];
        for place in CHUNK..self.layout.chunks() * CHUNK {
            users[usize::from(self.chunks.byte(place).load(Ordering::Relaxed))] += 1;
        }
        Table6(self.buckets()).each(|_, class| users[usize::from(class)] += 1);
        self.classes.set_users(&users);
    }

    fn survey4(&self, chunk: usize) -> Vec<IpAddr> {
        let resting = self.layout.resting_chunk(self.config(), chunk);
        let differs = |(place, want): (usize, &u8)| {
            let byte = self.chunks.byte(chunk * CHUNK + place).load(Ordering::Relaxed);
            (byte != *want)
                .then(|| self.layout.address(chunk * CHUNK + place).map(IpAddr::V4))
                .flatten()
        };
        resting.iter().enumerate().filter_map(differs).collect()
    }
}

fn survey6(buckets: &[SharedBucket]) -> Vec<IpAddr> {
    let mut all = Vec::with_capacity(buckets.len() * BUCKET6_SLOTS / 2);
    Table6(buckets).each(|key, _| all.push(IpAddr::V6(layout::address6(key))));
    all
}
