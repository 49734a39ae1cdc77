//! Flags of `keelson store`: etcd's names, and its ETCD_ variables.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Args};
use keelson_raft::cluster;
use keelson_raft::etcd::limits;

/// Run the store alone, in etcd's place.
#[derive(Args, Clone, Debug)]
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
    /// Further URLs for /metrics and /health only
    #[arg(long, env = "ETCD_LISTEN_METRICS_URLS", value_delimiter = ',')]
    pub listen_metrics_urls: Vec<String>,
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
    /// Make this member a cluster of its own with the data it has; the other members are forgotten
    #[arg(long, env = "ETCD_FORCE_NEW_CLUSTER", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub force_new_cluster: bool,
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
        value_parser = crate::args::config_duration
    )]
    pub watch_progress_notify_interval: Duration,
    /// Accepted: members compare their data all the time, and a member checks its own when it starts
    #[arg(long, alias = "experimental-initial-corrupt-check", env = "ETCD_INITIAL_CORRUPT_CHECK", num_args = 0..=1,
        require_equals = true, default_missing_value = "true", default_value_t = true, action = ArgAction::Set,
        hide = true)]
    pub initial_corrupt_check: bool,
    /// Entries of the log between snapshots
    #[arg(long, env = "ETCD_SNAPSHOT_COUNT", default_value_t = keelson_raft::limits::SNAPSHOT_COMMANDS)]
    pub snapshot_count: u64,
    /// Time between heartbeats of the leader, in milliseconds
    #[arg(long, env = "ETCD_HEARTBEAT_INTERVAL", default_value_t = keelson_raft::limits::HEARTBEAT_MILLIS)]
    pub heartbeat_interval: u64,
    /// How long a member waits for the leader before it calls an election, in milliseconds
    #[arg(long, env = "ETCD_ELECTION_TIMEOUT", default_value_t = keelson_raft::limits::ELECTION_MIN_MILLIS)]
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
    /// Certificate for other members
    #[arg(long, env = "ETCD_PEER_CERT_FILE")]
    pub peer_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "ETCD_PEER_KEY_FILE")]
    pub peer_key_file: Option<PathBuf>,
    /// Other members must have a certificate
    #[arg(long, env = "ETCD_PEER_CLIENT_CERT_AUTH", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value_t = false, action = ArgAction::Set)]
    pub peer_client_cert_auth: bool,
    /// CA of the members' certificates
    #[arg(long, env = "ETCD_PEER_TRUSTED_CA_FILE")]
    pub peer_trusted_ca_file: Option<PathBuf>,
    /// Tokens of users: simple, or jwt,sign-method=HS256,priv-key=FILE,ttl=5m
    #[arg(long, env = "ETCD_AUTH_TOKEN", default_value = "simple")]
    pub auth_token: String,
    /// How long an unused simple token is good, in seconds
    #[arg(long, env = "ETCD_AUTH_TOKEN_TTL", default_value_t = 300)]
    pub auth_token_ttl: u64,
}

impl StoreArgs {
    /// Refuses settings that cannot work.
    pub fn check(&self) -> Result<()> {
        let most = keelson_store::limits::MAX_TXN_BYTES;
        if self.max_request_bytes > most {
            bail!("--max-request-bytes {} is over the limit of {most}", self.max_request_bytes);
        }
        let most = keelson_store::limits::MAX_TXN_OPS / 2;
        if self.max_txn_ops > most {
            bail!("--max-txn-ops {} is over the limit of {most}", self.max_txn_ops);
        }
        if self.heartbeat_interval == 0 || self.election_timeout < 5 * self.heartbeat_interval {
            bail!(
                "--election-timeout {} must be at least 5 times --heartbeat-interval {}",
                self.election_timeout,
                self.heartbeat_interval
            );
        }
        if self.client_cert_auth && self.trusted_ca_file.is_none() {
            bail!("--client-cert-auth needs --trusted-ca-file");
        }
        if self.peer_client_cert_auth && self.peer_trusted_ca_file.is_none() {
            bail!("--peer-client-cert-auth needs --peer-trusted-ca-file");
        }
        for url in self.listen_peer_urls.iter().chain(&self.initial_advertise_peer_urls) {
            if !cluster::is_member_url(url) {
                bail!("{url} is not a member's URL: write for example http://10.0.0.1:2380");
            }
        }
        Ok(())
    }

    /// Names and peer URLs of `--initial-cluster`, in order; this member must be among them.
    pub fn initial_members(&self) -> Result<Vec<(String, Vec<String>)>> {
        let Some(text) = &self.initial_cluster else {
            return Ok(vec![(self.name.clone(), self.initial_advertise_peer_urls.clone())]);
        };
        let mut members = members(text)?;
        let mut advertised = self.initial_advertise_peer_urls.clone();
        advertised.sort();
        let Some((_, urls)) = members.iter_mut().find(|(name, _)| *name == self.name) else {
            bail!("--initial-cluster does not name this member, {}", self.name);
        };
        urls.sort();
        if *urls != advertised {
            bail!("--initial-cluster has {urls:?} for {}, --initial-advertise-peer-urls has {advertised:?}", self.name);
        }
        Ok(members)
    }
}

/// Names and peer URLs in the form of `--initial-cluster`.
pub fn members(text: &str) -> Result<Vec<(String, Vec<String>)>> {
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
    Ok(members)
}
