//! What of an object may change, and how often the same problem is told.

use serde_json::{Value, json};

use crate::{changed, created, expect, pod};

#[test]
fn problems_of_metadata_are_told_by_each_that_looks_at_them() {
    for (group, plural, times) in [
        ("", "configmaps", 4),
        ("", "limitranges", 3),
        ("apps", "controllerrevisions", 3),
        ("coordination.k8s.io", "leases", 3),
        ("policy", "poddisruptionbudgets", 2),
        ("", "events", 2),
        ("rbac.authorization.k8s.io", "roles", 4),
        ("apiregistration.k8s.io", "apiservices", 4),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", 3),
    ] {
        let mut old = json!({"metadata": {"name": "n", "namespace": "d"}});
        if plural == "controllerrevisions" {
            old["data"] = json!({});
        }
        let mut new = old.clone();
        new["metadata"]["labels"] = json!({"a": "b c"});
        let found = changed(group, plural, "", new, Some(old));
        assert_eq!(found.iter().filter(|text| text.starts_with("metadata.labels: ")).count(), times, "{plural}");
    }
}

/// Rows of metadata of a new object, beside its name.
fn metadata(rows: &[(Value, &[&str])]) {
    for (metadata, expected) in rows {
        let mut object = json!({"metadata": {"name": "n", "namespace": "d"}});
        for (key, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        expect(created("", "configmaps", object), expected, metadata);
    }
}

#[test]
fn finalizers_and_managers() {
    metadata(&[
        (
            json!({"finalizers": ["odd"]}),
            &[
                "metadata.finalizers[0]: Invalid value: \"odd\": name is neither a standard finalizer name nor is it fully \
               qualified",
            ],
        ),
        (
            json!({"finalizers": ["orphan", "foregroundDeletion"]}),
            &[
                "metadata.finalizers: Invalid value: [\"orphan\",\"foregroundDeletion\"]: finalizer orphan and foregroundDeletion \
               cannot be both set",
            ],
        ),
        (
            json!({"managedFields": [{"operation": "Guess", "manager": "m", "fieldsType": "V2"}]}),
            &[
                "metadata.managedFields[0].operation: Invalid value: \"Guess\": must be `Apply` or `Update`",
                "metadata.managedFields[0].fieldsType: Invalid value: \"V2\": must be `FieldsV1`",
            ],
        ),
        (
            json!({"managedFields": [{"operation": "Apply", "manager": "a\u{7}é\u{200b}"}]}),
            &[
                "metadata.managedFields[0].manager: Invalid value: \"a\\aé\\u200b\": invalid character U+0007 (at position 1)",
                "metadata.managedFields[0].manager: Invalid value: \"a\\aé\\u200b\": invalid character U+200B (at position 4)",
            ],
        ),
        (
            json!({"generateName": "-"}),
            &[
                "metadata.generateName: Invalid value: \"-\": a lowercase RFC 1123 subdomain must consist of lower case \
                 alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. \
                 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
    ]);
}

#[test]
fn owners() {
    metadata(&[
        (
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]}),
            &["metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"],
        ),
        (
            json!({"ownerReferences": [
                {"apiVersion": "a/b/c", "kind": "K", "name": "a", "uid": "1", "controller": true},
                {"apiVersion": "a/", "kind": "K", "name": "b", "uid": "2"},
                {"apiVersion": "v1", "kind": "<", "name": "c", "uid": "3", "controller": false}]}),
            &[
                "metadata.ownerReferences.apiVersion: Invalid value: \"a/b/c\": version must not be empty",
                "metadata.ownerReferences.apiVersion: Invalid value: \"a/\": version must not be empty",
            ],
        ),
        (
            json!({"ownerReferences": [
                {"apiVersion": "v1", "kind": "K", "name": "a", "uid": "1", "controller": true},
                {"apiVersion": "v1", "kind": "<", "name": "b", "uid": "2", "controller": true},
                {"apiVersion": "v1", "kind": "K", "name": "c", "uid": "3", "controller": true}]}),
            &[
                "metadata.ownerReferences: Invalid value: \
                 [{\"apiVersion\":\"v1\",\"kind\":\"K\",\"name\":\"a\",\"uid\":\"1\",\"controller\":true},\
                 {\"apiVersion\":\"v1\",\"kind\":\"\\u003c\",\"name\":\"b\",\"uid\":\"2\",\"controller\":true},\
                 {\"apiVersion\":\"v1\",\"kind\":\"K\",\"name\":\"c\",\"uid\":\"3\",\"controller\":true}]: Only one reference \
                 can have Controller set to true. Found \"true\" in references for K/a and </b",
                "metadata.ownerReferences: Invalid value: \
                 [{\"apiVersion\":\"v1\",\"kind\":\"K\",\"name\":\"a\",\"uid\":\"1\",\"controller\":true},\
                 {\"apiVersion\":\"v1\",\"kind\":\"\\u003c\",\"name\":\"b\",\"uid\":\"2\",\"controller\":true},\
                 {\"apiVersion\":\"v1\",\"kind\":\"K\",\"name\":\"c\",\"uid\":\"3\",\"controller\":true}]: Only one reference \
                 can have Controller set to true. Found \"true\" in references for K/a and K/c",
            ],
        ),
    ]);
}

