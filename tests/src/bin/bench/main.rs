//! `cargo xtask bench [verdict|stack]`: the shipping programs against an empty one and against nftables, in one run, as ratios round by
//! round. Figures of one machine mean little elsewhere; ratios mean more. The result is also JSON, in `target/bench/`.

mod gateway;
mod report;
mod run;
mod stack;
mod verdict;

use std::{path::Path, process::ExitCode};

use anyhow::{Result, bail};
use lazaret_tests::require::Need::{self, Bpf, Program, Root};

/// Rounds that count; one more comes first and does not.
const ROUNDS: usize = 7;
const NEEDS: &[Need] = &[Root, Bpf, Program("nft"), Program("ip"), Program("ethtool")];
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
    if let Some(unknown) = groups.iter().find(|g| !matches!(g.as_str(), "verdict" | "stack")) {
        bail!("there is no group {unknown}; there are verdict and stack");
    }
    if let Some(missing) = Need::missing(NEEDS) {
        bail!("the benchmark {missing}");
    }
    let wanted = |group: &str| groups.is_empty() || groups.iter().any(|g| g == group);
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bench"));
    let host = report::host();
    println!("{}", serde_json::to_string_pretty(&host)?);
    run::pin(run::CPU)?;
    if wanted("verdict") {
        let mut report = report::Report::default();
        verdict::measure(&mut report, ROUNDS, VERDICTS)?;
        report.finish(directory, "verdict", &host)?;
    }
    if wanted("stack") {
        let mut report = report::Report::default();
        stack::measure(&mut report, ROUNDS, FRAMES)?;
        report.finish(directory, "stack", &host)?;
    }
    Ok(())
}
