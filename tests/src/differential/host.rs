//! The shipping decision, as the host computes it, on a scenario: the text goes through the real configuration parser and the real
//! policy compiler; addresses are put into the tables here, plainly.

use std::{cell::Cell, collections::HashMap, net::IpAddr, path::Path};

use gateway_ebpf::{
    abi::{
        BUCKET6_SLOTS, Bucket6, Cold, ColdKey, Control, ENTRY_DELEGATED, FLAG_DELEGATED, FLAG_INTERFACE_POOLS, FragmentBucket,
        Homes6, Interface, Policy, VERSION, class_entry, delegated, hook, mix6,
    },
    clock::BootClock,
    decide::{Direction, Outcome, Place, Role, Verdict},
    headers::{Headers, Rare},
    parse::{parse_common, parse_common6, parse_full},
    quick,
    rare::decide_packet,
    tables::MemTables,
};
use gateway_user::{
    config::Config,
    dataplane::{AtRest, compile, lay_out},
};

use super::scenario::{START, Scenario, Step};
use crate::reference::Session;

/// Tables in memory.
pub struct Host {
    /// The hot words.
    pub control: Control,
    /// By upper half.
    pub directory4: Box<[u16; 65536]>,
    /// By lower half.
    pub chunks4: Vec<[u8; 65536]>,
    /// Of live sessions.
    pub hash6: Vec<Bucket6>,
    /// Of pools.
    pub homes6: Box<Homes6>,
    /// In force.
    pub policy: Box<Policy>,
    /// Of live sessions with a lease.
    pub cold: HashMap<ColdKey, Cold>,
    /// By index.
    pub interfaces: Vec<(u32, Interface)>,
    /// Written by the decision.
    pub fragments: Vec<FragmentBucket>,
    /// Nanoseconds.
    pub now: u64,
    clock: Cell<BootClock>,
}

/// First class number of live sessions; below are the pools' own.
const FIRST_BOUND: u8 = 64;
/// Of the slowest timer that kernels have, nanoseconds.
const TICK: u64 = 10_000_000;
/// Few buckets, so that devices share them.
const FRAGMENT_BITS: u32 = 4;

impl Host {
    /// The tables of a scenario.
    ///
    /// # Errors
    /// What the configuration parser or the compiler says against it.
    pub fn new(scenario: &Scenario) -> Result<Self, String> {
        let config = Config::parse(Path::new("random.toml"), &scenario.configuration).map_err(|e| e.to_string())?;
        let policy = compile(&config).map_err(|e| e.to_string())?;
        // By the shipping code, as the policy is.
        let AtRest {
            directory,
            chunks,
            homes6,
        } = lay_out(&config).map_err(|e| e.to_string())?;
        let directory4 = directory.try_into().map_err(|_| "the directory has another size")?;
        let (chunks, []) = chunks.as_chunks::<65536>() else {
            return Err("there is a piece of a chunk".to_owned());
        };
        let mut host = Self {
            control: Control {
                abi: VERSION,
                hash6_bits: 4,
                fragment_bits: FRAGMENT_BITS,
                earliest_lease_end: u64::MAX,
                ..Control::default()
            },
            directory4,
            chunks4: chunks.to_vec(),
            hash6: vec![Bucket6::default(); 16],
            homes6,
            policy,
            cold: HashMap::new(),
            interfaces: Vec::new(),
            fragments: Vec::new(),
            now: START,
            clock: Cell::default(),
        };
        host.rest(&config);
        host.bind(&scenario.sessions);
        host.link(&config, scenario);
        host.forget();
        Ok(host)
    }

    /// Judges a packet, the long way.
    pub fn judge(&mut self, step: &Step) -> (Verdict, Headers) {
        self.with_tables(|tables| {
            let (verdict, headers, _) = decide_packet(tables, place(step), &step.bytes[..], step.tag);
            (verdict, headers)
        })
    }

    /// What the decision's short way says of a packet, however it is read, where it says anything.
    #[must_use]
    pub fn quickly(&self, step: &Step) -> Option<Verdict> {
        let (mut h, mut rare) = (Headers::default(), Rare::default());
        if step.place.ethernet {
            parse_full::<_, true>(&step.bytes[..], step.tag, &mut h, &mut rare);
        } else {
            parse_full::<_, false>(&step.bytes[..], step.tag, &mut h, &mut rare);
        }
        self.with_tables(|tables| quick::verdict(tables, place(step), &h))
    }

    /// What the short way reads of a packet, where it takes it.
    #[must_use]
    pub fn read_shortly(step: &Step) -> Option<Headers> {
        let bytes = &step.bytes[..];
        match (step.tag, step.place.ethernet) {
            (Some(_), _) => None,
            (None, true) => parse_common::<_, true>(bytes).or_else(|| parse_common6::<_, true>(bytes)),
            (None, false) => parse_common::<_, false>(bytes).or_else(|| parse_common6::<_, false>(bytes)),
        }
    }

