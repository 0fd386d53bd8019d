//! What is trusted now, and who is connected because of it. When the files of `[api]` change, they are read again: what cannot be used changes
//! nothing and is said; what can takes effect at once, for new connections and for those that are open.

use std::{
    collections::BTreeSet,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustls::pki_types::CertificateDer;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::{
    clients::{Clients, Seen, write_whole},
    connections::{Connections, Entry, Place},
    peer::Peer,
    report,
    tls::TlsError,
    trust::{self, Trust},
};
use crate::{
    config::{Api, Config},
    model::{Fingerprint, Identity, Role},
};

/// How often files, connections and ends are looked at. A change is taken once it has not gone on for so long.
const LOOK: Duration = Duration::from_secs(1);
/// How often what could not be used is tried again, for instance a certificate that was not valid yet.
const RETRY: Duration = Duration::from_secs(30);
/// How often it is noted of open connections that their certificates are still shown, and at most written.
const NOTE: Duration = Duration::from_secs(60);
/// How often warnings are repeated in the log.
const REPEAT: Duration = Duration::from_secs(86_400);

/// The access layer, running. Clones are the same.
#[derive(Clone, Debug)]
pub struct Access(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connections: Arc<Connections>,
    network: Option<Network>,
    poke: Notify,
}

#[derive(Debug)]
struct Network {
    api: Api,
    /// `clients.json` in the state directory.
    memory: PathBuf,
    /// `finished-ca` in the state directory: a file for each CA whose retirement is finished.
    finished: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    trust: Arc<Trust>,
    read_at: SystemTime,
    clients: Clients,
    /// What is in `clients` and not in its file: nothing, times, or certificates.
    unwritten: Unwritten,
    written: Instant,
    noted: Instant,
    /// Why the file of `clients` cannot be written or could not be read.
    memory_problem: Option<String>,
    /// The files as they were when they were last read.
    files: Vec<Print>,
    /// As they were a moment ago, if they have changed.
    changing: Option<Vec<Print>>,
    /// Why what they have become cannot be used.
    problem: Option<String>,
    tried: Instant,
    looked: SystemTime,
    warned: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unwritten {
    Nothing,
    Times,
    Certificates,
}

/// By what a file's change is seen, through links: device, inode, size, modification and change in nanoseconds.
type Print = Option<(u64, u64, u64, i128, i128)>;

/// Why a CA's retirement is not finished.
#[derive(Debug, thiserror::Error)]
pub enum FinishError {
    /// No CA in force has this fingerprint.
    #[error("no CA that is trusted has this fingerprint")]
    UnknownCa,
    /// It is to stay.
    #[error("this CA is not retiring; name its file in api.retiring_ca first")]
    NotRetiring,
    /// Someone needs it.
    #[error("{pending} clients still need this CA; renew their certificates, or finish by force with a reason")]
    Pending {
        /// How many.
        pending: u64,
    },
    /// Who needs it is not known for sure.
    #[error("the memory of clients is not whole ({0}); finish by force with a reason")]
    NotSure(String),
    /// It is remembered, but not in force.
    #[error("it is kept, but the files of [api] cannot be used as they are now, so that the CA goes with their next reading")]
    NotYet,
    /// It cannot be remembered.
    #[error("this cannot be kept in the state directory: {0}")]
    Write(#[from] io::Error),
}

/// What is kept of a retirement that is finished.
#[derive(Debug, Serialize)]
struct Finished<'a> {
    ca: String,
    subject: &'a str,
    at: i64,
    by: &'a str,
    forced: bool,
    reason: &'a str,
    pending: u64,
}

impl Access {
    /// Reads the files of `[api]` and who was seen before.
    ///
    /// # Errors
    /// What is wrong with the files. A memory that cannot be read is said, and does not keep the daemon from starting.
    pub fn open(config: &Config) -> Result<Self, TlsError> {
        let network = config.api.as_ref().map(|api| Network::open(api, &config.paths.state));
        Ok(Self(Arc::new(Inner {
            connections: Arc::default(),
            network: network.transpose()?,
            poke: Notify::new(),
        })))
    }

    /// Has the files read again now, changed or not.
    pub fn poke(&self) {
        self.0.poke.notify_one();
    }

    /// How it stands; `None`: there is no network API.
    #[must_use]
    pub fn report(&self) -> Option<report::Report> {
        let network = self.0.network.as_ref()?;
        // Before the lock: a connection that enters takes the two in the other order.
        let connections = self.0.connections.len();
        let state = network.lock();
        let mut report = report::report(&network.api, &state.trust, &state.clients, SystemTime::now());
        report.read_at = state.read_at;
        report.connections = connections;
        report.warnings.extend(state.problem.clone());
        report.warnings.extend(state.memory_problem.clone());
        Some(report)
    }

    /// What an operator should know or do.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.report().map(|r| r.warnings).unwrap_or_default()
    }

    /// Ends the trust in a retiring CA, for good: it is remembered over restarts, whatever `api.retiring_ca` says. Open connections of its
    /// clients are closed. Blocks on files. Answers how many clients needed it.
    ///
    /// # Errors
    /// See [`FinishError`].
    pub fn finish(&self, ca: &Fingerprint, force: bool, reason: &str, by: &Identity) -> Result<u64, FinishError> {
        let network = self.0.network.as_ref().ok_or(FinishError::UnknownCa)?;
        let pending = network.finish(ca, force, reason, by)?;
        network.reload(&self.0.connections);
        // If the files cannot be used as they are now, what was read before is in force; the mark is kept and counts from the next reading.
        if network.lock().trust.ca(ca).is_some() {
            return Err(FinishError::NotYet);
        }
        Ok(pending)
    }

    /// What is trusted now; `None`: there is no network API.
    pub(super) fn trust(&self) -> Option<Arc<Trust>> {
        self.0.network.as_ref().map(|n| Arc::clone(&n.lock().trust))
    }

    /// Takes a connection in whose handshake was made while `then` was trusted, and remembers its certificate. `None`: it is no longer
    /// trusted, or its client has as many connections as it may.
    pub(super) fn enter(&self, peer: &Peer, chain: &[CertificateDer<'_>], then: &Trust) -> Option<Place> {
        let network = self.0.network.as_ref()?;
        let now = SystemTime::now();
        let ca = then.verify(chain, now).ok()?;
        let seen = match peer {
            Peer::Known {
                identity,
                shown: Some(shown),
            } => Some(Seen {
                client: identity.client.to_string(),
                role: identity.role,
                serial: shown.serial.clone(),
                ca: ca.fingerprint.to_string(),
                not_after: report::seconds(shown.until),
                first_seen: report::seconds(now),
                last_seen: report::seconds(now),
            }),
            _ => None,
        };
        let client = match peer {
            Peer::Known { identity, .. } => Some((identity.client.clone(), network.api.max_connections_per_client)),
            Peer::Refused { .. } => None,
        };
        let entry = Entry {
            name: peer.name().to_owned(),
            client,
            chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
            seen: seen.clone(),
            idle: network.api.idle_timeout,
        };
        let valid = || {
            let current = Arc::clone(&network.lock().trust);
            std::ptr::eq(&*current, then) || current.verify(chain, now).is_ok()
        };
        let place = self.0.connections.enter(entry, valid)?;
        if let Some(seen) = seen {
            network.lock().note(seen);
        }
        Some(place)
    }

    /// Takes a local connection in; of a user other than root at most so many. `None`: that many are open.
    pub(super) fn enter_local(&self, peer: &Peer, of_one_user: usize, idle: Duration) -> Option<Place> {
        let client = match peer {
            Peer::Known { identity, .. } if identity.role != Role::Operator => {
                Some((format!("local {}", identity.client).into(), of_one_user))
            }
            Peer::Known { .. } | Peer::Refused { .. } => None,
        };
        let entry = Entry {
            name: peer.name().to_owned(),
            client,
            chain: Vec::new(),
            seen: None,
            idle,
        };
        self.0.connections.enter(entry, || true)
    }

    /// Looks after files and connections until `stopped`.
    pub(super) async fn tend(&self, mut stopped: watch::Receiver<bool>) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let poked = tokio::select! {
                _ = looks.tick() => false,
                () = self.0.poke.notified() => true,
                // An error means that the daemon is gone.
                _ = stopped.wait_for(|s| *s) => break,
            };
            let inner = Arc::clone(&self.0);
            let looked = tokio::task::spawn_blocking(move || inner.look(poked));
            if let Err(error) = looked.await {
                tracing::error!(%error, "looking after the API's certificates failed");
            }
        }
        if let Some(network) = &self.0.network {
            network.lock().write(&network.memory);
        }
    }
}

