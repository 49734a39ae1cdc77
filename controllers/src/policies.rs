//! The status of ValidatingAdmissionPolicies: what their expressions would stumble over, for built-in kinds and for those of
//! CustomResourceDefinitions.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use keelson_client::{Error, Key};
use keelson_machinery::cel::admission::env;
use keelson_machinery::structural::Schema;
use keelson_machinery::type_check::{self, Custom};
use serde_json::{Value, json};

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own};

/// Who applies the status.
const MANAGER: &str = "validatingadmissionpolicy-status";

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.policies, queue);
}

/// Whether a policy has no status for this generation yet.
fn is_open(policy: &ValidatingAdmissionPolicy) -> bool {
    policy.status.as_ref().and_then(|s| s.observed_generation) != policy.metadata.generation
}

/// The status of a policy. `customs` are the kinds that are not built in.
fn plan(policy: &ValidatingAdmissionPolicy, spec: &Value, customs: &[Custom]) -> Value {
    let warnings = type_check::check(spec, &env(spec["paramKind"].is_object(), true, false), customs);
    let shown: Vec<Value> = warnings.iter().map(|w| json!({"fieldRef": w.field, "warning": w.text})).collect();
    // What an earlier generation was warned of is not applied any more, and goes.
    let checked = if shown.is_empty() { json!({}) } else { json!({"expressionWarnings": shown}) };
    let metadata = &policy.metadata;
    json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": metadata.name, "uid": metadata.uid},
        "status": {"observedGeneration": metadata.generation, "typeChecking": checked}})
}

/// The served versions of a CustomResourceDefinition that have a schema.
fn versions(definition: &Value) -> Vec<Custom> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true);
    let custom = |version: &Value| {
        let schema = version["schema"].get("openAPIV3Schema")?;
        Some(Custom {
            group: text(&spec["group"]),
            version: text(&version["name"]),
            resource: text(&spec["names"]["plural"]),
            kind: text(&spec["names"]["kind"]),
            schema: Schema::parse(schema),
        })
    };
    versions.filter_map(custom).collect()
}

async fn customs(context: &Context, spec: &Value) -> Result<Vec<Custom>, Error> {
    let mut all = Vec::new();
    for name in type_check::definitions(spec) {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}");
        match context.client.read::<Value>(&path, "application/json").await {
            Ok(definition) => all.extend(versions(&definition)),
            // What is not there cannot be checked.
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(policy) = context.cache.policies.get(&key).filter(|p| is_open(p)) else { return Ok(None) };
    let spec = serde_json::to_value(&policy.spec)?;
    let fields = plan(&policy, &spec, &customs(&context, &spec).await?);
    let api = context.client.cluster::<ValidatingAdmissionPolicy>();
    let written = api.apply(&key.1, Some("status"), MANAGER, &fields).await?;
    context.settle(&context.cache.policies, &written).await;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_checked_once() {
        let policy = |generation: i64, seen: Option<i64>, expression: &str| -> ValidatingAdmissionPolicy {
            serde_json::from_value(json!({
                "metadata": {"generation": generation},
                "spec": {
                    "matchConstraints": {"resourceRules": [
                        {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}]},
                    "validations": [{"expression": expression}]},
                "status": {"observedGeneration": seen},
            }))
            .unwrap()
        };
        let warnings = |policy: ValidatingAdmissionPolicy| {
            let spec = serde_json::to_value(&policy.spec).unwrap();
            let patch = plan(&policy, &spec, &[]);
            is_open(&policy).then(|| patch["status"]["typeChecking"]["expressionWarnings"].clone())
        };
        assert_eq!(warnings(policy(1, Some(1), "true")), None);
        assert_eq!(warnings(policy(2, Some(1), "object.spec.replicas > 1")), Some(Value::Null));
        let found = warnings(policy(1, None, "object.spec.replicaz > 1")).unwrap();
        assert_eq!(found[0]["fieldRef"], "spec.validations[0].expression");
    }

    #[test]
    fn served_versions_of_definitions_are_known() {
        let version = |name: &str, served: bool| json!({"name": name, "served": served, "schema": {"openAPIV3Schema": {"type": "object"}}});
        let definition = json!({"spec": {"group": "example.com", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [version("v1", true), version("v2", false), {"name": "v3", "served": true}]}});
        let found = versions(&definition);
        assert_eq!(found.len(), 1);
        let known = (found[0].version.as_str(), found[0].resource.as_str(), found[0].kind.as_str());
        assert_eq!(known, ("v1", "widgets", "Widget"));
    }
}
