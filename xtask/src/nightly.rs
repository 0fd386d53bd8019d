//! `cargo xtask fuzz` and `cargo xtask miri`, and both as the rest of `cargo xtask test --nightly`: what needs a nightly compiler, and no
//! ordinary build or test does.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::run::{check, shown};

/// The fuzzer's targets, `tests/fuzz/fuzz_targets`.
pub(crate) const TARGETS: [&str; 4] = ["parser", "decision", "fragments", "events"];

/// Miri, then the fuzzer with so many seconds for each target. One that fails does not keep the others from running; what each did is said at
/// the end. Whether all passed.
pub(crate) fn run(root: &Path, seconds: u64) -> bool {
    let mut told = Vec::new();
    let mut one = |name: &str, does: &dyn Fn() -> Result<String>| {
        let start = Instant::now();
        let (passed, what) = match does() {
            Ok(what) => (true, what),
            Err(e) => (false, format!("{e:#}")),
        };
        told.push((passed, format!("{name}, {} s: {what}", start.elapsed().as_secs())));
    };
    one("miri", &|| miri(root).map(|()| "the data plane's unit tests".to_owned()));
    for target in TARGETS {
        one(&format!("fuzz {target}"), &|| {
            Ok(format!("{} inputs", fuzz_one(root, target, seconds)?))
        });
    }
    println!("\nnightly:");
    for (passed, line) in &told {
        println!("  {:<8} {line}", if *passed { "passed" } else { "failed" });
    }
    told.iter().all(|(passed, _)| *passed)
}

/// Runs the targets, each for so many seconds.
pub(crate) fn fuzz(root: &Path, target: Option<&str>, seconds: u64) -> Result<()> {
    for name in TARGETS.into_iter().filter(|t| target.is_none_or(|wanted| wanted == *t)) {
        let inputs = fuzz_one(root, name, seconds)?;
        println!("fuzz {name}: {inputs} inputs in {seconds} s, nothing found");
    }
    Ok(())
}

/// How many inputs one target has had. What is found wrong lies in `tests/fuzz/artifacts`; inputs that reach something new are kept under
/// `target`, so that the corpus that is kept with the sources grows by choice only.
fn fuzz_one(root: &Path, name: &str, seconds: u64) -> Result<u64> {
    if !succeeds(cargo(root).args(["fuzz", "--version"])) {
        eprintln!("installing cargo-fuzz: it builds and runs the fuzzer's targets");
        check(cargo(root).args(["install", "cargo-fuzz", "--locked"]))?;
    }
    let found = root.join("target/fuzz-corpus").join(name);
    fs::create_dir_all(&found).with_context(|| format!("cannot make {}", found.display()))?;
    let mut run = cargo(root);
    run.args(["fuzz", "run", "--fuzz-dir", "tests/fuzz", name])
        .arg(&found)
        .arg(root.join("tests/fuzz/corpus").join(name))
        .args(["--", &format!("-max_total_time={seconds}")])
        // Frames are longer than 256 bytes seldom, and nothing is read that far in.
        .args(["-max_len=400", "-timeout=10", "-print_final_stats=1"]);
    let command = shown(&run);
    let running = run.stdin(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut running = running.with_context(|| format!("cannot start `{command}`"))?;
    let mut inputs = None;
    for line in running
        .stderr
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(|e| e.split(b'\n'))
    {
        let line = String::from_utf8_lossy(&line?).into_owned();
        eprintln!("{line}");
        inputs = inputs.or_else(|| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok());
    }
    let status = running.wait()?;
    if !status.success() {
        bail!("`{command}` failed: {status}; what it found lies in tests/fuzz/artifacts");
    }
    inputs.with_context(|| format!("`{command}` does not say what it did"))
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
