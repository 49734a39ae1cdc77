//! LimitRanger: defaults and bounds for the resources of containers, pods and claims of a namespace.

use keelson_machinery::pod_resources::{Amounts, amounts, of_spec};
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use serde_json::{Map, Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

/// Where a pod tells what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger(pub(super) Objects);

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// What the limits of a namespace say, each object's by itself.
fn limits_of(range: &Value) -> impl Iterator<Item = &Value> {
    items(&range["spec"]["limits"])
}

fn is_pod(request: &Admission<'_>) -> bool {
    (request.def.group, request.def.plural) == ("", "pods")
        && matches!((request.operation, request.subresource), (Operation::Create, "") | (Operation::Update, "resize"))
}

fn is_claim(request: &Admission<'_>) -> bool {
    (request.def.group, request.def.plural) == ("", "persistentvolumeclaims")
        && request.subresource.is_empty()
        && matches!(request.operation, Operation::Create | Operation::Update)
}

impl LimitRanger {
    /// The limits that hold for a request: none for what is being deleted.
    fn ranges(&self, request: &Admission<'_>) -> Vec<Value> {
        let deleted = request.old.is_some_and(|old| old["metadata"]["deletionTimestamp"].is_string());
        let def = find("", "v1", "limitranges").filter(|_| !deleted);
        def.map(|def| self.0.all(def, request.namespace)).unwrap_or_default()
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for LimitRanger {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !is_pod(request) {
            return Ok(());
        }
        let ranges = self.ranges(request);
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        ranges.iter().for_each(|range| fill(pod, range));
        Ok(())
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let (pod, claim) = (is_pod(request), is_claim(request));
        let Some(object) = request.object.as_deref().filter(|_| pod || claim) else { return Ok(()) };
        for range in self.ranges(request) {
            let problems = if pod { pod_problems(&range, object) } else { claim_problems(&range, object) };
            let mut unique: Vec<String> = Vec::new();
            for problem in problems {
                if !unique.contains(&problem) {
                    unique.push(problem);
                }
            }
            let why = match &unique[..] {
                [] => continue,
                [one] => one.clone(),
                many => format!("[{}]", many.join(", ")),
            };
            return Err(Status::forbidden(request.def.group, request.def.plural, request.name, &why));
        }
        Ok(())
    }
}

fn pod_problems(range: &Value, pod: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    for limit in limits_of(range) {
        match limit["type"].as_str().unwrap_or_default() {
            "Container" => {
                for container in ["containers", "initContainers"].iter().flat_map(|key| items(&pod["spec"][*key])) {
                    let resources = &container["resources"];
                    bounds(limit, &amounts(&resources["requests"]), &amounts(&resources["limits"]), &mut problems);
                }
            }
            "Pod" => {
                let all = |list| of_spec(&pod["spec"], list, |name| matches!(name, "cpu" | "memory"));
                bounds(limit, &all("requests"), &all("limits"), &mut problems);
            }
            _ => {}
        }
    }
    problems
}

fn claim_problems(range: &Value, claim: &Value) -> Vec<String> {
    let mut problems = Vec::new();
    let requests = amounts(&claim["spec"]["resources"]["requests"]);
    for limit in limits_of(range).filter(|limit| limit["type"] == "PersistentVolumeClaim") {
        claim_bounds(limit, &requests, &mut problems);
    }
    problems
}

/// Fills the missing requests and limits of a pod's containers in from a range's defaults, and notes what was filled in:
/// one range's note takes the place of another's.
fn fill(pod: &mut Value, range: &Value) {
    let mut defaults = [("requests", "request", Map::new()), ("limits", "limit", Map::new())];
    for limit in limits_of(range).filter(|limit| limit["type"] == "Container") {
        for ((_, _, all), key) in defaults.iter_mut().zip(["defaultRequest", "default"]) {
            let own = limit[key].as_object().into_iter().flatten();
            all.extend(own.map(|(name, value)| (name.clone(), value.clone())));
        }
    }
    let mut told = Vec::new();
    for (key, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"].get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
            for (list, word, defaults) in &defaults {
                let missing: Vec<_> =
                    defaults.iter().filter(|(name, _)| container["resources"][*list].get(name).is_none()).collect();
                if missing.is_empty() {
                    continue;
                }
                let set: Vec<&str> = missing.iter().map(|(name, _)| name.as_str()).collect();
                let name = container["name"].as_str().unwrap_or_default();
                told.push(format!("{} {word} for {what} {name}", set.join(", ")));
                if !container["resources"].is_object() {
                    container["resources"] = json!({});
                }
                for (name, value) in missing {
                    container["resources"][*list][name] = value.clone();
                }
            }
        }
    }
    if !told.is_empty() {
        if !pod["metadata"]["annotations"].is_object() {
            pod["metadata"]["annotations"] = json!({});
        }
        pod["metadata"]["annotations"][ANNOTATION] = format!("LimitRanger plugin set: {}", told.join("; ")).into();
    }
}

fn bounds(limit: &Value, requests: &Amounts, limits: &Amounts, out: &mut Vec<String>) {
    let kind = limit["type"].as_str().unwrap_or_default();
    for (name, least) in amounts(&limit["min"]) {
        let what = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => out.push(format!("{what}.  No request is specified")),
            (Some(request), _) if *request < least => out.push(format!("{what}, but request is {request}")),
            (_, Some(limit)) if *limit < least => out.push(format!("{what}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["max"]) {
        let what = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => out.push(format!("{what}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => out.push(format!("{what}, but limit is {limit}")),
            (Some(request), _) if *request > most => out.push(format!("{what}, but request is {request}")),
            _ => {}
        }
    }
    for (name, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        let what = format!("{name} max limit to request ratio per {kind} is {ratio}");
        match (requests.get(&name).filter(|r| !r.is_zero()), limits.get(&name).filter(|l| !l.is_zero())) {
            (None, _) => out.push(format!("{what}, but no request is specified or request is 0")),
            (_, None) => out.push(format!("{what}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let found = limit.millis() as f64 / request.millis() as f64;
                if found > ratio.millis() as f64 / 1000.0 {
                    out.push(format!("{what}, but provided ratio is {found:.6}"));
                }
            }
        }
    }
}

fn claim_bounds(limit: &Value, requests: &Amounts, out: &mut Vec<String>) {
    for (key, word) in [("min", "minimum"), ("max", "maximum")] {
        for (name, bound) in amounts(&limit[key]) {
            let what = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
            match requests.get(&name) {
                None => out.push(format!("{what}.  No request is specified")),
                Some(request) if (key == "min" && *request < bound) || (key == "max" && *request > bound) => {
                    out.push(format!("{what}, but request is {request}"));
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_told() {
        let limit = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "4"}});
        for (requests, limits, expected) in [
            (json!({"cpu": "200m"}), json!({"cpu": "500m"}), vec![]),
            (
                json!({"cpu": "50m"}),
                json!({"cpu": "100m"}),
                vec!["minimum cpu usage per Container is 100m, but request is 50m"],
            ),
            (json!({"cpu": "1"}), json!({"cpu": "2"}), vec!["maximum cpu usage per Container is 1, but limit is 2"]),
            (
                json!({"cpu": "100m"}),
                json!({"cpu": "900m"}),
                vec!["cpu max limit to request ratio per Container is 4, but provided ratio is 9.000000"],
            ),
        ] {
            let mut out = Vec::new();
            bounds(&limit, &amounts(&requests), &amounts(&limits), &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn each_range_fills_in_what_the_others_left() {
        let range = |limits: Value| json!({"spec": {"limits": limits}});
        let container = |default: Value, requests: Value| json!({"type": "Container", "default": default, "defaultRequest": requests});
        let first = range(json!([
            container(json!({"memory": "1Gi"}), json!({"cpu": "1"})),
            {"type": "Pod", "default": {"cpu": "7"}},
            container(json!({}), json!({"memory": "1Mi", "cpu": "2"}))
        ]));
        let second = range(json!([container(json!({"cpu": "9"}), json!({"cpu": "9"}))]));
        let mut pod = json!({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "b", "resources": {"requests": {"cpu": "0"}}}]}});
        fill(&mut pod, &first);
        let told = "LimitRanger plugin set: cpu, memory request for container a; memory limit for container a; \
                    memory request for init container b; memory limit for init container b";
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], told);
        fill(&mut pod, &second);
        let told = "LimitRanger plugin set: cpu limit for container a; cpu limit for init container b";
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], told);
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "2", "memory": "1Mi"}, "limits": {"cpu": "9", "memory": "1Gi"}})
        );
        fill(&mut pod, &second);
        assert_eq!(pod["metadata"]["annotations"][ANNOTATION], told);
    }

    #[test]
    fn a_pod_is_bound_without_its_overhead() {
        let range = json!({"spec": {"limits": [{"type": "Pod", "max": {"cpu": "2"}}]}});
        let mut pod =
            json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "2"}}}], "overhead": {"cpu": "1"}}});
        assert!(pod_problems(&range, &pod).is_empty());
        pod["spec"]["resources"] = json!({"limits": {"cpu": "3", "hugepages-2Mi": "2Mi"}});
        assert_eq!(pod_problems(&range, &pod), ["maximum cpu usage per Pod is 2, but limit is 3"]);
    }
}
