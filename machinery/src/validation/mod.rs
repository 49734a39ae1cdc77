//! Validation of objects with Kubernetes' messages and field paths: metadata rules of every kind here, rules of each API
//! group in a file of its own. A function is given the problem list and the path of what it looks at.

mod check;
mod meta;
mod migrations;
pub mod selectors;

mod api_service;
mod apps;
mod autoscaling;
mod batch;
mod container;
mod core;
mod cron;
mod device_results;
mod device_slices;
mod devices;
mod events;
mod flowcontrol;
mod job_status;
mod legacy_volumes;
mod mounts;
mod networking;
mod node;
mod pod;
mod pod_update;
mod policies;
mod probes;
mod profiles;
mod projections;
mod quota;
mod rbac;
mod service;
mod storage;
mod volumes;
mod workloads;

use serde_json::Value;

use crate::resource::ResourceDef;
use crate::status::Cause;

pub use check::Problems;
pub(crate) use container::{is_extended, is_native};
pub use cron::span_problem;
pub use flowcontrol::mandatory as mandatory_flow_control;
pub(crate) use meta::STANDARD_FINALIZERS;
pub use meta::{MAX_ANNOTATION_BYTES, MAX_MANAGER, unprintable};
pub use service::{address_problems, is_external, needs_health_check};

/// Problems of a new object (`old` is `None`) or of a change through a subresource ("": the object itself).
pub fn validate(def: &ResourceDef, subresource: &str, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut problems = Problems::default();
    meta::validate(def, subresource, new, old, &mut problems);
    if !def.custom {
        // The older version of an autoscaler is held to the rules of the newer.
        let rows = (crate::conversion::stored_row(def)).filter(|row| row.group == def.group);
        match rows {
            Some(row) => {
                let old = old.map(|old| crate::conversion::to_stored(def, old));
                kind(row, subresource, &crate::conversion::to_stored(def, new), old.as_deref(), &mut problems);
            }
            None => kind(def, subresource, new, old, &mut problems),
        }
    }
    if let Some(pods) = old.zip(crate::gates::pods_of(def)).and_then(|(old, at)| old.pointer(at)) {
        pod::forgive_what_was(pods, &mut problems);
    }
    problems.0
}

/// Problems of the metadata of something that is no object of a row, but named as one: a Scale.
pub fn metadata(metadata: &Value) -> Vec<Cause> {
    let mut problems = Problems::default();
    meta::whole(metadata, &mut problems);
    problems.0
}

/// Problems of the metadata of an object inside another.
pub fn inner_metadata(metadata: &Value) -> Vec<Cause> {
    let mut problems = Problems::default();
    meta::inner(metadata, &mut problems);
    problems.0
}

fn kind(def: &ResourceDef, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    match def.group {
        "" => match def.plural {
            "pods" => pod::validate(subresource, new, old, p),
            "services" => service::validate(subresource, new, old, p),
            "nodes" => node::validate(subresource, new, old, p),
            "persistentvolumes" => storage::volume(subresource, new, old, p),
            "persistentvolumeclaims" => storage::claim(subresource, new, old, p),
            _ => core::validate(def.plural, subresource, new, old, p),
        },
        "apps" => apps::validate(def.plural, subresource, new, old, p),
        "batch" => batch::validate(def.plural, subresource, new, old, p),
        "networking.k8s.io" | "discovery.k8s.io" => networking::validate(def.plural, subresource, new, old, p),
        "rbac.authorization.k8s.io" => rbac::validate(def.plural, new, old, p),
        "storage.k8s.io" => storage::validate(def.plural, subresource, new, old, p),
        "autoscaling" => autoscaling::validate(subresource, new, old, p),
        "flowcontrol.apiserver.k8s.io" => flowcontrol::validate(def.plural, subresource, new, p),
        "apiregistration.k8s.io" => api_service::validate(subresource, new, p),
        "events.k8s.io" => events::new_style(new, old, p),
        "admissionregistration.k8s.io" if subresource == "status" => policies::checked(&new["status"], p),
        "storagemigration.k8s.io" => migrations::validate(subresource, new, old, p),
        "resource.k8s.io" => devices::validate(def.plural, subresource, new, old, p),
        "scheduling.k8s.io" if def.is_optional() => workloads::validate(def.plural, subresource, new, old, p),
        "policy" | "scheduling.k8s.io" | "coordination.k8s.io" | "node.k8s.io" => {
            policies::validate(def.plural, subresource, new, old, p);
        }
        _ => {}
    }
}

/// The JSON in an annotation, if there is any; else what is wrong with it.
pub(crate) fn noted(annotations: &Value, key: &str) -> Option<Result<Value, String>> {
    let note = text(annotations, key);
    let read = || serde_json::from_str(note).map_err(|why| crate::decode::go_json_error(note.as_bytes(), &why));
    (!note.is_empty()).then(read)
}

/// Items of a list.
pub(crate) fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Entries of a map.
pub(crate) fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

/// A text, "" if absent.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Whether a field is there and not null.
pub(crate) fn has(value: &Value, key: &str) -> bool {
    value.get(key).is_some_and(|v| !v.is_null())
}
