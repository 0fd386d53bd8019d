//! PolicyService: for the MDM.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use lazaret_proto::v1::{self, policy_service_server::PolicyService};
use prost::Message as _;
use tokio::sync::watch::Receiver;
use tonic::{Request, Response, Status, Streaming};

use super::{
    command, parse, refusals, render,
    report::{self, Reporter},
    scope, status, watch,
};
use crate::{
    access::{
        refusals::Refusals,
        shares::{Places, Shares},
    },
    config::Config,
    controller::{Answer, Controller, Line},
};

/// Most streams of signals at a time, over all connections: each holds up to [`report::MOST_UNDECIDED`] signals, and those whose
/// answers wait.
const MAX_REPORTS: usize = 64;

/// The service.
#[derive(Debug)]
pub(super) struct Policies {
    config: Arc<Config>,
    controller: Controller,
    refusals: Refusals,
    reports: Places,
    /// Of each client that has streams.
    lines: Shares<Line>,
    watchers: Places,
    stopped: Receiver<bool>,
}

impl Policies {
    /// `stopped` ends the streams when it becomes true.
    pub(super) fn new(config: Arc<Config>, controller: Controller, refusals: Refusals, stopped: Receiver<bool>) -> Self {
        Self {
            config,
            controller,
            refusals,
            reports: Places::new(MAX_REPORTS),
            lines: Shares::default(),
            watchers: watch::places(),
            stopped,
        }
    }
}

