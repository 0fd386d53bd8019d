//! `cargo xtask test`: runs every test, and says at the end how many ran and which were skipped.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use anyhow::{Context as _, Result};

use crate::{api, cargo, run::check};

/// Packages of the gRPC client that is not ours.
const PYTHON_PACKAGES: &[&str] = &[
    "grpcio",
    "grpcio-tools",
    "grpcio-health-checking",
    "grpcio-reflection",
    "grpcio-status",
];
/// Most tests at a time: those with namespaces of their own share two cores well, not eight.
const MOST_THREADS: usize = 4;

/// Random packets of the differential tests in the nightly form.
const NIGHTLY_CASES: &str = "1000000";

/// Deaths of the daemon under load in the nightly form: ten minutes where nothing else runs.
const NIGHTLY_DEATHS: &str = "200";

/// Runs them, and says whether all passed.
pub(crate) fn run(root: &Path, filter: Option<&str>, nightly: bool) -> Result<bool> {
    let python = python(root).unwrap_or_else(|e| {
        eprintln!("no Python environment for the foreign gRPC client: {e:#}");
        PathBuf::new()
    });
    if let Err(e) = api::buf(root) {
        eprintln!("no buf for the check of the API's form: {e:#}");
    }
    let threads = thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_THREADS);
    let mut tests = cargo(root);
    tests
        .args(["test", "--workspace", "--no-fail-fast", "--"])
        .arg(format!("--test-threads={threads}"))
        .args(filter)
        .env("LAZARET_TEST_PYTHON", python);
    if nightly {
        tests.env("LAZARET_TEST_CASES", NIGHTLY_CASES);
        tests.env("LAZARET_CRASH_ROUNDS", NIGHTLY_DEATHS);
    }
    let (passed, summary) = watch(&mut tests)?;
    println!("\n{summary}");
    Ok(passed)
}

/// What the tests printed, added up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Summary {
    passed: u64,
    failed: u64,
    ignored: u64,
    failures: Vec<String>,
    skipped: Vec<String>,
}

impl Summary {
    /// Takes one line of libtest's or of the tests' own output.
    fn add(&mut self, line: &str) {
        if let Some((_, skipped)) = line.split_once("SKIPPED ") {
            self.skipped.push(skipped.to_owned());
        } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
        } else if let Some((_, counts)) = line.split_once("test result: ") {
            for part in counts.split([';', '.']) {
                let mut words = part.split_whitespace();
                let (Some(Ok(n)), Some(what)) = (words.next().map(str::parse::<u64>), words.next()) else {
                    continue;
                };
                match what {
                    "passed" => self.passed += n,
                    "failed" => self.failed += n,
                    "ignored" => self.ignored += n,
                    _ => {}
                }
            }
        }
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A skipped test returns early, so libtest counts it as passed.
        let ran = self.passed.saturating_sub(self.skipped.len() as u64);
        write!(
            f,
            "tests: {ran} passed, {} failed, {} skipped, {} ignored",
            self.failed,
            self.skipped.len(),
            self.ignored
        )?;
        self.failures.iter().try_for_each(|name| write!(f, "\n  failed   {name}"))?;
        self.skipped.iter().try_for_each(|name| write!(f, "\n  skipped  {name}"))
    }
}

fn watch(tests: &mut Command) -> Result<(bool, Summary)> {
    let mut child = tests
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let (lines, received) = mpsc::channel();
    let out = child.stdout.take().context("stdout is piped")?;
    let err = child.stderr.take().context("stderr is piped")?;
    let readers = [echo(out, lines.clone()), echo(err, lines)];
    let mut summary = Summary::default();
    received.iter().for_each(|line| summary.add(&line));
    readers.into_iter().for_each(|r| drop(r.join()));
    Ok((child.wait()?.success(), summary))
}

fn echo(from: impl Read + Send + 'static, to: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            println!("{line}");
            if to.send(line).is_err() {
                return;
            }
        }
    })
}

/// A Python with grpcio, in an environment under `target`; made when it is not there.
fn python(root: &Path) -> Result<PathBuf> {
    let venv = root.join("target/venv");
    let python = venv.join("bin/python");
    let ready = venv.join("ready");
    let packages = PYTHON_PACKAGES.join(" ");
    // Another list of packages is another environment.
    if python.exists() && std::fs::read_to_string(&ready).is_ok_and(|made| made == packages) {
        return Ok(python);
    }
    eprintln!(
        "making {} with {}: the tests' gRPC client that is not ours",
        venv.display(),
        PYTHON_PACKAGES.join(", ")
    );
    check(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    check(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON_PACKAGES),
    )?;
    std::fs::write(&ready, packages).context("cannot mark the environment as ready")?;
    Ok(python)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_added_up() {
        let mut s = Summary::default();
        for line in [
            "test a::b ... ok",
            "test a::c ... FAILED",
            "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 4 filtered out; finished in 0.10s",
            "SKIPPED e2e_veth: needs root",
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            s.add(line);
        }
        assert_eq!((s.passed, s.failed, s.ignored), (8, 1, 2));
        assert_eq!(s.failures, ["a::c"]);
        assert_eq!(s.skipped, ["e2e_veth: needs root"]);
        assert!(
            s.to_string().starts_with("tests: 7 passed, 1 failed, 1 skipped, 2 ignored"),
            "{s}"
        );
    }
}
