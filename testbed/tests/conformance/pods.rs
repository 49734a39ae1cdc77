//! Pods that are changed, ended and looked into while they run.

use std::fmt::Write;

use keelson_testbed::until;
use serde_json::Value;

use super::{apply, cluster, is_ready, object, pod_becomes};
use crate::common::{Kubectl, PATIENCE};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: plain, labels: {app: plain}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c, image: "keelson.local/web:1", resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {cpu: 50m, memory: 64Mi}}}
  - name: restarts
    image: keelson.local/web:1
    env: [{name: PORT, value: "8081"}]
    resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {cpu: 50m, memory: 64Mi}}
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
---
apiVersion: v1
kind: Pod
metadata: {name: three}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: c0, image: "keelson.local/web:1", resources: {limits: {cpu: 20m, memory: 32Mi}}}
  - {name: c1, image: "keelson.local/web:1", env: [{name: PORT, value: "8081"}], resources: {limits: {cpu: 30m, memory: 40Mi}}}
  - {name: c2, image: "keelson.local/web:1", env: [{name: PORT, value: "8082"}], resources: {limits: {cpu: 40m, memory: 48Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: listener}
spec:
  volumes: [{name: v, emptyDir: {}}]
  containers: [{name: c, image: "keelson.local/web:1"}]
---
apiVersion: v1
kind: Pod
metadata: {name: expands, annotations: {path: ../up}}
spec:
  volumes: [{name: v, emptyDir: {}}]
  containers:
  - name: c
    image: keelson.local/web:1
    env: [{name: P, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['path']"}}}]
    volumeMounts: [{name: v, mountPath: /v, subPathExpr: $(P)}]
---
apiVersion: v1
kind: Pod
metadata: {name: late}
spec: {activeDeadlineSeconds: 3000, terminationGracePeriodSeconds: 1, containers: [{name: c, image: "keelson.local/web:1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: fails}
spec: {containers: [{name: c, image: "keelson.local/web:1", command: [/bin/false]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: slow-to-be-ready}
spec: {containers: [{name: c, image: "keelson.local/web:1", readinessProbe: {exec: {command: [/bin/true]}, initialDelaySeconds: 5, periodSeconds: 1}}]}
"#;

#[test]
fn pods_are_changed_and_ended() {
    let Some(cluster) = cluster("confpod", &[], &[]) else { return };
    let kubectl = cluster.kubectl(1);
    apply(&kubectl, PODS);
    for name in ["plain", "three", "listener", "late"] {
        pod_becomes(&kubectl, name, "is ready", is_ready);
    }
    a_deadline_is_set(&kubectl);
    a_path_is_mended(&kubectl);
    an_ephemeral_container_joins(&kubectl);
    resources_change(&kubectl);
    three_containers_change_at_once(&kubectl);
    generations_are_counted(&kubectl);
    hooks_are_called_at_the_end(&kubectl);
    what_fails_can_be_deleted(&kubectl);
    classes_of_runtimes(&kubectl);
    invalid_sysctls_are_refused(&kubectl);
    ready_after_a_while(&kubectl);
}

fn a_deadline_is_set(kubectl: &Kubectl) {
    kubectl.ok("patch pod late -p '{\"spec\":{\"activeDeadlineSeconds\":1}}'");
    pod_becomes(kubectl, "late", "is over", |p| p["status"]["reason"] == "DeadlineExceeded");
}

fn a_path_is_mended(kubectl: &Kubectl) {
    let waiting = |p: &Value| p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].clone();
    pod_becomes(kubectl, "expands", "is refused", |p| waiting(p) == "CreateContainerConfigError");
    kubectl.ok("annotate pod expands path=fine --overwrite");
    pod_becomes(kubectl, "expands", "runs", is_ready);
}

fn an_ephemeral_container_joins(kubectl: &Kubectl) {
    kubectl
        .ok("debug plain --image=keelson.local/web:1 --container=debugger --target=c -- sh -c 'ps; exec sleep 10000'");
    let joined = |p: &Value| p["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object();
    pod_becomes(kubectl, "plain", "has a debugger", joined);
    kubectl.wait("logs plain -c debugger", |out| out.contains("httpd"));
    let ran = kubectl.ok("exec plain -c debugger -- echo joined");
    assert_eq!(ran, "joined\n");
    kubectl.ok("debug plain --image=keelson.local/web:1 --container=second -- sleep 10000");
    pod_becomes(kubectl, "plain", "has a second debugger", |p| {
        p["status"]["ephemeralContainerStatuses"].as_array().is_some_and(|all| all.len() == 2)
    });
}

/// In place, and with a new start where the container's policy says so; by patch and by replacing the object.
fn resources_change(kubectl: &Kubectl) {
    let patch = r#"{"spec":{"containers":[
        {"name":"c","resources":{"requests":{"cpu":"30m","memory":"40Mi"},"limits":{"cpu":"70m","memory":"80Mi"}}},
        {"name":"restarts","resources":{"requests":{"memory":"48Mi"},"limits":{"memory":"96Mi"}}}]}}"#;
    kubectl.ok(&format!("patch pod plain --subresource resize --patch '{}'", patch.replace('\n', " ")));
    let of = |p: &Value, name: &str| {
        let all = p["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|c| c["name"] == name).unwrap_or_default()
    };
    pod_becomes(kubectl, "plain", "is resized", |p| {
        let (kept, new) = (of(p, "c"), of(p, "restarts"));
        kept["resources"]["limits"]["memory"] == "80Mi"
            && kept["resources"]["limits"]["cpu"] == "70m"
            && kept["restartCount"] == 0
            && new["resources"]["limits"]["memory"] == "96Mi"
            && new["restartCount"] == 1
            && p["status"]["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().all(|c| c["type"] != "PodResizeInProgress"))
    });
    let mut whole = object(kubectl, "pod plain");
    whole["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "20m".into();
    whole["spec"]["containers"][0]["resources"]["limits"]["cpu"] = "60m".into();
    let path = "/api/v1/namespaces/default/pods/plain/resize";
    let ran = kubectl.feed(&format!("replace --raw {path} -f -"), &whole.to_string());
    assert_eq!(ran.code, Some(0), "{ran:?}");
    pod_becomes(kubectl, "plain", "is resized again", |p| of(p, "c")["resources"]["limits"]["cpu"] == "60m");
    // What no node could give is refused.
    let refused = kubectl.run("patch pod plain --subresource resize --patch '{\"spec\":{\"containers\":[{\"name\":\"c\",\"resources\":{\"requests\":{\"cpu\":\"900\"},\"limits\":{\"cpu\":\"900\"}}}]}}'");
    assert!(refused.err.contains("Node didn't have enough allocatable resources: cpu"), "{refused:?}");
}

/// A guaranteed pod: each container grows or shrinks, and the kernel has what the status says.
fn three_containers_change_at_once(kubectl: &Kubectl) {
    for amounts in
        [[("30m", "40Mi"), ("40m", "48Mi"), ("30m", "44Mi")], [("40m", "48Mi"), ("20m", "44Mi"), ("20m", "40Mi")]]
    {
        let containers: Vec<Value> = (amounts.iter().enumerate())
            .map(|(i, (cpu, memory))| {
                let same = serde_json::json!({"cpu": cpu, "memory": memory});
                serde_json::json!({"name": format!("c{i}"), "resources": {"limits": same, "requests": same}})
            })
            .collect();
        let patch = serde_json::json!({"spec": {"containers": containers}});
        kubectl.ok(&format!("patch pod three --subresource resize --patch '{patch}'"));
        pod_becomes(kubectl, "three", "is resized", |p| {
            (0..3).all(|i| {
                let (status, (cpu, memory)) = (&p["status"]["containerStatuses"][i], amounts[i]);
                let now = &status["resources"];
                now["limits"]["cpu"] == cpu
                    && now["requests"]["memory"] == memory
                    && status["allocatedResources"]["cpu"] == cpu
                    && status["restartCount"] == 0
            })
        });
        for (i, (_, memory)) in amounts.iter().enumerate() {
            let bytes = memory.trim_end_matches("Mi").parse::<u64>().unwrap() << 20;
            let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max";
            kubectl.wait(&format!("exec three -c c{i} -- sh -c '{read}'"), |out| out.trim() == bytes.to_string());
        }
    }
}

fn generations_are_counted(kubectl: &Kubectl) {
    let spec = "{apiVersion: v1, kind: Pod, metadata: {name: counted, generation: 100}, spec: {terminationGracePeriodSeconds: 5, \
                containers: [{name: c, image: 'keelson.local/web:1'}]}}";
    apply(kubectl, spec);
    assert_eq!(object(kubectl, "pod counted")["metadata"]["generation"], 1, "who creates has no say");
    let mut wanted = 1;
    for (patch, counts) in [
        (r#"{"spec":{"activeDeadlineSeconds":5000}}"#, true),
        (r#"{"spec":{"containers":[{"name":"c","image":"keelson.local/web:2"}]}}"#, true),
        (r#"{"metadata":{"labels":{"a":"b"}}}"#, false),
    ] {
        kubectl.ok(&format!("patch pod counted -p '{patch}'"));
        wanted += i64::from(counts);
        assert_eq!(object(kubectl, "pod counted")["metadata"]["generation"], wanted, "{patch}");
    }
    pod_becomes(kubectl, "counted", "was seen", |p| p["status"]["observedGeneration"] == wanted);
    for image in (0..50).map(|n| 1 + n % 2) {
        kubectl.ok(&format!("set image pod/counted c=keelson.local/web:{image}"));
    }
    pod_becomes(kubectl, "counted", "was seen to the end", |p| {
        p["metadata"]["generation"] == wanted + 50 && p["status"]["observedGeneration"] == wanted + 50
    });
    kubectl.ok("delete pod counted --wait=false");
    // Its end counts too, as long as it can be seen.
    let pod = object(kubectl, "pod counted");
    assert!(pod.is_null() || pod["metadata"]["generation"] == wanted + 51, "{pod:#}");
}

/// Pods call the listener when they are ended.
fn hooks_are_called_at_the_end(kubectl: &Kubectl) {
    let listener = object(kubectl, "pod listener")["status"]["podIP"].as_str().unwrap().to_owned();
    let mut manifest = String::new();
    for (name, hook) in [
        ("by-exec", format!("exec: {{command: [wget, -qO-, 'http://{listener}:8080/by-exec']}}")),
        ("by-http", format!("httpGet: {{host: {listener}, port: 8080, path: /by-http}}")),
    ] {
        let _ = writeln!(
            manifest,
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c, \
             image: 'keelson.local/web:1', lifecycle: {{preStop: {{{hook}}}}}}}]}}}}"
        );
    }
    apply(kubectl, &manifest);
    for name in ["by-exec", "by-http"] {
        pod_becomes(kubectl, name, "is ready", is_ready);
        kubectl.ok(&format!("delete pod {name}"));
        kubectl.wait("logs listener", |log| log.contains(&format!("/{name}")));
    }
}

fn what_fails_can_be_deleted(kubectl: &Kubectl) {
    pod_becomes(kubectl, "fails", "has ended again", |p| {
        let status = &p["status"]["containerStatuses"][0];
        status["restartCount"].as_i64() >= Some(1) && status["lastState"]["terminated"]["exitCode"] == 1
    });
    kubectl.ok("delete pod fails");
    assert!(object(kubectl, "pod fails").is_null());
}

fn classes_of_runtimes(kubectl: &Kubectl) {
    let pod = |name: &str, class: &str| {
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{runtimeClassName: {class}, \
             containers: [{{name: c, image: 'keelson.local/web:1'}}]}}}}"
        )
    };
    for (class, overhead) in [("heavy", ", overhead: {podFixed: {cpu: 10m, memory: 1Mi}}"), ("light", "")] {
        apply(
            kubectl,
            &format!(
                "{{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {{name: {class}}}, handler: runc{overhead}}}"
            ),
        );
        apply(kubectl, &pod(class, class));
        let found = pod_becomes(kubectl, class, "runs", is_ready);
        assert_eq!(found["spec"]["overhead"]["cpu"], if overhead.is_empty() { Value::Null } else { "10m".into() });
    }
    let refused = kubectl.feed("apply -f -", &format!("---\n{}", pod("absent", "absent")));
    assert!(refused.err.contains("RuntimeClass \"absent\" not found"), "{refused:?}");
    kubectl.ok("delete runtimeclass light");
    let refused = kubectl.feed("apply -f -", &format!("---\n{}", pod("deleted", "light")));
    assert!(refused.err.contains("RuntimeClass \"light\" not found"), "{refused:?}");
    // The runtime knows no such handler: the pod says so.
    apply(kubectl, "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: strange}, handler: strange}");
    apply(kubectl, &pod("strange", "strange"));
    kubectl
        .wait("get events --field-selector involvedObject.name=strange", |out| out.contains("FailedCreatePodSandBox"));
}

fn invalid_sysctls_are_refused(kubectl: &Kubectl) {
    let refused = kubectl.feed(
        "apply -f -",
        "---\n{apiVersion: v1, kind: Pod, metadata: {name: sysctl}, spec: {securityContext: {sysctls: [{name: foo-, value: bar}, \
         {name: kernel.shmmax, value: '1'}, {name: bar.., value: '42'}]}, containers: [{name: c, image: x}]}}",
    );
    for wrong in ["sysctls[0].name", "\"foo-\"", "sysctls[2].name", "\"bar..\""] {
        assert!(refused.err.contains(wrong), "{wrong}: {refused:?}");
    }
    assert!(!refused.err.contains("kernel.shmmax"), "{refused:?}");
    // A valid one that is not safe is the node's to refuse.
    apply(
        kubectl,
        "{apiVersion: v1, kind: Pod, metadata: {name: unsafe}, spec: {securityContext: {sysctls: \
         [{name: kernel.msgmax, value: '65536'}]}, containers: [{name: c, image: 'keelson.local/web:1'}]}}",
    );
    pod_becomes(kubectl, "unsafe", "is refused by its node", |p| {
        p["status"]["phase"] == "Failed" && p["status"]["reason"] == "SysctlForbidden"
    });
}

fn ready_after_a_while(kubectl: &Kubectl) {
    let pod = pod_becomes(kubectl, "slow-to-be-ready", "is ready", is_ready);
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap()["lastTransitionTime"].as_str().unwrap();
    let started = pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].as_str().unwrap();
    // RFC 3339 to the second: `date` tells the difference.
    let seconds = |time: &str| -> i64 {
        let out = std::process::Command::new("date").args(["-d", time, "+%s"]).output().unwrap();
        String::from_utf8_lossy(&out.stdout).trim().parse().unwrap()
    };
    assert!(seconds(ready) - seconds(started) >= 4, "{started} to {ready}");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    until("the first pods are still there", PATIENCE, || Ok(is_ready(&object(kubectl, "pod listener")).then_some(())))
        .unwrap();
}
