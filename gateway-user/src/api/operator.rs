//! OperatorService: what people decide by hand, and what they look up.

use lazaret_proto::v1::{self, operator_service_server::OperatorService};
use tonic::{Request, Response, Status};

use super::status;

/// The service.
#[derive(Debug)]
pub(super) struct Operators;

#[tonic::async_trait]
impl OperatorService for Operators {
    async fn grant_exception(&self, _: Request<v1::GrantExceptionRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn end_exception(&self, _: Request<v1::EndExceptionRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn get_drift(&self, _: Request<v1::GetDriftRequest>) -> Result<Response<v1::GetDriftResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn check_drift(&self, _: Request<v1::CheckDriftRequest>) -> Result<Response<v1::CheckDriftResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn list_audit_entries(
        &self,
        _: Request<v1::ListAuditEntriesRequest>,
    ) -> Result<Response<v1::ListAuditEntriesResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn get_audit_entry(&self, _: Request<v1::GetAuditEntryRequest>) -> Result<Response<v1::GetAuditEntryResponse>, Status> {
        Err(status::not_implemented())
    }

    async fn get_audit_head(&self, _: Request<v1::GetAuditHeadRequest>) -> Result<Response<v1::GetAuditHeadResponse>, Status> {
        Err(status::not_implemented())
    }
}
