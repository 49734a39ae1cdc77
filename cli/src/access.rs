//! Flags of `keelson server` that say who may ask, what is refused and what is recorded: kube-apiserver's own names.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args as Flags;
use keelson_apiserver::Settings;
use keelson_apiserver::audit::{self, Mode, Rotation, WebhookSettings};

use crate::config;

fn duration(text: &str) -> Result<Duration, String> {
    config::duration(text).ok_or_else(|| format!("{text:?} is not a duration: write for example 40s, 5m or 1h30m"))
}

/// The flags.
#[derive(Flags, Clone, Debug)]
pub struct AccessArgs {
    /// What is recorded of which request (audit.k8s.io/v1 Policy)
    #[arg(long, env = "KEELSON_AUDIT_POLICY_FILE", help_heading = "Audit")]
    pub audit_policy_file: Option<PathBuf>,
    /// File that audit events are written to; - is standard output
    #[arg(long, env = "KEELSON_AUDIT_LOG_PATH", help_heading = "Audit")]
    pub audit_log_path: Option<PathBuf>,
    /// Form of the file's lines: json or legacy
    #[arg(long, env = "KEELSON_AUDIT_LOG_FORMAT", default_value = "json", value_parser = ["json", "legacy"], help_heading = "Audit")]
    pub audit_log_format: String,
    /// Days for which old files are kept; 0: for ever
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXAGE", default_value_t = 0, help_heading = "Audit")]
    pub audit_log_maxage: i64,
    /// Old files that are kept; 0: all
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXBACKUP", default_value_t = 0, help_heading = "Audit")]
    pub audit_log_maxbackup: usize,
    /// Megabytes after which a new file is begun; 0: 100
    #[arg(long, env = "KEELSON_AUDIT_LOG_MAXSIZE", default_value_t = 0, help_heading = "Audit")]
    pub audit_log_maxsize: u64,
    /// Compress old files
    #[arg(long, env = "KEELSON_AUDIT_LOG_COMPRESS", help_heading = "Audit")]
    pub audit_log_compress: bool,
    /// Whether requests wait for the file: batch, blocking or blocking-strict
    #[arg(long, env = "KEELSON_AUDIT_LOG_MODE", default_value = "blocking", value_parser = Mode::parse, help_heading = "Audit")]
    pub audit_log_mode: Mode,
    /// kubeconfig of a service that audit events are posted to
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_CONFIG_FILE", help_heading = "Audit")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// Whether requests wait for the service: batch, blocking or blocking-strict
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_MODE", default_value = "batch", value_parser = Mode::parse, help_heading = "Audit")]
    pub audit_webhook_mode: Mode,
    /// Pause before a post that failed is tried again
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_INITIAL_BACKOFF", default_value = "10s", value_parser = duration, help_heading = "Audit")]
    pub audit_webhook_initial_backoff: Duration,
    /// Most events of one post
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_BATCH_MAX_SIZE", default_value_t = 400, help_heading = "Audit")]
    pub audit_webhook_batch_max_size: usize,
    /// Longest that an event waits for others
    #[arg(long, env = "KEELSON_AUDIT_WEBHOOK_BATCH_MAX_WAIT", default_value = "30s", value_parser = duration, help_heading = "Audit")]
    pub audit_webhook_batch_max_wait: Duration,
}

impl AccessArgs {
    /// The choices as the API server takes them.
    pub fn settings(&self) -> Result<Settings> {
        Ok(Settings { audit: self.audit() })
    }

    fn audit(&self) -> audit::Settings {
        audit::Settings {
            policy: self.audit_policy_file.clone(),
            log: self.audit_log_path.clone(),
            legacy: self.audit_log_format == "legacy",
            rotation: Rotation {
                max_megabytes: self.audit_log_maxsize,
                max_backups: self.audit_log_maxbackup,
                max_days: self.audit_log_maxage,
                compress: self.audit_log_compress,
            },
            log_mode: self.audit_log_mode,
            webhook: self.audit_webhook_config_file.clone().map(|kubeconfig| WebhookSettings {
                kubeconfig,
                mode: self.audit_webhook_mode,
                backoff: self.audit_webhook_initial_backoff,
                max_batch: self.audit_webhook_batch_max_size.max(1),
                max_wait: self.audit_webhook_batch_max_wait,
            }),
        }
    }
}
