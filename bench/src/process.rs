//! A server that is measured: its process, its kubeconfig, its processor time and memory.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::load::Target;

/// A server that is not ready by then never will be.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks at a server that starts.
const READY_PAUSE: Duration = Duration::from_millis(2);

/// A `keelson server` with an empty data directory; it ends with this value.
pub struct Server {
    /// How it is started, again too.
    command: Command,
    child: Child,
    dir: tempfile::TempDir,
    /// When it was started.
    pub started: Instant,
    /// From start to `/readyz`.
    pub ready_after: Duration,
}

/// What a process used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Processor time, user and system.
    pub cpu: Duration,
    /// Resident memory in KiB.
    pub rss_kib: u64,
    /// The most that it was, in KiB.
    pub peak_kib: u64,
    /// How often the threads that are there went to sleep.
    pub switches: u64,
}

impl Server {
    /// Starts `keelson server` on a free port of 127.0.0.1 and waits until it is ready.
    pub async fn start(keelson: &Path, further: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new(keelson);
        command
            .args(["server", "--bind-address", "127.0.0.1", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--secure-port", &port.to_string()])
            .args(further)
            .stdout(Stdio::null())
            .stderr(log);
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}: build it first", keelson.display()))?;
        let mut server = Self { command, child, dir, started, ready_after: Duration::ZERO };
        server.wait().await?;
        server.ready_after = started.elapsed();
        Ok(server)
    }

    /// Ends it as a power failure does.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again where it was, and waits until it is ready.
    pub async fn start_again(&mut self) -> Result<()> {
        self.child = self.command.spawn()?;
        self.started = Instant::now();
        self.wait().await
    }

    /// Stops it where it is, or lets it go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen { Signal::SIGSTOP } else { Signal::SIGCONT };
        Ok(kill(Pid::from_raw(self.pid().try_into()?), signal)?)
    }

    async fn wait(&mut self) -> Result<()> {
        while self.started.elapsed() < READY_TIMEOUT {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.log());
            }
            if let Ok(target) = Target::from_kubeconfig(&self.kubeconfig())
                && let Ok(mut connection) = target.connect().await
                && connection.call("GET", "/readyz", "").await.is_ok_and(|answer| answer.status == 200)
            {
                return Ok(());
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
        bail!("the server was not ready within {READY_TIMEOUT:?}:\n{}", self.log())
    }

    /// What it has said since its first start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The admin's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("data/admin.kubeconfig")
    }

    /// How to reach it.
    pub fn target(&self) -> Result<Target> {
        Target::from_kubeconfig(&self.kubeconfig())
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it used so far.
    pub fn usage(&self) -> Result<Usage> {
        usage(self.pid())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A measured server has nothing worth an orderly end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port of this machine that nobody listens at.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// What the process used so far, from `/proc`.
pub fn usage(pid: u32) -> Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("the kernel names no clock tick")?;
    let mut usage = parse(&stat, &status, ticks as u64).context("cannot read /proc")?;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end meanwhile.
        let status = std::fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        usage.switches += line(&status, "voluntary_ctxt_switches:").unwrap_or(0);
    }
    Ok(usage)
}

/// Fields 14 and 15 of `stat` (counted after the name, which may hold spaces), and `VmRSS`.
fn parse(stat: &str, status: &str, ticks_per_second: u64) -> Option<Usage> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Usage {
        cpu: Duration::from_micros(ticks * 1_000_000 / ticks_per_second),
        rss_kib: line(status, "VmRSS:")?,
        peak_kib: line(status, "VmHWM:")?,
        switches: 0,
    })
}

/// The number in a line of `status`.
fn line(status: &str, name: &str) -> Option<u64> {
    let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::parse;
    use std::time::Duration;

    #[test]
    fn usage_is_read_after_a_name_with_spaces() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0";
        let usage = parse(stat, "Name: x\nVmHWM:\t 2048 kB\nVmRSS:\t  1024 kB\n", 100).unwrap();
        assert_eq!((usage.cpu, usage.rss_kib, usage.peak_kib), (Duration::from_secs(2), 1024, 2048));
        assert!(parse("7 (a) S", "", 100).is_none());
    }
}
