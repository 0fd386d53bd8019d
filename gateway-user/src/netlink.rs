//! Asking rtnetlink and waiting for the answer, for callers that do not run as futures: what [`crate::links`] and [`crate::routes`] share.
//! Not here: what is asked for and why.
//!
//! [`ask`] is for anyone: each call has a thread of its own, with a runtime and a socket. A caller may itself be inside a runtime, where
//! waiting for a future panics; and a socket belongs to the network namespace of the thread that opens it, which a new thread has from its
//! parent. [`Kept`] is for a thread that asks again and again and may be held up: it has one runtime and one socket for all calls.
//!
//! Messages go through [`rtnetlink::Handle::request`], not through the handles for links, routes and rules: those take an answer that
//! ends early for a success, and do not tell of a dump that the kernel marks as interrupted.

use std::{
    cell::Cell,
    io,
    pin::Pin,
    sync::mpsc::{RecvTimeoutError, sync_channel},
    task::{Context, Poll, ready},
    thread,
    time::Duration,
};

use bytes::BufMut;
use futures_util::StreamExt as _;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    Handle,
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{AsyncSocket, Socket, SocketAddr, TokioSocket},
};
use tokio::{
    runtime::{Handle as RuntimeHandle, Runtime},
    time::timeout,
};

/// Within this a call ends. The kernel answers in microseconds, unless someone holds its lock of the network configuration.
pub(crate) const LIMIT: Duration = Duration::from_secs(3);
/// More for the thread, which has the same limit, to say so itself.
const GRACE: Duration = Duration::from_millis(500);

/// Runs `what` with a connection in the caller's network namespace, and waits. `what` is given up after [`LIMIT`]: no request follows the
/// one that is under way then.
///
/// # Errors
/// Those of `what`; TimedOut; those of opening the socket and starting the thread.
pub(crate) fn ask<T: Send + 'static>(what: impl AsyncFnOnce(&mut Requests) -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (answer, answered) = sync_channel(1);
    // Sending a request can block in the kernel, beyond any runtime's reach: then the thread is left behind and ends when it can.
    thread::Builder::new().name("netlink".to_owned()).spawn(move || {
        let _too_late = answer.send(Open::new().and_then(|mut open| open.run(what)));
    })?;
    answered.recv_timeout(LIMIT + GRACE).unwrap_or_else(|e| {
        Err(match e {
            RecvTimeoutError::Timeout => late(),
            RecvTimeoutError::Disconnected => io::Error::other("the thread that speaks netlink has panicked"),
        })
    })
}

/// Runs a future in a runtime of this thread's own.
pub(crate) fn block_on<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    runtime()?.block_on(future)
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
}

/// A connection that stays open between calls, in the network namespace of the first caller. While the kernel does not take a request, the
/// caller stays in the kernel with it, beyond [`LIMIT`]; no thread is left behind.
#[derive(Default)]
pub(crate) struct Kept(Option<Open>);

struct Open {
    /// There until the end.
    runtime: Option<Runtime>,
    requests: Requests,
    /// Moves the messages of `requests`.
    connection: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Kept {
    /// As [`ask`], without its thread. Inside a runtime it is [`ask`].
    ///
    /// # Errors
    /// Those of `what`, TimedOut; those of opening the socket. The next call has a new connection.
    pub(crate) fn ask<T: Send + 'static>(
        &mut self,
        what: impl AsyncFnOnce(&mut Requests) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        if RuntimeHandle::try_current().is_ok() {
            return ask(what);
        }
        // Back in its place only when all is answered: what comes late is no answer to another request.
        let mut open = match self.0.take() {
            Some(open) => open,
            None => Open::new()?,
        };
        let answer = open.run(what)?;
        self.0 = Some(open);
        Ok(answer)
    }
}

impl Open {
    fn new() -> io::Result<Self> {
        let runtime = runtime()?;
        let (requests, connection) = runtime.block_on(async { Requests::open() })?;
        Ok(Self {
            runtime: Some(runtime),
            requests,
            connection: Box::pin(connection),
        })
    }

    fn run<T>(&mut self, what: impl AsyncFnOnce(&mut Requests) -> io::Result<T>) -> io::Result<T> {
        let (requests, connection) = (&mut self.requests, &mut self.connection);
        self.runtime.as_ref().ok_or_else(closed)?.block_on(async {
            tokio::select! {
                biased;
                done = timeout(LIMIT, what(requests)) => done.unwrap_or_else(|_| Err(late())),
                () = connection => Err(closed()),
            }
        })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Whoever drops it may be inside a runtime, where waiting for another's end panics.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Requests on a connection.
pub(crate) struct Requests(Handle);

impl Requests {
    /// A connection in the network namespace of this thread. The future moves its messages, and ends if the socket fails. Only inside a
    /// runtime.
    pub(crate) fn open() -> io::Result<(Self, impl Future<Output = ()> + Send + 'static)> {
        // Strict: the kernel sends those routes that were asked for, not all that the host has, which may be a million.
        let (mut connection, handle, unasked) = rtnetlink::new_connection_with_socket::<OneByOne>()?;
        connection.socket_mut().socket_ref().set_netlink_get_strict_chk(true)?;
        // What ends an answer is told too: without it, it did not end.
        connection.set_forward_done(true);
        connection.set_forward_ack(true);
        Ok((Self(handle), async move {
            connection.await;
            // Held until here: without a receiver, each such message is a line in the log.
            drop(unasked);
        }))
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) async fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut answers = self.send(message, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(e) = answer.payload {
                return if e.code.is_none() { Ok(()) } else { Err(e.to_io()) };
            }
        }
        Err(closed())
    }

    /// Sends a request that one object answers.
    pub(crate) async fn one(&mut self, message: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        let mut answers = self.send(message, NLM_F_REQUEST)?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(m) => return Ok(m),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                _ => {}
            }
        }
        Err(closed())
    }

    /// Every object of a kind that `decode` makes something of. A dump during which something changed is begun anew.
    pub(crate) async fn dump<T>(
        &mut self,
        message: RouteNetlinkMessage,
        decode: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        // A bound, so that a storm of changes cannot hold the caller; the next change comes with a message of its own.
        for _ in 0..16 {
            if let Some(all) = self.dump_once(message.clone(), &decode).await? {
                return Ok(all);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            "the kernel's list changed during each of 16 attempts to read it",
        ))
    }

    /// `None`: the kernel marked it as interrupted.
    async fn dump_once<T>(
        &mut self,
        message: RouteNetlinkMessage,
        decode: impl Fn(RouteNetlinkMessage) -> Option<T>,
    ) -> io::Result<Option<Vec<T>>> {
        let (mut all, mut whole) = (Vec::new(), true);
        let mut answers = self.send(message, NLM_F_REQUEST | NLM_F_DUMP)?;
        while let Some(answer) = answers.next().await {
            whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(m) => all.extend(decode(m)),
                NetlinkPayload::Done(end) if end.code == 0 => return Ok(whole.then_some(all)),
                NetlinkPayload::Done(end) => return Err(io::Error::from_raw_os_error(end.code.wrapping_neg())),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                _ => {}
            }
        }
        Err(closed())
    }

    fn send(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<impl futures_util::Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin + use<>> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        // The only error: nobody moves the messages any more.
        self.0.request(message).map_err(|_| closed())
    }
}

