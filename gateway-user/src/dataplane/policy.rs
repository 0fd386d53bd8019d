//! From the configuration's policies to the flat tables that the programs read: recursive flow classification. Pure.
//!
//! Peers that the same rules match are one group, (protocol, port) pairs that the same rules match are one port group, and a
//! matrix of both names the rule. Not here: how a packet is judged by them (`gateway_ebpf::decide`), and how they get into the kernel
//! ([`super::tables`]).

use std::{
    alloc::{Layout, alloc_zeroed, handle_alloc_error},
    collections::{BTreeMap, HashMap},
    ops::RangeInclusive,
};

use gateway_ebpf::abi::{
    Dst6, GROUPS, LEVEL_NEXT, LEVEL_TABLES, MAX_DST6, MAX_RULES, POOL_ALL, POOL_BLOCKED, POOL_REJECT, POOL_TO_DEVICE,
    PORT_GROUPS, Policy, PoolPolicy,
};
use ipnetwork::IpNetwork;

use super::layout;
use crate::{
    config::{Allow, Config, Deny, Pool, Protocol, Rule, RuleDirection, special},
    model::PoolName,
};

/// Why a configuration does not fit the kernel's tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A fixed table is too small for it.
    #[error("the configuration needs more than {most} {what} (limit {limit})")]
    Limit {
        /// Of what there are too many.
        what: &'static str,
        /// Name of the limit, as in `gateway_ebpf::abi`.
        limit: &'static str,
        /// The limit.
        most: usize,
    },
    /// Ports with a protocol that has none.
    #[error("rule {rule}: ports need protocol tcp or udp")]
    Ports {
        /// Number of the rule.
        rule: u16,
    },
    /// A pool whose policy is not in the configuration.
    #[error("pool {pool} has no policy")]
    NoPolicy {
        /// Its name.
        pool: String,
    },
    /// A pool holds addresses of `::/64`, which the table of IPv6 addresses cannot store.
    #[error("prefix {prefix} overlaps ::/64, which no pool may hold")]
    ZeroPrefix {
        /// The prefix.
        prefix: IpNetwork,
    },
}

/// Compiles the policies that the pools enforce, and checks that the pools' prefixes fit their tables.
///
/// # Errors
/// [`CompileError`] names the limit that the configuration exceeds.
pub fn compile(config: &Config) -> Result<Box<Policy>, CompileError> {
    layout::Layout4::new(config)?;
    layout::homes6(config)?;
    compile_of(config, |pool| &pool.policy)
}

/// Compiles what is scored and not enforced: each pool's shadow policy, or its own, if it has none. `None`: no pool has one.
///
/// # Errors
/// [`CompileError`] names the limit that the configuration exceeds.
pub fn compile_shadow(config: &Config) -> Result<Option<Box<Policy>>, CompileError> {
    if config.pools.iter().all(|p| p.shadow_policy.is_none()) {
        return Ok(None);
    }
    compile_of(config, |pool| pool.shadow_policy.as_ref().unwrap_or(&pool.policy)).map(Some)
}

fn compile_of(config: &Config, policy_of: impl Fn(&Pool) -> &PoolName) -> Result<Box<Policy>, CompileError> {
    let mut policy = zeroed();
    let atoms = atoms(config, policy_of, &mut policy)?;

    let mut groups = Sets::new("destination groups", "GROUPS", GROUPS);
    fill_v4(&atoms, &mut groups, &mut policy)?;
    fill_v6(&atoms, &mut groups, &mut policy)?;

    let mut port_groups = Sets::new("port groups", "PORT_GROUPS", PORT_GROUPS);
    fill_ports(&atoms, &mut port_groups, &mut policy)?;
    fill_rules(&atoms, &groups, &port_groups, &mut policy);
    Ok(policy)
}

/// All zeros: nothing is named by any rule.
pub(super) fn zeroed() -> Box<Policy> {
    let layout = Layout::new::<Policy>();
    // SAFETY: `Policy` is not zero-sized; it is `repr(C)` and made of integers only, so all zeros is a value of it; the pointer comes
    // from the global allocator with the layout that the box frees it with.
    unsafe {
        let p = alloc_zeroed(layout).cast::<Policy>();
        if p.is_null() {
            handle_alloc_error(layout);
        }
        Box::from_raw(p)
    }
}

