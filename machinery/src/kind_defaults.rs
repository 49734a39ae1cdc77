//! Default values of the kinds beyond pods, services and deployments, as upstream's `SetDefaults_*` functions have them.
//! Pod templates are filled in by the caller.

use serde_json::{Value, json};

use crate::resource::ResourceDef;

/// Seconds that an admission webhook may take.
const WEBHOOK_TIMEOUT_SECONDS: i32 = 10;

/// Fills in defaults of an object of the row's kind; what is set stays.
pub fn set(def: &ResourceDef, object: &mut Value) {
    match (def.group, def.kind) {
        ("apps", "DaemonSet") => daemon_set(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("batch", "Job") => job(object),
        ("batch", "CronJob") => cron_job(object),
        ("", "ReplicationController") => replication_controller(object),
        ("", "PersistentVolume") => persistent_volume(object),
        ("", "PersistentVolumeClaim") => claim(object),
        ("", "Endpoints") => endpoints(object),
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice(object),
        ("", "LimitRange") => limit_range(object),
        ("networking.k8s.io", "NetworkPolicy") => network_policy(object),
        ("networking.k8s.io", "IngressClass") if object["spec"]["parameters"].is_object() => {
            fill(&mut object["spec"]["parameters"], &[("scope", json!("Cluster"))]);
        }
        ("storage.k8s.io", "StorageClass") => {
            fill(object, &[("reclaimPolicy", json!("Delete")), ("volumeBindingMode", json!("Immediate"))]);
        }
        ("storage.k8s.io", "CSIDriver") => csi_driver(object),
        ("autoscaling", "HorizontalPodAutoscaler") => crate::scaling::set_defaults(def.version, object),
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => {
            let spec = &mut object["spec"];
            if spec["matchingPrecedence"].as_i64().unwrap_or(0) == 0 {
                spec["matchingPrecedence"] = 1000.into();
            }
        }
        ("flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration") => priority_level(object),
        ("resource.k8s.io", "ResourceClaim") => {
            device_requests(&mut object["spec"]);
            given_devices(object);
        }
        ("resource.k8s.io", "ResourceClaimTemplate") => device_requests(&mut object["spec"]["spec"]),
        ("resource.k8s.io", "ResourceSlice") => taints(&mut object["spec"]),
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy" | "MutatingAdmissionPolicy") => {
            fill(&mut object["spec"], &[("failurePolicy", json!("Fail"))]);
            if object["spec"]["matchConstraints"].is_object() {
                match_resources(&mut object["spec"]["matchConstraints"]);
            }
        }
        ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding" | "MutatingAdmissionPolicyBinding")
            if object["spec"]["matchResources"].is_object() =>
        {
            match_resources(&mut object["spec"]["matchResources"]);
        }
        ("scheduling.k8s.io", "PriorityClass") => {
            fill(object, &[("preemptionPolicy", json!("PreemptLowerPriority"))]);
        }
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration") => {
            webhooks(def.kind, object);
        }
        ("apiregistration.k8s.io", "APIService") if object["spec"]["service"].is_object() => {
            fill(&mut object["spec"]["service"], &[("port", json!(443))]);
        }
        _ => {}
    }
}

/// Sets the keys that are absent.
fn fill(object: &mut Value, defaults: &[(&str, Value)]) {
    if object.is_null() {
        *object = json!({});
    }
    let Some(map) = object.as_object_mut() else { return };
    for (key, value) in defaults {
        map.entry(*key).or_insert_with(|| value.clone());
    }
}

/// The items of a list, none if it is absent; the object is not changed by looking.
fn items<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Which resources a policy is about, as far as it does not say.
fn match_resources(part: &mut Value) {
    let defaults =
        [("matchPolicy", json!("Equivalent")), ("namespaceSelector", json!({})), ("objectSelector", json!({}))];
    fill(part, &defaults);
    for field in ["resourceRules", "excludeResourceRules"] {
        for rule in items(part, field) {
            fill(rule, &[("scope", json!("*"))]);
        }
    }
}

fn priority_level(object: &mut Value) {
    let spec = &mut object["spec"];
    for (kind, shares) in [("limited", 30), ("exempt", 0)] {
        if spec[kind].is_object() {
            fill(&mut spec[kind], &[("nominalConcurrencyShares", json!(shares)), ("lendablePercent", json!(0))]);
        } else if let Some(map) = spec.as_object_mut() {
            map.remove(kind);
        }
    }
    let Some(queuing) = spec.pointer_mut("/limited/limitResponse/queuing").filter(|q| q.is_object()) else { return };
    for (key, value) in [("queues", 64), ("handSize", 8), ("queueLengthLimit", 50)] {
        if queuing[key].as_i64().unwrap_or(0) == 0 {
            queuing[key] = value.into();
        }
    }
}

