//! Group commit. What waits in the queues is decided in turn on memory and collected in a [`Batch`]; one commit makes all of it durable; what
//! loosens goes into the kernel after that (what restricts is there already); one look reads everything back; then everyone is answered.
//! If the commit fails, what loosens is undone in memory and refused, and what restricts stays and is tried again.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{
    Acknowledge, AddressEnforcement, Answer, Enforcement, Refusal, Refused, SignalContext,
    cause::{About, Ask, Cause, START},
    quota::{Count, Patterns},
    requests::{self, Before, Held},
    review::Review,
    turns::Waiting,
    writer::Writer,
};
use crate::{
    kernel::{KernelError, ReadBack},
    model::{Device, DeviceId, Publication, Session, SessionId},
    reconcile::Op,
    store::ChangeSet,
    transition::{Policies, Step},
};

/// How often what is not yet in force is read back again, for callers that wait for it.
pub(super) const AGAIN: Duration = Duration::from_millis(10);

/// After reading back nothing is read back again for so many times as long as it took.
const AGAIN_REST: u32 = 10;
/// But that long at most.
const AGAIN_AT_MOST: Duration = Duration::from_millis(500);

/// What was decided and is not committed yet.
#[derive(Default)]
pub(super) struct Batch {
    /// All of it, in the order in which it was decided.
    pub(super) changes: ChangeSet,
    /// Of it, what stays if the commit fails.
    pub(super) restrictions: ChangeSet,
    /// What loosens, newest last.
    undo: Vec<Undo>,
    /// Devices and sessions of which the commit decides.
    loosened: HashSet<DeviceId>,
    opened: HashSet<SessionId>,
    /// Numbers of the audit's entries that the commit decides of.
    pub(super) entries: Vec<u64>,
    tickets: Vec<Ticket>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.tickets.is_empty()
    }
}

/// What memory had before.
enum Undo {
    Device(DeviceId, Option<Box<Device>>),
    Session(SessionId),
    Policies(Box<Policies>),
    Count(Patterns, Count),
}

/// Someone who waits for an answer.
pub(super) struct Ticket {
    subject: Subject,
    /// Whether it is answered only as enforced, and for how long that is tried.
    acknowledge: Acknowledge,
    until: Instant,
    /// Who waits, and since when.
    client: String,
    since: Instant,
    finish: Finish,
}

type Finish = Box<dyn FnOnce(&mut Writer, Settled)>;

impl Ticket {
    /// Whether its answer asks the kernel.
    fn is_read_back(&self, writer: &Writer) -> bool {
        self.acknowledge == Acknowledge::Enforced && !self.subject.addresses(writer).is_empty()
    }
}

/// What an answer reads back.
#[derive(Clone, Debug)]
pub(super) enum Subject {
    Nothing,
    /// All sessions of a device.
    Device(DeviceId),
    /// The same of each of these; [`Settled::each`] tells them apart.
    Devices(Vec<DeviceId>),
    Opened(SessionId),
    /// The addresses of a session that ended.
    Closed(Session),
}

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The store's words, if it was not committed.
    pub(super) failed: Option<String>,
    /// Whether there was anything to read back.
    pub(super) sessions: bool,
    /// Read back as wanted, everywhere.
    pub(super) in_force: bool,
    /// Each address that was read back.
    pub(super) addresses: Vec<AddressEnforcement>,
    /// Of many devices, each, in their order; the rest is of all.
    pub(super) each: Vec<Self>,
}

impl Settled {
    /// An error for what is not true unless it is durable.
    pub(super) fn durable(&self) -> Result<(), Refusal> {
        self.failed.clone().map_or(Ok(()), |e| Err(Refusal::StoreUnavailable(e)))
    }

    /// How far a change got that is durable or not.
    pub(super) const fn level(&self, durable: bool) -> Enforcement {
        match (durable, self.sessions, self.in_force) {
            (false, ..) => Enforcement::EnforcedNotDurable,
            (true, false, _) => Enforcement::NoSession,
            (true, true, true) => Enforcement::Enforced,
            (true, true, false) => Enforcement::Committed,
        }
    }
}

