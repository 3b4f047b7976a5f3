//! Logs, set up the same way by every verb: to stderr, text on a terminal and JSON otherwise.

use std::io::IsTerminal;

use tidegate::supervise::log_panics;
use tracing_subscriber::EnvFilter;

use super::Failure;

#[derive(clap::Args, Clone, Debug)]
pub struct LogArgs {
    /// How log lines are written; text on a terminal and JSON otherwise, unless given
    #[arg(long, value_enum, env = "TIDEGATE_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<Format>,

    /// Which log lines are written: error, warn, info, debug, trace, or a filter such as
    /// `info,tidegate::publish=debug`
    #[arg(long, default_value = "info", env = "TIDEGATE_LOG_LEVEL", value_name = "LEVEL")]
    log_level: String,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

// === impl LogArgs ===

impl LogArgs {
    /// Sets the process's log up; once.
    ///
    /// # Errors
    /// A filter that is not one.
    pub fn init(&self) -> Result<(), Failure> {
        let filter = EnvFilter::try_new(&self.log_level)
            .map_err(|error| format!("--log-level `{}`: {error}", self.log_level))?;
        let terminal = std::io::stderr().is_terminal();
        let format = self.log_format.unwrap_or(if terminal { Format::Text } else { Format::Json });
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        let set = match format {
            Format::Text => log.with_ansi(terminal).try_init(),
            Format::Json => log.json().flatten_event(true).try_init(),
        };
        set.map_err(|error| format!("the log cannot be set up: {error}"))?;
        log_panics();
        Ok(())
    }
}
