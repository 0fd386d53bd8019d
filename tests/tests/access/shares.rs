//! One client's requests, streams and watches do not take everyone's places.

use std::{
    sync::mpsc as sync,
    time::{Duration, Instant},
};

use gateway_user::{
    model::{Device, Role},
    transition::Context,
};
use lazaret_proto::v1::{
    self, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient,
    policy_service_client::PolicyServiceClient, report_policy_request::Signal, session_service_client::SessionServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use tonic_types::StatusExt as _;

use crate::gateway::{Gateway, context, device, reason};

/// Devices, d-0 and so on.
async fn register(gateway: &Gateway, many: usize) -> DeviceServiceClient<Channel> {
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let request = v1::RegisterDevicesRequest {
        context: context("register"),
        devices: (0..many).map(|i| device(&format!("d-{i}"))).collect(),
    };
    mdm.register_devices(request).await.unwrap();
    mdm
}

fn applied(id: &str) -> v1::ReportPolicyAppliedRequest {
    v1::ReportPolicyAppliedRequest {
        context: context("applied"),
        device_id: id.into(),
        policy_revision: "7".into(),
        policy_key: String::new(),
    }
}

fn open(id: &str, address: String) -> v1::OpenSessionRequest {
    let session = v1::SessionReport {
        device_name: id.into(),
        prefixes: vec![address],
        interface: "tun0".into(),
        ..Default::default()
    };
    v1::OpenSessionRequest {
        context: context("open"),
        source: "vpn-1".into(),
        session: Some(session),
    }
}

/// A stream that sends these.
async fn stream(gateway: &Gateway, messages: Vec<v1::ReportPolicyRequest>) -> Streaming<v1::ReportPolicyResponse> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        for message in messages {
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    let mut client = PolicyServiceClient::new(gateway.channel(Role::Mdm).await);
    client
        .report_policy(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner()
}

/// Keeps the controller's thread from its queues until it is told to go on. A device must be registered.
fn hold(gateway: &Gateway) -> sync::Sender<()> {
    let (go, wait) = sync::channel::<()>();
    let (reached, there) = sync::channel();
    let once = std::sync::Arc::new(std::sync::Mutex::new(Some((reached, wait))));
    let controller = gateway.controller.clone();
    let hold = move |(): &mut (), _: &Device, _: &Context<'_>| {
        if let Some((reached, wait)) = once.lock().unwrap().take() {
            reached.send(()).unwrap();
            wait.recv().unwrap();
        }
    };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(controller.fold_devices((), hold)).unwrap();
    });
    there.recv().unwrap();
    go
}

#[tokio::test]
async fn signals_of_streams_leave_places_for_others() {
    const MANY: usize = 1500;
    let gateway = Gateway::new("crowd").await;
    let mut mdm = register(&gateway, 2).await;
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    vpn.open_session(open("d-0", "10.66.0.5".into())).await.unwrap();
    let go = hold(&gateway);
    let refused = || v1::ReportPolicyRequest {
        signal: Some(Signal::Applied(applied("nobody"))),
    };
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(stream(&gateway, (0..MANY).map(|_| refused()).collect()).await);
    }
    let reading: Vec<_> = streams
        .into_iter()
        .map(|mut answers| {
            tokio::spawn(async move {
                let mut read = 0;
                while let Some(answer) = answers.message().await.unwrap() {
                    assert_eq!(answer.refusal.unwrap().reason, "UNKNOWN_DEVICE");
                    read += 1;
                }
                read
            })
        })
        .collect();
    // Time for all of them to wait in the gateway.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let others = tokio::spawn(async move {
        let get = v1::GetDeviceRequest { device_id: "d-1".into() };
        let mut asking = mdm.clone();
        tokio::join!(
            vpn.open_session(open("d-1", "10.66.0.6".into())),
            mdm.report_policy_applied(applied("d-0")),
            asking.get_device(get),
        )
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!others.is_finished(), "they wait, and are not refused");
    go.send(()).unwrap();
    let (opened, released, seen) = others.await.unwrap();
    assert!(opened.is_ok() && seen.is_ok(), "{opened:?} {seen:?}");
    assert_eq!(released.unwrap().into_inner().enforcement(), v1::Enforcement::Enforced);
    for stream in reading {
        assert_eq!(stream.await.unwrap(), MANY);
    }
    gateway.stop().await;
}

