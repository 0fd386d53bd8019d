//! Commands about sessions: open, close, synchronise. An address starts in quarantine, whoever had it before; the session is committed;
//! then all of its addresses get what its device has, at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use tracing::info;

use super::{
    CloseOutcome, Enforcement, OpenOutcome, Refusal, SessionReport, SignalContext, SynchroniseOutcome,
    commit::{Cause, changes},
    writer::Writer,
};
use crate::{
    config::UnknownDevice,
    kernel::KernelError,
    model::{Device, DeviceId, DeviceState, Session, SessionId, SourceName, Trust},
    reconcile::{self, Op},
    store::ChangeSet,
    transition::{self, Directory as _, Signal, Step},
};

/// Sessions that open and end in one commit.
#[derive(Default)]
struct Batch {
    /// With their indexes into the request.
    opening: Vec<(u32, Session)>,
    ending: BTreeSet<SessionId>,
    claimed: HashMap<IpAddr, SessionId>,
    /// Addresses that ending sessions give back.
    freed: usize,
    by_device: HashMap<DeviceId, (u32, u32)>,
}

impl Batch {
    fn end(&mut self, session: &Session) {
        if self.ending.insert(session.id) {
            self.freed += session.addresses.len();
            if let Some(device) = &session.device {
                self.by_device.entry(device.clone()).or_default().1 += 1;
            }
        }
    }

    fn open(&mut self, index: u32, session: Session) {
        self.claimed.extend(session.addresses.iter().map(|a| (*a, session.id)));
        if let Some(device) = &session.device {
            self.by_device.entry(device.clone()).or_default().0 += 1;
        }
        self.opening.push((index, session));
    }
}

impl Writer {
    pub(super) fn open(
        &mut self,
        context: &SignalContext,
        source: &SourceName,
        report: SessionReport,
    ) -> Result<OpenOutcome, Refusal> {
        let mut batch = Batch::default();
        self.admit(&mut batch, 0, source, report)?;
        let (mut opened, refused) = self.execute(batch, Cause::of(context));
        if let Some((_, refusal)) = refused.into_iter().next() {
            return Err(refusal);
        }
        let session = opened.pop().ok_or(Refusal::Busy)?;
        let (enforced, addresses) = self.read_back(std::slice::from_ref(&session));
        let device = self.registry.device_of(&session);
        let resting = || {
            let home = session.addresses.first().and_then(|a| self.config.home(*a))?;
            self.config
                .pool_by_id(self.config.resting(home))
                .map(|p| p.gateway_uri.clone())
        };
        Ok(OpenOutcome {
            gateway_uri: device.map(|d| d.gateway_uri.clone()).or_else(resting).unwrap_or_default(),
            session: self.session_view(&session, &self.clock.now()),
            enforcement: if enforced {
                Enforcement::Enforced
            } else {
                Enforcement::Committed
            },
            addresses,
            revision: self.registry.revision,
        })
    }

    pub(super) fn close(&mut self, context: &SignalContext, id: SessionId) -> CloseOutcome {
        let Some(session) = self.registry.session(id).cloned() else {
            let waits = self.pending.closed.contains(&id) && self.flush().is_err();
            let enforcement = if waits {
                Enforcement::EnforcedNotDurable
            } else {
                Enforcement::NoSession
            };
            return CloseOutcome {
                ended: false,
                enforcement,
                revision: self.registry.revision,
            };
        };
        let done = self.restrict(&[], &[id], Cause::of(context));
        self.log_session("session closed", &session, Cause::of(context));
        let enforcement = match (done.durable, self.is_back(&session)) {
            (false, _) => Enforcement::EnforcedNotDurable,
            (true, true) => Enforcement::Enforced,
            (true, false) => Enforcement::Committed,
        };
        CloseOutcome {
            ended: true,
            enforcement,
            revision: self.registry.revision,
        }
    }

    pub(super) fn synchronise(
        &mut self,
        context: &SignalContext,
        source: &SourceName,
        reports: Vec<SessionReport>,
    ) -> Result<SynchroniseOutcome, Refusal> {
        let mut refused = Vec::new();
        let (mut kept, mut new) = (BTreeSet::new(), Vec::new());
        for (index, report) in (0_u32..).zip(reports) {
            match self.identify(&report) {
                Ok(device) => match self.same(device, source, &report).filter(|id| kept.insert(*id)) {
                    Some(_) => {}
                    None => new.push((index, report)),
                },
                Err(refusal) => refused.push((index, refusal)),
            }
        }
        let mut batch = Batch::default();
        self.registry
            .sessions_of_source(source)
            .filter(|s| !kept.contains(&s.id))
            .for_each(|s| batch.end(s));
        for (index, report) in new {
            // What is left of this source's sessions is in the list: it is not ended for another line of the same list.
            if let Err(refusal) = self.admit_beside(&mut batch, index, source, report, &kept) {
                refused.push((index, refusal));
            }
        }
        let ended = batch.ending.len() as u32;
        let (opened, failed) = self.execute(batch, Cause::of(context));
        refused.extend(failed);
        refused.sort_by_key(|(index, _)| *index);
        Ok(SynchroniseOutcome {
            opened: opened.len() as u32,
            kept: kept.len() as u32,
            ended,
            refused,
            revision: self.registry.revision,
        })
    }

