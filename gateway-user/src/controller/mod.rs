//! The single writer: takes commands from the API and sets of links from netlink, asks [`crate::transition`] what follows, commits it,
//! puts it into the kernel by [`crate::reconcile`], reads it back, and answers. One thread owns store and kernel; everyone else holds a
//! [`Controller`], a handle to its queues.

mod commit;
mod inspect;
mod registry;
mod sessions;
mod signals;
mod types;
mod writer;

use std::{collections::HashMap, fmt, io, net::IpAddr, sync::Arc, thread};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

pub use types::*;
pub use writer::Options;

use crate::{
    clock::Clock,
    config::Config,
    kernel::{Kernel, KernelError, Link, Losses},
    model::{DeviceId, DeviceState, PolicyRevision, Revision, SessionId, SourceName},
    store::{Store, StoreError},
};
pub use crate::{model::UriChange, refusal::Refusal, transition::Registration};
use writer::{Job, Writer};

/// Changes of GatewayURIs that a watcher may lag behind before it has to start again.
const WATCH_BACKLOG: usize = 4096;

/// What the controller is made of.
pub struct Start {
    /// Checked.
    pub config: Arc<Config>,
    /// Opened.
    pub store: Box<dyn Store>,
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

/// A handle to the controller's queues. Restrictions have one of their own, which is served first.
#[derive(Clone)]
pub struct Controller {
    normal: mpsc::Sender<Job>,
    urgent: mpsc::Sender<Job>,
    links: watch::Sender<Vec<Link>>,
}

impl fmt::Debug for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Controller").finish_non_exhaustive()
    }
}

