//! Denied packets as the API shows them: which ones are asked for, each with time, interface and device, listed or as a stream. A stream
//! reads from a bounded buffer; what a slow reader loses, and what the kernel did not tell of, is said in it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{Stream, stream};
use gateway_ebpf::reason::Reason;
use lazaret_proto::v1;
use nix::net::if_::if_indextoname;
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};

use super::{
    page::limit,
    parse::{self, Invalid},
    render, status,
};
use crate::{
    access::{
        answer,
        shares::{Places, Taken},
    },
    clock::{Clock as _, SystemClock},
    config::Config,
    controller::Controller,
    events::{Denials, Event, KEPT},
    kernel::Losses,
    model::{DeviceId, Now, PoolId, PoolName, WallTime},
};

/// Which denied packets are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filter {
    address: Option<IpAddr>,
    reason: Option<Reason>,
    pool: Option<PoolId>,
    /// Of the live session that holds the device end's address.
    pub(super) device: Option<DeviceId>,
}

impl Filter {
    pub(super) fn parse(config: &Config, address: &str, reason: &str, pool: String, device: String) -> Result<Self, Invalid> {
        Ok(Self {
            address: parse::address_filter(address)?,
            reason: reason_filter(reason)?,
            pool: pool_filter(config, pool)?,
            device: match device.is_empty() {
                true => None,
                false => Some(device.try_into().map_err(|e| Invalid::new("device_id", e))?),
            },
        })
    }

    /// All but the device, for which one has to ask: the address may lie in a /64 of its.
    pub(super) fn matches(&self, e: &Event) -> bool {
        (self.address.is_none() || e.source == self.address || e.destination == self.address)
            && self.reason.is_none_or(|reason| e.record.reason == reason as u8)
            && self.pool.is_none_or(|pool| e.record.pool == pool.0)
    }

    /// The device, once it is told whose the packet is.
    pub(super) fn matches_device(&self, told: &v1::Denial) -> bool {
        self.device.as_ref().is_none_or(|d| d.as_str() == told.device_id)
    }

    /// How many have to be looked at to find the last `wanted`: of a device, all, since whose they are is asked later.
    fn searched(&self, wanted: usize) -> usize {
        if self.device.is_some() && wanted > 0 { KEPT } else { wanted }
    }

    /// The last `wanted` of the device, of all that match otherwise.
    fn last_of_device(&self, wanted: usize, mut told: Vec<v1::Denial>) -> Vec<v1::Denial> {
        told.retain(|d| self.matches_device(d));
        told.drain(..told.len().saturating_sub(wanted));
        told
    }
}

/// What it takes to show a denied packet.
#[derive(Clone, Debug)]
pub(super) struct Teller {
    pub(super) config: Arc<Config>,
    pub(super) controller: Controller,
    pub(super) clock: SystemClock,
}

impl Teller {
    /// Refuses a device that the registry does not know.
    pub(super) async fn check(&self, filter: &Filter) -> Result<(), Status> {
        if let Some(device) = &filter.device {
            let known = self.controller.device(device.clone()).await;
            known.map_err(|e| status::refused(&e))?;
        }
        Ok(())
    }

    /// The last denials that match, oldest first.
    pub(super) async fn last(&self, denials: &Denials, filter: &Filter, wanted: usize) -> Result<Vec<v1::Denial>, Status> {
        self.check(filter).await?;
        let last = denials.last(filter.searched(wanted), |e| filter.matches(e));
        Ok(filter.last_of_device(wanted, self.tell(&last).await?))
    }

    /// Shows denials, in their order.
    pub(super) async fn tell(&self, events: &[Event]) -> Result<Vec<v1::Denial>, Status> {
        let ends: Vec<Option<IpAddr>> = events.iter().map(|e| render::device_end(&self.config, e)).collect();
        let wanted: HashSet<IpAddr> = ends.iter().flatten().copied().collect();
        let holders = if wanted.is_empty() {
            HashMap::new()
        } else {
            let holders = self.controller.holders(wanted.into_iter().collect()).await;
            holders.map_err(|e| status::refused(&e))?
        };
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
        Ok(denials.collect())
    }

    pub(super) async fn losses(&self) -> Result<Losses, Status> {
        self.controller.losses().await.map_err(|e| status::refused(&e))
    }
}

/// Most watches or captures at a time, over all connections.
const MAX_WATCHERS: usize = 32;
/// Denials that are looked up together.
const BATCH: usize = 64;
/// How often the totals of what is not told are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A stream of answers.
pub(super) type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Places for watches and captures.
pub(super) fn places() -> Places {
    Places::new(MAX_WATCHERS)
}

/// WatchDenials: the last ones that match, then what happens, until an error or the daemon's end ends it.
pub(super) async fn watch(
    teller: Teller,
    denials: &Denials,
    filter: Filter,
    wanted: u32,
    stopped: watch::Receiver<bool>,
    permit: Taken,
) -> Result<Answers<v1::WatchDenialsResponse>, Status> {
    teller.check(&filter).await?;
    let wanted = limit(wanted, 0, u32::try_from(KEPT).unwrap_or(u32::MAX)) as usize;
    let (last, live) = denials.follow(filter.searched(wanted), |e| filter.matches(e));
    let totals = teller.losses().await?;
    let last = filter.last_of_device(wanted, teller.tell(&last).await?);
    let mut watch = Watch {
        queue: VecDeque::from([response(totals)]),
        teller,
        live,
        filter,
        totals,
        look: Instant::now() + LOOK,
        stopped,
        _permit: permit,
    };
    watch.take(last);
    Ok(answers(watch))
}

