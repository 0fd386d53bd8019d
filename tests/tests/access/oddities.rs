//! Certificates that a trusted CA has signed and that nobody would make in earnest: each is taken for what it plainly says, or gives nothing.

use std::time::{Duration, SystemTime};

use gateway_user::model::Role;
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, SanType};
use tonic::{Code, transport::Identity};

use crate::{
    gateway::{Gateway, reason},
    mtls::trusting,
    raw::{OtherCa, ca_params, params, status},
};

const VIEWER: &str = "urn:lazaret:role:viewer";

/// Whether a viewer is served with it, or by what name it is refused; `None`: its handshake fails.
async fn told(gateway: &Gateway, identity: Identity) -> Option<Result<(), String>> {
    match status(gateway.endpoint(Some(identity))).await {
        Ok(_) => Some(Ok(())),
        Err(Ok(e)) => {
            assert_eq!(e.code(), Code::Unauthenticated, "{e:?}");
            Some(Err(reason(&e)))
        }
        Err(Err(_)) => None,
    }
}

#[tokio::test]
async fn names_that_are_nearly_right_give_nothing() {
    let ca = OtherCa::new(&[]);
    let gateway = trusting("oddities", &ca).await;
    let refused = |reason: &str| Some(Err(reason.to_owned()));
    let many: Vec<String> = (0..100).map(|i| format!("urn:lazaret:source:s-{i}")).collect();
    let sources: Vec<&str> = ["urn:lazaret:role:vpn"]
        .into_iter()
        .chain(many.iter().map(String::as_str))
        .collect();
    for (uris, expected) in [
        (&[VIEWER][..], Some(Ok(()))),
        (&[VIEWER, "https://example.org/urn:lazaret:role:operator"], Some(Ok(()))),
        (&["urn:lazaret:role:viewer\0"], refused("NO_ROLE")),
        (&["urn:lazaret:role:viewer\0.example.org"], refused("NO_ROLE")),
        (&[VIEWER, "urn:lazaret:devices:small-*\0"], refused("BAD_SCOPE")),
        (&["urn:lazaret:role:view%65r"], refused("NO_ROLE")),
        (&["urn:lazaret:role:viewer "], refused("NO_ROLE")),
        (&[" urn:lazaret:role:viewer"], refused("NO_ROLE")),
        (&["urn:lazaret:role:Viewer"], refused("NO_ROLE")),
        (&["URN:LAZARET:role:viewer"], refused("BAD_SCOPE")),
        (&[VIEWER, "URN:Lazaret:role:operator"], refused("BAD_SCOPE")),
        (&[VIEWER, "urn:lazaret:"], refused("BAD_SCOPE")),
        (&[VIEWER, "urn:lazaret:devices:small-*"], refused("BAD_SCOPE")),
        (&["urn:lazaret:role:mdm", "urn:lazaret:devices:*small"], refused("BAD_SCOPE")),
        (&["urn:lazaret:role:mdm", "urn:lazaret:devices:"], refused("BAD_SCOPE")),
        (&["urn:lazaret:role:vpn", "urn:lazaret:source:"], refused("BAD_SCOPE")),
        (&sources, refused("BAD_SCOPE")),
    ] {
        let found = told(&gateway, ca.sign(&params("odd", uris))).await;
        assert_eq!(found, expected, "{uris:?}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn what_else_is_odd_is_no_harm() {
    let ca = OtherCa::new(&[]);
    let gateway = trusting("oddities-2", &ca).await;
    let nameless = || {
        let mut odd = params("x", &[VIEWER]);
        odd.distinguished_name = DistinguishedName::new();
        odd
    };
    let named = |value: DnValue| {
        let mut odd = nameless();
        odd.distinguished_name.push(DnType::CommonName, value);
        odd
    };
    assert_eq!(told(&gateway, ca.sign(&nameless())).await, Some(Ok(())), "no subject");
    assert_eq!(
        told(&gateway, ca.sign(&named(DnValue::Utf8String(String::new())))).await,
        Some(Ok(())),
        "an empty name"
    );
    let wide = DnValue::BmpString("\u{202e}rotarepo".try_into().unwrap());
    assert_eq!(told(&gateway, ca.sign(&named(wide))).await, Some(Ok(())), "a name in UTF-16");
    let long = DnValue::Utf8String("n".repeat(20_000));
    assert_eq!(told(&gateway, ca.sign(&named(long))).await, Some(Ok(())), "a long name");

    // Many names beside.
    let with_names = |many: usize| -> CertificateParams {
        let mut odd = params("many", &[VIEWER]);
        let name = |i| SanType::DnsName(format!("host-{i}.example.org").try_into().unwrap());
        odd.subject_alt_names.extend((0..many).map(name));
        odd
    };
    assert_eq!(told(&gateway, ca.sign(&with_names(1500))).await, Some(Ok(())), "many names");

    // Its end lies beyond what clocks count, or is here in a moment.
    let mut endless = params("endless", &[VIEWER]);
    endless.not_after = rcgen::date_time_ymd(9999, 12, 31);
    assert_eq!(told(&gateway, ca.sign(&endless)).await, Some(Ok(())), "without end");
    let mut ending = params("ending", &[VIEWER]);
    ending.not_after = (SystemTime::now() + Duration::from_secs(3)).into();
    let channel = gateway.endpoint(Some(ca.sign(&ending))).connect().await.unwrap();
    let mut watch = lazaret_proto::v1::inspect_service_client::InspectServiceClient::new(channel)
        .watch_denials(lazaret_proto::v1::WatchDenialsRequest::default())
        .await
        .unwrap()
        .into_inner();
    let ended = async { while let Ok(Some(_)) = watch.message().await {} };
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .expect("cut with its certificate");

    // Others are served, whatever came before.
    assert!(
        status(gateway.endpoint(Some(gateway.pki.client(Role::Operator))))
            .await
            .is_ok()
    );
    gateway.stop().await;
}

/// A chain as long as one likes, each of whose certificates the one above it has signed.
#[tokio::test]
async fn a_chain_is_followed_only_so_far() {
    let ca = OtherCa::new(&[]);
    let gateway = trusting("chain", &ca).await;
    let mut found = Vec::new();
    for length in [1, 3, 20] {
        let (mut issuer, mut above) = (None, String::new());
        for i in 0..length {
            let (params, key) = (ca_params(&format!("middle-{i}"), &[]), rcgen::KeyPair::generate().unwrap());
            let signer = issuer.as_ref().unwrap_or(&ca.issuer);
            above = params.signed_by(&key, signer).unwrap().pem() + &above;
            issuer = Some(rcgen::Issuer::new(params, key));
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = params("leaf", &[VIEWER]).signed_by(&key, &issuer.unwrap()).unwrap();
        let identity = Identity::from_pem(leaf.pem() + &above, key.serialize_pem());
        found.push(told(&gateway, identity).await);
    }
    assert_eq!(found, [Some(Ok(())), Some(Ok(())), None]);
    gateway.stop().await;
}
