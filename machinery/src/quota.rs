//! What an object uses of a ResourceQuota: names of what is limited, and how much of each. Admission charges by it and the
//! quota controller counts by it, so that both agree.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::pod_resources::{Amounts, add, amount, amounts, is_of_pods, of_resized_pod};
use crate::qos;
use crate::quantity::{Format, Quantity};
use crate::selector::LabelOp;
use crate::validation::{is_extended, is_native};

/// What stands after a class's name where its claims are limited.
const STORAGE_CLASS: &str = ".storageclass.storage.k8s.io/";
/// What stands after a class's name where its devices are limited.
const DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// What is limited of claims beside their number, by class too.
const CLAIMS: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
const SERVICES: [&str; 3] = ["services", "services.nodeports", "services.loadbalancers"];
const PODS: [&str; 10] = [
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
];
/// Kinds of the core group whose number is limited under their plain name too.
const PLAIN: [&str; 4] = ["configmaps", "replicationcontrollers", "resourcequotas", "secrets"];
/// What a container must say if a quota limits it. That it must is a mistake of old; nothing is added to these.
const DEMANDED: [&str; 6] = ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// Devices that a claim has at most.
const MAX_DEVICES: i64 = 32;

fn count(number: i64) -> Quantity {
    Quantity::from_units(number, Format::DecimalSi)
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The name under which objects of a kind are counted.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// Whether objects of a kind count at all: what is not stored does not, and events do not.
pub fn is_counted(group: &str, plural: &str) -> bool {
    match group {
        "" => !matches!(plural, "events" | "bindings" | "componentstatuses"),
        "events.k8s.io" | "authentication.k8s.io" | "authorization.k8s.io" => false,
        _ => true,
    }
}

/// Whether what a quota limits by a name is something of objects of a kind.
pub fn limits(name: &str, group: &str, plural: &str) -> bool {
    if !is_counted(group, plural) {
        return false;
    }
    if let Some(counted) = name.strip_prefix("count/") {
        let resource = counted.split_once('.').unwrap_or((counted, ""));
        return resource == (plural, group);
    }
    match (group, plural) {
        ("", "pods") => {
            let pages = ["hugepages-", "requests.hugepages-"].iter().any(|prefix| name.starts_with(prefix));
            PODS.contains(&name) || pages || (!is_native(name) && name.starts_with("requests."))
        }
        ("", "services") => SERVICES.contains(&name),
        ("", "persistentvolumeclaims") => {
            let resource = name.rsplit_once(STORAGE_CLASS).map_or(name, |(_, resource)| resource);
            CLAIMS.contains(&resource)
        }
        ("resource.k8s.io", "resourceclaims") => name.ends_with(DEVICE_CLASS),
        ("", plain) => PLAIN.contains(&plain) && name == plain,
        _ => false,
    }
}

/// What an object uses at a time.
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    if !is_counted(group, plural) {
        return Amounts::new();
    }
    let mut usage = Amounts::from([(count_name(group, plural), count(1))]);
    match (group, plural) {
        // One that has ended only counts as an object.
        ("", "pods") if has_ended(object, now) => {}
        ("", "pods") => add(&mut usage, &pod(object)),
        ("", "services") => add(&mut usage, &service(object)),
        ("", "persistentvolumeclaims") => add(&mut usage, &claim(object)),
        ("resource.k8s.io", "resourceclaims") => add(&mut usage, &devices(object)),
        ("", plain) if PLAIN.contains(&plain) => {
            usage.insert(plain.into(), count(1));
        }
        _ => {}
    }
    usage
}

/// Whether a pod is done, or should be gone: its node may be lost, and others are to take its place.
fn has_ended(pod: &Value, now: Timestamp) -> bool {
    if matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
        return true;
    }
    let metadata = &pod["metadata"];
    let deleted = metadata["deletionTimestamp"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let (Some(deleted), Some(grace)) = (deleted, metadata["deletionGracePeriodSeconds"].as_i64()) else {
        return false;
    };
    deleted.checked_add(SignedDuration::from_secs(grace)).is_ok_and(|end| now > end)
}

