//! End to end, the handshake of policy keys over mTLS with the real daemon: repeated after it was killed, and by a clock that is behind.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use std::time::{Duration, SystemTime};

use lazaret_proto::v1::{
    AcknowledgePolicyRequest, AcknowledgePolicyResponse, DeviceState, Enforcement, OfferPolicyRequest, OfferPolicyResponse,
    ReportPolicyAppliedRequest, ReportPolicyRevokedRequest, SignalContext, SignalResponse,
    device_service_client::DeviceServiceClient, policy_service_client::PolicyServiceClient,
};
use lazaret_tests::{
    api::{Answer, Client},
    desk::{Desk, LIMIT, PATIENCE},
    require, site,
};
use tonic_types::StatusExt as _;

/// Asks under this request id, as often as it is called.
fn offer(mdm: &Client, request: &str) -> Answer<OfferPolicyResponse> {
    let message = OfferPolicyRequest {
        context: context(request),
        device_id: "phone".into(),
        policy_revision: "baseline-7".into(),
    };
    let mut service = PolicyServiceClient::new(mdm.channel());
    mdm.block_on(service.offer_policy(message)).map(tonic::Response::into_inner)
}

fn acknowledge(mdm: &Client, request: &str, key: &str) -> Answer<AcknowledgePolicyResponse> {
    let message = AcknowledgePolicyRequest {
        context: context(request),
        device_id: "phone".into(),
        temporary_key: key.into(),
    };
    let mut service = PolicyServiceClient::new(mdm.channel());
    mdm.block_on(service.acknowledge_policy(message))
        .map(tonic::Response::into_inner)
}

#[expect(clippy::unnecessary_wraps, reason = "as the messages have it")]
fn context(request: &str) -> Option<SignalContext> {
    Some(SignalContext {
        request_id: request.into(),
        ..SignalContext::default()
    })
}

#[test]
fn keys_are_given_again_after_the_daemon_was_killed() {
    require!(Root, Bpf);
    let mut desk = Desk::new(|_| Ok(())).unwrap();
    desk.local.register("phone", "staff").unwrap();
    let restarted = |desk: &mut Desk| {
        desk.gateway.start().unwrap();
        desk.gateway.mdm().unwrap()
    };
    let mdm = desk.gateway.mdm().unwrap();

    // An offer whose answer was lost: another key, and the first one ends.
    let lost = offer(&mdm, "offer").unwrap().temporary_key;
    assert_eq!(offer(&mdm, "offer").unwrap().temporary_key, lost);
    desk.gateway.kill().unwrap();
    let mdm = restarted(&mut desk);
    let temporary = offer(&mdm, "offer").unwrap().temporary_key;
    assert_eq!(offer(&mdm, "offer").unwrap().temporary_key, temporary);
    assert_ne!(temporary, lost);
    assert!(acknowledge(&mdm, "lost", &lost).is_err());

    // An acknowledgement: the same key, whether its answer was written or not, for whoever brings the temporary one.
    let first = acknowledge(&mdm, "acknowledge", &temporary).unwrap();
    assert_eq!(acknowledge(&mdm, "acknowledge", &temporary).unwrap(), first);
    desk.gateway.kill().unwrap();
    let mdm = restarted(&mut desk);
    let again = acknowledge(&mdm, "acknowledge", &temporary).unwrap();
    assert_eq!(
        (&again.final_key, &again.policy_revision),
        (&first.final_key, &first.policy_revision)
    );
    assert!(
        acknowledge(&mdm, "acknowledge", &lost).is_err(),
        "another body under the same id"
    );
    let released = mdm.applied_with("phone", again.final_key).unwrap();
    assert_eq!(released.device.unwrap().state(), DeviceState::Released);

    // Stopped in order, the daemon has the whole answer, and gives that.
    let temporary = offer(&mdm, "offer-2").unwrap().temporary_key;
    let first = acknowledge(&mdm, "acknowledge-2", &temporary).unwrap();
    desk.gateway.stop().unwrap();
    let mdm = restarted(&mut desk);
    mdm.revoked("phone").unwrap();
    assert_eq!(acknowledge(&mdm, "acknowledge-2", &temporary).unwrap(), first);
}

/// By how much the machine's clock is behind, and the MDM's ahead of it.
const BEHIND: Duration = Duration::from_secs(7200);