/// What cannot be read back is waited for by answers, not by restrictions.
#[tokio::test]
async fn a_restriction_waits_for_no_other_ones_answer() {
    const DEVICES: usize = 200;
    /// How long an answer may wait for enforcement: what waits for one of these is found out.
    const DEADLINE: Duration = Duration::from_secs(12);
    let gateway = Gateway::new("answers").await;
    let mut mdm = register(&gateway, DEVICES + 1).await;
    let mut vpn = SessionServiceClient::new(gateway.channel(Role::Vpn).await);
    for i in 0..DEVICES {
        let id = format!("d-{i}");
        vpn.open_session(open(&id, format!("10.66.1.{}", i + 1))).await.unwrap();
        mdm.report_policy_applied(applied(&id)).await.unwrap();
    }
    let last = format!("d-{DEVICES}");
    mdm.report_policy_applied(applied(&last)).await.unwrap();
    let released = async || {
        let request = v1::ListDevicesRequest {
            page_size: 1000,
            state: v1::DeviceState::Released.into(),
            ..Default::default()
        };
        let mut mdm = mdm.clone();
        mdm.list_devices(request).await.unwrap().into_inner().devices.len()
    };
    let revoked = |id: String| v1::ReportPolicyRevokedRequest {
        context: context("revoked").map(|c| v1::SignalContext {
            deadline_ms: u32::try_from(DEADLINE.as_millis()).unwrap(),
            ..c
        }),
        device_id: id,
        ..Default::default()
    };
    assert_eq!(released().await, DEVICES + 1);

    let (kernel, (free, freed)) = (gateway.kernel.clone(), sync::channel::<()>());
    let (held, holds) = sync::channel();
    let holding = std::thread::spawn(move || {
        let _network = kernel.network();
        held.send(()).unwrap();
        freed.recv().unwrap();
    });
    holds.recv().unwrap();
    let begin = Instant::now();
    let other = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let calls: Vec<_> = (0..DEVICES)
        .map(|i| {
            let (mut other, request) = (other.clone(), revoked(format!("d-{i}")));
            tokio::spawn(async move { other.report_policy_revoked(request).await.unwrap().into_inner() })
        })
        .collect();
    while released().await > 1 {
        assert!(begin.elapsed() < DEADLINE / 2, "{} are still released", released().await);
    }
    println!(
        "all {DEVICES} revoked one by one are in quarantine after {:?}",
        begin.elapsed()
    );

    // As many again by one stream; the last one is behind more than a stream may have undecided.
    let begin = Instant::now();
    let ids = (0..3000).map(|i| format!("d-{}", i % DEVICES)).chain([last]);
    let messages: Vec<_> = ids
        .map(|id| v1::ReportPolicyRequest {
            signal: Some(Signal::Revoked(revoked(id))),
        })
        .collect();
    let mut answers = stream(&gateway, messages).await;
    let reading = tokio::spawn(async move {
        let mut levels = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            levels.push(answer.enforcement());
        }
        levels
    });
    while released().await > 0 {
        assert!(begin.elapsed() < DEADLINE / 2, "the last one waits for answers");
    }
    println!("the last one of the stream is in quarantine after {:?}", begin.elapsed());
    let waiting = calls.iter().filter(|c| !c.is_finished()).count();
    assert!((1..=100).contains(&waiting), "a few of one client go on waiting: {waiting}");
    free.send(()).unwrap();
    holding.join().unwrap();
    let mut levels = Vec::new();
    for call in calls {
        levels.push(call.await.unwrap().enforcement());
    }
    let streamed = reading.await.unwrap();
    assert_eq!((levels.len(), streamed.len()), (DEVICES, 3001));
    let known = |l: &v1::Enforcement| {
        matches!(
            l,
            v1::Enforcement::Enforced | v1::Enforcement::Committed | v1::Enforcement::NoSession
        )
    };
    assert!(levels.iter().chain(&streamed).all(known), "{levels:?}");
    assert!(
        levels.contains(&v1::Enforcement::Enforced),
        "who still waited is told once it is known"
    );
    gateway.stop().await;
}

