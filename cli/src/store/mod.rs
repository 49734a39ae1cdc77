//! `keelson store`: the store alone, with etcd's API and etcd's flags.

mod auto_tls;
mod compaction;
mod flags;
mod identity;
mod others;
pub mod snapshot;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
pub use flags::StoreArgs;
use keelson_raft::etcd::auth::token::TokenKind;
use keelson_raft::etcd::tls::{TlsFiles, TlsSlot, TlsVersions};
use keelson_raft::etcd::{Front, Options, serve};
use keelson_raft::{Change, Cluster, Node, PeerTls, Replica, Setup, Tuning, cluster};
use keelson_store::{Kv, MonotonicClock};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use self::identity::StoreIdentity;
pub use self::others::{log_level, without_others};
use crate::heal;
use crate::identity::DataDir;

/// How long a member waits before it tells the cluster its client URLs again.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// Runs the store until it is told to stop, from its peers' data if its own is damaged.
pub async fn run(args: StoreArgs) -> Result<()> {
    args.check()?;
    check_variables()?;
    let dir = data_dir(&args).join("store");
    heal::or_again(&dir, run_once(args).await)
}

/// Judges the `ETCD_` variables that are no flags of this command.
fn check_variables() -> Result<()> {
    let command = <StoreArgs as clap::Args>::augment_args(clap::Command::new("store"));
    let known = command.get_arguments().filter_map(|argument| argument.get_env());
    let known = known.map(|name| name.to_string_lossy().into_owned()).collect();
    for name in others::variables(&known, std::env::vars_os())? {
        warn!(name, "no flag of etcd has this variable; it is not looked at");
    }
    Ok(())
}

fn data_dir(args: &StoreArgs) -> PathBuf {
    args.data_dir.clone().unwrap_or_else(|| format!("{}.keelson", args.name).into())
}

async fn run_once(args: StoreArgs) -> Result<()> {
    let retention = compaction::Retention::parse(&args.auto_compaction_mode, &args.auto_compaction_retention)?;
    let data = DataDir::open(&data_dir(&args))?;
    crate::life::version::admit(&data.join(""))?;
    let stop = CancellationToken::new();
    let (client_tls, peer_tls) = certificates(&args, &data, &stop)?;
    let identity = identity::identity(&args, &data, peer_tls.clone()).await?;
    let identity = heal::store(&data, identity, peer_tls.clone()).await?;
    let replica = replica(&args, &data, &identity, peer_tls).await?;
    let (kv, cluster): (Arc<dyn Kv>, Arc<dyn Cluster>) = (Arc::new(replica.clone()), Arc::new(replica.clone()));
    let front = Front::new(kv.clone(), cluster, options(&args, &data)?);
    let servers = serve_clients(&args, &front, client_tls, &stop).await?;
    tokio::spawn(publish(replica.clone(), args.name.clone(), args.advertise_client_urls.clone()));
    tokio::spawn(compaction::run(kv, retention, stop.clone()));
    println!("keelson store is ready at {}", args.advertise_client_urls.join(","));
    let ended = tokio::select! {
        told = crate::server::terminated() => told,
        why = replica.failed() => Err(anyhow::anyhow!("the store has stopped: {why}")),
        () = replica.removed() => Err(anyhow::anyhow!(
            "this member was removed from the cluster for good: to let the machine take part again, remove its data \
             directory and add it as a new member"
        )),
    };
    info!("stopping");
    stop.cancel();
    replica.shutdown().await;
    for server in servers {
        server.await?;
    }
    ended
}

/// Opens this member's replica, and makes the cluster if it is new.
async fn replica(args: &StoreArgs, data: &DataDir, identity: &StoreIdentity, tls: Option<PeerTls>) -> Result<Replica> {
    let mut listeners = Vec::new();
    for url in &args.listen_peer_urls {
        let (address, secure) = listen_address(url)?;
        if secure && tls.is_none() {
            bail!("--listen-peer-urls {url} needs --peer-cert-file and --peer-key-file, or --peer-auto-tls");
        }
        listeners.push((listen(&address, "--listen-peer-urls").await?, secure));
    }
    let dir = data.join("store");
    if args.force_new_cluster {
        let node = Node::at(&identity.name, &identity.peer_urls)?;
        keelson_raft::force_new_cluster(&dir, identity.member_id, node).await?;
    }
    let replica = Replica::open(Setup {
        cluster_id: identity.cluster_id,
        id: identity.member_id,
        dir,
        version: crate::life::version::own().into(),
        clock: Arc::new(MonotonicClock::default()),
        listeners,
        tls,
        tuning: Tuning {
            heartbeat_millis: args.heartbeat_interval,
            election_min_millis: args.election_timeout,
            // Members must not all stand for election at once.
            election_max_millis: args.election_timeout * 3 / 2,
            snapshot_commands: args.snapshot_count.max(1),
            ..Tuning::default()
        },
    })
    .await?;
    if !identity.founders.is_empty() {
        replica.form(identity.nodes()?).await?;
    }
    Ok(replica)
}

