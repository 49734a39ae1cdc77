//! Which requests a webhook or policy is about: rules, selectors, and equivalent versions of a resource.

use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::RESOURCES;
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::Status;
use serde_json::Value;

use crate::access::{Admission, Operation};
use crate::crd;
use crate::objects::Objects;

/// The operation as rules and reviews name it.
pub(super) fn operation(request: &Admission<'_>) -> &'static str {
    match request.operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

fn names(list: &Value, wanted: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|item| item == "*" || item == wanted))
}

fn names_resource(list: &Value, plural: &str, subresource: &str) -> bool {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).any(|item| match item.split_once('/') {
        None => subresource.is_empty() && (item == "*" || item == plural),
        Some((resource, sub)) => {
            (resource == "*" || resource == plural) && (sub == "*" || (!subresource.is_empty() && sub == subresource))
        }
    })
}

fn rule_matches(rule: &Value, request: &Admission<'_>, def: &ResourceDef) -> bool {
    let scope = match rule["scope"].as_str().unwrap_or("*") {
        "Namespaced" => def.scope == Scope::Namespaced,
        "Cluster" => def.scope == Scope::Cluster,
        _ => true,
    };
    let named = rule["resourceNames"].as_array().filter(|names| !names.is_empty());
    scope
        && names(&rule["operations"], operation(request))
        && names(&rule["apiGroups"], def.group)
        && names(&rule["apiVersions"], def.version)
        && names_resource(&rule["resources"], def.plural, request.subresource)
        && named.is_none_or(|names| names.iter().any(|name| name == request.name))
}

/// The version of the resource that the rules are about: that of the request, or an equivalent one.
pub(super) fn matching_version(
    rules: &Value,
    excluded: &Value,
    exact: bool,
    request: &Admission<'_>,
    customs: &crd::Table,
) -> Option<&'static ResourceDef> {
    let any = |rules: &Value, def| rules.as_array().into_iter().flatten().any(|rule| rule_matches(rule, request, def));
    if any(excluded, request.def) {
        return None;
    }
    if any(rules, request.def) {
        return Some(request.def);
    }
    if exact {
        return None;
    }
    let others: Vec<&'static ResourceDef> = if request.def.custom {
        customs.versions(request.def.group, request.def.plural)
    } else {
        RESOURCES.iter().filter(|row| row.group == request.def.group && row.plural == request.def.plural).collect()
    };
    others.into_iter().find(|def| any(rules, def) && !any(excluded, def))
}

/// The labels of the namespace that a request is about; `None` for what is in no namespace.
pub(super) fn namespace_of(request: &Admission<'_>, objects: &Objects) -> Result<Option<Value>, Status> {
    if (request.def.group, request.def.plural) == ("", "namespaces") {
        let object = request.object.as_deref().or(request.old);
        return Ok(object.cloned());
    }
    if request.namespace.is_empty() {
        return Ok(None);
    }
    let found = objects.object("", "v1", "namespaces", "", request.namespace);
    found.map(Some).ok_or_else(|| Status::not_found("", "namespaces", request.namespace))
}

/// Whether both selectors of a webhook or policy choose the request.
pub(super) fn selected(owner: &Value, request: &Admission<'_>, namespace: Option<&Value>) -> bool {
    let chooses = |selector: &Value, object: &Value| {
        LabelSelector::from_object(selector)
            .is_ok_and(|selector| selector.matches(|key| object["metadata"]["labels"][key].as_str()))
    };
    let empty = |selector: &Value| selector.as_object().is_none_or(serde_json::Map::is_empty);
    let by_namespace = &owner["namespaceSelector"];
    let by_object = &owner["objectSelector"];
    (empty(by_namespace) || namespace.is_none_or(|ns| chooses(by_namespace, ns)))
        && (empty(by_object)
            || [request.object.as_deref(), request.old].into_iter().flatten().any(|object| chooses(by_object, object)))
}

/// Configurations of webhooks and policies are never judged by such themselves: a broken one can always be taken away.
pub(super) fn is_exempt(request: &Admission<'_>) -> bool {
    request.def.group == "admissionregistration.k8s.io"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn resources_are_named() {
        for (list, plural, sub, expected) in [
            (json!(["pods"]), "pods", "", true),
            (json!(["pods"]), "pods", "status", false),
            (json!(["*"]), "pods", "", true),
            (json!(["*"]), "pods", "status", false),
            (json!(["*/*"]), "pods", "status", true),
            (json!(["*/*"]), "pods", "", true),
            (json!(["pods/*"]), "pods", "exec", true),
            (json!(["*/scale"]), "deployments", "scale", true),
            (json!(["*/scale"]), "deployments", "status", false),
            (json!([]), "pods", "", false),
        ] {
            assert_eq!(names_resource(&list, plural, sub), expected, "{list} {plural}/{sub}");
        }
    }
}
