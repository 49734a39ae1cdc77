//! Metadata of every kind: names, labels, annotations, owners, finalizers, and what an update may not change.

use serde_json::{Value, json};

use super::check::Problems;
use super::{entries, has, items, text};
use crate::names;
use crate::resource::ResourceDef;
use crate::shown;

/// Longest reason and message of a condition, bytes.
const MAX_REASON_BYTES: usize = 1 << 10;
const MAX_MESSAGE_BYTES: usize = 32 << 10;
const REASON_FORM: &str = "a condition reason must start with alphabetic character, optionally followed by a string of alphanumeric characters or \
     '_,:', and must end with an alphanumeric character or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName',  or \
     'ReasonA,ReasonB',  or 'ReasonA:ReasonB', regex used for validation is '[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?')";
/// All annotations together, keys and values, bytes.
pub const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// Finalizers without a domain that there are.
pub(crate) const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// What is wrong with the metadata.
pub fn validate(def: &ResourceDef, subresource: &str, new: &Value, old: Option<&Value>, p: &mut Problems) {
    let metadata = &new["metadata"];
    let Some(old) = old else {
        let prefix = &metadata["generateName"];
        if let Some(given) = prefix.as_str().filter(|g| !g.is_empty()) {
            // A prefix may end with a dash, which the generated characters follow, but not be one.
            let cut = given.strip_suffix('-').filter(|cut| !cut.is_empty());
            let shown = cut.map_or(given.to_owned(), |cut| format!("{cut}a"));
            for problem in name_problems(def, &shown) {
                p.invalid("metadata.generateName", prefix, &problem);
            }
        }
        for problem in name_problems(def, text(metadata, "name")) {
            p.invalid("metadata.name", &metadata["name"], &problem);
        }
        if bears_generated(def, new) {
            beside_labels(metadata, p);
        } else {
            parts(metadata, p);
        }
        finalizers(&metadata["finalizers"], p);
        if has_known_finalizers(def) {
            known_finalizers(&metadata["finalizers"], p);
        }
        if metadata["generation"].as_i64().is_some_and(|g| g < 0) {
            p.not_negative("metadata.generation", &metadata["generation"]);
        }
        return;
    };
    // The generic rules look at an update, and so do those of the kind: what is wrong is told by each.
    let (whole, changes) = rounds(def, subresource);
    for _ in 0..1 + changes {
        update(metadata, &old["metadata"], p);
    }
    for _ in 0..2 + whole + changes {
        parts(metadata, p);
    }
    for _ in 0..1 + whole {
        finalizers(&metadata["finalizers"], p);
    }
    if has_known_finalizers(def) {
        for _ in 0..whole + changes {
            known_finalizers(&metadata["finalizers"], p);
        }
    }
}

/// Metadata that is looked at once, with a name that is a subdomain.
pub fn whole(metadata: &Value, p: &mut Problems) {
    for problem in names::subdomain_problems(text(metadata, "name")) {
        p.invalid("metadata.name", &metadata["name"], &problem);
    }
    unnamed(metadata, p);
}

/// The metadata of an object inside another, which may have a name and a namespace.
pub fn inner(metadata: &Value, p: &mut Problems) {
    if let Some(problem) = names::path_segment(text(metadata, "generateName")) {
        p.invalid("metadata.generateName", &metadata["generateName"], &problem);
    }
    if let Some(problem) = names::path_segment(text(metadata, "name")) {
        p.invalid("metadata.name", &metadata["name"], &problem);
    }
    let namespace = text(metadata, "namespace");
    let bad = if namespace.is_empty() { Vec::new() } else { names::label_problems(namespace) };
    for problem in bad {
        p.invalid("metadata.namespace", &metadata["namespace"], &problem);
    }
    unnamed(metadata, p);
}

fn unnamed(metadata: &Value, p: &mut Problems) {
    if metadata["generation"].as_i64().is_some_and(|g| g < 0) {
        p.not_negative("metadata.generation", &metadata["generation"]);
    }
    parts(metadata, p);
    finalizers(&metadata["finalizers"], p);
}

/// How often the rules of a kind look at all of the metadata of an update, and at what of it changed.
fn rounds(def: &ResourceDef, subresource: &str) -> (usize, usize) {
    let (whole, changes) = whole_rounds(def);
    // Of a status only what changed is looked at.
    if whole > 0 && matches!(subresource, "status" | "finalize") { (0, 1) } else { (whole, changes) }
}

