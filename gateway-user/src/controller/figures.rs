//! Figures of the controller for metrics: kept as things happen, so that asking for them walks over nothing.

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use super::{Counters, DriftView, Refusal, Status, upkeep::Standing, writer::Writer};
use crate::{audit::Head, model::DeviceState};

/// What metrics show of the controller. Histograms count on while they are shown.
#[derive(Clone, Debug)]
pub struct Figures {
    /// See [`Status`].
    pub status: Status,
    /// What the programs counted.
    pub counters: Counters,
    /// Devices by state.
    pub states: [(DeviceState, u64); DeviceState::ALL.len()],
    /// Without the last differences.
    pub drift: DriftView,
    /// The audit's last entry that is durable.
    pub audit_head: Head,
    /// The kernel has refused something, and it has not been put right yet.
    pub kernel_problem: bool,
    /// The file that gets the audit's entries cannot be written.
    pub audit_log_problem: bool,
    /// Entries that were pruned before they could be written to it.
    pub audit_log_lost: u64,
    /// By how much the clock is behind the last commit, milliseconds.
    pub clock_behind_ms: u64,
    /// How long transactions took.
    pub meters: Meters,
}

/// What the controller's thread measures.
#[derive(Clone, Debug)]
pub struct Meters {
    /// Transactions of the store, seconds, failed ones too.
    pub commits: Histogram,
    /// From a batch's first transaction until all of it is answered or waits, seconds.
    pub batches: Histogram,
    /// Commands of a batch.
    pub commands: Histogram,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            // 0.1 ms to 1.6 s.
            commits: Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            batches: Histogram::new(exponential_buckets(0.000_1, 2.0, 15)),
            // To 512, the most.
            commands: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
        }
    }
}

impl Writer {
    pub(super) fn figures(&self, standing: &Standing) -> Result<Figures, Refusal> {
        let now = self.clock.now().wall;
        let behind = self.clock_behind.map_or(0, |last| last.0.saturating_sub(now.0));
        let states = DeviceState::ALL.into_iter().zip(self.registry.states());
        let log = self.audit_log.state();
        let mut by_state = DeviceState::ALL.map(|s| (s, 0));
        by_state.iter_mut().zip(states).for_each(|(to, from)| *to = from);
        Ok(Figures {
            status: self.status(standing),
            counters: self.counters()?,
            states: by_state,
            drift: DriftView {
                last: Vec::new(),
                ..self.drift()
            },
            audit_head: self.audit_head,
            kernel_problem: self.kernel_problem.is_some(),
            audit_log_problem: log.problem.is_some(),
            audit_log_lost: log.lost,
            clock_behind_ms: u64::try_from(behind).unwrap_or(0),
            meters: self.meters.clone(),
        })
    }
}
