//! What an identity may act on: a VPN server on its own sessions, an MDM on its own devices. Every RPC that touches either is tried from
//! within and from without.

use gateway_user::{
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

/// A client with a certificate of its own.
pub(crate) async fn client(gateway: &Gateway, name: &str, role: Role, source: &[&str], devices: &[&str]) -> Channel {
    let made = pki::issue(&IssueArgs {
        role: Some(role),
        source: source.iter().map(|s| s.parse().unwrap()).collect(),
        devices: devices.iter().map(|d| d.parse().unwrap()).collect(),
        ..gateway.pki.args(name)
    })
    .unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let identity = tonic::transport::Identity::from_pem(read(made.certificate), read(made.key));
    gateway.endpoint(Some(identity)).connect().await.unwrap()
}

fn open(source: &str, name: &str, prefix: &str) -> v1::OpenSessionRequest {
    v1::OpenSessionRequest {
        context: context("r"),
        source: source.into(),
        session: Some(v1::SessionReport {
            device_name: name.into(),
            prefixes: vec![prefix.into()],
            // An interface is one source's.
            interface: if source == "vpn-1" { "tun0" } else { "tun1" }.into(),
            ..Default::default()
        }),
    }
}

fn close(session_id: u64) -> v1::CloseSessionRequest {
    v1::CloseSessionRequest {
        context: context("r"),
        session_id,
    }
}

fn synchronise(source: &str) -> v1::SynchroniseSessionsRequest {
    v1::SynchroniseSessionsRequest {
        context: context("r"),
        source: source.into(),
        sessions: vec![],
    }
}

fn register(ids: &[&str]) -> v1::RegisterDevicesRequest {
    v1::RegisterDevicesRequest {
        context: context("r"),
        devices: ids.iter().map(|i| device(i)).collect(),
    }
}

pub(crate) fn outside<T: std::fmt::Debug>(answer: Result<T, Status>) {
    let e = answer.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::PermissionDenied, "OUTSIDE_SCOPE"));
}

async fn listed(vpn: &mut SessionServiceClient<Channel>, page_size: u32) -> Vec<u64> {
    let (mut found, mut page_token) = (Vec::new(), String::new());
    loop {
        let r = v1::ListSessionsRequest { page_size, page_token };
        let answer = vpn.list_sessions(r).await.unwrap().into_inner();
        assert!(answer.sessions.len() <= page_size as usize);
        found.extend(answer.sessions.iter().map(|s| s.session_id));
        page_token = answer.next_page_token;
        if page_token.is_empty() {
            return found;
        }
    }
}

#[tokio::test]
async fn a_vpn_server_reports_its_own_sessions() {
    let gateway = Gateway::new("sources").await;
    let mut operator = DeviceServiceClient::new(gateway.channel(Role::Operator).await);
    operator.register_devices(register(&["a", "b", "c"])).await.unwrap();
    let mut one = SessionServiceClient::new(client(&gateway, "one", Role::Vpn, &["vpn-1"], &[]).await);
    let mut two = SessionServiceClient::new(client(&gateway, "two", Role::Vpn, &["vpn-2", "vpn-3"], &[]).await);
    let mut none = SessionServiceClient::new(client(&gateway, "none", Role::Vpn, &[], &[]).await);

    let id = async |vpn: &mut SessionServiceClient<Channel>, r| {
        vpn.open_session(r).await.unwrap().into_inner().session.unwrap().session_id
    };
    let a = id(&mut one, open("vpn-1", "a", "10.66.0.5")).await;
    let b = id(&mut two, open("vpn-2", "b", "10.66.0.6")).await;
    let c = id(&mut two, open("vpn-3", "c", "10.66.0.7")).await;
    outside(one.open_session(open("vpn-2", "a", "10.66.0.8")).await);
    outside(none.open_session(open("vpn-1", "a", "10.66.0.8")).await);
    outside(none.open_session(open("", "a", "10.66.0.8")).await);

    // Nor by the number of a session, nor by a list that would end it.
    outside(one.close_session(close(b)).await);
    outside(none.close_session(close(a)).await);
    outside(one.synchronise_sessions(synchronise("vpn-2")).await);
    outside(none.synchronise_sessions(synchronise("vpn-1")).await);

    for page in [1, 2, 100] {
        assert_eq!(listed(&mut one, page).await, [a], "pages of {page}");
        assert_eq!(listed(&mut two, page).await, [b, c], "pages of {page}");
        assert!(listed(&mut none, page).await.is_empty());
    }
    let mut all = SessionServiceClient::new(gateway.channel(Role::Operator).await);
    assert_eq!(listed(&mut all, 2).await, [a, b, c], "nothing of what was refused happened");

    // One that is not live is nobody's: the answer is as ever.
    assert!(!one.close_session(close(4711)).await.unwrap().into_inner().ended);
    assert!(one.close_session(close(a)).await.unwrap().into_inner().ended);
    assert_eq!(
        two.synchronise_sessions(synchronise("vpn-2"))
            .await
            .unwrap()
            .into_inner()
            .ended,
        1
    );
    assert_eq!(listed(&mut all, 2).await, [c]);
    gateway.stop().await;
}

