//! The form of every error that the gateway answers: a gRPC status with google.rpc.ErrorInfo (reason, domain "lazaret", metadata) for
//! programs and a sentence for people.

use std::{collections::HashMap, time::Duration};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// `google.rpc.ErrorInfo.domain` of every error of this API.
pub const DOMAIN: &str = "lazaret";

/// `google.rpc.RetryInfo.retry_delay` of errors after which the same call may simply be repeated.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A status with its ErrorInfo; UNAVAILABLE has google.rpc.RetryInfo, too.
pub fn status(code: Code, reason: &str, metadata: impl IntoIterator<Item = (&'static str, String)>, message: &str) -> Status {
    let mut details = info(reason, metadata);
    if code == Code::Unavailable {
        details.set_retry_info(Some(RETRY_AFTER));
    }
    Status::with_error_details(code, escape(message), details)
}

/// The details of a status, for one that gets more of them.
pub fn info(reason: &str, metadata: impl IntoIterator<Item = (&'static str, String)>) -> ErrorDetails {
    let metadata: HashMap<String, String> = metadata.into_iter().map(|(k, v)| (k.to_owned(), escape(&v))).collect();
    ErrorDetails::with_error_info(reason, DOMAIN, metadata)
}

/// Control characters as `\n`, `\u{1b}`: texts can come from certificates, from the system and from other programs.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}
