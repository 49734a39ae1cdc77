//! What the server itself writes into objects before they are validated, as upstream's `PrepareForCreate` and
//! `PrepareForUpdate` do: first states, generated selectors, fields that belong to a subresource.

use serde_json::{Map, Value, json};

use crate::qos;
use crate::resource::ResourceDef;
use crate::warnings::pod::{APP_ARMOR, APP_ARMOR_OLD};
use crate::{defaults, gates, presence, schema};

/// Longest path of an AppArmor profile, bytes.
const MAX_PROFILE_PATH: usize = 4095;

/// Metadata that an update of the status may not change, where the kind says so.
const STATUS_ONLY_METADATA: &[&str] = &["labels", "annotations", "finalizers", "ownerReferences", "deletionTimestamp"];

/// Prepares a new object; its metadata is complete.
pub fn create(def: &ResourceDef, object: &mut Value, now: &str) {
    // A node comes with the status that its agent saw; so do objects whose status is not a subresource.
    if def.has_status && def.plural != "nodes" {
        reset_status(def, object);
    }
    gates::close(def, object, None);
    match (def.group, def.plural) {
        ("", "pods") => pod(object, now),
        ("", "namespaces") => {
            let mut finalizers = object["spec"]["finalizers"].as_array().cloned().unwrap_or_default();
            if !finalizers.iter().any(|f| f == "kubernetes") {
                finalizers.push("kubernetes".into());
            }
            object["spec"]["finalizers"] = finalizers.into();
        }
        ("", "persistentvolumes") => {
            protect(object, "kubernetes.io/pv-protection");
            object["status"]["lastPhaseTransitionTime"] = now.into();
        }
        ("storage.k8s.io", "volumeattributesclasses") => protect(object, "kubernetes.io/vac-protection"),
        ("", "persistentvolumeclaims") => {
            protect(object, "kubernetes.io/pvc-protection");
            data_sources(object, None);
        }
        ("", "serviceaccounts") => only_names(object),
        ("batch", "jobs") => job(object),
        ("apps", "daemonsets") => {
            let given = counted_templates(object).max(1);
            object["metadata"]["annotations"][TEMPLATE_GENERATION] = given.to_string().into();
        }
        ("discovery.k8s.io", "endpointslices") => without_topology(object),
        _ => {}
    }
}

/// Storage that is in use is not deleted under its users: a finalizer holds it until its controller finds none.
fn protect(object: &mut Value, finalizer: &str) {
    let mut list = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !list.iter().any(|f| f == finalizer) {
        list.push(finalizer.into());
        object["metadata"]["finalizers"] = list.into();
    }
}

/// Of its secrets an account keeps the names alone.
fn only_names(account: &mut Value) {
    for secret in account.get_mut("secrets").and_then(Value::as_array_mut).into_iter().flatten() {
        secret.as_object_mut().into_iter().for_each(|secret| secret.retain(|key, _| key == "name"));
    }
}

/// The annotation that counts changes of a DaemonSet's template.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// Gives an object the status of one that nobody has acted on yet.
fn reset_status(def: &ResourceDef, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
        if let Some(definition) = schema::of_kind(def.group, def.version, def.kind) {
            presence::fill(definition, map);
        }
    }
    defaults::set(def, object);
}

/// Writes AppArmor profiles that annotations name into the fields that took their place. Gives what is to be told.
pub fn app_armor(object: &mut Value) -> Vec<String> {
    let mut told = Vec::new();
    let annotations = object["metadata"]["annotations"].clone();
    let names_any = annotations.as_object().is_some_and(|a| a.keys().any(|key| key.starts_with(APP_ARMOR)));
    if !names_any || object["spec"]["os"]["name"] == "windows" {
        return told;
    }
    let of_pod = object["spec"]["securityContext"]["appArmorProfile"].clone();
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in object["spec"].get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let key = format!("{APP_ARMOR}{}", container["name"].as_str().unwrap_or_default());
            let Some(annotation) = annotations[&key].as_str() else { continue };
            if container["securityContext"]["appArmorProfile"].is_object() {
                continue;
            }
            let profile = app_armor_profile(annotation);
            if profile.as_ref() == Some(&of_pod) {
                continue;
            }
            if let Some(profile) = profile {
                container["securityContext"]["appArmorProfile"] = profile;
            }
            told.push(format!("metadata.annotations[{key}]: {APP_ARMOR_OLD}"));
        }
    }
    told
}

