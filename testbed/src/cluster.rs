//! Keelson on the hosts: servers that join one another, agents that join them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::api::Api;
use crate::containerd::SOCKET;
use crate::host::{Host, Role};
use crate::{Testbed, until};

/// How long a server may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// The port of the API and of a member for its peers.
const API_PORT: u16 = 6443;
const PEER_PORT: u16 = 2380;

/// What a host needs to join a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// `https://HOST:6443`.
    pub server: String,
    /// A bootstrap token.
    pub token: String,
    /// `sha256:...` of the CA's key.
    pub ca_hash: String,
}

/// What a server is started with beside where it is.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Whom to join; the first server joins nobody.
    pub join: Option<Join>,
    /// Further flags.
    pub flags: Vec<String>,
}

impl Testbed {
    /// Takes a copy of the binary, so that building again does not disturb what runs.
    pub fn install(&self, keelson: &Path) -> Result<()> {
        let (bin, part) = (self.binary(), self.dir().join("bin/keelson.part"));
        fs::create_dir_all(self.dir().join("bin"))?;
        fs::copy(keelson, &part).with_context(|| format!("copy {}", keelson.display()))?;
        fs::rename(&part, &bin).with_context(|| bin.display().to_string())
    }

    /// Where that copy is, on the machine and on every host.
    pub fn binary(&self) -> PathBuf {
        self.dir().join("bin/keelson")
    }
}

impl Host<'_> {
    /// Runs `keelson` with arguments on this host.
    pub fn keelson(&self, arguments: &[&str]) -> Result<String> {
        self.run(&self.testbed().binary().to_string_lossy(), arguments)
    }

    /// The address of this server's API.
    pub fn url(&self) -> String {
        format!("https://{}:{API_PORT}", self.address())
    }

    /// The admin's kubeconfig of this server, on the machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir().join("keelson/admin.kubeconfig")
    }

    /// This server's API.
    pub fn api(&self) -> Result<Api> {
        Api::new(&self.kubeconfig(), &self.dir().join("admin"))
    }

    /// Starts `keelson server` if it does not run.
    pub fn start_server(&self, options: &ServerOptions) -> Result<()> {
        if !self.processes("keelson")?.is_empty() {
            return Ok(());
        }
        let address = self.address();
        let mut flags: Vec<String> = vec!["server".into(), "--name".into(), self.name()];
        flags.extend(["--advertise-address".into(), address.to_string()]);
        match &options.join {
            Some(join) => flags.extend(join_flags("--join", join)),
            None if self.testbed().plan().servers > 1 => flags.push("--cluster-init".into()),
            None => {}
        }
        if self.testbed().plan().servers > 1 {
            flags.extend(["--peer-address".into(), format!("{address}:{PEER_PORT}")]);
        }
        flags.extend(options.flags.iter().cloned());
        self.service("keelson", &self.testbed().binary().to_string_lossy(), &flags)
    }

    /// Waits until this server is ready; an error has the end of its log.
    pub fn wait_ready(&self) -> Result<()> {
        until(&format!("{} is ready", self.name()), READY, || {
            if self.processes("keelson")?.is_empty() {
                // The service may not have come as far as being `keelson`.
                std::thread::sleep(Duration::from_millis(200));
                if self.processes("keelson")?.is_empty() {
                    return Ok(Some(false));
                }
            }
            self.api()?.call("GET", "/readyz", None)?;
            Ok(Some(true))
        })
        .and_then(|runs| if runs { Ok(()) } else { bail!("keelson on {} has ended", self.name()) })
        .with_context(|| self.log_end("keelson"))
    }

    /// Makes a token for hosts of a role and says what joins with it.
    pub fn join_command(&self, role: Role) -> Result<Join> {
        let server: &[&str] = if role == Role::Server { &["--server"] } else { &[] };
        let text = self.keelson(&[&["token", "create", "--print-join-command"], server].concat())?;
        parse_join(&text).with_context(|| format!("cannot read the join command {text:?}"))
    }

    /// Starts `keelson agent` if it does not run; containerd runs already.
    pub fn start_agent(&self, join: &Join, flags: &[String]) -> Result<()> {
        if !self.processes("keelson")?.is_empty() {
            return Ok(());
        }
        let mut all = vec!["agent".to_owned(), "--name".into(), self.name()];
        all.extend(join_flags("--server", join));
        all.extend(["--runtime-endpoint".into(), format!("unix://{SOCKET}")]);
        all.extend(flags.iter().cloned());
        self.service("keelson", &self.testbed().binary().to_string_lossy(), &all)
    }

    /// Waits until this agent's node is ready.
    pub fn wait_node_ready(&self, api: &Api) -> Result<()> {
        until(&format!("node {} is ready", self.name()), READY, || {
            let node = api.get(&format!("/api/v1/nodes/{}", self.name()))?;
            Ok(is_ready(&node).then_some(()))
        })
        .with_context(|| self.log_end("keelson"))
    }

    /// Whether this host runs servers or agents, as its log and messages name it.
    pub fn is_server(&self) -> bool {
        self.role() == Role::Server
    }
}

fn is_ready(node: &Value) -> bool {
    let conditions = node["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

fn join_flags(server: &str, join: &Join) -> Vec<String> {
    [server, &join.server, "--token", &join.token, "--ca-hash", &join.ca_hash].map(str::to_owned).to_vec()
}

/// The values of the flags in a printed join command.
fn parse_join(text: &str) -> Option<Join> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let after = |names: [&str; 2]| {
        let at = words.iter().position(|word| names.contains(word))?;
        Some((*words.get(at + 1)?).to_owned())
    };
    Some(Join {
        server: after(["--server", "--join"])?,
        token: after(["--token", "--token"])?,
        ca_hash: after(["--ca-hash", "--ca-hash"])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_command_is_read() {
        let join =
            parse_join("keelson agent --server https://10.0.0.1:6443 --token a.b --ca-hash sha256:00\n").unwrap();
        assert_eq!(join.server, "https://10.0.0.1:6443");
        assert_eq!((join.token.as_str(), join.ca_hash.as_str()), ("a.b", "sha256:00"));
        assert!(parse_join("a.b").is_none());
    }
}