    fn with_tables<R>(&self, then: impl FnOnce(&MemTables<'_>) -> R) -> R {
        let mut clock = self.clock.take();
        let about_boot_now = clock.about(self.now / TICK, || self.now);
        self.clock.set(clock);
        then(&MemTables {
            control: &self.control,
            directory4: &self.directory4,
            chunks4: &self.chunks4,
            hash6: &self.hash6,
            homes6: &self.homes6,
            policies: [&self.policy; 3],
            interfaces: &self.interfaces,
            fragments: &self.fragments,
            cold: &|key| self.cold.get(key).copied(),
            coarse_now: self.now,
            boot_now: self.now,
            about_boot_now,
        })
    }

    /// Forgets every datagram in fragments.
    pub fn forget(&mut self) {
        // SAFETY: integers only, for which zeros are a value.
        self.fragments = (0..1 << FRAGMENT_BITS).map(|_| unsafe { std::mem::zeroed() }).collect();
    }

    /// What classes at rest mean.
    fn rest(&mut self, config: &Config) {
        for pool in &config.pools {
            self.control.classes[usize::from(pool.id.0)] = class_entry(config.resting(pool).0, false, 0);
        }
    }

    fn bind(&mut self, sessions: &[Session]) {
        let mut meanings = Vec::new();
        for s in sessions {
            let entry = class_entry(s.pool, s.lease.is_some(), s.interface) | if s.delegated { ENTRY_DELEGATED } else { 0 };
            let mut address = s.address;
            if let (IpAddr::V6(a), true) = (&mut address, s.delegated) {
                let [hi, lo] = delegated(words6(a.octets())[0]).map(u64::to_ne_bytes);
                *a = u128::from_be_bytes(std::array::from_fn(|i| if i < 8 { hi[i] } else { lo[i - 8] })).into();
                self.control.flags |= FLAG_DELEGATED;
            }
            let number = meanings.iter().position(|m| *m == entry).unwrap_or_else(|| {
                meanings.push(entry);
                meanings.len() - 1
            });
            let class = FIRST_BOUND + number as u8;
            self.control.classes[usize::from(class)] = entry;
            match address {
                IpAddr::V4(a) => *self.class4(a.octets()) = class,
                IpAddr::V6(a) => self.class6(words6(a.octets()), class),
            }
            let Some(lease) = &s.lease else { continue };
            self.control.earliest_lease_end = self.control.earliest_lease_end.min(lease.end);
            if let Some(fallback) = lease.fallback {
                let key = match address {
                    IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                    IpAddr::V6(a) => a.octets(),
                };
                let cold = Cold {
                    lease_end: lease.end,
                    session: 1,
                    fallback: fallback.into(),
                };
                self.cold.insert(key, cold);
            }
        }
    }

    fn link(&mut self, config: &Config, scenario: &Scenario) {
        for link in &scenario.links {
            let name = link.name.parse().unwrap_or_else(|e| panic!("{}: {e}", link.name));
            let Some(rule) = config.interfaces.iter().find(|r| r.name.matches(&name)) else {
                continue;
            };
            let mut interface = Interface {
                pools: rule.pools_mask(),
                ..Interface::default()
            };
            for (slot, vlan) in interface.vlans.iter_mut().zip(&rule.vlans) {
                *slot = u32::from(vlan.outer) | u32::from(vlan.inner.unwrap_or(0)) << 16;
            }
            if rule.pools.is_some() {
                self.control.flags |= FLAG_INTERFACE_POOLS;
            }
            self.interfaces.push((link.index, interface));
        }
    }

    fn class4(&mut self, [a, b, c, d]: [u8; 4]) -> &mut u8 {
        let chunk = &mut self.directory4[usize::from(u16::from_be_bytes([a, b]))];
        if *chunk == 0 {
            *chunk = self.chunks4.len() as u16;
            self.chunks4.push([0; 65536]);
        }
        &mut self.chunks4[usize::from(*chunk)][usize::from(u16::from_be_bytes([c, d]))]
    }

    fn class6(&mut self, key: [u64; 2], class: u8) {
        let mixed = mix6(key);
        // The second bucket where there is a choice, so that both are read.
        for bucket in [(mixed >> 32) as usize & 15, mixed as usize & 15] {
            let bucket = &mut self.hash6[bucket];
            if let Some(slot) = (0..BUCKET6_SLOTS).find(|s| bucket.keys[*s][0] == 0) {
                bucket.keys[slot] = key;
                bucket.classes[slot] = class;
                return;
            }
        }
        panic!("no room for an IPv6 address");
    }
}

/// The shipping decision's word for a step's place.
#[must_use]
pub fn place(step: &Step) -> Place {
    Place {
        role: if step.place.device { Role::Device } else { Role::Core },
        direction: if step.place.egress {
            Direction::Egress
        } else {
            Direction::Ingress
        },
        ethernet: step.place.ethernet,
        ifindex: step.place.interface,
        hook: match (step.place.device, step.place.egress) {
            (_, true) => hook::TC_EGRESS,
            (true, _) => hook::TC_DEVICE,
            (false, _) => hook::TC_CORE,
        },
    }
}

/// Whether a verdict lets the packet pass, and whether it is marked.
#[must_use]
pub fn action(verdict: &Verdict) -> (bool, bool) {
    match verdict.outcome() {
        Outcome::Grant => (true, true),
        Outcome::Link | Outcome::NotOurs => (true, false),
        Outcome::Deny => (false, false),
    }
}

fn words6(octets: [u8; 16]) -> [u64; 2] {
    let word = |from: usize| u64::from_ne_bytes(std::array::from_fn(|i| octets[from + i]));
    [word(0), word(8)]
}
