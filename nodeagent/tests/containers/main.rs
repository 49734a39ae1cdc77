//! Pods in real containers of an own containerd. Skipped, with the reason, without root, containerd and busybox.

mod api;
mod certificates;
mod churn;
mod claims;
mod driver;
mod eviction;
mod pages;
mod plugin;
mod probes;
mod registry;
mod runtime;
mod shares;

use std::sync::Arc;
use std::time::Duration;

use api::{Api, Calls};
use keelson_client::Client;
use keelson_nodeagent::{Agent, AgentConfig};
use runtime::Containerd;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How often something awaited is looked at before the test fails.
const LOOKS: u32 = 900;
/// The image.
const BOX: &str = "keelson.test/box:1";

/// An agent over an API and a runtime.
struct Node {
    api: Arc<Api>,
    runtime: Containerd,
    agent: Option<JoinHandle<()>>,
    cpu_policy: keelson_nodeagent::CpuPolicy,
    placement: keelson_nodeagent::Placement,
    /// None by default: the machine of the tests may be as full as it likes.
    eviction: keelson_nodeagent::Thresholds,
    stop: CancellationToken,
}

impl Node {
    /// `None`, with a word why, where real containers cannot run.
    async fn start() -> Option<Self> {
        Self::start_with(keelson_nodeagent::CpuPolicy::None, keelson_nodeagent::Placement::default()).await
    }

    async fn start_with(
        cpu_policy: keelson_nodeagent::CpuPolicy,
        placement: keelson_nodeagent::Placement,
    ) -> Option<Self> {
        if let Err(why) = runtime::can_run() {
            eprintln!("skipped: {why}");
            return None;
        }
        let runtime = Containerd::start().unwrap();
        runtime.import().await;
        let (eviction, stop) = (keelson_nodeagent::Thresholds::default(), CancellationToken::new());
        let mut node = Self { api: Api::new(), runtime, agent: None, cpu_policy, placement, eviction, stop };
        node.start_agent();
        Some(node)
    }

    fn start_agent(&mut self) {
        let at = |name: &str| self.runtime.dir.path().join(name);
        let config = AgentConfig {
            node_name: "n".into(),
            client: Client::new(Arc::new(Calls(self.api.clone())), "test"),
            runtime_socket: self.runtime.socket(),
            data_dir: at("data"),
            log_dir: at("logs"),
            cni_conf_dir: at("net.d"),
            node_ip: [127, 0, 0, 1].into(),
            other_node_ip: None,
            port: 10250,
            credentials: None,
            renewed: None,
            cluster_cidr: "10.244.0.0/16".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            cluster_dns: None,
            serve_dns: false,
            cluster_domain: "cluster.local".into(),
            proxy: false,
            proxy_mode: keelson_nodeagent::ProxyMode::default(),
            cdi_dirs: vec![at("cdi")],
            eviction: self.eviction,
            cpu_policy: self.cpu_policy.clone(),
            placement: self.placement.clone(),
            swap: keelson_nodeagent::SwapBehavior::default(),
            allowed_sysctls: vec![],
            manifests: keelson_nodeagent::Manifests {
                path: Some(at("manifests")),
                ..keelson_nodeagent::Manifests::default()
            },
            pod_network: keelson_nodeagent::PodNetwork::Routes,
            shutdown: Some(keelson_nodeagent::Shutdown {
                grace: Duration::from_secs(40),
                critical: Duration::from_secs(20),
                program: at("systemctl"),
            }),
        };
        self.stop = CancellationToken::new();
        let stop = self.stop.clone();
        self.agent = Some(tokio::spawn(async move { Agent::run(config, stop).await.unwrap() }));
    }

