//! What users do every day with kubectl: logs of several sorts, files in and out, ports, terminals, and the events and
//! reasons that tell them what is wrong, in the words of v1.36's kubelet.

use std::io::{Read, Write};
use std::net::TcpStream;

use keelson_testbed::until;
use serde_json::Value;

use super::{apply, cluster, is_ready, object, pod_becomes};
use crate::common::{Kubectl, PATIENCE};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: twice}
spec:
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: keelson.local/web:1
    command: [sh, -c, 'n=$(cat /v/n 2>/dev/null || echo 0); echo run $n; echo $((n+1)) > /v/n; test $n = 0 && exit 7; exec sleep 10000']
    volumeMounts: [{name: v, mountPath: /v}]
---
apiVersion: v1
kind: Pod
metadata: {name: two, annotations: {kubectl.kubernetes.io/default-container: b}}
spec:
  containers:
  - {name: a, image: "keelson.local/web:1", command: [sh, -c, "echo first of a; echo second of a; exec sleep 10000"]}
  - {name: b, image: "keelson.local/web:1", ports: [{name: web, containerPort: 8080}], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Pod
metadata: {name: shell}
spec: {restartPolicy: Never, containers: [{name: c, image: "keelson.local/web:1", stdin: true, tty: true, command: [sh]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: crashes}
spec: {containers: [{name: c, image: "keelson.local/web:1", command: [/bin/false]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-image}
spec: {containers: [{name: c, image: "keelson.local/none:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-map}
spec:
  volumes: [{name: v, configMap: {name: none}}]
  containers: [{name: c, image: "keelson.local/web:1", volumeMounts: [{name: v, mountPath: /v}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: no-key}
spec: {containers: [{name: c, image: "keelson.local/web:1", env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: a}}}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-program}
spec: {containers: [{name: c, image: "keelson.local/web:1", command: [/none]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unwell}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: keelson.local/web:1
    readinessProbe: {exec: {command: [sh, -c, "echo not yet; exit 1"]}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /none, port: 8080}, periodSeconds: 1, failureThreshold: 3}
"#;

/// Events that pods come to have: type, reason and how the message begins.
const EVENTS: &[(&str, &str, &str, &str)] = &[
    (
        "two",
        "Normal",
        "Pulled",
        "Container image \"keelson.local/web:1\" already present on machine and can be accessed by the pod",
    ),
    ("two", "Normal", "Created", "Container created"),
    ("two", "Normal", "Started", "Container started"),
    ("crashes", "Warning", "BackOff", "Back-off restarting failed container c in pod crashes_default("),
    ("no-image", "Normal", "Pulling", "Pulling image \"keelson.local/none:1\""),
    ("no-image", "Warning", "Failed", "Failed to pull image \"keelson.local/none:1\": "),
    ("no-image", "Warning", "Failed", "Error: ErrImagePull"),
    ("no-image", "Normal", "BackOff", "Back-off pulling image \"keelson.local/none:1\""),
    ("no-image", "Warning", "Failed", "Error: ImagePullBackOff"),
    ("no-map", "Warning", "FailedMount", "MountVolume.SetUp failed for volume \"v\" : configmap \"none\" not found"),
    ("no-key", "Warning", "Failed", "Error: configmap \"none\" not found"),
    ("no-program", "Warning", "Failed", "Error: failed to create "),
    ("unwell", "Warning", "Unhealthy", "Readiness probe failed: not yet"),
    ("unwell", "Warning", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 404"),
    ("unwell", "Normal", "Killing", "Container c failed liveness probe, will be restarted"),
];

/// Reasons for which containers wait, and how their messages begin.
const WAITING: &[(&str, &str, &str)] = &[
    ("crashes", "CrashLoopBackOff", "back-off "),
    ("no-image", "ImagePullBackOff", "Back-off pulling image \"keelson.local/none:1\": ErrImagePull: "),
    ("no-map", "ContainerCreating", ""),
    ("no-key", "CreateContainerConfigError", "configmap \"none\" not found"),
];

#[test]
fn users_find_their_way() {
    let Some(cluster) = cluster("habits", &[], &[]) else { return };
    let kubectl = cluster.kubectl(1);
    apply(&kubectl, PODS);
    for name in ["two", "shell"] {
        pod_becomes(&kubectl, name, "is ready", is_ready);
    }
    logs(&kubectl);
    files(&kubectl);
    a_port(&kubectl);
    terminals(&kubectl);
    a_run_before(&kubectl);
    what_is_wrong(&kubectl);
}

fn logs(kubectl: &Kubectl) {
    for (arguments, wanted) in [
        ("two -c a", "first of a\nsecond of a\n"),
        ("two -c a --tail=1", "second of a\n"),
        ("two -c a --limit-bytes=5", "first"),
        ("two -c a --since-time=2100-01-01T00:00:00Z", ""),
        ("two -c a --since=1h", "first of a\nsecond of a\n"),
        ("two", "serving version 1 on port 8080\n"),
    ] {
        kubectl.wait(&format!("logs {arguments}"), |out| out == wanted);
    }
    let all = kubectl.ok("logs two --all-containers --prefix");
    for line in ["[pod/two/a] second of a", "[pod/two/b] serving version 1 on port 8080"] {
        assert!(all.lines().any(|l| l == line), "{line}: {all}");
    }
    let stamped = kubectl.ok("logs two -c a --timestamps");
    assert!(stamped.lines().all(|l| l.starts_with("20") && l.contains("T") && l.contains("Z ")), "{stamped}");
    let refused = kubectl.run("logs two -c none");
    assert!(refused.err.contains("container none is not valid for pod two"), "{refused:?}");
}

fn files(kubectl: &Kubectl) {
    let dir = tempfile::tempdir().unwrap();
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    std::fs::write(&there, &content).unwrap();
    kubectl.ok(&format!("cp {} two:/tmp/file -c b", there.display()));
    kubectl.ok(&format!("cp default/two:/tmp/file {} -c b", back.display()));
    assert!(std::fs::read(&back).unwrap() == content, "what came back is what went in");
    let ran = kubectl.run("exec two -c b -- sh -c 'exit 42'");
    assert_eq!(ran.code, Some(42), "{ran:?}");
    let ran = kubectl.run("exec two -c b -- /none");
    assert!(ran.code != Some(0) && ran.err.contains("no such file"), "{ran:?}");
}

fn a_port(kubectl: &Kubectl) {
    let forward = kubectl.follow("port-forward pod/two :8080", "forward");
    let said = forward.wait("the port is open", |text| text.contains("Forwarding from 127.0.0.1:"));
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    // Again and again over one forwarding.
    for _ in 0..3 {
        let mut stream = TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        assert!(page.contains("hello from two, version 1"), "{page}");
    }
}

fn terminals(kubectl: &Kubectl) {
    let out = kubectl.terminal("attach -it shell", "echo sum-$((40+2)); exit\n");
    assert!(out.contains("sum-42"), "{out}");
    pod_becomes(kubectl, "shell", "has ended with its shell", |p| p["status"]["phase"] == "Succeeded");
}

fn a_run_before(kubectl: &Kubectl) {
    let status = |p: &Value| p["status"]["containerStatuses"][0].clone();
    let pod = pod_becomes(kubectl, "twice", "runs again", |p| is_ready(p) && status(p)["restartCount"] == 1);
    let last = &status(&pod)["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&7.into(), &"Error".into()), "{last:#}");
    kubectl.wait("logs twice --previous", |out| out == "run 0\n");
    kubectl.wait("logs twice", |out| out == "run 1\n");
    let refused = kubectl.run("logs two -c b --previous");
    assert!(refused.err.contains("previous terminated container \"b\" in pod \"two\" not found"), "{refused:?}");
}

fn what_is_wrong(kubectl: &Kubectl) {
    for (pod, reason, message) in WAITING {
        pod_becomes(kubectl, pod, reason, |p| {
            let waiting = &p["status"]["containerStatuses"][0]["state"]["waiting"];
            waiting["reason"] == *reason && waiting["message"].as_str().unwrap_or_default().starts_with(message)
        });
    }
    for (pod, kind, reason, message) in EVENTS {
        let told = until(&format!("{pod}: {reason} {message}"), PATIENCE, || {
            let events = object(kubectl, &format!("events --field-selector involvedObject.name={pod}"));
            let events = events["items"].as_array().cloned().unwrap_or_default();
            let has = events.iter().any(|event| {
                let said = event["message"].as_str().unwrap_or_default();
                event["type"] == *kind && event["reason"] == *reason && said.starts_with(message)
            });
            let list = || events.iter().map(|e| format!("\n{} {} {}", e["type"], e["reason"], e["message"]));
            if has { Ok(Some(())) } else { anyhow::bail!(list().collect::<String>()) }
        });
        told.unwrap();
    }
    for reason in ["Starting", "NodeHasSufficientMemory", "NodeHasNoDiskPressure", "NodeHasSufficientPID", "NodeReady"]
    {
        kubectl.wait("describe node agent-1", |out| out.lines().any(|line| line.contains(&format!(" {reason} "))));
    }
    let pod = object(kubectl, "pod two");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    for kind in ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"] {
        let found = conditions.iter().find(|c| c["type"] == kind).unwrap_or_else(|| panic!("{kind}: {conditions:#?}"));
        assert_eq!((&found["status"], &found["observedGeneration"]), (&"True".into(), &1.into()), "{kind}");
    }
}
