//! What may change in a pod: little of its spec, and that through the right subresource.

use serde_json::{Value, json};

use super::check::{Problems, WHOLE, or_empty};
use super::{container, entries, has, items, networking, pod, probes, selectors, text};
use crate::qos;
use crate::shown;

/// Longest message about the health of a device, bytes.
const MAX_HEALTH_MESSAGE: usize = 256;
/// The annotation of pods that a node has from elsewhere than the API.
pub const MIRROR: &str = "kubernetes.io/config.mirror";
const MUTABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
     `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// A change through the pod itself.
pub fn main(new: &Value, old: &Value, p: &mut Problems) {
    let (spec, before) = (&new["spec"], &old["spec"]);
    annotations(new, old, p);
    for field in ["containers", "initContainers"] {
        if items(&spec[field]).count() != items(&before[field]).count() {
            let path = format!("spec.{field}");
            p.forbidden(path, "pod updates may not add or remove containers");
            return;
        }
        for (index, container) in items(&spec[field]).enumerate() {
            let at = format!("spec.{field}[{index}]");
            p.present(container, "image", &at);
            container::trimmed_image(container, &at, p);
        }
    }
    if !deadline(spec, before, p) {
        return;
    }
    tolerations(spec, before, p);
    gates(spec, before, p);
    let mut munged = spec.clone();
    for field in ["containers", "initContainers"] {
        let images: Vec<Value> = items(&before[field]).map(|c| c["image"].clone()).collect();
        for (container, image) in munged.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().zip(images)
        {
            container["image"] = image;
        }
    }
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        set(&mut munged, field, before.get(field));
    }
    if before["terminationGracePeriodSeconds"].as_i64().is_some_and(|g| g < 0)
        && spec["terminationGracePeriodSeconds"] == 1
    {
        set(&mut munged, "terminationGracePeriodSeconds", before.get("terminationGracePeriodSeconds"));
    }
    if items(&before["schedulingGates"]).next().is_some() {
        gated(&mut munged, before, p);
    }
    // The deprecated name of the account is not looked at.
    set(&mut munged, "serviceAccount", before.get("serviceAccount"));
    // Nearly always nothing else changed: then nothing is written out.
    if munged == *before {
        return;
    }
    let difference = shown::difference("PodSpec", before, &munged);
    if !difference.is_empty() {
        p.forbidden("spec", &format!("{MUTABLE}\n{difference}"));
    }
}

fn set(object: &mut Value, key: &str, value: Option<&Value>) {
    let Some(map) = object.as_object_mut() else { return };
    match value {
        Some(value) => map.insert(key.to_owned(), value.clone()),
        None => map.remove(key),
    };
}

/// Annotations of a pod that stay as they are, and the form of the others.
pub fn annotations(new: &Value, old: &Value, p: &mut Problems) {
    const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
    let (now, before) = (&new["metadata"]["annotations"], &old["metadata"]["annotations"]);
    let mut refuse = |key: &str, verb: &str| {
        let what = match key {
            MIRROR => "mirror pod annotation",
            _ if key.starts_with(APP_ARMOR) => "AppArmor annotations",
            _ => return,
        };
        p.forbidden(format!("metadata.annotations[{key}]"), &format!("may not {verb} {what}"));
    };
    for (key, value) in entries(before).filter(|(key, value)| now.get(key.as_str()) != Some(value)) {
        let _ = value;
        refuse(key, "remove or update");
    }
    for (key, _) in entries(now).filter(|(key, _)| before.get(key.as_str()).is_none()) {
        refuse(key, "add");
    }
    pod::pod_annotations(now, &new["spec"], "metadata.annotations", p);
}

/// The time that a pod may run can only be cut. Returns whether the rest is to be looked at.
fn deadline(spec: &Value, before: &Value, p: &mut Problems) -> bool {
    let field = "spec.activeDeadlineSeconds";
    let (new, old) = (spec["activeDeadlineSeconds"].as_i64(), before["activeDeadlineSeconds"].as_i64());
    match (new, old) {
        (Some(new), _) if !(0..=i64::from(i32::MAX)).contains(&new) => {
            p.invalid(field, &json!(new), "must be between 0 and 2147483647, inclusive");
            false
        }
        (Some(new), Some(old)) if new > old => {
            p.invalid(field, &json!(new), "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            p.invalid(field, &Value::Null, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

/// Tolerations may be added, and the seconds of existing ones changed.
fn tolerations(spec: &Value, before: &Value, p: &mut Problems) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        set(&mut toleration, "tolerationSeconds", None);
        toleration
    };
    for old in items(&before["tolerations"]) {
        let kept = items(&spec["tolerations"]).any(|new| without_seconds(new) == without_seconds(old));
        if !kept {
            p.forbidden("spec.tolerations", "existing toleration can not be modified except its tolerationSeconds");
            return;
        }
    }
    // They were looked at with the rest of the pod, and are again.
    selectors::tolerations(&spec["tolerations"], "spec.tolerations", p);
}

fn gates(spec: &Value, before: &Value, p: &mut Problems) {
    let known: Vec<&str> = items(&before["schedulingGates"]).map(|g| text(g, "name")).collect();
    for (index, gate) in items(&spec["schedulingGates"]).enumerate() {
        let name = text(gate, "name");
        if !known.contains(&name) {
            let why = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            p.forbidden(format!("spec.schedulingGates[{index}].name"), &why);
        }
    }
}

/// A pod that waits at a gate may get a narrower choice of nodes.
fn gated(munged: &mut Value, before: &Value, p: &mut Problems) {
    if munged.get("nodeSelector") != before.get("nodeSelector") {
        let loosened =
            entries(&before["nodeSelector"]).any(|(key, value)| munged["nodeSelector"].get(key) != Some(value));
        if loosened {
            let why = "only additions to spec.nodeSelector are allowed (no mutations or deletions)";
            let shown = if munged["nodeSelector"].is_null() { json!({}) } else { munged["nodeSelector"].clone() };
            p.invalid("spec.nodeSelector", &shown, why);
        }
        set(munged, "nodeSelector", before.get("nodeSelector"));
    }
    let old_affinity = before["affinity"].get("nodeAffinity");
    if munged["affinity"].get("nodeAffinity") != old_affinity {
        node_affinity(&munged["affinity"]["nodeAffinity"], &before["affinity"]["nodeAffinity"], p);
        let mut affinity = if munged["affinity"].is_object() { munged["affinity"].clone() } else { json!({}) };
        set(&mut affinity, "nodeAffinity", old_affinity);
        let empty = affinity.as_object().is_none_or(serde_json::Map::is_empty) && !has(before, "affinity");
        set(munged, "affinity", (!empty).then_some(&affinity));
    }
}

fn node_affinity(new: &Value, old: &Value, p: &mut Problems) {
    let field = "requiredDuringSchedulingIgnoredDuringExecution";
    let path = format!("spec.affinity.nodeAffinity.{field}.nodeSelectorTerms");
    if !has(old, field) {
        return;
    }
    let (new, old) = (&new[field]["nodeSelectorTerms"], &old[field]["nodeSelectorTerms"]);
    if items(old).next().is_some() && items(new).count() != items(old).count() {
        let why = "no additions/deletions to non-empty NodeSelectorTerms list are allowed";
        let shown: Vec<String> = items(new).map(|term| shown::compact("NodeSelectorTerm", term)).collect();
        let shown = if new.is_null() { "null".to_owned() } else { format!("[{}]", shown.join(",")) };
        p.invalid_shown(path, &shown, why);
        return;
    }
    let list = |term: &Value, key: &str| items(&term[key]).cloned().collect::<Vec<_>>();
    for (index, (new, old)) in items(new).zip(items(old)).enumerate() {
        let lists = ["matchExpressions", "matchFields"];
        let empty = |term: &Value| lists.iter().all(|key| list(term, key).is_empty());
        // What was there is at the front still; a term that said nothing says nothing on.
        let kept = lists.iter().all(|key| list(new, key).starts_with(&list(old, key)));
        if !kept || empty(old) && !empty(new) {
            let why = "only additions are allowed (no mutations or deletions)";
            p.invalid_shown(format!("{path}[{index}]"), &shown::compact("NodeSelectorTerm", new), why);
        }
    }
}

/// A change of the status.
pub fn status(new: &Value, old: &Value, p: &mut Problems) {
    let (status, before) = (&new["status"], &old["status"]);
    annotations(new, old, p);
    for (index, condition) in items(&status["conditions"]).enumerate() {
        let (at, kind) = (format!("status.conditions[{index}]"), text(condition, "type"));
        generation(condition, &at, p);
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            p.qualified_name(&format!("{at}.Type"), kind);
        }
    }
    if new["spec"]["nodeName"] != old["spec"]["nodeName"] {
        p.forbidden("status.nodeName", "may not be changed directly");
    }
    let name = &status["nominatedNodeName"];
    if *name != before["nominatedNodeName"] && name.as_str().is_some_and(|n| !n.is_empty()) {
        p.subdomain("status.nominatedNodeName", name);
        if !text(&old["spec"], "nodeName").is_empty() {
            let why = "may not be set on pods that are already bound to a node";
            p.forbidden("status.nominatedNodeName", why);
        }
    }
    generation(status, "status", p);
    p.immutable("status.qosClass", &status["qosClass"], &before["qosClass"]);
    if !probes::may_restart_all(&old["spec"]) {
        ended(new, old, "containerStatuses", Some("containers"), p);
        ended(new, old, "initContainerStatuses", Some("initContainers"), p);
    }
    // These are never started again.
    ended(new, old, "ephemeralContainerStatuses", None, p);
    claim_statuses(new, p);
    if status["extendedResourceClaimStatus"].is_object() {
        extended_claim(&status["extendedResourceClaimStatus"], &new["spec"], p);
    }
    addresses("status.podIPs", &status["podIPs"], p);
    host_addresses(status, p);
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        users(new, list, p);
    }
    allocated(new, "containerStatuses", "containers", p);
    allocated(new, "initContainerStatuses", "initContainers", p);
    for (index, one) in items(&status["ephemeralContainerStatuses"]).enumerate() {
        if items(&one["allocatedResourcesStatus"]).next().is_some() {
            let field = format!("status.ephemeralContainerStatuses[{index}].allocatedResourcesStatus");
            p.forbidden(field, "must not be specified in container status");
        }
    }
}

/// What a status has of its object's generation.
fn generation(holder: &Value, at: &str, p: &mut Problems) {
    let generation = &holder["observedGeneration"];
    if generation.as_i64().is_some_and(|g| g < 0) {
        p.invalid(format!("{at}.observedGeneration"), generation, "must be a non-negative integer");
    }
}

/// A container that ended and is not started again does not run again; `of` are those of the spec that may be started
/// again, which those are not that the spec does not have.
fn ended(new: &Value, old: &Value, list: &str, of: Option<&str>, p: &mut Problems) {
    for (index, before) in items(&old["status"][list]).enumerate() {
        let end = &before["state"]["terminated"];
        let code = end["exitCode"].as_i64().unwrap_or(0);
        let own = of.and_then(|of| items(&old["spec"][of]).find(|c| text(c, "name") == text(before, "name")));
        if !end.is_object() || own.is_some_and(|own| probes::may_restart(own, &old["spec"], code)) {
            continue;
        }
        let same = items(&new["status"][list]).filter(|now| text(now, "name") == text(before, "name"));
        let running = same.filter(|now| !now["state"]["terminated"].is_object());
        // Of containers that can be told of twice the first counts.
        for _ in running.take(if of.is_some() { 1 } else { usize::MAX }) {
            let why = "may not be transitioned to non-terminated state";
            p.forbidden(format!("status.{list}[{index}].state"), why);
        }
    }
}

fn claim_statuses(new: &Value, p: &mut Problems) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, status) in items(&new["status"]["resourceClaimStatuses"]).enumerate() {
        let at = format!("status.resourceClaimStatuses[{index}]");
        let (name, field) = (text(status, "name"), format!("{at}.name"));
        if !items(&new["spec"]["resourceClaims"]).any(|claim| text(claim, "name") == name) {
            let why = "must match the name of an entry in `spec.resourceClaims`";
            p.invalid(&field, &status["name"], why);
        }
        if seen.contains(&name) {
            p.duplicate(&field, &status["name"]);
        }
        seen.push(name);
        if has(status, "resourceClaimName") {
            p.subdomain(format!("{at}.resourceClaimName"), &status["resourceClaimName"]);
        }
    }
}

/// The claim made for what containers ask for under the names of extended resources.
fn extended_claim(status: &Value, spec: &Value, p: &mut Problems) {
    let at = "status.extendedResourceClaimStatus";
    if items(&status["requestMappings"]).next().is_none() {
        p.required(format!("{at}.requestMappings"), "at least one request mapping is required");
    }
    let mut seen: Vec<[&str; 3]> = Vec::new();
    for (index, mapping) in items(&status["requestMappings"]).enumerate() {
        let one = format!("{at}.requestMappings[{index}]");
        let fields = ["containerName", "resourceName", "requestName"];
        let key @ [container, resource, request] = fields.map(|field| text(mapping, field));
        let named = |c: &&Value| text(c, "name") == container;
        match items(&spec["containers"]).chain(items(&spec["initContainers"])).find(named) {
            None => {
                let why = "must match the name of an entry in spec.initContainers.name or spec.containers.name";
                p.invalid(format!("{one}.containerName"), &json!(container), why);
            }
            Some(own) if !has(&own["resources"]["requests"], resource) => {
                let why = "must match the extended resource name of an entry in \
                           spec.initContainers.resources.requests or spec.containers.resources.requests";
                p.invalid(format!("{one}.resourceName"), &json!(resource), why);
            }
            Some(_) => {}
        }
        p.label(format!("{at}.requestName"), &json!(request));
        if seen.contains(&key) {
            for (field, value) in fields.iter().zip(key) {
                p.duplicate(format!("{one}.{field}"), &json!(value));
            }
        }
        seen.push(key);
    }
    if p.present(status, "resourceClaimName", at) {
        p.subdomain(format!("{at}.resourceClaimName"), &status["resourceClaimName"]);
    }
}

const ONE_A_FAMILY: &str = "may specify no more than one IP for each IP family";

/// Addresses of a pod or of its host: at most one of each family.
fn addresses(field: &str, list: &Value, p: &mut Problems) {
    let list: Vec<&str> = items(list).map(|a| text(a, "ip")).collect();
    for (index, ip) in list.iter().enumerate() {
        networking::ip(&json!(ip), &format!("{field}[{index}]"), p);
    }
    if list.len() < 2 {
        return;
    }
    let both = networking::is_dual_stack(&list);
    if let Err(why) = &both {
        p.internal(field, &format!("failed to check for dual stack with error:{why}"));
    }
    if both != Ok(true) || list.len() > 2 {
        let each: Vec<String> = list.iter().map(|ip| json!({"IP": ip}).to_string()).collect();
        p.invalid_shown(field, &format!("[{}]", each.join(",")), ONE_A_FAMILY);
    }
}

fn host_addresses(status: &Value, p: &mut Problems) {
    let Some(first) = items(&status["hostIPs"]).map(|a| text(a, "ip")).next() else { return };
    if text(status, "hostIP") != first {
        p.invalid("status.hostIPs[0].ip", &json!(first), "must be equal to `hostIP`");
    }
    addresses("status.hostIPs", &status["hostIPs"], p);
}

/// As whom containers run.
fn users(new: &Value, list: &str, p: &mut Problems) {
    for (index, status) in items(&new["status"][list]).enumerate() {
        let (user, at) = (&status["user"]["linux"], format!("status.{list}[{index}].user.linux"));
        if !user.is_object() {
            continue;
        }
        if new["spec"]["os"]["name"] == "windows" {
            p.forbidden(at, "cannot be set for a windows pod");
            continue;
        }
        for field in ["uid", "gid"] {
            container::id(&user[field], &format!("{at}.{field}"), p);
        }
        for (i, group) in items(&user["supplementalGroups"]).enumerate() {
            container::id(group, &format!("{at}.supplementalGroups[{i}]"), p);
        }
    }
}

/// The health of devices that containers have.
fn allocated(new: &Value, list: &str, containers: &str, p: &mut Problems) {
    for (index, status) in items(&new["status"][list]).enumerate() {
        let own = items(&new["spec"][containers]).find(|c| c["name"] == status["name"]);
        for (j, resource) in items(&status["allocatedResourcesStatus"]).enumerate() {
            let at = format!("status.{list}[{index}].allocatedResourcesStatus[{j}]");
            if let Some(container) = own {
                known_resource(container, resource, &at, p);
            }
            let mut seen: Vec<&str> = Vec::new();
            for (k, one) in items(&resource["resources"]).enumerate() {
                let at = format!("{at}.resources[{k}]");
                p.one_of(format!("{at}.health"), &one["health"], &["Healthy", "Unhealthy", "Unknown"]);
                match one["message"].as_str().map_or(1, str::len) {
                    0 => p.required(format!("{at}.message"), "must be non-empty if specified"),
                    bytes if bytes > MAX_HEALTH_MESSAGE => p.too_long(format!("{at}.message"), MAX_HEALTH_MESSAGE),
                    _ => {}
                }
                if seen.contains(&text(one, "resourceID")) {
                    p.duplicate(format!("{at}.resourceID"), &or_empty(&one["resourceID"]));
                } else {
                    seen.push(text(one, "resourceID"));
                }
            }
        }
    }
}

fn known_resource(container: &Value, resource: &Value, at: &str, p: &mut Problems) {
    let name = text(resource, "name");
    let asked = &container["resources"];
    let (known, why) = match name.strip_prefix("claim:") {
        Some(claim) => {
            let key = |c: &Value| match text(c, "request") {
                "" => text(c, "name").to_owned(),
                request => format!("{}/{request}", text(c, "name")),
            };
            let why = "must match one of the container's resource claims in a format 'claim:<claimName>/<request>' or \
                       'claim:<claimName>' if request is empty";
            (items(&asked["claims"]).any(|c| key(c) == claim), why)
        }
        None => (has(&asked["requests"], name), "must match one of the container's resource requests"),
    };
    if !known {
        p.invalid(format!("{at}.name"), &resource["name"], why);
    }
}

/// Ephemeral containers may be added.
pub fn ephemeral(new: &Value, old: &Value, p: &mut Problems) {
    annotations(new, old, p);
    if has(&old["metadata"]["annotations"], MIRROR) {
        p.0.clear();
        return p.forbidden(WHOLE, "static pods do not support ephemeral containers");
    }
    let path = "spec.ephemeralContainers";
    let list = |object: &Value| items(&object["spec"]["ephemeralContainers"]).cloned().collect::<Vec<_>>();
    let (new, old) = (list(new), list(old));
    for before in &old {
        let name = text(before, "name");
        match new.iter().find(|c| text(c, "name") == name) {
            None => p.forbidden(path, &format!("existing ephemeral containers {name:?} may not be removed\n")),
            Some(now) if now != before => {
                let difference = shown::difference("EphemeralContainer", before, now);
                let why = format!("existing ephemeral containers {name:?} may not be changed\n{difference}");
                p.forbidden(path, &why);
            }
            Some(_) => {}
        }
    }
}

/// Amounts of running containers may change, and those of the pod as a whole.
pub fn resize(new: &Value, old: &Value, p: &mut Problems) {
    let refusal = if has(&old["metadata"]["annotations"], MIRROR) {
        Some("static pods cannot be resized")
    } else if old["spec"]["os"]["name"] == "windows" {
        Some("windows pods cannot be resized")
    } else {
        None
    };
    if let Some(why) = refusal {
        p.0.clear();
        return p.forbidden(WHOLE, why);
    }
    let class = |pod: &Value| match text(&pod["status"], "qosClass") {
        "" => qos::class(pod).to_owned(),
        class => class.to_owned(),
    };
    if class(old) != qos::class(new) {
        let why = "Pod QOS Class may not change as a result of resizing";
        p.invalid("spec", &json!(class(old)), why);
    }
    let running = items(&old["status"]["containerStatuses"]).find(|s| s["state"]["running"].is_object());
    if running.is_some_and(|s| !s["resources"].is_object()) {
        p.forbidden("spec", "Pod running on node without support for resize");
    }
    let mut munged = new["spec"].clone();
    whole_pod(new, old, &mut munged, p);
    if !same_containers(new, old, p) {
        return;
    }
    for field in ["initContainers", "containers"] {
        for (index, (now, before)) in items(&new["spec"][field]).zip(items(&old["spec"][field])).enumerate() {
            removed(
                &now["resources"],
                &before["resources"],
                "resource",
                &format!("spec.{field}[{index}].resources"),
                p,
            );
        }
    }
    for field in ["containers", "initContainers"] {
        let list = munged.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
        for (index, (now, before)) in list.zip(items(&old["spec"][field])).enumerate() {
            let changed = now != before;
            now["resources"] = with_old_amounts(&now["resources"], &before["resources"]);
            // Upstream forgets the claims here, so a container that has some cannot be resized.
            set(&mut now["resources"], "claims", None);
            let at = format!("spec.{field}[{index}]");
            let other = *now != with_amounts(before);
            if other && field == "containers" {
                p.forbidden("spec", "only cpu and memory resources are mutable");
            } else if other {
                let why = "only cpu and memory resources for init or sidecar containers are mutable";
                p.forbidden(&at, why);
            }
            let restarts = items(&now["resizePolicy"]).any(|policy| policy["restartPolicy"] == "RestartContainer");
            if field == "initContainers" && changed && now["restartPolicy"] != "Always" && restarts {
                let why = "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
                p.forbidden(at, why);
            }
            *now = before.clone();
        }
    }
    let differs = || munged != old["spec"] && !shown::difference("PodSpec", &old["spec"], &munged).is_empty();
    if p.0.is_empty() && differs() {
        p.forbidden("spec", "only cpu and memory resources are mutable");
    }
}

fn whole_pod(new: &Value, old: &Value, munged: &mut Value, p: &mut Problems) {
    let (now, before) = (&new["spec"]["resources"], &old["spec"]["resources"]);
    let said = |r: &Value| ["requests", "limits"].iter().any(|list| entries(&r[*list]).next().is_some());
    if !said(now) && !said(before) {
        return;
    }
    if before.is_object() && now.is_null() {
        return p.forbidden("spec.resources", "pod-level resources cannot be removed");
    }
    if before.is_object() {
        removed(now, before, "pod-level resource", "spec.resources", p);
    }
    if with_old_amounts(now, before) != with_old_amounts(before, before) {
        p.forbidden("spec", "only cpu and memory resources are mutable at pod-level");
    }
    set(munged, "resources", old["spec"].get("resources"));
}

/// Whether the containers are the same ones in the same order.
fn same_containers(new: &Value, old: &Value, p: &mut Problems) -> bool {
    let found = p.0.len();
    for field in ["containers", "initContainers"] {
        let (now, before) = (&new["spec"][field], &old["spec"][field]);
        if items(now).count() != items(before).count() {
            p.forbidden(format!("spec.{field}"), &format!("{field} may not be added or removed on resize"));
            continue;
        }
        for (index, _) in items(now).zip(items(before)).enumerate().filter(|(_, (n, b))| n["name"] != b["name"]) {
            let why = format!("{field} may not be renamed or reordered on resize");
            p.forbidden(format!("spec.{field}[{index}].name"), &why);
        }
    }
    p.0.len() == found
}

fn removed(new: &Value, old: &Value, what: &str, path: &str, p: &mut Problems) {
    for list in ["limits", "requests"] {
        if entries(&old[list]).any(|(name, _)| new[list].get(name).is_none()) {
            p.forbidden(format!("{path}.{list}"), &format!("{what} {list} cannot be removed"));
        }
    }
}

/// Requests and limits in which processor and memory are as they were.
fn with_old_amounts(new: &Value, old: &Value) -> Value {
    let mut out = json!({});
    for list in ["limits", "requests"] {
        let mut map = new[list].as_object().cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match old[list].get(name) {
                Some(amount) => map.insert(name.into(), amount.clone()),
                None => map.remove(name),
            };
        }
        if !map.is_empty() {
            out[list] = map.into();
        }
    }
    if let Some(claims) = new.get("claims") {
        out["claims"] = claims.clone();
    }
    out
}

/// A container whose amounts are written as [`with_old_amounts`] writes them.
fn with_amounts(container: &Value) -> Value {
    let mut container = container.clone();
    let amounts = with_old_amounts(&container["resources"], &container["resources"]);
    container["resources"] = amounts;
    container
}