/// Something that is asked again and again, until an error or `None` ends it.
pub(super) trait Source: Send + 'static {
    type Answer: Send + 'static;
    fn next(&mut self) -> impl Future<Output = Option<Result<Self::Answer, Status>>> + Send;
}

pub(super) fn answers<S: Source>(source: S) -> Answers<S::Answer> {
    Box::pin(stream::unfold(Some(source), |source| async {
        let mut source = source?;
        let answer = source.next().await?;
        let ended = answer.is_err();
        Some((answer, (!ended).then_some(source)))
    }))
}

/// The daemon ends.
pub(super) fn shutting_down() -> Status {
    answer::status(
        Code::Unavailable,
        "SHUTTING_DOWN",
        [],
        "the gateway is shutting down; ask again later",
    )
}

struct Watch {
    queue: VecDeque<v1::WatchDenialsResponse>,
    teller: Teller,
    live: broadcast::Receiver<Event>,
    filter: Filter,
    totals: Losses,
    look: Instant,
    stopped: watch::Receiver<bool>,
    _permit: Taken,
}

impl Source for Watch {
    type Answer = v1::WatchDenialsResponse;

    async fn next(&mut self) -> Option<Result<Self::Answer, Status>> {
        loop {
            if let Some(ready) = self.queue.pop_front() {
                return Some(Ok(ready));
            }
            if let Err(e) = self.more().await {
                return Some(Err(e));
            }
        }
    }
}

impl Watch {
    /// Waits for something to happen, and puts what is to be said of it into the queue.
    async fn more(&mut self) -> Result<(), Status> {
        let received = tokio::select! {
            received = self.live.recv() => Some(received),
            () = sleep_until(self.look) => None,
            _ = self.stopped.wait_for(|s| *s) => return Err(shutting_down()),
        };
        let Some(mut received) = received else {
            self.look = Instant::now() + LOOK;
            let totals = self.teller.losses().await?;
            if totals != self.totals {
                self.totals = totals;
                self.queue.push_back(response(totals));
            }
            return Ok(());
        };
        let (mut events, mut missed) = (Vec::new(), 0);
        loop {
            match received {
                Ok(event) if self.filter.matches(&event) => events.push(event),
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(n)) => missed += n,
                Err(broadcast::error::RecvError::Closed) => return Err(shutting_down()),
            }
            if events.len() == BATCH {
                break;
            }
            received = match self.live.try_recv() {
                Ok(event) => Ok(event),
                Err(broadcast::error::TryRecvError::Lagged(n)) => Err(broadcast::error::RecvError::Lagged(n)),
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => break,
            };
        }
        if missed > 0 {
            self.queue.push_back(v1::WatchDenialsResponse {
                missed,
                ..response(self.totals)
            });
        }
        let told = self.teller.tell(&events).await?;
        self.take(told);
        Ok(())
    }

    fn take(&mut self, denials: Vec<v1::Denial>) {
        let (totals, filter) = (self.totals, &self.filter);
        let denials = denials.into_iter().filter(|d| filter.matches_device(d));
        self.queue.extend(denials.map(|d| v1::WatchDenialsResponse {
            denial: Some(d),
            ..response(totals)
        }));
    }
}

fn response(totals: Losses) -> v1::WatchDenialsResponse {
    v1::WatchDenialsResponse {
        denial: None,
        missed: 0,
        events_suppressed: totals.suppressed,
        events_lost: totals.lost,
        events_repeated: totals.repeated,
    }
}

/// A point of the boot clock on the wall clock, as the wall clock stands now.
fn wall_time(now: Now, boot_ns: u64) -> WallTime {
    let ago = i64::try_from(now.boot.0.saturating_sub(boot_ns) / 1_000_000).unwrap_or(i64::MAX);
    WallTime(now.wall.0.saturating_sub(ago))
}

/// The interface's name now; one that is gone shows its number.
pub(super) fn interface_name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        // nix 0.31 takes the C library's null for success: the name is then empty.
        Ok(name) if !name.is_empty() => name.to_string_lossy().into_owned(),
        _ => format!("number {ifindex}"),
    }
}

/// A pool by name; empty: none is asked for.
pub(super) fn pool_filter(config: &Config, pool: String) -> Result<Option<PoolId>, Invalid> {
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
        .ok_or_else(|| Invalid::new("reason", "no reason has this name; `lazaret reason` lists them"))
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

    #[test]
    fn the_last_ones_of_a_device_are_found_among_those_of_others() {
        let told = |device: &str, port| v1::Denial {
            device_id: device.into(),
            destination_port: port,
            ..v1::Denial::default()
        };
        let all = || (1..=9).map(|p| told(if p % 3 == 0 { "phone" } else { "" }, p)).collect();
        let ports = |filter: &Filter, wanted| -> Vec<u32> {
            let last = filter.last_of_device(wanted, all());
            last.iter().map(|d| d.destination_port).collect()
        };
        let anyone = Filter::default();
        let phone = Filter {
            device: Some("phone".parse().unwrap()),
            ..Filter::default()
        };
        assert_eq!(ports(&anyone, 2), [8, 9]);
        assert_eq!((ports(&phone, 2), ports(&phone, 5)), (vec![6, 9], vec![3, 6, 9]));
        assert_eq!([&anyone, &phone].map(|f| (f.searched(2), f.searched(0))), [(2, 0), (KEPT, 0)]);
    }
}
