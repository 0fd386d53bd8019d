//! The connections that are open: whose they are, whether they are idle, and a cord to cut each by.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::pki_types::CertificateDer;
use tokio::sync::oneshot;

use super::{clients::Seen, trust::next_end};

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Connections(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, Open>,
    by_client: HashMap<Arc<str>, usize>,
}

#[derive(Debug)]
struct Open {
    entry: Entry,
    activity: Activity,
    /// When the chain is to be verified again.
    recheck: Option<SystemTime>,
    cord: Option<oneshot::Sender<&'static str>>,
}

/// What is to be known of a connection.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// For logs.
    pub(super) name: String,
    /// Whose connections are counted together, and how many may be open; `None`: they are not counted.
    pub(super) client: Option<(Arc<str>, usize)>,
    /// The chain that was shown, leaf first; empty: none.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The certificate, to be remembered for as long as the connection is open.
    pub(super) seen: Option<Seen>,
    /// How long it may be without a call.
    pub(super) idle: Duration,
}

/// A connection's place among them; dropped, it is free.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    all: Arc<Connections>,
    /// What the connection does.
    pub(super) activity: Activity,
    /// Answers when the connection is to end, with why.
    pub(super) cut: oneshot::Receiver<&'static str>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.all.lock();
        let Some(open) = inner.open.remove(&self.id) else { return };
        if let Some((client, _)) = open.entry.client
            && let Some(n) = inner.by_client.get_mut(&client)
        {
            *n -= 1;
            if *n == 0 {
                inner.by_client.remove(&client);
            }
        }
    }
}

impl Connections {
    /// Takes a connection in; `None`: its client has as many as it may. `valid` is asked while nobody else looks, so that no change of
    /// trust falls between it and the connection's being here.
    pub(super) fn enter(self: &Arc<Self>, entry: Entry, valid: impl FnOnce() -> bool) -> Option<Place> {
        let mut inner = self.lock();
        if !valid() {
            return None;
        }
        if let Some((client, most)) = &entry.client {
            let n = inner.by_client.entry(client.clone()).or_default();
            if *n >= *most {
                return None;
            }
            *n += 1;
        }
        let (cord, cut) = oneshot::channel();
        let id = inner.next;
        inner.next += 1;
        let activity = Activity::default();
        let open = Open {
            activity: activity.clone(),
            recheck: next_end(&entry.chain, SystemTime::now()),
            cord: Some(cord),
            entry,
        };
        inner.open.insert(id, open);
        let all = Arc::clone(self);
        Some(Place { id, all, activity, cut })
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.lock().open.len()
    }

    /// Ends those that have been idle for too long.
    pub(super) fn end_idle(&self) {
        for open in self.lock().open.values_mut() {
            if open.activity.idle().is_some_and(|idle| idle > open.entry.idle) {
                open.end("it was idle");
            }
        }
    }

    /// Verifies chains again and ends the connections of those that are no longer trusted: all, or only those of which something has ended.
    pub(super) fn verify(&self, all: bool, now: SystemTime, trusted: impl Fn(&[CertificateDer<'_>]) -> bool) {
        for open in self.lock().open.values_mut() {
            if open.entry.chain.is_empty() || !(all || open.recheck.is_some_and(|at| at < now)) {
                continue;
            }
            open.recheck = next_end(&open.entry.chain, now);
            if !trusted(&open.entry.chain) {
                open.end("its certificate is no longer trusted");
            }
        }
    }

    /// The certificates of those that are open.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.lock().open.values().filter_map(|o| o.entry.seen.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock leaves half a change behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn end(&mut self, why: &'static str) {
        if let Some(cord) = self.cord.take() {
            tracing::info!(peer = self.entry.name, "a connection is closed: {why}");
            // It may be ending by itself.
            let _ = cord.send(why);
        }
    }
}

/// What a connection does: how many calls are under way, and since when there are none.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Mutex<(u32, Instant)>>);

impl Default for Activity {
    fn default() -> Self {
        Self(Arc::new(Mutex::new((0, Instant::now()))))
    }
}

impl Activity {
    /// A call has begun; it is over when the answer is dropped.
    pub(super) fn call(&self) -> Call {
        self.lock().0 += 1;
        Call(self.clone())
    }

    fn idle(&self) -> Option<Duration> {
        let state = self.lock();
        (state.0 == 0).then(|| state.1.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, (u32, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Call(Activity);

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        *state = (state.0.saturating_sub(1), Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(client: &str, most: usize, idle: Duration) -> Entry {
        Entry {
            name: client.into(),
            client: Some((client.into(), most)),
            chain: vec![CertificateDer::from(client.as_bytes().to_vec())],
            seen: None,
            idle,
        }
    }

    #[test]
    fn each_client_has_its_own_places() {
        let all = Arc::new(Connections::default());
        let enter = |client: &str| all.enter(entry(client, 2, Duration::MAX), || true);
        let (one, two) = (enter("a").unwrap(), enter("a").unwrap());
        assert!(enter("a").is_none());
        let other = enter("b").unwrap();
        drop(one);
        let again = enter("a").unwrap();
        assert!(enter("a").is_none());
        drop((two, other, again));
        assert_eq!((all.len(), all.lock().by_client.len()), (0, 0));
        assert!(all.enter(entry("a", 2, Duration::MAX), || false).is_none());
    }

    #[test]
    fn only_the_idle_end() {
        let all = Arc::new(Connections::default());
        let mut idle = all.enter(entry("idle", 1, Duration::ZERO), || true).unwrap();
        let mut busy = all.enter(entry("busy", 1, Duration::ZERO), || true).unwrap();
        let mut patient = all.enter(entry("patient", 1, Duration::from_secs(60)), || true).unwrap();
        let call = busy.activity.call();
        std::thread::sleep(Duration::from_millis(2));
        all.end_idle();
        assert!(idle.cut.try_recv().is_ok() && busy.cut.try_recv().is_err() && patient.cut.try_recv().is_err());
        drop(call);
        std::thread::sleep(Duration::from_millis(2));
        all.end_idle();
        assert!(busy.cut.try_recv().is_ok());
    }

    #[test]
    fn only_those_no_longer_trusted_end() {
        let all = Arc::new(Connections::default());
        let mut a = all.enter(entry("a", 1, Duration::MAX), || true).unwrap();
        let mut b = all.enter(entry("b", 1, Duration::MAX), || true).unwrap();
        let trusted = |chain: &[CertificateDer<'_>]| chain[0].as_ref() != b"a";
        // Nothing of these chains has an end that could have come.
        all.verify(false, SystemTime::now(), trusted);
        assert!(a.cut.try_recv().is_err());
        all.verify(true, SystemTime::now(), trusted);
        assert!(a.cut.try_recv().is_ok() && b.cut.try_recv().is_err());
    }
}