#[test]
fn finalizers_without_a_domain() {
    for (group, plural, refused) in [
        ("", "configmaps", true),
        ("", "events", false),
        ("events.k8s.io", "events", true),
        ("policy", "poddisruptionbudgets", false),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations", false),
        ("apiextensions.k8s.io", "customresourcedefinitions", false),
        ("apiregistration.k8s.io", "apiservices", false),
    ] {
        let old = json!({"metadata": {"name": "n", "namespace": "d"}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["bare", "kubernetes", "a.b/c"]);
        for found in [created(group, plural, new.clone()), changed(group, plural, "", new, Some(old))] {
            let of = found.iter().filter(|text| text.starts_with("metadata.finalizers")).count();
            assert_eq!(of > 0, refused, "{group}/{plural}: {found:?}");
        }
    }
}

#[test]
fn of_a_status_update_metadata_is_told_of_less() {
    let old = json!({"metadata": {"name": "n", "namespace": "d"}});
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b c"});
    for (plural, times) in [("services", 3), ("persistentvolumes", 3), ("resourcequotas", 3)] {
        let found = changed("", plural, "status", new.clone(), Some(old.clone()));
        assert_eq!(found.iter().filter(|text| text.starts_with("metadata.labels: ")).count(), times, "{plural}");
    }
}

/// Rows of the status of a bound pod whose container ended.
fn pod_status(rows: &[(Value, &[&str])]) {
    let old = json!({"metadata": {"name": "n"},
        "spec": {"restartPolicy": "Never", "nodeName": "a", "containers": [{"name": "c", "image": "i"}]}, "status": {"qosClass": "BestEffort",
        "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}});
    for (status, expected) in rows {
        let mut new = old.clone();
        new["status"] = json!({"qosClass": "BestEffort"});
        for (key, value) in status.as_object().into_iter().flatten() {
            new["status"][key] = value.clone();
        }
        expect(changed("", "pods", "status", new, Some(old.clone())), expected, status);
    }
}

#[test]
fn the_status_of_a_pod() {
    pod_status(&[
        (
            json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]}),
            &["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"],
        ),
        (
            json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]}),
            &[
                "status.podIPs: Invalid value: [{\"IP\":\"10.0.0.1\"},{\"IP\":\"10.0.0.1\"}]: may specify no more than one IP \
                 for each IP family",
            ],
        ),
        (
            json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "x"}]}),
            &[
                "status.podIPs[1]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "status.podIPs: Internal error: failed to check for dual stack with error:invalid IP[1]: x",
                "status.podIPs: Invalid value: [{\"IP\":\"10.0.0.1\"},{\"IP\":\"x\"}]: may specify no more than one IP for \
                 each IP family",
            ],
        ),
        (
            json!({"observedGeneration": -1, "nominatedNodeName": "b",
                "conditions": [{"type": "A B", "observedGeneration": -2}, {"type": "Ready"}]}),
            &[
                "status.conditions[0].Type: Invalid value: \"A B\": name part must consist of alphanumeric characters, '-', '_' \
                 or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
                 regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
                "status.conditions[0].observedGeneration: Invalid value: -2: must be a non-negative integer",
                "status.nominatedNodeName: Forbidden: may not be set on pods that are already bound to a node",
                "status.observedGeneration: Invalid value: -1: must be a non-negative integer",
            ],
        ),
    ]);
}

