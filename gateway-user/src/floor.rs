//! The floor: what the kernel denies by itself, with our programs detached and our daemon dead. One nftables table of our own,
//! `inet lazaret`, replaced as a whole in one transaction; no other table is touched.
//!
//! - What a program of ours granted carries the mark. Unmarked, nothing from a device interface or a pool address is forwarded or
//!   delivered; the state of a connection makes no exception.
//! - What goes to a pool or out of a device interface without the mark, forwarded or sent by the host itself, passes only if the
//!   interface is in the set `judged`: its index is there while our programs judge at its egress, so a re-created interface, which has a
//!   new index, is closed until they do again. netfilter cannot see whether they still do: behind them stands a filter of the kernel's own
//!   (`dataplane::filter`), which drops what has no mark when they are gone.
//! - Interfaces are matched by name and pattern, so that the floor holds for those to come.
//!
//! `script` makes the rules, purely; here they are put into the kernel by `nft` and compared with what is there. ARP and other protocols
//! than IP never reach these hooks: the programs judge them.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{config::Config, links::LinkNow};

mod changes;
mod script;

pub use changes::Changes;

/// Name of the table, of family `inet`.
pub const TABLE: &str = "lazaret";
/// Where `nft` may be. No search by PATH: the daemon runs as root.
const NFT: [&str; 5] = [
    "/usr/sbin/nft",
    "/sbin/nft",
    "/usr/bin/nft",
    "/usr/local/sbin/nft",
    "/run/current-system/sw/bin/nft",
];

/// Within this nft ends. It takes milliseconds, unless another program holds the kernel's lock of the rules.
const LIMIT: Duration = Duration::from_secs(10);

/// A start tries again while it has not taken so long: a machine that boots has much to do at once. With the last try it ends within the service
/// manager's patience.
const START: Duration = Duration::from_secs(20);

/// Why the floor could not be set or read.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// No program to set it with.
    #[error("nft is not installed (looked at {}); install the package nftables", NFT.join(", "))]
    NoNft,
    /// It did not run.
    #[error("running nft: {0}")]
    Run(#[from] io::Error),
    /// It did not end.
    #[error("nft did not end within {} s", LIMIT.as_secs())]
    Late,
    /// It refused, or the kernel did.
    #[error("nft: {0}")]
    Refused(String),
    /// The process may not do it.
    #[error("CAP_NET_ADMIN is missing; run as root, or grant it to the service")]
    Capability,
    /// It answered something else than JSON with a table in it.
    #[error("nft's answer cannot be read: {0}")]
    Answer(String),
}

/// Closes the floor and forgets it: for a unit that runs at boot, before any interface is up.
///
/// # Errors
/// See [`FloorError`]; what was there stays then.
pub fn close(config: &Config) -> Result<(), FloorError> {
    Floor::begin(config).map(|_| ())
}

/// Removes the table: nothing is denied by it any more. That it is not there is fine.
///
/// # Errors
/// See [`FloorError`].
pub fn open() -> Result<(), FloorError> {
    nft(&["-f", "-"], &format!("table inet {TABLE}\ndelete table inet {TABLE}\n")).map(|_| ())
}

/// Whether the table exists, closed or broken.
///
/// # Errors
/// See [`FloorError`].
pub fn exists() -> Result<bool, FloorError> {
    listing().map(|l| l.is_some())
}

/// The closed floor, and what it looked like when it was closed.
pub struct Floor {
    expected: Vec<Value>,
}

/// How the floor stands now.
pub struct Standing {
    /// Empty: as it was closed. Otherwise what is wrong.
    pub problem: String,
    /// Indexes in the set `judged`.
    pub judged: BTreeSet<u32>,
}

impl Floor {
    /// The same at a start, when nothing else keeps the gateway closed yet: it is tried again for a while if nft does not end in time.
    ///
    /// # Errors
    /// See [`FloorError`]; what was there stays then.
    pub fn begin(config: &Config) -> Result<Self, FloorError> {
        let since = Instant::now();
        again(|| since.elapsed(), || Self::close(config))
    }

