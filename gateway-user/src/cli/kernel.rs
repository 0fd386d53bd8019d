//! The subcommands that touch the kernel without the daemon: closing the floor at boot, and taking Lazaret out.

use super::{
    Outcome,
    args::{ConfigArgs, DetachArgs},
    client::Failure,
    table::write_out,
};
use crate::{
    config::{Config, Mode},
    dataplane, floor,
};

/// `lazaret floor`.
pub(super) fn close_floor(args: &ConfigArgs) -> Result<Outcome, Failure> {
    let config = load(args)?;
    if config.mode == Mode::Observe {
        return say("mode is \"observe\": the floor stays open, and NOTHING is denied");
    }
    floor::close(&config).map_err(|e| Failure::Local(format!("the floor is not closed: {e}")))?;
    say("the floor is closed")
}

/// `lazaret detach`.
pub(super) fn detach(args: &DetachArgs) -> Result<Outcome, Failure> {
    let config = load(&args.config)?;
    // Nothing was denied before, and nothing shall be because the programs are gone.
    let open = args.open || config.mode == Mode::Observe;
    dataplane::detach(&config, open).map_err(|e| Failure::Local(e.to_string()))?;
    say(if open {
        "detached; the floor is open, and NOTHING is denied"
    } else {
        "detached; the floor is closed: devices reach nothing until the daemon runs again, or `lazaret detach --open`"
    })
}

fn load(args: &ConfigArgs) -> Result<Config, Failure> {
    Config::load(&args.config).map_err(|e| Failure::Local(e.to_string()))
}

fn say(sentence: &str) -> Result<Outcome, Failure> {
    write_out(&format!("{sentence}\n")).map_err(|e| Failure::Local(format!("standard output: {e}")))?;
    Ok(Outcome::Done)
}
