//! What clients do through the Kubernetes API: one table. Each workload is judged by what informers at every server saw.

mod definitions;
mod informers;
mod jobs;
mod namespaces;
mod objects;
mod quota;
mod rollout;
mod scheduling;
mod stateful;

use std::sync::Arc;
use std::time::Duration;

use keelson_testbed::image;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Checked, Row};
use crate::checkers::{Fault, Verdict};
use crate::context::Process;
use crate::etcd::{Answer, Failure};
use crate::kube::observe::{Change, Seen};
use crate::kube::{self, Kind, Kube, code, text};

/// All of them. Informers come first: they see what the others do.
pub const TABLE: &[Row] = &[
    Row {
        name: "informers",
        about: "a list and watch of eleven kinds at every server: no gap, no repetition, one holder of each Lease",
        clients: 0,
        forgets: false,
        beyond: true,
        make: || Arc::new(informers::Informers::default()),
    },
    Row {
        name: "objects",
        about: "ConfigMaps are updated (9 of 10), created and deleted at every server: versions never go back",
        clients: 4,
        forgets: false,
        beyond: true,
        make: || Arc::new(objects::Objects::default()),
    },
    Row {
        name: "scheduling",
        about: "pods come and go, more than fit: none is bound twice, no node is over-committed, no port shared",
        clients: 2,
        forgets: false,
        beyond: true,
        make: || Arc::new(scheduling::Scheduling::default()),
    },
    Row {
        name: "rollout",
        about: "a Deployment is rolled out again and again: never too many pods, never too few",
        clients: 1,
        forgets: false,
        beyond: true,
        make: || Arc::new(rollout::Rollouts::default()),
    },
    Row {
        name: "statefulset",
        about: "a StatefulSet grows, shrinks and loses pods: one of each identity at a time, in order",
        clients: 1,
        forgets: false,
        beyond: true,
        make: || Arc::new(stateful::Stateful::default()),
    },
    Row {
        name: "jobs",
        about: "Jobs run to their end: exactly as many successes as asked for",
        clients: 2,
        forgets: false,
        beyond: true,
        make: || Arc::new(jobs::Jobs::default()),
    },
    Row {
        name: "quota",
        about: "pods are created against a quota, all at once: it is never exceeded",
        clients: 3,
        forgets: false,
        beyond: true,
        make: || Arc::new(quota::Quotas::default()),
    },
    Row {
        name: "namespaces",
        about: "namespaces are filled and deleted: nothing is left behind, nothing comes in late",
        clients: 1,
        forgets: false,
        beyond: true,
        make: || Arc::new(namespaces::Namespaces::default()),
    },
    Row {
        name: "crds",
        about: "kinds are defined, used and removed at every server: all of their objects go with them",
        clients: 1,
        forgets: false,
        beyond: true,
        make: || Arc::new(definitions::Definitions::default()),
    },
];

/// What informers saw, once the run is over.
#[derive(Default)]
pub(super) struct Log(Mutex<Option<Arc<Seen>>>);

impl Log {
    /// Takes it over from the run.
    pub(super) fn take(&self, process: &Process) {
        *self.0.lock() = process.shared.cluster.as_ref().and_then(|cluster| cluster.seen());
    }

    /// All changes in order.
    pub(super) fn changes(&self) -> Vec<Change> {
        self.0.lock().as_ref().map(|seen| seen.changes()).unwrap_or_default()
    }

    /// All of it.
    pub(super) fn seen(&self) -> Option<Arc<Seen>> {
        self.0.lock().clone()
    }

    /// What a checker says of it, for those changes that concern it.
    pub(super) fn judge(&self, kinds: &[&str], check: fn(&[Change]) -> Verdict) -> Checked {
        let changes = self.changes();
        let operations = changes.iter().filter(|change| kinds.contains(&change.kind)).count();
        // Nothing seen is nothing checked.
        let blind = Fault::new("blind", "informers saw nothing".into());
        let verdict = if changes.is_empty() { Verdict::of(vec![blind]) } else { check(&changes) };
        Checked { operations, verdict }
    }
}

/// Without headway for so long nothing converges any more.
const STUCK: Duration = Duration::from_secs(120);
/// Pause between looks.
const LOOK: Duration = Duration::from_millis(500);

/// Waits until something is as it should be; gives up when what is looked at no longer changes.
pub(super) async fn converges<F: Future<Output = Answer<(bool, String)>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> anyhow::Result<()> {
    let (mut last, mut moved) = (String::new(), tokio::time::Instant::now());
    loop {
        let mark = match look().await {
            Ok((true, _)) => return Ok(()),
            Ok((false, mark)) => mark,
            Err(failure) => format!("{failure:?}"),
        };
        if mark != last {
            (last, moved) = (mark, tokio::time::Instant::now());
        }
        if moved.elapsed() > STUCK {
            anyhow::bail!("{what}: nothing goes on after all faults have stopped: {last}");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Creates something at whichever server answers, until it is there.
pub(super) async fn ensure(process: &Process, kind: Kind, namespace: &str, object: &Value) -> anyhow::Result<()> {
    let path = kind.path(namespace, "");
    super::persist("a first object", || async {
        let mut last = Err(Failure::Unknown("there is no server".into()));
        for kube in process.kubes() {
            last = kube.create(&path, object).await.map(drop);
            match &last {
                Ok(()) => return Ok(()),
                Err(failure) if code(failure) == 409 => return Ok(()),
                Err(_) => {}
            }
        }
        last
    })
    .await
}

/// A namespace.
pub(super) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// A pod's template that asks for little and goes at once. Hosts with containers have the image; it runs until it is told to end.
pub(super) fn template(app: &str, round: &str, cpu: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app, "round": round}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": image::PAUSE, "resources": {"requests": {"cpu": cpu}}}],
        },
    })
}

/// A pod of its own.
pub(super) fn pod(name: &str, app: &str, cpu: &str) -> Value {
    let mut pod = template(app, "0", cpu);
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod
}

/// Objects of a kind in a namespace, as names and versions, and how many of them `counts`.
pub(super) async fn count(
    kube: &Kube,
    kind: Kind,
    namespace: &str,
    counts: impl Fn(&Value) -> bool,
) -> Answer<(usize, String)> {
    let list = kube.get(&kind.path(namespace, "")).await?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let mark = items.iter().map(|item| format!("{} {}", text(item, "/metadata/name"), kube::version(item)));
    Ok((items.iter().filter(|item| counts(item)).count(), mark.collect::<Vec<_>>().join(", ")))
}

/// Whether a pod is ready and stays.
pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|found| found["type"] == "Ready" && found["status"] == "True");
    ready && pod.pointer("/metadata/deletionTimestamp").is_none()
}
