//! `keelson store`: the store alone, with etcd's API and etcd's flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Args as Flags};
use keelson_raft::etcd::tls::{TlsFiles, TlsSlot};
use keelson_raft::etcd::{Front, Options, limits, serve};
use keelson_raft::{Cluster, Member, SingleMember, cluster};
use keelson_store::{Kv, LocalKv};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::identity::{DataDir, write_private};

/// Flags of `keelson store`: etcd's names, and its ETCD_ variables.
#[derive(Flags, Clone, Debug)]
pub struct StoreArgs {
    /// Name of this member
    #[arg(long, env = "ETCD_NAME", default_value = "default")]
    pub name: String,
    /// Where this member keeps its state (default: NAME.keelson)
    #[arg(long, env = "ETCD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where to serve clients: http or https URLs (comma-separated)
    #[arg(long, env = "ETCD_LISTEN_CLIENT_URLS", value_delimiter = ',', default_value = "http://localhost:2379")]
    pub listen_client_urls: Vec<String>,
    /// Where clients reach this member
    #[arg(long, env = "ETCD_ADVERTISE_CLIENT_URLS", value_delimiter = ',', default_value = "http://localhost:2379")]
    pub advertise_client_urls: Vec<String>,
    /// Where to listen for other members
    #[arg(long, env = "ETCD_LISTEN_PEER_URLS", value_delimiter = ',', default_value = "http://localhost:2380")]
    pub listen_peer_urls: Vec<String>,
    /// Where other members reach this member
    #[arg(
        long,
        env = "ETCD_INITIAL_ADVERTISE_PEER_URLS",
        value_delimiter = ',',
        default_value = "http://localhost:2380"
    )]
    pub initial_advertise_peer_urls: Vec<String>,
    /// Members that the cluster is made with: NAME=PEER-URL, comma-separated (default: this member alone)
    #[arg(long, env = "ETCD_INITIAL_CLUSTER")]
    pub initial_cluster: Option<String>,
    /// Whether the cluster is made now or is there already
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_STATE", default_value = "new", value_parser = ["new", "existing"])]
    pub initial_cluster_state: String,
    /// Keeps clusters apart that would else look alike
    #[arg(long, env = "ETCD_INITIAL_CLUSTER_TOKEN", default_value = "etcd-cluster")]
    pub initial_cluster_token: String,
    /// Size of the data from which writes are refused; 0 is no limit
    #[arg(long, env = "ETCD_QUOTA_BACKEND_BYTES", default_value_t = 0)]
    pub quota_backend_bytes: u64,
    /// Most operations in a transaction
    #[arg(long, env = "ETCD_MAX_TXN_OPS", default_value_t = limits::MAX_TXN_OPS)]
    pub max_txn_ops: usize,
    /// Largest request
    #[arg(long, env = "ETCD_MAX_REQUEST_BYTES", default_value_t = limits::MAX_REQUEST_BYTES)]
    pub max_request_bytes: usize,
    /// What --auto-compaction-retention counts: time, or revisions
    #[arg(long, env = "ETCD_AUTO_COMPACTION_MODE", default_value = "periodic", value_parser = ["periodic", "revision"])]
    pub auto_compaction_mode: String,
    /// How much history is kept: hours or a duration such as 10m, or a number of revisions; 0 keeps everything
    #[arg(long, env = "ETCD_AUTO_COMPACTION_RETENTION", default_value = "0")]
    pub auto_compaction_retention: String,
    /// How often idle watches that asked for it are told of progress
    #[arg(
        long,
        alias = "experimental-watch-progress-notify-interval",
        env = "ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL",
        default_value = "10m",
        value_parser = duration
    )]
    pub watch_progress_notify_interval: Duration,
    /// Entries of the log between snapshots
    #[arg(long, env = "ETCD_SNAPSHOT_COUNT", default_value_t = 100_000)]
    pub snapshot_count: u64,
    /// Time between heartbeats of the leader, in milliseconds
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", default_value_t = 100)]
    pub heartbeat_interval: u64,
    /// How long a member waits for the leader before it calls an election, in milliseconds
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = 1000)]
    pub election_timeout: u64,
    /// Certificate for clients
    #[arg(long, env = "ETCD_CERT_FILE")]
    pub cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "ETCD_KEY_FILE")]
    pub key_file: Option<PathBuf>,
    /// Clients must have a certificate
    #[arg(long, env = "ETCD_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        default_value_t = false, action = ArgAction::Set)]
    pub client_cert_auth: bool,
    /// CA of the clients' certificates
    #[arg(long, env = "ETCD_TRUSTED_CA_FILE")]
    pub trusted_ca_file: Option<PathBuf>,
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::config::duration(text)
        .ok_or_else(|| format!("{text:?} is not a duration: write for example 40s, 5m or 1h30m"))
}