    fn admit(&mut self, batch: &mut Batch, index: u32, source: &SourceName, report: SessionReport) -> Result<(), Refusal> {
        self.admit_beside(batch, index, source, report, &BTreeSet::new())
    }

    /// Checks a report against the rules and adds it to the batch; refused, it leaves no trace there.
    fn admit_beside(
        &mut self,
        batch: &mut Batch,
        index: u32,
        source: &SourceName,
        report: SessionReport,
        kept: &BTreeSet<SessionId>,
    ) -> Result<(), Refusal> {
        let device = self.identify(&report)?.map(|d| (d.id.clone(), d.state));
        if let Some((id, DeviceState::Retired)) = &device {
            return Err(Refusal::DeviceRetired(id.clone()));
        }
        let mut seen = HashSet::new();
        let addresses: Vec<IpAddr> = report.addresses.into_iter().filter(|a| seen.insert(*a)).collect();
        let mut ends: BTreeSet<SessionId> = BTreeSet::new();
        for address in &addresses {
            self.placed(*address)?;
            if let Some(session) = batch.claimed.get(address) {
                return Err(taken(*address, *session, source));
            }
            let Some(holder) = self.registry.holder(*address).filter(|s| !batch.ending.contains(&s.id)) else {
                continue;
            };
            if holder.source != *source || kept.contains(&holder.id) {
                let refusal = taken(*address, holder.id, &holder.source);
                if holder.source != *source {
                    let asked = device.as_ref().map_or("no name", |(id, _)| id.as_str());
                    self.note_conflict(format!(
                        "conflict: source {source} reports {address} for {asked}, but {refusal}"
                    ));
                }
                return Err(refusal);
            }
            ends.insert(holder.id);
        }
        let ending: Vec<Session> = ends.iter().filter_map(|id| self.registry.session(*id).cloned()).collect();
        if let Some((id, _)) = &device {
            let (opening, over) = batch.by_device.get(id).copied().unwrap_or_default();
            let live = self.registry.sessions_of(id).count() as u32 + opening;
            let live = live.saturating_sub(over + ending.iter().filter(|s| s.device.as_ref() == Some(id)).count() as u32);
            if live >= self.config.devices.sessions {
                let refusal = Refusal::SessionLimit {
                    device: id.clone(),
                    live,
                };
                // Perhaps a credential that was copied.
                self.note_conflict(format!("conflict: source {source} reports {}: {refusal}", list(&addresses)));
                return Err(refusal);
            }
        }
        let free = batch.freed + ending.iter().map(|s| s.addresses.len()).sum::<usize>();
        let held = (self.registry.address_count() + batch.claimed.len()).saturating_sub(free);
        if held + addresses.len() > self.config.tables.addresses as usize {
            return Err(Refusal::TableFull);
        }
        ending.iter().for_each(|s| batch.end(s));
        let session = Session {
            id: self.registry.new_session_id(),
            device: device.map(|(id, _)| id),
            addresses,
            interface: report.interface,
            source: source.clone(),
            trust: Trust::Name,
            opened_at: self.clock.now().wall,
        };
        batch.open(index, session);
        Ok(())
    }

    /// Does a batch: the sessions that opened, and those that did not.
    fn execute(&mut self, batch: Batch, cause: Cause<'_>) -> (Vec<Session>, Vec<(u32, Refusal)>) {
        let now = self.clock.now();
        let ended: Vec<Session> = batch
            .ending
            .iter()
            .filter_map(|id| self.registry.session(*id).cloned())
            .collect();
        let freed = ended
            .iter()
            .flat_map(|s| &s.addresses)
            .filter(|a| !batch.claimed.contains_key(a));
        let ops = freed.map(|a| Op::Clear(*a)).collect();
        self.apply(ops);
        let mut refused = Vec::new();
        let mut opening = Vec::new();
        for (index, session) in batch.opening {
            match self.quarantine(&session) {
                Ok(()) => opening.push((index, session)),
                Err(e) => refused.push((index, refusal(e))),
            }
        }
        let steps = self.connected(&opening);
        let closing: Vec<SessionId> = batch.ending.iter().copied().collect();
        let set = ChangeSet {
            closed: batch.ending,
            opened: opening.iter().map(|(_, s)| (s.id, s.clone())).collect(),
            ..changes(&steps, &now)
        };
        let committed = if opening.is_empty() {
            Err(Refusal::Busy)
        } else {
            self.commit(set, &steps, cause)
        };
        if let Err(why) = committed {
            // The new ones leave no trace; that the old ones have ended stays true.
            let gone = opening
                .iter()
                .flat_map(|(_, s)| &s.addresses)
                .map(|a| Op::Clear(*a))
                .collect();
            self.apply(gone);
            self.restrict(&[], &closing, cause);
            refused.extend(opening.into_iter().map(|(index, _)| (index, why.clone())));
            ended.iter().for_each(|s| self.log_session("session ended", s, cause));
            return (Vec::new(), refused);
        }
        let devices: BTreeSet<&DeviceId> = opening.iter().filter_map(|(_, s)| s.device.as_ref()).collect();
        self.enforce(&devices.into_iter().collect::<Vec<_>>(), &[]);
        let opened: Vec<Session> = opening.into_iter().map(|(_, s)| s).collect();
        ended.iter().for_each(|s| self.log_session("session ended", s, cause));
        opened.iter().for_each(|s| self.log_session("session opened", s, cause));
        (opened, refused)
    }