/// A rule for one meaning of its protocol: `icmp` is one for IPv4 and one for IPv6.
struct Atom {
    id: u16,
    /// Bit n: it belongs to the policy of pool n.
    pools: u64,
    direction: RuleDirection,
    /// First and last address.
    v4: Vec<(u32, u32)>,
    /// Address and length; what is special in them is left out later.
    v6: Vec<(u128, u8)>,
    ports: Ports,
}

enum Ports {
    Any,
    Tcp(Vec<RangeInclusive<u16>>),
    Udp(Vec<RangeInclusive<u16>>),
    Number(u8),
}

fn atoms(config: &Config, policy_of: impl Fn(&Pool) -> &PoolName, policy: &mut Policy) -> Result<Vec<Atom>, CompileError> {
    let mut pools_of: Vec<u64> = vec![0; config.policies.len()];
    for pool in &config.pools {
        let missing = || CompileError::NoPolicy {
            pool: pool.name.to_string(),
        };
        let place = config
            .policies
            .iter()
            .position(|p| p.name == *policy_of(pool))
            .ok_or_else(missing)?;
        let number = usize::from(pool.id.0);
        let slot = policy.pools.get_mut(number).ok_or(CompileError::Limit {
            what: "pools",
            limit: "MAX_POOLS",
            most: usize::from(gateway_ebpf::abi::MAX_POOLS),
        })?;
        pools_of[place] |= 1 << number;
        let to_device = |r: &Rule| r.direction == RuleDirection::ToDevice;
        let allows = match &config.policies[place].allow {
            Allow::All => POOL_ALL,
            Allow::Nothing => POOL_BLOCKED,
            Allow::Rules(rules) if rules.iter().any(to_device) => POOL_TO_DEVICE,
            Allow::Rules(_) => 0,
        };
        let answers = if pool.deny == Deny::Reject { POOL_REJECT } else { 0 };
        *slot = PoolPolicy {
            flags: allows | answers,
            spare: 0,
        };
    }
    let mut atoms = Vec::new();
    for (p, pools) in config.policies.iter().zip(pools_of).filter(|(_, pools)| *pools != 0) {
        let Allow::Rules(rules) = &p.allow else { continue };
        for rule in rules {
            if usize::from(rule.id) >= MAX_RULES || rule.id == 0 {
                return Err(CompileError::Limit {
                    what: "rules",
                    limit: "MAX_RULES",
                    most: MAX_RULES - 1,
                });
            }
            let v4 = rule.peers.iter().flat_map(|n| match n {
                IpNetwork::V4(n) => special::named4(n.network().into(), n.prefix()),
                IpNetwork::V6(_) => Vec::new(),
            });
            let v6 = rule.peers.iter().filter_map(|n| match n {
                IpNetwork::V6(n) => Some((u128::from(n.network()), n.prefix())),
                IpNetwork::V4(_) => None,
            });
            let (v4, v6): (Vec<_>, Vec<_>) = (v4.collect(), v6.collect());
            let ports = if rule.ports.is_empty() {
                vec![0..=u16::MAX]
            } else {
                rule.ports.clone()
            };
            let mut add = |v4: Vec<_>, v6: Vec<_>, ports| {
                atoms.push(Atom {
                    id: rule.id,
                    pools,
                    direction: rule.direction,
                    v4,
                    v6,
                    ports,
                })
            };
            match rule.protocol {
                Protocol::Tcp | Protocol::Number(6) => add(v4, v6, Ports::Tcp(ports)),
                Protocol::Udp | Protocol::Number(17) => add(v4, v6, Ports::Udp(ports)),
                _ if !rule.ports.is_empty() => return Err(CompileError::Ports { rule: rule.id }),
                Protocol::Any => add(v4, v6, Ports::Any),
                Protocol::Number(n) => add(v4, v6, Ports::Number(n)),
                Protocol::Icmp => {
                    add(v4, Vec::new(), Ports::Number(1));
                    add(Vec::new(), v6, Ports::Number(58));
                }
            }
        }
    }
    Ok(atoms)
}

/// Distinct sets of atoms, numbered from 0, which is the empty one.
struct Sets {
    what: &'static str,
    limit: &'static str,
    most: usize,
    numbers: HashMap<Vec<usize>, u16>,
    /// By number.
    sets: Vec<Vec<usize>>,
}

