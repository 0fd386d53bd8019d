//! What an MDM with limits cannot do to devices beyond them, whatever it registers: certificates and VPN keys are public, and others'.

use gateway_user::model::Role;
use lazaret_proto::v1::{
    self, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient,
    operator_service_client::OperatorServiceClient, policy_service_client::PolicyServiceClient,
    session_service_client::SessionServiceClient,
};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    gateway::{Gateway, Pki, SOURCE, context, device, reason},
    scope::client,
};

/// A certificate, and a key, that both devices show.
const CERTIFICATE: &str = "cececececececececececececececececececececececececececececececece";
const KEY: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

type Mdm = DeviceServiceClient<Channel>;

async fn limited(gateway: &Gateway, to: &str) -> Mdm {
    let name = format!("limited-{}", to.trim_end_matches(['*', '-']));
    DeviceServiceClient::new(client(gateway, &name, Role::Mdm, &[], &[to]).await)
}

async fn register(mdm: &mut Mdm, id: &str, claims: bool) -> Result<(), Status> {
    let mut device = device(id);
    device.aliases = claims.then(|| v1::Aliases {
        certificate_sha256: vec![CERTIFICATE.into()],
        vpn_public_keys: vec![KEY.into()],
        ..Default::default()
    });
    let request = v1::RegisterDevicesRequest {
        context: context("register"),
        devices: vec![device],
    };
    mdm.register_devices(request).await.map(drop)
}

async fn open(vpn: &mut SessionServiceClient<Channel>, id: &str, last: u8) -> Result<v1::Session, Status> {
    let request = v1::OpenSessionRequest {
        context: context("open"),
        source: SOURCE.into(),
        session: Some(v1::SessionReport {
            device_name: id.into(),
            prefixes: vec![format!("10.66.1.{last}")],
            interface: "tun0".into(),
            certificate_sha256: CERTIFICATE.into(),
            vpn_public_key: KEY.into(),
        }),
    };
    vpn.open_session(request).await.map(|r| r.into_inner().session.unwrap())
}

async fn sessions(mdm: &mut Mdm, id: &str) -> usize {
    let request = v1::GetDeviceRequest { device_id: id.into() };
    let answer = mdm.get_device(request).await.unwrap().into_inner();
    answer.device.unwrap().sessions.len()
}

