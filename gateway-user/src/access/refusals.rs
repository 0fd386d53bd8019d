//! What was refused without a decision of the controller's: by the gate, by the transport, by a parser, for want of room. Each gets a reference
//! code here. They are kept in memory, so that neither the queue nor the disk that a refusal is about is needed to look it up; those that
//! say who tries what he may not, or sends what is none, go to the audit, too. Both are bounded for each client: what repeats is counted.
//! It decides nothing.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ring::rand::{SecureRandom as _, SystemRandom};
use tonic::{
    Code, Status,
    codegen::http::{HeaderMap, Response},
};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{
    answer::{self, escape},
    peer::Peer,
};
use crate::model::Identity;

/// What is refused again so soon is counted, and has the code of the first.
const WINDOW: Duration = Duration::from_secs(600);
/// Of one client, so many are kept: the last ones.
const OF_ONE_CLIENT: usize = 32;
/// Clients of which any are kept.
const CLIENTS: usize = 256;
/// Of one client, so many a window go to the audit.
const AUDITED: u32 = 16;
/// Of one client, so many a window go to the log.
const LOGGED: u32 = 64;
/// How long an answer waits for its number in the audit. The entry comes about all the same.
const NOTED_WITHIN: Duration = Duration::from_millis(500);
/// Most characters that are kept of a text.
const MAX_TEXT: usize = 256;

/// Gives entries of the audit.
pub trait Notary: fmt::Debug + Send + Sync {
    /// The number of the refusal's entry; `None`: it has none, for now.
    fn note(&self, told: &Told) -> Noting;
}

/// An entry that is being made.
pub type Noting = Pin<Box<dyn Future<Output = Option<u64>> + Send>>;

/// Who was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Someone with a role.
    Client {
        /// Whose refusals are counted together.
        requester: String,
        /// For people.
        name: String,
    },
    /// Anyone else: their refusals are kept together, and never in the audit.
    Stranger(String),
}

impl Who {
    pub(super) fn at(peer: Option<&Peer>) -> Self {
        match peer {
            Some(Peer::Known { identity, .. }) => identity.into(),
            Some(Peer::Refused { name, .. }) => Self::Stranger(name.clone()),
            None => Self::Stranger("unknown".to_owned()),
        }
    }

    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Client { name, .. } | Self::Stranger(name) => name,
        }
    }
}

impl From<&Identity> for Who {
    fn from(identity: &Identity) -> Self {
        Self::Client {
            requester: identity.requester(),
            name: identity.name.clone(),
        }
    }
}

/// A refusal as it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// To whom.
    pub who: Who,
    /// The RPC's path; of one that does not exist, its beginning.
    pub rpc: String,
    /// The status's code.
    pub code: Code,
    /// `ErrorInfo.reason`.
    pub reason: String,
    /// For people.
    pub message: String,
    /// The caller's request id, where it is known.
    pub request: String,
}

impl Told {
    /// It says who tries what he may not, or sends what is none.
    fn is_for_the_audit(&self) -> bool {
        matches!(self.who, Who::Client { .. })
            && (self.code == Code::InvalidArgument
                || matches!(
                    self.reason.as_str(),
                    "ROLE_NOT_ALLOWED" | "CERTIFICATE_EXPIRED" | "MESSAGE_TOO_LARGE" | "ENCODING_NOT_SUPPORTED"
                ))
    }

    fn is(&self, other: &Self) -> bool {
        (&self.rpc, self.code, &self.reason, &self.message) == (&other.rpc, other.code, &other.reason, &other.message)
    }
}

/// A refusal as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// `R` and the number is its reference code.
    pub number: u64,
    /// What was told the first time.
    pub told: Told,
    /// When it was told first.
    pub first: SystemTime,
    /// When it was told last.
    pub last: SystemTime,
    /// How often.
    pub count: u64,
    /// Number of its entry in the audit; `None`: it has none.
    pub audit: Option<u64>,
}

/// The last refusals. Clones are the same.
#[derive(Clone, Debug)]
pub struct Refusals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    notary: Arc<dyn Notary>,
    state: Mutex<State>,
}

