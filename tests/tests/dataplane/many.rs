//! Many addresses at once come to the same as one by one, in their order, whatever some of them had before.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use gateway_user::{
    kernel::{AddressReading, Assignment, Kernel, KernelError},
    model::{BootTime, PoolId, SessionId},
};
use lazaret_tests::require;

use crate::gateway::{Gateway, QUARANTINE, STAFF};

/// More than one command takes.
const COUNT: u32 = 9_000;
const MAP: u32 = 0;

fn wider(config: String) -> String {
    config
        .replace("\"10.66.0.0/24\"", "\"10.66.0.0/18\"")
        .replace("addresses = 4096", "addresses = 65536")
}

fn to(n: u32, pool: PoolId, lease: bool) -> Assignment {
    Assignment {
        pool,
        session: SessionId(u64::from(n) + 1),
        interface: format!("vpn{}", n % 3).parse().unwrap(),
        lease: lease.then_some((BootTime(u64::MAX / 2 + u64::from(n)), QUARANTINE)),
    }
}

fn address(n: u32) -> IpAddr {
    match n % 5 {
        0 => Ipv6Addr::from((0xfd00_0066_u128 << 96) | (u128::from(n) + 16)).into(),
        _ => Ipv4Addr::from(0x0a42_0010 + n).into(),
    }
}

/// Which map gave it is another in another gateway. What memory and whole records say is what reading one by one says.
fn seen(g: &mut Gateway) -> BTreeMap<IpAddr, AddressReading> {
    let assigned = g.live(|l| l.assigned()).unwrap();
    let (addresses, listed): (Vec<IpAddr>, Vec<AddressReading>) = assigned.into_iter().unzip();
    assert!(g.live(|l| l.read_all(&addresses)).unwrap() == listed, "they differ");
    let count = listed.len();
    let all: BTreeMap<_, _> = addresses
        .into_iter()
        .zip(listed.into_iter().map(|r| AddressReading { map_id: MAP, ..r }))
        .collect();
    assert_eq!(all.len(), count, "each is listed once");
    all
}

#[test]
fn all_at_once_come_to_what_one_by_one_does() {
    require!(Root, Bpf, Tun, Program("nft"));
    let all: Vec<(IpAddr, Assignment)> = (0..COUNT)
        .map(|n| {
            let pool = if n % 7 == 0 { QUARANTINE } else { STAFF };
            let outside = n % 1000 == 999;
            let at = if outside {
                Ipv4Addr::from(0x0a63_0000 + n).into()
            } else {
                address(n)
            };
            (at, to(n, pool, n % 11 == 0))
        })
        .collect();
    // Some have something already, with and without a lease.
    let before: Vec<(IpAddr, Assignment)> = (0..COUNT)
        .step_by(13)
        .map(|n| (address(n), to(n + 50_000, STAFF, n % 2 == 0)))
        .collect();
    let mut made = Vec::new();
    for at_once in [true, false] {
        let (mut g, _tun) = Gateway::tun(wider);
        g.open();
        for (address, to) in &before {
            g.live(|l| l.assign(*address, to.clone())).unwrap();
        }
        let failed: Vec<usize> = if at_once {
            let failed = g.live(|l| l.assign_all(&all));
            assert!(failed.iter().all(|(_, e)| matches!(e, KernelError::OutsidePools(_))));
            failed.into_iter().map(|(place, _)| place).collect()
        } else {
            let one = |(place, (address, to)): (usize, &(IpAddr, Assignment))| {
                let done = g.live(|l| l.assign(*address, to.clone()));
                done.err().map(|_| place)
            };
            all.iter().enumerate().filter_map(one).collect()
        };
        let mut seen = seen(&mut g);
        for (place, (address, to)) in all.iter().enumerate() {
            if failed.contains(&place) {
                assert!(!seen.contains_key(address));
                continue;
            }
            let reading = &seen[address];
            assert_eq!(
                (reading.pool, reading.session),
                (Some(to.pool), Some(to.session)),
                "{address}"
            );
            assert_eq!(reading.lease_end.zip(reading.fallback), to.lease, "{address}");
        }
        // Nobody is left in the numbers of classes: what is cleared falls idle.
        for (address, _) in all.iter().chain(&before) {
            g.live(|l| l.clear(*address)).unwrap();
        }
        assert_eq!(g.assigned(), Vec::<IpAddr>::new());
        seen.retain(|_, r| r.interface.is_some() || r.pool.is_some());
        made.push((failed, seen));
    }
    assert_eq!(made[0].0, (0..COUNT as usize).filter(|n| n % 1000 == 999).collect::<Vec<_>>());
    assert!(made[0] == made[1], "at once and one by one differ");
}

#[test]
fn a_table_without_room_takes_what_it_can_and_names_the_rest() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| wider(c).replace("addresses = 65536", "addresses = 5000"));
    g.open();
    let all: Vec<_> = (0..6_000)
        .map(|n| (Ipv4Addr::from(0x0a42_0010 + n).into(), to(n, STAFF, false)))
        .collect();
    let failed = g.live(|l| l.assign_all(&all));
    assert!(failed.iter().all(|(_, e)| matches!(e, KernelError::TableFull)));
    let failed: Vec<usize> = failed.into_iter().map(|(place, _)| place).collect();
    assert_eq!(failed, (5_000..6_000).collect::<Vec<_>>());
    assert_eq!(g.assigned().len(), 5_000);
    for place in [0, 4_999, 5_000, 5_999] {
        let (address, to) = all[place].clone();
        let reading = g.live(|l| l.read(address)).unwrap();
        let want = if place < 5_000 {
            (Some(STAFF), Some(to.session))
        } else {
            (Some(QUARANTINE), None)
        };
        assert_eq!((reading.pool, reading.session), want, "{address}");
    }
}

#[test]
fn a_full_table_of_ipv6_addresses_leaves_no_record_behind() {
    require!(Root, Bpf, Tun, Program("nft"));
    // The table of sessions has room for all; of the slots in its two buckets an address may find none.
    let (mut g, _tun) = Gateway::tun(|c| wider(c).replace("addresses = 65536", "addresses = 16"));
    g.open();
    let address = |n: u32| IpAddr::from(Ipv6Addr::from((0xfd00_0066_u128 << 96) | (u128::from(n) + 16)));
    let mut full = 0;
    for first in (0..16_000).step_by(16) {
        let all: Vec<_> = (first..first + 16).map(|n| (address(n), to(n, STAFF, false))).collect();
        let failed = g.live(|l| l.assign_all(&all));
        let assigned = g.assigned();
        assert_eq!(assigned.len(), all.len() - failed.len());
        for (place, error) in &failed {
            assert!(matches!(error, KernelError::TableFull), "{error}");
            assert!(!assigned.contains(&all[*place].0), "a record without a class");
        }
        full += failed.len();
        for (address, _) in &all {
            g.live(|l| l.clear(*address)).unwrap();
        }
    }
    assert!(full > 0, "every address found room: nothing was tested");
}