/// The profile that an annotation names, if it is one.
fn app_armor_profile(annotation: &str) -> Option<Value> {
    match annotation {
        "unconfined" => Some(json!({"type": "Unconfined"})),
        "runtime/default" => Some(json!({"type": "RuntimeDefault"})),
        _ => {
            let name = annotation.strip_prefix("localhost/")?;
            let good = !name.is_empty() && name.trim() == name && name.len() <= MAX_PROFILE_PATH;
            good.then(|| json!({"type": "Localhost", "localhostProfile": name}))
        }
    }
}

fn pod(object: &mut Value, now: &str) {
    if object["spec"]["terminationGracePeriodSeconds"].as_i64().is_some_and(|seconds| seconds < 0) {
        object["spec"]["terminationGracePeriodSeconds"] = 1.into();
    }
    object["status"]["phase"] = "Pending".into();
    object["status"]["qosClass"] = qos::class(object).into();
    if object["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        object["status"]["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
            "lastTransitionTime": now, "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    merge_label_keys(object);
}

/// Pods select those that are like them in the labels that `matchLabelKeys` names: their values go into the selectors.
fn merge_label_keys(object: &mut Value) {
    let labels = object["metadata"]["labels"].clone();
    let Some(affinity) = object.pointer_mut("/spec/affinity") else { return spread(object, &labels) };
    for field in ["podAffinity", "podAntiAffinity"] {
        let Some(group) = affinity.get_mut(field) else { continue };
        if let Some(terms) =
            group.get_mut("requiredDuringSchedulingIgnoredDuringExecution").and_then(Value::as_array_mut)
        {
            terms.iter_mut().for_each(|term| affinity_term(term, &labels));
        }
        if let Some(terms) =
            group.get_mut("preferredDuringSchedulingIgnoredDuringExecution").and_then(Value::as_array_mut)
        {
            terms.iter_mut().filter_map(|t| t.get_mut("podAffinityTerm")).for_each(|term| affinity_term(term, &labels));
        }
    }
    spread(object, &labels);
}

fn affinity_term(term: &mut Value, labels: &Value) {
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        add_requirements(term, field, operator, labels);
    }
}

fn spread(object: &mut Value, labels: &Value) {
    let list = object.pointer_mut("/spec/topologySpreadConstraints").and_then(Value::as_array_mut);
    for constraint in list.into_iter().flatten() {
        add_requirements(constraint, "matchLabelKeys", "In", labels);
    }
}

fn add_requirements(term: &mut Value, field: &str, operator: &str, labels: &Value) {
    let keys = term.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    if keys.is_empty() || !term["labelSelector"].is_object() {
        return;
    }
    for key in keys.iter().filter_map(Value::as_str) {
        let Some(value) = labels.get(key) else { continue };
        let mut list = term["labelSelector"]["matchExpressions"].as_array().cloned().unwrap_or_default();
        list.push(json!({"key": key, "operator": operator, "values": [value]}));
        term["labelSelector"]["matchExpressions"] = list.into();
    }
}

/// A claim's two ways to name its source say the same, unless both are said.
fn data_sources(object: &mut Value, old: Option<&Value>) {
    let spec = &mut object["spec"];
    let had = |key: &str| old.is_some_and(|old| old["spec"][key].is_object());
    let elsewhere = |spec: &Value| spec["dataSourceRef"]["namespace"].as_str().is_some_and(|n| !n.is_empty());
    // Sources in other namespaces are behind a gate.
    if elsewhere(spec) && !had("dataSourceRef") {
        spec.as_object_mut().map(|s| s.remove("dataSourceRef"));
    }
    let (source, reference) = (spec["dataSource"].is_object(), spec["dataSourceRef"].is_object());
    // Sources of other kinds were never looked at in the old field alone.
    let dropped =
        source && !reference && !had("dataSource") && !had("dataSourceRef") && !is_simple(&spec["dataSource"]);
    if dropped {
        spec.as_object_mut().map(|s| s.remove("dataSource"));
    } else if source && !reference {
        spec["dataSourceRef"] = spec["dataSource"].clone();
    } else if reference && !source && !elsewhere(spec) {
        let mut source = spec["dataSourceRef"].clone();
        source.as_object_mut().map(|s| s.remove("namespace"));
        spec["dataSource"] = source;
    }
}

