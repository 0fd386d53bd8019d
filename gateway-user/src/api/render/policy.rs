//! PolicyService's answers.

use lazaret_proto::v1;

use super::{device, how_far, reported, timestamp};
use crate::{
    api::status,
    config::Config,
    controller::{AcknowledgeOutcome, OfferOutcome, PublicationView, RenewOutcome, Renewal},
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
    config: &Config,
    request: &RequestId,
    o: RenewOutcome,
    mut refer: impl FnMut(&mut v1::Refusal),
) -> v1::RenewLeasesResponse {
    let one = |r: Renewal| {
        let device_id = r.device.into();
        match r.result {
            Ok(o) => {
                let (level, prefixes) = how_far(config, o.enforcement, o.addresses);
                v1::LeaseRenewal {
                    device_id,
                    lease_ends_at: o.device.lease_ends_at.map(timestamp),
                    refusal: None,
                    enforcement: level.into(),
                    prefixes,
                }
            }
            Err(refused) => {
                let mut part = status::part(&refused);
                refer(&mut part);
                v1::LeaseRenewal {
                    device_id,
                    refusal: Some(part),
                    ..Default::default()
                }
            }
        }
    };
    v1::RenewLeasesResponse {
        request_id: request.to_string(),
        renewals: o.renewals.into_iter().map(one).collect(),
        store_revision: o.revision.0,
    }
}

/// One of a stream's.
pub(in crate::api) fn renewed_one(config: &Config, request: &RequestId, mut o: RenewOutcome) -> v1::ReportPolicyResponse {
    let refused = |device: String, refusal| v1::ReportPolicyResponse {
        request_id: request.to_string(),
        device_id: device,
        refusal,
        ..Default::default()
    };
    match o.renewals.pop() {
        Some(Renewal { result: Ok(outcome), .. }) => reported(config, request, outcome),
        Some(Renewal { device, result: Err(e) }) => refused(device.into(), Some(status::part(&e))),
        None => refused(String::new(), None),
    }
}

/// A publication with how far it has got.
pub(in crate::api) fn publication(v: PublicationView) -> v1::Publication {
    let standstill = v.standstill().unwrap_or_default();
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
        waiting_connected: v.progress.ready,
        stale_counted: v.progress.counted,
        ceiling_full_since: v.full_since.map(|since| timestamp(since.wall)),
        standstill,
    }
}
