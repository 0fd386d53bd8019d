//! The audit: who did what, on what, when, with which result; a chain of entries, each with the hash of the one before. Pure: it makes,
//! verifies and spells entries, and neither stores nor prints them.
//!
//! The hash of an entry is SHA-256 over: the hash of the one before (32 bytes; zeros before the first), the number and the time (8 bytes
//! each, big-endian), and each text in the order of [`Entry`]'s fields, as its length in bytes (8 bytes, big-endian) and UTF-8. The device
//! is preceded by a byte: 1, or 0 where there is none and nothing follows.

mod line;
mod parts;
mod verify;

use std::{fmt, str::FromStr};

use ring::digest::{Context, SHA256};

pub use line::{Line, rfc3339};
pub use parts::{Verdict, verify_lines};
pub use verify::{Finding, Flaw, Verifier};

use crate::model::{DeviceId, WallTime};

/// The action of a restore's entry: its `before` is the head of the chain that was left, its `after` that of the backup.
pub const RESTORE: &str = "RestoreStore";

/// An entry, before the store gives it its hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From 1, without gaps; `A` and the number is the reference code.
    pub number: u64,
    /// When.
    pub at: WallTime,
    /// Who: certificate subject and serial number, `uid:0`, or `gateway`.
    pub by: String,
    /// What: the RPC's name, or what the gateway did by itself.
    pub action: String,
    /// On which device, if on one.
    pub device: Option<DeviceId>,
    /// On what otherwise: a session, a source, a revision.
    pub subject: String,
    /// What was.
    pub before: String,
    /// What is.
    pub after: String,
    /// The caller's own words, or what was required against what was found.
    pub reason: String,
    /// The caller's request id.
    pub request: String,
    /// "done", or the refusal's name.
    pub result: String,
}

impl Entry {
    /// Its hash after an entry with this one.
    #[must_use]
    pub fn hash_after(&self, previous: &[u8; 32]) -> [u8; 32] {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(previous);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes.extend_from_slice(&self.at.0.to_be_bytes());
        text(&mut bytes, &self.by);
        text(&mut bytes, &self.action);
        bytes.push(u8::from(self.device.is_some()));
        if let Some(device) = &self.device {
            text(&mut bytes, device.as_str());
        }
        for field in [
            &self.subject,
            &self.before,
            &self.after,
            &self.reason,
            &self.request,
            &self.result,
        ] {
            text(&mut bytes, field);
        }
        sha256(&bytes)
    }
}

/// An entry of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// What it says.
    pub entry: Entry,
    /// SHA-256 over it and the hash before.
    pub hash: [u8; 32],
}

/// The last entry of a chain; as text `NUMBER:HASH`, the hash in 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: [u8; 32],
}

impl Head {
    /// Before the first entry.
    pub const NONE: Self = Self {
        number: 0,
        hash: [0; 32],
    };
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.number)?;
        self.hash.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// Not `NUMBER:HASH`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the head of an audit is NUMBER:HASH, the hash in 64 hexadecimal digits")]
pub struct InvalidHead;

impl FromStr for Head {
    type Err = InvalidHead;
    fn from_str(s: &str) -> Result<Self, InvalidHead> {
        let (number, digits) = s.split_once(':').ok_or(InvalidHead)?;
        let mut hash = [0; 32];
        if digits.len() != 64 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(InvalidHead);
        }
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| InvalidHead)?;
        }
        Ok(Self {
            number: number.parse().map_err(|_| InvalidHead)?,
            hash,
        })
    }
}

/// SHA-256.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend_from_slice(&(text.len() as u64).to_be_bytes());
    bytes.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests;