fn whole_rounds(def: &ResourceDef) -> (usize, usize) {
    match (def.group, def.plural) {
        _ if def.custom => (0, 1),
        ("policy", _) | ("certificates.k8s.io", _) | ("", "events") => (0, 0),
        ("", "limitranges") | ("admissionregistration.k8s.io" | "flowcontrol.apiserver.k8s.io", _) => (1, 0),
        ("", "persistentvolumes") | ("storage.k8s.io", "csinodes" | "volumeattachments") => (2, 0),
        ("", "persistentvolumeclaims") => (2, 1),
        (
            "",
            "pods"
            | "services"
            | "serviceaccounts"
            | "secrets"
            | "configmaps"
            | "endpoints"
            | "replicationcontrollers"
            | "nodes"
            | "namespaces",
        )
        | ("batch", "jobs")
        | ("networking.k8s.io", "ingresses" | "ingressclasses" | "networkpolicies")
        | ("storage.k8s.io", "csistoragecapacities" | "storageclasses" | "volumeattributesclasses")
        | ("rbac.authorization.k8s.io" | "node.k8s.io" | "apiregistration.k8s.io", _) => (1, 1),
        ("discovery.k8s.io", _) => (1, 0),
        _ => (0, 1),
    }
}

/// Whether an object bears the labels that were generated for its pods: a Job gets them as it is read again, when nobody
/// looks at them.
fn bears_generated(def: &ResourceDef, object: &Value) -> bool {
    let own = &object["metadata"]["labels"];
    (def.group, def.plural) == ("batch", "jobs")
        && *own == object["spec"]["template"]["metadata"]["labels"]
        && entries(own).all(|(key, _)| matches!(key.rsplit('/').next(), Some("controller-uid" | "job-name")))
}

/// Labels, annotations, owners and what keeps track of fields.
fn parts(metadata: &Value, p: &mut Problems) {
    labels(&metadata["labels"], "metadata.labels", p);
    beside_labels(metadata, p);
}

fn beside_labels(metadata: &Value, p: &mut Problems) {
    annotations(&metadata["annotations"], "metadata.annotations", p);
    owners(&metadata["ownerReferences"], p);
    managed_fields(&metadata["managedFields"], p);
}

/// Longest name of who changes fields, and of the part that they change, bytes.
pub const MAX_MANAGER: usize = 128;
const MAX_SUBRESOURCE: usize = 256;

/// What is wrong with each character of a field manager's name that cannot be printed.
pub fn unprintable(manager: &str) -> impl Iterator<Item = String> {
    manager
        .char_indices()
        .filter(|(_, c)| !shown::printable(*c))
        .map(|(at, c)| format!("invalid character U+{:04X} (at position {at})", u32::from(c)))
}

fn managed_fields(list: &Value, p: &mut Problems) {
    for (index, entry) in items(list).enumerate() {
        let at = format!("metadata.managedFields[{index}]");
        if !matches!(text(entry, "operation"), "Apply" | "Update") {
            let shown = entry["operation"].as_str().unwrap_or_default();
            p.invalid(format!("{at}.operation"), &json!(shown), "must be `Apply` or `Update`");
        }
        if !matches!(text(entry, "fieldsType"), "" | "FieldsV1") {
            p.invalid(format!("{at}.fieldsType"), &entry["fieldsType"], "must be `FieldsV1`");
        }
        let manager = text(entry, "manager");
        if manager.len() > MAX_MANAGER {
            p.too_long(format!("{at}.manager"), MAX_MANAGER);
        }
        for why in unprintable(manager) {
            p.invalid(format!("{at}.manager"), &entry["manager"], &why);
        }
        if text(entry, "subresource").len() > MAX_SUBRESOURCE {
            p.too_long(format!("{at}.subresource"), MAX_SUBRESOURCE);
        }
    }
}

/// What an update may not change; told by the generic rules and by those of the kind.
fn update(new: &Value, old: &Value, p: &mut Problems) {
    if has(old, "deletionTimestamp") {
        let before: Vec<&str> = items(&old["finalizers"]).filter_map(Value::as_str).collect();
        let mut added: Vec<&str> =
            items(&new["finalizers"]).filter_map(Value::as_str).filter(|f| !before.contains(f)).collect();
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| format!("{f:?}")).collect();
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                list.join(", ")
            );
            p.forbidden("metadata.finalizers", &why);
        }
    }
    for field in ["name", "namespace", "uid", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        p.immutable(format!("metadata.{field}"), &new[field], &old[field]);
    }
}

