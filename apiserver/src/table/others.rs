//! The cells of nodes, configuration, access, admission and whatever else is not about workloads, network or storage.

use std::collections::BTreeSet;

use keelson_machinery::quantity::Quantity;
use serde_json::Value;

use super::text::{
    NONE, UNSET, age, age_of, condition, count, entries, human_duration, items, joined, name, or, shown, word,
};

/// Cells of a ConfigMap.
pub fn config_map(object: &Value) -> Vec<Value> {
    vec![name(object), (entries(&object["data"]) + entries(&object["binaryData"])).into(), age_of(object)]
}

/// Cells of a Secret.
pub fn secret(object: &Value) -> Vec<Value> {
    vec![name(object), word(&object["type"]).into(), entries(&object["data"]).into(), age_of(object)]
}

/// Cells of a Namespace.
pub fn namespace(object: &Value) -> Vec<Value> {
    vec![name(object), word(&object["status"]["phase"]).into(), age_of(object)]
}

/// Cells of a Node.
pub fn node(object: &Value) -> Vec<Value> {
    let status = &object["status"];
    let mut state = match condition(status, "Ready").map(|c| c["status"] == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if object["spec"]["unschedulable"] == true {
        state += ",SchedulingDisabled";
    }
    let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            None if key == "kubernetes.io/role" => Some(word(value)),
            role => role,
        })
        .filter(|role| !role.is_empty())
        .collect();
    let address = |kind: &str| {
        let found = items(&status["addresses"]).find(|a| a["type"] == kind);
        or(found.map_or("", |a| word(&a["address"])), NONE)
    };
    let info = |key: &str| or(word(&status["nodeInfo"][key]), "<unknown>");
    let kernel = match (word(&status["nodeInfo"]["kernelVersion"]), word(&status["nodeInfo"]["architecture"])) {
        (version, architecture) if !version.is_empty() && !architecture.is_empty() => {
            format!("{version} ({architecture})").into()
        }
        _ => info("kernelVersion"),
    };
    vec![
        name(object),
        state.into(),
        or(&joined(roles.into_iter(), ","), NONE),
        age_of(object),
        word(&status["nodeInfo"]["kubeletVersion"]).into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        kernel,
        info("containerRuntimeVersion"),
    ]
}

/// The first of several values that is there.
fn first<'a>(object: &'a Value, keys: &[&str]) -> &'a Value {
    keys.iter().map(|key| &object[*key]).find(|v| !v.is_null()).unwrap_or(&Value::Null)
}

/// Cells of an Event of either API.
pub fn event(object: &Value) -> Vec<Value> {
    let source = first(object, &["source", "deprecatedSource"]);
    let about = first(object, &["involvedObject", "regarding"]);
    let mut first_seen = first(object, &["firstTimestamp", "deprecatedFirstTimestamp"]);
    if first_seen.is_null() {
        first_seen = &object["eventTime"];
    }
    let mut last_seen = first(object, &["lastTimestamp", "deprecatedLastTimestamp"]);
    if last_seen.is_null() {
        last_seen = first_seen;
    }
    let mut times = first(object, &["count", "deprecatedCount"]).as_i64().unwrap_or(0);
    if object["series"].is_object() {
        last_seen = &object["series"]["lastObservedTime"];
        times = object["series"]["count"].as_i64().unwrap_or(0);
    } else if times == 0 {
        times = 1;
    }
    let kind = word(&about["kind"]).to_lowercase();
    let target = if word(&about["name"]).is_empty() { kind } else { format!("{kind}/{}", word(&about["name"])) };
    let either = |own: &'static str, keys: &[&str]| match word(&source[own]) {
        "" => word(first(object, keys)),
        text => text,
    };
    let component = either("component", &["reportingComponent", "reportingController"]);
    let source = match either("host", &["reportingInstance"]) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    };
    vec![
        age(last_seen).into(),
        word(&object["type"]).into(),
        word(&object["reason"]).into(),
        target.into(),
        word(&about["fieldPath"]).into(),
        source.into(),
        word(first(object, &["message", "note"])).trim().into(),
        age(first_seen).into(),
        times.into(),
        name(object),
    ]
}

