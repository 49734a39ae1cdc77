//! Namespaces, or the plugin's configuration for those that say nothing, say which taints pods tolerate from the start,
//! and which they may.

use keelson_machinery::qos;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use super::Parts;
use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

/// The taint that pods with requests tolerate: they are not the ones that use a node's memory up.
const MEMORY_PRESSURE: &str = "node.kubernetes.io/memory-pressure";

pub(super) struct PodTolerationRestriction {
    objects: Objects,
    defaults: Option<Vec<Value>>,
    whitelist: Option<Vec<Value>>,
}

fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

impl PodTolerationRestriction {
    pub(super) fn new(parts: &Parts) -> Result<Self, String> {
        let config = parts.config("PodTolerationRestriction");
        let list = |key: &str| match &config[key] {
            Value::Null => Ok(None),
            Value::Array(list) => Ok(Some(list.clone())),
            _ => Err(format!("PodTolerationRestriction: {key} is no list of tolerations")),
        };
        Ok(Self { objects: parts.objects.clone(), defaults: list("default")?, whitelist: list("whitelist")? })
    }

    /// The tolerations in an annotation of a namespace; `None`: it says nothing.
    fn annotated(&self, namespace: &str, key: &str) -> Result<Option<Vec<Value>>, Status> {
        let found = self.objects.object("", "v1", "namespaces", "", namespace);
        let found = found.ok_or_else(|| Status::not_found("", "namespaces", namespace))?;
        let given = &found["metadata"]["annotations"][&format!("scheduler.alpha.kubernetes.io/{key}")];
        match given.as_str() {
            None => Ok(None),
            Some("") => Ok(Some(Vec::new())),
            Some(text) => serde_json::from_str(text).map(Some).map_err(|e| Status::unknown(e.to_string())),
        }
    }

    fn allowed(&self, request: &Admission<'_>) -> Result<(), Status> {
        let tolerations = request.object.as_deref().map(|pod| pod["spec"]["tolerations"].clone()).unwrap_or_default();
        let tolerations = tolerations.as_array().map(Vec::as_slice).unwrap_or_default();
        if tolerations.is_empty() {
            return Ok(());
        }
        let (whitelist, scope) = match self.annotated(request.namespace, "tolerationsWhitelist")? {
            Some(own) => (own, "namespace"),
            None => (self.whitelist.clone().unwrap_or_default(), "cluster"),
        };
        let known = |toleration: &Value| whitelist.iter().any(|known| covers(known, toleration));
        if whitelist.is_empty() || tolerations.iter().all(known) {
            return Ok(());
        }
        Err(Status::unknown(format!(
            "pod tolerations (possibly merged with {scope} default tolerations) conflict with its {scope} whitelist"
        )))
    }
}

fn concerns(request: &Admission<'_>) -> bool {
    (request.def.group, request.def.plural, request.subresource) == ("", "pods", "")
        && matches!(request.operation, Operation::Create | Operation::Update)
}

#[async_trait::async_trait]
impl AdmissionPlugin for PodTolerationRestriction {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !concerns(request) {
            return Ok(());
        }
        let Some(pod) = request.object.as_deref() else { return Ok(()) };
        let own = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        let mut all = own.clone();
        if request.operation == Operation::Create {
            let defaults = self.annotated(request.namespace, "defaultTolerations")?;
            let defaults = defaults.or_else(|| self.defaults.clone()).unwrap_or_default();
            if !defaults.is_empty() {
                all = if all.is_empty() { defaults } else { merged(defaults, all) };
            }
        }
        if qos::class(pod) != "BestEffort" {
            let pressure = json!({"key": MEMORY_PRESSURE, "operator": "Exists", "effect": "NoSchedule"});
            all = merged(all, vec![pressure]);
        }
        if all != own
            && let Some(pod) = request.object.as_deref_mut()
        {
            pod["spec"]["tolerations"] = all.into();
        }
        self.allowed(request)
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if concerns(request) { self.allowed(request) } else { Ok(()) }
    }
}

/// Both lists, without those that others cover; of equal ones the first stays.
pub(super) fn merged(first: Vec<Value>, second: Vec<Value>) -> Vec<Value> {
    let all: Vec<Value> = first.into_iter().chain(second).collect();
    let mut out: Vec<Value> = Vec::new();
    for (index, toleration) in all.iter().enumerate() {
        let later = all[index + 1..].iter().any(|other| other != toleration && covers(other, toleration));
        if !later && !out.iter().any(|kept| covers(kept, toleration)) {
            out.push(toleration.clone());
        }
    }
    out
}

/// Whether a toleration tolerates all that another does.
fn covers(wide: &Value, narrow: &Value) -> bool {
    if wide == narrow {
        return true;
    }
    let any_key = text(wide, "key").is_empty() && text(wide, "operator") == "Exists";
    if text(wide, "key") != text(narrow, "key") && !any_key {
        return false;
    }
    if !text(wide, "effect").is_empty() && text(wide, "effect") != text(narrow, "effect") {
        return false;
    }
    if text(wide, "effect") == "NoExecute"
        && let Some(most) = wide["tolerationSeconds"].as_i64()
        && narrow["tolerationSeconds"].as_i64().is_none_or(|given| given > most)
    {
        return false;
    }
    match text(wide, "operator") {
        "Exists" => true,
        "" | "Equal" => text(narrow, "operator") == "Equal" && text(wide, "value") == text(narrow, "value"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_tolerations_cover_narrow_ones() {
        for (wide, narrow, expected) in [
            (json!({"operator": "Exists"}), json!({"key": "a", "value": "b", "effect": "NoSchedule"}), true),
            (json!({"key": "a", "operator": "Exists"}), json!({"key": "b", "operator": "Exists"}), false),
            (json!({"key": "a", "value": "b"}), json!({"key": "a", "value": "b"}), true),
            (json!({"key": "a", "value": "b"}), json!({"key": "a", "value": "c"}), false),
            (
                json!({"key": "a", "operator": "Equal", "value": "b"}),
                json!({"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}),
                true,
            ),
            (
                json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}),
                json!({"operator": "Exists", "effect": "NoExecute"}),
                false,
            ),
            (
                json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}),
                json!({"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}),
                true,
            ),
        ] {
            assert_eq!(covers(&wide, &narrow), expected, "{wide} {narrow}");
        }
    }

    #[test]
    fn of_two_lists_the_widest_stay() {
        let (a, b) = (
            json!({"key": "a", "operator": "Exists"}),
            json!({"key": "a", "operator": "Exists", "effect": "NoSchedule"}),
        );
        let other = json!({"key": "c", "operator": "Exists"});
        assert_eq!(merged(vec![b.clone(), other.clone()], vec![a.clone()]), [other.clone(), a.clone()]);
        assert_eq!(merged(vec![a.clone()], vec![b, other.clone()]), [a, other]);
    }
}
