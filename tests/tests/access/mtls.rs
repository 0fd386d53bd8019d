//! Handshakes: whose certificate is taken, whose is not, and what a connection may cost.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant, SystemTime},
};

use gateway_user::model::Role;
use lazaret_proto::v1::{self, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient};
use rcgen::{ExtendedKeyUsagePurpose, KeyPair};
use tonic::{
    Code,
    transport::{Endpoint, Identity},
};

use crate::{
    gateway::{Gateway, Pki, context, device, reason},
    raw::{OtherCa, ca_params, params, status, tls},
    retirement::openssl,
};

/// A gateway that trusts both CAs.
pub(crate) async fn trusting(label: &str, other: &OtherCa) -> Gateway {
    let pki = Pki::new(label);
    let both = pki.scratch.path().join("both.pem");
    fs::write(&both, fs::read_to_string(pki.ca.join("ca.pem")).unwrap() + &other.pem).unwrap();
    Gateway::with(pki, |c| c.api.as_mut().unwrap().client_ca = vec![both]).await
}

#[tokio::test]
async fn the_role_is_that_of_the_leaf_and_there_is_one() {
    const VIEWER: &str = "urn:lazaret:role:viewer";
    const OPERATOR: &str = "urn:lazaret:role:operator";
    let other = OtherCa::new(&[OPERATOR]);
    let gateway = trusting("leaf", &other).await;
    let ask = async |identity| status(gateway.endpoint(Some(identity))).await;

    let good = ask(other.sign(&params("viewer", &["https://example.org/x", VIEWER])))
        .await
        .unwrap();
    assert_eq!(good.mode, "enforce");
    let intermediate = ca_params("middle", &[OPERATOR]);
    assert!(
        ask(other.sign_below(&intermediate, &params("v", &[VIEWER]))).await.is_ok(),
        "a chain is fine"
    );

    for (what, identity) in [
        ("no role", other.sign(&params("none", &[]))),
        ("two roles", other.sign(&params("two", &[VIEWER, OPERATOR]))),
        ("the same role twice", other.sign(&params("twice", &[VIEWER, VIEWER]))),
        ("an unknown role", other.sign(&params("root", &["urn:lazaret:role:root"]))),
        ("a role in the CA only", other.sign_below(&intermediate, &params("leaf", &[]))),
        ("control characters in the name", other.sign(&params("a\n\u{1b}[31mb", &[]))),
    ] {
        let e = ask(identity).await.unwrap_err().unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!((e.code(), reason(&e).as_str()), (Code::Unauthenticated, "NO_ROLE"), "{what}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn who_is_not_let_in() {
    let trusted = OtherCa::new(&[]);
    let gateway = trusting("strangers", &trusted).await;
    let role = &["urn:lazaret:role:operator"];
    let now = SystemTime::now();
    let mut expired = params("expired", role);
    expired.not_before = (now - Duration::from_secs(7200)).into();
    expired.not_after = (now - Duration::from_secs(3600)).into();
    let mut future = params("future", role);
    future.not_before = (now + Duration::from_secs(3600)).into();
    let mut server = params("server", role);
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own_key = KeyPair::generate().unwrap();
    let self_signed = params("self", role).self_signed(&own_key).unwrap();
    for (what, identity) in [
        ("no certificate", None),
        ("another CA's", Some(OtherCa::new(&[]).sign(&params("x", role)))),
        ("expired", Some(trusted.sign(&expired))),
        ("not yet valid", Some(trusted.sign(&future))),
        ("for servers", Some(trusted.sign(&server))),
        (
            "self-signed",
            Some(Identity::from_pem(self_signed.pem(), own_key.serialize_pem())),
        ),
    ] {
        let refused = status(gateway.endpoint(identity)).await;
        assert!(matches!(refused, Err(Err(_))), "{what}: the handshake must fail: {refused:?}");
    }
    // The same with a certificate that is in order: what failed above failed for its reason.
    assert!(
        status(gateway.endpoint(Some(trusted.sign(&params("good", role)))))
            .await
            .is_ok()
    );

    let plaintext = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
    assert!(matches!(status(plaintext).await, Err(Err(_))), "plaintext");
    gateway.stop().await;
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_certificate() {
    let other = OtherCa::new(&[]);
    let gateway = trusting("outlive", &other).await;
    let mut short = params("short", &["urn:lazaret:role:viewer"]);
    short.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    let channel = gateway.endpoint(Some(other.sign(&short))).connect().await.unwrap();
    let mut client = DeviceServiceClient::new(channel);
    let mut watch = client
        .watch_gateway_uris(v1::WatchGatewayUrisRequest::default())
        .await
        .unwrap()
        .into_inner();
    let start = Instant::now();
    let ended = tokio::time::timeout(Duration::from_secs(10), watch.message())
        .await
        .expect("it ends");
    assert!(ended.is_err(), "{ended:?}");
    assert!(start.elapsed() > Duration::from_secs(1), "not before its time");
    assert!(client.list_devices(v1::ListDevicesRequest::default()).await.is_err());
    gateway.stop().await;
}

/// Reads until the other side closes; how long it took.
fn until_closed(stream: &mut TcpStream) -> Duration {
    let start = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return start.elapsed(),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return start.elapsed(),
            Err(e) => panic!("not closed: {e}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_have_a_time_limit() {
    let gateway = Gateway::with(Pki::new("slow"), |c| {
        c.api.as_mut().unwrap().handshake_timeout = Duration::from_secs(2)
    })
    .await;
    let address = gateway.address;
    let silent = tokio::task::spawn_blocking(move || until_closed(&mut TcpStream::connect(address).unwrap()))
        .await
        .unwrap();
    assert!((1900..8000).contains(&silent.as_millis()), "{silent:?}");
    let talks = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        until_closed(&mut stream)
    });
    assert!(
        talks.await.unwrap() < Duration::from_millis(1500),
        "what is not TLS is closed at once"
    );

    // The handshake done, but never a byte of HTTP/2 after it; and something else than HTTP/2.
    for (what, says) in [
        ("nothing", &b""[..]),
        (
            "HTTP/1.1",
            b"POST /lazaret.v1.InspectService/GetStatus HTTP/1.1\r\nhost: x\r\n\r\n",
        ),
    ] {
        let mut stream = tls(&gateway, Role::Operator).await;
        tokio::io::AsyncWriteExt::write_all(&mut stream, says).await.unwrap();
        let mut buffer = Vec::new();
        let closed = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut buffer);
        let _ = tokio::time::timeout(Duration::from_secs(5), closed)
            .await
            .unwrap_or_else(|_| panic!("{what}: still open"));
        assert!(buffer.is_empty(), "{what}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn connections_are_bounded_and_come_free_again() {
    let gateway = Gateway::with(Pki::new("many"), |c| c.api.as_mut().unwrap().max_connections = 2).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = InspectServiceClient::new(gateway.channel(Role::Viewer).await);
        client.get_status(v1::GetStatusRequest {}).await.unwrap();
        open.push(client);
    }
    let third = gateway.endpoint(Some(gateway.pki.client(Role::Viewer)));
    assert!(matches!(status(third.clone()).await, Err(Err(_))), "the third is closed");
    open[0]
        .get_status(v1::GetStatusRequest {})
        .await
        .expect("those that are open go on");
    open.pop();
    let deadline = Instant::now() + Duration::from_secs(5);
    while status(third.clone()).await.is_err() {
        assert!(Instant::now() < deadline, "a place comes free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(open);
    gateway.stop().await;
}

#[tokio::test]
async fn messages_are_bounded() {
    let gateway = Gateway::with(Pki::new("size"), |c| c.api.as_mut().unwrap().max_message = 64 << 10).await;
    let mut client = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let request = |n: usize| {
        let devices = (0..n)
            .map(|i| v1::DeviceRegistration {
                owner: "x".repeat(200),
                ..device(&format!("d-{i}"))
            })
            .collect();
        v1::RegisterDevicesRequest {
            context: context("r"),
            devices,
        }
    };
    client.register_devices(request(100)).await.unwrap();
    let e = client.register_devices(request(500)).await.unwrap_err();
    assert!(matches!(e.code(), Code::OutOfRange | Code::ResourceExhausted), "{e:?}");
    let listed = client
        .list_devices(v1::ListDevicesRequest {
            page_size: 1000,
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(
        listed.into_inner().devices.len(),
        100,
        "nothing of the refused message was taken"
    );
    gateway.stop().await;
}

/// OpenSSL, Go and Python take it from a server when they trust it; rustls does not.
#[tokio::test]
async fn a_self_signed_certificate_that_is_a_ca_s_serves_who_trusts_it_and_is_warned_of() {
    let pki = Pki::new("self-signed");
    let folder = pki.ca.clone();
    openssl(
        &folder,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=gateway.test -addext subjectAltName=DNS:gateway.test \
         -days 30 -keyout own.key -out own.pem",
    );
    let gateway = Gateway::with(pki, |c| {
        let api = c.api.as_mut().unwrap();
        (api.certificate, api.key) = (folder.join("own.pem"), folder.join("own.key"));
    })
    .await;
    let warnings = gateway.access.warnings();
    assert!(warnings.iter().any(|w| w.contains("is a CA's, too")), "{warnings:?}");
    let address = gateway.address.to_string();
    let shown = tokio::task::spawn_blocking(move || {
        let mut client = std::process::Command::new("openssl");
        client.args(["s_client", "-connect", &address, "-CAfile", "own.pem", "-alpn", "h2"]);
        client.args(["-verify_return_error", "-verify_hostname", "gateway.test"]);
        client
            .current_dir(folder)
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap()
    });
    let shown = String::from_utf8(shown.await.unwrap().stdout).unwrap();
    assert!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
    gateway.stop().await;
}