/// The member that a data directory belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreIdentity {
    cluster_id: u64,
    member_id: u64,
    name: String,
    peer_urls: Vec<String>,
}

/// Runs the store until it is told to stop.
pub async fn run(args: StoreArgs) -> Result<()> {
    check(&args)?;
    let data = DataDir::open(&args.data_dir.clone().unwrap_or_else(|| format!("{}.keelson", args.name).into()))?;
    let identity = identity(&args, &data)?;
    let directory = data.join("store");
    let local =
        tokio::task::spawn_blocking(move || LocalKv::open(&directory)).await?.context("cannot open the store")?;
    let local = Arc::new(local);
    let member = Member {
        id: identity.member_id,
        name: args.name.clone(),
        peer_urls: identity.peer_urls.clone(),
        client_urls: args.advertise_client_urls.clone(),
        is_learner: false,
    };
    let cluster: Arc<dyn Cluster> = Arc::new(SingleMember::new(local.clone(), identity.cluster_id, member));
    let kv: Arc<dyn Kv> = local;
    let front = Front::new(kv, cluster, options(&args, &data));
    let stop = CancellationToken::new();
    let tls = tls(&args)?;
    if let Some(slot) = &tls {
        tokio::spawn(slot.clone().follow(stop.clone()));
    }
    let mut servers = Vec::new();
    for url in &args.listen_client_urls {
        let (address, secure) = listen_address(url)?;
        let tls = match (secure, &tls) {
            (false, _) => None,
            (true, Some(slot)) => Some(slot.clone()),
            (true, None) => bail!("--listen-client-urls {url} needs --cert-file and --key-file"),
        };
        let listener = TcpListener::bind(&address).await.with_context(|| {
            format!("cannot listen on {address}: stop what uses it, or choose another with --listen-client-urls")
        })?;
        let bound: SocketAddr = listener.local_addr()?;
        info!(%bound, secure, "serving clients");
        servers.push(tokio::spawn(serve::serve(serve::routes(&front), listener, tls, stop.clone())));
    }
    println!("keelson store is ready at {}", args.advertise_client_urls.join(","));
    crate::server::terminated().await?;
    info!("stopping");
    stop.cancel();
    for server in servers {
        server.await?;
    }
    Ok(())
}

/// Refuses settings that cannot work.
fn check(args: &StoreArgs) -> Result<()> {
    let most = keelson_store::limits::MAX_TXN_BYTES;
    if args.max_request_bytes > most {
        bail!("--max-request-bytes {} is over the limit of {most}", args.max_request_bytes);
    }
    let most = keelson_store::limits::MAX_TXN_OPS / 2;
    if args.max_txn_ops > most {
        bail!("--max-txn-ops {} is over the limit of {most}", args.max_txn_ops);
    }
    if args.election_timeout < 5 * args.heartbeat_interval {
        bail!(
            "--election-timeout {} must be at least 5 times --heartbeat-interval {}",
            args.election_timeout,
            args.heartbeat_interval
        );
    }
    if args.client_cert_auth && args.trusted_ca_file.is_none() {
        bail!("--client-cert-auth needs --trusted-ca-file");
    }
    for url in args.listen_peer_urls.iter().chain(&args.initial_advertise_peer_urls) {
        if !cluster::is_member_url(url) {
            bail!("{url} is not a member's URL: write for example http://10.0.0.1:2380");
        }
    }
    Ok(())
}

