//! Three members of a store, ours or etcd's, on one machine.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use keelson_proto::etcd::etcdserverpb as pb;
use pb::cluster_client::ClusterClient;
use pb::kv_client::KvClient;
use pb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

use crate::process::{Usage, usage};

/// Members of a cluster.
pub const MEMBERS: usize = 3;
/// How long a cluster may take to answer.
const START: Duration = Duration::from_secs(60);

/// Which store.
#[derive(Clone, Debug)]
pub enum Program {
    /// This binary's `store`.
    Keelson(PathBuf),
    /// `etcd` of the search path.
    Etcd,
}

/// A running cluster; it ends with this value.
pub struct Cluster {
    program: Program,
    dir: tempfile::TempDir,
    clients: Vec<u16>,
    peers: Vec<u16>,
    children: Vec<Option<Child>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            // What is measured has nothing worth an orderly end.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// All at once, since two that are asked for one after the other may be the same.
fn ports() -> Result<Vec<u16>> {
    let listeners: Vec<_> = (0..2 * MEMBERS).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

impl Cluster {
    /// Starts three members with empty directories and waits until all take writes.
    pub async fn start(program: Program) -> Result<Self> {
        // What the removal of the last cluster's files leaves the disk to do is not this one's.
        tokio::process::Command::new("sync").status().await?;
        let dir = tempfile::tempdir_in(".").or_else(|_| tempfile::tempdir())?;
        let children = (0..MEMBERS).map(|_| None).collect();
        let mut clients = ports()?;
        let peers = clients.split_off(MEMBERS);
        let mut cluster = Self { program, dir, clients, peers, children };
        for member in 0..MEMBERS {
            cluster.run(member)?;
        }
        for member in 0..MEMBERS {
            cluster.ready(member).await?;
        }
        Ok(cluster)
    }

    /// Adds a member and waits until it takes writes; how long that took.
    pub async fn add(&mut self) -> Result<Duration> {
        let member = self.children.len();
        let mut fresh = ports()?;
        self.clients.extend(fresh.pop());
        self.peers.extend(fresh.pop());
        self.children.push(None);
        let started = Instant::now();
        let url = format!("http://127.0.0.1:{}", self.peers[member]);
        let request = pb::MemberAddRequest { peer_ur_ls: vec![url], is_learner: false };
        ClusterClient::new(self.channel(0)?).member_add(request).await?;
        self.run(member)?;
        self.ready(member).await?;
        Ok(started.elapsed())
    }

    /// Starts a member.
    pub fn run(&mut self, member: usize) -> Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let names: Vec<_> = self.peers.iter().enumerate().map(|(at, port)| format!("m{at}={}", url(*port))).collect();
        let (client, peer) = (url(self.clients[member]), url(self.peers[member]));
        let mut command = match &self.program {
            Program::Keelson(binary) => {
                let mut command = Command::new(binary);
                command.arg("store");
                command
            }
            Program::Etcd => {
                let mut command = Command::new("etcd");
                command.args(["--log-level", "error"]);
                command
            }
        };
        let log = File::options().create(true).append(true).open(self.dir.path().join(format!("m{member}.log")))?;
        command
            .args(["--name", &format!("m{member}"), "--initial-cluster", &names.join(",")])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer, "--data-dir"])
            .arg(self.dir.path().join(format!("m{member}")))
            .args(["--initial-cluster-state", if member < MEMBERS { "new" } else { "existing" }])
            .stdout(log.try_clone()?)
            .stderr(log);
        self.children[member] = Some(command.spawn().with_context(|| format!("cannot start {:?}", self.program))?);
        Ok(())
    }

    /// Where clients reach the members.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.clients.iter().take(MEMBERS).map(|port| SocketAddr::from(([127, 0, 0, 1], *port))).collect()
    }

    /// A connection to a member.
    pub fn channel(&self, member: usize) -> Result<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{}", self.clients[member]))?;
        Ok(endpoint.tcp_nodelay(true).initial_stream_window_size(4 * 1024 * 1024).connect_lazy())
    }

    /// Waits until a member takes writes.
    pub async fn ready(&self, member: usize) -> Result<Duration> {
        let started = Instant::now();
        while started.elapsed() < START {
            let put = pb::PutRequest { key: "ready".into(), ..pb::PutRequest::default() };
            let mut client = KvClient::new(self.channel(member)?);
            if let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(1), client.put(put)).await {
                return Ok(started.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let log = std::fs::read_to_string(self.dir.path().join(format!("m{member}.log"))).unwrap_or_default();
        bail!("member {member} takes no writes:\n{log}")
    }

    /// Who leads.
    pub async fn leader(&self) -> Result<usize> {
        for _ in 0..200 {
            for member in 0..MEMBERS {
                let mut client = MaintenanceClient::new(self.channel(member)?);
                if let Ok(status) = client.status(pb::StatusRequest {}).await {
                    let status = status.into_inner();
                    if status.header.is_some_and(|header| header.member_id == status.leader) {
                        return Ok(member);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        bail!("nobody leads")
    }

    /// Kills a member as a crash would.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        if let Some(mut child) = self.children[member].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Processor time of all members, and the memory of the largest.
    pub fn usage(&self) -> Result<Usage> {
        let mut sum = Usage::default();
        for child in self.children.iter().flatten() {
            let usage = usage(child.id())?;
            sum.cpu += usage.cpu;
            sum.rss_kib = sum.rss_kib.max(usage.rss_kib);
        }
        Ok(sum)
    }

    /// Whether its members are this repository's.
    pub fn is_ours(&self) -> bool {
        matches!(self.program, Program::Keelson(_))
    }

    /// Where it writes.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}
