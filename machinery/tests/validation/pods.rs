//! Pods.

use serde_json::{Value, json};

use crate::{created, expect, pod};

/// Rows of a pod's spec.
#[track_caller]
fn specs(rows: &[(Value, &[&str])]) {
    for (fields, expected) in rows {
        expect(created("", "pods", pod(fields.clone())), expected, fields);
    }
}

/// Rows of a pod's only container.
#[track_caller]
fn containers(rows: &[(Value, &[&str])]) {
    for (fields, expected) in rows {
        let mut container = json!({"name": "c", "image": "i"});
        for (key, value) in fields.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        let spec = json!({"containers": [container], "volumes": [{"name": "v", "emptyDir": {}},
            {"name": "p", "persistentVolumeClaim": {"claimName": "x"}}]});
        expect(created("", "pods", pod(spec)), expected, fields);
    }
}

#[test]
fn windows_has_no_resources_of_pods() {
    let spec = |os: &str| json!({"os": {"name": os}, "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}});
    specs(&[(spec("linux"), &[]), (spec("windows"), &["spec.resources: Forbidden: may not be set for a windows pod"])]);
}

#[test]
fn volumes() {
    let one = |source: Value| {
        let mut volume = json!({"name": "v"});
        for (key, value) in source.as_object().into_iter().flatten() {
            volume[key] = value.clone();
        }
        json!({"volumes": [volume]})
    };
    specs(&[
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}),
            &["spec.volumes[1].name: Duplicate value: \"v\""],
        ),
        (
            one(json!({"nfs": {"server": "s", "path": ""}})),
            &[
                "spec.volumes[0].nfs.path: Required value",
                "spec.volumes[0].nfs.path: Invalid value: \"\": must be an absolute path",
            ],
        ),
        (one(json!({"gcePersistentDisk": {"pdName": ""}})), &["spec.volumes[0].persistentDisk.pdName: Required value"]),
        (
            one(json!({"downwardAPI": {"items": [{"path": "../x"}]}})),
            &[
                "spec.volumes[0].downwardAPI.path: Invalid value: \"../x\": must not contain '..'",
                "spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required",
            ],
        ),
        (
            one(json!({"configMap": {"name": "a", "defaultMode": 1000, "items": [{"key": "", "path": "..x"}]}})),
            &[
                "spec.volumes[0].configMap.defaultMode: Invalid value: 1000: must be a number between 0 and 0777 (octal), \
                 both inclusive",
                "spec.volumes[0].configMap.items[0].key: Required value",
                "spec.volumes[0].configMap.items[0].path: Invalid value: \"..x\": must not start with '..'",
            ],
        ),
        (one(json!({"ephemeral": {}})), &["spec.volumes[0].ephemeral.volumeClaimTemplate: Required value"]),
        (
            json!({"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}),
            &["spec.volumes[0].projected.sources[0].serviceAccountToken: Forbidden: must not be specified when \
                 serviceAccountName is not set"],
        ),
    ]);
}

#[test]
fn mounts_and_devices() {
    containers(&[
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "/x", "mountPropagation": "Bidirectional"}]}),
            &[
                "spec.containers[0].volumeMounts.subPath: Invalid value: \"/x\": must be a relative path",
                "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available \
                 only to privileged containers",
            ],
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/a"}]}),
            &["spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique"],
        ),
        (
            json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "recursiveReadOnly": "Enabled"}]}),
            &[
                "spec.containers[0].volumeMounts.recursiveReadOnly: Forbidden: may only be specified when readOnly is true",
            ],
        ),
        (
            json!({"volumeDevices": [{"name": "v", "devicePath": "/../x"}]}),
            &[
                "spec.containers[0].volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of \
                 PersistentVolumeClaim or Ephemeral for block mode",
                "spec.containers[0].volumeDevices[0].devicePath: Invalid value: \"/../x\": can not contain backsteps ('..')",
            ],
        ),
    ]);
}

