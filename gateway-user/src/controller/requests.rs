//! Requests that were asked before: by the client's identity and its request id. Here are those whose answers the store does not have yet;
//! the others are asked from it.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use super::{Answer, PolicyKey, Refusal, SignalContext, writer::Writer};
use crate::{
    model::{RequestId, Salt, SessionId, WallTime},
    store::Request,
};

/// Requests that are remembered here; beyond it the oldest of whoever has most are only in the store, as asked, without their answers.
const MOST: usize = 65_536;

/// Whether a request was asked before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Before {
    Never,
    /// It is under way, or its answer was lost with the process.
    UnderWay(Option<Held>),
    /// And this was the answer.
    Answered(Vec<u8>, Option<Held>),
}

/// Of what the key in an answer is made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// A final key, together with the temporary one that the request brings. It is stored.
    Salt(Salt),
    /// A temporary key: itself, in memory only.
    Key(PolicyKey),
}

impl Held {
    const fn salt(&self) -> Option<Salt> {
        match self {
            Self::Salt(salt) => Some(*salt),
            Self::Key(_) => None,
        }
    }
}

/// The answer of before.
pub(super) fn again<T>(answer: Vec<u8>, held: Option<&Held>) -> Answer<T> {
    match held.and_then(Held::salt) {
        Some(salt) => Answer::Salted(answer, salt),
        None => Answer::Again(answer),
    }
}

/// An answer as a client gets it.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) context: SignalContext,
    pub(super) answer: Vec<u8>,
    /// It holds one: it stays in memory.
    pub(super) secret: bool,
}

/// Client and request id.
type Key = (String, RequestId);

/// Requests whose answers are not in the store.
#[derive(Debug, Default)]
pub(super) struct Requests {
    recent: HashMap<Key, Recent>,
    /// Of each client, the oldest first.
    order: HashMap<String, VecDeque<RequestId>>,
    ordered: usize,
}

#[derive(Debug)]
struct Recent {
    digest: [u8; 32],
    /// When it was asked: the store knows it by that.
    at: WallTime,
    answer: Option<Vec<u8>>,
    held: Option<Held>,
    /// Of a list of sessions that is not worked off: sessions from this number on are younger than it.
    until: Option<SessionId>,
}

impl Requests {
    /// Their answers are in the store now.
    pub(super) fn committed(&mut self, requests: &[Request]) {
        for request in requests.iter().filter(|r| r.answer.is_some()) {
            self.recent.remove(&(request.client.clone(), request.id.clone()));
        }
    }

    fn put(&mut self, key: Key, digest: [u8; 32], at: WallTime, held: Option<Held>) {
        if self.ordered >= MOST {
            self.make_room();
        }
        self.order.entry(key.0.clone()).or_default().push_back(key.1.clone());
        self.ordered += 1;
        self.recent.insert(
            key,
            Recent {
                digest,
                at,
                answer: None,
                held,
                until: None,
            },
        );
    }

    /// Whoever has most loses his oldest, and not only one: he is looked for among all.
    fn make_room(&mut self) {
        let Some((client, ids)) = self.order.iter_mut().max_by_key(|(_, ids)| ids.len()) else {
            return;
        };
        let client = client.clone();
        let part = ids.len().div_ceil(MOST / 1024);
        for id in ids.drain(..part) {
            self.recent.remove(&(client.clone(), id));
        }
        self.ordered -= part;
        self.order.retain(|_, ids| !ids.is_empty());
    }
}

impl Writer {
    /// Whether a request was asked before.
    ///
    /// # Errors
    /// [`Refusal::RequestIdReused`].
    pub(super) fn asked_before(&mut self, context: &SignalContext) -> Result<Before, Refusal> {
        let Some(digest) = context.digest else {
            return Ok(Before::Never);
        };
        let found = match self.requests.recent.get(&key(context)) {
            Some(recent) => Some((recent.digest, recent.answer.clone(), recent.held.clone())),
            None => self.stored(context).map(|r| (r.digest, r.answer, r.salt.map(Held::Salt))),
        };
        match found {
            None => Ok(Before::Never),
            Some((other, ..)) if other != digest => Err(Refusal::RequestIdReused(context.request.clone())),
            Some((_, None, held)) => Ok(Before::UnderWay(held)),
            Some((_, Some(answer), held)) => Ok(Before::Answered(answer, held)),
        }
    }

