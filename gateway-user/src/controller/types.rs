//! What is asked of the controller and what it answers, in the domain's terms.

use std::{net::IpAddr, time::Duration};

use gateway_ebpf::abi::{Answers, Count, RuleCount, ShadowCount};

use super::{PolicyKey, Refusal};
use crate::{
    audit::Sealed,
    config::{InterfaceRole, Mode},
    kernel::{AddressReading, HookState, InterfaceState, Link, Losses, ReadBack},
    model::{
        Device, DeviceId, Fingerprint, Identity, InterfaceName, Now, Place, PolicyRevision, PoolId, Publication, RequestId,
        Revision, Salt, Session, VpnKey, WallTime,
    },
};

/// What stands in every command that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignalContext {
    /// Who asks.
    pub by: Identity,
    /// The caller's id for it.
    pub request: RequestId,
    /// When the caller saw what it reports.
    pub observed_at: Option<WallTime>,
    /// SHA-256 of the request's method and body; `None`: the request is not remembered.
    pub digest: Option<[u8; 32]>,
    /// How far it is to get before it is answered.
    pub acknowledge: Acknowledge,
    /// How long that is tried; then the answer says how far it got. Zero: once.
    pub deadline: Duration,
    /// The caller's place among those that are worked on: given back once the command is decided, however long its answer waits.
    pub place: Place,
}

/// How far a change is to get before it is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acknowledge {
    /// Durable, and read back everywhere.
    #[default]
    Enforced,
    /// Durable; the kernel is not asked.
    Committed,
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It was done now.
    First(T),
    /// The same client has asked this before, by the same request id, and this was the answer, as it was handed to
    /// [`super::Controller::answered`].
    Again(Vec<u8>),
    /// The same, of an answer that was handed over without its final policy key: that is [`PolicyKey::final_key`] of the request's temporary
    /// key, with this salt.
    Salted(Vec<u8>, Salt),
}

impl<T> Answer<T> {
    /// The answer, if it is a first one.
    pub fn first(self) -> Option<T> {
        match self {
            Self::First(answer) => Some(answer),
            Self::Again(_) | Self::Salted(..) => None,
        }
    }
}

/// What was asked of something else than the controller, for the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Who asked.
    pub by: String,
    /// The RPC.
    pub action: &'static str,
    /// The caller's request id; may be empty.
    pub request: String,
    /// On what.
    pub subject: String,
    /// On which device, known or not.
    pub device: Option<DeviceId>,
}

/// A command that was refused, with its place in the audit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct Refused {
    /// Why.
    pub refusal: Refusal,
    /// Number of the audit's entry: as text `A` and the number, the reference code. `None`: it has none, since nobody took it.
    pub reference: Option<u64>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            reference: None,
        }
    }
}

/// A connection, as the VPN server reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// A device id or a common name.
    pub device_name: DeviceId,
    /// Its certificate.
    pub certificate: Option<Fingerprint>,
    /// Its VPN public key.
    pub vpn_key: Option<VpnKey>,
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
    /// In the kernel's tables, not durable (restrictions only).
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
    /// Its trust is below what its device's full-service pool demands.
    pub below_min_trust: bool,
}

/// A device with its live sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceView {
    /// The device.
    pub device: Device,
    /// When its lease ends, on the wall clock.
    pub lease_ends_at: Option<WallTime>,
    /// When its deadline in quarantine ends, on the wall clock; `None`: it does not run.
    pub deadline_at: Option<WallTime>,
    /// When the temporary key of its offer ends, on the wall clock.
    pub offer_ends_at: Option<WallTime>,
    /// When its exception ends, on the wall clock.
    pub exception_ends_at: Option<WallTime>,
    /// The policy revision that its next proof must have; `None`: any will do.
    pub required: Option<PolicyRevision>,
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

/// A policy that is offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferOutcome {
    /// The temporary key; the gateway keeps its hash only.
    pub key: PolicyKey,
    /// When that ends, on the wall clock.
    pub ends_at: WallTime,
    /// The device after it.
    pub device: DeviceView,
    /// The store's revision after it.
    pub revision: Revision,
}

/// An offer that was acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcknowledgeOutcome {
    /// The final key; the gateway keeps its hash only.
    pub key: PolicyKey,
    /// The only policy revision that it proves.
    pub policy: PolicyRevision,
    /// The device after it.
    pub device: DeviceView,
    /// The store's revision after it.
    pub revision: Revision,
}

/// What became of one of many leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// Whose.
    pub device: DeviceId,
    /// The device after it, and how far the renewal got; or why it was not renewed.
    pub result: Result<SignalOutcome, Refused>,
}

/// What became of many leases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RenewOutcome {
    /// In the order of the request.
    pub renewals: Vec<Renewal>,
    /// The store's revision after it.
    pub revision: Revision,
}