#[test]
fn environment() {
    containers(&[
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a b']"}}}]}),
            &["spec.containers[0].env[0].valueFrom.fieldRef: Invalid value: \"a b\": name part must consist of \
                 alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. \
                 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
                 '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"],
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName['x']"}}}]}),
            &["spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.nodeName['x']\": error \
                 converting fieldPath: field label does not support subscript: spec.nodeName['x']"],
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}]}),
            &[
                "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's \
                 values 1m and 1 are supported with the cpu resource",
            ],
        ),
        (
            json!({"envFrom": [{}]}),
            &["spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"],
        ),
        (
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            &[
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ],
        ),
    ]);
}

#[test]
fn amounts() {
    containers(&[
        (
            json!({"resources": {"limits": {"hugepages-2Mi": "3Mi", "cpu": "1"}}}),
            &[
                "spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer \
                 multiple of hugepages-2Mi",
                "spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer \
                 multiple of hugepages-2Mi",
            ],
        ),
        (
            json!({"resources": {"limits": {"example.com/gpu": "500m"}}}),
            &[
                "spec.containers[0].resources.limits[example.com/gpu]: Invalid value: \"500m\": must be an integer",
                "spec.containers[0].resources.requests[example.com/gpu]: Invalid value: \"500m\": must be an integer",
            ],
        ),
        (
            json!({"resources": {"requests": {"example.com/gpu": "1"}}}),
            &[
                "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
            ],
        ),
        (
            json!({"resizePolicy": [{"resourceName": "disk", "restartPolicy": "Now"}]}),
            &[
                "spec.containers[0].resizePolicy: Unsupported value: \"disk\": supported values: \"cpu\", \"memory\"",
                "spec.containers[0].resizePolicy: Unsupported value: \"Now\": supported values: \"NotRequired\", \
                 \"RestartContainer\"",
            ],
        ),
        (
            json!({"securityContext": {"procMount": "Unmasked", "runAsUser": -1}}),
            &[
                "spec.containers[0].securityContext.procMount: Invalid value: \"Unmasked\": `hostUsers` must be false to use \
                 `Unmasked`",
                "spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
            ],
        ),
    ]);
    specs(&[(
        json!({"resources": {"requests": {"cpu": "1"}, "limits": {"storage": "1"}},
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}]}),
        &[
            "spec.resources.limits[storage]: Unsupported value: \"storage\": supported values: \"cpu\", \"hugepages-\", \
             \"memory\"",
            "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests \
             of 2",
        ],
    )]);
}

