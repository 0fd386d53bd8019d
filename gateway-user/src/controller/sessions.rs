//! Commands about single sessions, and the rules by which one opens. An address starts in quarantine, whoever had it before; the session is
//! committed; then all of its addresses get what its device has, at once.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

use super::{
    CloseOutcome, OpenOutcome, Refusal, SessionReport,
    batch::{Decided, Settled, Subject},
    cause::{Ask, Cause},
    writer::Writer,
};
use crate::{
    config::UnknownDevice,
    kernel::KernelError,
    model::{
        Device, DeviceId, Session, SessionId, SourceName, Trust,
        prefix::{self, Shown},
    },
    reconcile::{self, Op},
    transition::{self, Directory as _, Overruled, Signal, Step},
};

/// Sessions that are to open and to end together.
#[derive(Default)]
pub(super) struct Admitted {
    /// With their indexes into the request.
    opening: Vec<(u32, Session)>,
    ending: BTreeSet<SessionId>,
    claimed: HashMap<IpAddr, SessionId>,
    /// Addresses that ending sessions give back.
    freed: usize,
    by_device: HashMap<DeviceId, (u32, u32)>,
}

/// What opens and what was refused, by index into the request.
type Staged = (Vec<(u32, SessionId)>, Vec<(u32, Refusal)>);

impl Admitted {
    /// The session that is to open on an address of a hold.
    fn claimed(&self, hold: IpAddr) -> Option<SessionId> {
        let one = |a: IpAddr| self.claimed.get(&a).copied();
        one(hold).or_else(|| match prefix::around(hold) {
            Some(network) => one(network),
            None => prefix::network(hold).and_then(|_| {
                let inside = self.claimed.iter().find(|(a, _)| prefix::overlap(**a, hold));
                inside.map(|(_, id)| *id)
            }),
        })
    }

    pub(super) fn end(&mut self, session: &Session) {
        if self.ending.insert(session.id) {
            self.freed += session.addresses.len();
            if let Some(device) = &session.device {
                self.by_device.entry(device.clone()).or_default().1 += 1;
            }
        }
    }

    fn open(&mut self, index: u32, session: Session) {
        self.claimed.extend(session.addresses.iter().map(|a| (a, session.id)));
        if let Some(device) = &session.device {
            self.by_device.entry(device.clone()).or_default().0 += 1;
        }
        self.opening.push((index, session));
    }
}

impl Writer {
    pub(super) fn open(
        &mut self,
        ask: Ask<'_>,
        source: &SourceName,
        report: SessionReport,
    ) -> Result<Decided<OpenOutcome>, Refusal> {
        let id = match ask.again.then(|| self.opened_as(source, &report)).flatten() {
            Some(id) => id,
            None => {
                self.may_report(&ask.context.by, source, &report)?;
                self.settle_holders(&report.addresses);
                let mut admitted = Admitted::default();
                self.admit(&mut admitted, 0, source, report, &BTreeSet::new(), ask.cause())?;
                let (opened, refused) = self.stage(admitted, ask.cause());
                if let Some((_, refusal)) = refused.into_iter().next() {
                    return Err(refusal);
                }
                opened.first().map(|(_, id)| *id).ok_or(Refusal::Busy)?
            }
        };
        let decided = Decided::new(Subject::Opened(id), move |w: &mut Self, settled: Settled| {
            settled.durable()?;
            // Ended meanwhile: by another report of the same source, or by the device's retirement.
            let session = w.registry.session(id).cloned().ok_or(Refusal::Busy)?;
            Ok(w.opened(&session, settled))
        });
        Ok(Decided {
            unheard: (!ask.again).then_some(id),
            ..decided
        })
    }

    fn opened(&self, session: &Session, settled: Settled) -> OpenOutcome {
        let device = self.registry.device_of(session);
        let resting = || {
            let home = session.addresses.first().and_then(|a| self.config.home(a))?;
            self.config
                .pool_by_id(self.config.resting(home))
                .map(|p| p.gateway_uri.clone())
        };
        OpenOutcome {
            gateway_uri: device
                .map(|d| d.gateway_uri.clone())
                .or_else(resting)
                .map_or_else(String::new, |uri| uri.to_string()),
            session: self.session_view(session, &self.clock.now()),
            enforcement: settled.level(true),
            addresses: settled.addresses,
            revision: self.registry.revision,
        }
    }

