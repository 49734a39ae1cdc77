//! The command line: one table of flags, from which parsing, help, the config file and the environment derive.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args as Flags, Parser, Subcommand};

use crate::logging::LogFormat;

/// Addresses of Services unless told otherwise.
pub const DEFAULT_SERVICE_CIDR: &str = "10.96.0.0/16";
/// Addresses of pods unless told otherwise.
pub const DEFAULT_CLUSTER_CIDR: &str = "10.244.0.0/16";

/// Kubernetes' control plane, datastore and node agent as one program.
#[derive(Parser)]
#[command(name = "keelson", version = crate::life::version::own(), about, arg_required_else_help = true, after_help = EXAMPLES)]
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
  keelson token create --print-join-command        a bootstrap token, and the command that makes a machine a node
  keelson agent --server https://HOST:6443 --token T --ca-hash sha256:H
                                                   this machine becomes a node (root, containerd)
  keelson server --cluster-init                    the first of several servers
  keelson token create --server --print-join-command
                                                   a token for a further server, and the command to type there
  keelson server --join https://HOST:6443 --token T --ca-hash sha256:H
                                                   a further server of that cluster
  keelson member list                              the servers of the cluster
  keelson status --watch                           how the cluster is, what is wrong, what to do
  keelson install server --cluster-init            this machine is a server for good: checks, config file, systemd unit
  keelson uninstall --yes                          nothing of it is left

Every flag of server and agent is also a key of the YAML file that --config names (data-dir: /srv/keelson) and an
environment variable (KEELSON_DATA_DIR=/srv/keelson). The command line wins over the environment, and that over the file.";