#[tokio::test]
async fn a_certificate_without_a_source_may_be_let_do_as_configured() {
    let gateway = Gateway::with(Pki::new("unlimited"), |c| c.api.as_mut().unwrap().vpn_without_source = true).await;
    let mut operator = DeviceServiceClient::new(gateway.channel(Role::Operator).await);
    operator.register_devices(register(&["a"])).await.unwrap();
    let mut any = SessionServiceClient::new(client(&gateway, "any", Role::Vpn, &[], &[]).await);
    any.open_session(open("vpn-7", "a", "10.66.0.5")).await.unwrap();
    let mut one = SessionServiceClient::new(client(&gateway, "one", Role::Vpn, &["vpn-1"], &[]).await);
    outside(one.synchronise_sessions(synchronise("vpn-7")).await);
    gateway.stop().await;
}

#[tokio::test]
async fn an_mdm_acts_on_its_own_devices() {
    let gateway = Gateway::new("devices").await;
    let mut all = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut berlin = DeviceServiceClient::new(client(&gateway, "berlin", Role::Mdm, &[], &["b-*", "spare"]).await);
    all.register_devices(register(&["a-1", "a-2", "b-1", "c-1"])).await.unwrap();

    berlin.register_devices(register(&["b-2", "spare"])).await.unwrap();
    outside(berlin.register_devices(register(&["b-3", "a-3"])).await);
    let mut alias = register(&["b-4"]);
    alias.devices[0].aliases = Some(v1::Aliases {
        common_names: vec!["a-9".into()],
        ..Default::default()
    });
    outside(berlin.register_devices(alias).await);

    // Whose an alias is, it is told of its own only.
    let taken = async |alias: &str| {
        let mut wanted = register(&["b-5"]);
        wanted.devices[0].aliases = Some(v1::Aliases {
            certificate_sha256: vec![alias.into()],
            ..Default::default()
        });
        let e = berlin.clone().register_devices(wanted).await.unwrap_err();
        assert_eq!(reason(&e), "ALIAS_TAKEN");
        (e.message().to_owned(), e.get_details_error_info().unwrap().metadata)
    };
    let (foreign, own) = ("aa".repeat(32), "bb".repeat(32));
    for (id, alias) in [("a-1", &foreign), ("b-1", &own)] {
        let mut r = register(&[id]);
        r.devices[0].aliases = Some(v1::Aliases {
            certificate_sha256: vec![alias.clone()],
            ..Default::default()
        });
        all.register_devices(r).await.unwrap();
    }
    let (message, metadata) = taken(&foreign).await;
    assert!(
        !message.contains("a-1") && metadata.values().all(|v| v != "a-1"),
        "{message} {metadata:?}"
    );
    let (message, metadata) = taken(&own).await;
    assert!(
        message.contains("b-1") && metadata["owner"] == "b-1",
        "{message} {metadata:?}"
    );

    let applied = |id: &str| v1::ReportPolicyAppliedRequest {
        context: context("r-applied"),
        device_id: id.into(),
        policy_revision: "7".into(),
        ..Default::default()
    };
    let revoked = |id: &str| v1::ReportPolicyRevokedRequest {
        context: context("r-revoked"),
        device_id: id.into(),
        ..Default::default()
    };
    let retire = |id: &str| v1::RetireDeviceRequest {
        context: context("r-retire"),
        device_id: id.into(),
    };
    let get = |id: &str| v1::GetDeviceRequest { device_id: id.into() };
    // One that exists, one that does not: the answers are the same.
    for id in ["a-1", "nobody", "b", "B-1", ""] {
        outside(berlin.report_policy_applied(applied(id)).await);
        outside(berlin.report_policy_revoked(revoked(id)).await);
        outside(berlin.retire_device(retire(id)).await);
        outside(berlin.get_device(get(id)).await);
    }
    let watch = v1::WatchGatewayUrisRequest::default();
    let mut watch = berlin.watch_gateway_uris(watch).await.unwrap().into_inner();
    all.report_policy_applied(applied("a-1")).await.unwrap();
    berlin.report_policy_applied(applied("b-1")).await.unwrap();
    let change = tokio::time::timeout(std::time::Duration::from_secs(5), watch.message()).await;
    assert_eq!(
        change.unwrap().unwrap().unwrap().device_id,
        "b-1",
        "the change of a-1 is not shown"
    );
    berlin.get_device(get("b-1")).await.unwrap();
    berlin.report_policy_revoked(revoked("b-1")).await.unwrap();
    berlin.retire_device(retire("spare")).await.unwrap();

    for page_size in [1, 2, 100] {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let r = v1::ListDevicesRequest {
                page_size,
                page_token,
                ..Default::default()
            };
            let answer = berlin.list_devices(r).await.unwrap().into_inner();
            found.extend(answer.devices.into_iter().map(|d| d.device_id));
            page_token = answer.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, ["b-1", "b-2", "spare"], "pages of {page_size}");
    }
    let everyone = all.list_devices(v1::ListDevicesRequest::default()).await.unwrap();
    assert_eq!(everyone.into_inner().devices.len(), 6, "nothing of what was refused happened");

    // Each refusal has an entry: who, what, on which device; and the caller gets its reference.
    let refused = berlin.retire_device(retire("a-2")).await.unwrap_err();
    let reference = refused.get_details_error_info().unwrap().metadata["reference"].clone();
    let mut operator = OperatorServiceClient::new(gateway.channel(Role::Operator).await);
    let number = reference.strip_prefix('A').unwrap().parse().unwrap();
    let entry = operator.get_audit_entry(v1::GetAuditEntryRequest { number }).await.unwrap();
    let entry = entry.into_inner().entry.unwrap();
    assert_eq!(
        (entry.action.as_str(), entry.device_id.as_str(), entry.result.as_str()),
        ("RetireDevice", "a-2", "OUTSIDE_SCOPE")
    );
    assert!(
        entry.by.starts_with("berlin (serial ") && entry.request_id.starts_with("r-retire"),
        "{entry:?}"
    );
    let about = v1::ListAuditEntriesRequest {
        page_size: 100,
        device_id: "a-1".into(),
        ..Default::default()
    };
    let entries = operator.list_audit_entries(about).await.unwrap().into_inner().entries;
    let mut refused: Vec<_> = entries
        .iter()
        .filter(|e| e.result == "OUTSIDE_SCOPE")
        .map(|e| e.action.as_str())
        .collect();
    refused.sort_unstable();
    assert_eq!(
        refused,
        ["GetDevice", "ReportPolicyApplied", "ReportPolicyRevoked", "RetireDevice"]
    );
    gateway.stop().await;
}

