//! The Unix socket: who is who, and its file.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::{UnixListener, UnixStream},
    },
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use gateway_user::access::{
    listen::{BindError, Listeners},
    socket::SocketError,
};
use hyper_util::rt::TokioIo;
use lazaret_proto::v1::{self, inspect_service_client::InspectServiceClient};
use lazaret_tests::{process::until, require};
use nix::unistd::Group;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::gateway::{Gateway, Pki, reason};

/// Groups that every Linux has.
const VPN: &str = "daemon";
const VIEWER: &str = "sys";
const NOBODY: u32 = 65_534;

/// Connects as another user: credentials are those of the thread that connects, so a thread of its own drops them by system call
/// (the C library would change them for the whole process).
fn connect_as(path: &Path, uid: u32, gid: u32, groups: &[u32]) -> std::io::Result<UnixStream> {
    let (path, groups) = (path.to_owned(), groups.to_vec());
    let drop_and_connect = move || {
        let done = |rc: libc::c_long| {
            if rc == 0 {
                Ok(())
            } else {
                Err(std::io::Error::last_os_error())
            }
        };
        // SAFETY: the calls take numbers, and a pointer to as many group ids as they are told; they change this thread only, which
        // ends afterwards.
        unsafe {
            done(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
            done(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
            done(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
        }
        UnixStream::connect(path)
    };
    std::thread::spawn(drop_and_connect).join().unwrap()
}

/// A channel over a stream that is connected already.
async fn channel(stream: UnixStream) -> Channel {
    stream.set_nonblocking(true).unwrap();
    let stream = Arc::new(Mutex::new(Some(tokio::net::UnixStream::from_std(stream).unwrap())));
    let connector = tower::service_fn(move |_| {
        let stream = stream.lock().unwrap().take();
        async { stream.map(TokioIo::new).ok_or_else(|| std::io::Error::other("used already")) }
    });
    Endpoint::from_static("http://lazaret")
        .connect_with_connector(connector)
        .await
        .unwrap()
}

async fn status(stream: UnixStream) -> Result<v1::GetStatusResponse, Status> {
    let answer = InspectServiceClient::new(channel(stream).await)
        .get_status(v1::GetStatusRequest {})
        .await;
    answer.map(tonic::Response::into_inner)
}

async fn pools(stream: UnixStream) -> Result<usize, Status> {
    let answer = InspectServiceClient::new(channel(stream).await)
        .list_pools(v1::ListPoolsRequest {})
        .await;
    answer.map(|a| a.into_inner().pools.len())
}

#[tokio::test]
async fn by_credentials() {
    require!(Root);
    let group = |name| Group::from_name(name).unwrap().unwrap().gid.as_raw();
    let (vpn, viewer) = (group(VPN), group(VIEWER));
    let pki = Pki::new("credentials");
    // The kit's directory is closed to others; a real one is not.
    fs::set_permissions(pki.scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let gateway = Gateway::with(pki, |c| {
        c.socket.vpn_group = Some(VPN.into());
        c.socket.viewer_group = Some(VIEWER.into());
    })
    .await;
    let socket = gateway.socket.as_path();
    assert_eq!(
        fs::metadata(socket).unwrap().mode() & 0o777,
        0o666,
        "a file has one group; two are configured"
    );

    assert_eq!(
        pools(UnixStream::connect(socket).unwrap()).await.unwrap(),
        2,
        "root is operator"
    );
    // vpn may ask for the status, and nothing else of InspectService; by primary or supplementary group.
    for (gid, groups) in [(vpn, vec![]), (NOBODY, vec![7, vpn])] {
        assert!(status(connect_as(socket, NOBODY, gid, &groups).unwrap()).await.is_ok());
        let e = pools(connect_as(socket, NOBODY, gid, &groups).unwrap()).await.unwrap_err();
        assert_eq!((e.code(), reason(&e).as_str()), (Code::PermissionDenied, "ROLE_NOT_ALLOWED"));
    }
    assert_eq!(
        pools(connect_as(socket, NOBODY, NOBODY, &[viewer]).unwrap()).await.unwrap(),
        2,
        "viewer reads"
    );
    // More groups than fit at first.
    let many: Vec<u32> = (100_000..100_300).chain([viewer]).collect();
    assert_eq!(pools(connect_as(socket, NOBODY, NOBODY, &many).unwrap()).await.unwrap(), 2);
    for (uid, gid, groups) in [(NOBODY, NOBODY, vec![]), (1, NOBODY, vec![0]), (NOBODY, 0, vec![])] {
        let e = status(connect_as(socket, uid, gid, &groups).unwrap()).await.unwrap_err();
        assert_eq!(
            (e.code(), reason(&e).as_str()),
            (Code::Unauthenticated, "NOT_AUTHORISED"),
            "{uid} {gid}"
        );
    }
    gateway.stop().await;
}

#[tokio::test]
async fn the_file_is_tight_and_goes_with_the_daemon() {
    require!(Root);
    let pki = Pki::new("file");
    fs::set_permissions(pki.scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let gateway = Gateway::with(pki, |_| {}).await;
    let socket = gateway.socket.clone();
    let metadata = fs::metadata(&socket).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.uid(), metadata.gid()), (0o660, 0, 0));
    let directory = fs::metadata(socket.parent().unwrap()).unwrap();
    assert_eq!((directory.mode() & 0o777, directory.uid()), (0o755, 0));
    let e = connect_as(&socket, NOBODY, NOBODY, &[]).unwrap_err();
    assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied);

    // A second daemon finds the first.
    let config = {
        let mut c = gateway.pki.config(&second_certificate(&gateway.pki));
        c.socket.path.clone_from(&socket);
        c
    };
    assert!(matches!(
        Listeners::bind(&config),
        Err(BindError::Socket(SocketError::InUse(_)))
    ));
    assert!(
        status(UnixStream::connect(&socket).unwrap()).await.is_ok(),
        "and the first goes on"
    );
    let pki = gateway.stop().await;
    assert!(!socket.exists());

    // What a dead daemon left is removed, what is not a socket is not.
    drop(UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    // A process that another test is about to start holds a copy of the listener until it runs its program.
    until(Duration::from_secs(5), "nobody listens", || {
        Ok(UnixStream::connect(&socket).is_err())
    })
    .unwrap();
    drop(Listeners::bind(&config).unwrap());
    assert!(!socket.exists(), "a listener that never served takes its file along");
    fs::write(&socket, "precious").unwrap();
    assert!(matches!(
        Listeners::bind(&config),
        Err(BindError::Socket(SocketError::NotASocket(_)))
    ));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
    fs::remove_file(&socket).unwrap();

    // A directory in which others could put a socket of theirs.
    fs::set_permissions(socket.parent().unwrap(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        Listeners::bind(&config),
        Err(BindError::Socket(SocketError::Directory { .. }))
    ));
    drop(pki);
}

#[tokio::test]
async fn one_group_gets_the_file() {
    require!(Root);
    let pki = Pki::new("group");
    let mut config = pki.config(&pki.server());
    config.socket.vpn_group = Some(VPN.into());
    let listeners = Listeners::bind(&config).unwrap();
    let metadata = fs::metadata(&config.socket.path).unwrap();
    let gid = Group::from_name(VPN).unwrap().unwrap().gid.as_raw();
    assert_eq!((metadata.mode() & 0o777, metadata.gid()), (0o660, gid));
    drop(listeners);
    config.socket.viewer_group = Some("no-such-group".into());
    assert!(matches!(
        Listeners::bind(&config),
        Err(BindError::Socket(SocketError::UnknownGroup(_)))
    ));
}

/// A reader who opens connections until there is no place left keeps neither the operator nor the VPN server's hook out.
#[tokio::test]
async fn one_user_does_not_have_all_places() {
    require!(Root);
    let viewer = Group::from_name(VIEWER).unwrap().unwrap().gid.as_raw();
    let pki = Pki::new("one-user");
    fs::set_permissions(pki.scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let gateway = Gateway::with(pki, |c| c.socket.viewer_group = Some(VIEWER.into())).await;
    let mut held = Vec::new();
    for _ in 0..300 {
        let mut stream = connect_as(&gateway.socket, NOBODY, NOBODY, &[viewer]).unwrap();
        // It begins as HTTP/2 does, with empty settings.
        let begun = stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        begun.unwrap();
        held.push(stream);
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pools(UnixStream::connect(&gateway.socket).unwrap()).await.unwrap(), 2, "root");
    let open = held.iter_mut().filter_map(|stream| {
        stream.set_nonblocking(true).unwrap();
        let mut bytes = [0; 256];
        // The settings of the other side, and then nothing, not its end.
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(e) => return (e.kind() == std::io::ErrorKind::WouldBlock).then_some(()),
            }
        }
    });
    assert_eq!(open.count(), 64);
    gateway.stop().await;
}

fn second_certificate(pki: &Pki) -> gateway_user::pki::Made {
    use gateway_user::pki::{IssueArgs, issue};
    issue(&IssueArgs {
        server: true,
        dns: vec!["second.test".into()],
        ..pki.args("second")
    })
    .unwrap()
}
