//! Drift: memory, which is what the store says, against the kernel's tables and the programs that are attached now. All the time, a part at a
//! time and for a small share of it (what one word changes for everyone, once a second); and wholly, when asked. What differs is put right as memory says, where a release is only what its proof
//! still allows; it is counted, logged as an error with both values, and noted in the audit.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::oneshot::{self, error::TryRecvError};
use tracing::error;

use super::{Difference, DriftView, inspect::hook_name, upkeep::States, writer::Writer};
use crate::{
    kernel::{AddressReading, Assignment, HookPoint, KernelError, ReadBack, TableDifference},
    model::{BootTime, DeviceId, InterfaceName, Now, PoolId, SessionId},
    reconcile::{self, Held, Observed, Op},
};

/// Sessions of one turn: whoever comes meanwhile waits for it.
const AT_ONCE: usize = 25;
/// The same when all is asked for.
const AT_ONCE_ASKED: usize = 200;
/// Between two comparisons of what holds for all addresses, at least.
const TABLES_EVERY: Duration = Duration::from_secs(1);
/// Between two turns at least.
const EVERY: Duration = Duration::from_millis(12);
/// While something else is waited for.
const WAITING: Duration = Duration::from_millis(10);
/// Between two rounds at least.
const ROUND_EVERY: Duration = Duration::from_millis(100);
/// After a turn nothing is compared for so many times as long as it took.
const REST: u32 = 50;
/// How long attaching again is waited for.
const ATTACHING: Duration = Duration::from_secs(5);
/// Differences that are shown.
const SHOWN: usize = 100;

/// Where the comparison stands.
#[derive(Debug)]
pub(super) struct Comparison {
    view: DriftView,
    last: VecDeque<Difference>,
    /// Sessions up to this one are compared; then the tables' parts from this one on are looked over.
    place: Place,
    /// When what holds for all addresses is compared next.
    tables: Instant,
    /// Which part of that.
    part: usize,
    pub(super) next: Instant,
    /// Those who asked for all of it, with what had been found before.
    asked: Vec<Asked>,
    /// Programs that are attached again meanwhile.
    attaching: Option<Attaching>,
}

/// Hooks that had no program of ours, and how interfaces stand after another thread has attached.
#[derive(Debug)]
struct Attaching {
    absent: BTreeSet<(InterfaceName, HookPoint)>,
    told: oneshot::Receiver<States>,
    since: Instant,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Sessions(Option<SessionId>),
    Tables(usize),
}

#[derive(Debug)]
struct Asked {
    before: DriftView,
    to: oneshot::Sender<DriftView>,
}

impl Comparison {
    pub(super) fn new() -> Self {
        Self {
            view: DriftView::default(),
            last: VecDeque::new(),
            place: Place::Sessions(None),
            tables: Instant::now(),
            part: 0,
            next: Instant::now() + EVERY,
            asked: Vec::new(),
            attaching: None,
        }
    }
}

impl Writer {
    /// What was found since the daemon started.
    pub(super) fn drift(&self) -> DriftView {
        DriftView {
            last: self.comparison.last.iter().cloned().collect(),
            ..self.comparison.view.clone()
        }
    }

    /// Compares everything from the beginning, in turns without rest; answers what was found by that.
    pub(super) fn ask_drift(&mut self, to: oneshot::Sender<DriftView>) {
        self.comparison.place = Place::Sessions(None);
        (self.comparison.tables, self.comparison.part) = (Instant::now(), 0);
        self.comparison.next = Instant::now();
        let before = DriftView {
            last: Vec::new(),
            ..self.comparison.view.clone()
        };
        self.comparison.asked.push(Asked { before, to });
    }

