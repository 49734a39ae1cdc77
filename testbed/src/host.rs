//! A host: namespaces for network, processes, mounts, name and cgroups around a shell that waits. It has the machine's
//! files, but what it writes to `/etc`, `/opt` and `/var` is its own, and `/run` is empty.
//!
//! Killing the first process of a host ends all others and, with its last process, all its mounts.

use std::fs::{self, File, OpenOptions};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::{self, Hierarchy};
use crate::journal::Made;
use crate::network::link_exists;
use crate::run::ip;
use crate::{Testbed, until};

/// Where `ip netns` keeps namespaces.
pub(crate) const NAMESPACES: &str = "/run/netns";

/// Whether something is mounted at a path.
pub(crate) fn is_mounted(path: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(4) == Some(path)))
}

/// Held while namespaces come and their mount goes: no testbed takes away what another begins to use.
pub(crate) fn lock_namespaces() -> Result<Flock<File>> {
    let run = File::open("/run").context("open /run")?;
    Flock::lock(run, FlockArg::LockExclusive).map_err(|(_, errno)| errno).context("lock /run")
}

/// How long a host may take to be there.
const START: Duration = Duration::from_secs(10);
/// How long processes may take to end after SIGKILL.
const END: Duration = Duration::from_secs(15);
/// Addresses of servers start here in the subnet, those of agents at [`AGENTS_FROM`].
const SERVERS_FROM: u8 = 10;
const AGENTS_FROM: u8 = 100;

/// Joins the cgroups named by `$CGROUPS`, then becomes the rest of the arguments.
const JOIN_CGROUPS: &str = r#"for p in $CGROUPS; do echo $$ > "$p/cgroup.procs" || exit 1; done; exec "$@""#;

