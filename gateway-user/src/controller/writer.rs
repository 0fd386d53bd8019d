//! The thread that owns store and kernel: its start, its loop, and what it does when time passes.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{broadcast, mpsc, watch};
use tracing::{error, info, warn};

use super::{
    Meters, PublicationView,
    batch::{Batch, Ticket},
    cause::{Cause, START},
    conflicts::Conflicts,
    drift::Comparison,
    load::Loaded,
    publication::Waves,
    quota::Quota,
    record::{self, Trail},
    registry::Registry,
    requests::{Given, Requests},
    review::Review,
    synchronise::Synchronise,
    time,
    turns::{Queues, Turn},
    upkeep::{Hurry, Upkeep},
};
use crate::{
    audit::Head,
    clock::Clock,
    config::Config,
    kernel::{Kernel, Link},
    model::{BootTime, DeviceId, Now, SourceName, UriChange, WallTime},
    reconcile::Op,
    store::{ChangeSet, LogHealth, Request, Store},
    transition::{Context, Directory as _, Policies, Signal},
};

/// Something for the thread to do.
pub(super) enum Job {
    /// Decided with others, committed with them, and answered.
    Command(Task),
    /// Answered by itself, from what is committed.
    Question(Task),
}

/// What a job does.
pub(super) type Task = Box<dyn FnOnce(&mut Writer) + Send>;

/// Jobs of a batch at most, of each queue.
const BATCH: usize = 512;

/// How the thread keeps time; the defaults are for the daemon.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often the programs' attachment is checked and repaired. Default 1 s.
    pub check: Duration,
    /// First wait before a commit that failed is tried again; doubled each time. Default 200 ms.
    pub retry: Duration,
    /// Longest such wait. Default 5 s.
    pub retry_max: Duration,
    /// How long the start waits for programs to be attached, if the kernel does not answer; below the service manager's patience. Default 20 s.
    pub begin: Duration,
    /// Commands and questions of single calls that may wait, beside restrictions; one more is refused as [`Refusal::Busy`]. Default 1,024:
    /// more than calls are worked on at a time.
    pub queue: usize,
    /// Commands of streams that may wait, beside restrictions; one more waits for room. Default 1,024.
    pub bulk_queue: usize,
    /// Restrictions that may wait; one more waits for room. Default 16,384.
    pub urgent_queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            check: Duration::from_secs(1),
            retry: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
            begin: Duration::from_secs(20),
            queue: 1024,
            bulk_queue: 1024,
            urgent_queue: 16_384,
        }
    }
}

/// All that the thread owns.
pub(super) struct Writer {
    pub(super) config: Arc<Config>,
    pub(super) store: Box<dyn Store>,
    pub(super) kernel: Box<dyn Kernel>,
    /// What may have to wait, on other threads.
    pub(super) upkeep: Upkeep,
    pub(super) clock: Box<dyn Clock>,
    pub(super) links: Vec<Link>,
    pub(super) registry: Registry,
    pub(super) quota: Quota,
    pub(super) policies: Policies,
    /// See [`Context::clock_behind`].
    pub(super) clock_behind: Option<WallTime>,
    /// Decided, not committed yet.
    pub(super) batch: Batch,
    /// In force, not durable.
    pub(super) pending: ChangeSet,
    /// What the audit is yet to have.
    pub(super) audit: Trail,
    /// The last entry that is durable.
    pub(super) audit_head: Head,
    /// Wall clock of the last commit.
    pub(super) committed_at: Option<WallTime>,
    /// See [`crate::store::Snapshot::forgotten`].
    pub(super) forgotten: Option<WallTime>,
    /// How the file stands that gets the audit's entries.
    pub(super) audit_log: LogHealth,
    pub(super) requests: Requests,
    pub(super) given: mpsc::Receiver<Given>,
    /// Answers that the next commit takes along.
    pub(super) answers: Vec<Request>,
    /// Since when they wait.
    pub(super) answers_since: Option<Instant>,
    pub(super) questions: VecDeque<Task>,
    pub(super) lists: VecDeque<Synchronise>,
    /// Callers that wait until something is in force.
    pub(super) parked: Vec<Ticket>,
    pub(super) next_again: Instant,
    /// When a source last told of all its sessions.
    pub(super) heard: HashMap<SourceName, BootTime>,
    pub(super) waves: Waves,
    pub(super) comparison: Comparison,
    pub(super) reviewing: Option<Review>,
    /// Devices that memory has by this boot's clock, and the store by another's.
    pub(super) taken_over: Vec<DeviceId>,
    pub(super) progress: watch::Sender<Option<PublicationView>>,
    pub(super) next_progress: BootTime,
    /// When the audit's head is next logged, and the store pruned.
    pub(super) next_head: BootTime,
    pub(super) next_prune: BootTime,
    /// What the store last said, if it was not "done".
    pub(super) store_problem: Option<String>,
    /// What the kernel last refused; cleared by a pass of reconciling that went through.
    pub(super) kernel_problem: Option<String>,
    pub(super) conflicts: Conflicts,
    pub(super) meters: Meters,
    pub(super) uris: broadcast::Sender<UriChange>,
    pub(super) started_at: WallTime,
    pub(super) started_boot: BootTime,
    pub(super) stopping: bool,
    pub(super) options: Options,
    /// The programs' word for the first end of a lease, as last set.
    pub(super) earliest: Option<BootTime>,
    next_check: Instant,
    pub(super) next_retry: Instant,
    pub(super) next_repair: Instant,
    pub(super) backoff: Duration,
    turn: Turn,
}

