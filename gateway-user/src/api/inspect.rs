//! InspectService: for people. Reads; changes nothing.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use gateway_ebpf::reason::Reason;
use lazaret_proto::v1::{self, inspect_service_server::InspectService};
use nix::net::if_::if_indextoname;
use tonic::{Request, Response, Status};

use super::{
    page::limit,
    parse::{self, Invalid},
    render, status,
};
use crate::{
    clock::{Clock as _, SystemClock},
    config::Config,
    controller::{Controller, SessionView},
    events::{Denials, KEPT},
    model::{DeviceId, Now, PoolId, PoolName, WallTime},
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
    denials: Denials,
    clock: SystemClock,
}

impl Inspect {
    pub(super) fn new(config: Arc<Config>, controller: Controller, denials: Denials, clock: SystemClock) -> Self {
        Self {
            config,
            controller,
            denials,
            clock,
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

    /// The devices of the live sessions that hold these addresses.
    async fn holders(&self, wanted: HashSet<IpAddr>) -> Result<HashMap<IpAddr, DeviceId>, Status> {
        let mut holders = HashMap::new();
        if wanted.is_empty() {
            return Ok(holders);
        }
        self.sessions(|s| {
            if let Some(device) = &s.session.device {
                let held = s.session.addresses.iter().filter(|a| wanted.contains(a));
                holders.extend(held.map(|a| (*a, device.clone())));
            }
        })
        .await?;
        Ok(holders)
    }
}

#[tonic::async_trait]
impl InspectService for Inspect {
    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<v1::GetStatusResponse>, Status> {
        let s = self.controller.status().await.map_err(|e| status::refused(&e))?;
        Ok(Response::new(render::gateway_status(s)))
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
        let views = self
            .controller
            .addresses(address, limit)
            .await
            .map_err(|e| status::refused(&e))?;
        let addresses = views.into_iter().map(|v| render::address(&self.config, v)).collect();
        Ok(Response::new(v1::ListAddressesResponse { addresses }))
    }

    async fn get_counters(&self, request: Request<v1::GetCountersRequest>) -> Result<Response<v1::GetCountersResponse>, Status> {
        let pool = pool_filter(&self.config, request.into_inner().pool).map_err(|e| status::invalid(&e))?;
        let c = self.controller.counters().await.map_err(|e| status::refused(&e))?;
        let wanted = c.counters.into_iter().filter(|c| pool.is_none() || c.pool == pool);
        Ok(Response::new(v1::GetCountersResponse {
            counters: wanted.map(|c| render::counter(&self.config, c)).collect(),
            events_suppressed: c.suppressed,
            events_lost: c.lost,
        }))
    }

    async fn list_denials(&self, request: Request<v1::ListDenialsRequest>) -> Result<Response<v1::ListDenialsResponse>, Status> {
        let r = request.into_inner();
        let address = parse::address_filter(&r.address).map_err(|e| status::invalid(&e))?;
        let reason = reason_filter(&r.reason).map_err(|e| status::invalid(&e))?;
        let limit = limit(r.limit, 50, u32::try_from(KEPT).unwrap_or(u32::MAX)) as usize;
        let events = self.denials.last(limit, |e| {
            (address.is_none() || e.source == address || e.destination == address)
                && reason.is_none_or(|reason| e.record.reason == reason as u8)
        });
        let ends: Vec<Option<IpAddr>> = events.iter().map(|e| render::device_end(&self.config, e)).collect();
        let holders = self.holders(ends.iter().flatten().copied().collect()).await?;
        let lost = self.controller.counters().await.map_err(|e| status::refused(&e))?;
        let now = self.clock.now();
        let mut names = HashMap::new();
        let denials = events.iter().zip(ends).map(|(e, end)| {
            let name = names
                .entry(e.record.ifindex)
                .or_insert_with(|| interface_name(e.record.ifindex))
                .clone();
            render::denial(
                &self.config,
                e,
                wall_time(now, e.record.at),
                name,
                end.and_then(|a| holders.get(&a)),
            )
        });
        Ok(Response::new(v1::ListDenialsResponse {
            denials: denials.collect(),
            events_suppressed: lost.suppressed,
            events_lost: lost.lost,
        }))
    }
}

/// A point of the boot clock on the wall clock, as the wall clock stands now.
fn wall_time(now: Now, boot_ns: u64) -> WallTime {
    let ago = i64::try_from(now.boot.0.saturating_sub(boot_ns) / 1_000_000).unwrap_or(i64::MAX);
    WallTime(now.wall.0.saturating_sub(ago))
}

/// The interface's name now; one that is gone shows its number.
fn interface_name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        // nix 0.31 takes the C library's null for success: the name is then empty.
        Ok(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => format!("number {ifindex}"),
    }
}

fn pool_filter(config: &Config, pool: String) -> Result<Option<PoolId>, Invalid> {
    if pool.is_empty() {
        return Ok(None);
    }
    let name = PoolName::try_from(pool).map_err(|e| Invalid::new("pool", e))?;
    let unknown = || Invalid::with_reason("UNKNOWN_POOL", "pool", "no pool of this gateway has this name");
    config.pool(&name).map(|p| Some(p.id)).ok_or_else(unknown)
}

fn reason_filter(name: &str) -> Result<Option<Reason>, Invalid> {
    if name.is_empty() {
        return Ok(None);
    }
    let found = Reason::ALL.iter().copied().find(|r| r.name() == name);
    found
        .map(Some)
        .ok_or_else(|| Invalid::new("reason", "no reason has this name; docs/reasons.md lists them"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::BootTime;

    #[test]
    fn denials_are_dated_by_the_clock_as_it_stands_now() {
        let now = Now {
            wall: WallTime(1_000_000),
            boot: BootTime(50_000_000_000),
            boot_id: 0,
        };
        assert_eq!(wall_time(now, 49_000_000_000), WallTime(999_000));
        assert_eq!(wall_time(now, 51_000_000_000), WallTime(1_000_000), "never in the future");
    }

    #[test]
    fn filters_are_checked() {
        assert_eq!(reason_filter("no_rule").unwrap(), Some(Reason::NoRule));
        assert_eq!(reason_filter("").unwrap(), None);
        assert_eq!(reason_filter("NO_RULE").unwrap_err().field(), "reason");
    }
}
