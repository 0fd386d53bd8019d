//! The listeners. Both are bound before anything else is touched. A connection reaches HTTP/2 only after its handshake and the client's
//! connection preface, within a time limit; how many may be under way, and how many open, is bounded.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use nix::sys::socket::{self as sockets, Backlog, getsockopt, sockopt::PeerCredentials};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{service::Routes, transport::Server};

use super::{
    connection::{Connection, PREFACE},
    connections::Place,
    gate::Gate,
    handshakes::{Handshakes, Origin},
    live::Access,
    peer::Peer,
    refusals::Refusals,
    socket::{self, SocketError},
    tls::TlsError,
    transport::CALL_TIMEOUT,
};
use crate::config::Config;

/// A peer that is silent for so long is asked whether it lives,
const KEEPALIVE: Duration = Duration::from_secs(30);
/// and has so long to answer.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// Most bytes of a request's headers.
const MAX_HEADERS: u32 = 16 << 10;
/// Most bytes of a stream that a peer may send before they are read,
const STREAM_WINDOW: u32 = 64 << 10;
/// and of a connection. The HTTP/2 library allows half of it for what small DATA frames cost beside their bytes and closes the connection
/// beyond that, so that it has to be far more than a stream's: a stream of signals is small frames, and is not read while it is busy.
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Streams that a peer may reset before they are taken in (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 32;

/// Connections of local processes, and the limits of `[api]` when the network API is not configured.
const LOCAL: Limits = Limits {
    connections: 256,
    streams: 128,
    handshake: Duration::from_secs(5),
};
/// Of these, those of one user who is not root: the operator's tools and the VPN server's hook find places.
const LOCAL_OF_ONE_USER: usize = 64;
/// A local connection without a call for so long is closed.
const LOCAL_IDLE: Duration = Duration::from_secs(15 * 60);

/// Both listeners, bound.
#[derive(Debug)]
pub struct Listeners {
    access: Access,
    tcp: Option<Tcp>,
    unix: socket::Bound,
}

#[derive(Debug)]
struct Tcp {
    listener: std::net::TcpListener,
    address: SocketAddr,
    limits: Limits,
    vpn_without_source: bool,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    connections: usize,
    streams: u32,
    handshake: Duration,
}

/// Why a listener could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Certificates or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The Unix socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The TCP port, for instance in use.
    #[error("cannot listen on {address} (api.listen): {error}")]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        error: io::Error,
    },
}

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener could not be handed to the runtime.
    #[error("listener: {0}")]
    Listener(#[from] io::Error),
    /// HTTP/2 serving ended with an error.
    #[error("server: {0}")]
    Transport(#[from] tonic::transport::Error),
}

impl Listeners {
    /// Reads certificates and key, binds the TCP port and makes the Unix socket. Touches nothing else.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(config: &Config) -> Result<Self, BindError> {
        let access = Access::open(config)?;
        let tcp = match &config.api {
            None => None,
            Some(api) => {
                let failed = |error| BindError::Tcp {
                    address: api.listen,
                    error,
                };
                let listener = std::net::TcpListener::bind(api.listen).map_err(failed)?;
                // A longer queue than the library's 128: who waits in it has no place that others could be given.
                sockets::listen(&listener, Backlog::MAXALLOWABLE).map_err(|e| failed(e.into()))?;
                listener.set_nonblocking(true).map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?;
                let limits = Limits {
                    connections: api.max_connections,
                    streams: api.max_streams,
                    handshake: api.handshake_timeout,
                };
                Some(Tcp {
                    listener,
                    address,
                    limits,
                    vpn_without_source: api.vpn_without_source,
                })
            }
        };
        let unix = socket::open(&config.socket)?;
        Ok(Self { access, tcp, unix })
    }

    /// What is trusted, and who is connected.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access.clone()
    }

    /// Where the network API listens; the port that the kernel chose, if the configuration says 0.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|t| t.address)
    }

    /// Serves on both until `stopped` is true and the connections have ended.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub async fn serve(self, routes: Routes, refusals: Refusals, stopped: watch::Receiver<bool>) -> Result<(), ServeError> {
        let Self { access, tcp, unix } = self;
        let gate = Gate::new(refusals);
        let tended = access.tend(stopped.clone());
        let served = async {
            let local = serve_unix(unix, access.clone(), routes.clone(), gate.clone(), stopped.clone());
            match tcp {
                Some(tcp) => tokio::try_join!(serve_tcp(tcp, access.clone(), routes, gate, stopped), local).map(drop),
                None => local.await,
            }
        };
        // A listener that breaks ends the daemon; looking after them ends with it.
        let (mut tended, mut served) = (pin!(tended), pin!(served));
        tokio::select! {
            ended = &mut served => ended,
            () = &mut tended => served.await,
        }
    }
}