/// Cells of a ResourceQuota.
pub fn quota(object: &Value) -> Vec<Value> {
    let status = &object["status"];
    let (mut requests, mut limits) = (Vec::new(), Vec::new());
    for (resource, hard) in status["hard"].as_object().into_iter().flatten() {
        let canonical = |value: &Value| {
            let text = shown(value, "0");
            Quantity::canonical(word(&text)).unwrap_or_else(|_| word(&text).to_owned())
        };
        let text = format!("{resource}: {}/{}", canonical(&status["used"][resource]), canonical(hard));
        if resource.starts_with("limits") { limits.push(text) } else { requests.push(text) }
    }
    vec![name(object), requests.join(", ").into(), limits.join(", ").into(), age_of(object)]
}

/// Cells of a Lease.
pub fn lease(object: &Value) -> Vec<Value> {
    vec![name(object), word(&object["spec"]["holderIdentity"]).into(), age_of(object)]
}

/// Cells of a ComponentStatus.
pub fn component(object: &Value) -> Vec<Value> {
    let healthy = items(&object["conditions"]).find(|c| c["type"] == "Healthy");
    let (state, message, error) = match healthy {
        Some(c) => {
            (if c["status"] == "True" { "Healthy" } else { "Unhealthy" }, word(&c["message"]), word(&c["error"]))
        }
        None => ("Unknown", "", ""),
    };
    vec![name(object), state.into(), message.into(), error.into(), age_of(object)]
}

/// Cells of an APIService.
pub fn api_service(object: &Value) -> Vec<Value> {
    let service = &object["spec"]["service"];
    let by = match service.is_object() {
        true => format!("{}/{}", word(&service["namespace"]), word(&service["name"])),
        false => "Local".into(),
    };
    let available = match condition(&object["status"], "Available") {
        Some(c) if c["status"] == "True" => "True".to_owned(),
        Some(c) => format!("{} ({})", word(&c["status"]), word(&c["reason"])),
        None => "Unknown".into(),
    };
    vec![name(object), by.into(), available.into(), age_of(object)]
}

/// Cells of a CertificateSigningRequest.
pub fn signing_request(object: &Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let has = |kind: &str| condition(status, kind).is_some();
    let mut state = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (false, true) => "Approved",
        (false, false) => "Pending",
    }
    .to_owned();
    if has("Failed") {
        state += ",Failed";
    }
    if !word(&status["certificate"]).is_empty() {
        state += ",Issued";
    }
    let duration = spec["expirationSeconds"].as_i64().map_or(NONE.into(), human_duration);
    vec![
        name(object),
        age_of(object),
        word(&spec["signerName"]).into(),
        word(&spec["username"]).into(),
        duration.into(),
        state.into(),
    ]
}

/// Cells of a RoleBinding or ClusterRoleBinding.
pub fn role_binding(object: &Value) -> Vec<Value> {
    let role = &object["roleRef"];
    let of = |kind: &str| {
        let subjects = items(&object["subjects"]).filter(|s| s["kind"] == kind);
        let names = subjects.map(|s| match kind {
            "ServiceAccount" => format!("{}/{}", word(&s["namespace"]), word(&s["name"])),
            _ => word(&s["name"]).to_owned(),
        });
        Value::from(names.collect::<Vec<_>>().join(", "))
    };
    let role = format!("{}/{}", word(&role["kind"]), word(&role["name"]));
    vec![name(object), role.into(), age_of(object), of("User"), of("Group"), of("ServiceAccount")]
}

/// Cells of a PriorityClass.
pub fn priority_class(object: &Value) -> Vec<Value> {
    let is_default = object["globalDefault"].as_bool().unwrap_or(false).into();
    vec![name(object), count(&object["value"]), is_default, age_of(object), word(&object["preemptionPolicy"]).into()]
}