impl Writer {
    /// Loads the store and puts the kernel right: afterwards every live session is judged as it should be, and nothing else is assigned.
    pub(super) fn start(
        start: super::Start,
        uris: broadcast::Sender<UriChange>,
        hurry: Hurry,
        given: mpsc::Receiver<Given>,
    ) -> Result<Self, super::StartError> {
        let super::Start {
            config,
            loaded,
            kernel,
            clock,
            links,
            options,
        } = start;
        let now = clock.now();
        let Loaded {
            store,
            mut snapshot,
            mut devices,
            audit_log,
        } = loaded;
        let restored = snapshot.restored.is_some();
        let policies = Policies::new(std::mem::take(&mut snapshot.publications));
        let clock_behind = snapshot.committed_at.filter(|last| now.wall < *last);
        let instant = Instant::now();
        let mut writer = Self {
            audit: Trail::new(snapshot.audit_head),
            audit_head: snapshot.audit_head.unwrap_or(Head::NONE),
            committed_at: snapshot.committed_at,
            forgotten: snapshot.forgotten,
            audit_log,
            registry: Registry::new(snapshot),
            quota: Quota::default(),
            policies,
            clock_behind,
            started_at: now.wall,
            started_boot: now.boot,
            config,
            store,
            upkeep: Upkeep::start(kernel.places(), hurry)?,
            kernel,
            clock,
            links,
            batch: Batch::default(),
            pending: ChangeSet::default(),
            requests: Requests::default(),
            given,
            answers: Vec::new(),
            answers_since: None,
            questions: VecDeque::new(),
            lists: VecDeque::new(),
            parked: Vec::new(),
            next_again: instant,
            heard: HashMap::new(),
            waves: Waves::default(),
            comparison: Comparison::new(),
            reviewing: None,
            taken_over: Vec::new(),
            progress: watch::Sender::new(None),
            next_progress: BootTime(0),
            next_head: now.boot,
            next_prune: now.boot,
            store_problem: None,
            kernel_problem: None,
            conflicts: Conflicts::default(),
            meters: Meters::default(),
            uris,
            stopping: false,
            options,
            earliest: None,
            next_check: instant + options.check,
            next_retry: instant,
            next_repair: instant,
            backoff: options.retry,
            turn: Turn::new(instant),
        };
        if let Some(last) = clock_behind {
            warn!(
                behind_ms = last.0.saturating_sub(now.wall.0),
                "the clock is behind the last commit: no release of an earlier boot holds until it has passed it"
            );
        }
        if let Some(warning) = writer.forgetful() {
            warn!("{warning}");
        }
        let (mut steps, taken_over) = if restored {
            (Vec::new(), Vec::new())
        } else {
            writer.tell_of_start(&mut devices, &now)
        };
        writer.fill(devices, &now);
        if restored {
            steps = writer.all_steps(Signal::Restored, &now);
        }
        let mut closing = writer.homeless();
        let misplaced = writer.misplaced();
        closing.extend(misplaced.into_iter().filter(|id| !closing.contains(id)).collect::<Vec<_>>());
        writer.batch.changes.restore_done = restored;
        writer.batch.restrictions.restore_done = restored;
        // Until all is compared, the programs look at every lease.
        writer.apply(vec![Op::EarliestLeaseEnd(Some(BootTime(0)))]);
        writer.take_restriction(&steps, &closing, Cause::gateway(START));
        writer.reconcile()?;
        writer.settle();
        writer.resume_waves(&now);
        // Bound first, so that what is attached finds everyone.
        writer.follow();
        if !writer.upkeep.begin(&writer.links, options.begin) {
            error!(
                waited_s = options.begin.as_secs(),
                "programs are not attached yet: the kernel does not answer, or another program holds its lock of the network configuration. \
                 What was attached before goes on judging, the floor is closed to all else; it is done as soon as the kernel lets it"
            );
        }
        writer.taken_over = taken_over;
        info!(
            devices = writer.registry.device_count(),
            sessions = writer.registry.session_count(),
            revision = writer.registry.revision.0,
            "the controller is ready"
        );
        Ok(writer)
    }

