//! Certificates, CAs and revocation lists that change while the gateway runs, changed as administrators, certbot and Kubernetes do.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use gateway_user::{
    access::live::FinishError,
    model::{self, Role},
    pki::{self, IssueArgs},
};
use lazaret_proto::v1::{self, inspect_service_client::InspectServiceClient};
use rcgen::SerialNumber;
use tonic::transport::{Channel, Identity};

use crate::{
    gateway::{Gateway, Pki},
    raw::{OtherCa, params, status, tls},
};

const VIEWER: &str = "urn:lazaret:role:viewer";
/// By when a connection that is no longer valid is closed.
const CLOSED: Duration = Duration::from_secs(5);
const LATER: Duration = Duration::from_secs(86_400);

type Client = InspectServiceClient<Channel>;

/// A connection that is open and used.
async fn connected(gateway: &Gateway, identity: Identity) -> Client {
    let mut client = InspectServiceClient::new(gateway.endpoint(Some(identity)).connect_lazy());
    client.get_status(v1::GetStatusRequest {}).await.unwrap();
    client
}

/// A stream that stays open for as long as its connection.
async fn stream(client: &mut Client) -> tonic::Streaming<v1::WatchDenialsResponse> {
    let watch = v1::WatchDenialsRequest::default();
    let mut stream = client.watch_denials(watch).await.unwrap().into_inner();
    // It says at first that it has nothing to say.
    stream.message().await.unwrap();
    stream
}

async fn ends(stream: &mut tonic::Streaming<v1::WatchDenialsResponse>) -> Duration {
    let start = Instant::now();
    let ended = tokio::time::timeout(2 * CLOSED, stream.message())
        .await
        .expect("it is closed");
    assert!(ended.is_err(), "{ended:?}");
    start.elapsed()
}

async fn stays(stream: &mut tonic::Streaming<v1::WatchDenialsResponse>) {
    let quiet = tokio::time::timeout(Duration::from_millis(300), stream.message()).await;
    assert!(quiet.is_err(), "it must go on: {quiet:?}");
}

/// In the place of a file, at once.
fn replace(file: &Path, content: &str) {
    let new = file.with_extension("new");
    fs::write(&new, content).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, file).unwrap();
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + CLOSED;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn warns(gateway: &Gateway, of: &str) -> bool {
    gateway.access.warnings().iter().any(|w| w.contains(of))
}

/// A gateway that trusts its own CA, and another from a file of its own.
async fn with_other(label: &str, other: &OtherCa, retiring: bool) -> (Gateway, PathBuf) {
    let pki = Pki::new(label);
    let file = pki.scratch.path().join("other.pem");
    fs::write(&file, &other.pem).unwrap();
    let named = file.clone();
    let gateway = Gateway::with(pki, move |c| {
        let api = c.api.as_mut().unwrap();
        if retiring { &mut api.retiring_ca } else { &mut api.client_ca }.push(named);
    })
    .await;
    (gateway, file)
}

async fn server_serial(gateway: &Gateway) -> Vec<u8> {
    use x509_parser::prelude::FromDer as _;
    let stream = tls(gateway, Role::Viewer).await;
    let der = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    let (_, certificate) = x509_parser::prelude::X509Certificate::from_der(&der).unwrap();
    certificate.raw_serial().to_vec()
}

