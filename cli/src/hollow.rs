//! Pretended nodes: they register, send heartbeats and run every pod without a container runtime.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use keelson_client::{Cache, Client, Error, Key, PatchType};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// How often a node renews its Lease.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Seconds that a Lease is good for.
const LEASE_SECONDS: i64 = 40;
/// Label of nodes that are only pretended.
const HOLLOW: &str = "keelson.io/hollow";
/// Addresses of pretended nodes.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

/// Runs `count` nodes until `stop` is cancelled.
pub async fn run(client: Client, count: u32, stop: CancellationToken) {
    let notify = Arc::new(Notify::new());
    let nodes = Cache::<Node>::start(&client, notify.clone(), stop.clone());
    let pods = Cache::<Pod>::start(&client, notify.clone(), stop.clone());
    tokio::join!(nodes.synced(), pods.synced());
    for index in 0..count {
        let (client, stop) = (client.clone(), stop.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                if let Err(error) = heartbeat(&client, index).await {
                    warn!(node = name(index), %error, "no heartbeat");
                }
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(HEARTBEAT) => {}
                }
            }
        });
    }
    let mut next_address: HashMap<String, u32> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = notify.notified() => {}
        }
        for key in pods.drain() {
            let Some(pod) = pods.get(&key) else { continue };
            if let Err(error) = serve(&client, &nodes, &pod, &key, &mut next_address).await
                && !error.is_not_found()
            {
                debug!(pod = key.1, %error, "trying again");
                let (pods, key) = (pods.clone(), key);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    pods.touch(key);
                });
            }
        }
    }
}

fn name(index: u32) -> String {
    format!("hollow-{index}")
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Registers the node if it is not there, and renews its Lease.
async fn heartbeat(client: &Client, index: u32) -> Result<(), Error> {
    let name = name(index);
    let nodes = client.cluster::<Node>();
    if nodes.get_opt(&name).await?.is_none() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": name, "labels": {
            HOLLOW: "true", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}}}))?;
        nodes.create(&node).await?;
        nodes.patch(&name, Some("status"), PatchType::Merge, &json!({"status": status(index)})).await?;
    }
    let leases = client.namespaced::<k8s_openapi::api::coordination::v1::Lease>("kube-node-lease");
    let renewed = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let spec = json!({"holderIdentity": name, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": renewed});
    match leases.patch(&name, None, PatchType::Merge, &json!({"spec": spec})).await {
        Err(error) if error.is_not_found() => {
            let lease = serde_json::from_value(
                json!({"metadata": {"name": name, "namespace": "kube-node-lease"}, "spec": spec}),
            )?;
            leases.create(&lease).await.map(|_| ())
        }
        result => result.map(|_| ()),
    }
}

fn status(index: u32) -> Value {
    let condition = |kind: &str, status: &str, reason: &str, message: &str| json!({"type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": now(), "lastTransitionTime": now()});
    let capacity = json!({"cpu": "8", "memory": "32Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    json!({
        "addresses": [
            {"type": "InternalIP", "address": Ipv4Addr::from(u32::from(FIRST_ADDRESS) + index).to_string()},
            {"type": "Hostname", "address": name(index)},
        ],
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "nodeInfo": {
            "architecture": "amd64", "operatingSystem": "linux", "osImage": "hollow", "kernelVersion": "hollow", "machineID": "",
            "systemUUID": "", "bootID": "", "containerRuntimeVersion": "hollow://0", "kubeProxyVersion": "",
            "kubeletVersion": concat!("v1.36.2+keelson", env!("CARGO_PKG_VERSION")),
        },
    })
}

/// Starts a pod that was bound to one of the nodes, and ends one that is deleted.
async fn serve(
    client: &Client,
    nodes: &Cache<Node>,
    pod: &Pod,
    key: &Key,
    next: &mut HashMap<String, u32>,
) -> Result<(), Error> {
    let Some(spec) = &pod.spec else { return Ok(()) };
    let Some(node_name) = spec.node_name.as_deref() else { return Ok(()) };
    let Some(node) = nodes.get(&(String::new(), node_name.to_owned())) else { return Ok(()) };
    if !node.metadata.labels.as_ref().is_some_and(|l| l.contains_key(HOLLOW)) {
        return Ok(());
    }
    let api = client.namespaced::<Pod>(&key.0);
    if pod.metadata.deletion_timestamp.is_some() {
        return api.delete(&key.1, &json!({"gracePeriodSeconds": 0, "preconditions": {"uid": pod.metadata.uid}})).await;
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Pending");
    let once = spec.restart_policy.as_deref() != Some("Always");
    let wanted = match phase {
        "Pending" | "" => "Running",
        "Running" if once => "Succeeded",
        _ => return Ok(()),
    };
    let range = node.spec.as_ref().and_then(|s| s.pod_cidr.clone()).unwrap_or_default();
    let base: Ipv4Addr = range.split('/').next().and_then(|b| b.parse().ok()).unwrap_or(FIRST_ADDRESS);
    let given = pod.status.as_ref().and_then(|s| s.pod_ip.clone());
    let address = given.unwrap_or_else(|| {
        let count = next.entry(node_name.to_owned()).or_insert(1);
        *count = *count % 253 + 1;
        Ipv4Addr::from(u32::from(base) + *count).to_string()
    });
    api.patch(
        &key.1,
        Some("status"),
        PatchType::Strategic,
        &json!({"status": pod_status(pod, wanted, &address, &node)}),
    )
    .await?;
    Ok(())
}

fn pod_status(pod: &Pod, phase: &str, address: &str, node: &Node) -> Value {
    let host = node.status.as_ref().and_then(|s| s.addresses.as_ref()?.first().map(|a| a.address.clone()));
    let started = pod
        .status
        .as_ref()
        .and_then(|s| s.start_time.as_ref().map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()))
        .unwrap_or_else(now);
    let running = phase == "Running";
    let state = match running {
        true => json!({"running": {"startedAt": now()}}),
        false => {
            json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": now()}})
        }
    };
    let containers: Vec<Value> = pod
        .spec
        .iter()
        .flat_map(|s| &s.containers)
        .map(|c| {
            json!({"name": c.name, "image": c.image, "imageID": format!("hollow://{}", c.image.as_deref().unwrap_or_default()),
                "containerID": format!("hollow://{}-{}", pod.metadata.uid.as_deref().unwrap_or_default(), c.name),
                "ready": running, "started": running, "restartCount": 0, "lastState": {}, "state": state})
        })
        .collect();
    let truth = if running { "True" } else { "False" };
    let conditions: Vec<Value> =
        [("PodReadyToStartContainers", truth), ("Initialized", "True"), ("Ready", truth), ("ContainersReady", truth)]
            .map(|(kind, status)| {
                let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": now()});
                if status == "False" {
                    condition["reason"] = "PodCompleted".into();
                }
                condition
            })
            .to_vec();
    json!({"phase": phase, "podIP": address, "podIPs": [{"ip": address}], "hostIP": host, "hostIPs": [{"ip": host}],
        "startTime": started, "conditions": conditions, "containerStatuses": containers})
}
