//! Default classes of claims and ingresses, what a runtime class brings to its pods, and the finalizers of storage in use.

use keelson_machinery::pod_resources::amounts;
use keelson_machinery::quantity::Quantity;
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::tolerations;
use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

const CLAIMS: (&str, &str) = ("", "persistentvolumeclaims");
/// Annotations that name a claim's class in older objects.
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

fn is_create(request: &Admission<'_>, of: (&str, &str)) -> bool {
    request.operation == Operation::Create
        && request.subresource.is_empty()
        && (request.def.group, request.def.plural) == of
}

/// The class that a claim names.
fn class_of(claim: &Value) -> &str {
    let annotated = claim["metadata"]["annotations"][OLD_CLASS].as_str();
    annotated.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default()
}

/// Of the objects that one of these annotations marks as default the newest; by name among equals.
fn default_of(objects: &Objects, group: &str, plural: &str, annotations: &[&str]) -> Option<Value> {
    let mut marked: Vec<Value> = find(group, "v1", plural).map(|def| objects.all(def, "")).unwrap_or_default();
    let is_marked = |class: &Value| annotations.iter().any(|key| class["metadata"]["annotations"][*key] == "true");
    marked.retain(is_marked);
    let created = |class: &Value| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned();
    marked.into_iter().reduce(|best, next| if created(&next) > created(&best) { next } else { best })
}

pub(super) struct DefaultStorageClass(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for DefaultStorageClass {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !is_create(request, CLAIMS) {
            return Ok(());
        }
        let Some(claim) = request.object.as_deref_mut() else { return Ok(()) };
        let named = claim["metadata"]["annotations"].get(OLD_CLASS).is_some()
            || claim["spec"].get("storageClassName").is_some_and(|name| !name.is_null());
        if named || !claim["spec"].is_object() {
            return Ok(());
        }
        let annotations =
            ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
        if let Some(class) = default_of(&self.0, "storage.k8s.io", "storageclasses", &annotations) {
            claim["spec"]["storageClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}

pub(super) struct DefaultIngressClass(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for DefaultIngressClass {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !is_create(request, ("networking.k8s.io", "ingresses")) {
            return Ok(());
        }
        let Some(ingress) = request.object.as_deref_mut() else { return Ok(()) };
        let named = ingress["metadata"]["annotations"].get("kubernetes.io/ingress.class").is_some()
            || ingress["spec"].get("ingressClassName").is_some_and(|name| !name.is_null());
        if named || !ingress["spec"].is_object() {
            return Ok(());
        }
        let annotation = "ingressclass.kubernetes.io/is-default-class";
        if let Some(class) = default_of(&self.0, "networking.k8s.io", "ingressclasses", &[annotation]) {
            ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
        }
        Ok(())
    }
}

pub(super) struct StorageObjectInUseProtection;

#[async_trait::async_trait]
impl AdmissionPlugin for StorageObjectInUseProtection {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let finalizer = match (request.def.group, request.def.plural) {
            CLAIMS => "kubernetes.io/pvc-protection",
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        let create = request.operation == Operation::Create && request.subresource.is_empty();
        let Some(object) = request.object.as_deref_mut().filter(|_| create) else { return Ok(()) };
        let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
        if !list.iter().any(|known| known == finalizer) {
            list.push(finalizer.into());
            object["metadata"]["finalizers"] = list.into();
        }
        Ok(())
    }
}

pub(super) struct PersistentVolumeClaimResize(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for PersistentVolumeClaimResize {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let update = request.operation == Operation::Update && request.subresource.is_empty();
        if !update || (request.def.group, request.def.plural) != CLAIMS {
            return Ok(());
        }
        let (Some(new), Some(old)) = (request.object.as_deref(), request.old) else { return Ok(()) };
        let size = |claim: &Value| {
            claim["spec"]["resources"]["requests"]["storage"].as_str().and_then(|text| Quantity::parse(text).ok())
        };
        if size(new) <= size(old) {
            return Ok(());
        }
        let refuse = |why: &str| Err(Status::forbidden("", CLAIMS.1, request.name, why));
        if old["status"]["phase"] != "Bound" {
            return refuse("Only bound persistent volume claims can be expanded");
        }
        let class = Some(class_of(new)).filter(|class| !class.is_empty() && *class == class_of(old));
        let class = class.and_then(|class| self.0.object("storage.k8s.io", "v1", "storageclasses", "", class));
        if !class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return refuse(
                "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
            );
        }
        Ok(())
    }
}

pub(super) struct RuntimeClass(pub(super) Objects);

impl RuntimeClass {
    /// The class of the pod that a request creates; `Err` if it does not exist.
    fn class(&self, request: &Admission<'_>) -> Result<Option<Value>, Status> {
        if !is_create(request, ("", "pods")) {
            return Ok(None);
        }
        let name = request.object.as_deref().and_then(|pod| pod["spec"]["runtimeClassName"].as_str());
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
        let class = self.0.object("node.k8s.io", "v1", "runtimeclasses", "", name);
        let missing = || refuse(request, &format!("pod rejected: RuntimeClass {name:?} not found"));
        class.map(Some).ok_or_else(missing)
    }
}

fn refuse(request: &Admission<'_>, why: &str) -> Status {
    Status::forbidden("", "pods", request.name, why)
}

#[async_trait::async_trait]
impl AdmissionPlugin for RuntimeClass {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let Some(class) = self.class(request)? else { return Ok(()) };
        let mut conflict = None;
        if let Some(pod) = request.object.as_deref_mut() {
            let spec = &mut pod["spec"];
            let overhead = &class["overhead"]["podFixed"];
            let own = spec.get("overhead").filter(|o| o.as_object().is_some_and(|o| !o.is_empty()));
            if overhead.is_object() && own.is_none() {
                spec["overhead"] = overhead.clone();
            }
            for (key, value) in class["scheduling"]["nodeSelector"].as_object().into_iter().flatten() {
                if !spec["nodeSelector"].is_object() {
                    spec["nodeSelector"] = json!({});
                }
                match spec["nodeSelector"].get(key) {
                    Some(own) if own != value => {
                        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                        conflict = Some(format!(
                            "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                            text(value),
                            text(own)
                        ));
                    }
                    _ => spec["nodeSelector"][key] = value.clone(),
                }
            }
            let more = class["scheduling"]["tolerations"].as_array().cloned().unwrap_or_default();
            if !more.is_empty() {
                let own = spec["tolerations"].as_array().cloned().unwrap_or_default();
                spec["tolerations"] = tolerations::merged(own, more).into();
            }
        }
        conflict.map_or(Ok(()), |why| Err(refuse(request, &why)))
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let class = self.class(request)?;
        let Some(pod) = request.object.as_deref().filter(|_| is_create(request, ("", "pods"))) else { return Ok(()) };
        let own = amounts(&pod["spec"]["overhead"]);
        let Some(class) = class.filter(|class| class["overhead"]["podFixed"].is_object()) else {
            return match own.is_empty() {
                true => Ok(()),
                false => Err(refuse(
                    request,
                    "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                )),
            };
        };
        if own != amounts(&class["overhead"]["podFixed"]) {
            return Err(refuse(request, "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"));
        }
        Ok(())
    }
}