    /// A turn, if it is time. The batch is settled: memory is what the store says.
    pub(super) fn compare(&mut self) {
        let begin = Instant::now();
        if begin < self.comparison.next {
            return;
        }
        self.attached_again();
        if begin >= self.comparison.tables {
            let mut next = self.compare_table(self.comparison.part);
            while let (Some(part), false) = (next, self.comparison.asked.is_empty()) {
                next = self.compare_table(part);
            }
            self.comparison.part = next.unwrap_or(0);
            if next.is_none() {
                self.comparison.tables = Instant::now() + TABLES_EVERY;
            }
        }
        // What a clock that has come right lets hold again is put into the kernel by the review.
        let mut done = false;
        if self.kernel_problem.is_none() && !self.reviewing.as_ref().is_some_and(|r| r.clock) {
            match self.turn() {
                Ok(()) => done = true,
                // Told of where it is waited for; the same sessions are compared in the next turn.
                Err(KernelError::Late) => {}
                Err(e) => error!(error = %e, "the kernel's tables cannot be compared"),
            }
        }
        // Whoever has asked and gone hurries nobody.
        self.comparison.asked.retain(|asked| !asked.to.is_closed());
        let rest = if self.comparison.attaching.is_some() || !done && !self.comparison.asked.is_empty() {
            WAITING
        } else if self.comparison.asked.is_empty() {
            let round_over = matches!(self.comparison.place, Place::Sessions(None));
            let least = if round_over { ROUND_EVERY } else { EVERY };
            least.max(begin.elapsed() * REST)
        } else {
            Duration::ZERO
        };
        self.comparison.next = Instant::now() + rest;
    }

    fn turn(&mut self) -> Result<(), KernelError> {
        let now = self.clock.now();
        match self.comparison.place {
            Place::Sessions(after) => {
                let last = self.compare_sessions(after, &now)?;
                self.comparison.place = last.map_or(Place::Tables(0), |id| Place::Sessions(Some(id)));
            }
            Place::Tables(part) => {
                let survey = self.kernel.survey(part)?;
                self.comparison.view.compared += survey.addresses.len() as u64;
                let orphans: Vec<IpAddr> = survey.addresses.into_iter().filter(|a| !self.registry.is_held(*a)).collect();
                self.put_to_rest(&orphans)?;
                match survey.next {
                    Some(next) => self.comparison.place = Place::Tables(next),
                    // Whoever asked is told of what comes of attaching again, too.
                    None if self.comparison.attaching.is_some() && !self.comparison.asked.is_empty() => {}
                    None => self.round_done(&now),
                }
            }
        }
        Ok(())
    }

    /// All that the tables say beside addresses and sessions.
    fn compare_tables(&mut self) {
        let mut part = Some(0);
        while let Some(next) = part {
            part = self.compare_table(next);
        }
    }

    /// A part of it, against what this daemon wrote there: none of it is decided here. Returns the next part.
    fn compare_table(&mut self, part: usize) -> Option<usize> {
        let mut found = Vec::new();
        let next = self.kernel.compare_tables(part, &mut found).unwrap_or_else(|e| {
            error!(error = %e, "the kernel's tables cannot be compared");
            None
        });
        for TableDifference {
            subject,
            found,
            wanted,
            repaired,
        } in found
        {
            // One that stays so is told once.
            let known = self.comparison.last.iter().any(|d| d.subject == subject && !d.repaired);
            if repaired || !known {
                self.note(subject, None, wanted, found, repaired);
            }
        }
        next
    }

    fn round_done(&mut self, now: &Now) {
        let comparison = &mut self.comparison;
        comparison.place = Place::Sessions(None);
        comparison.view.round_at = Some(now.wall);
        for Asked { before, to } in std::mem::take(&mut comparison.asked) {
            let found = comparison.view.found - before.found;
            let last = comparison
                .last
                .iter()
                .take(usize::try_from(found).unwrap_or(SHOWN))
                .cloned()
                .collect();
            // Whoever asked may have gone.
            let _ = to.send(DriftView {
                compared: comparison.view.compared - before.compared,
                found,
                repaired: comparison.view.repaired - before.repaired,
                round_at: comparison.view.round_at,
                last,
            });
        }
    }

