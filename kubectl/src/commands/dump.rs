//! `cluster-info dump`: all that helps to find out what is wrong with a cluster, on standard output or in files.

use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::flags::{Flag, Parsed, repeated, switch, text};
use crate::output::{self, Format};
use crate::session::{Session, encode};
use crate::value::Read;

/// Flags of `cluster-info dump`.
pub const FLAGS: &[&[Flag]] = &[&[
    text("output", "json", "Output format.").short('o'),
    output::FLAGS[1],
    output::FLAGS[2],
    output::FLAGS[3],
    switch("all-namespaces", "If true, dump all namespaces.  If true, --namespaces is ignored.").short('A'),
    repeated("namespaces", "A comma separated list of namespaces to dump."),
    text("output-directory", "", "Where to output the files.  If empty or '-' uses stdout."),
    text("pod-running-timeout", "20s", "The length of time to wait until at least one pod is running"),
]];

/// What is dumped of a namespace: the file's name, and where the list is.
const LISTS: [(&str, &str); 7] = [
    ("events", "/api/v1/namespaces/{}/events"),
    ("replication-controllers", "/api/v1/namespaces/{}/replicationcontrollers"),
    ("services", "/api/v1/namespaces/{}/services"),
    ("daemonsets", "/apis/apps/v1/namespaces/{}/daemonsets"),
    ("deployments", "/apis/apps/v1/namespaces/{}/deployments"),
    ("replicasets", "/apis/apps/v1/namespaces/{}/replicasets"),
    ("pods", "/api/v1/namespaces/{}/pods"),
];

/// Where it goes: a directory, or standard output.
struct Place(Option<PathBuf>);

impl Place {
    fn of(parsed: &Parsed) -> Self {
        Self(match parsed.text("output-directory") {
            "" | "-" => None,
            directory => Some(directory.into()),
        })
    }

    fn write(&self, name: &str, text: &str) -> Outcome {
        let Some(directory) = &self.0 else {
            print!("{text}");
            return Ok(());
        };
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text).map_err(Failure::from)
    }

    fn is_files(&self) -> bool {
        self.0.is_some()
    }
}

/// Runs `cluster-info dump`.
pub async fn dump(session: &Session) -> Outcome {
    let parsed = &session.parsed;
    let (place, format) = (Place::of(parsed), Format::of(parsed)?);
    let ending = if matches!(format, Format::Yaml) { "yaml" } else { "json" };
    let shown = |list: &Value| format.print(list, parsed.on("show-managed-fields"));
    place.write(&format!("nodes.{ending}"), &shown(&session.get("/api/v1/nodes").await?)?)?;
    for namespace in namespaces(session).await? {
        for (name, path) in LISTS {
            let list = session.get(&path.replace("{}", &encode(&namespace))).await?;
            place.write(&format!("{namespace}/{name}.{ending}"), &shown(&list)?)?;
            if name == "pods" {
                for pod in list["items"].items() {
                    place.write(
                        &format!("{namespace}/{}/logs.txt", pod["metadata"]["name"].text()),
                        &logs(session, pod).await,
                    )?;
                }
            }
        }
    }
    if place.is_files() {
        println!("Cluster info dumped to {}", parsed.text("output-directory"));
    }
    std::io::stdout().flush().map_err(Failure::from)
}

async fn namespaces(session: &Session) -> Outcome<Vec<String>> {
    let parsed = &session.parsed;
    if parsed.on("all-namespaces") {
        let list = session.get("/api/v1/namespaces").await?;
        return Ok(list["items"].items().iter().map(|n| n["metadata"]["name"].text().to_owned()).collect());
    }
    Ok(match parsed.list("namespaces") {
        none if none.is_empty() => vec!["kube-system".into(), session.namespace()?],
        named => named,
    })
}

/// What the containers of a pod have said. What cannot be had is said in its place.
async fn logs(session: &Session, pod: &Value) -> String {
    let (namespace, name) = (pod["metadata"]["namespace"].text(), pod["metadata"]["name"].text());
    let mut all = String::new();
    for container in pod["spec"]["initContainers"].items().iter().chain(pod["spec"]["containers"].items()) {
        let container = container["name"].text();
        all += &format!("==== START logs for container {container} of pod {namespace}/{name} ====\n");
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/log?container={}",
            encode(namespace),
            encode(name),
            encode(container)
        );
        all += &match session.text(&path).await {
            Ok(text) => text,
            Err(error) => format!("Request log error: {error}\n"),
        };
        all += &format!("==== END logs for container {container} of pod {namespace}/{name} ====\n");
    }
    all
}
