//! Logs: for people on a terminal, JSON on request. Nothing secret is ever passed to a log line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text, coloured on a terminal
    Auto,
    /// Text without colours
    Text,
    /// One JSON object a line
    Json,
}

/// Starts logging to standard error.
pub fn init(format: LogFormat, level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(level).map_err(|e| anyhow::anyhow!("--log-level {level:?}: {e}"))?;
    // openraft warns at each attempt; what matters of that, keelson-raft says once.
    let filter = if level.contains('=') { filter } else { filter.add_directive("openraft=error".parse()?) };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Auto => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Text => builder.with_ansi(false).with_target(false).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}
