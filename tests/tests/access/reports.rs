//! ReportPolicy: signals in bulk, over mTLS. And that a request that comes twice is one.

use std::{collections::BTreeSet, time::Duration};

use gateway_user::model::Role;
use lazaret_proto::v1::{
    self, device_service_client::DeviceServiceClient, policy_service_client::PolicyServiceClient, report_policy_request::Signal,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Channel};

use crate::gateway::{Gateway, context, device, reason};

/// Registers so many devices, d-0 and so on.
async fn devices(gateway: &Gateway, many: u32) -> DeviceServiceClient<Channel> {
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let ids: Vec<u32> = (0..many).collect();
    for some in ids.chunks(1000) {
        let request = v1::RegisterDevicesRequest {
            context: context("register"),
            devices: some.iter().map(|i| device(&format!("d-{i}"))).collect(),
        };
        mdm.register_devices(request).await.unwrap();
    }
    mdm
}

fn applied(id: &str) -> v1::ReportPolicyRequest {
    let signal = v1::ReportPolicyAppliedRequest {
        context: context("applied"),
        device_id: id.into(),
        policy_revision: "7".into(),
        policy_key: String::new(),
    };
    v1::ReportPolicyRequest {
        signal: Some(Signal::Applied(signal)),
    }
}

fn revoked(id: &str) -> v1::ReportPolicyRequest {
    let signal = v1::ReportPolicyRevokedRequest {
        context: context("revoked"),
        device_id: id.into(),
        ..Default::default()
    };
    v1::ReportPolicyRequest {
        signal: Some(Signal::Revoked(signal)),
    }
}

fn id(request: &v1::ReportPolicyRequest) -> String {
    let context = match request.signal.as_ref().unwrap() {
        Signal::Applied(s) => s.context.as_ref(),
        Signal::Revoked(s) => s.context.as_ref(),
        Signal::Renew(s) => s.context.as_ref(),
    };
    context.unwrap().request_id.clone()
}

/// A stream, open in both directions.
async fn open(gateway: &Gateway, room: usize) -> (mpsc::Sender<v1::ReportPolicyRequest>, Streaming<v1::ReportPolicyResponse>) {
    let (sender, messages) = mpsc::channel(room);
    let mut client = PolicyServiceClient::new(gateway.channel(Role::Mdm).await);
    let answers = client.report_policy(ReceiverStream::new(messages)).await.unwrap();
    (sender, answers.into_inner())
}

#[tokio::test]
async fn each_message_is_answered_by_its_id() {
    let gateway = Gateway::new("stream").await;
    let mut mdm = devices(&gateway, 2000).await;
    let (sender, mut answers) = open(&gateway, 16).await;
    let sent: Vec<_> = (0..2000).map(|i| applied(&format!("d-{i}"))).collect();
    let requests = sent.clone();
    let sending = tokio::spawn(async move {
        for request in requests {
            sender.send(request).await.unwrap();
        }
    });
    let mut seen = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let position = usize::try_from(answer.position).unwrap();
        assert_eq!(answer.request_id, id(&sent[position]));
        assert_eq!(answer.device_id, format!("d-{position}"));
        assert_eq!(
            (answer.enforcement(), answer.state(), answer.refusal.clone()),
            (v1::Enforcement::NoSession, v1::DeviceState::Released, None)
        );
        assert!(seen.insert(position), "answered twice");
    }
    sending.await.unwrap();
    assert_eq!(seen.len(), 2000);
    let request = v1::ListDevicesRequest {
        page_size: 1000,
        state: v1::DeviceState::Released.into(),
        ..Default::default()
    };
    assert_eq!(mdm.list_devices(request).await.unwrap().into_inner().devices.len(), 1000);
    gateway.stop().await;
}

