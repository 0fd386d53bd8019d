//! What is done with the daemon not running: taking Lazaret out of the kernel, and closing the floor because it could not start.

use super::{
    environment::{self, Error, Lock},
    filter, hooks,
};
use crate::{config::Config, floor, routes};

/// Detaches our programs, removes our maps, filters, rules and routes. The floor stays closed, or closes, unless `open`: without programs nothing
/// is granted any more, so devices reach nothing. Other programs, maps, tables, rules and routes stay.
///
/// # Errors
/// [`Error::Locked`] while a daemon runs; what failed otherwise. The floor is opened last, so an error leaves it closed.
pub fn detach(config: &Config, open: bool) -> Result<(), Error> {
    let pins = &config.paths.pins;
    let lock = alone(config)?;
    if !open {
        floor::close(config)?;
    }
    // Whom nobody judges any more the host may not send to.
    floor::judge_none()?;
    if lock.is_some() {
        hooks::remove_versions(pins, None).map_err(Error::system(format!("removing the pins in {}", pins.display())))?;
    }
    filter::remove_all().map_err(Error::system("removing filters"))?;
    routes::remove().map_err(Error::system("removing routes"))?;
    if open {
        floor::open()?;
    }
    Ok(())
}

/// Closes the floor, for a daemon that cannot start. A daemon that runs is left alone: the floor is its own.
///
/// # Errors
/// [`Error::Locked`] while a daemon runs; what failed otherwise.
pub fn stay_closed(config: &Config) -> Result<(), Error> {
    let _lock = alone(config)?;
    Ok(floor::close(config)?)
}

/// The lock of the pins; `None` where nothing can be pinned: there nothing of ours is attached, and no daemon runs.
fn alone(config: &Config) -> Result<Option<Lock>, Error> {
    let pins = &config.paths.pins;
    match environment::require(pins) {
        Ok(()) => environment::lock(pins).map(Some),
        Err(Error::NoBpffs(_)) => Ok(None),
        Err(e) => Err(e),
    }
}
