//! Why a command is refused: one list, which the API turns into gRPC statuses.

use std::net::IpAddr;

use crate::model::{DeviceId, InterfaceName, PolicyRevision, RequestId, SessionId, SourceName, prefix::Shown};

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
    #[error("alias {alias} belongs to {}", owner.as_ref().map_or_else(|| "another device".to_owned(), |d| format!("device {d}")))]
    AliasTaken {
        /// Which.
        alias: String,
        /// Whose; `None`: of one that the caller may not know of.
        owner: Option<DeviceId>,
    },
    /// The limited MDM's devices are as many as may be.
    #[error("this identity's limits hold at most {0} devices, retired ones too; raise devices.limited_mdm")]
    DeviceQuota(u32),
    /// Observed no later than the last restriction.
    #[error("the signal was observed no later than the device's last restriction")]
    StaleSignal,
    /// Dated more than two minutes ahead.
    #[error("the signal is dated more than two minutes ahead of this gateway's clock")]
    SignalFromFuture,
    /// Dated ahead of a clock that is known to be behind, so that the date says nothing.
    #[error(
        "this gateway's clock is behind its last commit, so that the signal's date says nothing: set the clock right, or offer the policy anew and report it with its final key, which needs no date"
    )]
    ClockBehind,
    /// Where its enrolment window ends is later than the last commit, or it begins there; the clock is behind that.
    #[error(
        "this gateway's clock is behind its last commit, so that nobody knows whether the enrolment window of device {0} is open: set the clock right"
    )]
    WindowUnknown(DeviceId),
    /// Observed longer ago than is accepted.
    #[error("the signal was observed {age_s} s ago; at most {most_s} s are accepted")]
    SignalTooOld {
        /// Its age, seconds.
        age_s: u64,
        /// `proof.max_signal_age`, seconds.
        most_s: u64,
    },
    /// Its window opens later.
    #[error("device {0} may not enrol yet")]
    EnrolmentNotOpen(DeviceId),
    /// Its window is over.
    #[error("the enrolment of device {0} is over; register it with a new window")]
    EnrolmentClosed(DeviceId),
    /// It was in quarantine for too long.
    #[error("device {0} has passed its deadline in quarantine; register it with a new window")]
    QuarantineDeadline(DeviceId),
    /// Shut by an operator or a deadline.
    #[error("device {0} is blocked: {1}; a signal does not release it")]
    DeviceBlocked(DeviceId, String),
    /// Older than the revision that is required of the device.
    #[error("policy revision {found} is older than {required}, which is required of device {device}")]
    StalePolicyRevision {
        /// Which.
        device: DeviceId,
        /// What is required.
        required: PolicyRevision,
        /// What was reported.
        found: PolicyRevision,
    },
    /// Not among those published.
    #[error("policy revision {0} was never published")]
    UnknownPolicyRevision(PolicyRevision),
    /// The configuration does not take signals without a key.
    #[error("a release needs the final policy key (proof.direct_signal = false)")]
    PolicyKeyRequired,
    /// Never given to this device, superseded, or used.
    #[error("the policy key is not the current one of device {0}")]
    PolicyKeyUnknown(DeviceId),
    /// Its time is over.
    #[error("the temporary policy key of device {0} is over; offer the policy again")]
    PolicyKeyExpired(DeviceId),
    /// A temporary key where the final one is needed.
    #[error("the key is device {0}'s temporary one; acknowledge it first")]
    PolicyKeyTemporary(DeviceId),
    /// Bound to another revision.
    #[error("the policy key of device {device} is bound to revision {bound}")]
    PolicyKeyRevision {
        /// Which.
        device: DeviceId,
        /// To what.
        bound: PolicyRevision,
    },
    /// Not released by a proof that is in force, so there is nothing to renew.
    #[error("device {0} is not released by proof; report its policy as applied")]
    NotReleased(DeviceId),
    /// There is none.
    #[error("device {0} has no exception")]
    NoException(DeviceId),
    /// Longer than the configuration allows.
    #[error("an exception lasts at most {0} s (devices.max_exception)")]
    ExceptionTooLong(u64),
    /// The same id came with another body.
    #[error("request id {0} was used for another request")]
    RequestIdReused(RequestId),
    /// The identity is limited to other devices or sources.
    #[error("{0} is outside what this identity may act on")]
    OutsideScope(String),
    /// There is none.
    #[error("no policy revision is published")]
    NothingPublished,
    /// In no pool.
    #[error("{} is in no pool of this gateway", Shown(*.0))]
    AddressOutsidePools(IpAddr),
    /// The gateway's own.
    #[error("{} is reserved for the gateway itself", Shown(*.0))]
    AddressReserved(IpAddr),
    /// Another source holds it.
    #[error("{} is held by session {session} of source {source_name}", Shown(*.address))]
    AddressTaken {
        /// Which.
        address: IpAddr,
        /// By whom.
        session: SessionId,
        /// Of which source.
        source_name: SourceName,
    },
    /// Another source's interface, or none of those that this one lists.
    #[error(
        "source {source_name} has no sessions on interface {interface} ([[source]] interfaces, or another source's live sessions there)"
    )]
    SourceInterface {
        /// Which.
        interface: InterfaceName,
        /// Who reports a session there.
        source_name: SourceName,
    },
    /// Another source's address, or in none of the prefixes that this one lists.
    #[error("source {source_name} has no sessions with {} ([[source]] prefixes)", Shown(*.address))]
    SourcePrefix {
        /// Which.
        address: IpAddr,
        /// Who reports a session with it.
        source_name: SourceName,
    },
    /// Another source holds it, of which the caller is told no more.
    #[error("{} is held by a session of another source", Shown(*.0))]
    AddressOfAnother(IpAddr),
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
    /// It has another device's certificate or VPN key.
    #[error("the certificate or VPN key is registered for another device than {0}")]
    FingerprintOfAnother(DeviceId),
    /// No room in the kernel's tables, or for one more address.
    #[error("the gateway's address table is full; raise tables.addresses")]
    TableFull,
    /// Live sessions use every number that a combination of pool, lease and interface can have.
    #[error(
        "live sessions use all 192 combinations of pool, lease and interface that there can be; end those on interfaces that are gone, or let devices share interfaces"
    )]
    ClassesFull,
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

