//! End to end, the handshake of policy keys over mTLS with the real daemon: repeated after it was killed.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

use lazaret_proto::v1::{
    AcknowledgePolicyRequest, AcknowledgePolicyResponse, DeviceState, OfferPolicyRequest, OfferPolicyResponse, SignalContext,
    policy_service_client::PolicyServiceClient,
};
use lazaret_tests::{
    api::{Answer, Client},
    desk::Desk,
    require,
};

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
