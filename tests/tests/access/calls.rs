//! What calls answer: errors that programs can read, pages, watches, health, reflection.

use std::time::Duration;

use gateway_ebpf::{
    abi::{Denial, hook},
    reason::Reason,
};
use gateway_user::{
    events::Event,
    model::{Role, Trust},
};
use lazaret_proto::v1::{
    self, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient,
    session_service_client::SessionServiceClient,
};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient, server_reflection_request::MessageRequest,
    server_reflection_response::MessageResponse,
};
use tonic_types::StatusExt as _;

use crate::gateway::{Gateway, Pki, context, device, reason};

fn register(ids: impl IntoIterator<Item = String>) -> v1::RegisterDevicesRequest {
    v1::RegisterDevicesRequest {
        context: context("r-1"),
        devices: ids.into_iter().map(|i| device(&i)).collect(),
    }
}

fn applied(id: &str) -> v1::ReportPolicyAppliedRequest {
    v1::ReportPolicyAppliedRequest {
        context: context("r-2"),
        device_id: id.into(),
        policy_revision: "7".into(),
        policy_key: String::new(),
    }
}

fn open(name: &str, prefix: &str) -> v1::OpenSessionRequest {
    let session = v1::SessionReport {
        device_name: name.into(),
        prefixes: vec![prefix.into()],
        interface: "tun0".into(),
        ..Default::default()
    };
    v1::OpenSessionRequest {
        context: context("r-3"),
        source: "vpn-1".into(),
        session: Some(session),
    }
}

#[tokio::test]
async fn errors_can_be_read_by_programs() {
    let gateway = Gateway::new("errors").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);

    let e = mdm.report_policy_applied(applied("nobody")).await.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::NotFound, "UNKNOWN_DEVICE"));
    assert_eq!(e.get_details_error_info().unwrap().metadata["device"], "nobody");

    for bad in [
        "",
        "../../etc/passwd",
        "a\nb",
        "a\u{1b}[31m",
        "a b",
        "\u{202e}a",
        &"x".repeat(129),
    ] {
        let e = mdm.report_policy_applied(applied(bad)).await.unwrap_err();
        assert_eq!(
            (e.code(), reason(&e).as_str()),
            (Code::InvalidArgument, "INVALID_ARGUMENT"),
            "{bad:?}"
        );
        assert_eq!(e.get_details_error_info().unwrap().metadata["field"], "device_id");
        assert_eq!(e.get_details_bad_request().unwrap().field_violations[0].field, "device_id");
        assert!(!e.message().chars().any(char::is_control));
    }
    let e = mdm.register_devices(register(["a".into(), "b/".into()])).await.unwrap_err();
    assert_eq!(e.get_details_error_info().unwrap().metadata["field"], "devices[1].device_id");
    let e = mdm
        .get_device(v1::GetDeviceRequest { device_id: "a".into() })
        .await
        .unwrap_err();
    assert_eq!(e.code(), Code::NotFound, "all or none");

    mdm.register_devices(register(["a".into()])).await.unwrap();
    for (prefix, code, why) in [
        ("10.99.0.1", Code::InvalidArgument, "ADDRESS_OUTSIDE_POOLS"),
        ("10.66.0.1", Code::InvalidArgument, "ADDRESS_RESERVED"),
        ("10.66.0.0/24", Code::InvalidArgument, "INVALID_ARGUMENT"),
    ] {
        let e = vpn.open_session(open("a", prefix)).await.unwrap_err();
        assert_eq!((e.code(), reason(&e).as_str()), (code, why), "{prefix}");
    }
    let e = vpn.open_session(open("stranger", "10.66.0.5")).await.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::NotFound, "UNKNOWN_DEVICE"));
    gateway.stop().await;
}

