//! DeviceService: for the MDM.

use std::{pin::Pin, sync::Arc, vec};

use futures_util::{Stream, stream};
use lazaret_proto::v1::{self, device_service_server::DeviceService};
use prost::Message as _;
use tokio::sync::{broadcast, watch};
use tonic::{Code, Request, Response, Status};

use super::{
    command, ledger, page, parse, render,
    scope::{self, identity},
};
use crate::{
    access::{
        answer,
        shares::{Places, Taken},
    },
    clock::{Clock as _, SystemClock},
    config::Config,
    controller::{Answer, Controller, Refused, SignalContext, SignalOutcome, UriChange},
    model::{DeviceId, Identity, Revision},
    why,
};

/// Bytes of devices in a page, beyond the first one's.
const PAGE: usize = 1 << 20;

/// The service.
#[derive(Debug)]
pub(super) struct Devices {
    config: Arc<Config>,
    controller: Controller,
    clock: SystemClock,
    watchers: Places,
    stopped: watch::Receiver<bool>,
}

impl Devices {
    /// `stopped` ends the watches when it becomes true.
    pub(super) fn new(config: Arc<Config>, controller: Controller, clock: SystemClock, stopped: watch::Receiver<bool>) -> Self {
        Self {
            config,
            controller,
            clock,
            watchers: super::watch::places(),
            stopped,
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
impl DeviceService for Devices {
    async fn register_devices(
        &self,
        request: Request<v1::RegisterDevicesRequest>,
    ) -> Result<Response<v1::RegisterDevicesResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, devices) = parse::register(r, caller)?;
        let told = self.controller.register(context.clone(), devices).await;
        let told = told.map_err(|e| scope::seen_by(&context.by, e));
        let request_id = context.request.to_string();
        command::response(&self.controller, context, told, false, |(devices, revision)| {
            v1::RegisterDevicesResponse {
                request_id,
                devices: devices.into_iter().map(|d| render::device(&self.config, d)).collect(),
                store_revision: revision.0,
            }
        })
    }

    async fn report_policy_applied(
        &self,
        request: Request<v1::ReportPolicyAppliedRequest>,
    ) -> Result<Response<v1::SignalResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, a) = parse::policy_applied(r, caller)?;
        let told = self
            .controller
            .policy_applied(context.clone(), a.device, a.revision, a.key)
            .await;
        self.signal(context, told)
    }

    async fn report_policy_revoked(
        &self,
        request: Request<v1::ReportPolicyRevokedRequest>,
    ) -> Result<Response<v1::SignalResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, device, reason) = parse::policy_revoked(r, caller)?;
        let told = self.controller.policy_revoked(context.clone(), device, reason).await;
        self.signal(context, told)
    }

    async fn retire_device(&self, request: Request<v1::RetireDeviceRequest>) -> Result<Response<v1::SignalResponse>, Status> {
        let (r, caller) = command::taken(request, &self.controller).await?;
        let (context, device) = parse::retire(r, caller)?;
        let told = self.controller.retire(context.clone(), device).await;
        self.signal(context, told)
    }

    async fn get_device(&self, request: Request<v1::GetDeviceRequest>) -> Result<Response<v1::GetDeviceResponse>, Status> {
        identity(&request, &self.controller).await?;
        let device = parse::get_device(request.into_inner())?;
        let view = self.controller.device(device).await?;
        Ok(Response::new(v1::GetDeviceResponse {
            device: Some(render::device(&self.config, view)),
        }))
    }

    async fn list_devices(&self, request: Request<v1::ListDevicesRequest>) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let by = identity(&request, &self.controller).await?;
        let r = request.into_inner();
        let state = parse::state_filter(r.state)?;
        let list = format!("devices/{}", r.state);
        let page = page::parse(&list, r.page_size, &r.page_token)?;
        let after: Option<DeviceId> = page.after.map(DeviceId::try_from).transpose().map_err(|_| page::invalid())?;
        // One more than is answered tells whether there is a next page. What is outside the caller's scope makes no page shorter.
        let size = page.size as usize;
        let mut views = self.controller.devices(after, page.size + 1, state, by.scope).await?;
        let mut more = views.len() > size;
        views.truncate(size);
        let (mut devices, mut bytes) = (Vec::with_capacity(views.len()), 0);
        for view in views {
            let device = render::device(&self.config, view);
            bytes += device.encoded_len();
            // Devices with many aliases make a page large, and it is held until its reader has taken it.
            if bytes > PAGE && !devices.is_empty() {
                more = true;
                break;
            }
            devices.push(device);
        }
        let next_page_token = match devices.last() {
            Some(last) if more => page::token(&list, &last.device_id),
            _ => String::new(),
        };
        Ok(Response::new(v1::ListDevicesResponse {
            devices,
            next_page_token,
        }))
    }

    async fn explain_device(
        &self,
        request: Request<v1::ExplainDeviceRequest>,
    ) -> Result<Response<v1::ExplainDeviceResponse>, Status> {
        let by = identity(&request, &self.controller).await?;
        let (device, events) = parse::explain_device(request.into_inner())?;
        let mut dossier = self.controller.dossier(device, events).await?;
        for told in &mut dossier.entries {
            told.entry = scope::told_to(&by, told.entry.clone());
        }
        // It counts everybody's devices.
        dossier.standstill = dossier.standstill.filter(|_| by.scope.has_all_devices());
        let answer = why::answer(&dossier, &self.config, self.clock.now().wall);
        Ok(Response::new(render::device::explained(&self.config, answer, dossier)))
    }

    async fn get_ledger(&self, request: Request<v1::GetLedgerRequest>) -> Result<Response<v1::GetLedgerResponse>, Status> {
        identity(&request, &self.controller).await?;
        ledger::counts(&self.controller).await.map(Response::new)
    }

    async fn list_ledger_entries(
        &self,
        request: Request<v1::ListLedgerEntriesRequest>,
    ) -> Result<Response<v1::ListLedgerEntriesResponse>, Status> {
        let by = identity(&request, &self.controller).await?;
        ledger::entries(&self.controller, &by, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchGatewayUrisStream = Pin<Box<dyn Stream<Item = Result<v1::WatchGatewayUrisResponse, Status>> + Send>>;

    async fn watch_gateway_uris(
        &self,
        request: Request<v1::WatchGatewayUrisRequest>,
    ) -> Result<Response<Self::WatchGatewayUrisStream>, Status> {
        let by = identity(&request, &self.controller).await?;
        let after = parse::watch(request.into_inner());
        let permit = super::watch::place(&self.watchers, &by)?;
        let (kept, live) = self.controller.watch_gateway_uris(after).await?;
        let watcher = Watcher {
            controller: self.controller.clone(),
            last: kept.last().map(|c| c.revision).max(after),
            kept: kept.into_iter(),
            live,
            by,
            stopped: self.stopped.clone(),
            _permit: permit,
        };
        let changes = stream::unfold(Some(watcher), |watcher| async {
            let mut watcher = watcher?;
            let change = watcher.next().await;
            let ended = change.is_err();
            Some((change.map(render::uri_change), (!ended).then_some(watcher)))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

/// A watch: first what was kept, then what happens, until an error ends it.
struct Watcher {
    controller: Controller,
    kept: vec::IntoIter<UriChange>,
    /// `None`: more is kept behind `kept`.
    live: Option<broadcast::Receiver<UriChange>>,
    /// Up to which revision `kept` goes.
    last: Option<Revision>,
    /// What is outside his scope is left out.
    by: Identity,
    stopped: watch::Receiver<bool>,
    _permit: Taken,
}

impl Watcher {
    async fn next(&mut self) -> Result<UriChange, Status> {
        loop {
            if let Some(change) = self.kept.find(|c| scope::sees_device(&self.by, c.device.as_str())) {
                return Ok(change);
            }
            let Some(live) = &mut self.live else {
                let (kept, live) = self.controller.watch_gateway_uris(self.last).await?;
                self.last = kept.last().map(|c| c.revision).max(self.last);
                (self.kept, self.live) = (kept.into_iter(), live);
                continue;
            };
            let received = tokio::select! {
                r = live.recv() => r,
                _ = self.stopped.wait_for(|s| *s) => Err(broadcast::error::RecvError::Closed),
            };
            match received {
                Ok(change) if Some(change.revision) > self.last && scope::sees_device(&self.by, change.device.as_str()) => {
                    return Ok(change);
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => {
                    let sentence =
                        "the watcher read too slowly and changes were not sent; watch again from the last revision received";
                    return Err(answer::status(
                        Code::DataLoss,
                        "WATCH_LAGGED",
                        [("missed", missed.to_string())],
                        sentence,
                    ));
                }
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(super::watch::ended());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::{
        controller::tests::kit::Gateway,
        model::{Role, Scope, WallTime},
    };

    fn change(revision: u64) -> UriChange {
        UriChange {
            revision: Revision(revision),
            device: "d".parse().unwrap(),
            old: "a".into(),
            new: "b".into(),
            at: WallTime(0),
            reason: "policy_applied".into(),
        }
    }

    struct Fixture {
        live: broadcast::Sender<UriChange>,
        stop: watch::Sender<bool>,
        watcher: Watcher,
        gateway: Gateway,
    }

    async fn watcher(kept: Vec<UriChange>) -> Fixture {
        let (live, receiver) = broadcast::channel(2);
        let (stop, stopped) = watch::channel(false);
        let by = Identity::unlimited(Role::Mdm, "test");
        let permit = super::super::watch::places().take(&by).unwrap();
        let last = kept.last().map(|c| c.revision);
        let gateway = Gateway::new().await;
        let watcher = Watcher {
            controller: gateway.controller().clone(),
            kept: kept.into_iter(),
            live: Some(receiver),
            last,
            by,
            stopped,
            _permit: permit,
        };
        Fixture {
            live,
            stop,
            watcher,
            gateway,
        }
    }

    #[tokio::test]
    async fn what_is_kept_comes_page_by_page_and_then_what_happens() {
        let mut f = watcher(vec![]).await;
        (f.watcher.live, f.watcher.last) = (None, Some(Revision(0)));
        for device in ["one", "two", "three"] {
            f.gateway.register(device, "office").await;
            f.gateway.applied(device).await.unwrap();
        }
        for device in ["one", "two", "three"] {
            assert_eq!(f.watcher.next().await.unwrap().device.as_str(), device);
        }
        f.gateway.revoked("two").await.unwrap();
        assert_eq!(f.watcher.next().await.unwrap().device.as_str(), "two");
    }

    #[tokio::test]
    async fn what_was_kept_comes_first_and_nothing_twice() {
        let mut f = watcher(vec![change(3), change(4)]).await;
        f.live.send(change(4)).unwrap();
        f.live.send(change(5)).unwrap();
        for want in [3, 4, 5] {
            assert_eq!(f.watcher.next().await.unwrap().revision, Revision(want));
        }
        f.live.send(change(6)).unwrap();
        f.live.send(change(6)).unwrap();
        for _ in 0..2 {
            assert_eq!(
                f.watcher.next().await.unwrap().revision,
                Revision(6),
                "one revision can change two devices"
            );
        }
    }

    #[tokio::test]
    async fn what_is_outside_the_scope_is_left_out() {
        let of = |device: &str, revision| UriChange {
            device: device.parse().unwrap(),
            ..change(revision)
        };
        let mut f = watcher(vec![of("b", 3), of("a", 4)]).await;
        f.watcher.by.scope = Scope {
            devices: Some(["a".parse().unwrap()].into()),
            ..Scope::default()
        };
        f.live.send(of("b", 5)).unwrap();
        f.live.send(of("a", 6)).unwrap();
        for want in [4, 6] {
            assert_eq!(f.watcher.next().await.unwrap().revision, Revision(want));
        }
    }

    #[tokio::test]
    async fn a_slow_watcher_is_told() {
        let mut f = watcher(vec![]).await;
        for r in 1..=3 {
            f.live.send(change(r)).unwrap();
        }
        let e = f.watcher.next().await.unwrap_err();
        assert_eq!(
            (e.code(), e.get_details_error_info().unwrap().reason.as_str()),
            (Code::DataLoss, "WATCH_LAGGED")
        );
    }

    #[tokio::test]
    async fn a_watch_ends_with_the_daemon() {
        let mut f = watcher(vec![]).await;
        f.stop.send_replace(true);
        assert_eq!(f.watcher.next().await.unwrap_err().code(), Code::Unavailable);
        let mut f = watcher(vec![]).await;
        drop(f.live);
        assert_eq!(f.watcher.next().await.unwrap_err().code(), Code::Unavailable);
    }
}
