//! What a laptop and CI both call. Each subcommand is one module; what they share is `run`.

mod api;
#[allow(
    dead_code,
    reason = "the build script of gateway-user, which includes the file too, uses the rest"
)]
mod bpf;
mod nightly;
mod run;
mod setup;
mod test;
mod tidy;

use std::{
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::{run::check, setup::Scope};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Lazaret's development tasks")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find a BPF compiler and the programs that tests and demo need; install what is missing, saying what and why
    Setup {
        /// Only say what is missing; exit 1 if anything is
        #[arg(long)]
        check: bool,
    },
    /// Build the BPF object and the `lazaret` binary
    Build {
        /// With optimisations
        #[arg(long)]
        release: bool,
    },
    /// Run setup, build and every test; list what was skipped (with CI=true, a skip fails)
    Test {
        /// Only tests whose name contains this
        filter: Option<String>,
        /// A million random packets in the differential tests, instead of what takes seconds; then Miri, and the fuzzer for a while
        #[arg(long)]
        nightly: bool,
        /// Seconds for each of the fuzzer's targets in the nightly form
        #[arg(long, default_value_t = 60, requires = "nightly")]
        seconds: u64,
    },
    /// Let the fuzzer look for packets and records that something makes wrong of; needs a nightly compiler, installs cargo-fuzz
    Fuzz {
        /// Only this target
        #[arg(value_parser = nightly::TARGETS)]
        target: Option<String>,
        /// Seconds for each target
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Run the unit tests of the data plane's library under Miri; needs a nightly compiler, adds the component
    Miri,
    /// Show the whole mission in network namespaces, with a real OpenVPN client; needs root
    Demo {
        /// Leave it up at the end and print commands to try
        #[arg(long)]
        hold: bool,
    },
    /// Measure the programs against an empty one and against nftables, ipset and xdp-filter, as ratios; JSON goes to target/bench; needs root
    Bench {
        /// Only these groups
        #[arg(value_name = "GROUP", value_parser = ["verdict", "drop", "load", "move", "tun", "stack", "signals", "memory"])]
        groups: Vec<String>,
    },
    /// Check the API's form, and that nothing of the last release's is taken away, with buf (from PyPI)
    Api {
        /// Make what the API is now the release that later ones are compared to
        #[arg(long)]
        release: bool,
    },
    /// Check by machine what compilers do not: dependency arrows, module docs, sizes, words
    Tidy,
}

fn main() -> ExitCode {
    match Cli::parse().task.perform(&root()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

impl Task {
    fn perform(self, root: &Path) -> Result<ExitCode> {
        match self {
            Self::Setup { check: true } => {
                let missing = setup::report(Scope::Bench);
                return Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Self::Setup { check: false } => setup::install(Scope::Bench)?,
            Self::Build { release } => build(root, release)?,
            Self::Test {
                filter,
                nightly,
                seconds,
            } => {
                setup::install(Scope::Test)?;
                object(root)?;
                let mut passed = test::run(root, filter.as_deref(), nightly)?;
                if nightly {
                    passed &= nightly::run(root, seconds);
                }
                return Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            Self::Fuzz { target, seconds } => {
                object(root)?;
                nightly::fuzz(root, target.as_deref(), seconds)?;
            }
            Self::Miri => nightly::miri(root)?,
            Self::Demo { hold } => {
                setup::install(Scope::Test)?;
                build(root, false)?;
                // This process becomes the demo, so that nobody else takes the Ctrl-C after which it cleans up.
                let demo = target(root).join("debug/demo");
                let failed = Command::new(&demo).args(hold.then_some("--hold")).exec();
                return Err(failed).with_context(|| format!("cannot start {}", demo.display()));
            }
            Self::Bench { groups } => {
                setup::install(Scope::Bench)?;
                object(root)?;
                // `signals` runs the product as its users do.
                build(root, true)?;
                let bench = ["run", "--release", "--package", "lazaret-tests", "--bin", "bench", "--"];
                check(
                    cargo(root)
                        .env("LAZARET_BENCH_OBJECT", bpf::bench_object(root))
                        .args(bench)
                        .args(groups),
                )?;
            }
            Self::Api { release: true } => api::release(root)?,
            Self::Api { release: false } => api::run(root)?,
            Self::Tidy => return tidy::run(root),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn build(root: &Path, release: bool) -> Result<()> {
    object(root)?;
    // All of the workspace's programs at once, as the tests build them: one choice of features, so nothing is built twice. A release
    // is the product alone.
    let what: &[&str] = if release {
        &["build", "--release", "--package", "gateway-user"]
    } else {
        &["build", "--workspace", "--bins"]
    };
    check(cargo(root).args(what))
}

/// Makes the BPF object if it is not fresh.
fn object(root: &Path) -> Result<()> {
    if bpf::build(root)? {
        eprintln!("built {}", bpf::object(root).display());
    }
    Ok(())
}

/// The cargo that runs this.
fn cargo(root: &Path) -> Command {
    let mut c = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    c.current_dir(root);
    c
}

/// Where cargo builds.
fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}

/// The workspace's folder.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent()
        .context("xtask lies in the workspace")
        .map_or_else(|_| here.to_path_buf(), Path::to_path_buf)
}
