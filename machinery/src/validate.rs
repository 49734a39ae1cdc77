//! Validation of kinds, with Kubernetes' messages and field paths.

use serde_json::{Value, json};

use crate::names;
use crate::resource::ResourceDef;
use crate::selector::LabelSelector;
use crate::status::Cause;

/// Problems of a new object (`old` is `None`) or of a change.
pub fn validate(def: &ResourceDef, new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    match (def.group, def.kind) {
        ("", "Pod") if old.is_none() => pod_spec(&new["spec"], "spec", &mut causes),
        ("apps", "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet") => workload(new, old, &mut causes),
        ("", "Service") => service(&new["spec"], &mut causes),
        ("", "ConfigMap" | "Secret") => keys(new, &mut causes),
        _ => {}
    }
    causes
}

fn workload(new: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let spec = &new["spec"];
    if let Some(replicas) = spec["replicas"].as_i64().filter(|r| *r < 0) {
        causes.push(Cause::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0"));
    }
    if !spec["selector"].is_object() {
        causes.push(Cause::required("spec.selector", ""));
    } else {
        let labels = &spec["template"]["metadata"]["labels"];
        match LabelSelector::from_object(&spec["selector"]) {
            Ok(selector) if selector.0.is_empty() => {
                causes.push(Cause::invalid(
                    "spec.selector",
                    &spec["selector"],
                    "empty selector is invalid for deployment",
                ));
            }
            Ok(selector) if !selector.matches(|k| labels[k].as_str()) => {
                causes.push(Cause::invalid(
                    "spec.template.metadata.labels",
                    labels,
                    "`selector` does not match template `labels`",
                ));
            }
            Ok(_) => {}
            Err(why) => causes.push(Cause::invalid("spec.selector", &spec["selector"], &why)),
        }
    }
    if let Some(old) = old
        && old["spec"]["selector"] != spec["selector"]
    {
        causes.push(Cause::invalid("spec.selector", &spec["selector"], "field is immutable"));
    }
    let claims: Vec<&str> =
        list(&spec["volumeClaimTemplates"]).filter_map(|c| c["metadata"]["name"].as_str()).collect();
    pod_spec_with(&spec["template"]["spec"], "spec.template.spec", &claims, causes);
    let policy = &spec["template"]["spec"]["restartPolicy"];
    if policy.as_str().is_some_and(|p| p != "Always") {
        causes.push(Cause::not_supported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
}

fn pod_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    pod_spec_with(spec, path, &[], causes);
}

/// `claims` are volumes that each pod gets beside its own.
fn pod_spec_with(spec: &Value, path: &str, claims: &[&str], causes: &mut Vec<Cause>) {
    let own = list(&spec["volumes"]).filter_map(|v| v["name"].as_str());
    let volumes: Vec<&str> = own.chain(claims.iter().copied()).collect();
    if list(&spec["containers"]).next().is_none() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let mut seen = Vec::new();
    for field in ["initContainers", "containers"] {
        for (index, container) in list(&spec[field]).enumerate() {
            let at = format!("{path}.{field}[{index}]");
            let name = container["name"].as_str().unwrap_or_default();
            if name.is_empty() {
                causes.push(Cause::required(format!("{at}.name"), ""));
            } else if let Some(problem) = names::dns_label(name) {
                causes.push(Cause::invalid(format!("{at}.name"), &container["name"], &problem));
            } else if seen.contains(&name) {
                let message = format!("Duplicate value: {name:?}");
                causes.push(Cause { reason: "FieldValueDuplicate".into(), message, field: format!("{at}.name") });
            }
            seen.push(name);
            self::container(container, &at, &volumes, causes);
        }
    }
    let policy = &spec["restartPolicy"];
    if !matches!(policy.as_str(), Some("Always" | "OnFailure" | "Never") | None) {
        causes.push(Cause::not_supported(format!("{path}.restartPolicy"), policy, &["Always", "OnFailure", "Never"]));
    }
}

fn container(container: &Value, at: &str, volumes: &[&str], causes: &mut Vec<Cause>) {
    if container["image"].as_str().unwrap_or_default().is_empty() {
        causes.push(Cause::required(format!("{at}.image"), ""));
    }
    let policy = &container["imagePullPolicy"];
    if !matches!(policy.as_str(), Some("Always" | "IfNotPresent" | "Never") | None) {
        causes.push(Cause::not_supported(
            format!("{at}.imagePullPolicy"),
            policy,
            &["Always", "IfNotPresent", "Never"],
        ));
    }
    for (i, port) in list(&container["ports"]).enumerate() {
        let field = format!("{at}.ports[{i}].containerPort");
        match port["containerPort"].as_i64() {
            None | Some(0) => causes.push(Cause::required(field, "")),
            Some(1..=65535) => {}
            Some(n) => causes.push(Cause::invalid(field, &json!(n), "must be between 1 and 65535, inclusive")),
        }
    }
    for (i, mount) in list(&container["volumeMounts"]).enumerate() {
        let name = mount["name"].as_str().unwrap_or_default();
        if !volumes.contains(&name) {
            let field = format!("{at}.volumeMounts[{i}].name");
            let message = format!("Not found: {name:?}");
            causes.push(Cause { reason: "FieldValueNotFound".into(), message, field });
        }
        if mount["mountPath"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("{at}.volumeMounts[{i}].mountPath"), ""));
        }
    }
}