/// Makes the store of a daemon that is down one of another boot, whose last commit was two hours later than it was: what the daemon finds
/// after a boot with a clock that is behind by as much.
fn of_another_boot(desk: &Desk) {
    let database = rusqlite::Connection::open(desk.gateway.folder().join("state/lazaret.db")).unwrap();
    let later = i64::try_from(BEHIND.as_millis()).unwrap();
    let meta = database
        .execute("UPDATE meta SET committed_at = committed_at + ?1", [later])
        .unwrap();
    // Moments are wall clock, boot clock and boot id, of 8 bytes each.
    let devices = database.execute(
        "UPDATE devices SET proved = unhex(hex(substr(proved, 1, 16)) || '0000000000000001')",
        [],
    );
    assert_eq!((meta, devices.unwrap()), (1, 1));
}

/// Proof as by an MDM whose clock is right.
fn applied(mdm: &Client, request: &str, key: &str) -> Answer<SignalResponse> {
    let message = ReportPolicyAppliedRequest {
        context: dated(request, SystemTime::now() + BEHIND),
        device_id: "phone".into(),
        policy_revision: "baseline-7".into(),
        policy_key: key.into(),
    };
    let mut service = DeviceServiceClient::new(mdm.channel());
    mdm.block_on(service.report_policy_applied(message))
        .map(tonic::Response::into_inner)
}

fn revoked(mdm: &Client, request: &str) -> Answer<SignalResponse> {
    let message = ReportPolicyRevokedRequest {
        context: dated(request, SystemTime::now() + BEHIND),
        device_id: "phone".into(),
        reason: "out of order".into(),
        ..ReportPolicyRevokedRequest::default()
    };
    let mut service = DeviceServiceClient::new(mdm.channel());
    mdm.block_on(service.report_policy_revoked(message))
        .map(tonic::Response::into_inner)
}

fn dated(request: &str, at: SystemTime) -> Option<SignalContext> {
    let undated = context(request)?;
    Some(SignalContext {
        observed_at: Some(at.into()),
        ..undated
    })
}

fn reason<T: std::fmt::Debug>(answer: Answer<T>) -> String {
    answer.unwrap_err().get_details_error_info().unwrap().reason
}

#[test]
fn by_a_clock_that_is_behind_a_handshake_releases_and_a_date_does_not() {
    require!(Root, Bpf);
    let mut desk = Desk::new(|_| Ok(())).unwrap();
    desk.local.register("phone", "staff").unwrap();
    desk.open().unwrap();
    let mail = |desk: &Desk, wanted: bool| {
        let reached = desk.reaches(site::MAIL, if wanted { LIMIT } else { PATIENCE });
        assert_eq!(reached, wanted, "{}", desk.gateway.cli("why phone").unwrap());
    };
    let mdm = desk.gateway.mdm().unwrap();
    let temporary = offer(&mdm, "offer").unwrap().temporary_key;
    let key = acknowledge(&mdm, "acknowledge", &temporary).unwrap().final_key;
    mdm.applied_with("phone", key.clone()).unwrap();
    mail(&desk, true);
    desk.gateway.stop().unwrap();
    of_another_boot(&desk);
    desk.gateway.start().unwrap();
    let mdm = desk.gateway.mdm().unwrap();
    assert!(desk.gateway.cli("status").unwrap().contains("CLOCK_BEHIND"));
    assert!(desk.gateway.cli("why phone").unwrap().contains("offer the policy anew"));
    mail(&desk, false);
    assert_eq!(reason(applied(&mdm, "direct", "")), "CLOCK_BEHIND");
    mail(&desk, false);
    // All of it in this boot, with the daemon killed in between.
    let temporary = offer(&mdm, "offer-2").unwrap().temporary_key;
    let key = acknowledge(&mdm, "acknowledge-2", &temporary).unwrap().final_key;
    desk.gateway.kill().unwrap();
    desk.gateway.start().unwrap();
    let mdm = desk.gateway.mdm().unwrap();
    ["dev0", "core0"].into_iter().for_each(|i| desk.gateway.attached(i).unwrap());
    mail(&desk, false);
    let released = applied(&mdm, "applied", &key).unwrap();
    assert_eq!(released.enforcement(), Enforcement::Enforced);
    mail(&desk, true);
    // A restriction ends it, and the MDM goes on by itself.
    assert_eq!(revoked(&mdm, "revoked").unwrap().enforcement(), Enforcement::Enforced);
    mail(&desk, false);
    assert_eq!(reason(applied(&mdm, "again", &key)), "POLICY_KEY_UNKNOWN");
    let temporary = offer(&mdm, "offer-3").unwrap().temporary_key;
    let key = acknowledge(&mdm, "acknowledge-3", &temporary).unwrap().final_key;
    applied(&mdm, "applied-3", &key).unwrap();
    mail(&desk, true);
}
