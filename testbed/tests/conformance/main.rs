//! What Kubernetes' conformance list asks of nodes, in pods of our own on two agents with containers: docs/conformance.md
//! says which entry is shown where. Pods that speak for themselves are in the YAML files beside this one.

#[path = "../common/mod.rs"]
mod common;
mod habits;
mod network;
mod node;
mod pods;
mod volumes;

use common::{Cluster, Kubectl, PATIENCE};
use keelson_testbed::{Start, until};
use serde_json::Value;

/// The pods that speak for themselves.
const FILES: &[&str] = &[
    include_str!("environment.yaml"),
    include_str!("lifecycle.yaml"),
    include_str!("security.yaml"),
    include_str!("volumes.yaml"),
];

/// A cluster of one server and two agents whose accounts are there.
fn cluster(name: &str, server: &[&str], agent: &[&str]) -> Option<Cluster> {
    let words = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect();
    let start = Start { server_flags: words(server), agent_flags: words(agent), ..Start::default() };
    let cluster = Cluster::start(name, 1, 2, &start)?;
    cluster.kubectl(1).wait("get serviceaccount default", |_| true);
    Some(cluster)
}

/// Applies a manifest.
fn apply(kubectl: &Kubectl, manifest: &str) {
    // Without the line kubectl takes what begins with a brace for JSON.
    let ran = kubectl.feed("apply -f -", &format!("---\n{manifest}"));
    assert_eq!(ran.code, Some(0), "{ran:?}\n{manifest}");
}

/// An object, as JSON; null if there is none.
fn object(kubectl: &Kubectl, what: &str) -> Value {
    serde_json::from_str(&kubectl.run(&format!("get {what} -o json")).out).unwrap_or_default()
}

/// Waits until a pod is as wanted.
fn pod_becomes(kubectl: &Kubectl, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let found = until(&format!("{name}: {what}"), PATIENCE, || {
        let pod = object(kubectl, &format!("pod {name}"));
        if holds(&pod) { Ok(Some(pod)) } else { anyhow::bail!("{:#}", pod["status"]) }
    });
    found.unwrap_or_else(|e| panic!("{e:#}\n{}", kubectl.run(&format!("describe pod {name}")).out))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

#[test]
fn pods_speak_for_themselves() {
    let Some(cluster) = cluster("conf", &[], &[]) else { return };
    let kubectl = cluster.kubectl(1);
    FILES.iter().for_each(|manifest| apply(&kubectl, manifest));
    let pods = object(&kubectl, "pods")["items"].take();
    let mut wrong = Vec::new();
    for pod in pods.as_array().unwrap() {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let wanted = Wanted::of(&pod["metadata"]["annotations"]);
        let found = until(name, PATIENCE, || match wanted.lacks(&kubectl, name) {
            None => Ok(Some(())),
            Some(lack) => anyhow::bail!(lack),
        });
        if let Err(error) = found {
            let log = kubectl.run(&format!("logs {name} --all-containers"));
            wrong.push(format!(
                "{error:#}\n{}{}\n{:#}",
                log.out,
                log.err,
                object(&kubectl, &format!("pod {name}"))["status"]
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What a pod's annotations say of what it comes to.
struct Wanted {
    phase: String,
    log: Option<String>,
    status: Vec<(String, String)>,
}

impl Wanted {
    fn of(annotations: &Value) -> Self {
        let text = |key: &str| annotations[key].as_str().map(str::to_owned);
        let lines = text("status").unwrap_or_default();
        // A path may have `=` in its conditions.
        let status = lines.lines().map(|line| line.rsplit_once('=').unwrap());
        Self {
            phase: text("phase").unwrap_or_else(|| "Succeeded".into()),
            log: text("log"),
            status: status.map(|(path, value)| (path.to_owned(), value.to_owned())).collect(),
        }
    }

    /// What is not as wanted.
    fn lacks(&self, kubectl: &Kubectl, name: &str) -> Option<String> {
        let read = |path: &str| {
            let mut command = kubectl.command();
            command.args(["get", "pod", name, "-o", &format!("jsonpath={{{path}}}")]);
            String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
        };
        let phase = (".status.phase".to_owned(), self.phase.clone());
        for (path, value) in std::iter::once(&phase).chain(&self.status) {
            let found = read(path);
            if found != *value {
                return Some(format!("{path} is {found:?}, not {value:?}"));
            }
        }
        let log = self.log.as_ref()?;
        let found = kubectl.run(&format!("logs {name}")).out;
        (found.trim_end() != log).then(|| format!("its log is {found:?}, not {log:?}"))
    }
}
