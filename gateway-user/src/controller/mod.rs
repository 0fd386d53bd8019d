//! The single writer: takes commands from the API and sets of links from netlink, asks [`crate::transition`] what follows, commits it,
//! puts it into the kernel by [`crate::reconcile`], reads it back, and answers. One thread owns store and kernel; everyone else holds a
//! [`Controller`], a handle to its queue.

use std::net::IpAddr;

use gateway_ebpf::abi::Count;
use tokio::sync::broadcast;

use crate::{
    config::Mode,
    kernel::{AddressReading, InterfaceState, ReadBack},
    model::{
        Device, DeviceId, DeviceState, Fingerprint, Identity, InterfaceName, PolicyRevision, PoolId, PoolName, RequestId,
        Revision, Session, SessionId, SourceName, WallTime,
    },
};

/// Why a command was refused: what the API turns into a gRPC status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The registry does not know it.
    #[error("no device is registered as {0}")]
    UnknownDevice(DeviceId),
    /// It is no longer managed.
    #[error("device {0} is retired; register a new device id")]
    DeviceRetired(DeviceId),
    /// Not a pool of kind full-service.
    #[error("{0} is not a pool of kind full-service in the gateway's configuration")]
    UnknownPool(String),
    /// Another device has this common name or certificate.
    #[error("alias {alias} belongs to device {owner}")]
    AliasTaken {
        /// Which.
        alias: String,
        /// Whose.
        owner: DeviceId,
    },
    /// Observed no later than the last restriction.
    #[error("the signal was observed no later than the device's last restriction")]
    StaleSignal,
    /// Dated more than two minutes ahead.
    #[error("the signal is dated more than two minutes ahead of this gateway's clock")]
    SignalFromFuture,
    /// In no pool.
    #[error("{0} is in no pool of this gateway")]
    AddressOutsidePools(IpAddr),
    /// The gateway's own.
    #[error("{0} is reserved for the gateway itself")]
    AddressReserved(IpAddr),
    /// Another source holds it.
    #[error("{address} is held by session {session} of source {source_name}")]
    AddressTaken {
        /// Which.
        address: IpAddr,
        /// By whom.
        session: SessionId,
        /// Of which source.
        source_name: SourceName,
    },
    /// The device has as many live sessions as it may.
    #[error("device {device} already has {live} live session(s), the most that the configuration allows")]
    SessionLimit {
        /// Which.
        device: DeviceId,
        /// How many.
        live: u32,
    },
    /// Its certificates are registered, and this is none of them.
    #[error("the certificate is not one of those registered for device {0}")]
    FingerprintMismatch(DeviceId),
    /// No room in the kernel's tables, or for one more address.
    #[error("the gateway's address table is full; raise tables.addresses")]
    TableFull,
    /// The store cannot be written. Nothing that loosens was done.
    #[error("the store cannot be written: {0}")]
    StoreUnavailable(String),
    /// The watcher asks for changes that are no longer kept.
    #[error("changes after revision {asked} are no longer kept; list the devices, then watch from revision {now}")]
    RevisionTooOld {
        /// For which it asked.
        asked: u64,
        /// The current one.
        now: u64,
    },
    /// The kernel refused.
    #[error("the kernel refused: {0}")]
    Kernel(String),
    /// The daemon is going down, or the queue is full.
    #[error("the gateway is busy or shutting down; try again")]
    Busy,
}

/// What stands in every command that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalContext {
    /// Who asks.
    pub by: Identity,
    /// The caller's id for it.
    pub request: RequestId,
    /// When the caller saw what it reports.
    pub observed_at: Option<WallTime>,
}

/// A device to be registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Name.
    pub id: DeviceId,
    /// For people.
    pub owner: String,
    /// `None`: the only pool of kind full-service.
    pub full_service_pool: Option<PoolName>,
    /// Other names.
    pub common_names: Vec<DeviceId>,
    /// Certificates.
    pub certificates: Vec<Fingerprint>,
}

/// A connection, as the VPN server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// A device id or a common name.
    pub device_name: DeviceId,
    /// Its certificate.
    pub certificate: Option<Fingerprint>,
    /// Its addresses; not empty, no duplicates.
    pub addresses: Vec<IpAddr>,
    /// On which its packets arrive.
    pub interface: InterfaceName,
}

/// How far a change got; see `Enforcement` in types.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// Durable, and read back everywhere.
    Enforced,
    /// Durable; no live session.
    NoSession,
    /// Durable, not everywhere in force.
    Committed,
    /// In force, not durable (restrictions only).
    EnforcedNotDurable,
}

/// One address with what was read back for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressEnforcement {
    /// Which.
    pub address: IpAddr,
    /// The pool that should judge it.
    pub wanted: PoolId,
    /// One for each program that should.
    pub read_backs: Vec<ReadBack>,
}

/// A live session with the pool that judges it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionView {
    /// The session.
    pub session: Session,
    /// Whose policy judges it now.
    pub current_pool: PoolId,
}

/// A device with its live sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceView {
    /// The device.
    pub device: Device,
    /// When its lease ends, on the wall clock.
    pub lease_ends_at: Option<WallTime>,
    /// Its live sessions.
    pub sessions: Vec<SessionView>,
}

/// The answer to a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalOutcome {
    /// The device after it.
    pub device: DeviceView,
    /// How far it got.
    pub enforcement: Enforcement,
    /// Each address of its sessions.
    pub addresses: Vec<AddressEnforcement>,
    /// The store's revision after it.
    pub revision: Revision,
}

