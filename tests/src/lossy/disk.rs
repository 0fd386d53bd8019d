//! A disk and what is cached before it, in memory: every file and directory as it is now, and as it is on the disk, with what lies between
//! in the order in which it was asked. It knows nothing of FUSE; what a loss of power makes of it is in [`super::loss`].

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    sync::Arc,
    time::SystemTime,
};

use nix::errno::Errno;

/// Number of the root directory.
pub(super) const ROOT: u64 = 1;
/// Longest name.
const NAME: usize = 255;
/// Longest file: 1 GiB. More is a mistake of the test.
const LENGTH: u64 = 1 << 30;

/// The disk. A clone is another disk in the same state.
#[derive(Clone, Debug)]
pub struct Disk {
    pub(super) nodes: BTreeMap<u64, Node>,
    /// Changes of names that are not on the disk.
    pub(super) names: Vec<Names>,
    next: u64,
    /// Changes so far, which orders them.
    changes: u64,
    /// Files and directories that were synchronised.
    pub(super) synchronised: u64,
}

/// A file or a directory.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) now: Attributes,
    pub(super) disk: Attributes,
    pub(super) body: Body,
}

/// Whose it is, and who may do what with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was last changed.
    pub changed: SystemTime,
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Contents are shared with clones until they change.
    File {
        now: Arc<Vec<u8>>,
        disk: Arc<Vec<u8>>,
        pending: Vec<Write>,
    },
    Directory {
        now: BTreeMap<OsString, u64>,
        disk: BTreeMap<OsString, u64>,
    },
}

/// A change of a file's content.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) order: u64,
    pub(super) what: Content,
}

#[derive(Clone, Debug)]
pub(super) enum Content {
    Bytes(u64, Arc<[u8]>),
    Length(u64),
}

/// A change of names that is done as one: to which file each leads then, if to any.
#[derive(Clone, Debug)]
pub(super) struct Names {
    pub(super) order: u64,
    pub(super) set: Vec<(u64, OsString, Option<u64>)>,
}

/// What the outside sees of a file or directory.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Its number.
    pub number: u64,
    /// Its attributes.
    pub attributes: Attributes,
    /// Bytes; `None`: a directory.
    pub length: Option<u64>,
    /// Names that lead to it.
    pub links: u32,
}

type Done<T = ()> = Result<T, Errno>;

impl Disk {
    /// An empty one, whose root directory is the caller's alone.
    #[must_use]
    pub fn new() -> Self {
        let root = Attributes {
            mode: 0o700,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            changed: SystemTime::now(),
        };
        Self::of([(ROOT, Node::directory(root))].into(), ROOT + 1)
    }

