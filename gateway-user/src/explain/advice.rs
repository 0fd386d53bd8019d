//! What would make a verdict another, as sentences with the names and numbers at hand. Pure. It reads the configuration and what the
//! gateway knows of both ends; that the kernel would then really judge so is for another `explain`.

use std::net::IpAddr;

use gateway_ebpf::{
    abi::{ENTRY_LEASED, Trace, entry_ifindex, entry_pool},
    reason::Reason,
};

use super::{
    frame::Question,
    place::Place,
    rules::{self, AskedBy, Pair},
};
use crate::{
    config::{Config, InterfaceRole, Pool},
    controller::{EndView, Surroundings},
    model::{DeviceState, PoolId},
};

/// A verdict with all that is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// Checked.
    pub config: &'a Config,
    /// The packet.
    pub question: &'a Question,
    /// Where it was judged.
    pub place: &'a Place,
    /// What the gateway knows.
    pub around: &'a Surroundings,
    /// Source and destination.
    pub ends: [&'a EndView; 2],
    /// What the twin found.
    pub trace: &'a Trace,
}

/// What would change it. Empty: nothing that is known here.
#[must_use]
pub fn changes(case: &Case<'_>) -> Vec<String> {
    let Some(reason) = Reason::from_number(case.trace.reason) else {
        return Vec::new();
    };
    let [source, destination] = case.ends;
    match reason {
        Reason::Rule | Reason::Reply | Reason::All | Reason::Related => case.granted(),
        Reason::NoRule | Reason::NewToDevice | Reason::Blocked | Reason::LeaseEnded => case.denied_by_policy(reason),
        Reason::NotInPool => case.outside(source, "comes from"),
        Reason::DestinationNotInPool => case.outside(destination, "goes to"),
        Reason::PoolSourceFromCore => vec![format!(
            "{} belongs on {}: it may not come in on a core interface",
            source.address,
            case.own_interface(source)
        )],
        Reason::WrongInterface => case.wrong_interface(if case.place.egress { destination } else { source }),
        Reason::Vlan => vec![format!(
            "the VLAN in `vlans` of interface {}, or the packet without a tag",
            case.place.link.name
        )],
        Reason::NotOurs => vec![format!(
            "an end in a pool: on core interface {} only what touches one is judged",
            case.place.link.name
        )],
        _ => named_special(case, reason),
    }
}

/// What else stands in the way of the packet, or is not as it should be.
#[must_use]
pub fn warnings(case: &Case<'_>, floor: Option<&str>) -> Vec<String> {
    let mut all = Vec::new();
    let hook = &case.place.hook;
    if hook.program_id.is_none() {
        let floor = floor.unwrap_or("not known");
        all.push(format!(
            "no program of ours judges at this hook of {} now ({}); this is what it would say. The floor, which is {floor}, {}",
            case.place.link.name,
            if hook.problem.is_empty() {
                "not attached"
            } else {
                &hook.problem
            },
            if floor == "closed" {
                "drops what no program has marked"
            } else {
                "does not stop it"
            }
        ));
    } else if !hook.problem.is_empty() {
        all.push(format!("{}: {}", case.place.link.name, hook.problem));
    }
    for (end, entry) in case.ends.iter().zip(case.trace.entries) {
        let seen = entry_pool(entry);
        // A lease that is over is judged by another pool than the class names.
        let leased = entry & ENTRY_LEASED != 0;
        if !leased && end.reading.pool.map_or(0, |p| p.0) != seen {
            all.push(format!(
                "{} was judged by pool number {seen}; the tables say otherwise now: it was moved meanwhile, ask again",
                end.address
            ));
        }
        if case.config.home(end.address).is_none() && is_reserved(case.config, end.address) {
            all.push(format!(
                "{} is reserved for the gateway itself: it is in no pool",
                end.address
            ));
        }
    }
    if case.trace.observed != 0 {
        all.push("observe mode: the packet is let through all the same".to_owned());
    }
    all
}

/// The address lies in a pool's prefix and is the gateway's own.
#[must_use]
pub fn is_reserved(config: &Config, address: IpAddr) -> bool {
    config.pools.iter().any(|p| p.reserved.contains(&address))
}

impl<'a> Case<'a> {
    /// A granted packet: what would take the grant away.
    fn granted(&self) -> Vec<String> {
        let mut all = Vec::new();
        if let Some((policy, rule)) = rules::find(self.config, self.trace.rule) {
            all.push(format!(
                "without rule {} of policy {} ({}) no other rule may name it",
                rule.id,
                policy.name,
                rules::text(rule)
            ));
        }
        for end in self.ends.into_iter().filter(|e| e.session.is_some()) {
            let Some(device) = &end.device else { continue };
            if device.state == DeviceState::Released {
                let fallback = self.fallback(end).map_or("its quarantine pool", |p| p.name.as_str());
                all.push(format!(
                    "quarantining device {}: {} is then judged by pool {fallback}",
                    device.id, end.address
                ));
                if end.lease_ends_at.is_some() {
                    all.push(format!(
                        "the end of device {}'s lease, if its release is not renewed: then pool {fallback} judges",
                        device.id
                    ));
                }
            }
        }
        all
    }