    /// Remembers a request with the change that it makes.
    pub(super) fn remember(&mut self, context: &SignalContext, held: Option<Held>) {
        let Some(digest) = context.digest else { return };
        let at = self.clock.now().wall;
        let salt = held.as_ref().and_then(Held::salt);
        self.requests.put(key(context), digest, at, held);
        self.batch.changes.requests.push(Request {
            client: context.by.requester(),
            id: context.request.clone(),
            digest,
            at,
            salt,
            answer: None,
        });
    }

    /// Remembers in memory what the key of an answer is made of, of a request that the store has already.
    pub(super) fn hold(&mut self, context: &SignalContext, held: Held) {
        let Some(digest) = context.digest else { return };
        let at = self.clock.now().wall;
        self.requests.put(key(context), digest, at, Some(held));
    }

    /// Remembers a list of sessions until it is worked off, in memory only: it is no change yet.
    pub(super) fn remember_list(&mut self, context: &SignalContext, until: SessionId) {
        let Some(digest) = context.digest else { return };
        let at = self.clock.now().wall;
        self.requests.put(key(context), digest, at, None);
        if let Some(recent) = self.requests.recent.get_mut(&key(context)) {
            recent.until = Some(until);
        }
    }

    /// The same list, if it waits, is being worked off, or was given up before that.
    pub(super) fn known_list(&self, context: &SignalContext) -> Option<SessionId> {
        let known = self.requests.recent.get(&key(context))?;
        known.until.filter(|_| context.digest == Some(known.digest))
    }

    /// It was refused after all: it has changed nothing.
    pub(super) fn forget(&mut self, context: &SignalContext) {
        let key = key(context);
        if self
            .requests
            .recent
            .get(&key)
            .is_some_and(|r| Some(r.digest) == context.digest)
        {
            self.requests.recent.remove(&key);
        }
    }

    /// Answers that clients got meanwhile. Looked for before each job: who has his answer and asks again shall find it.
    pub(super) fn take_answers(&mut self) {
        while let Ok(given) = self.given.try_recv() {
            self.answered(given);
        }
    }

    /// The answer to a request, to be remembered with the next commit.
    fn answered(&mut self, given: Given) {
        let Given { context, answer, secret } = given;
        let Some(digest) = context.digest else { return };
        // Another request under the same id has not been remembered.
        let known = self.requests.recent.get_mut(&key(&context)).filter(|r| r.digest == digest);
        let Some(recent) = known else { return };
        if !secret {
            self.answers_since.get_or_insert_with(Instant::now);
            self.answers.push(Request {
                client: context.by.requester(),
                id: context.request.clone(),
                digest,
                at: recent.at,
                salt: recent.held.as_ref().and_then(Held::salt),
                answer: Some(answer.clone()),
            });
        }
        recent.answer = Some(answer);
    }

    fn stored(&mut self, context: &SignalContext) -> Option<Request> {
        let found = self
            .store
            .request(&context.by.requester(), &context.request)
            .unwrap_or_else(|e| {
                // What loosens is refused by the commit then; what restricts is not refused for a store that cannot be read.
                tracing::error!(error = %e, "a request cannot be looked up; it is taken for a new one");
                None
            });
        let oldest = self
            .clock
            .now()
            .wall
            .0
            .saturating_sub(i64::try_from(self.config.keep.requests.as_millis()).unwrap_or(i64::MAX));
        found.filter(|r| r.at.0 >= oldest)
    }
}

fn key(context: &SignalContext) -> Key {
    (context.by.requester(), context.request.clone())
}