/// What `keelson` does.
#[derive(Subcommand)]
pub enum Command {
    /// Run a server: store, API server, controllers and scheduler
    Server(Box<ServerArgs>),
    /// Run the store alone, in etcd's place: its API, its flags
    Store(Box<crate::store::StoreArgs>),
    /// Save the store, look at a copy, restore it, or take over etcd's data
    Snapshot(crate::store::snapshot::SnapshotArgs),
    /// Join this machine to a cluster as a node and run pods on it
    Agent(Box<AgentArgs>),
    /// Run the controllers alone, against any Kubernetes API
    Controllers(Box<ControllersArgs>),
    /// Run the scheduler alone, against any Kubernetes API
    Scheduler(SchedulerArgs),
    /// Show for a pod, node by node, which filter refuses it or how the scores add up
    ExplainScheduling(ExplainArgs),
    /// Show where pods would go: new ones, those of drained or lost nodes, with more nodes; nothing is written
    WhatIf(WhatIfArgs),
    /// List, remove and promote the servers of a cluster, and hand leadership over
    Member(MemberArgs),
    /// What kubectl does, in the same words (also when this program is called through a link named kubectl)
    #[command(disable_help_flag = true)]
    Kubectl {
        /// As kubectl takes them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Make, list and delete bootstrap tokens
    Token(TokenArgs),
    /// Make this machine a server or a node for good: checks, config file, systemd unit
    Install(Box<crate::life::install::InstallArgs>),
    /// How the cluster is: servers, nodes, what is wrong and what to do
    Status(crate::life::status::StatusArgs),
    /// The same and more for a browser on this machine
    Dashboard(crate::life::status::DashboardArgs),
    /// List certificates, and replace them on all servers
    Certs(crate::life::rotate::CertsArgs),
    /// Put another version in place on this machine; it goes back by itself if that is not well
    Upgrade(crate::life::upgrade::UpgradeArgs),
    /// Take Keelson off this machine: nothing that `keelson install` made is left
    Uninstall(crate::life::reset::UninstallArgs),
    /// Take this machine out of its cluster, or make it go on alone after the others are lost
    Reset(crate::life::reset::ResetArgs),
    /// Break a cluster on this machine while clients use it, and check what they saw (needs root)
    Chaos(Box<keelson_chaos::ChaosArgs>),
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
    /// Address at which others reach this server (default: the bind address, or 127.0.0.1)
    #[arg(long, env = "KEELSON_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// Address for the other servers of the cluster (default: the advertised address, port 2380; with neither
    /// --cluster-init nor --join a free port of this host)
    #[arg(long, env = "KEELSON_PEER_ADDRESS")]
    pub peer_address: Option<SocketAddr>,
    /// Serve etcd's API on the server's store at this address, for admins' certificates only (such as 127.0.0.1:2379;
    /// default: not at all)
    #[arg(long, env = "KEELSON_ETCD_LISTEN")]
    pub etcd_listen: Option<SocketAddr>,
    /// Begin a cluster that other servers will join
    #[arg(long, env = "KEELSON_CLUSTER_INIT", conflicts_with = "join")]
    pub cluster_init: bool,
    /// Join the cluster of the server at this URL; only the first start needs it
    #[arg(long, env = "KEELSON_JOIN", requires = "join_token", requires = "ca_hash", value_name = "https://HOST:6443")]
    pub join: Option<String>,
    /// Token to join with, from `keelson token create --server`; everybody on this machine sees it among the processes, what
    /// a file or the environment says not
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true, group = "join_token")]
    pub token: Option<String>,
    /// File with the token to join with
    #[arg(long, env = "KEELSON_TOKEN_FILE", group = "join_token", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Hash of the cluster's CA, from the same command
    #[arg(long, env = "KEELSON_CA_HASH", value_name = "sha256:H")]
    pub ca_hash: Option<String>,
    /// Name of this member (default: the host's name)
    #[arg(long, env = "KEELSON_NAME")]
    pub name: Option<String>,
    /// Further names and addresses for the API's certificate (comma-separated)
    #[arg(long, env = "KEELSON_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Addresses of Services: one range, or one of each family (10.96.0.0/16,fd00:96::/108), the default family first
    #[arg(long, env = "KEELSON_SERVICE_CIDR", default_value = DEFAULT_SERVICE_CIDR)]
    pub service_cidr: String,
    /// Addresses of pods; each node gets a range of it
    #[arg(long, env = "KEELSON_CLUSTER_CIDR", default_value = DEFAULT_CLUSTER_CIDR)]
    pub cluster_cidr: String,
    #[command(flatten)]
    pub mask_sizes: crate::ranges::MaskSizes,
    /// How often history is compacted
    #[arg(long, env = "KEELSON_COMPACTION_INTERVAL", default_value = "5m", value_parser = config_duration)]
    pub compaction_interval: std::time::Duration,
    /// Make no storage class of node directories on a cluster without any
    #[arg(long, env = "KEELSON_NO_LOCAL_PATH")]
    pub no_local_path: bool,
    /// Life of the servers' own certificates, and the longest of those that they sign; servers replace theirs in time
    #[arg(long, env = "KEELSON_CERTIFICATE_LIFETIME", default_value = "8760h", value_parser = config_duration)]
    pub certificate_lifetime: std::time::Duration,
    /// A node that gives no sign of life for this long is unreachable
    #[arg(long, env = "KEELSON_NODE_MONITOR_GRACE_PERIOD", default_value = "40s", value_parser = config_duration)]
    pub node_monitor_grace_period: std::time::Duration,
    /// Pretended nodes to run in this process
    #[arg(long, env = "KEELSON_HOLLOW", default_value_t = 0)]
    pub hollow: u32,
    /// Do not run controllers
    #[arg(long, env = "KEELSON_NO_CONTROLLERS")]
    pub no_controllers: bool,
    /// Do not run the scheduler
    #[arg(long, env = "KEELSON_NO_SCHEDULER")]
    pub no_scheduler: bool,
    /// KubeSchedulerConfiguration (v1) for the scheduler: profiles, plugins, extenders
    #[arg(long, env = "KEELSON_SCHEDULER_CONFIG")]
    pub scheduler_config: Option<PathBuf>,
    /// Address of the API that the leading server holds; it moves when another one leads
    #[arg(long, env = "KEELSON_VIP", value_name = "IP[/LENGTH]")]
    pub vip: Option<String>,
    /// The interface for it (default: that of the default route)
    #[arg(long, env = "KEELSON_VIP_INTERFACE", requires = "vip")]
    pub vip_interface: Option<String>,
    /// Copies of the store.
    #[command(flatten)]
    pub snapshots: crate::life::backup::SnapshotFlags,
    /// Where to write the admin's kubeconfig (default: DATA_DIR/admin.kubeconfig)
    #[arg(long, env = "KEELSON_WRITE_KUBECONFIG")]
    pub write_kubeconfig: Option<PathBuf>,
    /// Who may ask, what is refused, what is recorded.
    #[command(flatten)]
    pub access: crate::access::AccessArgs,
}