/// What an empty message does not touch: lists, watches and figures that leave out what is outside, and what names nothing when empty.
const TOUCHES_NOTHING: &[&str] = &[
    "/lazaret.v1.DeviceService/ListDevices",
    "/lazaret.v1.DeviceService/ListLedgerEntries",
    "/lazaret.v1.DeviceService/RegisterDevices",
    "/lazaret.v1.DeviceService/WatchGatewayUris",
    "/lazaret.v1.InspectService/GetStatus",
    "/lazaret.v1.PolicyService/RenewLeases",
    "/lazaret.v1.PolicyService/ReportPolicy",
    "/lazaret.v1.SessionService/CloseSession",
    "/lazaret.v1.SessionService/ListSessions",
];

/// A handler that forgets the scope is found here: every RPC of a role that can be limited is called by a limited identity. The empty
/// device id and the empty source are outside any limit.
#[tokio::test]
async fn every_rpc_asks_for_the_scope() {
    let gateway = Gateway::new("every").await;
    let mut wrong = Vec::new();
    for (role, channel) in [
        (Role::Mdm, client(&gateway, "few", Role::Mdm, &[], &["b-*"]).await),
        (Role::Vpn, client(&gateway, "none", Role::Vpn, &[], &[]).await),
    ] {
        let own = |r: &&gateway_user::access::roles::Rpc| r.path.starts_with("/lazaret.") && r.roles.contains(&role);
        for rpc in gateway_user::access::roles::TABLE.iter().filter(own) {
            let answer = crate::roles::answer(&channel, rpc.path).await;
            let said = answer.as_ref().err().map(reason);
            if said.as_deref() == Some("NOT_IMPLEMENTED") {
                continue;
            }
            if (said.as_deref() == Some("OUTSIDE_SCOPE")) == TOUCHES_NOTHING.contains(&rpc.path) {
                wrong.push(format!("{} as {role:?}: {said:?}", rpc.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    gateway.stop().await;
}