/// Opens streams until one is refused; those that are open, and how many the answer says there may be.
async fn fill<S>(mut open: impl AsyncFnMut() -> Result<S, tonic::Status>) -> (Vec<S>, String) {
    let mut streams = Vec::new();
    loop {
        match open().await {
            Ok(stream) => streams.push(stream),
            Err(e) => {
                assert!(
                    ["TOO_MANY_WATCHERS", "TOO_MANY_STREAMS"].contains(&reason(&e).as_str()),
                    "{e:?}"
                );
                let info = e.get_details_error_info().unwrap();
                return (streams, info.metadata["most"].clone());
            }
        }
        assert!(streams.len() < 64, "one client has all places");
    }
}

#[tokio::test]
async fn one_client_has_a_quarter_of_the_places_for_streams() {
    let gateway = Gateway::new("quarter").await;
    register(&gateway, 1).await;
    for (one, other) in [(Role::Viewer, Role::Mdm), (Role::Mdm, Role::Viewer)] {
        let (one, other) = (gateway.channel(one).await, gateway.channel(other).await);
        let uris = async |channel: &Channel| {
            let mut client = DeviceServiceClient::new(channel.clone());
            client.watch_gateway_uris(v1::WatchGatewayUrisRequest::default()).await
        };
        let (held, most) = fill(async || uris(&one).await).await;
        assert_eq!((held.len(), most.as_str()), (16, "16"));
        uris(&other).await.unwrap();
        let publication = async |channel: &Channel| {
            let mut client = PolicyServiceClient::new(channel.clone());
            client.watch_publication(v1::WatchPublicationRequest {}).await
        };
        let (held, most) = fill(async || publication(&one).await).await;
        assert_eq!((held.len(), most.as_str()), (16, "16"));
        publication(&other).await.unwrap();
    }
    let denials = async |channel: &Channel| {
        let mut client = InspectServiceClient::new(channel.clone());
        client.watch_denials(v1::WatchDenialsRequest::default()).await
    };
    let viewer = gateway.channel(Role::Viewer).await;
    let operator = gateway.channel(Role::Operator).await;
    let (held, most) = fill(async || denials(&viewer).await).await;
    assert_eq!((held.len(), most.as_str()), (8, "8"));
    denials(&operator).await.unwrap();
    let mut capturing = InspectServiceClient::new(operator.clone());
    capturing.capture_denied(v1::CaptureDeniedRequest::default()).await.unwrap();

    let mdm = gateway.channel(Role::Mdm).await;
    let signals = async |channel: &Channel| {
        let mut client = PolicyServiceClient::new(channel.clone());
        client.report_policy(tokio_stream::pending::<v1::ReportPolicyRequest>()).await
    };
    let (held, most) = fill(async || signals(&mdm).await).await;
    assert_eq!((held.len(), most.as_str()), (16, "16"));
    signals(&gateway.other_mdm().await).await.unwrap();

    // Streams of the ecosystem's services, together.
    let health = async |channel: &Channel| {
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        client.watch(tonic_health::pb::HealthCheckRequest::default()).await
    };
    let (held, most) = fill(async || health(&mdm).await).await;
    assert_eq!((held.len(), most.as_str()), (16, "16"));
    health(&viewer).await.unwrap();
    gateway.stop().await;
}