/// The token to join with: as it was given, or what is in the file.
pub fn join_token(given: Option<&str>, file: Option<&Path>) -> anyhow::Result<Option<String>> {
    let Some(file) = file else { return Ok(given.map(str::to_owned)) };
    let text = std::fs::read_to_string(file).with_context(|| format!("--token-file {}", file.display()))?;
    match text.trim() {
        "" => bail!("--token-file {}: the file is empty", file.display()),
        token => Ok(Some(token.to_owned())),
    }
}

/// Flags of `keelson agent`.
#[derive(Flags, Clone, Debug)]
pub struct AgentArgs {
    /// Read further flags from this YAML file (keys are flag names; the command line and the environment win)
    #[arg(long, env = "KEELSON_CONFIG")]
    pub config: Option<PathBuf>,
    /// URL of a server; may be given several times, any that answers is used
    #[arg(long, env = "KEELSON_SERVER", value_delimiter = ',')]
    pub server: Vec<String>,
    /// Bootstrap token to join with; everybody on this machine sees it among the processes, what a file or the environment
    /// says not
    #[arg(long, env = "KEELSON_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File with the bootstrap token
    #[arg(long, env = "KEELSON_TOKEN_FILE", conflicts_with = "token", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Hash of the cluster's CA: sha256:<64 hex digits>
    #[arg(long, env = "KEELSON_CA_HASH")]
    pub ca_hash: Option<String>,
    /// Pretend so many nodes, NAME-0 and on, that run nothing; --kubeconfig must be one that may write all nodes
    #[arg(long, env = "KEELSON_HOLLOW", default_value_t = 0, requires = "kubeconfig")]
    pub hollow: u32,
    /// Use this kubeconfig of the node instead of joining
    #[arg(long, env = "KEELSON_KUBECONFIG", conflicts_with_all = ["server", "token", "ca_hash"])]
    pub kubeconfig: Option<PathBuf>,
    /// Where the agent keeps its credentials and its pods' volumes
    #[arg(long, env = "KEELSON_DATA_DIR", default_value_os_t = default_data_dir().join("agent"))]
    pub data_dir: PathBuf,
    /// Name of the node (default: the host's name)
    #[arg(long, env = "KEELSON_NAME")]
    pub name: Option<String>,
    /// Socket of the container runtime
    #[arg(long, env = "KEELSON_RUNTIME_ENDPOINT", default_value = "unix:///run/containerd/containerd.sock")]
    pub runtime_endpoint: String,
    /// Address at which others reach this node (default: the one that leads to the server)
    #[arg(long, env = "KEELSON_NODE_IP", value_delimiter = ',', value_name = "ADDRESS[,ADDRESS]")]
    pub node_ip: Vec<IpAddr>,
    /// Port of the agent's own server
    #[arg(long, env = "KEELSON_PORT", default_value_t = 10250)]
    pub port: u16,
    /// Where the logs of containers go (default: /var/log/pods)
    #[arg(long, env = "KEELSON_LOG_DIR")]
    pub log_dir: Option<PathBuf>,
    /// Directory from which the runtime reads network configurations
    #[arg(long, env = "KEELSON_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Addresses of all pods
    #[arg(long, env = "KEELSON_CLUSTER_CIDR", default_value = DEFAULT_CLUSTER_CIDR)]
    pub cluster_cidr: String,
    /// The node's resolver configuration, which pods inherit
    #[arg(long, env = "KEELSON_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// Address of the cluster's name server (default: that of the Service kube-system/kube-dns, or 10.96.0.10)
    #[arg(long, env = "KEELSON_CLUSTER_DNS")]
    pub cluster_dns: Option<IpAddr>,
    /// Do not serve cluster names on this node (another name server has the address)
    #[arg(long, env = "KEELSON_NO_DNS")]
    pub no_dns: bool,
    /// When pods are ended to save the node (an empty text: never)
    #[arg(
        long,
        env = "KEELSON_EVICTION_HARD",
        default_value = "memory.available<100Mi,nodefs.available<1Gi,nodefs.inodesFree<1%"
    )]
    pub eviction_hard: keelson_nodeagent::Thresholds,
    /// Who makes the pods' network: routes (the agent, between nodes that are neighbours), vxlan (the agent, in UDP between
    /// nodes) or none (another CNI plugin)
    #[arg(long, env = "KEELSON_CNI", default_value = "routes", value_name = "routes|vxlan|none")]
    pub cni: keelson_nodeagent::PodNetwork,
    /// How Services are served: nftables or iptables (ipvs and userspace are refused)
    #[arg(long, env = "KEELSON_PROXY_MODE", default_value = "nftables", value_name = "nftables|iptables")]
    pub proxy_mode: keelson_nodeagent::ProxyMode,
    /// When the machine goes down (not when the agent stops), pods get this long to end
    #[arg(long, env = "KEELSON_SHUTDOWN_GRACE_PERIOD", default_value = "0s", value_parser = config_duration)]
    pub shutdown_grace_period: std::time::Duration,
    /// The last part of that time, which is kept for critical pods
    #[arg(long, env = "KEELSON_SHUTDOWN_GRACE_PERIOD_CRITICAL_PODS", default_value = "0s", value_parser = config_duration)]
    pub shutdown_grace_period_critical_pods: std::time::Duration,
    /// Who may use which processors: none (everybody all) or static (containers of guaranteed pods that ask for whole
    /// processors get them alone)
    #[arg(long, env = "KEELSON_CPU_MANAGER_POLICY", default_value = "none", value_name = "none|static")]
    pub cpu_manager_policy: String,
    /// Processors that no container gets alone (with --cpu-manager-policy static)
    #[arg(long, env = "KEELSON_RESERVED_CPUS", default_value = "", value_name = "0-1,8")]
    pub reserved_cpus: keelson_nodeagent::CpuSet,
    /// Whether containers may be swapped out: NoSwap, or LimitedSwap (burstable pods in proportion to the memory that they
    /// asked for); limits need control groups of version 2
    #[arg(long, env = "KEELSON_MEMORY_SWAP_BEHAVIOR", default_value = "NoSwap", value_name = "NoSwap|LimitedSwap")]
    pub memory_swap_behavior: keelson_nodeagent::SwapBehavior,
    /// How processors, devices and memory of a container are placed on a machine with several NUMA nodes
    #[arg(
        long,
        env = "KEELSON_TOPOLOGY_MANAGER_POLICY",
        default_value = "none",
        value_name = "none|best-effort|restricted|single-numa-node"
    )]
    pub topology_manager_policy: keelson_nodeagent::TopologyPolicy,
    /// Whether each container is placed by itself, or all of a pod together
    #[arg(long, env = "KEELSON_TOPOLOGY_MANAGER_SCOPE", default_value = "container", value_name = "container|pod")]
    pub topology_manager_scope: keelson_nodeagent::TopologyScope,
    /// Who may use which memory: None (everybody all) or Static (containers of guaranteed pods get theirs from NUMA nodes
    /// that are chosen for them)
    #[arg(long, env = "KEELSON_MEMORY_MANAGER_POLICY", default_value = "None", value_name = "None|Static")]
    pub memory_manager_policy: String,
    /// Memory of NUMA nodes that pods do not get (with --memory-manager-policy Static)
    #[arg(long, env = "KEELSON_RESERVED_MEMORY", default_value = "", value_name = "0:memory=1Gi;1:memory=1Gi")]
    pub reserved_memory: String,
    /// Sysctls that pods may set beyond the safe ones (kernel.msg*, net.core.somaxconn)
    #[arg(long, env = "KEELSON_ALLOWED_UNSAFE_SYSCTLS", value_delimiter = ',')]
    pub allowed_unsafe_sysctls: Vec<String>,
    /// A file, or a directory of files, with pods that this node runs whatever the API says (static pods)
    #[arg(long, env = "KEELSON_POD_MANIFEST_PATH")]
    pub pod_manifest_path: Option<PathBuf>,
    /// A URL from which static pods are read every 20 s
    #[arg(long, env = "KEELSON_MANIFEST_URL", value_name = "http[s]://HOST/PATH")]
    pub manifest_url: Option<String>,
    /// Headers of these requests (NAME:VALUE, comma-separated)
    #[arg(long, env = "KEELSON_MANIFEST_URL_HEADER", value_delimiter = ',', value_name = "NAME:VALUE")]
    pub manifest_url_header: Vec<String>,
    /// Certificates of the authorities that the URL's server is known by (default: the system's)
    #[arg(long, env = "KEELSON_MANIFEST_URL_CA")]
    pub manifest_url_ca: Option<PathBuf>,
    /// Do not serve Services on this node (another proxy does)
    #[arg(long, env = "KEELSON_NO_PROXY")]
    pub no_proxy: bool,
    /// The cluster's domain
    #[arg(long, env = "KEELSON_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

