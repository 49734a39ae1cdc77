//! Namespaces that are filled and deleted while somebody goes on filling them.

use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;

use super::{Log, converges, count, namespace, pod};
use crate::checkers::cluster;
use crate::context::Process;
use crate::kube::{CONFIG_MAPS, NAMESPACES, PODS, text};
use crate::workloads::{Checked, Workload};

/// Objects of each kind that are put into one.
const OBJECTS: u64 = 5;
/// Longest pause between namespaces.
const PAUSE: Duration = Duration::from_secs(5);
/// What their names begin with.
const PREFIX: &str = "passing-";

/// The workload.
#[derive(Default)]
pub struct Namespaces {
    log: Log,
}

#[async_trait]
impl Workload for Namespaces {
    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let name = format!("{PREFIX}{}", process.shared.unique());
            let kube = process.kube();
            let (path, object) = (NAMESPACES.path("", ""), namespace(&name));
            process.perform((), true, kube.create(&path, &object), |_| ()).await;
            for n in 0..OBJECTS {
                let (kube, map) = (process.kube(), json!({"metadata": {"name": format!("map-{n}")}}));
                let path = CONFIG_MAPS.path(&name, "");
                process.perform((), true, kube.create(&path, &map), |_| ()).await;
                let (kube, pod) = (process.kube(), pod(&format!("pod-{n}"), "passing", "10m"));
                let path = PODS.path(&name, "");
                process.perform((), true, kube.create(&path, &pod), |_| ()).await;
                if n == OBJECTS / 2 {
                    let kube = process.kube();
                    let path = NAMESPACES.path("", &name);
                    process.perform((), true, kube.delete(&path), |_| ()).await;
                }
            }
            process.pause(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        let kube = process.kube();
        converges("deleted namespaces", || async {
            let going = |found: &serde_json::Value| {
                text(found, "/metadata/name").starts_with(PREFIX)
                    && found.pointer("/metadata/deletionTimestamp").is_some()
            };
            let (left, mark) = count(&kube, NAMESPACES, "", going).await?;
            Ok((left == 0, mark))
        })
        .await
    }

    fn check(&self) -> Checked {
        self.log.judge(&["namespaces", "pods", "configmaps"], cluster::namespaces)
    }
}