/// What is wrong with an object's name.
pub fn name_problems(def: &ResourceDef, name: &str) -> Vec<String> {
    match (def.group, def.plural) {
        ("rbac.authorization.k8s.io", _) => names::path_segment(name).into_iter().collect(),
        ("", "namespaces") => names::label_problems(name),
        ("", "services") => names::label_problems(name),
        // Its pods are called by its name.
        ("apps", "statefulsets") => names::label_problems(name),
        ("networking.k8s.io", "ipaddresses") => Vec::new(),
        ("", "events") => names::path_segment(name).into_iter().collect(),
        ("policy", "poddisruptionbudgets") => names::path_segment(name).into_iter().collect(),
        ("apiregistration.k8s.io", _) => names::path_segment(name).into_iter().collect(),
        ("flowcontrol.apiserver.k8s.io" | "certificates.k8s.io", _) => names::subdomain_problems(name),
        _ => names::subdomain_problems(name),
    }
}

/// Conditions of the common form.
pub fn conditions(list: &Value, path: &str, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, condition) in items(list).enumerate() {
        let at = format!("{path}[{index}]");
        let kind = text(condition, "type");
        if seen.contains(&kind) {
            p.duplicate(format!("{at}.type"), &condition["type"]);
        }
        seen.push(kind);
        p.qualified_name(&format!("{at}.type"), kind);
        p.one_of(format!("{at}.status"), &condition["status"], &["False", "True", "Unknown"]);
        if condition["observedGeneration"].as_i64().is_some_and(|n| n < 0) {
            let why = "must be greater than or equal to zero";
            p.invalid(format!("{at}.observedGeneration"), &condition["observedGeneration"], why);
        }
        if !has(condition, "lastTransitionTime") {
            p.required(format!("{at}.lastTransitionTime"), "must be set");
        }
        match text(condition, "reason") {
            "" => p.required(format!("{at}.reason"), "must be set"),
            reason => {
                if !is_condition_reason(reason) {
                    p.invalid(format!("{at}.reason"), &condition["reason"], REASON_FORM);
                }
                if reason.len() > MAX_REASON_BYTES {
                    p.too_long(format!("{at}.reason"), MAX_REASON_BYTES);
                }
            }
        }
        if text(condition, "message").len() > MAX_MESSAGE_BYTES {
            p.too_long(format!("{at}.message"), MAX_MESSAGE_BYTES);
        }
    }
}

fn is_condition_reason(reason: &str) -> bool {
    let ends = reason.starts_with(|c: char| c.is_ascii_alphabetic())
        && reason.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    ends && reason.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ',' | ':'))
}

/// Labels: qualified names and values.
pub fn labels(map: &Value, field: &str, p: &mut Problems) {
    for (key, value) in entries(map) {
        p.qualified_name(field, key);
        for problem in names::label_value_problems(value.as_str().unwrap_or_default()) {
            p.invalid(field, value, &problem);
        }
    }
}

/// Annotations: qualified names whose case does not matter, and a total size.
pub fn annotations(map: &Value, field: &str, p: &mut Problems) {
    let mut bytes = 0;
    for (key, value) in entries(map) {
        for problem in names::qualified_name_problems(&key.to_lowercase()) {
            p.invalid(field, &json!(key), &problem);
        }
        bytes += key.len() + value.as_str().unwrap_or_default().len();
    }
    if bytes > MAX_ANNOTATION_BYTES {
        p.too_long(field, MAX_ANNOTATION_BYTES);
    }
}

fn owners(list: &Value, p: &mut Problems) {
    let field = "metadata.ownerReferences";
    let mut first: Option<&Value> = None;
    for owner in items(list) {
        let api_version = text(owner, "apiVersion");
        // A group may not have a group.
        let version = api_version.splitn(3, '/').collect::<Vec<_>>();
        if version.len() > 2 || version.last().is_none_or(|v| v.is_empty()) {
            p.invalid(format!("{field}.apiVersion"), &json!(api_version), "version must not be empty");
        }
        for key in ["kind", "name", "uid"] {
            if text(owner, key).is_empty() {
                p.invalid(format!("{field}.{key}"), &json!(""), "must not be empty");
            }
        }
        if (api_version, text(owner, "kind")) == ("v1", "Event") {
            p.invalid_shown(field, &reference(owner), "/v1, Kind=Event is disallowed from being an owner");
        }
        match first {
            _ if owner["controller"] != true => {}
            None => first = Some(owner),
            Some(first) => {
                let shown: Vec<String> = items(list).map(reference).collect();
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {}/{} and {}/{}",
                    text(first, "kind"),
                    text(first, "name"),
                    text(owner, "kind"),
                    text(owner, "name")
                );
                p.invalid_shown(field, &format!("[{}]", shown.join(",")), &why);
            }
        }
    }
}

