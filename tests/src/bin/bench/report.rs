//! Rows and ratios: a table for people, JSON for programs, and for each goal whether it is met, or short by how much.

use std::{fs, path::Path};

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
    /// Met, or by how many hundredths of the goal it is not.
    fn verdict(self, value: f64) -> String {
        let (Self::AtMost(g) | Self::AtLeast(g)) = self;
        if self.met(value) {
            return format!("{}: met", self.text());
        }
        format!("{}: SHORT by {:.0} %", self.text(), (value - g).abs() / g * 100.0)
    }
}

/// What a row counts.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds for one of what the group is of.
    #[default]
    Nanoseconds,
    /// How many a second.
    PerSecond,
    /// Bytes for one.
    Bytes,
}

impl Unit {
    const fn text(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::PerSecond => "1/s",
            Self::Bytes => "B",
        }
    }
}

/// Samples by name, in the order of their first; the n-th sample of each row is of the n-th round.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<(String, Unit, Vec<f64>)>,
    ratios: Vec<(String, String, Option<Goal>)>,
    notes: Vec<String>,
}

impl Report {
    /// Adds a round's sample, in nanoseconds.
    pub(crate) fn sample(&mut self, name: &str, ns: f64) {
        self.sample_in(name, Unit::Nanoseconds, ns);
    }

    /// Adds a round's sample in this unit, which is the same in each round.
    pub(crate) fn sample_in(&mut self, name: &str, unit: Unit, value: f64) {
        match self.rows.iter_mut().find(|(n, ..)| n == name) {
            Some((.., samples)) => samples.push(value),
            None => self.rows.push((name.to_owned(), unit, vec![value])),
        }
    }

    /// Says something of how it was measured.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    /// Asks for `a / b`, paired round by round.
    pub(crate) fn ratio(&mut self, a: &str, b: &str, goal: Option<Goal>) {
        self.ratios.push((a.to_owned(), b.to_owned(), goal));
    }

    /// Prints the tables and writes `<dir>/<group>.json`. `of`: what a nanosecond is counted for.
    pub(crate) fn finish(&self, dir: &Path, group: &str, of: &str, host: &Value) -> Result<()> {
        let mut rows = vec![];
        println!(
            "\n{:<40}{:>12}{:>12}{:>12}   ns a {of}, if not said",
            group, "min", "median", "max"
        );
        for (name, unit, samples) in &self.rows {
            let (min, median, max) = spread(samples);
            let said = if *unit == Unit::Nanoseconds { "" } else { unit.text() };
            println!("{name:<40}{min:>12.1}{median:>12.1}{max:>12.1}   {said}");
            rows.push(json!({"name": name, "unit": unit.text(), "min": round(min), "median": round(median), "max": round(max)}));
        }
        let mut ratios = vec![];
        println!(
            "\n{:<52}{:>9}{:>9}{:>9}   goal, by the median",
            "ratio, round by round", "min", "median", "max"
        );
        for (a, b, goal) in &self.ratios {
            let (Some(x), Some(y)) = (self.samples(a), self.samples(b)) else {
                continue;
            };
            let (min, median, max) = spread(&x.iter().zip(y).map(|(x, y)| x / y).collect::<Vec<_>>());
            let name = format!("{a} / {b}");
            let verdict = goal.map_or(String::new(), |g| g.verdict(median));
            println!("{name:<52}{min:>9.2}{median:>9.2}{max:>9.2}   {verdict}");
            ratios.push(
                json!({"name": name, "min": round(min), "median": round(median), "max": round(max),
                "goal": goal.map(Goal::text), "met": goal.map(|g| g.met(median))}),
            );
        }
        for note in &self.notes {
            println!("\n{note}");
        }
        fs::create_dir_all(dir)?;
        let path = dir.join(format!("{group}.json"));
        let text = serde_json::to_string_pretty(&json!({"host": host, "rows": rows, "ratios": ratios, "notes": self.notes}))?;
        fs::write(&path, text + "\n").with_context(|| path.display().to_string())?;
        println!("\nwritten to {}", path.canonicalize()?.display());
        Ok(())
    }

    fn samples(&self, name: &str) -> Option<&Vec<f64>> {
        self.rows.iter().find(|(n, ..)| n == name).map(|(.., samples)| samples)
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
