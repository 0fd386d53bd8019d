//! SessionService: for the VPN server.

use std::sync::Arc;

use lazaret_proto::v1::{self, session_service_server::SessionService};
use tonic::{Request, Response, Status};

use super::{
    command, page, parse, render,
    scope::{self, Outside, identity},
};
use crate::{
    config::Config,
    controller::Controller,
    model::{Identity, SessionId},
};

/// The service.
#[derive(Debug)]
pub(super) struct Sessions {
    config: Arc<Config>,
    controller: Controller,
}

impl Sessions {
    pub(super) fn new(config: Arc<Config>, controller: Controller) -> Self {
        Self { config, controller }
    }

    /// A session's number and source never change, so that what is found here holds when the session ends.
    async fn check_owner(&self, by: &Identity, request: &str, session: SessionId) -> Result<(), Status> {
        if by.scope.sources.is_none() {
            return Ok(());
        }
        let before = session.0.checked_sub(1).map(SessionId);
        let found = self.controller.sessions(before, 1).await?;
        match found.first() {
            Some(view) if view.session.id == session && !scope::sees_source(by, view.session.source.as_str()) => {
                let outside = Outside::new(&format!("session {session}"), None);
                Err(scope::refused(&self.controller, by, "CloseSession", request, outside).await)
            }
            _ => Ok(()),
        }
    }
}

#[tonic::async_trait]
impl SessionService for Sessions {
    async fn open_session(&self, request: Request<v1::OpenSessionRequest>) -> Result<Response<v1::OpenSessionResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, source, report) = parse::open_session(r, caller)?;
        let id = context.request.clone();
        let told = self.controller.open_session(context.clone(), source, report).await;
        command::response(&self.controller, context, told, false, |o| {
            render::opened(&self.config, &id, o)
        })
    }

    async fn close_session(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, session) = parse::close_session(r, caller)?;
        self.check_owner(&context.by, context.request.as_str(), session).await?;
        let id = context.request.clone();
        let told = self.controller.close_session(context.clone(), session).await;
        command::response(&self.controller, context, told, false, |o| render::closed(&id, o))
    }

    async fn synchronise_sessions(
        &self,
        request: Request<v1::SynchroniseSessionsRequest>,
    ) -> Result<Response<v1::SynchroniseSessionsResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, source, reports) = parse::synchronise(r, caller)?;
        let id = context.request.clone();
        let told = self.controller.synchronise_sessions(context.clone(), source, reports).await;
        command::response(&self.controller, context, told, false, |o| render::synchronised(&id, o))
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        const LIST: &str = "sessions";
        let by = identity(&request, &self.controller).await?;
        let r = request.into_inner();
        let page = page::parse(LIST, r.page_size, &r.page_token)?;
        let mut after: Option<SessionId> = page
            .after
            .map(|a| a.parse().map(SessionId))
            .transpose()
            .map_err(|_| page::invalid())?;
        // One more than is answered tells whether there is a next page. What is outside the caller's scope makes no page shorter.
        let size = page.size as usize;
        let mut views = Vec::new();
        while views.len() <= size {
            let found = self.controller.sessions(after, page.size + 1).await?;
            let all = found.len() <= size;
            after = found.last().map(|s| s.session.id);
            views.extend(
                found
                    .into_iter()
                    .filter(|s| scope::sees_source(&by, s.session.source.as_str())),
            );
            if all {
                break;
            }
        }
        let more = views.len() > size;
        views.truncate(size);
        let next_page_token = match views.last() {
            Some(last) if more => page::token(LIST, &last.session.id.to_string()),
            _ => String::new(),
        };
        let sessions = views.into_iter().map(|s| render::session(&self.config, s)).collect();
        Ok(Response::new(v1::ListSessionsResponse {
            sessions,
            next_page_token,
        }))
    }
}
