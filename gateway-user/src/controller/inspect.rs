//! Questions, and the read-back that says how far a change got.

use std::{collections::HashMap, net::IpAddr};

use gateway_ebpf::abi::{Answers, Count};

use super::{
    AddressEnforcement, AddressView, CounterView, Counters, DeviceView, EndView, PlaceView, Refusal, SessionView, Status,
    Surroundings, UriWatch, batch::Settled, upkeep::Standing, writer::Writer,
};
use crate::{
    audit::rfc3339,
    config::{Config, InterfaceRole, Mode, PoolKind},
    kernel::{Assignment, HookPoint, InterfaceState, Link, Losses, ProgramReading, ReadBack},
    model::{BootTime, Device, DeviceId, DeviceState, InterfaceName, Now, PoolId, Revision, Scope, Session, SessionId, WallTime},
    reconcile::assignment,
    transition::{Directory as _, deadline_end, full_service, lease_end, release_end},
};

/// Devices that a question looks at.
const SLICE: usize = 5_000;
/// Changes of GatewayURIs in a page, and the rest of the last one's revision.
const URIS: usize = 1_000;
/// How long `status` shows a conflict, milliseconds.
const CONFLICTS_SHOWN_MS: i64 = 3_600_000;

impl Writer {
    pub(super) fn view(&self, device: &Device, now: &Now) -> DeviceView {
        let wall = |end| on_the_wall(end, now);
        let offer = device.keys.offer.as_ref();
        DeviceView {
            lease_ends_at: release_end(device, now).map(wall),
            deadline_at: deadline_end(device, &self.context(*now)).map(wall),
            offer_ends_at: offer.map(|o| wall(lease_end(&o.holds, now))),
            exception_ends_at: device.exception.as_ref().map(|e| wall(lease_end(&e.holds, now))),
            required: self.policies.required_of(device).cloned(),
            device: device.clone(),
            sessions: self
                .registry
                .sessions_of(&device.id)
                .map(|s| self.session_view(s, now))
                .collect(),
        }
    }

    /// Its pool is that of its first address: a released session's are all the same.
    pub(super) fn session_view(&self, session: &Session, now: &Now) -> SessionView {
        let device = self.registry.device_of(session);
        let of = |a| assignment(a, session, device, &self.context(*now));
        let current_pool = session.addresses.iter().find_map(of).map_or(PoolId(0), |a| a.pool);
        let pool = device.and_then(|d| full_service(d, &self.config));
        SessionView {
            below_min_trust: pool.is_some_and(|p| session.trust < p.min_trust),
            session: session.clone(),
            current_pool,
        }
    }

