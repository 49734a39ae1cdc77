//! Clusters on one machine: hosts that are namespaces on a bridge, each with its own processes, mounts, name, addresses
//! and cgroups. `cargo xtask up`, the tests of whole clusters and the chaos harness build theirs with it.
//!
//! Invariants: what is created is written to the [`journal`] before it is created, so that [`Testbed::remove`] finds all
//! of it after any crash; nothing is removed that the journal does not name; what exists already under a wanted name
//! and is not in the journal is refused. This crate stays light (no TLS, no runtime): `cargo xtask` depends on it.

mod api;
mod bring_up;
mod cgroup;
mod cluster;
mod containerd;
mod host;
pub mod image;
mod journal;
mod network;
mod remove;
mod run;

pub use api::Api;
pub use bring_up::Start;
pub use cluster::{Join, ServerOptions};
pub use host::{Host, Role};
pub use network::Subnet;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::journal::Journal;

/// Servers and agents that a testbed can have of each.
pub const MAX_HOSTS: u8 = 50;
/// Letters that a testbed's name may have: interface names have 15, of which the host takes up to 5.
const MAX_NAME: usize = 9;

/// What a testbed is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Namespaces, interfaces and cgroups start with it: lower-case letters and digits.
    pub name: String,
    /// Hosts that run `keelson server`.
    pub servers: u8,
    /// Hosts that run containerd and `keelson agent`.
    pub agents: u8,
}

/// A testbed on disk and, mostly, running.
pub struct Testbed {
    dir: PathBuf,
    plan: Plan,
    subnet: Subnet,
    journal: Journal,
}

/// What the directory remembers beside the journal.
#[derive(Serialize, Deserialize)]
struct Saved {
    plan: Plan,
    subnet: Subnet,
}

impl Testbed {
    /// The testbed of `dir`: a new one, or the one that is there, which must have the same plan.
    pub fn create(dir: &Path, plan: Plan) -> Result<Self> {
        check(dir, &plan)?;
        if let Some(found) = Self::open(dir)? {
            if found.plan != plan {
                bail!("{} holds another testbed ({:?}): remove it first", dir.display(), found.plan);
            }
            return Ok(found);
        }
        let journal = Journal::create(dir)?;
        let subnet = Subnet::reserve(&plan.name, &journal)?;
        let saved = serde_json::to_vec_pretty(&Saved { plan: plan.clone(), subnet })?;
        run::write_whole(&dir.join("testbed.json"), &saved)?;
        Ok(Self { dir: dir.to_owned(), plan, subnet, journal })
    }

    /// The testbed of `dir`, if its creation got as far as its plan.
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let bytes = match std::fs::read(dir.join("testbed.json")) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.with_context(|| dir.display().to_string())?,
        };
        let Saved { plan, subnet } = serde_json::from_slice(&bytes).with_context(|| dir.display().to_string())?;
        let journal = Journal::open(dir)?.with_context(|| format!("{} has no journal", dir.display()))?;
        Ok(Some(Self { dir: dir.to_owned(), plan, subnet, journal }))
    }

    /// Removes every process, namespace, interface, cgroup and file of the testbed of `dir`, however far its creation
    /// got. Returns whether there was one.
    pub fn remove(dir: &Path) -> Result<bool> {
        remove::remove(dir)
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is to be.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its hosts' network.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The bridge and every host: what is missing is created.
    pub fn hosts(&self) -> Result<Vec<Host<'_>>> {
        network::bridge(self)?;
        let servers = (1..=self.plan.servers).map(|i| Host::new(self, Role::Server, i));
        let agents = (1..=self.plan.agents).map(|i| Host::new(self, Role::Agent, i));
        let hosts: Vec<_> = servers.chain(agents).collect();
        for host in &hosts {
            host.ensure()?;
        }
        Ok(hosts)
    }
}

fn check(dir: &Path, plan: &Plan) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if plan.name.is_empty() || plan.name.len() > MAX_NAME || !plan.name.chars().all(plain) {
        bail!("{:?} cannot be a testbed's name: 1 to {MAX_NAME} lower-case letters and digits", plan.name);
    }
    if plan.servers == 0 || plan.servers > MAX_HOSTS || plan.agents > MAX_HOSTS {
        bail!("a testbed has 1 to {MAX_HOSTS} servers and up to {MAX_HOSTS} agents");
    }
    // The path becomes part of mount options, where some characters have a meaning.
    let path = dir.to_str().with_context(|| format!("{} is not text", dir.display()))?;
    if !dir.is_absolute() || !path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) {
        bail!("{path} cannot be a testbed's directory: an absolute path of letters, digits, '.', '_' and '-'");
    }
    if dir.starts_with("/run") || dir.starts_with("/proc") || dir.starts_with("/sys") {
        bail!("{path} cannot be a testbed's directory: hosts have their own /run, /proc and /sys");
    }
    Ok(())
}

/// Looks every 50 ms until `holds` returns something.
pub fn until<T>(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let last = match holds() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::new(),
            Err(error) => format!(": {error:#}"),
        };
        if Instant::now() > deadline {
            bail!("{what}: not within {} s{last}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_that_cannot_be() {
        let plan = |name: &str, servers, agents| Plan { name: name.into(), servers, agents };
        for (dir, plan, good) in [
            ("/var/lib/x", plan("keelson", 3, 2), true),
            ("/var/lib/x", plan("Keelson", 3, 2), false),
            ("/var/lib/x", plan("", 3, 2), false),
            ("/var/lib/x", plan("tenletters", 3, 2), false),
            ("/var/lib/x", plan("keelson", 0, 2), false),
            ("/var/lib/x", plan("keelson", 3, 51), false),
            ("x", plan("keelson", 3, 2), false),
            ("/var/a,b", plan("keelson", 3, 2), false),
            ("/run/x", plan("keelson", 3, 2), false),
        ] {
            assert_eq!(check(Path::new(dir), &plan).is_ok(), good, "{dir} {plan:?}");
        }
    }
}
