//! The thread that owns store and kernel: its start, its loop, what it does when time passes, and how the kernel gets what memory has.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{broadcast, mpsc, watch};
use tracing::{error, info, warn};

use super::{commit::Cause, registry::Registry};
use crate::{
    clock::Clock,
    config::Config,
    kernel::{Kernel, KernelError, Link},
    model::{BootTime, DeviceId, Now, SessionId, UriChange, WallTime},
    reconcile::{self, Held, Observed, Op},
    store::{ChangeSet, Store},
    transition::{self, Directory as _, Signal, Step},
};

/// Something for the thread to do.
pub(super) type Job = Box<dyn FnOnce(&mut Writer) + Send>;

/// How the thread keeps time; the defaults are for the daemon.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How often the programs' attachment is checked and repaired. Default 1 s.
    pub check: Duration,
    /// First wait before a commit that failed is tried again; doubled each time. Default 200 ms.
    pub retry: Duration,
    /// Longest such wait. Default 5 s.
    pub retry_max: Duration,
    /// Commands that may wait, beside restrictions; one more is refused as [`Refusal::Busy`]. Default 1,024.
    pub queue: usize,
    /// Restrictions that may wait; one more waits for room. Default 16,384.
    pub urgent_queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            check: Duration::from_secs(1),
            retry: Duration::from_millis(200),
            retry_max: Duration::from_secs(5),
            queue: 1024,
            urgent_queue: 16_384,
        }
    }
}

/// Conflicts that `status` remembers.
const KEPT_CONFLICTS: usize = 16;
/// How long after a failure of the kernel everything is compared and put right.
const REPAIR_AFTER: Duration = Duration::from_secs(5);

/// After a check of the attachment nothing is checked for so many times as long as that took, unless the interfaces change.
const CHECK_REST: u32 = 4;

/// All that the thread owns.
pub(super) struct Writer {
    pub(super) config: Arc<Config>,
    pub(super) store: Box<dyn Store>,
    pub(super) kernel: Box<dyn Kernel>,
    pub(super) clock: Box<dyn Clock>,
    pub(super) links: Vec<Link>,
    pub(super) registry: Registry,
    /// In force, not durable.
    pub(super) pending: ChangeSet,
    /// What the store last said, if it was not "done".
    pub(super) store_problem: Option<String>,
    /// What the kernel last refused; cleared by a pass of reconciling that went through.
    pub(super) kernel_problem: Option<String>,
    pub(super) conflicts: VecDeque<(WallTime, String)>,
    pub(super) uris: broadcast::Sender<UriChange>,
    pub(super) started_at: WallTime,
    pub(super) stopping: bool,
    pub(super) options: Options,
    /// The programs' word for the first end of a lease, as last set.
    earliest: Option<BootTime>,
    next_check: Instant,
    pub(super) next_retry: Instant,
    next_repair: Instant,
    pub(super) backoff: Duration,
}

impl Writer {
    /// Loads the store and puts the kernel right: afterwards every live session is judged as it should be, and nothing else is assigned.
    pub(super) fn start(start: super::Start, uris: broadcast::Sender<UriChange>) -> Result<Self, super::StartError> {
        let super::Start {
            config,
            mut store,
            kernel,
            clock,
            links,
            options,
        } = start;
        let now = clock.now();
        let snapshot = store.load()?;
        let instant = Instant::now();
        let mut writer = Self {
            registry: Registry::new(snapshot, &now),
            started_at: now.wall,
            config,
            store,
            kernel,
            clock,
            links,
            pending: ChangeSet::default(),
            store_problem: None,
            kernel_problem: None,
            conflicts: VecDeque::new(),
            uris,
            stopping: false,
            options,
            earliest: None,
            next_check: instant + options.check,
            next_retry: instant,
            next_repair: instant,
            backoff: options.retry,
        };
        let (steps, closing) = writer.outdated(&now);
        // Until all is compared, the programs look at every lease.
        writer.apply(vec![Op::EarliestLeaseEnd(Some(BootTime(0)))]);
        let changes = writer.take_restriction(&steps, &closing, &now);
        writer.reconcile()?;
        writer.commit_restriction(changes, &steps, &closing, Cause::GATEWAY);
        let links = writer.links.clone();
        reconcile::apply(vec![Op::Links(links)], writer.kernel.as_mut());
        info!(
            devices = writer.registry.device_count(),
            sessions = writer.registry.session_count(),
            revision = writer.registry.revision.0,
            "the controller is ready"
        );
        Ok(writer)
    }

