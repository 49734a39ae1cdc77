//! The status of ValidatingAdmissionPolicies: what their expressions would stumble over.

use std::sync::Arc;

use k8s_openapi::api::admissionregistration::v1::ValidatingAdmissionPolicy;
use keelson_client::{Error, Key, PatchType};
use keelson_machinery::cel::admission::env;
use keelson_machinery::type_check;
use serde_json::{Value, json};

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own};

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.policies, queue);
}

/// The status of a policy, if it has none for this generation yet.
fn plan(policy: &ValidatingAdmissionPolicy) -> Result<Option<Value>, Error> {
    let seen = policy.status.as_ref().and_then(|s| s.observed_generation);
    if seen == policy.metadata.generation {
        return Ok(None);
    }
    let spec = serde_json::to_value(&policy.spec)?;
    let warnings = type_check::check(&spec, &env(spec["paramKind"].is_object(), true, false));
    let shown: Vec<Value> = warnings.iter().map(|w| json!({"fieldRef": w.field, "warning": w.text})).collect();
    // A merge removes what an earlier generation was warned of.
    let shown = if shown.is_empty() { Value::Null } else { shown.into() };
    let status = json!({"observedGeneration": policy.metadata.generation,
        "typeChecking": {"expressionWarnings": shown}});
    Ok(Some(json!({"metadata": {"uid": policy.metadata.uid}, "status": status})))
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(policy) = context.cache.policies.get(&key) else { return Ok(None) };
    let Some(patch) = plan(&policy)? else { return Ok(None) };
    let api = context.client.cluster::<ValidatingAdmissionPolicy>();
    let written = api.patch(&key.1, Some("status"), PatchType::Merge, &patch).await?;
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
        let warnings =
            |policy| plan(&policy).unwrap().map(|p| p["status"]["typeChecking"]["expressionWarnings"].clone());
        assert_eq!(warnings(policy(1, Some(1), "true")), None);
        assert_eq!(warnings(policy(2, Some(1), "object.spec.replicas > 1")), Some(Value::Null));
        let found = warnings(policy(1, None, "object.spec.replicaz > 1")).unwrap();
        assert_eq!(found[0]["fieldRef"], "spec.validations[0].expression");
    }
}