impl Inner {
    fn look(&self, poked: bool) {
        self.connections.end_idle();
        if let Some(network) = &self.network {
            network.look(poked, &self.connections);
        }
    }
}

impl Network {
    fn open(api: &Api, state: &Path) -> Result<Self, TlsError> {
        let (memory, finished) = (state.join("clients.json"), state.join("finished-ca"));
        let files = prints(api);
        let trust = Arc::new(trust::load(api, &finished_cas(&finished)?)?);
        let now = SystemTime::now();
        let empty = || Clients::new(report::seconds(now));
        let (clients, memory_problem) = match Clients::read(&memory) {
            Ok(clients) => (clients.unwrap_or_else(empty), None),
            Err(error) => {
                let sentence = format!("who was connected before is not known: {}: {error}", memory.display());
                tracing::error!("{sentence}");
                (empty(), Some(sentence))
            }
        };
        let state = State {
            trust,
            read_at: now,
            clients,
            unwritten: Unwritten::Nothing,
            written: Instant::now(),
            noted: Instant::now(),
            memory_problem,
            files,
            changing: None,
            problem: None,
            tried: Instant::now(),
            looked: now,
            warned: None,
        };
        Ok(Self {
            api: api.clone(),
            memory,
            finished,
            state: Mutex::new(state),
        })
    }