    /// Takes commands until there is nobody left to send any, or it is told to stop.
    pub(super) async fn run(
        mut self,
        mut urgent: mpsc::Receiver<Job>,
        mut normal: mpsc::Receiver<Job>,
        mut links: watch::Receiver<Vec<Link>>,
    ) {
        let mut linked = true;
        loop {
            // Looked at first: a busy queue must not keep an interface waiting.
            if links.has_changed().unwrap_or(false) {
                self.links = links.borrow_and_update().clone();
                self.next_check = Instant::now();
            }
            let wake = self.wake();
            let (job, restricts) = tokio::select! {
                biased;
                job = urgent.recv() => match job { Some(job) => (Some(job), true), None => break },
                job = normal.recv() => match job { Some(job) => (Some(job), false), None => break },
                changed = links.changed(), if linked => {
                    linked = changed.is_ok();
                    if linked {
                        links.mark_changed();
                    }
                    continue;
                }
                () = tokio::time::sleep(wake) => (None, false),
            };
            self.end_leases(&self.clock.now());
            // What restricts does not wait for interfaces, floor and routes to be looked after; the rest is answered as these are now.
            if !restricts {
                self.maintain();
            }
            if let Some(job) = job {
                job(&mut self);
            }
            if restricts {
                self.maintain();
            }
            if self.stopping {
                urgent.close();
                normal.close();
            }
        }
        // Both queues belong to the same handles, so what is left came before the end.
        urgent.close();
        normal.close();
        while let Ok(job) = urgent.try_recv() {
            job(&mut self);
        }
        while let Ok(job) = normal.try_recv() {
            job(&mut self);
        }
        if !self.pending.is_empty() && self.flush().is_err() {
            error!(
                not_durable = self.not_durable(),
                "stopping with restrictions that are in force but not committed"
            );
        }
        info!(
            revision = self.registry.revision.0,
            "the controller has stopped; the kernel goes on as it is"
        );
    }

    /// Puts the sessions of these devices, and addresses that nobody holds any more, into the kernel as they should be now. Returns the
    /// first failure; it is repaired later.
    pub(super) fn enforce(&mut self, devices: &[&DeviceId], cleared: &[IpAddr]) -> Option<KernelError> {
        let now = self.clock.now();
        let sessions = devices
            .iter()
            .flat_map(|id| self.registry.sessions_of(id))
            .map(|s| (s, self.registry.device_of(s)));
        // While the kernel may still have a lease that memory has not, the programs go on looking at it.
        let earliest = match &self.kernel_problem {
            None => self.registry.earliest_lease(),
            Some(_) => reconcile::sooner(self.registry.earliest_lease(), self.earliest),
        };
        let wanted = reconcile::desired(sessions, earliest, &now, &self.config);
        let free = cleared.iter().filter(|a| self.registry.holder(**a).is_none());
        let found = Observed {
            addresses: free.map(|a| (*a, Held::default())).collect(),
            earliest: self.earliest,
        };
        let ops = reconcile::plan(&wanted, &found, &self.config);
        self.apply(ops)
    }

