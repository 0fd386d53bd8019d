//! The command line: what can be typed, and what becomes of it. It asks the daemon over its Unix socket, or its network API; only `run`, `floor` and `detach`
//! touch the kernel, through the modules that do.

mod access;
mod args;
mod audit;
mod capture;
mod check;
pub(crate) mod client;
mod commands;
mod denials;
mod explain;
mod json;
mod kernel;
mod life;
mod pcapng;
mod policy;
mod reason;
mod remote;
mod show;
mod store;
mod table;

use std::process::ExitCode;

use clap::Parser as _;

pub(crate) use self::table::escaped;
use self::{
    args::{Cli, Command, HookCommand, PkiCommand},
    client::Failure,
};

/// Does what the process's arguments say. Exit codes are in `lazaret --help`.
#[must_use]
pub fn main() -> ExitCode {
    // clap prints and exits with 2 on a wrong command line, with 0 after --help.
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(outcome) => ExitCode::from(outcome as u8),
        Err(failure) => {
            complain(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

/// How a command that was not refused ended, as its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done = 0,
    /// It said why.
    Failed = 1,
    NotEnforced = 4,
}

fn run(command: &Command) -> Result<Outcome, Failure> {
    match command {
        Command::Run(a) => {
            check::before_running(&a.config)?;
            local(crate::daemon::run(&a.config))
        }
        Command::Check(a) => check::run(a),
        Command::Hook(HookCommand::Openvpn(a)) => Ok(if crate::hook::openvpn::run(a) {
            Outcome::Done
        } else {
            Outcome::Failed
        }),
        Command::Pki(PkiCommand::Init(a)) => made(crate::pki::init(a)),
        Command::Pki(PkiCommand::Issue(a)) => made(crate::pki::issue(a)),
        Command::Pki(PkiCommand::Renew(a)) => made(crate::pki::renew(a)),
        Command::Pki(PkiCommand::Status(c)) => commands::block_on(access::status(c)),
        Command::Pki(PkiCommand::FinishRetirement(a)) => commands::block_on(access::finish(a)),
        Command::Audit(a) => audit::run(a),
        Command::Store(a) => store::run(a),
        Command::Reason(a) => reason::run(a),
        Command::Ask(ask) => commands::run(ask),
        Command::Floor(a) => kernel::close_floor(a),
        Command::Detach(a) => kernel::detach(a),
    }
}

fn local(result: anyhow::Result<()>) -> Result<Outcome, Failure> {
    result.map(|()| Outcome::Done).map_err(|e| Failure::Local(sentence(&e)))
}

/// An error with its causes; a cause that the text has already is not said twice.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            let colon = if text.is_empty() { "" } else { ": " };
            text += &format!("{colon}{cause}");
        }
    }
    text
}

fn made(result: Result<crate::pki::Made, crate::pki::PkiError>) -> Result<Outcome, Failure> {
    let made = result.map_err(|e| Failure::Local(e.to_string()))?;
    table::write_out(&format!("{made}\n")).map_err(|e| Failure::Local(format!("standard output: {e}")))?;
    Ok(Outcome::Done)
}

/// One sentence to standard error.
fn complain(sentence: &str) {
    use std::io::Write as _;
    // Nothing can be said of a standard error that cannot be written to. Line ends stay: a configuration's mistakes come one a line.
    let lines: Vec<String> = sentence.lines().map(escaped).collect();
    let _ = writeln!(std::io::stderr(), "lazaret: {}", lines.join("\n"));
}
