//! Every refusal has a reference code that is looked up, and no client fills the audit with them.

use std::collections::BTreeSet;

use gateway_user::model::Role;
use lazaret_proto::v1::{
    self, device_service_client::DeviceServiceClient, operator_service_client::OperatorServiceClient,
    policy_service_client::PolicyServiceClient, report_policy_request::Signal,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    gateway::{Gateway, context, device, reason},
    mtls::trusting,
    raw::{OtherCa, params},
    roles,
};

type Operator = OperatorServiceClient<Channel>;

fn reference(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap();
    info.metadata
        .get("reference")
        .cloned()
        .unwrap_or_else(|| panic!("{status:?}"))
}

async fn entry(operator: &mut Operator, code: &str) -> v1::AuditEntry {
    let number = code.strip_prefix('A').unwrap_or_else(|| panic!("{code}")).parse().unwrap();
    let found = operator.get_audit_entry(v1::GetAuditEntryRequest { number }).await.unwrap();
    found.into_inner().entry.unwrap()
}

async fn recent(operator: &mut Operator, code: &str) -> v1::RecentRefusal {
    let number = code.strip_prefix('R').unwrap_or_else(|| panic!("{code}")).parse().unwrap();
    let found = operator.get_refusal(v1::GetRefusalRequest { number }).await.unwrap();
    found.into_inner().refusal.unwrap()
}

async fn head(operator: &mut Operator) -> u64 {
    // The head is what is durable: entries have a second.
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    operator
        .get_audit_head(v1::GetAuditHeadRequest {})
        .await
        .unwrap()
        .into_inner()
        .number
}

#[tokio::test]
async fn who_tries_what_he_may_not_is_in_the_audit_once() {
    let gateway = Gateway::new("refused-role").await;
    let mut operator = Operator::new(gateway.channel(Role::Operator).await);
    let before = head(&mut operator).await;
    let viewer = gateway.channel(Role::Viewer).await;
    let mut codes = BTreeSet::new();
    for _ in 0..200 {
        let request = v1::RetireDeviceRequest {
            context: context("r"),
            device_id: "a".into(),
        };
        let e = DeviceServiceClient::new(viewer.clone())
            .retire_device(request)
            .await
            .unwrap_err();
        assert_eq!(reason(&e), "ROLE_NOT_ALLOWED");
        codes.insert(reference(&e));
    }
    assert_eq!(codes.len(), 1, "{codes:?}");
    let e = entry(&mut operator, codes.first().unwrap()).await;
    assert_eq!((e.action.as_str(), e.result.as_str()), ("RetireDevice", "ROLE_NOT_ALLOWED"));
    assert!(e.by.starts_with("viewer (serial ") && e.reason.contains("viewer"), "{e:?}");
    assert_eq!(head(&mut operator).await, before + 1);
    gateway.stop().await;
}

#[tokio::test]
async fn a_malformed_request_is_in_the_audit_and_a_flood_of_them_is_not() {
    let gateway = Gateway::new("refused-message").await;
    let mut operator = Operator::new(gateway.channel(Role::Operator).await);
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let before = head(&mut operator).await;
    let mut codes = BTreeSet::new();
    for wrong in 0..100 {
        let mut devices: Vec<_> = (0..100).map(|i| device(&format!("d-{i}"))).collect();
        devices[wrong].owner = "\u{1b}".into();
        let request = v1::RegisterDevicesRequest {
            context: context("r"),
            devices,
        };
        let e = mdm.register_devices(request).await.unwrap_err();
        assert_eq!((e.code(), reason(&e).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
        let violated = e.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violated[0].field, format!("devices[{wrong}].owner"), "the other details stay");
        codes.insert(reference(&e));
    }
    assert_eq!(codes.len(), 100, "each is another");
    let audited: Vec<&String> = codes.iter().filter(|c| c.starts_with('A')).collect();
    let e = entry(&mut operator, audited[0]).await;
    assert_eq!(
        (e.action.as_str(), e.result.as_str()),
        ("RegisterDevices", "INVALID_ARGUMENT")
    );
    assert!(e.by.starts_with("mdm (serial ") && e.reason.starts_with("devices["), "{e:?}");
    let grown = head(&mut operator).await - before;
    assert_eq!(grown, audited.len() as u64);
    assert!((1..=16).contains(&grown), "{grown}");
    // Beyond that, memory has the last.
    let e = mdm.retire_device(v1::RetireDeviceRequest::default()).await.unwrap_err();
    let kept = recent(&mut operator, &reference(&e)).await;
    assert_eq!((kept.reason.as_str(), kept.audit_number), ("INVALID_ARGUMENT", 0));
    // A part of a stream, too.
    let mut policy = PolicyServiceClient::new(gateway.other_mdm().await);
    let nobody = v1::ReportPolicyRevokedRequest {
        context: context("part"),
        device_id: String::new(),
        ..Default::default()
    };
    let signal = v1::ReportPolicyRequest {
        signal: Some(Signal::Revoked(nobody)),
    };
    let mut answers = policy.report_policy(tokio_stream::iter([signal])).await.unwrap().into_inner();
    let part = answers.message().await.unwrap().unwrap();
    let code = part.refusal.unwrap().metadata["reference"].clone();
    let e = entry(&mut operator, &code).await;
    assert_eq!((e.action.as_str(), e.result.as_str()), ("ReportPolicy", "INVALID_ARGUMENT"));
    assert_eq!(e.request_id, part.request_id);
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_not_for_the_audit_is_remembered_and_counted() {
    let other = OtherCa::new(&[]);
    let gateway = trusting("refused-else", &other).await;
    let mut operator = Operator::new(gateway.channel(Role::Operator).await);
    let before = head(&mut operator).await;
    let viewer = gateway.channel(Role::Viewer).await;
    // A question, and a method that does not exist.
    let mut devices = DeviceServiceClient::new(viewer.clone());
    let ask = v1::GetDeviceRequest {
        device_id: "nobody".into(),
    };
    let e = devices.get_device(ask.clone()).await.unwrap_err();
    let code = reference(&e);
    assert_eq!(reference(&devices.get_device(ask).await.unwrap_err()), code);
    let kept = recent(&mut operator, &code).await;
    assert_eq!(
        (kept.count, kept.reason.as_str(), kept.code),
        (2, "UNKNOWN_DEVICE", Code::NotFound as i32)
    );
    assert_eq!(kept.rpc, "/lazaret.v1.DeviceService/GetDevice");
    assert!(kept.by.starts_with("viewer (serial "), "{kept:?}");
    let e = roles::answer(&viewer, "/lazaret.v1.DeviceService/Nothing").await.unwrap_err();
    let kept = recent(&mut operator, &reference(&e)).await;
    assert_eq!((kept.reason.as_str(), kept.message.as_str()), ("UNKNOWN_METHOD", e.message()));
    // A certificate without a role writes nothing, however often it comes.
    let nobody = other.sign(&params("none", &[]));
    let channel = gateway.endpoint(Some(nobody)).connect().await.unwrap();
    for _ in 0..50 {
        let ask = v1::GetDeviceRequest { device_id: "a".into() };
        let e = DeviceServiceClient::new(channel.clone()).get_device(ask).await.unwrap_err();
        assert_eq!(reason(&e), "NO_ROLE");
        assert_eq!(recent(&mut operator, &reference(&e)).await.audit_number, 0);
    }
    assert_eq!(head(&mut operator).await, before);
    let e = operator
        .get_refusal(v1::GetRefusalRequest { number: 1 << 40 })
        .await
        .unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::NotFound, "UNKNOWN_REFUSAL"));
    gateway.stop().await;
}
