//! What all requests that change something have in common: who asks and for how long, a digest by which the same request is known again, and
//! the answer, kept for whoever asks again.

use std::time::{Duration, Instant};

use lazaret_proto::v1;
use prost::Message;
use ring::digest::{Context as Digest, SHA256};
use tonic::{Request, Response, Status};

use super::{
    scope::{self, Touches},
    status,
};
use crate::{
    access::{roles, transport::AnswerBy},
    controller::{Answer, Controller, Refused, SignalContext},
    model::{Identity, Place},
};

/// How long enforcement is tried when the caller names no time.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
/// The longest that it is tried.
const MAX_DEADLINE: Duration = Duration::from_secs(25);

/// A request that changes something.
pub(super) trait Command: Message + Touches {
    /// Its RPC: `Service/Method`.
    const RPC: &'static str;
    /// Its context, if it has one.
    fn context(&mut self) -> Option<&mut v1::SignalContext>;
}

/// Who gives a command, and what of its context is no part of its content.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// Who.
    pub(super) by: Identity,
    /// SHA-256 over the RPC and the content.
    pub(super) digest: [u8; 32],
    /// `v1::Acknowledge`, as it came.
    pub(super) acknowledge: i32,
    /// How long enforcement is tried.
    pub(super) deadline: Duration,
    /// Where it is taken in.
    pub(super) place: Place,
}

/// A request's message and its caller.
///
/// # Errors
/// NO_IDENTITY, OUTSIDE_SCOPE.
pub(super) async fn taken<M: Command>(request: Request<M>, controller: &Controller) -> Result<(M, Caller), Status> {
    let by = scope::caller(&request)?;
    let left = request
        .extensions()
        .get::<AnswerBy>()
        .map_or(MAX_DEADLINE, |by| by.0.saturating_duration_since(Instant::now()));
    let place = request.extensions().get::<Place>().cloned().unwrap_or_default();
    let mut message = request.into_inner();
    if let Some(outside) = scope::outside(&by, &message) {
        let request = message.context().map(|c| c.request_id.clone()).unwrap_or_default();
        return Err(scope::refused(controller, &by, roles::method(M::RPC), &request, outside).await);
    }
    let caller = caller(by, &mut message, left, place);
    Ok((message, caller))
}

/// The caller of a message, who waits for so long. `acknowledge` and `deadline_ms` are taken out of the message.
pub(super) fn caller<M: Command>(by: Identity, message: &mut M, waits: Duration, place: Place) -> Caller {
    let context = message.context();
    let (acknowledge, deadline_ms) = context.map_or((0, 0), |c| {
        (std::mem::take(&mut c.acknowledge), std::mem::take(&mut c.deadline_ms))
    });
    let wanted = match deadline_ms {
        0 => DEFAULT_DEADLINE,
        ms => Duration::from_millis(ms.into()).min(MAX_DEADLINE),
    };
    let mut digest = Digest::new(&SHA256);
    digest.update(M::RPC.as_bytes());
    digest.update(&[0]);
    // The RPCs' messages have no map fields, so that equal messages are equal bytes.
    digest.update(&message.encode_to_vec());
    let digest = digest.finish();
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
    Caller {
        by,
        digest: bytes,
        acknowledge,
        // The answer still has to reach him.
        deadline: wanted.min(waits.saturating_sub(waits / 10)),
        place,
    }
}

/// The response to a command: rendered now, or the one that was sent when the same was asked before. `secret`: it is kept in memory only.
pub(super) fn response<T, R: Message + Default>(
    controller: &Controller,
    context: SignalContext,
    told: Result<Answer<T>, Refused>,
    secret: bool,
    render: impl FnOnce(T) -> R,
) -> Result<Response<R>, Status> {
    answered(controller, context, told?, secret, render).map(Response::new)
}

/// As [`response`], of what was not refused.
pub(super) fn answered<T, R: Message + Default>(
    controller: &Controller,
    context: SignalContext,
    told: Answer<T>,
    secret: bool,
    render: impl FnOnce(T) -> R,
) -> Result<R, Status> {
    match told {
        Answer::First(outcome) => {
            let answer = render(outcome);
            controller.answered(context, answer.encode_to_vec(), secret);
            Ok(answer)
        }
        Answer::Again(bytes) => decoded(&bytes),
        Answer::Salted(..) => Err(status::forgotten()),
    }
}

