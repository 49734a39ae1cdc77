//! What tests of whole clusters share: whether they can run here, a cluster that goes away with the test, kubectl.

// Each test file uses a part of it.
#![allow(dead_code)]

pub mod load;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keelson_testbed::{Plan, Start, Testbed, until};

/// Programs without which hosts or their containers cannot be.
const PROGRAMS: &[&str] = &["containerd", "ctr", "runc", "ip", "nsenter", "unshare", "curl", "kubectl"];
/// How long an expected state may take to be reached.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test, or why the test has to be skipped.
pub fn needs() -> Result<PathBuf, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("hosts are network namespaces, which need root".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &&&str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if let Some(missing) = PROGRAMS.iter().find(|p| !found(p)) {
        return Err(format!("{missing} is not installed"));
    }
    let binary = match std::env::var_os("KEELSON") {
        Some(given) => PathBuf::from(given),
        // A test is in target/PROFILE/deps.
        None => std::env::current_exe().map_err(|e| e.to_string())?.ancestors().nth(2).unwrap().join("keelson"),
    };
    if !binary.exists() {
        return Err(format!("{} is not built: cargo build -p keelson", binary.display()));
    }
    Ok(binary)
}

/// Whether the kernel has VXLAN.
pub fn has_vxlan() -> bool {
    let device = ["link", "add", "kvxtest", "type", "vxlan", "id", "99", "dstport", "8472", "nolearning"];
    let made = Command::new("unshare").args(["--net", "ip"]).args(device).output();
    made.is_ok_and(|output| output.status.success())
}

/// A cluster for one test.
pub struct Cluster {
    pub testbed: Testbed,
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Brings it up, or says why the test is skipped. Names differ between tests, since namespaces carry them.
    pub fn start(name: &str, servers: u8, agents: u8, start: &Start) -> Option<Self> {
        let binary = match needs() {
            Ok(binary) => binary,
            Err(why) => {
                eprintln!("SKIPPED: {why}");
                return None;
            }
        };
        let dir = tempfile::Builder::new().prefix("keelson-").tempdir().unwrap();
        let plan = Plan { name: name.into(), servers, agents };
        let testbed = Testbed::create(&dir.path().join("bed"), plan).unwrap();
        let cluster = Self { testbed, dir };
        cluster.testbed.install(&binary).unwrap();
        cluster.testbed.bring_up(start, &|step| eprintln!("==> {step}")).unwrap();
        Some(cluster)
    }

    /// kubectl at one of the servers, counted from 1.
    pub fn kubectl(&self, server: u8) -> Kubectl {
        let kubeconfig = self.testbed.dir().join(format!("server-{server}/keelson/admin.kubeconfig"));
        Kubectl { kubeconfig, home: self.dir.path().to_owned() }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for host in self.testbed.hosts().into_iter().flatten() {
                eprintln!("--- {}\n{}", host.name(), host.log_end("keelson"));
            }
        }
        if let Err(error) = Testbed::remove(self.testbed.dir()) {
            eprintln!("the cluster is not removed: {error:#}");
        }
    }
}

/// The real kubectl with a kubeconfig.
pub struct Kubectl {
    kubeconfig: PathBuf,
    home: PathBuf,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub code: Option<i32>,
}

impl Kubectl {
    /// Its kubeconfig.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The command with its arguments still to come.
    pub fn command(&self) -> Command {
        let mut command = Command::new("kubectl");
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home).stdin(Stdio::null());
        command
    }

    /// Runs it with arguments; `''` keep spaces.
    pub fn run(&self, arguments: &str) -> Ran {
        self.feed(arguments, "")
    }

    /// Runs it with something on its standard input.
    pub fn feed(&self, arguments: &str, input: &str) -> Ran {
        let mut command = self.command();
        command.args(words(arguments)).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ran { out: text(output.stdout), err: text(output.stderr), code: output.status.code() }
    }

    /// Runs it in a terminal, which `script` gives it; it must succeed.
    pub fn terminal(&self, arguments: &str, input: &str) -> String {
        let mut command = Command::new("script");
        command.args(["-qec", &format!("kubectl {arguments}"), "/dev/null"]);
        command.env("KUBECONFIG", &self.kubeconfig).env("HOME", &self.home);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    /// Runs it; it must succeed.
    pub fn ok(&self, arguments: &str) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, Some(0), "kubectl {arguments}: {} {}", ran.out, ran.err);
        ran.out
    }

    /// Runs it until it succeeds and prints what is wanted.
    pub fn wait(&self, arguments: &str, wanted: impl Fn(&str) -> bool) -> String {
        until(&format!("kubectl {arguments}"), PATIENCE, || {
            let ran = self.run(arguments);
            if ran.code == Some(0) && wanted(&ran.out) {
                return Ok(Some(ran.out));
            }
            anyhow::bail!("{} {}", ran.out, ran.err)
        })
        .unwrap()
    }

    /// Leaves it running with its output in a file.
    pub fn follow(&self, arguments: &str, name: &str) -> Follow {
        let file = self.home.join(name);
        let out = std::fs::File::create(&file).unwrap();
        let child = self.command().args(words(arguments)).stdout(out).stderr(Stdio::inherit()).spawn().unwrap();
        Follow { child, file }
    }
}

/// A command that goes on.
pub struct Follow {
    child: Child,
    file: PathBuf,
}

impl Follow {
    /// Waits until its output is as wanted.
    pub fn wait(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        until(what, PATIENCE, || {
            let text = std::fs::read_to_string(&self.file)?;
            if wanted(&text) { Ok(Some(text)) } else { anyhow::bail!("{text}") }
        })
        .unwrap()
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Splits at spaces outside of `''`.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (i, part) in text.split('\'').enumerate() {
        if i % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}
