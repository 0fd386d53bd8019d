//! The gRPC API, v1: requests become commands of the controller, its answers become responses. It decides nothing and touches neither
//! store nor kernel; who may call what is decided before it, in [`crate::access`].

mod access;
mod capture;
mod command;
mod denials;
mod device;
mod explain;
mod inspect;
mod ledger;
mod operator;
mod page;
mod parse;
mod policy;
mod refusals;
mod render;
mod report;
mod scope;
mod session;
mod status;
mod watch;

use std::{future::Future, pin::pin, sync::Arc, time::Duration};

pub use parse::{Invalid, MAX_ADDRESSES, MAX_ALIASES, MAX_REGISTRATIONS, MAX_REPORTS, MAX_TEXT};

use lazaret_proto::v1::{
    access_service_server::AccessServiceServer, device_service_server::DeviceServiceServer,
    inspect_service_server::InspectServiceServer, operator_service_server::OperatorServiceServer,
    policy_service_server::PolicyServiceServer, session_service_server::SessionServiceServer,
};
use tokio::sync::watch as signal;
use tonic::service::Routes;

use crate::{
    access::{
        listen::{self, Listeners},
        live::Access,
        refusals::Refusals,
    },
    clock::SystemClock,
    config::Config,
    controller::Controller,
    events::{Captures, Denials},
    explain::{NoProber, Prober},
};

/// What a client is told of a record of the kernel's, whatever is in it: for tests and the fuzzer.
#[cfg(feature = "fake-kernel")]
#[must_use]
pub fn decoded(config: &Config, packet: &gateway_ebpf::abi::Captured) -> (lazaret_proto::v1::Denial, Vec<u8>) {
    let event = packet.denial.into();
    let _ = render::device_end(config, &event);
    let denial = render::denial(config, &event, crate::model::WallTime(0), "eth0".into(), None);
    (denial, capture::bytes(packet))
}

/// How long calls that run may take to end once the daemon goes down.
const GRACE: Duration = Duration::from_secs(3);
/// Largest request to a service that only reads, bytes.
const MAX_READ_REQUEST: usize = 64 << 10;
/// Largest message on the Unix socket when the network API is not configured, bytes.
const DEFAULT_MAX_MESSAGE: usize = 4 << 20;

/// Why the API ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors of the API do not decode.
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The machine's clocks cannot be read.
    #[error("clock: {0}")]
    Clock(#[from] std::io::Error),
    /// A listener broke.
    #[error(transparent)]
    Listen(#[from] listen::ServeError),
}

/// What is served beside what the controller knows.
#[derive(Clone, Debug)]
pub struct Views {
    /// Denied packets.
    pub denials: Denials,
    /// Their first bytes.
    pub captures: Captures,
    /// What would become of a packet.
    pub prober: Arc<dyn Prober>,
}

/// Nothing happens, and nothing can be asked.
impl Default for Views {
    fn default() -> Self {
        Self {
            denials: Denials::default(),
            captures: Captures::default(),
            prober: Arc::new(NoProber),
        }
    }
}

/// Serves on both listeners until `shutdown`; then new calls are refused, watches end, and what runs may finish within [`GRACE`]. The
/// socket's file is gone when it returns.
///
/// # Errors
/// See [`ServeError`]. It does not end by itself otherwise.
pub async fn serve(
    listeners: Listeners,
    config: Arc<Config>,
    controller: Controller,
    views: Views,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let (stop, stopped) = signal::channel(false);
    let refusals = Refusals::new(Arc::new(refusals::Auditor(controller.clone())));
    let routes = routes(
        config,
        controller,
        views,
        listeners.access(),
        refusals.clone(),
        stopped.clone(),
    )
    .await?;
    let mut serving = pin!(listeners.serve(routes, refusals, stopped));
    tokio::select! {
        ended = &mut serving => return Ok(ended?),
        () = shutdown => {}
    }
    stop.send_replace(true);
    match tokio::time::timeout(GRACE, serving).await {
        Ok(ended) => Ok(ended?),
        Err(_) => {
            tracing::warn!(
                seconds = GRACE.as_secs(),
                "connections were still open after the grace period; they are cut"
            );
            Ok(())
        }
    }
}

/// All services, health and reflection.
async fn routes(
    config: Arc<Config>,
    controller: Controller,
    views: Views,
    access: Access,
    refusals: Refusals,
    stopped: signal::Receiver<bool>,
) -> Result<Routes, ServeError> {
    let max = config.api.as_ref().map_or(DEFAULT_MAX_MESSAGE, |a| a.max_message);
    let reflection =
        || tonic_reflection::server::Builder::configure().register_encoded_file_descriptor_set(lazaret_proto::DESCRIPTORS);
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<AccessServiceServer<access::Accesses>>().await;
    reporter.set_serving::<DeviceServiceServer<device::Devices>>().await;
    reporter.set_serving::<SessionServiceServer<session::Sessions>>().await;
    reporter.set_serving::<InspectServiceServer<inspect::Inspect>>().await;
    reporter.set_serving::<OperatorServiceServer<operator::Operators>>().await;
    reporter.set_serving::<PolicyServiceServer<policy::Policies>>().await;
    let devices = device::Devices::new(config.clone(), controller.clone(), SystemClock::new()?, stopped.clone());
    let sessions = session::Sessions::new(config.clone(), controller.clone(), refusals.clone());
    let operators = operator::Operators::new(config.clone(), controller.clone(), refusals.clone());
    let policies = policy::Policies::new(config.clone(), controller.clone(), refusals, stopped.clone());
    let accesses = access::Accesses(access.clone(), controller.clone());
    let inspect = inspect::Inspect::new(config, controller, views, access, SystemClock::new()?, stopped);
    Ok(Routes::default()
        .add_service(AccessServiceServer::new(accesses).max_decoding_message_size(MAX_READ_REQUEST))
        .add_service(DeviceServiceServer::new(devices).max_decoding_message_size(max))
        .add_service(SessionServiceServer::new(sessions).max_decoding_message_size(max))
        .add_service(InspectServiceServer::new(inspect).max_decoding_message_size(MAX_READ_REQUEST))
        .add_service(OperatorServiceServer::new(operators).max_decoding_message_size(MAX_READ_REQUEST))
        .add_service(PolicyServiceServer::new(policies).max_decoding_message_size(max))
        .add_service(health.max_decoding_message_size(MAX_READ_REQUEST))
        .add_service(reflection().build_v1()?.max_decoding_message_size(MAX_READ_REQUEST))
        .add_service(reflection().build_v1alpha()?.max_decoding_message_size(MAX_READ_REQUEST))
        .prepare())
}
