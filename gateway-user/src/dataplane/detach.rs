//! Taking Lazaret out of the kernel, with the daemon not running.

use std::{fs, io};

use super::{
    environment::{self, Error},
    hooks, maps,
};
use crate::{config::Config, floor, routes};

/// Detaches our programs, removes our maps, rules and routes. The floor stays closed, or closes, unless `open`: without programs nothing
/// is granted any more, so devices reach nothing. Other programs, maps, tables, rules and routes stay.
///
/// # Errors
/// [`Error::Locked`] while a daemon runs; what failed otherwise. The floor is opened last, so an error leaves it closed.
pub fn detach(config: &Config, open: bool) -> Result<(), Error> {
    let pins = &config.paths.pins;
    environment::require(pins)?;
    let _lock = environment::lock(pins)?;
    if !open {
        floor::close(config)?;
    }
    // Whom nobody judges any more the host may not send to.
    floor::judge_none()?;
    let remove = || -> io::Result<()> {
        hooks::detach_all(pins)?;
        for version in hooks::versions(pins)? {
            for name in ["maps", maps::FRESH] {
                maps::remove(&version.join(name))?;
            }
            fs::remove_dir(&version)?;
        }
        Ok(())
    };
    remove().map_err(Error::system(format!("removing the pins in {}", pins.display())))?;
    routes::remove().map_err(Error::system("removing routes"))?;
    if open {
        floor::open()?;
    }
    Ok(())
}