    pub(super) fn close(&mut self, ask: Ask<'_>, id: SessionId) -> Result<Decided<CloseOutcome>, Refusal> {
        self.settle_before([], [id]);
        let again = ask.again;
        let Some(session) = self.registry.session(id).cloned().filter(|_| !again) else {
            return Ok(Decided::new(Subject::Nothing, move |w, settled| {
                Ok(CloseOutcome {
                    ended: again,
                    enforcement: settled.level(w.is_durable(None, Some(id))),
                    revision: w.registry.revision,
                })
            }));
        };
        self.end_sessions(&[id], ask.cause());
        Ok(Decided::new(Subject::Closed(session), move |w, settled| {
            Ok(CloseOutcome {
                ended: true,
                enforcement: settled.level(w.is_durable(None, Some(id))),
                revision: w.registry.revision,
            })
        }))
    }

    /// Settles what the batch opens on these addresses: it may be about to end.
    pub(super) fn settle_holders(&mut self, addresses: &[IpAddr]) {
        let of = |a: &IpAddr| self.registry.holders(*a).into_iter().map(|s| s.id).collect::<Vec<_>>();
        let holders: Vec<SessionId> = addresses.iter().flat_map(of).collect();
        self.settle_before([], holders);
    }

    pub(super) fn end_sessions(&mut self, ids: &[SessionId], cause: Cause<'_>) {
        self.settle_before([], ids.iter().copied());
        self.restrict(&[], ids, cause);
    }

