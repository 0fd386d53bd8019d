//! The gate in front of every service: from the connection's peer and the RPC's path to "may" or "may not", before a byte of the request's
//! body is read. It also bounds how many requests of a role are taken in at a time.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
};
use tower::Layer;

use super::{
    answer::status,
    connection::Caller,
    peer::Peer,
    refusals::{Refusals, Who},
    roles::{self, Rpc, allowed},
    shares::{Places, Shares, Taken},
    transport::{self, AnswerBy},
};
use crate::model::{Identity, Place};

/// Requests of one role that are read and worked on at a time; more wait. With the size of a message, this bounds memory. Each role has its
/// own places, so that readers do not keep the MDM waiting; so have its restrictions, so that releases do not keep them waiting. A
/// restriction that is decided has no place any more: other ones do not wait for its answer.
const IN_FLIGHT: usize = 128;
/// Of these, those of one client: one MDM does not keep another waiting. An answer that is large has its client's place until it has gone out:
/// whoever asks and does not read has no more of them in memory.
const OF_ONE_CLIENT: usize = 64;
/// Bytes from which an answer is large.
const LARGE: usize = 4096;
/// Streams of the services of the gRPC ecosystem (health, reflection); those of the API have their own places. Of one client a quarter.
const STREAMS: usize = 64;

/// Puts a [`Gated`] in front of a service.
#[derive(Clone, Debug)]
pub struct Gate {
    roles: [[Arc<Semaphore>; 2]; 4],
    /// Those of clients that have requests now; those of their restrictions.
    clients: [Shares<Semaphore>; 2],
    streams: Places,
    refusals: Refusals,
}

impl Gate {
    /// All places are free.
    #[must_use]
    pub fn new(refusals: Refusals) -> Self {
        let places = || Arc::new(Semaphore::new(IN_FLIGHT));
        Self {
            roles: std::array::from_fn(|_| [places(), places()]),
            clients: <[_; 2]>::default(),
            streams: Places::new(STREAMS),
            refusals,
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated {
            gate: self.clone(),
            inner,
        }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    gate: Gate,
    inner: S,
}

impl<S> Service<http::Request<Body>> for Gated<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let caller = request.extensions().get::<Caller>();
        let peer = caller.map(|c| &c.peer);
        let call = caller.map(|c| c.activity.call());
        let (who, refusals) = (Who::at(peer), self.gate.refusals.clone());
        let (identity, rpc) = match judge(peer, request.uri().path(), SystemTime::now()) {
            Ok(found) => found,
            Err(status) => {
                let path = request.uri().path().to_owned();
                return Box::pin(async move { Ok(refusals.refer_response(&who, &path, status.into_http()).await) });
            }
        };
        let stream = match self.gate.stream(rpc, &identity) {
            Ok(stream) => stream,
            Err(status) => return Box::pin(async move { Ok(refusals.refer_response(&who, rpc.path, status.into_http()).await) }),
        };
        let slots = self.gate.roles[identity.role as usize][usize::from(rpc.restricts)].clone();
        let clients = &self.gate.clients[usize::from(rpc.restricts)];
        let own = clients.of(&identity, || Semaphore::new(OF_ONE_CLIENT));
        let time = transport::allowed(request.headers());
        request.extensions_mut().insert(identity);
        request.extensions_mut().insert(rpc);
        request.extensions_mut().insert(AnswerBy(Instant::now() + time));
        // The service that was polled ready is the one that is called; its clone is polled anew.
        let fresh = self.inner.clone();
        let mut ready = std::mem::replace(&mut self.inner, fresh);
        let (whose, ended) = (who.clone(), refusals.clone());
        let ending = move |trailers: &mut http::HeaderMap| ended.refer_trailers(&whose, rpc.path, trailers);
        let answered = transport::answered(time, ending, async move {
            // Its own first: whoever waits for that takes no place from others.
            let (Ok(own), Ok(slot)) = (own.acquire_owned().await, slots.acquire_owned().await) else {
                return Ok(status(Code::Unavailable, "BUSY", [], "the gateway is shutting down").into_http());
            };
            // It is given back at the answer; of what restricts as soon as it is decided: an answer may wait long for what is not to be had.
            let mut own = Some(own);
            let place = if rpc.restricts {
                let place = Place::held((own.take(), slot));
                request.extensions_mut().insert(place.clone());
                place
            } else {
                Place::held(slot)
            };
            let answer = ready.call(request).await?;
            drop(place);
            if rpc.streams {
                own = None;
            }
            // The call goes on for as long as its answer does.
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _under_way = (&call, &stream);
                    match (frame.into_data(), own.take()) {
                        (Ok(data), Some(own)) if data.len() >= LARGE => {
                            Frame::data(Bytes::from_owner(Unsent { data, _own: own }))
                        }
                        (Ok(data), _) => Frame::data(data),
                        (Err(frame), _) => frame,
                    }
                }))
            }))
        });
        Box::pin(async move { Ok(refusals.refer_response(&who, rpc.path, answered.await?).await) })
    }
}