impl Refusals {
    /// None yet.
    #[must_use]
    pub fn new(notary: Arc<dyn Notary>) -> Self {
        // Numbers begin anywhere: a code that an earlier process gave is not taken for one of this.
        let mut seed = [0; 4];
        if SystemRandom::new().fill(&mut seed).is_err() {
            tracing::debug!("no random numbers: reference codes begin at 1");
        }
        let state = Mutex::new(State::new(u64::from(u32::from_ne_bytes(seed)).max(1)));
        Self(Arc::new(Inner { notary, state }))
    }

    /// One that is kept.
    #[must_use]
    pub fn find(&self, number: u64) -> Option<Kept> {
        self.lock().find(number).cloned()
    }

    /// Keeps a refusal, gives it to the audit if it is for that, and returns its reference code.
    pub async fn refer(&self, told: Told) -> String {
        let told = shortened(&told);
        let taken = self.take(&told);
        if let Some(again) = &taken.audited_as {
            let message = format!("{}{again}", told.message);
            let noting = self.0.notary.note(&Told { message, ..told });
            let refusals = self.clone();
            // Of its own, so that a caller who goes away leaves it noted.
            let noted = tokio::spawn(async move {
                let number = noting.await;
                refusals.lock().audited(taken.number, number);
                number
            });
            if let Ok(Ok(Some(number))) = tokio::time::timeout(NOTED_WITHIN, noted).await {
                return format!("A{number}");
            }
        }
        taken.code()
    }

    /// The same of what is not for the audit, or cannot wait for it.
    #[must_use]
    pub fn refer_now(&self, told: &Told) -> String {
        self.take(told).code()
    }

    /// An error's response with a reference code, if it has none.
    pub(super) async fn refer_response<B>(&self, who: &Who, path: &str, mut response: Response<B>) -> Response<B> {
        if let Some((status, told)) = unreferred(response.headers(), who, path) {
            let code = self.refer(told).await;
            write(response.headers_mut(), &status, code);
        }
        response
    }

    /// Likewise the trailers of a stream.
    pub(super) fn refer_trailers(&self, who: &Who, path: &str, trailers: &mut HeaderMap) {
        if let Some((status, told)) = unreferred(trailers, who, path) {
            let code = self.refer_now(&told);
            write(trailers, &status, code);
        }
    }