impl Controller {
    /// Starts the thread. When this returns, every live session of the store is judged as it should be, nothing else is assigned, and the
    /// programs are attached to the links given.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(start: Start) -> Result<(Self, WriterThread), StartError> {
        let (normal, normal_jobs) = mpsc::channel(start.options.queue);
        let (urgent, urgent_jobs) = mpsc::channel(start.options.urgent_queue);
        let (links, links_seen) = watch::channel(start.links.clone());
        let (ready, is_ready) = oneshot::channel();
        let (ended, has_ended) = oneshot::channel();
        let uris = broadcast::Sender::new(WATCH_BACKLOG);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        // The end of the thread by a panic drops `ended`, which is how the daemon learns of it.
        thread::Builder::new().name("controller".to_owned()).spawn(move || {
            let writer = match Writer::start(start, uris) {
                Ok(writer) => writer,
                Err(e) => return drop(ready.send(Err(e))),
            };
            if ready.send(Ok(())).is_ok() {
                runtime.block_on(writer.run(urgent_jobs, normal_jobs, links_seen));
                // The daemon may have stopped to look.
                let _ = ended.send(());
            }
        })?;
        is_ready.await.map_err(|_| WriterDied)??;
        Ok((Self { normal, urgent, links }, WriterThread(has_ended)))
    }

    /// Tells which interfaces exist now.
    pub fn set_links(&self, links: Vec<Link>) {
        self.links.send_replace(links);
    }

    /// Finishes what is in the queues and ends the thread. The kernel goes on as it is.
    pub async fn shutdown(&self) {
        // A thread that is gone already is fine.
        let _ = self.restrict(|w| w.stopping = true).await;
    }

    /// Adds or changes devices, all or none.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn register(
        &self,
        context: SignalContext,
        devices: Vec<Registration>,
    ) -> Result<(Vec<DeviceView>, Revision), Refusal> {
        self.ask(move |w| w.register(&context, &devices)).await?
    }

    /// Releases a device.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn policy_applied(
        &self,
        context: SignalContext,
        device: DeviceId,
        revision: PolicyRevision,
    ) -> Result<SignalOutcome, Refusal> {
        self.ask(move |w| w.policy_applied(&context, &device, &revision)).await?
    }

    /// Quarantines a device. `reason` is for people and the log.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`], [`Refusal::DeviceRetired`]; [`Refusal::Busy`] only when the controller is gone.
    pub async fn policy_revoked(
        &self,
        context: SignalContext,
        device: DeviceId,
        reason: String,
    ) -> Result<SignalOutcome, Refusal> {
        self.restrict(move |w| w.policy_revoked(&context, &device, &reason)).await?
    }

    /// Ends the management of a device.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`]; [`Refusal::Busy`] only when the controller is gone.
    pub async fn retire(&self, context: SignalContext, device: DeviceId) -> Result<SignalOutcome, Refusal> {
        self.restrict(move |w| w.retire(&context, &device)).await?
    }

    /// A device.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`], [`Refusal::Busy`].
    pub async fn device(&self, device: DeviceId) -> Result<DeviceView, Refusal> {
        self.ask(move |w| w.device(&device)).await?
    }

    /// By id, ascending, after `after`.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn devices(
        &self,
        after: Option<DeviceId>,
        limit: u32,
        state: Option<DeviceState>,
    ) -> Result<Vec<DeviceView>, Refusal> {
        self.ask(move |w| w.devices(after.as_ref(), limit, state)).await
    }

    /// Changes after a revision that are kept, and those to come. `None`: only those to come. A watcher that falls more than 4,096 changes
    /// behind gets a lag error from the receiver and has to ask again.
    ///
    /// # Errors
    /// [`Refusal::RevisionTooOld`], [`Refusal::StoreUnavailable`], [`Refusal::Busy`].
    pub async fn watch_gateway_uris(
        &self,
        after: Option<Revision>,
    ) -> Result<(Vec<UriChange>, broadcast::Receiver<UriChange>), Refusal> {
        self.ask(move |w| w.watch(after)).await?
    }

    /// Opens a session. A caller that has gone away meanwhile has refused its client: nothing stays open that nobody would close.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn open_session(
        &self,
        context: SignalContext,
        source: SourceName,
        report: SessionReport,
    ) -> Result<OpenOutcome, Refusal> {
        let (answer, answered) = oneshot::channel::<Result<OpenOutcome, Refusal>>();
        let job: Job = Box::new(move |w: &mut Writer| {
            if answer.is_closed() {
                return;
            }
            if let Err(Ok(unheard)) = answer.send(w.open(&context, &source, report)) {
                w.close(&context, unheard.session.session.id);
            }
        });
        self.normal.try_send(job).map_err(|_| Refusal::Busy)?;
        answered.await.map_err(|_| Refusal::Busy)?
    }

    /// Ends a session, if it is still live.
    ///
    /// # Errors
    /// [`Refusal::Busy`] only when the controller is gone.
    pub async fn close_session(&self, context: SignalContext, session: SessionId) -> Result<CloseOutcome, Refusal> {
        self.restrict(move |w| w.close(&context, session)).await
    }

    /// Makes the live sessions of a source those of a list.
    ///
    /// # Errors
    /// See [`Refusal`]; what is wrong with single reports is in the outcome.
    pub async fn synchronise_sessions(
        &self,
        context: SignalContext,
        source: SourceName,
        reports: Vec<SessionReport>,
    ) -> Result<SynchroniseOutcome, Refusal> {
        self.ask(move |w| w.synchronise(&context, &source, reports)).await?
    }

    /// By id, ascending, after `after`.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<SessionView>, Refusal> {
        self.ask(move |w| w.sessions(after, limit)).await
    }

    /// How the gateway stands.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn status(&self) -> Result<Status, Refusal> {
        self.ask(|w| w.status()).await
    }

    /// One, or those of all live sessions.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn addresses(&self, address: Option<IpAddr>, limit: u32) -> Result<Vec<AddressView>, Refusal> {
        self.ask(move |w| w.addresses(address, limit)).await?
    }

    /// What is known around a packet between these addresses.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn surroundings(&self, ends: Vec<IpAddr>) -> Result<Surroundings, Refusal> {
        self.ask(move |w| w.surroundings(&ends)).await?
    }

    /// The devices of the live sessions that hold these addresses.
    ///
    /// # Errors
    /// [`Refusal::Busy`].
    pub async fn holders(&self, addresses: Vec<IpAddr>) -> Result<HashMap<IpAddr, DeviceId>, Refusal> {
        self.ask(move |w| w.holders(&addresses)).await
    }

    /// What the programs counted.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn counters(&self) -> Result<Counters, Refusal> {
        self.ask(|w| w.counters()).await?
    }

    /// Denials and captured packets that were not told of.
    ///
    /// # Errors
    /// [`Refusal::Kernel`], [`Refusal::Busy`].
    pub async fn losses(&self) -> Result<Losses, Refusal> {
        self.ask(|w| w.losses()).await?
    }

    /// Refused when the queue is full.
    async fn ask<T: Send + 'static>(&self, f: impl FnOnce(&mut Writer) -> T + Send + 'static) -> Result<T, Refusal> {
        let (job, answer) = job(f);
        self.normal.try_send(job).map_err(|_| Refusal::Busy)?;
        answer.await.map_err(|_| Refusal::Busy)
    }

    /// Waits for room in the queue: a restriction is not refused for load.
    async fn restrict<T: Send + 'static>(&self, f: impl FnOnce(&mut Writer) -> T + Send + 'static) -> Result<T, Refusal> {
        let (job, answer) = job(f);
        self.urgent.send(job).await.map_err(|_| Refusal::Busy)?;
        answer.await.map_err(|_| Refusal::Busy)
    }
}

fn job<T: Send + 'static>(f: impl FnOnce(&mut Writer) -> T + Send + 'static) -> (Job, oneshot::Receiver<T>) {
    let (answer, answered) = oneshot::channel();
    // A caller that has gone away has still asked.
    (Box::new(move |w: &mut Writer| drop(answer.send(f(w)))), answered)
}

#[cfg(test)]
pub(crate) mod tests;
