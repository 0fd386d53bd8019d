//! OperatorService's answers.

use lazaret_proto::v1;

use super::timestamp;
use crate::{access::answer::escape, audit::Entry, controller::Difference};

/// An entry of the audit. What others wrote into it is escaped.
pub(in crate::api) fn audit_entry(e: Entry) -> v1::AuditEntry {
    v1::AuditEntry {
        number: e.number,
        at: Some(timestamp(e.at)),
        by: escape(&e.by),
        action: escape(&e.action),
        device_id: e.device.map(String::from).unwrap_or_default(),
        subject: escape(&e.subject),
        before: escape(&e.before),
        after: escape(&e.after),
        reason: escape(&e.reason),
        request_id: escape(&e.request),
        result: escape(&e.result),
    }
}

/// A difference between what should be and what the kernel had.
pub(in crate::api) fn drift(d: Difference) -> v1::Drift {
    v1::Drift {
        found_at: Some(timestamp(d.at)),
        subject: escape(&d.subject),
        device_id: d.device.map(String::from).unwrap_or_default(),
        wanted: escape(&d.wanted),
        found: escape(&d.found),
        repaired: d.repaired,
    }
}
