//! What a request touches, held against what its caller may act on: the one place where scopes are enforced, before the controller hears of
//! the request. Every message that a handler takes says what it touches, or handlers cannot learn who asks.
//!
//! Lists are not refused; they leave out what is outside the scope ([`sees_device`], [`sees_source`]).

use lazaret_proto::v1;
use tonic::{Code, Request, Status};

use crate::{
    access::{answer, roles::Rpc},
    audit::Entry,
    controller::{Controller, Note, Refusal, Refused},
    model::{DeviceId, Identity},
};

/// Most characters of a name of the caller's that an answer repeats.
const MAX_SHOWN: usize = 128;

/// One thing that a request is about; names as the caller wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch<'a> {
    /// A device, or a name by which a VPN server may find one.
    Device(&'a str),
    /// A VPN server whose sessions are reported.
    Source(&'a str),
    /// Every device.
    AllDevices,
}

/// A request that says what it touches.
pub(super) trait Touches {
    /// Shows each to `see`.
    fn touches(&self, see: &mut dyn FnMut(Touch<'_>));
}

/// Who asks, as the access layer found it, if all that the request touches is within his scope. A request that came around the access
/// layer is refused.
///
/// # Errors
/// NO_IDENTITY, OUTSIDE_SCOPE.
pub(super) async fn identity<T: Touches + Sync>(request: &Request<T>, controller: &Controller) -> Result<Identity, Status> {
    let by = caller(request)?;
    let Some(outside) = outside(&by, request.get_ref()) else {
        return Ok(by);
    };
    let rpc = request.extensions().get::<&'static Rpc>().map_or("", |rpc| rpc.method());
    Err(refused(controller, &by, rpc, "", outside).await)
}

/// Who asks; what a message of his touches is held against his scope by [`outside`].
///
/// # Errors
/// NO_IDENTITY.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Identity, Status> {
    let missing = || answer::status(Code::Unauthenticated, "NO_IDENTITY", [], "the caller is not known");
    request.extensions().get::<Identity>().cloned().ok_or_else(missing)
}

/// What a message touches outside the caller's scope, first.
pub(super) fn outside(by: &Identity, message: &impl Touches) -> Option<Outside> {
    let mut outside: Option<Outside> = None;
    message.touches(&mut |touch| {
        let (what, device) = match touch {
            Touch::Device(name) if !by.scope.has_device(name) => (format!("device {name}"), name.parse().ok()),
            Touch::Source(name) if !by.scope.has_source(name) => (format!("source {name}"), None),
            Touch::AllDevices if !by.scope.has_all_devices() => ("every device".to_owned(), None),
            _ => return,
        };
        outside.get_or_insert_with(|| Outside::new(&what, device));
    });
    outside
}

/// What is outside a caller's scope, shortened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outside {
    what: String,
    /// If it is one, whether it exists or not.
    device: Option<DeviceId>,
}

impl Outside {
    pub(super) fn new(what: &str, device: Option<DeviceId>) -> Self {
        Self {
            what: what.chars().take(MAX_SHOWN).collect(),
            device,
        }
    }
}

/// Whether what names any device and any source may be shown to him.
pub(super) fn sees_all(by: &Identity) -> bool {
    by.scope.has_all_devices() && by.scope.has_all_sources()
}

/// Whether a list or a watch may show him a device.
pub(super) fn sees_device(by: &Identity, device: &str) -> bool {
    by.scope.has_device(device)
}

/// Whether he may see, or end, a session that this source reported.
pub(super) fn sees_source(by: &Identity, source: &str) -> bool {
    by.scope.has_source(source)
}

/// A refusal as he may see it: of what is outside his scope he is told neither whose an alias is nor who holds an address.
pub(super) fn seen_by(by: &Identity, mut refused: Refused) -> Refused {
    match &mut refused.refusal {
        Refusal::AliasTaken { owner, .. } => *owner = owner.take().filter(|owner| by.scope.has_device(owner.as_str())),
        Refusal::AddressTaken {
            address, source_name, ..
        } if !by.scope.has_source(source_name.as_str()) => refused.refusal = Refusal::AddressOfAnother(*address),
        _ => {}
    }
    refused
}

/// A device's entry in the audit as he may see it: not whose an alias is, or who holds an address, that this one asked for in vain.
pub(super) fn told_to(by: &Identity, mut entry: Entry) -> Entry {
    let anothers = [&entry.result, &entry.subject].map(String::as_str);
    let taken = ["ALIAS_TAKEN", "ADDRESS_TAKEN", "address-taken"]
        .iter()
        .any(|t| anothers.contains(t));
    if !by.scope.has_all_devices() && taken {
        "an alias or address is another device's".clone_into(&mut entry.reason);
    }
    entry
}

/// OUTSIDE_SCOPE, with its entry in the audit.
pub(super) async fn refused(
    controller: &Controller,
    by: &Identity,
    rpc: &'static str,
    request: &str,
    outside: Outside,
) -> Status {
    refusal(controller, by, rpc, request, outside).await.into()
}

/// The same, of a part of a call.
pub(super) async fn refusal(
    controller: &Controller,
    by: &Identity,
    rpc: &'static str,
    request: &str,
    outside: Outside,
) -> Refused {
    tracing::info!(by = by.name, rpc, subject = ?outside.what, "call refused: OUTSIDE_SCOPE");
    let note = Note {
        by: by.name.clone(),
        action: rpc,
        // As long as a good one can be.
        request: request.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect(),
        subject: answer::escape(&outside.what),
        device: outside.device,
    };
    controller.note_refusal(note, Refusal::OutsideScope(outside.what)).await
}

/// Messages that touch one device, by their field `device_id`.
macro_rules! one_device {
    ($($message:ident),* $(,)?) => {$(
        impl Touches for v1::$message {
            fn touches(&self, see: &mut dyn FnMut(Touch<'_>)) {
                see(Touch::Device(&self.device_id));
            }
        }
    )*};
}

/// Messages that touch nothing: what they show is left out where it is outside the scope, or is for roles that have none.
macro_rules! nothing {
    ($($message:ident),* $(,)?) => {$(
        impl Touches for v1::$message {
            fn touches(&self, _: &mut dyn FnMut(Touch<'_>)) {}
        }
    )*};
}

/// Messages that touch every device.
macro_rules! all_devices {
    ($($message:ident),* $(,)?) => {$(
        impl Touches for v1::$message {
            fn touches(&self, see: &mut dyn FnMut(Touch<'_>)) {
                see(Touch::AllDevices);
            }
        }
    )*};
}

/// Messages that touch the sessions of one source, by their field `source`.
macro_rules! one_source {
    ($($message:ident),* $(,)?) => {$(
        impl Touches for v1::$message {
            fn touches(&self, see: &mut dyn FnMut(Touch<'_>)) {
                see(Touch::Source(&self.source));
            }
        }
    )*};
}

one_device!(
    GetDeviceRequest,
    ReportPolicyAppliedRequest,
    ReportPolicyRevokedRequest,
    RetireDeviceRequest,
    ExplainDeviceRequest,
    OfferPolicyRequest,
    AcknowledgePolicyRequest,
    RenewLeaseSignal,
    GrantExceptionRequest,
    EndExceptionRequest,
);
all_devices!(
    PublishPolicyRevisionRequest,
    PausePublicationRequest,
    ResumePublicationRequest,
    // They count them.
    GetLedgerRequest,
    GetPublicationRequest,
    WatchPublicationRequest,
);
one_source!(OpenSessionRequest, SynchroniseSessionsRequest);
nothing!(
    GetAccessRequest,
    FinishRetirementRequest,
    ListDevicesRequest,
    ListLedgerEntriesRequest,
    WatchGatewayUrisRequest,
    ListSessionsRequest,
    ListAuditEntriesRequest,
    GetAuditEntryRequest,
    GetRefusalRequest,
    GetAuditHeadRequest,
    GetDriftRequest,
    CheckDriftRequest,
    // By number: its handler asks whose it is.
    CloseSessionRequest,
);

impl Touches for v1::RegisterDevicesRequest {
    /// Its common names too: a VPN server finds a device by them as by its id.
    fn touches(&self, see: &mut dyn FnMut(Touch<'_>)) {
        for device in &self.devices {
            see(Touch::Device(&device.device_id));
            let names = device.aliases.iter().flat_map(|a| &a.common_names);
            names.for_each(|name| see(Touch::Device(name)));
        }
    }
}

impl Touches for v1::RenewLeasesRequest {
    fn touches(&self, see: &mut dyn FnMut(Touch<'_>)) {
        self.device_ids.iter().for_each(|id| see(Touch::Device(id)));
    }
}

impl Touches for v1::ReportPolicyRequest {
    fn touches(&self, see: &mut dyn FnMut(Touch<'_>)) {
        use v1::report_policy_request::Signal;
        match &self.signal {
            Some(Signal::Applied(r)) => r.touches(see),
            Some(Signal::Revoked(r)) => r.touches(see),
            Some(Signal::Renew(r)) => r.touches(see),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::model::{Role, Scope};

    fn limited() -> Identity {
        Identity {
            scope: Scope {
                sources: Some(["vpn-1".parse().unwrap()].into()),
                devices: Some(["a-*".parse().unwrap()].into()),
            },
            ..Identity::unlimited(Role::Mdm, "x")
        }
    }

    fn registration(ids: &[&str], common_names: &[&str]) -> v1::RegisterDevicesRequest {
        let device = |id: &&str| v1::DeviceRegistration {
            device_id: (*id).to_owned(),
            aliases: Some(v1::Aliases {
                common_names: common_names.iter().map(ToString::to_string).collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        v1::RegisterDevicesRequest {
            context: None,
            devices: ids.iter().map(device).collect(),
        }
    }

    #[test]
    fn one_element_outside_refuses_the_whole() {
        let by = limited();
        assert_eq!(outside(&by, &registration(&["a-1", "a-2"], &[])), None);
        assert_eq!(outside(&by, &registration(&["a-1"], &["a-cn"])), None);
        for (ids, names, what) in [
            (&["a-1", "b-1"][..], &[][..], "device b-1"),
            (&["a-1"], &["b-cn"], "device b-cn"),
            (&[""], &[], "device "),
        ] {
            let found = outside(&by, &registration(ids, names)).unwrap();
            assert_eq!(
                found,
                Outside::new(what, what.strip_prefix("device ").and_then(|d| d.parse().ok()))
            );
        }
        assert!(outside(&by, &v1::PublishPolicyRevisionRequest::default()).is_some());
        let unlimited = Identity::unlimited(Role::Mdm, "x");
        assert_eq!(outside(&unlimited, &v1::PublishPolicyRevisionRequest::default()), None);
        let open = |source: &str| v1::OpenSessionRequest {
            source: source.into(),
            ..Default::default()
        };
        assert_eq!(outside(&by, &open("vpn-1")), None);
        assert!(outside(&by, &open("vpn-2")).is_some());
        // What the status says of conflicts names any device and any source.
        let source_only = Identity {
            scope: Scope {
                devices: None,
                ..by.scope.clone()
            },
            ..by.clone()
        };
        assert!(sees_all(&unlimited) && !sees_all(&by) && !sees_all(&source_only));
    }

    #[test]
    fn what_is_repeated_is_short_and_harmless() {
        let r = v1::GetDeviceRequest {
            device_id: "\u{1b}[2J".repeat(1000),
        };
        let found = outside(&limited(), &r).unwrap();
        assert_eq!((found.what.chars().count(), found.device), (MAX_SHOWN, None));
        let e = crate::api::status::refused(&Refusal::OutsideScope(found.what));
        let info = e.get_details_error_info().unwrap();
        assert_eq!((e.code(), info.reason.as_str()), (Code::PermissionDenied, "OUTSIDE_SCOPE"));
        assert!(e.message().len() < 2000 && !e.message().contains('\u{1b}'), "{}", e.message());
    }
}