    /// Applies what a plan says; what fails is repaired later. Returns the first failure.
    pub(super) fn apply(&mut self, ops: Vec<Op>) -> Option<KernelError> {
        let applied = reconcile::apply(ops, self.kernel.as_mut());
        self.earliest = applied.earliest.unwrap_or(self.earliest);
        for (op, e) in &applied.failed {
            error!(operation = ?op, error = %e, "the kernel refused; it is tried again");
            self.kernel_problem = Some(e.to_string());
            self.next_repair = Instant::now() + REPAIR_AFTER.min(self.options.check);
        }
        applied.failed.into_iter().next().map(|(_, e)| e)
    }

    pub(super) fn note_conflict(&mut self, what: String) {
        warn!("{what}");
        if self.conflicts.len() == KEPT_CONFLICTS {
            self.conflicts.pop_front();
        }
        self.conflicts.push_back((self.clock.now().wall, what));
    }

    /// Tries again what failed, looks after the links: whatever is due.
    fn maintain(&mut self) {
        let instant = Instant::now();
        if !self.pending.is_empty()
            && instant >= self.next_retry
            && let Err(e) = self.flush()
        {
            error!(error = %e, not_durable = self.not_durable(), "restrictions are in force but still not durable");
        }
        if instant >= self.next_check {
            let links = self.links.clone();
            reconcile::apply(vec![Op::Links(links)], self.kernel.as_mut());
            // Where something hangs, it must not hold what restricts most of the time.
            let rest = self.options.check.max(instant.elapsed() * CHECK_REST);
            self.next_check = Instant::now() + rest;
        }
        if self.kernel_problem.is_some() && instant >= self.next_repair {
            self.next_repair = instant + REPAIR_AFTER;
            if let Err(e) = self.reconcile() {
                error!(error = %e, "the kernel's tables cannot be read; it is tried again");
            }
        }
    }

    fn wake(&self) -> Duration {
        let instant = Instant::now();
        let mut wake = self.next_check.saturating_duration_since(instant);
        if !self.pending.is_empty() {
            wake = wake.min(self.next_retry.saturating_duration_since(instant));
        }
        if let Some(end) = self.registry.earliest_lease() {
            wake = wake.min(Duration::from_nanos(end.0.saturating_sub(self.clock.now().boot.0)));
        }
        wake
    }

    fn end_leases(&mut self, now: &Now) {
        let over = self.registry.over(now);
        if over.is_empty() {
            return;
        }
        let end = |id| transition::step(self.registry.device(id)?, Signal::LeaseEnded, *now, &self.config).ok();
        let steps: Vec<Step> = over.iter().filter_map(end).collect();
        self.restrict(&steps, &[], Cause::GATEWAY);
    }

    /// What a start has to put right: leases of another boot, devices and sessions whose pools are gone.
    fn outdated(&self, now: &Now) -> (Vec<Step>, Vec<SessionId>) {
        let step = |d| {
            transition::step(d, Signal::Start, *now, &self.config)
                .ok()
                .filter(|s| s.changed)
        };
        let steps = self.registry.devices_after(None).filter_map(step).collect();
        let homeless = |s: &&crate::model::Session| s.addresses.iter().any(|a| self.config.home(*a).is_none());
        let closing: Vec<SessionId> = self.registry.sessions_after(None).filter(homeless).map(|s| s.id).collect();
        for id in &closing {
            warn!(
                session = id.0,
                "a session ends: the configuration has no pool for one of its addresses"
            );
        }
        (steps, closing)
    }

    /// Compares everything, and puts right what differs.
    fn reconcile(&mut self) -> Result<(), KernelError> {
        let now = self.clock.now();
        let mut found = reconcile::observe(self.kernel.as_ref(), self.earliest)?;
        // The pool after a lease cannot be read back, so what is leased is set anew.
        found
            .addresses
            .values_mut()
            .filter(|h| h.lease_end.is_some())
            .for_each(|h| h.session = None);
        let wanted = reconcile::desired(self.registry.live(), self.registry.earliest_lease(), &now, &self.config);
        let ops = reconcile::plan(&wanted, &found, &self.config);
        if self.apply(ops).is_none() {
            self.kernel_problem = None;
        }
        Ok(())
    }
}
