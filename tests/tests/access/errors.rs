//! Every RPC, called with rubbish: each error says by google.rpc.ErrorInfo what it is, also where no service has seen the request.

use std::{collections::BTreeMap, time::Duration};

use gateway_user::{access::roles::TABLE, model::Role};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lazaret_proto::v1::{self, device_service_client::DeviceServiceClient};
use tonic::{
    Code, Status,
    codegen::{Bytes, http},
};
use tonic_types::StatusExt as _;

use crate::{
    gateway::{Gateway, context, device, reason},
    raw,
};

/// A body as it goes over the wire, with what comes before the message.
fn frame(flag: u8, length: u32, message: &[u8]) -> Bytes {
    let mut out = vec![flag];
    out.extend(length.to_be_bytes());
    out.extend(message);
    out.into()
}

fn whole(message: &[u8]) -> Bytes {
    frame(0, u32::try_from(message.len()).unwrap(), message)
}

/// The status that a call ends with; `None`: it goes on, or has answered well.
async fn call(client: &SendRequest<Full<Bytes>>, path: &str, headers: &[(&'static str, &str)], body: Bytes) -> Option<Status> {
    let mut request = http::Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut client = client.clone();
    client.ready().await.unwrap();
    let answer = client.send_request(request.body(Full::new(body)).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 200, "{path}: gRPC's errors are in its own status");
    if let Some(status) = Status::from_header_map(answer.headers()) {
        return Some(status);
    }
    let body = tokio::time::timeout(Duration::from_millis(300), answer.into_body().collect()).await;
    let trailers = body.ok()?.unwrap().trailers().cloned().unwrap_or_default();
    Status::from_header_map(&trailers).filter(|s| s.code() != Code::Ok)
}

/// What is sent: its name, more headers, the body.
type Rubbish = (&'static str, &'static [(&'static str, &'static str)], Bytes);

#[tokio::test]
async fn every_error_of_every_rpc_has_its_details() {
    let gateway = Gateway::new("rubbish").await;
    // Not tonic's client, which keeps deadlines by itself.
    let connected = async |role| {
        let stream = TokioIo::new(raw::tls(&gateway, role).await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        (client, tokio::spawn(connection))
    };
    let (client, connection) = connected(Role::Operator).await;
    let (mdm, mdms_connection) = connected(Role::Mdm).await;
    let five_mib = vec![0; 5 << 20];
    let rubbish: [Rubbish; 10] = [
        ("nothing", &[], whole(&[])),
        ("no message", &[], Bytes::new()),
        ("not protobuf", &[], whole(&[0xff; 64])),
        (
            "a text that is not UTF-8",
            &[],
            whole(&[0x0a, 2, 0xff, 0xfe, 0x12, 2, 0xff, 0xfe]),
        ),
        ("unknown fields", &[], whole(&[0xfa, 0x7f, 1, 0])),
        ("cut off", &[], frame(0, 1000, &[0; 10])),
        ("compressed, it says", &[], frame(1, 4, &[0; 4])),
        ("too large", &[], whole(&five_mib)),
        ("an unknown encoding", &[("grpc-encoding", "rot13")], frame(1, 4, &[0; 4])),
        ("no time", &[("grpc-timeout", "1n")], whole(&[])),
    ];
    let (mut errors, mut wrong) = (BTreeMap::<String, usize>::new(), Vec::new());
    for rpc in TABLE {
        let client = if rpc.roles.contains(&Role::Operator) { &client } else { &mdm };
        for (what, headers, body) in &rubbish {
            let Some(e) = call(client, rpc.path, headers, body.clone()).await else {
                continue;
            };
            let info = e.get_details_error_info();
            if info.as_ref().is_none_or(|i| i.domain != "lazaret" || i.reason.is_empty()) || e.message().is_empty() {
                wrong.push(format!("{}, {what}: {e:?}", rpc.path));
            }
            if info.as_ref().is_none_or(|i| !i.metadata.contains_key("reference")) {
                wrong.push(format!("{}, {what}: no reference code", rpc.path));
            }
            let told = info.map(|i| i.reason).unwrap_or_default();
            if told == "UNKNOWN" {
                wrong.push(format!("{}, {what}: {told}", rpc.path));
            }
            *errors.entry(format!("{what}: {told}")).or_default() += 1;
        }
    }
    println!("{errors:#?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Reflection ends its stream in silence.
    let all = TABLE.iter().filter(|r| !r.path.ends_with("/ServerReflectionInfo")).count();
    assert_eq!(errors["no time: DEADLINE"], TABLE.len());
    for kind in ["too large: MESSAGE_TOO_LARGE", "cut off: MALFORMED"] {
        assert_eq!(errors[kind], all, "{kind}");
    }
    let unknown = call(&client, "/lazaret.v1.DeviceService/Nothing", &[], whole(&[]))
        .await
        .unwrap();
    assert_eq!(
        (unknown.code(), reason(&unknown).as_str()),
        (Code::Unimplemented, "UNKNOWN_METHOD")
    );
    drop((client, mdm));
    connection.await.unwrap().unwrap();
    mdms_connection.await.unwrap().unwrap();
    gateway.stop().await;
}

/// A client that gives up leaves a release that is done whole or not at all, and that it can ask for again.
#[tokio::test]
async fn a_call_that_is_given_up_is_whole() {
    let gateway = Gateway::new("given-up").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let devices = (0..200).map(|i| device(&format!("d-{i}"))).collect();
    let register = v1::RegisterDevicesRequest {
        context: context("register"),
        devices,
    };
    mdm.register_devices(register).await.unwrap();
    let mut given_up = 0;
    for i in 0..200u64 {
        let id = format!("d-{i}");
        let request = v1::ReportPolicyAppliedRequest {
            context: context("release"),
            device_id: id.clone(),
            policy_revision: "7".into(),
            ..Default::default()
        };
        // From "not yet sent" to "perhaps answered".
        let patience = Duration::from_micros(i * 20);
        given_up += u32::from(
            tokio::time::timeout(patience, mdm.report_policy_applied(request.clone()))
                .await
                .is_err(),
        );
        let again = mdm.report_policy_applied(request).await.unwrap().into_inner().device.unwrap();
        let seen = mdm.get_device(v1::GetDeviceRequest { device_id: id }).await.unwrap();
        let seen = seen.into_inner().device.unwrap();
        assert_eq!(
            (seen.state(), &seen.gateway_uri),
            (v1::DeviceState::Released, &again.gateway_uri)
        );
        assert_eq!(seen.revision, again.revision, "it was released once");
    }
    assert!(given_up > 10, "{given_up}");
    gateway.stop().await;
}
