//! `keelson snapshot`: copies of the whole store in etcd's format; saving, looking, restoring, taking over etcd's own.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use hyper_util::rt::TokioIo;
use keelson_pki::{Identity as TlsIdentity, Issued};
use keelson_proto::etcd::etcdserverpb as pb;
use keelson_raft::Node;
use keelson_raft::etcd::restore::{Restoring, inspect, restore};
use pb::maintenance_client::MaintenanceClient;
use rand::RngExt;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::flags;
use super::identity::StoreIdentity;
use crate::identity::{DataDir, Identity, write_private};
use crate::life::backup;

/// Revisions that a restored store leaves out: more than any cluster writes between a snapshot and its loss.
const BUMP: i64 = 1_000_000_000;
/// Largest part of a snapshot that is taken.
const PART_BYTES: usize = 64 * 1024 * 1024;

/// What to do with snapshots.
#[derive(Args, Clone, Debug)]
pub struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum SnapshotCommand {
    /// Save a running member's store to a file; writes go on meanwhile
    Save(SaveArgs),
    /// Tell what is in a file
    Status(StatusArgs),
    /// Make a member's data directory from a file. `keelson server`: one server restores, the others join it anew;
    /// `keelson store`: each member of the new cluster restores the same file
    Restore(RestoreArgs),
    /// Print objects of a file
    Extract(crate::life::extract::ExtractArgs),
    /// Make objects of a file anew in a running cluster
    Apply(crate::life::extract::ApplyArgs),
    /// Make a member's data directory from an etcd database or snapshot, all revisions kept
    Import(RestoreArgs),
}

#[derive(Args, Clone, Debug)]
struct SaveArgs {
    /// Where to save
    file: PathBuf,
    /// A client URL of the member
    #[arg(long, env = "ETCDCTL_ENDPOINTS", default_value = "http://127.0.0.1:2379")]
    endpoint: String,
    /// CA of the member's certificate
    #[arg(long, env = "ETCDCTL_CACERT")]
    cacert: Option<PathBuf>,
    /// Own certificate
    #[arg(long, env = "ETCDCTL_CERT", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "ETCDCTL_KEY", requires = "cert")]
    key: Option<PathBuf>,
}

#[derive(Args, Clone, Debug)]
struct StatusArgs {
    /// The file
    file: PathBuf,
    /// Print JSON
    #[arg(short, long, value_parser = ["text", "json"], default_value = "text")]
    output: String,
}

#[derive(Args, Clone, Debug)]
struct RestoreArgs {
    /// The file
    file: PathBuf,
    /// Where the member will keep its state; a `keelson server`'s directory keeps its identity and keys
    #[arg(long)]
    data_dir: PathBuf,
    /// The cluster's keys, for a `keelson server` whose directory has none (default: what lies beside the file)
    #[arg(long)]
    keys: Option<PathBuf>,
    /// Name of the member
    #[arg(long, default_value = "default")]
    name: String,
    /// Members of the new cluster: NAME=PEER-URL, comma-separated
    #[arg(long, default_value = "default=http://localhost:2380")]
    initial_cluster: String,
    /// Keeps clusters apart that would else look alike
    #[arg(long, default_value = "etcd-cluster")]
    initial_cluster_token: String,
    /// Revisions to leave out, so that no client sees the same revision twice (default: 1000000000; import: 0)
    #[arg(long)]
    bump_revision: Option<i64>,
    /// Keep history: watchers of former revisions then go on instead of beginning anew
    #[arg(long)]
    keep_history: bool,
    /// Take a file without a checksum
    #[arg(long)]
    skip_hash_check: bool,
}

/// Runs one of the commands.
pub async fn run(args: SnapshotArgs) -> Result<()> {
    match args.command {
        SnapshotCommand::Save(args) => save(args).await,
        SnapshotCommand::Status(args) => status(&args),
        SnapshotCommand::Extract(args) => crate::life::extract::extract(args).await,
        SnapshotCommand::Apply(args) => crate::life::extract::apply(args).await,
        SnapshotCommand::Restore(args) => {
            let bump_revision = args.bump_revision.unwrap_or(BUMP);
            let (mark_compacted, skip_hash_check) = (!args.keep_history, args.skip_hash_check);
            make(args, Restoring { bump_revision, mark_compacted, skip_hash_check }).await
        }
        SnapshotCommand::Import(args) => {
            let bump_revision = args.bump_revision.unwrap_or(0);
            make(args, Restoring { bump_revision, mark_compacted: false, skip_hash_check: true }).await
        }
    }
}

/// Connects to a member.
async fn connect(args: &SaveArgs) -> Result<Channel> {
    let (scheme, authority) = args.endpoint.split_once("://").unwrap_or(("http", &args.endpoint));
    let authority = authority.trim_end_matches('/').to_owned();
    let tls = if scheme == "https" {
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        let ca = read(args.cacert.as_ref().context("an https endpoint needs --cacert")?)?;
        let issued = match (&args.cert, &args.key) {
            (Some(cert), Some(key)) => Some(Issued { certificate: read(cert)?, key: read(key)? }),
            _ => None,
        };
        let identity = issued.as_ref().map_or(TlsIdentity::None, TlsIdentity::Certificate);
        let mut config = keelson_pki::client_config(&ca, identity)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Some(TlsConnector::from(Arc::new(config)))
    } else {
        None
    };
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))?;
    let connector = tower::service_fn(move |_: Uri| {
        let (authority, tls) = (authority.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect(&authority).await?;
            let Some(tls) = tls else { return Ok(TokioIo::new(Box::new(stream) as Connection)) };
            let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let name = ServerName::try_from(host).map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(Box::new(tls.connect(name, stream).await?) as Connection))
        }
    });
    let channel = endpoint.connect_with_connector(connector).await;
    channel.with_context(|| format!("cannot reach {}: check --endpoint", args.endpoint))
}

