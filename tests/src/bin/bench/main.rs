//! `cargo xtask bench [verdict|drop|load|move|tun|stack|signals|memory]`: the shipping programs against an empty one and against their peers, in one run, as ratios
//! round by round. Figures of one machine mean little elsewhere; ratios mean more. The result is also JSON, in `target/bench/`. How to read
//! it: `docs/bench.md`.

mod drop;
mod gateway;
mod host;
mod libnftables;
mod line;
mod load;
mod moves;
mod peers;
mod programs;
mod quiet;
mod report;
mod run;
mod signals;
mod stack;
mod tun;
mod verdict;
mod xdpfilter;

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use lazaret_tests::require::Need::{self, Bpf, Program, Root, Tun};

/// Rounds that count; one more comes first and does not.
const ROUNDS: usize = 7;
const NEEDS: &[Need] = &[
    Root,
    Bpf,
    Tun,
    Program("nft"),
    Program("ip"),
    Program("ethtool"),
    Program("ipset"),
    Program("iptables-legacy"),
    Program("xdp-filter"),
];
/// Packets of a verdict's sample.
const VERDICTS: u32 = 2_000_000;
/// Frames of a forwarding sample.
const FRAMES: u32 = 200_000;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let groups: Vec<String> = std::env::args().skip(1).collect();
    let known = GROUPS.map(|g| g.name);
    if let Some(unknown) = groups.iter().find(|g| !known.contains(&g.as_str())) {
        bail!("there is no group {unknown}; there are {}", known.join(", "));
    }
    if let Some(missing) = Need::missing(NEEDS) {
        bail!("the benchmark {missing}");
    }
    let rounds = std::env::var("LAZARET_BENCH_ROUNDS").ok().and_then(|r| r.parse().ok());
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    run::pin(run::CPU)?;
    let host = host::facts()?;
    println!("{}", serde_json::to_string_pretty(&host)?);
    for group in GROUPS {
        if groups.is_empty() || groups.iter().any(|g| g == group.name) {
            let mut report = report::Report::default();
            (group.measure)(&mut report, rounds.unwrap_or(ROUNDS)).with_context(|| group.name)?;
            report.finish(directory, group.name, group.of, &host)?;
        }
    }
    Ok(())
}

/// A group of rows.
struct Group {
    name: &'static str,
    /// What a row's nanoseconds are of.
    of: &'static str,
    measure: fn(&mut report::Report, usize) -> Result<()>,
}

const GROUPS: [Group; 8] = [
    Group {
        name: "verdict",
        of: "packet",
        measure: |report, rounds| verdict::measure(report, rounds, VERDICTS),
    },
    Group {
        name: "drop",
        of: "packet",
        measure: |report, rounds| drop::measure(report, rounds, FRAMES),
    },
    Group {
        name: "load",
        of: "address",
        measure: load::measure,
    },
    Group {
        name: "move",
        of: "move",
        measure: moves::measure,
    },
    Group {
        name: "tun",
        of: "packet",
        measure: |report, rounds| tun::measure(report, rounds, FRAMES),
    },
    Group {
        name: "stack",
        of: "packet",
        measure: |report, rounds| stack::measure(report, rounds, FRAMES),
    },
    Group {
        name: "signals",
        of: "signal or device",
        measure: signals::measure,
    },
    Group {
        name: "memory",
        of: "device",
        measure: |report, _| signals::memory(report),
    },
];