/// The second half of a command.
type Rendering<T> = Box<dyn FnOnce(&mut Writer, Settled) -> Result<T, Refusal>>;

/// A command that memory has taken: what is read back for it, and what is then its answer.
pub(super) struct Decided<T> {
    pub(super) subject: Subject,
    pub(super) answer: Rendering<T>,
    /// Ended if nobody hears the answer.
    pub(super) unheard: Option<SessionId>,
    /// Of what the key in the answer is made, if it is a new one.
    pub(super) held: Option<Held>,
}

impl<T> Decided<T> {
    pub(super) fn new(subject: Subject, answer: impl FnOnce(&mut Writer, Settled) -> Result<T, Refusal> + 'static) -> Self {
        Self {
            subject,
            answer: Box::new(answer),
            unheard: None,
            held: None,
        }
    }

    /// Its answer has a key that is made of this.
    pub(super) fn holding(self, held: Held) -> Self {
        Self {
            held: Some(held),
            ..self
        }
    }
}

impl Writer {
    /// The first half of a command; the second comes with [`Writer::settle`].
    pub(super) fn command<T: Send + 'static>(
        &mut self,
        context: &SignalContext,
        action: &'static str,
        about: About,
        decide: impl FnOnce(&mut Self, Ask<'_>) -> Result<Decided<T>, Refusal>,
        to: oneshot::Sender<Result<Answer<T>, Refused>>,
    ) {
        if let Some(device) = &about.device {
            self.catch_up(device);
        }
        let first = self.audit.next_number();
        let cause = Cause::of(context, action);
        let ask = |again| Ask {
            context,
            action,
            again,
            held: None,
            reused: false,
        };
        let decided = match self.asked_before(context) {
            Ok(Before::Answered(answer, held)) => return drop(to.send(Ok(requests::again(answer, held.as_ref())))),
            Ok(Before::Never) => decide(self, ask(false)).inspect(|d| self.remember(context, d.held.clone())),
            Ok(Before::UnderWay(held)) => {
                let ask = Ask {
                    held: held.as_ref(),
                    ..ask(true)
                };
                let decided = decide(self, ask);
                if let Ok(Some(held)) = decided.as_ref().map(|d| d.held.clone()) {
                    self.hold(context, held);
                }
                decided
            }
            // A caller that gives one id to two requests must not keep a device released by it.
            Err(refusal) if about.restricts => {
                tracing::warn!(by = cause.by, action, "{refusal}; a restriction is done all the same");
                let ask = Ask {
                    reused: true,
                    ..ask(false)
                };
                decide(self, ask)
            }
            Err(refusal) => Err(refusal),
        };
        let decided = match decided {
            Ok(decided) => decided,
            Err(refusal) => return drop(to.send(Err(self.refuse(refusal, cause, &about)))),
        };
        let entries = first..self.audit.next_number();
        let (owned, unheard, answer) = (context.clone(), decided.unheard, decided.answer);
        let finish: Finish = Box::new(move |w: &mut Self, settled: Settled| {
            let result = answer(w, settled).map(Answer::First);
            let result = result.map_err(|refusal| {
                w.forget(&owned);
                w.refuse_staged(refusal, Cause::of(&owned, action), &about, &entries)
            });
            let heard = to.send(result);
            if let (Err(Ok(_)), Some(id)) = (heard, unheard) {
                w.end_sessions(
                    &[id],
                    Cause::of(&owned, "CloseSession").with("nobody heard that it was opened"),
                );
            }
        });
        self.batch.tickets.push(Ticket {
            subject: decided.subject,
            acknowledge: context.acknowledge,
            until: Instant::now() + context.deadline,
            client: context.by.requester(),
            since: Instant::now(),
            finish,
        });
    }