/// Whether a source is a claim or a snapshot.
fn is_simple(source: &Value) -> bool {
    let text = |key: &str| source[key].as_str().unwrap_or_default();
    matches!(
        (text("apiGroup"), text("kind")),
        ("", "PersistentVolumeClaim") | ("snapshot.storage.k8s.io", "VolumeSnapshot")
    )
}

/// A Job's pods are told from others by labels that name the Job, unless it brings a selector of its own.
fn job(object: &mut Value) {
    let (name, uid) = (object["metadata"]["name"].clone(), object["metadata"]["uid"].clone());
    if object["spec"]["manualSelector"] == true {
        return;
    }
    let own = [
        ("batch.kubernetes.io/controller-uid", &uid),
        ("batch.kubernetes.io/job-name", &name),
        ("controller-uid", &uid),
        ("job-name", &name),
    ];
    let template = &mut object["spec"]["template"]["metadata"]["labels"];
    if !template.is_object() {
        *template = json!({});
    }
    for (key, value) in own {
        if template.get(key).is_none() {
            template[key] = value.clone();
        }
    }
    let generated: Map<String, Value> = own.iter().map(|(k, v)| ((*k).to_owned(), (*v).clone())).collect();
    let spec = &mut object["spec"];
    if spec["selector"].is_null() {
        spec["selector"] = json!({});
    }
    if spec["selector"].get("matchLabels").is_none() {
        spec["selector"]["matchLabels"] = json!({});
    }
    if spec["selector"]["matchLabels"].get("batch.kubernetes.io/controller-uid").is_none() {
        spec["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] =
            generated["batch.kubernetes.io/controller-uid"].clone();
    }
    // Read again, a Job without labels bears those of its pods.
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if object["metadata"].get("labels").is_none_or(|l| l.as_object().is_none_or(Map::is_empty)) {
        object["metadata"]["labels"] = labels;
    }
}

/// Keeps what an update of the object or of a subresource may not change.
pub fn update(def: &ResourceDef, subresource: &str, old: &Value, new: &mut Value, now: &str) {
    match subresource {
        "status" | "approval" => status(def, subresource, old, new),
        "ephemeralcontainers" | "resize" => only_containers(subresource, old, new),
        "finalize" | "scale" => keep(new, old, "status"),
        _ if def.has_status => keep(new, old, "status"),
        _ => {}
    }
    match (def.group, def.plural, subresource) {
        ("", "pods", "") => {
            // Given at admission, and not asked for again.
            for key in ["priority", "preemptionPolicy"] {
                if new["spec"].get(key).is_none_or(Value::is_null) {
                    keep(&mut new["spec"], &old["spec"], key);
                }
            }
        }
        ("", "namespaces", "") => {
            let finalizers = old["spec"].get("finalizers").cloned();
            if !new["spec"].is_object() {
                new["spec"] = json!({});
            }
            put(&mut new["spec"], "finalizers", finalizers);
        }
        ("", "serviceaccounts", "") => only_names(new),
        ("", "persistentvolumes", "status") => phase_time(&old["status"], &mut new["status"], now),
        ("", "persistentvolumeclaims", "") => data_sources(new, Some(old)),
        ("apps", "daemonsets", _) => template_generation(old, new),
        ("discovery.k8s.io", "endpointslices", "") if old["endpoints"] != new["endpoints"] => without_topology(new),
        ("certificates.k8s.io", ..) => keep(new, old, "spec"),
        _ => {}
    }
    gates::close(def, new, Some(old));
}

/// When a volume came into its phase: now, unless who says the phase says that too.
fn phase_time(old: &Value, new: &mut Value, now: &str) {
    const TIME: &str = "lastPhaseTransitionTime";
    let said = !new[TIME].is_null();
    if old["phase"] != new["phase"] {
        if !said || new[TIME] == old[TIME] {
            new[TIME] = now.into();
        }
    } else if !said {
        keep(new, old, TIME);
    }
}

/// Of a pod only its ephemeral containers, or the amounts of its containers and of the whole, change.
fn only_containers(subresource: &str, old: &Value, new: &mut Value) {
    let (changed, managers) = (new["spec"].clone(), new["metadata"].get("managedFields").cloned());
    let resizes = subresource == "resize";
    let count = |spec: &Value, list: &str| spec[list].as_array().map_or(0, Vec::len);
    let lists = ["containers", "initContainers"];
    if resizes && lists.iter().any(|list| count(&changed, list) != count(&old["spec"], list)) {
        // Validation tells of what is there too much or missing.
        return;
    }
    *new = old.clone();
    put(&mut new["metadata"], "managedFields", managers);
    if !resizes {
        return keep(&mut new["spec"], &changed, "ephemeralContainers");
    }
    keep(&mut new["spec"], &changed, "resources");
    for list in lists {
        let wanted: Vec<Value> = changed[list].as_array().cloned().unwrap_or_default();
        let names = |list: &[Value]| list.iter().map(|c| c["name"].clone()).collect::<Vec<_>>();
        let Some(containers) = new["spec"].get_mut(list).and_then(Value::as_array_mut) else { continue };
        if names(containers) != names(&wanted) {
            *containers = wanted;
            continue;
        }
        for (container, same) in containers.iter_mut().zip(&wanted) {
            keep(container, same, "resources");
            keep(container, same, "resizePolicy");
        }
    }
}

/// Where an endpoint is was said in another way before this version.
fn without_topology(slice: &mut Value) {
    for endpoint in slice.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        endpoint.as_object_mut().map(|endpoint| endpoint.remove("deprecatedTopology"));
    }
}

