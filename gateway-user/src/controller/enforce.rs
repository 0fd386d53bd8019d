//! How the kernel gets what memory has: sessions' addresses as they are judged now, and all of it compared where something failed.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use tracing::error;

use super::writer::Writer;
use crate::{
    kernel::KernelError,
    model::{BootTime, DeviceId},
    reconcile::{self, Held, Observed, Op},
};

/// How long after a failure of the kernel everything is compared and put right.
const REPAIR_AFTER: Duration = Duration::from_secs(5);

impl Writer {
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
            None => self.first_lease_end(),
            Some(_) => reconcile::sooner(self.first_lease_end(), self.earliest),
        };
        let wanted = reconcile::desired(sessions, earliest, &self.context(now));
        let free = cleared.iter().filter(|a| !self.registry.is_held(**a));
        let found = Observed {
            addresses: free.map(|a| (*a, Held::default())).collect(),
            earliest: self.earliest,
        };
        let ops = reconcile::plan(&wanted, &found, &self.config);
        self.apply(ops)
    }

    /// What the programs' word for the first end of a lease should be. While the clock is behind the last commit, and until each device is told
    /// that it no longer is, nobody knows when the leases that it holds back end: the programs look at every one.
    pub(super) fn first_lease_end(&self) -> Option<BootTime> {
        let untold = self.clock_behind.is_some() || self.reviewing.as_ref().is_some_and(|r| r.clock);
        if untold {
            Some(BootTime(0))
        } else {
            self.registry.earliest_lease()
        }
    }

    /// The programs' word for the first end of a lease, as last set.
    pub(super) const fn earliest(&self) -> Option<BootTime> {
        self.earliest
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

    /// Binds sessions to the interfaces that exist now, and has everything else of these looked after by another thread.
    pub(super) fn look_after(&mut self) {
        self.follow();
        self.upkeep.keep(&self.links);
    }

    pub(super) fn follow(&mut self) {
        let links = self.links.clone();
        reconcile::apply(vec![Op::Links(links)], self.kernel.as_mut());
    }

    /// Compares everything again, if the kernel has refused something and it is time.
    pub(super) fn repair(&mut self, instant: Instant) {
        if self.kernel_problem.is_some() && instant >= self.next_repair {
            self.next_repair = instant + REPAIR_AFTER;
            if let Err(e) = self.reconcile() {
                error!(error = %e, "the kernel's tables cannot be read; it is tried again");
            }
        }
    }

    /// Compares everything, and puts right what differs.
    pub(super) fn reconcile(&mut self) -> Result<(), KernelError> {
        let now = self.clock.now();
        let found = reconcile::observe(self.kernel.as_ref(), self.earliest)?;
        let wanted = reconcile::desired(self.registry.live(), self.first_lease_end(), &self.context(now));
        let ops = reconcile::plan(&wanted, &found, &self.config);
        if self.apply(ops).is_none() {
            self.kernel_problem = None;
        }
        Ok(())
    }
}
