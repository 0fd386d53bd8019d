//! What a restore takes over from the database that the backup replaces: publications, and of each device whatever tightens
//! ([`crate::transition::tightened`]). What cannot be read there is counted, never guessed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use super::{
    AuditQuery, ChangeSet, check,
    failure::Failure,
    read,
    rows::{self, Devices},
    trail::{self, LastEntries},
    write,
};
use crate::{
    audit::{Entry, Head},
    model::{Aliases, Device, DeviceId, DeviceState, PolicyRevision, Publication, Rare, Revision, WallTime},
    transition::{self, Taken},
};

/// The action of the entries of what was carried over.
const ACTION: &str = "CarryOver";
/// Devices that are looked at and written at a time.
const AT_ONCE: usize = 2_000;

/// What was taken over, all of which tightens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Publications.
    pub publications: u64,
    /// The revision that is required now, where it is another than the backup's.
    pub required: Option<PolicyRevision>,
    /// Devices that were retired.
    pub retired: u64,
    /// Devices that were blocked.
    pub blocked: u64,
    /// Devices whose last restriction is later.
    pub marked: u64,
    /// Devices whose enrolment is narrower.
    pub narrowed: u64,
    /// Devices with names, certificates or keys that were no longer theirs.
    pub withdrawn: u64,
    /// Devices that had been removed.
    pub removed: u64,
    /// Devices, restricted since, that the backup does not have.
    pub unregistered: u64,
    /// Devices that have to be registered anew.
    pub closed: u64,
}

