//! A cluster of real processes on free ports, of Keelson or of etcd.

use std::fs::File;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::ports::free_port;

/// How long a cluster may take to answer.
const START: Duration = Duration::from_secs(60);
/// How long one command may take; `check datascale` writes 10,000 keys on a machine that others use too.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Which program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The one that is tested.
    Keelson,
    /// The one that it is compared with.
    Etcd,
}

/// Whether the programs that it takes are there.
pub fn installed() -> bool {
    let there = |name: &str| Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    there("etcd").is_ok() && Command::new("etcdctl").env("ETCDCTL_API", "3").arg("version").output().is_ok()
}

/// Members, killed when dropped.
pub struct Cluster {
    pub kind: Kind,
    pub dir: tempfile::TempDir,
    pub clients: Vec<u16>,
    pub peers: Vec<u16>,
    /// Flags that all members get.
    more: &'static [&'static str],
    /// By member; one that was started again is in the place of what it was before.
    processes: Vec<Child>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn ports(count: usize) -> Vec<u16> {
    (0..count).map(|_| free_port()).collect()
}

pub fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

impl Cluster {
    /// Starts members and waits until all answer. Two more pairs of ports are kept for members that are added.
    pub fn start(kind: Kind, members: usize) -> Self {
        Self::start_with(kind, members, &[])
    }

    /// The same with more flags.
    pub fn start_with(kind: Kind, members: usize, more: &'static [&'static str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (clients, peers) = (ports(members + 2), ports(members + 2));
        let mut cluster = Self { kind, dir, clients, peers, more, processes: Vec::new() };
        let initial: Vec<_> = (0..members).map(|at| format!("m{}={}", at + 1, url(cluster.peers[at]))).collect();
        for at in 0..members {
            cluster.member(at, &initial.join(","), "new");
        }
        for at in 0..members {
            cluster.wait(at);
        }
        cluster
    }

    /// Starts one member.
    pub fn member(&mut self, at: usize, initial: &str, state: &str) {
        let (client, peer) = (url(self.clients[at]), url(self.peers[at]));
        let (name, dir) = (format!("m{}", at + 1), self.dir.path().join(format!("m{}", at + 1)));
        let mut command = match self.kind {
            Kind::Keelson => Command::new(env!("CARGO_BIN_EXE_keelson")),
            Kind::Etcd => Command::new("etcd"),
        };
        if self.kind == Kind::Keelson {
            command.arg("store");
        }
        let log = File::create(self.dir.path().join(format!("{name}.log"))).expect("a log");
        let process = command
            .args(["--name", &name, "--initial-cluster-state", state, "--initial-cluster", initial])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .arg("--data-dir")
            .arg(dir)
            .args(self.more)
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the member starts");
        match self.processes.get_mut(at) {
            Some(former) => *former = process,
            None => self.processes.push(process),
        }
    }

    /// Kills a member.
    pub fn kill(&mut self, at: usize) {
        self.processes[at].kill().expect("it runs");
        self.processes[at].wait().expect("it ends");
    }

    /// Waits until a member answers.
    pub fn wait(&self, at: usize) {
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            if TcpStream::connect(("127.0.0.1", self.clients[at])).is_ok() {
                let told = self.etcdctl(&[url(self.clients[at])], &["endpoint", "health"], "");
                if told.status.success() {
                    return;
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let log = self.dir.path().join(format!("m{}.log", at + 1));
        panic!("member {at} does not answer: {}", std::fs::read_to_string(log).unwrap_or_default());
    }

    /// Endpoints of the first so many members.
    pub fn endpoints(&self, members: usize) -> Vec<String> {
        self.clients[..members].iter().copied().map(url).collect()
    }

    /// A command that is not started yet.
    pub fn command(&self, endpoints: &[String], args: &[&str]) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(endpoints.join(",")).args(args);
        command.current_dir(self.dir.path());
        command
    }

    /// Runs a command to its end.
    pub fn etcdctl(&self, endpoints: &[String], args: &[&str], stdin: &str) -> Output {
        let input = self.file("stdin", stdin);
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string());
        let inner = self.command(endpoints, args);
        command.arg(inner.get_program()).args(inner.get_args()).env("ETCDCTL_API", "3");
        command.current_dir(self.dir.path()).stdin(File::open(input).expect("the input is there"));
        command.output().expect("etcdctl runs")
    }

    /// Writes a file in the cluster's directory.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        path
    }

    /// A path in the cluster's directory.
    pub fn path(&self, name: &str) -> String {
        Path::new(self.dir.path()).join(name).to_string_lossy().into_owned()
    }
}
