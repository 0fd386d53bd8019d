//! PolicyService's answers.

use lazaret_proto::v1;

use super::{device, state, timestamp};
use crate::{
    api::status,
    config::Config,
    controller::{AcknowledgeOutcome, DeviceView, OfferOutcome, PublicationView, RenewOutcome, Renewal},
    model::RequestId,
};

/// A policy that is offered.
pub(in crate::api) fn offered(config: &Config, request: &RequestId, o: OfferOutcome) -> v1::OfferPolicyResponse {
    v1::OfferPolicyResponse {
        request_id: request.to_string(),
        temporary_key: o.key.reveal(),
        key_ends_at: Some(timestamp(o.ends_at)),
        device: Some(device(config, o.device)),
        store_revision: o.revision.0,
    }
}

/// An offer that is acknowledged.
pub(in crate::api) fn acknowledged(config: &Config, request: &RequestId, o: AcknowledgeOutcome) -> v1::AcknowledgePolicyResponse {
    v1::AcknowledgePolicyResponse {
        request_id: request.to_string(),
        final_key: o.key.reveal(),
        policy_revision: o.policy.into(),
        device: Some(device(config, o.device)),
        store_revision: o.revision.0,
    }
}

/// Leases that are renewed, or not. `refer` gives a code to what was refused, where it has none.
pub(in crate::api) fn renewed(
    request: &RequestId,
    o: RenewOutcome,
    mut refer: impl FnMut(&mut v1::Refusal),
) -> v1::RenewLeasesResponse {
    let one = |r: Renewal| {
        let (end, refusal) = match r.result {
            Ok(end) => (end, None),
            Err(refused) => {
                let mut part = status::part(&refused);
                refer(&mut part);
                (None, Some(part))
            }
        };
        v1::LeaseRenewal {
            device_id: r.device.into(),
            lease_ends_at: end.map(timestamp),
            refusal,
        }
    };
    v1::RenewLeasesResponse {
        request_id: request.to_string(),
        renewals: o.renewals.into_iter().map(one).collect(),
        store_revision: o.revision.0,
    }
}

/// One of a stream's.
pub(in crate::api) fn renewed_one(request: &RequestId, mut o: RenewOutcome, view: DeviceView) -> v1::ReportPolicyResponse {
    let refusal = o.renewals.pop().and_then(|r| r.result.err()).map(|r| status::part(&r));
    let answer = v1::ReportPolicyResponse {
        request_id: request.to_string(),
        device_id: view.device.id.to_string(),
        ..Default::default()
    };
    if refusal.is_some() {
        return v1::ReportPolicyResponse { refusal, ..answer };
    }
    let level = match view.sessions.is_empty() {
        true => v1::Enforcement::NoSession,
        // The store and the kernel's clock have it; where the programs see it is not asked.
        false => v1::Enforcement::Committed,
    };
    v1::ReportPolicyResponse {
        enforcement: level.into(),
        state: state(view.device.state).into(),
        lease_ends_at: view.lease_ends_at.map(timestamp),
        gateway_uri: view.device.gateway_uri.to_string(),
        store_revision: o.revision.0,
        ..answer
    }
}

/// A publication with how far it has got.
pub(in crate::api) fn publication(v: PublicationView) -> v1::Publication {
    let p = v.publication;
    v1::Publication {
        policy_revision: p.revision.into(),
        published_at: Some(timestamp(p.at)),
        ceiling: p.ceiling,
        rate_per_minute: p.rate,
        urgent: p.ceiling == 0 && p.rate == 0,
        paused: p.paused,
        done: v.progress.done,
        waiting: v.progress.waiting,
        stale: v.progress.stale,
        excepted: v.progress.excepted,
    }
}