    /// Takes commands until there is nobody left to send any, or it is told to stop.
    pub(super) async fn run(mut self, mut queues: Queues, mut links: watch::Receiver<Vec<Link>>) {
        let mut linked = true;
        loop {
            // Looked at first: a busy queue must not keep an interface waiting.
            if links.has_changed().unwrap_or(false) {
                self.links = links.borrow_and_update().clone();
                self.next_check = Instant::now();
            }
            let wake = if self.lists.is_empty() && self.questions.is_empty() {
                self.wake()
            } else {
                Duration::ZERO
            };
            let (job, restricts) = tokio::select! {
                biased;
                job = queues.urgent.recv() => match job { Some(job) => (Some(job), true), None => break },
                job = queues.normal.recv() => match job { Some(job) => (Some(job), false), None => break },
                job = queues.bulk.recv() => match job { Some(job) => (Some(job), false), None => break },
                changed = links.changed(), if linked => {
                    linked = changed.is_ok();
                    if linked {
                        links.mark_changed();
                    }
                    continue;
                }
                () = tokio::time::sleep(wake) => (None, false),
            };
            self.pass_time();
            // What restricts does not wait for interfaces, floor and routes to be looked after; the rest is answered as these are now.
            if !restricts {
                self.maintain();
            }
            self.collect(job, &mut queues);
            self.settle();
            self.ask_again();
            let mut share = self.turn.share(Instant::now());
            while (queues.urgent.is_empty() || share.left())
                && let Some(question) = self.questions.pop_front()
            {
                question(&mut self);
            }
            if restricts {
                self.maintain();
            }
            if self.turn.may(queues.urgent.is_empty()) {
                self.compare();
            }
            self.turn.end(Instant::now());
            if self.stopping {
                queues.close();
            }
        }
        self.stop(queues);
    }

    /// Decides what waits, restrictions first, so that one commit does for all of it. Nothing is waited for: a lone command is a batch. A
    /// restriction that comes meanwhile ends the batch, unless everything else has waited for long.
    fn collect(&mut self, first: Option<Job>, queues: &mut Queues) {
        self.take_answers();
        let Queues { urgent, normal, bulk } = queues;
        let mut next = first.or_else(|| urgent.try_recv().ok());
        let mut taken = 0;
        while let Some(job) = next {
            self.take_job(job);
            taken += 1;
            next = if taken < BATCH { urgent.try_recv().ok() } else { None };
        }
        self.turn.begin(Instant::now());
        for queue in [normal, bulk] {
            let (mut share, mut taken) = (self.turn.share(Instant::now()), 0);
            while taken < BATCH
                && self.questions.len() < BATCH
                && (urgent.is_empty() || share.left())
                && let Ok(job) = queue.try_recv()
            {
                self.take_job(job);
                taken += 1;
            }
        }
        if self.turn.may(urgent.is_empty()) {
            self.slice();
            self.review_slice();
        }
    }

    fn take_job(&mut self, job: Job) {
        self.take_answers();
        match job {
            Job::Command(decide) => decide(self),
            Job::Question(question) => self.questions.push_back(question),
        }
    }

    /// All queues belong to the same handles, so what is left came before the end.
    fn stop(&mut self, mut queues: Queues) {
        queues.close();
        while let Some(job) = queues.left() {
            self.take_job(job);
        }
        while !self.lists.is_empty() {
            self.slice();
            self.settle();
        }
        self.settle();
        self.answer_parked();
        while let Some(question) = self.questions.pop_front() {
            question(self);
        }
        self.take_answers();
        if self.flush().is_err() {
            error!(
                not_durable = self.not_durable(),
                "stopping with restrictions that are in force but not committed"
            );
        }
        self.log_head();
        info!(
            revision = self.registry.revision.0,
            "the controller has stopped; the kernel goes on as it is"
        );
    }

    /// Tries again what failed, looks after the links: whatever is due.
    fn maintain(&mut self) {
        let instant = Instant::now();
        if self.commit_due().is_some_and(|at| instant >= at) {
            // What failed is in the log already.
            let _ = self.flush();
        }
        if instant >= self.next_check {
            self.look_after();
            self.next_check = instant + self.options.check;
        }
        self.repair(instant);
    }

    /// When what waits for a commit is to have one of its own.
    fn commit_due(&self) -> Option<Instant> {
        if !self.pending.is_empty() {
            return Some(self.next_retry);
        }
        let since = [self.audit.since, self.answers_since].into_iter().flatten().min()?;
        let due = since + record::WITHIN;
        Some(if self.store_problem.is_some() {
            due.max(self.next_retry)
        } else {
            due
        })
    }

    fn wake(&self) -> Duration {
        let instant = Instant::now();
        let mut wake = self.next_check.saturating_duration_since(instant);
        wake = wake.min(self.comparison.next.saturating_duration_since(instant));
        let again = (!self.parked.is_empty()).then_some(self.next_again);
        for at in [self.commit_due(), again, self.review_due(instant)] {
            wake = at.map_or(wake, |at| wake.min(at.saturating_duration_since(instant)));
        }
        if let Some(at) = self.next_time() {
            wake = wake.min(time::until(at, &self.clock.now()));
        }
        wake
    }

    /// What decides now, for no device in particular.
    pub(super) fn context(&self, now: Now) -> Context<'_> {
        Context {
            now,
            config: &self.config,
            policies: &self.policies,
            connected: false,
            clock_behind: self.clock_behind.filter(|last| now.wall < *last),
        }
    }

    /// What decides about this device now.
    pub(super) fn context_of(&self, id: &DeviceId, now: Now) -> Context<'_> {
        Context {
            connected: self.registry.connected(id),
            ..self.context(now)
        }
    }
}
