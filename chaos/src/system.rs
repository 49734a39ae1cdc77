//! What is tested: a table of programs, and how their members are started: stores that serve the etcd API, or servers of a
//! whole cluster.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use keelson_testbed::{Host, Role};

/// Ports of a member.
const CLIENT_PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// Where a member keeps its data, as its host sees it: on the machine's disk.
pub const DATA: &str = "/var/lib/keelson/member";
/// The admin's kubeconfig, as a server's host sees it.
const ADMIN: &str = "/var/lib/keelson/admin.kubeconfig";
/// Nodes that each agent pretends.
const HOLLOW: usize = 3;
/// Entries between snapshots of our own stores, so that some happen within a run.
const SNAPSHOT_ENTRIES: &str = "2000";

/// What runs on every host.
#[derive(Clone, Debug)]
pub struct Program {
    /// Where it is.
    pub path: String,
    /// Another build of it.
    pub other: Option<String>,
    /// A built-in bug that is switched on.
    pub bug: Option<String>,
    /// Agents have a container runtime and do not only pretend nodes.
    pub containers: bool,
}

/// What a host remembers for its program's next start: files beside its data.
const OTHER: &str = "other-build";
const CLOCK: &str = "clock-seconds";
const FORMED: &str = "formed";

impl Program {
    /// Whether a host runs the other build.
    pub fn is_other(&self, host: &Host<'_>) -> bool {
        host.dir().join(OTHER).exists()
    }

    /// Has a host run the other build from its next start on, or not any more.
    pub fn set_other(&self, host: &Host<'_>, other: bool) -> Result<()> {
        let note = host.dir().join(OTHER);
        match (other, note.exists()) {
            (true, _) => fs::write(&note, b"")?,
            (false, true) => fs::remove_file(&note)?,
            (false, false) => {}
        }
        Ok(())
    }

    /// How many seconds ahead of the machine's a host's monotonic clocks are from its next start on.
    pub fn set_clock(&self, host: &Host<'_>, seconds: u64) -> Result<()> {
        fs::write(host.dir().join(CLOCK), seconds.to_string()).context("note the clock")
    }

    /// How many nodes an agent's host has.
    pub fn nodes_of_agent(&self) -> usize {
        if self.containers { 1 } else { HOLLOW }
    }

    /// The program with its arguments, in what a host wraps around it.
    fn words(&self, host: &Host<'_>, arguments: Vec<String>) -> Vec<String> {
        let mut words = Vec::new();
        if let Ok(seconds) = fs::read_to_string(host.dir().join(CLOCK)) {
            words.extend(["unshare", "--time", "--fork", "--kill-child"].map(str::to_owned));
            words.extend([format!("--monotonic={seconds}"), format!("--boottime={seconds}"), "--".into()]);
        }
        if let Some(bug) = &self.bug {
            words.extend(["env".to_owned(), format!("KEELSON_BUG={bug}")]);
        }
        let other = self.other.as_ref().filter(|_| self.is_other(host));
        words.push(other.unwrap_or(&self.path).clone());
        words.extend(arguments);
        words
    }

    fn start(&self, host: &Host<'_>, service: &str, arguments: Vec<String>) -> Result<()> {
        let words = self.words(host, arguments);
        host.service(service, &words[0], &words[1..])
    }
}

/// What members are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A store with the etcd API.
    Store,
    /// A server with the Kubernetes API, controllers and scheduler.
    Server,
}

/// A program to test.
pub struct System {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// The name of its process.
    pub process: &'static str,
    /// What members are.
    pub kind: Kind,
    /// Whether it is the binary under test, not one of the machine's.
    pub ours: bool,
    /// The name of its log on a host.
    pub service: &'static str,
    /// Words before the flags.
    command: &'static [&'static str],
    /// Flags beyond those that all have.
    flags: &'static [&'static str],
}

