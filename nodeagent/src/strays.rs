//! Processes and addresses of pods that their runtime has forgotten: a containerd that is killed while it makes a sandbox may
//! know nothing of it afterwards, and nobody would ever end what it started or give back what it took.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::agent::Agent;
use crate::cni::{self, PodNetwork};

/// How often it is looked for them.
const LOOK: Duration = Duration::from_secs(60);
/// A process that the runtime does not know for this long is a stray: one that is being made is known sooner.
const FORGOTTEN: Duration = Duration::from_secs(300);
/// How the programs between containerd and its containers are called.
const SHIM: &str = "containerd-shim";
/// The namespace of pods in containerd.
const NAMESPACE: &str = "k8s.io";

/// A process between the runtime and a sandbox's containers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shim {
    pid: i32,
    /// The sandbox's id.
    id: String,
}

/// The value of a flag in a command line.
fn flag<'a>(words: &[&'a str], name: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| *word == name)?;
    words.get(at + 1).copied()
}

/// The sandbox of a command line, if it is that of a shim of this runtime.
fn sandbox(command: &str, socket: &str) -> Option<String> {
    let words: Vec<&str> = command.split('\0').collect();
    let program = words.first()?.rsplit('/').next()?;
    let ours = program.starts_with(SHIM)
        && flag(&words, "-namespace") == Some(NAMESPACE)
        && flag(&words, "-address") == Some(socket);
    flag(&words, "-id").filter(|id| ours && !id.is_empty()).map(str::to_owned)
}

fn shims(socket: &Path) -> HashSet<Shim> {
    let socket = socket.display().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let shim = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // It may end meanwhile.
        let command = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        Some(Shim { pid, id: sandbox(&command, &socket)? })
    };
    let mut found: HashSet<Shim> = processes.filter_map(shim).collect();
    // What a shim starts has its command line until it has become another program.
    let begun: HashSet<i32> = found.iter().flat_map(|shim| children(shim.pid)).collect();
    found.retain(|shim| !begun.contains(&shim.pid));
    found
}

/// Since when shims are there that the runtime does not know.
#[derive(Default)]
struct Unknown(HashMap<Shim, Instant>);

impl Unknown {
    /// Takes what is there and what the runtime knows; returns what is to be ended.
    fn look(&mut self, now: Instant, present: HashSet<Shim>, known: &HashSet<String>) -> Vec<Shim> {
        let unknown: HashSet<Shim> = present.into_iter().filter(|shim| !known.contains(&shim.id)).collect();
        self.0.retain(|shim, _| unknown.contains(shim));
        for shim in unknown {
            self.0.entry(shim).or_insert(now);
        }
        let old = self.0.iter().filter(|(_, since)| now.duration_since(**since) >= FORGOTTEN);
        old.map(|(shim, _)| shim.clone()).collect()
    }
}

/// The processes that a process started; they belong to the thread that did.
fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(PathBuf::from(format!("/proc/{pid}/task"))).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    texts.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>()).collect()
}

/// Ends a shim with its containers: these first, or they would go on without it.
fn end(shim: &Shim) {
    for pid in children(shim.pid).into_iter().chain([shim.pid]) {
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
            && error != nix::errno::Errno::ESRCH
        {
            tracing::warn!(pid, %error, "a process of a forgotten pod could not be ended");
        }
    }
}

/// Removes addresses of pods that were given long ago to sandboxes that the runtime does not know: one that is killed while it
/// makes a sandbox gives nothing back, and a node has few hundred of them.
fn free_addresses(dir: &Path, known: &HashSet<String>, now: SystemTime) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let age = entry.metadata().and_then(|meta| meta.modified()).ok().and_then(|at| now.duration_since(at).ok());
        let old = age.is_some_and(|age| age >= FORGOTTEN);
        if !old || name.parse::<IpAddr>().is_err() {
            continue;
        }
        // The sandbox's id, then the name of the interface.
        let owner = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let Some(owner) = owner.split_whitespace().next() else { continue };
        if !known.contains(owner) {
            tracing::warn!(address = name, sandbox = owner, "the runtime has forgotten a sandbox: its address is free");
            if let Err(error) = std::fs::remove_file(entry.path()) {
                tracing::warn!(address = name, %error, "it could not be freed");
            }
        }
    }
}