fn counted_templates(set: &Value) -> i64 {
    let text = set["metadata"]["annotations"][TEMPLATE_GENERATION].as_str().unwrap_or_default();
    text.parse().unwrap_or(0)
}

fn template_generation(old: &Value, new: &mut Value) {
    let changed = old["spec"]["template"] != new["spec"]["template"];
    let next = counted_templates(old).saturating_add(i64::from(changed));
    new["metadata"]["annotations"][TEMPLATE_GENERATION] = next.to_string().into();
}

/// The status alone, with what of the metadata the kind lets go with it.
fn status(def: &ResourceDef, subresource: &str, old: &Value, new: &mut Value) {
    let strict = matches!(
        (def.group, def.plural),
        // Not of definitions: upstream resets their metadata to itself.
        (
            "storage.k8s.io"
                | "flowcontrol.apiserver.k8s.io"
                | "admissionregistration.k8s.io"
                | "apiregistration.k8s.io"
                | "resource.k8s.io",
            _
        ) | ("networking.k8s.io", "servicecidrs")
    );
    for key in keys(old).into_iter().chain(keys(new)) {
        if !matches!(key.as_str(), "status" | "metadata" | "apiVersion" | "kind") {
            keep(new, old, &key);
        }
    }
    let fixed: &[&str] = match (def.group, def.plural) {
        _ if strict => STATUS_ONLY_METADATA,
        ("apps", "deployments") => &["labels"],
        ("", "pods") => &["ownerReferences", "deletionTimestamp"],
        _ => &[],
    };
    for key in fixed {
        let value = old["metadata"].get(*key).cloned();
        put(&mut new["metadata"], key, value);
    }
    if def.plural == "pods" && new["status"]["qosClass"].as_str().unwrap_or_default().is_empty() {
        let class = old["status"].get("qosClass").cloned();
        put(&mut new["status"], "qosClass", class);
    }
    if def.plural == "pods" && new["status"].is_object() {
        observed_generations(&old["status"], &mut new["status"]);
    }
    if (def.group, def.plural) == ("resource.k8s.io", "resourceclaims") {
        without_deallocated(&old["status"], &mut new["status"]);
    }
    if def.plural == "certificatesigningrequests" {
        // Approval writes conditions, the signer the certificate.
        let other = if subresource == "approval" { "certificate" } else { "" };
        if !other.is_empty() {
            let value = old["status"].get(other).cloned();
            put(&mut new["status"], other, value);
        }
    }
}