/// All systems. Stores take the same flags.
pub const TABLE: &[System] = &[
    System {
        name: "keelson",
        about: "keelson store of the binary under test",
        process: "keelson",
        kind: Kind::Store,
        ours: true,
        service: "member",
        command: &["store"],
        flags: &["--snapshot-count", SNAPSHOT_ENTRIES],
    },
    System {
        name: "etcd",
        about: "the machine's etcd (apt-get install etcd-server): shows that the harness does not cry wolf",
        process: "etcd",
        kind: Kind::Store,
        ours: false,
        service: "member",
        command: &[],
        flags: &["--snapshot-count", "2000", "--logger", "zap"],
    },
    System {
        name: "server",
        about: "keelson server of the binary under test: the Kubernetes API, controllers, scheduler; --agents for nodes",
        process: "keelson",
        kind: Kind::Server,
        ours: true,
        service: "member",
        command: &["server"],
        // History is kept for the whole run, so that informers have no excuse.
        flags: &["--compaction-interval", "24h", "--node-monitor-grace-period", "40s"],
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

/// The admin's kubeconfig of a server's host, as the machine sees it.
pub fn kubeconfig(host: &Host<'_>) -> PathBuf {
    host.dir().join("keelson").join("admin.kubeconfig")
}

/// Notes that the cluster is there: who starts without data from now on joins it.
pub fn formed(host: &Host<'_>) -> Result<()> {
    fs::write(host.dir().join(FORMED), b"").context("note that the cluster is formed")
}

fn is_formed(host: &Host<'_>) -> bool {
    host.dir().join(FORMED).exists()
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
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

    /// Starts the member of a host if it does not run; its data is taken up if there is some.
    pub fn start(&self, program: &Program, host: &Host<'_>, members: &[Host<'_>]) -> Result<()> {
        if !host.processes(self.process)?.is_empty() {
            return Ok(());
        }
        let mut words = owned(self.command);
        words.extend(match self.kind {
            Kind::Store => store_flags(host, members),
            Kind::Server => self.server_flags(host, members)?,
        });
        words.extend(owned(self.flags));
        program.start(host, self.service, words)
    }

    fn server_flags(&self, host: &Host<'_>, members: &[Host<'_>]) -> Result<Vec<String>> {
        let address = host.address();
        let mut flags = Vec::new();
        for (flag, value) in [
            ("--name", host.name()),
            ("--advertise-address", address.to_string()),
            ("--peer-address", format!("{address}:{PEER_PORT}")),
            ("--data-dir", DATA.to_owned()),
            ("--write-kubeconfig", ADMIN.to_owned()),
        ] {
            flags.extend([flag.to_owned(), value]);
        }
        if !self.is_wiped(host)? {
            return Ok(flags);
        }
        match members.iter().find(|other| other.index() != host.index() && is_formed(other)) {
            Some(_) => flags.extend(join(Role::Server, host, members)?),
            None => flags.push("--cluster-init".into()),
        }
        Ok(flags)
    }

    /// Whether a member has no data.
    fn is_wiped(&self, host: &Host<'_>) -> Result<bool> {
        let listed = host.run("sh", &["-c", &format!("ls -A {DATA} 2>/dev/null; true")])?;
        Ok(listed.lines().all(|name| name == "lost+found"))
    }

    /// Empties a member's disk.
    pub fn wipe(&self, host: &Host<'_>) -> Result<()> {
        host.run("find", &[DATA, "-mindepth", "1", "-delete"]).map(drop)
    }

    /// Starts the agent of a host if it does not run.
    pub fn start_agent(&self, program: &Program, host: &Host<'_>, members: &[Host<'_>]) -> Result<()> {
        if program.containers {
            host.start_containerd()?;
        }
        if !host.processes(self.process)?.is_empty() {
            return Ok(());
        }
        let mut words = owned(&["agent", "--name"]);
        words.push(host.name());
        if program.containers {
            // Its credentials are there after its first start.
            words.extend(join(Role::Agent, host, members)?);
            words.extend(owned(&["--runtime-endpoint", "unix:///run/containerd/containerd.sock"]));
        } else {
            let own = host.dir().join("keelson").join("admin.kubeconfig");
            let given =
                members.iter().map(kubeconfig).find(|path| path.exists()).context("no server has a kubeconfig")?;
            fs::copy(&given, &own).with_context(|| given.display().to_string())?;
            words.extend(owned(&["--kubeconfig", ADMIN, "--hollow", &HOLLOW.to_string()]));
        }
        program.start(host, "agent", words)
    }

    /// A command of the binary under test on the first server's host that can do it.
    pub fn tell(&self, members: &[Host<'_>], arguments: &[&str]) -> Result<String> {
        let mut last = anyhow::anyhow!("there is no server");
        for host in members.iter().filter(|host| Path::new(&kubeconfig(host)).exists()) {
            match host.keelson(&[arguments, &["--kubeconfig", ADMIN]].concat()) {
                Ok(told) => return Ok(told),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

fn store_flags(host: &Host<'_>, members: &[Host<'_>]) -> Vec<String> {
    let listed: Vec<_> = members.iter().map(|member| format!("{}={}", member.name(), peer_url(member))).collect();
    let (client, peer) = (client_url(host), peer_url(host));
    let mut flags = Vec::new();
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
    flags
}

/// What a host joins with: flags that another server has printed.
fn join(role: Role, host: &Host<'_>, members: &[Host<'_>]) -> Result<Vec<String>> {
    let others: Vec<Host<'_>> =
        members.iter().filter(|other| other.name() != host.name() && is_formed(other)).cloned().collect();
    let (system, flag) = (find("server")?, if role == Role::Server { "--join" } else { "--server" });
    let mut asked = vec!["token", "create", "--print-join-command"];
    if role == Role::Server {
        asked.push("--server");
    }
    let text = system.tell(&others, &asked)?;
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |name: &str| -> Result<String> {
        let at = words.iter().position(|word| *word == name);
        let value = at.and_then(|at| words.get(at + 1));
        value.map(|value| (*value).to_owned()).with_context(|| format!("no {name} in the join command {text:?}"))
    };
    Ok(vec![flag.into(), after(flag)?, "--token".into(), after("--token")?, "--ca-hash".into(), after("--ca-hash")?])
}
