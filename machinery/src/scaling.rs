//! HorizontalPodAutoscalers: default behaviour, and the two versions of the kind.
//!
//! The first version has one metric as a field of its own; the others, the behaviour and the conditions are kept in
//! annotations as JSON, so that nothing is lost on the way there and back.

use serde_json::{Map, Value, json};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
/// The annotations of the first version.
pub const ANNOTATIONS: &[&str] = &[METRICS, CURRENT_METRICS, BEHAVIOR, CONDITIONS];
/// Use of the processor that is aimed at when nothing is said, percent.
const DEFAULT_CPU_PERCENT: i64 = 80;

/// Fills in defaults of an autoscaler in a version.
pub fn set_defaults(version: &str, object: &mut Value) {
    let annotated = object["metadata"]["annotations"].get(METRICS).is_some();
    let spec = &mut object["spec"];
    set(spec, "minReplicas", json!(1));
    if version == "v1" {
        if !annotated {
            set(spec, "targetCPUUtilizationPercentage", json!(DEFAULT_CPU_PERCENT));
        }
        return;
    }
    if spec["metrics"].as_array().is_none_or(Vec::is_empty) {
        spec["metrics"] = json!([cpu_metric(&json!(DEFAULT_CPU_PERCENT))]);
    }
    if spec["behavior"].is_object() {
        behavior(&mut spec["behavior"]);
    } else if let Some(map) = spec.as_object_mut() {
        map.remove("behavior");
    }
}

fn set(object: &mut Value, key: &str, value: Value) {
    if object.get(key).is_none_or(Value::is_null) {
        object[key] = value;
    }
}

fn cpu_metric(percent: &Value) -> Value {
    json!({"type": "Resource", "resource": {"name": "cpu",
        "target": {"type": "Utilization", "averageUtilization": percent}}})
}

/// Rules that are not said are the usual ones.
fn behavior(behavior: &mut Value) {
    let up = json!([{"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (direction, policies) in [("scaleUp", up), ("scaleDown", down)] {
        if !behavior[direction].is_object() {
            behavior[direction] = json!({});
        }
        let rules = &mut behavior[direction];
        set(rules, "selectPolicy", json!("Max"));
        if direction == "scaleUp" {
            set(rules, "stabilizationWindowSeconds", json!(0));
        }
        set(rules, "policies", policies);
    }
}

/// An autoscaler of the first version in the second.
pub fn to_v2(object: &Value) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = "autoscaling/v2".into();
    // What the annotation says comes first.
    let others = take(&mut out, METRICS).unwrap_or_default();
    let mut metrics: Vec<Value> = others.as_array().into_iter().flatten().map(metric_to_v2).collect();
    if let Some(percent) = object["spec"].get("targetCPUUtilizationPercentage").filter(|p| !p.is_null()) {
        metrics.push(cpu_metric(percent));
    }
    let current_percent = object["status"].get("currentCPUUtilizationPercentage").cloned();
    // The annotation knows more than the percentage.
    let current: Vec<Value> = match (take(&mut out, CURRENT_METRICS), current_percent.filter(|p| !p.is_null())) {
        (Some(noted), _) => noted.as_array().into_iter().flatten().map(current_to_v2).collect(),
        (None, Some(percent)) => {
            vec![json!({"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": percent}}})]
        }
        (None, None) => Vec::new(),
    };
    let (behavior, conditions) = (take(&mut out, BEHAVIOR), take(&mut out, CONDITIONS));
    let behavior = behavior.map(|behavior| without_nulls(&renamed(&behavior, lower_first)));
    if let Some(spec) = out["spec"].as_object_mut() {
        spec.remove("targetCPUUtilizationPercentage");
        put(spec, "metrics", (!metrics.is_empty()).then(|| metrics.into()));
        put(spec, "behavior", behavior);
    }
    if !out["status"].is_object() {
        out["status"] = json!({});
    }
    if let Some(status) = out["status"].as_object_mut() {
        status.remove("currentCPUUtilizationPercentage");
        status.insert("currentMetrics".into(), if current.is_empty() { Value::Null } else { current.into() });
        put(status, "conditions", conditions);
        status.entry("desiredReplicas").or_insert(json!(0));
        if status.get("currentReplicas") == Some(&json!(0)) {
            status.remove("currentReplicas");
        }
    }
    out
}