/// An answer that was kept.
pub(super) fn decoded<R: Message + Default>(bytes: &[u8]) -> Result<R, Status> {
    R::decode(bytes).map_err(|_| status::forgotten())
}

macro_rules! commands {
    ($($message:ident: $rpc:literal),* $(,)?) => {$(
        impl Command for v1::$message {
            const RPC: &'static str = $rpc;
            fn context(&mut self) -> Option<&mut v1::SignalContext> {
                self.context.as_mut()
            }
        }
    )*};
}

commands!(
    RegisterDevicesRequest: "DeviceService/RegisterDevices",
    ReportPolicyAppliedRequest: "DeviceService/ReportPolicyApplied",
    ReportPolicyRevokedRequest: "DeviceService/ReportPolicyRevoked",
    RetireDeviceRequest: "DeviceService/RetireDevice",
    CheckDriftRequest: "OperatorService/CheckDrift",
    GrantExceptionRequest: "OperatorService/GrantException",
    EndExceptionRequest: "OperatorService/EndException",
    OfferPolicyRequest: "PolicyService/OfferPolicy",
    AcknowledgePolicyRequest: "PolicyService/AcknowledgePolicy",
    RenewLeasesRequest: "PolicyService/RenewLeases",
    PublishPolicyRevisionRequest: "PolicyService/PublishPolicyRevision",
    PausePublicationRequest: "PolicyService/PausePublication",
    ResumePublicationRequest: "PolicyService/ResumePublication",
    OpenSessionRequest: "SessionService/OpenSession",
    CloseSessionRequest: "SessionService/CloseSession",
    SynchroniseSessionsRequest: "SessionService/SynchroniseSessions",
);

impl Command for v1::ReportPolicyRequest {
    const RPC: &'static str = "PolicyService/ReportPolicy";
    fn context(&mut self) -> Option<&mut v1::SignalContext> {
        use v1::report_policy_request::Signal;
        match self.signal.as_mut()? {
            Signal::Applied(s) => s.context.as_mut(),
            Signal::Revoked(s) => s.context.as_mut(),
            Signal::Renew(s) => s.context.as_mut(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Role;

    fn of(mut request: v1::RetireDeviceRequest) -> Caller {
        caller(
            Identity::unlimited(Role::Mdm, "x"),
            &mut request,
            Duration::from_secs(20),
            Place::default(),
        )
    }
    fn retire(id: &str, acknowledge: i32, deadline_ms: u32) -> v1::RetireDeviceRequest {
        v1::RetireDeviceRequest {
            context: Some(v1::SignalContext {
                request_id: "r".into(),
                observed_at: None,
                acknowledge,
                deadline_ms,
            }),
            device_id: id.into(),
        }
    }

    #[test]
    fn the_same_content_is_known_again() {
        let first = of(retire("a", 0, 0));
        assert_eq!(first.digest, of(retire("a", 1, 7)).digest, "how one waits is no content");
        assert_ne!(first.digest, of(retire("b", 0, 0)).digest);
        let mut end = v1::EndExceptionRequest {
            context: retire("a", 0, 0).context,
            device_id: "a".into(),
            reason: String::new(),
        };
        let end = caller(
            Identity::unlimited(Role::Operator, "x"),
            &mut end,
            MAX_DEADLINE,
            Place::default(),
        );
        assert_ne!(first.digest, end.digest, "the same bytes to another RPC");
    }

    #[test]
    fn deadlines_are_bounded() {
        assert_eq!(of(retire("a", 0, 0)).deadline, DEFAULT_DEADLINE);
        assert_eq!(of(retire("a", 0, 250)).deadline, Duration::from_millis(250));
        assert_eq!(
            of(retire("a", 0, u32::MAX)).deadline,
            Duration::from_secs(18),
            "the call's own"
        );
    }
}
