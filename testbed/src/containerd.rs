//! A host's own containerd, with its images.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host::Host;
use crate::{image, until};

/// The socket, as a host sees it.
pub const SOCKET: &str = "/run/containerd/containerd.sock";
/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(30);
/// CAP_SYS_RESOURCE in a set of capabilities: without it nobody may lower an OOM score.
const SYS_RESOURCE: u64 = 1 << 24;

impl Host<'_> {
    /// Starts containerd on this host if it does not run, and gives it the images.
    pub fn start_containerd(&self) -> Result<()> {
        if self.processes("containerd")?.is_empty() {
            let config = self.dir().join("containerd.toml");
            fs::write(&config, configuration(may_lower_oom_scores()?))?;
            self.service("containerd", "containerd", &["--config".into(), config.display().to_string()])?;
        }
        until("containerd answers", START, || {
            self.ctr(&["version"])?;
            Ok(Some(()))
        })
        .with_context(|| self.log_end("containerd"))?;
        if !self.ctr(&["-n", "k8s.io", "images", "ls", "-q"])?.contains(image::WEB[1]) {
            let archive = self.dir().join("images.tar");
            fs::write(&archive, image::archive()?)?;
            self.ctr(&["-n", "k8s.io", "images", "import", &archive.display().to_string()])?;
            fs::remove_file(&archive)?;
        }
        Ok(())
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        self.run("ctr", &[&["--address", SOCKET], arguments].concat())
    }
}

/// Only what differs from containerd's defaults.
fn configuration(may_lower_oom_scores: bool) -> String {
    format!(
        "version = 2\n\
         [grpc]\naddress = {SOCKET:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = {:?}\nrestrict_oom_score_adj = {}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/usr/lib/cni\"\nconf_dir = \"/etc/cni/net.d\"\n",
        image::PAUSE,
        !may_lower_oom_scores,
    )
}

fn may_lower_oom_scores() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status")?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("no CapEff in /proc/self/status")?;
    Ok(u64::from_str_radix(set.trim(), 16)? & SYS_RESOURCE != 0)
}