/// A socket that lets others run after each datagram. A connection reads for as long as there is something, and the next part of a dump
/// is there whenever one has been read: it would hold the whole list decoded, 15 KiB an interface, before the first is looked at.
struct OneByOne {
    socket: TokioSocket,
    /// A datagram has been read since others ran.
    read: Cell<bool>,
}

impl OneByOne {
    fn one<T>(&self, cx: &mut Context<'_>, read: impl FnOnce(&mut Context<'_>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.read.take() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let result = ready!(read(cx));
        self.read.set(true);
        Poll::Ready(result)
    }
}

impl AsyncSocket for OneByOne {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self {
            socket: TokioSocket::new(protocol)?,
            read: Cell::new(false),
        })
    }

    fn poll_send(&self, cx: &mut Context<'_>, message: &[u8]) -> Poll<io::Result<usize>> {
        self.socket.poll_send(cx, message)
    }

    fn poll_send_to(&self, cx: &mut Context<'_>, message: &[u8], to: &SocketAddr) -> Poll<io::Result<usize>> {
        self.socket.poll_send_to(cx, message, to)
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, into: &mut B) -> Poll<io::Result<()>> {
        self.one(cx, |cx| self.socket.poll_recv(cx, into))
    }

    fn poll_recv_from<B: BufMut>(&self, cx: &mut Context<'_>, into: &mut B) -> Poll<io::Result<SocketAddr>> {
        self.one(cx, |cx| self.socket.poll_recv_from(cx, into))
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        self.one(cx, |cx| self.socket.poll_recv_from_full(cx))
    }
}

pub(crate) fn late() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        format!("no answer by netlink within {} s", LIMIT.as_secs()),
    )
}

pub(crate) fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the netlink socket has failed")
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn what_never_ends_is_given_up() {
        let e = ask(async |_| std::future::pending::<io::Result<()>>().await).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        // Nor can a thread that is stuck hold the caller.
        let e = ask(async |_| {
            thread::sleep(LIMIT + 4 * GRACE);
            Ok(())
        })
        .unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn a_kept_connection_answers_again_and_is_made_anew_after_a_failure() {
        let link = |index: u32| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            RouteNetlinkMessage::GetLink(message)
        };
        let loopback = async move |r: &mut Requests| r.one(link(1)).await.map(drop);
        let mut kept = Kept::default();
        for _ in 0..100 {
            kept.ask(loopback).unwrap();
            assert!(kept.0.is_some());
        }
        let e = kept
            .ask(async |_| std::future::pending::<io::Result<()>>().await)
            .unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(kept.0.is_none(), "an answer may come to what was given up");
        kept.ask(loopback).unwrap();
        // Where a future may not be waited for, another thread waits; nor is the connection's runtime waited for at its end.
        runtime().unwrap().block_on(async {
            kept.ask(loopback).unwrap();
            drop(kept);
        });
    }

    #[test]
    fn a_panic_is_an_error() {
        let e = ask(async |_| -> io::Result<()> { panic!("as a defect would") }).unwrap_err();
        assert!(e.to_string().contains("panicked"), "{e}");
    }

    #[test]
    fn the_kernels_refusals_are_errors() {
        // No privilege is needed for either.
        let none = LinkMessage::default();
        let dump = ask(async |r| r.dump(RouteNetlinkMessage::NewLink(none), Some).await.map(drop)).unwrap_err();
        assert!(dump.raw_os_error().is_some(), "{dump}");
        let mut absent = LinkMessage::default();
        absent.header.index = i32::MAX.cast_unsigned();
        let change = ask(async |r| r.change(RouteNetlinkMessage::GetLink(absent), 0).await).unwrap_err();
        assert_eq!(change.raw_os_error(), Some(libc::ENODEV), "{change}");
    }

    #[test]
    fn a_connection_without_mover_is_closed() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let e = runtime.block_on(async {
            let (mut requests, connection) = Requests::open().unwrap();
            drop(connection);
            requests
                .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), Some)
                .await
                .unwrap_err()
        });
        assert_eq!(e.kind(), io::ErrorKind::BrokenPipe);
    }
}
