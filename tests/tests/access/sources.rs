//! Two VPN servers with a certificate each: neither opens sessions on the other's interface.

use gateway_user::{
    config::Config,
    model::Role,
    pki::{self, IssueArgs},
};
use lazaret_proto::v1::{
    self, device_service_client::DeviceServiceClient, operator_service_client::OperatorServiceClient,
    session_service_client::SessionServiceClient,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::gateway::{Gateway, Pki, context, device, reason};

type Vpn = SessionServiceClient<Channel>;

async fn vpn(gateway: &Gateway, source: &str) -> Vpn {
    let made = pki::issue(&IssueArgs {
        role: Some(Role::Vpn),
        source: vec![source.parse().unwrap()],
        ..gateway.pki.args(&format!("server-{source}"))
    })
    .unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let identity = tonic::transport::Identity::from_pem(read(made.certificate), read(made.key));
    SessionServiceClient::new(gateway.endpoint(Some(identity)).connect().await.unwrap())
}

fn report(device: &str, address: &str, interface: &str) -> v1::SessionReport {
    v1::SessionReport {
        device_name: device.into(),
        prefixes: vec![address.into()],
        interface: interface.into(),
        ..Default::default()
    }
}

async fn open(
    vpn: &mut Vpn,
    source: &str,
    device: &str,
    address: &str,
    interface: &str,
) -> Result<v1::OpenSessionResponse, Status> {
    let request = v1::OpenSessionRequest {
        context: context("open"),
        source: source.into(),
        session: Some(report(device, address, interface)),
    };
    vpn.open_session(request).await.map(tonic::Response::into_inner)
}

/// A gateway with two released devices, and both servers.
async fn two(label: &str, change: impl FnOnce(&mut Config)) -> (Gateway, Vpn, Vpn) {
    let gateway = Gateway::with(Pki::new(label), change).await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let devices = ["one", "two"].map(device).to_vec();
    let request = v1::RegisterDevicesRequest {
        context: context("register"),
        devices,
    };
    mdm.register_devices(request).await.unwrap();
    for id in ["one", "two"] {
        let applied = v1::ReportPolicyAppliedRequest {
            context: context("applied"),
            device_id: id.into(),
            policy_revision: "7".into(),
            policy_key: String::new(),
        };
        mdm.report_policy_applied(applied).await.unwrap();
    }
    let (one, two) = (vpn(&gateway, "vpn-1").await, vpn(&gateway, "vpn-2").await);
    (gateway, one, two)
}

/// Refused for its source, with an entry of the audit that says who tried what.
async fn refused(gateway: &Gateway, answer: Result<v1::OpenSessionResponse, Status>, why: &str) {
    let e = answer.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::PermissionDenied, why), "{e:?}");
    assert!(!e.message().contains("vpn-1"), "whose it is is not told: {}", e.message());
    let reference = e.get_details_error_info().unwrap().metadata["reference"].clone();
    let number = reference.strip_prefix('A').unwrap().parse().unwrap();
    let mut operator = OperatorServiceClient::new(gateway.channel(Role::Operator).await);
    let found = operator.get_audit_entry(v1::GetAuditEntryRequest { number }).await.unwrap();
    let entry = format!("{:?}", found.into_inner());
    assert!(entry.contains("server-vpn-2") && entry.contains(why), "{entry}");
}

#[tokio::test]
async fn no_server_releases_addresses_on_another_ones_interface() {
    let (gateway, mut one, mut two) = two("sources", |_| {}).await;
    open(&mut one, "vpn-1", "one", "10.66.0.5", "tun0").await.unwrap();
    let tried = open(&mut two, "vpn-2", "two", "10.66.0.6", "tun0").await;
    refused(&gateway, tried, "SOURCE_INTERFACE").await;
    let list = v1::SynchroniseSessionsRequest {
        context: context("list"),
        source: "vpn-2".into(),
        sessions: vec![report("two", "10.66.0.6", "tun0")],
    };
    let told = two.synchronise_sessions(list).await.unwrap().into_inner();
    assert_eq!((told.opened, told.refused[0].reason.as_str()), (0, "SOURCE_INTERFACE"));
    // On its own it opens what it likes, and has that alone.
    open(&mut two, "vpn-2", "two", "10.66.0.6", "tun1").await.unwrap();
    let e = open(&mut one, "vpn-1", "one", "10.66.0.5", "tun1").await.unwrap_err();
    assert_eq!(reason(&e), "SOURCE_INTERFACE");
    let e = open(&mut two, "vpn-2", "two", "10.66.0.7", "").await.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    gateway.stop().await;
}

#[tokio::test]
async fn what_is_listed_holds_before_there_is_any_session() {
    let (gateway, mut one, mut two) = two("listed", |config| {
        config.sources = vec![gateway_user::config::Source {
            name: "vpn-1".parse().unwrap(),
            heartbeat: None,
            interfaces: Some(vec![gateway_user::config::InterfacePattern::Name("tun0".parse().unwrap())]),
            prefixes: Some(vec!["10.66.0.0/24".parse().unwrap()]),
        }];
    })
    .await;
    let tried = open(&mut two, "vpn-2", "two", "10.66.7.6", "tun0").await;
    refused(&gateway, tried, "SOURCE_INTERFACE").await;
    let tried = open(&mut two, "vpn-2", "two", "10.66.0.6", "tun1").await;
    refused(&gateway, tried, "SOURCE_PREFIX").await;
    for (address, interface, why) in [
        ("10.66.7.5", "tun0", "SOURCE_PREFIX"),
        ("10.66.0.5", "tun1", "SOURCE_INTERFACE"),
    ] {
        let e = open(&mut one, "vpn-1", "one", address, interface).await.unwrap_err();
        assert_eq!(reason(&e), why);
    }
    open(&mut one, "vpn-1", "one", "10.66.0.5", "tun0").await.unwrap();
    open(&mut two, "vpn-2", "two", "10.66.7.6", "tun1").await.unwrap();
    gateway.stop().await;
}