#[test]
fn the_status_of_containers_and_claims() {
    pod_status(&[
        (
            json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}, "user": {"linux": {"uid": -1}},
                "allocatedResourcesStatus": [{"name": "cpu", "resources": [{"health": "Healthy", "message": ""}]}]}]}),
            &[
                "status.containerStatuses[0].user.linux.uid: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                "status.containerStatuses[0].allocatedResourcesStatus[0].name: Invalid value: \"cpu\": must match one of the \
                 container's resource requests",
                "status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].message: Required value: must be \
                 non-empty if specified",
            ],
        ),
        (
            json!({"extendedResourceClaimStatus": {"requestMappings": [
                {"containerName": "c", "resourceName": "a/b", "requestName": "r"},
                {"containerName": "d", "resourceName": "a/b", "requestName": "r"},
                {"containerName": "d", "resourceName": "a/b", "requestName": "r"}]}}),
            &[
                "status.extendedResourceClaimStatus.requestMappings[0].resourceName: Invalid value: \"a/b\": must match the \
                 extended resource name of an entry in spec.initContainers.resources.requests or \
                 spec.containers.resources.requests",
                "status.extendedResourceClaimStatus.requestMappings[1].containerName: Invalid value: \"d\": must match the \
                 name of an entry in spec.initContainers.name or spec.containers.name",
                "status.extendedResourceClaimStatus.requestMappings[2].containerName: Duplicate value: \"d\"",
                "status.extendedResourceClaimStatus.requestMappings[2].containerName: Invalid value: \"d\": must match the \
                 name of an entry in spec.initContainers.name or spec.containers.name",
                "status.extendedResourceClaimStatus.requestMappings[2].requestName: Duplicate value: \"r\"",
                "status.extendedResourceClaimStatus.requestMappings[2].resourceName: Duplicate value: \"a/b\"",
                "status.extendedResourceClaimStatus.resourceClaimName: Required value",
            ],
        ),
        (
            json!({"hostIP": "10.0.0.2", "hostIPs": [{"ip": "10.0.0.1"}]}),
            &["status.hostIPs[0].ip: Invalid value: \"10.0.0.1\": must be equal to `hostIP`"],
        ),
        (
            json!({"resourceClaimStatuses": [{"name": "r", "resourceClaimName": "A"}]}),
            &[
                "status.resourceClaimStatuses[0].name: Invalid value: \"r\": must match the name of an entry in \
                 `spec.resourceClaims`",
                "status.resourceClaimStatuses[0].resourceClaimName: Invalid value: \"A\": a lowercase RFC 1123 subdomain \
                 must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric \
                 character (e.g. 'example.com', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            ],
        ),
        (json!({"qosClass": "Guaranteed"}), &["status.qosClass: Invalid value: \"Guaranteed\": field is immutable"]),
    ]);
}

#[test]
fn a_container_that_ended_runs_again_if_it_may() {
    let rules = |action: &str| json!([{"action": action, "exitCodes": {"operator": "In", "values": [3]}}]);
    for (pod_policy, container, code, may) in [
        ("Always", json!({}), 0, true),
        ("Always", json!({"restartPolicy": "Never"}), 0, false),
        ("Never", json!({}), 3, false),
        ("Never", json!({"restartPolicy": "Never", "restartPolicyRules": rules("Restart")}), 3, true),
        ("Never", json!({"restartPolicy": "Never", "restartPolicyRules": rules("Restart")}), 4, false),
        ("Never", json!({"restartPolicy": "Never", "restartPolicyRules": rules("RestartAllContainers")}), 4, true),
        ("OnFailure", json!({}), 0, false),
        ("OnFailure", json!({}), 1, true),
        // What the spec does not have is never started again.
        ("Always", json!({"name": "other"}), 1, false),
    ] {
        for (containers, statuses) in [("containers", "containerStatuses"), ("initContainers", "initContainerStatuses")]
        {
            let mut own = json!({"name": "c", "image": "i"});
            for (key, value) in container.as_object().into_iter().flatten() {
                own[key] = value.clone();
            }
            let mut old = json!({"metadata": {"name": "n"}, "spec": {"restartPolicy": pod_policy}, "status": {}});
            old["spec"][containers] = json!([own]);
            let mut new = old.clone();
            old["status"][statuses] = json!([{"name": "c", "state": {"terminated": {"exitCode": code}}}]);
            new["status"][statuses] = json!([{"name": "c", "state": {"running": {}}}]);
            let found = changed("", "pods", "status", new, Some(old));
            let field =
                format!("status.{statuses}[0].state: Forbidden: may not be transitioned to non-terminated state");
            let expected = if may { vec![] } else { vec![field] };
            assert_eq!(found, expected, "{pod_policy} {container} {code}");
        }
    }
}

