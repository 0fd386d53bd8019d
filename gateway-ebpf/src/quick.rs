//! The short way through the decision, for the packets that are most of the traffic: nothing rare about them, one end in a pool, named by
//! a from-device rule, or by none, or allowed everything. It is made of the decision's own look-ups, in a straight line; whatever else a packet
//! or a table has, it says `None`, and [`crate::decide`] is asked. What it does say, the decision says too: tests compare.

use crate::{
    abi::{
        Class, ENTRY_LEASED, FLAG_INTERFACE_POOLS, MAX_POOLS, POOL_ALL, POOL_BLOCKED, POOL_REJECT, POOL_TO_DEVICE, entry_ifindex,
        entry_pool, mark,
    },
    clock::TOLERANCE,
    decide::{Direction, Place, Role, Verdict, because},
    headers::{Headers, protocol, words},
    reason::Reason,
    special::special,
    tables::{Tables, class4, class6_near, from_device, group, is_far, port_group, read},
};

/// What the decision says of a common packet, as long as no lease ends.
#[derive(Clone, Copy)]
pub struct Common {
    /// Why.
    pub reason: Reason,
    /// The pool, as in a verdict.
    pub pool: u64,
    /// The rule, as in a verdict.
    pub rule: u16,
    leased: bool,
    from: bool,
}

impl Common {
    /// Whether the decision says it now; `false`: ask it.
    #[inline(always)]
    pub fn holds<T: Tables>(self, t: &T) -> bool {
        if !self.leased {
            return true;
        }
        let now = t.about_boot_now();
        let Some(control) = t.control() else { return false };
        let end = read(&control.earliest_lease_end);
        // As `judge` asks, in fewer instructions.
        now < end && end.wrapping_sub(now) > TOLERANCE
    }
    /// The mark, as in a verdict.
    #[inline(always)]
    #[must_use]
    pub const fn mark(self) -> u32 {
        if self.reason.passes() {
            mark(self.pool as u8, self.from)
        } else {
            0
        }
    }
}

/// What is done about a common packet.
pub trait Act {
    /// What comes of it.
    type Done;
    /// `None`: ask the decision. It is called in several places, each of which knows the reason, and is to be compiled for each.
    fn act(self, common: Common) -> Option<Self::Done>;
}

/// Does about a common packet what is to be done by the decision; `None`: ask it.
#[inline(always)]
pub fn quick<T: Tables, A: Act>(t: &T, place: Place, h: &Headers, act: A) -> Option<A::Done> {
    if !matches!(h.version, 4 | 6) || h.problem.is_some() || h.rare || matches!(h.protocol, protocol::ICMP | protocol::ICMPV6) {
        return None;
    }
    // The end whose policy is asked; the other one is in no pool.
    let from = matches!((place.role, place.direction), (Role::Device, Direction::Ingress));
    let (own, other) = if from {
        (h.source, h.destination)
    } else {
        (h.destination, h.source)
    };
    let class = if h.version == 4 {
        let directory = t.directory4()?;
        if class4(t, directory, u32::from_be(other[0]))? != 0 {
            return None;
        }
        class4(t, directory, u32::from_be(own[0]))?
    } else {
        let bits = read(&t.control()?.hash6_bits);
        let ([hi, lo], [other_hi, _]) = (words(own), words(other));
        // Between pools that have little in common, and to their neighbours, the long way.
        if !is_far(t, other_hi)? || is_far(t, hi)? {
            return None;
        }
        Class::try_from(class6_near(t, bits, hi, lo)).ok()?
    };
    let entry = read(&t.control()?.classes[class as usize]);
    let meaning = t.upper(entry) << 32;
    let pool = u64::from(entry_pool(meaning));
    if pool == 0 {
        return None;
    }
    if matches!(place.role, Role::Device) {
        let bound = entry_ifindex(entry);
        if bound != 0 && bound != place.ifindex || class <= MAX_POOLS && read(&t.control()?.flags) & FLAG_INTERFACE_POOLS != 0 {
            return None;
        }
    }
    let common = Common {
        reason: Reason::NoRule,
        pool,
        rule: 0,
        leased: meaning & ENTRY_LEASED != 0,
        from,
    };
    let policy = t.policy(read(&t.control()?.generation) & 1)?;
    let flags = read(&policy.pools[pool as usize & 63].flags);
    if flags & (POOL_ALL | POOL_BLOCKED) != 0 {
        if flags & POOL_BLOCKED != 0 || special(h.version, other).is_some() {
            return None;
        }
        return act.act(Common {
            reason: Reason::All,
            ..common
        });
    }
    let port = if from { h.destination_port } else { h.source_port };
    let number = from_device(
        policy,
        pool as u8,
        group(policy, h.version, other),
        port_group(policy, h.protocol, port),
    );
    if number == 0 {
        if flags & (POOL_TO_DEVICE | POOL_REJECT) != 0 || special(h.version, other).is_some() {
            return None;
        }
        return act.act(common);
    }
    // What a rule names is not asked what it is, but for a source.
    if !from && (h.opens_tcp() || special(h.version, other).is_some()) {
        return None;
    }
    let reason = if from { Reason::Rule } else { Reason::Reply };
    act.act(Common {
        reason,
        rule: number,
        ..common
    })
}