fn options(args: &StoreArgs, data: &DataDir) -> Options {
    Options {
        max_txn_ops: args.max_txn_ops,
        max_request_bytes: args.max_request_bytes,
        quota_bytes: args.quota_backend_bytes,
        progress_interval: args.watch_progress_notify_interval,
        // One and a half election timeouts, rounded up to seconds.
        min_lease_ttl_seconds: (args.election_timeout * 3).div_ceil(2 * 1000).max(1) as i64,
        spool_dir: data.join("spool"),
    }
}

/// What the data directory says, or a new member of a new cluster.
fn identity(args: &StoreArgs, data: &DataDir) -> Result<StoreIdentity> {
    let file = data.join("store.json");
    match std::fs::read(&file) {
        Ok(bytes) => {
            let stored: StoreIdentity =
                serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?;
            if stored.name != args.name {
                warn!(stored = stored.name, given = args.name, "the member has another name than when it was made");
            }
            return Ok(stored);
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    }
    let members = initial_members(args)?;
    if members.len() > 1 {
        bail!("--initial-cluster names {} members: a cluster of several is not built yet", members.len());
    }
    let ids: Vec<u64> =
        members.iter().map(|(_, urls)| cluster::member_id_of(urls, &args.initial_cluster_token)).collect();
    let identity = StoreIdentity {
        cluster_id: cluster::cluster_id_of(&ids),
        member_id: cluster::member_id_of(&args.initial_advertise_peer_urls, &args.initial_cluster_token),
        name: args.name.clone(),
        peer_urls: args.initial_advertise_peer_urls.clone(),
    };
    write_private(&file, &serde_json::to_vec_pretty(&identity)?)?;
    Ok(identity)
}

/// Names and peer URLs of `--initial-cluster`, in order; this member must be among them.
fn initial_members(args: &StoreArgs) -> Result<Vec<(String, Vec<String>)>> {
    let Some(text) = &args.initial_cluster else {
        return Ok(vec![(args.name.clone(), args.initial_advertise_peer_urls.clone())]);
    };
    let mut members: Vec<(String, Vec<String>)> = Vec::new();
    for part in text.split(',') {
        let (name, url) =
            part.split_once('=').with_context(|| format!("--initial-cluster: {part:?} is not NAME=URL"))?;
        if !cluster::is_member_url(url) {
            bail!("--initial-cluster: {url} is not a member's URL: write for example http://10.0.0.1:2380");
        }
        match members.iter_mut().find(|(known, _)| known == name) {
            Some((_, urls)) => urls.push(url.to_owned()),
            None => members.push((name.to_owned(), vec![url.to_owned()])),
        }
    }
    let mut advertised = args.initial_advertise_peer_urls.clone();
    advertised.sort();
    let Some((_, urls)) = members.iter_mut().find(|(name, _)| *name == args.name) else {
        bail!("--initial-cluster does not name this member, {}", args.name);
    };
    urls.sort();
    if *urls != advertised {
        bail!("--initial-cluster has {urls:?} for {}, --initial-advertise-peer-urls has {advertised:?}", args.name);
    }
    Ok(members)
}

/// Host and port of a URL, and whether it is https.
fn listen_address(url: &str) -> Result<(String, bool)> {
    if !cluster::is_member_url(url) {
        bail!("{url} cannot be listened on: write for example http://127.0.0.1:2379");
    }
    let secure = url.starts_with("https://");
    let authority = url.trim_start_matches("https://").trim_start_matches("http://");
    Ok((authority.trim_end_matches('/').to_owned(), secure))
}

fn tls(args: &StoreArgs) -> Result<Option<Arc<TlsSlot>>> {
    let files = match (&args.cert_file, &args.key_file) {
        (None, None) => return Ok(None),
        (Some(certificate), Some(key)) => {
            TlsFiles { certificate: certificate.clone(), key: key.clone(), client_ca: args.trusted_ca_file.clone() }
        }
        _ => bail!("--cert-file and --key-file belong together"),
    };
    check_mode(&files.key);
    Ok(Some(TlsSlot::load(files)?))
}

/// Warns when others may read a key.
fn check_mode(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::metadata(key).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
    if open {
        warn!(key = %key.display(), "the key can be read by others: chmod 600 it");
    }
}