    /// What was read back of every address of these sessions, and whether all is as wanted, everywhere.
    pub(super) fn look_at<'a>(
        &self,
        sessions: impl Iterator<Item = &'a Session>,
        backs: &HashMap<IpAddr, Vec<ReadBack>>,
        settled: &mut Settled,
    ) {
        let now = self.clock.now();
        settled.in_force = true;
        for session in sessions {
            settled.sessions = true;
            let device = self.registry.device_of(session);
            for address in session.addresses.iter() {
                let to = assignment(address, session, device, &self.context(now));
                let mut read_backs = backs.get(&address).cloned().unwrap_or_default();
                settled.in_force &= to
                    .as_ref()
                    .is_some_and(|to| in_force(&self.config, &self.links, to, &read_backs));
                let wanted = to.map_or(PoolId(0), |to| to.pool);
                read_backs.extend(unjudged(&self.config, &self.links, &session.interface, &read_backs));
                settled.addresses.push(AddressEnforcement {
                    address,
                    wanted,
                    read_backs,
                });
            }
        }
    }

    /// Whether an address of a session that has ended is judged by quarantine again, wherever a program meets it, or is another's.
    pub(super) fn is_back(&self, address: IpAddr, backs: &HashMap<IpAddr, Vec<ReadBack>>) -> bool {
        let wanted = self.config.home(address).map(|home| self.config.resting(home));
        let reads = backs.get(&address);
        let back = reads.is_some_and(|all| all.iter().all(|r| r.reading.is_some_and(|reading| reading.pool == wanted)));
        back || self.registry.holder(address).is_some()
    }

    pub(super) fn device(&self, id: &DeviceId) -> Result<DeviceView, Refusal> {
        let device = self.registry.device(id).ok_or_else(|| Refusal::UnknownDevice(id.clone()))?;
        Ok(self.view(device, &self.clock.now()))
    }

    /// At most so many, and the last that was looked at, if there may be more.
    pub(super) fn devices(
        &self,
        after: Option<&DeviceId>,
        limit: usize,
        state: Option<DeviceState>,
        scope: &Scope,
    ) -> (Vec<DeviceView>, Option<DeviceId>) {
        let now = self.clock.now();
        let (mut views, mut looked, mut last) = (Vec::new(), 0, after);
        for beginning in scope.beginnings() {
            let devices = self.registry.devices_from(last, beginning.as_ref());
            for device in devices.take_while(|d| scope.has_device(d.id.as_str())) {
                if views.len() == limit || looked == SLICE {
                    return (views, last.cloned());
                }
                looked += 1;
                last = Some(&device.id);
                if state.is_none_or(|s| s == device.state) {
                    views.push(self.view(device, &now));
                }
            }
        }
        (views, None)
    }

    pub(super) fn sessions(&self, after: Option<SessionId>, limit: u32) -> Vec<SessionView> {
        let now = self.clock.now();
        self.registry
            .sessions_after(after)
            .take(limit as usize)
            .map(|s| self.session_view(s, &now))
            .collect()
    }

    /// This thread alone sends changes, so none can fall between what is stored and what is to come. A page of what is stored: whoever asks for
    /// all of it keeps nobody waiting, and has it in memory as he reads it.
    pub(super) fn watch(&mut self, after: Option<Revision>) -> Result<UriWatch, Refusal> {
        let Some(after) = after else {
            return Ok((Vec::new(), Some(self.uris.subscribe())));
        };
        let current = self.registry.revision;
        let too_old = Refusal::RevisionTooOld {
            asked: after.0,
            now: current.0,
        };
        // A revision that is yet to come is from another database: what the watcher knows is not what is here.
        if after > current {
            return Err(too_old);
        }
        let kept = self
            .store
            .uri_changes(after, URIS)
            .map_err(|e| Refusal::StoreUnavailable(e.to_string()))?;
        let kept = kept.ok_or(too_old)?;
        let live = (kept.len() < URIS).then(|| self.uris.subscribe());
        Ok((kept, live))
    }

    /// What a restore may have lost, until a policy is published.
    pub(super) fn forgetful(&self) -> Option<String> {
        let since = rfc3339(self.forgotten?);
        Some(format!(
            "a backup took the database's place, and what was blocked, retired, restricted and published since {since} is forgotten: block and retire again what has to be, then publish the policy in force (lazaret policy publish), also if it is the same"
        ))
    }

    /// With how interfaces and floor stand.
    pub(super) fn status(&self, standing: &Standing) -> Status {
        let (interfaces, floor) = (standing.interfaces.clone(), standing.floor.clone());
        let mut warnings = Vec::new();
        // What is not known is not told as enforced.
        let mode = self.kernel.mode().unwrap_or_else(|e| {
            warnings.push(format!("whether the programs enforce cannot be read: {e}"));
            Mode::Observe
        });
        if self.config.mode == Mode::Observe {
            warnings.push("observe mode: nothing is denied and the floor is open".to_owned());
        } else if mode == Mode::Observe {
            warnings.push(
                "the programs deny nothing: their tables have them observe, although the mode is enforce; the floor alone denies"
                    .to_owned(),
            );
        }
        if self.config.mode == Mode::Enforce && floor != "closed" {
            warnings.push(format!("the floor is {floor}"));
        }
        if self.not_durable() > 0 {
            warnings.push(format!("{} restriction(s) are in force but not durable", self.not_durable()));
        }
        warnings.extend(
            self.kernel_problem
                .iter()
                .map(|p| format!("the kernel refused a change; it is tried again: {p}")),
        );
        if let Some(last) = self.clock_behind {
            warnings.push(format!(
                "the clock is {} s behind the last commit: set it right: until it has passed it no release of an earlier boot holds, and proof dated rightly is refused (CLOCK_BEHIND) but for a final key of a policy that is offered anew; if it is right and had run ahead: lazaret store restore --help",
                last.0.saturating_sub(self.clock.now().wall.0) / 1000
            ));
        }
        warnings.extend(self.forgetful());
        let log = self.audit_log.state();
        if let Some(problem) = &log.problem {
            warnings.push(format!(
                "the audit log is not written: {problem}; entries wait in the database until it is, the last {} of them at most",
                self.config.keep.audit
            ));
        }
        if log.lost > 0 {
            warnings.push(format!(
                "{} entries of the audit were pruned before the audit log could be written: it lacks them (said until {} is removed, and the daemon restarted)",
                log.lost,
                self.config.paths.state.join("audit-log.lost").display()
            ));
        }
        warnings.extend(self.publication_warning());
        let drift = self.drift();
        if drift.found > 0 {
            warnings.push(format!(
                "drift: {} difference(s) between store and kernel since the start, {} put right; see lazaret drift",
                drift.found, drift.repaired
            ));
        }
        if let Err(e) = &interfaces {
            warnings.push(format!("how interfaces stand is not known: {e}"));
        }
        for i in interfaces.iter().flatten() {
            if i.ifindex.is_none() {
                warnings.push(format!("interface {}: there is none yet; it is waited for", i.name));
            }
            let problems = i.hooks.iter().filter(|h| !h.problem.is_empty());
            warnings.extend(problems.map(|h| format!("interface {}, {}: {}", i.name, hook_name(h.hook), h.problem)));
        }
        let age = i64::try_from(standing.since.elapsed().as_millis()).unwrap_or(i64::MAX);
        let since = self.clock.now().wall.0.saturating_sub(CONFLICTS_SHOWN_MS);
        let conflicts = self.conflicts.since(WallTime(since)).map(str::to_owned);
        Status {
            mode,
            floor,
            interfaces,
            looked_at: WallTime(self.clock.now().wall.0.saturating_sub(age)),
            revision: self.registry.revision,
            store: self.store_problem.clone().unwrap_or_else(|| "ok".to_owned()),
            devices: self.registry.device_count(),
            sessions: self.registry.session_count(),
            started_at: self.started_at,
            warnings,
            conflicts: conflicts.collect(),
            not_durable: self.not_durable(),
            losses: self.losses().unwrap_or_else(|e| {
                tracing::error!("the counters of lost events cannot be read: {e}");
                Losses::default()
            }),
        }
    }

    pub(super) fn addresses(
        &self,
        address: Option<IpAddr>,
        after: Option<SessionId>,
        limit: u32,
    ) -> Result<(Vec<AddressView>, Option<SessionId>), Refusal> {
        let mut wanted: Vec<IpAddr> = address.into_iter().collect();
        let (mut last, mut more) = (None, false);
        if address.is_none() {
            for session in self.registry.sessions_after(after) {
                if wanted.len() >= limit as usize {
                    more = true;
                    break;
                }
                wanted.extend(session.addresses.iter());
                last = Some(session.id);
            }
        }
        let now = self.clock.now();
        let view = |address| {
            let reading = self.kernel.read(address).map_err(|e| Refusal::Kernel(e.to_string()))?;
            let session = reading.session.and_then(|id| self.registry.session(id));
            Ok(AddressView {
                address,
                device: session.and_then(|s| s.device.clone()),
                lease_ends_at: reading.lease_end.map(|end| on_the_wall(end, &now)),
                reading,
            })
        };
        let views = wanted.into_iter().map(view).collect::<Result<_, Refusal>>()?;
        Ok((views, last.filter(|_| more)))
    }

    /// Asks the kernel for the addresses; `states` is how interfaces stand.
    pub(super) fn surroundings(&self, ends: &[IpAddr], states: &[InterfaceState]) -> Result<Surroundings, Refusal> {
        let now = self.clock.now();
        let (mut places, mut others) = (Vec::new(), Vec::new());
        for link in &self.links {
            match states.iter().find(|s| s.ifindex == Some(link.ifindex)) {
                Some(state) => places.push(PlaceView {
                    link: link.clone(),
                    role: state.role,
                    hooks: state.hooks.clone(),
                }),
                None => others.push(link.name.clone()),
            }
        }
        let end = |address: &IpAddr| {
            let reading = self.kernel.read(*address).map_err(|e| Refusal::Kernel(e.to_string()))?;
            let session = self.registry.holder(*address);
            Ok(EndView {
                address: *address,
                session: session.map(|s| self.session_view(s, &now)),
                device: session.and_then(|s| self.registry.device_of(s)).cloned(),
                lease_ends_at: reading.lease_end.map(|end| on_the_wall(end, &now)),
                reading,
            })
        };
        Ok(Surroundings {
            ends: ends.iter().map(end).collect::<Result<_, Refusal>>()?,
            places,
            others,
        })
    }

    pub(super) fn holders(&self, addresses: &[IpAddr]) -> HashMap<IpAddr, DeviceId> {
        let device = |a: &IpAddr| Some((*a, self.registry.holder(*a)?.device.clone()?));
        addresses.iter().filter_map(device).collect()
    }

    pub(super) fn counters(&self) -> Result<Counters, Refusal> {
        let refused = |e: crate::kernel::KernelError| Refusal::Kernel(e.to_string());
        let mut counters = Vec::new();
        for (pool, by_reason) in self.kernel.counters().map_err(refused)? {
            let pool = (pool != 0).then_some(PoolId(pool));
            let counted = (0_u8..).zip(by_reason.iter()).filter(|(_, c)| **c != Count::default());
            counters.extend(counted.map(|(reason, count)| CounterView {
                pool,
                reason,
                count: *count,
            }));
        }
        counters.sort_by_key(|c| (c.pool, c.reason));
        let pool = |n: u8| (n != 0).then_some(PoolId(n));
        let shadow = self.kernel.shadow_counters().map_err(refused)?;
        let answers = self.kernel.answers().map_err(refused)?;
        Ok(Counters {
            counters,
            rules: self.kernel.rule_counters().map_err(refused)?,
            shadow: shadow.into_iter().filter_map(|(n, c)| Some((pool(n)?, c))).collect(),
            answers: answers
                .into_iter()
                .filter(|(_, a)| *a != Answers::default())
                .filter_map(|(n, a)| Some((pool(n)?, a)))
                .collect(),
            losses: self.losses()?,
        })
    }

    pub(super) fn losses(&self) -> Result<Losses, Refusal> {
        self.kernel.losses().map_err(|e| Refusal::Kernel(e.to_string()))
    }
}