#[tokio::test]
async fn who_registers_the_certificate_of_a_device_beyond_his_limits_keeps_it_from_nothing() {
    let gateway = Gateway::new("claims").await;
    let mut all = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    let mut small = limited(&gateway, "small-*").await;
    register(&mut all, "big-7", false).await.unwrap();
    register(&mut small, "small-1", true).await.unwrap();

    let session = open(&mut vpn, "big-7", 7).await.unwrap();
    assert_eq!(session.trust(), v1::TrustLevel::Name, "as if nobody had registered it");
    let applied = v1::ReportPolicyAppliedRequest {
        context: context("applied"),
        device_id: "big-7".into(),
        policy_revision: "r1".into(),
        ..Default::default()
    };
    all.report_policy_applied(applied).await.unwrap();
    // Again, and while the other one has a session of its own.
    open(&mut vpn, "small-1", 1).await.unwrap();
    register(&mut small, "small-1", true).await.unwrap();
    assert_eq!(
        (sessions(&mut all, "big-7").await, sessions(&mut all, "small-1").await),
        (1, 1)
    );
    open(&mut vpn, "big-7", 7).await.unwrap();
    let device = all
        .get_device(v1::GetDeviceRequest {
            device_id: "big-7".into(),
        })
        .await
        .unwrap();
    assert_eq!(device.into_inner().device.unwrap().state(), v1::DeviceState::Released);

    let mut operator = InspectServiceClient::new(gateway.channel(Role::Operator).await);
    let status = operator
        .get_status(v1::GetStatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    let shown = |w: &&String| w.contains("alias-outside-scope") && w.contains("big-7");
    assert_eq!(status.warnings.iter().filter(shown).count(), 1, "{:?}", status.warnings);
    // Within the limits one alias is one device's, and another's session does not open with it.
    assert_eq!(
        reason(&register(&mut small, "small-2", true).await.unwrap_err()),
        "ALIAS_TAKEN"
    );
    register(&mut small, "small-2", false).await.unwrap();
    let refused = open(&mut vpn, "small-2", 2).await.unwrap_err();
    assert_eq!(reason(&refused), "FINGERPRINT_MISMATCH");
    assert!(refused.message().contains("registered for another device"), "{refused}");
    gateway.stop().await;
}

#[tokio::test]
async fn who_may_act_on_both_has_the_last_word() {
    let gateway = Gateway::new("claims-first").await;
    let mut all = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    let mut small = limited(&gateway, "small-*").await;
    register(&mut small, "small-1", true).await.unwrap();
    assert_eq!(
        open(&mut vpn, "small-1", 1).await.unwrap().trust(),
        v1::TrustLevel::Certificate
    );

    register(&mut all, "big-7", true).await.unwrap();
    assert_eq!(sessions(&mut all, "small-1").await, 0, "what was known by it ends");
    let session = open(&mut vpn, "big-7", 7).await.unwrap();
    assert_eq!(session.trust(), v1::TrustLevel::Certificate);
    assert_eq!(
        reason(&open(&mut vpn, "small-1", 1).await.unwrap_err()),
        "FINGERPRINT_MISMATCH"
    );
    // Its own MDM learns that the alias is another's, but not whose; also not from what happened last.
    let taken = register(&mut small, "small-1", true).await.unwrap_err();
    assert_eq!((taken.code(), reason(&taken).as_str()), (Code::AlreadyExists, "ALIAS_TAKEN"));
    assert!(!format!("{taken:?}").contains("big-7"), "{taken:?}");
    let request = v1::ExplainDeviceRequest {
        device_id: "small-1".into(),
        ..Default::default()
    };
    let told = small.explain_device(request).await.unwrap().into_inner();
    assert!(!format!("{told:?}").contains("big-7"), "{told:?}");
    // The same again is no change.
    register(&mut all, "big-7", true).await.unwrap();
    assert_eq!(sessions(&mut all, "big-7").await, 1);
    let mut operator = OperatorServiceClient::new(gateway.channel(Role::Operator).await);
    let about = v1::ListAuditEntriesRequest {
        page_size: 100,
        device_id: "small-1".into(),
        ..Default::default()
    };
    let entries = operator.list_audit_entries(about).await.unwrap().into_inner().entries;
    let lost: Vec<_> = entries
        .iter()
        .filter(|e| e.after == "another device's")
        .map(|e| e.subject.as_str())
        .collect();
    assert_eq!(lost, [format!("VPN key {KEY}"), format!("certificate {CERTIFICATE}")]);
    // The way out is to register it without.
    register(&mut small, "small-1", false).await.unwrap();
    assert_eq!(
        reason(&open(&mut vpn, "small-1", 1).await.unwrap_err()),
        "FINGERPRINT_MISMATCH"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn why_a_wave_does_not_come_counts_nobody_beyond_his_limits() {
    let gateway = Gateway::new("claims-wave").await;
    let all = gateway.channel(Role::Mdm).await;
    let (mut mdm, mut policies) = (DeviceServiceClient::new(all.clone()), PolicyServiceClient::new(all));
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    let mut small = limited(&gateway, "small-*").await;
    for (last, id) in [(1, "big-1"), (2, "small-1")] {
        register(&mut mdm, id, false).await.unwrap();
        open(&mut vpn, id, last).await.unwrap();
        let applied = v1::ReportPolicyAppliedRequest {
            context: context("applied"),
            device_id: id.into(),
            policy_revision: "r1".into(),
            ..Default::default()
        };
        mdm.report_policy_applied(applied).await.unwrap();
    }
    let request = v1::PublishPolicyRevisionRequest {
        context: context("publish"),
        policy_revision: "r2".into(),
        ceiling: 1,
        rate_per_minute: 600,
        ..Default::default()
    };
    policies.publish_policy_revision(request).await.unwrap();
    let about = || v1::ExplainDeviceRequest {
        device_id: "small-1".into(),
        ..Default::default()
    };
    let mut told = String::new();
    for _ in 0..200 {
        told = format!("{:?}", mdm.explain_device(about()).await.unwrap().into_inner());
        if told.contains("the ceiling of 1 is full") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(told.contains("the ceiling of 1 is full"), "{told}");
    let told = format!("{:?}", small.explain_device(about()).await.unwrap().into_inner());
    assert!(told.contains("its wave has not come"), "{told}");
    assert!(!told.contains("ceiling") && !told.contains("no wave"), "{told}");
    gateway.stop().await;
}

#[tokio::test]
async fn two_with_limits_of_their_own_do_not_meet_also_after_a_restart() {
    let mut pki = Pki::new("claims-two");
    for start in [true, false] {
        let gateway = Gateway::with(pki, |_| {}).await;
        let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
        if start {
            for (limits, id) in [("a-*", "a-1"), ("b-*", "b-1")] {
                register(&mut limited(&gateway, limits).await, id, true).await.unwrap();
            }
        }
        for (last, id) in [(1, "a-1"), (2, "b-1")] {
            let session = open(&mut vpn, id, last).await.unwrap();
            assert_eq!(session.trust(), v1::TrustLevel::Certificate, "{id}");
        }
        pki = gateway.stop().await;
        // The next one issues it anew.
        for file in ["gateway.key", "gateway.pem"] {
            std::fs::remove_file(pki.ca.join(file)).unwrap();
        }
    }
    let state = pki.scratch.path().join("state");
    let health = gateway_user::store::Reader::of_directory(&state).unwrap().check().unwrap();
    assert!(health.problems.is_empty(), "{:?}", health.problems);
}

#[tokio::test]
async fn limits_hold_so_many_devices_and_no_more() {
    let gateway = Gateway::with(Pki::new("quota"), |c| c.devices.limited_mdm = 3).await;
    let mut all = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut small = limited(&gateway, "small-*").await;
    register(&mut all, "small-0", false).await.unwrap();
    for id in ["small-1", "small-2", "small-1", "small-0"] {
        register(&mut small, id, false).await.unwrap();
    }
    for _ in 0..2 {
        let refused = register(&mut small, "small-3", false).await.unwrap_err();
        assert_eq!(
            (refused.code(), reason(&refused).as_str()),
            (Code::ResourceExhausted, "DEVICE_QUOTA")
        );
    }
    // A retired one is still a row; others have room.
    let retire = v1::RetireDeviceRequest {
        context: context("retire"),
        device_id: "small-1".into(),
    };
    small.retire_device(retire).await.unwrap();
    assert_eq!(
        reason(&register(&mut small, "small-3", false).await.unwrap_err()),
        "DEVICE_QUOTA"
    );
    register(&mut all, "big-1", false).await.unwrap();
    register(&mut all, "small-3", false).await.unwrap();
    register(&mut limited(&gateway, "other-*").await, "other-1", false)
        .await
        .unwrap();
    gateway.stop().await;
}

#[tokio::test]
async fn who_holds_an_address_is_told_of_ones_own_sources_only() {
    let gateway = Gateway::new("taken").await;
    let mut all = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    for id in ["a", "b"] {
        register(&mut all, id, false).await.unwrap();
    }
    let mut one = SessionServiceClient::new(client(&gateway, "one", Role::Vpn, &["vpn-1"], &[]).await);
    let two = client(&gateway, "two", Role::Vpn, &["vpn-2"], &[]).await;
    let both = client(&gateway, "both", Role::Vpn, &["vpn-1", "vpn-2"], &[]).await;
    let held = open(&mut one, "a", 9).await.unwrap();
    let report = || v1::SessionReport {
        device_name: "b".into(),
        prefixes: vec!["10.66.1.9".into()],
        interface: "tun1".into(),
        ..Default::default()
    };
    for (channel, told) in [(two, false), (both, true)] {
        let mut vpn = SessionServiceClient::new(channel);
        let request = v1::OpenSessionRequest {
            context: context("open"),
            source: "vpn-2".into(),
            session: Some(report()),
        };
        let alone = vpn.open_session(request).await.unwrap_err();
        let request = v1::SynchroniseSessionsRequest {
            context: context("list"),
            source: "vpn-2".into(),
            sessions: vec![report()],
        };
        let listed = vpn.synchronise_sessions(request).await.unwrap().into_inner();
        let part = listed.refused[0].clone();
        let info = alone.get_details_error_info().unwrap();
        for (name, message, metadata) in [
            (info.reason, alone.message().to_owned(), info.metadata),
            (part.reason, part.message, part.metadata),
        ] {
            assert_eq!(name, "ADDRESS_TAKEN");
            assert!(message.contains("10.66.1.9"), "{message}");
            let session = held.session_id.to_string();
            let told_of = (message.contains("vpn-1"), metadata.get("session") == Some(&session));
            assert_eq!(told_of, (told, told), "{message} {metadata:?}");
        }
    }
    gateway.stop().await;
}
