//! Rows and ratios: a table for people, JSON for programs, and for each goal whether it is met.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What a ratio is to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    /// At most.
    AtMost(f64),
    /// At least.
    AtLeast(f64),
}

impl Goal {
    fn met(self, value: f64) -> bool {
        match self {
            Self::AtMost(g) => value <= g,
            Self::AtLeast(g) => value >= g,
        }
    }
    fn text(self) -> String {
        match self {
            Self::AtMost(g) => format!("<= {g}"),
            Self::AtLeast(g) => format!(">= {g}"),
        }
    }
}

/// Samples by name; the n-th sample of each row is of the n-th round.
#[derive(Default)]
pub(crate) struct Report {
    rows: BTreeMap<&'static str, Vec<f64>>,
    ratios: Vec<(&'static str, &'static str, Option<Goal>)>,
}

impl Report {
    /// Adds a round's sample, in nanoseconds a packet.
    pub(crate) fn sample(&mut self, name: &'static str, ns: f64) {
        self.rows.entry(name).or_default().push(ns);
    }

    /// Asks for `a / b`, paired round by round.
    pub(crate) fn ratio(&mut self, a: &'static str, b: &'static str, goal: Option<Goal>) {
        self.ratios.push((a, b, goal));
    }

    /// Prints the tables and writes `<dir>/<group>.json`.
    pub(crate) fn finish(&self, dir: &Path, group: &str, host: &Value) -> Result<()> {
        let mut rows = vec![];
        println!("\n{:<34}{:>10}{:>10}{:>10}   ns a packet", group, "min", "median", "max");
        for (name, samples) in &self.rows {
            let (min, median, max) = spread(samples);
            println!("{name:<34}{min:>10.1}{median:>10.1}{max:>10.1}");
            rows.push(json!({"name": name, "unit": "ns", "min": round(min), "median": round(median), "max": round(max)}));
        }
        let mut ratios = vec![];
        println!(
            "\n{:<50}{:>8}{:>8}{:>8}   goal",
            "ratio, round by round", "min", "median", "max"
        );
        for (a, b, goal) in &self.ratios {
            let (Some(x), Some(y)) = (self.rows.get(a), self.rows.get(b)) else {
                continue;
            };
            let (min, median, max) = spread(&x.iter().zip(y).map(|(x, y)| x / y).collect::<Vec<_>>());
            let name = format!("{a} / {b}");
            let verdict = goal.map_or(String::new(), |g| {
                format!("{} {}", g.text(), if g.met(median) { "met" } else { "SHORT" })
            });
            println!("{name:<50}{min:>8.2}{median:>8.2}{max:>8.2}   {verdict}");
            ratios.push(
                json!({"name": name, "min": round(min), "median": round(median), "max": round(max),
                "goal": goal.map(Goal::text), "met": goal.map(|g| g.met(median))}),
            );
        }
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{group}.json"));
        let text = serde_json::to_string_pretty(&json!({"host": host, "rows": rows, "ratios": ratios}))?;
        fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

/// Minimum, median, maximum.
fn spread(samples: &[f64]) -> (f64, f64, f64) {
    let mut s = samples.to_vec();
    s.sort_by(f64::total_cmp);
    match s.len() {
        0 => (f64::NAN, f64::NAN, f64::NAN),
        n => (s[0], s[n / 2], s[n - 1]),
    }
}

fn round(v: f64) -> f64 {
    (v * 100.0).round() / 100.0
}

/// What the figures depend on.
pub(crate) fn host() -> Value {
    let read = |p: &str| fs::read_to_string(p).map(|s| s.trim().to_owned()).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|l| {
        l.strip_prefix("model name")
            .map(|m| m.trim_matches([' ', '\t', ':']).to_owned())
    });
    let caches: Vec<String> = (0..4)
        .map(|i| format!("/sys/devices/system/cpu/cpu0/cache/index{i}/"))
        .map(|d| {
            format!(
                "L{} {} {}",
                read(&(d.clone() + "level")),
                read(&(d.clone() + "type")),
                read(&(d + "size"))
            )
        })
        .collect();
    let output = |program: &str, arg: &str| {
        let out = std::process::Command::new(program).arg(arg).output();
        out.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
            .unwrap_or_default()
    };
    json!({"kernel": read("/proc/sys/kernel/osrelease"), "cpu": cpu, "caches": caches, "load_average": read("/proc/loadavg"),
        "jit": read("/proc/sys/net/core/bpf_jit_enable"), "nft": output("nft", "--version")})
}