/// A VPN server that knows its clients by their keys (WireGuard) says by which one a session came.
#[tokio::test]
async fn a_session_is_its_devices_by_the_key_that_it_came_with() {
    const KEYS: [&str; 3] = [
        "kJx3YxMPfHnOHvNW4mZ6zhU+oX8MAfKXxjMJ6l8Yp2s=",
        "0Xm3u1Z9Jb6l2Q5cVgqT7r8yKpWn4sDhEfAoBiMxCk0=",
        "3mF0o2Yq7XwZk5RrJt9uHcLv1sNdPbGeQaTiSxCyV1U=",
    ];
    let gateway = Gateway::with(Pki::new("keys"), |c| {
        let staff = c.pools.iter_mut().find(|p| p.name.as_str() == "staff");
        staff.unwrap().min_trust = Trust::VpnKey;
    })
    .await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    let devices = ["phone-0", "phone-1"]
        .iter()
        .zip(KEYS)
        .map(|(id, key)| v1::DeviceRegistration {
            aliases: Some(v1::Aliases {
                vpn_public_keys: vec![key.to_owned()],
                ..Default::default()
            }),
            ..device(id)
        });
    let request = v1::RegisterDevicesRequest {
        context: context("register"),
        devices: devices.chain([device("bare")]).collect(),
    };
    mdm.register_devices(request).await.unwrap();
    for id in ["phone-0", "phone-1", "bare"] {
        mdm.report_policy_applied(applied(id)).await.unwrap();
    }
    let by_key = |name: &str, prefix: &str, key: &str| {
        let mut request = open(name, prefix);
        request.session.as_mut().unwrap().vpn_public_key = key.into();
        request
    };
    // A key that nobody has, another device's, and another device's for one that has none registered.
    for (name, key) in [("phone-0", KEYS[2]), ("phone-0", KEYS[1]), ("bare", KEYS[1])] {
        let e = vpn.open_session(by_key(name, "10.66.0.5", key)).await.unwrap_err();
        assert_eq!(reason(&e), "FINGERPRINT_MISMATCH", "{name} {key}");
    }
    let e = vpn.open_session(by_key("phone-0", "10.66.0.5", "key")).await.unwrap_err();
    assert_eq!(
        e.get_details_error_info().unwrap().metadata["field"],
        "session.vpn_public_key"
    );
    let mut list = v1::SynchroniseSessionsRequest {
        context: context("list"),
        source: "vpn-1".into(),
        sessions: vec![by_key("phone-0", "10.66.0.5", KEYS[2]).session.unwrap()],
    };
    let told = vpn.synchronise_sessions(list.clone()).await.unwrap().into_inner();
    assert_eq!((told.opened, told.refused[0].reason.as_str()), (0, "FINGERPRINT_MISMATCH"));

    let server = vpn.clone();
    let pool = async |name: &str, prefix: &str, key: &str| {
        let opened = server
            .clone()
            .open_session(by_key(name, prefix, key))
            .await
            .unwrap()
            .into_inner();
        let session = opened.session.unwrap();
        (session.trust(), session.current_pool)
    };
    let staff = (v1::TrustLevel::VpnKey, "staff".to_owned());
    let low = (v1::TrustLevel::Name, "quarantine".to_owned());
    assert_eq!(pool("phone-0", "10.66.0.5", KEYS[0]).await, staff);
    assert_eq!(
        pool("phone-1", "10.66.0.6", "").await,
        low,
        "a name alone is not enough for this pool"
    );
    assert_eq!(
        pool("bare", "10.66.0.7", KEYS[2]).await,
        low,
        "nobody has registered this key"
    );
    list.context = context("list");
    list.sessions = vec![by_key("phone-1", "10.66.0.6", KEYS[1]).session.unwrap()];
    vpn.synchronise_sessions(list).await.unwrap();
    assert_eq!(pool("phone-1", "10.66.0.6", KEYS[1]).await, staff);
    gateway.stop().await;
}

