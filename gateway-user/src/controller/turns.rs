//! Whose turn it is at the controller's thread. What restricts goes first; but however much of it waits, everything else gets a share of the
//! time: who can make restrictions wait in thousands must not stop sessions, signals, lists and questions of others. What comes by streams
//! has a queue of its own behind that of single calls, in which each client has only so many places: further signals wait in their streams.

use std::{
    collections::HashMap,
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

/// Answers of one client that wait at a time until what they tell of is in force.
const WAITING: usize = 4096;
/// And so many of them for longer than [`LONG`]: a connection has room for more calls than that.
const WAITING_LONG: usize = 32;
/// After so long it is not expected any more to be in force soon.
const LONG: Duration = Duration::from_secs(1);

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

/// Answers that wait until what they tell of is in force: of each client only so many, since they take its room for further requests.
pub(super) struct Waiting {
    now: Instant,
    /// All of a client's, and those that have waited for long.
    clients: HashMap<String, [usize; 2]>,
}

impl Waiting {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            now,
            clients: HashMap::new(),
        }
    }

    /// One of a client's has waited since then.
    pub(super) fn add(&mut self, client: &str, since: Instant) {
        let long = usize::from(self.now.saturating_duration_since(since) >= LONG);
        match self.clients.get_mut(client) {
            Some(own) => *own = [own[0] + 1, own[1] + long],
            None => drop(self.clients.insert(client.to_owned(), [1, long])),
        }
    }

    /// Whether one more of a client's may wait.
    pub(super) fn has_room(&self, client: &str) -> bool {
        let own = self.clients.get(client);
        own.is_none_or(|[all, long]| *all < WAITING && *long < WAITING_LONG)
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

    #[test]
    fn few_answers_of_a_client_wait_for_long() {
        let now = Instant::now();
        let mut waiting = Waiting::new(now);
        (0..WAITING - 1).for_each(|_| waiting.add("a", now));
        assert!(waiting.has_room("a"));
        waiting.add("a", now);
        assert!(!waiting.has_room("a") && waiting.has_room("b"));
        (1..WAITING_LONG).for_each(|_| waiting.add("b", now - LONG));
        assert!(waiting.has_room("b"));
        waiting.add("b", now - LONG);
        assert!(!waiting.has_room("b"));
    }
}
