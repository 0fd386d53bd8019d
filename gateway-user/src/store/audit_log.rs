//! The audit as lines of JSON in a file, and its head in the log: what an editor of the database cannot reach. A thread of its own reads
//! the database beside the controller, so that a slow disk for logs holds nothing up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{AuditQuery, Reader, StoreError, files};
use crate::{
    audit::{Head, Line, Sealed},
    durable,
};

/// How long an entry waits at most.
const EVERY: Duration = Duration::from_secs(1);
/// How often the head goes to the log, if it has changed.
const HEAD_EVERY: Duration = Duration::from_secs(600);
/// A look at the file that takes so long is told: what mounts it may have gone away.
const STUCK: Duration = Duration::from_secs(10);
/// Entries that are read at a time.
const AT_ONCE: u32 = 1000;
/// The end of the file, in which its last line is looked for; more than is written at a time.
const TAIL: u64 = 8 << 20;
/// Remembers how far the file came, for when it is rotated away while the daemon is down.
const POSITION: &str = "audit-log.position";
/// Remembers how many entries the file lacks, and up to which that is counted.
const LOST: &str = "audit-log.lost";

/// The thread. It ends, with everything written that can be, when this goes.
#[derive(Debug)]
pub struct AuditLog {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    health: LogHealth,
}

/// How the audit log stands, as its thread has last told it. Clones are the same; without a thread all is well.
#[derive(Clone, Debug, Default)]
pub struct LogHealth(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    state: LogState,
    /// Since when the thread is at it.
    at_it: Option<Instant>,
}

/// See [`LogHealth`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogState {
    /// Why entries wait in the database; `None`: they are written as they come.
    pub problem: Option<String>,
    /// Entries that were pruned from the database before they could be written, in all: the file lacks them for good.
    pub lost: u64,
}

impl LogHealth {
    /// As it stands now.
    #[must_use]
    pub fn state(&self) -> LogState {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let stuck = told.at_it.map(|since| since.elapsed()).filter(|time| *time >= STUCK);
        LogState {
            problem: match (&told.state.problem, stuck) {
                (None, Some(time)) => Some(format!("its file system has not answered for {} s", time.as_secs())),
                (problem, _) => problem.clone(),
            },
            lost: told.state.lost,
        }
    }

    fn change(&self, change: impl FnOnce(&mut LogState)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).state);
    }

    fn at_it(&self, since: Option<Instant>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).at_it = since;
    }
}

impl AuditLog {
    /// Starts it on a state directory's database, which must be there.
    ///
    /// # Errors
    /// No thread.
    pub fn start(directory: &Path, file: Option<PathBuf>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let health = LogHealth::default();
        let mut work = Work {
            directory: directory.to_owned(),
            reader: None,
            written: None,
            counted: Head::NONE,
            told: Head::NONE,
            told_at: None,
            complained: false,
            file,
            health: health.clone(),
        };
        let thread = thread::Builder::new().name("audit-log".to_owned()).spawn(move || {
            loop {
                let last = !matches!(stopped.recv_timeout(EVERY), Err(RecvTimeoutError::Timeout));
                work.look(last);
                if last {
                    return;
                }
            }
        })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
            health,
        })
    }

    /// How it stands.
    #[must_use]
    pub fn health(&self) -> LogHealth {
        self.health.clone()
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.stop = None;
        // A thread that has died has said so.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Work {
    directory: PathBuf,
    file: Option<PathBuf>,
    reader: Option<Reader>,
    /// The last entry in the file that the database has, too; `None`: not looked yet.
    written: Option<Head>,
    /// Up to where what is lost is counted.
    counted: Head,
    told: Head,
    told_at: Option<Instant>,
    complained: bool,
    health: LogHealth,
}

impl Work {
    fn look(&mut self, last: bool) {
        self.health.at_it(Some(Instant::now()));
        let passed = self.pass(last);
        self.health.at_it(None);
        match passed {
            Ok(()) => {
                self.health.change(|state| state.problem = None);
                if std::mem::take(&mut self.complained) {
                    info!("the audit log is written again");
                }
            }
            Err(e) => {
                self.reader = None;
                self.health.change(|state| state.problem = Some(e.to_string()));
                if !std::mem::replace(&mut self.complained, true) {
                    error!(
                        error = %e,
                        "the audit log cannot be written; it is tried again, and nothing is left out but what the database prunes meanwhile"
                    );
                }
            }
        }
    }

