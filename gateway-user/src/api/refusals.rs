//! What is refused without a decision of the controller's, where the API meets it: its entry in the audit, its code where it is a part of an
//! answer, and whoever looks it up.

use lazaret_proto::v1;
use tonic::{Code, Status};

use crate::{
    access::{
        answer,
        refusals::{Kept, Notary, Noting, REFERENCE, Refusals, Told},
        roles,
    },
    controller::{Controller, Note},
    model::Identity,
};

/// Gives entries of the audit.
#[derive(Debug)]
pub(super) struct Auditor(pub(super) Controller);

impl Notary for Auditor {
    fn note(&self, told: &Told) -> Noting {
        let rpc = roles::TABLE.iter().find(|rpc| rpc.path == told.rpc);
        let note = Note {
            by: told.who.name().to_owned(),
            action: rpc.map_or("UnknownMethod", |rpc| rpc.method()),
            request: told.request.clone(),
            subject: String::new(),
            device: None,
        };
        let (reason, result) = (told.message.clone(), told.reason.clone());
        let controller = self.0.clone();
        Box::pin(async move { controller.note_denied(note, reason, result).await })
    }
}

/// A part of a call, with its code.
pub(super) async fn refer(refusals: &Refusals, by: &Identity, path: &str, request: &str, part: &mut v1::Refusal) {
    if !part.metadata.contains_key(REFERENCE) {
        let code = refusals.refer(told(by, path, request, part)).await;
        part.metadata.insert(REFERENCE.to_owned(), code);
    }
}

/// The same of what the controller has decided, and could give no entry.
pub(super) fn refer_now(refusals: &Refusals, by: &Identity, path: &str, request: &str, part: &mut v1::Refusal) {
    if !part.metadata.contains_key(REFERENCE) {
        let code = refusals.refer_now(&told(by, path, request, part));
        part.metadata.insert(REFERENCE.to_owned(), code);
    }
}

fn told(by: &Identity, path: &str, request: &str, part: &v1::Refusal) -> Told {
    Told {
        who: by.into(),
        rpc: path.to_owned(),
        code: Code::from_i32(part.code),
        reason: part.reason.clone(),
        message: part.message.clone(),
        request: request.to_owned(),
    }
}

/// One that is looked up.
pub(super) fn found(refusals: &Refusals, number: u64) -> Result<v1::RecentRefusal, Status> {
    refusals.find(number).map(rendered).ok_or_else(|| {
        let sentence =
            format!("no refusal R{number} is remembered: it was of another start of the daemon, or many have come since");
        let about = [("code", format!("R{number}"))];
        answer::status(Code::NotFound, "UNKNOWN_REFUSAL", about, &sentence)
    })
}

fn rendered(kept: Kept) -> v1::RecentRefusal {
    v1::RecentRefusal {
        number: kept.number,
        first_at: Some(kept.first.into()),
        last_at: Some(kept.last.into()),
        count: kept.count,
        by: kept.told.who.name().to_owned(),
        rpc: kept.told.rpc,
        code: kept.told.code.into(),
        reason: kept.told.reason,
        message: kept.told.message,
        request_id: kept.told.request,
        audit_number: kept.audit.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::{
        controller::{Refusal, tests::kit::Gateway},
        model::Role,
    };

    #[tokio::test]
    async fn a_full_queue_leaves_a_code_that_is_found_all_the_same() {
        let g = Gateway::new().await;
        g.register("phone", "office").await;
        let refusals = Refusals::new(Arc::new(Auditor(g.controller().clone())));
        let by = Identity::unlimited(Role::Mdm, "mdm-1");
        let go = g.hold().await;
        let busy = || g.controller().drift().now_or_never();
        let full = std::iter::repeat_with(busy).find_map(|told| told).unwrap();
        assert_eq!(full.unwrap_err(), Refusal::Busy);
        // One that says nothing of the caller, and one that is for the audit, which cannot be told of it now.
        for (code, reason) in [(Code::Unavailable, "BUSY"), (Code::InvalidArgument, "INVALID_ARGUMENT")] {
            let mut part = v1::Refusal {
                code: code.into(),
                reason: reason.to_owned(),
                ..Default::default()
            };
            refer(&refusals, &by, "/lazaret.v1.PolicyService/ReportPolicy", "r-1", &mut part).await;
            let number = part.metadata[REFERENCE].strip_prefix('R').unwrap().parse().unwrap();
            let found = found(&refusals, number).unwrap();
            assert_eq!(
                (found.reason.as_str(), found.request_id.as_str(), found.audit_number),
                (reason, "r-1", 0)
            );
        }
        go.send(()).unwrap();
    }
}
