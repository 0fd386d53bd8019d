//! PolicyService: for the MDM.

use std::pin::Pin;

use futures_util::Stream;
use lazaret_proto::v1::{self, policy_service_server::PolicyService};
use tonic::{Request, Response, Status, Streaming};

use super::status;

/// The service.
#[derive(Debug)]
pub(super) struct Policies;

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
        _: Request<Streaming<v1::ReportPolicyRequest>>,
    ) -> Result<Response<Self::ReportPolicyStream>, Status> {
        Err(status::not_implemented())
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
