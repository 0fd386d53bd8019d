//! `cargo xtask fuzz` and `cargo xtask miri`: what needs a nightly compiler, and no ordinary build or test does.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::run::check;

/// The fuzzer's targets, `tests/fuzz/fuzz_targets`.
pub(crate) const TARGETS: [&str; 4] = ["parser", "decision", "fragments", "events"];

/// Runs the targets, each for so many seconds; what is found lies in `tests/fuzz/artifacts`.
pub(crate) fn fuzz(root: &Path, target: Option<&str>, seconds: u64) -> Result<()> {
    if !succeeds(cargo(root).args(["fuzz", "--version"])) {
        eprintln!("installing cargo-fuzz: it builds and runs the fuzzer's targets");
        check(cargo(root).args(["install", "cargo-fuzz", "--locked"]))?;
    }
    for name in TARGETS.iter().filter(|t| target.is_none_or(|wanted| wanted == **t)) {
        let time = format!("-max_total_time={seconds}");
        // Frames are longer than 256 bytes seldom, and nothing is read that far in.
        let options = ["--", time.as_str(), "-max_len=400", "-timeout=10", "-print_final_stats=1"];
        check(
            cargo(root)
                .args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", name])
                .args(options),
        )?;
    }
    Ok(())
}

/// Runs the unit tests of the data plane's library under Miri.
pub(crate) fn miri(root: &Path) -> Result<()> {
    if !succeeds(cargo(root).args(["miri", "--version"])) {
        eprintln!("adding the component miri to rustup's nightly: it runs the library's tests and finds undefined behaviour");
        check(Command::new("rustup").args(["component", "add", "--toolchain", "nightly", "miri", "rust-src"]))?;
    }
    if !succeeds(cargo(root).args(["miri", "--version"])) {
        bail!("`cargo +nightly miri` does not run");
    }
    check(cargo(root).args(["miri", "test", "--package", "gateway-ebpf", "--lib"]))
}

/// rustup's nightly, whatever runs this.
fn cargo(root: &Path) -> Command {
    let mut c = Command::new("cargo");
    c.arg("+nightly").current_dir(root);
    for variable in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        c.env_remove(variable);
    }
    c
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|s| s.success())
}