impl Refusal {
    /// Its name: in the API's error details and in the audit.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::UnknownDevice(_) => "UNKNOWN_DEVICE",
            Self::DeviceRetired(_) => "DEVICE_RETIRED",
            Self::UnknownPool(_) => "UNKNOWN_POOL",
            Self::AliasTaken { .. } => "ALIAS_TAKEN",
            Self::DeviceQuota(_) => "DEVICE_QUOTA",
            Self::StaleSignal => "STALE_SIGNAL",
            Self::SignalFromFuture => "SIGNAL_FROM_FUTURE",
            Self::ClockBehind | Self::WindowUnknown(_) => "CLOCK_BEHIND",
            Self::SignalTooOld { .. } => "SIGNAL_TOO_OLD",
            Self::EnrolmentNotOpen(_) => "ENROLMENT_NOT_OPEN",
            Self::EnrolmentClosed(_) => "ENROLMENT_CLOSED",
            Self::QuarantineDeadline(_) => "QUARANTINE_DEADLINE",
            Self::DeviceBlocked(..) => "DEVICE_BLOCKED",
            Self::StalePolicyRevision { .. } => "STALE_POLICY_REVISION",
            Self::UnknownPolicyRevision(_) => "UNKNOWN_POLICY_REVISION",
            Self::PolicyKeyRequired => "POLICY_KEY_REQUIRED",
            Self::PolicyKeyUnknown(_) => "POLICY_KEY_UNKNOWN",
            Self::PolicyKeyExpired(_) => "POLICY_KEY_EXPIRED",
            Self::PolicyKeyTemporary(_) => "POLICY_KEY_TEMPORARY",
            Self::PolicyKeyRevision { .. } => "POLICY_KEY_REVISION",
            Self::NotReleased(_) => "NOT_RELEASED",
            Self::NoException(_) => "NO_EXCEPTION",
            Self::ExceptionTooLong(_) => "EXCEPTION_TOO_LONG",
            Self::RequestIdReused(_) => "REQUEST_ID_REUSED",
            Self::OutsideScope(_) => "OUTSIDE_SCOPE",
            Self::NothingPublished => "NOTHING_PUBLISHED",
            Self::AddressOutsidePools(_) => "ADDRESS_OUTSIDE_POOLS",
            Self::AddressReserved(_) => "ADDRESS_RESERVED",
            Self::SourceInterface { .. } => "SOURCE_INTERFACE",
            Self::SourcePrefix { .. } => "SOURCE_PREFIX",
            Self::AddressTaken { .. } | Self::AddressOfAnother(_) => "ADDRESS_TAKEN",
            Self::SessionLimit { .. } => "SESSION_LIMIT",
            Self::FingerprintMismatch(_) | Self::FingerprintOfAnother(_) => "FINGERPRINT_MISMATCH",
            Self::TableFull => "TABLE_FULL",
            Self::ClassesFull => "CLASSES_FULL",
            Self::StoreUnavailable(_) => "STORE_UNAVAILABLE",
            Self::RevisionTooOld { .. } => "REVISION_TOO_OLD",
            Self::Kernel(_) => "KERNEL",
            Self::Busy => "BUSY",
        }
    }
}
