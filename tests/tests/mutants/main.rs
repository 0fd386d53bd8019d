//! Faults planted in the shipping decision, in its parsers, clock and tables, and in the policy compiler, one at a time: the differential must find
//! each. `tests/data/mutants.toml` has them.
//!
//! All of them are planted at once, each behind a switch, in a copy of the sources under `target/mutants`; so it is compiled once, and run
//! once for each fault.
#![allow(clippy::unwrap_used, reason = "a test ends at what it does not expect")]

mod plant;

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use self::plant::{Mutant, plant};

/// Scenarios that a fault has time to show in, each of 200 packets.
const SCENARIOS: &str = "1000";

#[test]
fn every_planted_fault_is_found() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mutants = Mutant::all();
    let compiler = mutants.iter().filter(|m| m.file.starts_with("gateway-user")).count();
    let scratch = root.join("target/mutants");
    plant(root, &scratch, &mutants);

    let start = Instant::now();
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--offline", "--quiet"])
        .current_dir(&scratch)
        .env("CARGO_TARGET_DIR", scratch.join("target"))
        // Where a fault is planted, parentheses and dead code remain.
        .env("RUSTFLAGS", "-Awarnings")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .unwrap();
    assert!(built.success(), "the planted faults do not compile: see above");
    let built = start.elapsed();

    let workers = [0, 1].map(|first| {
        Command::new(scratch.join("target/debug/mutants"))
            .args([first.to_string(), "2".into(), mutants.len().to_string(), SCENARIOS.into()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
    let mut survived = Vec::new();
    let mut told = 0;
    for worker in workers {
        let out = worker.wait_with_output().unwrap();
        assert!(out.status.success(), "{:?}", out.status);
        for line in String::from_utf8(out.stdout).unwrap().lines() {
            let (number, outcome) = line.split_once(' ').unwrap();
            let number: usize = number.parse().unwrap();
            told += 1;
            if number == 0 {
                assert_eq!(outcome, "survived", "without any fault the differential disagrees");
                continue;
            }
            let mutant = &mutants[number - 1];
            println!("{outcome:<24} {}: {}", mutant.file, mutant.name);
            if outcome == "survived" {
                survived.push(format!("{}: {}", mutant.file, mutant.name));
            }
        }
    }
    println!("{} faults, built in {built:?}, in all {:?}", mutants.len(), start.elapsed());
    assert!(
        mutants.len() - compiler >= 25 && compiler >= 8,
        "{} and {compiler}",
        mutants.len() - compiler
    );
    assert_eq!(told, mutants.len() + 1, "each fault was tried");
    assert!(survived.is_empty(), "not found:\n{}", survived.join("\n"));
}
