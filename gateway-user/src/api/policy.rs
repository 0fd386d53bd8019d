//! PolicyService: for the MDM.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use lazaret_proto::v1::{self, policy_service_server::PolicyService};
use tokio::sync::{Semaphore, watch};
use tonic::{Code, Request, Response, Status, Streaming};

use super::{
    report::{self, Reporter},
    scope, status,
};
use crate::{access::answer, config::Config, controller::Controller};

/// Most streams of signals at a time, over all connections: each holds up to [`report::MOST_UNDER_WAY`] signals.
const MAX_REPORTS: usize = 64;

/// The service.
#[derive(Debug)]
pub(super) struct Policies {
    config: Arc<Config>,
    controller: Controller,
    reports: Arc<Semaphore>,
    stopped: watch::Receiver<bool>,
}

impl Policies {
    /// `stopped` ends the streams when it becomes true.
    pub(super) fn new(config: Arc<Config>, controller: Controller, stopped: watch::Receiver<bool>) -> Self {
        Self {
            config,
            controller,
            reports: Arc::new(Semaphore::new(MAX_REPORTS)),
            stopped,
        }
    }
}

#[tonic::async_trait]
impl PolicyService for Policies {
    async fn offer_policy(&self, _: Request<v1::OfferPolicyRequest>) -> Result<Response<v1::OfferPolicyResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn acknowledge_policy(
        &self,
        _: Request<v1::AcknowledgePolicyRequest>,
    ) -> Result<Response<v1::AcknowledgePolicyResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn renew_leases(&self, _: Request<v1::RenewLeasesRequest>) -> Result<Response<v1::RenewLeasesResponse>, Status> {
        Err(status::not_implemented())
    }

    type ReportPolicyStream = Pin<Box<dyn Stream<Item = Result<v1::ReportPolicyResponse, Status>> + Send>>;

    async fn report_policy(
        &self,
        request: Request<Streaming<v1::ReportPolicyRequest>>,
    ) -> Result<Response<Self::ReportPolicyStream>, Status> {
        let reporter = Arc::new(Reporter {
            config: Arc::clone(&self.config),
            controller: self.controller.clone(),
            by: scope::caller(&request)?,
        });
        let permit = Arc::clone(&self.reports).try_acquire_owned().map_err(|_| {
            let most = [("most", MAX_REPORTS.to_string())];
            let sentence = "as many streams of signals as the gateway serves are open";
            answer::status(Code::ResourceExhausted, "TOO_MANY_STREAMS", most, sentence)
        })?;
        let answers = report::answers(reporter, request.into_inner(), self.stopped.clone(), permit);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn publish_policy_revision(
        &self,
        _: Request<v1::PublishPolicyRevisionRequest>,
    ) -> Result<Response<v1::PublishPolicyRevisionResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn pause_publication(
        &self,
        _: Request<v1::PausePublicationRequest>,
    ) -> Result<Response<v1::PausePublicationResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn resume_publication(
        &self,
        _: Request<v1::ResumePublicationRequest>,
    ) -> Result<Response<v1::ResumePublicationResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn get_publication(
        &self,
        _: Request<v1::GetPublicationRequest>,
    ) -> Result<Response<v1::GetPublicationResponse>, Status> {
        Err(status::not_implemented())
    }

    type WatchPublicationStream = Pin<Box<dyn Stream<Item = Result<v1::WatchPublicationResponse, Status>> + Send>>;

    async fn watch_publication(
        &self,
        _: Request<v1::WatchPublicationRequest>,
    ) -> Result<Response<Self::WatchPublicationStream>, Status> {
        Err(status::not_implemented())
    }
}