    fn take(&self, told: &Told) -> Taken {
        let taken = self.lock().take(told, Instant::now(), SystemTime::now());
        if taken.logged {
            let Told {
                rpc, reason, message, ..
            } = shortened(told);
            let reference = taken.code();
            tracing::info!(peer = told.who.name(), rpc, reason, message, reference, "call refused");
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a status tells, if it is an error and has no reference code.
fn unreferred(headers: &HeaderMap, who: &Who, path: &str) -> Option<(Status, Told)> {
    let status = headers
        .get(Status::GRPC_STATUS)
        .filter(|s| s.as_bytes() != b"0")
        .and_then(|_| Status::from_header_map(headers))?;
    let (reason, metadata) = info(&status);
    if metadata.contains_key(REFERENCE) {
        return None;
    }
    let told = Told {
        who: who.clone(),
        rpc: path.to_owned(),
        code: status.code(),
        reason,
        message: status.message().to_owned(),
        request: String::new(),
    };
    Some((status, told))
}

/// Every error has it by now.
fn info(status: &Status) -> (String, HashMap<String, String>) {
    let info = status.get_details_error_info();
    info.map(|i| (i.reason, i.metadata)).unwrap_or_default()
}

/// The key of a reference code in `ErrorInfo.metadata`.
pub const REFERENCE: &str = "reference";

fn write(headers: &mut HeaderMap, status: &Status, code: String) {
    let mut details: ErrorDetails = status.get_error_details();
    let (reason, mut metadata) = info(status);
    metadata.insert(REFERENCE.to_owned(), code);
    details.set_error_info(reason, answer::DOMAIN, metadata);
    let told = Status::with_error_details(status.code(), status.message(), details);
    headers.remove(Status::GRPC_MESSAGE);
    // It fails only for a text that is no header value, which the status before it was.
    if told.add_header(headers).is_err() {
        tracing::debug!("an error could not be given its reference code");
    }
}

/// What was kept.
struct Taken {
    number: u64,
    /// Of the record that was kept already.
    audit: Option<u64>,
    /// It is new, and not one too many for the log.
    logged: bool,
    /// It goes to the audit, with this behind its message.
    audited_as: Option<String>,
}

impl Taken {
    fn code(&self) -> String {
        self.audit.map_or_else(|| format!("R{}", self.number), |n| format!("A{n}"))
    }
}

#[derive(Debug)]
struct State {
    next: u64,
    /// Strangers have the empty name.
    clients: HashMap<String, Client>,
}

#[derive(Debug)]
struct Client {
    records: VecDeque<Record>,
    /// Given to the audit since, and to the log.
    audited: u32,
    logged: u32,
    since: Instant,
    last: Instant,
}

#[derive(Debug)]
struct Record {
    kept: Kept,
    since: Instant,
}

impl State {
    fn new(next: u64) -> Self {
        Self {
            next,
            clients: HashMap::new(),
        }
    }

    fn find(&self, number: u64) -> Option<&Kept> {
        let all = self.clients.values().flat_map(|c| &c.records);
        all.map(|r| &r.kept).find(|k| k.number == number)
    }

    fn audited(&mut self, number: u64, audit: Option<u64>) {
        let all = self.clients.values_mut().flat_map(|c| &mut c.records);
        if let Some(record) = all.into_iter().find(|r| r.kept.number == number) {
            record.kept.audit = audit;
        }
    }

    fn take(&mut self, told: &Told, now: Instant, at: SystemTime) -> Taken {
        let told = shortened(told);
        let name = self.place(&told.who, now);
        let strange = name.is_empty();
        let client = self.clients.entry(name).or_insert_with(|| Client {
            records: VecDeque::new(),
            audited: 0,
            logged: 0,
            since: now,
            last: now,
        });
        client.last = now;
        if now.duration_since(client.since) >= WINDOW {
            (client.since, client.audited, client.logged) = (now, 0, 0);
        }
        // The last of its kind: it is told again and again, so there is one at most within the window.
        let before = client.records.iter_mut().rev().find(|r| r.kept.told.is(&told));
        let mut again = String::new();
        if let Some(Record { kept, since }) = before {
            if now.duration_since(*since) < WINDOW {
                kept.last = at;
                kept.count += 1;
                return Taken {
                    number: kept.number,
                    audit: kept.audit,
                    logged: false,
                    audited_as: None,
                };
            }
            if let (Some(audit), 2..) = (kept.audit, kept.count) {
                again = format!(" (A{audit} came {} times)", kept.count);
            }
        }
        let audited = !strange && told.is_for_the_audit() && client.audited < AUDITED;
        client.audited += u32::from(audited);
        client.logged = client.logged.saturating_add(1);
        let logged = client.logged <= LOGGED;
        if client.records.len() >= OF_ONE_CLIENT {
            client.records.pop_front();
        }
        let number = self.next;
        self.next += 1;
        let kept = Kept {
            number,
            told,
            first: at,
            last: at,
            count: 1,
            audit: None,
        };
        client.records.push_back(Record { kept, since: now });
        Taken {
            number,
            audit: None,
            logged,
            audited_as: audited.then_some(again),
        }
    }

    /// Among whose a refusal is kept. Whoever has been quiet for longest makes room, but nobody who has lately filled his part of the audit:
    /// he would begin anew. Where nobody can, it is kept with the strangers'.
    fn place(&mut self, who: &Who, now: Instant) -> String {
        let Who::Client { requester, .. } = who else {
            return String::new();
        };
        if self.clients.contains_key(requester) || self.clients.len() < CLIENTS {
            return requester.clone();
        }
        let quiet = |c: &Client| c.audited == 0 || now.duration_since(c.since) >= WINDOW;
        let candidates = self.clients.iter().filter(|(name, c)| !name.is_empty() && quiet(c));
        let Some(oldest) = candidates.min_by_key(|(_, c)| c.last).map(|(name, _)| name.clone()) else {
            return String::new();
        };
        self.clients.remove(&oldest);
        requester.clone()
    }
}

fn shortened(told: &Told) -> Told {
    let short = |text: &str| escape(text).chars().take(MAX_TEXT).collect();
    let who = match &told.who {
        Who::Client { requester, name } => Who::Client {
            requester: requester.clone(),
            name: short(name),
        },
        Who::Stranger(name) => Who::Stranger(short(name)),
    };
    Told {
        who,
        rpc: short(&told.rpc),
        code: told.code,
        reason: short(&told.reason),
        message: short(&told.message),
        request: short(&told.request),
    }
}

#[cfg(test)]
mod tests;
