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
    let class = |name: &str| json!({"volumeAttributesClassName": name});
    let refused = |to: &str| {
        format!(
            "spec.volumeAttributesClassName: Forbidden: update to {to} is forbidden when \
             status.currentVolumeAttributesClassName is not nil"
        )
    };
    let (bound, in_force) =
        (json!({"phase": "Bound"}), json!({"phase": "Bound", "currentVolumeAttributesClassName": "a"}));
    for (status, before, after, expected) in [
        (&bound, json!({}), json!({"resources": {"requests": {"storage": "3Gi"}}}), vec![]),
        (&bound, json!({}), class("a"), vec![]),
        (&bound, class("a"), class("b"), vec![]),
        (&bound, class("a"), json!({}), vec![]),
        (&bound, class("a"), class(""), vec![]),
        (&in_force, class("a"), class("b"), vec![]),
        (&in_force, class("a"), json!({}), vec![refused("nil")]),
        (&in_force, class("a"), class(""), vec![refused("empty string")]),
    ] {
        let [old, new] = [&before, &after].map(|fields| {
            let mut claim = claim(fields.clone());
            claim["status"] = status.clone();
            claim
        });
        assert_eq!(changed("", "persistentvolumeclaims", "", new, Some(old)), expected, "{before} {after}");
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