#[tokio::test]
async fn the_gateways_own_certificate() {
    let gateway = Gateway::new("own").await;
    let mut client = connected(&gateway, gateway.pki.client(Role::Viewer)).await;
    let mut open = stream(&mut client).await;
    let first = server_serial(&gateway).await;
    let (pem, key) = (gateway.pki.ca.join("gateway.pem"), gateway.pki.ca.join("gateway.key"));
    let renewed = pki::issue(&IssueArgs {
        server: true,
        dns: vec![crate::gateway::NAME.into()],
        ..gateway.pki.args("gateway-2")
    })
    .unwrap();
    let read = |p: &Path| fs::read_to_string(p).unwrap();

    // One of the two alone cannot be used: what was read before stays, and it is said.
    replace(&pem, &read(&renewed.certificate));
    until("the mismatch is said", || warns(&gateway, "do not belong together")).await;
    assert_eq!(server_serial(&gateway).await, first);
    stays(&mut open).await;
    replace(&key, &read(&renewed.key));
    until("what was wrong is mended", || !warns(&gateway, "do not belong together")).await;
    let second = server_serial(&gateway).await;
    assert_ne!(second, first);
    stays(&mut open).await;

    // A key that others can read, rubbish, and no file at all.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    until("the loose key is said", || warns(&gateway, "chmod 600")).await;
    replace(&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    until("the rubbish is said", || {
        !warns(&gateway, "chmod 600") && warns(&gateway, "gateway.key")
    })
    .await;
    fs::remove_file(&key).unwrap();
    until("the missing file is said", || warns(&gateway, "cannot read")).await;
    assert_eq!(server_serial(&gateway).await, second);
    stays(&mut open).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_ca_that_goes_takes_its_connections_along() {
    let other = OtherCa::new(&[]);
    let (gateway, file) = with_other("ca", &other, false).await;
    let mut stay_client = connected(&gateway, gateway.pki.client(Role::Viewer)).await;
    let mut go_client = connected(&gateway, other.sign(&params("go", &[VIEWER]))).await;
    let (mut stay, mut go) = (stream(&mut stay_client).await, stream(&mut go_client).await);

    // As Kubernetes changes a mounted secret: a link to a directory is swapped.
    let root = gateway.pki.scratch.path().join("mount");
    for (directory, content) in [
        ("one", &other.pem),
        ("two", &fs::read_to_string(gateway.pki.ca.join("ca.pem")).unwrap()),
    ] {
        fs::create_dir_all(root.join(directory)).unwrap();
        fs::write(root.join(directory).join("ca.pem"), content).unwrap();
    }
    symlink("one", root.join("..data")).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(root.join("..data/ca.pem"), &file).unwrap();
    stays(&mut go).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    stays(&mut go).await;
    symlink("two", root.join("..new")).unwrap();
    fs::rename(root.join("..new"), root.join("..data")).unwrap();
    let took = ends(&mut go).await;
    assert!(took < CLOSED, "{took:?}");
    stays(&mut stay).await;
    assert!(
        status(gateway.endpoint(Some(other.sign(&params("new", &[VIEWER])))))
            .await
            .is_err()
    );
    stay_client.get_status(v1::GetStatusRequest {}).await.unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn revocation_lists() {
    let other = OtherCa::new(&[]);
    let later = SystemTime::now() + LATER;
    let pki = Pki::new("revoked");
    let (ca, list) = (pki.scratch.path().join("other.pem"), pki.scratch.path().join("other.crl"));
    fs::write(&ca, &other.pem).unwrap();
    fs::write(&list, other.list(&[9], later)).unwrap();
    let named = list.clone();
    let gateway = Gateway::with(pki, move |c| {
        let api = c.api.as_mut().unwrap();
        api.client_ca.push(ca);
        api.crl.push(named);
    })
    .await;
    let signed = |serial: u64| {
        let mut params = params("client", &[VIEWER]);
        params.serial_number = Some(SerialNumber::from(serial));
        other.sign(&params)
    };
    assert!(
        status(gateway.endpoint(Some(signed(9)))).await.is_err(),
        "revoked from the start"
    );
    let (mut one, mut two) = (connected(&gateway, signed(1)).await, connected(&gateway, signed(2)).await);
    // A CA without a list revokes nothing.
    let mut own = connected(&gateway, gateway.pki.client(Role::Viewer)).await;
    let (mut one, mut two, mut own) = (stream(&mut one).await, stream(&mut two).await, stream(&mut own).await);

    // A list of the same name by another key is no list of this CA.
    replace(&list, &OtherCa::new(&[]).list(&[], later));
    until("the forgery is said", || warns(&gateway, "not signed by the CA")).await;
    assert!(
        status(gateway.endpoint(Some(signed(9)))).await.is_err(),
        "what was read before stays"
    );
    for rubbish in ["", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "\u{30}\u{7f}"] {
        replace(&list, rubbish);
        tokio::time::sleep(Duration::from_millis(1200)).await;
    }
    until("the rubbish is said", || warns(&gateway, "other.crl")).await;
    stays(&mut one).await;

    replace(&list, &other.list(&[1, 9], later));
    let took = ends(&mut one).await;
    assert!(took < CLOSED, "{took:?}");
    stays(&mut two).await;
    stays(&mut own).await;
    assert!(status(gateway.endpoint(Some(signed(1)))).await.is_err());
    assert!(status(gateway.endpoint(Some(signed(2)))).await.is_ok());
    assert!(!warns(&gateway, "other.crl"));

    // Past its time a list still counts, and is warned about.
    replace(&list, &other.list(&[1, 9], SystemTime::now() - Duration::from_secs(60)));
    until("the end of the list is said", || warns(&gateway, "out of date")).await;
    assert!(status(gateway.endpoint(Some(signed(1)))).await.is_err());
    assert!(status(gateway.endpoint(Some(signed(2)))).await.is_ok());
    stays(&mut two).await;
    gateway.stop().await;
}

#[tokio::test]
async fn a_ca_that_ends_takes_its_connections_along() {
    let other = OtherCa::until(SystemTime::now() + Duration::from_secs(4));
    let (gateway, _) = with_other("ends", &other, false).await;
    assert!(warns(&gateway, "expires in less than a day"));
    let mut stay_client = connected(&gateway, gateway.pki.client(Role::Viewer)).await;
    // The leaf would hold longer.
    let mut go_client = connected(&gateway, other.sign(&params("go", &[VIEWER]))).await;
    let (mut stay, mut go) = (stream(&mut stay_client).await, stream(&mut go_client).await);
    let took = ends(&mut go).await;
    assert!(
        took > Duration::from_secs(1) && took < Duration::from_secs(4) + CLOSED,
        "{took:?}"
    );
    stays(&mut stay).await;
    assert!(
        status(gateway.endpoint(Some(other.sign(&params("new", &[VIEWER])))))
            .await
            .is_err()
    );
    gateway.stop().await;
}

fn operator() -> model::Identity {
    model::Identity::unlimited(Role::Operator, "test")
}

#[tokio::test]
async fn a_retiring_ca_is_finished_when_nobody_needs_it() {
    let old = OtherCa::new(&[]);
    let (gateway, _) = with_other("retire", &old, true).await;
    let ca = |gateway: &Gateway, retiring: bool| {
        let report = gateway.access.report().unwrap();
        report.cas.into_iter().find(|c| c.retiring == retiring).unwrap()
    };
    let pending = |gateway: &Gateway| ca(gateway, true).clients.iter().filter(|c| c.pending).count();
    let fingerprint = ca(&gateway, true).fingerprint;
    let stays_ca = ca(&gateway, false).fingerprint;
    assert_eq!(pending(&gateway), 0);
    let mut go_client = connected(&gateway, old.sign(&params("mdm", &[VIEWER]))).await;
    let mut go = stream(&mut go_client).await;
    assert_eq!(pending(&gateway), 1);
    assert!(warns(&gateway, "still need the retiring CA"));

    let finish = |gateway: &Gateway, ca, force| gateway.access.finish(ca, force, "the last one is a test bench", &operator());
    assert!(matches!(finish(&gateway, &stays_ca, true), Err(FinishError::NotRetiring)));
    assert!(matches!(
        finish(&gateway, &fingerprint, false),
        Err(FinishError::Pending { pending: 1 })
    ));
    stays(&mut go).await;

    // Who was seen is known after a restart.
    drop((go, go_client));
    let state = gateway.pki.scratch.path().join("state");
    let pki = gateway.stop().await;
    assert_eq!(
        fs::metadata(state.join("clients.json")).unwrap().permissions().mode() & 0o7777,
        0o600
    );
    let restart = async |pki: Pki| {
        let _ = fs::remove_file(pki.ca.join("gateway.pem"));
        let _ = fs::remove_file(pki.ca.join("gateway.key"));
        let file = pki.scratch.path().join("other.pem");
        Gateway::with(pki, move |c| c.api.as_mut().unwrap().retiring_ca.push(file)).await
    };
    let gateway = restart(pki).await;
    assert!(matches!(
        finish(&gateway, &fingerprint, false),
        Err(FinishError::Pending { pending: 1 })
    ));

    // The client comes with a certificate of the CA that stays, and no longer needs the other.
    let renewed = pki::issue(&IssueArgs {
        role: Some(Role::Viewer),
        ..gateway.pki.args("mdm")
    })
    .unwrap();
    let renewed = Identity::from_pem(fs::read(renewed.certificate).unwrap(), fs::read(renewed.key).unwrap());
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut renewed = connected(&gateway, renewed).await;
    assert_eq!(pending(&gateway), 0);
    assert!(warns(&gateway, "nobody was seen to need"));
    finish(&gateway, &fingerprint, false).unwrap();
    assert!(matches!(finish(&gateway, &fingerprint, false), Err(FinishError::UnknownCa)));
    assert!(
        status(gateway.endpoint(Some(old.sign(&params("mdm", &[VIEWER])))))
            .await
            .is_err()
    );
    renewed.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert!(
        warns(&gateway, "take"),
        "it says what is to be taken out of the configuration"
    );

    // Nor is it trusted again after a restart, though the configuration still names it.
    let gateway = restart(gateway.stop().await).await;
    assert!(
        status(gateway.endpoint(Some(old.sign(&params("mdm", &[VIEWER])))))
            .await
            .is_err()
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_retirement_is_forced() {
    let old = OtherCa::new(&[]);
    let (gateway, _) = with_other("force", &old, true).await;
    let mut go_client = connected(&gateway, old.sign(&params("mdm", &[VIEWER]))).await;
    let mut stay_client = connected(&gateway, gateway.pki.client(Role::Viewer)).await;
    let (mut go, mut stay) = (stream(&mut go_client).await, stream(&mut stay_client).await);
    let cas = gateway.access.report().unwrap().cas;
    let fingerprint = cas.iter().find(|c| c.retiring).unwrap().fingerprint;
    gateway.access.finish(&fingerprint, true, "stolen key", &operator()).unwrap();
    let took = ends(&mut go).await;
    assert!(took < CLOSED, "{took:?}");
    stays(&mut stay).await;
    let kept = gateway
        .pki
        .scratch
        .path()
        .join("state/finished-ca")
        .join(fingerprint.to_string());
    let kept: serde_json::Value = serde_json::from_str(&fs::read_to_string(kept).unwrap()).unwrap();
    assert_eq!(
        (&kept["forced"], &kept["reason"], &kept["pending"]),
        (&true.into(), &"stolen key".into(), &1.into())
    );
    gateway.stop().await;
}

#[tokio::test]
async fn a_memory_that_cannot_be_read_is_not_taken_for_an_empty_one() {
    let old = OtherCa::new(&[]);
    let pki = Pki::new("memory");
    let file = pki.scratch.path().join("other.pem");
    fs::write(&file, &old.pem).unwrap();
    fs::create_dir(pki.scratch.path().join("state")).unwrap();
    fs::set_permissions(pki.scratch.path().join("state"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(pki.scratch.path().join("state/clients.json"), "{\"since\":").unwrap();
    let gateway = Gateway::with(pki, move |c| c.api.as_mut().unwrap().retiring_ca.push(file)).await;
    assert!(warns(&gateway, "clients.json"));
    let cas = gateway.access.report().unwrap().cas;
    let fingerprint = cas.iter().find(|c| c.retiring).unwrap().fingerprint;
    let refused = gateway.access.finish(&fingerprint, false, "", &operator());
    assert!(matches!(refused, Err(FinishError::NotSure(_))), "{refused:?}");
    gateway
        .access
        .finish(&fingerprint, true, "known to be unused", &operator())
        .unwrap();
    gateway.stop().await;
}
