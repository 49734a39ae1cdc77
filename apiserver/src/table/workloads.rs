//! The cells of what runs pods, scales them or keeps them from being disrupted.

use serde_json::Value;

use super::text::{
    NONE, UNSET, age, age_of, containers, count, cut, human_duration, is_true, items, labels, name, or, seconds_of,
    selector, shown, word,
};

fn integer(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// Cells of a Deployment.
pub fn deployment(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let ready = format!("{}/{}", integer(&status["readyReplicas"]), integer(&spec["replicas"]));
    let [names, images] = containers(&spec["template"]["spec"]);
    let (updated, available) = (count(&status["updatedReplicas"]), count(&status["availableReplicas"]));
    vec![name(object), ready.into(), updated, available, age_of(object), names, images, selector(&spec["selector"])]
}

fn replicas(object: &Value, chosen: Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        count(&spec["replicas"]),
        count(&status["replicas"]),
        count(&status["readyReplicas"]),
        age_of(object),
        names,
        images,
        chosen,
    ]
}

/// Cells of a ReplicaSet.
pub fn replica_set(object: &Value) -> Vec<Value> {
    replicas(object, selector(&object["spec"]["selector"]))
}

/// Cells of a ReplicationController.
pub fn replication_controller(object: &Value) -> Vec<Value> {
    replicas(object, labels(&object["spec"]["selector"]).into())
}

/// Cells of a StatefulSet.
pub fn stateful_set(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let ready = format!("{}/{}", integer(&status["readyReplicas"]), integer(&spec["replicas"]));
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![name(object), ready.into(), age_of(object), names, images]
}

/// Cells of a DaemonSet.
pub fn daemon_set(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        count(&status["desiredNumberScheduled"]),
        count(&status["currentNumberScheduled"]),
        count(&status["numberReady"]),
        count(&status["updatedNumberScheduled"]),
        count(&status["numberAvailable"]),
        labels(&spec["template"]["spec"]["nodeSelector"]).into(),
        age_of(object),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

/// Cells of a PodTemplate.
pub fn pod_template(object: &Value) -> Vec<Value> {
    let template = &object["template"];
    let [names, images] = containers(&template["spec"]);
    vec![name(object), names, images, labels(&template["metadata"]["labels"]).into()]
}

/// Cells of a ControllerRevision.
pub fn controller_revision(object: &Value) -> Vec<Value> {
    let owner = items(&object["metadata"]["ownerReferences"]).find(|o| o["controller"] == true);
    let owner = owner.map_or(NONE.to_owned(), |owner| {
        let group = word(&owner["apiVersion"]).rsplit_once('/').map_or("", |(group, _)| group);
        let kind = word(&owner["kind"]).to_lowercase();
        let dot = if group.is_empty() { "" } else { "." };
        format!("{kind}{dot}{group}/{}", word(&owner["name"]))
    });
    vec![name(object), owner.into(), count(&object["revision"]), age_of(object)]
}

/// Cells of a Job.
pub fn job(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let succeeded = integer(&status["succeeded"]);
    let completions = match (spec["completions"].as_i64(), integer(&spec["parallelism"])) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    let duration = match (seconds_of(&status["startTime"]), seconds_of(&status["completionTime"])) {
        (None, _) => String::new(),
        (Some(_), None) => age(&status["startTime"]),
        (Some(start), Some(end)) => human_duration(end - start),
    };
    let state = if is_true(status, "Complete") {
        "Complete"
    } else if is_true(status, "Failed") {
        "Failed"
    } else if object["metadata"]["deletionTimestamp"].is_string() {
        "Terminating"
    } else {
        ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
            .into_iter()
            .find(|k| is_true(status, k))
            .unwrap_or("Running")
    };
    let [names, images] = containers(&spec["template"]["spec"]);
    vec![
        name(object),
        state.into(),
        completions.into(),
        duration.into(),
        age_of(object),
        names,
        images,
        selector(&spec["selector"]),
    ]
}

/// Cells of a CronJob.
pub fn cron_job(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let suspended = match spec["suspend"].as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => UNSET,
    };
    let last = &status["lastScheduleTime"];
    let [names, images] = containers(&spec["jobTemplate"]["spec"]["template"]["spec"]);
    vec![
        name(object),
        word(&spec["schedule"]).into(),
        or(word(&spec["timeZone"]), NONE),
        suspended.into(),
        items(&status["active"]).len().into(),
        if last.is_string() { age(last) } else { NONE.into() }.into(),
        age_of(object),
        names,
        images,
        selector(&spec["jobTemplate"]["spec"]["selector"]),
    ]
}