/// A publication with how far it has got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationView {
    /// Which, and its terms. Ceiling and rate 0: urgent.
    pub publication: Publication,
    /// Devices.
    pub progress: Progress,
    /// Since when no wave comes because its ceiling is full.
    pub full_since: Option<Now>,
}

/// Devices by what a publication means to them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Released by proof of it.
    pub done: u64,
    /// Released by proof of another revision: their wave is to come.
    pub waiting: u64,
    /// Of these, those that have a live session: a wave with limits takes no others.
    pub ready: u64,
    /// Stale, also those that have been offered the policy since.
    pub stale: u64,
    /// Of these, those that count against the ceiling: with a live session, and their deadline in quarantine not passed.
    pub counted: u64,
    /// Released by an exception: left alone until it ends.
    pub excepted: u64,
}

/// The answer to a command about the publication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicationOutcome {
    /// As it stands.
    pub publication: PublicationView,
    /// The store's revision after it.
    pub revision: Revision,
}

/// What the comparison of memory and kernel has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DriftView {
    /// Addresses compared.
    pub compared: u64,
    /// Differences found.
    pub found: u64,
    /// Of them, those that were put right.
    pub repaired: u64,
    /// When everything had last been compared.
    pub round_at: Option<WallTime>,
    /// The last differences, newest first, at most 100.
    pub last: Vec<Difference>,
}

/// A difference between memory and kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// When it was found.
    pub at: WallTime,
    /// An address, or an interface and hook.
    pub subject: String,
    /// Whose.
    pub device: Option<DeviceId>,
    /// What should be.
    pub wanted: String,
    /// What was.
    pub found: String,
    /// It is as wanted now.
    pub repaired: bool,
}

/// What is known about a device, to explain its state by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dossier {
    /// The device with its live sessions.
    pub device: DeviceView,
    /// The policy revision that its next proof must have; `None`: any will do.
    pub required: Option<PolicyRevision>,
    /// The publication in force.
    pub publication: Option<Publication>,
    /// Its wave is to come.
    pub awaits_wave: bool,
    /// Why none comes now, although devices wait for theirs.
    pub standstill: Option<String>,
    /// When its deadline in quarantine ends.
    pub deadline_at: Option<WallTime>,
    /// When time next changes its state by itself, and to what that leads, for programs: "lease_ended", "exception_ended",
    /// "deadline_passed".
    pub next: Option<(WallTime, &'static str)>,
    /// Its release is of an earlier boot, and held back until the clock has passed the last commit.
    pub held_back: bool,
    /// The last commit, while the wall clock is behind it.
    pub clock_behind: Option<WallTime>,
    /// Who brought it into its state; empty: none of its last 1,000 entries that the audit has says it.
    pub changed_by: String,
    /// Its last entries of the audit, newest first.
    pub entries: Vec<Sealed>,
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
    pub refused: Vec<(u32, Refused)>,
    /// The store's revision after it.
    pub revision: Revision,
}

/// What `status` shows.
#[derive(Clone, Debug)]
pub struct Status {
    /// Mode.
    pub mode: Mode,
    /// See [`crate::kernel::Kernel::floor`].
    pub floor: String,
    /// Interfaces, or why it is not known how they stand.
    pub interfaces: Result<Vec<InterfaceState>, String>,
    /// When interfaces and floor were looked at.
    pub looked_at: WallTime,
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
    /// What an operator should know; interfaces without program, observe mode, ...
    pub warnings: Vec<String>,
    /// The last conflicts, with devices and addresses: for who may see all of them.
    pub conflicts: Vec<String>,
    /// Restrictions in force but not committed.
    pub not_durable: u64,
    /// Denials not told of.
    pub losses: Losses,
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

/// One end of a packet that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndView {
    /// Which.
    pub address: IpAddr,
    /// As read from the kernel.
    pub reading: AddressReading,
    /// The live session that holds it.
    pub session: Option<SessionView>,
    /// Of the session.
    pub device: Option<Device>,
    /// On the wall clock.
    pub lease_ends_at: Option<WallTime>,
}

/// An interface with a role, as it stands now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceView {
    /// The interface.
    pub link: Link,
    /// Its role.
    pub role: InterfaceRole,
    /// Its hooks.
    pub hooks: Vec<HookState>,
}

/// What the gateway knows around a packet that is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Its ends, in the order asked.
    pub ends: Vec<EndView>,
    /// Where packets are judged.
    pub places: Vec<PlaceView>,
    /// Interfaces without a role.
    pub others: Vec<InterfaceName>,
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
    /// By rule number, ascending; 0: what `all` passed.
    pub rules: Vec<(u16, RuleCount)>,
    /// By pool, ascending.
    pub shadow: Vec<(PoolId, ShadowCount)>,
    /// Answers to denied packets, by pool, ascending; those that are not zero.
    pub answers: Vec<(PoolId, Answers)>,
    /// What was not told of.
    pub losses: Losses,
}
