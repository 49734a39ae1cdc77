//! LimitRanger: defaults and bounds for the resources of containers, pods and claims of a namespace.

use std::collections::BTreeMap;

use keelson_machinery::quantity::Quantity;
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use serde_json::{Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

/// Where a pod tells what was filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub(super) struct LimitRanger(pub(super) Objects);

/// Amounts by resource.
pub(crate) type Amounts = BTreeMap<String, Quantity>;

/// The amounts of a list such as `resources.requests`.
pub(crate) fn amounts(list: &Value) -> Amounts {
    list.as_object().into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), amount(value)?))).collect()
}

fn amount(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

impl LimitRanger {
    fn limits(&self, namespace: &str) -> Vec<Value> {
        let ranges = find("", "v1", "limitranges").map(|def| self.0.all(def, namespace)).unwrap_or_default();
        ranges.iter().flat_map(|range| items(&range["spec"]["limits"]).cloned().collect::<Vec<_>>()).collect()
    }
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

#[async_trait::async_trait]
impl AdmissionPlugin for LimitRanger {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        if !is_pod(request) || request.operation != Operation::Create {
            return Ok(());
        }
        let limits = self.limits(request.namespace);
        let Some(pod) = request.object.as_deref_mut() else { return Ok(()) };
        let containers: Vec<&Value> = limits.iter().filter(|limit| limit["type"] == "Container").collect();
        if containers.is_empty() {
            return Ok(());
        }
        let mut told = Vec::new();
        for (key, what) in [("containers", "container"), ("initContainers", "init container")] {
            for container in pod["spec"].get_mut(key).and_then(Value::as_array_mut).into_iter().flatten() {
                for limit in &containers {
                    fill(container, limit, what, &mut told);
                }
            }
        }
        if !told.is_empty() {
            if !pod["metadata"]["annotations"].is_object() {
                pod["metadata"]["annotations"] = json!({});
            }
            pod["metadata"]["annotations"][ANNOTATION] = format!("LimitRanger plugin set: {}", told.join("; ")).into();
        }
        Ok(())
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let (pod, claim) = (is_pod(request), is_claim(request));
        let Some(object) = request.object.as_deref().filter(|_| pod || claim) else { return Ok(()) };
        let mut problems = Vec::new();
        for limit in self.limits(request.namespace) {
            match limit["type"].as_str().unwrap_or_default() {
                "Container" if pod => {
                    for key in ["containers", "initContainers"] {
                        for container in items(&object["spec"][key]) {
                            let resources = &container["resources"];
                            bounds(
                                &limit,
                                &amounts(&resources["requests"]),
                                &amounts(&resources["limits"]),
                                &mut problems,
                            );
                        }
                    }
                }
                "Pod" if pod => {
                    let (requests, limits) = (pod_amounts(object, "requests"), pod_amounts(object, "limits"));
                    bounds(&limit, &requests, &limits, &mut problems);
                }
                "PersistentVolumeClaim" if claim => {
                    let requests = amounts(&object["spec"]["resources"]["requests"]);
                    claim_bounds(&limit, &requests, &mut problems);
                }
                _ => {}
            }
        }
        let mut unique: Vec<String> = Vec::new();
        for problem in problems {
            if !unique.contains(&problem) {
                unique.push(problem);
            }
        }
        let why = match &unique[..] {
            [] => return Ok(()),
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        Err(Status::forbidden(request.def.group, request.def.plural, request.name, &why))
    }
}

/// Fills a container's missing requests and limits in from a limit's defaults.
fn fill(container: &mut Value, limit: &Value, what: &str, told: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    for (key, defaults, word) in [("requests", "defaultRequest", "request"), ("limits", "default", "limit")] {
        let mut set = Vec::new();
        for (resource, value) in limit[defaults].as_object().into_iter().flatten() {
            if container["resources"][key].get(resource).is_none() {
                if !container["resources"].is_object() {
                    container["resources"] = json!({});
                }
                container["resources"][key][resource] = value.clone();
                set.push(resource.clone());
            }
        }
        if !set.is_empty() {
            told.push(format!("{} {word} for {what} {name}", set.join(", ")));
        }
    }
}

/// What a pod asks for as a whole: its containers together, or more if an init container needs more.
pub(crate) fn pod_amounts(pod: &Value, key: &str) -> Amounts {
    let mut sum = Amounts::new();
    let mut most = Amounts::new();
    let add = |into: &mut Amounts, list: &Amounts| {
        for (name, amount) in list {
            let known = into.entry(name.clone()).or_default();
            *known = *known + *amount;
        }
    };
    let raise = |into: &mut Amounts, list: &Amounts| {
        for (name, amount) in list {
            let known = into.entry(name.clone()).or_insert(*amount);
            *known = (*known).max(*amount);
        }
    };
    for container in items(&pod["spec"]["containers"]) {
        add(&mut sum, &amounts(&container["resources"][key]));
    }
    let mut sidecars = Amounts::new();
    for container in items(&pod["spec"]["initContainers"]) {
        let own = amounts(&container["resources"][key]);
        if container["restartPolicy"] == "Always" {
            add(&mut sum, &own);
            add(&mut sidecars, &own);
            raise(&mut most, &sidecars);
        } else {
            let mut together = own;
            add(&mut together, &sidecars);
            raise(&mut most, &together);
        }
    }
    raise(&mut sum, &most);
    // What the pod says for itself goes before what its containers say.
    for (name, amount) in amounts(&pod["spec"]["resources"][key]) {
        sum.insert(name, amount);
    }
    let overhead = amounts(&pod["spec"]["overhead"]);
    let counted: Amounts =
        overhead.into_iter().filter(|(name, _)| key == "requests" || sum.contains_key(name)).collect();
    add(&mut sum, &counted);
    sum
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
    fn a_pod_needs_what_its_neediest_moment_needs() {
        let with = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu}}});
        let mut sidecar = with("300m");
        sidecar["restartPolicy"] = "Always".into();
        let pod = json!({"spec": {"containers": [with("1"), with("500m")], "initContainers": [sidecar, with("2")],
            "overhead": {"cpu": "100m"}}});
        assert_eq!(pod_amounts(&pod, "requests")["cpu"].to_string(), "2400m");
    }
}
