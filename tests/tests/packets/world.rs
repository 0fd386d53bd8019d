//! The world in which the packets of the table are judged: pools, their addresses and rules, from the table's head into tables in memory,
//! and from there into the kernel. Written for reading; it shares no code with the daemon's compiler of policies and writer of tables.

use std::collections::HashMap;

use gateway_ebpf::{
    abi::{
        Bucket6, CLASS_LEASED, Cold, ColdKey, Control, Dst6, ENTRY_DELEGATED, FLAG_DELEGATED, FLAG_INTERFACE_POOLS,
        FragmentBucket, Home6, Homes6, Interface, LEVEL_NEXT, POOL_ALL, POOL_BLOCKED, POOL_TO_DEVICE, Policy, VERSION,
        class_entry, map, mix6,
    },
    tables::MemTables,
};
use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::object::{IFINDEX, META_KEY, Object};

/// First class of sessions on another interface.
const ELSEWHERE: u8 = 64;

/// First class of sessions with a whole /64, before it.
const WHOLE: u8 = 192;

/// A pool.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Pool {
    /// Name.
    pub(crate) name: String,
    /// Number, 1 to 63.
    pub(crate) number: u8,
    /// "all", "blocked" or "rules".
    policy: String,
    /// Where addresses are in the pool by home: IPv4 up to /16, IPv6.
    #[serde(default)]
    homes: Vec<IpNetwork>,
    /// Addresses that are in the pool by a session.
    #[serde(default)]
    addresses: Vec<IpNetwork>,
    /// IPv6 /64s that are in the pool by a session that has them whole.
    #[serde(default)]
    delegated: Vec<ipnetwork::Ipv6Network>,
    /// Addresses that are in the pool by a session on another interface.
    #[serde(default)]
    elsewhere: Vec<IpNetwork>,
    /// Its addresses are at rest on other interfaces only.
    #[serde(default)]
    not_here: bool,
    /// Rules.
    #[serde(default)]
    rules: Vec<Rule>,
}

/// A rule. Destinations of different rules are equal or disjoint, and so are ports.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    /// What devices may connect to.
    #[serde(default)]
    to: Vec<IpNetwork>,
    /// Who may connect to devices.
    #[serde(default)]
    from: Vec<IpNetwork>,
    /// "tcp", "udp", "any", or a protocol number.
    protocol: String,
    #[serde(default)]
    ports: Option<[u16; 2]>,
}

/// An address with a lease.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Leased {
    address: IpNetwork,
    /// Pool until the lease ends.
    pool: String,
    /// Pool afterwards; none: there is no cold record.
    fallback: Option<String>,
    /// Whether the lease has ended.
    ended: bool,
}

/// The head of the table.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Description {
    pub(crate) pool: Vec<Pool>,
    #[serde(default)]
    pub(crate) leased: Vec<Leased>,
    /// The interface's VLANs, single tags.
    #[serde(default)]
    pub(crate) vlans: Vec<u32>,
}

/// The tables.
pub(crate) struct World {
    pub(crate) pools: Vec<Pool>,
    pub(crate) control: Control,
    pub(crate) directory4: Box<[u16; 65536]>,
    pub(crate) chunks4: Vec<[u8; 65536]>,
    pub(crate) hash6: Vec<Bucket6>,
    pub(crate) homes6: Box<Homes6>,
    pub(crate) policies: [Box<Policy>; 3],
    pub(crate) interfaces: Vec<(u32, Interface)>,
    pub(crate) fragments: Vec<FragmentBucket>,
    pub(crate) cold: HashMap<ColdKey, Cold>,
}

