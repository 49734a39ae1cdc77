//! Compaction by time or by number of revisions, done by the member that leads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use keelson_store::{Kv, KvError, Revision};
use tokio_util::sync::CancellationToken;

/// How often compaction by revisions looks.
const REVISION_LOOK: Duration = Duration::from_secs(300);
/// Looks in one period of compaction by time.
const LOOKS: u32 = 10;

/// How much history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// All of it.
    Everything,
    /// What is younger than this.
    Period(Duration),
    /// So many revisions.
    Revisions(i64),
}

impl Retention {
    /// Reads `--auto-compaction-mode` and `--auto-compaction-retention`.
    pub fn parse(mode: &str, text: &str) -> Result<Self> {
        let number = text.parse::<i64>().ok().filter(|number| *number >= 0);
        Ok(match (mode, number) {
            (_, Some(0)) => Self::Everything,
            ("revision", Some(revisions)) => Self::Revisions(revisions),
            ("periodic", Some(hours)) => Self::Period(Duration::from_secs(hours as u64 * 3600)),
            ("periodic", None) => match crate::config::duration(text) {
                Some(Duration::ZERO) => Self::Everything,
                Some(period) => Self::Period(period),
                None => bail!("--auto-compaction-retention {text:?} is not a duration"),
            },
            _ => bail!("--auto-compaction-retention {text:?} is not a number of revisions"),
        })
    }
}

/// Compacts until `stop`.
pub async fn run(kv: Arc<dyn Kv>, retention: Retention, stop: CancellationToken) {
    let every = match retention {
        Retention::Everything => return,
        Retention::Period(period) => (period / LOOKS).max(Duration::from_millis(100)),
        Retention::Revisions(_) => REVISION_LOOK,
    };
    let mut seen: VecDeque<(Instant, Revision)> = VecDeque::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let (now, revision) = (Instant::now(), kv.view().revision());
        let to = match retention {
            Retention::Revisions(kept) => revision - kept,
            Retention::Period(period) => {
                seen.push_back((now, revision));
                let mut old = 0;
                while let Some((_, found)) = seen.pop_front_if(|(at, _)| now.duration_since(*at) >= period) {
                    old = found;
                }
                old
            }
            Retention::Everything => return,
        };
        if !kv.status().is_leader || to <= kv.view().compact_revision() {
            continue;
        }
        match kv.compact(to).await {
            Ok(()) => tracing::info!(revision = to, "history was compacted"),
            Err(KvError::Compacted(_)) => {}
            Err(error) => tracing::warn!(%error, "compaction failed; it is tried again"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_is_hours_durations_or_revisions() {
        for (mode, text, want) in [
            ("periodic", "0", Some(Retention::Everything)),
            ("periodic", "2", Some(Retention::Period(Duration::from_secs(7200)))),
            ("periodic", "10m", Some(Retention::Period(Duration::from_secs(600)))),
            ("revision", "1000", Some(Retention::Revisions(1000))),
            ("revision", "10m", None),
            ("periodic", "x", None),
        ] {
            assert_eq!(Retention::parse(mode, text).ok(), want, "{mode} {text}");
        }
    }
}
