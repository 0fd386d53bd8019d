//! `policy` and `renew`: what an MDM does, by hand. Proof takes its certificate.

use std::io::{self, Write as _};

use lazaret_proto::v1;
use serde_json::json;

use super::{
    Outcome,
    args::{AcknowledgeArgs, AppliedArgs, Connection, OfferArgs, PolicyCommand, ProgressArgs, PublishArgs, RenewArgs},
    client::{Failure, context},
    commands::{PREFIX, connect, enforcement_name, print, signal},
    json::{self, text_of},
    table::{Cell, Page, Tone, toned},
};

/// Policy keys and policy revisions.
pub(super) async fn run(command: &PolicyCommand) -> Result<Outcome, Failure> {
    match command {
        PolicyCommand::Offer(a) => offer(a).await,
        PolicyCommand::Acknowledge(a) => acknowledge(a).await,
        PolicyCommand::Applied(a) => applied(a).await,
        PolicyCommand::Publish(a) => publish(a).await,
        PolicyCommand::Pause(c) => pause(c).await,
        PolicyCommand::Resume(c) => resume(c).await,
        PolicyCommand::Progress(a) => progress(a).await,
    }
}

async fn offer(a: &OfferArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::OfferPolicyRequest {
        context: Some(context(PREFIX)?),
        device_id: a.device.to_string(),
        policy_revision: a.revision.to_string(),
    };
    let answer = client.answer(client.policies().offer_policy(request)).await?;
    let ends = answer.key_ends_at;
    let as_json = || {
        json!({
            "request_id": answer.request_id, "temporary_key": answer.temporary_key, "key_ends_at": json::time(ends.as_ref()),
            "device": answer.device.as_ref().map(json::device), "store_revision": answer.store_revision,
        })
    };
    print(&a.connection, as_json, |page| {
        page.pair("device", a.device.to_string());
        page.pair("temporary key", &answer.temporary_key);
        page.pair("ends", text_of(ends.as_ref()).unwrap_or_default());
        page.line("");
        page.line(format!(
            "Next: lazaret policy acknowledge {} --key {}",
            a.device, answer.temporary_key
        ));
    })
}

async fn acknowledge(a: &AcknowledgeArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::AcknowledgePolicyRequest {
        context: Some(context(PREFIX)?),
        device_id: a.device.to_string(),
        temporary_key: a.key.clone(),
    };
    let answer = client.answer(client.policies().acknowledge_policy(request)).await?;
    let as_json = || {
        json!({
            "request_id": answer.request_id, "final_key": answer.final_key, "policy_revision": answer.policy_revision,
            "device": answer.device.as_ref().map(json::device), "store_revision": answer.store_revision,
        })
    };
    print(&a.connection, as_json, |page| {
        page.pair("device", a.device.to_string());
        page.pair("final key", &answer.final_key);
        page.pair("proves revision", &answer.policy_revision);
        page.line("");
        page.line(format!(
            "Next: lazaret policy applied {} --revision {} --key {}",
            a.device, answer.policy_revision, answer.final_key
        ));
    })
}

async fn applied(a: &AppliedArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::ReportPolicyAppliedRequest {
        context: Some(context(PREFIX)?),
        device_id: a.device.to_string(),
        policy_revision: a.revision.to_string(),
        policy_key: a.key.clone().unwrap_or_default(),
    };
    let answer = client.answer(client.devices().report_policy_applied(request)).await?;
    signal(&a.connection, &answer)
}

async fn publish(a: &PublishArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::PublishPolicyRevisionRequest {
        context: Some(context(PREFIX)?),
        policy_revision: a.revision.to_string(),
        ceiling: a.ceiling.unwrap_or(0),
        rate_per_minute: a.rate.unwrap_or(0),
        urgent: a.urgent,
    };
    let answer = client.answer(client.policies().publish_policy_revision(request)).await?;
    stands(&a.connection, answer.publication)
}

async fn pause(c: &Connection) -> Result<Outcome, Failure> {
    let client = connect(c).await?;
    let context = Some(context(PREFIX)?);
    let request = v1::PausePublicationRequest { context };
    let answer = client.answer(client.policies().pause_publication(request)).await?;
    stands(c, answer.publication)
}

async fn resume(c: &Connection) -> Result<Outcome, Failure> {
    let client = connect(c).await?;
    let context = Some(context(PREFIX)?);
    let request = v1::ResumePublicationRequest { context };
    let answer = client.answer(client.policies().resume_publication(request)).await?;
    stands(c, answer.publication)
}