/// An autoscaler of the second version in the first.
pub fn to_v1(object: &Value) -> Value {
    let mut out = object.clone();
    out["apiVersion"] = "autoscaling/v1".into();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is_cpu = |metric: &Value| metric["type"] == "Resource" && metric["resource"]["name"] == "cpu";
    let (metrics, currents) = (list(&object["spec"]["metrics"]), list(&object["status"]["currentMetrics"]));
    let aimed = |metric: &Value| metric["resource"]["target"].get("averageUtilization").cloned();
    // The first metric of the processor has a field of its own.
    let percent = metrics.iter().find(|m| is_cpu(m)).and_then(aimed);
    let others: Vec<Value> = metrics.iter().filter(|m| !is_cpu(m) || aimed(m).is_none()).map(metric_to_v1).collect();
    let used = |metric: &Value| metric["resource"]["current"].get("averageUtilization").cloned();
    let current_percent = currents.iter().filter(|m| is_cpu(m)).filter_map(used).next_back();
    let currents: Vec<Value> = currents.iter().map(current_to_v1).collect();
    let conditions = list(&object["status"]["conditions"]);
    let notes = [
        (METRICS, (!others.is_empty()).then(|| in_order(&json!(others)))),
        (CURRENT_METRICS, (!currents.is_empty()).then(|| in_order(&json!(currents)))),
        (BEHAVIOR, object["spec"].get("behavior").filter(|b| b.is_object()).map(behavior_note)),
        (CONDITIONS, (!conditions.is_empty()).then(|| in_order(&json!(conditions)))),
    ];
    if let Some(annotations) = out["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|key, _| !ANNOTATIONS.contains(&key.as_str()));
    }
    for (key, text) in notes {
        if let Some(text) = text {
            out["metadata"]["annotations"][key] = text.into();
        }
    }
    if let Some(spec) = out["spec"].as_object_mut() {
        spec.remove("metrics");
        spec.remove("behavior");
        put(spec, "targetCPUUtilizationPercentage", percent);
    }
    if let Some(status) = out["status"].as_object_mut() {
        status.remove("currentMetrics");
        status.remove("conditions");
        put(status, "currentCPUUtilizationPercentage", current_percent);
        status.entry("currentReplicas").or_insert(json!(0));
        status.entry("desiredReplicas").or_insert(json!(0));
    }
    out
}

fn put(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    };
}

/// Fields of what is noted in annotations, in the order in which the API's types have them.
const ORDER: &[&str] = &[
    "type",
    "object",
    "pods",
    "resource",
    "containerResource",
    "external",
    "kind",
    "name",
    "apiVersion",
    "target",
    "metricName",
    "metricSelector",
    "targetAverageUtilization",
    "targetValue",
    "targetAverageValue",
    "currentAverageUtilization",
    "currentValue",
    "currentAverageValue",
    "selector",
    "averageValue",
    "container",
    "matchLabels",
    "matchExpressions",
    "key",
    "operator",
    "values",
    "status",
    "lastTransitionTime",
    "reason",
    "message",
    "ScaleUp",
    "ScaleDown",
    "StabilizationWindowSeconds",
    "SelectPolicy",
    "Policies",
    "Tolerance",
    "Type",
    "Value",
    "PeriodSeconds",
];

/// JSON with its fields in the order of the API's types.
fn in_order(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| ORDER.iter().position(|known| known == key).unwrap_or(ORDER.len()));
            let parts = keys.into_iter().map(|key| {
                // Labels are in the order of their keys.
                let inner = if key == "matchLabels" { map[key].to_string() } else { in_order(&map[key]) };
                format!("{}:{inner}", Value::from(key.as_str()))
            });
            format!("{{{}}}", parts.collect::<Vec<_>>().join(","))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(in_order).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

/// A behaviour as the first version notes it: under the names of the API's inner type, with all its fields.
fn behavior_note(behavior: &Value) -> String {
    let mut out = renamed(behavior, upper_first);
    for direction in ["ScaleUp", "ScaleDown"] {
        let rules = &mut out[direction];
        if rules.is_object() {
            for key in ["StabilizationWindowSeconds", "SelectPolicy", "Policies", "Tolerance"] {
                set(rules, key, Value::Null);
            }
        }
    }
    in_order(&out)
}