/// What was told of devices that a claim does not have any more goes with them.
fn without_deallocated(old: &Value, new: &mut Value) {
    let device = |of: &Value| ["driver", "pool", "device"].map(|key| of[key].as_str().unwrap_or_default().to_owned());
    let allocated = |status: &Value| -> Vec<[String; 3]> {
        status["allocation"]["devices"]["results"].as_array().into_iter().flatten().map(device).collect()
    };
    let (before, now) = (allocated(old), allocated(new));
    let Some(list) = new.get_mut("devices").and_then(Value::as_array_mut) else { return };
    list.retain(|told| !before.contains(&device(told)) || now.contains(&device(told)));
    if list.is_empty() {
        new.as_object_mut().map(|status| status.remove("devices"));
    }
}

/// Agents that do not know the field leave out of which generation they tell: it stays, also in the conditions.
fn observed_generations(old: &Value, new: &mut Value) {
    const FIELD: &str = "observedGeneration";
    let missing = |holder: &Value| holder[FIELD].as_i64().unwrap_or(0) == 0;
    if missing(new) {
        keep(new, old, FIELD);
    }
    let mut before: Vec<&Value> = old["conditions"].as_array().into_iter().flatten().collect();
    for condition in new.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
        // A type may be there several times: each counts once.
        let Some(index) = before.iter().position(|old| old["type"] == condition["type"]) else { continue };
        let old = before.remove(index);
        if missing(condition) {
            keep(condition, old, FIELD);
        }
    }
}

fn keys(object: &Value) -> Vec<String> {
    object.as_object().map(|map| map.keys().cloned().collect()).unwrap_or_default()
}

/// Sets or removes a field as it is in the old object.
pub fn keep(new: &mut Value, old: &Value, key: &str) {
    put(new, key, old.get(key).cloned());
}