impl fmt::Display for Carried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = [
            (self.publications, "publication(s)"),
            (self.retired, "retirement(s)"),
            (self.blocked, "block(s)"),
            (self.marked, "later restriction(s)"),
            (self.narrowed, "narrower enrolment(s)"),
            (
                self.withdrawn,
                "device(s) without what was withdrawn of their names, certificates and keys",
            ),
            (self.removed, "removal(s)"),
            (self.unregistered, "restricted device(s) that the backup does not have"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
        parts.extend(self.required.iter().map(|r| format!("policy revision {r} is required")));
        if self.closed > 0 {
            parts.push(format!("{} device(s) have to be registered anew", self.closed));
        }
        if parts.is_empty() {
            parts.push("nothing: the database that was replaced has nothing that is tighter".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

/// What was done, for the audit, and what could not be.
#[derive(Default)]
pub(super) struct Done {
    pub(super) carried: Carried,
    /// Without their numbers.
    pub(super) entries: Vec<Entry>,
    /// Why not everything of the database that is replaced is known to be in the new one; `None`: it is.
    pub(super) lost: Option<String>,
}

/// Takes over from `old` what tightens. Whatever is wrong with `old` is no error.
///
/// # Errors
/// The copy cannot be read or written.
pub(super) fn carry(t: &Transaction<'_>, old: &Connection, revision: Revision, by: (&str, WallTime)) -> Result<Done, Failure> {
    let backup = read::head(t)?.audit_head.unwrap_or(Head::NONE);
    let damaged = match check::integrity(old) {
        Ok(problems) => problems.into_iter().next(),
        Err(e) => Some(e.to_string()),
    };
    let mut work = Work {
        t,
        old,
        revision,
        by,
        line: line(backup, old).unwrap_or(Line::Other),
        whole: damaged.is_none(),
        carried: Carried::default(),
        entries: Vec::new(),
        missing: 0,
        unreadable: 0,
    };
    let publications = work.publications()?;
    work.devices()?;
    work.beyond()?;
    let lost = match (damaged, publications, work.line) {
        (Some(e), ..) => Some(format!(
            "the database that was replaced is damaged ({e}), {} of the devices could not be read there",
            work.unreadable
        )),
        _ if work.unreadable > 0 => Some(format!(
            "{} of the devices could not be read in the database that was replaced",
            work.unreadable
        )),
        (None, Err(e), _) => Some(format!(
            "the publications could not be read in the database that was replaced: {e}"
        )),
        (None, Ok(()), Line::Other) => Some("the database that was replaced did not come from this backup".to_owned()),
        (None, Ok(()), Line::Perhaps) if work.missing > 0 => Some(format!(
            "the database that was replaced may not have come from this backup: {} device(s) are not in it",
            work.missing
        )),
        (None, Ok(()), Line::Later | Line::Perhaps) => None,
    };
    Ok(Done {
        carried: work.carried,
        entries: work.entries,
        lost,
    })
}

/// Whether a database is what became of a backup.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Line {
    /// Its audit has the backup's last entry.
    Later,
    /// That entry is pruned, or the backup has none.
    Perhaps,
    Other,
}

fn line(backup: Head, old: &Connection) -> rusqlite::Result<Line> {
    let (head, anchor) = trail::ends(old)?;
    let same = |same: bool| if same { Line::Later } else { Line::Other };
    if backup == Head::NONE || backup.number < anchor.number {
        return Ok(Line::Perhaps);
    }
    if backup.number == anchor.number {
        return Ok(same(backup.hash == anchor.hash));
    }
    if backup.number > head.number {
        return Ok(Line::Other);
    }
    let found = trail::audit(old, &AuditQuery::Number(backup.number))?;
    Ok(same(found.first().is_some_and(|sealed| sealed.hash == backup.hash)))
}

struct Work<'c> {
    t: &'c Transaction<'c>,
    old: &'c Connection,
    revision: Revision,
    by: (&'c str, WallTime),
    line: Line,
    /// SQLite finds nothing wrong with the old one.
    whole: bool,
    carried: Carried,
    entries: Vec<Entry>,
    /// Devices of the backup that the old one does not have.
    missing: u64,
    unreadable: u64,
}

impl Work<'_> {
    /// The list of the two together. The inner result is whether the old one's could be read.
    fn publications(&mut self) -> Result<Result<(), String>, Failure> {
        let ours = read::publications(self.t)?;
        let theirs = match read::publications(self.old) {
            Ok(theirs) => theirs,
            Err(e) => return Ok(Err(e.to_string())),
        };
        let known = |p: &Publication| ours.iter().any(|o| (&o.revision, o.at) == (&p.revision, p.at));
        let all = together(&ours, &theirs, self.line);
        let new: Vec<&Publication> = all.iter().filter(|p| !known(p)).collect();
        if all == ours {
            return Ok(Ok(()));
        }
        self.t.execute("DELETE FROM publications", [])?;
        for p in &all {
            self.t.execute(
                "INSERT INTO publications (revision, at, ceiling, rate, paused) VALUES (?1, ?2, ?3, ?4, ?5)",
                params![p.revision.as_str(), p.at.0, p.ceiling, p.rate, p.paused],
            )?;
        }
        let last = |list: &[Publication]| list.last().map(|p| p.revision.clone());
        self.carried.publications = new.len() as u64;
        self.carried.required = last(&all).filter(|r| Some(r) != last(&ours).as_ref());
        for p in new {
            let (subject, terms) = (
                format!("policy revision {}", p.revision),
                format!("{}: ceiling {}, rate {}", p.revision, p.ceiling, p.rate),
            );
            self.entries
                .push(self.entry(None, subject, String::new(), terms, "it was published since".to_owned()));
        }
        Ok(Ok(()))
    }

    /// Devices of the backup, in the order of their ids.
    fn devices(&mut self) -> Result<(), Failure> {
        let old = self.old;
        // Without the table's root nothing of it is found.
        let mut find = old
            .prepare(&format!("SELECT {} FROM devices WHERE id = ?1", rows::DEVICE))
            .ok();
        let mut reader = Devices::of(old).unwrap_or_default();
        let mut after = String::new();
        loop {
            let page = page(self.t, &after)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id.as_str().to_owned();
            let (mut changed, mut gone) = (BTreeMap::new(), Vec::new());
            for device in &page {
                let found = find
                    .as_mut()
                    .map(|find| find.query_row([device.id.as_str()], |row| reader.row(row)).optional());
                match found {
                    Some(Ok(Some(old))) => {
                        let (after, taken) = transition::tightened(device, &old, self.by.1);
                        if after != *device {
                            self.count(device, &after, &old, taken);
                            changed.insert(after.id.clone(), after);
                        }
                    }
                    Some(Ok(None)) if self.line == Line::Later && self.whole => gone.push(device),
                    Some(Ok(None)) => self.missing += 1,
                    Some(Err(_)) | None => self.unreadable += 1,
                }
            }
            self.write(changed)?;
            for device in gone {
                let id = device.id.as_str();
                self.t.execute("DELETE FROM aliases WHERE device = ?1", [id])?;
                self.t.execute("DELETE FROM devices WHERE id = ?1", [id])?;
                self.carried.removed += 1;
                let before = device.state.as_str().to_owned();
                let reason = "the database that was replaced no longer had it".to_owned();
                self.entries
                    .push(self.entry(Some(&device.id), String::new(), before, String::new(), reason));
            }
        }
    }

    /// Devices that the backup does not have.
    fn beyond(&mut self) -> Result<(), Failure> {
        let (t, old) = (self.t, self.old);
        let mut known = t.prepare("SELECT 1 FROM devices WHERE id = ?1")?;
        let text = format!("SELECT {} FROM devices ORDER BY id", rows::DEVICE);
        let Ok(mut statement) = old.prepare(&text) else {
            self.unreadable += 1;
            return Ok(());
        };
        let Ok(mut found) = statement.query([]) else {
            self.unreadable += 1;
            return Ok(());
        };
        let (mut reader, mut fresh) = (Devices::of(old).unwrap_or_default(), BTreeMap::new());
        loop {
            let row = match found.next() {
                Ok(Some(row)) => row,
                Ok(None) => break,
                // What lies behind it is counted by those that the backup has.
                Err(_) => {
                    self.unreadable += 1;
                    break;
                }
            };
            let Ok(old) = reader.row(row) else {
                self.unreadable += 1;
                continue;
            };
            if known.exists([old.id.as_str()])? {
                continue;
            }
            let Some(device) = transition::unregistered(&old, self.by.1) else {
                continue;
            };
            self.carried.unregistered += 1;
            self.carried.retired += u64::from(device.state == DeviceState::Retired);
            self.carried.blocked += u64::from(device.state == DeviceState::Blocked);
            self.carried.closed += u64::from(device.state != DeviceState::Retired);
            let after = device.state.as_str().to_owned();
            let reason = words(&device, "the backup does not have it");
            self.entries
                .push(self.entry(Some(&device.id), String::new(), String::new(), after, reason));
            fresh.insert(device.id.clone(), device);
            if fresh.len() >= AT_ONCE {
                self.add(std::mem::take(&mut fresh))?;
            }
        }
        self.add(fresh)
    }

    /// With those of their aliases that nobody of the backup has.
    fn add(&mut self, mut fresh: BTreeMap<DeviceId, Device>) -> Result<(), Failure> {
        let mut taken = self.t.prepare("SELECT 1 FROM aliases WHERE kind = ?1 AND alias = ?2")?;
        let mut among = BTreeSet::new();
        for device in fresh.values_mut() {
            let mut free = |kind: i64, alias: &[u8]| -> rusqlite::Result<bool> {
                Ok(!taken.exists(params![kind, alias])? && among.insert((kind, alias.to_vec())))
            };
            let mut aliases = Aliases::default();
            aliases.common_names = kept(&device.aliases.common_names, |n| free(rows::NAME, n.as_str().as_bytes()))?;
            aliases.certificates = kept(&device.aliases.certificates, |c| free(rows::CERTIFICATE, c.bytes()))?;
            aliases.vpn_keys = kept(&device.aliases.vpn_keys, |k| free(rows::VPN_KEY, &k.0))?;
            aliases.reach = device.aliases.reach.clone().filter(|_| aliases.has_proofs());
            device.aliases = Rare::new(aliases);
        }
        self.write(fresh)
    }

    fn write(&self, devices: BTreeMap<DeviceId, Device>) -> Result<(), Failure> {
        let changes = ChangeSet {
            devices,
            ..ChangeSet::default()
        };
        Ok(write::devices(self.t, &changes, self.revision, &mut LastEntries::default())?)
    }

    fn count(&mut self, before: &Device, after: &Device, old: &Device, taken: Taken) {
        let c = &mut self.carried;
        for (count, one) in [
            (&mut c.retired, taken.retired),
            (&mut c.blocked, taken.blocked),
            (&mut c.marked, taken.marked),
            (&mut c.narrowed, taken.narrowed),
            (&mut c.withdrawn, taken.withdrawn),
            (&mut c.closed, taken.closed),
        ] {
            *count += u64::from(one);
        }
        let marked = Taken {
            marked: taken.marked,
            ..Taken::default()
        };
        // Which every device may have: the restore's own entry counts them.
        if taken == marked {
            return;
        }
        let what: Vec<&str> = [
            (taken.retired, "retired since"),
            (taken.blocked, "blocked since"),
            (taken.narrowed, "its enrolment is narrower"),
            (
                taken.withdrawn,
                "without what was withdrawn of its names, certificates and keys",
            ),
            (taken.closed, "it has to be registered anew"),
        ]
        .into_iter()
        .filter_map(|(is, what)| is.then_some(what))
        .collect();
        let reason = if taken.blocked {
            words(old, &what.join(", "))
        } else {
            what.join(", ")
        };
        let [before, now] = [before, after].map(|d| d.state.as_str().to_owned());
        self.entries.push(self.entry(
            Some(&after.id),
            format!("pool {}", after.full_service_pool),
            before,
            now,
            reason,
        ));
    }

    fn entry(&self, device: Option<&DeviceId>, subject: String, before: String, after: String, reason: String) -> Entry {
        Entry {
            number: 0,
            at: self.by.1,
            by: self.by.0.to_owned(),
            action: ACTION.to_owned(),
            device: device.cloned(),
            subject,
            before,
            after,
            reason,
            request: String::new(),
            result: "done".to_owned(),
        }
    }
}

/// The two lists of publications as one. What became of a backup has what was published since behind it; of two that went different ways, what
/// was published last counts.
fn together(ours: &[Publication], theirs: &[Publication], line: Line) -> Vec<Publication> {
    let has = |list: &[Publication], p: &Publication| list.iter().any(|o| o.revision == p.revision);
    if line != Line::Other {
        let only_ours = ours.iter().filter(|p| !has(theirs, p));
        return only_ours.chain(theirs).cloned().collect();
    }
    let newer = |p: &&Publication| ours.iter().all(|o| o.revision != p.revision || o.at < p.at);
    let newer: Vec<Publication> = theirs.iter().filter(newer).cloned().collect();
    if newer.is_empty() {
        return ours.to_vec();
    }
    let mut all: Vec<Publication> = ours.iter().filter(|p| !has(&newer, p)).cloned().collect();
    all.extend(newer);
    all.sort_by_key(|p| p.at);
    all
}

/// The next devices after an id.
fn page(t: &Transaction<'_>, after: &str) -> rusqlite::Result<Vec<Device>> {
    let text = format!(
        "SELECT {} FROM devices WHERE id > ?1 ORDER BY id LIMIT {AT_ONCE}",
        rows::DEVICE
    );
    let (mut statement, mut reader) = (t.prepare_cached(&text)?, Devices::of(t)?);
    statement.query_map([after], |row| reader.row(row))?.collect()
}

fn kept<T: Clone>(all: &[T], mut keep: impl FnMut(&T) -> rusqlite::Result<bool>) -> rusqlite::Result<Box<[T]>> {
    let mut kept = Vec::new();
    for one in all {
        if keep(one)? {
            kept.push(one.clone());
        }
    }
    Ok(kept.into())
}

/// With the operator's words, where it is an operator's block.
fn words(device: &Device, what: &str) -> String {
    match device.exception.as_deref().filter(|_| device.state == DeviceState::Blocked) {
        Some(block) => format!("{what}: {} (by {})", block.reason, block.by),
        None => what.to_owned(),
    }
}
