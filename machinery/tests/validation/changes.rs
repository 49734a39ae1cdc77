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

#[test]
fn owners_and_managers() {
    for (metadata, expected) in [
        (
            json!({"finalizers": ["odd"]}),
            &[
                "metadata.finalizers[0]: Invalid value: \"odd\": name is neither a standard finalizer name nor is it fully \
               qualified",
            ][..],
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
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": ""}]}),
            &["metadata.ownerReferences.uid: Invalid value: \"\": must not be empty"],
        ),
    ] {
        let mut object = json!({"metadata": {"name": "n", "namespace": "d"}});
        for (key, value) in metadata.as_object().into_iter().flatten() {
            object["metadata"][key] = value.clone();
        }
        expect(created("", "configmaps", object), expected, &metadata);
    }
}

#[test]
fn the_status_of_a_pod() {
    let old = json!({"metadata": {"name": "n"}, "spec": {"restartPolicy": "Never"}, "status": {"qosClass": "BestEffort",
        "containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}});
    for (status, expected) in [
        (
            json!({"containerStatuses": [{"name": "c", "state": {"running": {}}}]}),
            &["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"][..],
        ),
        (
            json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0.1"}]}),
            &[
                "status.podIPs: Invalid value: [{\"IP\":\"10.0.0.1\"},{\"IP\":\"10.0.0.1\"}]: may specify no more than one IP \
                 for each IP family",
                "status.podIPs[1]: Duplicate value: {\"IP\":\"10.0.0.1\"}",
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
    ] {
        let mut new = old.clone();
        new["status"] = json!({"qosClass": "BestEffort"});
        for (key, value) in status.as_object().into_iter().flatten() {
            new["status"][key] = value.clone();
        }
        expect(changed("", "pods", "status", new, Some(old.clone())), expected, &status);
    }
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
    let mut windows = old();
    windows["spec"]["os"] = json!({"name": "windows"});
    let found = changed("", "pods", "resize", windows.clone(), Some(windows));
    assert_eq!(found, [": Forbidden: windows pods cannot be resized"]);
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
        (json!({"timeZone": "-x"}), "spec.timeZone: Invalid value: \"-x\": unknown time zone -x"),
        (json!({"timeZone": ""}), "spec.timeZone: Invalid value: \"\": timeZone must be nil or non-empty string"),
    ] {
        assert_eq!(created("batch", "cronjobs", cron(spec)), [expected]);
    }
}
