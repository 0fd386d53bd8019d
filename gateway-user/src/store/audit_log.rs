//! The audit as lines of JSON in a file, and its head in the log: what an editor of the database cannot reach. A thread of its own reads
//! the database beside the controller, so that a slow disk for logs holds nothing up.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{AuditQuery, Reader, StoreError, files};
use crate::audit::{Head, Line};

/// How long an entry waits at most.
const EVERY: Duration = Duration::from_secs(1);
/// How often the head goes to the log, if it has changed.
const HEAD_EVERY: Duration = Duration::from_secs(600);
/// Entries that are read at a time.
const AT_ONCE: u32 = 1000;
/// The end of the file, in which its last line is looked for.
const TAIL: u64 = 1 << 20;
/// Remembers how far the file came, for when it is rotated away while the daemon is down.
const POSITION: &str = "audit-log.position";

/// The thread. It ends, with everything written that can be, when this goes.
#[derive(Debug)]
pub struct AuditLog {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AuditLog {
    /// Starts it on a state directory's database, which must be there.
    ///
    /// # Errors
    /// No thread.
    pub fn start(directory: &Path, file: Option<PathBuf>) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let mut work = Work {
            directory: directory.to_owned(),
            reader: None,
            written: None,
            told: Head::NONE,
            told_at: None,
            complained: false,
            file,
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
        })
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
    /// Number of the last entry in the file; `None`: not looked yet.
    written: Option<u64>,
    told: Head,
    told_at: Option<Instant>,
    complained: bool,
}

impl Work {
    fn look(&mut self, last: bool) {
        match self.pass(last) {
            Ok(()) => {
                if std::mem::take(&mut self.complained) {
                    info!("the audit log is written again");
                }
            }
            Err(e) => {
                self.reader = None;
                if !std::mem::replace(&mut self.complained, true) {
                    error!(error = %e, "the audit log cannot be written; it is tried again, and nothing is left out");
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
            let position = self.directory.join(POSITION);
            let written = match &mut self.written {
                Some(written) => written,
                empty => empty.insert(reached(file, &position).map_err(|e| failed(file, &e))?),
            };
            // Another database than the one that was logged: a backup took its place.
            *written = (*written).min(head.number);
            if *written < anchor.number {
                warn!(
                    from = *written + 1,
                    to = anchor.number,
                    "entries of the audit were pruned before they could be logged"
                );
            }
            while *written < head.number {
                let entries = reader.audit(&AuditQuery::After {
                    number: *written,
                    limit: AT_ONCE,
                })?;
                let Some(number) = entries.last().map(|e| e.entry.number) else {
                    break;
                };
                append(file, entries.into_iter().map(Line::from)).map_err(|e| failed(file, &e))?;
                *written = number;
                note(&position, number)?;
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

/// Up to which number the log has come: its last line says so, or, where it has none, what was noted.
fn reached(file: &Path, position: &Path) -> io::Result<u64> {
    let mut log = match OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(file)
    {
        Ok(log) => log,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return noted(position),
        Err(e) => return Err(e),
    };
    let length = log.metadata()?.len();
    let from = length.saturating_sub(TAIL);
    log.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    log.take(TAIL).read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        // The machine died in the middle of a line.
        OpenOptions::new().write(true).open(file)?.set_len(from + whole as u64)?;
    }
    let lines = tail[..whole].split(|b| *b == b'\n').rev();
    let number = |line: &[u8]| {
        serde_json::from_slice::<serde_json::Value>(line)
            .ok()?
            .get("number")?
            .as_u64()
    };
    lines
        .filter(|l| !l.is_empty())
        .find_map(number)
        .map_or_else(|| noted(position), Ok)
}

fn noted(position: &Path) -> io::Result<u64> {
    match fs::read_to_string(position) {
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

/// All of the lines, or none; the file is opened each time, so that one that was rotated away is left alone.
fn append(file: &Path, lines: impl Iterator<Item = Line>) -> io::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    let mut log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
        .open(file)?;
    let before = log.metadata()?.len();
    log.write_all(&text).inspect_err(|_| {
        // The next try begins where this one did.
        let _ = log.set_len(before);
    })
}

fn note(position: &Path, number: u64) -> Result<(), StoreError> {
    let draft = files::beside(position, "new");
    files::discard(&draft);
    files::make_new(&draft)?;
    let written = File::options()
        .write(true)
        .open(&draft)
        .and_then(|mut f| writeln!(f, "{number}"));
    written.map_err(|e| failed(&draft, &e))?;
    files::rename(&draft, position)
}

fn failed(file: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(format!("{}: {error}", file.display()))
}
