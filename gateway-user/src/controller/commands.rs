//! What can be told to the controller. Every command is answered once it is durable and read back as far as its context asks, or refused.
//! A caller that goes away has still asked; only what it would have to end itself is not begun, or ended.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{
    AcknowledgeOutcome, Answer, CloseOutcome, Controller, DeviceView, Note, OfferOutcome, OpenOutcome, PolicyKey,
    PublicationOutcome, Refusal, Refused, Registration, RenewOutcome, SessionReport, SignalContext, SignalOutcome,
    SynchroniseOutcome,
    batch::Decided,
    cause::{About, Ask},
    requests::Given,
    writer::{Job, Writer},
};
use crate::model::{DeviceId, ExceptionKind, PolicyRevision, Revision, SessionId, SourceName};

/// Of a command.
pub(super) type Result<T> = std::result::Result<Answer<T>, Refused>;

/// Which queue.
pub(super) enum Queue {
    /// Refused when it is full; of a stream it waits.
    Normal,
    /// Waited for, and served first: a restriction is not refused for load.
    Urgent,
}

impl Controller {
    /// Adds or changes devices, all or none.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn register(&self, context: SignalContext, devices: Vec<Registration>) -> Result<(Vec<DeviceView>, Revision)> {
        let about = match devices.as_slice() {
            [one] => About::device(&one.id),
            many => About::subject(format_args!("{} devices", many.len())),
        };
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.register(ask, &devices);
        self.command(Queue::Normal, context, "RegisterDevices", about, decide).await
    }

    /// Offers a policy to a device: gives a temporary key. An offer of before ends.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn offer_policy(&self, context: SignalContext, device: DeviceId, revision: PolicyRevision) -> Result<OfferOutcome> {
        let about = About::device(&device);
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.offer_policy(ask, &device, &revision);
        self.command(Queue::Normal, context, "OfferPolicy", about, decide).await
    }

    /// Takes the temporary key, once, and gives the final one.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn acknowledge_policy(
        &self,
        context: SignalContext,
        device: DeviceId,
        temporary: PolicyKey,
    ) -> Result<AcknowledgeOutcome> {
        let about = About::device(&device);
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.acknowledge_policy(ask, &device, &temporary);
        self.command(Queue::Normal, context, "AcknowledgePolicy", about, decide).await
    }

    /// Releases a device. Without the final key it is a direct signal.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn policy_applied(
        &self,
        context: SignalContext,
        device: DeviceId,
        revision: PolicyRevision,
        key: Option<PolicyKey>,
    ) -> Result<SignalOutcome> {
        let about = About::device(&device);
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.policy_applied(ask, &device, &revision, key.as_ref());
        self.command(Queue::Normal, context, "ReportPolicyApplied", about, decide)
            .await
    }

    /// Renews the leases of devices that are released by proof at the required revision, each by itself.
    ///
    /// # Errors
    /// [`Refusal::StoreUnavailable`], [`Refusal::RequestIdReused`], [`Refusal::Busy`]; those of single devices are in the outcome.
    pub async fn renew_leases(&self, context: SignalContext, devices: Vec<DeviceId>) -> Result<RenewOutcome> {
        let about = match devices.as_slice() {
            [one] => About::device(one),
            many => About::subject(format_args!("{} devices", many.len())),
        };
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.renew_leases(ask, devices);
        self.command(Queue::Normal, context, "RenewLeases", about, decide).await
    }

    /// Makes a policy revision the one that is required; those released by another become stale in waves. The revision in force again: its
    /// terms change. Ceiling and rate 0: all at once.
    ///
    /// # Errors
    /// [`Refusal::StoreUnavailable`], [`Refusal::RequestIdReused`], [`Refusal::Busy`].
    pub async fn publish_policy(
        &self,
        context: SignalContext,
        revision: PolicyRevision,
        ceiling: u32,
        rate: u32,
    ) -> Result<PublicationOutcome> {
        let about = About::subject(format_args!("policy revision {revision}"));
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.publish_policy(ask, &revision, ceiling, rate);
        self.command(Queue::Normal, context, "PublishPolicyRevision", about, decide)
            .await
    }

    /// No wave comes until it is resumed.
    ///
    /// # Errors
    /// [`Refusal::NothingPublished`] and as [`Controller::publish_policy`].
    pub async fn pause_publication(&self, context: SignalContext) -> Result<PublicationOutcome> {
        let about = About::subject("publication");
        let decide = |w: &mut Writer, ask: Ask<'_>| w.pause_publication(ask, true);
        self.command(Queue::Normal, context, "PausePublication", about, decide).await
    }

    /// Waves come again.
    ///
    /// # Errors
    /// As [`Controller::pause_publication`].
    pub async fn resume_publication(&self, context: SignalContext) -> Result<PublicationOutcome> {
        let about = About::subject("publication");
        let decide = |w: &mut Writer, ask: Ask<'_>| w.pause_publication(ask, false);
        self.command(Queue::Normal, context, "ResumePublication", about, decide).await
    }

    /// Releases or blocks a device by hand, for a time.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn grant_exception(
        &self,
        context: SignalContext,
        device: DeviceId,
        kind: ExceptionKind,
        reason: String,
        length: Duration,
    ) -> Result<SignalOutcome> {
        let (queue, about) = match kind {
            ExceptionKind::Release => (Queue::Normal, About::device(&device)),
            ExceptionKind::Block => (Queue::Urgent, About::device(&device).restriction()),
        };
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.grant_exception(ask, &device, kind, &reason, length);
        self.command(queue, context, "GrantException", about, decide).await
    }

    /// Ends an exception.
    ///
    /// # Errors
    /// [`Refusal::NoException`] and others: see [`Refusal`].
    pub async fn end_exception(&self, context: SignalContext, device: DeviceId, reason: String) -> Result<SignalOutcome> {
        let about = About::device(&device).restriction();
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.end_exception(ask, &device, &reason);
        self.command(Queue::Urgent, context, "EndException", about, decide).await
    }

    /// Quarantines a device. `reason` is for people and the audit.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`], [`Refusal::DeviceRetired`]; [`Refusal::Busy`] only when the controller is gone.
    pub async fn policy_revoked(&self, context: SignalContext, device: DeviceId, reason: String) -> Result<SignalOutcome> {
        let about = About::device(&device).restriction();
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.policy_revoked(ask, &device, &reason);
        self.command(Queue::Urgent, context, "ReportPolicyRevoked", about, decide)
            .await
    }

    /// Ends the management of a device.
    ///
    /// # Errors
    /// [`Refusal::UnknownDevice`]; [`Refusal::Busy`] only when the controller is gone.
    pub async fn retire(&self, context: SignalContext, device: DeviceId) -> Result<SignalOutcome> {
        let about = About::device(&device).restriction();
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.retire(ask, &device);
        self.command(Queue::Urgent, context, "RetireDevice", about, decide).await
    }

    /// Opens a session. A caller that has gone away meanwhile has refused its client: nothing stays open that nobody would close.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn open_session(&self, context: SignalContext, source: SourceName, report: SessionReport) -> Result<OpenOutcome> {
        let about = About {
            device: Some(report.device_name.clone()),
            subject: format!("session of {source}"),
            ..About::default()
        };
        let (to, answered) = oneshot::channel::<Result<OpenOutcome>>();
        let job = Job::Command(Box::new(move |w: &mut Writer| {
            if !to.is_closed() {
                w.command(&context, "OpenSession", about, |w, ask| w.open(ask, &source, report), to);
            }
        }));
        self.send(Queue::Normal, job).await?;
        answered.await.map_err(|_| Refusal::Busy)?
    }

    /// Ends a session, if it is still live.
    ///
    /// # Errors
    /// [`Refusal::Busy`] only when the controller is gone.
    pub async fn close_session(&self, context: SignalContext, session: SessionId) -> Result<CloseOutcome> {
        let decide = move |w: &mut Writer, ask: Ask<'_>| w.close(ask, session);
        let about = About::subject(format_args!("session {session}")).restriction();
        self.command(Queue::Urgent, context, "CloseSession", about, decide).await
    }

    /// Whose a session is, if it is live: asked in front of its end, so it is refused for load no more than that.
    ///
    /// # Errors
    /// [`Refusal::Busy`] only when the controller is gone.
    pub async fn source_of(&self, session: SessionId) -> std::result::Result<Option<SourceName>, Refusal> {
        let (to, answered) = oneshot::channel();
        let job = Job::Command(Box::new(move |w: &mut Writer| {
            drop(to.send(w.registry.session(session).map(|s| s.source.clone())));
        }));
        self.send(Queue::Urgent, job).await?;
        answered.await.map_err(|_| Refusal::Busy)
    }

    /// Makes the live sessions of a source those of a list, but for those that open by themselves meanwhile.
    ///
    /// # Errors
    /// See [`Refusal`]; what is wrong with single reports is in the outcome.
    pub async fn synchronise_sessions(
        &self,
        context: SignalContext,
        source: SourceName,
        reports: Vec<SessionReport>,
    ) -> Result<SynchroniseOutcome> {
        let (to, answered) = oneshot::channel();
        let job = Job::Command(Box::new(move |w: &mut Writer| w.synchronise(context, source, reports, to)));
        self.send(Queue::Normal, job).await?;
        answered.await.map_err(|_| Refusal::Busy)?
    }

    /// Hands over the answer that a client gets to a request, as it was sent, so that it gets the same if it asks again. Written with the
    /// next commit; `secret`: kept in memory only; a final policy key is left out. Nothing happens to the answer of a request without digest, or of one that was refused.
    pub fn answered(&self, context: SignalContext, answer: Vec<u8>, secret: bool) {
        // Not by a queue of jobs: an answer neither ends a batch nor takes a place in it. Where there is no room it is forgotten, and the
        // answer to the same request will be what is so then.
        let _ = self.given.try_send(Given { context, answer, secret });
    }

    /// Gives an entry of the audit to what was refused before it came here.
    pub async fn note_refusal(&self, note: Note, refusal: Refusal) -> Refused {
        let told = refusal.clone();
        let noted = self.ask(move |w| w.note_refusal(&note, told));
        noted.await.unwrap_or_else(|busy| {
            tracing::warn!("a refusal has no entry in the audit: {busy}");
            Refused::from(refusal)
        })
    }

    /// Gives an entry of the audit to a call that came to no command; its number.
    pub async fn note_denied(&self, note: Note, reason: String, result: String) -> Option<u64> {
        // A queue that is full is no reason to wait: there are other codes.
        self.ask(move |w| w.note_denied(note, reason, result)).await.ok().flatten()
    }

    /// Gives an entry of the audit to what was done or refused elsewhere; its number. `words` are before and after.
    pub async fn note(&self, note: Note, words: [String; 2], reason: String, result: &'static str) -> Option<u64> {
        let noted = self.ask(move |w| w.note_entry(note, words, reason, result));
        noted
            .await
            .inspect_err(|busy| tracing::warn!("something has no entry in the audit: {busy}"))
            .ok()
    }

    async fn command<T: Send + 'static>(
        &self,
        queue: Queue,
        context: SignalContext,
        action: &'static str,
        about: About,
        decide: impl FnOnce(&mut Writer, Ask<'_>) -> std::result::Result<Decided<T>, Refusal> + Send + 'static,
    ) -> Result<T> {
        let (to, answered) = oneshot::channel();
        let job = Job::Command(Box::new(move |w: &mut Writer| {
            w.command(&context, action, about, decide, to);
            context.place.give_back();
        }));
        self.send(queue, job).await?;
        answered.await.map_err(|_| Refusal::Busy)?
    }

    pub(super) async fn send(&self, queue: Queue, job: Job) -> std::result::Result<(), Refusal> {
        let place = match &self.line {
            Some(line) => Some(line.place(matches!(queue, Queue::Urgent)).await?),
            None => None,
        };
        match queue {
            Queue::Normal if place.is_none() => self.normal.try_send(job).map_err(|_| Refusal::Busy),
            Queue::Normal => self.bulk.send(behind(place, job)).await.map_err(|_| Refusal::Busy),
            Queue::Urgent => {
                let waiting = self.hurry.wait();
                self.urgent
                    .send(behind((waiting, place), job))
                    .await
                    .map_err(|_| Refusal::Busy)
            }
        }
    }
}

/// The job, before which is dropped what stands for its waiting.
fn behind(waiting: impl Send + 'static, job: Job) -> Job {
    match job {
        Job::Command(task) => Job::Command(Box::new(move |w: &mut Writer| {
            drop(waiting);
            task(w);
        })),
        Job::Question(task) => Job::Question(Box::new(move |w: &mut Writer| {
            drop(waiting);
            task(w);
        })),
    }
}