    fn pass(&mut self, last: bool) -> Result<(), StoreError> {
        let reader = match &mut self.reader {
            Some(reader) => reader,
            empty => empty.insert(Reader::of_directory(&self.directory)?),
        };
        let (head, anchor) = reader.ends()?;
        if let Some(file) = &self.file {
            let [position, missing] = [POSITION, LOST].map(|name| self.directory.join(name));
            let written = match &mut self.written {
                Some(written) => written,
                empty => {
                    let (lost, counted) = lost(&missing).map_err(|e| failed(&missing, &e))?;
                    self.health.change(|state| state.lost = lost);
                    // Of another chain, it says nothing of this one.
                    self.counted = if counted.number > anchor.number { Head::NONE } else { counted };
                    let resumed = resume(file, &position, reader, head, anchor);
                    // A log that begins now lacks nothing; what goes from now on it lacks, also if it cannot be written at first.
                    if !matches!(resumed, Ok(Some(_))) && noted(&position).is_ok_and(|n| n.is_none()) {
                        note(&position, &anchor.to_string())?;
                    }
                    empty.insert(resumed?.unwrap_or(anchor))
                }
            };
            if written.number < anchor.number {
                warn!(
                    from = written.number + 1,
                    to = anchor.number,
                    "entries of the audit were pruned before they could be logged"
                );
                let more = anchor.number.saturating_sub(written.number.max(self.counted.number));
                let lost = self.health.state().lost.saturating_add(more);
                note(&missing, &format!("{lost} {anchor}"))?;
                self.health.change(|state| state.lost = lost);
                (*written, self.counted) = (anchor, anchor);
            }
            while written.number < head.number {
                let entries = reader.audit(&AuditQuery::After {
                    number: written.number,
                    limit: AT_ONCE,
                })?;
                let Some(last) = entries.last().map(head_of) else {
                    break;
                };
                append(file, entries.into_iter().map(Line::from)).map_err(|e| failed(file, &e))?;
                *written = last;
                note(&position, &last.to_string())?;
            }
        }
        let due = last || self.told_at.is_none_or(|t| t.elapsed() >= HEAD_EVERY);
        if due && head != self.told && head != Head::NONE {
            info!(audit_head = %head, "audit");
            (self.told, self.told_at) = (head, Some(Instant::now()));
        }
        Ok(())
    }
}

/// The entry behind which the log goes on: its last one, if the database's chain has it. Otherwise a backup has taken the database's place: the
/// last one that the log has and that chain, too, so that none of the chain is left out; the entry of the restore is the first of the rest. `None`: no log has
/// begun.
fn resume(file: &Path, position: &Path, reader: &Reader, head: Head, anchor: Head) -> Result<Option<Head>, StoreError> {
    let Some(reached) = reached(file, position).map_err(|e| failed(file, &e))? else {
        return Ok(None);
    };
    if reached == Head::NONE || has(reader, head, anchor, reached)? {
        return Ok(Some(reached));
    }
    let mut common = anchor;
    for logged in logged(file).map_err(|e| failed(file, &e))?.into_iter().rev() {
        if logged.number >= anchor.number && has(reader, head, anchor, logged)? {
            common = logged;
            break;
        }
    }
    warn!(
        logged = %reached, goes_on_after = %common,
        "the audit log has entries that the database has not: a backup took its place; entries that come now may have numbers of others before"
    );
    Ok(Some(common))
}

/// Whether the database's chain has this entry, or had it before it was pruned: then nothing can be said against it.
fn has(reader: &Reader, head: Head, anchor: Head, entry: Head) -> Result<bool, StoreError> {
    if entry.number > head.number {
        return Ok(false);
    }
    if entry.number <= anchor.number {
        return Ok(entry.number < anchor.number || entry.hash == anchor.hash);
    }
    let found = reader.audit(&AuditQuery::After {
        number: entry.number - 1,
        limit: 1,
    })?;
    Ok(found.first().map(head_of) == Some(entry))
}

fn head_of(sealed: &Sealed) -> Head {
    Head {
        number: sealed.entry.number,
        hash: sealed.hash,
    }
}

fn head_of_line(line: &[u8]) -> Option<Head> {
    let line: Line = serde_json::from_slice(line).ok()?;
    Some(head_of(&line.into()))
}

/// Every entry in the file, in its order; none if it is not there.
fn logged(file: &Path) -> io::Result<Vec<Head>> {
    let log = match open(OpenOptions::new().read(true), file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        log => log?,
    };
    let mut all = Vec::new();
    for line in BufReader::new(log).split(b'\n') {
        all.extend(head_of_line(&line?));
    }
    Ok(all)
}