    /// Compares the next sessions' addresses; the last session, if there may be more.
    fn compare_sessions(&mut self, after: Option<SessionId>, now: &Now) -> Result<Option<SessionId>, KernelError> {
        let mut wanted: BTreeMap<IpAddr, (Assignment, Option<DeviceId>)> = BTreeMap::new();
        let (mut seen, mut last) = (0, None);
        let at_once = if self.comparison.asked.is_empty() {
            AT_ONCE
        } else {
            AT_ONCE_ASKED
        };
        for session in self.registry.sessions_after(after).take(at_once) {
            seen += 1;
            last = Some(session.id);
            let device = self.registry.device_of(session);
            // A lease that has ended since time last passed here has ended in the kernel by its record alone.
            if device.is_some_and(|d| self.registry.is_due(&d.id, now)) {
                continue;
            }
            for address in session.addresses.iter() {
                if let Some(to) = reconcile::assignment(address, session, device, &self.context(*now)) {
                    wanted.insert(address, (to, session.device.clone()));
                }
            }
        }
        let addresses: Vec<IpAddr> = wanted.keys().copied().collect();
        let readings = self.kernel.read_all(&addresses)?;
        let backs = self.upkeep.read_back(&addresses)?;
        self.comparison.view.compared += addresses.len() as u64;
        let mut wrong: BTreeSet<IpAddr> = BTreeSet::new();
        let mut absent: BTreeSet<(InterfaceName, HookPoint)> = BTreeSet::new();
        for ((address, reading), backs) in addresses.iter().zip(&readings).zip(&backs) {
            let Some((to, _)) = wanted.get(address) else { continue };
            absent.extend(
                backs
                    .iter()
                    .filter(|b| b.reading.is_none())
                    .map(|b| (b.interface.clone(), b.hook)),
            );
            if !holds(reading, to, now) || backs.iter().any(|b| elsewhere(b, to)) {
                wrong.insert(*address);
            }
        }
        if !wrong.is_empty() {
            let of = |a: &IpAddr| wanted.get(a).map(|(to, device)| (*a, to.clone(), device.clone()));
            let what: Vec<_> = wrong.iter().filter_map(of).collect();
            let found: Vec<String> = addresses
                .iter()
                .zip(readings.iter().zip(&backs))
                .filter(|(a, _)| wrong.contains(a))
                .map(|(_, (reading, backs))| self.words_of(reading, backs))
                .collect();
            self.put_right(what, found, now)?;
        }
        self.attach_again(absent);
        Ok(last.filter(|_| seen == at_once))
    }

    /// Sessions' addresses that are not as memory says.
    fn put_right(
        &mut self,
        what: Vec<(IpAddr, Assignment, Option<DeviceId>)>,
        found: Vec<String>,
        now: &Now,
    ) -> Result<(), KernelError> {
        // An address is judged by what its class means, too.
        self.compare_tables();
        self.kernel.recount();
        let desired = reconcile::Desired {
            addresses: what.iter().map(|(a, to, _)| (*a, to.clone())).collect(),
            earliest: self.first_lease_end(),
        };
        // The programs look at every lease of these before one appears.
        let observed = Observed {
            addresses: what.iter().map(|(a, ..)| (*a, Held::default())).collect(),
            earliest: self.earliest(),
        };
        let ops = reconcile::plan(&desired, &observed, &self.config);
        self.apply(ops);
        let addresses: Vec<IpAddr> = what.iter().map(|(a, ..)| *a).collect();
        let after = self.kernel.read_all(&addresses)?;
        for (((address, to, device), found), after) in what.into_iter().zip(found).zip(after) {
            let wanted = self.words(Some(to.pool), Some(to.session), Some(&to.interface), to.lease);
            let repaired = holds(&after, &to, now);
            self.note(address.to_string(), device, wanted, found, repaired);
        }
        Ok(())
    }

    /// Addresses that no session accounts for.
    fn put_to_rest(&mut self, orphans: &[IpAddr]) -> Result<(), KernelError> {
        if orphans.is_empty() {
            return Ok(());
        }
        let before = self.kernel.read_all(orphans)?;
        self.compare_tables();
        self.kernel.recount();
        self.apply(orphans.iter().map(|a| Op::Clear(*a)).collect());
        let after = self.kernel.read_all(orphans)?;
        for ((address, before), after) in orphans.iter().zip(before).zip(after) {
            let rest = self.config.home(*address).map(|home| self.config.resting(home));
            let (found, wanted) = (self.words_of(&before, &[]), self.words(rest, None, None, None));
            self.note(
                address.to_string(),
                None,
                wanted,
                found,
                after.pool == rest && after.session.is_none(),
            );
        }
        Ok(())
    }

    /// Hooks without a program of ours: has them attached, by another thread.
    fn attach_again(&mut self, absent: BTreeSet<(InterfaceName, HookPoint)>) {
        if absent.is_empty() || self.comparison.attaching.is_some() {
            return;
        }
        self.look_after();
        self.comparison.attaching = Some(Attaching {
            absent,
            told: self.upkeep.keeper().states(),
            since: Instant::now(),
        });
    }