async fn progress(a: &ProgressArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    if !a.follow {
        let answer = client
            .answer(client.policies().get_publication(v1::GetPublicationRequest {}))
            .await?;
        return stands(&a.connection, answer.publication);
    }
    let mut stream = client
        .answer(client.policies().watch_publication(v1::WatchPublicationRequest {}))
        .await?;
    loop {
        let message = match stream.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(Outcome::Done),
            Err(e) => return Err(client.failure(&e)),
        };
        let text = match (&message.publication, a.connection.json) {
            (p, true) => format!("{}\n", json!({ "publication": p.as_ref().map(json::publication) })),
            (None, false) => "no policy revision is published yet\n".to_owned(),
            (Some(p), false) => format!(
                "{}{}: {} done, {} waiting ({} connected), {} stale ({} count), {} excepted{}\n",
                super::escaped(&p.policy_revision),
                if p.paused { " (paused)" } else { "" },
                p.done,
                p.waiting,
                p.waiting_connected,
                p.stale,
                p.stale_counted,
                p.excepted,
                if p.ceiling_full_since.is_some() {
                    "; the ceiling is full"
                } else {
                    ""
                },
            ),
        };
        // A reader that goes away ends it.
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(Outcome::Done),
            Err(e) => return Err(Failure::Local(format!("standard output: {e}"))),
        }
    }
}

fn stands(c: &Connection, publication: Option<v1::Publication>) -> Result<Outcome, Failure> {
    let publication = publication.ok_or(Failure::Answer("publication"))?;
    let p = &publication;
    print(c, || json::publication(p), |page| show(page, p))
}

fn show(page: &mut Page, p: &v1::Publication) {
    page.pair("revision", &p.policy_revision);
    page.pair("published", text_of(p.published_at.as_ref()).unwrap_or_default());
    let terms = if p.urgent {
        "urgent: all at once".to_owned()
    } else {
        format!(
            "at most {} connected and stale at a time, {} a minute",
            p.ceiling, p.rate_per_minute
        )
    };
    page.pair("terms", terms);
    if p.paused {
        page.pair("paused", toned("yes: lazaret policy resume", Tone::Warn));
    }
    page.pair("done", format!("{} released by it", p.done));
    page.pair(
        "waiting",
        format!(
            "{} released by an older one, {} of them connected; their wave is to come",
            p.waiting, p.waiting_connected
        ),
    );
    page.pair(
        "stale",
        format!(
            "{} quarantined until they prove it; {} count against the ceiling",
            p.stale, p.stale_counted
        ),
    );
    if p.excepted > 0 {
        page.pair("excepted", format!("{} released by an exception", p.excepted));
    }
    // A pause is said above.
    if !p.standstill.is_empty() && !p.paused {
        page.pair("no wave", toned(&p.standstill, Tone::Warn));
    }
}

/// Leases of many devices.
pub(super) async fn renew(a: &RenewArgs) -> Result<Outcome, Failure> {
    let client = connect(&a.connection).await?;
    let request = v1::RenewLeasesRequest {
        context: Some(context(PREFIX)?),
        device_ids: a.devices.iter().map(ToString::to_string).collect(),
    };
    let answer = client.answer(client.policies().renew_leases(request)).await?;
    let one = |r: &v1::LeaseRenewal| {
        json!({
            "device_id": r.device_id, "lease_ends_at": json::time(r.lease_ends_at.as_ref()),
            "enforcement": r.refusal.is_none().then(|| enforcement_name(r.enforcement)),
            "refusal": r.refusal.as_ref().map(|f| json!({ "reason": f.reason, "message": f.message })),
        })
    };
    let as_json = || {
        json!({
            "request_id": answer.request_id, "renewals": answer.renewals.iter().map(one).collect::<Vec<_>>(),
            "store_revision": answer.store_revision,
        })
    };
    print(&a.connection, as_json, |page| {
        let row = |r: &v1::LeaseRenewal| {
            let result = match (&r.refusal, text_of(r.lease_ends_at.as_ref())) {
                (Some(f), _) => toned(format!("{}: {}", f.reason, f.message), Tone::Bad),
                (None, Some(at)) => Cell::from(at),
                (None, None) => Cell::from("without end"),
            };
            vec![Cell::from(&r.device_id), result]
        };
        page.table(
            &["DEVICE", "LEASE ENDS"],
            &answer.renewals.iter().map(row).collect::<Vec<_>>(),
        );
    })?;
    let refused = answer.renewals.iter().any(|r| r.refusal.is_some());
    Ok(if refused { Outcome::Failed } else { Outcome::Done })
}