#[test]
fn a_pod_at_a_gate_keeps_its_affinity() {
    let gated = |affinity: Value| {
        let mut object = pod(json!({"schedulingGates": [{"name": "a/b"}]}));
        if !affinity.is_null() {
            object["spec"]["affinity"] = affinity;
        }
        object
    };
    let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
    let old = gated(json!({"nodeAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}));
    let found = changed("", "pods", "", gated(Value::Null), Some(old));
    let expected = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Invalid value: \
                    null: no additions/deletions to non-empty NodeSelectorTerms list are allowed";
    assert_eq!(found, [expected]);
}

#[test]
fn resizing_a_pod() {
    let sized = |resources: Value, policy: Value| {
        let mut object = pod(json!({"containers": [{"name": "c", "image": "i", "resources": resources}],
            "initContainers": [{"name": "i", "image": "i", "resizePolicy": policy}]}));
        object["status"] = json!({"qosClass": "Burstable"});
        object
    };
    let old = || sized(json!({"requests": {"cpu": "1"}}), json!([]));
    for (new, expected) in [
        (sized(json!({"requests": {"cpu": "2"}}), json!([])), &[][..]),
        (
            sized(json!({"requests": {"cpu": "2", "ephemeral-storage": "1Gi"}}), json!([])),
            &["spec: Forbidden: only cpu and memory resources are mutable"],
        ),
    ] {
        expect(changed("", "pods", "resize", new.clone(), Some(old())), expected, &new);
    }
    let mut claiming = old();
    claiming["spec"]["resourceClaims"] = json!([{"name": "r", "resourceClaimName": "r"}]);
    claiming["spec"]["containers"][0]["resources"]["claims"] = json!([{"name": "r"}]);
    let found = changed("", "pods", "resize", claiming.clone(), Some(claiming));
    assert_eq!(found, ["spec: Forbidden: only cpu and memory resources are mutable"]);
    let mut windows = old();
    windows["spec"]["os"] = json!({"name": "windows"});
    let found = changed("", "pods", "resize", windows.clone(), Some(windows));
    assert_eq!(found, ["[]: Forbidden: windows pods cannot be resized"]);
}

#[test]
fn leases_and_schedules() {
    let lease = json!({"metadata": {"name": "l", "namespace": "d"}, "spec": {"preferredHolder": "a"}});
    let expected = ["spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined"];
    assert_eq!(created("coordination.k8s.io", "leases", lease), expected);
    let lease = json!({"metadata": {"name": "l", "namespace": "d"}, "spec": {"strategy": "Mine"}});
    let expected =
        ["spec.strategy.strategy: Unsupported value: \"Mine\": supported values: \"OldestEmulationVersion\""];
    assert_eq!(created("coordination.k8s.io", "leases", lease), expected);
    let cron = |spec: Value| {
        let mut object = json!({"metadata": {"name": "c", "namespace": "d"}, "spec": {"schedule": "* * * * *", "jobTemplate":
            {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        object
    };
    for (spec, expected) in [
        (
            json!({"schedule": "TZ=UTC * * * * *"}),
            "spec.schedule: Invalid value: \"TZ=UTC * * * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
        ),
        (json!({"timeZone": "a..b"}), "spec.timeZone: Invalid value: \"a..b\": time: invalid location name"),
        (json!({"timeZone": "-x"}), "spec.timeZone: Invalid value: \"-x\": unknown time zone -x"),
        (json!({"timeZone": ""}), "spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"),
    ] {
        assert_eq!(created("batch", "cronjobs", cron(spec)), [expected]);
    }
}