/// The answer to a session that opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOutcome {
    /// The session.
    pub session: SessionView,
    /// How far it got.
    pub enforcement: Enforcement,
    /// Each of its addresses.
    pub addresses: Vec<AddressEnforcement>,
    /// The store's revision after it.
    pub revision: Revision,
    /// The device's GatewayURI, or the quarantine pool's for a device without a name.
    pub gateway_uri: String,
}

/// The answer to a session that closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CloseOutcome {
    /// False: it was not live any more.
    pub ended: bool,
    /// How far it got.
    pub enforcement: Enforcement,
    /// The store's revision after it.
    pub revision: Revision,
}

/// The answer to a whole list of sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SynchroniseOutcome {
    /// Opened.
    pub opened: u32,
    /// Kept.
    pub kept: u32,
    /// Ended.
    pub ended: u32,
    /// By index into the request.
    pub refused: Vec<(u32, Refusal)>,
    /// The store's revision after it.
    pub revision: Revision,
}

/// A GatewayURI that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriChange {
    /// The store's revision of it.
    pub revision: Revision,
    /// Whose.
    pub device: DeviceId,
    /// Before.
    pub old: String,
    /// After.
    pub new: String,
    /// When.
    pub at: WallTime,
    /// As `Device::state_reason`.
    pub reason: String,
}

/// What `status` shows.
#[derive(Clone, Debug)]
pub struct Status {
    /// Mode.
    pub mode: Mode,
    /// See [`crate::kernel::Kernel::floor`].
    pub floor: String,
    /// Interfaces.
    pub interfaces: Vec<InterfaceState>,
    /// The store's revision.
    pub revision: Revision,
    /// "ok", or what is wrong.
    pub store: String,
    /// Registered devices.
    pub devices: u64,
    /// Live sessions.
    pub sessions: u64,
    /// Since when the daemon runs.
    pub started_at: WallTime,
    /// What an operator should know; conflicts refused, interfaces without program, observe mode, ...
    pub warnings: Vec<String>,
    /// Restrictions in force but not committed.
    pub not_durable: u64,
}

/// An address with the session that holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressView {
    /// Which.
    pub address: IpAddr,
    /// As read from the kernel.
    pub reading: AddressReading,
    /// Of the session named in the reading.
    pub device: Option<DeviceId>,
    /// On the wall clock.
    pub lease_ends_at: Option<WallTime>,
}

/// A counter that is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterView {
    /// `None`: no pool.
    pub pool: Option<PoolId>,
    /// [`gateway_ebpf::reason::Reason`] as a number.
    pub reason: u8,
    /// Packets and bytes.
    pub count: Count,
}

/// Counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Those that are not zero, by pool, then reason.
    pub counters: Vec<CounterView>,
    /// Denial events suppressed by the rate limit.
    pub suppressed: u64,
    /// Denial events lost to a full ring.
    pub lost: u64,
}

/// A handle to the controller's queue.
#[derive(Clone, Debug)]
pub struct Controller {}

/// To be replaced by the controller's author: the signatures are what the API is written against.
#[allow(
    clippy::unused_async,
    clippy::missing_errors_doc,
    unused_variables,
    reason = "signatures first"
)]
impl Controller {
    pub async fn register(
        &self,
        context: SignalContext,
        devices: Vec<Registration>,
    ) -> Result<(Vec<DeviceView>, Revision), Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn policy_applied(
        &self,
        context: SignalContext,
        device: DeviceId,
        revision: PolicyRevision,
    ) -> Result<SignalOutcome, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn policy_revoked(
        &self,
        context: SignalContext,
        device: DeviceId,
        reason: String,
    ) -> Result<SignalOutcome, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn retire(&self, context: SignalContext, device: DeviceId) -> Result<SignalOutcome, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn device(&self, device: DeviceId) -> Result<DeviceView, Refusal> {
        Err(Refusal::Busy)
    }
    /// By id, ascending, after `after`.
    pub async fn devices(
        &self,
        after: Option<DeviceId>,
        limit: u32,
        state: Option<DeviceState>,
    ) -> Result<Vec<DeviceView>, Refusal> {
        Err(Refusal::Busy)
    }
    /// Changes after a revision that are kept, and those to come. `None`: only those to come.
    pub async fn watch_gateway_uris(
        &self,
        after: Option<Revision>,
    ) -> Result<(Vec<UriChange>, broadcast::Receiver<UriChange>), Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn open_session(
        &self,
        context: SignalContext,
        source: SourceName,
        report: SessionReport,
    ) -> Result<OpenOutcome, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn close_session(&self, context: SignalContext, session: SessionId) -> Result<CloseOutcome, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn synchronise_sessions(
        &self,
        context: SignalContext,
        source: SourceName,
        reports: Vec<SessionReport>,
    ) -> Result<SynchroniseOutcome, Refusal> {
        Err(Refusal::Busy)
    }
    /// By id, ascending, after `after`.
    pub async fn sessions(&self, after: Option<SessionId>, limit: u32) -> Result<Vec<SessionView>, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn status(&self) -> Result<Status, Refusal> {
        Err(Refusal::Busy)
    }
    /// One, or those of all live sessions.
    pub async fn addresses(&self, address: Option<IpAddr>, limit: u32) -> Result<Vec<AddressView>, Refusal> {
        Err(Refusal::Busy)
    }
    pub async fn counters(&self) -> Result<Counters, Refusal> {
        Err(Refusal::Busy)
    }
}