/// What a pod or one container of it uses.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut usage = Amounts::from([("pods".to_owned(), count(1))]);
    for (name, amount) in requests {
        let plain = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
        if plain {
            usage.insert(name.clone(), *amount);
        }
        // Of what others define only requests are limited, for there the limit is the same.
        if plain || is_extended(name) {
            usage.insert(format!("requests.{name}"), *amount);
        }
    }
    let limited = limits.iter().filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage"));
    usage.extend(limited.map(|(name, amount)| (format!("limits.{name}"), *amount)));
    usage
}

fn pod(object: &Value) -> Amounts {
    compute(&of_resized_pod(object, "requests"), &of_resized_pod(object, "limits"))
}

/// What a pod's containers must say and do not because a quota limits it by these names: as upstream writes it. One that
/// says itself what it needs is free of it.
pub fn unsaid<'a>(pod: &Value, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let spec = &pod["spec"];
    let says = |list: &str| spec["resources"][list].as_object().is_some_and(|list| list.keys().any(|k| is_of_pods(k)));
    if says("requests") || says("limits") {
        return None;
    }
    let demanded: BTreeSet<&str> = names.into_iter().filter(|name| DEMANDED.contains(name)).collect();
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for container in items(&spec["containers"]).chain(items(&spec["initContainers"])) {
        let resources = &container["resources"];
        let said = compute(&amounts(&resources["requests"]), &amounts(&resources["limits"]));
        for name in demanded.iter().filter(|name| !said.contains_key(**name)) {
            missing.entry(name).or_default().insert(text(&container["name"]));
        }
    }
    let list: Vec<String> = missing
        .into_iter()
        .map(|(name, containers)| format!("{name} for: {}", Vec::from_iter(containers).join(",")))
        .collect();
    (!list.is_empty()).then(|| format!("must specify {}", list.join("; ")))
}

fn service(object: &Value) -> Amounts {
    let spec = &object["spec"];
    let ports = items(&spec["ports"]).count() as i64;
    let (balancers, nodeports) = match text(&spec["type"]) {
        "NodePort" => (0, ports),
        // What it will be given is not known yet: what it asks for counts.
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
            (1, items(&spec["ports"]).filter(|port| port["nodePort"].as_i64().unwrap_or(0) != 0).count() as i64)
        }
        "LoadBalancer" => (1, ports),
        _ => (0, 0),
    };
    let amounts = [1, nodeports, balancers].map(count);
    SERVICES.into_iter().map(str::to_owned).zip(amounts).collect()
}

fn claim(object: &Value) -> Amounts {
    let (spec, annotations) = (&object["spec"], &object["metadata"]["annotations"]);
    // The annotation of old goes before the field, even an empty one.
    let class =
        annotations["volume.beta.kubernetes.io/storage-class"].as_str().unwrap_or(text(&spec["storageClassName"]));
    let asked = amount(&spec["resources"]["requests"]["storage"]);
    // One that was to grow and has been given more than it asks for now has it.
    let given = amount(&object["status"]["allocatedResources"]["storage"]);
    let storage = asked.map(|asked| given.filter(|given| *given > asked).unwrap_or(asked).rounded_up());
    let mut usage = Amounts::from([("persistentvolumeclaims".to_owned(), count(1))]);
    usage.extend(storage.map(|storage| ("requests.storage".to_owned(), storage)));
    if !class.is_empty() {
        let of_class: Vec<_> = usage.iter().map(|(name, n)| (format!("{class}{STORAGE_CLASS}{name}"), *n)).collect();
        usage.extend(of_class);
    }
    usage
}

/// Devices by class; of alternatives the most that one of them may have.
fn devices(claim: &Value) -> Amounts {
    let one = |request: &Value| -> (String, Quantity) {
        let devices = match text(&request["allocationMode"]) {
            "" | "ExactCount" => request["count"].as_i64().unwrap_or(1),
            "All" => MAX_DEVICES,
            _ => 0,
        };
        (format!("{}{DEVICE_CLASS}", text(&request["deviceClassName"])), count(devices))
    };
    let mut usage = Amounts::new();
    for request in items(&claim["spec"]["devices"]["requests"]) {
        let mut most = Amounts::new();
        for alternative in items(&request["firstAvailable"]) {
            let (name, devices) = one(alternative);
            crate::pod_resources::raise(&mut most, &Amounts::from([(name, devices)]));
        }
        if request["firstAvailable"].as_array().is_none_or(Vec::is_empty) {
            // Version v1beta1 has no `exactly`.
            let exactly = if request["exactly"].is_object() { &request["exactly"] } else { request };
            most.extend([one(exactly)]);
        }
        add(&mut usage, &most);
    }
    usage
}

