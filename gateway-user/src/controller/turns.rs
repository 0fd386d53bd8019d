//! Whose turn it is at the controller's thread. What restricts goes first; but however much of it waits, everything else gets a share of the
//! time: who can make restrictions wait in thousands must not stop sessions, signals, lists and questions of others. What comes by streams
//! has a queue of its own behind that of single calls, in which each client has only so many places: further signals wait in their streams.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{Refusal, writer::Job};

/// After so long of nothing but restrictions everything else has a share.
const TURN: Duration = Duration::from_millis(20);
/// How long each part of it then goes on, beyond its first job.
const SHARE: Duration = Duration::from_millis(10);
/// Signals that one client's streams may have waiting for the thread, and as many restrictions.
const OF_ONE_CLIENT: usize = 512;

/// What waits for the thread.
pub(super) struct Queues {
    /// What restricts.
    pub(super) urgent: mpsc::Receiver<Job>,
    /// Everything else, by single calls.
    pub(super) normal: mpsc::Receiver<Job>,
    /// And by streams.
    pub(super) bulk: mpsc::Receiver<Job>,
}

impl Queues {
    /// Nothing more is taken in.
    pub(super) fn close(&mut self) {
        self.urgent.close();
        self.normal.close();
        self.bulk.close();
    }

    /// What is left, restrictions first.
    pub(super) fn left(&mut self) -> Option<Job> {
        let Self { urgent, normal, bulk } = self;
        [urgent, normal, bulk].into_iter().find_map(|queue| queue.try_recv().ok())
    }
}

/// When everything but restrictions last had its turn.
pub(super) struct Turn {
    last: Instant,
    due: bool,
    whole: bool,
}

impl Turn {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: now,
            due: false,
            whole: true,
        }
    }

    /// A batch begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.due = now.saturating_duration_since(self.last) >= TURN;
        self.whole = true;
    }

    /// Whether what comes next is done now. `free`: nothing that restricts waits.
    pub(super) const fn may(&mut self, free: bool) -> bool {
        self.whole &= free;
        free || self.due
    }

    /// What is done although something restricts waits.
    pub(super) fn share(&self, now: Instant) -> Share {
        Share {
            first: self.due,
            until: self.due.then(|| now + SHARE),
        }
    }

    /// A batch is at its end.
    pub(super) fn end(&mut self, now: Instant) {
        if self.due || self.whole {
            self.last = now;
        }
    }
}

/// A part of a turn: one job at least, if there is any at all.
pub(super) struct Share {
    first: bool,
    until: Option<Instant>,
}

impl Share {
    pub(super) fn left(&mut self) -> bool {
        std::mem::take(&mut self.first) || self.until.is_some_and(|until| Instant::now() < until)
    }
}

/// How much of what one client's streams tell may wait for the thread at a time.
#[derive(Clone, Debug)]
pub struct Line {
    signals: Arc<Semaphore>,
    restrictions: Arc<Semaphore>,
}

impl Default for Line {
    fn default() -> Self {
        let places = || Arc::new(Semaphore::new(OF_ONE_CLIENT));
        Self {
            signals: places(),
            restrictions: places(),
        }
    }
}

impl Line {
    /// Waits for a place, which is given back once the job is done.
    ///
    /// # Errors
    /// [`Refusal::Busy`]: never, as long as nobody closes it.
    pub(super) async fn place(&self, restricts: bool) -> Result<OwnedSemaphorePermit, Refusal> {
        let places = if restricts { &self.restrictions } else { &self.signals };
        Arc::clone(places).acquire_owned().await.map_err(|_| Refusal::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_due_when_restrictions_have_had_the_thread_for_a_turn() {
        let start = Instant::now();
        let mut turn = Turn::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        turn.begin(at(19));
        assert!(!turn.may(false) && turn.may(true) && !turn.share(at(19)).left());
        turn.end(at(19));
        turn.begin(at(20));
        assert!(turn.may(false), "the one before was not whole");
        let mut share = turn.share(Instant::now() - SHARE);
        assert!(share.left(), "one at least");
        assert!(!share.left());
        turn.end(at(90));
        turn.begin(at(109));
        assert!(turn.may(true) && !turn.may(false));
        turn.end(at(109));
        turn.begin(at(110));
        assert!(turn.may(false));
        turn.end(at(110));
        turn.begin(at(129));
        assert!(turn.may(true));
        turn.end(at(129));
        turn.begin(at(140));
        assert!(!turn.may(false), "the one before was whole");
    }
}
