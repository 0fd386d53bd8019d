//! The memory of the maps, by the kernel's account, against what docs/memory.md says of it.

use std::os::fd::{AsFd as _, AsRawFd as _};

use gateway_ebpf::abi;
use gateway_user::dataplane::memory;
use lazaret_tests::require;

use crate::gateway::{Gateway, QUARANTINE};

#[test]
fn every_map_takes_what_the_page_says() {
    require!(Root, Bpf, Tun, Program("nft"));
    let (mut g, _tun) = Gateway::tun(|c| c);
    g.open();
    for host in 2..=254 {
        g.assign([10, 66, 0, host].into(), QUARANTINE);
    }
    let pins = g.config.paths.pins.join(format!("v{}/maps", abi::VERSION));
    let cpus = aya::util::nr_cpus().unwrap();
    let documented = memory(&g.config, cpus).unwrap();
    let mut pinned: Vec<String> = std::fs::read_dir(&pins)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    pinned.sort();
    let mut named: Vec<&str> = documented.iter().map(|(n, _)| *n).collect();
    named.sort_unstable();
    assert_eq!(pinned, named, "every pinned map is documented");
    let free_hash = |name: &str| match name {
        // Full, as documented, less what is not used of them now.
        abi::map::COLD => u64::from(g.config.tables.addresses - 253) * 96,
        abi::map::INTERFACES => abi::MAX_INTERFACES as u64 * 136,
        _ => 0,
    };
    for (name, bytes) in documented {
        let map = aya::maps::MapData::from_pin(pins.join(name)).unwrap();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd())).unwrap();
        let line = info.lines().find_map(|l| l.strip_prefix("memlock:")).unwrap();
        let used: u64 = line.trim().parse().unwrap();
        let wanted = bytes - free_hash(name);
        // Headers of some hundred bytes, and a page of rounding.
        assert!(used.abs_diff(wanted) <= 8192, "{name}: {used} bytes, documented {wanted}");
    }
}
