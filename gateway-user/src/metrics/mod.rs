//! The exporter: figures of the gateway for Prometheus and whatever reads OpenMetrics, on a loopback port or a Unix socket. It asks the
//! controller one question a scrape, at most once a second, and counts the ledger in the background; it decides nothing.

mod listen;
mod text;

pub use listen::{BindError, Bound};

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::sync::{Mutex, Notify, watch};

use crate::{
    access::live::Access,
    config::Config,
    controller::{Controller, Refusal},
    ledger::Counts,
};

/// A scrape within so long of another gets the same.
const FRESH: Duration = Duration::from_secs(1);
/// The ledger is counted so often at most, and only while someone scrapes.
const LEDGER: Duration = Duration::from_secs(60);
/// Between two slices of the ledger: a million devices take some ten seconds, and nobody waits for them.
const REST: Duration = Duration::from_millis(10);
/// How long the first scrape waits for the first count.
const FIRST: Duration = Duration::from_millis(500);

/// What is exported, and from where. Clones are the same.
#[derive(Clone, Debug)]
pub struct Exporter(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<Config>,
    controller: Controller,
    access: Access,
    last: Mutex<Option<(Instant, Bytes)>>,
    ledger: watch::Sender<Option<(Counts, SystemTime)>>,
    scraped: Notify,
}

impl Exporter {
    /// Of this gateway.
    #[must_use]
    pub fn new(config: Arc<Config>, controller: Controller, access: Access) -> Self {
        Self(Arc::new(Inner {
            config,
            controller,
            access,
            last: Mutex::default(),
            ledger: watch::Sender::new(None),
            scraped: Notify::new(),
        }))
    }

    /// The figures now, as OpenMetrics text.
    ///
    /// # Errors
    /// The controller has no time, or the kernel's counters cannot be read.
    pub async fn scrape(&self) -> Result<Bytes, Refusal> {
        self.0.scraped.notify_one();
        let mut last = self.0.last.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let mut ledger = self.0.ledger.subscribe();
        // Without a count it is left out.
        let counted = tokio::time::timeout(FIRST, ledger.wait_for(Option::is_some)).await;
        let ledger = counted.ok().and_then(Result::ok).and_then(|l| *l);
        let figures = self.0.controller.figures().await?;
        let sample = text::Sample {
            config: Arc::clone(&self.0.config),
            figures,
            access: self.0.access.report(),
            ledger,
        };
        let text = Bytes::from(text::text(sample));
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }

    /// Counts the ledger, for as long as it is polled and someone scrapes.
    async fn count(&self) {
        loop {
            self.0.scraped.notified().await;
            let begin = Instant::now();
            let folded = self.0.controller.fold_devices_at_rest(REST, Counts::default(), Counts::add);
            match folded.await {
                Ok(counts) => drop(self.0.ledger.send_replace(Some((counts, SystemTime::now())))),
                Err(e) => tracing::warn!("the ledger cannot be counted for metrics: {e}"),
            }
            tokio::time::sleep(LEDGER.saturating_sub(begin.elapsed())).await;
        }
    }
}
