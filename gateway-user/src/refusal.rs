//! Why a command is refused: one list, which the API turns into gRPC statuses.

use std::net::IpAddr;

use crate::model::{DeviceId, SessionId, SourceName};

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
    #[error(
        "changes after revision {asked} cannot be told: too old, or not of this store; list the devices, then watch from revision {now}"
    )]
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
