//! Children that end with their owner, in a namespace or not, with their output in a file that a failing test can show.

use std::{
    fs::File,
    io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal},
    unistd::Pid,
};

use crate::netns::Namespace;

/// A command that will run inside `namespace`, and be killed if the thread that starts it dies.
#[must_use]
pub fn command(namespace: Option<&Namespace>, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let file = namespace.map(Namespace::handle);
    let enter = move || {
        if let Some(file) = &file {
            setns(file, CloneFlags::CLONE_NEWNET)?;
        }
        prctl::set_pdeathsig(signal::Signal::SIGKILL)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes two system calls and touches nothing that a lock of the parent could guard: the
    // namespace's file was opened before.
    unsafe { command.pre_exec(enter) };
    command.stdin(Stdio::null());
    command
}

/// Runs it to its end and gives its output, standard error included.
///
/// # Errors
/// It cannot be started, or does not succeed: the error holds its output.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    ensure!(out.status.success(), "{command:?}: {}: {}", out.status, text.trim());
    Ok(text)
}

/// A child that runs beside the test.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
    /// Where its own output starts in the file.
    start: usize,
}

impl Process {
    /// Starts it with its output appended to the file `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command, log: &Path) -> Result<Self> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let start = usize::try_from(out.metadata()?.len())?;
        let name = command.get_program().to_string_lossy().into_owned();
        let child = command
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            child,
            name,
            log: log.to_owned(),
            start,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    #[must_use]
    pub fn log(&self) -> String {
        let own = |bytes: Vec<u8>| String::from_utf8_lossy(bytes.get(self.start..).unwrap_or_default()).into_owned();
        std::fs::read(&self.log).map_or_else(|e| e.to_string(), own)
    }

    /// `None` while it runs.
    ///
    /// # Errors
    /// See [`Child::try_wait`].
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: signal::Signal) -> Result<()> {
        Ok(signal::kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Kills it at once, and waits until it is gone.
    ///
    /// # Errors
    /// See [`Child::wait`].
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        let _gone_already = self.child.kill();
        self.child.wait()
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        if self.ended()?.is_none() {
            self.signal(signal::Signal::SIGTERM)?;
        }
        self.wait(limit)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut status = None;
        until(limit, &format!("{} ends", self.name), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("it has ended")
    }

    /// Waits until its output holds `text`.
    ///
    /// # Errors
    /// It ends before, or does not print it within `limit`; the error holds its output.
    pub fn prints(&mut self, text: &str, limit: Duration) -> Result<()> {
        let what = format!("{} prints {text:?}", self.name);
        let found = until(limit, &what, || {
            let ended = self.ended()?;
            if self.log().contains(text) {
                return Ok(true);
            }
            ended.map_or(Ok(false), |status| bail!("it ended: {status}"))
        });
        found.with_context(|| format!("output of {}:\n{}", self.name, self.log()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.kill();
        if thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- last output of {} ---", self.name);
            tail.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Asks every few milliseconds until `done` says so.
///
/// # Errors
/// `done` fails, or `limit` has passed; `what` stands in the error.
pub fn until(limit: Duration, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        if done().with_context(|| format!("while waiting until {what}"))? {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("not within {limit:?}: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}
