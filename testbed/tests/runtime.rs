//! What only newer container runtimes can do: user namespaces, images as volumes, mounts that are read-only all the way
//! down, groups that the image may not add, events of their own, all of `/proc`. Skipped with older ones: the directory of
//! another containerd (2.1 or newer) goes first in `PATH`. One server, one agent.

mod common;

use common::{Cluster, Kubectl, PATIENCE};
use keelson_testbed::{Host, Role, Start, until};
use serde_json::Value;

/// The oldest containerd that can do all of it.
const OLDEST: (u32, u32) = (2, 1);

/// The oldest that mounts directories of images.
const PARTS: (u32, u32) = (2, 2);

/// First numbers of the version of the containerd in `PATH`.
fn version() -> Option<(u32, u32)> {
    let output = std::process::Command::new("containerd").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?;
    let mut numbers = version.trim_start_matches('v').split('.').map(|n| n.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

const OWN_USERS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: own-users}
spec:
  hostUsers: false
  volumes:
  - {name: v, emptyDir: {}}
  - {name: c, configMap: {name: kube-root-ca.crt, defaultMode: 256}}
  - {name: m, emptyDir: {medium: Memory}}
  containers:
  - name: c
    image: keelson.local/web:1
    readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: v, mountPath: /v}, {name: c, mountPath: /c}, {name: m, mountPath: /m}]
"#;

/// Mounted below a volume while it is up: only recursive mounts forbid writes there.
const READ_ONLY: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: NAME}
spec:
  restartPolicy: Never
  volumes: [{name: v, hostPath: {path: /run/outer}}]
  containers:
  - name: c
    image: keelson.local/web:1
    command: [sh, -c, "touch /v/inner/NAME 2>&1 && echo written; true"]
    volumeMounts: [{name: v, mountPath: /v, readOnly: true, recursiveReadOnly: HOW}]
"#;

const IMAGES: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: images}
spec:
  volumes:
  - {name: all, image: {reference: "keelson.local/talk:1", pullPolicy: IfNotPresent}}
  containers:
  - name: c
    image: keelson.local/web:1
    volumeMounts: [{name: all, mountPath: /image}]
---
apiVersion: v1
kind: Pod
metadata: {name: parts}
spec:
  volumes: [{name: all, image: {reference: "keelson.local/talk:1", pullPolicy: IfNotPresent}}]
  containers:
  - {name: c, image: "keelson.local/web:1", volumeMounts: [{name: all, mountPath: /part, subPath: etc}]}
---
apiVersion: v1
kind: Pod
metadata: {name: no-image}
spec:
  volumes:
  - {name: all, image: {reference: "keelson.local/none:1", pullPolicy: Never}}
  containers:
  - {name: c, image: "keelson.local/web:1", volumeMounts: [{name: all, mountPath: /image}]}
