//! Answers in the forms that people's tools ask for: Table and PartialObjectMetadata.

use std::borrow::Cow;

use keelson_machinery::resource::{Column, ResourceDef};
use keelson_machinery::selector::LabelSelector;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::negotiate::{Accepted, Format};
use crate::request::Query;

/// One object in another form.
pub fn single(def: &ResourceDef, accepted: Accepted, object: &Value, query: &Query) -> Result<Value, Status> {
    Ok(match accepted.format {
        Format::Metadata => partial(accepted, object),
        Format::Table => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            table(def, accepted, std::slice::from_ref(object), metadata, query)
        }
        Format::Object => object.clone(),
        Format::MetadataList => {
            let what = go_name(def, "");
            let message =
                format!("you requested PartialObjectMetadataList, but the requested object is not a list ({what})");
            return Err(Status { message, ..Status::not_acceptable("") });
        }
    })
}

/// A collection in another form.
pub fn list(
    def: &ResourceDef,
    accepted: Accepted,
    items: &[Value],
    metadata: Value,
    query: &Query,
) -> Result<Value, Status> {
    Ok(match accepted.format {
        Format::MetadataList => {
            // Within a list the kind is not repeated on the wire, but JSON has always had it.
            let items: Vec<Value> = items.iter().map(|item| partial(accepted, item)).collect();
            json!({
                "kind": "PartialObjectMetadataList", "apiVersion": accepted.meta_version(), "metadata": metadata, "items": items,
            })
        }
        Format::Table => table(def, accepted, items, metadata, query),
        Format::Object => json!({
            "kind": format!("{}List", def.kind), "apiVersion": def.api_version(), "metadata": metadata, "items": bare(def, items),
        }),
        Format::Metadata => {
            let what = go_name(def, "List");
            let message = format!("you requested PartialObjectMetadata, but the requested object is a list ({what})");
            return Err(Status { message, ..Status::not_acceptable("") });
        }
    })
}

/// The type that upstream's messages name.
fn go_name(def: &ResourceDef, suffix: &str) -> String {
    let group = def.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
    format!("*{group}.{}{suffix}", def.kind)
}

/// Items of a list: built-in ones do not repeat what the list says of their kind.
fn bare(def: &ResourceDef, items: &[Value]) -> Vec<Value> {
    let mut items = items.to_vec();
    for item in items.iter_mut().filter_map(Value::as_object_mut).filter(|_| !def.custom) {
        item.remove("kind");
        item.remove("apiVersion");
    }
    items
}

/// The metadata of an object.
pub fn partial(accepted: Accepted, object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": accepted.meta_version(), "metadata": object["metadata"]})
}

fn table(def: &ResourceDef, accepted: Accepted, items: &[Value], metadata: Value, query: &Query) -> Value {
    let columns = columns(def);
    let definitions: Vec<Value> = columns
        .iter()
        .map(|c| json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority}))
        .collect();
    let rows: Vec<Value> = items
        .iter()
        .map(|item| {
            let mut row = json!({"cells": cells(def, item)});
            match query.get("includeObject") {
                Some("None") => {}
                Some("Object") => row["object"] = item.clone(),
                _ => row["object"] = partial(accepted, item),
            }
            row
        })
        .collect();
    json!({"kind": "Table", "apiVersion": accepted.meta_version(), "metadata": metadata, "columnDefinitions": definitions, "rows": rows})
}

const fn column(name: &'static str, kind: &'static str, priority: i32) -> Column {
    let format = match name.as_bytes() {
        b"Name" => "name",
        _ => "",
    };
    Column { name, kind, format, description: "", priority }
}

const NAME: Column = column("Name", "string", 0);
const AGE: Column = column("Age", "string", 0);