#[tonic::async_trait]
impl PolicyService for Policies {
    async fn offer_policy(&self, request: Request<v1::OfferPolicyRequest>) -> Result<Response<v1::OfferPolicyResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, device, revision) = parse::policy::offer(r, caller)?;
        let id = context.request.clone();
        let told = self.controller.offer_policy(context.clone(), device, revision).await;
        command::response(&self.controller, context, told, true, |o| {
            render::policy::offered(&self.config, &id, o)
        })
    }

    async fn acknowledge_policy(
        &self,
        request: Request<v1::AcknowledgePolicyRequest>,
    ) -> Result<Response<v1::AcknowledgePolicyResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, device, key) = parse::policy::acknowledge(r, caller)?;
        let told = self
            .controller
            .acknowledge_policy(context.clone(), device.clone(), key.clone())
            .await?;
        let answer = match told {
            Answer::First(outcome) => {
                let answer = render::policy::acknowledged(&self.config, &context.request, outcome);
                // Who asks again brings what the key is derived from.
                let kept = v1::AcknowledgePolicyResponse {
                    final_key: String::new(),
                    ..answer.clone()
                };
                self.controller.answered(context, kept.encode_to_vec(), false);
                answer
            }
            Answer::Salted(kept, salt) => {
                let mut answer: v1::AcknowledgePolicyResponse = command::decoded(&kept)?;
                let revision = answer.policy_revision.parse().map_err(|_| status::forgotten())?;
                answer.final_key = key.final_key(&salt, &device, &revision).reveal();
                answer
            }
            Answer::Again(_) => return Err(status::forgotten()),
        };
        Ok(Response::new(answer))
    }

    async fn renew_leases(&self, request: Request<v1::RenewLeasesRequest>) -> Result<Response<v1::RenewLeasesResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, devices) = parse::policy::renew(r, caller)?;
        let id = context.request.clone();
        let told = self.controller.renew_leases(context.clone(), devices).await;
        let by = context.by.clone();
        let refer = |part: &mut v1::Refusal| {
            refusals::refer_now(
                &self.refusals,
                &by,
                "/lazaret.v1.PolicyService/RenewLeases",
                id.as_str(),
                part,
            );
        };
        command::response(&self.controller, context, told, false, |o| {
            render::policy::renewed(&self.config, &id, o, refer)
        })
    }

    type ReportPolicyStream = Pin<Box<dyn Stream<Item = Result<v1::ReportPolicyResponse, Status>> + Send>>;

    async fn report_policy(
        &self,
        request: Request<Streaming<v1::ReportPolicyRequest>>,
    ) -> Result<Response<Self::ReportPolicyStream>, Status> {
        let by = scope::caller(&request)?;
        let reporter = Arc::new(Reporter {
            config: Arc::clone(&self.config),
            controller: self.controller.in_line(self.lines.of(&by, Line::default)),
            refusals: self.refusals.clone(),
            by,
        });
        let full = |full| watch::too_many(full, "TOO_MANY_STREAMS", "streams of signals");
        let permit = self.reports.take(&reporter.by).map_err(full)?;
        let answers = report::answers(reporter, request.into_inner(), self.stopped.clone(), permit);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn publish_policy_revision(
        &self,
        request: Request<v1::PublishPolicyRevisionRequest>,
    ) -> Result<Response<v1::PublishPolicyRevisionResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, p) = parse::policy::publish(r, caller)?;
        let id = context.request.clone();
        let told = self
            .controller
            .publish_policy(context.clone(), p.revision, p.ceiling, p.rate)
            .await;
        command::response(&self.controller, context, told, false, |o| {
            v1::PublishPolicyRevisionResponse {
                request_id: id.into(),
                publication: Some(render::policy::publication(o.publication)),
                store_revision: o.revision.0,
            }
        })
    }

    async fn pause_publication(
        &self,
        request: Request<v1::PausePublicationRequest>,
    ) -> Result<Response<v1::PausePublicationResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let context = parse::policy::alone(r.context, caller)?;
        let id = context.request.clone();
        let told = self.controller.pause_publication(context.clone()).await;
        command::response(&self.controller, context, told, false, |o| v1::PausePublicationResponse {
            request_id: id.into(),
            publication: Some(render::policy::publication(o.publication)),
            store_revision: o.revision.0,
        })
    }

    async fn resume_publication(
        &self,
        request: Request<v1::ResumePublicationRequest>,
    ) -> Result<Response<v1::ResumePublicationResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let context = parse::policy::alone(r.context, caller)?;
        let id = context.request.clone();
        let told = self.controller.resume_publication(context.clone()).await;
        command::response(&self.controller, context, told, false, |o| v1::ResumePublicationResponse {
            request_id: id.into(),
            publication: Some(render::policy::publication(o.publication)),
            store_revision: o.revision.0,
        })
    }

    async fn get_publication(
        &self,
        request: Request<v1::GetPublicationRequest>,
    ) -> Result<Response<v1::GetPublicationResponse>, Status> {
        scope::identity(&request, &self.controller).await?;
        let view = self.controller.publication().await?;
        Ok(Response::new(v1::GetPublicationResponse {
            publication: Some(render::policy::publication(view)),
        }))
    }

    type WatchPublicationStream = Pin<Box<dyn Stream<Item = Result<v1::WatchPublicationResponse, Status>> + Send>>;

    async fn watch_publication(
        &self,
        request: Request<v1::WatchPublicationRequest>,
    ) -> Result<Response<Self::WatchPublicationStream>, Status> {
        let by = scope::identity(&request, &self.controller).await?;
        let permit = watch::place(&self.watchers, &by)?;
        let mut seen = self.controller.watch_publication().await?;
        // What is so now comes first.
        seen.mark_changed();
        let watcher = (seen, self.stopped.clone(), permit);
        let changes = stream::unfold(Some(watcher), |watcher| async {
            let (mut seen, mut stopped, permit) = watcher?;
            let changed = tokio::select! {
                changed = seen.changed() => changed.is_ok(),
                _ = stopped.wait_for(|s| *s) => false,
            };
            if !changed {
                return Some((Err(watch::ended()), None));
            }
            let publication = seen.borrow_and_update().clone().map(render::policy::publication);
            let message = v1::WatchPublicationResponse { publication };
            Some((Ok(message), Some((seen, stopped, permit))))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
