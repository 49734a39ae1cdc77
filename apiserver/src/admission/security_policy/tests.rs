//! Tables: what policies refuse, fill in, and which of several counts.

use serde_json::{Value, json};

use super::*;

/// A policy that allows nothing special, with these fields of its spec instead.
fn policy(name: &str, spec: Value) -> Value {
    let mut made = json!({"metadata": {"name": name}, "spec": {
        "seLinux": {"rule": "RunAsAny"}, "runAsUser": {"rule": "RunAsAny"}, "fsGroup": {"rule": "RunAsAny"},
        "supplementalGroups": {"rule": "RunAsAny"}, "allowPrivilegeEscalation": true}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        made["spec"][key] = value.clone();
    }
    made
}

fn pod(spec: Value) -> Value {
    let mut made = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c"}]}});
    for (key, value) in spec.as_object().into_iter().flatten() {
        made["spec"][key] = value.clone();
    }
    made
}

fn container(context: Value) -> Value {
    json!({"containers": [{"name": "c", "securityContext": context}]})
}

fn refusal(spec: Value, asked: Value) -> String {
    match judge(&pod(asked), &[policy("p", spec)], true, |_| true) {
        Verdict::Refused(causes) => listed(&causes),
        Verdict::Allowed(..) => String::new(),
    }
}

#[test]
fn pods_are_refused_in_words() {
    let range = json!([{"min": 1, "max": 10}]);
    let at = "spec.containers[0].securityContext";
    for (spec, asked, told) in [
        (json!({}), json!({}), String::new()),
        (json!({}), container(json!({"privileged": true})), format!("[{at}.privileged: Invalid value: true: Privileged containers are not allowed]")),
        (json!({"privileged": true}), container(json!({"privileged": true})), String::new()),
        (json!({}), json!({"hostNetwork": true, "hostPID": true}), "[spec.securityContext.hostNetwork: Invalid value: true: Host network is not allowed to be used spec.securityContext.hostPID: Invalid value: true: Host PID is not allowed to be used]".into()),
        (json!({}), json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "[spec.volumes[0]: Invalid value: \"hostPath\": hostPath volumes are not allowed to be used]".into()),
        (json!({"volumes": ["hostPath"], "allowedHostPaths": [{"pathPrefix": "/var/log"}]}), json!({"volumes": [{"name": "v", "hostPath": {"path": "/var/logs"}}]}), "[spec.volumes[0].hostPath.pathPrefix: Invalid value: \"/var/logs\": is not allowed to be used]".into()),
        (json!({"volumes": ["*"], "allowedHostPaths": [{"pathPrefix": "/var/log", "readOnly": true}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/var/log/x"}}], "containers": [{"name": "c", "volumeMounts": [{"name": "v"}]}]}),
            "[spec.containers[0].volumeMounts[0].readOnly: Invalid value: false: must be read-only]".into()),
        (json!({"volumes": ["csi"], "allowedCSIDrivers": [{"name": "a"}]}), json!({"volumes": [{"name": "v", "csi": {"driver": "b"}}]}), "[spec.volumes[0].csi.driver: Invalid value: \"b\": Inline CSI driver is not allowed to be used]".into()),
        (json!({"volumes": ["secret"]}), json!({"volumes": [{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}, {"configMap": {"name": "kube-root-ca.crt"}}, {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}]}), String::new()),
        (json!({"volumes": ["secret"]}), json!({"volumes": [{"name": "t", "projected": {"sources": [{"secret": {"name": "x"}}]}}]}), "[spec.volumes[0]: Invalid value: \"projected\": projected volumes are not allowed to be used]".into()),
        (json!({"runAsUser": {"rule": "MustRunAsNonRoot"}}), container(json!({"runAsUser": 0})), format!("[{at}.runAsUser: Invalid value: 0: running with the root UID is forbidden]")),
        (json!({"runAsUser": {"rule": "MustRunAs", "ranges": range}}), container(json!({"runAsUser": 11})), format!("[{at}.runAsUser: Invalid value: 11: must be in the ranges: [{{1 10}}]]")),
        (json!({"fsGroup": {"rule": "MayRunAs", "ranges": range}}), json!({"securityContext": {"fsGroup": 99}}), "[spec.securityContext.fsGroup: Invalid value: [99]: group 99 must be in the ranges: [{1 10}]]".into()),
        (json!({"runAsGroup": {"rule": "MustRunAs", "ranges": range}}), container(json!({"runAsGroup": 99})), format!("[{at}.runAsGroup: Invalid value: [99]: group 99 must be in the ranges: [{{1 10}}]]")),
        (json!({}), container(json!({"capabilities": {"add": ["SYS_ADMIN"]}})), format!("[{at}.capabilities.add: Invalid value: \"SYS_ADMIN\": capability may not be added]")),
        (json!({"allowedCapabilities": ["*"]}), container(json!({"capabilities": {"add": ["SYS_ADMIN"]}})), String::new()),
        (json!({}), json!({"containers": [{"name": "c", "ports": [{"hostPort": 80}]}]}), "[spec.containers[0].ports[0].hostPort: Invalid value: 80: Host port 80 is not allowed to be used. Allowed ports: []]".into()),
        (json!({"hostPorts": [{"min": 1, "max": 9}, {"min": 80, "max": 80}]}), json!({"containers": [{"name": "c", "ports": [{"hostPort": 81}]}]}), "[spec.containers[0].ports[0].hostPort: Invalid value: 81: Host port 81 is not allowed to be used. Allowed ports: [1-9,80]]".into()),
        (json!({"readOnlyRootFilesystem": true}), container(json!({"readOnlyRootFilesystem": false})), format!("[{at}.readOnlyRootFilesystem: Invalid value: false: ReadOnlyRootFilesystem must be set to true]")),
        (json!({"allowPrivilegeEscalation": false}), container(json!({"allowPrivilegeEscalation": true})), format!("[{at}.allowPrivilegeEscalation: Invalid value: true: Allowing privilege escalation for containers is not allowed]")),
        (json!({}), json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), "[pod.spec.securityContext.sysctls[0]: Forbidden: unsafe sysctl \"kernel.msgmax\" is not allowed]".into()),
        (json!({"allowedUnsafeSysctls": ["kernel.*"]}), json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), String::new()),
        (json!({"forbiddenSysctls": ["kernel.shm*"]}), json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced"}]}}), "[pod.spec.securityContext.sysctls[0]: Forbidden: sysctl \"kernel.shm_rmid_forced\" is not allowed]".into()),
        (json!({}), container(json!({"procMount": "Unmasked"})), format!("[{at}.procMount: Invalid value: \"Unmasked\": ProcMountType is not allowed]")),
        (json!({}), container(json!({"seccompProfile": {"type": "RuntimeDefault"}})), "[pod.metadata.annotations[container.seccomp.security.alpha.kubernetes.io/c]: Forbidden: seccomp may not be set]".into()),
        (json!({"seLinux": {"rule": "MustRunAs", "seLinuxOptions": {"level": "s0:c1,c2"}}}), json!({"securityContext": {"seLinuxOptions": {"level": "s0:c2,c1"}}}), String::new()),
        (json!({"seLinux": {"rule": "MustRunAs", "seLinuxOptions": {"user": "u"}}}), json!({"securityContext": {"seLinuxOptions": {"user": "v"}}}), format!("[spec.securityContext.seLinuxOptions.user: Invalid value: \"v\": must be u {at}.seLinuxOptions.user: Invalid value: \"v\": must be u]")),
        (json!({"runtimeClass": {"allowedRuntimeClassNames": ["a"]}}), json!({"runtimeClassName": "b"}), "[spec.runtimeClassName: Invalid value: \"b\": must be one of [a]]".into()),
    ] {
        assert_eq!(refusal(spec.clone(), asked.clone()), told, "{spec} {asked}");
    }
}

#[test]
fn policies_fill_in_what_pods_leave_open() {
    let range = json!([{"min": 7, "max": 10}]);
    for (spec, pointer, expected) in [
        (json!({"fsGroup": {"rule": "MustRunAs", "ranges": range}}), "/spec/securityContext/fsGroup", json!(7)),
        (
            json!({"supplementalGroups": {"rule": "MustRunAs", "ranges": range}}),
            "/spec/securityContext/supplementalGroups",
            json!([7]),
        ),
        (json!({"fsGroup": {"rule": "MayRunAs", "ranges": range}}), "/spec/securityContext", Value::Null),
        (
            json!({"runAsUser": {"rule": "MustRunAs", "ranges": range}}),
            "/spec/containers/0/securityContext/runAsUser",
            json!(7),
        ),
        (
            json!({"runAsUser": {"rule": "MustRunAsNonRoot"}}),
            "/spec/containers/0/securityContext/runAsNonRoot",
            json!(true),
        ),
        (
            json!({"requiredDropCapabilities": ["B", "A"]}),
            "/spec/containers/0/securityContext/capabilities",
            json!({"drop": ["A", "B"]}),
        ),
        (json!({"defaultAddCapabilities": ["B"]}), "/spec/containers/0/securityContext/capabilities/add", json!(["B"])),
        (
            json!({"allowPrivilegeEscalation": false}),
            "/spec/containers/0/securityContext/allowPrivilegeEscalation",
            json!(false),
        ),
        (
            json!({"defaultAllowPrivilegeEscalation": false}),
            "/spec/containers/0/securityContext/allowPrivilegeEscalation",
            json!(false),
        ),
        (
            json!({"readOnlyRootFilesystem": true}),
            "/spec/containers/0/securityContext/readOnlyRootFilesystem",
            json!(true),
        ),
        (
            json!({"seLinux": {"rule": "MustRunAs", "seLinuxOptions": {"level": "s0"}}}),
            "/spec/securityContext/seLinuxOptions/level",
            json!("s0"),
        ),
        (
            json!({"runtimeClass": {"allowedRuntimeClassNames": ["a"], "defaultRuntimeClassName": "a"}}),
            "/spec/runtimeClassName",
            json!("a"),
        ),
        (json!({}), "/spec/containers/0/securityContext", Value::Null),
    ] {
        let Verdict::Allowed(made, _) = judge(&pod(json!({})), &[policy("p", spec.clone())], true, |_| true) else {
            panic!("{spec} was refused")
        };
        assert_eq!(made.pointer(pointer).cloned().unwrap_or_default(), expected, "{spec}");
        // What a policy made, it allows as it is.
        let again = judge(&made, &[policy("p", spec.clone())], false, |_| true);
        assert!(matches!(again, Verdict::Allowed(..)), "{spec}: {again:?}");
    }
}

#[test]
fn the_policy_that_changes_least_counts_and_then_the_first() {
    let changing = json!({"runAsUser": {"rule": "MustRunAs", "ranges": [{"min": 1, "max": 2}]}});
    let (a, b, c) = (policy("a", changing.clone()), policy("b", json!({})), policy("c", json!({})));
    let z = policy("z", changing);
    // Policies, those that may be used, whether they may change something, the annotation: the one that counts.
    for (policies, usable, mutating, hint, expected) in [
        (vec![&a, &b, &c], "abc", true, "", Some("b")),
        (vec![&c, &b], "bc", true, "", Some("b")),
        (vec![&a, &z], "az", true, "", Some("a")),
        (vec![&a, &z], "z", true, "", Some("z")),
        (vec![&a, &b], "a", true, "", Some("a")),
        (vec![&a, &b], "", true, "", None),
        (vec![&a], "a", false, "", None),
        (vec![&b, &c], "bc", false, "c", Some("c")),
        (vec![&b, &c], "b", false, "c", Some("b")),
        // What said before what counts is no proof while a policy decides.
        (vec![&b, &c], "bc", true, "c", Some("b")),
    ] {
        let mut asked = pod(json!({}));
        if !hint.is_empty() {
            asked["metadata"]["annotations"] = json!({ANNOTATION: hint});
        }
        let policies: Vec<Value> = policies.into_iter().cloned().collect();
        let got = match judge(&asked, &policies, mutating, |name| usable.contains(name)) {
            Verdict::Allowed(_, name) => Some(name),
            Verdict::Refused(_) => None,
        };
        assert_eq!(got.as_deref(), expected, "{usable} {mutating} {hint}");
    }
    let denied = judge(&pod(json!({"hostIPC": true})), &[b], true, |_| false);
    assert!(matches!(denied, Verdict::Refused(causes) if causes.is_empty()), "others' policies are not told of");
}