    /// What loosens, or changes nothing that is enforced: true in memory, in force after the commit, and undone if that fails.
    pub(super) fn loosen(&mut self, steps: &[Step], opened: &[Session], cause: Cause<'_>) {
        let now = self.clock.now();
        let mut set = super::commit::changes(steps, &now);
        for step in steps {
            if step.changed {
                let old = self.registry.take_device(&step.device.id).map(Box::new);
                self.batch.undo.push(Undo::Device(step.device.id.clone(), old));
                self.put(step.device.clone());
                let number = self.audit.of_step(step, now.wall, cause);
                self.batch.entries.push(number);
            }
            self.batch.loosened.insert(step.device.id.clone());
        }
        for session in opened {
            self.batch.undo.push(Undo::Session(session.id));
            self.registry.put_session(session.clone());
            let number = self.audit.of_session(session, true, now.wall, cause);
            self.batch.entries.push(number);
            self.batch.opened.insert(session.id);
            self.batch.loosened.extend(session.device.clone());
            set.opened.insert(session.id, session.clone());
        }
        self.batch.changes.then(set);
    }

    /// The publication in force, or its terms: true in memory, and undone if the commit fails.
    pub(super) fn publish(&mut self, publication: Publication, words: [String; 2], cause: Cause<'_>) {
        let now = self.clock.now();
        self.batch.undo.push(Undo::Policies(Box::new(self.policies.clone())));
        self.policies.publish(publication.clone());
        let number = self
            .audit
            .of_subject(format!("policy revision {}", publication.revision), words, now.wall, cause);
        self.batch.entries.push(number);
        self.batch.changes.then(ChangeSet {
            publications: vec![publication],
            ..ChangeSet::default()
        });
    }

    /// How many devices an MDM had before it registered some.
    pub(super) fn undo_count(&mut self, of: Patterns, before: Count) {
        self.batch.undo.push(Undo::Count(of, before));
    }

    /// What restricts: true at once, and in the kernel next. Returns what the kernel refused; it is repaired later.
    pub(super) fn restrict(&mut self, steps: &[Step], closing: &[SessionId], cause: Cause<'_>) -> Option<KernelError> {
        let clearing: Vec<_> = closing
            .iter()
            .filter_map(|id| self.registry.session(*id))
            .flat_map(|s| s.addresses.iter())
            .collect();
        self.take_restriction(steps, closing, cause);
        let devices: Vec<&DeviceId> = steps.iter().map(|s| &s.device.id).collect();
        self.enforce(&devices, &clearing)
    }

    /// Makes a restriction true in memory, to be committed.
    pub(super) fn take_restriction(&mut self, steps: &[Step], closing: &[SessionId], cause: Cause<'_>) {
        let now = self.clock.now();
        let mut set = super::commit::changes(steps, &now);
        for step in steps.iter().filter(|s| s.changed) {
            self.put(step.device.clone());
            // A clock that another boot measures by is no change of anything.
            if step.from != Some(step.device.state) || cause.action != START {
                self.audit.of_step(step, now.wall, cause);
            }
        }
        for id in closing {
            if let Some(session) = self.registry.remove_session(*id) {
                self.audit.of_session(&session, false, now.wall, cause);
                set.closed.insert(*id);
            }
        }
        self.batch.changes.then(set.clone());
        self.batch.restrictions.then(set);
    }