/// Flags of `keelson controllers`.
#[derive(Flags, Clone, Debug)]
pub struct ControllersArgs {
    /// The kubeconfig that says where the API is and as whom to use it
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// Addresses of pods; nodes get ranges of it
    #[arg(long, env = "KEELSON_CLUSTER_CIDR", default_value = DEFAULT_CLUSTER_CIDR)]
    pub cluster_cidr: String,
    /// Addresses of Services, of which no node gets any: one range, or one of each family behind a comma
    #[arg(long, env = "KEELSON_SERVICE_CLUSTER_IP_RANGE")]
    pub service_cluster_ip_range: Option<String>,
    #[command(flatten)]
    pub mask_sizes: crate::ranges::MaskSizes,
    /// A node that says nothing for this long is unreachable
    #[arg(long, env = "KEELSON_NODE_MONITOR_GRACE_PERIOD", default_value = "40s", value_parser = config_duration)]
    pub node_monitor_grace_period: std::time::Duration,
    /// Give claims of a cluster without storage classes directories of nodes
    #[arg(long, env = "KEELSON_LOCAL_PATH")]
    pub local_path: bool,
    /// Features that are open, as Name=true: GenericWorkload, StorageVersionMigrator
    #[arg(long, env = "KEELSON_FEATURE_GATES", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
    /// The CA's certificate to publish (default: the kubeconfig's)
    #[arg(long, env = "KEELSON_ROOT_CA_FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// Certificate of the CA that signs certificate requests (without it nothing is signed)
    #[arg(long, env = "KEELSON_CLUSTER_SIGNING_CERT_FILE")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// Its key
    #[arg(long, env = "KEELSON_CLUSTER_SIGNING_KEY_FILE")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Signs tokens of service accounts that are kept as Secrets (without it none are made)
    #[arg(long, env = "KEELSON_SERVICE_ACCOUNT_PRIVATE_KEY_FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
}

