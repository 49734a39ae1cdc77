//! Volumes whose sources change, and sources that cannot.

use super::{apply, cluster, is_ready, pod_becomes};
use crate::common::Kubectl;

const SOURCES: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: changing}
data: {key: one, other: same}
---
apiVersion: v1
kind: Secret
metadata: {name: changing}
stringData: {key: one, other: same}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: going}
data: {key: one}
---
apiVersion: v1
kind: Secret
metadata: {name: going}
stringData: {key: one}
";

const WATCHER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: watcher, labels: {colour: blue}, annotations: {builder: bar}}
spec:
  volumes:
  - {name: map, configMap: {name: changing}}
  - {name: secret, secret: {secretName: changing}}
  - {name: map-going, configMap: {name: going, optional: true}}
  - {name: map-coming, configMap: {name: coming, optional: true}}
  - {name: secret-going, secret: {secretName: going, optional: true}}
  - {name: secret-coming, secret: {secretName: coming, optional: true}}
  - name: down
    downwardAPI: &down
      items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: annotations, fieldRef: {fieldPath: metadata.annotations}}]
  - name: projected
    projected:
      sources:
      - {configMap: {name: changing, items: [{key: key, path: map/changing}]}}
      - {secret: {name: changing, items: [{key: key, path: secret/changing}]}}
      - {configMap: {name: going, optional: true, items: [{key: key, path: map/going}]}}
      - {secret: {name: going, optional: true, items: [{key: key, path: secret/going}]}}
      - {configMap: {name: coming, optional: true, items: [{key: key, path: map/coming}]}}
      - {secret: {name: coming, optional: true, items: [{key: key, path: secret/coming}]}}
      - {downwardAPI: *down}
  containers:
  - name: c
    image: keelson.local/web:1
    volumeMounts:
    - {name: map, mountPath: /v/map}
    - {name: secret, mountPath: /v/secret}
    - {name: map-going, mountPath: /v/map-going}
    - {name: map-coming, mountPath: /v/map-coming}
    - {name: secret-going, mountPath: /v/secret-going}
    - {name: secret-coming, mountPath: /v/secret-coming}
    - {name: down, mountPath: /v/down}
    - {name: projected, mountPath: /v/projected}
"#;

const IMAGE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: image-volume}
spec:
  volumes: [{name: v, image: {reference: "keelson.local/web:1", pullPolicy: IfNotPresent}}]
  containers: [{name: c, image: "keelson.local/web:1", volumeMounts: [{name: v, mountPath: /v}]}]
"#;

#[test]
fn volumes_follow_their_sources() {
    let Some(cluster) = cluster("confvol", &[], &[]) else { return };
    let kubectl = cluster.kubectl(1);
    apply(&kubectl, SOURCES);
    apply(&kubectl, WATCHER);
    pod_becomes(&kubectl, "watcher", "is ready", is_ready);
    let test = |what: &str| kubectl.wait(&format!("exec watcher -- sh -exc '{what}'"), |_| true);
    test(
        "grep -x one /v/map/key /v/secret/key /v/projected/map/changing /v/projected/secret/changing; \
          cat /v/map-going/key /v/secret-going/key /v/projected/map/going /v/projected/secret/going; \
          test ! -e /v/map-coming/key; test ! -e /v/secret-coming/key; \
          grep blue /v/down/labels /v/projected/labels; grep bar /v/down/annotations /v/projected/annotations",
    );
    for kind in ["configmap", "secret"] {
        kubectl.ok(&format!("patch {kind} changing --type merge -p {}", quoted(kind)));
        kubectl.ok(&format!("delete {kind} going"));
    }
    kubectl.ok("create configmap coming --from-literal=key=new");
    kubectl.ok("create secret generic coming --from-literal=key=new");
    kubectl.ok("label pod watcher colour=red --overwrite");
    kubectl.ok("annotate pod watcher builder=foo --overwrite");
    test(
        "grep -x two /v/map/key; grep -x two /v/secret/key; grep -x two /v/projected/map/changing; \
          grep -x two /v/projected/secret/changing; grep -x same /v/map/other; \
          test ! -e /v/map-going/key; test ! -e /v/secret-going/key; test ! -e /v/projected/map/going; \
          test ! -e /v/projected/secret/going; \
          grep -x new /v/map-coming/key; grep -x new /v/secret-coming/key; grep -x new /v/projected/map/coming; \
          grep -x new /v/projected/secret/coming; \
          grep red /v/down/labels; grep red /v/projected/labels; grep foo /v/down/annotations; \
          grep foo /v/projected/annotations",
    );
    immutable_sources(&kubectl);
    the_same_name_elsewhere(&kubectl);
    an_image_as_volume(&kubectl);
    fifty_at_once(&kubectl);
}