    /// Puts the addresses of a session that is not durable yet into the kernel, without release. Failed, none of them stays.
    fn quarantine(&mut self, session: &Session) -> Result<(), KernelError> {
        let device = self.registry.device_of(session);
        let start = |a: &IpAddr| Some(Op::Assign(*a, reconcile::unreleased(*a, session, device, &self.config)?));
        let ops = session.addresses.iter().filter_map(start).collect();
        let Some((_, error)) = reconcile::apply(ops, self.kernel.as_mut()).failed.into_iter().next() else {
            return Ok(());
        };
        let back = session.addresses.iter().map(|a| Op::Clear(*a)).collect();
        self.apply(back);
        Err(error)
    }

    fn connected(&self, opening: &[(u32, Session)]) -> Vec<Step> {
        let now = self.clock.now();
        let devices: BTreeMap<&DeviceId, &Device> = opening
            .iter()
            .filter_map(|(_, s)| self.registry.device_of(s))
            .map(|d| (&d.id, d))
            .collect();
        let step = |d: &Device| transition::step(d, Signal::Connected, now, &self.config).ok();
        devices.into_values().filter_map(step).filter(|s| s.changed).collect()
    }

    /// The device that a report means; `None`: one that the registry does not know, where the configuration lets it in.
    fn identify(&self, report: &SessionReport) -> Result<Option<&Device>, Refusal> {
        let Some(device) = self.registry.resolve(&report.device_name) else {
            return match self.config.devices.unknown {
                UnknownDevice::Refuse => Err(Refusal::UnknownDevice(report.device_name.clone())),
                UnknownDevice::Quarantine => Ok(None),
            };
        };
        let registered = device.certificates.is_empty() || report.certificate.is_some_and(|c| device.certificates.contains(&c));
        // Another device's certificate does not open a session of this one, even if this one has none registered.
        let owner = report.certificate.and_then(|c| self.registry.holder_of_certificate(&c));
        if !registered || owner.is_some_and(|o| *o != device.id) {
            return Err(Refusal::FingerprintMismatch(device.id.clone()));
        }
        Ok(Some(device))
    }

    /// The live session that a report describes.
    fn same(&self, device: Option<&Device>, source: &SourceName, report: &SessionReport) -> Option<SessionId> {
        let session = self.registry.holder(*report.addresses.first()?)?;
        let set = |a: &[IpAddr]| a.iter().copied().collect::<BTreeSet<_>>();
        let same = session.source == *source
            && session.device.as_ref() == device.map(|d| &d.id)
            && session.interface == report.interface
            && set(&session.addresses) == set(&report.addresses);
        same.then_some(session.id)
    }

    fn placed(&self, address: IpAddr) -> Result<(), Refusal> {
        if self.config.home(address).is_some() {
            return Ok(());
        }
        let reserved = self.config.pools.iter().any(|p| p.reserved.contains(&address));
        Err(if reserved {
            Refusal::AddressReserved(address)
        } else {
            Refusal::AddressOutsidePools(address)
        })
    }

    /// Whether the addresses of a session that has ended are judged by quarantine again, wherever a program meets them.
    fn is_back(&mut self, session: &Session) -> bool {
        session.addresses.iter().all(|address| {
            let wanted = self.config.home(*address).map(|home| self.config.resting(home));
            let reads = self.kernel.read_back(*address);
            reads.is_ok_and(|all| all.iter().all(|r| r.reading.is_some_and(|reading| reading.pool == wanted)))
        })
    }

    fn log_session(&self, what: &str, s: &Session, cause: Cause<'_>) {
        info!(
            session = s.id.0,
            device = s.device.as_ref().map_or("", |d| d.as_str()),
            addresses = ?s.addresses,
            interface = %s.interface,
            source = %s.source,
            by = cause.by,
            request = cause.request,
            revision = self.registry.revision.0,
            "{what}"
        );
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn taken(address: IpAddr, session: SessionId, source: &SourceName) -> Refusal {
    Refusal::AddressTaken {
        address,
        session,
        source_name: source.clone(),
    }
}

fn refusal(error: KernelError) -> Refusal {
    match error {
        KernelError::TableFull => Refusal::TableFull,
        KernelError::OutsidePools(address) => Refusal::AddressOutsidePools(address),
        KernelError::ClassesFull | KernelError::System { .. } => Refusal::Kernel(error.to_string()),
    }
}