    fn look(&self, poked: bool, connections: &Connections) {
        if poked || self.is_due() {
            self.reload(connections);
        }
        let now = SystemTime::now();
        let (trust, ended) = {
            let mut state = self.lock();
            let before = std::mem::replace(&mut state.looked, now);
            (Arc::clone(&state.trust), state.trust.ended_between(before, now))
        };
        connections.verify(ended, now, |chain| trust.verify(chain, now).is_ok());
        let still = connections.seen();
        let mut state = self.lock();
        if state.noted.elapsed() >= NOTE {
            state.noted = Instant::now();
            for seen in still {
                let last_seen = report::seconds(now);
                state.note(Seen { last_seen, ..seen });
            }
        }
        if state.unwritten == Unwritten::Certificates || state.written.elapsed() >= NOTE {
            state.write(&self.memory);
        }
        if state.warned.is_none_or(|at| at.elapsed() >= REPEAT) {
            state.warned = Some(Instant::now());
            for warning in report::report(&self.api, &state.trust, &state.clients, now).warnings {
                tracing::warn!("{warning}");
            }
        }
    }

    /// Whether the files have changed, and are no longer changing; or what could not be used is to be tried again.
    fn is_due(&self) -> bool {
        let now = prints(&self.api);
        let mut state = self.lock();
        if now == state.files {
            state.changing = None;
            return state.problem.is_some() && state.tried.elapsed() >= RETRY;
        }
        let settled = state.changing.as_ref() == Some(&now);
        state.changing = Some(now);
        settled
    }