    /// With nothing pending.
    pub(super) fn of(nodes: BTreeMap<u64, Node>, next: u64) -> Self {
        Self {
            nodes,
            names: Vec::new(),
            next,
            changes: 0,
            synchronised: 0,
        }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// How many changes there were so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// What a number stands for.
    ///
    /// # Errors
    /// ENOENT.
    pub fn see(&self, number: u64) -> Done<Seen> {
        let node = self.nodes.get(&number).ok_or(Errno::ENOENT)?;
        let links = |d: &BTreeMap<OsString, u64>| d.values().filter(|n| **n == number).count();
        let directories = self.nodes.values().filter_map(|n| n.entries().ok());
        Ok(Seen {
            number,
            attributes: node.now,
            length: match &node.body {
                Body::File { now, .. } => Some(now.len() as u64),
                Body::Directory { .. } => None,
            },
            links: u32::try_from(directories.map(links).sum::<usize>()).unwrap_or(u32::MAX),
        })
    }

    /// The number that a name leads to.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub fn find(&self, directory: u64, name: &OsStr) -> Done<u64> {
        self.entries(directory)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// The names in a directory.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR.
    pub fn entries(&self, directory: u64) -> Done<&BTreeMap<OsString, u64>> {
        self.nodes.get(&directory).ok_or(Errno::ENOENT)?.entries()
    }

    /// A new, empty file or directory; gives its number.
    ///
    /// # Errors
    /// EEXIST, ENOENT, ENOTDIR, ENAMETOOLONG.
    pub fn make(&mut self, parent: u64, name: &OsStr, attributes: Attributes, directory: bool) -> Done<u64> {
        match self.find(parent, name) {
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
            Ok(_) => return Err(Errno::EEXIST),
        }
        let number = self.next;
        let node = if directory {
            Node::directory(attributes)
        } else {
            Node::file(attributes)
        };
        self.name(vec![(parent, name.to_owned(), Some(number))])?;
        self.next += 1;
        self.nodes.insert(number, node);
        Ok(number)
    }

    /// A second name for a file.
    ///
    /// # Errors
    /// EEXIST, EPERM for a directory, ENOENT, ENOTDIR, ENAMETOOLONG.
    pub fn link(&mut self, number: u64, parent: u64, name: &OsStr) -> Done {
        if self.see(number)?.length.is_none() {
            return Err(Errno::EPERM);
        }
        if self.find(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.name(vec![(parent, name.to_owned(), Some(number))])
    }

    /// Takes a name away: a file's, or an empty directory's.
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOTDIR, ENOTEMPTY.
    pub fn remove(&mut self, parent: u64, name: &OsStr, directory: bool) -> Done {
        let number = self.find(parent, name)?;
        self.removable(number, directory)?;
        self.name(vec![(parent, name.to_owned(), None)])
    }

    /// Gives it another name, in the place of what had that name.
    ///
    /// # Errors
    /// ENOENT, EISDIR, ENOTDIR, ENOTEMPTY; EEXIST with `new`.
    pub fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), new: bool) -> Done {
        let number = self.find(from.0, from.1)?;
        match self.find(to.0, to.1) {
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e),
            Ok(_) if new => return Err(Errno::EEXIST),
            Ok(there) if there == number => return Ok(()),
            Ok(there) => self.removable(there, self.see(number)?.length.is_none())?,
        }
        self.name(vec![(from.0, from.1.to_owned(), None), (to.0, to.1.to_owned(), Some(number))])
    }

    /// Reads from a file: fewer bytes than asked for only at its end.
    ///
    /// # Errors
    /// ENOENT, EISDIR.
    pub fn read(&self, number: u64, at: u64, length: usize) -> Done<&[u8]> {
        match &self.nodes.get(&number).ok_or(Errno::ENOENT)?.body {
            Body::Directory { .. } => Err(Errno::EISDIR),
            Body::File { now, .. } => {
                let from = usize::try_from(at).unwrap_or(usize::MAX).min(now.len());
                Ok(&now[from..now.len().min(from.saturating_add(length))])
            }
        }
    }

    /// Writes to a file.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EFBIG.
    pub fn write(&mut self, number: u64, at: u64, bytes: &[u8]) -> Done {
        self.content(number, Content::Bytes(at, bytes.into()))
    }

    /// Cuts or lengthens a file.
    ///
    /// # Errors
    /// ENOENT, EISDIR, EFBIG.
    pub fn set_length(&mut self, number: u64, length: u64) -> Done {
        self.content(number, Content::Length(length))
    }

    /// Changes mode or owner.
    ///
    /// # Errors
    /// ENOENT.
    pub fn set_attributes(&mut self, number: u64, change: impl FnOnce(&mut Attributes)) -> Done {
        let node = self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        change(&mut node.now);
        self.changes += 1;
        Ok(())
    }

    /// fsync(2): a file's content and attributes are on the disk, or, with `data_only`, its content (fdatasync(2)); not its name. Of a
    /// directory, its names.
    ///
    /// # Errors
    /// ENOENT.
    pub fn synchronise(&mut self, number: u64, data_only: bool) -> Done {
        let node = self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        (self.changes, self.synchronised) = (self.changes + 1, self.synchronised + 1);
        if !data_only {
            node.disk = node.now;
        }
        match &mut node.body {
            Body::File { disk, pending, .. } => pending.drain(..).for_each(|w| w.what.apply(Arc::make_mut(disk))),
            Body::Directory { .. } => self.synchronise_names(number),
        }
        Ok(())
    }

    /// sync(2): all is on the disk.
    pub fn synchronise_all(&mut self) {
        let numbers: Vec<u64> = self.nodes.keys().copied().collect();
        for number in numbers {
            let _there = self.synchronise(number, false);
        }
    }

    /// The changes of a directory's names, and those before them that they build on: a name that was given anew since is not taken back by
    /// an older change that arrives later.
    fn synchronise_names(&mut self, directory: u64) {
        let mut settled = BTreeSet::new();
        let mut arrive = vec![false; self.names.len()];
        for (arrives, change) in arrive.iter_mut().zip(&self.names).rev() {
            let key = |s: &(u64, OsString, Option<u64>)| (s.0, s.1.clone());
            if change.set.iter().any(|s| s.0 == directory || settled.contains(&key(s))) {
                *arrives = true;
                settled.extend(change.set.iter().map(key));
            }
        }
        let mut arrive = arrive.into_iter();
        let (arrived, waiting) = std::mem::take(&mut self.names)
            .into_iter()
            .partition(|_| arrive.next() == Some(true));
        self.names = waiting;
        for change in arrived {
            set_on_disk(&mut self.nodes, &change);
        }
    }

    fn removable(&self, number: u64, directory: bool) -> Done {
        match (self.entries(number), directory) {
            (Ok(entries), true) if entries.is_empty() => Ok(()),
            (Ok(_), true) => Err(Errno::ENOTEMPTY),
            (Ok(_), false) => Err(Errno::EISDIR),
            (Err(_), true) => Err(Errno::ENOTDIR),
            (Err(_), false) => Ok(()),
        }
    }

    fn name(&mut self, set: Vec<(u64, OsString, Option<u64>)>) -> Done {
        for (directory, name, _) in &set {
            if name.len() > NAME {
                return Err(Errno::ENAMETOOLONG);
            }
            self.entries(*directory)?;
        }
        for (directory, name, to) in &set {
            if let Some(node) = self.nodes.get_mut(directory) {
                node.now.changed = SystemTime::now();
                if let Body::Directory { now, .. } = &mut node.body {
                    put(now, name, *to);
                }
            }
        }
        self.changes += 1;
        self.names.push(Names {
            order: self.changes,
            set,
        });
        Ok(())
    }

    fn content(&mut self, number: u64, what: Content) -> Done {
        if what.end() > LENGTH {
            return Err(Errno::EFBIG);
        }
        let node = self.nodes.get_mut(&number).ok_or(Errno::ENOENT)?;
        let Body::File { now, pending, .. } = &mut node.body else {
            return Err(Errno::EISDIR);
        };
        self.changes += 1;
        what.apply(Arc::make_mut(now));
        node.now.changed = SystemTime::now();
        pending.push(Write {
            order: self.changes,
            what,
        });
        Ok(())
    }
}

