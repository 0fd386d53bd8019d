//! Every RPC with every role. What is expected is written down here a second time, and shares nothing with the gateway's table.

use std::{collections::BTreeSet, time::Duration};

use gateway_user::{access::roles::TABLE, model::Role};
use prost::Message as _;
use prost_types::FileDescriptorSet;
use tonic::{Code, Request, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use crate::gateway::{Gateway, reason};

const ROLES: [Role; 4] = [Role::Mdm, Role::Vpn, Role::Operator, Role::Viewer];

/// RPC; then, in the order of [`ROLES`], who may call it.
const EXPECTED: &str = "
    /lazaret.v1.AccessService/GetAccess                                -   -   operator viewer
    /lazaret.v1.AccessService/FinishRetirement                         -   -   operator -
    /lazaret.v1.DeviceService/RegisterDevices                          mdm -   operator -
    /lazaret.v1.DeviceService/ReportPolicyApplied                      mdm -   -        -
    /lazaret.v1.DeviceService/ReportPolicyRevoked                      mdm -   operator -
    /lazaret.v1.DeviceService/RetireDevice                             mdm -   operator -
    /lazaret.v1.DeviceService/GetDevice                                mdm -   operator viewer
    /lazaret.v1.DeviceService/ListDevices                              mdm -   operator viewer
    /lazaret.v1.DeviceService/WatchGatewayUris                         mdm -   operator viewer
    /lazaret.v1.DeviceService/ExplainDevice                            mdm -   operator viewer
    /lazaret.v1.DeviceService/GetLedger                                mdm -   operator viewer
    /lazaret.v1.DeviceService/ListLedgerEntries                        mdm -   operator viewer
    /lazaret.v1.PolicyService/OfferPolicy                              mdm -   -        -
    /lazaret.v1.PolicyService/AcknowledgePolicy                        mdm -   -        -
    /lazaret.v1.PolicyService/RenewLeases                              mdm -   -        -
    /lazaret.v1.PolicyService/ReportPolicy                             mdm -   -        -
    /lazaret.v1.PolicyService/PublishPolicyRevision                    mdm -   operator -
    /lazaret.v1.PolicyService/PausePublication                         mdm -   operator -
    /lazaret.v1.PolicyService/ResumePublication                        mdm -   operator -
    /lazaret.v1.PolicyService/GetPublication                           mdm -   operator viewer
    /lazaret.v1.PolicyService/WatchPublication                         mdm -   operator viewer
    /lazaret.v1.OperatorService/GrantException                         -   -   operator -
    /lazaret.v1.OperatorService/EndException                           -   -   operator -
    /lazaret.v1.OperatorService/GetDrift                               -   -   operator viewer
    /lazaret.v1.OperatorService/CheckDrift                             -   -   operator -
    /lazaret.v1.OperatorService/ListAuditEntries                       -   -   operator viewer
    /lazaret.v1.OperatorService/GetAuditEntry                          -   -   operator viewer
    /lazaret.v1.OperatorService/GetRefusal                             -   -   operator viewer
    /lazaret.v1.OperatorService/GetAuditHead                           -   -   operator viewer
    /lazaret.v1.SessionService/OpenSession                             -   vpn operator -
    /lazaret.v1.SessionService/CloseSession                            -   vpn operator -
    /lazaret.v1.SessionService/SynchroniseSessions                     -   vpn operator -
    /lazaret.v1.SessionService/ListSessions                            -   vpn operator viewer
    /lazaret.v1.InspectService/GetStatus                               -   vpn operator viewer
    /lazaret.v1.InspectService/ListPools                               -   -   operator viewer
    /lazaret.v1.InspectService/ListAddresses                           -   -   operator viewer
    /lazaret.v1.InspectService/GetCounters                             -   -   operator viewer
    /lazaret.v1.InspectService/ListDenials                             -   -   operator viewer
    /lazaret.v1.InspectService/WatchDenials                            -   -   operator viewer
    /lazaret.v1.InspectService/Explain                                 -   -   operator viewer
    /lazaret.v1.InspectService/CaptureDenied                           -   -   operator -
    /grpc.health.v1.Health/Check                                       mdm vpn operator viewer
    /grpc.health.v1.Health/Watch                                       mdm vpn operator viewer
    /grpc.reflection.v1.ServerReflection/ServerReflectionInfo          mdm vpn operator viewer
    /grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo     mdm vpn operator viewer
";

/// RPC and who may call it, as expected.
fn expected() -> Vec<(&'static str, [bool; 4])> {
    let row = |line: &'static str| {
        let mut words = line.split_whitespace();
        let path = words.next()?;
        let may: Vec<bool> = words.map(|w| w != "-").collect();
        Some((path, may.try_into().unwrap()))
    };
    EXPECTED.lines().filter_map(row).collect()
}