fn service(spec: &Value, causes: &mut Vec<Cause>) {
    let kind = spec["type"].as_str().unwrap_or_default();
    if !matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName") {
        let supported = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
        causes.push(Cause::not_supported("spec.type", &spec["type"], &supported));
    }
    let ports: Vec<&Value> = list(&spec["ports"]).collect();
    if ports.is_empty() && kind != "ExternalName" && spec["clusterIP"] != "None" {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("spec.ports[{i}].name"), ""));
        }
        let number = port["port"].as_i64().unwrap_or(0);
        if !(1..=65535).contains(&number) {
            let why = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(format!("spec.ports[{i}].port"), &json!(number), why));
        }
        if !matches!(port["protocol"].as_str(), Some("TCP" | "UDP" | "SCTP")) {
            let field = format!("spec.ports[{i}].protocol");
            causes.push(Cause::not_supported(field, &port["protocol"], &["SCTP", "TCP", "UDP"]));
        }
    }
}

/// Keys of ConfigMaps and Secrets are file names.
fn keys(object: &Value, causes: &mut Vec<Cause>) {
    for field in ["data", "binaryData"] {
        for key in object[field].as_object().into_iter().flatten().map(|(key, _)| key) {
            let good = !key.is_empty()
                && key.len() <= 253
                && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && !matches!(key.as_str(), "." | "..");
            if !good {
                let why = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                           'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), why));
            }
        }
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn problems_are_told_by_field() {
        let pod = find("", "v1", "pods").unwrap();
        let deployment = find("apps", "v1", "deployments").unwrap();
        for (def, object, fields) in [
            (pod, json!({"spec": {}}), vec!["spec.containers"]),
            (
                pod,
                json!({"spec": {"containers": [{"name": "A"}]}}),
                vec!["spec.containers[0].name", "spec.containers[0].image"],
            ),
            (
                pod,
                json!({"spec": {"containers": [{"name": "a", "image": "b", "volumeMounts": [{"name": "v", "mountPath": "/x"}]}]}}),
                vec!["spec.containers[0].volumeMounts[0].name"],
            ),
            (
                deployment,
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "c"}},
                "spec": {"containers": [{"name": "a", "image": "b"}]}}}}),
                vec!["spec.template.metadata.labels"],
            ),
            (find("", "v1", "configmaps").unwrap(), json!({"data": {"a/b": "x"}}), vec!["data[a/b]"]),
        ] {
            let got: Vec<String> = validate(def, &object, None).into_iter().map(|c| c.field).collect();
            assert_eq!(got, fields, "{object}");
        }
    }
}
