//! The set of maps that programs and daemon share: made new by loading the object, or adopted from their pins; and how a set is pinned
//! so that a crash leaves either the old set or the new one.

use std::{fs, io, path::Path};

use gateway_ebpf::abi::map;

use super::bpf::{self, Map};

/// Every map of the object that programs of one start share with those of the next. What a program keeps for itself is not pinned.
pub const NAMES: [&str; 17] = [
    map::CONTROL,
    map::DIR4,
    map::CHUNKS4,
    map::HASH6,
    map::HOMES6,
    map::COLD,
    map::POLICY,
    map::INTERFACES,
    map::FRAGMENTS,
    map::COUNTERS,
    map::RULE_IDS,
    map::SHADOW,
    map::ANSWERS,
    map::EVENTS_LOST,
    map::DENIALS,
    map::CAPTURES,
    map::CAPTURES_LOST,
];

/// Directory of a set that is being pinned. (A bpffs refuses names with a dot.)
pub(super) const FRESH: &str = "maps-new";

/// Open maps, in the order of [`NAMES`].
pub(super) struct Maps(Vec<(&'static str, Map)>);

impl Maps {
    /// Opens each map by `open`.
    pub(super) fn open(open: impl Fn(&'static str) -> io::Result<Map>) -> io::Result<Self> {
        NAMES
            .into_iter()
            .map(|n| Ok((n, open(n)?)))
            .collect::<io::Result<_>>()
            .map(Self)
    }

    /// Opens a pinned set; `None`: there is none, or not a whole one.
    pub(super) fn pinned(directory: &Path) -> io::Result<Option<Self>> {
        match Self::open(|n| Map::new(bpf::open_pin(&directory.join(n))?)) {
            Ok(maps) => Ok(Some(maps)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// One of [`NAMES`].
    pub(super) fn get(&self, name: &str) -> io::Result<&Map> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("the BPF object has no map {name}"));
        self.0.iter().find(|(n, _)| *n == name).map(|(_, m)| m).ok_or_else(missing)
    }

    /// Pins the set as `directory`, in place of what is pinned there.
    pub(super) fn pin(&self, directory: &Path) -> io::Result<()> {
        let fresh = directory.with_file_name(FRESH);
        remove(&fresh)?;
        fs::create_dir(&fresh)?;
        for (name, m) in &self.0 {
            use std::os::fd::AsFd;
            bpf::pin(m.fd.as_fd(), &fresh.join(name))?;
        }
        remove(directory)?;
        fs::rename(&fresh, directory)
    }
}

/// Removes a directory of pins, if it is there.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        fs::remove_file(entry?.path())?;
    }
    fs::remove_dir(directory)
}
