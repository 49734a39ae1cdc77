//! The command line: one table of flags, from which parsing, help, the config file and the environment derive.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args as Flags, Parser, Subcommand};

use crate::logging::LogFormat;

/// Kubernetes' control plane, datastore and node agent as one program.
#[derive(Parser)]
#[command(name = "keelson", version, about, arg_required_else_help = true, after_help = EXAMPLES)]
pub struct Args {
    /// How log lines look: for people, or one JSON object a line
    #[arg(long, global = true, env = "KEELSON_LOG_FORMAT", value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
    /// What is logged: error, warn, info, debug, trace, or a filter such as info,keelson_raft=debug
    #[arg(long, global = true, env = "KEELSON_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

const EXAMPLES: &str = "\
Examples:
  keelson server                                   a one-node cluster; prints where its kubeconfig is
  keelson server --hollow 3                        the same with three pretended nodes: no root, no containers
  keelson server --cluster-init --token T          the first of several servers
  keelson server --join https://A:6443 --token T --ca-hash sha256:H
  keelson agent --server https://A:6443 --token T --ca-hash sha256:H";

/// What `keelson` does.
#[derive(Subcommand)]
pub enum Command {
    /// Run a control-plane member: store, API server, controllers and scheduler
    Server(Box<ServerArgs>),
    /// Run a node: pods through a container runtime
    Agent(AgentArgs),
    /// Make, list and delete the tokens with which servers and agents join
    Token(TokenArgs),
    /// List and change the members of the control plane
    Member(MemberArgs),
}

/// Flags of `keelson server`.
#[derive(Flags, Clone, Debug)]
pub struct ServerArgs {
    /// Read further flags from this YAML file (keys are flag names; the command line and the environment win)
    #[arg(long, env = "KEELSON_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where this member keeps its state
    #[arg(long, env = "KEELSON_DATA_DIR", default_value_os_t = default_data_dir())]
    pub data_dir: PathBuf,
    /// Address to serve the API on
    #[arg(long, env = "KEELSON_BIND_ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// Port of the API
    #[arg(long, env = "KEELSON_SECURE_PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// Address at which others reach this server (default: the peer address, or the address of the default route)
    #[arg(long, env = "KEELSON_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// IP:PORT for traffic between members (default: 127.0.0.1:2380 alone, ADVERTISE:2380 in a group)
    #[arg(long, env = "KEELSON_PEER_ADDRESS")]
    pub peer_address: Option<std::net::SocketAddr>,
    /// Name of this member (default: the host's name)
    #[arg(long, env = "KEELSON_NAME")]
    pub name: Option<String>,
    /// Start a new cluster that others will join
    #[arg(long, env = "KEELSON_CLUSTER_INIT", conflicts_with = "join")]
    pub cluster_init: bool,
    /// URL of a server to join
    #[arg(long, env = "KEELSON_JOIN", requires = "ca_hash", requires = "token")]
    pub join: Option<String>,
    /// Join token; with a new cluster: the token to create (for servers and agents, 24 h)
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Hash of the cluster's CA key (sha256:HEX), so that a join cannot be deceived
    #[arg(long, env = "KEELSON_CA_HASH")]
    pub ca_hash: Option<String>,
    /// Further names and addresses for the API's certificate (comma-separated)
    #[arg(long, env = "KEELSON_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Addresses of Services
    #[arg(long, env = "KEELSON_SERVICE_CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: String,
    /// Addresses of pods; each node gets a /24 of it
    #[arg(long, env = "KEELSON_CLUSTER_CIDR", default_value = "10.244.0.0/16")]
    pub cluster_cidr: String,
    /// A node not heard of for this long is not ready
    #[arg(long, env = "KEELSON_NODE_MONITOR_GRACE_PERIOD", default_value = "40s", value_parser = config_duration)]
    pub node_monitor_grace_period: std::time::Duration,
    /// How often history is compacted
    #[arg(long, env = "KEELSON_COMPACTION_INTERVAL", default_value = "5m", value_parser = config_duration)]
    pub compaction_interval: std::time::Duration,
    /// Pretended nodes to run in this process
    #[arg(long, env = "KEELSON_HOLLOW", default_value_t = 0)]
    pub hollow: u32,
    /// Do not run controllers
    #[arg(long, env = "KEELSON_NO_CONTROLLERS")]
    pub no_controllers: bool,
    /// Do not run the scheduler
    #[arg(long, env = "KEELSON_NO_SCHEDULER")]
    pub no_scheduler: bool,
    /// Where to write the admin's kubeconfig (default: DATA_DIR/admin.kubeconfig)
    #[arg(long, env = "KEELSON_WRITE_KUBECONFIG")]
    pub write_kubeconfig: Option<PathBuf>,
}

/// Flags of `keelson agent`.
#[derive(Flags, Clone, Debug)]
pub struct AgentArgs {
    /// Read further flags from this YAML file (keys are flag names; the command line and the environment win)
    #[arg(long, env = "KEELSON_CONFIG")]
    pub config: Option<PathBuf>,
    /// URL of a server to join through; the others are learned from it
    #[arg(long, env = "KEELSON_SERVER", requires = "token", requires = "ca_hash", required_unless_present = "kubeconfig")]
    pub server: Option<String>,
    /// Join token
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Hash of the cluster's CA key (sha256:HEX)
    #[arg(long, env = "KEELSON_CA_HASH")]
    pub ca_hash: Option<String>,
    /// Use this kubeconfig instead of joining with a token
    #[arg(long, env = "KEELSON_KUBECONFIG", conflicts_with = "server")]
    pub kubeconfig: Option<PathBuf>,
    /// Where this agent keeps its state
    #[arg(long, env = "KEELSON_DATA_DIR", default_value = "/var/lib/keelson-agent")]
    pub data_dir: PathBuf,
    /// Name of the node (default: the host's name)
    #[arg(long, env = "KEELSON_NAME")]
    pub name: Option<String>,
    /// Address of the node (default: the address of the default route)
    #[arg(long, env = "KEELSON_NODE_IP")]
    pub node_ip: Option<IpAddr>,
    /// The container runtime's socket
    #[arg(long, env = "KEELSON_RUNTIME_ENDPOINT", default_value = "unix:///run/containerd/containerd.sock")]
    pub runtime_endpoint: String,
    /// Where the runtime reads its CNI configuration
    #[arg(long, env = "KEELSON_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Run this many pretended nodes instead of one with a runtime
    #[arg(long, env = "KEELSON_HOLLOW", default_value_t = 0)]
    pub hollow: u32,
}

/// Flags that tools share.
#[derive(Flags, Clone, Debug)]
pub struct Access {
    /// The admin's kubeconfig
    #[arg(long, env = "KUBECONFIG", default_value_os_t = default_data_dir().join("admin.kubeconfig"))]
    pub kubeconfig: PathBuf,
}

/// `keelson token ...`
#[derive(Flags, Clone, Debug)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: TokenCommand,
}

