//! What the figures depend on: kernel, CPU, caches, versions, load, and the memory-latency ladder.

use std::{fs, process::Command};

use anyhow::Result;
use serde_json::{Value, json};

use crate::run;

/// Debian's packages that are measured against.
const PEERS: [&str; 6] = ["nftables", "ipset", "iptables", "xdp-tools", "ethtool", "iproute2"];
/// Sizes of the ladder, KiB.
const LADDER: [usize; 7] = [16, 256, 1024, 2048, 8192, 65536, 262_144];

/// Facts of the host.
pub(crate) fn facts() -> Result<Value> {
    let read = |p: &str| fs::read_to_string(p).map(|s| s.trim().to_owned()).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|l| {
        l.strip_prefix("model name")
            .map(|m| m.trim_matches([' ', '\t', ':']).to_owned())
    });
    let caches: Vec<String> = (0..4)
        .map(|i| format!("/sys/devices/system/cpu/cpu0/cache/index{i}/"))
        .map(|d| {
            let part = |file: &str| read(&format!("{d}{file}"));
            format!("L{} {} {}", part("level"), part("type"), part("size"))
        })
        .collect();
    let mut packages = serde_json::Map::new();
    for name in PEERS {
        let out = Command::new("dpkg-query").args(["-W", "-f", "${Version}", name]).output();
        let version = out
            .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
            .unwrap_or_default();
        packages.insert(name.to_owned(), version.into());
    }
    let mut ladder = serde_json::Map::new();
    for kib in LADDER {
        ladder.insert(format!("{kib} KiB"), json!((chase(kib << 10)? * 10.0).round() / 10.0));
    }
    Ok(json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "cpu": cpu,
        "cpus": std::thread::available_parallelism().map(std::num::NonZero::get).unwrap_or(0),
        "caches": caches,
        "load_average": read("/proc/loadavg"),
        "jit": read("/proc/sys/net/core/bpf_jit_enable"),
        "spectre_v2": read("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        "packages": packages,
        "memory_latency_ns": ladder,
    }))
}

/// Nanoseconds of one load that depends on the one before, at random places of `bytes`, one a cache line, in 4 KiB pages: the best of five.
fn chase(bytes: usize) -> Result<f64> {
    let n = bytes / 64;
    let mut order: Vec<usize> = (0..n).collect();
    let mut x = 88_172_645_463_325_252_u64;
    for i in (1..n).rev() {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        order.swap(i, (x % (i as u64 + 1)) as usize);
    }
    let mut memory = memmap2::MmapMut::map_anon(bytes)?;
    memory.advise(memmap2::Advice::NoHugePage)?;
    for i in 0..n {
        let next = (order[(i + 1) % n] * 64) as u64;
        memory[order[i] * 64..][..8].copy_from_slice(&next.to_ne_bytes());
    }
    let loads = (n * 20).clamp(200_000, 1_000_000);
    let mut best = f64::MAX;
    for _ in 0..5 {
        let start = run::cpu_time()?;
        let mut at = 0;
        for _ in 0..loads {
            let mut word = [0; 8];
            word.copy_from_slice(&memory[at..at + 8]);
            at = u64::from_ne_bytes(word) as usize;
        }
        std::hint::black_box(at);
        let took = run::cpu_time()?.saturating_sub(start);
        best = best.min(took.as_nanos() as f64 / loads as f64);
    }
    Ok(best)
}