/// A request for devices asks for one, unless it says otherwise.
fn device_requests(spec: &mut Value) {
    let Some(devices) = spec.get_mut("devices") else { return };
    for request in items(devices, "requests") {
        if request["exactly"].is_object() {
            device_count(&mut request["exactly"]);
        } else if let Some(map) = request.as_object_mut() {
            map.remove("exactly");
        }
        for sub in items(request, "firstAvailable") {
            device_count(sub);
        }
    }
}

fn device_count(request: &mut Value) {
    if request["allocationMode"].as_str().unwrap_or_default().is_empty() {
        request["allocationMode"] = "ExactCount".into();
    }
    if request["allocationMode"] == "ExactCount" && request["count"].as_i64().unwrap_or(0) == 0 {
        request["count"] = 1.into();
    }
    tolerations(request);
}

/// What is tolerated of devices is a value, unless the toleration says otherwise.
fn tolerations(holder: &mut Value) {
    for toleration in items(holder, "tolerations") {
        fill(toleration, &[("operator", json!("Equal"))]);
    }
}

/// Devices that were given to a claim keep what was tolerated of them.
fn given_devices(claim: &mut Value) {
    if let Some(devices) = claim.pointer_mut("/status/allocation/devices") {
        items(devices, "results").for_each(tolerations);
    }
}

/// A taint of a device is as old as its first writing.
fn taints(spec: &mut Value) {
    let now = || jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    for device in items(spec, "devices") {
        for taint in items(device, "taints").filter(|taint| taint["timeAdded"].is_null()) {
            taint["timeAdded"] = now().into();
        }
    }
}

/// An object without labels bears those of its pods.
fn labels_of_template(object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let none = object["metadata"].get("labels").is_none_or(|l| l.as_object().is_none_or(serde_json::Map::is_empty));
    if labels.is_object() && none {
        object["metadata"]["labels"] = labels;
    }
}

fn daemon_set(object: &mut Value) {
    let counted = &mut object["metadata"]["annotations"];
    if counted.get(crate::prepare::TEMPLATE_GENERATION).is_none() {
        counted[crate::prepare::TEMPLATE_GENERATION] = "0".into();
    }
    let spec = &mut object["spec"];
    fill(spec, &[("revisionHistoryLimit", json!(10)), ("updateStrategy", json!({}))]);
    let strategy = &mut spec["updateStrategy"];
    fill(strategy, &[("type", json!("RollingUpdate"))]);
    if strategy["type"] == "RollingUpdate" {
        fill(strategy, &[("rollingUpdate", json!({}))]);
        fill(&mut strategy["rollingUpdate"], &[("maxUnavailable", json!(1)), ("maxSurge", json!(0))]);
    }
}

fn stateful_set(object: &mut Value) {
    let spec = &mut object["spec"];
    let defaults = [
        ("replicas", json!(1)),
        ("podManagementPolicy", json!("OrderedReady")),
        ("revisionHistoryLimit", json!(10)),
        ("updateStrategy", json!({})),
        ("persistentVolumeClaimRetentionPolicy", json!({})),
    ];
    fill(spec, &defaults);
    fill(
        &mut spec["persistentVolumeClaimRetentionPolicy"],
        &[("whenDeleted", json!("Retain")), ("whenScaled", json!("Retain"))],
    );
    let strategy = &mut spec["updateStrategy"];
    // Who says the way of updating says all of it; no numbers are filled in where there is no place for them.
    if strategy.get("type").is_none() {
        fill(strategy, &[("type", json!("RollingUpdate")), ("rollingUpdate", json!({}))]);
    }
    if strategy["type"] == "RollingUpdate" && strategy["rollingUpdate"].is_object() {
        fill(&mut strategy["rollingUpdate"], &[("partition", json!(0))]);
    }
    for template in items(spec, "volumeClaimTemplates") {
        fill(template, &[("apiVersion", json!("v1")), ("kind", json!("PersistentVolumeClaim"))]);
        claim(template);
    }
}