/// A value with other names for all its fields.
fn renamed(value: &Value, name: fn(&str) -> String) -> Value {
    match value {
        Value::Object(map) => map.iter().map(|(key, inner)| (name(key), renamed(inner, name))).collect(),
        Value::Array(list) => list.iter().map(|inner| renamed(inner, name)).collect(),
        other => other.clone(),
    }
}

fn upper_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

fn lower_first(name: &str) -> String {
    let mut chars = name.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map.iter().filter(|(_, inner)| !inner.is_null());
            kept.map(|(key, inner)| (key.clone(), without_nulls(inner))).collect()
        }
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

/// Takes the JSON out of an annotation; annotations that are then empty go.
fn take(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = object["metadata"].get_mut("annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    if annotations.is_empty() {
        object["metadata"].as_object_mut().map(|m| m.remove("annotations"));
    }
    serde_json::from_str(text.as_str()?).ok()
}

/// Fields of a metric in the first version with their places in the second.
const TARGETS: &[(&str, &str, &str, &str)] = &[
    ("Resource", "resource", "targetAverageUtilization", "averageUtilization"),
    ("Resource", "resource", "targetAverageValue", "averageValue"),
    ("ContainerResource", "containerResource", "targetAverageUtilization", "averageUtilization"),
    ("ContainerResource", "containerResource", "targetAverageValue", "averageValue"),
    ("Pods", "pods", "targetAverageValue", "averageValue"),
    ("Object", "object", "targetValue", "value"),
    ("Object", "object", "averageValue", "averageValue"),
    ("External", "external", "targetValue", "value"),
    ("External", "external", "targetAverageValue", "averageValue"),
];

fn target_kind(field: &str) -> &'static str {
    match field {
        "averageUtilization" => "Utilization",
        "averageValue" => "AverageValue",
        _ => "Value",
    }
}

fn metric_to_v2(metric: &Value) -> Value {
    let kind = metric["type"].as_str().unwrap_or_default();
    let mut out = json!({"type": kind});
    for (_, field, old, new) in TARGETS.iter().filter(|(k, ..)| *k == kind) {
        let source = &metric[*field];
        if !source.is_object() {
            continue;
        }
        if out.get(*field).is_none() {
            out[*field] = described(source);
        }
        // The older version of an object's metric always has a value; beside an average it says nothing.
        let filled = *old == "targetValue" && source["averageValue"].is_string();
        if let Some(value) = source.get(*old).filter(|v| !(v.is_null() || filled)) {
            out[*field]["target"]["type"] = target_kind(new).into();
            out[*field]["target"][*new] = value.clone();
        }
    }
    out
}

/// What a metric is about, in the second version.
fn described(source: &Value) -> Value {
    let mut out = json!({});
    for (old, new) in [("name", "name"), ("container", "container"), ("target", "describedObject")] {
        if let Some(value) = source.get(old) {
            out[new] = value.clone();
        }
    }
    if let Some(name) = source.get("metricName") {
        out["metric"]["name"] = name.clone();
    }
    for key in ["selector", "metricSelector"] {
        if let Some(selector) = source.get(key) {
            out["metric"]["selector"] = selector.clone();
        }
    }
    out
}

fn metric_to_v1(metric: &Value) -> Value {
    let kind = metric["type"].as_str().unwrap_or_default();
    let mut out = json!({"type": kind});
    for (_, field, old, new) in TARGETS.iter().filter(|(k, ..)| *k == kind) {
        let source = &metric[*field];
        if !source.is_object() {
            continue;
        }
        if out.get(*field).is_none() {
            out[*field] = undescribed(kind, source);
            if kind == "Object" {
                out[*field]["targetValue"] = "0".into();
            }
        }
        if let Some(value) = source["target"].get(*new).filter(|v| !v.is_null()) {
            out[*field][*old] = value.clone();
        }
    }
    out
}