async fn serve_tcp(
    tcp: Tcp,
    access: Access,
    routes: Routes,
    gate: Gate,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let Tcp {
        listener,
        address,
        limits,
        vpn_without_source,
    } = tcp;
    let listener = TcpListener::from_std(listener)?;
    tracing::info!(%address, "the API listens");
    let handshake = move |(stream, remote): (tokio::net::TcpStream, SocketAddr)| {
        let access = access.clone();
        async move {
            stream.set_nodelay(true)?;
            let trust = access.trust().ok_or_else(|| io::Error::other("no network API"))?;
            let acceptor = TlsAcceptor::from(Arc::clone(&trust.config));
            let stream = acceptor.accept(stream).await.map_err(|e| annotate(&e, &remote.to_string()))?;
            let chain: Vec<_> = stream.get_ref().1.peer_certificates().unwrap_or_default().to_vec();
            let leaf = chain.first().ok_or_else(|| io::Error::other("no client certificate"))?;
            let peer = Peer::from_certificate(leaf, vpn_without_source);
            tracing::debug!(%remote, peer = peer.name(), "connected");
            let enter = Box::new(move |peer: &Peer| access.enter(peer, &chain, &trust)) as Enter;
            Ok((stream, peer, enter))
        }
    };
    serve_on(listener, handshake, limits, routes, gate, stopped).await
}

async fn serve_unix(
    bound: socket::Bound,
    access: Access,
    routes: Routes,
    gate: Gate,
    stopped: watch::Receiver<bool>,
) -> Result<(), ServeError> {
    let socket::Bound { listener, file, groups } = bound;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let handshake = move |stream: tokio::net::UnixStream| {
        let access = access.clone();
        async move {
            let peer = groups.peer(&stream)?;
            let enter = Box::new(move |peer: &Peer| access.enter_local(peer, LOCAL_OF_ONE_USER, LOCAL_IDLE)) as Enter;
            Ok((stream, peer, enter))
        }
    };
    let served = serve_on(listener, handshake, LOCAL, routes, gate, stopped).await;
    drop(file);
    served
}

/// Takes a connection in, once its client has shown that it speaks HTTP/2; `None`: not any more, or one too many of this client.
type Enter = Box<dyn FnOnce(&Peer) -> Option<Place> + Send>;

/// What connections come from.
trait Accept {
    /// As it comes.
    type Stream;
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    fn origin(stream: &Self::Stream) -> Origin;
}

impl Accept for TcpListener {
    type Stream = (tokio::net::TcpStream, SocketAddr);
    async fn accept(&self) -> io::Result<Self::Stream> {
        TcpListener::accept(self).await
    }
    fn origin((_, remote): &Self::Stream) -> Origin {
        Origin::of(remote.ip())
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn accept(&self) -> io::Result<Self::Stream> {
        UnixListener::accept(self).await.map(|(stream, _)| stream)
    }
    fn origin(stream: &Self::Stream) -> Origin {
        Origin::user(getsockopt(stream, PeerCredentials).map_or(u32::MAX, |c| c.uid()))
    }
}

/// Accepts and serves until told to stop.
async fn serve_on<A, H, F, S>(
    listener: A,
    handshake: H,
    limits: Limits,
    routes: Routes,
    gate: Gate,
    mut stopped: watch::Receiver<bool>,
) -> Result<(), ServeError>
where
    A: Accept,
    H: Fn(A::Stream) -> F,
    F: Future<Output = io::Result<(S, Peer, Enter)>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (made, connections) = mpsc::channel(16);
    let stop = async move {
        // An error means that the daemon is gone: stop as well.
        let _ = stopped.wait_for(|s| *s).await;
    };
    let server = Server::builder()
        .timeout(CALL_TIMEOUT)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(Some(STREAM_WINDOW))
        .initial_connection_window_size(Some(CONNECTION_WINDOW))
        .max_concurrent_streams(limits.streams)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .layer(gate);
    let incoming = ReceiverStream::new(connections).map(Ok::<_, Infallible>);
    let serving = server.serve_with_incoming_shutdown(routes, incoming, stop);
    let accepting = accept_loop(listener, handshake, limits, made);
    let ((), served) = tokio::join!(accepting, serving);
    Ok(served?)
}