    /// To be called before a restriction is decided. What the batch would loosen of the same is settled first: were the commit to fail, the
    /// restriction must not rest on it. Nothing waits for it in the kernel, which has none of it yet.
    pub(super) fn settle_before<'a>(
        &mut self,
        devices: impl IntoIterator<Item = &'a DeviceId>,
        sessions: impl IntoIterator<Item = SessionId>,
    ) {
        let staged = devices.into_iter().any(|d| self.batch.loosened.contains(d))
            || sessions.into_iter().any(|s| self.batch.opened.contains(&s));
        if staged {
            self.settle();
        }
    }

    /// Commits what was decided, puts it into the kernel, reads back, and answers; until nothing is left to do.
    pub(super) fn settle(&mut self) {
        while !self.batch.is_empty() {
            let mut batch = std::mem::take(&mut self.batch);
            let (begin, commands) = (Instant::now(), batch.tickets.len());
            if batch.tickets.iter().any(|t| t.is_read_back(self)) {
                self.upkeep.look();
            }
            let failed = self
                .commit_all(std::mem::take(&mut batch.changes), std::mem::take(&mut batch.restrictions))
                .err();
            if failed.is_some() {
                self.undo(&mut batch);
                self.audit.log_waiting();
            } else {
                let devices: Vec<&DeviceId> = batch.loosened.iter().collect();
                self.enforce(&devices, &[]);
            }
            self.answer(batch.tickets, failed.as_deref());
            if commands > 0 {
                self.meters.batches.observe(begin.elapsed().as_secs_f64());
                self.meters.commands.observe(commands as f64);
            }
        }
    }

    /// Callers that wait until something is in force: asks again, and answers those whose time is over.
    pub(super) fn ask_again(&mut self) {
        if self.parked.is_empty() || Instant::now() < self.next_again {
            return;
        }
        if self.kernel_problem.is_some() {
            let devices: BTreeSet<&DeviceId> = self.parked.iter().flat_map(|t| t.subject.devices(self)).collect();
            let devices: Vec<DeviceId> = devices.into_iter().cloned().collect();
            self.enforce(&devices.iter().collect::<Vec<_>>(), &[]);
        }
        let tickets = std::mem::take(&mut self.parked);
        self.answer(tickets, None);
        self.settle();
    }

    /// Answers everyone who still waits, as things stand.
    pub(super) fn answer_parked(&mut self) {
        let mut tickets = std::mem::take(&mut self.parked);
        let over = Instant::now();
        tickets.iter_mut().for_each(|t| t.until = over);
        self.answer(tickets, None);
        self.settle();
    }

    fn undo(&mut self, batch: &mut Batch) {
        let (mut free, mut counts): (Vec<IpAddr>, Vec<_>) = Default::default();
        for undo in batch.undo.drain(..).rev() {
            match undo {
                Undo::Device(id, old) => {
                    drop(self.registry.take_device(&id));
                    if let Some(old) = old {
                        self.put(*old);
                    }
                }
                Undo::Policies(old) => {
                    self.policies = *old;
                    self.review(Review::published());
                }
                Undo::Count(of, count) => counts.push((of, count)),
                Undo::Session(id) => {
                    let session = self.registry.remove_session(id);
                    free.extend(session.iter().flat_map(|s| s.addresses.iter()));
                }
            }
        }
        self.quota.undo(counts, self.registry.device_count());
        self.audit.store_failed(&batch.entries);
        free.retain(|a| !self.registry.is_held(*a));
        self.apply(free.into_iter().map(Op::Clear).collect());
    }

    /// Reads back for all at once, and answers; keeps those that wait for more.
    fn answer(&mut self, tickets: Vec<Ticket>, failed: Option<&str>) {
        let reading = |t: &&Ticket| t.acknowledge == Acknowledge::Enforced;
        let addresses: BTreeSet<IpAddr> = tickets
            .iter()
            .filter(reading)
            .flat_map(|t| t.subject.addresses(self))
            .collect();
        let addresses: Vec<IpAddr> = addresses.into_iter().collect();
        let begin = Instant::now();
        let backs = self.read_back(addresses);
        let instant = Instant::now();
        let mut waiting = Waiting::new(instant);
        self.parked.iter().for_each(|t| waiting.add(&t.client, t.since));
        for ticket in tickets {
            let mut settled = match ticket.acknowledge {
                Acknowledge::Enforced => self.look(&ticket.subject, &backs),
                Acknowledge::Committed => ticket.subject.unseen(self),
            };
            let waits = ticket.acknowledge == Acknowledge::Enforced && settled.sessions && !settled.in_force;
            let waits = waits && failed.is_none() && instant < ticket.until && !self.stopping;
            if waits && waiting.has_room(&ticket.client) {
                waiting.add(&ticket.client, ticket.since);
                self.parked.push(ticket);
                continue;
            }
            settled.failed = failed.map(str::to_owned);
            (ticket.finish)(self, settled);
        }
        // Whoever waits long must not take the thread's time from the others.
        self.next_again = instant + AGAIN.max((instant - begin) * AGAIN_REST).min(AGAIN_AT_MOST);
    }

    fn read_back(&mut self, addresses: Vec<IpAddr>) -> HashMap<IpAddr, Vec<ReadBack>> {
        if addresses.is_empty() {
            return HashMap::new();
        }
        match self.upkeep.read_back(&addresses) {
            Ok(backs) => addresses.into_iter().zip(backs).collect(),
            // Told of once, where it is waited for.
            Err(KernelError::Late) => HashMap::new(),
            Err(e) => {
                tracing::error!(error = %e, "the kernel cannot be read back");
                HashMap::new()
            }
        }
    }

    /// What was read back for one answer.
    fn look(&self, subject: &Subject, backs: &HashMap<IpAddr, Vec<ReadBack>>) -> Settled {
        let mut settled = Settled::default();
        match subject {
            Subject::Nothing => settled.in_force = true,
            Subject::Device(id) => self.look_at(self.registry.sessions_of(id), backs, &mut settled),
            Subject::Devices(ids) => {
                settled.in_force = true;
                for id in ids {
                    let mut one = Settled::default();
                    self.look_at(self.registry.sessions_of(id), backs, &mut one);
                    settled.sessions |= one.sessions;
                    settled.in_force &= one.in_force;
                    settled.each.push(one);
                }
            }
            Subject::Opened(id) => self.look_at(self.registry.session(*id).into_iter(), backs, &mut settled),
            Subject::Closed(session) => {
                settled.sessions = true;
                settled.in_force = session.addresses.iter().all(|a| self.is_back(a, backs));
            }
        }
        settled
    }
}

