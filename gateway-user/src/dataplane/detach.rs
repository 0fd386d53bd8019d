//! Taking Lazaret out of the kernel, with the daemon not running.

use super::{
    environment::{self, Error},
    hooks,
};
use crate::{config::Config, floor, routes};

/// Detaches our programs, removes our maps, rules and routes. The floor stays closed, or closes, unless `open`: without programs nothing
/// is granted any more, so devices reach nothing. Other programs, maps, tables, rules and routes stay.
///
/// # Errors
/// [`Error::Locked`] while a daemon runs; what failed otherwise. The floor is opened last, so an error leaves it closed.
pub fn detach(config: &Config, open: bool) -> Result<(), Error> {
    let pins = &config.paths.pins;
    let lock = match environment::require(pins) {
        Ok(()) => Some(environment::lock(pins)?),
        // Where nothing can be pinned nothing of ours is attached, and no daemon runs.
        Err(Error::NoBpffs(_)) => None,
        Err(e) => return Err(e),
    };
    if !open {
        floor::close(config)?;
    }
    // Whom nobody judges any more the host may not send to.
    floor::judge_none()?;
    if lock.is_some() {
        hooks::remove_versions(pins, None).map_err(Error::system(format!("removing the pins in {}", pins.display())))?;
    }
    routes::remove().map_err(Error::system("removing routes"))?;
    if open {
        floor::open()?;
    }
    Ok(())
}