#[tokio::test]
async fn a_bad_message_is_answered_and_the_stream_goes_on() {
    let gateway = Gateway::new("bad").await;
    let mut mdm = devices(&gateway, 1).await;
    let (sender, mut answers) = open(&gateway, 16).await;
    let mut unnamed = applied("d-0");
    let Some(Signal::Applied(signal)) = &mut unnamed.signal else {
        unreachable!()
    };
    signal.context = None;
    for (request, want) in [
        (v1::ReportPolicyRequest::default(), "INVALID_ARGUMENT"),
        (unnamed, "INVALID_ARGUMENT"),
        (applied("nobody"), "UNKNOWN_DEVICE"),
        (applied("no\u{1b}body"), "INVALID_ARGUMENT"),
        (applied("d-0"), ""),
        (revoked("d-0"), ""),
        (revoked("nobody"), "UNKNOWN_DEVICE"),
    ] {
        sender.send(request).await.unwrap();
        let answer = answers.message().await.unwrap().unwrap();
        let refusal = answer.refusal.unwrap_or_default();
        assert_eq!(refusal.reason, want);
        assert_eq!(want.is_empty(), refusal.code == 0 && refusal.message.is_empty());
        if want == "UNKNOWN_DEVICE" {
            assert_eq!((refusal.code, answer.device_id.as_str()), (Code::NotFound as i32, "nobody"));
            assert!(refusal.metadata["reference"].starts_with('A'), "{:?}", refusal.metadata);
        }
    }
    drop(sender);
    assert!(answers.message().await.unwrap().is_none(), "it ends after the last answer");
    let seen = mdm
        .get_device(v1::GetDeviceRequest { device_id: "d-0".into() })
        .await
        .unwrap();
    assert_eq!(seen.into_inner().device.unwrap().state(), v1::DeviceState::Quarantined);
    gateway.stop().await;
}

/// Nobody reads the answers: the gateway stops reading signals, and has forgotten none when he does.
#[tokio::test]
async fn a_caller_that_does_not_read_is_not_read() {
    const MANY: u64 = 6000;
    let gateway = Gateway::new("pressure").await;
    devices(&gateway, 1).await;
    let (sender, messages) = mpsc::channel(1);
    // About 500 answers that nobody reads.
    let endpoint = gateway
        .endpoint(Some(gateway.pki.client(Role::Mdm)))
        .initial_stream_window_size(64 << 10)
        .initial_connection_window_size(2 << 20);
    let mut client = PolicyServiceClient::new(endpoint.connect().await.unwrap());
    let answers = client.report_policy(ReceiverStream::new(messages)).await.unwrap();
    let mut answers = answers.into_inner();
    let sending = tokio::spawn(async move {
        for _ in 0..MANY {
            sender.send(applied("d-0")).await.unwrap();
        }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!sending.is_finished(), "the gateway holds what nobody reads");
    let mut read = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        assert_eq!(answer.refusal, None);
        read += 1;
    }
    assert_eq!(read, MANY);
    sending.await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn a_request_that_comes_twice_is_one() {
    let gateway = Gateway::new("twice").await;
    let mut mdm = devices(&gateway, 2).await;
    let (sender, mut answers) = open(&gateway, 4).await;
    let first = applied("d-0");
    sender.send(first.clone()).await.unwrap();
    let one = answers.message().await.unwrap().unwrap();
    sender.send(first.clone()).await.unwrap();
    let mut two = answers.message().await.unwrap().unwrap();
    assert_eq!((one.position, two.position), (0, 1));
    two.position = 0;
    assert_eq!(one, two);
    // Another content under the same id, by the stream and by a call of its own.
    let mut other = first.clone();
    let Some(Signal::Applied(signal)) = &mut other.signal else {
        unreachable!()
    };
    signal.device_id = "d-1".into();
    let single = signal.clone();
    sender.send(other).await.unwrap();
    let refused = answers.message().await.unwrap().unwrap().refusal.unwrap();
    assert_eq!(refused.reason, "REQUEST_ID_REUSED");
    let e = mdm.report_policy_applied(single).await.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::AlreadyExists, "REQUEST_ID_REUSED"));
    let device = |id: &str| v1::GetDeviceRequest { device_id: id.into() };
    let seen = mdm.get_device(device("d-1")).await.unwrap().into_inner().device.unwrap();
    assert_eq!(seen.state(), v1::DeviceState::Registered);
    // A single call's answer comes again as it was, also when the device has changed since.
    let request = v1::RetireDeviceRequest {
        context: context("retire"),
        device_id: "d-1".into(),
    };
    let first = mdm.retire_device(request.clone()).await.unwrap().into_inner();
    let again = mdm.retire_device(request).await.unwrap().into_inner();
    assert_eq!(first, again);
    gateway.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_the_daemon() {
    let gateway = Gateway::new("end").await;
    devices(&gateway, 1).await;
    let (sender, mut answers) = open(&gateway, 4).await;
    sender.send(applied("d-0")).await.unwrap();
    assert!(answers.message().await.unwrap().is_some());
    let stopping = tokio::spawn(gateway.stop());
    let e = answers.message().await.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    drop((sender, answers));
    stopping.await.unwrap();
}