/// Accepts until nobody takes the connections any more. A connection over a limit is closed at once: its client learns it now, and the
/// kernel's queue stays free for others.
async fn accept_loop<A, H, F, S>(listener: A, handshake: H, limits: Limits, made: mpsc::Sender<Connection<S>>)
where
    A: Accept,
    H: Fn(A::Stream) -> F,
    F: Future<Output = io::Result<(S, Peer, Enter)>> + Send + 'static,
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // Two bounds, so that peers that have shown nothing cannot hold the places of those that have.
    let under_way = Handshakes::new(limits.connections);
    let open = Arc::new(Semaphore::new(limits.connections));
    // Peers without a role only hear that they have none; a few of them at a time are enough.
    let strangers = Arc::new(Semaphore::new((limits.connections / 8).max(1)));
    loop {
        let accepted = tokio::select! {
            a = listener.accept() => a,
            () = made.closed() => return,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors or memory, mostly: what is open goes on, and some of it will end.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let origin = A::origin(&stream);
        let mut place = under_way.begin(origin);
        let (shaken, open, strangers, made) = (handshake(stream), open.clone(), strangers.clone(), made.clone());
        let under_way = under_way.clone();
        tokio::spawn(async move {
            let ready = tokio::time::timeout(limits.handshake, ready(shaken));
            let ready = tokio::select! {
                biased;
                ready = ready => ready.unwrap_or_else(|_| Err(io::Error::other("the handshake took too long"))),
                () = place.lost() => Err(io::Error::other("too many handshakes are under way, and this one's network has most of them")),
            };
            let (stream, peer, enter) = match ready {
                Ok(ready) => ready,
                Err(error) => return failed(&under_way, false, &error),
            };
            drop(place);
            let known = matches!(peer, Peer::Known { .. });
            let places = if known { open } else { strangers };
            // An error: the server has stopped.
            let Ok(general) = places.try_acquire_owned() else {
                let problem = format!("{}: there are too many connections", peer.name());
                return failed(&under_way, known, &io::Error::other(problem));
            };
            let Some(own) = enter(&peer) else {
                let problem = "its client has as many connections as it may, or is no longer trusted";
                return failed(&under_way, known, &io::Error::other(format!("{}: {problem}", peer.name())));
            };
            if known {
                under_way.know(origin);
            }
            // An error: the server has stopped.
            let _ = made.send(Connection::new(stream, peer, own, general)).await;
        });
    }
}

/// Whose handshake is done, and who has begun to speak HTTP/2.
async fn ready<S: AsyncRead + Unpin>(shaken: impl Future<Output = io::Result<(S, Peer, Enter)>>) -> io::Result<(S, Peer, Enter)> {
    let (mut stream, peer, enter) = shaken.await?;
    let mut preface = [0; PREFACE.len()];
    stream.read_exact(&mut preface).await?;
    if &preface == PREFACE {
        Ok((stream, peer, enter))
    } else {
        Err(io::Error::other("not HTTP/2"))
    }
}

fn failed(handshakes: &Handshakes, has_role: bool, error: &io::Error) {
    match handshakes.may_say(has_role) {
        Some(left_out) if has_role => tracing::warn!(%error, left_out, "a connection is closed"),
        Some(left_out) => tracing::info!(%error, left_out, "a connection came to nothing"),
        None => {}
    }
}

fn annotate(error: &io::Error, remote: &str) -> io::Error {
    io::Error::new(error.kind(), format!("TLS handshake with {remote}: {error}"))
}
