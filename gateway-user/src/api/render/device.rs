//! Why a device is in its state.

use lazaret_proto::v1;

use super::{device, operator::audit_entry, timestamp};
use crate::{config::Config, controller::Dossier, why::Answer};

/// The answer, with the device and its last events.
pub(in crate::api) fn explained(config: &Config, answer: Answer, dossier: Dossier) -> v1::ExplainDeviceResponse {
    v1::ExplainDeviceResponse {
        device: Some(device(config, dossier.device)),
        summary: answer.summary,
        changed_by: answer.changed_by,
        requirements: answer
            .requirements
            .into_iter()
            .map(|r| v1::Requirement {
                subject: r.subject.to_owned(),
                required: r.required,
                found: r.found,
                met: r.met,
            })
            .collect(),
        next: answer
            .next
            .into_iter()
            .map(|(at, what)| v1::ExpectedChange {
                at: Some(timestamp(at)),
                what,
            })
            .collect(),
        advice: answer.advice,
        events: dossier.entries.into_iter().map(|e| audit_entry(e.entry)).collect(),
    }
}