/// What the decision says of a common packet; `None`: ask it.
#[inline(always)]
pub fn verdict<T: Tables>(t: &T, place: Place, h: &Headers) -> Option<Verdict> {
    quick(t, place, h, Say(t))
}

struct Say<'a, T>(&'a T);

impl<T: Tables> Act for Say<'_, T> {
    type Done = Verdict;
    #[inline(always)]
    fn act(self, common: Common) -> Option<Verdict> {
        let Common { reason, rule, pool, .. } = common;
        let verdict = Verdict {
            rule,
            mark: common.mark(),
            ..because(reason, pool as u8)
        };
        common.holds(self.0).then_some(verdict)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, vec::Vec};

    use super::*;
    use crate::{
        abi::{CLASS_LEASED, Class, FLAG_OBSERVE, class_entry, hook},
        decide::{
            decide,
            tests::{ALL, BLOCKED, Memory, RULES, address, memory},
        },
        headers::Address,
    };

    /// The interface at which packets are judged in these tests.
    const HERE: u32 = 7;

    /// An IPv4 address.
    const fn v4(octets: [u8; 4]) -> Address {
        [u32::from_be_bytes(octets).to_be(), 0, 0, 0]
    }

    /// An IPv6 address.
    fn v6(text: &str) -> Address {
        let octets = text.parse::<std::net::Ipv6Addr>().unwrap().octets();
        std::array::from_fn(|i| u32::from_ne_bytes(std::array::from_fn(|j| octets[4 * i + j])))
    }

    /// Ends of every kind.
    fn ends(version: u8) -> Vec<Address> {
        let pools = [RULES, ALL, BLOCKED, 200].map(|p| address(version, p)).into_iter();
        if version == 6 {
            let others = [
                "2001:db8::1",
                "ff02::1",
                "::1",
                "::",
                "fe80::1",
                "::ffff:1.2.3.4",
                "2002::1",
                "64:ff9b::1",
            ];
            return pools.chain(others.map(v6)).collect();
        }
        let others = [
            [8, 8, 8, 8],
            [224, 0, 0, 1],
            [127, 0, 0, 1],
            [0, 0, 0, 0],
            [169, 254, 0, 1],
            [255, 255, 255, 255],
            [240, 0, 0, 1],
            [192, 88, 99, 1],
        ];
        pools.chain(others.map(v4)).collect()
    }

    /// Compares on every packet of a small world; how often the short way was taken, by reason.
    fn compare(memory: &Memory, version: u8, now: u64, taken: &mut BTreeMap<&'static str, u32>) {
        let ends = ends(version);
        let places = [
            (Role::Device, Direction::Ingress),
            (Role::Core, Direction::Ingress),
            (Role::Device, Direction::Egress),
        ];
        for (role, direction) in places {
            let place = Place {
                role,
                direction,
                ethernet: false,
                ifindex: HERE,
                hook: hook::TC_DEVICE,
            };
            for (source, destination) in ends.iter().flat_map(|s| ends.iter().map(move |d| (*s, *d))) {
                for protocol in [1, 6, 17, 58, 47] {
                    for (source_port, destination_port) in [(443, 40_000), (40_000, 443), (1, 2), (25, 443)] {
                        for tcp_flags in [0x02, 0x12, 0x10, 0x04] {
                            let ported = matches!(protocol, 6 | 17);
                            let h = Headers {
                                version,
                                source,
                                destination,
                                protocol,
                                source_port: if ported { source_port } else { 0 },
                                destination_port: if ported { destination_port } else { 0 },
                                tcp_flags: if protocol == 6 { tcp_flags } else { 0 },
                                icmp_type: 8,
                                length: 40,
                                ..Headers::default()
                            };
                            memory.with(None, now, |t| {
                                if let Some(verdict) = verdict(t, place, &h) {
                                    assert_eq!(verdict, decide(t, place, &h), "{place:?} {h:?}");
                                    *taken.entry(verdict.reason.name()).or_default() += 1;
                                }
                            });
                        }
                    }
                }
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "half a million packets")]
    fn it_says_what_the_decision_says() {
        let mut taken = BTreeMap::new();
        let leased: Class = ALL | CLASS_LEASED;
        for ifindex in [0, HERE, HERE + 1] {
            for flags in [0, FLAG_INTERFACE_POOLS, FLAG_OBSERVE] {
                for pool_flags in [0, POOL_REJECT, POOL_TO_DEVICE] {
                    for class in [ALL, leased, 100] {
                        let mut memory = memory();
                        memory.control.flags = flags;
                        memory.control.earliest_lease_end = 100 + TOLERANCE;
                        memory.control.classes[usize::from(leased)] = class_entry(ALL, true, ifindex);
                        memory.control.classes[100] = class_entry(RULES, false, ifindex);
                        memory.set(4, address(4, ALL), class);
                        memory.set(6, address(6, ALL), class);
                        if ifindex == HERE {
                            // All pools are in fd66::/32.
                            memory.homes6.common_mask = u64::from(u32::MAX);
                            memory.homes6.common = words(address(6, 0))[0];
                        }
                        memory.policy.pools[usize::from(RULES)].flags = pool_flags;
                        memory.policy.udp[443] = 7;
                        memory.policy.protocols[47] = 7;
                        memory.policy.to_device[9][0][usize::from(RULES)] = 3;
                        memory.policy.tcp[25] = 9;
                        for now in [99, 100] {
                            for version in [4, 6] {
                                compare(&memory, version, now, &mut taken);
                            }
                        }
                    }
                }
            }
        }
        for reason in ["rule", "reply", "all", "no_rule"] {
            assert!(taken.get(reason).copied().unwrap_or(0) > 1000, "{reason}: {taken:?}");
        }
    }

    #[test]
    fn what_is_not_common_goes_the_long_way() {
        let memory = memory();
        let place = Place {
            role: Role::Device,
            direction: Direction::Ingress,
            ethernet: true,
            ifindex: HERE,
            hook: hook::XDP_DEVICE,
        };
        let common = Headers {
            version: 4,
            source: address(4, RULES),
            destination: v4([8, 8, 8, 8]),
            protocol: protocol::TCP,
            destination_port: 443,
            tcp_flags: 2,
            ..Headers::default()
        };
        let asked = |h: &Headers| memory.with(None, 0, |t| verdict(t, place, h).map(|v| v.reason));
        assert_eq!(asked(&common), Some(Reason::Rule));
        assert_eq!(asked(&Headers { version: 0, ..common }), None);
        assert_eq!(asked(&Headers { rare: true, ..common }), None);
        assert_eq!(
            asked(&Headers {
                problem: Some(Reason::Truncated),
                ..common
            }),
            None
        );
        assert_eq!(
            asked(&Headers {
                protocol: protocol::ICMP,
                ..common
            }),
            None
        );
        assert_eq!(
            asked(&Headers {
                destination: address(4, ALL),
                ..common
            }),
            None,
            "both ends in pools"
        );
        assert_eq!(
            asked(&Headers {
                source: v4([9, 9, 9, 9]),
                ..common
            }),
            None,
            "no end in a pool"
        );
    }
}
