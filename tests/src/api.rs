//! The gRPC clients of the tests and the demo, blocking: an MDM over mTLS from a namespace, or a local tool over the Unix socket.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use lazaret_proto::v1::{
    self as pb, device_service_client::DeviceServiceClient, inspect_service_client::InspectServiceClient,
    operator_service_client::OperatorServiceClient, policy_service_client::PolicyServiceClient,
    session_service_client::SessionServiceClient,
};
use tonic::{
    Status,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::netns::Namespace;

/// What a call answers.
pub type Answer<T> = Result<T, Status>;

/// A client's certificate, its key, and the CA that it trusts: paths of PEM files.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Chain, leaf first.
    pub certificate: PathBuf,
    /// Key.
    pub key: PathBuf,
    /// CA of the server.
    pub ca: PathBuf,
}

macro_rules! call {
    ($client:expr, $service:ident, $method:ident, $request:expr) => {{
        let mut service = $client.$service();
        $client
            .runtime
            .block_on(service.$method($request))
            .map(tonic::Response::into_inner)
    }};
}

/// A connection to the gateway's API.
#[derive(Debug)]
pub struct Client {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
}

/// Longest that any call of a test may take.
const LIMIT: Duration = Duration::from_secs(20);

impl Client {
    /// By the Unix socket, as root: an operator.
    ///
    /// # Errors
    /// Nothing listens there.
    pub fn local(socket: &Path) -> Result<Self> {
        let runtime = runtime()?;
        let path = socket.to_owned();
        let connect = tower::service_fn(move |_: http::Uri| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost").timeout(LIMIT);
        let channel = runtime.block_on(endpoint.connect_with_connector(connect));
        let channel = channel.with_context(|| format!("cannot connect to {}", socket.display()))?;
        Ok(Self { runtime, channel })
    }

    /// By mTLS from inside `from`; the server's certificate must name `name`.
    ///
    /// # Errors
    /// Nothing listens, or the handshake fails.
    pub fn remote(from: &Namespace, to: SocketAddr, name: &str, credentials: &Credentials) -> Result<Self> {
        let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let tls = ClientTlsConfig::new()
            .domain_name(name)
            .ca_certificate(Certificate::from_pem(read(&credentials.ca)?))
            .identity(Identity::from_pem(read(&credentials.certificate)?, read(&credentials.key)?));
        let runtime = runtime()?;
        let from = from.clone();
        let connect = tower::service_fn(move |_: http::Uri| {
            let from = from.clone();
            async move {
                let stream = from.run(|| std::net::TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Ok::<_, std::io::Error>(TokioIo::new(tokio::net::TcpStream::from_std(stream)?))
            }
        });
        let endpoint = Endpoint::from_shared(format!("https://{name}"))?
            .tls_config(tls)?
            .timeout(LIMIT);
        let channel = runtime.block_on(endpoint.connect_with_connector(connect));
        Ok(Self {
            runtime,
            channel: channel.with_context(|| format!("cannot connect to {to}"))?,
        })
    }

    /// Runs something that needs the connection's runtime.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The connection, for calls that this kit has no words for.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Registers a device.
    ///
    /// # Errors
    /// The gateway's.
    pub fn register(&self, id: &str, pool: &str) -> Answer<pb::RegisterDevicesResponse> {
        self.register_as(id, pool, &format!("owner of {id}"))
    }

    /// Registers a device of this owner.
    ///
    /// # Errors
    /// The gateway's.
    pub fn register_as(&self, id: &str, pool: &str, owner: &str) -> Answer<pb::RegisterDevicesResponse> {
        let device = pb::DeviceRegistration {
            device_id: id.into(),
            owner: owner.into(),
            full_service_pool: pool.into(),
            aliases: None,
            window: None,
        };
        let request = pb::RegisterDevicesRequest {
            context: Some(context()),
            devices: vec![device],
        };
        call!(self, devices, register_devices, request)
    }

    /// Reports its policy as applied.
    ///
    /// # Errors
    /// The gateway's.
    pub fn applied(&self, id: &str) -> Answer<pb::SignalResponse> {
        self.applied_with(id, String::new())
    }

    /// Offers it a policy, and gives the temporary key.
    ///
    /// # Errors
    /// The gateway's.
    pub fn offer(&self, id: &str) -> Answer<String> {
        let request = pb::OfferPolicyRequest {
            context: Some(context()),
            device_id: id.into(),
            policy_revision: "baseline-7".into(),
        };
        Ok(call!(self, policies, offer_policy, request)?.temporary_key)
    }

    /// Takes its temporary key, and gives the final one.
    ///
    /// # Errors
    /// The gateway's.
    pub fn acknowledge(&self, id: &str, key: String) -> Answer<String> {
        let request = pb::AcknowledgePolicyRequest {
            context: Some(context()),
            device_id: id.into(),
            temporary_key: key,
        };
        Ok(call!(self, policies, acknowledge_policy, request)?.final_key)
    }

    /// Reports its policy as applied, with the final key.
    ///
    /// # Errors
    /// The gateway's.
    pub fn applied_with(&self, id: &str, key: String) -> Answer<pb::SignalResponse> {
        call!(self, devices, report_policy_applied, applied(id, key))
    }

    /// Reports its policy as applied, by a stream of its own.
    ///
    /// # Errors
    /// The gateway's; a refusal is FAILED_PRECONDITION.
    pub fn applied_by_stream(&self, id: &str) -> Answer<pb::Enforcement> {
        let message = pb::ReportPolicyRequest {
            signal: Some(pb::report_policy_request::Signal::Applied(applied(id, String::new()))),
        };
        let mut answers = call!(self, policies, report_policy, tokio_stream::iter([message]))?;
        let answer = self.runtime.block_on(answers.message())?;
        let answer = answer.ok_or_else(|| Status::unavailable("the stream has ended without an answer"))?;
        match &answer.refusal {
            None => Ok(answer.enforcement()),
            Some(refusal) => Err(Status::failed_precondition(refusal.reason.clone())),
        }
    }

    /// Releases it by hand for an hour, as an operator does.
    ///
    /// # Errors
    /// The gateway's.
    pub fn excepted(&self, id: &str) -> Answer<pb::SignalResponse> {
        let request = pb::GrantExceptionRequest {
            context: Some(context()),
            device_id: id.into(),
            kind: pb::ExceptionKind::Release.into(),
            reason: "its user stands at the desk".into(),
            length_seconds: 3600,
        };
        call!(self, operator, grant_exception, request)
    }

    /// Renews its lease.
    ///
    /// # Errors
    /// The gateway's.
    pub fn renewed(&self, id: &str) -> Answer<pb::RenewLeasesResponse> {
        let request = pb::RenewLeasesRequest {
            context: Some(context()),
            device_ids: vec![id.into()],
        };
        call!(self, policies, renew_leases, request)
    }

    /// Reports its policy as revoked.
    ///
    /// # Errors
    /// The gateway's.
    pub fn revoked(&self, id: &str) -> Answer<pb::SignalResponse> {
        let request = pb::ReportPolicyRevokedRequest {
            context: Some(context()),
            device_id: id.into(),
            reason: "the PIN was removed".into(),
            policy_revision: String::new(),
        };
        call!(self, devices, report_policy_revoked, request)
    }

    /// A device.
    ///
    /// # Errors
    /// The gateway's.
    pub fn device(&self, id: &str) -> Answer<pb::Device> {
        let answer = call!(self, devices, get_device, pb::GetDeviceRequest { device_id: id.into() })?;
        answer.device.ok_or_else(|| Status::internal("no device in the answer"))
    }

    /// Opens a session, as a VPN server does.
    ///
    /// # Errors
    /// The gateway's.
    pub fn open(&self, source: &str, device: &str, addresses: &[&str], interface: &str) -> Answer<pb::OpenSessionResponse> {
        let session = pb::SessionReport {
            device_name: device.into(),
            certificate_sha256: String::new(),
            prefixes: addresses.iter().map(ToString::to_string).collect(),
            interface: interface.into(),
            vpn_public_key: String::new(),
        };
        let request = pb::OpenSessionRequest {
            context: Some(context()),
            source: source.into(),
            session: Some(session),
        };
        call!(self, sessions, open_session, request)
    }

    /// Reports all sessions of a source: device, addresses, interface of each.
    ///
    /// # Errors
    /// The gateway's.
    pub fn synchronise(&self, source: &str, sessions: &[(&str, &[&str], &str)]) -> Answer<pb::SynchroniseSessionsResponse> {
        let report = |(device, addresses, interface): &(&str, &[&str], &str)| pb::SessionReport {
            device_name: (*device).into(),
            certificate_sha256: String::new(),
            prefixes: addresses.iter().map(ToString::to_string).collect(),
            interface: (*interface).into(),
            vpn_public_key: String::new(),
        };
        let request = pb::SynchroniseSessionsRequest {
            context: Some(context()),
            source: source.into(),
            sessions: sessions.iter().map(report).collect(),
        };
        call!(self, sessions, synchronise_sessions, request)
    }

    /// Closes a session.
    ///
    /// # Errors
    /// The gateway's.
    pub fn close(&self, session_id: u64) -> Answer<pb::CloseSessionResponse> {
        call!(
            self,
            sessions,
            close_session,
            pb::CloseSessionRequest {
                context: Some(context()),
                session_id
            }
        )
    }

    /// Live sessions.
    ///
    /// # Errors
    /// The gateway's.
    pub fn list_sessions(&self) -> Answer<Vec<pb::Session>> {
        Ok(call!(self, sessions, list_sessions, pb::ListSessionsRequest::default())?.sessions)
    }

    /// Status.
    ///
    /// # Errors
    /// The gateway's.
    pub fn status(&self) -> Answer<pb::GetStatusResponse> {
        call!(self, inspect, get_status, pb::GetStatusRequest {})
    }

    /// One address, as the kernel map has it.
    ///
    /// # Errors
    /// The gateway's.
    pub fn address(&self, address: &str) -> Answer<pb::Address> {
        let request = pb::ListAddressesRequest {
            address: address.into(),
            limit: 0,
            page_token: String::new(),
        };
        let answer = call!(self, inspect, list_addresses, request)?;
        answer
            .addresses
            .into_iter()
            .next()
            .ok_or_else(|| Status::not_found(address.to_owned()))
    }

    /// How many packets a reason has counted, over all pools.
    ///
    /// # Errors
    /// The gateway's.
    pub fn counted(&self, reason: &str) -> Answer<u64> {
        let answer = call!(self, inspect, get_counters, pb::GetCountersRequest::default())?;
        Ok(answer.counters.iter().filter(|c| c.reason == reason).map(|c| c.packets).sum())
    }

    /// The last denials.
    ///
    /// # Errors
    /// The gateway's.
    pub fn denials(&self) -> Answer<Vec<pb::Denial>> {
        Ok(call!(self, inspect, list_denials, pb::ListDenialsRequest::default())?.denials)
    }

    fn devices(&self) -> DeviceServiceClient<Channel> {
        DeviceServiceClient::new(self.channel.clone())
    }
    fn operator(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel.clone())
    }
    fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel.clone())
    }
    fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }
    fn inspect(&self) -> InspectServiceClient<Channel> {
        InspectServiceClient::new(self.channel.clone())
    }
}

fn applied(id: &str, key: String) -> pb::ReportPolicyAppliedRequest {
    pb::ReportPolicyAppliedRequest {
        context: Some(context()),
        device_id: id.into(),
        policy_revision: "baseline-7".into(),
        policy_key: key,
    }
}

/// What stands in a request that changes something, seen now.
#[must_use]
pub fn context() -> pb::SignalContext {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    pb::SignalContext {
        request_id: format!("test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
        observed_at: Some(SystemTime::now().into()),
        ..Default::default()
    }
}

/// Whether an answer's every reading of every address was as wanted, and there were some.
#[must_use]
pub fn read_back_everywhere(prefixes: &[pb::PrefixEnforcement]) -> bool {
    let whole =
        |p: &pb::PrefixEnforcement| !p.read_backs.is_empty() && p.read_backs.iter().all(|r| r.as_wanted && !r.not_attached);
    !prefixes.is_empty() && prefixes.iter().all(whole)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?)
}
