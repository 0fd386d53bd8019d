//! A device of the registry and what belongs to it. There may be a million: what few devices have is boxed, what many share is shared.

use std::{fmt, ops, sync::Arc};

use super::{DeviceId, Fingerprint, KeyHash, Lease, Now, PolicyRevision, PoolName, Reach, Revision, VpnKey, WallTime, identity};

/// A device of the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name.
    pub id: DeviceId,
    /// For people; empty: a placeholder, as yet without one.
    pub owner: Box<str>,
    /// Where a release moves it.
    pub full_service_pool: PoolName,
    /// Its other names.
    pub aliases: Rare<Aliases>,
    /// When it may enrol, and how far it has come.
    pub enrolment: Rare<Enrolment>,
    /// State.
    pub state: DeviceState,
    /// Why.
    pub state_reason: StateReason,
    /// Since when.
    pub state_since: WallTime,
    /// Policy revision of the last proof.
    pub policy_revision: Option<PolicyRevision>,
    /// What its release stands on.
    pub release: Rare<Release>,
    /// Policy keys that are out.
    pub keys: Rare<Handshake>,
    /// An operator's exception in force.
    pub exception: Option<Box<Exception>>,
    /// The VPN gateway name that it must use from now on.
    pub gateway_uri: Arc<str>,
    /// The store's revision at which it last changed.
    pub revision: Revision,
}

impl Device {
    /// A device that was just registered; no aliases, no window, no GatewayURI yet.
    #[must_use]
    pub fn new(id: DeviceId, full_service_pool: PoolName, at: WallTime) -> Self {
        Self {
            id,
            owner: Box::default(),
            full_service_pool,
            aliases: Rare::default(),
            enrolment: Rare::default(),
            state: DeviceState::Registered,
            state_reason: StateReason::Registered,
            state_since: at,
            policy_revision: None,
            release: Rare::default(),
            keys: Rare::default(),
            exception: None,
            gateway_uri: Arc::default(),
            revision: Revision(0),
        }
    }

    /// Whether it is quarantined since its wave has come: stale, or offered the policy since.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        match self.state {
            DeviceState::Stale => true,
            DeviceState::PolicyPending => self.state_reason == StateReason::PolicyStale,
            DeviceState::Registered
            | DeviceState::Quarantined
            | DeviceState::Released
            | DeviceState::Blocked
            | DeviceState::Retired => false,
        }
    }
}

/// State of a device; see `DeviceState` in types.proto.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceState {
    /// Known, never connected or signalled.
    Registered,
    /// Judged by a quarantine policy.
    Quarantined,
    /// Quarantined, and a policy is offered to it.
    PolicyPending,
    /// Judged by its full-service pool: by proof, or by an exception.
    Released,
    /// Quarantined again: its wave of a newer policy revision has come.
    Stale,
    /// Judged by a pool of kind blocked.
    Blocked,
    /// No longer managed.
    Retired,
}

impl DeviceState {
    /// Every state.
    pub const ALL: [Self; 7] = [
        Self::Registered,
        Self::Quarantined,
        Self::PolicyPending,
        Self::Released,
        Self::Stale,
        Self::Blocked,
        Self::Retired,
    ];

    /// As a word: in the store, the documentation and on the command line.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Quarantined => "quarantined",
            Self::PolicyPending => "policy-pending",
            Self::Released => "released",
            Self::Stale => "stale",
            Self::Blocked => "blocked",
            Self::Retired => "retired",
        }
    }

    /// The state of this word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// Whether a quarantine policy judges it, so that its deadline runs.
    #[must_use]
    pub const fn quarantined(self) -> bool {
        match self {
            Self::Registered | Self::Quarantined | Self::PolicyPending | Self::Stale => true,
            Self::Released | Self::Blocked | Self::Retired => false,
        }
    }
}

