//! The few bpf(2) commands that Lazaret needs beside loading: map elements, pins, links, and questions to the kernel by id. One typed
//! function each; no policy here. Layouts: `union bpf_attr` of linux/bpf.h, kernel 6.6 and later (TCX).

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_FD_BY_ID: i32 = 13;
const MAP_FD_BY_ID: i32 = 14;
const OBJ_INFO: i32 = 15;
const PROG_QUERY: i32 = 16;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;
const LINK_DETACH: i32 = 34;

/// Where a link attaches: `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AttachType {
    Xdp = 37,
    TcxIngress = 46,
    TcxEgress = 47,
}

/// How: flags of BPF_LINK_CREATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attach {
    /// XDP_FLAGS_SKB_MODE.
    XdpGeneric = 1 << 1,
    /// XDP_FLAGS_DRV_MODE.
    XdpNative = 1 << 2,
    /// BPF_F_BEFORE without a relative: first of the chain.
    First = 1 << 3,
    /// BPF_F_AFTER without a relative: last of the chain.
    Last = 1 << 4,
}

/// Reads an element. `value` has the size that the kernel writes: for a per-CPU map, the rounded value size times the possible CPUs.
/// `None`: there is no such key.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<Option<()>> {
    let mut attr = Element {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    found(call(MAP_LOOKUP, &mut attr))
}

/// Writes an element, new or not.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = Element {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        flags: 0,
    };
    call(MAP_UPDATE, &mut attr).map(|_| ())
}

/// Removes an element; a key that is not there is fine.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<()> {
    let mut attr = Element {
        map: map.as_raw_fd() as u32,
        pad: 0,
        key: key.as_ptr() as u64,
        value: 0,
        flags: 0,
    };
    found(call(MAP_DELETE, &mut attr)).map(|_| ())
}

/// Pins an object in a bpffs; fails with EEXIST where something is pinned already.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Object {
        path: path.as_ptr() as u64,
        fd: object.as_raw_fd() as u32,
        flags: 0,
    };
    call(OBJ_PIN, &mut attr).map(|_| ())
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    fd(
        OBJ_GET,
        &mut Object {
            path: path.as_ptr() as u64,
            fd: 0,
            flags: 0,
        },
    )
}

/// Opens a program by its id.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    fd(PROG_FD_BY_ID, &mut Id { id, next: 0, flags: 0 })
}

/// Opens a map by its id.
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    fd(MAP_FD_BY_ID, &mut Id { id, next: 0, flags: 0 })
}

/// Attaches a program to an interface. The link detaches when its last descriptor and pin are gone.
pub(super) fn link_create(program: BorrowedFd<'_>, ifindex: u32, to: AttachType, how: Attach) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex,
        attach_type: to as u32,
        flags: how as u32,
        relative: 0,
        pad: 0,
        revision: 0,
    };
    fd(LINK_CREATE, &mut attr)
}

/// Replaces the program of a link, atomically. ENOLINK: its interface is gone.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old: 0,
    };
    call(LINK_UPDATE, &mut attr).map(|_| ())
}

/// Detaches a link from its interface, before the return; one that is detached already is fine. Dropping its last reference would do so
/// some milliseconds later.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = link.as_raw_fd() as u32;
    call(LINK_DETACH, &mut attr).map(|_| ())
}

/// A program on a TCX hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) program: u32,
    /// 0: attached without a link.
    pub(super) link: u32,
}

/// The programs on a TCX hook, in the order in which they run.
pub(super) fn query(ifindex: u32, hook: AttachType) -> io::Result<Vec<Attached>> {
    // The kernel allows 64 programs on a hook (BPF_MPROG_MAX).
    let (mut programs, mut links) = ([0_u32; 64], [0_u32; 64]);
    let mut attr = Query {
        ifindex,
        attach_type: hook as u32,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: 64,
        pad: 0,
        program_flags: 0,
        links: links.as_mut_ptr() as u64,
        link_flags: 0,
        revision: 0,
    };
    match call(PROG_QUERY, &mut attr) {
        Ok(_) => {}
        // No program has ever been on the hook.
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let both = programs.into_iter().zip(links).take(attr.count as usize);
    Ok(both.map(|(program, link)| Attached { program, link }).collect())
}

/// What the kernel says of a program.
#[derive(Clone, Debug)]
pub(super) struct ProgramInfo {
    pub(super) id: u32,
    /// Its first 15 characters.
    pub(super) name: String,
    pub(super) maps: Vec<u32>,
}

/// Asks the kernel about a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut maps = vec![0_u32; 64];
    let mut raw = RawProgramInfo {
        map_count: maps.len() as u32,
        maps: maps.as_mut_ptr() as u64,
        ..RawProgramInfo::default()
    };
    info(program, &mut raw)?;
    maps.truncate(raw.map_count as usize);
    Ok(ProgramInfo {
        id: raw.id,
        name: text(&raw.name),
        maps,
    })
}

/// What the kernel says of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MapInfo {
    pub(super) id: u32,
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
    /// Its first 15 characters.
    pub(super) name: String,
}

/// Asks the kernel about a map.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut raw = RawMapInfo::default();
    info(map, &mut raw)?;
    Ok(MapInfo {
        id: raw.id,
        kind: raw.kind,
        key_size: raw.key_size,
        value_size: raw.value_size,
        max_entries: raw.max_entries,
        name: text(&raw.name),
    })
}

