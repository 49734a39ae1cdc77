//! Traffic as clusters have it: nine of ten requests update, the others create and delete. Versions never go back for
//! anybody, and what was acknowledged is in the log of every informer.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Log, ensure, namespace};
use crate::checkers::{Fault, Verdict};
use crate::context::Process;
use crate::kube::{CONFIG_MAPS, NAMESPACES, version};
use crate::workloads::{Checked, Workload};

/// Objects of each client, and some that all share.
const OWN: u64 = 5;
const SHARED: u64 = 5;
/// Longest pause between requests of a client.
const PAUSE: Duration = Duration::from_millis(100);
const NAMESPACE: &str = "objects";

/// The workload.
#[derive(Default)]
pub struct Objects {
    log: Log,
    /// Names and versions that were acknowledged, and whether as written (not as deleted).
    acknowledged: Mutex<Vec<(String, i64)>>,
    faults: Mutex<Vec<Fault>>,
    operations: Mutex<usize>,
}

#[async_trait]
impl Workload for Objects {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        ensure(process, NAMESPACES, "", &namespace(NAMESPACE)).await
    }

    async fn client(&self, process: &mut Process) {
        // The newest version of each object that this client has seen: it never sees an older one.
        let mut newest: BTreeMap<String, i64> = BTreeMap::new();
        while process.goes_on() {
            let n = process.below(OWN + SHARED);
            let name = if n < SHARED { format!("shared-{n}") } else { format!("own-{}-{n}", process.id) };
            *self.operations.lock() += 1;
            match process.below(20) {
                0 => self.delete(process, &name).await,
                1 => self.write(process, &name, None, &mut newest).await,
                2..8 => drop(self.read(process, &name, &mut newest).await),
                _ => {
                    if let Some(found) = self.read(process, &name, &mut newest).await {
                        self.write(process, &name, Some(found), &mut newest).await;
                    } else {
                        self.write(process, &name, None, &mut newest).await;
                    }
                }
            }
            process.think(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        Ok(())
    }

    fn check(&self) -> Checked {
        let Some(seen) = self.log.seen() else { return self.log.judge(&[], |_| Verdict::Valid) };
        let mut faults = self.faults.lock().clone();
        for (name, revision) in self.acknowledged.lock().iter() {
            let place = format!("configmaps/{NAMESPACE}/{name}");
            if !seen.log.contains_key(&(*revision, place)) {
                faults
                    .push(Fault::new("lost", format!("{name} at {revision} was acknowledged, and no informer saw it")));
            }
        }
        Checked { operations: *self.operations.lock(), verdict: Verdict::of(faults) }
    }
}

impl Objects {
    async fn read(&self, process: &mut Process, name: &str, newest: &mut BTreeMap<String, i64>) -> Option<Value> {
        let kube = process.kube();
        let path = CONFIG_MAPS.path(NAMESPACE, name);
        let (_, found) = process.perform((), false, kube.get(&path), |_| ()).await;
        let found = found?;
        self.saw(process, name, version(&found), newest);
        Some(found)
    }

    fn saw(&self, process: &Process, name: &str, revision: i64, newest: &mut BTreeMap<String, i64>) {
        let known = newest.entry(name.to_owned()).or_insert(0);
        if revision < *known {
            let what = format!("client {}: {name} at {revision} after {known}", process.id);
            self.faults.lock().push(Fault::new("went-back", what));
        }
        *known = (*known).max(revision);
    }

    /// Creates it, or replaces what was found.
    async fn write(&self, process: &mut Process, name: &str, found: Option<Value>, newest: &mut BTreeMap<String, i64>) {
        let (kube, value) = (process.kube(), process.shared.unique().to_string());
        let written = match found {
            Some(mut object) => {
                object["data"] = json!({"value": value});
                let path = CONFIG_MAPS.path(NAMESPACE, name);
                process.perform((), true, kube.replace(&path, &object), |_| ()).await.1
            }
            None => {
                let object = json!({"metadata": {"name": name}, "data": {"value": value}});
                let path = CONFIG_MAPS.path(NAMESPACE, "");
                process.perform((), true, kube.create(&path, &object), |_| ()).await.1
            }
        };
        if let Some(written) = written {
            self.acknowledged.lock().push((name.to_owned(), version(&written)));
            self.saw(process, name, version(&written), newest);
        }
    }

    async fn delete(&self, process: &mut Process, name: &str) {
        let kube = process.kube();
        let path = CONFIG_MAPS.path(NAMESPACE, name);
        process.perform((), true, kube.delete(&path), |_| ()).await;
    }
}
