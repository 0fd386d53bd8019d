//! An entry as a line of JSON: stable names, in the order in which the hash takes them.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Entry, Sealed};
use crate::model::{DeviceId, WallTime};

/// A line of an export or of the audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    number: u64,
    /// Wall clock, milliseconds since 1970-01-01 UTC: what is hashed.
    at_ms: i64,
    /// The same for people.
    #[serde(default)]
    at: String,
    by: String,
    action: String,
    device: Option<DeviceId>,
    subject: String,
    before: String,
    after: String,
    reason: String,
    request: String,
    result: String,
    /// 64 hexadecimal digits.
    #[serde(with = "hexadecimal")]
    hash: [u8; 32],
}

impl From<Sealed> for Line {
    fn from(sealed: Sealed) -> Self {
        let e = sealed.entry;
        Self {
            number: e.number,
            at_ms: e.at.0,
            at: rfc3339(e.at),
            by: e.by,
            action: e.action,
            device: e.device,
            subject: e.subject,
            before: e.before,
            after: e.after,
            reason: e.reason,
            request: e.request,
            result: e.result,
            hash: sealed.hash,
        }
    }
}

impl From<Line> for Sealed {
    fn from(line: Line) -> Self {
        Self {
            entry: Entry {
                number: line.number,
                at: WallTime(line.at_ms),
                by: line.by,
                action: line.action,
                device: line.device,
                subject: line.subject,
                before: line.before,
                after: line.after,
                reason: line.reason,
                request: line.request,
                result: line.result,
            },
            hash: line.hash,
        }
    }
}

/// As 2026-11-22T08:00:00.000Z; what that cannot say (before 1970, after 9999) as milliseconds.
#[must_use]
pub fn rfc3339(at: WallTime) -> String {
    // humantime refuses to write years of five digits by an error of its formatter.
    let written = u64::try_from(at.0)
        .ok()
        .filter(|ms| *ms < 253_402_300_800_000)
        .and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    written.map_or_else(|| format!("{} ms", at.0), |t| humantime::format_rfc3339_millis(t).to_string())
}

mod hexadecimal {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::audit::Head;

    pub(super) fn serialize<S: Serializer>(hash: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        let head = Head { number: 0, hash: *hash }.to_string();
        to.serialize_str(head.strip_prefix("0:").unwrap_or_default())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<[u8; 32], D::Error> {
        let digits = String::deserialize(from)?;
        format!("0:{digits}").parse().map(|h: Head| h.hash).map_err(D::Error::custom)
    }
}