    /// Notes what came of it. Where the kernel does not say for so long, it is noted as not repaired.
    fn attached_again(&mut self) {
        let Some(mut attaching) = self.comparison.attaching.take() else {
            return;
        };
        let states = match attaching.told.try_recv() {
            Ok(Ok(states)) => states,
            answer @ (Ok(Err(_)) | Err(TryRecvError::Empty)) if attaching.since.elapsed() < ATTACHING => {
                // Not known is neither put right nor not: asked again.
                if answer.is_ok() {
                    attaching.told = self.upkeep.keeper().states();
                }
                self.comparison.attaching = Some(attaching);
                return;
            }
            _ => Vec::new(),
        };
        for (interface, hook) in &attaching.absent {
            let attached = states
                .iter()
                .filter(|s| s.name == interface.as_str())
                .flat_map(|s| &s.hooks)
                .any(|h| h.hook == *hook && h.program_id.is_some());
            // One that stays so is told once.
            let subject = format!("{interface}, {}", hook_name(*hook));
            let known = self.comparison.last.iter().any(|d| d.subject == subject && !d.repaired);
            if attached || !known {
                self.note(subject, None, "a program of ours".to_owned(), "none".to_owned(), attached);
            }
        }
    }

    fn note(&mut self, subject: String, device: Option<DeviceId>, wanted: String, found: String, repaired: bool) {
        error!(
            subject,
            device = device.as_ref().map_or("", |d| d.as_str()),
            wanted,
            found,
            repaired,
            "drift: the kernel had something else than the store says"
        );
        let at = self.clock.now().wall;
        self.audit
            .of_drift(&subject, device.as_ref(), [&found, &wanted], repaired, at);
        let comparison = &mut self.comparison;
        comparison.view.found += 1;
        comparison.view.repaired += u64::from(repaired);
        comparison.last.push_front(Difference {
            at,
            subject,
            device,
            wanted,
            found,
            repaired,
        });
        comparison.last.truncate(SHOWN);
    }

    fn words_of(&self, reading: &AddressReading, backs: &[ReadBack]) -> String {
        let mut words = self.words(
            reading.pool,
            reading.session,
            reading.interface.as_ref(),
            reading.lease_end.zip(reading.fallback),
        );
        let mut others: BTreeSet<Option<PoolId>> = backs.iter().filter_map(|b| b.reading).map(|r| r.pool).collect();
        others.remove(&reading.pool);
        for pool in others {
            words.push_str("; by an attached program ");
            words.push_str(&self.words(pool, None, None, None));
        }
        words
    }

    fn words(
        &self,
        pool: Option<PoolId>,
        session: Option<SessionId>,
        interface: Option<&InterfaceName>,
        lease: Option<(BootTime, PoolId)>,
    ) -> String {
        let name = |p: PoolId| {
            let known = self.config.pool_by_id(p);
            known.map_or_else(|| format!("number {}", p.0), |p| p.name.to_string())
        };
        let mut words = format!("pool {}", pool.map_or_else(|| "none".to_owned(), name));
        let mut more = |what: &str, value: Option<String>| {
            if let Some(value) = value {
                words.push_str(&format!(", {what} {value}"));
            }
        };
        more("session", session.map(|s| s.to_string()));
        more("interface", interface.map(ToString::to_string));
        let until = |(end, then): (BootTime, PoolId)| format!("{} ns of boot, then pool {}", end.0, name(then));
        more("lease until", lease.map(until));
        words
    }
}

/// Whether an address has what it should have. A lease that ends about now may be read either way.
fn holds(reading: &AddressReading, to: &Assignment, now: &Now) -> bool {
    let over = to
        .lease
        .is_some_and(|(end, _)| end.0 <= now.boot.0.saturating_add(1_000_000_000));
    let pool = reading.pool == Some(to.pool) || (over && reading.pool == to.lease.map(|l| l.1));
    pool && reading.session == Some(to.session)
        && reading.interface.as_ref() == Some(&to.interface)
        && reading.lease_end.zip(reading.fallback) == to.lease
}

/// Whether an attached program judges by something else.
fn elsewhere(back: &ReadBack, to: &Assignment) -> bool {
    let fallback = to.lease.map(|l| l.1);
    back.reading
        .is_some_and(|r| r.pool != Some(to.pool) && (fallback.is_none() || r.pool != fallback))
}