/// Flags of `keelson scheduler`.
#[derive(Flags, Clone, Debug)]
pub struct SchedulerArgs {
    /// The kubeconfig that says where the API is and as whom to use it
    #[arg(long, env = "KUBECONFIG")]
    pub kubeconfig: PathBuf,
    /// KubeSchedulerConfiguration (v1): profiles, plugins, extenders
    #[arg(long = "scheduler-config", env = "KEELSON_SCHEDULER_CONFIG")]
    pub scheduler_config: Option<PathBuf>,
    /// Alpha features that are open, as Name=true: GenericWorkload, GangScheduling
    #[arg(long, env = "KEELSON_FEATURE_GATES", value_delimiter = ',')]
    pub feature_gates: Vec<String>,
}

/// Flags of `keelson explain-scheduling`.
#[derive(Flags, Clone, Debug)]
pub struct ExplainArgs {
    /// The pod: NAME or pod/NAME
    pub pod: String,
    /// Its namespace
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// json, for machines
    #[arg(short, long)]
    pub output: Option<String>,
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
}

/// Flags of `keelson what-if`.
#[derive(Flags, Clone, Debug)]
pub struct WhatIfArgs {
    /// Pods or workloads that would be created (a YAML file, - for the standard input)
    #[arg(short, long)]
    pub filename: Option<PathBuf>,
    /// How many of each
    #[arg(long, default_value_t = 1)]
    pub replicas: usize,
    /// Nodes that would be drained (comma-separated)
    #[arg(long, value_delimiter = ',')]
    pub drain: Vec<String>,
    /// Nodes that would be lost (comma-separated)
    #[arg(long, value_delimiter = ',')]
    pub lose: Vec<String>,
    /// Nodes that would be added
    #[arg(long, default_value_t = 0)]
    pub add_nodes: usize,
    /// The node that these are like
    #[arg(long)]
    pub like: Option<String>,
    /// json, for machines
    #[arg(short, long)]
    pub output: Option<String>,
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
}