/// Cells of a PodDisruptionBudget.
pub fn disruption_budget(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    let allowed = count(&object["status"]["disruptionsAllowed"]);
    vec![
        name(object),
        shown(&spec["minAvailable"], "N/A"),
        shown(&spec["maxUnavailable"], "N/A"),
        allowed,
        age_of(object),
    ]
}

/// Cells of a Scale.
pub fn scale(object: &Value) -> Vec<Value> {
    vec![name(object), count(&object["spec"]["replicas"]), count(&object["status"]["replicas"]), age_of(object)]
}

/// Cells of a HorizontalPodAutoscaler in either version.
pub fn autoscaler(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let target = &spec["scaleTargetRef"];
    vec![
        name(object),
        format!("{}/{}", word(&target["kind"]), word(&target["name"])).into(),
        metrics(object).into(),
        shown(&spec["minReplicas"], UNSET),
        count(&spec["maxReplicas"]),
        count(&status["currentReplicas"]),
        age_of(object),
    ]
}

/// Current and wanted values of an autoscaler's metrics.
fn metrics(object: &Value) -> String {
    let (spec, status) = (&object["spec"], &object["status"]);
    let mut all: Vec<String> = Vec::new();
    for (index, metric) in items(&spec["metrics"]).enumerate() {
        all.push(metric_of(metric, &status["currentMetrics"][index]));
    }
    let annotation = |key: &str| -> Value {
        let text = word(&object["metadata"]["annotations"][key]);
        serde_json::from_str(text).unwrap_or_default()
    };
    // Version 1 keeps what it has no fields for in annotations, in the words of an older version.
    let current = annotation("autoscaling.alpha.kubernetes.io/current-metrics");
    for (index, metric) in items(&annotation("autoscaling.alpha.kubernetes.io/metrics")).enumerate() {
        all.push(annotated(metric, &current[index]));
    }
    if let Some(wanted) = spec["targetCPUUtilizationPercentage"].as_i64() {
        all.push(format!("cpu: {}/{wanted}%", percent(&status["currentCPUUtilizationPercentage"])));
    }
    if all.is_empty() { NONE.into() } else { cut(&all, 2, ", ") }
}

fn percent(value: &Value) -> String {
    value.as_i64().map_or("<unknown>".into(), |number| format!("{number}%"))
}

fn metric_of(metric: &Value, current: &Value) -> String {
    let kind = word(&metric["type"]);
    let mut letters = kind.chars();
    let key: String = letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect();
    let (metric, now) = (&metric[&key], &current[&key]["current"]);
    let wanted = &metric["target"];
    // Of what is reported, a value that is missing shows as Go shows it.
    let missing = if current[&key].is_object() { "<nil>" } else { "<unknown>" };
    let average =
        |missing: &str| format!("{}/{}", word(&shown(&now["averageValue"], missing)), word(&wanted["averageValue"]));
    match kind {
        "Resource" | "ContainerResource" => {
            let of = word(&metric["name"]);
            if !wanted["averageValue"].is_null() {
                return format!("{of}: {}", average(missing));
            }
            let target = wanted["averageUtilization"].as_i64().map_or("<auto>".into(), |n| format!("{n}%"));
            format!("{of}: {}/{target}", percent(&now["averageUtilization"]))
        }
        "Pods" => average(missing),
        "External" | "Object" if !wanted["averageValue"].is_null() => format!("{} (avg)", average("<unknown>")),
        "External" | "Object" => {
            format!("{}/{}", word(&shown(&now["value"], missing)), word(&shown(&wanted["value"], "<nil>")))
        }
        _ => "<unknown type>".into(),
    }
}