impl Sets {
    fn new(what: &'static str, limit: &'static str, most: usize) -> Self {
        Self {
            what,
            limit,
            most,
            numbers: HashMap::from([(Vec::new(), 0)]),
            sets: vec![Vec::new()],
        }
    }

    /// The number of a set; it is in ascending order.
    fn number(&mut self, set: Vec<usize>) -> Result<u16, CompileError> {
        if let Some(n) = self.numbers.get(&set) {
            return Ok(*n);
        }
        let n = self.sets.len();
        let short = CompileError::Limit {
            what: self.what,
            limit: self.limit,
            most: self.most,
        };
        let number = u16::try_from(n).ok().filter(|_| n < self.most).ok_or(short)?;
        self.sets.push(set.clone());
        self.numbers.insert(set, number);
        Ok(number)
    }
}

/// Cuts `0..=last` where the set of atoms that hold a point changes; calls `each` with the pieces that any atom holds, ascending.
fn sweep(
    ranges: impl Iterator<Item = (usize, u32, u32)>,
    mut each: impl FnMut(u32, u32, Vec<usize>) -> Result<(), CompileError>,
) -> Result<(), CompileError> {
    let mut steps: Vec<(u64, usize, i32)> = Vec::new();
    for (atom, first, last) in ranges {
        steps.push((u64::from(first), atom, 1));
        steps.push((u64::from(last) + 1, atom, -1));
    }
    steps.sort_unstable();
    let mut held: BTreeMap<usize, i32> = BTreeMap::new();
    let mut steps = steps.into_iter().peekable();
    while let Some((at, atom, step)) = steps.next() {
        let count = held.entry(atom).or_default();
        *count += step;
        if *count == 0 {
            held.remove(&atom);
        }
        // The piece begins after the last step at this point; at the end, all ranges are closed.
        let Some(&(next, ..)) = steps.peek() else { break };
        if next > at && !held.is_empty() {
            let (Ok(first), Ok(last)) = (u32::try_from(at), u32::try_from(next - 1)) else {
                break;
            };
            each(first, last, held.keys().copied().collect())?;
        }
    }
    Ok(())
}

fn fill_v4(atoms: &[Atom], groups: &mut Sets, policy: &mut Policy) -> Result<(), CompileError> {
    let (mut used2, mut used3) = (0, 0);
    let ranges = atoms
        .iter()
        .enumerate()
        .flat_map(|(i, a)| a.v4.iter().map(move |(first, last)| (i, *first, *last)));
    sweep(ranges, |first, last, set| {
        let group = groups.number(set)?;
        let (mut at, last) = (u64::from(first), u64::from(last));
        while at <= last {
            let byte = |shift: u32| (at >> shift & 0xff) as usize;
            if at & 0xffff == 0 && at + 0xffff <= last {
                policy.level1[(at >> 16) as usize] = group;
                at += 0x1_0000;
                continue;
            }
            let table2 = lower(
                &mut policy.level1[(at >> 16) as usize],
                &mut policy.level2,
                &mut used2,
                LEVEL2,
            )?;
            if at & 0xff == 0 && at + 0xff <= last {
                policy.level2[table2][byte(8)] = group;
                at += 0x100;
                continue;
            }
            let table3 = lower(&mut policy.level2[table2][byte(8)], &mut policy.level3, &mut used3, LEVEL3)?;
            policy.level3[table3][byte(0)] = group;
            at += 1;
        }
        Ok(())
    })
}

const LEVEL2: &str = "IPv4 /16s that rules divide";
const LEVEL3: &str = "IPv4 /24s that rules divide";

/// The table below an entry; made, with the entry's group everywhere, if there is none yet.
fn lower(
    entry: &mut u16,
    tables: &mut [[u16; 256]; LEVEL_TABLES],
    used: &mut u16,
    what: &'static str,
) -> Result<usize, CompileError> {
    if *entry & LEVEL_NEXT == 0 {
        let table = tables.get_mut(usize::from(*used));
        let table = table.ok_or(CompileError::Limit {
            what,
            limit: "LEVEL_TABLES",
            most: LEVEL_TABLES,
        })?;
        table.fill(*entry);
        *entry = LEVEL_NEXT | *used;
        *used += 1;
    }
    Ok(usize::from(*entry & !LEVEL_NEXT))
}

