//! The one table from what went wrong to gRPC: code, google.rpc.ErrorInfo (reason, domain "lazaret", metadata) for programs, a sentence for
//! people. Codes follow google.rpc.Code's advice: FAILED_PRECONDITION where the same request can succeed once the state has changed,
//! INVALID_ARGUMENT where it cannot, UNAVAILABLE where it may simply be repeated.

use lazaret_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::parse::Invalid;
use crate::{
    access::answer::{escape, info, status},
    controller::{Refusal, Refused},
    model::prefix::Shown,
};

/// A refused command.
pub(super) fn refused(refusal: &Refusal) -> Status {
    let (code, metadata) = entry(refusal);
    status(code, refusal.name(), metadata, &refusal.to_string())
}

/// A request with a field that is missing or wrong: INVALID_ARGUMENT, with google.rpc.BadRequest beside the ErrorInfo.
pub(super) fn invalid(e: &Invalid) -> Status {
    let mut details = info(e.reason(), [("field", e.field().to_owned())]);
    details.add_bad_request_violation(e.field(), e.problem());
    Status::with_error_details(Code::InvalidArgument, escape(&e.to_string()), details)
}

/// The first answer to a request that comes again is not what this RPC answers: another version of the gateway wrote it.
pub(super) fn forgotten() -> Status {
    let sentence = "the request was answered by another version of the gateway; ask for the device";
    status(Code::DataLoss, "ANSWER_LOST", [], sentence)
}

impl From<Invalid> for Status {
    fn from(e: Invalid) -> Self {
        invalid(&e)
    }
}

impl From<Refusal> for Status {
    fn from(e: Refusal) -> Self {
        refused(&e)
    }
}

/// With the reference code, if the refusal is in the audit.
impl From<Refused> for Status {
    fn from(e: Refused) -> Self {
        let (code, _) = entry(&e.refusal);
        status(code, e.refusal.name(), pairs(&e.refusal, e.reference), &e.refusal.to_string())
    }
}

/// What a refusal is about, and its reference code.
fn pairs(refusal: &Refusal, reference: Option<u64>) -> impl Iterator<Item = (&'static str, String)> {
    let reference = reference.map(|n| ("reference", format!("A{n}")));
    entry(refusal).1.into_iter().chain(reference)
}

/// A part of a call that was refused.
pub(super) fn part(refused: &Refused) -> v1::Refusal {
    v1::Refusal {
        code: entry(&refused.refusal).0.into(),
        reason: refused.refusal.name().to_owned(),
        metadata: pairs(&refused.refusal, refused.reference)
            .map(|(k, v)| (k.to_owned(), escape(&v)))
            .collect(),
        message: escape(&refused.refusal.to_string()),
    }
}

/// A status as a part of a call that was refused.
pub(super) fn as_part(status: &Status) -> v1::Refusal {
    let info = status.get_details_error_info();
    let (reason, metadata) = info.map(|i| (i.reason, i.metadata)).unwrap_or_default();
    v1::Refusal {
        code: status.code().into(),
        reason,
        metadata,
        message: status.message().to_owned(),
    }
}