/// What brought a device into its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum StateReason {
    /// It was registered.
    Registered,
    /// A session of it opened.
    Connected,
    /// A policy was offered to it.
    PolicyOffered,
    /// The MDM has seen its policy applied.
    PolicyApplied,
    /// The MDM says that its policy no longer holds.
    PolicyRevoked,
    /// Its wave of a newer policy revision came.
    PolicyStale,
    /// Its lease ended.
    LeaseEnded,
    /// Its deadline in quarantine passed.
    DeadlinePassed,
    /// It arrived outside its enrolment window.
    OutsideWindow,
    /// An operator released it.
    ExceptionRelease,
    /// An operator blocked it.
    ExceptionBlock,
    /// An operator's exception ended.
    ExceptionEnded,
    /// It was registered with another enrolment window.
    NewWindow,
    /// The configuration no longer has its full-service pool.
    PoolRemoved,
    /// The store was restored from a backup.
    Restored,
    /// It is no longer managed.
    Retired,
}

impl StateReason {
    /// Every reason.
    pub const ALL: [Self; 16] = [
        Self::Registered,
        Self::Connected,
        Self::PolicyOffered,
        Self::PolicyApplied,
        Self::PolicyRevoked,
        Self::PolicyStale,
        Self::LeaseEnded,
        Self::DeadlinePassed,
        Self::OutsideWindow,
        Self::ExceptionRelease,
        Self::ExceptionBlock,
        Self::ExceptionEnded,
        Self::NewWindow,
        Self::PoolRemoved,
        Self::Restored,
        Self::Retired,
    ];

    /// As a word: in the store, in answers, logs and the documentation.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Connected => "connected",
            Self::PolicyOffered => "policy_offered",
            Self::PolicyApplied => "policy_applied",
            Self::PolicyRevoked => "policy_revoked",
            Self::PolicyStale => "policy_stale",
            Self::LeaseEnded => "lease_ended",
            Self::DeadlinePassed => "deadline_passed",
            Self::OutsideWindow => "outside_window",
            Self::ExceptionRelease => "exception_release",
            Self::ExceptionBlock => "exception_block",
            Self::ExceptionEnded => "exception_ended",
            Self::NewWindow => "new_window",
            Self::PoolRemoved => "pool_removed",
            Self::Restored => "restored",
            Self::Retired => "retired",
        }
    }

    /// The reason of this word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|r| r.as_str() == text)
    }
}

impl fmt::Display for StateReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Other names of a device; each belongs to one device only, but for a certificate or key that is registered by those who may not act on the
/// other device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Aliases {
    /// Common names of its VPN certificates, beside its id.
    pub common_names: Box<[DeviceId]>,
    /// Its VPN certificates, if pinned.
    pub certificates: Box<[Fingerprint]>,
    /// Its VPN public keys.
    pub vpn_keys: Box<[VpnKey]>,
    /// On which devices whoever registered certificates and keys may act: for others these say nothing. `None` where there are none.
    pub reach: Reach,
}

impl Aliases {
    /// Whether it has certificates or keys.
    #[must_use]
    pub fn has_proofs(&self) -> bool {
        !(self.certificates.is_empty() && self.vpn_keys.is_empty())
    }

    /// Whether its certificates and keys cannot be another device's, too.
    #[must_use]
    pub fn bind(&self, other: &DeviceId) -> bool {
        identity::reaches(&self.reach, other.as_str())
    }
}

/// A device's enrolment: from its registration, or its last new window, on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolment {
    /// When it may enrol.
    pub window: Rare<Window>,
    /// When it was first released by proof.
    pub enrolled_at: Option<WallTime>,
    /// When it first arrived.
    pub arrived_at: Option<WallTime>,
    /// When it last arrived outside its window.
    pub arrived_outside: Option<WallTime>,
    /// Since when its deadline in quarantine runs, and how long it is; `None`: it does not run.
    pub deadline: Option<Lease>,
}

/// When a device may enrol. A missing bound does not bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Not before.
    pub not_before: Option<WallTime>,
    /// Not after.
    pub not_after: Option<WallTime>,
}

impl Window {
    /// What a restore closes, until it is registered anew. No clock makes it open, however wrong it is.
    pub const CLOSED: Self = Self {
        not_before: None,
        not_after: Some(WallTime(0)),
    };
}

/// What a release stands on, and what the next one has to be newer than.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// When the source observed the last restriction; a release must be newer. [`Release::UNTIMED`]: nobody knows.
    pub restricted_at: Option<WallTime>,
    /// When the proof that it stands on was accepted, or seen, if the source's clock is ahead; boot clock and boot are those of the last start in another boot at which it was still
    /// good. `None`: none has been accepted since the last restriction.
    pub proved: Option<Now>,
    /// Lease of the release by proof; `None`: without end, or not released by proof.
    pub lease: Option<Lease>,
}

