//! A client with a certificate that has the gateway work for nothing: others are served meanwhile, and it is cut where HTTP/2 has a limit.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_user::model::Role;
use lazaret_proto::v1::{self, inspect_service_client::InspectServiceClient};

use crate::{
    gateway::Gateway,
    raw::{CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Http2, RST_STREAM, SETTINGS, call_fields, fields},
};

const REGISTER: &str = "/lazaret.v1.DeviceService/RegisterDevices";
const STATUS: &str = "/lazaret.v1.InspectService/GetStatus";
const PRIORITY: u8 = 2;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// Longest that a call of another client takes beside a flood, in a test that has the machine for itself far less than others.
const SERVED: Duration = Duration::from_secs(5);

/// What is sent again and again: the nth time.
type Nth = fn(u32) -> Vec<(u8, u8, u32, Vec<u8>)>;

const FLOODS: &[(&str, Nth)] = &[
    ("PING", |_| vec![(PING, 0, 0, vec![7; 8])]),
    ("SETTINGS", |n| {
        let window = 65_535 + n % 2;
        vec![(SETTINGS, 0, 0, [&[0, 4][..], &window.to_be_bytes()].concat())]
    }),
    ("PRIORITY", |n| vec![(PRIORITY, 0, 2 * n + 1, vec![0, 0, 0, 0, 16])]),
    ("WINDOW_UPDATE", |_| vec![(WINDOW_UPDATE, 0, 0, vec![0, 0, 0, 1])]),
    ("frames of no type", |_| vec![(0xbe, 0, 0, vec![0; 64])]),
    ("DATA of no bytes", |n| {
        let mut frames = vec![(DATA, 0, 1, vec![])];
        if n == 0 {
            frames.insert(0, (HEADERS, END_HEADERS, 1, call_fields(REGISTER)));
        }
        frames
    }),
    ("CONTINUATION of no bytes", |n| {
        let first = (HEADERS, 0, 1, call_fields(STATUS));
        if n == 0 {
            vec![first]
        } else {
            vec![(CONTINUATION, 0, 1, vec![])]
        }
    }),
    ("calls that are reset", |n| {
        let stream = 2 * n + 1;
        vec![
            (HEADERS, END_HEADERS | END_STREAM, stream, call_fields(STATUS)),
            (RST_STREAM, 0, stream, vec![0, 0, 0, 8]),
        ]
    }),
    ("calls of no method", |n| {
        let path = format!("/lazaret.v1.No{n}/Method");
        vec![(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, call_fields(&path))]
    }),
    ("calls without a path", |n| {
        vec![(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, fields(&[(":method", "POST")]))]
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_floods_a_connection_keeps_nobody_waiting() {
    let gateway = Gateway::new("floods").await;
    for (what, nth) in FLOODS {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut flooding = Vec::new();
        for _ in 0..3 {
            let mut http2 = Http2::connect(&gateway, Role::Viewer).await;
            let (stop, sent) = (stop.clone(), sent.clone());
            flooding.push(tokio::spawn(async move {
                // What it is answered is not read: that must not be kept for it.
                for n in 0..1 << 24 {
                    for (kind, flags, stream, payload) in nth(n) {
                        let sending = http2.send(kind, flags, stream, &payload);
                        let done = tokio::time::timeout(Duration::from_millis(500), sending).await;
                        if stop.load(Ordering::Relaxed) || !matches!(done, Ok(Ok(()))) {
                            return stop.load(Ordering::Relaxed);
                        }
                    }
                    sent.fetch_add(1, Ordering::Relaxed);
                }
                false
            }));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut longest = Duration::ZERO;
        for _ in 0..5 {
            let begin = Instant::now();
            let mut other = InspectServiceClient::new(gateway.channel(Role::Operator).await);
            let served = tokio::time::timeout(SERVED, other.get_status(v1::GetStatusRequest {})).await;
            served.unwrap_or_else(|_| panic!("{what}: another is not served")).unwrap();
            longest = longest.max(begin.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        let mut open = 0;
        for flood in flooding {
            open += u8::from(flood.await.unwrap());
        }
        let sent = sent.load(Ordering::Relaxed);
        println!("{what}: {sent} sent, {open} of 3 went on, another one's longest call took {longest:?}");
    }
    gateway.stop().await;
}
