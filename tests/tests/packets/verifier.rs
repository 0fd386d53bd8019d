//! What the verifier says of the programs: how much it walked, how deep the stacks are.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Instant,
};

use crate::object::{Object, PROGRAMS, open};

/// By program: instructions that kernel 6.18's verifier walks, and the stack of the function that has the largest, bytes. Compilers differ by some
/// percent; a third more of either is a regression.
const RECORDED: [(&str, u64, u32); 9] = [
    ("xdp_device", 253_801, 168),
    ("xdp_core", 212_666, 168),
    ("tc_device_eth", 288_417, 176),
    ("tc_core_eth", 225_128, 176),
    ("tc_device_ip", 261_466, 168),
    ("tc_core_ip", 207_417, 168),
    ("tc_egress_eth", 252_583, 176),
    ("tc_egress_ip", 248_238, 168),
    ("tc_guard", 35, 8),
];

/// The kernel accepts every program, at a cost that leaves room: other kernels count a little differently.
#[test]
fn programs_load_within_bounds() {
    let began = Instant::now();
    let Some(object) = open("programs_load_within_bounds") else {
        return;
    };
    println!("the whole object: loaded in {:.1?}", began.elapsed());
    println!(
        "{:16} {:>9} {:>8} {:>8}  stack of each function",
        "program", "verified", "xlated", "jited"
    );
    for name in PROGRAMS {
        let info = object.info(name);
        let (verified, stack) = statistics(&object, name);
        let sizes = (info.size_translated().unwrap_or(0) / 8, info.size_jitted());
        println!("{name:16} {verified:>9} {:>8} {:>8}  {stack:?}", sizes.0, sizes.1);
        let (_, recorded, deepest) = *RECORDED.iter().find(|(n, ..)| *n == name).expect("each program has a record");
        assert!(
            verified * 10 < recorded * 13,
            "{name}: {verified} of the verifier's 1,000,000 instructions, {recorded} recorded"
        );
        // Over a chain of calls the kernel itself allows 512.
        let most = stack.iter().max().copied().unwrap_or(0);
        assert!(most * 10 < deepest * 13, "{name}: {stack:?}, {deepest} recorded");
    }
}

/// Loads one program once more, with the verifier's statistics: instructions walked, and the stack of each function in bytes.
fn statistics(object: &Object, name: &str) -> (u64, Vec<u32>) {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_BTF_LOAD: libc::c_long = 18;
    const BPF_LOG_STATS: u64 = 4;
    const SCHED_CLS: u64 = 3;
    const XDP: u64 = 6;
    const XDP_HAS_FRAGS: u64 = 1 << 5;
    const ATTACH_XDP: u64 = 37;
    const FUNC_INFO: u64 = 8;

    let mut parsed = aya_obj::Object::parse(object.file.bytes()).unwrap();
    let maps: Vec<_> = parsed.maps.iter().map(|(n, m)| (n.clone(), m.clone())).collect();
    let text: HashSet<usize> = parsed.functions.keys().map(|(section, _)| *section).collect();
    // Without types, the kernel knows no function as global, and verifies each at every call.
    let features = aya_obj::btf::BtfFeatures::new(true, true, true, true, true, true, true, true);
    let btf = parsed.fixup_and_sanitize_btf(&features).unwrap().unwrap().to_bytes();
    let btf = descriptor(BPF_BTF_LOAD, &[btf.as_ptr() as u64, 0, btf.len() as u64, 0], name, &[]);
    parsed
        .relocate_maps(maps.iter().map(|(n, m)| (n.as_str(), object.map_fd(n), m)), &text)
        .unwrap();
    parsed.relocate_calls(&text).unwrap();
    let function = &parsed.functions[&parsed.programs[name].function_key()];
    let (code, types) = (&function.instructions, function.func_info.func_info_bytes());

    let mut log = vec![0_u8; 1 << 20];
    let xdp = name.starts_with("xdp");
    // Program type, number of instructions; instructions; licence; log level and size; log; version and flags; name; interface, attach type;
    // types, size of a function's entry; entries; their number.
    let mut attribute = [0_u64; 18];
    attribute[0] = if xdp { XDP } else { SCHED_CLS } | (code.len() as u64) << 32;
    attribute[1] = code.as_ptr() as u64;
    attribute[2] = parsed.license.as_ptr() as u64;
    attribute[3] = BPF_LOG_STATS | (log.len() as u64) << 32;
    attribute[4] = log.as_mut_ptr() as u64;
    attribute[5] = if xdp { XDP_HAS_FRAGS << 32 } else { 0 };
    attribute[8] = if xdp { ATTACH_XDP << 32 } else { 0 };
    attribute[9] = u64::from(btf.as_raw_fd().cast_unsigned()) | FUNC_INFO << 32;
    attribute[10] = types.as_ptr() as u64;
    attribute[11] = types.len() as u64 / FUNC_INFO;
    drop(descriptor(BPF_PROG_LOAD, &attribute, name, &log));
    let log = String::from_utf8_lossy(&log);

    let after = |mark: &str| log.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in {log}")).1;
    let verified = after("processed ").split(' ').next().unwrap().parse().unwrap();
    let stack = after("stack depth ").lines().next().unwrap();
    (verified, stack.split('+').map(|s| s.parse().unwrap()).collect())
}

/// What bpf(2) makes by an attribute whose pointers are valid.
fn descriptor(command: libc::c_long, attribute: &[u64], name: &str, log: &[u8]) -> OwnedFd {
    // SAFETY: what the attribute points at outlives the call, with the lengths that it gives.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(attribute)) };
    let error = io::Error::last_os_error();
    assert!(
        fd >= 0,
        "{name}: {error}\n{}",
        String::from_utf8_lossy(log).trim_end_matches('\0')
    );
    // SAFETY: the call succeeded, so this is a new descriptor of ours.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}