const PODS: &[Column] = &[
    NAME,
    column("Ready", "string", 0),
    column("Status", "string", 0),
    column("Restarts", "string", 0),
    AGE,
    column("IP", "string", 1),
    column("Node", "string", 1),
    column("Nominated Node", "string", 1),
    column("Readiness Gates", "string", 1),
];
const DEPLOYMENTS: &[Column] = &[
    NAME,
    column("Ready", "string", 0),
    column("Up-to-date", "string", 0),
    column("Available", "string", 0),
    AGE,
    column("Containers", "string", 1),
    column("Images", "string", 1),
    column("Selector", "string", 1),
];
const REPLICA_SETS: &[Column] = &[
    NAME,
    column("Desired", "integer", 0),
    column("Current", "integer", 0),
    column("Ready", "integer", 0),
    AGE,
    column("Containers", "string", 1),
    column("Images", "string", 1),
    column("Selector", "string", 1),
];
const SERVICES: &[Column] = &[
    NAME,
    column("Type", "string", 0),
    column("Cluster-IP", "string", 0),
    column("External-IP", "string", 0),
    column("Port(s)", "string", 0),
    AGE,
    column("Selector", "string", 1),
];
const NODES: &[Column] = &[
    NAME,
    column("Status", "string", 0),
    column("Roles", "string", 0),
    AGE,
    column("Version", "string", 0),
    column("Internal-IP", "string", 1),
    column("External-IP", "string", 1),
    column("OS-Image", "string", 1),
    column("Kernel-Version", "string", 1),
    column("Container-Runtime", "string", 1),
];
const NAMESPACES: &[Column] = &[NAME, column("Status", "string", 0), AGE];
const CONFIG_MAPS: &[Column] = &[NAME, column("Data", "string", 0), AGE];
const SECRETS: &[Column] = &[NAME, column("Type", "string", 0), column("Data", "integer", 0), AGE];
const EVENTS: &[Column] = &[
    column("Last Seen", "string", 0),
    column("Type", "string", 0),
    column("Reason", "string", 0),
    column("Object", "string", 0),
    column("Message", "string", 0),
];
const CREATED: &[Column] = &[NAME, column("Created At", "string", 0)];
const OTHERS: &[Column] = &[NAME, AGE];

/// What every object's name is described as.
const NAME_DESCRIPTION: &str = "Name must be unique within a namespace. Is required when creating resources, although some \
    resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended \
    for creation idempotence and configuration definition. Cannot be updated. More info: \
    https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

/// The columns of a row: those of a custom resource are its definition's.
fn columns(def: &ResourceDef) -> Cow<'static, [Column]> {
    if !def.custom {
        return Cow::Borrowed(built_in_columns(def));
    }
    let name = Column { description: NAME_DESCRIPTION, ..NAME };
    std::iter::once(name).chain(def.columns.iter().map(|(column, _)| *column)).collect::<Vec<_>>().into()
}

fn built_in_columns(def: &ResourceDef) -> &'static [Column] {
    match (def.group, def.plural) {
        ("", "pods") => PODS,
        ("apps", "deployments") => DEPLOYMENTS,
        ("apps", "replicasets") => REPLICA_SETS,
        ("", "services") => SERVICES,
        ("", "nodes") => NODES,
        ("", "namespaces") => NAMESPACES,
        ("", "configmaps") => CONFIG_MAPS,
        ("", "secrets") => SECRETS,
        ("", "events") => EVENTS,
        ("rbac.authorization.k8s.io", "clusterroles" | "roles") => CREATED,
        _ => OTHERS,
    }
}