type Connection = Box<dyn Duplex>;

/// What is read and written.
trait Duplex: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Duplex for T {}

/// Saves to a file beside the target, which appears whole or not at all.
async fn save(args: SaveArgs) -> Result<()> {
    let mut client = MaintenanceClient::new(connect(&args).await?).max_decoding_message_size(PART_BYTES);
    let refused = |status: tonic::Status| anyhow::anyhow!("the member refused: {}", status.message());
    let mut parts = client.snapshot(pb::SnapshotRequest {}).await.map_err(refused)?.into_inner();
    let part = args.file.with_extension("part");
    let mut file = std::fs::File::create(&part).with_context(|| format!("cannot write {}", part.display()))?;
    let mut bytes = 0;
    while let Some(answer) = parts.message().await.map_err(refused)? {
        file.write_all(&answer.blob)?;
        bytes += answer.blob.len();
    }
    file.sync_all()?;
    std::fs::rename(&part, &args.file)?;
    let found = inspect(&args.file).context("what was received is not a snapshot")?;
    if !found.verified {
        bail!("the snapshot ended before its checksum: save it again");
    }
    println!("saved revision {} in {bytes} bytes to {}", found.revision, args.file.display());
    Ok(())
}

fn status(args: &StatusArgs) -> Result<()> {
    let found = inspect(&args.file)?;
    if args.output == "json" {
        let told = serde_json::json!({
            "revision": found.revision,
            "compactRevision": found.compact_revision,
            "changes": found.changes,
            "leases": found.leases,
            "sizeBytes": found.size_bytes,
            "verified": found.verified,
        });
        println!("{told}");
        return Ok(());
    }
    let checksum = if found.verified { "right" } else { "none" };
    println!("revision          {}", found.revision);
    println!("compact revision  {}", found.compact_revision);
    println!("changes           {}", found.changes);
    println!("leases            {}", found.leases);
    println!("size              {} bytes", found.size_bytes);
    println!("checksum          {checksum}");
    Ok(())
}

/// A server of the cluster whose keys lie beside the snapshot: the first one of it again.
fn revived(args: &RestoreArgs, data: &DataDir) -> Result<Option<Identity>> {
    let beside = backup::keys_beside(&args.file);
    let file = match &args.keys {
        Some(given) => given.clone(),
        None if beside.exists() => beside,
        None => return Ok(None),
    };
    let keys = backup::read_keys(&file)?;
    keelson_pki::ClusterPki::from_bundle(keys.keys.get().as_bytes())?.save(&data.join("pki"))?;
    let named = args.name != "default";
    Ok(Some(Identity {
        cluster_id: keys.cluster_id,
        member_id: rand::rng().random_range(1..u64::MAX),
        name: if named { args.name.clone() } else { crate::server::hostname()? },
        service_cidr: keys.service_cidr,
        cluster_cidr: keys.cluster_cidr,
        peers: Vec::new(),
    }))
}

/// Makes a data directory from a file.
async fn make(args: RestoreArgs, how: Restoring) -> Result<()> {
    if how.bump_revision < 0 {
        bail!("--bump-revision {} would go back in time", how.bump_revision);
    }
    let data = DataDir::open(&args.data_dir)?;
    let store = data.join("store");
    let server = match data.identity()? {
        Some(identity) => Some(identity),
        None => revived(&args, &data)?,
    };
    let nodes: BTreeMap<u64, Node> = match &server {
        // Only this server: others join it again. It tells its address when it starts.
        Some(identity) => {
            BTreeMap::from([(identity.member_id, Node { name: identity.name.clone(), ..Node::default() })])
        }
        None => {
            if store.exists() {
                bail!("{} holds a store already: choose another --data-dir", args.data_dir.display());
            }
            let members = flags::members(&args.initial_cluster)?;
            let identity = StoreIdentity::founding(&args.name, &members, &args.initial_cluster_token)?;
            // The cluster is there when the member starts: nothing is left to form.
            let nodes = identity.nodes()?;
            let identity = StoreIdentity { founders: BTreeMap::new(), ..identity };
            write_private(&data.join("store.json"), &serde_json::to_vec_pretty(&identity)?)?;
            nodes
        }
    };
    let target = data.join("store.restoring");
    remove(&target)?;
    let (file, state) = (args.file.clone(), target.join("state"));
    let revision = tokio::task::spawn_blocking(move || restore(&file, &state, how)).await??;
    keelson_raft::seed(&target, nodes).await?;
    if store.exists() {
        let aside = data.join("store.before-restore");
        remove(&aside)?;
        std::fs::rename(&store, &aside)?;
        println!("the former store is kept in {}", aside.display());
    }
    std::fs::rename(&target, &store)?;
    if let Some(identity) = &server {
        // Last, so that a restore cut short leaves no member behind.
        data.record(identity)?;
    }
    std::fs::File::open(&args.data_dir)?.sync_all()?;
    println!("restored to {} at revision {revision}", args.data_dir.display());
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