/// Whether an address is judged as wanted by every program that can meet its packets. Not so: no device interface exists, one of them
/// lacks a judge at ingress or at egress, the session's own is not among them, or any program, core ones too, reads another pool, session,
/// end of the lease or interface.
fn in_force(config: &Config, links: &[Link], to: &Assignment, read_backs: &[ReadBack]) -> bool {
    let is_device = |name: &InterfaceName| config.role(name) == Some(InterfaceRole::Device);
    let reads = |link: &Link, hooks: &[HookPoint]| {
        let here = |r: &&ReadBack| r.ifindex == link.ifindex && hooks.contains(&r.hook);
        read_backs.iter().filter(here).any(|r| r.reading.is_some())
    };
    let devices: Vec<&Link> = links.iter().filter(|l| is_device(&l.name)).collect();
    let judged = |l: &&Link| reads(l, &[HookPoint::Xdp, HookPoint::TcIngress]) && reads(l, &[HookPoint::TcEgress]);
    let Some(own) = devices.iter().find(|l| l.name == to.interface) else {
        return false;
    };
    // Without a free class, what restricts is not bound.
    let restricts = to.lease.is_none() && config.pool_by_id(to.pool).is_some_and(|p| p.kind != PoolKind::FullService);
    let as_wanted = |r: &ProgramReading| {
        r.pool == Some(to.pool)
            && r.session == Some(to.session)
            && r.lease_end == to.lease.map(|l| l.0)
            && (r.bound_to == own.ifindex || restricts && r.bound_to == 0)
    };
    devices.iter().all(judged) && read_backs.iter().all(|r| r.reading.as_ref().is_some_and(as_wanted))
}

