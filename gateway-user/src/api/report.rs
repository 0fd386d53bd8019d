//! ReportPolicy: signals in bulk. Many of one stream are under way at a time, so that one commit of the controller's takes them all in;
//! each is answered as soon as it is decided. What a caller does not read is not decided: HTTP/2's flow control stops the answers, they
//! stop this, and this stops reading.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::{
    Stream, StreamExt as _,
    stream::{self, FuturesUnordered},
};
use lazaret_proto::v1::{self, report_policy_request::Signal};
use tokio::sync::{Semaphore, watch};
use tonic::{Status, Streaming};

use super::{command, parse, refusals, render, scope, status};
use crate::{
    access::{answer, refusals::Refusals, shares::Taken},
    config::Config,
    controller::{Controller, SignalContext},
    model::{DeviceId, Identity, Place},
};

/// Signals of one stream that are to be decided at a time: what one commit takes in, and as many that arrive and are checked meanwhile.
pub(super) const MOST_UNDECIDED: usize = 1024;
/// Signals of one stream that are to be answered at a time: more than of one client's wait for enforcement, and are undecided. What is
/// decided keeps no restriction from being read.
const MOST_UNDER_WAY: usize = 8192;
/// The RPC.
const PATH: &str = "/lazaret.v1.PolicyService/ReportPolicy";

/// What a stream's signals need.
#[derive(Debug)]
pub(super) struct Reporter {
    pub(super) config: Arc<Config>,
    /// In whose queue the client has a share.
    pub(super) controller: Controller,
    pub(super) refusals: Refusals,
    pub(super) by: Identity,
}

type Answering = Pin<Box<dyn Future<Output = v1::ReportPolicyResponse> + Send>>;

/// A stream under way.
struct Report {
    reporter: Arc<Reporter>,
    incoming: Option<Streaming<v1::ReportPolicyRequest>>,
    under_way: FuturesUnordered<Answering>,
    /// Of those that are undecided.
    places: Arc<Semaphore>,
    next: u64,
    /// What it ends with when the last answer is out.
    error: Option<Status>,
    stopped: watch::Receiver<bool>,
    _permit: Taken,
}

/// The answers to a stream of signals. It ends with the last answer after the last signal, or with an error.
pub(super) fn answers(
    reporter: Arc<Reporter>,
    incoming: Streaming<v1::ReportPolicyRequest>,
    stopped: watch::Receiver<bool>,
    permit: Taken,
) -> impl Stream<Item = Result<v1::ReportPolicyResponse, Status>> + Send {
    let report = Report {
        reporter,
        incoming: Some(incoming),
        under_way: FuturesUnordered::new(),
        places: Arc::new(Semaphore::new(MOST_UNDECIDED)),
        next: 0,
        error: None,
        stopped,
        _permit: permit,
    };
    stream::unfold(report, |mut report| async {
        let answer = report.next().await?;
        Some((answer, report))
    })
}

