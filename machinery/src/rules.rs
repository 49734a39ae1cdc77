//! How kinds behave when they are written and deleted, as upstream's strategies say: which changes count a generation, what
//! an update may leave out, what a deletion answers.

use serde_json::{Map, Value, json};

use crate::resource::ResourceDef;

/// Which changes count a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// There is none.
    None,
    /// It is 1 and stays so until the deletion.
    Fixed,
    /// It starts at 1 and counts changes of these top-level fields.
    Counts(&'static [&'static str]),
    /// As `Counts`, but it is absent until the first change.
    Late(&'static [&'static str]),
    /// It counts changes of the spec and of the annotations.
    SpecAndAnnotations,
    /// It counts changes of everything but the metadata, of which only the labels count.
    AllAndLabels,
}

/// How a kind behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Which changes count a generation.
    pub generation: Generation,
    /// Whether an update may leave out the resource version.
    pub unconditional_update: bool,
    /// Whether an update of what does not exist creates it.
    pub create_on_update: bool,
    /// Whether a deletion answers with the object that was deleted.
    pub answers_deleted: bool,
    /// Whether a deletion that says nothing leaves the dependents behind.
    pub orphans: bool,
}

const SPEC: Generation = Generation::Counts(&["spec"]);

/// The rules of a row.
pub fn of(def: &ResourceDef) -> Rules {
    Rules {
        generation: generation(def),
        unconditional_update: !def.custom && !needs_version(def),
        create_on_update: creates(def),
        answers_deleted: answers_deleted(def),
        orphans: matches!((def.group, def.plural), ("batch", "jobs") | ("", "replicationcontrollers")),
    }
}

fn generation(def: &ResourceDef) -> Generation {
    match (def.group, def.plural) {
        ("apps", "deployments") => Generation::SpecAndAnnotations,
        ("discovery.k8s.io", "endpointslices") => Generation::AllAndLabels,
        ("scheduling.k8s.io", "priorityclasses") => Generation::Fixed,
        ("storage.k8s.io", "csidrivers") => Generation::Late(&["spec"]),
        ("", "podtemplates") => Generation::Counts(&["template"]),
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            Generation::Counts(&["webhooks"])
        }
        ("", "pods" | "replicationcontrollers")
        | ("apps", "daemonsets" | "replicasets" | "statefulsets")
        | ("batch", _)
        | ("policy", _)
        | ("networking.k8s.io", "ingresses" | "ingressclasses" | "networkpolicies")
        | ("flowcontrol.apiserver.k8s.io" | "admissionregistration.k8s.io" | "apiextensions.k8s.io", _)
        | ("resource.k8s.io", "deviceclasses" | "resourceslices") => SPEC,
        _ => Generation::None,
    }
}

fn needs_version(def: &ResourceDef) -> bool {
    matches!(
        (def.group, def.plural),
        ("storage.k8s.io", "csidrivers" | "csinodes" | "csistoragecapacities" | "volumeattachments")
            | ("coordination.k8s.io" | "policy" | "node.k8s.io" | "admissionregistration.k8s.io", _)
            | ("apiextensions.k8s.io" | "apiregistration.k8s.io" | "storagemigration.k8s.io", _)
    )
}

fn creates(def: &ResourceDef) -> bool {
    matches!(
        (def.group, def.plural),
        ("rbac.authorization.k8s.io" | "coordination.k8s.io" | "node.k8s.io" | "events.k8s.io", _)
            | ("", "endpoints" | "events" | "limitranges" | "services")
    )
}

fn answers_deleted(def: &ResourceDef) -> bool {
    matches!(
        (def.group, def.plural),
        (
            "",
            "pods"
                | "podtemplates"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "resourcequotas"
                | "namespaces"
        ) | ("storage.k8s.io", "csidrivers" | "csinodes" | "storageclasses" | "volumeattachments")
            | ("storage.k8s.io", "volumeattributesclasses")
            | ("resource.k8s.io", _)
    )
}

/// The generation of a new object.
pub fn first_generation(rules: &Rules) -> Option<i64> {
    (!matches!(rules.generation, Generation::None | Generation::Late(_))).then_some(1)
}

/// Whether a change counts a generation.
pub fn counts(rules: &Rules, old: &Value, new: &Value) -> bool {
    let differ = |key: &str| old.get(key) != new.get(key);
    match rules.generation {
        Generation::None | Generation::Fixed => false,
        Generation::Counts(fields) | Generation::Late(fields) => fields.iter().any(|field| differ(field)),
        Generation::SpecAndAnnotations => {
            let annotations = |object: &Value| object["metadata"].get("annotations").cloned().unwrap_or(json!({}));
            differ("spec") || annotations(old) != annotations(new)
        }
        Generation::AllAndLabels => {
            let part = |object: &Value| {
                let mut map: Map<String, Value> = object.as_object().cloned().unwrap_or_default();
                let labels = map.remove("metadata").and_then(|m| m.get("labels").cloned()).unwrap_or(json!({}));
                (map, labels)
            };
            part(old) != part(new)
        }
    }
}

/// The group under which errors of storage and validation name a kind: that of the type which is behind it.
pub fn error_group(def: &ResourceDef) -> &'static str {
    if def.group == "events.k8s.io" { "" } else { def.group }
}

/// Whether a body that says an empty list where nothing is stored counts as another spec: upstream compares the specs of
/// this kind to the letter.
pub fn counts_empty_lists(def: &ResourceDef) -> bool {
    (def.group, def.plural) == ("networking.k8s.io", "networkpolicies")
}

/// Whether there is an empty list anywhere in a value.
pub fn has_empty_list(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty() || list.iter().any(has_empty_list),
        Value::Object(map) => map.values().any(has_empty_list),
        _ => false,
    }
}

/// Where upstream keeps the objects of a row, as its storage errors name it.
pub fn storage_prefix(def: &ResourceDef) -> String {
    match (def.group, def.plural) {
        ("", "nodes") => "/registry/minions".into(),
        ("", "services") => "/registry/services/specs".into(),
        ("", "endpoints") => "/registry/services/endpoints".into(),
        ("", "replicationcontrollers") => "/registry/controllers".into(),
        ("networking.k8s.io", "ingresses") => "/registry/ingress".into(),
        ("apiextensions.k8s.io" | "apiregistration.k8s.io", plural) => format!("/registry/{}/{plural}", def.group),
        (group, plural) if def.custom => format!("/registry/{group}/{plural}"),
        (_, plural) => format!("/registry/{plural}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn generations_count_what_the_kind_says() {
        for (group, plural, old, new, expected) in [
            ("apps", "deployments", json!({"metadata": {}}), json!({"metadata": {"annotations": {"a": "b"}}}), true),
            ("apps", "replicasets", json!({"metadata": {}}), json!({"metadata": {"annotations": {"a": "b"}}}), false),
            ("apps", "replicasets", json!({"spec": {}}), json!({"spec": {"replicas": 1}}), true),
            (
                "discovery.k8s.io",
                "endpointslices",
                json!({"metadata": {}}),
                json!({"metadata": {"labels": {"a": "b"}}}),
                true,
            ),
            ("scheduling.k8s.io", "priorityclasses", json!({"description": "a"}), json!({"description": "b"}), false),
        ] {
            let rules = of(find(group, "v1", plural).unwrap());
            assert_eq!(counts(&rules, &old, &new), expected, "{plural}");
        }
        assert_eq!(first_generation(&of(find("", "v1", "services").unwrap())), None);
        assert_eq!(first_generation(&of(find("batch", "v1", "jobs").unwrap())), Some(1));
    }
}