    /// Ends the agent in the middle of whatever it does.
    async fn kill_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.abort();
            let _ = agent.await;
        }
        self.api.was_asked_in_public();
    }

    /// Tells the agent to stop and waits for it, while the machine is in a state.
    async fn stop_agent(&mut self, machine: &str) {
        use std::os::unix::fs::PermissionsExt;
        let program = self.runtime.dir.path().join("systemctl");
        std::fs::write(&program, format!("#!/bin/sh\necho {machine}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        self.stop.cancel();
        self.agent.take().unwrap().await.unwrap();
    }

    async fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) {
        for _ in 0..LOOKS {
            if holds(&self.api.pod(name)) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{name}: {what}: {:#}", self.api.pod(name)["status"]);
    }

    /// Waits until the first run of a pod's container `c` has said this: logs are written behind the backs of containers.
    async fn says(&self, pod: &str, words: &str) {
        for _ in 0..LOOKS {
            if self.log(pod, "c/0.log").contains(words) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{pod} does not say {words:?}: {}", self.log(pod, "c/0.log"));
    }

    fn log(&self, pod: &str, file: &str) -> String {
        let path = format!("logs/default_{pod}_{}/{file}", self.api.uid(pod));
        std::fs::read_to_string(self.runtime.dir.path().join(path)).unwrap_or_default()
    }

    /// Nothing of any pod is left: containers, files, mounts.
    async fn is_clean(&self) {
        for _ in 0..LOOKS {
            let containers = self.runtime.ctr(&["containers", "ls", "-q"]);
            let dirs = std::fs::read_dir(self.runtime.dir.path().join("data/pods")).unwrap().count();
            let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
            let pods = self.runtime.dir.path().join("data/pods").display().to_string();
            if containers.trim().is_empty() && dirs == 0 && !mounts.contains(&pods) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("something is left: {:?}", self.runtime.ctr(&["containers", "ls"]));
    }
}

fn shell(script: &str) -> Value {
    json!(["/bin/busybox", "sh", "-c", script])
}

fn pod(policy: &str, container: Value) -> Value {
    let mut container = container;
    container["image"] = BOX.into();
    container["name"] = container["name"].as_str().unwrap_or("c").into();
    json!({"hostNetwork": true, "restartPolicy": policy, "terminationGracePeriodSeconds": 1, "containers": [container]})
}

/// The first container's status.
fn first(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

fn ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

type Row = (&'static str, Value, fn(&Value) -> bool);

/// Pods with volumes and with containers that come one after another.
fn composed() -> Vec<Row> {
    let mut volumes = pod(
        "Never",
        json!({
            "command": shell("cat /cm/a /sub /down/labels; echo; /bin/busybox stat -Lc %a /cm/a; echo bye > /dev/termination-log; echo $FULL $(/bin/busybox id -u)"),
            "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "FULL", "value": "$(NAME)-x"}],
            "securityContext": {"runAsUser": 7},
            "volumeMounts": [{"name": "cm", "mountPath": "/cm"}, {"name": "cm", "mountPath": "/sub", "subPath": "b"},
                {"name": "down", "mountPath": "/down"}],
        }),
    );
    volumes["volumes"] = json!([{"name": "cm", "configMap": {"name": "map", "defaultMode": 0o444}},
        {"name": "down", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]);
    let mut sidecar = pod("Never", json!({"command": shell("cat /e/order; sleep 1")}));
    sidecar["volumes"] = json!([{"name": "e", "emptyDir": {"medium": "Memory"}}]);
    sidecar["containers"][0]["volumeMounts"] = json!([{"name": "e", "mountPath": "/e"}]);
    let init = |name: &str, script: &str, policy: Value| {
        json!({"name": name, "image": BOX, "command": shell(script), "restartPolicy": policy,
            "volumeMounts": [{"name": "e", "mountPath": "/e"}]})
    };
    sidecar["initContainers"] = json!([
        init("one", "echo one >> /e/order", Value::Null),
        init("side", "trap 'exit 0' TERM; echo side >> /e/order; while :; do sleep 0.1; done", "Always".into()),
        init("two", "echo two >> /e/order", Value::Null)
    ]);
    vec![
        ("volumes", volumes, |p| {
            p["status"]["phase"] == "Succeeded" && first(p)["state"]["terminated"]["message"] == "bye\n"
        }),
        ("sidecar", sidecar, |p| {
            let side = &p["status"]["initContainerStatuses"][1]["state"]["terminated"];
            p["status"]["phase"] == "Succeeded" && side["exitCode"] == 0
        }),
    ]
}

fn rows() -> Vec<Row> {
    let sleep = "exec /bin/busybox sleep 1000";
    let mut late = pod("Always", json!({"command": shell(sleep)}));
    late["activeDeadlineSeconds"] = 2.into();
    let probe = |command: &str| json!({"exec": {"command": ["/bin/busybox", "sh", "-c", command]}, "periodSeconds": 1, "failureThreshold": 1});
    let mut missing = pod("Always", json!({"command": shell(sleep)}));
    missing["volumes"] = json!([{"name": "v", "configMap": {"name": "none"}}]);
    let mut refused = pod("Always", json!({"command": shell(sleep)}));
    refused["hostUsers"] = false.into();
    let mut all = composed();
    let rest: Vec<Row> = vec![
        ("late", late, |p| p["status"]["phase"] == "Failed" && p["status"]["reason"] == "DeadlineExceeded"),
        ("live", pod("Always", json!({"command": shell(sleep), "livenessProbe": probe("false")})), |p| {
            first(p)["restartCount"].as_i64() >= Some(1)
        }),
        ("unready", pod("Always", json!({"command": shell(sleep), "readinessProbe": probe("false")})), |p| {
            p["status"]["phase"] == "Running" && !ready(p) && first(p)["started"] == true
        }),
        (
            "ready",
            pod(
                "Always",
                json!({"command": shell("touch /x; exec /bin/busybox sleep 1000"), "readinessProbe": probe("test -e /x"), "startupProbe": probe("true")}),
            ),
            ready,
        ),
        (
            "crash",
            pod(
                "Always",
                json!({"command": shell("echo dying; exit 3"), "terminationMessagePolicy": "FallbackToLogsOnError"}),
            ),
            |p| {
                first(p)["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                    && first(p)["lastState"]["terminated"]["message"] == "dying"
            },
        ),
        ("failed", pod("OnFailure", json!({"command": shell("test -e /dev/shm/x && exit 0; exit 1")})), |p| {
            first(p)["restartCount"].as_i64() >= Some(1)
        }),
        ("root", pod("Always", json!({"command": shell(sleep), "securityContext": {"runAsNonRoot": true}})), |p| {
            first(p)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
        }),
        ("noimage", pod("Always", json!({"imagePullPolicy": "Never"})), |p| p["status"]["phase"] == "Running"),
        ("nocommand", pod("Never", json!({"command": ["/none"]})), |p| p["status"]["phase"] == "Failed"),
        (
            "hooked",
            pod(
                "Always",
                json!({"command": shell(sleep), "lifecycle": {"postStart": {"exec": {"command": shell("touch /dev/shm/hooked")}}}, "readinessProbe": probe("test -e /dev/shm/hooked")}),
            ),
            ready,
        ),
        ("missing", missing, |p| {
            p["status"]["phase"] == "Pending" && first(p)["state"]["waiting"]["reason"] == "ContainerCreating"
        }),
        ("refused", refused, |p| p["status"]["phase"] == "Pending"),
    ];
    all.extend(rest);
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_all_sorts() {
    let Some(mut node) = Node::start().await else { return };
    node.api.config_map("map", json!({"a": "one\n", "b": "two\n"}));
    for (name, spec, _) in rows() {
        node.api.create(name, spec);
    }
    for (name, _, holds) in rows() {
        node.until(name, "comes to its state", holds).await;
    }
    for wanted in ["one", "two", "app=\"volumes\"", "444", "volumes-x 7"] {
        node.says("volumes", wanted).await;
    }
    node.says("sidecar", "two").await;
    let order: Vec<_> =
        node.log("sidecar", "c/0.log").lines().filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect();
    assert_eq!(order, ["one", "side", "two"]);
    for (name, _, _) in rows() {
        node.api.delete(name, 1);
    }
    for (name, _, _) in rows() {
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    node.kill_agent().await;
}

/// The ids of the running containers of the pods, each of which must have exactly one.
fn ids(node: &Node, names: &[String]) -> Vec<Value> {
    names.iter().map(|name| first(&node.api.pod(name))["containerID"].clone()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_outlive_agent_and_runtime() {
    let Some(mut node) = Node::start().await else { return };
    let names: Vec<String> = (0..6).map(|i| format!("p{i}")).collect();
    let spec = || pod("Always", json!({"command": shell("exec /bin/busybox sleep 1000")}));
    names.iter().for_each(|name| node.api.create(name, spec()));
    // The agent dies again and again while it starts them.
    for pause in [30, 90, 200, 350, 500] {
        tokio::time::sleep(Duration::from_millis(pause)).await;
        node.kill_agent().await;
        node.start_agent();
    }
    for name in &names {
        node.until(name, "runs", ready).await;
    }
    let before = ids(&node, &names);
    // The runtime dies, alone and together with the agent; pods that come meanwhile start later.
    for both in [false, true] {
        if both {
            node.kill_agent().await;
        }
        node.runtime.crash().unwrap();
        let late = format!("late{both}");
        node.api.create(&late, spec());
        if both {
            node.start_agent();
        }
        node.until(&late, "runs", ready).await;
    }
    for name in &names {
        node.until(name, "still runs", ready).await;
    }
    let after: Vec<Value> =
        names.iter().map(|name| node.api.pod(name)["status"]["containerStatuses"].clone()).collect();
    assert_eq!(ids(&node, &names), before, "they are the same containers: {after:#?}");
    let tasks = node.runtime.ctr(&["tasks", "ls", "-q"]);
    assert_eq!(tasks.lines().count(), 2 * (names.len() + 2), "a sandbox and a container for each pod:\n{tasks}");
    // Pods deleted while nobody looks are removed by the next agent; one vanishes from the API at once.
    node.kill_agent().await;
    let all: Vec<String> = names.iter().cloned().chain(["latefalse".into(), "latetrue".into()]).collect();
    all.iter().for_each(|name| node.api.delete(name, 1));
    node.api.forget("p0");
    node.start_agent();
    for name in &all {
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    node.kill_agent().await;
}

/// The uid of a static pod, as its mirror tells.
fn mirrored(pod: &Value) -> String {
    pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_run_and_are_mirrored() {
    let Some(mut node) = Node::start().await else { return };
    let dir = node.runtime.dir.path().join("manifests");
    std::fs::create_dir_all(&dir).unwrap();
    let manifest = |seconds: &str| {
        let spec = pod("Always", json!({"command": shell(&format!("exec /bin/busybox sleep {seconds}"))}));
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"}, "spec": spec}).to_string()
    };
    std::fs::write(dir.join("web.yaml"), manifest("1000")).unwrap();
    let name = "web-n";
    node.until(name, "is mirrored and runs", ready).await;
    let (first_uid, before) = (mirrored(&node.api.pod(name)), ids(&node, &[name.to_owned()]));
    assert_eq!(node.api.pod(name)["metadata"]["annotations"]["kubernetes.io/config.source"], "file");
    assert_eq!(node.api.pod(name)["metadata"]["ownerReferences"][0]["kind"], "Node");
    // Who deletes the mirror gets a new one; the containers do not notice.
    node.api.delete(name, 30);
    node.until(name, "is mirrored anew", |p| ready(p) && p["metadata"]["deletionTimestamp"].is_null()).await;
    node.kill_agent().await;
    node.start_agent();
    node.until(name, "is mirrored after a new start", ready).await;
    assert_eq!(ids(&node, &[name.to_owned()]), before, "they are the same containers");
    // A changed manifest is another pod, which waits for the end of the first.
    std::fs::write(dir.join("web.yaml"), manifest("2000")).unwrap();
    let other = move |p: &Value| ready(p) && mirrored(p) != first_uid;
    node.until(name, "is replaced", other).await;
    std::fs::remove_file(dir.join("web.yaml")).unwrap();
    node.until(name, "goes with its manifest", Value::is_null).await;
    node.is_clean().await;
    node.kill_agent().await;
}

/// The microseconds of processor time that a container of a burstable pod may have in each period.
fn quota(node: &Node, pod: &str, container: &str) -> String {
    let group = format!("kubepods/burstable/pod{}/{container}", node.api.uid(pod));
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let text =
        read(format!("/sys/fs/cgroup/cpu/{group}/cpu.cfs_quota_us")) + &read(format!("/sys/fs/cgroup/{group}/cpu.max"));
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

fn pending<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let found = pod["status"]["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == kind);
    found.unwrap_or(&Value::Null)
}

#[tokio::test(flavor = "multi_thread")]
async fn resources_change_in_place() {
    let Some(mut node) = Node::start().await else { return };
    let sized = |cpu: &str, memory: &str| json!({"requests": {"cpu": "1m", "memory": "1Mi"}, "limits": {"cpu": cpu, "memory": memory}});
    let mut spec = pod(
        "Always",
        json!({"command": shell("exec /bin/busybox sleep 1000"), "resources": sized("100m", "64Mi"),
        "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}),
    );
    spec["containers"][0]["terminationMessagePath"] = "/last".into();
    node.api.create("r", spec);
    node.until("r", "runs", ready).await;
    let id =
        |pod: &Value| first(pod)["containerID"].as_str().unwrap_or_default().rsplit('/').next().unwrap().to_owned();
    let before = id(&node.api.pod("r"));
    assert_eq!(quota(&node, "r", &before), "10000");
    // More than the node has: the container keeps what it has, also in a new agent.
    let resize = |resources: Value| node.api.change("r", |pod| pod["spec"]["containers"][0]["resources"] = resources);
    resize(json!({"requests": {"cpu": "1000"}, "limits": {"cpu": "1000", "memory": "64Mi"}}));
    node.until("r", "is too large", |p| pending(p, "PodResizePending")["reason"] == "Infeasible").await;
    assert_eq!(first(&node.api.pod("r"))["resources"]["limits"]["cpu"], "100m");
    resize(sized("250m", "64Mi"));
    node.until("r", "has more", |p| {
        first(p)["resources"]["limits"]["cpu"] == "250m" && pending(p, "PodResizePending").is_null()
    })
    .await;
    assert_eq!((id(&node.api.pod("r")), quota(&node, "r", &before)), (before.clone(), "25000".to_owned()));
    assert_eq!(first(&node.api.pod("r"))["allocatedResources"]["cpu"], "1m");
    // What its policy says takes a new container.
    node.api.change("r", |pod| pod["spec"]["containers"][0]["resources"] = sized("250m", "96Mi"));
    node.until("r", "starts anew", |p| ready(p) && first(p)["restartCount"] == 1).await;
    let pod = node.api.pod("r");
    assert_eq!(first(&pod)["resources"]["limits"]["memory"], "96Mi");
    assert_ne!(id(&pod), before);
    node.api.delete("r", 1);
    node.is_clean().await;
    node.kill_agent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_end_with_the_machine_and_not_with_the_agent() {
    let Some(mut node) = Node::start().await else { return };
    for (name, priority) in [("plain", 0), ("critical", 2_000_001_000)] {
        let mut spec = pod("Always", json!({"command": shell("exec /bin/busybox sleep 1000")}));
        spec["priority"] = priority.into();
        node.api.create(name, spec);
        node.until(name, "runs", ready).await;
    }
    node.stop_agent("running").await;
    let tasks = node.runtime.ctr(&["tasks", "ls", "-q"]);
    assert_eq!(tasks.lines().count(), 4, "both pods run on: {tasks}");
    node.start_agent();
    // It has to know them before it can end them.
    node.api.create("late", pod("Always", json!({"command": shell("exec /bin/busybox sleep 1000")})));
    node.until("late", "runs", ready).await;
    node.stop_agent("stopping").await;
    for name in ["plain", "critical", "late"] {
        let status = node.api.pod(name)["status"].clone();
        assert_eq!(
            (&status["phase"], &status["reason"]),
            (&json!("Failed"), &json!("Terminated")),
            "{name}: {status:#}"
        );
    }
    let finished = |name: &str| {
        let pod = node.api.pod(name);
        first(&pod)["state"]["terminated"]["finishedAt"].as_str().unwrap_or_default().to_owned()
    };
    assert!(finished("plain") <= finished("critical"), "critical pods go last");
    node.start_agent();
    for name in ["plain", "critical", "late"] {
        node.api.delete(name, 1);
    }
    node.is_clean().await;
    node.kill_agent().await;
}

/// What the API has of a driver's volumes: a claim for files, one for a device, and what is said of the driver.
fn volumes_of_a_driver(api: &Api) {
    api.set("nodes/n", json!({"metadata": {"name": "n", "uid": "uid"}}));
    let spec =
        json!({"attachRequired": true, "podInfoOnMount": true, "volumeLifecycleModes": ["Persistent", "Ephemeral"]});
    api.set("csidrivers/memory.test", json!({"metadata": {"name": driver::NAME}, "spec": spec}));
    for (name, mode) in [("files", "Filesystem"), ("device", "Block")] {
        let claim = json!({"spec": {"volumeName": name, "volumeMode": mode}, "status": {"phase": "Bound"}});
        api.set(&format!("namespaces/default/persistentvolumeclaims/{name}"), claim);
        let source =
            json!({"driver": driver::NAME, "volumeHandle": format!("h-{name}"), "volumeAttributes": {"a": "b"}});
        let volume = json!({"metadata": {"name": name}, "spec": {"csi": source, "volumeMode": mode, "accessModes": ["ReadWriteOnce"]}});
        api.set(&format!("persistentvolumes/{name}"), volume);
    }
}

/// Lets the volumes be attached to the node.
fn attach(api: &Api, handle: &str) {
    use sha2::{Digest, Sha256};
    let hash: String =
        Sha256::digest(format!("{handle}{}n", driver::NAME)).iter().map(|b| format!("{b:02x}")).collect();
    let attachment =
        json!({"spec": {"attacher": driver::NAME, "nodeName": "n", "source": {}}, "status": {"attached": true}});
    api.set(&format!("volumeattachments/csi-{hash}"), attachment);
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_come_from_a_driver() {
    let Some(mut node) = Node::start().await else { return };
    volumes_of_a_driver(&node.api);
    let user = |script: &str| {
        let mut spec = pod(
            "Never",
            json!({"command": shell(script), "volumeMounts": [{"name": "f", "mountPath": "/f"}, {"name": "i", "mountPath": "/i"}],
            "volumeDevices": [{"name": "d", "devicePath": "/dev/zeros"}]}),
        );
        spec["volumes"] = json!([{"name": "f", "persistentVolumeClaim": {"claimName": "files"}},
            {"name": "d", "persistentVolumeClaim": {"claimName": "device"}}, {"name": "i", "csi": {"driver": driver::NAME}}]);
        spec
    };
    node.api.create("one", user("echo kept > /f/x; echo own > /i/x; /bin/busybox head -c 3 /dev/zeros | /bin/busybox od -An -tx1; until test -e /f/go; do sleep 0.1; done"));
    let driver = driver::Driver::start(node.runtime.dir.path(), &node.runtime.dir.path().join("data"));
    for handle in ["h-files", "h-device"] {
        node.until("one", "waits for its volumes", |p| p["status"]["phase"] == "Pending").await;
        attach(&node.api, handle);
    }
    node.until("one", "runs", |p| p["status"]["phase"] == "Running").await;
    let csi_node = node.api.other("csinodes/n");
    let known = &csi_node["spec"]["drivers"][0];
    assert_eq!((&known["nodeID"], &known["allocatable"]["count"]), (&json!("node-of-test"), &json!(7)), "{csi_node}");
    assert_eq!(node.api.other("nodes/n")["metadata"]["labels"]["memory.test/node"], "n");
    assert!(
        driver.registered.told() == Some(true) && driver.seen.lock().context["csi.storage.k8s.io/pod.name"] == "one"
    );
    // A second pod shares what is staged; a new agent knows what is published.
    node.api.create("two", user("cat /f/x; ls /i; touch /f/go"));
    node.until("two", "has ended", |p| p["status"]["phase"] == "Succeeded").await;
    node.kill_agent().await;
    node.start_agent();
    node.until("one", "has ended", |p| p["status"]["phase"] == "Succeeded").await;
    node.says("two", " kept").await;
    node.says("one", "00 00 00").await;
    for name in ["one", "two"] {
        node.api.delete(name, 1);
        node.until(name, "is confirmed as deleted", Value::is_null).await;
    }
    node.is_clean().await;
    let calls = driver.seen.lock().calls.clone();
    let count = |call: &str| calls.iter().filter(|c| c.starts_with(call)).count();
    assert_eq!((count("publish"), count("unstage")), (6, 2), "{calls:?}");
    // The agent may have been killed between a driver's answer and the note of it: then the driver is asked once more.
    assert!((6..=9).contains(&count("unpublish")), "{calls:?}");
    let last = |call: &str| calls.iter().rposition(|c| c == call).unwrap();
    assert!(last("unpublish h-files") < last("unstage h-files"), "{calls:?}");
    drop(driver);
    node.kill_agent().await;
}
