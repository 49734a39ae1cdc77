//! A containerd of the test's own, with one image: the first one in `PATH`, so that tests run over another version when its
//! directory comes first there.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::LOOKS;

/// A running containerd.
pub struct Containerd {
    process: Child,
    /// Its directory.
    pub dir: tempfile::TempDir,
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        end_shims(&self.socket());
    }
}

/// Ends the processes between this runtime and its containers, with what they still have: a runtime that is killed forgets
/// some of them.
fn end_shims(socket: &Path) {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let socket = socket.display().to_string();
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let end = |pid: &str| {
        // It may be gone by itself.
        let _ = pid.parse().map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
    };
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = read(process.path().join("cmdline"));
        if command.contains("containerd-shim") && command.split('\0').any(|part| part == socket) {
            let pid = process.file_name().to_string_lossy().into_owned();
            // Children belong to the thread that made them.
            for thread in std::fs::read_dir(process.path().join("task")).into_iter().flatten().flatten() {
                read(thread.path().join("children")).split_whitespace().for_each(end);
            }
            end(&pid);
        }
    }
}

/// Whether the tests can run, or why not.
pub fn can_run() -> Result<(), &'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |program: &str| std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    for (program, why) in [("containerd", "no containerd"), ("ctr", "no ctr"), ("runc", "no runc")] {
        if !found(program) {
            return Err(why);
        }
    }
    if Path::new("/bin/busybox").exists() { Ok(()) } else { Err("no busybox") }
}

fn spawn(dir: &Path) -> std::io::Result<Child> {
    let log = std::fs::OpenOptions::new().append(true).open(dir.join("log"))?;
    Command::new("containerd").arg("--config").arg(dir.join("config.toml")).stdout(Stdio::null()).stderr(log).spawn()
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

/// One file of a tar archive.
fn entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [(100, format!("{mode:07o}")), (108, "0000000".into()), (116, "0000000".into())] {
        header[at..at + 7].copy_from_slice(text.as_bytes());
    }
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..263].copy_from_slice(b"ustar\0");
    header[263..265].copy_from_slice(b"00");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// An image archive whose only file is busybox.
fn image(name: &str) -> std::io::Result<Vec<u8>> {
    let layer = [entry("bin/busybox", 0o755, &std::fs::read("/bin/busybox")?), vec![0; 1024]].concat();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/busybox", "sleep", "99999"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))]}});
    let config = config.to_string();
    let config_name = format!("{}.json", hex(config.as_bytes()));
    let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).to_string();
    let files = [
        entry(&config_name, 0o644, config.as_bytes()),
        entry("layer.tar", 0o644, &layer),
        entry("manifest.json", 0o644, manifest.as_bytes()),
        vec![0; 1024],
    ];
    Ok(files.concat())
}

impl Containerd {
    /// Starts one in a directory of its own.
    pub fn start() -> std::io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let at = |name: &str| dir.path().join(name).display().to_string();
        // Newer ones would all want one socket of the machine for their plugins (NRI).
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n[plugins.\"io.containerd.grpc.v1.cri\"]\n\
             sandbox_image = \"keelson.test/box:1\"\nrestrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = {:?}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = {:?}\n\
             [plugins.\"io.containerd.nri.v1.nri\"]\ndisable = true\n",
            at("root"),
            at("state"),
            at("sock"),
            at("net.d"),
            at("opt"),
        );
        std::fs::create_dir_all(dir.path().join("net.d"))?;
        std::fs::write(dir.path().join("config.toml"), config)?;
        let log = std::fs::File::create(dir.path().join("log"))?;
        drop(log);
        Ok(Self { process: spawn(dir.path())?, dir })
    }

    /// kill -9, and a new start over what was left.
    pub fn crash(&mut self) -> std::io::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        self.process = spawn(self.dir.path())?;
        Ok(())
    }

    /// What `ctr` prints for the pods' namespace.
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.socket()).args(["-n", "k8s.io"]).args(arguments);
        String::from_utf8_lossy(&ctr.output().unwrap().stdout).into_owned()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("sock")
    }

    /// Gives it the image.
    pub async fn import(&self) {
        let archive = self.dir.path().join("box.tar");
        std::fs::write(&archive, image("keelson.test/box:1").unwrap()).unwrap();
        let mut import = vec!["-n", "k8s.io", "images", "import", "--snapshotter", "native"];
        // Newer ones would let the daemon do it, which unpacks for its default snapshotter only.
        let help = Command::new("ctr").args(["images", "import", "--help"]).output().unwrap();
        if String::from_utf8_lossy(&help.stdout).contains("--local") {
            import.push("--local");
        }
        for _ in 0..LOOKS {
            let mut ctr = Command::new("ctr");
            ctr.arg("--address").arg(self.socket()).args(&import);
            let output = ctr.arg(&archive).output().unwrap();
            if output.status.success() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{}", std::fs::read_to_string(self.dir.path().join("log")).unwrap());
    }
}
