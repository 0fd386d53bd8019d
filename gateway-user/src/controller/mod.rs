//! The single writer: takes commands from the API and sets of links from netlink, asks [`crate::transition`] what follows, commits it,
//! puts it into the kernel by [`crate::reconcile`], reads it back, and answers. One thread owns store and kernel; everyone else holds a
//! [`Controller`], a handle to its queues.

mod batch;
mod bounds;
mod cause;
mod commands;
mod commit;
mod conflicts;
mod dossier;
mod drift;
mod enforce;
mod exceptions;
mod figures;
mod holders;
mod inspect;
mod keys;
mod load;
mod policy;
mod publication;
mod questions;
mod quota;
mod record;
mod registry;
mod requests;
mod review;
mod sessions;
mod signals;
mod sources;
mod synchronise;
mod time;
mod turns;
mod types;
mod upkeep;
mod writer;

use std::{fmt, io, sync::Arc, thread};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use figures::{Figures, Meters};
pub use keys::{InvalidPolicyKey, PolicyKey};
pub use load::Loaded;
pub use turns::Line;
pub use types::*;
pub use writer::Options;

use crate::{
    clock::Clock,
    config::Config,
    kernel::{Kernel, KernelError, Link},
    store::StoreError,
};
pub use crate::{model::UriChange, refusal::Refusal, store::AuditQuery, transition::Registration};
use commands::Queue;
use requests::Given;
use turns::Queues;
use upkeep::{Hurry, Keeper};
use writer::{Job, Writer};

/// Changes of GatewayURIs that a watcher may lag behind before it has to start again.
const WATCH_BACKLOG: usize = 4096;

/// Changes of GatewayURIs that are kept, and, behind the last of these, those to come.
pub type UriWatch = (Vec<UriChange>, Option<broadcast::Receiver<UriChange>>);

/// What the controller is made of.
pub struct Start {
    /// Checked.
    pub config: Arc<Config>,
    /// Read.
    pub loaded: Loaded,
    /// Loaded, with tables and policy in place; nothing is assigned or attached yet, or what an earlier daemon left.
    pub kernel: Box<dyn Kernel>,
    /// The machine's, or a test's.
    pub clock: Box<dyn Clock>,
    /// The interfaces that exist now.
    pub links: Vec<Link>,
    /// Times and sizes.
    pub options: Options,
}

/// Why the controller did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("the store cannot be read: {0}")]
    Store(#[from] StoreError),
    /// The kernel's tables cannot be read.
    #[error("the kernel's tables cannot be read: {0}")]
    Kernel(#[from] KernelError),
    /// No thread.
    #[error("the controller's thread cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// The thread ended before it was ready.
    #[error(transparent)]
    Died(#[from] WriterDied),
}

/// The controller's thread ended without having been told to: nothing can be restricted any more, so the process must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the controller's thread has died")]
pub struct WriterDied;

/// The controller's thread, to be watched.
#[derive(Debug)]
pub struct WriterThread(oneshot::Receiver<()>);

impl WriterThread {
    /// Waits for its end.
    ///
    /// # Errors
    /// It died. The process must not go on without it.
    pub async fn ended(&mut self) -> Result<(), WriterDied> {
        (&mut self.0).await.map_err(|_| WriterDied)
    }
}

/// A handle to the controller's queues. Restrictions have one of their own, which is served first; so has what comes by streams, served last.
#[derive(Clone)]
pub struct Controller {
    normal: mpsc::Sender<Job>,
    urgent: mpsc::Sender<Job>,
    bulk: mpsc::Sender<Job>,
    /// Of a stream's handle.
    line: Option<Arc<Line>>,
    given: mpsc::Sender<Given>,
    links: watch::Sender<Vec<Link>>,
    hurry: Hurry,
    keeper: Keeper,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

impl Controller {
    /// Starts the thread. When this returns, every live session of the store is judged as it should be, nothing else is assigned, and the
    /// programs are attached to the links given; but for these if the kernel has not answered for [`Options::begin`]: then that goes on.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(start: Start) -> Result<(Self, WriterThread), StartError> {
        let (normal, normal_jobs) = mpsc::channel(start.options.queue);
        let (bulk, bulk_jobs) = mpsc::channel(start.options.bulk_queue);
        let (urgent, urgent_jobs) = mpsc::channel(start.options.urgent_queue);
        let (given, answers) = mpsc::channel(start.options.urgent_queue);
        let (links, links_seen) = watch::channel(start.links.clone());
        let (ready, is_ready) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let uris = broadcast::Sender::new(WATCH_BACKLOG);
        let hurry = Hurry::default();
        let waiting = hurry.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        // The end of the thread by a panic drops `ended`, which is how the daemon learns of it.
        thread::Builder::new().name("controller".to_owned()).spawn(move || {
            let writer = match Writer::start(start, uris, waiting, answers) {
                Ok(writer) => writer,
                Err(e) => return drop(ready.send(Err(e))),
            };
            if ready.send(Ok(writer.upkeep.keeper())).is_ok() {
                let queues = Queues {
                    urgent: urgent_jobs,
                    normal: normal_jobs,
                    bulk: bulk_jobs,
                };
                runtime.block_on(writer.run(queues, links_seen));
                // The daemon may have stopped to look.
                let _ = ended.send(());
            }
        })?;
        let keeper = is_ready.await.map_err(|_| WriterDied)??;
        let controller = Self {
            normal,
            urgent,
            bulk,
            line: None,
            given,
            links,
            hurry,
            keeper,
        };
        Ok((controller, WriterThread(has_ended)))
    }

    /// Tells which interfaces exist now.
    pub fn set_links(&self, links: Vec<Link>) {
        self.links.send_replace(links);
    }

    /// Finishes what is in the queues and ends the thread. The kernel goes on as it is.
    pub async fn shutdown(&self) {
        // A thread that is gone already is fine.
        let (done, is_done) = oneshot::channel();
        let stop = Job::Command(Box::new(move |w: &mut Writer| {
            w.stopping = true;
            // Whoever has it stopped may be gone.
            let _ = done.send(());
        }));
        let _ = self.urgent.send(stop).await;
        let _ = is_done.await;
    }

    /// A handle for what a client tells in a stream: it waits in this line, and then in a queue of its own; it is not refused for load.
    #[must_use]
    pub fn in_line(&self, line: Arc<Line>) -> Self {
        Self {
            line: Some(line),
            ..self.clone()
        }
    }

    /// A question: answered from what is committed. Refused when the queue is full.
    async fn ask<T: Send + 'static>(&self, f: impl FnOnce(&mut Writer) -> T + Send + 'static) -> Result<T, Refusal> {
        let (answer, answered) = oneshot::channel();
        // A caller that has gone away has still asked.
        let job = Job::Question(Box::new(move |w: &mut Writer| drop(answer.send(f(w)))));
        self.send(Queue::Normal, job).await?;
        answered.await.map_err(|_| Refusal::Busy)
    }
}

#[cfg(test)]
pub(crate) mod tests;
