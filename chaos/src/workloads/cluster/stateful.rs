//! A StatefulSet that grows and shrinks and whose pods are deleted.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::{Log, converges, count, ensure, is_ready, namespace, template};
use crate::checkers::cluster;
use crate::context::Process;
use crate::kube::{NAMESPACES, PODS, STATEFUL_SETS};
use crate::workloads::{Checked, Workload};

/// Most pods.
const MOST: u64 = 5;
/// Longest pause between changes.
const PAUSE: Duration = Duration::from_secs(5);
const NAMESPACE: &str = "stateful";
const NAME: &str = "db";

/// The workload.
#[derive(Default)]
pub struct Stateful {
    log: Log,
}

#[async_trait]
impl Workload for Stateful {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        ensure(process, NAMESPACES, "", &namespace(NAMESPACE)).await?;
        let mut template = template(NAME, "0", "10m");
        // They go in order: first they are told, then they are gone.
        template["spec"]["terminationGracePeriodSeconds"] = 5.into();
        let set = json!({
            "metadata": {"name": NAME},
            "spec": {"replicas": 3, "serviceName": NAME, "selector": {"matchLabels": {"app": NAME}}, "template": template},
        });
        ensure(process, STATEFUL_SETS, NAMESPACE, &set).await
    }

    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let kube = process.kube();
            if process.below(2) == 0 {
                let replicas = process.below(MOST + 1);
                let patch = json!({"spec": {"replicas": replicas}});
                let path = STATEFUL_SETS.path(NAMESPACE, NAME);
                process.perform((), true, kube.patch(&path, &patch), |_| ()).await;
            } else {
                let path = PODS.path(NAMESPACE, &format!("{NAME}-{}", process.below(MOST)));
                process.perform((), true, kube.delete(&path), |_| ()).await;
            }
            process.pause(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        let kube = process.kube();
        converges("the StatefulSet", || async {
            let set = kube.get(&STATEFUL_SETS.path(NAMESPACE, NAME)).await?;
            let wanted = set["spec"]["replicas"].as_u64().unwrap_or(0) as usize;
            let (ready, mark) = count(&kube, PODS, NAMESPACE, is_ready).await?;
            let (all, _) = count(&kube, PODS, NAMESPACE, |_| true).await?;
            Ok((ready == wanted && all == wanted, mark))
        })
        .await
    }

    fn check(&self) -> Checked {
        self.log.judge(&["statefulsets", "pods"], cluster::identities)
    }
}
