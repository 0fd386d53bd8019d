//! What streams that stay have in common: how many there may be, of all and of one client, and how they end.

use tonic::{Code, Status};

use crate::{
    access::{
        answer,
        shares::{Full, Places, Taken},
    },
    model::Identity,
};

/// Most watchers of one kind at a time, over all connections: each holds a connection's stream and a place in the broadcast.
const MAX_WATCHERS: usize = 64;

/// Places for watchers.
pub(super) fn places() -> Places {
    Places::new(MAX_WATCHERS)
}

/// A place for one more.
///
/// # Errors
/// TOO_MANY_WATCHERS.
pub(super) fn place(places: &Places, by: &Identity) -> Result<Taken, Status> {
    places
        .take(by)
        .map_err(|full| too_many(full, "TOO_MANY_WATCHERS", "watchers"))
}

/// There is no place for one more of these.
pub(super) fn too_many(full: Full, reason: &str, what: &str) -> Status {
    let sentence = match full {
        Full::Own(_) => format!("as many {what} as one client may have are open"),
        Full::All(_) => format!("as many {what} as the gateway serves are open"),
    };
    answer::status(
        Code::ResourceExhausted,
        reason,
        [("most", full.most().to_string())],
        &sentence,
    )
}

/// The end of a watch: the daemon goes down.
pub(super) fn ended() -> Status {
    let sentence = "the gateway is shutting down; watch again from the last revision received";
    answer::status(Code::Unavailable, "SHUTTING_DOWN", [], sentence)
}