/// What any RPC answers to an empty message. A stream that says nothing at first has answered well.
pub(crate) async fn answer(channel: &Channel, path: &str) -> Result<(), tonic::Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let path: PathAndQuery = path.parse().unwrap();
    let mut stream = client
        .server_streaming(Request::new(()), path, ProstCodec::<(), ()>::default())
        .await?;
    // An answer of more than nothing does not decode as `()` only if it is malformed.
    match tokio::time::timeout(Duration::from_millis(200), stream.get_mut().message()).await {
        Ok(Err(e)) => Err(e),
        Ok(Ok(_)) | Err(_) => Ok(()),
    }
}

/// Calls any RPC with an empty message; `Ok`: the gate let it through, whatever the service then said of the empty message.
async fn call(channel: &Channel, path: &str) -> Result<(), tonic::Status> {
    let Err(refused) = answer(channel, path).await else {
        return Ok(());
    };
    match refused.code() {
        // Behind the gate: an empty message names no source of the client's.
        Code::PermissionDenied if reason(&refused) == "OUTSIDE_SCOPE" => Ok(()),
        Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => Err(refused),
        _ => Ok(()),
    }
}

#[tokio::test]
async fn every_rpc_with_every_role() {
    let gateway = Gateway::new("roles").await;
    let mut wrong = Vec::new();
    let mut calls = 0;
    for (i, role) in ROLES.into_iter().enumerate() {
        let channel = gateway.channel(role).await;
        for (path, may) in expected() {
            let answer = call(&channel, path).await;
            calls += 1;
            println!(
                "{path:70} {role:?}: {}",
                answer.as_ref().map_or_else(reason, |()| "may".into())
            );
            match (may[i], &answer) {
                (true, Ok(())) => {}
                (false, Err(e)) if e.code() == Code::PermissionDenied && reason(e) == "ROLE_NOT_ALLOWED" => {}
                _ => wrong.push(format!("{path} as {role:?}: {answer:?}")),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(calls, 45 * 4);
    gateway.stop().await;
}

#[tokio::test]
async fn who_may_not_is_told_before_the_body_is_read() {
    let gateway = Gateway::new("body").await;
    let mut client = tonic::client::Grpc::new(gateway.channel(Role::Viewer).await);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/lazaret.v1.DeviceService/RegisterDevices");
    // A request whose body never comes.
    let request = Request::new(tokio_stream::pending::<()>());
    let answered = client.client_streaming(request, path, ProstCodec::<(), ()>::default());
    let e = tokio::time::timeout(Duration::from_secs(5), answered)
        .await
        .expect("at once")
        .unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::PermissionDenied, "ROLE_NOT_ALLOWED"));
    gateway.stop().await;
}

#[tokio::test]
async fn paths_that_are_not_rpcs_are_denied_to_everyone() {
    let gateway = Gateway::new("paths").await;
    let channel = gateway.channel(Role::Operator).await;
    for path in [
        "/",
        "/lazaret.v1.DeviceService/getDevice",
        "/lazaret.v2.DeviceService/GetDevice",
        "/x.Y/Z",
    ] {
        let e = call(&channel, path).await.unwrap_err();
        assert_eq!(
            (e.code(), reason(&e).as_str()),
            (Code::Unimplemented, "UNKNOWN_METHOD"),
            "{path}"
        );
    }
    gateway.stop().await;
}

#[test]
fn expectation_table_and_descriptors_name_the_same_rpcs() {
    let described = |bytes: &[u8]| -> Vec<String> {
        let set = FileDescriptorSet::decode(bytes).unwrap();
        let services = set.file.iter().flat_map(|f| f.service.iter().map(move |s| (f.package(), s)));
        services
            .flat_map(|(p, s)| s.method.iter().map(move |m| format!("/{p}.{}/{}", s.name(), m.name())))
            .collect()
    };
    let all: BTreeSet<String> = [
        lazaret_proto::DESCRIPTORS,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ]
    .into_iter()
    .flat_map(described)
    // The health protocol has an RPC that tonic-health does not serve, and that the table therefore denies.
    .filter(|p| p != "/grpc.health.v1.Health/List")
    .collect();
    let expected: BTreeSet<String> = expected().into_iter().map(|(p, _)| p.to_owned()).collect();
    let table: BTreeSet<String> = TABLE.iter().map(|r| r.path.to_owned()).collect();
    assert_eq!(expected, all);
    assert_eq!(table, all);
}