/// The hooks of a session's own interface where nothing judges because it does not exist or is no device interface: else an answer that is
/// not "enforced" would not say where not.
fn unjudged(config: &Config, links: &[Link], own: &InterfaceName, read_backs: &[ReadBack]) -> Vec<ReadBack> {
    let link = links.iter().find(|l| l.name == *own);
    if link.is_some() && config.role(own) == Some(InterfaceRole::Device) {
        return Vec::new();
    }
    let there = |hook| read_backs.iter().any(|r| r.interface == *own && r.hook == hook);
    let missing = [HookPoint::TcIngress, HookPoint::TcEgress].into_iter().filter(|h| !there(*h));
    let none = |hook| ReadBack {
        interface: own.clone(),
        ifindex: link.map_or(0, |l| l.ifindex),
        hook,
        reading: None,
    };
    missing.map(none).collect()
}

pub(super) fn on_the_wall(end: BootTime, now: &Now) -> WallTime {
    let ahead = i128::from(end.0) - i128::from(now.boot.0);
    WallTime(
        now.wall
            .0
            .saturating_add(i64::try_from(ahead / 1_000_000).unwrap_or(i64::MAX)),
    )
}

pub(super) fn hook_name(hook: HookPoint) -> &'static str {
    match hook {
        HookPoint::Xdp => "xdp",
        HookPoint::TcIngress => "tc ingress",
        HookPoint::TcEgress => "tc egress",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::tests::kit;

    #[test]
    fn in_force_needs_a_judge_at_both_ends_of_every_device_interface() {
        let (config, mut links) = (kit::config(), kit::links());
        links.push(Link {
            ifindex: 4,
            name: "tun1".parse().unwrap(),
            ethernet: false,
        });
        let to = Assignment {
            pool: kit::OFFICE,
            session: SessionId(3),
            interface: "tun0".parse().unwrap(),
            lease: Some((BootTime(9), kit::QUARANTINE)),
        };
        let right = ProgramReading {
            program_id: 1,
            map_id: 2,
            pool: Some(kit::OFFICE),
            session: Some(SessionId(3)),
            lease_end: Some(BootTime(9)),
            bound_to: links.iter().find(|l| l.name == to.interface).unwrap().ifindex,
        };
        let back = |link: &Link, hook| ReadBack {
            interface: link.name.clone(),
            ifindex: link.ifindex,
            hook,
            reading: Some(right),
        };
        let hooks = [HookPoint::TcIngress, HookPoint::TcEgress];
        let all: Vec<ReadBack> = links.iter().flat_map(|l| hooks.map(|h| back(l, h))).collect();
        let judge = |links: &[Link], reads: &[ReadBack]| in_force(&config, links, &to, reads);
        assert!(judge(&links, &all));
        let other = |to: Assignment| !in_force(&config, &links, &to, &all);
        assert!(
            other(Assignment {
                pool: kit::LAB,
                ..to.clone()
            }) && other(Assignment {
                lease: None,
                ..to.clone()
            })
        );
        assert!(!judge(&links, &[]) && !judge(&[], &[]) && !judge(&links[..1], &all));
        for missing in 0..all.len() {
            let mut rest = all.clone();
            let gone = rest.remove(missing);
            // A core interface needs no more than it says it has.
            assert_eq!(judge(&links, &rest), gone.interface.as_str() == "core0", "{gone:?}");
            for reading in [
                None,
                Some(ProgramReading { pool: None, ..right }),
                Some(ProgramReading {
                    pool: Some(kit::QUARANTINE),
                    ..right
                }),
                Some(ProgramReading { session: None, ..right }),
                Some(ProgramReading {
                    session: Some(SessionId(4)),
                    ..right
                }),
                Some(ProgramReading {
                    lease_end: None,
                    ..right
                }),
                Some(ProgramReading {
                    lease_end: Some(BootTime(8)),
                    ..right
                }),
                Some(ProgramReading { bound_to: 0, ..right }),
                Some(ProgramReading { bound_to: 4, ..right }),
            ] {
                let mut wrong = all.clone();
                wrong[missing].reading = reading;
                assert!(!judge(&links, &wrong), "{:?}", wrong[missing]);
            }
        }
    }
}