#[test]
fn resources_of_a_whole_pod() {
    let sized = |pod: Value, container: Value| json!({"resources": pod, "containers": [{"name": "c", "image": "i", "resources": container}]});
    specs(&[
        // What the pod says nothing of is not compared.
        (sized(json!({"requests": {"memory": "1Gi"}}), json!({"requests": {"cpu": "2"}})), &[]),
        (
            json!({"os": {"name": "windows"}, "resources": {"requests": {"bogus": "1"}}}),
            &["spec.resources: Forbidden: may not be set for a windows pod"],
        ),
        (
            sized(json!({"claims": [{"name": "r"}]}), json!({})),
            &[
                "spec.resources.claims: Forbidden: claims may not be set for Resources at pod-level",
                "spec.resources.claims[0]: Not found: \"r\": must be one of the names in pod.spec.resourceClaims which is empty",
            ],
        ),
        (
            sized(
                json!({"requests": {"cpu": "1", "hugepages-2Mi": "2Mi"}, "limits": {"hugepages-2Mi": "2Mi"}}),
                json!({"requests": {"cpu": "1", "hugepages-2Mi": "4Mi"}, "limits": {"hugepages-2Mi": "4Mi"}}),
            ),
            &[
                "spec.resources.containers[0][hugepages-2Mi].limits: Invalid value: \"4Mi\": must be less than or equal to pod \
                 limits of 2Mi",
                "spec.resources.limits[hugepages-2Mi]: Invalid value: \"2Mi\": must be greater than or equal to aggregate \
                 container limits of 4Mi",
                "spec.resources.requests[hugepages-2Mi]: Invalid value: \"2Mi\": must be greater than or equal to aggregate \
                 container requests of 4Mi",
            ],
        ),
    ]);
    containers(&[
        (
            json!({"resources": {"requests": {"cpu": "1", "hugepages-odd": "1"}, "limits": {"hugepages-odd": "1"}}}),
            &[
                "spec.containers[0].resources.limits[hugepages-odd]: Invalid value: \"1\": 1 is not positive integer multiple of \
                 hugepages-odd",
                "spec.containers[0].resources.requests[hugepages-odd]: Invalid value: \"1\": 1 is not positive integer multiple \
                 of hugepages-odd",
            ],
        ),
        (
            json!({"resources": {"requests": {"limits.hugepages-2Mi": "1"}}}),
            &[
                "spec.containers[0].resources.requests[limits.hugepages-2Mi]: Invalid value: \"limits.hugepages-2Mi\": must be \
                 a standard resource for containers",
                "spec.containers[0].resources.requests[limits.hugepages-2Mi]: Invalid value: \"limits.hugepages-2Mi\": must be \
                 a standard resource type or fully qualified",
            ],
        ),
        (
            json!({"resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"}],
                "env": [{"name": "a", "valueFrom": {"fileKeyRef": {"volumeName": "p", "path": "/a", "key": "k"}}},
                    {"name": "b", "valueFrom": {"fileKeyRef": {"volumeName": "", "path": "../a", "key": "k"}}}]}),
            &[
                "spec.containers[0].env[0].valueFrom.fileKeyRef.volumeName: Invalid value: \"p\": referenced volume must be of \
                 type emptyDir",
                "spec.containers[0].env[1].valueFrom.fileKeyRef.volumeName: Required value",
                "spec.containers[0].env[1].valueFrom.fileKeyRef.volumeName: Not found: \"\"",
                "spec.containers[0].env[1].valueFrom.fileKeyRef.path: Invalid value: \"../a\": must not contain '..'",
            ],
        ),
    ]);
    specs(&[(
        json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i",
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
        &["spec.containers[0].resizePolicy: Invalid value: \"RestartContainer\": must be 'NotRequired' when pod \
           `restartPolicy` is 'Never'"],
    )]);
}

#[test]
fn placement_and_names() {
    specs(&[
        (
            json!({"topologySpreadConstraints": [
                {"maxSkew": 0, "topologyKey": "", "whenUnsatisfiable": "Maybe", "minDomains": 0, "matchLabelKeys": ["a"]}]}),
            &[
                "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                "spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty",
                "spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Maybe\": supported values: \
                 \"DoNotSchedule\", \"ScheduleAnyway\"",
                "spec.topologySpreadConstraints[0].minDomains: Invalid value: 0: must be greater than zero",
                "spec.topologySpreadConstraints[0].minDomains: Invalid value: 0: can only use minDomains if \
                 whenUnsatisfiable=DoNotSchedule, not Maybe",
                "spec.topologySpreadConstraints[0].matchLabelKeys: Forbidden: must not be specified when labelSelector is not \
                 set",
            ],
        ),
        (
            json!({"dnsPolicy": "None"}),
            &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
        ),
        (
            json!({"hostUsers": false, "hostPID": true, "hostNetwork": true}),
            &[
                "spec.hostNetwork: Forbidden: when `hostUsers` is false",
                "spec.HostPID: Forbidden: when `hostUsers` is false",
            ],
        ),
        (
            json!({"hostUsers": false, "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "a"}}],
                "containers": [{"name": "c", "image": "i", "volumeDevices": [{"name": "v", "devicePath": "/d"}]}]}),
            &["spec.containers[0].volumeDevices: Forbidden: when `hostUsers` is false"],
        ),
        (
            json!({"securityContext": {"seLinuxChangePolicy": "MountOption"}}),
            &["spec.securityContext.seLinuxChangePolicy: Unsupported value: \"MountOption\": supported values: \
                 \"Recursive\""],
        ),
        (
            json!({"os": {"name": "beos"}}),
            &["spec.os: Unsupported value: \"beos\": supported values: \"linux\", \"windows\""],
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "net.a"}, {"name": "net.a"}]}, "hostNetwork": true}),
            &[
                "spec.securityContext.sysctls[1].name: Duplicate value: \"net.a\"",
                "spec.securityContext.sysctls[0].name: Invalid value: \"net.a\": may not be specified when 'hostNetwork' is \
                 true",
                "spec.securityContext.sysctls[1].name: Invalid value: \"net.a\": may not be specified when 'hostNetwork' is \
                 true",
            ],
        ),
    ]);
}