fn job(object: &mut Value) {
    let spec = &mut object["spec"];
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        fill(spec, &[("completions", json!(1))]);
    }
    let per_index = spec.get("backoffLimitPerIndex").is_some();
    let after = if spec.get("podFailurePolicy").is_some() { "Failed" } else { "TerminatingOrFailed" };
    let defaults = [
        ("parallelism", json!(1)),
        ("backoffLimit", if per_index { json!(i32::MAX) } else { json!(6) }),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!(after)),
        ("manualSelector", json!(false)),
    ];
    fill(spec, &defaults);
    failure_policy(spec);
    labels_of_template(object);
}

/// A condition of a pod is looked for as true, unless it says otherwise.
fn failure_policy(spec: &mut Value) {
    let rules = spec.pointer_mut("/podFailurePolicy/rules").and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        for condition in items(rule, "onPodConditions") {
            fill(condition, &[("status", json!("True"))]);
        }
    }
}

fn cron_job(object: &mut Value) {
    let defaults = [
        ("concurrencyPolicy", json!("Allow")),
        ("suspend", json!(false)),
        ("successfulJobsHistoryLimit", json!(3)),
        ("failedJobsHistoryLimit", json!(1)),
    ];
    fill(&mut object["spec"], &defaults);
    if let Some(spec) = object.pointer_mut("/spec/jobTemplate/spec") {
        failure_policy(spec);
    }
}

fn replication_controller(object: &mut Value) {
    let spec = &mut object["spec"];
    fill(spec, &[("replicas", json!(1))]);
    let labels = spec["template"]["metadata"]["labels"].clone();
    if labels.is_object() {
        fill(spec, &[("selector", labels)]);
    }
    labels_of_template(object);
}

fn persistent_volume(object: &mut Value) {
    let defaults = [("persistentVolumeReclaimPolicy", json!("Retain")), ("volumeMode", json!("Filesystem"))];
    fill(&mut object["spec"], &defaults);
    crate::defaults::volume_source(&mut object["spec"]);
    fill(&mut object["status"], &[("phase", json!("Pending"))]);
}

fn claim(object: &mut Value) {
    fill(&mut object["spec"], &[("volumeMode", json!("Filesystem"))]);
    fill(&mut object["status"], &[("phase", json!("Pending"))]);
}

fn endpoints(object: &mut Value) {
    for subset in items(object, "subsets") {
        for port in items(subset, "ports") {
            fill(port, &[("protocol", json!("TCP"))]);
        }
    }
}

fn endpoint_slice(object: &mut Value) {
    for port in items(object, "ports") {
        fill(port, &[("name", json!("")), ("protocol", json!("TCP"))]);
    }
}

fn limit_range(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    for limit in items(spec, "limits").filter(|l| l["type"] == "Container") {
        // A default is what is set, else the maximum; a default request what is set, else the default, else the minimum.
        for (key, sources) in [("default", &["max"][..]), ("defaultRequest", &["default", "min"])] {
            for source in sources {
                let Some(amounts) = limit.get(source).and_then(Value::as_object).cloned() else { continue };
                let amounts: Vec<(String, Value)> = amounts.into_iter().collect();
                let amounts: Vec<(&str, Value)> = amounts.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
                fill(limit, &[(key, json!({}))]);
                fill(&mut limit[key], &amounts);
            }
        }
    }
}

fn network_policy(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else { return };
    let has_egress = spec.get("egress").and_then(Value::as_array).is_some_and(|e| !e.is_empty());
    let types = if has_egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    fill(spec, &[("podSelector", json!({})), ("policyTypes", types)]);
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            for port in items(rule, "ports") {
                fill(port, &[("protocol", json!("TCP"))]);
            }
        }
    }
}

fn csi_driver(object: &mut Value) {
    let defaults = [
        ("attachRequired", json!(true)),
        ("podInfoOnMount", json!(false)),
        ("storageCapacity", json!(false)),
        ("fsGroupPolicy", json!("ReadWriteOnceWithFSType")),
        ("volumeLifecycleModes", json!(["Persistent"])),
        ("requiresRepublish", json!(false)),
        ("seLinuxMount", json!(false)),
    ];
    fill(&mut object["spec"], &defaults);
}

