//! `keelson scheduler`: the scheduler alone, against any Kubernetes API; and reading its configuration for `keelson server`.

use std::path::Path;

use anyhow::{Context, Result};
use keelson_scheduler::Config;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::args::SchedulerArgs;
use crate::server::terminated;

/// Runs until told to stop.
pub async fn run(args: SchedulerArgs) -> Result<()> {
    let config = config(args.scheduler_config.as_deref())?;
    let client = keelson_client::https::from_kubeconfig(&args.kubeconfig, "kube-scheduler")
        .with_context(|| format!("kubeconfig {:?}", args.kubeconfig))?;
    let stop = CancellationToken::new();
    let work = tokio::spawn(keelson_scheduler::run(client, config, stop.clone()));
    terminated().await?;
    stop.cancel();
    work.await.context("the scheduler panicked")
}

/// Reads a KubeSchedulerConfiguration and checks it, so that a mistake is told at the start. None: upstream's defaults.
pub fn config(file: Option<&Path>) -> Result<Option<Value>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file:?}"))?;
    let value: Value = serde_saphyr::from_str(&text).with_context(|| format!("{file:?} is not YAML"))?;
    Config::parse(value.clone(), &mut Default::default()).with_context(|| format!("{file:?}"))?;
    Ok(Some(value))
}