impl World {
    pub(crate) fn new(description: &Description) -> Self {
        let mut world = Self {
            pools: description.pool.clone(),
            control: Control {
                abi: VERSION,
                hash6_bits: 10,
                fragment_bits: 1,
                earliest_lease_end: u64::MAX,
                generation: 1,
                meta_key: META_KEY,
                ..Control::default()
            },
            directory4: Box::new([0; 65536]),
            chunks4: vec![[0; 65536]],
            hash6: vec![Bucket6::default(); 1024],
            homes6: Box::new(Homes6::new(&[])),
            policies: [zeroed(), zeroed(), zeroed()],
            interfaces: Vec::new(),
            fragments: Vec::new(),
            cold: HashMap::new(),
        };
        for pool in &description.pool {
            for home in &pool.homes {
                world.set_home(*home, pool.number);
            }
        }
        for pool in &description.pool {
            for address in &pool.addresses {
                world.set_class(*address, pool.number);
            }
        }
        for pool in &description.pool {
            for prefix in &pool.delegated {
                let class = WHOLE + pool.number;
                world.control.classes[usize::from(class)] = class_entry(pool.number, false, 0) | ENTRY_DELEGATED;
                world.control.flags |= FLAG_DELEGATED;
                // By the identifier that no host may have.
                let key = std::net::Ipv6Addr::from(u128::from(prefix.network()) | 0xfdff_ffff_ffff_ff80);
                world.set_class(std::net::IpAddr::V6(key).into(), class);
            }
        }
        for leased in &description.leased {
            world.set_class(leased.address, world.number(&leased.pool) | CLASS_LEASED);
            if let Some(fallback) = &leased.fallback {
                let cold = Cold {
                    lease_end: if leased.ended { 1 } else { u64::MAX },
                    session: 1,
                    fallback: world.number(fallback).into(),
                };
                world.cold.insert(key(leased.address), cold);
            }
        }
        let mut here = Interface {
            pools: u64::MAX,
            ..Interface::default()
        };
        here.vlans[..description.vlans.len()].copy_from_slice(&description.vlans);
        for pool in &description.pool {
            if pool.not_here {
                here.pools &= !(1 << pool.number);
                world.control.flags |= FLAG_INTERFACE_POOLS;
            }
            for address in &pool.elsewhere {
                let class = ELSEWHERE + pool.number;
                world.control.classes[usize::from(class)] = class_entry(pool.number, false, IFINDEX + 1);
                world.set_class(*address, class);
            }
        }
        world.interfaces = vec![(IFINDEX, here)];
        compile(&description.pool, &mut world.policies[1]);
        world.forget_fragments();
        world
    }

    pub(crate) fn number(&self, pool: &str) -> u8 {
        let found = self.pools.iter().find(|p| p.name == pool);
        found.unwrap_or_else(|| panic!("no pool {pool}")).number
    }

