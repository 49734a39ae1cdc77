//! A Deployment that is rolled out again before the last roll-out has ended.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::{Log, converges, count, ensure, is_ready, namespace, template};
use crate::checkers::cluster;
use crate::context::Process;
use crate::kube::{DEPLOYMENTS, NAMESPACES, PODS, REPLICA_SETS, text};
use crate::workloads::{Checked, Workload};

/// Pods.
const REPLICAS: usize = 8;
/// Longest pause between roll-outs.
const PAUSE: Duration = Duration::from_secs(8);
const NAMESPACE: &str = "rollout";
const NAME: &str = "web";

/// The workload.
#[derive(Default)]
pub struct Rollouts {
    log: Log,
}

#[async_trait]
impl Workload for Rollouts {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        ensure(process, NAMESPACES, "", &namespace(NAMESPACE)).await?;
        let deployment = json!({
            "metadata": {"name": NAME},
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": {"app": NAME}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 2, "maxUnavailable": 1}},
                "template": template(NAME, "0", "10m"),
            },
        });
        ensure(process, DEPLOYMENTS, NAMESPACE, &deployment).await
    }

    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let (kube, round) = (process.kube(), process.shared.unique().to_string());
            let patch = json!({"spec": {"template": {"metadata": {"labels": {"round": round}}}}});
            let path = DEPLOYMENTS.path(NAMESPACE, NAME);
            process.perform((), true, kube.patch(&path, &patch), |_| ()).await;
            process.pause(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        let kube = process.kube();
        converges("the Deployment", || async {
            let deployment = kube.get(&DEPLOYMENTS.path(NAMESPACE, NAME)).await?;
            let round = text(&deployment, "/spec/template/metadata/labels/round").to_owned();
            let (ready, mark) =
                count(&kube, PODS, NAMESPACE, |pod| is_ready(pod) && text(pod, "/metadata/labels/round") == round)
                    .await?;
            let (all, _) = count(&kube, PODS, NAMESPACE, |_| true).await?;
            let wanting = |set: &serde_json::Value| set["spec"]["replicas"].as_u64() != Some(0);
            let (sets, _) = count(&kube, REPLICA_SETS, NAMESPACE, wanting).await?;
            Ok((ready == REPLICAS && all == REPLICAS && sets == 1, mark))
        })
        .await
    }

    fn check(&self) -> Checked {
        self.log.judge(&["deployments", "replicasets", "pods"], cluster::rollouts)
    }
}