impl Gate {
    /// A place for a stream that no service counts.
    fn stream(&self, rpc: &Rpc, by: &Identity) -> Result<Option<Taken>, Status> {
        if !rpc.streams || rpc.path.starts_with("/lazaret.") {
            return Ok(None);
        }
        self.streams.take(by).map(Some).map_err(|full| {
            let most = full.most().to_string();
            let sentence =
                format!("as many streams as one client, or all of them, may have of health and reflection ({most}) are open");
            status(Code::ResourceExhausted, "TOO_MANY_STREAMS", [("most", most)], &sentence)
        })
    }
}

/// An answer with its client's place, which is free once HTTP/2 has written the last byte of it, or given it up.
struct Unsent {
    data: Bytes,
    _own: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Who calls, if he may call this.
fn judge(peer: Option<&Peer>, path: &str, now: SystemTime) -> Result<(Identity, &'static Rpc), Status> {
    match peer {
        None => Err(status(Code::Unauthenticated, "NO_IDENTITY", [], "the caller is not known")),
        Some(Peer::Refused { reason, sentence, .. }) => Err(status(Code::Unauthenticated, reason, [], sentence)),
        Some(Peer::Known { shown: Some(shown), .. }) if shown.until < now => Err(status(
            Code::Unauthenticated,
            "CERTIFICATE_EXPIRED",
            [],
            "the certificate has expired since the connection was made",
        )),
        // As gRPC has it for a method that a server does not know: clients of a later version depend on it.
        Some(Peer::Known { .. }) if !roles::known(path) => {
            let sentence = "this gateway knows no such method";
            Err(status(Code::Unimplemented, "UNKNOWN_METHOD", [], sentence))
        }
        Some(Peer::Known { identity, .. }) => {
            let refused = || {
                let role = roles::name(identity.role);
                let sentence = format!("the role {role} may not call this; it is for {}", roles::may_call(path));
                status(
                    Code::PermissionDenied,
                    "ROLE_NOT_ALLOWED",
                    [("role", role.to_owned())],
                    &sentence,
                )
            };
            allowed(path, identity.role)
                .map(|rpc| (identity.clone(), rpc))
                .ok_or_else(refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic_types::StatusExt as _;

    use super::{super::peer::Shown, *};
    use crate::model::Role;

    #[test]
    fn judged_by_table_identity_and_time() {
        let now = SystemTime::now();
        let known = |role, until: Option<SystemTime>| Peer::Known {
            identity: Identity::unlimited(role, "x"),
            shown: until.map(|until| Shown {
                serial: String::new(),
                until,
            }),
        };
        let reason = |peer: Option<&Peer>, path: &str| {
            judge(peer, path, now)
                .map(|(i, _)| i.role)
                .map_err(|s| (s.code(), s.get_details_error_info().unwrap().reason))
        };
        let path = "/lazaret.v1.DeviceService/ReportPolicyApplied";
        let later = Some(now + Duration::from_secs(1));
        assert_eq!(reason(Some(&known(Role::Mdm, later)), path), Ok(Role::Mdm));
        let revoked = "/lazaret.v1.DeviceService/ReportPolicyRevoked";
        assert_eq!(reason(Some(&known(Role::Operator, None)), revoked), Ok(Role::Operator));
        let denied = (Code::PermissionDenied, "ROLE_NOT_ALLOWED".into());
        for role in [Role::Viewer, Role::Operator] {
            assert_eq!(reason(Some(&known(role, later)), path), Err(denied.clone()));
        }
        let unknown = (Code::Unimplemented, "UNKNOWN_METHOD".into());
        assert_eq!(reason(Some(&known(Role::Operator, later)), "/x"), Err(unknown));
        let ended = Some(now - Duration::from_secs(1));
        assert_eq!(
            reason(Some(&known(Role::Mdm, ended)), path),
            Err((Code::Unauthenticated, "CERTIFICATE_EXPIRED".into()))
        );
        assert_eq!(reason(None, path), Err((Code::Unauthenticated, "NO_IDENTITY".into())));
        let stranger = Peer::from_credentials(1000, &[], None, None);
        assert_eq!(
            reason(Some(&stranger), path),
            Err((Code::Unauthenticated, "NOT_AUTHORISED".into()))
        );
    }
}
