//! Pods that come and go, more than there is room for.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::{Log, converges, count, ensure, namespace, pod};
use crate::checkers::cluster;
use crate::context::Process;
use crate::kube::{NAMESPACES, PODS};
use crate::workloads::{Checked, Workload};

/// Pods of a client.
const PODS_EACH: u64 = 20;
/// Longest pause between requests of a client.
const PAUSE: Duration = Duration::from_millis(300);
const NAMESPACE: &str = "scheduling";
/// Ports of hosts that some pods ask for: the first, and how many.
const PORT: u64 = 8000;
const PORTS: u64 = 2;
/// What pods ask for.
const CPU: [&str; 4] = ["200m", "700m", "1500m", "3"];

/// The workload.
#[derive(Default)]
pub struct Scheduling {
    log: Log,
}

#[async_trait]
impl Workload for Scheduling {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        ensure(process, NAMESPACES, "", &namespace(NAMESPACE)).await
    }

    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let (n, size) = (process.below(PODS_EACH), process.below(CPU.len() as u64));
            let name = format!("pod-{}-{n}", process.id);
            let kube = process.kube();
            // Half of what is created is deleted, so that there is mostly too much.
            if process.below(3) == 0 {
                let path = PODS.path(NAMESPACE, &name);
                process.perform((), true, kube.delete(&path), |_| ()).await;
            } else {
                let (path, mut pod) = (PODS.path(NAMESPACE, ""), pod(&name, "free", CPU[size as usize]));
                if process.below(3) == 0 {
                    let port = PORT + process.below(PORTS);
                    pod["spec"]["containers"][0]["ports"] = json!([{"containerPort": port, "hostPort": port}]);
                }
                process.perform((), true, kube.create(&path, &pod), |_| ()).await;
            }
            process.think(PAUSE).await;
        }
        // What is left goes, so that there is room for what has to converge.
        for n in 0..PODS_EACH {
            let path = PODS.path(NAMESPACE, &format!("pod-{}-{n}", process.id));
            for kube in process.kubes() {
                if kube.delete(&path).await.is_ok() {
                    break;
                }
            }
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        let kube = process.kube();
        // One that no client could delete any more may be there: those that are must run.
        converges("free pods", || async {
            let (waiting, mark) =
                count(&kube, PODS, NAMESPACE, |pod| crate::kube::text(pod, "/status/phase") != "Running").await?;
            Ok((waiting == 0, mark))
        })
        .await
    }

    fn check(&self) -> Checked {
        self.log.judge(&["pods"], cluster::scheduling)
    }
}
