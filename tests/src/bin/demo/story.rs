//! How the demo speaks: numbered steps, the commands with what they printed, and what was checked. Colour where a terminal takes it.

use std::{io::IsTerminal as _, time::Instant};

use anyhow::{Result, bail};

/// The narrator.
pub(crate) struct Story {
    colour: bool,
    steps: u32,
    checks: u32,
    started: Instant,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const CYAN: &str = "36";

impl Story {
    pub(crate) fn new() -> Self {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            colour,
            steps: 0,
            checks: 0,
            started: Instant::now(),
        }
    }

    /// A new step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}", self.paint(BOLD, &format!("{}. {title}", self.steps)));
    }

    /// What is going on.
    pub(crate) fn note(&self, text: &str) {
        println!("   {text}");
    }

    /// A command as typed at a place, and what it printed.
    pub(crate) fn command(&self, place: &str, line: &str, output: &str) {
        println!("   {} {}", self.paint(CYAN, &format!("{place}$")), self.paint(BOLD, line));
        for line in output.trim_end().lines() {
            println!("     {}", self.paint(DIM, line));
        }
    }

    /// Something that must hold.
    pub(crate) fn check(&mut self, what: &str, holds: bool) -> Result<()> {
        if !holds {
            bail!("this does not hold: {what}");
        }
        self.checks += 1;
        println!("   {} {what}", self.paint(GREEN, "ok"));
        Ok(())
    }

    pub(crate) fn end(&self) {
        let seconds = self.started.elapsed().as_secs_f32();
        let text = format!("All {} checks of {} steps held, in {seconds:.1} s.", self.checks, self.steps);
        println!("\n{}", self.paint(GREEN, &text));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