/// Serves clients at all of their URLs.
async fn serve_clients(
    args: &StoreArgs,
    front: &Arc<Front>,
    tls: Option<Arc<TlsSlot>>,
    stop: &CancellationToken,
) -> Result<Vec<JoinHandle<()>>> {
    let mut servers = Vec::new();
    let all = args.listen_client_urls.iter().map(|url| (url, "--listen-client-urls", serve::routes(front)));
    let metrics = args.listen_metrics_urls.iter().map(|url| (url, "--listen-metrics-urls", serve::http_routes(front)));
    let http = args.listen_client_http_urls.iter();
    let http = http.map(|url| (url, "--listen-client-http-urls", serve::http_routes(front)));
    for (url, flag, routes) in all.chain(metrics).chain(http) {
        let (address, secure) = listen_address(url)?;
        let tls = match (secure, &tls) {
            (false, _) => None,
            (true, Some(slot)) => Some(slot.clients()),
            (true, None) => bail!("{flag} {url} needs --cert-file and --key-file, or --auto-tls"),
        };
        let listener = listen(&address, flag).await?;
        let bound: SocketAddr = listener.local_addr()?;
        info!(%bound, secure, "serving clients");
        servers.push(tokio::spawn(serve::serve(routes, listener, tls, stop.clone())));
    }
    Ok(servers)
}

async fn listen(address: &str, flag: &str) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen on {address}: stop what uses it, or choose another with {flag}"))
}

/// Tells the cluster this member's name and client URLs, until it knows them.
async fn publish(replica: Replica, name: String, client_urls: Vec<String>) {
    loop {
        let id = replica.member_id();
        if let Some((_, node, _)) = replica.nodes().into_iter().find(|(found, ..)| *found == id) {
            if node.name == name && node.client_urls == client_urls {
                return;
            }
            let node = Node { name: name.clone(), client_urls: client_urls.clone(), ..node };
            if let Err(error) = replica.change(Change::Update(id, node)).await {
                info!(%error, "cannot tell the cluster this member's client URLs yet");
            }
        }
        tokio::time::sleep(PUBLISH_EVERY).await;
    }
}

fn options(args: &StoreArgs, data: &DataDir) -> Result<Options> {
    let ttl = Duration::from_secs(args.auth_token_ttl);
    let tokens = TokenKind::parse(&args.auth_token, ttl, crate::config::duration).map_err(anyhow::Error::msg)?;
    Ok(Options {
        max_txn_ops: args.max_txn_ops,
        max_request_bytes: args.max_request_bytes,
        quota_bytes: args.quota_backend_bytes,
        progress_interval: args.watch_progress_notify_interval,
        // One and a half election timeouts, rounded up to seconds.
        min_lease_ttl_seconds: (args.election_timeout * 3).div_ceil(2 * 1000).max(1) as i64,
        spool_dir: data.join("spool"),
        tokens,
        bcrypt_cost: args.bcrypt_cost,
        streams_per_connection: args.max_concurrent_streams,
        keep_alive: (args.grpc_keepalive_interval, args.grpc_keepalive_timeout),
    })
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

/// Reads the certificates for clients and for members, and follows their changes.
fn certificates(
    args: &StoreArgs,
    data: &DataDir,
    stop: &CancellationToken,
) -> Result<(Option<Arc<TlsSlot>>, Option<PeerTls>)> {
    let versions = TlsVersions { only_12: args.tls_max_version == "TLS1.2", only_13: args.tls_min_version == "TLS1.3" };
    let years = args.self_signed_cert_validity;
    let load = |files: Option<TlsFiles>| {
        let Some(files) = files else { return Ok(None) };
        check_mode(&files.key);
        let slot = TlsSlot::load(TlsFiles { versions, ..files })?;
        tokio::spawn(slot.clone().follow(stop.clone()));
        anyhow::Ok(Some(slot))
    };
    let made = |what: &str, urls: &[String]| {
        let auto_tls::Pair { certificate, key } = auto_tls::pair(data, what, urls, years)?;
        anyhow::Ok(Some(TlsFiles { certificate, key, unverified: true, ..TlsFiles::default() }))
    };
    let client = match args.auto_tls {
        true => made("client", &args.listen_client_urls)?,
        false => given(&args.cert_file, &args.key_file, &args.trusted_ca_file, "")?,
    };
    let peer = match args.peer_auto_tls {
        true => made("peer", &args.listen_peer_urls)?,
        false => given(&args.peer_cert_file, &args.peer_key_file, &args.peer_trusted_ca_file, "peer-")?,
    };
    Ok((load(client)?, load(peer)?.map(|slot| slot.peers())))
}

/// The files that flags name. As with etcd, a CA means that who connects must have a certificate.
fn given(
    certificate: &Option<PathBuf>,
    key: &Option<PathBuf>,
    ca: &Option<PathBuf>,
    what: &str,
) -> Result<Option<TlsFiles>> {
    match (certificate.clone(), key.clone()) {
        (None, None) => Ok(None),
        (Some(certificate), Some(key)) => {
            Ok(Some(TlsFiles { certificate, key, ca: ca.clone(), verify: ca.is_some(), ..TlsFiles::default() }))
        }
        _ => bail!("--{what}cert-file and --{what}key-file belong together"),
    }
}

/// Warns when others may read a key.
fn check_mode(key: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let open = std::fs::metadata(key).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0);
    if open {
        warn!(key = %key.display(), "the key can be read by others: chmod 600 it");
    }
}
