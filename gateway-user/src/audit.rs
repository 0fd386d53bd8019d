//! The audit: who did what, on what, when, with which result; a chain of entries, each with the hash of the one before. Pure: it makes and
//! verifies entries, and neither stores nor prints them.

use crate::model::{DeviceId, WallTime};

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

/// The last entry of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// Its hash.
    pub hash: [u8; 32],
}
