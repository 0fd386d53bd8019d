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
    controller::EndView,
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
        if entry != 0 && !leased && end.reading.pool.map_or(0, |p| p.0) != seen {
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
                "the end of rule {} of policy {} ({}), if no other rule names the pair",
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
        let state = device.state.as_str();
        Some(match (helps, device.state) {
            (_, DeviceState::Retired) => format!("device {} is retired: nothing releases it any more", device.id),
            (true, _) => format!(
                "releasing device {} ({state}): policy {} of pool {} allows it; the MDM's report does that, or by hand, for a time, `lazaret device release {}`",
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

#[cfg(test)]
mod tests {
    use gateway_ebpf::abi::class_entry;

    use super::*;
    use crate::{
        controller::SessionView,
        kernel::{AddressReading, HookPoint, HookState, Link},
        model::{Device, Session, SessionId, WallTime},
    };

    const CONFIG: &str = r#"
mode = "enforce"
[[interface]]
name = "tun*"
role = "device"
[[interface]]
name = "core0"
role = "core"
[[pool]]
name = "quarantine"
kind = "quarantine"
prefixes = ["10.66.0.0/16"]
reserved = ["10.66.0.1"]
policy = "dm"
gateway_uri = "q.vpn.example"
[[pool]]
name = "staff"
kind = "full-service"
prefixes = ["10.67.0.0/16"]
policy = "office"
fallback = "quarantine"
gateway_uri = "vpn.example"
[[policy]]
name = "dm"
[[policy.rule]]
to = ["10.1.0.5/32"]
protocol = "tcp"
ports = ["443"]
[[policy]]
name = "office"
[[policy.rule]]
to = ["10.2.0.0/16"]
protocol = "any"
"#;

    struct Scene {
        config: Config,
        ends: [EndView; 2],
        place: Place,
        trace: Trace,
    }

    fn end(config: &Config, address: &str) -> EndView {
        let address: IpAddr = address.parse().unwrap();
        EndView {
            address,
            reading: AddressReading {
                pool: config.home(address).map(|h| config.resting(h)),
                session: None,
                interface: None,
                lease_end: None,
                fallback: None,
                map_id: 1,
            },
            session: None,
            device: None,
            lease_ends_at: None,
        }
    }

    /// From the first address to the second, denied for this reason by this pool, at `tun0`.
    fn scene(from: &str, to: &str, reason: Reason, pool: u8) -> Scene {
        let config = Config::parse(std::path::Path::new("test.toml"), CONFIG).unwrap_or_else(|e| panic!("{e}"));
        let ends = [end(&config, from), end(&config, to)];
        let entries = [0, 1].map(|i: usize| ends[i].reading.pool.map_or(0, |p| class_entry(p.0, false, 0)));
        Scene {
            place: Place {
                link: Link {
                    ifindex: 3,
                    name: "tun0".parse().unwrap(),
                    ethernet: false,
                },
                role: InterfaceRole::Device,
                egress: false,
                hook: HookState {
                    hook: HookPoint::TcIngress,
                    mode: "tcx",
                    program_id: Some(7),
                    problem: String::new(),
                },
                chosen: String::new(),
            },
            trace: Trace {
                entries,
                reason: reason as u8,
                pool,
                ..Trace::default()
            },
            config,
            ends,
        }
    }

    impl Scene {
        /// Device `phone` in this state holds the address of an end.
        fn session(mut self, end: usize, state: DeviceState, interface: &str) -> Self {
            let e = &mut self.ends[end];
            e.session = Some(SessionView {
                session: Session {
                    id: SessionId(4),
                    device: Some("phone".parse().unwrap()),
                    addresses: e.address.into(),
                    interface: interface.parse().unwrap(),
                    source: "vpn".parse().unwrap(),
                    trust: crate::model::Trust::Name,
                    opened_at: WallTime(0),
                },
                below_min_trust: false,
                current_pool: PoolId(1),
            });
            e.device = Some(Device {
                state,
                ..Device::new("phone".parse().unwrap(), "staff".parse().unwrap(), WallTime(0))
            });
            self
        }

        fn with<R>(&self, f: impl FnOnce(&Case<'_>) -> R) -> R {
            let [source, destination] = self.ends.each_ref();
            let question = Question {
                source: source.address,
                destination: destination.address,
                protocol: 6,
                source_port: 49152,
                destination_port: 25,
                flags: 2,
                reply: false,
                vlans: vec![],
            };
            f(&Case {
                config: &self.config,
                question: &question,
                place: &self.place,
                ends: [source, destination],
                trace: &self.trace,
            })
        }

        fn says(&self, parts: &[&str]) {
            let all = self.with(changes);
            for part in parts {
                assert!(all.iter().any(|c| c.contains(part)), "{part:?} in {all:#?}");
            }
        }
    }

    #[test]
    fn a_release_is_proposed_only_where_it_helps() {
        use DeviceState::{Quarantined, Retired};
        let to_mail = scene("10.66.0.5", "10.1.0.9", Reason::NoRule, 1).session(0, Quarantined, "tun0");
        to_mail.says(&[
            r#"a rule to = ["10.1.0.9/32"] protocol = "tcp" ports = ["25"] in policy dm"#,
            "releasing device phone (quarantined) would not help: policy office of pool staff",
        ]);
        let to_office = scene("10.66.0.5", "10.2.0.9", Reason::NoRule, 1).session(0, Quarantined, "tun0");
        to_office.says(&["releasing device phone (quarantined): policy office of pool staff allows it"]);
        scene("10.66.0.5", "10.2.0.9", Reason::NoRule, 1)
            .session(0, Retired, "tun0")
            .says(&["device phone is retired"]);
        scene("10.66.0.5", "10.2.0.9", Reason::NoRule, 1).says(&["10.66.0.5 has no live session"]);
        scene("10.66.0.5", "10.1.0.5", Reason::NoRule, 1).says(&["rule 1 of policy dm names 10.1.0.5 already, but only"]);
    }

    #[test]
    fn the_end_that_was_denied_is_the_one_that_is_spoken_of() {
        // From a server to a device: the device's policy, as the destination.
        let inward = scene("10.1.0.9", "10.66.0.5", Reason::NewToDevice, 1).session(1, DeviceState::Quarantined, "tun0");
        inward.says(&[
            r#"a rule from = ["10.1.0.9/32"] protocol = "tcp" ports = ["25"] in policy dm"#,
            "device phone",
        ]);
    }

    #[test]
    fn where_it_would_be_right_is_said() {
        scene("10.66.0.5", "10.1.0.5", Reason::WrongInterface, 1)
            .session(0, DeviceState::Quarantined, "tun9")
            .says(&["the packet on tun9: session 4 of 10.66.0.5 is there"]);
        scene("10.66.0.5", "10.1.0.5", Reason::WrongInterface, 1)
            .session(0, DeviceState::Quarantined, "tun0")
            .says(&["session 4 was bound to interface number 0, and tun0 is number 3 now"]);
        scene("10.66.0.5", "10.1.0.5", Reason::WrongInterface, 1).says(&["quarantine in `pools` of interface tun0"]);
        scene("192.0.2.1", "10.1.0.5", Reason::NotInPool, 0).says(&["192.0.2.1 in the `prefixes` of a pool"]);
        scene("10.66.0.1", "10.1.0.5", Reason::NotInPool, 0).says(&["the gateway's own address (`reserved`)"]);
        scene("10.66.0.5", "224.0.0.251", Reason::Multicast, 1).says(&[r#"to = ["224.0.0.251/32"]"#, "names the address itself"]);
        let all = scene("10.66.0.5", "10.1.0.5", Reason::Truncated, 1).with(changes);
        assert!(all.is_empty(), "the packet's own fault: {all:?}");
    }

    #[test]
    fn warnings_say_what_stands_in_the_way() {
        let mut s = scene("10.66.0.5", "10.1.0.5", Reason::Rule, 1);
        assert!(s.with(|c| warnings(c, None)).is_empty());
        s.place.hook.problem = "a foreign program runs before ours".into();
        assert!(s.with(|c| warnings(c, None))[0].contains("tun0: a foreign program"));
        s.place.hook.program_id = None;
        let closed = s.with(|c| warnings(c, Some("closed")));
        assert!(closed[0].contains("drops what no program has marked"), "{closed:?}");
        let open = s.with(|c| warnings(c, Some("broken: no table")));
        assert!(open[0].contains("does not stop it"), "{open:?}");
        // Moved between the probe and the look at the tables.
        let mut s = scene("10.66.0.5", "10.1.0.5", Reason::Rule, 1);
        s.trace.entries[0] = class_entry(2, false, 0);
        assert!(s.with(|c| warnings(c, None))[0].contains("ask again"));
        s.trace.entries[0] = class_entry(2, true, 0);
        assert!(
            s.with(|c| warnings(c, None)).is_empty(),
            "a lease that is over is judged by another pool"
        );
    }
}
