//! The exporter's listener: HTTP/1.1, `GET /metrics` and nothing else, one answer a connection. What a client may take is bounded; who it is
//! does not matter, since it is on this host and gets what is no secret.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
};

use super::Exporter;
use crate::{
    access::socket::{self, SocketError, SocketFile},
    config::Metrics,
};

/// Connections at a time. Further ones are closed.
const CONNECTIONS: usize = 16;
/// Longest that a request's head may take,
const HEAD: Duration = Duration::from_secs(5);
/// and a connection as a whole.
const WHOLE: Duration = Duration::from_secs(20);
/// Most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// OpenMetrics 1.0.0, section "Protocol Negotiation".
const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A listener, bound.
#[derive(Debug)]
pub enum Bound {
    /// On a loopback address.
    Port(std::net::TcpListener),
    /// On a file, which goes with it.
    Socket(std::os::unix::net::UnixListener, SocketFile),
}

/// Why it could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The port, for instance in use.
    #[error("cannot listen on {address} (metrics.listen): {error}")]
    Port {
        /// Which.
        address: SocketAddr,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// The socket.
    #[error("metrics.listen: {0}")]
    Socket(#[from] SocketError),
}

impl Bound {
    /// Binds the port, or makes the socket with mode 0660.
    ///
    /// # Errors
    /// See [`BindError`].
    pub fn bind(config: &Metrics) -> Result<Self, BindError> {
        match config {
            Metrics::Port(address) => {
                let failed = |error| BindError::Port {
                    address: *address,
                    error,
                };
                let listener = std::net::TcpListener::bind(address).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                Ok(Self::Port(listener))
            }
            Metrics::Socket { path, group } => {
                let gid = socket::group(group.as_deref())?;
                let (listener, file) = socket::listening(path, gid, 0o660)?;
                Ok(Self::Socket(listener, file))
            }
        }
    }

    /// Answers scrapes until told to stop.
    pub async fn serve(self, exporter: Exporter, mut stopped: watch::Receiver<bool>) {
        let counting = exporter.clone();
        let serving = async move {
            let Err(e) = match self {
                Self::Port(listener) => match TcpListener::from_std(listener) {
                    Ok(listener) => serve(listener, exporter).await,
                    Err(e) => Err(e),
                },
                Self::Socket(listener, _file) => {
                    match listener.set_nonblocking(true).and_then(|()| UnixListener::from_std(listener)) {
                        Ok(listener) => serve(listener, exporter).await,
                        Err(e) => Err(e),
                    }
                }
            };
            tracing::error!("metrics are not exported any more: {e}");
        };
        tokio::select! {
            () = serving => {}
            () = counting.count() => {}
            // An error means that the daemon is gone.
            _ = stopped.wait_for(|s| *s) => {}
        }
    }
}

/// What connections come from.
trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn next(&self) -> io::Result<Self::Stream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

async fn serve(listener: impl Accept, exporter: Exporter) -> io::Result<Infallible> {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let stream = match listener.next().await {
            Ok(stream) => stream,
            Err(error) => {
                // Out of descriptors, mostly: some will be free again.
                tracing::warn!(%error, "a scrape's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!(most = CONNECTIONS, "too many scrapes at a time; a connection is closed");
            continue;
        };
        let exporter = exporter.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let exporter = exporter.clone();
                async move { Ok::<_, Infallible>(answer(&exporter, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .keep_alive(false)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(WHOLE, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "a scrape failed"),
                Err(_) => tracing::debug!("a scrape took too long"),
            }
        });
    }
}

async fn answer(exporter: &Exporter, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics\n");
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = plain(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match exporter.scrape().await {
        Ok(text) => {
            let mut response = Response::new(Full::new(text));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(TYPE));
            response
        }
        Err(error) => {
            tracing::warn!("metrics cannot be told now: {error}");
            let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "not now\n");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
    }
}
