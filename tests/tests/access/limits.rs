//! What a client may cost, tried by clients that are out to cost more: HTTP/2 by hand, over the real TLS.

use std::time::{Duration, Instant};

use gateway_user::{
    model::Role,
    pki::{self, IssueArgs},
};
use lazaret_proto::v1::{self, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient};

use crate::{
    gateway::{Gateway, Pki, context, device},
    raw::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, GOAWAY, HEADERS, Http2, OtherCa, RST_STREAM,
        SETTINGS, call_fields, fields, params, status,
    },
};

const STATUS: &str = "/lazaret.v1.InspectService/GetStatus";
const WATCH: &str = "/lazaret.v1.InspectService/WatchDenials";
const REGISTER: &str = "/lazaret.v1.DeviceService/RegisterDevices";
/// A message of no bytes: not compressed, length 0.
const EMPTY: [u8; 5] = [0; 5];
const WINDOW_UPDATE: u8 = 8;
const REFUSED_STREAM: u32 = 7;

/// Others are served, whatever goes on.
async fn still_serves(gateway: &Gateway) {
    let served = tokio::time::timeout(
        Duration::from_secs(5),
        status(gateway.endpoint(Some(gateway.pki.client(Role::Operator)))),
    );
    served.await.expect("in time").expect("served");
}