/// How far the log has come: its last line says so, or, where it has none, what was noted.
fn reached(file: &Path, position: &Path) -> io::Result<Option<Head>> {
    let mut log = match open(OpenOptions::new().read(true).write(true), file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return noted(position),
        log => log?,
    };
    let length = log.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    log.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    log.take(TAIL).read_to_end(&mut tail)?;
    let noted = noted(position)?;
    let whole = whole(&tail, noted.unwrap_or(Head::NONE), from == 0);
    if whole < tail.len() {
        // The machine died in the middle of a line, or of writing several.
        OpenOptions::new().write(true).open(file)?.set_len(from + whole as u64)?;
    }
    let mut lines = tail[..whole].split(|b| *b == b'\n').rev();
    Ok(lines.find_map(head_of_line).or(noted))
}

/// How much of the end of a log is whole. What came after the entry that was noted last was perhaps not all on the disk when the machine died:
/// blocks of it can be missing, with more behind them. From the first line there on that is none, it is written again. What came before was
/// on the disk: nothing of that is touched. `all`: the tail is the whole log.
fn whole(tail: &[u8], noted: Head, all: bool) -> usize {
    let end = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let (mut at, mut certain) = (0, None);
    let mut lines = Vec::new();
    for line in tail[..end].split_inclusive(|b| *b == b'\n') {
        let head = head_of_line(line);
        if head == Some(noted) {
            certain = Some(at + line.len());
        }
        lines.push((at, head));
        at += line.len();
    }
    // A log that begins behind the note: it was new, or the one before it was rotated away.
    let begins = || {
        lines
            .iter()
            .find_map(|(_, h)| *h)
            .is_none_or(|first| first.number == noted.number + 1)
    };
    let certain = certain.or_else(|| (all && begins()).then_some(0));
    let torn = lines
        .iter()
        .find(|(at, head)| head.is_none() && certain.is_some_and(|c| *at >= c));
    torn.map_or(end, |(at, _)| *at)
}

fn noted(position: &Path) -> io::Result<Option<Head>> {
    // What cannot be read says nothing: all is written again.
    Ok(read(position)?.and_then(|text| text.trim().parse().ok()))
}

/// How many entries the log lacks, and up to which they are counted.
fn lost(missing: &Path) -> io::Result<(u64, Head)> {
    let text = read(missing)?.unwrap_or_default();
    let parts = text.trim().split_once(' ');
    let parsed = parts.and_then(|(count, head)| Some((count.parse().ok()?, head.parse().ok()?)));
    Ok(parsed.unwrap_or((0, Head::NONE)))
}

fn read(file: &Path) -> io::Result<Option<String>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn open(how: &mut OpenOptions, file: &Path) -> io::Result<File> {
    // A pipe is not waited for, and none of ours.
    let opened = how
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(file)?;
    if opened.metadata()?.is_file() {
        Ok(opened)
    } else {
        Err(io::Error::other("it is not a plain file"))
    }
}

/// All of the lines, or none; the file is opened each time, so that one that was rotated away is left alone.
fn append(file: &Path, lines: impl Iterator<Item = Line>) -> io::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    let mut log = open(OpenOptions::new().append(true).create(true).mode(0o600), file)?;
    let before = log.metadata()?.len();
    // On the disk before it is noted: otherwise a loss of power leaves out what the note has behind it.
    let written = log.write_all(&text).and_then(|()| log.sync_data()).and_then(|()| {
        if before == 0 {
            return durable::synchronise_name(file);
        }
        Ok(())
    });
    written.inspect_err(|_| {
        // The next try begins where this one did.
        let _ = log.set_len(before);
    })
}

fn note(position: &Path, what: &str) -> Result<(), StoreError> {
    let draft = files::beside(position, "new");
    files::discard(&draft);
    files::make_new(&draft)?;
    let written = File::options()
        .write(true)
        .open(&draft)
        .and_then(|mut f| writeln!(f, "{what}").and_then(|()| f.sync_data()));
    written.map_err(|e| failed(&draft, &e))?;
    files::replace(&draft, position)
}

fn failed(file: &Path, error: &io::Error) -> StoreError {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "; make its directory",
        io::ErrorKind::PermissionDenied => "; its directory must be the daemon's own",
        io::ErrorKind::ReadOnlyFilesystem => {
            "; systemd's unit lets the daemon write below LogsDirectory= and ReadWritePaths= only"
        }
        _ => "",
    };
    StoreError::Io(format!("{}: {error}{remedy}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_does_not_answer_is_told() {
        let health = LogHealth::default();
        health.at_it(Some(Instant::now()));
        assert_eq!(health.state(), LogState::default());
        health.at_it(Instant::now().checked_sub(STUCK + Duration::from_secs(2)));
        assert!(health.state().problem.unwrap().contains("12 s"));
        health.at_it(None);
        assert_eq!(health.state(), LogState::default());
    }
}
