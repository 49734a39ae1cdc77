//! Groups of pods: one that was made from a template of a workload needs both, and none goes while pods are scheduled with it.

use keelson_machinery::features::{self, Feature};
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

/// Holds a group until no pod that has not ended names it.
pub(super) const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// Whether a request makes a group, where there are groups.
fn makes_group(request: &Admission<'_>) -> bool {
    (request.def.group, request.def.plural, request.subresource) == ("scheduling.k8s.io", "podgroups", "")
        && !request.def.custom
        && request.operation == Operation::Create
        && features::is_open(Feature::GenericWorkload)
}

/// Puts the finalizer on new groups; a controller takes it off.
pub(super) struct PodGroupProtection;

#[async_trait::async_trait]
impl AdmissionPlugin for PodGroupProtection {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !makes_group(request) {
            return Ok(());
        }
        let Some(object) = request.object.as_deref_mut() else { return Ok(()) };
        let finalizers = &mut object["metadata"]["finalizers"];
        match finalizers.as_array_mut() {
            Some(list) if list.iter().any(|known| known == FINALIZER) => {}
            Some(list) => list.push(FINALIZER.into()),
            None => *finalizers = json!([FINALIZER]),
        }
        Ok(())
    }
}

/// Refuses groups of workloads or templates that are not there.
pub(super) struct PodGroupWorkloadExists(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for PodGroupWorkloadExists {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if !makes_group(request) {
            return Ok(());
        }
        let object = request.object.as_deref().unwrap_or(&Value::Null);
        let reference = &object["spec"]["podGroupTemplateRef"]["workload"];
        if !reference.is_object() {
            return Ok(());
        }
        let text = |key: &str| reference[key].as_str().unwrap_or_default();
        let (name, template) = (text("workloadName"), text("podGroupTemplateName"));
        let refused = |why: String| {
            let why = format!("PodGroup rejected: {why}");
            Err(Status::forbidden(request.def.group, request.def.plural, request.name, &why))
        };
        let version = request.def.version;
        let Some(workload) = self.0.object("scheduling.k8s.io", version, "workloads", request.namespace, name) else {
            return refused(format!("Workload {name:?} not found"));
        };
        if workload["metadata"]["deletionTimestamp"].is_string() {
            return refused(format!("Workload {name:?} is being deleted"));
        }
        let mut templates = workload["spec"]["podGroupTemplates"].as_array().into_iter().flatten();
        if !templates.any(|known| known["name"] == template) {
            return refused(format!("PodGroupTemplate {template:?} not found in Workload {name:?}"));
        }
        Ok(())
    }
}