/// Cells of a RuntimeClass.
pub fn runtime_class(object: &Value) -> Vec<Value> {
    vec![name(object), word(&object["handler"]).into(), age_of(object)]
}

/// Cells of a FlowSchema.
pub fn flow_schema(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    vec![
        name(object),
        word(&spec["priorityLevelConfiguration"]["name"]).into(),
        count(&spec["matchingPrecedence"]),
        or(word(&spec["distinguisherMethod"]["type"]), NONE),
        age_of(object),
        condition(&object["status"], "Dangling").map_or("?", |c| word(&c["status"])).into(),
    ]
}

/// Cells of a PriorityLevelConfiguration.
pub fn priority_level(object: &Value) -> Vec<Value> {
    let (spec, limited) = (&object["spec"], &object["spec"]["limited"]);
    let queuing = &limited["limitResponse"]["queuing"];
    let of = |set: &Value, key: &str| if set.is_object() { count(&set[key]) } else { NONE.into() };
    vec![
        name(object),
        word(&spec["type"]).into(),
        of(limited, "nominalConcurrencyShares"),
        of(queuing, "queues"),
        of(queuing, "handSize"),
        of(queuing, "queueLengthLimit"),
        age_of(object),
    ]
}

/// Cells of a webhook configuration.
pub fn webhooks(object: &Value) -> Vec<Value> {
    vec![name(object), items(&object["webhooks"]).len().into(), age_of(object)]
}

fn policy(object: &Value, rules: &str) -> Vec<Value> {
    let (spec, kind) = (&object["spec"], &object["spec"]["paramKind"]);
    let kind = match kind.is_object() {
        true => format!("{}/{}", word(&kind["apiVersion"]), word(&kind["kind"])),
        false => UNSET.into(),
    };
    vec![name(object), items(&spec[rules]).len().into(), kind.into(), age_of(object)]
}

/// Cells of a ValidatingAdmissionPolicy.
pub fn validating_policy(object: &Value) -> Vec<Value> {
    policy(object, "validations")
}

/// Cells of a MutatingAdmissionPolicy.
pub fn mutating_policy(object: &Value) -> Vec<Value> {
    policy(object, "mutations")
}

/// Cells of a policy's binding.
pub fn policy_binding(object: &Value) -> Vec<Value> {
    let reference = &object["spec"]["paramRef"];
    let shown = match (word(&reference["name"]), word(&reference["namespace"]), &reference["selector"]) {
        ("", _, selector) if selector.is_object() => go_selector(selector),
        ("", ..) => UNSET.into(),
        (name, "", _) => format!("*/{name}"),
        (name, namespace, _) => format!("{namespace}/{name}"),
    };
    vec![name(object), word(&object["spec"]["policyName"]).into(), shown.into(), age_of(object)]
}

/// A label selector as Go's generated code prints it, which is what upstream shows here.
fn go_selector(selector: &Value) -> String {
    let labels = selector["matchLabels"].as_object().into_iter().flatten();
    let labels: String = labels.map(|(k, v)| format!("{k}: {},", word(v))).collect();
    let terms: String = items(&selector["matchExpressions"])
        .map(|term| {
            let values = joined(items(&term["values"]).map(word), " ");
            let (key, operator) = (word(&term["key"]), word(&term["operator"]));
            format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{terms}}},}}"
    )
}

/// Cells of a ResourceClaim.
pub fn resource_claim(object: &Value) -> Vec<Value> {
    let status = &object["status"];
    let deleted = object["metadata"]["deletionTimestamp"].is_string();
    let mut states = Vec::new();
    if deleted {
        states.push("deleted");
    }
    if status["allocation"].is_object() {
        states.push("allocated");
        if items(&status["reservedFor"]).len() > 0 {
            states.push("reserved");
        }
    } else if !deleted {
        states.push("pending");
    }
    vec![name(object), states.join(",").into(), age_of(object)]
}

