//! Logging. Levels mean:
//!
//! * `error`: an operator must act.
//! * `warn`: degraded; it heals by itself.
//! * `info`: a state of the world changed.
//! * `debug`: to follow one signal.
//! * `trace`: to follow one packet.
//!
//! Lines go to standard error, for systemd to keep.

use std::io::{self, IsTerminal as _};

use anyhow::Context as _;
use tracing_subscriber::{EnvFilter, util::SubscriberInitExt as _};

use crate::config::{Log, LogFormat};

/// Starts logging for the process.
///
/// # Errors
/// The filter is wrong (a checked configuration's is not), or logging has started already.
pub fn init(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(&log.level).context("log.level")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    }
    .context("logging has started already")
}