/// What names of a scope's classes an object has.
fn classes<'a>(plural: &str, object: &'a Value, scope: &str) -> Vec<&'a str> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let named = match (plural, scope) {
        ("pods", "PriorityClass") => vec![&spec["priorityClassName"]],
        ("persistentvolumeclaims", "VolumeAttributesClass") => vec![
            &spec["volumeAttributesClassName"],
            &status["currentVolumeAttributesClassName"],
            &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
        ],
        _ => Vec::new(),
    };
    named.into_iter().map(text).filter(|name| !name.is_empty()).collect()
}

/// Whether an object is within a scope; only pods, and claims by class, are within any.
fn is_within(plural: &str, object: &Value, scope: &str, operator: &LabelOp) -> bool {
    let spec = &object["spec"];
    match (plural, scope) {
        ("pods", "Terminating") => is_terminating(spec),
        ("pods", "NotTerminating") => !is_terminating(spec),
        ("pods", "BestEffort") => is_best_effort(object),
        ("pods", "NotBestEffort") => !is_best_effort(object),
        ("pods", "CrossNamespacePodAffinity") => crosses_namespaces(&spec["affinity"]),
        ("pods", "PriorityClass") | ("persistentvolumeclaims", "VolumeAttributesClass") => {
            let classes = classes(plural, object, scope);
            match operator {
                LabelOp::In(values) => classes.iter().any(|class| values.iter().any(|value| value == class)),
                LabelOp::NotIn(values) => {
                    classes.is_empty() || classes.iter().any(|class| values.iter().all(|value| value != class))
                }
                LabelOp::Exists => !classes.is_empty(),
                LabelOp::DoesNotExist => classes.is_empty(),
                _ => false,
            }
        }
        _ => false,
    }
}

fn is_terminating(spec: &Value) -> bool {
    spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0)
}

fn is_best_effort(pod: &Value) -> bool {
    let class = pod["status"]["qosClass"].as_str().filter(|class| !class.is_empty());
    class.unwrap_or_else(|| qos::class(pod)) == "BestEffort"
}

fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required = items(&affinity[*kind]["requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = items(&affinity[*kind]["preferredDuringSchedulingIgnoredDuringExecution"]);
        let mut terms = required.chain(preferred.map(|preferred| &preferred["podAffinityTerm"]));
        terms.any(|term| items(&term["namespaces"]).next().is_some() || term["namespaceSelector"].is_object())
    })
}