/// A metric of the annotation.
fn annotated(metric: &Value, current: &Value) -> String {
    let of = |kind: &str, now: &str, wanted: &str| {
        let (now, wanted) = (&current[kind][now], &metric[kind][wanted]);
        format!("{}/{}", word(&shown(now, "<unknown>")), word(&shown(wanted, "0")))
    };
    let has = |kind: &str, field: &str| !metric[kind][field].is_null();
    match word(&metric["type"]) {
        kind @ ("Resource" | "ContainerResource") => {
            let key = if kind == "Resource" { "resource" } else { "containerResource" };
            let name = word(&metric[key]["name"]);
            if has(key, "targetAverageValue") {
                return format!("{name}: {}", of(key, "currentAverageValue", "targetAverageValue"));
            }
            let wanted = metric[key]["targetAverageUtilization"].as_i64();
            let wanted = wanted.map_or("<auto>".into(), |n| format!("{n}%"));
            format!("{name}: {}/{wanted}", percent(&current[key]["currentAverageUtilization"]))
        }
        "Pods" => of("pods", "currentAverageValue", "targetAverageValue"),
        "Object" if has("object", "averageValue") => format!("{} (avg)", of("object", "averageValue", "averageValue")),
        "Object" => of("object", "currentValue", "targetValue"),
        "External" if has("external", "targetAverageValue") => {
            format!("{} (avg)", of("external", "currentAverageValue", "targetAverageValue"))
        }
        "External" => of("external", "currentValue", "targetValue"),
        _ => "<unknown type>".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn jobs() {
        let job = |spec: Value, status: Value| job(&json!({"metadata": {"name": "j"}, "spec": spec, "status": status}));
        let done = json!({"succeeded": 5, "startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:02:05Z",
            "conditions": [{"type": "Complete", "status": "True"}]});
        let cells = job(json!({"completions": 5}), done);
        assert_eq!(cells[1..4], [json!("Complete"), json!("5/5"), json!("2m5s")]);
        assert_eq!(job(json!({"parallelism": 3}), json!({}))[1..4], [json!("Running"), json!("0/1 of 3"), json!("")]);
        let suspended = json!({"conditions": [{"type": "Suspended", "status": "True"}]});
        assert_eq!(job(json!({}), suspended)[1], "Suspended");
    }

    #[test]
    fn metrics_in_words() {
        let resource = |target: Value| json!({"type": "Resource", "resource": {"name": "cpu", "target": target}});
        let object = json!({"spec": {"metrics": [
            resource(json!({"type": "Utilization", "averageUtilization": 60})),
            {"type": "External", "external": {"target": {"averageValue": "1k"}}},
            {"type": "Pods", "pods": {"target": {"averageValue": "5"}}}]},
            "status": {"currentMetrics": [{"resource": {"current": {"averageUtilization": 50}}}]}});
        assert_eq!(metrics(&object), "cpu: 50%/60%, <unknown>/1k (avg) + 1 more...");
        let value = json!({"type": "Object", "object": {"target": {"value": "10"}}});
        for (current, expected) in
            [(json!({}), "<unknown>/10"), (json!({"object": {"current": {"averageValue": "5"}}}), "<nil>/10")]
        {
            let object = json!({"spec": {"metrics": [value]}, "status": {"currentMetrics": [current]}});
            assert_eq!(metrics(&object), expected);
        }
        let old = json!({"metadata": {"annotations": {"autoscaling.alpha.kubernetes.io/metrics":
            r#"[{"type":"Pods","pods":{"metricName":"x","targetAverageValue":"5"}}]"#}},
            "spec": {"targetCPUUtilizationPercentage": 70}});
        assert_eq!(metrics(&old), "<unknown>/5, cpu: <unknown>/70%");
        assert_eq!(metrics(&json!({})), NONE);
    }

    #[test]
    fn owners_of_revisions() {
        let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true});
        let object = json!({"metadata": {"name": "r", "ownerReferences": [owner]}, "revision": 3});
        assert_eq!(controller_revision(&object)[1..3], [json!("statefulset.apps/web"), json!(3)]);
    }
}
