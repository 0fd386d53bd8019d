//! A connection that is served: a stream with its peer, which breaks when the peer's certificate ends and when it is cut. It knows nothing of
//! how it was made.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::SystemTime,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::Sleep,
};
use tonic::transport::server::Connected;

use super::{
    connections::{Activity, Place},
    peer::Peer,
};

/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
pub(super) const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection with its peer, whose preface has been read and is given to the server again. It breaks when the peer's certificate ends,
/// and when it is cut, so that a stream that was opened in time does not go on for ever.
#[derive(Debug)]
pub(super) struct Connection<S> {
    stream: S,
    preface_read: usize,
    caller: Caller,
    end: Option<Pin<Box<Sleep>>>,
    place: Place,
    cut: Option<&'static str>,
    _general: OwnedSemaphorePermit,
}

/// What each call of a connection is told.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Who is at the other end.
    pub(super) peer: Peer,
    /// Of the connection.
    pub(super) activity: Activity,
}

impl<S> Connection<S> {
    pub(super) fn new(stream: S, peer: Peer, place: Place, general: OwnedSemaphorePermit) -> Self {
        let end = peer
            .lifetime(SystemTime::now())
            .map(|left| Box::pin(tokio::time::sleep(left)));
        let activity = place.activity.clone();
        Self {
            stream,
            preface_read: 0,
            caller: Caller { peer, activity },
            end,
            place,
            cut: None,
            _general: general,
        }
    }

    /// Whether it goes on. Asked before each reading and each writing: a peer that does not read would keep HTTP/2 from reading, too.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.end.as_mut().is_some_and(|end| end.as_mut().poll(cx).is_ready()) {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer's certificate has expired"));
        }
        if self.cut.is_none()
            && let Poll::Ready(Ok(why)) = Pin::new(&mut self.place.cut).poll(cx)
        {
            self.cut = Some(why);
        }
        self.cut
            .map_or(Ok(()), |why| Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)))
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        self.caller.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let left = &PREFACE[self.preface_read..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buffer);
        }
        let n = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..n]);
        self.preface_read += n;
        Poll::Ready(Ok(()))
    }
}

/// Not vectored: HTTP/2 then copies a message of up to 1 KiB behind its headers, so that an answer with its trailers is one TLS record and
/// one system call, not two.
impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
