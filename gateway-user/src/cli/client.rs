//! The way to the daemon: gRPC over its Unix socket or a connection that another made, a deadline on every call, and what can go wrong as exit
//! codes.

use std::{
    collections::HashMap,
    fmt, io,
    path::Path,
    time::{Duration, SystemTime},
};

use hyper_util::rt::TokioIo;
use lazaret_proto::v1::{
    self, access_service_client::AccessServiceClient, device_service_client::DeviceServiceClient,
    inspect_service_client::InspectServiceClient, operator_service_client::OperatorServiceClient,
    policy_service_client::PolicyServiceClient, session_service_client::SessionServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::{ErrorInfo, StatusExt as _};

/// What went wrong, with its exit code; shown as one sentence.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The daemon refused the request.
    Refused {
        /// google.rpc.ErrorInfo.reason, or the code's name.
        reason: String,
        /// For people.
        message: String,
    },
    /// The caller's role may not do this.
    Denied {
        /// For people.
        message: String,
    },
    /// There is no way to the daemon.
    Unreachable {
        /// Which way.
        at: String,
        /// Why.
        why: String,
    },
    /// No answer within the deadline: what happened is unknown.
    Deadline(Duration),
    /// The answer lacks something that it must have.
    Answer(&'static str),
    /// Something on this side.
    Local(String),
}

impl Failure {
    /// See `lazaret --help`.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { .. } | Self::Answer(_) | Self::Local(_) => 1,
            Self::Unreachable { .. } | Self::Deadline(_) => 3,
            Self::Denied { .. } => 5,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { reason, message } => {
                write!(f, "{reason}: {message}")?;
                match remedy(reason) {
                    "" => Ok(()),
                    remedy => write!(f, "; {remedy}"),
                }
            }
            Self::Denied { message } => f.write_str(message),
            Self::Unreachable { at, why } => {
                write!(
                    f,
                    "the daemon cannot be reached at {at}: {why}; is it running? systemctl status lazaret"
                )
            }
            Self::Deadline(after) => write!(
                f,
                "the daemon did not answer within {after:?}; whether anything was done is unknown: look at `lazaret status`, then repeat"
            ),
            Self::Answer(what) => write!(
                f,
                "the daemon's answer has no {what}; are lazaret and the daemon of one version?"
            ),
            Self::Local(what) => f.write_str(what),
        }
    }
}

/// What a person can do about a reason.
fn remedy(reason: &str) -> &'static str {
    match reason {
        "UNKNOWN_DEVICE" => "see `lazaret devices`, or add it with `lazaret device register`",
        "ADDRESS_OUTSIDE_POOLS" | "ADDRESS_RESERVED" => "see `lazaret pools` for the prefixes",
        "ADDRESS_TAKEN" | "SESSION_LIMIT" => "see `lazaret sessions`; `lazaret session close` ends one",
        "SOURCE_INTERFACE" | "SOURCE_PREFIX" => {
            "see `lazaret sessions` and `lazaret status` for whose it is, and [[source]] in the configuration; `lazaret session close` ends a session"
        }
        "UNKNOWN_POOL" => "see `lazaret pools`",
        "UNKNOWN_INTERFACE" => "see `ip link`, and `lazaret status` for those that have a role",
        "ALIAS_TAKEN" => "see `lazaret device show`; retire the other device, or register it without",
        "NO_EXCEPTION" => "see `lazaret why`",
        "FINGERPRINT_MISMATCH" => "see `lazaret device show`, and register the new certificate if it is the device's",
        "ENROLMENT_CLOSED" | "ENROLMENT_NOT_OPEN" | "QUARANTINE_DEADLINE" => {
            "`lazaret device register --not-after 2d` gives it another window"
        }
        "DEVICE_BLOCKED" => "see `lazaret why`, which says who blocked it and what ends it",
        "STALE_POLICY_REVISION" | "UNKNOWN_POLICY_REVISION" => "see `lazaret policy progress` for the revision in force",
        "POLICY_KEY_REQUIRED" | "POLICY_KEY_UNKNOWN" | "POLICY_KEY_EXPIRED" => "`lazaret policy offer` gives a new key",
        "NOTHING_PUBLISHED" => "`lazaret policy publish` does that",
        "UNKNOWN_AUDIT_ENTRY" => "`lazaret audit list` has the last ones",
        "STORE_UNAVAILABLE" => "see `lazaret status` and the room on the disk",
        _ => "",
    }
}