impl Subject {
    /// Addresses to read.
    fn addresses(&self, writer: &Writer) -> Vec<IpAddr> {
        match self {
            Self::Nothing => Vec::new(),
            Self::Device(id) => addresses_of(writer, id).collect(),
            Self::Devices(ids) => ids.iter().flat_map(|id| addresses_of(writer, id)).collect(),
            Self::Opened(id) => writer
                .registry
                .session(*id)
                .map_or_else(Vec::new, |s| s.addresses.iter().collect()),
            Self::Closed(session) => session.addresses.iter().collect(),
        }
    }

    /// Of what is not read back, whether there would be anything to read.
    fn unseen(&self, writer: &Writer) -> Settled {
        let of = |sessions| Settled {
            sessions,
            ..Settled::default()
        };
        let ids = if let Self::Devices(ids) = self { ids.as_slice() } else { &[] };
        Settled {
            each: ids.iter().map(|id| of(addresses_of(writer, id).next().is_some())).collect(),
            ..of(!self.addresses(writer).is_empty())
        }
    }

    fn devices<'a>(&'a self, writer: &'a Writer) -> Vec<&'a DeviceId> {
        match self {
            Self::Nothing | Self::Closed(_) => Vec::new(),
            Self::Device(id) => vec![id],
            Self::Devices(ids) => ids.iter().collect(),
            Self::Opened(id) => writer
                .registry
                .session(*id)
                .and_then(|s| s.device.as_ref())
                .into_iter()
                .collect(),
        }
    }
}

fn addresses_of<'a>(writer: &'a Writer, device: &'a DeviceId) -> impl Iterator<Item = IpAddr> + 'a {
    writer.registry.sessions_of(device).flat_map(|s| s.addresses.iter())
}
