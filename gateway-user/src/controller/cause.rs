//! Who is behind a command, what it is about and what came before it: what its halves, the audit and the log are told of it. It decides
//! nothing.

use super::{SignalContext, requests::Held};
use crate::model::DeviceId;

/// Who is behind a change: for the audit and the log.
#[derive(Clone, Copy)]
pub(super) struct Cause<'a> {
    pub(super) by: &'a str,
    /// The RPC, or what the gateway did by itself.
    pub(super) action: &'static str,
    pub(super) request: &'a str,
    /// The caller's own words; may be empty.
    pub(super) note: &'a str,
}

/// The action of the daemon's start.
pub(super) const START: &str = "Start";

impl<'a> Cause<'a> {
    /// Nobody asked: time passed, or the daemon started.
    pub(super) const fn gateway(action: &'static str) -> Self {
        Self {
            by: "gateway",
            action,
            request: "",
            note: "",
        }
    }

    pub(super) fn of(context: &'a SignalContext, action: &'static str) -> Self {
        Self {
            by: &context.by.name,
            action,
            request: context.request.as_str(),
            note: "",
        }
    }

    pub(super) const fn with(self, note: &'a str) -> Self {
        Self { note, ..self }
    }
}

/// A command, as its first half sees it.
#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub(super) context: &'a SignalContext,
    /// The RPC.
    pub(super) action: &'static str,
    /// The same request is under way, or done and its answer is not known: nothing is to be changed, and what is so now is the answer.
    pub(super) again: bool,
    /// Of that one's answer, if it has a key.
    pub(super) held: Option<&'a Held>,
    /// Its id was used for another request. Only what restricts comes so far.
    pub(super) reused: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn cause(&self) -> Cause<'a> {
        Cause::of(self.context, self.action)
    }
}

/// What a command is about, for the audit of its refusal.
#[derive(Clone, Debug, Default)]
pub(super) struct About {
    pub(super) device: Option<DeviceId>,
    pub(super) subject: String,
    /// It restricts, or may: it is refused for no request id.
    pub(super) restricts: bool,
}

impl About {
    pub(super) fn device(id: &DeviceId) -> Self {
        Self {
            device: Some(id.clone()),
            ..Self::default()
        }
    }

    pub(super) fn subject(what: impl ToString) -> Self {
        Self {
            subject: what.to_string(),
            ..Self::default()
        }
    }

    pub(super) fn restriction(self) -> Self {
        Self { restricts: true, ..self }
    }
}