/// A patch of the key `key`.
fn quoted(kind: &str) -> &'static str {
    if kind == "secret" { r#"'{"stringData":{"key":"two"}}'"# } else { r#"'{"data":{"key":"two"}}'"# }
}

fn immutable_sources(kubectl: &Kubectl) {
    for kind in ["configmap", "secret"] {
        kubectl.ok(&format!("patch {kind} changing --type merge -p '{{\"immutable\":true}}'"));
        let patch = quoted(kind).replace("two", "three");
        let refused = kubectl.run(&format!("patch {kind} changing --type merge -p {patch}"));
        assert!(refused.err.contains("field is immutable when `immutable` is set"), "{refused:?}");
        let refused = kubectl.run(&format!("patch {kind} changing --type merge -p '{{\"immutable\":false}}'"));
        assert!(refused.err.contains("field is immutable when `immutable` is set"), "{refused:?}");
        kubectl.ok(&format!("label {kind} changing a=b"));
    }
}

/// As many config maps as the conformance list has, each a volume of its own in each of three pods.
fn fifty_at_once(kubectl: &Kubectl) {
    const VOLUMES: std::ops::Range<u32> = 0..50;
    let lines = |line: &dyn Fn(u32) -> String| VOLUMES.map(line).collect::<Vec<_>>();
    let maps = lines(&|n| {
        format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: one-of-many-{n}}}, data: {{key: value-{n}}}}}")
    });
    apply(kubectl, &maps.join("\n---\n"));
    let volumes = lines(&|n| format!("{{name: v{n}, configMap: {{name: one-of-many-{n}}}}}")).join(", ");
    let mounts = lines(&|n| format!("{{name: v{n}, mountPath: /v/{n}}}")).join(", ");
    let script = "for n in $(busybox seq 0 49); do grep -qx value-$n /v/$n/key || exit 1; done";
    for pod in ["many-1", "many-2", "many-3"] {
        apply(
            kubectl,
            &format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}}}, spec: {{restartPolicy: Never, volumes: [{volumes}], \
                 containers: [{{name: c, image: 'keelson.local/web:1', command: [sh, -c, '{script}'], \
                 volumeMounts: [{mounts}]}}]}}}}"
            ),
        );
    }
    for pod in ["many-1", "many-2", "many-3"] {
        pod_becomes(kubectl, pod, "has all its volumes", |p| p["status"]["phase"] == "Succeeded");
    }
}

/// Newer runtimes mount images; with an older one the pod says that it cannot, and waits.
fn an_image_as_volume(kubectl: &Kubectl) {
    apply(kubectl, IMAGE);
    let runtime = kubectl.ok("get nodes -o 'jsonpath={.items[0].status.nodeInfo.containerRuntimeVersion}'");
    let old = runtime.starts_with("containerd://1.");
    pod_becomes(kubectl, "image-volume", "runs or waits", |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let refused = waiting["message"].as_str().unwrap_or_default().contains("does not mount images");
        if old { waiting["reason"] == "CreateContainerError" && refused } else { is_ready(pod) }
    });
}

fn the_same_name_elsewhere(kubectl: &Kubectl) {
    kubectl.ok("create namespace elsewhere");
    kubectl.ok("create secret generic changing -n elsewhere --from-literal=key=elsewhere");
    apply(
        kubectl,
        "{apiVersion: v1, kind: Pod, metadata: {name: reader}, spec: {restartPolicy: Never, \
         volumes: [{name: v, secret: {secretName: changing}}], containers: [{name: c, image: 'keelson.local/web:1', \
         command: [/bin/grep, -x, two, /v/key], volumeMounts: [{name: v, mountPath: /v}]}]}}",
    );
    pod_becomes(kubectl, "reader", "has its own namespace's secret", |p| p["status"]["phase"] == "Succeeded");
}