/// At most one pair of metadata: what the refusal is about.
type Entry = (Code, [(&'static str, String); 1]);

fn entry(refusal: &Refusal) -> Entry {
    let about = |key: &'static str, value: &dyn std::fmt::Display| [(key, value.to_string())];
    match refusal {
        Refusal::UnknownDevice(d) => (Code::NotFound, about("device", d)),
        Refusal::DeviceRetired(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::UnknownPool(p) => (Code::InvalidArgument, about("pool", p)),
        Refusal::AliasTaken { owner: Some(d), .. } => (Code::AlreadyExists, about("owner", d)),
        Refusal::AliasTaken { alias, owner: None } => (Code::AlreadyExists, about("alias", alias)),
        Refusal::DeviceQuota(most) => (Code::ResourceExhausted, about("most", most)),
        Refusal::SignalTooOld { most_s, .. } => (Code::FailedPrecondition, about("most_s", most_s)),
        Refusal::EnrolmentNotOpen(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::EnrolmentClosed(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::QuarantineDeadline(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::DeviceBlocked(d, _) => (Code::FailedPrecondition, about("device", d)),
        Refusal::StalePolicyRevision { required, .. } => (Code::FailedPrecondition, about("required", required)),
        Refusal::UnknownPolicyRevision(r) => (Code::FailedPrecondition, about("revision", r)),
        Refusal::PolicyKeyRequired => (Code::FailedPrecondition, about("field", &"policy_key")),
        Refusal::PolicyKeyUnknown(d) => (Code::PermissionDenied, about("device", d)),
        Refusal::PolicyKeyExpired(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::PolicyKeyTemporary(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::PolicyKeyRevision { bound, .. } => (Code::FailedPrecondition, about("bound", bound)),
        Refusal::NotReleased(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::NoException(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::ExceptionTooLong(s) => (Code::InvalidArgument, about("most_s", s)),
        Refusal::RequestIdReused(r) => (Code::AlreadyExists, about("request_id", r)),
        Refusal::OutsideScope(what) => (Code::PermissionDenied, about("subject", what)),
        Refusal::NothingPublished => (Code::FailedPrecondition, about("part", &"policy")),
        Refusal::StaleSignal => (Code::FailedPrecondition, about("field", &"context.observed_at")),
        Refusal::SignalFromFuture => (Code::FailedPrecondition, about("field", &"context.observed_at")),
        Refusal::ClockBehind => (Code::FailedPrecondition, about("field", &"context.observed_at")),
        Refusal::WindowUnknown(d) => (Code::FailedPrecondition, about("device", d)),
        Refusal::AddressOutsidePools(a) => (Code::InvalidArgument, about("address", a)),
        Refusal::AddressReserved(a) => (Code::InvalidArgument, about("address", a)),
        Refusal::AddressTaken { session, .. } => (Code::AlreadyExists, about("session", session)),
        Refusal::SourceInterface { interface, .. } => (Code::PermissionDenied, about("interface", interface)),
        Refusal::SourcePrefix { address, .. } => (Code::PermissionDenied, about("address", &Shown(*address))),
        Refusal::AddressOfAnother(a) => (Code::AlreadyExists, about("address", a)),
        Refusal::SessionLimit { live, .. } => (Code::ResourceExhausted, about("live", live)),
        Refusal::FingerprintMismatch(d) | Refusal::FingerprintOfAnother(d) => (Code::PermissionDenied, about("device", d)),
        Refusal::TableFull => (Code::ResourceExhausted, about("setting", &"tables.addresses")),
        Refusal::ClassesFull => (Code::ResourceExhausted, about("part", &"classes")),
        Refusal::StoreUnavailable(_) => (Code::Unavailable, about("part", &"store")),
        Refusal::RevisionTooOld { now, .. } => (Code::OutOfRange, about("now", now)),
        Refusal::Kernel(_) => (Code::Internal, about("part", &"kernel")),
        Refusal::Busy => (Code::Unavailable, about("part", &"controller")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_can_be_read_back() {
        let s = refused(&Refusal::UnknownDevice("d-1".parse().unwrap()));
        assert_eq!(s.code(), Code::NotFound);
        let info = s.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("UNKNOWN_DEVICE", "lazaret"));
        assert_eq!(info.metadata["device"], "d-1");

        let s = invalid(&Invalid::new("devices[3].owner", "must be short"));
        assert_eq!(
            (s.code(), s.message()),
            (Code::InvalidArgument, "devices[3].owner: must be short")
        );
        assert_eq!(s.get_details_error_info().unwrap().metadata["field"], "devices[3].owner");
        assert_eq!(
            s.get_details_bad_request().unwrap().field_violations[0].field,
            "devices[3].owner"
        );
    }

    /// What programs branch on: a change here breaks them.
    #[test]
    fn every_refusal_has_its_code_and_its_reason() {
        let device = || "d-1".parse().unwrap();
        let address: std::net::IpAddr = "192.0.2.1".parse().unwrap();
        let (alias, source_name) = ("cn".to_owned(), "vpn-1".parse().unwrap());
        let taken = Refusal::AddressTaken {
            address,
            session: crate::model::SessionId(7),
            source_name,
        };
        for (refusal, code, reason) in [
            (Refusal::UnknownDevice(device()), Code::NotFound, "UNKNOWN_DEVICE"),
            (Refusal::DeviceRetired(device()), Code::FailedPrecondition, "DEVICE_RETIRED"),
            (Refusal::UnknownPool("p".into()), Code::InvalidArgument, "UNKNOWN_POOL"),
            (
                Refusal::AliasTaken {
                    alias,
                    owner: Some(device()),
                },
                Code::AlreadyExists,
                "ALIAS_TAKEN",
            ),
            (Refusal::DeviceQuota(7), Code::ResourceExhausted, "DEVICE_QUOTA"),
            (Refusal::AddressOfAnother(address), Code::AlreadyExists, "ADDRESS_TAKEN"),
            (
                Refusal::FingerprintOfAnother(device()),
                Code::PermissionDenied,
                "FINGERPRINT_MISMATCH",
            ),
            (Refusal::StaleSignal, Code::FailedPrecondition, "STALE_SIGNAL"),
            (Refusal::SignalFromFuture, Code::FailedPrecondition, "SIGNAL_FROM_FUTURE"),
            (Refusal::ClockBehind, Code::FailedPrecondition, "CLOCK_BEHIND"),
            (Refusal::WindowUnknown(device()), Code::FailedPrecondition, "CLOCK_BEHIND"),
            (
                Refusal::AddressOutsidePools(address),
                Code::InvalidArgument,
                "ADDRESS_OUTSIDE_POOLS",
            ),
            (Refusal::AddressReserved(address), Code::InvalidArgument, "ADDRESS_RESERVED"),
            (taken, Code::AlreadyExists, "ADDRESS_TAKEN"),
            (
                Refusal::SourceInterface {
                    interface: "tun0".parse().unwrap(),
                    source_name: "vpn-2".parse().unwrap(),
                },
                Code::PermissionDenied,
                "SOURCE_INTERFACE",
            ),
            (
                Refusal::SourcePrefix {
                    address,
                    source_name: "vpn-2".parse().unwrap(),
                },
                Code::PermissionDenied,
                "SOURCE_PREFIX",
            ),
            (
                Refusal::SessionLimit {
                    device: device(),
                    live: 1,
                },
                Code::ResourceExhausted,
                "SESSION_LIMIT",
            ),
            (
                Refusal::FingerprintMismatch(device()),
                Code::PermissionDenied,
                "FINGERPRINT_MISMATCH",
            ),
            (Refusal::TableFull, Code::ResourceExhausted, "TABLE_FULL"),
            (Refusal::ClassesFull, Code::ResourceExhausted, "CLASSES_FULL"),
            (
                Refusal::StoreUnavailable("full".into()),
                Code::Unavailable,
                "STORE_UNAVAILABLE",
            ),
            (
                Refusal::RevisionTooOld { asked: 1, now: 9 },
                Code::OutOfRange,
                "REVISION_TOO_OLD",
            ),
            (Refusal::Kernel("no".into()), Code::Internal, "KERNEL"),
            (Refusal::Busy, Code::Unavailable, "BUSY"),
        ] {
            let s = refused(&refusal);
            let info = s.get_details_error_info().unwrap();
            assert_eq!(
                (s.code(), info.reason.as_str(), info.domain.as_str()),
                (code, reason, "lazaret")
            );
            assert!(s.message().contains(' '), "a sentence: {}", s.message());
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        let s = refused(&Refusal::Kernel("a\u{1b}[2J\nb".into()));
        assert_eq!(s.message(), "the kernel refused: a\\u{1b}[2J\\nb");
    }
}
