//! What the agent tells of itself and of what really runs: its configuration, the runtime's pods; and checkpoints of
//! containers.

use std::collections::HashMap;

use jiff::Timestamp;
use keelson_proto::cri::{CheckpointContainerRequest, ContainerState};
use serde_json::{Value, json};

use super::{Answer, Query, Refusal, Server, answer};
use crate::cpus::CpuPolicy;
use crate::cri::{CONTAINER_NAME, POD_NAME, POD_NAMESPACE, POD_UID};

/// Longest checkpoint, seconds, if the caller does not say.
const CHECKPOINT: i64 = 120;

impl Server {
    /// The configuration, as a kubelet names it.
    pub(super) fn configz(&self) -> Value {
        let config = &self.agent.config;
        let (policy, reserved) = match &config.cpu_policy {
            CpuPolicy::None => ("none", String::new()),
            CpuPolicy::Static(reserved) => ("static", reserved.to_string()),
        };
        let shutdown = config.shutdown.as_ref();
        json!({"kubeletconfig": {
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "staticPodPath": config.manifests.path, "staticPodURL": config.manifests.url.as_ref().map(ToString::to_string),
            "port": config.port, "address": config.node_ip,
            "authentication": {"x509": {}, "webhook": {"enabled": true}, "anonymous": {"enabled": false}},
            "authorization": {"mode": "Webhook"},
            "clusterDomain": config.cluster_domain, "clusterDNS": config.cluster_dns.iter().collect::<Vec<_>>(),
            "resolvConf": config.resolv_conf, "containerRuntimeEndpoint": format!("unix://{}", config.runtime_socket.display()),
            "maxPods": self.agent.max_pods(), "cpuManagerPolicy": policy, "reservedSystemCPUs": reserved,
            "allowedUnsafeSysctls": config.allowed_sysctls, "cgroupDriver": "cgroupfs",
            "shutdownGracePeriod": format!("{}s", shutdown.map_or(0, |s| s.grace.as_secs())),
            "shutdownGracePeriodCriticalPods": format!("{}s", shutdown.map_or(0, |s| s.critical.as_secs())),
            "nodeStatusReportFrequency": "5m0s", "nodeLeaseDurationSeconds": 40,
        }})
    }

    /// The pods that the runtime has running, whatever the API says.
    pub(super) async fn running_pods(&self) -> Answer {
        let mut pods: HashMap<String, Value> = HashMap::new();
        for container in self.agent.runtime.containers(HashMap::new()).await? {
            let label = |name: &str| container.labels.get(name).cloned().unwrap_or_default();
            if container.state() != ContainerState::ContainerRunning || label(POD_UID).is_empty() {
                continue;
            }
            let pod = pods.entry(label(POD_UID)).or_insert_with(|| {
                json!({"metadata": {"name": label(POD_NAME), "namespace": label(POD_NAMESPACE), "uid": label(POD_UID)},
                    "spec": {"containers": []}, "status": {}})
            });
            let image = container.image.as_ref().map(|i| i.image.clone()).unwrap_or_default();
            if let Some(list) = pod["spec"]["containers"].as_array_mut() {
                list.push(json!({"name": label(CONTAINER_NAME), "image": image, "resources": {}}));
            }
        }
        let items: Vec<Value> = pods.into_values().collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
        Ok(answer(200, "application/json", list.to_string()))
    }

    /// Writes down the whole state of a running container, where the runtime can.
    pub(super) async fn checkpoint(&self, namespace: &str, pod: &str, container: &str, query: &Query) -> Answer {
        let of = self.pod(namespace, pod)?;
        let runs = self.runs(&of, container).await?;
        let run = runs.into_iter().find(|r| r.state() == ContainerState::ContainerRunning);
        let run = run.ok_or_else(|| Refusal(404, format!("container {container:?} does not run")))?;
        let dir = self.agent.config.data_dir.join("checkpoints");
        std::fs::create_dir_all(&dir).map_err(Refusal::internal)?;
        let time = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
        let path = dir.join(format!("checkpoint-{pod}_{namespace}-{container}-{time}.tar"));
        let ask = CheckpointContainerRequest {
            container_id: run.id,
            location: path.display().to_string(),
            timeout: query.get("timeout").and_then(|t| t.parse().ok()).unwrap_or(CHECKPOINT),
        };
        self.agent.runtime.pods.clone().checkpoint_container(ask).await?;
        Ok(answer(200, "application/json", json!({"items": [path]}).to_string()))
    }
}