impl Release {
    /// The time of a restriction that came while the clock was behind, and has none of its own: after whatever is dated, until the clock is
    /// right.
    pub const UNTIMED: WallTime = WallTime(i64::MAX);
}

/// The policy keys of a device, as hashes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handshake {
    /// A policy that is offered.
    pub offer: Option<Offer>,
    /// The final key.
    pub final_key: Option<FinalKey>,
}

/// A policy that is offered: its temporary key is out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Of the temporary key.
    pub key: KeyHash,
    /// Which policy.
    pub revision: PolicyRevision,
    /// How long the temporary key holds.
    pub holds: Lease,
}

/// A final key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalKey {
    /// Of the key.
    pub key: KeyHash,
    /// The only revision that it proves.
    pub revision: PolicyRevision,
    /// When the policy was offered that it was given for; `None`: an earlier version did not note it.
    pub offered: Option<Now>,
}

/// What an exception does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExceptionKind {
    /// Releases without proof.
    Release,
    /// Blocks, whatever is signalled.
    Block,
}

impl ExceptionKind {
    /// As a word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Block => "block",
        }
    }

    /// The kind of this word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Release, Self::Block].into_iter().find(|k| k.as_str() == text)
    }
}

/// An operator's exception in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// What it does.
    pub kind: ExceptionKind,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who.
    pub by: String,
    /// How long.
    pub holds: Lease,
}

/// Something that most devices do not have: nothing is kept of what is as by default. Read like a `T`; writing to it makes room for it.
#[derive(Clone, Default)]
pub struct Rare<T>(Option<Box<T>>);

/// What a [`Rare`] reads as while there is nothing.
pub trait Absent: Default + PartialEq + 'static {
    /// The default, for ever.
    fn absent() -> &'static Self;
}

impl<T: Absent> Rare<T> {
    /// Keeps it, if there is anything to keep.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self((value != T::default()).then(|| Box::new(value)))
    }

    /// Gives the room back if there is nothing left to keep.
    pub fn tidy(&mut self) {
        if **self == T::default() {
            self.0 = None;
        }
    }
}

impl<T: Absent> ops::Deref for Rare<T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_deref().unwrap_or_else(|| T::absent())
    }
}

impl<T: Absent> ops::DerefMut for Rare<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.get_or_insert_default()
    }
}

impl<T: Absent> PartialEq for Rare<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Absent + Eq> Eq for Rare<T> {}

impl<T: Absent + fmt::Debug> fmt::Debug for Rare<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

macro_rules! absent {
    ($($name:ty),*) => {
        $(impl Absent for $name {
            fn absent() -> &'static Self {
                static NONE: std::sync::LazyLock<$name> = std::sync::LazyLock::new(Default::default);
                &NONE
            }
        })*
    };
}
absent!(Aliases, Enrolment, Window, Release, Handshake);

#[cfg(test)]
mod tests {
    use super::*;

    /// A million of them: what is here is there a million times.
    #[test]
    fn a_device_is_small() {
        assert!(size_of::<Device>() <= 120, "{}", size_of::<Device>());
        assert!(size_of::<Enrolment>() <= 96, "{}", size_of::<Enrolment>());
    }

    #[test]
    fn what_is_rare_takes_no_room_while_it_is_as_by_default() {
        let mut rare: Rare<Release> = Rare::default();
        assert!(rare.0.is_none() && rare.lease.is_none() && rare == Rare::new(Release::default()));
        rare.restricted_at = Some(WallTime(1));
        assert!(rare.0.is_some() && rare != Rare::default());
        rare.restricted_at = None;
        assert_eq!(rare, Rare::default());
        rare.tidy();
        assert!(rare.0.is_none());
    }

    #[test]
    fn words_lead_back() {
        for reason in StateReason::ALL {
            assert_eq!(StateReason::parse(reason.as_str()), Some(reason));
        }
        for state in DeviceState::ALL {
            assert_eq!(DeviceState::parse(state.as_str()), Some(state));
        }
        assert_eq!(StateReason::parse("Registered"), None);
    }
}
