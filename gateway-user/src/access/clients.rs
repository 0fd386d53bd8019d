//! Which clients have shown which certificates, by CA: whom the end of a CA would shut out, and whose certificates end soon. It is kept in a
//! file over restarts. Pure but for [`Clients::read`] and [`Clients::write`].

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::{durable, model::Role};

/// Most certificates that are remembered. Each needs a client with a valid certificate of a trusted CA.
const MOST: usize = 10_000;
/// Largest file that is read, bytes.
const MAX_FILE: u64 = 16 << 20;
/// One whose certificate ended so long ago is forgotten, seconds.
const FORGET: i64 = 90 * 86_400;
/// A client that was seen with a certificate of another CA so long after its old one no longer needs the old one, seconds: one of several
/// processes of a client that is being changed over may still show the old one in between.
const SETTLED: i64 = 3600;

/// A certificate that a client has shown. Times are seconds since 1970-01-01 UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Whose: [`crate::model::Identity::client`].
    pub client: String,
    /// Its role.
    pub role: Role,
    /// Hexadecimal bytes, with colons.
    pub serial: String,
    /// SHA-256 of the CA's certificate, hexadecimal.
    pub ca: String,
    /// Its end.
    pub not_after: i64,
    /// When it was first shown.
    pub first_seen: i64,
    /// When it was last shown, or its connection last open.
    pub last_seen: i64,
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// Since when this has been kept without a gap.
    pub since: i64,
    /// There was no room for one: the list is not whole.
    pub incomplete: bool,
    seen: BTreeMap<String, Seen>,
}

impl Clients {
    /// Nobody, as of now.
    #[must_use]
    pub fn new(now: i64) -> Self {
        Self {
            since: now,
            incomplete: false,
            seen: BTreeMap::new(),
        }
    }

    /// Notes a certificate that is shown now; whether it is new.
    pub fn note(&mut self, shown: Seen) -> bool {
        let key = format!("{}\n{}\n{}", shown.client, shown.ca, shown.serial);
        if let Some(known) = self.seen.get_mut(&key) {
            // A clock that was set back makes nothing younger.
            known.last_seen = known.last_seen.max(shown.last_seen);
            known.role = shown.role;
            return false;
        }
        if self.seen.len() >= MOST {
            self.seen.retain(|_, s| s.not_after + FORGET > shown.last_seen);
        }
        if self.seen.len() >= MOST {
            self.incomplete = true;
        } else {
            self.seen.insert(key, shown);
        }
        true
    }

    /// By client.
    pub fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.seen.values()
    }

    /// Who needs a CA: clients that have shown a certificate of it that still holds (and is not `revoked`), and none since of a CA that
    /// stays. `stays` tells which do.
    pub fn pending<'a>(
        &'a self,
        ca: &'a str,
        now: i64,
        stays: impl Fn(&str) -> bool + 'a,
        revoked: impl Fn(&Seen) -> bool + 'a,
    ) -> impl Iterator<Item = &'a Seen> {
        let replaced = move |old: &Seen| {
            let other = |s: &&Seen| (&s.client, s.role) == (&old.client, old.role) && stays(&s.ca);
            let settled = |s: &Seen| s.first_seen >= old.last_seen || s.last_seen >= old.last_seen.saturating_add(SETTLED);
            self.seen.values().filter(other).any(settled)
        };
        self.seen
            .values()
            .filter(move |s| s.ca == ca && s.not_after >= now && !revoked(s) && !replaced(s))
    }

    /// From its file; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be read, or is not one.
    pub fn read(file: &Path) -> io::Result<Option<Self>> {
        let file = match OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(file) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut text = String::new();
        file.take(MAX_FILE).read_to_string(&mut text)?;
        serde_json::from_str(&text).map(Some).map_err(io::Error::other)
    }

    /// To its file: whole or not at all, durable, mode 0600; its directory is made with mode 0700.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let content = serde_json::to_vec(self).map_err(io::Error::other)?;
        write_whole(file, &content)
    }
}