fn cells(def: &ResourceDef, object: &Value) -> Vec<Value> {
    let name = object["metadata"]["name"].clone();
    if def.custom {
        let cells = crate::crd::cells(def, object, |since| age(Some(since)));
        return std::iter::once(name).chain(cells).collect();
    }
    let age: Value = age(object["metadata"]["creationTimestamp"].as_str()).into();
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |of: &Value, key: &str| of[key].as_i64().unwrap_or(0);
    match (def.group, def.plural) {
        ("", "pods") => pod(object, name, age),
        ("apps", "deployments") => {
            let ready = format!("{}/{}", number(status, "readyReplicas"), number(spec, "replicas"));
            let (containers, images) = containers(&spec["template"]["spec"]);
            vec![
                name,
                ready.into(),
                number(status, "updatedReplicas").to_string().into(),
                number(status, "availableReplicas").to_string().into(),
                age,
                containers,
                images,
                selector(&spec["selector"]),
            ]
        }
        ("apps", "replicasets") => {
            let (containers, images) = containers(&spec["template"]["spec"]);
            let counts = [number(spec, "replicas"), number(status, "replicas"), number(status, "readyReplicas")];
            let [desired, current, ready] = counts.map(Value::from);
            vec![name, desired, current, ready, age, containers, images, selector(&spec["selector"])]
        }
        ("", "services") => service(object, name, age),
        ("", "nodes") => node(object, name, age),
        ("", "namespaces") => vec![name, status["phase"].clone(), age],
        ("", "configmaps") => {
            let count =
                ["data", "binaryData"].iter().map(|f| object[*f].as_object().map_or(0, |d| d.len())).sum::<usize>();
            vec![name, count.to_string().into(), age]
        }
        ("", "secrets") => {
            vec![name, object["type"].clone(), object["data"].as_object().map_or(0, |d| d.len()).into(), age]
        }
        ("", "events") => {
            let seen = object["lastTimestamp"].as_str().or(object["eventTime"].as_str());
            let about = &object["involvedObject"];
            let kind = about["kind"].as_str().unwrap_or_default().to_lowercase();
            let target = format!("{kind}/{}", about["name"].as_str().unwrap_or_default());
            let message = object["message"].as_str().unwrap_or_default().trim().to_owned();
            vec![
                self::age(seen).into(),
                object["type"].clone(),
                object["reason"].clone(),
                target.into(),
                message.into(),
            ]
        }
        ("rbac.authorization.k8s.io", "clusterroles" | "roles") => {
            vec![name, object["metadata"]["creationTimestamp"].clone()]
        }
        _ => vec![name, age],
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn or_none(text: Option<&str>) -> Value {
    text.filter(|t| !t.is_empty()).unwrap_or("<none>").into()
}

fn containers(pod: &Value) -> (Value, Value) {
    let join = |key: &str| items(&pod["containers"]).filter_map(|c| c[key].as_str()).collect::<Vec<_>>().join(",");
    (join("name").into(), join("image").into())
}

fn selector(object: &Value) -> Value {
    let Ok(parsed) = LabelSelector::from_object(object) else { return "<error>".into() };
    let labels = object["matchLabels"].as_object().into_iter().flatten();
    let terms: Vec<String> = labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    if parsed.0.is_empty() { "<none>".into() } else { terms.join(",").into() }
}

/// Whether the waiting or terminated state of a container says something more than the pod's phase.
fn container_reason(status: &Value) -> Option<String> {
    let (waiting, terminated) = (&status["state"]["waiting"], &status["state"]["terminated"]);
    if let Some(reason) = waiting["reason"].as_str().filter(|r| !r.is_empty()) {
        return Some(reason.to_owned());
    }
    if terminated.is_object() {
        let signal = terminated["signal"].as_i64().unwrap_or(0);
        return Some(match terminated["reason"].as_str().filter(|r| !r.is_empty()) {
            Some(reason) => reason.to_owned(),
            None if signal != 0 => format!("Signal:{signal}"),
            None => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
        });
    }
    None
}

fn pod(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut reason = status["reason"].as_str().or(status["phase"].as_str()).unwrap_or("Unknown").to_owned();
    let gated = items(&status["conditions"]).any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".into();
    }
    let statuses: Vec<&Value> = items(&status["containerStatuses"]).collect();
    let total = items(&spec["containers"]).count();
    let ready = statuses.iter().filter(|s| s["ready"] == true).count();
    let mut restarts: i64 = statuses.iter().filter_map(|s| s["restartCount"].as_i64()).sum();
    let mut initializing = false;
    for (index, init) in items(&status["initContainerStatuses"]).enumerate() {
        let done = init["state"]["terminated"]["exitCode"] == 0;
        if done {
            continue;
        }
        initializing = true;
        restarts = items(&status["initContainerStatuses"]).filter_map(|s| s["restartCount"].as_i64()).sum();
        let count = items(&spec["initContainers"]).count();
        reason = match container_reason(init) {
            Some(why) if why != "PodInitializing" => format!("Init:{why}"),
            _ => format!("Init:{index}/{count}"),
        };
        break;
    }
    if !initializing {
        let mut running = false;
        for status in statuses.iter().rev() {
            match container_reason(status) {
                Some(why) => reason = why,
                None => running |= status["ready"] == true && status["state"]["running"].is_object(),
            }
        }
        if reason == "Completed" && running {
            let is_ready = items(&status["conditions"]).any(|c| c["type"] == "Ready" && c["status"] == "True");
            reason = if is_ready { "Running" } else { "NotReady" }.into();
        }
    }
    if object["metadata"]["deletionTimestamp"].is_string() {
        reason = if status["reason"] == "NodeLost" { "Unknown" } else { "Terminating" }.into();
    }
    vec![
        name,
        format!("{ready}/{total}").into(),
        reason.into(),
        restarts.to_string().into(),
        age,
        or_none(status["podIP"].as_str()),
        or_none(spec["nodeName"].as_str()),
        or_none(status["nominatedNodeName"].as_str()),
        or_none(None),
    ]
}

fn service(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let external: Vec<&str> = items(&spec["externalIPs"]).filter_map(Value::as_str).collect();
    let balancer: Vec<&str> = items(&object["status"]["loadBalancer"]["ingress"])
        .filter_map(|i| i["ip"].as_str().or(i["hostname"].as_str()))
        .collect();
    let external: Value = match kind {
        "ExternalName" => spec["externalName"].clone(),
        "LoadBalancer" if balancer.is_empty() && external.is_empty() => "<pending>".into(),
        "LoadBalancer" => [balancer, external].concat().join(",").into(),
        _ => or_none(Some(&external.join(","))),
    };
    let ports: Vec<String> = items(&spec["ports"])
        .map(|p| {
            let protocol = p["protocol"].as_str().unwrap_or("TCP");
            match p["nodePort"].as_i64().filter(|n| *n != 0) {
                Some(node) => format!("{}:{node}/{protocol}", p["port"]),
                None => format!("{}/{protocol}", p["port"]),
            }
        })
        .collect();
    let labels = spec["selector"].as_object().into_iter().flatten();
    let selector: Vec<String> = labels.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    vec![
        name,
        kind.into(),
        or_none(spec["clusterIP"].as_str()),
        external,
        or_none(Some(&ports.join(","))),
        age,
        or_none(Some(&selector.join(","))),
    ]
}

fn node(object: &Value, name: Value, age: Value) -> Vec<Value> {
    let status = &object["status"];
    let ready = items(&status["conditions"]).find(|c| c["type"] == "Ready");
    let mut state = match ready.and_then(|c| c["status"].as_str()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == true {
        state += ",SchedulingDisabled";
    }
    let labels = object["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/"))
        .filter(|r| !r.is_empty())
        .collect();
    roles.sort_unstable();
    let address =
        |kind: &str| items(&status["addresses"]).find(|a| a["type"] == kind).and_then(|a| a["address"].as_str());
    let info = |key: &str| -> Value {
        status["nodeInfo"][key].as_str().filter(|t| !t.is_empty()).unwrap_or("<unknown>").into()
    };
    vec![
        name,
        state.into(),
        or_none(Some(&roles.join(","))),
        age,
        status["nodeInfo"]["kubeletVersion"].as_str().unwrap_or_default().into(),
        or_none(address("InternalIP")),
        or_none(address("ExternalIP")),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

/// An age as kubectl shows it: `5s`, `3m20s`, `5h3m`, `2d`, `3y40d` (apimachinery's `HumanDuration`).
fn age(since: Option<&str>) -> String {
    let Some(at) = since.and_then(|t| t.parse::<jiff::Timestamp>().ok()) else { return "<unknown>".into() };
    human_duration(jiff::Timestamp::now().as_second() - at.as_second())
}

fn human_duration(seconds: i64) -> String {
    let two = |n: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{n}{unit}") } else { format!("{n}{unit}{rest}{small}") }
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if minutes < 10 => two(minutes, "m", s % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => two(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 192 => two(days, "d", hours % 24, "h"),
        _ if days < 730 => format!("{days}d"),
        _ if days < 2920 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        for (seconds, expected) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (600, "10m"),
            (3 * 3600, "3h"),
            (11000, "3h3m"),
            (86400 * 3, "3d"),
            (86400 * 400, "400d"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for def in keelson_machinery::resources::RESOURCES {
            let object = json!({"metadata": {"name": "a"}, "spec": {}, "status": {}});
            assert_eq!(cells(def, &object).len(), columns(def).len(), "{}", def.qualified());
        }
    }
}