fn webhooks(kind: &str, object: &mut Value) {
    for webhook in items(object, "webhooks") {
        let defaults = [
            ("failurePolicy", json!("Fail")),
            ("matchPolicy", json!("Equivalent")),
            ("namespaceSelector", json!({})),
            ("objectSelector", json!({})),
            ("timeoutSeconds", json!(WEBHOOK_TIMEOUT_SECONDS)),
        ];
        fill(webhook, &defaults);
        if kind == "MutatingWebhookConfiguration" {
            fill(webhook, &[("reinvocationPolicy", json!("Never"))]);
        }
        if webhook["clientConfig"]["service"].is_object() {
            fill(&mut webhook["clientConfig"]["service"], &[("port", json!(443))]);
        }
        for rule in items(webhook, "rules") {
            fill(rule, &[("scope", json!("*"))]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{RESOURCES, find};

    #[test]
    fn kinds_get_their_defaults() {
        for (group, plural, mut object, path, expected) in [
            ("apps", "daemonsets", json!({}), "/spec/updateStrategy/rollingUpdate/maxUnavailable", json!(1)),
            ("apps", "daemonsets", json!({}), "/spec/revisionHistoryLimit", json!(10)),
            ("apps", "statefulsets", json!({}), "/spec/updateStrategy/rollingUpdate", json!({"partition": 0})),
            (
                "apps",
                "statefulsets",
                json!({"spec": {"updateStrategy": {"type": "RollingUpdate"}}}),
                "/spec/updateStrategy",
                json!({"type": "RollingUpdate"}),
            ),
            ("batch", "jobs", json!({"spec": {}}), "/spec/completions", json!(1)),
            ("batch", "cronjobs", json!({"spec": {"suspend": true}}), "/spec/suspend", json!(true)),
            (
                "batch",
                "cronjobs",
                json!({"spec": {"jobTemplate": {"spec": {"podFailurePolicy": {"rules": [{"onPodConditions": [{}]}]}}}}}),
                "/spec/jobTemplate/spec/podFailurePolicy/rules/0/onPodConditions/0/status",
                json!("True"),
            ),
            (
                "",
                "endpoints",
                json!({"subsets": [{"ports": [{"port": 1}]}]}),
                "/subsets/0/ports/0/protocol",
                json!("TCP"),
            ),
            (
                "",
                "limitranges",
                json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}),
                "/spec/limits/0/defaultRequest/cpu",
                json!("2"),
            ),
            (
                "networking.k8s.io",
                "networkpolicies",
                json!({"spec": {"egress": [{}]}}),
                "/spec/policyTypes",
                json!(["Ingress", "Egress"]),
            ),
            (
                "networking.k8s.io",
                "ingressclasses",
                json!({"spec": {"controller": "a.b/c", "parameters": {"kind": "K", "name": "n"}}}),
                "/spec/parameters/scope",
                json!("Cluster"),
            ),
            (
                "resource.k8s.io",
                "resourceclaims",
                json!({"spec": {"devices": {"requests": [{"firstAvailable": [{"tolerations": [{"key": "k"}]}]}]}}}),
                "/spec/devices/requests/0/firstAvailable/0/tolerations/0/operator",
                json!("Equal"),
            ),
            (
                "resource.k8s.io",
                "resourceclaims",
                json!({"status": {"allocation": {"devices": {"results": [{"tolerations": [{"key": "k"}]}]}}}}),
                "/status/allocation/devices/results/0/tolerations/0/operator",
                json!("Equal"),
            ),
        ] {
            set(find(group, "v1", plural).unwrap(), &mut object);
            assert_eq!(object.pointer(path), Some(&expected), "{plural} {path}");
        }
    }

    #[test]
    fn taints_of_devices_are_as_old_as_their_first_writing() {
        let row = find("resource.k8s.io", "v1", "resourceslices").unwrap();
        let (said, now) = (json!("2026-01-01T00:00:00Z"), jiff::Timestamp::now());
        let mut slice = json!({"spec": {"devices": [{"taints": [{"key": "a", "timeAdded": said}, {"key": "b"}]}]}});
        set(row, &mut slice);
        let taints = &slice["spec"]["devices"][0]["taints"];
        assert_eq!(taints[0]["timeAdded"], said);
        let added: jiff::Timestamp = taints[1]["timeAdded"].as_str().unwrap().parse().unwrap();
        assert!((now.as_second()..=jiff::Timestamp::now().as_second()).contains(&added.as_second()));
    }

    #[test]
    fn filling_in_twice_changes_nothing() {
        for row in RESOURCES {
            let mut object = json!({"metadata": {"name": "n"}, "spec": {}});
            set(row, &mut object);
            let once = object.clone();
            set(row, &mut object);
            assert_eq!(object, once, "{}", row.qualified());
        }
    }
}