/// The first process of a host. `$1` is the testbed's directory, `$2` the host's, `$3` its name; the rest are
/// hierarchies as kind:options:mount.
const INIT: &str = r#"
set -eu
testbed=$1 dir=$2 name=$3
shift 3
hostname "$name"
mount -t sysfs sysfs /sys
[ "$1" = "cgroup2::/sys/fs/cgroup" ] || mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
for hierarchy in "$@"; do
    kind=${hierarchy%%:*} rest=${hierarchy#*:}
    mkdir -p "${rest#*:}"
    mount -t "$kind" ${rest%%:*} cgroup "${rest#*:}"
done
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/testbed
mount --bind "$testbed" /run/testbed
for tree in etc opt var; do
    mkdir -p "$dir/$tree/upper" "$dir/$tree/work"
    mount -t overlay -o "lowerdir=/$tree,upperdir=$dir/$tree/upper,workdir=$dir/$tree/work" overlay "/$tree"
done
case $testbed in /etc/*|/opt/*|/var/*) mount --bind /run/testbed "$testbed";; esac
# Not on the overlay: the container runtime makes overlays there itself, which do not nest; the store wants a real disk.
for place in containerd keelson; do
    mkdir -p "$dir/$place" "/var/lib/$place"
    mount --bind "$dir/$place" "/var/lib/$place"
done
echo "$name" > /etc/hostname
mount --make-rshared /
touch "$dir/started"
# Reaps what is left to it.
while :; do sleep 3600 & wait $! || :; done
"#;

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `keelson server`.
    Server,
    /// containerd and `keelson agent`.
    Agent,
}

/// A host of a testbed.
#[derive(Clone)]
pub struct Host<'a> {
    testbed: &'a Testbed,
    role: Role,
    index: u8,
}

impl<'a> Host<'a> {
    pub(crate) fn new(testbed: &'a Testbed, role: Role, index: u8) -> Self {
        Self { testbed, role, index }
    }

    /// What it does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The testbed that it is in.
    pub(crate) fn testbed(&self) -> &'a Testbed {
        self.testbed
    }

    /// Its place among those of its role, from 1.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// `server-1`, `agent-2`: its host name.
    pub fn name(&self) -> String {
        let role = if self.role == Role::Server { "server" } else { "agent" };
        format!("{role}-{}", self.index)
    }

    /// The name of its network namespace and cgroups.
    pub fn namespace(&self) -> String {
        format!("{}-{}", self.testbed.plan().name, self.name())
    }

    /// Its address.
    pub fn address(&self) -> Ipv4Addr {
        let from = if self.role == Role::Server { SERVERS_FROM } else { AGENTS_FROM };
        self.testbed.subnet().address(from + self.index - 1)
    }

    /// Where its files are on the machine.
    pub fn dir(&self) -> PathBuf {
        self.testbed.dir().join(self.name())
    }

    /// The log of one of its services.
    pub fn log(&self, service: &str) -> PathBuf {
        self.dir().join(format!("{service}.log"))
    }

    /// The end of that log, for messages.
    pub fn log_end(&self, service: &str) -> String {
        let text = fs::read_to_string(self.log(service)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Creates what is missing: network namespace, pair of interfaces, cgroups, first process.
    pub(crate) fn ensure(&self) -> Result<()> {
        self.network().with_context(|| format!("network of {}", self.name()))?;
        if self.init()?.is_none() {
            self.start().with_context(|| format!("start host {}", self.name()))?;
        }
        Ok(())
    }

    fn network(&self) -> Result<()> {
        let (journal, namespace) = (&self.testbed.journal, self.namespace());
        let exists = Path::new(NAMESPACES).join(&namespace).exists();
        let lock = lock_namespaces()?;
        if !is_mounted(NAMESPACES)? {
            journal.intend(Made::NamespacesMount, false)?;
        }
        if journal.intend(Made::Namespace(namespace.clone()), exists)? {
            ip(&format!("netns add {namespace}"))?;
        }
        drop(lock);
        let link = format!("{}-{}{}", self.testbed.plan().name, &self.name()[..1], self.index);
        if journal.intend(Made::Link(link.clone()), link_exists(&link))? {
            ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"))?;
        }
        ip(&format!("link set {link} master {}-br up", self.testbed.plan().name))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {namespace} address replace {}/24 dev eth0", self.address()))?;
        ip(&format!("-n {namespace} link set eth0 up"))?;
        ip(&format!("-n {namespace} route replace default via {}", self.testbed.subnet().gateway()))?;
        Ok(())
    }

    fn start(&self) -> Result<()> {
        let (dir, namespace) = (self.dir(), self.namespace());
        fs::create_dir_all(&dir)?;
        let started = dir.join("started");
        if started.exists() {
            fs::remove_file(&started)?;
        }
        let hierarchies = cgroup::hierarchies()?;
        for hierarchy in &hierarchies {
            let cgroup = hierarchy.cgroup(&namespace);
            let exists = cgroup.exists();
            self.testbed.journal.intend(Made::Cgroup(cgroup), exists)?;
            hierarchy.create(&namespace)?;
        }
        let mut command = self.in_cgroups(&hierarchies);
        command
            .arg("nsenter")
            .arg(format!("--net={NAMESPACES}/{namespace}"))
            .args("unshare --mount --pid --fork --kill-child --mount-proc --uts --ipc --cgroup".split(' '))
            .args(["sh", "-c", INIT, "host-init"])
            .arg(self.testbed.dir())
            .arg(&dir)
            .arg(self.name())
            .args(hierarchies.iter().map(mount_argument));
        let mut child = spawn(&mut command, &self.log("host"))?;
        until("its first process", START, || {
            if let Some(status) = child.try_wait()? {
                bail!("{status}: {}", self.log_end("host"));
            }
            Ok((started.exists() && self.init()?.is_some()).then_some(()))
        })
    }

    /// A command that starts in the host's cgroups; its program and arguments are still to be added.
    fn in_cgroups(&self, hierarchies: &[Hierarchy]) -> Command {
        let namespace = self.namespace();
        let paths: Vec<_> = hierarchies.iter().map(|h| h.processes(&namespace).display().to_string()).collect();
        let mut command = Command::new("sh");
        command.args(["-c", JOIN_CGROUPS, "sh"]).env("CGROUPS", paths.join(" "));
        command
    }

    /// The machine's id of the host's first process.
    fn init(&self) -> Result<Option<Pid>> {
        Ok(pids(&self.namespace())?.into_iter().find(|pid| is_first(*pid)))
    }

    /// A command that runs on this host.
    pub fn command(&self, program: &str) -> Result<Command> {
        let init = self.init()?.with_context(|| format!("host {} is not running", self.name()))?;
        let mut command = self.in_cgroups(&cgroup::hierarchies()?);
        // Which cluster the user of this machine means is not what the host means.
        for name in std::env::vars_os().map(|(name, _)| name) {
            if name == "KUBECONFIG" || name.to_string_lossy().starts_with("KEELSON_") {
                command.env_remove(name);
            }
        }
        command
            .args(["nsenter", "--target", &init.to_string()])
            .args("--mount --uts --ipc --net --pid --cgroup --wd=/ --".split(' '))
            .arg(program);
        Ok(command)
    }

    /// A path as this host sees it, for those outside.
    pub fn inside(&self, path: &Path) -> Result<PathBuf> {
        let init = self.init()?.with_context(|| format!("host {} is not running", self.name()))?;
        let root = PathBuf::from(format!("/proc/{init}/root"));
        Ok(root.join(path.strip_prefix("/").unwrap_or(path)))
    }

    /// Runs a program on this host and returns what it prints.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.command(program)?.args(arguments).output()?;
        if !output.status.success() {
            let shown = [&[program], arguments].concat().join(" ");
            bail!("{}: {shown}: {} {}", self.name(), output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a service on this host that outlives us, with its log in [`Host::log`].
    pub fn service(&self, name: &str, program: &str, arguments: &[String]) -> Result<()> {
        spawn(self.command(program)?.args(arguments), &self.log(name))?;
        Ok(())
    }

    /// Processes on this host (not in its containers) whose program is `program`.
    pub fn processes(&self, program: &str) -> Result<Vec<Pid>> {
        let named =
            |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == program);
        Ok(pids(&self.namespace())?.into_iter().filter(named).collect())
    }

    /// Ends everything on this host at once, containers included, as when its power fails. [`Testbed::hosts`] brings it
    /// back, with the files that it had.
    pub fn power_off(&self) -> Result<()> {
        end(&self.namespace())
    }

    /// Empties the disk of what `keelson` keeps there; it does not run.
    pub fn wipe(&self) -> Result<()> {
        for entry in fs::read_dir(self.dir().join("keelson"))? {
            let entry = entry?;
            let (path, is_dir) = (entry.path(), entry.file_type()?.is_dir());
            if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Sends a signal to the processes whose program is `program`.
    pub fn signal(&self, program: &str, signal: Signal) -> Result<()> {
        for pid in self.processes(program)? {
            send(pid, signal)?;
        }
        Ok(())
    }

    /// kill -9 of the processes whose program is `program`; returns when they are gone.
    pub fn kill(&self, program: &str) -> Result<()> {
        self.signal(program, Signal::SIGKILL)?;
        until(&format!("{program} on {} ends", self.name()), END, || {
            Ok(self.processes(program)?.is_empty().then_some(()))
        })
    }
}

fn mount_argument(hierarchy: &Hierarchy) -> String {
    let options = if hierarchy.options.is_empty() { String::new() } else { format!("-o {}", hierarchy.options) };
    format!("{}:{options}:{}", hierarchy.kind, hierarchy.mount.display())
}

fn spawn(command: &mut Command, log: &Path) -> Result<std::process::Child> {
    let out = OpenOptions::new().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    let error = out.try_clone()?;
    // An own process group: Ctrl-C in the terminal is not meant for services.
    command.stdin(Stdio::null()).stdout(out).stderr(error).process_group(0);
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// Processes in a network namespace, by the machine's ids. Empty if there is no such namespace.
pub fn pids(namespace: &str) -> Result<Vec<Pid>> {
    if !Path::new(NAMESPACES).join(namespace).exists() {
        return Ok(Vec::new());
    }
    let listed = ip(&format!("netns pids {namespace}"))?;
    Ok(listed.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw).collect())
}

/// Whether it is the first process of a process namespace of ours (containers have theirs inside that).
fn is_first(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let ids: Vec<&str> = ids.split_whitespace().collect();
    ids.len() == 2 && ids[1] == "1"
}

fn send(pid: Pid, signal: Signal) -> Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("signal {pid}")),
    }
}

/// Ends every process of a host.
pub fn end(namespace: &str) -> Result<()> {
    until(&format!("processes of {namespace} end"), END, || {
        let left = pids(namespace)?;
        for pid in &left {
            send(*pid, Signal::SIGKILL)?;
        }
        Ok(left.is_empty().then_some(()))
    })
}
