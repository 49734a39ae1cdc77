//! The cells of volumes and of what provides them.

use serde_json::Value;

use super::text::{NONE, UNSET, access_modes, age_of, items, joined, name, or, shown, word};

/// The annotation that stood for the class before there was a field.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn class(object: &Value) -> &str {
    let annotation = &object["metadata"]["annotations"][OLD_CLASS];
    word(if annotation.is_string() { annotation } else { &object["spec"]["storageClassName"] })
}

fn phase(object: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_string() {
        return "Terminating".into();
    }
    word(&object["status"]["phase"]).into()
}

/// Cells of a PersistentVolumeClaim.
pub fn claim(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let (mut capacity, mut modes) = (Value::from(""), String::new());
    if !word(&spec["volumeName"]).is_empty() {
        modes = access_modes(&status["accessModes"]);
        capacity = shown(&status["capacity"]["storage"], "0");
    }
    vec![
        name(object),
        phase(object),
        word(&spec["volumeName"]).into(),
        capacity,
        modes.into(),
        class(object).into(),
        shown(&spec["volumeAttributesClassName"], UNSET),
        age_of(object),
        shown(&spec["volumeMode"], UNSET),
    ]
}

/// Cells of a PersistentVolume.
pub fn volume(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let claim = &spec["claimRef"];
    let claim = if claim.is_object() {
        format!("{}/{}", word(&claim["namespace"]), word(&claim["name"]))
    } else {
        String::new()
    };
    vec![
        name(object),
        shown(&spec["capacity"]["storage"], "0"),
        access_modes(&spec["accessModes"]).into(),
        word(&spec["persistentVolumeReclaimPolicy"]).into(),
        phase(object),
        claim.into(),
        class(object).into(),
        shown(&spec["volumeAttributesClassName"], UNSET),
        word(&status["reason"]).into(),
        age_of(object),
        shown(&spec["volumeMode"], UNSET),
    ]
}

/// Cells of a StorageClass.
pub fn storage_class(object: &Value) -> Vec<Value> {
    let is_default =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"]
            .iter()
            .any(|key| object["metadata"]["annotations"][*key] == "true");
    let name = format!("{}{}", word(&object["metadata"]["name"]), if is_default { " (default)" } else { "" });
    vec![
        name.into(),
        word(&object["provisioner"]).into(),
        or(word(&object["reclaimPolicy"]), "Delete"),
        or(word(&object["volumeBindingMode"]), "Immediate"),
        object["allowVolumeExpansion"].as_bool().unwrap_or(false).into(),
        age_of(object),
    ]
}

/// Cells of a CSIDriver.
pub fn csi_driver(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    let flag = |key: &str, default: bool| Value::from(spec[key].as_bool().unwrap_or(default));
    let tokens = joined(items(&spec["tokenRequests"]).map(|t| word(&t["audience"])), ",");
    let modes = joined(items(&spec["volumeLifecycleModes"]).map(word), ",");
    vec![
        name(object),
        flag("attachRequired", true),
        flag("podInfoOnMount", false),
        flag("storageCapacity", false),
        if items(&spec["tokenRequests"]).len() == 0 { UNSET.into() } else { tokens.into() },
        flag("requiresRepublish", false),
        or(&modes, NONE),
        age_of(object),
    ]
}

/// Cells of a CSINode.
pub fn csi_node(object: &Value) -> Vec<Value> {
    vec![name(object), items(&object["spec"]["drivers"]).len().into(), age_of(object)]
}

/// Cells of a VolumeAttachment.
pub fn attachment(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    vec![
        name(object),
        word(&spec["attacher"]).into(),
        word(&spec["source"]["persistentVolumeName"]).into(),
        word(&spec["nodeName"]).into(),
        object["status"]["attached"].as_bool().unwrap_or(false).into(),
        age_of(object),
    ]
}

/// Cells of a VolumeAttributesClass.
pub fn attributes_class(object: &Value) -> Vec<Value> {
    vec![name(object), word(&object["driverName"]).into(), age_of(object)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_show_what_they_got() {
        let mut object =
            json!({"metadata": {"name": "c"}, "spec": {"storageClassName": "fast"}, "status": {"phase": "Pending"}});
        assert_eq!(claim(&object)[1..6], ["Pending", "", "", "", "fast"].map(Value::from));
        object["spec"]["volumeName"] = "v".into();
        object["status"] = json!({"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"]});
        assert_eq!(claim(&object)[1..6], ["Bound", "v", "2Gi", "RWO", "fast"].map(Value::from));
        object["metadata"] = json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {OLD_CLASS: "old"}});
        assert_eq!((claim(&object)[1].clone(), claim(&object)[5].clone()), ("Terminating".into(), "old".into()));
    }

    #[test]
    fn the_default_class_is_marked() {
        let object =
            json!({"metadata": {"name": "s", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}});
        assert_eq!(storage_class(&object)[0], "s (default)");
    }
}