    /// Closes the floor, in one transaction. Interfaces that were judged stay so, if they exist: the daemon restarts without a gap.
    ///
    /// # Errors
    /// See [`FloorError`]; what was there stays then.
    pub fn close(config: &Config) -> Result<Self, FloorError> {
        let links = crate::links::now()?;
        let exists = |i: &u32| links.iter().any(|l| l.link.ifindex == *i);
        let judged: BTreeSet<u32> = match listing()? {
            Some(held) => judged_in(&held, &links).into_iter().filter(exists).collect(),
            None => BTreeSet::new(),
        };
        nft(&["-f", "-"], &script::script(config, &judged))?;
        let held = listing()?.ok_or_else(|| FloorError::Answer("the table is not there after it was made".to_owned()))?;
        Ok(Self { expected: normal(&held) })
    }

    /// Asks the kernel how the floor stands.
    ///
    /// # Errors
    /// See [`FloorError`].
    pub fn standing(&self, links: &[LinkNow]) -> Result<Standing, FloorError> {
        let Some(held) = listing()? else {
            return Ok(Standing {
                problem: format!("table inet {TABLE} is gone"),
                judged: BTreeSet::new(),
            });
        };
        let problem = difference(&self.expected, &normal(&held));
        Ok(Standing {
            problem,
            judged: judged_in(&held, links),
        })
    }

    /// Adds interfaces at whose egress our programs judge, and takes others out, in one transaction.
    ///
    /// # Errors
    /// See [`FloorError`].
    pub fn judge(&self, add: &BTreeSet<u32>, remove: &BTreeSet<u32>) -> Result<(), FloorError> {
        judge(add, remove)
    }
}

/// Takes every interface out of `judged`, before programs are detached. Without a table there is nothing to do.
///
/// # Errors
/// See [`FloorError`].
pub fn judge_none() -> Result<(), FloorError> {
    if exists()? {
        nft(&["-f", "-"], &format!("flush set inet {TABLE} judged\n")).map(|_| ())
    } else {
        Ok(())
    }
}

fn judge(add: &BTreeSet<u32>, remove: &BTreeSet<u32>) -> Result<(), FloorError> {
    let mut text = String::new();
    for i in remove {
        // Deleting what is not there is an error, adding what is there is none.
        text += &format!(
            "add element inet {TABLE} judged {{ {0} }}\ndelete element inet {TABLE} judged {{ {0} }}\n",
            script::index(*i)
        );
    }
    for i in add {
        text += &format!("add element inet {TABLE} judged {{ {} }}\n", script::index(*i));
    }
    if text.is_empty() {
        Ok(())
    } else {
        nft(&["-f", "-"], &text).map(|_| ())
    }
}

/// The table as `nft -j` lists it; `None`: it does not exist.
fn listing() -> Result<Option<Vec<Value>>, FloorError> {
    let text = match nft(&["-j", "list", "table", "inet", TABLE], "") {
        Ok(text) => text,
        Err(FloorError::Refused(e)) if e.contains("No such file or directory") => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut answer: Value = serde_json::from_slice(&text).map_err(|e| FloorError::Answer(e.to_string()))?;
    match answer.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => Ok(Some(objects)),
        _ => Err(FloorError::Answer("no list of objects".to_owned())),
    }
}

/// A listing without what changes by itself: handles, counts, and who is judged.
fn normal(objects: &[Value]) -> Vec<Value> {
    let mut objects: Vec<Value> = objects.iter().filter(|o| o.get("metainfo").is_none()).cloned().collect();
    for object in &mut objects {
        let Some(kinds) = object.as_object_mut() else { continue };
        for body in kinds.values_mut().filter_map(Value::as_object_mut) {
            for key in ["handle", "packets", "bytes"] {
                body.remove(key);
            }
            if body.get("name").is_some_and(|n| n == "judged") {
                body.remove("elem");
            }
        }
    }
    objects
}