fn undescribed(kind: &str, source: &Value) -> Value {
    let mut out = json!({});
    for (old, new) in [("name", "name"), ("container", "container"), ("target", "describedObject")] {
        if let Some(value) = source.get(new) {
            out[old] = value.clone();
        }
    }
    if let Some(name) = source["metric"].get("name") {
        out["metricName"] = name.clone();
    }
    if let Some(selector) = source["metric"].get("selector") {
        out[if kind == "External" { "metricSelector" } else { "selector" }] = selector.clone();
    }
    out
}

fn current_to_v2(metric: &Value) -> Value {
    current(
        metric,
        |source, out| {
            for (old, new) in [
                ("currentAverageUtilization", "averageUtilization"),
                ("currentAverageValue", "averageValue"),
                ("currentValue", "value"),
                ("averageValue", "averageValue"),
            ] {
                // The older version always says a value; beside a percentage none means that there is none.
                let filled = old == "currentAverageValue" && source["currentAverageUtilization"].is_number();
                if let Some(value) = source.get(old).filter(|v| !(v.is_null() || filled && **v == "0")) {
                    out["current"][new] = value.clone();
                }
            }
        },
        described,
    )
}

fn current_to_v1(metric: &Value) -> Value {
    let kind = metric["type"].as_str().unwrap_or_default().to_owned();
    current(
        metric,
        |source, out| {
            for (old, new) in [
                ("currentAverageUtilization", "averageUtilization"),
                ("currentAverageValue", "averageValue"),
                ("currentValue", "value"),
            ] {
                let is_other = kind == "Object" && new == "averageValue";
                if let Some(value) = source["current"].get(new).filter(|v| !v.is_null() && !is_other) {
                    out[old] = value.clone();
                }
            }
        },
        |source| {
            let mut out = undescribed(&kind, source);
            // Values that this version always has.
            let always = match kind.as_str() {
                "Resource" | "ContainerResource" | "Pods" => "currentAverageValue",
                _ => "currentValue",
            };
            out[always] = "0".into();
            if kind == "Object"
                && let Some(average) = source["current"].get("averageValue")
            {
                out["averageValue"] = average.clone();
            }
            out
        },
    )
}

fn current(metric: &Value, copy: impl Fn(&Value, &mut Value), start: impl Fn(&Value) -> Value) -> Value {
    let mut out = json!({"type": metric["type"]});
    for (key, source) in metric.as_object().into_iter().flatten().filter(|(_, v)| v.is_object()) {
        let mut part = start(source);
        copy(source, &mut part);
        out[key.as_str()] = part;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_say_the_same() {
        let v2 = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "qps"}, "target": {"type": "AverageValue", "averageValue": "5"}}},
                {"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": {"kind": "Service", "name": "s"},
                    "target": {"type": "AverageValue", "averageValue": "2"}}},
                {"type": "Object", "object": {"metric": {"name": "hits"}, "describedObject": {"kind": "Service", "name": "s"},
                    "target": {"type": "Value", "value": "9"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}]},
            "status": {"currentMetrics": null, "desiredReplicas": 0}});
        let v1 = to_v1(&v2);
        assert_eq!(v1["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 70}));
        let noted = [
            r#"{"type":"Pods","pods":{"metricName":"qps","targetAverageValue":"5"}}"#,
            r#"{"type":"Object","object":{"target":{"kind":"Service","name":"s"},"metricName":"hits","targetValue":"0","averageValue":"2"}}"#,
            r#"{"type":"Object","object":{"target":{"kind":"Service","name":"s"},"metricName":"hits","targetValue":"9"}}"#,
        ];
        assert_eq!(v1["metadata"]["annotations"][METRICS], format!("[{}]", noted.join(",")));
        assert_eq!(to_v2(&v1), v2);
    }

    #[test]
    fn silence_means_the_usual() {
        let mut object = json!({"metadata": {}, "spec": {"behavior": {"scaleDown": {"selectPolicy": "Disabled"}}}});
        set_defaults("v2", &mut object);
        assert_eq!(object["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(object["spec"]["behavior"]["scaleUp"]["stabilizationWindowSeconds"], 0);
        assert_eq!(object["spec"]["behavior"]["scaleDown"]["policies"][0]["type"], "Percent");
    }
}