fn fill_v6(atoms: &[Atom], groups: &mut Sets, policy: &mut Policy) -> Result<(), CompileError> {
    let mut prefixes: Vec<(u128, u8)> = atoms.iter().flat_map(|a| a.v6.iter().copied()).collect();
    let special = special::V6.iter().map(|r| (r.0, r.1));
    let inside: Vec<_> = special.filter(|s| prefixes.iter().any(|p| special::lies6(*s, *p))).collect();
    prefixes.extend(inside);
    // Longest first. The first that holds an address lies within all others that do, so the atoms with a prefix around it are those
    // that match the address. The special ranges within are among them, so that an address is as special as its first prefix.
    prefixes.sort_unstable_by_key(|(address, length)| (std::cmp::Reverse(*length), *address));
    prefixes.dedup();
    let around = |inner: &(u128, u8), outer: &(u128, u8)| special::lies6(*inner, *outer);
    let names = |rule: &(u128, u8), p: &(u128, u8)| {
        let mut specials = special::V6.iter().map(|r| (r.0, r.1)).filter(|s| around(p, s));
        around(p, rule) && specials.all(|s| around(rule, &s))
    };
    let set = |p: &(u128, u8)| -> Vec<usize> {
        let holds = |a: &Atom| a.v6.iter().any(|rule| names(rule, p));
        atoms.iter().enumerate().filter(|(_, a)| holds(a)).map(|(i, _)| i).collect()
    };
    let sets: Vec<Vec<usize>> = prefixes.iter().map(set).collect();
    let mut count = 0;
    for (i, p) in prefixes.iter().enumerate() {
        // The next longer one around it says the same.
        let parent = (i + 1..prefixes.len()).find(|j| around(p, &prefixes[*j]));
        if parent.is_some_and(|j| sets[j] == sets[i]) {
            continue;
        }
        let short = CompileError::Limit {
            what: "IPv6 destination prefixes",
            limit: "MAX_DST6",
            most: MAX_DST6,
        };
        *policy.dst6.get_mut(count).ok_or(short)? = Dst6 {
            prefix: layout::words6(p.0.into()),
            mask: layout::words6(special::mask6(p.1).into()),
            group: u64::from(groups.number(sets[i].clone())?),
        };
        count += 1;
    }
    policy.dst6_count = count as u64;
    Ok(())
}

fn fill_ports(atoms: &[Atom], port_groups: &mut Sets, policy: &mut Policy) -> Result<(), CompileError> {
    let select = |tcp: bool| {
        let of = move |a: &Atom| match (&a.ports, tcp) {
            (Ports::Tcp(p), true) | (Ports::Udp(p), false) => p.clone(),
            _ => Vec::new(),
        };
        let ranges = atoms
            .iter()
            .enumerate()
            .flat_map(move |(i, a)| of(a).into_iter().map(move |r| (i, r)));
        ranges
            .filter(|(_, r)| !r.is_empty())
            .map(|(i, r)| (i, u32::from(*r.start()), u32::from(*r.end())))
    };
    let mut fill = |tcp: bool, table: &mut [u8; 65536]| {
        sweep(select(tcp), |first, last, set| {
            let group = port_groups.number(set)?;
            table[first as usize..=last as usize].fill(group as u8);
            Ok(())
        })
    };
    fill(true, &mut policy.tcp)?;
    fill(false, &mut policy.udp)?;
    for (number, group) in policy.protocols.iter_mut().enumerate() {
        let matches = |a: &Atom| matches!(a.ports, Ports::Number(n) if usize::from(n) == number);
        let set = atoms.iter().enumerate().filter(|(_, a)| matches(a)).map(|(i, _)| i).collect();
        *group = port_groups.number(set)? as u8;
    }
    Ok(())
}

fn fill_rules(atoms: &[Atom], groups: &Sets, port_groups: &Sets, policy: &mut Policy) {
    for (g, group) in groups.sets.iter().enumerate() {
        for atom in group {
            let a = &atoms[*atom];
            for (p, port_group) in port_groups.sets.iter().enumerate() {
                if !matches!(a.ports, Ports::Any) && port_group.binary_search(atom).is_err() {
                    continue;
                }
                for pool in (0..64).filter(|n| a.pools >> n & 1 == 1) {
                    let rule = match a.direction {
                        RuleDirection::FromDevice => &mut policy.rules[p][g][pool],
                        RuleDirection::ToDevice => &mut policy.to_device[p][g][pool],
                    };
                    // The rule of the lowest number counts.
                    if *rule == 0 || a.id < *rule {
                        *rule = a.id;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