    /// The host's tables. Leases are as in the table's head: the boot clock stands after those that have ended.
    pub(crate) fn judged<R>(&self, judge: impl FnOnce(&MemTables<'_>) -> R) -> R {
        judge(&MemTables {
            control: &self.control,
            directory4: &self.directory4,
            chunks4: &self.chunks4,
            hash6: &self.hash6,
            homes6: &self.homes6,
            policies: [&self.policies[0], &self.policies[1], &self.policies[2]],
            interfaces: &self.interfaces,
            fragments: &self.fragments,
            cold: &|key| self.cold.get(key).copied(),
            coarse_now: 1_000,
            boot_now: 1_000,
            about_boot_now: 1_000,
        })
    }

    /// Forgets all datagrams in fragments.
    pub(crate) fn forget_fragments(&mut self) {
        // SAFETY: integers only, for which zeros are a value.
        self.fragments = (0..1 << self.control.fragment_bits)
            .map(|_| unsafe { std::mem::zeroed() })
            .collect();
    }

    /// Writes everything into the kernel's maps.
    pub(crate) fn write(&self, object: &Object) {
        object.set(map::DIR4, &0_u32, &*self.directory4);
        for (i, chunk) in (0_u32..).zip(&self.chunks4) {
            object.set(map::CHUNKS4, &i, chunk);
        }
        for (i, bucket) in (0_u32..).zip(&self.hash6) {
            object.set(map::HASH6, &i, bucket);
        }
        object.set(map::HOMES6, &0_u32, &*self.homes6);
        for (i, policy) in (0_u32..).zip(&self.policies) {
            object.set_policy(i, policy);
        }
        for (ifindex, interface) in &self.interfaces {
            object.set(map::INTERFACES, ifindex, interface);
        }
        for (i, bucket) in (0_u32..).zip(&self.fragments) {
            object.set(map::FRAGMENTS, &i, bucket);
        }
        for (key, cold) in &self.cold {
            object.set(map::COLD, key, cold);
        }
        object.set(map::CONTROL, &0_u32, &self.control);
    }

    fn set_home(&mut self, home: IpNetwork, class: u8) {
        match home {
            IpNetwork::V4(n) => {
                let chunk = self.chunk(n.network().octets());
                let first = u32::from(n.network()) as u16 as usize;
                chunk[first..][..n.size() as usize].fill(class);
            }
            IpNetwork::V6(n) => {
                let count = self.homes6.count as usize;
                let mut homes = self.homes6.homes[..count].to_vec();
                let (prefix, mask) = (words6(n.network().octets()), words6(n.mask().octets()));
                homes.push(Home6 {
                    prefix,
                    mask,
                    class: class.into(),
                });
                *self.homes6 = Homes6::new(&homes);
            }
        }
    }

    pub(crate) fn set_class(&mut self, address: IpNetwork, class: u8) {
        match address {
            IpNetwork::V4(n) => {
                let chunk = self.chunk(n.network().octets());
                chunk[u32::from(n.network()) as u16 as usize] = class;
            }
            IpNetwork::V6(n) => {
                let [hi, lo] = words6(n.network().octets());
                let mixed = mix6([hi, lo]);
                let mask = (1_u64 << self.control.hash6_bits) - 1;
                // The second bucket where there is a choice, so that both are read.
                let free = |b: &Bucket6| b.keys.iter().position(|k| k[0] == 0);
                let index = [(mixed >> 32) & mask, mixed & mask].map(|i| i as usize);
                let at = index.into_iter().find(|i| free(&self.hash6[*i]).is_some()).expect("room");
                let slot = free(&self.hash6[at]).unwrap();
                self.hash6[at].keys[slot] = [hi, lo];
                self.hash6[at].classes[slot] = class;
            }
        }
    }

    /// Points the /16 of an address at a chunk.
    pub(crate) fn misdirect(&mut self, address: std::net::Ipv4Addr, chunk: u16) {
        self.directory4[(u32::from(address) >> 16) as usize] = chunk;
    }

    fn chunk(&mut self, address: [u8; 4]) -> &mut [u8; 65536] {
        let entry = &mut self.directory4[usize::from(u16::from_be_bytes([address[0], address[1]]))];
        if *entry == 0 {
            *entry = self.chunks4.len() as u16;
            self.chunks4.push([0; 65536]);
        }
        &mut self.chunks4[usize::from(*entry)]
    }
}

/// The key of a single address in the map of cold records.
pub(crate) fn key(address: IpNetwork) -> ColdKey {
    match address {
        IpNetwork::V4(n) => n.network().to_ipv6_mapped().octets(),
        IpNetwork::V6(n) => n.network().octets(),
    }
}

/// A policy that names nothing.
pub(crate) fn zeroed() -> Box<Policy> {
    // SAFETY: the layout is that of a policy, for which zeros are a value.
    unsafe { Box::from_raw(std::alloc::alloc_zeroed(std::alloc::Layout::new::<Policy>()).cast()) }
}

/// Each destination that rules name is a group, each protocol and port range a port group.
fn compile(pools: &[Pool], policy: &mut Policy) {
    let mut groups: Vec<IpNetwork> = Vec::new();
    let mut port_groups: Vec<(String, Option<[u16; 2]>)> = Vec::new();
    let mut number = 0;
    for pool in pools {
        let flags = match pool.policy.as_str() {
            "all" => POOL_ALL,
            "blocked" => POOL_BLOCKED,
            "rules" => 0,
            other => panic!("policy {other}"),
        };
        policy.pools[usize::from(pool.number)].flags = flags;
        for rule in &pool.rules {
            number += 1;
            let ports = if rule.protocol == "any" {
                0..64
            } else {
                let name = (rule.protocol.clone(), rule.ports);
                let p = number_of(&mut port_groups, &name);
                name_ports(policy, &name, p as u8);
                p..p + 1
            };
            for peer in rule.to.iter().chain(&rule.from) {
                let known = groups.contains(peer);
                let g = number_of(&mut groups, peer);
                if !known {
                    name_destination(policy, *peer, g as u16);
                }
                for p in ports.clone() {
                    let pool = usize::from(pool.number);
                    if rule.from.is_empty() {
                        policy.rules[p][g][pool] = number;
                    } else {
                        policy.pools[pool].flags |= POOL_TO_DEVICE;
                        policy.to_device[p][g][pool] = number;
                    }
                }
            }
        }
    }
}

/// From 1.
fn number_of<T: PartialEq + Clone>(list: &mut Vec<T>, item: &T) -> usize {
    let at = list.iter().position(|i| i == item).unwrap_or_else(|| {
        list.push(item.clone());
        list.len() - 1
    });
    at + 1
}

fn name_ports(policy: &mut Policy, (protocol, ports): &(String, Option<[u16; 2]>), group: u8) {
    let [first, last] = ports.unwrap_or([0, 65535]).map(usize::from);
    match protocol.as_str() {
        "tcp" => policy.tcp[first..=last].fill(group),
        "udp" => policy.udp[first..=last].fill(group),
        number => policy.protocols[number.parse::<usize>().unwrap()] = group,
    }
}

fn name_destination(policy: &mut Policy, to: IpNetwork, group: u16) {
    match to {
        IpNetwork::V4(n) => {
            let [a, b, c, d] = n.network().octets();
            let upper = usize::from(u16::from_be_bytes([a, b]));
            if n.prefix() == 16 {
                policy.level1[upper] = group;
                return;
            }
            let table = next(&mut policy.level1[upper], || {
                policy.level2.iter().filter(|t| t[..] != [0; 256]).count()
            });
            let level2 = &mut policy.level2[table];
            if n.prefix() == 24 {
                level2[usize::from(c)] = group;
                return;
            }
            assert_eq!(n.prefix(), 32);
            let table = next(&mut level2[usize::from(c)], || {
                policy.level3.iter().filter(|t| t[..] != [0; 256]).count()
            });
            policy.level3[table][usize::from(d)] = group;
        }
        IpNetwork::V6(n) => {
            let i = policy.dst6_count as usize;
            let (prefix, mask) = (words6(n.network().octets()), words6(n.mask().octets()));
            policy.dst6[i] = Dst6 {
                prefix,
                mask,
                group: group.into(),
            };
            policy.dst6_count += 1;
            policy.dst6[..=i].sort_by_key(|d| std::cmp::Reverse(d.mask.map(u64::count_ones).iter().sum::<u32>()));
        }
    }
}

/// The table of the next level behind an entry, a free one if there is none yet.
fn next(entry: &mut u16, free: impl FnOnce() -> usize) -> usize {
    if *entry & LEVEL_NEXT == 0 {
        assert_eq!(*entry, 0, "destinations overlap");
        *entry = LEVEL_NEXT | free() as u16;
    }
    usize::from(*entry & !LEVEL_NEXT)
}

/// An IPv6 address as the tables hold it.
pub(crate) fn words6(octets: [u8; 16]) -> [u64; 2] {
    let (hi, lo) = octets.split_at(8);
    [hi, lo].map(|w| u64::from_ne_bytes(w.try_into().unwrap()))
}
