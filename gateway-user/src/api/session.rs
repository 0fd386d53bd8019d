//! SessionService: for the VPN server.

use std::sync::Arc;

use lazaret_proto::v1::{self, session_service_server::SessionService};
use tonic::{Request, Response, Status};

use super::{
    command, page, parse, refusals, render,
    scope::{self, Outside, identity},
};
use crate::{
    access::refusals::Refusals,
    config::Config,
    controller::Controller,
    model::{Identity, SessionId},
};

/// The service.
#[derive(Debug)]
pub(super) struct Sessions {
    config: Arc<Config>,
    controller: Controller,
    refusals: Refusals,
}

impl Sessions {
    pub(super) fn new(config: Arc<Config>, controller: Controller, refusals: Refusals) -> Self {
        Self {
            config,
            controller,
            refusals,
        }
    }

    /// A session's number and source never change, so that what is found here holds when the session ends.
    async fn check_owner(&self, by: &Identity, request: &str, session: SessionId) -> Result<(), Status> {
        if by.scope.sources.is_none() {
            return Ok(());
        }
        match self.controller.source_of(session).await? {
            Some(source) if !scope::sees_source(by, source.as_str()) => {
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
        let told = told.map_err(|e| scope::seen_by(&context.by, e));
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
        let by = context.by.clone();
        let refer = |part: &mut v1::Refusal| {
            let path = "/lazaret.v1.SessionService/SynchroniseSessions";
            refusals::refer_now(&self.refusals, &by, path, id.as_str(), part);
        };
        let seen = by.clone();
        command::response(&self.controller, context, told, false, |mut o| {
            o.refused = o.refused.into_iter().map(|(i, e)| (i, scope::seen_by(&seen, e))).collect();
            render::synchronised(&id, o, refer)
        })
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

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        controller::{Refusal, tests::kit::Gateway},
        model::{Role, Scope},
    };

    fn closing(source: &str, session: SessionId) -> Request<v1::CloseSessionRequest> {
        let context = v1::SignalContext {
            request_id: "one".into(),
            ..Default::default()
        };
        let mut request = Request::new(v1::CloseSessionRequest {
            context: Some(context),
            session_id: session.0,
        });
        request.extensions_mut().insert(Identity {
            scope: Scope {
                sources: Some([source.parse().unwrap()].into()),
                devices: None,
            },
            ..Identity::unlimited(Role::Vpn, source)
        });
        request
    }

    #[tokio::test]
    async fn who_is_limited_to_a_source_ends_its_sessions_and_no_others_however_many_wait() {
        let g = Gateway::new().await;
        g.register("phone", "office").await;
        let session = g.open("phone", &["10.66.0.5"]).await.unwrap().session.session.id;
        let refusals = Refusals::new(Arc::new(refusals::Auditor(g.controller().clone())));
        let sessions = Sessions::new(g.config.clone(), g.controller().clone(), refusals);
        let refused = sessions.close_session(closing("vpn-2", session)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
        // The queue of what may be refused for load is full.
        let go = g.hold().await;
        let busy = || g.controller().drift().now_or_never();
        let full = std::iter::repeat_with(busy).find_map(|told| told).unwrap();
        assert_eq!(full.unwrap_err(), Refusal::Busy);
        let mut close = Box::pin(sessions.close_session(closing("vpn-1", session)));
        assert!((&mut close).now_or_never().is_none(), "it waits, and is not refused");
        go.send(()).unwrap();
        assert!(close.await.unwrap().into_inner().ended);
    }
}
