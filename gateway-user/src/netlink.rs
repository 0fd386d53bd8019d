//! Asking rtnetlink and waiting for the answer, for callers that do not run as futures: what [`crate::links`] and [`crate::routes`] share.
//! Not here: what is asked for and why.
//!
//! Each call has a thread of its own, with a runtime and a socket. A caller may itself be inside a runtime, where waiting for a future
//! panics; and a socket belongs to the network namespace of the thread that opens it, which a new thread has from its parent.
//!
//! Messages go through [`rtnetlink::Handle::request`], not through the handles for links, routes and rules: those take an answer that
//! ends early for a success, and do not tell of a dump that the kernel marks as interrupted.

use std::{
    cell::Cell,
    io,
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
use tokio::time::timeout;

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
        let _too_late = answer.send(run(what));
    })?;
    answered.recv_timeout(LIMIT + GRACE).unwrap_or_else(|e| {
        Err(match e {
            RecvTimeoutError::Timeout => late(),
            RecvTimeoutError::Disconnected => io::Error::other("the thread that speaks netlink has panicked"),
        })
    })
}

fn run<T>(what: impl AsyncFnOnce(&mut Requests) -> io::Result<T>) -> io::Result<T> {
    block_on(async {
        let (mut requests, connection) = Requests::open()?;
        tokio::select! {
            biased;
            done = timeout(LIMIT, what(&mut requests)) => done.unwrap_or_else(|_| Err(late())),
            () = connection => Err(closed()),
        }
    })
}

/// Runs a future in a runtime of this thread's own.
pub(crate) fn block_on<T>(future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?
        .block_on(future)
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
    use std::time::Instant;

    use netlink_packet_route::link::LinkMessage;

    use super::*;

    #[test]
    fn what_never_ends_is_given_up() {
        let begun = Instant::now();
        let e = ask(async |_| std::future::pending::<io::Result<()>>().await).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < LIMIT + GRACE, "{:?}", begun.elapsed());
        // Nor can a thread that is stuck hold the caller.
        let e = ask(async |_| {
            thread::sleep(LIMIT + 4 * GRACE);
            Ok(())
        })
        .unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
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