fn difference(expected: &[Value], held: &[Value]) -> String {
    let name = |o: &Value| {
        let (kind, body) = o
            .as_object()
            .and_then(|o| o.iter().next())
            .map_or(("object", &Value::Null), |(k, v)| (k.as_str(), v));
        let name = body
            .get("chain")
            .or_else(|| body.get("name"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        format!("{kind} {name}")
    };
    if let Some(missing) = expected.iter().find(|e| !held.contains(e)) {
        return format!("{} of table inet {TABLE} was changed or removed", name(missing));
    }
    if let Some(extra) = held.iter().find(|h| !expected.contains(h)) {
        return format!("{} of table inet {TABLE} was added", name(extra));
    }
    if expected == held {
        String::new()
    } else {
        format!("the order of the rules of table inet {TABLE} was changed")
    }
}

/// nft shows an index by its interface's name, where it has one.
fn judged_in(objects: &[Value], links: &[LinkNow]) -> BTreeSet<u32> {
    let set = objects
        .iter()
        .filter_map(|o| o.get("set"))
        .find(|s| s.get("name").is_some_and(|n| n == "judged"));
    let elements = set.and_then(|s| s.get("elem")).and_then(Value::as_array);
    let index = |e: &Value| {
        let text = e.as_str().map(str::to_owned).or_else(|| e.as_u64().map(|n| n.to_string()))?;
        let named = links.iter().find(|l| l.link.name.as_str() == text).map(|l| l.link.ifindex);
        named.or_else(|| text.parse().ok())
    };
    elements.into_iter().flatten().filter_map(index).collect()
}

/// Tries until it is done, or has failed otherwise than for being late, or has taken [`START`].
fn again<T>(taken: impl Fn() -> Duration, mut attempt: impl FnMut() -> Result<T, FloorError>) -> Result<T, FloorError> {
    loop {
        match attempt() {
            Err(FloorError::Late) if taken() < START => {
                tracing::warn!(
                    "{}; it is tried again, and the floor is as it was meanwhile",
                    FloorError::Late
                );
            }
            done => return done,
        }
    }
}

/// Runs nft without a shell and without our environment. Returns what it prints.
fn nft(arguments: &[&str], input: &str) -> Result<Vec<u8>, FloorError> {
    let path = NFT.into_iter().find(|p| Path::new(p).exists()).ok_or(FloorError::NoNft)?;
    let child = Command::new(path)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let output = finish(child, input.to_owned())?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let error = String::from_utf8_lossy(&output.stderr);
    // The first line says it; the others quote the script.
    let line = error
        .lines()
        .find(|l| !l.trim().is_empty())
        .unwrap_or("it failed without a message");
    // nft's own environment is empty, so its words are not translated.
    if line.contains("Operation not permitted") {
        return Err(FloorError::Capability);
    }
    Err(FloorError::Refused(line.escape_debug().to_string()))
}

/// Hands a process its input and waits until it ends, at most for [`LIMIT`]: who waits looks after interfaces, too.
fn finish(mut child: Child, input: String) -> Result<Output, FloorError> {
    let stdin = child.stdin.take();
    let id = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (answer, answered) = sync_channel(1);
    thread::Builder::new().name("nft".to_owned()).spawn(move || {
        // nft reads all of its input before it writes.
        let written = stdin.map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
        let output = match written {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
            // It ended early; its own message says why.
            _ => child.wait_with_output(),
        };
        let _too_late = answer.send(output);
    })?;
    match answered.recv_timeout(LIMIT) {
        Ok(output) => Ok(output?),
        Err(_) => {
            // The thread still waits for it, so that the number is no other's. It ends when the kernel lets it.
            let _gone = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
            Err(FloorError::Late)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// How often it is tried if each try takes so long and all are late but the last of so many.
    fn tries(each: Duration, late: u32) -> (u32, bool) {
        let (tried, clock) = (Cell::new(0), Cell::new(Duration::ZERO));
        let done = again(
            || clock.get(),
            || {
                tried.set(tried.get() + 1);
                clock.set(clock.get() + each);
                if tried.get() > late { Ok(()) } else { Err(FloorError::Late) }
            },
        );
        (tried.get(), done.is_ok())
    }

    #[test]
    fn a_start_waits_for_a_busy_machine_and_not_for_ever() {
        assert_eq!(tries(LIMIT, 0), (1, true));
        assert_eq!(tries(LIMIT, 1), (2, true));
        assert_eq!(tries(LIMIT, u32::MAX), (2, false));
        // Of the three times that it runs nft, the last may be the late one.
        assert_eq!(tries(3 * LIMIT, u32::MAX), (1, false));
        let tried = Cell::new(0);
        let refused = again(
            || Duration::ZERO,
            || {
                tried.set(tried.get() + 1);
                Err::<(), _>(FloorError::NoNft)
            },
        );
        assert!(matches!(refused, Err(FloorError::NoNft)) && tried.get() == 1);
    }
}