    /// Denied by the policy of one end's pool.
    fn denied_by_policy(&self, reason: Reason) -> Vec<String> {
        let asked_by_device = self.device_is_source();
        let device = self.ends[usize::from(!asked_by_device)];
        let mut all = Vec::new();
        let Some(pool) = self.config.pool_by_id(PoolId(self.trace.pool)) else {
            return all;
        };
        let pair = self.pair(asked_by_device);
        if matches!(reason, Reason::NoRule | Reason::NewToDevice | Reason::LeaseEnded) {
            all.push(format!("a rule {} in policy {}", rules::wanted(pair), pool.policy));
            let near = rules::near(self.config, pool, pair);
            let near = near.iter().take(NEAR);
            all.extend(near.map(|r| {
                format!(
                    "rule {} of policy {} names {} already, but only {}",
                    r.id,
                    pool.policy,
                    pair.peer,
                    rules::text(r)
                )
            }));
        }
        all.extend(self.release(device, pool, pair));
        all
    }

    /// Whether a release of the end's device would help, and how one comes about.
    fn release(&self, end: &EndView, pool: &Pool, pair: Pair) -> Option<String> {
        let Some(device) = &end.device else {
            return Some(match &end.session {
                Some(s) => format!(
                    "session {} belongs to no registered device: register it, and let it connect again",
                    s.session.id
                ),
                None => format!(
                    "{} has no live session, so no device's release applies to it: have the VPN server report the session",
                    end.address
                ),
            });
        };
        let full = self.config.pool(&device.full_service_pool)?;
        if full.id == pool.id {
            // A policy `all` would not have denied.
            return None;
        }
        let helps = rules::allows(self.config, full, pair);
        let state = state_name(device.state);
        Some(match (helps, device.state) {
            (_, DeviceState::Retired) => format!("device {} is retired: nothing releases it any more", device.id),
            (true, _) => format!(
                "releasing device {} ({state}): policy {} of pool {} allows it; `lazaret device release {}`, or the MDM's report",
                device.id, full.policy, full.name, device.id
            ),
            (false, _) => format!(
                "releasing device {} ({state}) would not help: policy {} of pool {} does not name it either",
                device.id, full.policy, full.name
            ),
        })
    }

    fn outside(&self, end: &EndView, how: &str) -> Vec<String> {
        if is_reserved(self.config, end.address) {
            return vec![format!(
                "the packet {how} {}, which is the gateway's own address (`reserved`): a device has another",
                end.address
            )];
        }
        vec![format!("{} in the `prefixes` of a pool: the packet {how} it", end.address)]
    }

    fn wrong_interface(&self, end: &EndView) -> Vec<String> {
        match &end.session {
            Some(s) if s.session.interface != self.place.link.name => vec![format!(
                "the packet on {}: session {} of {} is there",
                s.session.interface, s.session.id, end.address
            )],
            Some(s) => vec![format!(
                "the session reported anew: session {} was bound to interface number {}, and {} is number {} now",
                s.session.id,
                entry_ifindex(self.trace.entries[usize::from(self.place.egress)]),
                self.place.link.name,
                self.place.link.ifindex
            )],
            None => {
                let pool = self.config.home(end.address).map_or("its pool", |p| p.name.as_str());
                vec![format!(
                    "{pool} in `pools` of interface {}: addresses without a session may only be where their pool is",
                    self.place.link.name
                )]
            }
        }
    }

    fn own_interface(&self, end: &EndView) -> String {
        match &end.session {
            Some(s) => format!("{}, where its session is", s.session.interface),
            None => "a device interface".to_owned(),
        }
    }

    /// The pool that a released device's address falls back to.
    fn fallback(&self, end: &EndView) -> Option<&'a Pool> {
        let current = self.config.pool_by_id(end.reading.pool?)?;
        self.config.pool_by_id(current.fallback?)
    }

    /// Of the two ends, the one whose pool's policy decided.
    fn device_is_source(&self) -> bool {
        let decided = |i: usize| {
            let end = self.ends[i];
            let fallback = self.fallback(end).map(|p| p.id);
            let pools = [end.reading.pool, fallback, Some(PoolId(entry_pool(self.trace.entries[i])))];
            self.config.home(end.address).is_some() && pools.contains(&Some(PoolId(self.trace.pool)))
        };
        decided(0) || !decided(1)
    }

    fn pair(&self, asked_by_device: bool) -> Pair {
        let q = self.question;
        Pair {
            by: if asked_by_device { AskedBy::Device } else { AskedBy::Peer },
            peer: if asked_by_device { q.destination } else { q.source },
            protocol: q.protocol,
            port: q.destination_port,
        }
    }
}

/// Most rules that are shown as near.
const NEAR: usize = 3;

/// Special addresses can be named; other problems are the packet's own.
fn named_special(case: &Case<'_>, reason: Reason) -> Vec<String> {
    let special = matches!(
        reason,
        Reason::Multicast | Reason::Broadcast | Reason::LinkLocal | Reason::SixToFour | Reason::Nat64 | Reason::ReservedAddress
    );
    match case.config.pool_by_id(PoolId(case.trace.pool)) {
        Some(pool) if special && case.place.role == InterfaceRole::Device => {
            vec![format!(
                "a rule {} in policy {}, which names the address itself",
                rules::wanted(case.pair(true)),
                pool.policy
            )]
        }
        _ => Vec::new(),
    }
}

/// A state as a word.
#[must_use]
pub fn state_name(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Registered => "registered",
        DeviceState::Quarantined => "quarantined",
        DeviceState::Released => "released",
        DeviceState::Blocked => "blocked",
        DeviceState::Retired => "retired",
    }
}
