//! Kinds that are defined, used at every server, and removed with all of their objects.

use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{converges, count};
use crate::checkers::{Fault, Verdict};
use crate::context::Process;
use crate::kube::{DEFINITIONS, code, text, version};
use crate::workloads::{Checked, Workload};

/// Objects of a kind.
const OBJECTS: u64 = 3;
/// How often something is tried before the kind is left alone.
const ATTEMPTS: u32 = 40;
/// Longest pause between attempts and between kinds.
const PAUSE: Duration = Duration::from_secs(1);
const GROUP: &str = "chaos.keelson.dev";

/// The workload.
#[derive(Default)]
pub struct Definitions {
    faults: Mutex<Vec<Fault>>,
    operations: Mutex<usize>,
}

fn definition(plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{GROUP}")},
        "spec": {
            "group": GROUP,
            "scope": "Cluster",
            "names": {"plural": plural, "singular": plural.trim_end_matches('s'), "kind": kind(plural)},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}},
            }}}],
        },
    })
}

fn kind(plural: &str) -> String {
    let singular = plural.trim_end_matches('s');
    singular[..1].to_uppercase() + &singular[1..]
}

#[async_trait]
impl Workload for Definitions {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let plural = format!("thing{}s", process.shared.unique());
            self.life(process, &plural).await;
            process.pause(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        let kube = process.kube();
        converges("definitions that go", || async {
            let going = |found: &Value| found.pointer("/metadata/deletionTimestamp").is_some();
            let (left, mark) = count(&kube, DEFINITIONS, "", going).await?;
            Ok((left == 0, mark))
        })
        .await
    }

    fn check(&self) -> Checked {
        Checked { operations: *self.operations.lock(), verdict: Verdict::of(self.faults.lock().clone()) }
    }
}

impl Definitions {
    fn fault(&self, kind: &str, what: String) {
        self.faults.lock().push(Fault::new(kind, what));
    }

    /// One kind from its definition to its removal.
    async fn life(&self, process: &mut Process, plural: &str) {
        let own = DEFINITIONS.path("", &format!("{plural}.{GROUP}"));
        let objects = format!("/apis/{GROUP}/v1/{plural}");
        let kube = process.kube();
        let (path, object) = (DEFINITIONS.path("", ""), definition(plural));
        process.perform((), true, kube.create(&path, &object), |_| ()).await;
        let (mut known, mut wrong) = (Vec::new(), false);
        for _ in 0..ATTEMPTS {
            if known.len() as u64 >= OBJECTS || !process.goes_on() {
                break;
            }
            *self.operations.lock() += 1;
            let (kube, name) = (process.kube(), format!("object-{}", process.shared.unique()));
            // The schema holds as soon as the kind is there.
            let size = if wrong { 0 } else { 1 };
            let object = json!({"apiVersion": format!("{GROUP}/v1"), "kind": kind(plural), "metadata": {"name": name},
                "spec": {"size": size}});
            let (_, answer) = process.perform((), true, kube.create(&objects, &object), |_| ()).await;
            match (answer, wrong) {
                (Some(_), true) => self.fault("unchecked", format!("{plural}: {name} is not as its schema says")),
                (Some(answer), false) => {
                    known.push((name, version(&answer)));
                    wrong = process.below(2) == 0;
                }
                (None, was) => wrong = !was && !known.is_empty() && process.below(4) == 0,
            }
            process.pause(PAUSE).await;
        }
        self.everywhere(process, plural, &objects, &known).await;
        let kube = process.kube();
        let (_, gone) = process.perform((), true, kube.delete(&own), |_| ()).await;
        if gone.is_none() {
            return;
        }
        self.until_gone(process, &own, &objects).await;
    }

    /// What was acknowledged at one server is there at every other: reads see every write.
    async fn everywhere(&self, process: &Process, plural: &str, objects: &str, known: &[(String, i64)]) {
        for (at, kube) in process.kubes().iter().enumerate() {
            let Ok(list) = kube.get(objects).await else { continue };
            *self.operations.lock() += 1;
            let there: Vec<&str> =
                list["items"].as_array().into_iter().flatten().map(|item| text(item, "/metadata/name")).collect();
            for (name, revision) in known {
                if !there.contains(&name.as_str()) {
                    let what = format!("{plural}: {name}, acknowledged at {revision}, is not at server {}", at + 1);
                    self.fault("stale-read", what);
                }
            }
        }
    }

    /// Once the definition is gone, so are its objects, and nothing serves them.
    async fn until_gone(&self, process: &mut Process, own: &str, objects: &str) {
        for _ in 0..ATTEMPTS {
            let kube = process.kube();
            match kube.get(own).await {
                Err(failure) if code(&failure) == 404 => {
                    if let Ok(list) = kube.get(objects).await {
                        let left = list["items"].as_array().map_or(0, Vec::len);
                        if left > 0 {
                            self.fault(
                                "left-behind",
                                format!("{left} objects are served without their definition: {own}"),
                            );
                        }
                    }
                    return;
                }
                _ => process.pause(PAUSE).await,
            }
        }
    }
}