/// Cells of a ResourceSlice.
pub fn resource_slice(object: &Value) -> Vec<Value> {
    let spec = &object["spec"];
    let [node, driver, pool] =
        [&spec["nodeName"], &spec["driver"], &spec["pool"]["name"]].map(|v| Value::from(word(v)));
    vec![name(object), node, driver, pool, age_of(object)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_of_both_apis() {
        let old = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "f"},
            "source": {"component": "kubelet", "host": "n"}, "message": " m\n", "count": 4});
        let cells = event(&old);
        assert_eq!(cells[3..7], ["pod/p", "f", "kubelet, n", "m"].map(Value::from));
        assert_eq!((&cells[0], &cells[8]), (&json!("<unknown>"), &json!(4)));
        let new = json!({"metadata": {"name": "e"}, "regarding": {"kind": "Node"}, "reportingController": "c",
            "reportingInstance": "i", "note": "n", "series": {"count": 2}});
        let cells = event(&new);
        assert_eq!(
            (&cells[3], &cells[5], &cells[6], &cells[8]),
            (&json!("node"), &json!("c, i"), &json!("n"), &json!(2))
        );
    }

    #[test]
    fn nodes() {
        let object = json!({"metadata": {"labels": {"node-role.kubernetes.io/b": "", "kubernetes.io/role": "a"}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]}});
        let cells = node(&object);
        assert_eq!(cells[1..3], ["NotReady,SchedulingDisabled", "a,b"].map(Value::from));
        assert_eq!(cells[5..8], ["10.0.0.1", NONE, "<unknown>"].map(Value::from));
    }

    #[test]
    fn the_kernel_of_a_node_says_what_it_is_built_for() {
        for (version, architecture, expected) in
            [("6.1", "amd64", "6.1 (amd64)"), ("6.1", "", "6.1"), ("", "amd64", "<unknown>")]
        {
            let info = json!({"kernelVersion": version, "architecture": architecture});
            assert_eq!(node(&json!({"status": {"nodeInfo": info}}))[8], expected);
        }
    }

    #[test]
    fn states_in_words() {
        let request = json!({"status": {"conditions": [{"type": "Approved"}], "certificate": "eA=="}, "spec": {"expirationSeconds": 3600}});
        assert_eq!(signing_request(&request)[4..], ["60m", "Approved,Issued"].map(Value::from));
        assert_eq!(
            resource_claim(&json!({"status": {"allocation": {}, "reservedFor": [{}]}}))[1],
            "allocated,reserved"
        );
        let quota = quota(&json!({"status": {"hard": {"limits.cpu": "2000m", "pods": "7"}, "used": {"pods": "1"}}}));
        assert_eq!(quota[1..3], ["pods: 1/7", "limits.cpu: 0/2"].map(Value::from));
        let subjects = json!([{"kind": "User", "name": "u"}, {"kind": "User", "name": "v"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]);
        let binding = role_binding(&json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": subjects}));
        assert_eq!((&binding[1], &binding[3], &binding[5]), (&json!("Role/r"), &json!("u, v"), &json!("n/s")));
    }

    #[test]
    fn parameters_of_bindings() {
        let shown =
            |reference: Value| policy_binding(&json!({"spec": {"policyName": "p", "paramRef": reference}}))[2].clone();
        assert_eq!(shown(json!({"name": "x", "namespace": "y"})), "y/x");
        assert_eq!(shown(json!({"name": "x"})), "*/x");
        assert_eq!(
            shown(json!({"selector": {"matchLabels": {"p": "q"}}})),
            "&LabelSelector{MatchLabels:map[string]string{p: q,},MatchExpressions:[]LabelSelectorRequirement{},}"
        );
        assert_eq!(policy_binding(&json!({"spec": {}}))[2], UNSET);
    }
}