impl Report {
    /// The next answer; `None`: that was the last.
    async fn next(&mut self) -> Option<Result<v1::ReportPolicyResponse, Status>> {
        let mut stopped = self.stopped.clone();
        let mut stopping = std::pin::pin!(async move {
            // An error means that the daemon is gone: stop as well.
            let _ = stopped.wait_for(|s| *s).await;
        });
        loop {
            let open = self.incoming.is_some();
            let reading = open && self.under_way.len() < MOST_UNDER_WAY;
            if !reading && self.under_way.is_empty() {
                return self.error.take().map(Err);
            }
            let places = Arc::clone(&self.places);
            let read = async {
                match (&mut self.incoming, places.acquire_owned().await) {
                    (Some(incoming), Ok(place)) if reading => (incoming.message().await, Place::held(place)),
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(answer) = self.under_way.next() => return Some(Ok(answer)),
                (message, place) = read => match message {
                    Ok(Some(message)) => {
                        let answer = Arc::clone(&self.reporter).answer(self.next, message, place);
                        self.under_way.push(Box::pin(answer));
                        self.next += 1;
                    }
                    Ok(None) => self.incoming = None,
                    Err(e) => {
                        self.incoming = None;
                        self.error = Some(e);
                    }
                },
                () = &mut stopping, if open => {
                    self.incoming = None;
                    let sentence = "the gateway is shutting down; repeat what is not answered on another stream";
                    self.error = Some(answer::status(tonic::Code::Unavailable, "SHUTTING_DOWN", [], sentence));
                }
            }
        }
    }
}

impl Reporter {
    /// The answer to one signal, whatever becomes of it.
    async fn answer(self: Arc<Self>, position: u64, message: v1::ReportPolicyRequest, place: Place) -> v1::ReportPolicyResponse {
        let (request_id, device_id) = names(&message);
        let mut answer = match self.decide(message, place).await {
            Ok(answer) => answer,
            Err(refusal) => v1::ReportPolicyResponse {
                request_id,
                device_id,
                refusal: Some(refusal),
                ..Default::default()
            },
        };
        if let Some(refusal) = &mut answer.refusal {
            refusals::refer(&self.refusals, &self.by, PATH, &answer.request_id, refusal).await;
        }
        answer.position = position;
        answer
    }

    async fn decide(&self, mut message: v1::ReportPolicyRequest, place: Place) -> Result<v1::ReportPolicyResponse, v1::Refusal> {
        if let Some(outside) = scope::outside(&self.by, &message) {
            let (request, _) = names(&message);
            let refused = scope::refusal(&self.controller, &self.by, "ReportPolicy", &request, outside).await;
            return Err(status::part(&refused));
        }
        let caller = command::caller(self.by.clone(), &mut message, Duration::MAX, place);
        let invalid = |e: parse::Invalid| status::as_part(&e.into());
        let controller = &self.controller;
        let (context, told) = match message.signal {
            None => return Err(invalid(parse::Invalid::new("signal", "is required"))),
            Some(Signal::Applied(r)) => {
                let (context, a) = parse::policy_applied(r, caller).map_err(invalid)?;
                let told = controller.policy_applied(context.clone(), a.device, a.revision, a.key).await;
                (context, told)
            }
            Some(Signal::Revoked(r)) => {
                let (context, device, reason) = parse::policy_revoked(r, caller).map_err(invalid)?;
                let told = controller.policy_revoked(context.clone(), device, reason).await;
                (context, told)
            }
            Some(Signal::Renew(r)) => {
                let (context, device) = parse::policy::renew_one(r, caller).map_err(invalid)?;
                return self.renew(context, device).await;
            }
        };
        let told = told.map_err(|e| status::part(&e))?;
        let id = context.request.clone();
        let render = |o| render::reported(&self.config, &id, o);
        command::answered(controller, context, told, false, render).map_err(|e| status::as_part(&e))
    }

    /// A renewal of one device answers as a signal does: its refusal is the signal's.
    async fn renew(&self, context: SignalContext, device: DeviceId) -> Result<v1::ReportPolicyResponse, v1::Refusal> {
        let told = self.controller.renew_leases(context.clone(), vec![device]).await;
        let told = told.map_err(|e| status::part(&e))?;
        let id = context.request.clone();
        let render = |o| render::policy::renewed_one(&self.config, &id, o);
        command::answered(&self.controller, context, told, false, render).map_err(|e| status::as_part(&e))
    }
}

/// Request id and device, as the caller wrote them, if he did; cut off where they are longer than a good one could be.
fn names(message: &v1::ReportPolicyRequest) -> (String, String) {
    let (context, device) = match &message.signal {
        None => (&None, ""),
        Some(Signal::Applied(s)) => (&s.context, s.device_id.as_str()),
        Some(Signal::Revoked(s)) => (&s.context, s.device_id.as_str()),
        Some(Signal::Renew(s)) => (&s.context, s.device_id.as_str()),
    };
    let short = |text: &str| text.chars().take(128).collect::<String>();
    (short(context.as_ref().map_or("", |c| c.request_id.as_str())), short(device))
}
