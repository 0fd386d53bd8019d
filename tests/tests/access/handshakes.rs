//! Peers that connect and show nothing: from one address or from thousands, they keep nobody out.

use std::{
    collections::VecDeque,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use gateway_user::model::Role;
use lazaret_proto::v1::{self, device_service_client::DeviceServiceClient};
use lazaret_tests::require;
use socket2::{Domain, Socket, Type};

use crate::gateway::{Gateway, Pki};

const MOST: usize = 32;

/// Of the nth connection.
type From<'a> = &'a dyn Fn(usize) -> [u8; 4];

/// Every address of 127.0.0.0/8 is this host's.
fn connect(from: [u8; 4], to: SocketAddr) -> Option<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    // Thousands of them must not use up the ports.
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::from(from), 0)).into()).unwrap();
    socket.connect(&to.into()).ok()?;
    Some(socket)
}

/// A gateway with few places, where a handshake may take for ever.
async fn gateway(label: &str) -> Gateway {
    Gateway::with(Pki::new(label), |config| {
        let api = config.api.as_mut().unwrap();
        (api.max_connections, api.handshake_timeout) = (MOST, Duration::from_secs(60));
    })
    .await
}

/// A new connection of the MDM's, and a call.
async fn mdm_is_served(gateway: &Gateway) {
    let mut mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
    mdm.list_devices(v1::ListDevicesRequest::default()).await.unwrap();
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test]
async fn silent_peers_hold_all_places_and_everyone_gets_in() {
    let gateway = gateway("silent").await;
    let lan = |i: usize| [127, 9, u8::try_from(i / 250 % 8).unwrap(), u8::try_from(1 + i % 250).unwrap()];
    let crowds: [(&str, From<'_>); 3] = [
        ("the MDM's own address", &|_| [127, 0, 0, 1]),
        ("another address", &|_| [127, 0, 0, 2]),
        ("2,000 addresses of a LAN", &lan),
    ];
    for (what, from) in crowds {
        let held: Vec<Option<Socket>> = (0..2000).map(|i| connect(from(i), gateway.address)).collect();
        pass(Duration::from_millis(200)).await;
        // Each of these has places of its own that it could lose.
        let mut ours = Vec::new();
        for _ in 0..MOST / 2 {
            let mdm = DeviceServiceClient::new(gateway.channel(Role::Mdm).await);
            mdm.clone()
                .list_devices(v1::ListDevicesRequest::default())
                .await
                .unwrap_or_else(|e| panic!("{what}: {e:?}"));
            ours.push(mdm);
        }
        let open = held.iter().flatten().filter(|s| is_open(s)).count();
        assert!((MOST / 2..=MOST).contains(&open), "{what}: {open} silent ones have a place");
        drop((held, ours));
        pass(Duration::from_millis(100)).await;
    }
    gateway.stop().await;
}

/// Nothing has come from the other side, nor its end.
fn is_open(socket: &Socket) -> bool {
    let mut byte = 0_u8;
    // SAFETY: the descriptor is open as long as `socket` lives, and one byte is written at most to a local that is one.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            (&raw mut byte).cast(),
            1,
            libc::MSG_DONTWAIT | libc::MSG_PEEK,
        )
    };
    got < 0 && std::io::Error::last_os_error().kind() == std::io::ErrorKind::WouldBlock
}

/// Thousands of connections a second, while the MDM comes again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_keeps_nobody_out() {
    require!(Root);
    let gateway = gateway("flood").await;
    let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let to = gateway.address;
    let flooding: Vec<_> = (0..2_u8)
        .map(|thread| {
            let (stop, made) = (stop.clone(), made.clone());
            std::thread::spawn(move || {
                let mut held = VecDeque::new();
                for i in 0_u32.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let [.., c, d] = i.to_be_bytes();
                    held.extend(connect([127, 20 + thread, c % 8, d.max(1)], to));
                    made.fetch_add(1, Ordering::Relaxed);
                    if held.len() > 1000 {
                        held.pop_front();
                    }
                }
            })
        })
        .collect();
    while made.load(Ordering::Relaxed) < 1000 {
        pass(Duration::from_millis(5)).await;
    }
    let begin = Instant::now();
    for _ in 0..30 {
        mdm_is_served(&gateway).await;
    }
    println!(
        "{} connections in the {:?} that 30 of the MDM's took",
        made.load(Ordering::Relaxed),
        begin.elapsed()
    );
    stop.store(true, Ordering::Relaxed);
    for thread in flooding {
        thread.join().unwrap();
    }
    gateway.stop().await;
}