/// An owner as messages show it: in the order of the API's struct.
fn reference(owner: &Value) -> String {
    let mut fields: Vec<String> = ["apiVersion", "kind", "name", "uid"]
        .iter()
        .map(|key| format!("{key:?}:{}", shown::json_escaped(&json!(text(owner, key)).to_string())))
        .collect();
    for key in ["controller", "blockOwnerDeletion"] {
        if has(owner, key) {
            fields.push(format!("{key:?}:{}", owner[key]));
        }
    }
    format!("{{{}}}", fields.join(","))
}

/// Finalizers: qualified names of which two exclude each other.
pub fn finalizers(list: &Value, p: &mut Problems) {
    let field = "metadata.finalizers";
    let (mut orphan, mut foreground) = (false, false);
    for finalizer in items(list) {
        let name = finalizer.as_str().unwrap_or_default();
        p.qualified_name(field, name);
        orphan |= name == "orphan";
        foreground |= name == "foregroundDeletion";
    }
    if orphan && foreground {
        let why = "finalizer orphan and foregroundDeletion cannot be both set";
        p.invalid(field, list, why);
    }
}

/// Whether a kind's finalizers have to be known or to have a domain: those of the older kinds do, by rules of the core
/// group that what is served beside them does not go by.
fn has_known_finalizers(def: &ResourceDef) -> bool {
    !def.custom
        && !matches!(
            (def.group, def.plural),
            ("", "events")
                | ("policy", _)
                | ("admissionregistration.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io", _)
                | ("internal.apiserver.k8s.io", _)
        )
}

/// Finalizers have a domain unless they are known.
fn known_finalizers(list: &Value, p: &mut Problems) {
    for (index, finalizer) in items(list).enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let why = "name is neither a standard finalizer name nor is it fully qualified";
            p.invalid(format!("metadata.finalizers[{index}]"), finalizer, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn finalizers_without_a_domain_are_known_where_the_rules_of_the_core_count() {
        let custom = ResourceDef { custom: true, ..*find("", "v1", "configmaps").unwrap() };
        let of = |group, plural| *find(group, "v1", plural).unwrap();
        for (def, refused) in [
            (of("", "configmaps"), true),
            (of("storage.k8s.io", "storageclasses"), true),
            (of("", "events"), false),
            (of("policy", "poddisruptionbudgets"), false),
            (of("apiextensions.k8s.io", "customresourcedefinitions"), false),
            (custom, false),
        ] {
            let mut problems = Problems::default();
            let object = json!({"metadata": {"name": "a.b", "finalizers": ["mine.example.com"]}});
            validate(&def, "", &object, None, &mut problems);
            assert_eq!(!problems.0.is_empty(), refused, "{}: {:?}", def.plural, problems.0);
        }
    }

    #[test]
    fn custom_objects_are_warned_of_finalizers_that_they_get() {
        let object = |list: &[&str]| json!({"metadata": {"finalizers": list}});
        let custom = ResourceDef { custom: true, ..*find("", "v1", "configmaps").unwrap() };
        let told = |new: &[&str], old: Option<&[&str]>| {
            let warnings = crate::warnings::of(&custom, "", &object(new), old.map(object).as_ref());
            let named: Vec<String> =
                warnings.iter().map(|text| text.split('"').nth(1).unwrap_or_default().to_owned()).collect();
            named
        };
        assert_eq!(told(&["z", "a", "a", "x.y/z", "orphan"], None), ["a", "z"]);
        assert_eq!(told(&["z", "a"], Some(&["z"])), ["a"]);
        assert!(told(&["z"], Some(&["z", "a"])).is_empty());
    }

    #[test]
    fn what_may_not_change_is_told_by_each_that_looks() {
        let object = |time: Value| json!({"metadata": {"name": "a", "uid": "u", "deletionTimestamp": time}});
        for (group, plural, times) in [
            ("", "configmaps", 2),
            ("rbac.authorization.k8s.io", "roles", 2),
            ("storage.k8s.io", "csinodes", 1),
            ("", "events", 1),
        ] {
            let mut problems = Problems::default();
            let def = find(group, "v1", plural).unwrap();
            validate(def, "", &object("2020-01-01T00:00:00Z".into()), Some(&object(Value::Null)), &mut problems);
            let told = problems.0.iter().filter(|cause| cause.field == "metadata.deletionTimestamp").count();
            assert_eq!(told, times, "{plural}");
        }
    }
}