---
apiVersion: v1
kind: Pod
metadata: {name: strict}
spec:
  restartPolicy: Never
  securityContext: {runAsUser: 1000, runAsGroup: 1000, supplementalGroups: [2000], supplementalGroupsPolicy: Strict}
  containers: [{name: c, image: "keelson.local/web:1", command: [sh, -c, "id -G"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: bare}
spec:
  hostUsers: false
  restartPolicy: Never
  containers:
  - name: c
    image: keelson.local/web:1
    command: [sh, -c, "grep -c /proc/ /proc/self/mounts; true"]
    securityContext: {procMount: Unmasked}
---
apiVersion: v1
kind: Pod
metadata: {name: masked}
spec:
  hostUsers: false
  restartPolicy: Never
  containers: [{name: c, image: "keelson.local/web:1", command: [sh, -c, "grep -c /proc/ /proc/self/mounts; true"]}]
"#;

#[test]
fn newer_runtimes_can_do_more() {
    if version().is_none_or(|version| version < OLDEST) {
        eprintln!("SKIPPED: containerd is {:?}, older than {OLDEST:?}", version());
        return;
    }
    let Some(cluster) = Cluster::start("newer", 1, 1, &Start::default()) else { return };
    let kubectl = cluster.kubectl(1);
    kubectl.wait("get serviceaccount default", |_| true);
    let hosts = cluster.testbed.hosts().unwrap();
    let agent = hosts.iter().find(|host| host.role() == Role::Agent).unwrap();
    kubectl.wait("get node agent-1 -o json", |text| tells_of_handlers(&serde_json::from_str(text).unwrap()));
    users(&kubectl, agent);
    read_only(&kubectl, agent);
    images_and_groups(&kubectl);
}

/// The node tells what its runtime can do.
fn tells_of_handlers(node: &Value) -> bool {
    let handlers = node["status"]["runtimeHandlers"].as_array().cloned().unwrap_or_default();
    let can = |what: &str| {
        handlers.iter().any(|h| h["name"].as_str().unwrap_or_default().is_empty() && h["features"][what] == true)
    };
    can("recursiveReadOnlyMounts")
        && can("userNamespaces")
        && node["status"]["features"]["supplementalGroupsPolicy"] == true
}

fn logged(kubectl: &Kubectl, pod: &str) -> String {
    let phase = format!("get pod {pod} -o 'jsonpath={{.status.phase}}'");
    kubectl.wait(&phase, |phase| phase == "Succeeded");
    kubectl.ok(&format!("logs {pod}")).trim().to_owned()
}

/// Root of the pod is nobody on the node, but its volumes are as if it were root.
fn users(kubectl: &Kubectl, agent: &Host<'_>) {
    kubectl.feed("apply -f -", OWN_USERS);
    kubectl.ok("wait --for=condition=Ready pod/own-users --timeout=60s");
    let ids = kubectl.ok("exec own-users -- cat /proc/self/uid_map");
    let ids: Vec<u64> = ids.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(ids[0] == 0 && ids[1] >= 65_536 && ids[1].is_multiple_of(65_536) && ids[2] == 65_536, "{ids:?}");
    kubectl.ok("exec own-users -- sh -c 'id -u > /v/id && id -u > /m/id && head -c 1 /c/ca.crt'");
    let uid = kubectl.ok("get pod own-users -o 'jsonpath={.metadata.uid}'");
    let volumes = format!("/var/lib/keelson/agent/pods/{uid}/volumes/kubernetes.io~empty-dir");
    let find = agent.run("find", &["/var/lib/keelson", "-path", "*empty-dir/*/id", "-printf", "%U %p\n"]).unwrap();
    assert_eq!(find.lines().filter(|line| line.starts_with("0 ")).count(), 2, "{find} (volumes of {volumes})");
    // Another start has the same ids, since files outlive containers.
    kubectl.run("exec own-users -- kill 1");
    kubectl.wait("get pod own-users -o 'jsonpath={.status.containerStatuses[0].restartCount}'", |count| count == "1");
    kubectl.ok("wait --for=condition=Ready pod/own-users --timeout=60s");
    let again = kubectl.ok("exec own-users -- cat /proc/self/uid_map");
    assert_eq!(again.split_whitespace().nth(1).unwrap(), ids[1].to_string());
    kubectl.ok("delete pod own-users --wait --timeout=60s");
}

fn read_only(kubectl: &Kubectl, agent: &Host<'_>) {
    agent.run("mkdir", &["-p", "/run/outer/inner"]).unwrap();
    agent.run("mount", &["-t", "tmpfs", "tmpfs", "/run/outer/inner"]).unwrap();
    for (name, how) in [("deep", "Enabled"), ("shallow", "Disabled"), ("perhaps", "IfPossible")] {
        kubectl.feed("apply -f -", &READ_ONLY.replace("NAME", name).replace("HOW", how));
    }
    assert_eq!(logged(kubectl, "shallow"), "written");
    for name in ["deep", "perhaps"] {
        let said = logged(kubectl, name);
        assert!(said.contains("Read-only file system"), "{name}: {said}");
        let told = format!(
            "get pod {name} -o 'jsonpath={{.status.containerStatuses[0].volumeMounts[?(@.name==\"v\")].recursiveReadOnly}}'"
        );
        assert_eq!(kubectl.ok(&told), "Enabled");
    }
    agent.run("umount", &["/run/outer/inner"]).unwrap();
}

fn images_and_groups(kubectl: &Kubectl) {
    kubectl.feed("apply -f -", IMAGES);
    kubectl.ok("wait --for=condition=Ready pod/images --timeout=60s");
    let listed = kubectl.ok("exec images -- ls /image");
    for wanted in ["bin", "www"] {
        assert!(listed.lines().any(|line| line == wanted), "{wanted}: {listed}");
    }
    assert_ne!(kubectl.run("exec images -- touch /image/x").code, Some(0), "images cannot be written to");
    // A runtime that does not know of parts would mount the whole and say nothing.
    if version() >= Some(PARTS) {
        kubectl.ok("wait --for=condition=Ready pod/parts --timeout=60s");
        assert_eq!(kubectl.ok("exec parts -- ls /part"), "passwd\n");
    } else {
        let message = "get pod parts -o 'jsonpath={.status.containerStatuses[0].state.waiting.message}'";
        kubectl.wait(message, |message| message.contains("does not mount parts of images"));
    }
    let reason = "get pod no-image -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'";
    kubectl.wait(reason, |reason| reason == "ErrImageNeverPull");
    assert_eq!(logged(kubectl, "strict"), "1000 2000");
    let [bare, masked] = ["bare", "masked"].map(|pod| logged(kubectl, pod).parse::<u32>().unwrap());
    assert!(bare == 0 && masked > 0, "{bare} and {masked} mounts over parts of /proc");
    kubectl.ok("delete pod --all --wait --timeout=60s");
    until("no pod is left", PATIENCE, || Ok(kubectl.ok("get pods -o name").is_empty().then_some(()))).unwrap();
}
