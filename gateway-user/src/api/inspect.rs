//! InspectService: for people. Reads; changes nothing that judges.

use std::{collections::HashMap, sync::Arc};

use lazaret_proto::v1::{self, inspect_service_server::InspectService};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::{
    Views, capture,
    denials::{self, Answers, Filter, Teller, pool_filter},
    explain::Explainer,
    page::{self, limit},
    parse, render, scope, status,
};
use crate::{
    access::{live::Access, shares::Places},
    clock::SystemClock,
    config::Config,
    controller::{Controller, SessionView},
    events::KEPT,
    model::{PoolId, SessionId},
    privileges,
};

/// Sessions that are asked for in one command, so that the controller's queue is never held for long.
const SESSIONS_PAGE: u32 = 1000;
/// Most addresses of one answer.
const MAX_ADDRESSES: u32 = 10_000;

/// The service.
#[derive(Debug)]
pub(super) struct Inspect {
    config: Arc<Config>,
    controller: Controller,
    views: Views,
    access: Access,
    clock: SystemClock,
    explainer: Explainer,
    watchers: Places,
    stopped: watch::Receiver<bool>,
}

impl Inspect {
    /// `stopped` ends the streams when it becomes true.
    pub(super) fn new(
        config: Arc<Config>,
        controller: Controller,
        views: Views,
        access: Access,
        clock: SystemClock,
        stopped: watch::Receiver<bool>,
    ) -> Self {
        Self {
            explainer: Explainer::new(Arc::clone(&config), controller.clone(), Arc::clone(&views.prober)),
            config,
            controller,
            views,
            access,
            clock,
            watchers: denials::places(),
            stopped,
        }
    }

    /// Shows every live session to `see`.
    async fn sessions(&self, mut see: impl FnMut(&SessionView) + Send) -> Result<(), Status> {
        let mut after = None;
        loop {
            let page = self
                .controller
                .sessions(after, SESSIONS_PAGE)
                .await
                .map_err(|e| status::refused(&e))?;
            page.iter().for_each(&mut see);
            match page.last() {
                Some(last) if page.len() >= SESSIONS_PAGE as usize => after = Some(last.session.id),
                _ => return Ok(()),
            }
        }
    }

    fn teller(&self) -> Teller {
        Teller {
            config: Arc::clone(&self.config),
            controller: self.controller.clone(),
            clock: self.clock,
        }
    }
}

#[tonic::async_trait]
impl InspectService for Inspect {
    async fn get_status(&self, request: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let all = scope::sees_all(&scope::caller(&request)?);
        let mut s = self.controller.status().await.map_err(|e| status::refused(&e))?;
        if all {
            s.warnings.append(&mut s.conflicts);
        }
        let mut answer = render::gateway_status(s);
        answer.warnings.extend(self.access.warnings());
        (answer.user, answer.capabilities) = privileges::held();
        Ok(Response::new(answer))
    }

    async fn list_pools(&self, _: Request<v1::ListPoolsRequest>) -> Result<Response<v1::ListPoolsResponse>, Status> {
        let counters = self.controller.counters().await.map_err(|e| status::refused(&e))?.counters;
        let mut addresses: HashMap<PoolId, u64> = HashMap::new();
        self.sessions(|s| *addresses.entry(s.current_pool).or_default() += s.session.addresses.len() as u64)
            .await?;
        let of = |id| addresses.get(&id).copied().unwrap_or_default();
        let pools = self
            .config
            .pools
            .iter()
            .map(|p| render::pool(&self.config, p, of(p.id), &counters))
            .collect();
        Ok(Response::new(v1::ListPoolsResponse { pools }))
    }

    async fn list_addresses(
        &self,
        request: Request<v1::ListAddressesRequest>,
    ) -> Result<Response<v1::ListAddressesResponse>, Status> {
        let r = request.into_inner();
        let address = parse::address_filter(&r.address).map_err(|e| status::invalid(&e))?;
        let limit = limit(r.limit, 1000, MAX_ADDRESSES);
        let list = format!("addresses/{}", r.address);
        let page = page::parse(&list, limit, &r.page_token).map_err(|e| status::invalid(&e))?;
        let after = page.after.map(|a| a.parse().map(SessionId)).transpose();
        let after = after.map_err(|_| status::invalid(&page::invalid()))?;
        let (views, last) = self
            .controller
            .addresses(address, after, limit)
            .await
            .map_err(|e| status::refused(&e))?;
        let addresses = views.into_iter().map(|v| render::address(&self.config, v)).collect();
        Ok(Response::new(v1::ListAddressesResponse {
            addresses,
            next_page_token: last.map_or_else(String::new, |id| page::token(&list, &id.to_string())),
        }))
    }

    async fn get_counters(&self, request: Request<v1::GetCountersRequest>) -> Result<Response<v1::GetCountersResponse>, Status> {
        let pool = pool_filter(&self.config, request.into_inner().pool).map_err(|e| status::invalid(&e))?;
        let c = self.controller.counters().await.map_err(|e| status::refused(&e))?;
        Ok(Response::new(render::counters(&self.config, c, pool)))
    }

    async fn list_denials(&self, request: Request<v1::ListDenialsRequest>) -> Result<Response<v1::ListDenialsResponse>, Status> {
        let r = request.into_inner();
        let filter = Filter::parse(&self.config, &r.address, &r.reason, r.pool, r.device_id).map_err(|e| status::invalid(&e))?;
        let limit = limit(r.limit, 50, u32::try_from(KEPT).unwrap_or(u32::MAX)) as usize;
        let teller = self.teller();
        let denials = teller.last(&self.views.denials, &filter, limit).await?;
        let lost = teller.losses().await?;
        Ok(Response::new(v1::ListDenialsResponse {
            denials,
            events_suppressed: lost.suppressed,
            events_lost: lost.lost,
            events_repeated: lost.repeated,
        }))
    }

    type WatchDenialsStream = Answers<v1::WatchDenialsResponse>;

    async fn watch_denials(
        &self,
        request: Request<v1::WatchDenialsRequest>,
    ) -> Result<Response<Self::WatchDenialsStream>, Status> {
        let by = scope::caller(&request)?;
        let r = request.into_inner();
        let filter = Filter::parse(&self.config, &r.address, &r.reason, r.pool, r.device_id).map_err(|e| status::invalid(&e))?;
        let permit = super::watch::place(&self.watchers, &by)?;
        let (teller, stopped) = (self.teller(), self.stopped.clone());
        let answers = denials::watch(teller, &self.views.denials, filter, r.last, stopped, permit).await?;
        Ok(Response::new(answers))
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        self.explainer.explain(request.into_inner()).await.map(Response::new)
    }

    type CaptureDeniedStream = Answers<v1::CaptureDeniedResponse>;

    async fn capture_denied(
        &self,
        request: Request<v1::CaptureDeniedRequest>,
    ) -> Result<Response<Self::CaptureDeniedStream>, Status> {
        let by = scope::caller(&request)?;
        let mut r = request.into_inner();
        let (pool, device) = (std::mem::take(&mut r.pool), std::mem::take(&mut r.device_id));
        let filter = Filter::parse(&self.config, &r.address, &r.reason, pool, device).map_err(|e| status::invalid(&e))?;
        let permit = super::watch::place(&self.watchers, &by)?;
        let teller = self.teller();
        teller.check(&filter).await?;
        let stopped = self.stopped.clone();
        let answers = capture::capture(teller, &self.views.captures, filter, &r, stopped, permit).await?;
        Ok(Response::new(answers))
    }
}