impl Default for Disk {
    fn default() -> Self {
        Self::new()
    }
}

impl Node {
    fn directory(attributes: Attributes) -> Self {
        Self {
            now: attributes,
            disk: attributes,
            body: Body::Directory {
                now: BTreeMap::new(),
                disk: BTreeMap::new(),
            },
        }
    }

    fn file(attributes: Attributes) -> Self {
        Self {
            now: attributes,
            disk: attributes,
            body: Body::File {
                now: Arc::default(),
                disk: Arc::default(),
                pending: Vec::new(),
            },
        }
    }

    fn entries(&self) -> Done<&BTreeMap<OsString, u64>> {
        match &self.body {
            Body::Directory { now, .. } => Ok(now),
            Body::File { .. } => Err(Errno::ENOTDIR),
        }
    }
}

impl Content {
    /// Does it to a file. A gap before it is filled with zeros.
    pub(super) fn apply(&self, file: &mut Vec<u8>) {
        let end = usize::try_from(self.end()).unwrap_or(usize::MAX);
        match self {
            Self::Length(_) => file.resize(end, 0),
            Self::Bytes(_, bytes) => {
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[end - bytes.len()..end].copy_from_slice(bytes);
            }
        }
    }

    fn end(&self) -> u64 {
        match self {
            Self::Bytes(at, bytes) => at.saturating_add(bytes.len() as u64),
            Self::Length(length) => *length,
        }
    }
}

/// A change of names arrives on the disk. A directory that is not there yet gets it all the same, for when its own name arrives.
pub(super) fn set_on_disk(nodes: &mut BTreeMap<u64, Node>, change: &Names) {
    for (directory, name, to) in &change.set {
        if let Some(Body::Directory { disk, .. }) = nodes.get_mut(directory).map(|n| &mut n.body) {
            put(disk, name, *to);
        }
    }
}

fn put(names: &mut BTreeMap<OsString, u64>, name: &OsStr, to: Option<u64>) {
    match to {
        Some(number) => names.insert(name.to_owned(), number),
        None => names.remove(name),
    };
}