/// Ends strays for ever.
pub(crate) async fn run(agent: Arc<Agent>) {
    let mut unknown = Unknown::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let socket = agent.config.runtime_socket.clone();
        let Ok(present) = tokio::task::spawn_blocking(move || shims(&socket)).await else { continue };
        // Listed afterwards: what was made meanwhile is known.
        let (sandboxes, containers) =
            tokio::join!(agent.runtime.sandboxes(HashMap::new()), agent.runtime.containers(HashMap::new()));
        let (Ok(sandboxes), Ok(containers)) = (sandboxes, containers) else { continue };
        let known = sandboxes.into_iter().map(|s| s.id).chain(containers.into_iter().map(|c| c.id)).collect();
        // Without a network of ours they are somebody else's.
        let ours = agent.config.cni_conf_dir.join(cni::FILE).exists();
        if ours && agent.config.pod_network != PodNetwork::None {
            free_addresses(Path::new(cni::ADDRESSES), &known, SystemTime::now());
        }
        for shim in unknown.look(Instant::now(), present, &known) {
            tracing::warn!(
                sandbox = shim.id,
                pid = shim.pid,
                "the runtime has forgotten a sandbox: its processes are ended"
            );
            end(&shim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_forgotten_sandboxes_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, owner) in [
            ("10.244.0.2", "known\r\neth0"),
            ("10.244.0.3", "lost\r\neth0"),
            ("fd00::3", "lost\r\neth0"),
            ("lock", "lost"),
        ] {
            std::fs::write(at(name), owner).unwrap();
        }
        let known = HashSet::from(["known".to_owned()]);
        // What is new may belong to a sandbox that is being made.
        free_addresses(dir.path(), &known, SystemTime::now());
        assert!(at("10.244.0.3").exists());
        free_addresses(dir.path(), &known, SystemTime::now() + FORGOTTEN + LOOK);
        let there = ["10.244.0.2", "10.244.0.3", "fd00::3", "lock"].map(|name| at(name).exists());
        assert_eq!(there, [true, false, false, true]);
    }

    #[test]
    fn shims_of_this_runtime() {
        let line = |words: &[&str]| words.join("\0");
        let program = "/usr/bin/containerd-shim-runc-v2";
        for (words, id) in [
            (vec![program, "-namespace", "k8s.io", "-id", "x", "-address", "/s"], Some("x")),
            (vec![program, "-namespace", "k8s.io", "-id", "x", "-address", "/other"], None),
            (vec![program, "-namespace", "moby", "-id", "x", "-address", "/s"], None),
            (vec![program, "-namespace", "k8s.io", "-address", "/s"], None),
            (vec!["/bin/grep", "-namespace", "k8s.io", "-id", "x", "-address", "/s"], None),
            (vec![""], None),
        ] {
            assert_eq!(sandbox(&line(&words), "/s").as_deref(), id, "{words:?}");
        }
    }

    #[test]
    fn only_what_stays_unknown_is_a_stray() {
        let shim = |pid, id: &str| Shim { pid, id: id.into() };
        let present = || HashSet::from([shim(1, "known"), shim(2, "late"), shim(3, "stray")]);
        let known = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<HashSet<_>>();
        let (mut unknown, now) = (Unknown::default(), Instant::now());
        assert!(unknown.look(now, present(), &known(&["known"])).is_empty());
        assert_eq!(unknown.look(now + FORGOTTEN, present(), &known(&["known", "late"])), [shim(3, "stray")]);
        // Another process of that id is not the one that was there.
        let other = HashSet::from([shim(4, "stray")]);
        assert!(unknown.look(now + FORGOTTEN, other, &known(&[])).is_empty());
        assert_eq!(unknown.0.len(), 1);
    }

    #[test]
    fn a_stray_goes_with_its_children() {
        use std::os::unix::process::CommandExt;
        let socket = tempfile::tempdir().unwrap().path().join("s");
        let mut command = std::process::Command::new("/bin/sh");
        command.arg0("containerd-shim-test").args(["-c", "sleep 1000 & echo $!; wait", "x", "-namespace", "k8s.io"]);
        command.arg("-id").arg("stray").arg("-address").arg(&socket).stdout(std::process::Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(process.stdout.take().unwrap()), &mut line).unwrap();
        let found = shims(&socket).into_iter().collect::<Vec<_>>();
        assert_eq!(found, [Shim { pid: i32::try_from(process.id()).unwrap(), id: "stray".into() }]);
        assert_eq!(children(found[0].pid), [line.trim().parse::<i32>().unwrap()]);
        end(&found[0]);
        // It may have ended by itself when its child did.
        process.wait().unwrap();
        assert!(shims(&socket).is_empty());
    }
}