#[tokio::test]
async fn a_device_through_its_life_as_the_api_shows_it() {
    let gateway = Gateway::new("life").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    let mut viewer = InspectServiceClient::new(gateway.channel(Role::Viewer).await);
    mdm.register_devices(register(["phone-1".into()])).await.unwrap();
    let request = open("phone-1", "10.66.0.5");
    let request_id = request.context.clone().unwrap().request_id;
    let opened = vpn.open_session(request).await.unwrap().into_inner();
    assert_eq!(
        (opened.request_id, opened.gateway_uri.as_str()),
        (request_id, "q.vpn.example")
    );
    let session = opened.session.unwrap();
    assert_eq!(
        (session.current_pool.as_str(), session.prefixes),
        ("quarantine", vec!["10.66.0.5/32".to_owned()])
    );

    let released = mdm.report_policy_applied(applied("phone-1")).await.unwrap().into_inner();
    assert_eq!(released.enforcement(), v1::Enforcement::Enforced);
    assert_eq!(released.gateway_uri, "vpn.example");
    let read_backs = &released.prefixes[0].read_backs;
    assert!(!read_backs.is_empty() && read_backs.iter().all(|r| r.as_wanted && r.pool == "staff" && !r.not_attached));

    let pools = viewer.list_pools(v1::ListPoolsRequest {}).await.unwrap().into_inner().pools;
    let figures: Vec<_> = pools.iter().map(|p| (p.name.as_str(), p.session_addresses)).collect();
    assert_eq!(figures, [("quarantine", 0), ("staff", 1)]);
    let one = v1::ListAddressesRequest {
        address: "10.66.0.5".into(),
        ..Default::default()
    };
    let address = viewer.list_addresses(one).await.unwrap().into_inner().addresses.remove(0);
    assert_eq!(
        (address.home_pool.as_str(), address.current_pool.as_str()),
        ("quarantine", "staff")
    );
    assert_eq!(
        (address.device_id.as_str(), address.session_id),
        ("phone-1", session.session_id)
    );

    // A denied packet of it, as the ring buffer would bring it; and one that nobody could read.
    let v4 = |d: u8| std::net::Ipv4Addr::new(10, 66, 0, d).to_ipv6_mapped().octets();
    let record = Denial {
        src: v4(5),
        dst: v4(9),
        protocol: 6,
        sport: 40_000,
        dport: 25,
        version: 4,
        reason: Reason::NoRule as u8,
        pool: 1,
        hook: hook::TC_DEVICE,
        ifindex: 0x7fff_fff0,
        ..Denial::default()
    };
    gateway.denials.push(Event::from(record));
    gateway.denials.push(Event::from(Denial {
        reason: 255,
        hook: 99,
        ..Denial::default()
    }));
    let denials = viewer
        .list_denials(v1::ListDenialsRequest::default())
        .await
        .unwrap()
        .into_inner()
        .denials;
    let d = &denials[0];
    assert_eq!(
        (d.source.as_str(), d.destination.as_str(), d.protocol.as_str()),
        ("10.66.0.5", "10.66.0.9", "tcp")
    );
    assert_eq!(
        (d.destination_port, d.pool.as_str(), d.device_id.as_str()),
        (25, "quarantine", "phone-1")
    );
    assert_eq!((d.reason.as_str(), d.hook.as_str()), ("no_rule", "tc device"));
    assert_eq!(d.interface, "number 2147483632", "an interface that is gone");
    assert!(!d.sentence.is_empty() && !d.remedy.is_empty());
    assert_eq!((denials[1].reason.as_str(), denials[1].source.as_str()), ("number 255", ""));
    let only = |address: &str, why: &str| v1::ListDenialsRequest {
        address: address.into(),
        reason: why.into(),
        ..Default::default()
    };
    assert_eq!(
        viewer
            .list_denials(only("10.66.0.9", "no_rule"))
            .await
            .unwrap()
            .into_inner()
            .denials
            .len(),
        1
    );
    assert_eq!(
        viewer
            .list_denials(only("10.66.0.9", "fragment"))
            .await
            .unwrap()
            .into_inner()
            .denials
            .len(),
        0
    );
    assert_eq!(
        reason(&viewer.list_denials(only("x", "")).await.unwrap_err()),
        "INVALID_ADDRESS"
    );
    assert_eq!(
        viewer.list_denials(only("", "x")).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let e = viewer
        .get_counters(v1::GetCountersRequest { pool: "x".into() })
        .await
        .unwrap_err();
    assert_eq!(reason(&e), "UNKNOWN_POOL");

    let close = |id| v1::CloseSessionRequest {
        context: context("r-4"),
        session_id: id,
    };
    assert!(vpn.close_session(close(session.session_id)).await.unwrap().into_inner().ended);
    assert!(
        !vpn.close_session(close(session.session_id)).await.unwrap().into_inner().ended,
        "a late close succeeds"
    );
    gateway.stop().await;
}

#[tokio::test]
async fn pages() {
    let gateway = Gateway::new("pages").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let ids: Vec<String> = (0..250).map(|i| format!("d-{i:03}")).collect();
    mdm.register_devices(register(ids.iter().cloned())).await.unwrap();
    let mut request = v1::ListDevicesRequest::default();
    let mut seen = Vec::new();
    let mut sizes = Vec::new();
    loop {
        let page = mdm.list_devices(request.clone()).await.unwrap().into_inner();
        sizes.push(page.devices.len());
        seen.extend(page.devices.into_iter().map(|d| d.device_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((sizes, seen), (vec![100, 100, 50], ids));

    let exact = v1::ListDevicesRequest {
        page_size: 250,
        ..Default::default()
    };
    assert_eq!(
        mdm.list_devices(exact).await.unwrap().into_inner().next_page_token,
        "",
        "an empty page is never offered"
    );
    // The token of this list with another filter, a damaged one, an invented one, and one of another list.
    let filtered = v1::ListDevicesRequest {
        state: v1::DeviceState::Released.into(),
        ..request.clone()
    };
    let damaged = v1::ListDevicesRequest {
        page_token: request.page_token[1..].into(),
        ..Default::default()
    };
    let invented = v1::ListDevicesRequest {
        page_token: "d-100".into(),
        ..Default::default()
    };
    for bad in [filtered, damaged, invented] {
        let e = mdm.list_devices(bad).await.unwrap_err();
        assert_eq!(e.get_details_error_info().unwrap().metadata["field"], "page_token");
    }
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    let bad = v1::ListSessionsRequest {
        page_token: request.page_token,
        page_size: 0,
    };
    assert_eq!(vpn.list_sessions(bad).await.unwrap_err().code(), Code::InvalidArgument);
    let e = mdm
        .list_devices(v1::ListDevicesRequest {
            state: 99,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert_eq!(e.get_details_error_info().unwrap().metadata["field"], "state");

    for i in 0..5 {
        vpn.open_session(open(&format!("d-00{i}"), &format!("10.66.1.{i}")))
            .await
            .unwrap();
    }
    let first = vpn
        .list_sessions(v1::ListSessionsRequest {
            page_size: 3,
            ..Default::default()
        })
        .await
        .unwrap()
        .into_inner();
    let rest = v1::ListSessionsRequest {
        page_size: 3,
        page_token: first.next_page_token,
    };
    let rest = vpn.list_sessions(rest).await.unwrap().into_inner();
    assert_eq!(
        (first.sessions.len(), rest.sessions.len(), rest.next_page_token.as_str()),
        (3, 2, "")
    );
    assert!(first.sessions[2].session_id < rest.sessions[0].session_id);
    gateway.stop().await;
}

#[tokio::test]
async fn watches_resume_and_end_with_the_gateway() {
    let gateway = Gateway::new("watch").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    mdm.register_devices(register(["a".into(), "b".into()])).await.unwrap();
    let watch = |after_revision| v1::WatchGatewayUrisRequest { after_revision };
    let mut live = mdm.watch_gateway_uris(watch(None)).await.unwrap().into_inner();
    for id in ["a", "b"] {
        mdm.report_policy_applied(applied(id)).await.unwrap();
    }
    let mut revisions = Vec::new();
    for id in ["a", "b"] {
        let change = live.next().await.unwrap().unwrap();
        assert_eq!(
            (change.device_id.as_str(), change.new_gateway_uri.as_str()),
            (id, "vpn.example")
        );
        assert_eq!(change.old_gateway_uri, "q.vpn.example");
        revisions.push(change.revision);
    }
    // A watcher that was away after the first.
    let mut resumed = mdm.watch_gateway_uris(watch(Some(revisions[0]))).await.unwrap().into_inner();
    let change = resumed.next().await.unwrap().unwrap();
    assert_eq!((change.device_id.as_str(), change.revision), ("b", revisions[1]));

    // As many as may watch, and one more.
    let mut watchers = vec![live, resumed];
    let e = loop {
        match mdm.watch_gateway_uris(watch(None)).await {
            Ok(w) => watchers.push(w.into_inner()),
            Err(e) => break e,
        }
        assert!(watchers.len() <= 64);
    };
    assert_eq!(
        (e.code(), reason(&e).as_str()),
        (Code::ResourceExhausted, "TOO_MANY_WATCHERS")
    );
    watchers.truncate(1);
    let deadline = std::time::Instant::now() + Duration::from_secs(5);
    while mdm.watch_gateway_uris(watch(None)).await.is_err() {
        assert!(std::time::Instant::now() < deadline, "a place comes free");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let mut last = watchers.remove(0);
    let ended = tokio::spawn(async move { last.next().await });
    gateway.stop().await;
    let e = ended.await.unwrap().unwrap().unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
}

#[tokio::test]
async fn health_and_reflection() {
    let gateway = Gateway::new("health").await;
    let channel = gateway.channel(Role::Mdm).await;
    let mut health = HealthClient::new(channel.clone());
    for service in [
        "",
        "lazaret.v1.DeviceService",
        "lazaret.v1.SessionService",
        "lazaret.v1.InspectService",
    ] {
        let answer = health
            .check(HealthCheckRequest { service: service.into() })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let e = health.check(HealthCheckRequest { service: "x".into() }).await.unwrap_err();
    assert_eq!(e.code(), Code::NotFound);

    let mut reflection = ServerReflectionClient::new(channel);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(list) = answer else {
        panic!("{answer:?}")
    };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for want in [
        "lazaret.v1.DeviceService",
        "lazaret.v1.SessionService",
        "lazaret.v1.InspectService",
    ] {
        assert!(names.iter().any(|n| n == want), "{names:?}");
    }
    gateway.stop().await;
}

/// Denials as they happen: what is read too slowly is lost, counted, and said in the stream; nothing comes twice.
#[tokio::test]
async fn a_slow_reader_of_denials_is_told_how_many_it_lost() {
    const PUSHED: u64 = 20_000;
    let gateway = Gateway::new("slow").await;
    let mut viewer = InspectServiceClient::new(gateway.channel(Role::Viewer).await);
    let event = |port: u64| -> Event {
        Denial {
            reason: Reason::NoRule as u8,
            pool: 1,
            hook: hook::TC_DEVICE,
            version: 4,
            src: std::net::Ipv4Addr::new(10, 66, 0, 5).to_ipv6_mapped().octets(),
            dst: std::net::Ipv4Addr::new(10, 66, 0, 9).to_ipv6_mapped().octets(),
            dport: port as u16,
            ..Denial::default()
        }
        .into()
    };
    (0..5).for_each(|p| gateway.denials.push(event(p)));
    let request = v1::WatchDenialsRequest {
        last: 3,
        reason: "no_rule".into(),
        ..Default::default()
    };
    let mut stream = viewer.watch_denials(request).await.unwrap().into_inner();
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!((first.denial, first.missed), (None, 0), "first the totals");
    for port in [2, 3, 4] {
        let denial = stream.next().await.unwrap().unwrap().denial.unwrap();
        assert_eq!(denial.destination_port, port, "then the last ones");
    }
    // At once: nobody reads meanwhile.
    (0..PUSHED).for_each(|p| gateway.denials.push(event(p)));
    let (mut got, mut missed, mut last) = (0, 0, None);
    while got + missed < PUSHED {
        let message = tokio::time::timeout(Duration::from_secs(10), stream.next()).await;
        let message = message.expect("in time").unwrap().unwrap();
        missed += message.missed;
        if let Some(denial) = message.denial {
            got += 1;
            assert!(last < Some(denial.destination_port), "in order, and none twice");
            last = Some(denial.destination_port);
        }
    }
    assert_eq!(got + missed, PUSHED);
    assert!(got > 0 && missed > 0, "{got} and {missed}");
    // It ends with the gateway, by name.
    let ended = tokio::spawn(async move { stream.next().await.unwrap().unwrap_err() });
    gateway.stop().await;
    let e = ended.await.unwrap();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
}