#[test]
fn overhead_priorities_and_tolerations() {
    specs(&[
        (
            json!({"overhead": {"cpu": "-1"}}),
            &["spec.overhead.limits[cpu]: Invalid value: \"-1\": must be greater than or equal to 0"],
        ),
        (json!({"preemptionPolicy": ""}), &["spec.preemptionPolicy: Required value"]),
        (
            json!({"hostnameOverride": "a", "setHostnameAsFQDN": true, "hostNetwork": true}),
            &[
                "spec.hostnameOverride: Forbidden: may not be specified when hostNetwork is true",
                "spec.hostnameOverride: Forbidden: may not be specified when setHostnameAsFQDN is true",
            ],
        ),
        (
            json!({"tolerations": [{"key": "a", "operator": "Gt", "value": "1"}, {"key": "a", "operator": "Odd"}]}),
            &[
                "spec.tolerations[0].operator: Unsupported value: \"Gt\": supported values: \"Equal\", \"Exists\", \"Lt\", \
                 \"Gt\"",
                "spec.tolerations[1].operator: Unsupported value: \"Odd\": supported values: \"Equal\", \"Exists\"",
            ],
        ),
        (
            json!({"preemptionPolicy": "Odd"}),
            &[
                "spec.preemptionPolicy: Unsupported value: \"Odd\": supported values: \"PreemptLowerPriority\", \"Never\"",
            ],
        ),
    ]);
}

#[test]
fn what_an_image_as_a_volume_needs() {
    let template = |reference: Value| {
        json!({"template": {"spec": {"containers": [{"name": "c", "image": "i"}],
            "volumes": [{"name": "v", "image": reference}]}}})
    };
    let why = "template.spec.volumes[0].image.reference: Required value";
    let new = || template(json!({"pullPolicy": "Always"}));
    assert_eq!(created("", "podtemplates", new()), [why]);
    // What an older server let be stays.
    assert_eq!(crate::changed("", "podtemplates", "", new(), Some(new())), [""; 0]);
    let before = template(json!({"reference": "r"}));
    assert_eq!(crate::changed("", "podtemplates", "", new(), Some(before)), [why]);
}

#[test]
fn pods_of_a_node_claim_nothing() {
    let mut object = pod(json!({"nodeName": "n", "resourceClaims": [{"name": ""}, {"name": ""}]}));
    object["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let why = "[]: Forbidden: static pods do not support resource claims";
    assert_eq!(created("", "pods", object), [why, why]);
}

#[test]
fn annotations_of_pods() {
    for (annotations, expected) in [
        (
            json!({"controller.kubernetes.io/pod-deletion-cost": "+10"}),
            &[
                "metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"+10\": must be a 32bit integer",
            ][..],
        ),
        (
            json!({"kubernetes.io/config.mirror": "x"}),
            &[
                "metadata.annotations[kubernetes.io/config.mirror]: Invalid value: \"x\": must set spec.nodeName if mirror pod \
                 annotation is set",
            ],
        ),
        (
            json!({"container.apparmor.security.beta.kubernetes.io/other": "odd"}),
            &[
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/other]: Invalid value: \"odd\": invalid \
                 AppArmor profile name: \"odd\"",
                "metadata.annotations[container.apparmor.security.beta.kubernetes.io/other]: Invalid value: \"other\": \
                 container not found",
            ],
        ),
    ] {
        let mut object = pod(json!({}));
        object["metadata"]["annotations"] = annotations.clone();
        expect(created("", "pods", object), expected, &annotations);
    }
}