/// Clients of the daemon's services.
pub(crate) struct Client {
    channel: Channel,
    at: String,
    /// By the Unix socket, with the role of the process's user.
    local: bool,
    deadline: Duration,
}

impl Client {
    /// Connects within the deadline, which then holds for each call.
    pub(crate) async fn connect(socket: &Path, deadline: Duration) -> Result<Self, Failure> {
        let at = socket.display().to_string();
        let unreachable = |why: String| Failure::Unreachable { at: at.clone(), why };
        // The authority is required by HTTP/2 and means nothing here.
        let endpoint = Endpoint::from_static("http://localhost").connect_timeout(deadline);
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        let connected = tokio::time::timeout(deadline, endpoint.connect_with_connector(connector)).await;
        let channel = connected.map_err(|_| unreachable("no connection in time".into()))?;
        let refused = |e: tonic::transport::Error| match root_cause(&e) {
            cause if is_denied(cause) => Failure::Denied {
                message: format!("{at}: permission denied; {LOCAL}"),
            },
            cause => unreachable(cause.to_string()),
        };
        Ok(Self {
            channel: channel.map_err(refused)?,
            at,
            local: true,
            deadline,
        })
    }

    /// By a connection to the network API.
    pub(crate) const fn over(channel: Channel, at: String, deadline: Duration) -> Self {
        Self {
            channel,
            at,
            local: false,
            deadline,
        }
    }

    pub(crate) fn devices(&self) -> DeviceServiceClient<Channel> {
        DeviceServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST)
    }

    pub(crate) fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST)
    }

    pub(crate) fn access(&self) -> AccessServiceClient<Channel> {
        AccessServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST)
    }

    pub(crate) fn inspect(&self) -> InspectServiceClient<Channel> {
        InspectServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST)
    }

    pub(crate) fn policies(&self) -> PolicyServiceClient<Channel> {
        PolicyServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST)
    }

    pub(crate) fn operators(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel.clone()).max_decoding_message_size(MOST)
    }

    /// Waits for an answer, no longer than the deadline.
    pub(crate) async fn answer<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Failure> {
        match tokio::time::timeout(self.deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(self.failure(&status)),
            Err(_) => Err(Failure::Deadline(self.deadline)),
        }
    }

    /// What a status means.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        let info = status.get_details_error_info();
        let message = status.message().to_owned();
        // Who looked for a code is not sent to look for another one.
        let referenced = |info: &tonic_types::ErrorInfo| match info.reason.as_str() {
            "UNKNOWN_AUDIT_ENTRY" | "UNKNOWN_REFUSAL" => message.clone(),
            _ => referenced(&message, &info.metadata),
        };
        match (status.code(), info) {
            (Code::PermissionDenied, Some(info))
                if matches!(
                    info.reason.as_str(),
                    "FINGERPRINT_MISMATCH" | "POLICY_KEY_UNKNOWN" | "SOURCE_INTERFACE" | "SOURCE_PREFIX"
                ) =>
            {
                Failure::Refused {
                    message: referenced(&info),
                    reason: info.reason,
                }
            }
            (Code::PermissionDenied | Code::Unauthenticated, Some(info)) => self.denied(&referenced(&info), Some(&info)),
            (Code::PermissionDenied | Code::Unauthenticated, None) => self.denied(&message, None),
            (_, Some(info)) => Failure::Refused {
                message: referenced(&info),
                reason: info.reason,
            },
            (Code::DeadlineExceeded, None) => Failure::Deadline(self.deadline),
            // Without details it is the transport that speaks, not the daemon.
            (Code::Unavailable | Code::Cancelled | Code::Unknown, None) => Failure::Unreachable {
                at: self.at.clone(),
                why: message,
            },
            (code, None) => Failure::Refused {
                reason: format!("{code:?}"),
                message,
            },
        }
    }
}

