//! What is tested: a table of programs that serve the etcd API, and how their members are started.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use keelson_testbed::Host;

/// Ports of a member.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Where a member keeps its data, as its host sees it: on the machine's disk.
pub const DATA: &str = "/var/lib/keelson/member";

/// What runs on every host.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is.
    pub path: String,
    /// A built-in bug that is switched on.
    pub bug: Option<String>,
}

/// A program to test.
pub struct System {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// The name of its process.
    pub process: &'static str,
    /// Words before the flags.
    command: &'static [&'static str],
    /// Whether it is the binary under test, not one of the machine's.
    ours: bool,
    /// Flags beyond those that all have.
    flags: &'static [&'static str],
}

/// All systems. They take the same flags.
pub const TABLE: &[System] = &[
    System {
        name: "keelson",
        about: "keelson store of the binary under test",
        process: "keelson",
        command: &["store"],
        ours: true,
        flags: &[],
    },
    System {
        name: "etcd",
        about: "the machine's etcd (apt-get install etcd-server): shows that the harness does not cry wolf",
        process: "etcd",
        command: &[],
        ours: false,
        flags: &["--snapshot-count", "2000", "--logger", "zap"],
    },
];

/// The system of a name.
pub fn find(name: &str) -> Result<&'static System> {
    let names: Vec<&str> = TABLE.iter().map(|system| system.name).collect();
    let found = TABLE.iter().find(|system| system.name == name);
    found.with_context(|| format!("there is no system {name}: there are {}", names.join(", ")))
}

/// The URL at which clients reach a member.
pub fn client_url(host: &Host<'_>) -> String {
    format!("http://{}:{CLIENT_PORT}", host.address())
}

/// The URL at which other members reach a member.
pub fn peer_url(host: &Host<'_>) -> String {
    format!("http://{}:{PEER_PORT}", host.address())
}

/// Notes that the cluster is there: who starts without data from now on joins it.
pub fn formed(host: &Host<'_>) -> Result<()> {
    std::fs::write(host.dir().join("formed"), b"").context("note that the cluster is formed")
}

fn is_formed(host: &Host<'_>) -> bool {
    host.dir().join("formed").exists()
}

impl System {
    /// The program: the given binary, or one of the machine.
    pub fn program(&self, given: &str) -> Result<String> {
        if self.ours {
            return Ok(given.to_owned());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut found = std::env::split_paths(&path).map(|dir| dir.join(self.process));
        match found.find(|program: &PathBuf| program.exists()) {
            Some(program) => Ok(program.display().to_string()),
            None => bail!("{} is not installed: {}", self.process, self.about),
        }
    }

    /// Starts the member of a host; its data is taken up if there is some.
    pub fn start(&self, program: &Program, host: &Host<'_>, members: &[Host<'_>]) -> Result<()> {
        if !host.processes(self.process)?.is_empty() {
            return Ok(());
        }
        let listed: Vec<_> = members.iter().map(|member| format!("{}={}", member.name(), peer_url(member))).collect();
        let mut flags: Vec<String> = self.command.iter().map(|word| (*word).to_owned()).collect();
        let (client, peer) = (client_url(host), peer_url(host));
        for (flag, value) in [
            ("--name", host.name()),
            ("--data-dir", DATA.to_owned()),
            ("--listen-client-urls", client.clone()),
            ("--advertise-client-urls", client),
            ("--listen-peer-urls", peer.clone()),
            ("--initial-advertise-peer-urls", peer),
            ("--initial-cluster", listed.join(",")),
            ("--initial-cluster-token", "chaos".to_owned()),
            ("--initial-cluster-state", if is_formed(host) { "existing" } else { "new" }.to_owned()),
        ] {
            flags.extend([flag.to_owned(), value]);
        }
        flags.extend(self.flags.iter().map(|flag| (*flag).to_owned()));
        let Some(bug) = &program.bug else { return host.service("member", &program.path, &flags) };
        flags.splice(0..0, [format!("KEELSON_BUG={bug}"), program.path.clone()]);
        host.service("member", "env", &flags)
    }
}