/// A file in the place of what was there.
pub(super) fn write_whole(file: &Path, content: &[u8]) -> io::Result<()> {
    let directory = file.parent().ok_or_else(|| io::Error::other("no directory"))?;
    durable::make_directory(directory, 0o700)?;
    let mut new = file.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    written.write_all(content)?;
    written.sync_all()?;
    fs::rename(&new, file)?;
    durable::synchronise_directory(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const HOUR: i64 = 3600;

    fn seen(client: &str, ca: &str, serial: &str, at: i64) -> Seen {
        Seen {
            client: client.into(),
            role: Role::Mdm,
            serial: serial.into(),
            ca: ca.into(),
            not_after: 1_000_000,
            first_seen: at,
            last_seen: at,
        }
    }
    fn pending(clients: &Clients, now: i64) -> Vec<String> {
        let pending = clients.pending("old", now, |ca| ca == "new", |s| s.serial == "revoked");
        pending.map(|s| s.client.clone()).collect()
    }

    #[test]
    fn who_needs_the_old_ca() {
        let mut c = Clients::new(0);
        c.note(seen("a", "old", "1", 100));
        c.note(seen("b", "old", "2", 100));
        c.note(seen("c", "new", "3", 100));
        c.note(seen("d", "old", "revoked", 100));
        assert_eq!(pending(&c, 200), ["a", "b"]);
        // A certificate of another retiring CA is no replacement; one of a CA that stays is.
        c.note(seen("a", "third", "4", 300));
        assert_eq!(pending(&c, 400), ["a", "b"]);
        c.note(seen("a", "new", "5", 300));
        assert_eq!(pending(&c, 400), ["b"]);
        // Another role by the same name is another client.
        c.note(Seen {
            role: Role::Viewer,
            ..seen("b", "new", "6", 300)
        });
        assert_eq!(pending(&c, 400), ["b"]);
        // One that has ended lets nobody in.
        assert!(pending(&c, 1_000_001).is_empty());
    }

    #[test]
    fn a_client_that_shows_both_needs_both_until_it_has_settled() {
        let mut c = Clients::new(0);
        c.note(seen("a", "old", "1", 100));
        c.note(seen("a", "new", "2", 200));
        assert!(pending(&c, 200).is_empty());
        c.note(seen("a", "old", "1", 300));
        assert_eq!(pending(&c, 300), ["a"], "it has come back with the old one");
        c.note(seen("a", "new", "2", 300 + HOUR - 1));
        assert_eq!(pending(&c, 300 + HOUR), ["a"]);
        c.note(seen("a", "new", "2", 300 + HOUR));
        assert!(pending(&c, 300 + HOUR).is_empty());
        // A clock that is set back changes nothing.
        c.note(seen("a", "new", "2", 50));
        assert!(pending(&c, 300 + HOUR).is_empty());
    }

    #[test]
    fn a_full_memory_says_so() {
        let mut c = Clients::new(0);
        for i in 0..MOST {
            assert!(c.note(seen(&format!("c{i}"), "old", "1", 1)));
        }
        assert!(!c.incomplete);
        c.note(seen("one more", "old", "1", 1));
        assert!(c.incomplete && c.iter().count() == MOST);
        // Room is made of what ended long ago.
        let mut c = Clients { incomplete: false, ..c };
        c.note(seen("later", "old", "1", 1_000_000 + FORGET));
        assert!(!c.incomplete && c.iter().count() == 1);
    }

    #[test]
    fn over_a_restart() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("state/clients.json");
        assert_eq!(Clients::read(&file).unwrap(), None);
        let mut c = Clients::new(7);
        c.note(seen("a\n\"b\u{1b}", "old", "1", 100));
        c.write(&file).unwrap();
        c.write(&file).unwrap();
        assert_eq!(Clients::read(&file).unwrap(), Some(c));
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1);
        for bad in ["", "{}", "[]", "{\"since\":1"] {
            fs::write(&file, bad).unwrap();
            assert!(Clients::read(&file).is_err(), "{bad:?}");
        }
    }
}