fn put(object: &mut Value, key: &str, value: Option<Value>) {
    match (object.as_object_mut(), value) {
        (Some(map), Some(value)) => {
            map.insert(key.to_owned(), value);
        }
        (Some(map), None) => {
            map.remove(key);
        }
        (None, _) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::find;

    #[test]
    fn new_objects_get_what_the_server_writes() {
        let at = "2026-01-01T00:00:00Z";
        for (group, plural, mut object, path, expected) in [
            (
                "",
                "pods",
                json!({"metadata": {}, "spec": {"schedulingGates": [{"name": "g"}]}}),
                "/status/conditions/0/reason",
                json!("SchedulingGated"),
            ),
            ("", "pods", json!({"metadata": {}, "spec": {}}), "/status/qosClass", json!("BestEffort")),
            ("", "namespaces", json!({"metadata": {}, "spec": {}}), "/spec/finalizers", json!(["kubernetes"])),
            (
                "",
                "persistentvolumes",
                json!({"metadata": {}, "spec": {}}),
                "/status/lastPhaseTransitionTime",
                json!(at),
            ),
            (
                "batch",
                "jobs",
                json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"metadata": {}}}}),
                "/spec/selector/matchLabels",
                json!({"batch.kubernetes.io/controller-uid": "u"}),
            ),
        ] {
            create(find(group, "v1", plural).unwrap(), &mut object, at);
            assert_eq!(object.pointer(path), Some(&expected), "{plural}");
        }
    }

    #[test]
    fn a_daemon_set_may_say_how_often_its_template_changed() {
        let def = find("apps", "v1", "daemonsets").unwrap();
        for (said, kept) in
            [(json!({}), "1"), (json!({TEMPLATE_GENERATION: "5"}), "5"), (json!({TEMPLATE_GENERATION: "-2"}), "1")]
        {
            let mut set = json!({"metadata": {"annotations": said}, "spec": {}});
            create(def, &mut set, "");
            assert_eq!(set["metadata"]["annotations"][TEMPLATE_GENERATION], kept, "{said}");
        }
    }

    #[test]
    fn accounts_keep_the_names_of_their_secrets() {
        let def = find("", "v1", "serviceaccounts").unwrap();
        let said =
            json!({"metadata": {}, "secrets": [{"name": "a", "namespace": "n", "kind": "Secret"}, {"uid": "u"}]});
        let kept = json!([{"name": "a"}, {}]);
        let mut new = said.clone();
        create(def, &mut new, "");
        assert_eq!(new["secrets"], kept);
        let mut new = said;
        update(def, "", &json!({"metadata": {}}), &mut new, "");
        assert_eq!(new["secrets"], kept);
    }

    #[test]
    fn a_volume_says_since_when_it_is_in_its_phase() {
        let def = find("", "v1", "persistentvolumes").unwrap();
        let volume = |phase: &str, time: Value| json!({"metadata": {}, "status": {"phase": phase, "lastPhaseTransitionTime": time}});
        let old = volume("Pending", json!("then"));
        for (phase, said, expected) in [
            ("Bound", json!(null), "now"),
            ("Bound", json!("then"), "now"),
            ("Bound", json!("later"), "later"),
            ("Pending", json!(null), "then"),
            ("Pending", json!("later"), "later"),
        ] {
            let mut new = volume(phase, said.clone());
            update(def, "status", &old, &mut new, "now");
            assert_eq!(new["status"]["lastPhaseTransitionTime"], expected, "{phase} {said}");
        }
    }

    #[test]
    fn a_claim_says_its_source_both_ways() {
        let def = find("", "v1", "persistentvolumeclaims").unwrap();
        let claim = json!({"kind": "PersistentVolumeClaim", "name": "a"});
        let other = json!({"apiGroup": "x.io", "kind": "Foo", "name": "a"});
        let far = json!({"kind": "PersistentVolumeClaim", "name": "a", "namespace": "n"});
        for (said, expected) in [
            (json!({"dataSource": claim}), json!({"dataSource": claim, "dataSourceRef": claim})),
            (json!({"dataSourceRef": other}), json!({"dataSource": other, "dataSourceRef": other})),
            (json!({"dataSource": other}), json!({})),
            (
                json!({"dataSource": other, "dataSourceRef": other}),
                json!({"dataSource": other, "dataSourceRef": other}),
            ),
            (json!({"dataSourceRef": far}), json!({})),
        ] {
            let mut object = json!({"metadata": {}, "spec": said});
            create(def, &mut object, "");
            object["spec"].as_object_mut().unwrap().remove("volumeMode");
            assert_eq!(object["spec"], expected, "{said}");
        }
        let old = json!({"metadata": {}, "spec": {"dataSource": other, "dataSourceRef": other}});
        let mut new = json!({"metadata": {}, "spec": {"dataSource": other}});
        update(def, "", &old, &mut new, "");
        assert_eq!(new["spec"], old["spec"], "what a client leaves out that does not know it is filled in again");
    }

    #[test]
    fn devices_that_a_claim_lost_are_told_of_no_more() {
        let def = find("resource.k8s.io", "v1", "resourceclaims").unwrap();
        let device = |name: &str| json!({"driver": "d", "pool": "p", "device": name});
        let status = |allocated: &[&str], told: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| device(name)).collect::<Vec<_>>();
            json!({"allocation": {"devices": {"results": list(allocated)}}, "devices": list(told)})
        };
        let claim = |status: Value| json!({"metadata": {}, "spec": {}, "status": status});
        for (before, asked, left) in [
            (status(&["a", "b"], &["a", "b"]), status(&["a"], &["a", "b"]), json!([device("a")])),
            (status(&["a"], &["a"]), json!({"devices": [device("a")]}), Value::Null),
            // What the claim never had is left to validation.
            (status(&["a"], &[]), status(&["a"], &["c"]), json!([device("c")])),
        ] {
            let mut new = claim(asked.clone());
            update(def, "status", &claim(before), &mut new, "");
            assert_eq!(new["status"]["devices"], left, "{asked}");
        }
    }

    #[test]
    fn an_old_agent_keeps_the_generations_that_others_saw() {
        let def = find("", "v1", "pods").unwrap();
        let old = json!({"metadata": {}, "spec": {}, "status": {"observedGeneration": 3, "conditions": [
            {"type": "Ready", "observedGeneration": 2}, {"type": "Initialized", "observedGeneration": 1},
        ]}});
        let mut new = json!({"metadata": {}, "spec": {}, "status": {"conditions": [
            {"type": "Ready"}, {"type": "Initialized", "observedGeneration": 4}, {"type": "Ready"},
        ]}});
        update(def, "status", &old, &mut new, "");
        assert_eq!(
            new["status"],
            json!({"observedGeneration": 3, "conditions": [
                {"type": "Ready", "observedGeneration": 2}, {"type": "Initialized", "observedGeneration": 4}, {"type": "Ready"},
            ]})
        );
    }

    #[test]
    fn a_resize_brings_amounts_and_leaves_mistakes_to_validation() {
        let def = find("", "v1", "pods").unwrap();
        let pod = |spec: Value| json!({"metadata": {}, "spec": spec});
        let old = pod(json!({"nodeName": "n", "containers": [{"name": "a", "image": "i"}]}));
        let amounts = json!({"requests": {"cpu": "1"}});
        for (asked, expected) in [
            (
                json!({"containers": [{"name": "a", "image": "j", "resources": amounts}], "resources": amounts}),
                json!({"nodeName": "n", "containers": [{"name": "a", "image": "i", "resources": amounts}],
                    "resources": amounts}),
            ),
            (json!({"containers": [{"name": "b"}]}), json!({"nodeName": "n", "containers": [{"name": "b"}]})),
            (json!({"containers": []}), json!({"containers": []})),
        ] {
            let mut new = pod(asked.clone());
            update(def, "resize", &old, &mut new, "");
            assert_eq!(new["spec"], expected, "{asked}");
        }
    }

    #[test]
    fn endpoints_lose_what_they_said_in_the_old_way() {
        let def = find("discovery.k8s.io", "v1", "endpointslices").unwrap();
        let slice =
            |ip: &str| json!({"metadata": {}, "endpoints": [{"addresses": [ip], "deprecatedTopology": {"a": "b"}}]});
        let has = |object: &Value| object["endpoints"][0].get("deprecatedTopology").is_some();
        let mut new = slice("1.2.3.4");
        create(def, &mut new, "");
        assert!(!has(&new));
        for (ip, kept) in [("1.2.3.4", true), ("1.2.3.5", false)] {
            let mut new = slice(ip);
            update(def, "", &slice("1.2.3.4"), &mut new, "");
            assert_eq!(has(&new), kept, "{ip}");
        }
    }

    #[test]
    fn profiles_of_annotations_are_written_into_fields() {
        let key = |name: &str| format!("container.apparmor.security.beta.kubernetes.io/{name}");
        let pod = |annotation: &str, of_pod: Value, own: Value| {
            json!({"metadata": {"annotations": {key("a"): annotation}},
                "spec": {"securityContext": {"appArmorProfile": of_pod}, "containers": [{"name": "a", "securityContext": own}]}})
        };
        let unconfined = json!({"type": "Unconfined"});
        for (annotation, of_pod, own, expected, told) in [
            ("unconfined", Value::Null, json!({}), json!({"appArmorProfile": unconfined}), 1),
            ("unconfined", unconfined.clone(), json!({}), json!({}), 0),
            (
                "localhost/p",
                Value::Null,
                json!({}),
                json!({"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}}),
                1,
            ),
            ("localhost/", Value::Null, json!({}), json!({}), 1),
            ("x", Value::Null, json!({}), json!({}), 1),
            (
                "unconfined",
                Value::Null,
                json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
                json!({"appArmorProfile": {"type": "RuntimeDefault"}}),
                0,
            ),
        ] {
            let mut object = pod(annotation, of_pod, own);
            assert_eq!(app_armor(&mut object).len(), told, "{annotation}");
            assert_eq!(object["spec"]["containers"][0]["securityContext"], expected, "{annotation}");
        }
    }

    #[test]
    fn a_status_update_changes_only_the_status() {
        let def = find("apps", "v1", "deployments").unwrap();
        let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {}});
        let mut new = json!({"metadata": {"labels": {"a": "c"}, "annotations": {"x": "y"}}, "spec": {"replicas": 2},
            "status": {"replicas": 1}});
        update(def, "status", &old, &mut new, "");
        let expected = json!({"metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}}, "spec": {"replicas": 1},
            "status": {"replicas": 1}});
        assert_eq!(new, expected);
    }
}
