//! The gate in front of every service: from the connection's peer and the RPC's path to "may" or "may not", before a byte of the request's
//! body is read. It also bounds how many requests of a role are taken in at a time.

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Instant, SystemTime},
};

use http_body_util::BodyExt as _;
use tokio::sync::Semaphore;
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
};
use tower::Layer;

use super::{
    answer::status,
    listen::Caller,
    peer::Peer,
    refusals::{Refusals, Who},
    roles::{self, Rpc, allowed},
    transport::{self, AnswerBy},
};
use crate::model::{Identity, Role};

/// Requests of one role that are read and worked on at a time; more wait. With the size of a message, this bounds memory. Each role has its
/// own places, so that readers do not keep the MDM waiting; so have its restrictions, so that releases do not keep them waiting.
const IN_FLIGHT: usize = 128;
/// Of these, those of one client: one MDM does not keep another waiting.
const OF_ONE_CLIENT: usize = 64;

/// Puts a [`Gated`] in front of a service.
#[derive(Clone, Debug)]
pub struct Gate {
    roles: [[Arc<Semaphore>; 2]; 4],
    clients: Clients,
    refusals: Refusals,
}

impl Gate {
    /// All places are free.
    #[must_use]
    pub fn new(refusals: Refusals) -> Self {
        let places = || Arc::new(Semaphore::new(IN_FLIGHT));
        Self {
            roles: std::array::from_fn(|_| [places(), places()]),
            clients: Clients::default(),
            refusals,
        }
    }
}

/// The places of clients that have requests now, by client, role, and whether they restrict.
#[derive(Clone, Debug, Default)]
struct Clients(Arc<Mutex<HashMap<Client, Arc<Semaphore>>>>);

type Client = (Arc<str>, Role, bool);

/// One client's places, for as long as a request of it needs them.
struct Places {
    all: Clients,
    client: Client,
    places: Arc<Semaphore>,
}

impl Clients {
    fn of(&self, client: Client) -> Places {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Semaphore::new(OF_ONE_CLIENT));
        let places = Arc::clone(all.entry(client.clone()).or_insert_with(new));
        Places {
            all: self.clone(),
            client,
            places,
        }
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else has it but the table; who wants it waits for the table.
        if Arc::strong_count(&self.places) == 2 {
            all.remove(&self.client);
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
        let slots = self.gate.roles[identity.role as usize][usize::from(rpc.restricts)].clone();
        let own = self.gate.clients.of((identity.client.clone(), identity.role, rpc.restricts));
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
            let (Ok(_own), Ok(_slot)) = (own.places.acquire().await, slots.acquire().await) else {
                return Ok(status(Code::Unavailable, "BUSY", [], "the gateway is shutting down").into_http());
            };
            // The call goes on for as long as its answer does.
            let answer = ready.call(request).await?;
            Ok(answer.map(|body| {
                Body::new(body.map_frame(move |frame| {
                    let _under_way = &call;
                    frame
                }))
            }))
        });
        Box::pin(async move { Ok(refusals.refer_response(&who, rpc.path, answered.await?).await) })
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
                let sentence = format!("the role {role} may not call this");
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

    #[test]
    fn a_client_has_its_own_places_for_as_long_as_it_needs_them() {
        let clients = Clients::default();
        let of = |name: &str, restricts| clients.of((name.into(), Role::Mdm, restricts));
        let (one, again, restriction, other) = (of("a", false), of("a", false), of("a", true), of("b", false));
        let held: Vec<_> = (0..OF_ONE_CLIENT).map(|_| one.places.try_acquire().unwrap()).collect();
        assert!(again.places.try_acquire().is_err());
        assert!(restriction.places.try_acquire().is_ok() && other.places.try_acquire().is_ok());
        drop(held);
        assert!(again.places.try_acquire().is_ok());
        let known = || clients.0.lock().unwrap().len();
        assert_eq!(known(), 3);
        drop((one, other));
        assert_eq!(known(), 2, "another request of the first still needs its own");
        drop((again, restriction));
        assert_eq!(known(), 0, "nothing is kept of who has gone");
    }

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
        assert_eq!(reason(Some(&known(Role::Operator, None)), path), Ok(Role::Operator));
        let denied = (Code::PermissionDenied, "ROLE_NOT_ALLOWED".into());
        assert_eq!(reason(Some(&known(Role::Viewer, later)), path), Err(denied));
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
