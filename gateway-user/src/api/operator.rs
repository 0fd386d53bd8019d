//! OperatorService: what people decide by hand, and what they look up.

use std::sync::Arc;

use lazaret_proto::v1::{self, operator_service_server::OperatorService};
use tonic::{Request, Response, Status};

use super::{command, page, parse, refusals, render, scope};
use crate::{
    access::{answer, refusals::Refusals},
    audit::Head,
    config::Config,
    controller::{Answer, AuditQuery, Controller, Refused, SignalContext, SignalOutcome},
};

/// The service.
#[derive(Debug)]
pub(super) struct Operators {
    config: Arc<Config>,
    controller: Controller,
    refusals: Refusals,
}

impl Operators {
    pub(super) fn new(config: Arc<Config>, controller: Controller, refusals: Refusals) -> Self {
        Self {
            config,
            controller,
            refusals,
        }
    }

    fn signal(
        &self,
        context: SignalContext,
        told: Result<Answer<SignalOutcome>, Refused>,
    ) -> Result<Response<v1::SignalResponse>, Status> {
        let id = context.request.clone();
        command::response(&self.controller, context, told, false, |o| {
            render::signal(&self.config, &id, o)
        })
    }
}

#[tonic::async_trait]
impl OperatorService for Operators {
    async fn grant_exception(&self, request: Request<v1::GrantExceptionRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, g) = parse::operator::grant(r, caller)?;
        let told = self
            .controller
            .grant_exception(context.clone(), g.device, g.kind, g.reason, g.length)
            .await;
        self.signal(context, told)
    }

    async fn end_exception(&self, request: Request<v1::EndExceptionRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, device, reason) = parse::operator::end(r, caller)?;
        let told = self.controller.end_exception(context.clone(), device, reason).await;
        self.signal(context, told)
    }

    async fn get_drift(&self, request: Request<v1::GetDriftRequest>) -> Result<Response<v1::GetDriftResponse>, Status> {
        scope::identity(&request, &self.controller).await?;
        let d = self.controller.drift().await?;
        Ok(Response::new(v1::GetDriftResponse {
            compared: d.compared,
            found: d.found,
            repaired: d.repaired,
            last_round_at: d.round_at.map(render::timestamp),
            last: d.last.into_iter().map(render::operator::drift).collect(),
        }))
    }

    async fn check_drift(&self, request: Request<v1::CheckDriftRequest>) -> Result<Response<v1::CheckDriftResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        // What repeats it compares again: there is no answer to be kept.
        let context = parse::policy::alone(r.context, caller)?;
        let d = self.controller.check_drift().await?;
        Ok(Response::new(v1::CheckDriftResponse {
            request_id: context.request.into(),
            compared: d.compared,
            found: d.found,
            repaired: d.repaired,
            differences: d.last.into_iter().map(render::operator::drift).collect(),
        }))
    }

    async fn list_audit_entries(
        &self,
        request: Request<v1::ListAuditEntriesRequest>,
    ) -> Result<Response<v1::ListAuditEntriesResponse>, Status> {
        scope::identity(&request, &self.controller).await?;
        let r = request.into_inner();
        let list = format!("audit/{}", r.device_id);
        let device = parse::operator::audit_filter(r.device_id)?;
        let page = page::parse(&list, r.page_size, &r.page_token)?;
        let number = page.after.map(|n| n.parse()).transpose().map_err(|_| page::invalid())?;
        // One more than is answered tells whether there is a next page.
        let query = AuditQuery::Before {
            number,
            device,
            limit: page.size + 1,
        };
        let mut entries = self.controller.audit(query).await?;
        let size = page.size as usize;
        let more = entries.len() > size;
        entries.truncate(size);
        let next_page_token = match entries.last() {
            Some(last) if more => page::token(&list, &last.entry.number.to_string()),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListAuditEntriesResponse {
            entries: entries.into_iter().map(|e| render::operator::audit_entry(e.entry)).collect(),
            next_page_token,
        }))
    }

    async fn get_audit_entry(
        &self,
        request: Request<v1::GetAuditEntryRequest>,
    ) -> Result<Response<v1::GetAuditEntryResponse>, Status> {
        scope::identity(&request, &self.controller).await?;
        let number = parse::operator::audit_number(request.into_inner().number)?;
        let found = self.controller.audit(AuditQuery::Number(number)).await?.pop();
        let entry = found.ok_or_else(|| {
            let sentence = format!("the audit has no entry A{number}: it was never written, or is pruned");
            // Not `reference`: that is the code of this refusal, if it has one.
            let about = [("code", format!("A{number}"))];
            answer::status(tonic::Code::NotFound, "UNKNOWN_AUDIT_ENTRY", about, &sentence)
        })?;
        Ok(Response::new(v1::GetAuditEntryResponse {
            entry: Some(render::operator::audit_entry(entry.entry)),
        }))
    }

    async fn get_refusal(&self, request: Request<v1::GetRefusalRequest>) -> Result<Response<v1::GetRefusalResponse>, Status> {
        // It asks the controller nothing: its queue may be what the refusal is about.
        scope::identity(&request, &self.controller).await?;
        let number = parse::operator::audit_number(request.into_inner().number)?;
        Ok(Response::new(v1::GetRefusalResponse {
            refusal: Some(refusals::found(&self.refusals, number)?),
        }))
    }

    async fn get_audit_head(
        &self,
        request: Request<v1::GetAuditHeadRequest>,
    ) -> Result<Response<v1::GetAuditHeadResponse>, Status> {
        scope::identity(&request, &self.controller).await?;
        let head = self.controller.audit_head().await?;
        let sha256 = if head == Head::NONE {
            String::new()
        } else {
            head.hash.iter().map(|b| format!("{b:02x}")).collect()
        };
        Ok(Response::new(v1::GetAuditHeadResponse {
            number: head.number,
            sha256,
        }))
    }
}
