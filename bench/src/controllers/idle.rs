//! What a server uses while nothing happens, with controllers and scheduler and without.

use std::time::Duration;

use anyhow::Result;

use super::share;
use crate::Options;
use crate::process::Server;
use crate::report::Report;

/// The first seconds are those of the start.
const SETTLE: Duration = Duration::from_secs(5);
/// Processor time is read over this span.
const SPAN: Duration = Duration::from_secs(60);

const NONE: &[&str] = &["--no-controllers", "--no-scheduler"];

/// Measures one server after the other.
pub async fn run(options: &Options, report: &mut Report) -> Result<()> {
    let span = if options.quick { SPAN / 10 } else { SPAN };
    for (what, flags) in [
        ("without controllers and scheduler", NONE),
        ("with the controllers", &["--no-scheduler"][..]),
        ("with the scheduler", &["--no-controllers"][..]),
        ("with both", &[][..]),
    ] {
        let server = Server::start(&options.keelson, flags).await?;
        tokio::time::sleep(SETTLE).await;
        let before = server.usage()?;
        tokio::time::sleep(span).await;
        let after = server.usage()?;
        let figures = vec![
            ("CPU", share(before, after, span)),
            ("RSS", format!("{} MiB", after.rss_kib / 1024)),
            ("wake-ups", format!("{:.0}/s", (after.switches - before.switches) as f64 / span.as_secs_f64())),
        ];
        report.add(format!("idle for {} s {what}", span.as_secs()), figures);
    }
    Ok(())
}