/// What can be done with tokens.
#[derive(Subcommand, Clone, Debug)]
pub enum TokenCommand {
    /// Make a token
    Create {
        /// How the cluster is reached.
        #[command(flatten)]
        access: Access,
        /// How long it is good for
        #[arg(long, default_value = "24h", value_parser = config_duration)]
        ttl: std::time::Duration,
        /// Servers may join with it too, not only agents
        #[arg(long)]
        servers: bool,
        /// Print the whole command to run on the joining machine
        #[arg(long)]
        print_join_command: bool,
    },
    /// List the tokens
    List {
        /// How the cluster is reached.
        #[command(flatten)]
        access: Access,
    },
    /// Delete a token by its id (the part before the dot)
    Delete {
        /// How the cluster is reached.
        #[command(flatten)]
        access: Access,
        /// The token or its id
        token: String,
    },
}

/// `keelson member ...`
#[derive(Flags, Clone, Debug)]
pub struct MemberArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: MemberCommand,
}

/// What can be done with members.
#[derive(Subcommand, Clone, Debug)]
pub enum MemberCommand {
    /// List the members, their roles and how far they are
    List {
        /// How the cluster is reached.
        #[command(flatten)]
        access: Access,
        /// table or json
        #[arg(short, long, default_value = "table", value_parser = ["table", "json"])]
        output: String,
    },
    /// Remove a member that will not come back
    Remove {
        /// How the cluster is reached.
        #[command(flatten)]
        access: Access,
        /// Its name or id
        member: String,
    },
}

fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/keelson".into();
    }
    match std::env::var_os("HOME") {
        Some(home) => PathBuf::from(home).join(".local/share/keelson"),
        None => "keelson-data".into(),
    }
}

/// Reads durations as Kubernetes' flags write them: `300ms`, `40s`, `5m`, `1h30m`.
fn config_duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::duration(text).ok_or_else(|| format!("{text:?} is not a duration: write for example 40s, 5m or 1h30m"))
}
