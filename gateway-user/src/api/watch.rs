//! What the watches have in common: how many there may be, and how they end.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Code, Status};

use crate::access::answer;

/// Most watchers of one kind at a time, over all connections: each holds a connection's stream and a place in the broadcast.
const MAX_WATCHERS: usize = 64;

/// Places for watchers.
pub(super) fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_WATCHERS))
}

/// A place for one more.
///
/// # Errors
/// TOO_MANY_WATCHERS.
pub(super) fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let most = [("most", MAX_WATCHERS.to_string())];
        let sentence = "as many watchers as the gateway serves are connected";
        answer::status(Code::ResourceExhausted, "TOO_MANY_WATCHERS", most, sentence)
    })
}

/// The end of a watch: the daemon goes down.
pub(super) fn ended() -> Status {
    let sentence = "the gateway is shutting down; watch again from the last revision received";
    answer::status(Code::Unavailable, "SHUTTING_DOWN", [], sentence)
}