/// What the kernel says of a link to an interface (XDP or TCX).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    pub(super) id: u32,
    pub(super) program: u32,
    /// 0: detached; the interface is gone, or someone cut it.
    pub(super) ifindex: u32,
}

/// Asks the kernel about a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut raw = RawLinkInfo::default();
    info(link, &mut raw)?;
    // `xdp.ifindex` and `tcx.ifindex` are both the first word of the union.
    Ok(LinkInfo {
        id: raw.id,
        program: raw.program,
        ifindex: raw.ifindex,
    })
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}
#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}
#[repr(C)]
struct Id {
    id: u32,
    next: u32,
    flags: u32,
}
#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}
#[repr(C)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    pad: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}
const _: () = assert!(size_of::<Query>() == 64);
#[repr(C)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}
const _: () = assert!(size_of::<LinkCreate>() == 32);
#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}
/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct RawProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    uid: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}
const _: () = assert!(size_of::<RawProgramInfo>() == 80);
/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct RawMapInfo {
    kind: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}
const _: () = assert!(size_of::<RawMapInfo>() == 40);
/// The beginning of `struct bpf_link_info`, for XDP and TCX.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    ifindex: u32,
    attach_type: u32,
}
const _: () = assert!(size_of::<RawLinkInfo>() == 24);

fn info<T>(object: BorrowedFd<'_>, into: &mut T) -> io::Result<()> {
    let mut attr = Info {
        fd: object.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        info: std::ptr::from_mut(into) as u64,
    };
    call(OBJ_INFO, &mut attr).map(|_| ())
}

fn found(result: io::Result<i32>) -> io::Result<Option<()>> {
    match result {
        Ok(_) => Ok(Some(())),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn fd<T>(command: i32, attr: &mut T) -> io::Result<OwnedFd> {
    let fd = call(command, attr)?;
    // SAFETY: the command returns a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The one call. `T` is one of the layouts above, each a prefix of `union bpf_attr`; what it points to outlives the call.
pub(super) fn call<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes at `attr`, and the buffers whose addresses stand in it; callers here
    // and in `many` pass live buffers of the size that the map or the info structure has.
    let r = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if r < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(r as i32)
    }
}

fn text(name: &[u8; 16]) -> String {
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

/// A descriptor and what the kernel says of the map behind it.
pub(super) struct Map {
    pub(super) fd: OwnedFd,
    pub(super) info: MapInfo,
}

impl Map {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        Ok(Self { fd, info })
    }

    /// Reads an element of an array whose value has the size of `T`.
    pub(super) fn element<T: Plain>(&self, index: u32) -> io::Result<Box<T>> {
        let mut value = zeroed();
        self.element_into(index, &mut *value)?;
        Ok(value)
    }

    /// The same, into memory that is there.
    pub(super) fn element_into<T: Plain>(&self, index: u32, value: &mut T) -> io::Result<()> {
        if self.info.value_size as usize != size_of::<T>() || index >= self.info.max_entries {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("map {} has another layout", self.info.name),
            ));
        }
        lookup(self.fd.as_fd(), &index.to_ne_bytes(), bytes_of_mut(value)).map(drop)
    }
}

/// Types of integers only, without padding: any bytes are a value.
///
/// # Safety
/// The implementor is such a type.
pub unsafe trait Plain: Sized {}

// SAFETY: integers, arrays of them, and `repr(C)` structs of them whose sizes `gateway_ebpf::abi` asserts to be without padding.
unsafe impl Plain for gateway_ebpf::abi::Control {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Bucket6 {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Homes6 {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Cold {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Interface {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Count {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Denial {}
// SAFETY: as above.
unsafe impl Plain for gateway_ebpf::abi::Policy {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u8; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u16; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [u64; N] {}
// SAFETY: as above.
unsafe impl<const N: usize> Plain for [gateway_ebpf::abi::Count; N] {}

/// The bytes of a value.
pub(super) fn bytes_of<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: `T` is plain: without padding, every byte of it is initialised.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// A value from the beginning of `bytes`, which are at least as many as it has. On the heap: some are large.
pub(super) fn read_plain<T: Plain>(bytes: &[u8]) -> Box<T> {
    assert!(bytes.len() >= size_of::<T>(), "a caller passes a buffer of the value's size");
    let mut value = zeroed();
    bytes_of_mut(&mut *value).copy_from_slice(&bytes[..size_of::<T>()]);
    value
}

/// A value of zeros; large ones would not fit on a stack.
fn zeroed<T: Plain>() -> Box<T> {
    let layout = std::alloc::Layout::new::<T>();
    // SAFETY: `T` is plain, so that zeros are a value, and not zero-sized (no implementor is); the box frees it with the layout it was
    // allocated with.
    unsafe {
        let p = std::alloc::alloc_zeroed(layout).cast::<T>();
        if p.is_null() {
            std::alloc::handle_alloc_error(layout);
        }
        Box::from_raw(p)
    }
}

fn bytes_of_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    // SAFETY: `T` is plain: it has no padding, and any bytes that are written are a value.
    unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut::<T>(value).cast(), size_of::<T>()) }
}
