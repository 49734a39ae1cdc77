//! `keelson controllers` and `keelson scheduler`: one component alone, against any Kubernetes API.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use keelson_client::Client;
use keelson_client::election::Candidate;
use keelson_controllers::{Config, Credentials};
use keelson_machinery::features;
use keelson_pki::Authority;
use keelson_pki::service_account::SigningKey;
use tokio_util::sync::CancellationToken;

use crate::args::{ControllersArgs, SchedulerArgs};
use crate::server::{hostname, terminated};

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

fn client(kubeconfig: &Path, agent: &str) -> Result<Client> {
    keelson_client::https::from_kubeconfig(kubeconfig, agent).with_context(|| format!("kubeconfig {kubeconfig:?}"))
}

/// What the controllers sign with and publish, as the flags say.
fn credentials(args: &ControllersArgs) -> Result<Credentials> {
    let root = match &args.root_ca_file {
        Some(file) => read(file)?,
        None => keelson_client::https::access(&args.kubeconfig)?.ca,
    };
    let signer = match (&args.cluster_signing_cert_file, &args.cluster_signing_key_file) {
        (Some(certificate), Some(key)) => Some(Authority::load(&read(certificate)?, &read(key)?)?),
        (None, None) => None,
        _ => bail!("--cluster-signing-cert-file and --cluster-signing-key-file go together"),
    };
    let tokens = args.service_account_private_key_file.as_deref().map(read).transpose()?;
    let tokens = tokens.map(|pem| SigningKey::load(&pem)).transpose()?;
    Ok(Credentials::Given { root, signer: signer.map(Arc::new), tokens: tokens.map(Arc::new) })
}

/// Sets the gates of this process.
fn open_features(gates: &[String]) -> Result<()> {
    features::install(features::Gates::parse(gates).map_err(anyhow::Error::msg)?);
    Ok(())
}

/// Runs the controllers until told to stop.
pub async fn controllers(args: ControllersArgs) -> Result<()> {
    open_features(&args.feature_gates)?;
    let mut config = Config::with(args.cluster_cidr.clone(), credentials(&args)?);
    config.node_cidr_mask_sizes = args.mask_sizes.within(&args.cluster_cidr)?;
    config.service_cidr = args.service_cluster_ip_range.clone().unwrap_or_default();
    config.node_monitor_grace_period = args.node_monitor_grace_period;
    config.local_path = args.local_path;
    let client = client(&args.kubeconfig, "kube-controller-manager")?;
    let work = client.clone();
    alone(client, "kube-controller-manager", |stop| Box::pin(keelson_controllers::run(work, config, stop))).await
}

/// Runs the scheduler until told to stop.
pub async fn scheduler(args: SchedulerArgs) -> Result<()> {
    open_features(&args.feature_gates)?;
    let config = crate::scheduler::config(args.scheduler_config.as_deref())?;
    let client = client(&args.kubeconfig, "kube-scheduler")?;
    let work = client.clone();
    alone(client, "kube-scheduler", |stop| Box::pin(keelson_scheduler::run(work, config, Default::default(), stop)))
        .await
}

/// Runs `work` while this process holds the lease, until told to stop.
async fn alone(
    client: Client,
    lease: &'static str,
    work: impl FnOnce(CancellationToken) -> BoxFuture<'static, ()>,
) -> Result<()> {
    // The lease of two processes on one host must not be taken for that of one.
    let identity = format!("{}_{:016x}", hostname()?, rand::random::<u64>());
    let candidate = Candidate { client, name: lease, identity };
    let stop = CancellationToken::new();
    let told = stop.clone();
    let signal = tokio::spawn(async move {
        let result = terminated().await;
        told.cancel();
        result
    });
    candidate.lead(&stop, work).await.with_context(|| format!("{lease} stopped"))?;
    if stop.is_cancelled() { signal.await? } else { bail!("{lease} ended by itself") }
}
