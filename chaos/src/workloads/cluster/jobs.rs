//! Jobs that run to their end, one after another.

use std::time::Duration;

use async_trait::async_trait;
use keelson_testbed::image;
use serde_json::{Value, json};

use super::{Log, converges, count, ensure, namespace, template};
use crate::checkers::cluster;
use crate::context::Process;
use crate::kube::{JOBS, NAMESPACES};
use crate::workloads::{Checked, Workload};

/// Pods of a Job, and how many at a time.
const COMPLETIONS: u64 = 4;
const PARALLELISM: u64 = 2;
/// Longest pause between Jobs of a client.
const PAUSE: Duration = Duration::from_secs(10);
const NAMESPACE: &str = "jobs";

/// The workload.
#[derive(Default)]
pub struct Jobs {
    log: Log,
}

#[async_trait]
impl Workload for Jobs {
    async fn prepare(&self, process: &mut Process) -> anyhow::Result<()> {
        ensure(process, NAMESPACES, "", &namespace(NAMESPACE)).await
    }

    async fn client(&self, process: &mut Process) {
        while process.goes_on() {
            let (kube, name) = (process.kube(), format!("job-{}", process.shared.unique()));
            let mut template = template(&name, "0", "10m");
            template["spec"]["restartPolicy"] = "Never".into();
            // It says something and ends.
            template["spec"]["containers"][0]["image"] = image::TALK.into();
            let job = json!({
                "metadata": {"name": name},
                "spec": {"completions": COMPLETIONS, "parallelism": PARALLELISM, "template": template},
            });
            process.perform((), true, kube.create(&JOBS.path(NAMESPACE, ""), &job), |_| ()).await;
            process.pause(PAUSE).await;
        }
    }

    async fn finish(&self, process: &mut Process) -> anyhow::Result<()> {
        self.log.take(process);
        let kube = process.kube();
        let complete = |job: &Value| {
            let conditions = job.pointer("/status/conditions").and_then(Value::as_array);
            conditions.into_iter().flatten().any(|found| found["type"] == "Complete" && found["status"] == "True")
        };
        converges("the Jobs", || async {
            let (left, mark) = count(&kube, JOBS, NAMESPACE, |job| !complete(job)).await?;
            Ok((left == 0, mark))
        })
        .await
    }

    fn check(&self) -> Checked {
        self.log.judge(&["jobs", "pods"], cluster::jobs)
    }
}
