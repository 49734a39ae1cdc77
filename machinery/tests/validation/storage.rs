//! Volumes, claims and the kinds of the storage group.

use serde_json::{Value, json};

use crate::{changed, created, expect};

fn volume(fields: Value) -> Value {
    let mut spec = json!({"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]});
    for (key, value) in fields.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "v"}, "spec": spec})
}

fn claim(fields: Value) -> Value {
    let mut spec = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}});
    for (key, value) in fields.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "c", "namespace": "d"}, "spec": spec, "status": {"phase": "Bound"}})
}

#[test]
fn persistent_volumes() {
    for (fields, expected) in [
        (
            json!({"local": {"path": "/a/../b"}}),
            &[
                "spec.local.path: Invalid value: \"/a/../b\": must not contain '..'",
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ][..],
        ),
        (
            json!({"hostPath": {"path": "/"}, "persistentVolumeReclaimPolicy": "Recycle"}),
            &["spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'"],
        ),
        (
            json!({"csi": {"driver": "d", "volumeHandle": "h", "nodePublishSecretRef": {"name": "s"}}}),
            &["spec.csi.nodePublishSecretRef.namespace: Required value"],
        ),
        (
            json!({"nfs": {"server": "s", "path": "/"}, "volumeAttributesClassName": ""}),
            &[
                "spec.volumeAttributesClassName: Required value: an empty string is disallowed",
                "spec.csi: Required value: has to be specified when using volumeAttributesClassName",
            ],
        ),
        (
            json!({"nfs": {"server": "s", "path": "/"}, "nodeAffinity": {}}),
            &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
        ),
    ] {
        expect(created("", "persistentvolumes", volume(fields.clone())), expected, &fields);
    }
}

#[test]
fn what_of_a_claim_may_change() {
    for (before, after, expected) in [
        (json!({}), json!({"resources": {"requests": {"storage": "3Gi"}}}), &[][..]),
        (
            json!({"volumeAttributesClassName": "a"}),
            json!({}),
            &["spec.volumeAttributesClassName: Forbidden: update to nil is forbidden when \
               status.currentVolumeAttributesClassName is not nil"],
        ),
        (
            json!({"volumeAttributesClassName": "a"}),
            json!({"volumeAttributesClassName": ""}),
            &["spec.volumeAttributesClassName: Forbidden: update to empty string is forbidden when \
               status.currentVolumeAttributesClassName is not nil"],
        ),
        (json!({"volumeAttributesClassName": "a"}), json!({"volumeAttributesClassName": "b"}), &[]),
    ] {
        let mut before = claim(before);
        if after != json!({"resources": {"requests": {"storage": "3Gi"}}}) {
            before["status"]["currentVolumeAttributesClassName"] = json!("a");
        }
        let found = changed("", "persistentvolumeclaims", "", claim(after.clone()), Some(before));
        let told: Vec<String> = found.into_iter().filter(|text| !text.starts_with("spec: ")).collect();
        expect(told, expected, &after);
    }
}

#[test]
fn a_class_that_was_never_applied_may_be_taken_back() {
    let found = changed(
        "",
        "persistentvolumeclaims",
        "",
        claim(json!({})),
        Some(claim(json!({"volumeAttributesClassName": "a"}))),
    );
    assert_eq!(found, [""; 0]);
}

#[test]
fn how_far_a_claim_is_with_growing() {
    let mut new = claim(json!({}));
    new["status"]["allocatedResourceStatuses"] = json!({"storage": "Odd", "cpu": "NodeResizePending"});
    let expected = [
        "status.allocatedResourceStatuses: Unsupported value: \"cpu\": supported values: \"storage\"",
        "status.allocatedResourceStatuses: Unsupported value: \"storage\": supported values: \
         \"ControllerResizeInProgress\", \"ControllerResizeInfeasible\", \"NodeResizeInProgress\", \
         \"NodeResizeInfeasible\", \"NodeResizePending\"",
    ];
    let found = changed("", "persistentvolumeclaims", "status", new, Some(claim(json!({}))));
    assert_eq!(found, expected);
}

#[test]
fn attachments_and_classes() {
    let inline = json!({"metadata": {"name": "a"}, "spec": {"attacher": "d", "nodeName": "n", "source": {"inlineVolumeSpec":
        {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1"}, "nfs": {"server": "s", "path": "/"}}}}});
    let at = "spec.source.inlineVolumeSpec";
    let expected = [
        format!("{at}.capacity: Forbidden: may not be specified in the context of inline volumes"),
        format!("{at}.csi: Required value: has to be specified in the context of inline volumes"),
    ];
    assert_eq!(created("storage.k8s.io", "volumeattachments", inline), expected);
    let class = json!({"metadata": {"name": "c"}, "provisioner": "p", "allowedTopologies": [
        {"matchLabelExpressions": [{"key": "zone", "values": ["a", "a"]}]},
        {"matchLabelExpressions": [{"key": "zone", "values": ["a"]}]}]});
    let expected = [
        "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"a\"",
        "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
    ];
    assert_eq!(created("storage.k8s.io", "storageclasses", class), expected);
}
