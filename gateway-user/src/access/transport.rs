//! The errors that no service answers: a call's time is over, a message is too large or is none, an encoding or a method is unknown. They
//! get the form of all others ([`super::answer`]), whatever tonic and the services of the gRPC ecosystem (health, reflection) say by
//! themselves. It knows nothing of what a call does.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use http_body_util::BodyExt as _;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{HeaderMap, Response},
};

use super::answer::status;

/// A call that is not a stream takes no longer, its request's body included. A stream has so long to begin.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// So much earlier than tonic's own timer, which answers without details.
const AHEAD: Duration = Duration::from_millis(5);

/// When a call has to be answered: an extension of its request.
#[derive(Clone, Copy, Debug)]
pub struct AnswerBy(pub Instant);

/// How long a call may take: what the caller allows (`grpc-timeout`), at most [`CALL_TIMEOUT`].
pub(super) fn allowed(headers: &HeaderMap) -> Duration {
    let wanted = headers.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(timeout);
    wanted.map_or(CALL_TIMEOUT, |w| w.min(CALL_TIMEOUT)).saturating_sub(AHEAD)
}

/// The answer to a call, within the time allowed; if it is an error, with its details. `ending` sees the trailers of one that has a body.
pub(super) async fn answered<E>(
    allowed: Duration,
    ending: impl Fn(&mut HeaderMap) + Send + 'static,
    call: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    // What has no time is not begun.
    let answer = if allowed.is_zero() {
        None
    } else {
        tokio::time::timeout(allowed, call).await.ok()
    };
    match answer {
        Some(answer) => answer.map(|response| complete(response, ending)),
        None => {
            let sentence = "the time for this call is over; the change may have been made: repeat it with the same request_id";
            let after = [("after_ms", allowed.as_millis().to_string())];
            Ok(status(Code::DeadlineExceeded, "DEADLINE", after, sentence).into_http())
        }
    }
}

/// `grpc-timeout` as the specification of gRPC over HTTP/2 has it: at most 8 digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// Details for an error without: in the headers, if the answer has nothing else, or in the trailers of a stream.
fn complete(mut response: Response<Body>, ending: impl Fn(&mut HeaderMap) + Send + 'static) -> Response<Body> {
    if response.headers().contains_key(Status::GRPC_STATUS) {
        detail(response.headers_mut());
        return response;
    }
    response.map(|body| {
        Body::new(body.map_frame(move |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                detail(trailers);
                ending(trailers);
            }
            frame
        }))
    })
}

fn detail(headers: &mut HeaderMap) {
    let Some(found) = Status::from_header_map(headers) else {
        return;
    };
    if found.code() == Code::Ok || !found.details().is_empty() {
        return;
    }
    // Ours has details; without, it is tonic's, and how it fails to take a request in is told by its codes.
    let (code, reason, sentence) = match found.code() {
        Code::OutOfRange | Code::ResourceExhausted => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE", found.message()),
        Code::Internal => (Code::InvalidArgument, "MALFORMED", found.message()),
        Code::Unimplemented if found.message().is_empty() => (Code::Unimplemented, "UNKNOWN_METHOD", "there is no such method"),
        Code::Unimplemented => (Code::Unimplemented, "ENCODING_NOT_SUPPORTED", found.message()),
        Code::NotFound => (Code::NotFound, "NOT_FOUND", found.message()),
        Code::InvalidArgument => (Code::InvalidArgument, "INVALID_ARGUMENT", found.message()),
        Code::Cancelled => (Code::Cancelled, "CANCELLED", found.message()),
        Code::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE", found.message()),
        Code::Unavailable => (Code::Unavailable, "BUSY", found.message()),
        other => (other, "UNKNOWN", found.message()),
    };
    let told = status(code, reason, [], sentence);
    headers.remove(Status::GRPC_MESSAGE);
    // It fails only for a text that is no header value; then the code alone must do.
    if told.add_header(headers).is_err() {
        tracing::debug!(reason, "an error could not be given its details");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic_types::StatusExt as _;

    fn headers(timeout: &str) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert("grpc-timeout", timeout.parse().unwrap());
        h
    }

    #[test]
    fn the_callers_time_counts_and_ours_bounds_it() {
        assert_eq!(allowed(&HeaderMap::new()), CALL_TIMEOUT - AHEAD);
        assert_eq!(allowed(&headers("1S")), Duration::from_millis(995));
        assert_eq!(allowed(&headers("250m")), Duration::from_millis(245));
        assert_eq!(allowed(&headers("99999999H")), CALL_TIMEOUT - AHEAD);
        assert_eq!(allowed(&headers("1n")), Duration::ZERO);
        for nonsense in ["", "S", "1", "-1S", "1s", "123456789S", "1 S", "+1S"] {
            assert_eq!(timeout(nonsense), None, "{nonsense:?}");
        }
    }

    #[test]
    fn what_has_no_details_gets_some() {
        for (code, message, want, reason) in [
            (Code::OutOfRange, "too large", Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
            (Code::Internal, "failed to decode", Code::InvalidArgument, "MALFORMED"),
            (Code::Unimplemented, "", Code::Unimplemented, "UNKNOWN_METHOD"),
            (Code::NotFound, "service not registered", Code::NotFound, "NOT_FOUND"),
        ] {
            let answer = complete(Status::new(code, message).into_http(), |_| ());
            let s = Status::from_header_map(answer.headers()).unwrap();
            let info = s.get_details_error_info().unwrap();
            assert_eq!(
                (s.code(), info.reason.as_str(), info.domain.as_str()),
                (want, reason, "lazaret")
            );
        }
        let ours = status(Code::OutOfRange, "REVISION_TOO_OLD", [], "a b");
        let answer = complete(ours.into_http(), |_| ());
        let s = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(s.get_details_error_info().unwrap().reason, "REVISION_TOO_OLD");
    }
}
