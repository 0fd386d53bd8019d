//! To be written.

use std::path::Path;

/// Runs the daemon.
///
/// # Errors
/// It is to be written.
pub fn run(_config_path: &Path) -> anyhow::Result<()> {
    anyhow::bail!("this build has no daemon")
}