    fn reload(&self, connections: &Connections) {
        // Before the reading, so that a change during it is seen by the next look.
        let files = prints(&self.api);
        let loaded = finished_cas(&self.finished).and_then(|finished| trust::load(&self.api, &finished));
        let now = SystemTime::now();
        let trust = {
            let mut state = self.lock();
            (state.files, state.changing, state.tried) = (files, None, Instant::now());
            match loaded {
                Ok(trust) => {
                    let trust = Arc::new(trust);
                    (state.trust, state.read_at, state.problem, state.warned) = (Arc::clone(&trust), now, None, None);
                    trust
                }
                Err(error) => {
                    let sentence = format!("[api]: {error}; what was read before stays in force");
                    if state.problem.as_ref() != Some(&sentence) {
                        tracing::error!("{sentence}");
                    }
                    state.problem = Some(sentence);
                    return;
                }
            }
        };
        tracing::info!(
            cas = trust.cas.len(),
            lists = trust.lists.len(),
            "certificates, key and revocation lists were read again"
        );
        connections.verify(true, now, |chain| trust.verify(chain, now).is_ok());
    }

    fn finish(&self, ca: &Fingerprint, force: bool, reason: &str, by: &Identity) -> Result<u64, FinishError> {
        let now = SystemTime::now();
        let state = self.lock();
        let report = report::report(&self.api, &state.trust, &state.clients, now);
        let found = report
            .cas
            .iter()
            .find(|c| c.fingerprint == *ca)
            .ok_or(FinishError::UnknownCa)?;
        if !found.retiring {
            return Err(FinishError::NotRetiring);
        }
        let pending = found.clients.iter().filter(|c| c.pending).count() as u64;
        if !force {
            if pending > 0 {
                return Err(FinishError::Pending { pending });
            }
            if let Some(problem) = &state.memory_problem {
                return Err(FinishError::NotSure(problem.clone()));
            }
            if state.clients.incomplete {
                return Err(FinishError::NotSure("there were more clients than are remembered".into()));
            }
        }
        let kept = Finished {
            ca: ca.to_string(),
            subject: &found.certificate.subject,
            at: report::seconds(now),
            by: &by.name,
            forced: force,
            reason,
            pending,
        };
        let content = serde_json::to_vec_pretty(&kept).map_err(io::Error::other)?;
        write_whole(&self.finished.join(ca.to_string()), &content)?;
        tracing::warn!(
            ca = kept.subject,
            by = kept.by,
            force,
            reason,
            pending,
            "a CA's retirement is finished"
        );
        Ok(pending)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is whole before it is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn note(&mut self, seen: Seen) {
        let unwritten = if self.clients.note(seen) {
            Unwritten::Certificates
        } else {
            Unwritten::Times
        };
        self.unwritten = self.unwritten.max(unwritten);
    }

    fn write(&mut self, memory: &Path) {
        self.written = Instant::now();
        if self.unwritten == Unwritten::Nothing {
            return;
        }
        match self.clients.write(memory) {
            Ok(()) => (self.unwritten, self.memory_problem) = (Unwritten::Nothing, None),
            Err(error) => {
                let sentence = format!("who is connected cannot be kept: {}: {error}", memory.display());
                if self.memory_problem.as_ref() != Some(&sentence) {
                    tracing::error!("{sentence}");
                }
                self.memory_problem = Some(sentence);
                // With the times: not every second.
                self.unwritten = Unwritten::Times;
            }
        }
    }
}

/// Those whose retirement is finished: what counts is that the file is there.
fn finished_cas(directory: &Path) -> Result<BTreeSet<Fingerprint>, TlsError> {
    let failed = |error| TlsError::Read {
        path: directory.into(),
        error,
    };
    let files = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        read => read.map_err(failed)?,
    };
    let mut found = BTreeSet::new();
    for file in files {
        found.extend(
            file.map_err(failed)?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<Fingerprint>().ok()),
        );
    }
    Ok(found)
}

fn prints(api: &Api) -> Vec<Print> {
    let files = [&api.certificate, &api.key]
        .into_iter()
        .chain(&api.client_ca)
        .chain(&api.retiring_ca)
        .chain(&api.crl);
    let print = |path: &PathBuf| {
        let m = fs::metadata(path).ok()?;
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        let (modified, changed) = (nanoseconds(m.mtime(), m.mtime_nsec()), nanoseconds(m.ctime(), m.ctime_nsec()));
        Some((m.dev(), m.ino(), m.len(), modified, changed))
    };
    files.map(print).collect()
}