/// Flags that tools share.
#[derive(Flags, Clone, Debug)]
pub struct Access {
    /// The admin's kubeconfig
    #[arg(long, global = true, env = "KUBECONFIG", default_value_os_t = default_data_dir().join("admin.kubeconfig"))]
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
        /// A token with which servers join; it gives access to the cluster's keys, so keep its life short
        #[arg(long)]
        server: bool,
        /// Print the command to type on the machine that joins, instead of the token alone
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
    /// How the cluster is reached.
    #[command(flatten)]
    pub access: Access,
    /// What to do.
    #[command(subcommand)]
    pub command: MemberCommand,
}

/// What can be done with members.
#[derive(Subcommand, Clone, Debug)]
pub enum MemberCommand {
    /// List the members
    List {
        /// Print JSON
        #[arg(short, long, value_parser = ["json"])]
        output: Option<String>,
    },
    /// Remove a member for good, by its id or name
    Remove {
        /// Its id or name
        member: String,
    },
    /// Give a learner its vote
    Promote {
        /// Its id or name
        member: String,
    },
    /// Hand leadership over
    TransferLeader {
        /// The id or name of the member that is to lead
        member: String,
    },
}

/// Where state is kept unless told otherwise.
pub fn default_data_dir() -> PathBuf {
    if nix::unistd::geteuid().is_root() {
        return "/var/lib/keelson".into();
    }
    match std::env::var_os("HOME") {
        Some(home) => PathBuf::from(home).join(".local/share/keelson"),
        None => "keelson-data".into(),
    }
}

/// Reads durations as Kubernetes' flags write them: `300ms`, `40s`, `5m`, `1h30m`.
pub fn config_duration(text: &str) -> Result<std::time::Duration, String> {
    crate::config::duration(text)
        .ok_or_else(|| format!("{text:?} is not a duration: write for example 40s, 5m or 1h30m"))
}
