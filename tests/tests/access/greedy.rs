//! What a client may have the gateway hold for it: answers that it does not read, and messages that are small on the wire and large in memory.

use std::time::{Duration, Instant};

use gateway_user::{
    model::Role,
    pki::{self, IssueArgs},
};
use lazaret_proto::v1::{self, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient};
use prost::Message as _;
use tonic::Code;

use crate::{
    gateway::{Gateway, context, device, reason},
    raw::{DATA, END_HEADERS, END_STREAM, HEADERS, Http2, SETTINGS, call_fields},
};

const LIST: &str = "/lazaret.v1.DeviceService/ListDevices";
const WINDOW_UPDATE: u8 = 8;
/// Calls of one client that are worked on, and large answers that wait for it.
const PLACES: usize = 64;

async fn register(gateway: &Gateway, many: usize) {
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let registration = |i| v1::DeviceRegistration {
        owner: "x".repeat(200),
        ..device(&format!("d-{i}"))
    };
    let request = v1::RegisterDevicesRequest {
        context: context("register"),
        devices: (0..many).map(registration).collect(),
    };
    mdm.register_devices(request).await.unwrap();
}

/// A connection that asks for pages of devices, on so many streams, and has no room for a byte of them.
async fn asking(gateway: &Gateway, streams: u32) -> Http2 {
    let mut http2 = Http2::connect(gateway, Role::Viewer).await;
    // SETTINGS_INITIAL_WINDOW_SIZE.
    http2.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]).await.unwrap();
    let page = v1::ListDevicesRequest {
        page_size: 1000,
        ..Default::default()
    };
    let mut message = vec![0, 0, 0, 0, u8::try_from(page.encoded_len()).unwrap()];
    page.encode(&mut message).unwrap();
    for stream in (0..streams).map(|i| 2 * i + 1) {
        http2.send(HEADERS, END_HEADERS, stream, &call_fields(LIST)).await.unwrap();
        http2.send(DATA, END_STREAM, stream, &message).await.unwrap();
    }
    http2
}

/// How many answers begin until nothing comes any more.
async fn answers(http2: &mut Http2) -> usize {
    let mut begun = 0;
    while let Ok(Some((kind, flags, _, _))) = tokio::time::timeout(Duration::from_secs(2), http2.receive()).await {
        begun += usize::from(kind == HEADERS && flags & END_STREAM == 0);
    }
    begun
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    let gateway = Gateway::new("unread").await;
    register(&gateway, 100).await;
    let mut http2 = asking(&gateway, 128).await;
    assert_eq!(answers(&mut http2).await, PLACES);
    // A byte of room has an answer handed to HTTP/2 as a whole, which keeps it.
    for stream in (0..128).map(|i| 2 * i + 1) {
        http2.send(WINDOW_UPDATE, 0, stream, &1_u32.to_be_bytes()).await.unwrap();
    }
    assert_eq!(answers(&mut http2).await, 0);
    // Others of its role are served.
    let made = pki::issue(&IssueArgs {
        role: Some(Role::Viewer),
        ..gateway.pki.args("another")
    })
    .unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let identity = tonic::transport::Identity::from_pem(read(made.certificate), read(made.key));
    let mut other = InspectServiceClient::new(gateway.endpoint(Some(identity)).connect().await.unwrap());
    other.list_pools(v1::ListPoolsRequest {}).await.unwrap();
    // And so is it, once it reads.
    let room = (1_u32 << 30).to_be_bytes();
    http2.send(WINDOW_UPDATE, 0, 0, &room).await.unwrap();
    http2
        .send(SETTINGS, 0, 0, &[[0, 4].as_slice(), &room].concat())
        .await
        .unwrap();
    let mut ended = 0;
    while ended < 128 {
        let frame = tokio::time::timeout(Duration::from_secs(20), http2.receive()).await;
        let (kind, flags, ..) = frame.expect("in time").expect("open");
        ended += usize::from(kind == HEADERS && flags & END_STREAM != 0);
    }
    gateway.stop().await;
}

#[tokio::test]
async fn who_does_not_read_does_not_keep_the_daemon_from_ending() {
    let gateway = Gateway::new("unended").await;
    register(&gateway, 100).await;
    let mut http2 = asking(&gateway, 8).await;
    assert_eq!(answers(&mut http2).await, 8);
    let begin = Instant::now();
    gateway.stop().await;
    assert!(begin.elapsed() < Duration::from_secs(15), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn pages_are_bounded_by_their_size_too() {
    let gateway = Gateway::new("pages").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    const MANY: usize = 300;
    let large = |i: usize| v1::DeviceRegistration {
        aliases: Some(v1::Aliases {
            common_names: (0..64).map(|n| format!("{i}-{n}-{}", "y".repeat(100))).collect(),
            ..Default::default()
        }),
        ..device(&format!("d-{i:03}"))
    };
    let request = v1::RegisterDevicesRequest {
        context: context("register"),
        devices: (0..MANY).map(large).collect(),
    };
    mdm.register_devices(request).await.unwrap();
    let (mut ids, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = v1::ListDevicesRequest {
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = mdm.list_devices(request).await.unwrap().into_inner();
        assert!(page.encoded_len() < 2 << 20);
        ids.extend(page.devices.into_iter().map(|d| d.device_id));
        (pages, page_token) = (pages + 1, page.next_page_token);
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..MANY).map(|i| format!("d-{i:03}")).collect();
    assert!(pages > 1 && ids == expected, "{pages} pages, {} devices", ids.len());
    gateway.stop().await;
}

#[tokio::test]
async fn messages_that_are_mostly_empty_elements_are_not_taken_apart() {
    let gateway = Gateway::new("padded").await;
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    let request = v1::RegisterDevicesRequest {
        context: context("padded"),
        devices: vec![v1::DeviceRegistration::default(); 100_000],
    };
    let e = mdm.register_devices(request).await.unwrap_err();
    assert_eq!((e.code(), reason(&e).as_str()), (Code::InvalidArgument, "MALFORMED"), "{e:?}");
    gateway.stop().await;
}