/// Whether a quota is about an object of a kind: it limits something of it, and all its scopes hold.
pub fn applies<'a>(
    quota: &Value,
    names: impl IntoIterator<Item = &'a str>,
    (group, plural): (&str, &str),
    object: &Value,
) -> bool {
    let scopes = items(&quota["spec"]["scopes"]).map(|scope| (text(scope), LabelOp::Exists));
    let selected = items(&quota["spec"]["scopeSelector"]["matchExpressions"]).map(|expression| {
        let values = || items(&expression["values"]).map(|value| text(value).to_owned()).collect();
        let operator = match text(&expression["operator"]) {
            "In" => LabelOp::In(values()),
            "NotIn" => LabelOp::NotIn(values()),
            "DoesNotExist" => LabelOp::DoesNotExist,
            _ => LabelOp::Exists,
        };
        (text(&expression["scopeName"]), operator)
    });
    let mut scopes = scopes.chain(selected);
    let own = if group.is_empty() { plural } else { "" };
    names.into_iter().any(|name| limits(name, group, plural))
        && scopes.all(|(scope, operator)| is_within(own, object, scope, &operator))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: &str = "2026-01-01T00:00:30Z";

    fn shown(usage: &Amounts) -> String {
        usage.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn objects_use_what_they_are() {
        let asks = |requests: Value| json!({"resources": {"requests": requests}});
        let going =
            |deleted: &str| json!({"metadata": {"deletionTimestamp": deleted, "deletionGracePeriodSeconds": 10}});
        let volume = |storage: &str, class: Value, annotation: Value, given: Value| {
            json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/storage-class": annotation}},
                "spec": {"storageClassName": class, "resources": {"requests": {"storage": storage}}},
                "status": {"allocatedResources": {"storage": given}}})
        };
        for (plural, object, expected) in [
            ("secrets", json!({}), "count/secrets=1 secrets=1"),
            ("endpoints", json!({}), "count/endpoints=1"),
            ("events", json!({}), ""),
            ("pods", json!({"status": {"phase": "Failed"}}), "count/pods=1"),
            ("pods", going("2026-01-01T00:00:19Z"), "count/pods=1"),
            ("pods", going("2026-01-01T00:00:20Z"), "count/pods=1 pods=1"),
            (
                "pods",
                json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "250m"}, "limits": {"memory": "128Mi"}}}]}}),
                "count/pods=1 cpu=250m limits.memory=128Mi pods=1 requests.cpu=250m",
            ),
            (
                "pods",
                json!({"spec": {"containers": [asks(json!({"cpu": 1}))], "initContainers": [asks(json!({"cpu": "3"}))]}}),
                "count/pods=1 cpu=3 pods=1 requests.cpu=3",
            ),
            (
                "pods",
                json!({"spec": {"containers": [asks(json!({"a.example/gpu": "2", "kubernetes.io/x": "1", "hugepages-2Mi": "4Mi"}))],
                    "overhead": {"cpu": "1"}}}),
                "count/pods=1 cpu=1 hugepages-2Mi=4Mi pods=1 requests.a.example/gpu=2 requests.cpu=1 requests.hugepages-2Mi=4Mi",
            ),
            (
                "services",
                json!({"spec": {"type": "NodePort", "ports": [{}, {}]}}),
                "count/services=1 services=1 services.loadbalancers=0 services.nodeports=2",
            ),
            (
                "services",
                json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{}, {"nodePort": 1}]}}),
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=1",
            ),
            (
                "persistentvolumeclaims",
                volume("1Gi", json!("s"), Value::Null, Value::Null),
                "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=1Gi \
                 s.storageclass.storage.k8s.io/persistentvolumeclaims=1 s.storageclass.storage.k8s.io/requests.storage=1Gi",
            ),
            (
                "persistentvolumeclaims",
                volume("1500m", json!("s"), json!(""), json!("1")),
                "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=2",
            ),
            (
                "persistentvolumeclaims",
                volume("1Gi", Value::Null, Value::Null, json!("3Gi")),
                "count/persistentvolumeclaims=1 persistentvolumeclaims=1 requests.storage=3Gi",
            ),
        ] {
            let usage = usage("", plural, &object, NOW.parse().unwrap());
            assert_eq!(shown(&usage), expected, "{plural} {object}");
        }
        assert_eq!(shown(&usage("apps", "deployments", &json!({}), Timestamp::UNIX_EPOCH)), "count/deployments.apps=1");
    }

    #[test]
    fn claims_use_devices_of_classes() {
        let exactly = |class: &str, mode: &str, count: i64| json!({"exactly": {"deviceClassName": class, "allocationMode": mode, "count": count}});
        let either = json!({"firstAvailable": [{"deviceClassName": "a", "allocationMode": "ExactCount", "count": 3},
            {"deviceClassName": "a", "allocationMode": "ExactCount", "count": 2}, {"deviceClassName": "b", "allocationMode": "All"}]});
        let claim = json!({"spec": {"devices": {"requests": [exactly("a", "ExactCount", 2), exactly("c", "Other", 2), either]}}});
        assert_eq!(
            shown(&usage("resource.k8s.io", "resourceclaims", &claim, Timestamp::UNIX_EPOCH)),
            "a.deviceclass.resource.k8s.io/devices=5 b.deviceclass.resource.k8s.io/devices=32 \
             c.deviceclass.resource.k8s.io/devices=0 count/resourceclaims.resource.k8s.io=1"
        );
    }

    #[test]
    fn names_limit_kinds() {
        for (name, kinds) in [
            ("pods", &["pods"][..]),
            ("count/pods", &["pods"]),
            ("requests.cpu", &["pods"]),
            ("requests.a.example/gpu", &["pods"]),
            ("hugepages-2Mi", &["pods"]),
            ("limits.hugepages-2Mi", &[]),
            ("secrets", &["secrets"]),
            ("services.nodeports", &["services"]),
            // As upstream: what others define is asked for by pods, whatever it looks like.
            ("requests.storage", &["persistentvolumeclaims"]),
            ("s.storageclass.storage.k8s.io/requests.storage", &["persistentvolumeclaims"]),
            ("c.deviceclass.resource.k8s.io/devices", &["resourceclaims.resource.k8s.io"]),
            ("count/deployments.apps", &["deployments.apps"]),
            ("count/deployments", &[]),
            ("count/events", &[]),
        ] {
            let all =
                ["pods", "secrets", "services", "persistentvolumeclaims", "events", "resourceclaims.resource.k8s.io"];
            let all = all.into_iter().chain(["deployments.apps"]);
            let found: Vec<&str> = all
                .filter(|kind| {
                    let (plural, group) = kind.split_once('.').unwrap_or((kind, ""));
                    limits(name, group, plural)
                })
                .collect();
            assert_eq!(found, kinds, "{name}");
        }
    }

    #[test]
    fn scopes_choose_objects() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let class = |scope: &str, operator: &str, values: Value| json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": scope, "operator": operator, "values": values}]}}});
        let priority = |operator: &str, values: Value| class("PriorityClass", operator, values);
        let plain = json!({"spec": {"containers": [{}]}});
        let busy = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high",
            "containers": [{"resources": {"limits": {"cpu": "1"}}}]}});
        for (quota, of_plain, of_busy) in [
            (quota(json!([])), true, true),
            (quota(json!(["Terminating"])), false, true),
            (quota(json!(["NotTerminating"])), true, false),
            (quota(json!(["BestEffort"])), true, false),
            (quota(json!(["NotBestEffort", "Terminating"])), false, true),
            (priority("In", json!(["high"])), false, true),
            (priority("NotIn", json!(["high"])), true, false),
            (priority("NotIn", json!(["low"])), true, true),
            (priority("Exists", json!([])), false, true),
            (priority("DoesNotExist", json!([])), true, false),
        ] {
            let applies = |pod| applies(&quota, ["pods"], ("", "pods"), pod);
            assert_eq!((applies(&plain), applies(&busy)), (of_plain, of_busy), "{quota}");
        }
        assert!(!applies(&quota(json!(["BestEffort"])), ["secrets"], ("", "secrets"), &json!({})));
        assert!(!applies(&quota(json!([])), ["secrets"], ("", "pods"), &plain), "it limits nothing of pods");
        let claims = |quota: &Value, claim: Value| {
            let names = ["persistentvolumeclaims"];
            applies(quota, names, ("", "persistentvolumeclaims"), &claim)
        };
        let gold = class("VolumeAttributesClass", "In", json!(["gold"]));
        assert!(claims(&gold, json!({"status": {"currentVolumeAttributesClassName": "gold"}})));
        assert!(!claims(&gold, json!({"spec": {"volumeAttributesClassName": "iron"}})));
        assert!(claims(&class("VolumeAttributesClass", "NotIn", json!(["gold"])), json!({})));
    }

    #[test]
    fn containers_say_what_is_limited() {
        let container = |name: &str, resources: Value| json!({"name": name, "resources": resources});
        let mut pod = json!({"spec": {"containers": [container("z", json!({})), container("a", json!({"limits": {"cpu": "1"}}))],
            "initContainers": [container("b", json!({"requests": {"memory": "1"}}))]}});
        let names = ["requests.memory", "limits.cpu", "limits.ephemeral-storage", "pods"];
        let expected = "must specify limits.cpu for: b,z; requests.memory for: a,z";
        assert_eq!(unsaid(&pod, names).as_deref(), Some(expected));
        assert_eq!(unsaid(&pod, ["pods"]), None);
        pod["spec"]["resources"] = json!({"requests": {"cpu": "1"}});
        assert_eq!(unsaid(&pod, names), None);
    }
}
