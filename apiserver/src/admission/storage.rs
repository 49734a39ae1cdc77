//! Storage: claims without a class get the default one, and what may be in use is protected from deletion.

use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation};
use crate::objects::Objects;

const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
/// Annotation of old clients for the class.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn creates(request: &Admission<'_>, plural: &str) -> bool {
    request.operation == Operation::Create
        && request.subresource.is_empty()
        && (request.def.group, request.def.plural) == ("", plural)
}

/// `DefaultStorageClass`: of several default classes the newest counts.
pub(super) struct DefaultStorageClass(pub(super) Objects);

/// The default class among these.
fn default_of(classes: &[Value]) -> Option<&str> {
    let is_default = |c: &&Value| c["metadata"]["annotations"][DEFAULT] == "true";
    let newest = classes.iter().filter(is_default).min_by_key(|c| {
        let made = c["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        (std::cmp::Reverse(made), c["metadata"]["name"].as_str().unwrap_or_default())
    });
    newest.and_then(|c| c["metadata"]["name"].as_str())
}

#[async_trait::async_trait]
impl AdmissionPlugin for DefaultStorageClass {
    async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !creates(request, "persistentvolumeclaims") {
            return Ok(());
        }
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        if object["spec"].get("storageClassName").is_some_and(|c| !c.is_null())
            || object["metadata"]["annotations"].get(CLASS).is_some()
        {
            return Ok(());
        }
        let Some(def) = keelson_machinery::resources::find("storage.k8s.io", "v1", "storageclasses") else {
            return Ok(());
        };
        let classes = self.0.list(def, "")?;
        if let Some(name) = default_of(&classes) {
            object["spec"]["storageClassName"] = name.into();
        }
        Ok(())
    }
}

/// `StorageObjectInUseProtection`.
pub(super) struct InUseProtection;

#[async_trait::async_trait]
impl AdmissionPlugin for InUseProtection {
    async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let finalizer = if creates(request, "persistentvolumeclaims") {
            "kubernetes.io/pvc-protection"
        } else if creates(request, "persistentvolumes") {
            "kubernetes.io/pv-protection"
        } else {
            return Ok(());
        };
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !finalizers.iter().any(|f| f == finalizer) {
            finalizers.push(json!(finalizer));
            object["metadata"]["finalizers"] = finalizers.into();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_default_class_counts() {
        let class = |name: &str, made: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": made, "annotations": {DEFAULT: default}}});
        let classes = [
            class("old", "2026-01-01T00:00:00Z", "true"),
            class("new", "2026-01-02T00:00:00Z", "true"),
            class("newest", "2026-01-03T00:00:00Z", "false"),
        ];
        assert_eq!(default_of(&classes), Some("new"));
        assert_eq!(default_of(&classes[2..]), None);
    }
}
