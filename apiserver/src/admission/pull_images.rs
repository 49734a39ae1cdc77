//! Every image is pulled anew, so that nobody runs one that they could not pull.

use std::collections::BTreeSet;

use keelson_machinery::status::{Cause, Status};
use serde_json::Value;

use crate::access::{Admission, AdmissionPlugin, Operation, Round};

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub(super) struct AlwaysPullImages;

/// Whether a request may bring new images: a pod made, or changed to have images that it had not.
fn concerns(request: &Admission<'_>) -> bool {
    if (request.def.group, request.def.plural) != ("", "pods")
        || !matches!(request.subresource, "" | "ephemeralcontainers")
    {
        return false;
    }
    let Some(pod) = request.object.as_deref() else { return false };
    match (request.operation, request.old) {
        (Operation::Create, _) => true,
        (Operation::Update, Some(old)) => !images(pod).is_subset(&images(old)),
        _ => false,
    }
}

fn images(pod: &Value) -> BTreeSet<String> {
    let containers = CONTAINERS.iter().flat_map(|key| pod["spec"][*key].as_array().into_iter().flatten());
    let images = containers.map(|container| &container["image"]);
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten().map(|volume| &volume["image"]["reference"]);
    images.chain(volumes).filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Places where a pod says whether an image is pulled: field, and what it says.
fn policies(pod: &Value) -> Vec<(String, &Value)> {
    let mut out = Vec::new();
    for key in CONTAINERS {
        for (index, container) in pod["spec"][key].as_array().into_iter().flatten().enumerate() {
            out.push((format!("spec.{key}[{index}].imagePullPolicy"), &container["imagePullPolicy"]));
        }
    }
    for (index, volume) in pod["spec"]["volumes"].as_array().into_iter().flatten().enumerate() {
        if volume["image"].is_object() {
            out.push((format!("spec.volumes[{index}].image.pullPolicy"), &volume["image"]["pullPolicy"]));
        }
    }
    out
}

#[async_trait::async_trait]
impl AdmissionPlugin for AlwaysPullImages {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(spec) = request.object.as_deref_mut().map(|pod| &mut pod["spec"]) else { return Ok(()) };
        for key in CONTAINERS {
            for container in spec.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                container["imagePullPolicy"] = "Always".into();
            }
        }
        for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
            if volume["image"].is_object() {
                volume["image"]["pullPolicy"] = "Always".into();
            }
        }
        Ok(())
    }

    /// An extension may have changed it since.
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let pod = request.object.as_deref().filter(|_| concerns(request));
        let wrong = pod.map(policies).unwrap_or_default().into_iter().filter(|(_, policy)| **policy != "Always");
        let told: Vec<String> = wrong
            .map(|(field, policy)| {
                let shown = if policy.is_null() { Value::from("") } else { policy.clone() };
                let cause = Cause::not_supported(field, &shown, &["Always"]);
                let why = format!("{}: {}", cause.field, cause.message);
                Status::forbidden("", "pods", request.name, &why).message
            })
            .collect();
        let why = match &told[..] {
            [] => return Ok(()),
            [only] => only.clone(),
            all => format!("[{}]", all.join(", ")),
        };
        Err(Status { message: why, ..Status::forbidden("", "pods", request.name, "") })
    }
}