impl Client {
    /// What the caller may not, and who may.
    fn denied(&self, message: &str, info: Option<&ErrorInfo>) -> Failure {
        let role = info.and_then(|i| i.metadata.get("role")).map(String::as_str);
        // An operator may do all that is not an MDM's to prove.
        let remedy = match role {
            Some("operator") => {
                "it takes an MDM's certificate: --api HOST:PORT, see lazaret policy applied --help; an operator releases by hand, for a time: \
                 lazaret device release"
            }
            _ if self.local => LOCAL,
            _ => "the certificate's role decides; lazaret pki issue --role gives one another",
        };
        Failure::Denied {
            message: format!("{message}; {remedy}"),
        }
    }
}

/// Who may use the socket.
const LOCAL: &str = "the Unix socket takes root, and members of the groups that [socket] names";

/// With the code under which a refusal stands in the audit.
fn referenced(message: &str, metadata: &HashMap<String, String>) -> String {
    match metadata.get("reference") {
        Some(code) => format!("{message} (reference {code}: lazaret why --reference {code})"),
        None => message.to_owned(),
    }
}

/// A context with a random request id, observed now.
pub(crate) fn context(prefix: &str) -> Result<v1::SignalContext, Failure> {
    let random = getrandom::u64().map_err(|e| Failure::Local(format!("no random number for a request id: {e}")))?;
    Ok(v1::SignalContext {
        request_id: format!("{prefix}-{random:016x}"),
        observed_at: Some(SystemTime::now().into()),
        ..Default::default()
    })
}

/// Largest answer that is taken, bytes.
const MOST: usize = 64 << 20;

fn root_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}

/// The file system does not let us connect to the socket: the caller, not the daemon, is the matter.
fn is_denied(cause: &(dyn std::error::Error + 'static)) -> bool {
    let error = cause.downcast_ref::<io::Error>();
    error.is_some_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn client() -> Client {
        Client {
            channel: Endpoint::from_static("http://localhost").connect_lazy(),
            at: "/s".to_owned(),
            local: true,
            deadline: Duration::from_secs(1),
        }
    }

    #[tokio::test]
    async fn statuses_become_exit_codes() {
        let with = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "lazaret", [("k".to_owned(), "v".to_owned())]);
            client().failure(&Status::with_error_details(code, "sentence", details))
        };
        let without = |code| client().failure(&Status::new(code, "sentence"));
        for (failure, code) in [
            (with(Code::NotFound, "UNKNOWN_DEVICE"), 1),
            (with(Code::Unavailable, "STORE_UNAVAILABLE"), 1),
            (with(Code::PermissionDenied, "FINGERPRINT_MISMATCH"), 1),
            (with(Code::PermissionDenied, "ROLE_NOT_ALLOWED"), 5),
            (without(Code::PermissionDenied), 5),
            (without(Code::Unauthenticated), 5),
            (without(Code::Unavailable), 3),
            (without(Code::DeadlineExceeded), 3),
            (without(Code::Unimplemented), 1),
        ] {
            assert_eq!(failure.exit_code(), code, "{failure}");
        }
        let text = with(Code::NotFound, "UNKNOWN_DEVICE").to_string();
        assert!(text.starts_with("UNKNOWN_DEVICE: sentence; see `lazaret devices`"), "{text}");
    }

    #[tokio::test]
    async fn no_daemon_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("none.sock");
        let failure = Client::connect(&socket, Duration::from_secs(1)).await.err().unwrap();
        assert_eq!(failure.exit_code(), 3);
        assert!(failure.to_string().contains("No such file"), "{failure}");
        assert!(failure.to_string().contains("systemctl status lazaret"), "{failure}");
    }

    /// A socket on which nobody answers: the deadline holds.
    #[tokio::test]
    async fn silence_ends_with_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("silent.sock");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let deadline = Duration::from_millis(300);
        let failure = match Client::connect(&socket, deadline).await {
            Err(failure) => failure,
            Ok(client) => {
                let mut inspect = client.inspect();
                client.answer(inspect.get_status(v1::GetStatusRequest {})).await.unwrap_err()
            }
        };
        assert_eq!(failure.exit_code(), 3, "{failure}");
    }

    #[test]
    fn request_ids_are_valid_and_differ() {
        let (a, b) = (context("cli").unwrap(), context("cli").unwrap());
        assert_ne!(a.request_id, b.request_id);
        assert!(a.request_id.parse::<crate::model::RequestId>().is_ok());
    }
}
