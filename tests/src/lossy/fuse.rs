//! The disk as a file system that the kernel can mount. Each request is one call of [`Disk`]; nothing is decided here.
//!
//! The kernel's cache for writing back is off: write(2) arrives at once, fsync(2) as such. Only what is written through a shared mapping
//! waits in its pages, until the file is synchronised, unmapped or closed. Locks are the kernel's.

use std::{
    ffi::OsStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno as Code, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use nix::errno::Errno;

use super::disk::{Attributes, Disk, ROOT, Seen};

/// How long the kernel may believe what it was told: all changes come through it.
const VALID: Duration = Duration::from_secs(3600);
const BLOCK: u32 = 4096;

/// The disk that is mounted, and its past, where that is kept.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    pub(super) disk: Disk,
    /// The disk after each change.
    pub(super) moments: Option<Vec<Disk>>,
}

/// What answers the kernel. Clones have one disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Server(Arc<Mutex<Mounted>>);

impl Server {
    pub(super) fn lock(&self) -> MutexGuard<'_, Mounted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, find: impl FnOnce(&Disk) -> Result<u64, Errno>) -> Result<FileAttr, Code> {
        let mounted = self.lock();
        let number = find(&mounted.disk).map_err(code)?;
        mounted.disk.see(number).map(attributes).map_err(code)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Disk) -> Result<T, Errno>) -> Result<T, Code> {
        let mut mounted = self.lock();
        let before = mounted.disk.changes();
        let done = change(&mut mounted.disk);
        let Mounted { disk, moments } = &mut *mounted;
        if let Some(moments) = moments.as_mut().filter(|_| disk.changes() != before) {
            moments.push(disk.clone());
        }
        done.map_err(code)
    }

    fn make(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, directory: bool) -> Result<FileAttr, Code> {
        let attributes = Attributes {
            mode: permissions(mode),
            uid: request.uid(),
            gid: request.gid(),
            changed: SystemTime::now(),
        };
        let number = self.change(|d| d.make(parent.0, name, attributes, directory))?;
        self.see(|_| Ok(number))
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(self.see(|d| d.find(parent.0, name)), reply);
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.see(|_| Ok(number.0)) {
            Ok(seen) => reply.attr(&VALID, &seen),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        length: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = self.change(|d| {
            if let Some(length) = length {
                d.set_length(number.0, length)?;
            }
            if mode.is_none() && uid.is_none() && gid.is_none() {
                return Ok(());
            }
            d.set_attributes(number.0, |a| {
                a.mode = mode.map_or(a.mode, permissions);
                (a.uid, a.gid) = (uid.unwrap_or(a.uid), gid.unwrap_or(a.gid));
            })
        });
        match done.and_then(|()| self.see(|_| Ok(number.0))) {
            Ok(seen) => reply.attr(&VALID, &seen),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        entry(self.make(request, parent, name, mode & !umask, true), reply);
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, _: i32, reply: ReplyCreate) {
        match self.make(request, parent, name, mode & !umask, false) {
            Ok(seen) => reply.created(&VALID, &seen, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            Err(e) => reply.error(e),
        }
    }

    fn link(&self, _: &Request, number: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let done = self.change(|d| d.link(number.0, parent.0, name));
        entry(done.and_then(|()| self.see(|_| Ok(number.0))), reply);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.change(|d| d.remove(parent.0, name, false)), reply);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(self.change(|d| d.remove(parent.0, name, true)), reply);
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let done = self.change(|d| match flags {
            f if f.is_empty() => d.rename((parent.0, name), (new_parent.0, new_name), false),
            RenameFlags::RENAME_NOREPLACE => d.rename((parent.0, name), (new_parent.0, new_name), true),
            _ => Err(Errno::EINVAL),
        });
        empty(done, reply);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        at: u64,
        length: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.lock().disk.read(number.0, at, length as usize) {
            Ok(bytes) => reply.data(bytes),
            Err(e) => reply.error(code(e)),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.change(|d| d.write(number.0, at, bytes)) {
            Ok(()) => reply.written(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // close(2) synchronises nothing.
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        empty(self.change(|d| d.synchronise(number.0, data_only)), reply);
    }

    fn fsyncdir(&self, _: &Request, number: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        empty(self.change(|d| d.synchronise(number.0, data_only)), reply);
    }

    fn readdir(&self, _: &Request, number: INodeNo, _: FileHandle, from: u64, mut reply: ReplyDirectory) {
        let mounted = self.lock();
        let entries = match mounted.disk.entries(number.0) {
            Ok(entries) => entries,
            Err(e) => return reply.error(code(e)),
        };
        for (place, (name, to)) in (1..).zip(entries).skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            let kind = mounted.disk.see(*to).map_or(FileType::RegularFile, |s| attributes(s).kind);
            if reply.add(INodeNo(*to), place, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let blocks = 1 << 18;
        reply.statfs(blocks, blocks, blocks, 1 << 20, 1 << 20, BLOCK, 255, BLOCK);
    }
}

fn entry(done: Result<FileAttr, Code>, reply: ReplyEntry) {
    match done {
        Ok(seen) => reply.entry(&VALID, &seen, Generation(0)),
        Err(e) => reply.error(e),
    }
}

fn empty(done: Result<(), Code>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

fn code(errno: Errno) -> Code {
    Code::from_i32(errno as i32)
}

fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

fn attributes(seen: Seen) -> FileAttr {
    let length = seen.length.unwrap_or(0);
    let directory = seen.length.is_none();
    FileAttr {
        ino: INodeNo(seen.number),
        size: length,
        blocks: length.div_ceil(512),
        atime: seen.attributes.changed,
        mtime: seen.attributes.changed,
        ctime: seen.attributes.changed,
        crtime: seen.attributes.changed,
        kind: if directory {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: seen.attributes.mode,
        nlink: if seen.number == ROOT { 2 } else { seen.links },
        uid: seen.attributes.uid,
        gid: seen.attributes.gid,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    }
}
