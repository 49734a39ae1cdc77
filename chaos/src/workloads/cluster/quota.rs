//! Clients that race for what a quota leaves.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::{Log, ensure, namespace, pod};
use crate::checkers::cluster;
use crate::context::Process;
use crate::kube::{NAMESPACES, PODS, QUOTAS};
use crate::workloads::{Checked, Workload};

/// Pods of a client: together more than the quota allows.
const PODS_EACH: u64 = 4;
/// Longest pause between requests of a client.
const PAUSE: Duration = Duration::from_millis(300);
const NAMESPACE: &str = "quota";

/// The workload.
#[derive(Default)]
pub struct Quotas {
    log: Log,
}

#[async_trait]
impl Workload for Quotas {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        ensure(process, NAMESPACES, "", &namespace(NAMESPACE)).await?;
        let quota = json!({"metadata": {"name": "few"}, "spec": {"hard": {"pods": "5", "requests.cpu": "500m"}}});
        ensure(process, QUOTAS, NAMESPACE, &quota).await
    }

    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let (kube, n) = (process.kube(), process.below(PODS_EACH));
            let name = format!("pod-{}-{n}", process.id);
            if process.below(3) == 0 {
                let path = PODS.path(NAMESPACE, &name);
                process.perform((), true, kube.delete(&path), |_| ()).await;
            } else {
                let cpu = ["50m", "100m", "200m"][process.below(3) as usize];
                let (path, pod) = (PODS.path(NAMESPACE, ""), pod(&name, "quota", cpu));
                process.perform((), true, kube.create(&path, &pod), |_| ()).await;
            }
            process.think(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        Ok(())
    }

    fn check(&self) -> Checked {
        self.log.judge(&["resourcequotas", "pods"], cluster::quotas)
    }
}
