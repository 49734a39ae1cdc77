//! Leaving a machine: ends the pods that an agent ran and takes back what it changed in the kernel and in files.
//!
//! Invariant: only what bears the agent's marks is touched; each step is tried even if others failed.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cri::{POD_UID, Runtime};
use crate::network::{overlay, policy, proxy, ways};
use crate::{cgroup, cni, volumes};

/// Where the kernel's routing table takes routes from.
const ADDRESS_OF_NAMES: &str = "10.96.0.10/32";
/// Where logs of containers are.
const LOGS: &str = "/var/log/pods";
/// Where the runtime reads network configurations.
const NETWORKS: &str = "/etc/cni/net.d";

/// Where an agent's traces are.
#[derive(Clone, Debug)]
pub struct Traces {
    /// The runtime's socket.
    pub socket: PathBuf,
    /// The agent's data directory: the pods that are named there are its own.
    pub data_dir: PathBuf,
}

/// Removes all traces; what could not be removed, and why.
pub async fn run(traces: &Traces) -> Vec<String> {
    let mut failed = Vec::new();
    let mut note = |what: String, result: io::Result<()>| {
        if let Err(error) = result {
            failed.push(format!("{what}: {error}"));
        }
    };
    let own = own_pods(&traces.data_dir);
    note("pods".into(), end_pods(&traces.socket, &own).await);
    for uid in &own {
        note(format!("volumes of pod {uid}"), volumes::remove(&traces.data_dir.join("pods").join(uid)));
        cgroup::remove(uid);
    }
    note("logs".into(), remove_logs(Path::new(LOGS), &own));
    for table in [proxy::TABLE, policy::TABLE, cni::TABLE] {
        for family in ["ip", "ip6"] {
            // A table that is not there is not a failure, and not every nft knows `destroy`: it is made first, in one step.
            let words = ["add", "table", family, table, ";", "delete", "table", family, table];
            note(format!("table {table}"), attempt("nft", &words));
        }
    }
    note("the name server's address".into(), attempt("ip", &["address", "del", ADDRESS_OF_NAMES, "dev", "lo"]));
    for family in ["-4", "-6"] {
        let words = [family, "route", "flush", "proto", ways::PROTOCOL];
        note("routes to other nodes".into(), attempt("ip", &words));
    }
    note("the overlay's device".into(), attempt("ip", &["link", "del", overlay::DEVICE]));
    note("network".into(), gone(fs::remove_file(Path::new(NETWORKS).join(cni::FILE))));
    note("addresses of pods".into(), gone(fs::remove_dir_all(cni::ADDRESSES)));
    failed
}

/// Pods of this agent: it has a directory for each.
fn own_pods(data_dir: &Path) -> HashSet<String> {
    let entries = fs::read_dir(data_dir.join("pods")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

async fn end_pods(socket: &Path, own: &HashSet<String>) -> io::Result<()> {
    if own.is_empty() || !socket.exists() {
        return Ok(());
    }
    let runtime = Runtime::new(socket).map_err(io::Error::other)?;
    for sandbox in runtime.sandboxes(Default::default()).await.map_err(io::Error::other)? {
        if sandbox.labels.get(POD_UID).is_some_and(|uid| own.contains(uid)) {
            runtime.stop_sandbox(&sandbox.id).await.map_err(io::Error::other)?;
            runtime.remove_sandbox(&sandbox.id).await.map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// Directories of logs end with the pod's uid.
fn remove_logs(root: &Path, own: &HashSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.rsplit('_').next().is_some_and(|uid| own.contains(uid)) {
            gone(fs::remove_dir_all(entry.path()))?;
        }
    }
    Ok(())
}

/// Runs a program that removes something; that it is not there, or the program is not, is well.
fn attempt(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let said = String::from_utf8_lossy(&output.stderr);
    let absent = ["No such", "Cannot assign", "Cannot find", "not found"].iter().any(|word| said.contains(word));
    if output.status.success() || absent { Ok(()) } else { Err(io::Error::other(said.trim().to_owned())) }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_logs_go() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("data/pods/u1")).unwrap();
        let logs = dir.path().join("logs");
        for name in ["default_a_u1", "default_b_u2"] {
            fs::create_dir_all(logs.join(name)).unwrap();
        }
        let own = own_pods(&dir.path().join("data"));
        remove_logs(&logs, &own).unwrap();
        let left: Vec<_> = fs::read_dir(&logs).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left, ["default_b_u2"]);
        assert!(own_pods(&dir.path().join("nowhere")).is_empty());
    }

    #[test]
    fn what_is_not_there_is_well() {
        assert!(attempt("no-such-program-at-all", &[]).is_ok());
        assert!(attempt("sh", &["-c", "echo No such file >&2; exit 1"]).is_ok());
        assert!(attempt("sh", &["-c", "echo denied >&2; exit 1"]).is_err());
        assert!(gone(fs::remove_file("/nowhere/at/all")).is_ok());
    }
}
