//! `cargo xtask tidy`: checks by machine of what compilers do not see. `rules` (pure) judges texts; here they are read.

mod rules;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use self::rules::Finding;
use crate::{Cli, run};

/// Reads every text of the repository and prints what breaks a rule.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let files = files(root)?;
    for path in &files {
        // What is not text has no rules here.
        let Ok(text) = fs::read_to_string(root.join(path)) else {
            continue;
        };
        let path = path.to_string_lossy();
        findings.extend(rules::words(&path, &text));
        if path.ends_with(".rs") {
            findings.extend(rules::source(&path, &text));
        } else if path.ends_with("/Cargo.toml") {
            findings.extend(rules::manifest(&path, &text));
        } else if path == "README.md" {
            let tasks: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
            findings.extend(rules::readme(&path, &text, &tasks));
        }
    }
    for needed in [
        "Cargo.lock",
        "README.md",
        "ARCHITECTURE.md",
        "CHANGELOG.md",
        ".ci/run",
        "deploy/lazaret.toml",
    ] {
        if !files.iter().any(|f| f == Path::new(needed)) {
            findings.push(Finding::new(needed, 0, "missing".into()));
        }
    }
    for finding in &findings {
        println!("{finding}");
    }
    println!("tidy: {} files, {} findings", files.len(), findings.len());
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Files of the repository, those not yet added too.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut list = Command::new("git");
    list.current_dir(root)
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let out = list
        .output()
        .with_context(|| format!("cannot start `{}`", run::shown(&list)))?;
    anyhow::ensure!(
        out.status.success(),
        "`git ls-files` failed: {}",
        String::from_utf8_lossy(&out.stderr).trim()
    );
    let names = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(names
        .split('\0')
        .filter(|n| !n.is_empty())
        .map(PathBuf::from)
        .filter(|p| root.join(p).is_file())
        .collect())
}