    /// Checks a report against the rules and adds it to what is admitted; refused, it leaves no trace there. A session of `kept` is not
    /// ended for it.
    pub(super) fn admit(
        &mut self,
        batch: &mut Admitted,
        index: u32,
        source: &SourceName,
        report: SessionReport,
        kept: &BTreeSet<SessionId>,
        cause: Cause<'_>,
    ) -> Result<(), Refusal> {
        let known = self.identify(&report)?;
        let trust = known.map_or(Trust::Name, |d| trust(d, &report));
        let device = known.map(|d| d.id.clone());
        if let Some(id) = &device {
            self.may_arrive(id, cause)?;
            self.note_claimed(id, source, &report);
        }
        let mut seen = HashSet::new();
        let addresses: Vec<IpAddr> = report.addresses.into_iter().filter(|a| seen.insert(*a)).collect();
        let mut ends: BTreeSet<SessionId> = BTreeSet::new();
        for address in &addresses {
            self.placed(*address)?;
            if let Some(session) = batch.claimed(*address) {
                return Err(taken(*address, session, source));
            }
            let holders = self.registry.holders(*address).into_iter().map(|s| (s.id, s.source.clone()));
            for (holder, held_by) in holders.collect::<Vec<_>>() {
                if batch.ending.contains(&holder) {
                    continue;
                }
                if held_by != *source || kept.contains(&holder) {
                    let refusal = taken(*address, holder, &held_by);
                    if held_by != *source {
                        let asked = device.as_ref().map_or("no name", |id| id.as_str());
                        let address = Shown(*address);
                        let what = format!("source {source} reports {address} for {asked}, but {refusal}");
                        self.note_conflict("address-taken", source, device.as_ref(), &what);
                    }
                    return Err(refusal);
                }
                ends.insert(holder);
            }
        }
        let ending: Vec<Session> = ends.iter().filter_map(|id| self.registry.session(*id).cloned()).collect();
        if let Some(id) = &device {
            let (opening, over) = batch.by_device.get(id).copied().unwrap_or_default();
            let live = self.registry.sessions_of(id).count() as u32 + opening;
            let live = live.saturating_sub(over + ending.iter().filter(|s| s.device.as_ref() == Some(id)).count() as u32);
            if live >= self.config.devices.sessions {
                let refusal = Refusal::SessionLimit {
                    device: id.clone(),
                    live,
                };
                // Perhaps a credential that was copied.
                let what = format!("source {source} reports {}: {refusal}", list(&addresses));
                self.note_conflict("session-limit", source, device.as_ref(), &what);
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
            device,
            addresses: addresses.into_iter().collect(),
            interface: report.interface,
            source: source.clone(),
            trust,
            opened_at: self.clock.now().wall,
        };
        batch.open(index, session);
        Ok(())
    }

    /// Ends and opens what was admitted: what opens is in quarantine until the commit. Returns what opens, and what the kernel refused.
    pub(super) fn stage(&mut self, admitted: Admitted, cause: Cause<'_>) -> Staged {
        let Admitted { opening, ending, .. } = admitted;
        let ending: Vec<SessionId> = ending.into_iter().collect();
        self.end_sessions(&ending, cause);
        let (mut refused, mut opened) = (Vec::new(), Vec::new());
        for (index, session) in opening {
            match self.quarantine(&session) {
                Ok(()) => opened.push((index, session)),
                Err(e) => refused.push((index, refusal(e))),
            }
        }
        let steps = self.connected(&opened);
        let numbers = opened.iter().map(|(index, s)| (*index, s.id)).collect();
        let sessions: Vec<Session> = opened.into_iter().map(|(_, s)| s).collect();
        self.loosen(&steps, &sessions, cause);
        (numbers, refused)
    }

    /// Puts the addresses of a session that is not durable yet into the kernel, without release. Failed, none of them stays.
    fn quarantine(&mut self, session: &Session) -> Result<(), KernelError> {
        let device = self.registry.device_of(session);
        let start = |a: IpAddr| Some(Op::Assign(a, reconcile::unreleased(a, session, device, &self.config)?));
        let ops = session.addresses.iter().filter_map(start).collect();
        let Some((_, error)) = reconcile::apply(ops, self.kernel.as_mut()).failed.into_iter().next() else {
            return Ok(());
        };
        let back = session.addresses.iter().map(Op::Clear).collect();
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
        let step = |d: &Device| transition::step(d, Signal::Connected, &self.context_of(&d.id, now)).ok();
        devices.into_values().filter_map(step).filter(|s| s.changed).collect()
    }

    /// The device that a report means; `None`: one that the registry does not know, where the configuration lets it in.
    pub(super) fn identify(&self, report: &SessionReport) -> Result<Option<&Device>, Refusal> {
        let Some(device) = self.registry.resolve(&report.device_name) else {
            return match self.config.devices.unknown {
                UnknownDevice::Refuse => Err(Refusal::UnknownDevice(report.device_name.clone())),
                UnknownDevice::Quarantine => Ok(None),
            };
        };
        let registered = device.aliases.certificates.is_empty()
            || report.certificate.is_some_and(|c| device.aliases.certificates.contains(&c));
        let registered = registered
            && (device.aliases.vpn_keys.is_empty() || report.vpn_key.is_none_or(|k| device.aliases.vpn_keys.contains(&k)));
        if !registered {
            return Err(Refusal::FingerprintMismatch(device.id.clone()));
        }
        // Another device's certificate does not open a session of this one, even if this one has none registered.
        if self
            .others_with(&device.id, report)
            .any(|other| other.aliases.bind(&device.id))
        {
            return Err(Refusal::FingerprintOfAnother(device.id.clone()));
        }
        Ok(Some(device))
    }

    /// Other devices that are registered with a report's certificate or key.
    fn others_with(&self, id: &DeviceId, report: &SessionReport) -> impl Iterator<Item = &Device> {
        let certificates = report
            .certificate
            .iter()
            .flat_map(|c| self.registry.holders_of_certificate(c));
        let keys = report.vpn_key.iter().flat_map(|k| self.registry.holders_of_key(k));
        let others = certificates.chain(keys).filter(move |other| *other != id);
        others.filter_map(|other| self.registry.device(other))
    }

    /// Remembers that a report's certificate or key is another device's, too, by the word of who may not act on this one.
    fn note_claimed(&mut self, id: &DeviceId, source: &SourceName, report: &SessionReport) {
        if self.others_with(id, report).next().is_some() {
            let what = format!(
                "source {source} reports {id} with a certificate or VPN key that another device is registered with, too, by who may not act on {id}: that does not \
                 count"
            );
            self.note_conflict("alias-outside-scope", source, Some(id), &what);
        }
    }

    /// Live sessions of a device that may have been known by a certificate or key that another has now.
    pub(super) fn known_by_others(&self, overruled: &[Overruled]) -> Vec<SessionId> {
        let all = overruled.iter().flat_map(|o| self.registry.sessions_of(&o.device));
        all.filter(|s| s.trust != Trust::Name).map(|s| s.id).collect()
    }

    /// Live sessions of a device that may have been known by a certificate, key or name that it no longer has.
    pub(super) fn unproved_by(&self, after: &Device) -> Vec<SessionId> {
        let Some(before) = self.registry.device(&after.id) else {
            return Vec::new();
        };
        let (old, new) = (&before.aliases, &after.aliases);
        let certificate = old.certificates.iter().any(|c| !new.certificates.contains(c));
        let key = old.vpn_keys.iter().any(|k| !new.vpn_keys.contains(k));
        let name = old.common_names.iter().any(|n| !new.common_names.contains(n));
        let rests = |s: &&Session| match s.trust {
            Trust::Certificate => certificate,
            Trust::VpnKey => key,
            Trust::Name => name,
        };
        self.registry.sessions_of(&after.id).filter(rests).map(|s| s.id).collect()
    }

    /// The live session that a report opened.
    fn opened_as(&self, source: &SourceName, report: &SessionReport) -> Option<SessionId> {
        let device = self.identify(report).ok()?;
        self.same(device, source, report)
    }

    /// The live session that a report describes.
    pub(super) fn same(&self, device: Option<&Device>, source: &SourceName, report: &SessionReport) -> Option<SessionId> {
        let session = self.registry.holder(*report.addresses.first()?)?;
        let same = session.source == *source
            && session.device.as_ref() == device.map(|d| &d.id)
            && session.interface == report.interface
            && session.trust == device.map_or(Trust::Name, |d| trust(d, report))
            && session.addresses.iter().collect::<BTreeSet<_>>() == report.addresses.iter().copied().collect();
        same.then_some(session.id)
    }

    /// Whether a session of a device may open now. That it was turned away is remembered.
    fn may_arrive(&mut self, id: &DeviceId, cause: Cause<'_>) -> Result<(), Refusal> {
        let now = self.clock.now();
        let Some(device) = self.registry.device(id) else {
            return Ok(());
        };
        let context = self.context_of(id, now);
        let Err(refusal) = transition::may_arrive(device, &context) else {
            return Ok(());
        };
        if matches!(refusal, Refusal::EnrolmentNotOpen(_) | Refusal::EnrolmentClosed(_)) {
            let step = transition::step(device, Signal::TurnedAway, &context)
                .ok()
                .filter(|s| s.changed);
            self.loosen(step.as_slice(), &[], cause.with("arrived outside its window"));
        }
        Err(refusal)
    }

    fn placed(&self, address: IpAddr) -> Result<(), Refusal> {
        if prefix::network(address).is_some() {
            return self.placed_whole(address);
        }
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

    /// A whole /64: in one prefix of a pool, and none of it the gateway's own.
    fn placed_whole(&self, address: IpAddr) -> Result<(), Refusal> {
        let inside = |n: &IpNetwork| n.prefix() <= 64 && n.contains(address);
        if !self.config.pools.iter().flat_map(|p| &p.prefixes).any(inside) {
            return Err(Refusal::AddressOutsidePools(address));
        }
        let mut reserved = self.config.pools.iter().flat_map(|p| &p.reserved);
        match reserved.find(|r| prefix::overlap(**r, address)) {
            Some(reserved) => Err(Refusal::AddressReserved(*reserved)),
            None => Ok(()),
        }
    }
}

/// How well a report says that it is this device.
fn trust(device: &Device, report: &SessionReport) -> Trust {
    if report.certificate.is_some_and(|c| device.aliases.certificates.contains(&c)) {
        Trust::Certificate
    } else if report.vpn_key.is_some_and(|k| device.aliases.vpn_keys.contains(&k)) {
        Trust::VpnKey
    } else {
        Trust::Name
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(|a| Shown(*a).to_string()).collect::<Vec<_>>().join(", ")
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
        KernelError::ClassesFull => Refusal::ClassesFull,
        KernelError::Late | KernelError::System { .. } => Refusal::Kernel(error.to_string()),
    }
}