/// Reads until a frame is found, or the other side closes.
async fn find(http2: &mut Http2, mut is: impl FnMut(&Frame) -> bool) -> Option<Frame> {
    let found = async {
        loop {
            match http2.receive().await {
                Some(frame) if is(&frame) => return Some(frame),
                Some(_) => {}
                None => return None,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.expect("in time")
}

fn code(payload: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(payload[at..at + 4].try_into().unwrap())
}

#[tokio::test]
async fn concurrent_streams() {
    let gateway = Gateway::with(Pki::new("streams"), |c| c.api.as_mut().unwrap().max_streams = 2).await;
    let mut http2 = Http2::connect(&gateway, Role::Viewer).await;
    let (_, _, _, settings) = find(&mut http2, |f| f.0 == SETTINGS && f.1 == 0).await.unwrap();
    let most = settings.chunks_exact(6).find(|s| s[..2] == [0, 3]).map(|s| code(s, 2));
    assert_eq!(most, Some(2), "SETTINGS_MAX_CONCURRENT_STREAMS");
    for stream in [1, 3, 5] {
        http2.send(HEADERS, END_HEADERS, stream, &call_fields(WATCH)).await.unwrap();
        http2.send(DATA, END_STREAM, stream, &EMPTY).await.unwrap();
    }
    let reset = find(&mut http2, |f| f.0 == RST_STREAM).await.expect("one too many is reset");
    assert_eq!((reset.2, code(&reset.3, 0)), (5, REFUSED_STREAM));
    still_serves(&gateway).await;
    gateway.stop().await;
}

#[tokio::test]
async fn streams_that_are_reset_at_once() {
    let gateway = Gateway::new("rapid").await;
    let mut http2 = Http2::connect(&gateway, Role::Viewer).await;
    // CVE-2023-44487: each stream costs the client nothing. What cannot be sent any more was cut.
    let mut sent = 0_u32;
    for stream in (1..200_000).step_by(2) {
        let opened = http2
            .send(HEADERS, END_HEADERS | END_STREAM, stream, &call_fields(STATUS))
            .await;
        if opened.is_err() || http2.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes()).await.is_err() {
            break;
        }
        sent += 1;
    }
    println!("{sent} streams were opened and reset");
    assert!(sent < 100_000, "it must be cut: {sent} were taken");
    // Its GOAWAY may be lost in the reset of the connection.
    let said = tokio::time::timeout(Duration::from_secs(10), http2.until_closed())
        .await
        .expect("closed");
    assert!(said.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{said:?}");
    still_serves(&gateway).await;
    gateway.stop().await;
}

#[tokio::test]
async fn headers_that_are_too_large_or_never_end() {
    let gateway = Gateway::new("headers").await;
    let large = "x".repeat(1000);
    let mut list: Vec<(&str, &str)> = vec![
        (":method", "POST"),
        (":scheme", "https"),
        (":path", STATUS),
        (":authority", "x"),
    ];
    list.extend(std::iter::repeat_n(("x-large", large.as_str()), 20));
    let mut http2 = Http2::connect(&gateway, Role::Viewer).await;
    let block = fields(&list);
    let (first, rest) = block.split_at(16_000);
    http2.send(HEADERS, END_STREAM, 1, first).await.unwrap();
    http2.send(CONTINUATION, END_HEADERS, 1, rest).await.unwrap();
    let answer = find(&mut http2, |f| f.2 == 1 || f.0 == GOAWAY).await;
    match answer {
        // ":status: 431", by entry 8 of the static table and Huffman (RFC 7541).
        Some((HEADERS, _, 1, payload)) => assert_eq!(payload.get(..5), Some(&b"\x48\x83\x69\x90\xff"[..])),
        Some((RST_STREAM | GOAWAY, ..)) | None => {}
        other => panic!("20,000 bytes of headers are taken: {other:?}"),
    }
    // CVE-2024-27316: a header block without an end.
    let mut http2 = Http2::connect(&gateway, Role::Viewer).await;
    http2.send(HEADERS, 0, 1, &call_fields(STATUS)).await.unwrap();
    let more = fields(&[("x-more", &large)]);
    let mut sent = 0;
    while sent < 64 << 20 && http2.send(CONTINUATION, 0, 1, &more.repeat(16)).await.is_ok() {
        sent += more.len() * 16;
    }
    assert!(sent < 64 << 20, "it must be cut");
    still_serves(&gateway).await;
    gateway.stop().await;
}

#[tokio::test]
async fn silence_and_dribbling() {
    let gateway = Gateway::with(Pki::new("idle"), |c| {
        c.api.as_mut().unwrap().idle_timeout = Duration::from_secs(1);
    })
    .await;
    let closes = async |what: &str, start: Instant, http2: &mut Http2| {
        tokio::time::timeout(Duration::from_secs(15), http2.until_closed())
            .await
            .unwrap_or_else(|_| panic!("{what}: still open"));
        assert!(start.elapsed() > Duration::from_millis(500), "{what}: at once");
    };
    let start = Instant::now();
    closes("silence", start, &mut Http2::connect(&gateway, Role::Viewer).await).await;
    let start = Instant::now();
    let mut half = Http2::connect(&gateway, Role::Viewer).await;
    half.send(HEADERS, 0, 1, &call_fields(STATUS)).await.unwrap();
    closes("half a header block", start, &mut half).await;

    // Pings and a header block that grows by a byte now and then make no call either.
    let mut dribbles = Http2::connect(&gateway, Role::Viewer).await;
    dribbles.send(HEADERS, 0, 1, &call_fields(STATUS)).await.unwrap();
    let start = Instant::now();
    while dribbles.send(CONTINUATION, 0, 1, &[]).await.is_ok() && start.elapsed() < Duration::from_secs(15) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() < Duration::from_secs(15), "dribbling: still open");

    // One with a stream goes on, for longer than an idle one may.
    let mut client = InspectServiceClient::new(gateway.channel(Role::Viewer).await);
    let request = v1::WatchDenialsRequest::default();
    let mut watch = client.watch_denials(request).await.unwrap().into_inner();
    watch.message().await.unwrap();
    let quiet = tokio::time::timeout(Duration::from_secs(4), watch.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    gateway.stop().await;
}

/// The body of a call comes byte by byte: the call ends, and with it its place.
#[tokio::test]
async fn a_body_that_never_ends() {
    let gateway = Gateway::new("body-drip").await;
    let mut http2 = Http2::connect(&gateway, Role::Mdm).await;
    http2.send(HEADERS, END_HEADERS, 1, &call_fields(REGISTER)).await.unwrap();
    http2.send(DATA, 0, 1, &[0, 0, 1, 0, 0]).await.unwrap();
    let start = Instant::now();
    loop {
        let _ = http2.send(DATA, 0, 1, &[0]).await;
        let frame = tokio::time::timeout(Duration::from_secs(1), http2.receive()).await;
        match frame {
            Ok(Some((HEADERS | RST_STREAM, _, 1, _)) | None) => break,
            Ok(Some(_)) | Err(_) => assert!(start.elapsed() < Duration::from_secs(40), "still read"),
        }
    }
    assert!(
        start.elapsed() > Duration::from_secs(25),
        "not at once: {:?}",
        start.elapsed()
    );
    still_serves(&gateway).await;
    gateway.stop().await;
}

/// The body of a client without a role, or of a call that its role may not make, is not taken in: it gets the answer, and no window to send more.
#[tokio::test]
async fn nothing_is_buffered_for_who_may_not() {
    let other = OtherCa::new(&[]);
    let pki = Pki::new("unbuffered");
    let file = pki.scratch.path().join("other.pem");
    std::fs::write(&file, &other.pem).unwrap();
    let gateway = Gateway::with(pki, move |c| c.api.as_mut().unwrap().client_ca.push(file)).await;
    let nobody = other.sign(&params("nobody", &[]));
    assert_eq!(
        status(gateway.endpoint(Some(nobody))).await.unwrap_err().unwrap().code(),
        tonic::Code::Unauthenticated
    );

    let mut http2 = Http2::connect(&gateway, Role::Viewer).await;
    http2.send(HEADERS, END_HEADERS, 1, &call_fields(REGISTER)).await.unwrap();
    // Less than the 65,535 bytes that a stream begins with.
    for _ in 0..3 {
        http2.send(DATA, 0, 1, &[0; 16_384]).await.unwrap();
    }
    let mut answered = false;
    let mut deadline = Instant::now() + Duration::from_secs(30);
    while let Ok(Some((kind, _, stream, payload))) = tokio::time::timeout_at(deadline.into(), http2.receive()).await {
        if kind == HEADERS && stream == 1 {
            answered = true;
            deadline = Instant::now() + Duration::from_secs(2);
        }
        assert!(
            !(kind == WINDOW_UPDATE && stream == 1 && code(&payload, 0) > 0),
            "it asks for more of the body"
        );
    }
    assert!(answered);
    gateway.stop().await;
}

#[tokio::test]
async fn connections_of_one_client() {
    let gateway = Gateway::with(Pki::new("per-client"), |c| {
        c.api.as_mut().unwrap().max_connections_per_client = 2;
    })
    .await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut client = InspectServiceClient::new(gateway.channel(Role::Viewer).await);
        client.get_status(v1::GetStatusRequest {}).await.unwrap();
        open.push(client);
    }
    let third = gateway.endpoint(Some(gateway.pki.client(Role::Viewer)));
    assert!(status(third.clone()).await.is_err(), "the third of this client is closed");
    still_serves(&gateway).await;
    open[0]
        .get_status(v1::GetStatusRequest {})
        .await
        .expect("those that are open go on");
    open.pop();
    let deadline = Instant::now() + Duration::from_secs(30);
    while status(third.clone()).await.is_err() {
        assert!(Instant::now() < deadline, "a place comes free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    gateway.stop().await;
}

/// One MDM begins more calls than are worked on, and never ends them: another is served.
#[tokio::test]
async fn one_client_does_not_keep_another_waiting() {
    let gateway = Gateway::new("hog").await;
    let mut hogs = Vec::new();
    for _ in 0..2 {
        let mut http2 = Http2::connect(&gateway, Role::Mdm).await;
        for stream in (1..200).step_by(2) {
            http2
                .send(HEADERS, END_HEADERS, stream, &call_fields(REGISTER))
                .await
                .unwrap();
            http2.send(DATA, 0, stream, &[0, 0, 1, 0, 0]).await.unwrap();
        }
        hogs.push(http2);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let made = pki::issue(&IssueArgs {
        role: Some(Role::Mdm),
        ..gateway.pki.args("another")
    })
    .unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let identity = tonic::transport::Identity::from_pem(read(made.certificate), read(made.key));
    let mut other = DeviceServiceClient::new(gateway.endpoint(Some(identity)).connect().await.unwrap());
    let request = v1::RegisterDevicesRequest {
        context: context("r"),
        devices: vec![device("phone")],
    };
    let served = tokio::time::timeout(Duration::from_secs(10), other.register_devices(request)).await;
    served.expect("at once").unwrap();
    drop(hogs);
    gateway.stop().await;
}
