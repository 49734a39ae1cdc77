//! ResourceQuota: what a namespace may hold, counted in the transaction that writes the object.
//!
//! Invariant: an object and the usage that it adds are written together, guarded by the revision of each quota that was
//! looked at; so a quota is never exceeded, however many writers there are.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use keelson_machinery::quantity::{Format, Quantity};
use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::find;
use keelson_machinery::status::Status;
use keelson_machinery::stored;
use keelson_store::{Compare, Op, PutRequest};
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::admission::{Amounts, amounts, pod_amounts};
use crate::objects::{Extra, Objects, RACE, parse};

/// Writers of namespaces with quotas take turns in this many queues, so that they do not get in each other's way.
const QUEUES: usize = 64;

/// The queues; none if quotas do not count.
pub struct Turns(Vec<std::sync::Arc<Mutex<()>>>);

impl Turns {
    /// The queues, if quotas count.
    pub fn new(counts: bool) -> Self {
        Self((0..if counts { QUEUES } else { 0 }).map(|_| std::sync::Arc::default()).collect())
    }

    /// [`charge`], if quotas count.
    pub fn charge(
        &self,
        objects: &Objects,
        def: &ResourceDef,
        subresource: &str,
        new: &Value,
        old: Option<&Value>,
        extra: &mut Extra,
    ) -> Result<(), Status> {
        if self.0.is_empty() { Ok(()) } else { charge(objects, def, subresource, new, old, extra) }
    }

    /// Waits for the turn of a writer of a namespace, if it has quotas.
    pub async fn take(&self, objects: &Objects, def: &ResourceDef, namespace: &str) -> Option<OwnedMutexGuard<()>> {
        if self.0.is_empty() || def.scope == Scope::Cluster || quotas(objects, namespace).is_empty() {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        namespace.hash(&mut hasher);
        let queue = &self.0[hasher.finish() as usize % QUEUES];
        Some(queue.clone().lock_owned().await)
    }
}

/// The quotas of a namespace with their revisions.
fn quotas(objects: &Objects, namespace: &str) -> Vec<(Value, i64)> {
    let Some(def) = find("", "v1", "resourcequotas").filter(|_| !namespace.is_empty()) else { return Vec::new() };
    let view = objects.kv.view();
    let range = Objects::range(def, namespace);
    let stored = view.range(&range);
    stored.filter_map(|kv| Some((parse(kv).ok()?, kv.mod_revision))).collect()
}

/// Adds to a write what the quotas of its namespace need, or refuses it. `old` is the object before an update.
fn charge(
    objects: &Objects,
    def: &ResourceDef,
    subresource: &str,
    new: &Value,
    old: Option<&Value>,
    extra: &mut Extra,
) -> Result<(), Status> {
    let namespace = new["metadata"]["namespace"].as_str().unwrap_or_default();
    let counted = subresource.is_empty() || (def.plural == "pods" && subresource == "resize");
    if def.scope == Scope::Cluster || !counted || def.plural == "resourcequotas" && old.is_some() {
        return Ok(());
    }
    let list = quotas(objects, namespace);
    if list.is_empty() {
        return Ok(());
    }
    let name = new["metadata"]["name"].as_str().unwrap_or_default();
    let refuse = |why: String| Status::forbidden(def.group, def.plural, name, &why);
    let delta = delta(def, new, old);
    let quota_def = find("", "v1", "resourcequotas").ok_or_else(Status::no_such_path)?;
    for (quota, revision) in list.iter().filter(|(quota, _)| in_scope(quota, def, new)) {
        let quota_name = quota["metadata"]["name"].as_str().unwrap_or_default();
        let (hard, used) = (amounts(&quota["status"]["hard"]), amounts(&quota["status"]["used"]));
        if old.is_none() && (def.group, def.plural) == ("", "pods") {
            must_specify(&hard, new)
                .map_err(|list| refuse(format!("failed quota: {quota_name}: must specify {list}")))?;
        }
        let relevant: Amounts =
            delta.iter().filter(|(r, _)| hard.contains_key(*r)).map(|(r, a)| (r.clone(), *a)).collect();
        let unknown: Vec<&str> = relevant.keys().filter(|r| !used.contains_key(*r)).map(String::as_str).collect();
        if !unknown.is_empty() {
            return Err(refuse(format!("status unknown for quota: {quota_name}, resources: {}", unknown.join(","))));
        }
        if relevant.is_empty() {
            continue;
        }
        let sum = |r: &String, a: &Quantity| *a + used.get(r).copied().unwrap_or_default();
        let over: Vec<&String> =
            relevant.iter().filter(|(r, a)| !a.is_negative() && sum(r, a) > hard[*r]).map(|(r, _)| r).collect();
        if !over.is_empty() {
            let shown = |of: &dyn Fn(&String) -> Quantity| {
                over.iter().map(|r| format!("{r}={}", of(r))).collect::<Vec<_>>().join(",")
            };
            return Err(refuse(format!(
                "exceeded quota: {quota_name}, requested: {}, used: {}, limited: {}",
                shown(&|r| relevant[r]),
                shown(&|r| used.get(r).copied().unwrap_or_default()),
                shown(&|r| hard[r]),
            )));
        }
        let mut counted = quota.clone();
        for (resource, amount) in &relevant {
            let sum = sum(resource, amount);
            let sum = if sum.is_negative() { Quantity::default() } else { sum };
            counted["status"]["used"][resource] = sum.to_string().into();
        }
        let key = Objects::key(quota_def, namespace, quota_name);
        let value = stored::encode(quota_def, &counted).map_err(|e| Status::internal(&e.to_string()))?;
        let value = crate::encryption::seal(quota_def, &key, value)?;
        let race = Status {
            reason: RACE.into(),
            ..Status::conflict("", "resourcequotas", quota_name, "it was counted at the same moment")
        };
        extra.guards.push((Compare::mod_revision(key.clone(), *revision), race));
        extra.ops.push(Op::Put(PutRequest::new(key, value)));
    }
    Ok(())
}

/// What a write adds to the usage (or takes from it), without what stays the same.
fn delta(def: &ResourceDef, new: &Value, old: Option<&Value>) -> Amounts {
    let (after, before) = (usage(def, new), old.map(|old| usage(def, old)).unwrap_or_default());
    let grown = after
        .iter()
        .map(|(resource, amount)| (resource.clone(), *amount - before.get(resource).copied().unwrap_or_default()));
    let gone = before.iter().filter(|(resource, _)| !after.contains_key(*resource));
    let gone = gone.map(|(resource, amount)| (resource.clone(), Quantity::default() - *amount));
    grown.chain(gone).filter(|(_, amount)| !amount.is_zero()).collect()
}

fn one() -> Quantity {
    Quantity::from_units(1, Format::DecimalSi)
}

/// What an object uses, by the names that quotas have for it.
fn usage(def: &ResourceDef, object: &Value) -> Amounts {
    let mut out = Amounts::new();
    let qualified = if def.group.is_empty() { def.plural.to_owned() } else { format!("{}.{}", def.plural, def.group) };
    out.insert(format!("count/{qualified}"), one());
    match (def.group, def.plural) {
        ("", "pods") => {
            if matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                return out;
            }
            out.insert("pods".into(), one());
            pod_usage(object, &mut out);
        }
        ("", "services") => {
            out.insert("services".into(), one());
            let kind = object["spec"]["type"].as_str().unwrap_or_default();
            let ports = object["spec"]["ports"].as_array().map_or(0, Vec::len) as i64;
            let allocates = object["spec"]["allocateLoadBalancerNodePorts"] != false;
            if kind == "LoadBalancer" {
                out.insert("services.loadbalancers".into(), one());
            }
            if kind == "NodePort" || (kind == "LoadBalancer" && allocates) {
                out.insert("services.nodeports".into(), Quantity::from_units(ports, Format::DecimalSi));
            }
        }
        ("", "persistentvolumeclaims") => {
            out.insert("persistentvolumeclaims".into(), one());
            let size = amounts(&object["spec"]["resources"]["requests"]).get("storage").copied();
            let class = object["spec"]["storageClassName"].as_str().filter(|c| !c.is_empty());
            if let Some(size) = size {
                out.insert("requests.storage".into(), size);
            }
            if let Some(class) = class {
                out.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
                size.map(|size| out.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), size));
            }
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            out.insert(def.plural.into(), one());
        }
        _ => {}
    }
    out
}

fn pod_usage(pod: &Value, out: &mut Amounts) {
    for (name, amount) in pod_amounts(pod, "requests") {
        out.insert(format!("requests.{name}"), amount);
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-") {
            out.insert(name, amount);
        }
    }
    for (name, amount) in pod_amounts(pod, "limits") {
        if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            out.insert(format!("limits.{name}"), amount);
        }
    }
}

/// What each container of a pod must say because a quota counts it.
fn must_specify(hard: &Amounts, pod: &Value) -> Result<(), String> {
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for resource in hard.keys() {
        let (key, name) = match resource.as_str() {
            "cpu" | "memory" => ("requests", resource.as_str()),
            other => match other.split_once('.') {
                Some((key @ ("requests" | "limits"), name @ ("cpu" | "memory"))) => (key, name),
                _ => continue,
            },
        };
        if pod["spec"]["resources"][key].get(name).is_some() {
            continue;
        }
        let all =
            ["containers", "initContainers"].iter().flat_map(|k| pod["spec"][*k].as_array().into_iter().flatten());
        for container in all.filter(|c| c["resources"][key].get(name).is_none()) {
            missing.entry(resource).or_default().push(container["name"].as_str().unwrap_or_default());
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> =
        missing.iter().map(|(resource, names)| format!("{resource} for: {}", names.join(","))).collect();
    Err(list.join("; "))
}

/// Whether a quota counts an object: its scopes all hold.
fn in_scope(quota: &Value, def: &ResourceDef, object: &Value) -> bool {
    let plain = quota["spec"]["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let expressions = quota["spec"]["scopeSelector"]["matchExpressions"].as_array().into_iter().flatten();
    let is_pod = (def.group, def.plural) == ("", "pods");
    let holds = |scope: &str| match scope {
        "Terminating" => object["spec"]["activeDeadlineSeconds"].as_i64().is_some(),
        "NotTerminating" => object["spec"]["activeDeadlineSeconds"].as_i64().is_none(),
        "BestEffort" => best_effort(object),
        "NotBestEffort" => !best_effort(object),
        "PriorityClass" => object["spec"]["priorityClassName"].as_str().is_some_and(|n| !n.is_empty()),
        "CrossNamespacePodAffinity" => crosses(object),
        _ => true,
    };
    plain.into_iter().all(|scope| is_pod && holds(scope))
        && expressions.into_iter().all(|e| {
            let scope = e["scopeName"].as_str().unwrap_or_default();
            let values: Vec<&str> = e["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let class = match scope {
                "VolumeAttributesClass" => object["spec"]["volumeAttributesClassName"].as_str(),
                _ => object["spec"]["priorityClassName"].as_str(),
            };
            let class = class.unwrap_or_default();
            let fits = is_pod || (scope == "VolumeAttributesClass" && def.plural == "persistentvolumeclaims");
            fits && match (e["operator"].as_str().unwrap_or_default(), scope) {
                ("In", _) => values.contains(&class),
                ("NotIn", _) => !values.contains(&class),
                ("DoesNotExist", _) => !holds(scope),
                (_, scope) => holds(scope),
            }
        })
}

fn best_effort(pod: &Value) -> bool {
    let containers =
        ["containers", "initContainers"].iter().flat_map(|k| pod["spec"][*k].as_array().into_iter().flatten());
    let quiet = |list: &Value| ["cpu", "memory"].iter().all(|name| list.get(name).is_none());
    containers
        .chain(std::iter::once(&pod["spec"]))
        .all(|c| quiet(&c["resources"]["requests"]) && quiet(&c["resources"]["limits"]))
}

fn crosses(pod: &Value) -> bool {
    let affinity = &pod["spec"]["affinity"];
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required =
            affinity[*kind]["requiredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        let preferred =
            affinity[*kind]["preferredDuringSchedulingIgnoredDuringExecution"].as_array().into_iter().flatten();
        required.chain(preferred.map(|p| &p["podAffinityTerm"])).any(|term| {
            term["namespaces"].as_array().is_some_and(|n| !n.is_empty()) || term["namespaceSelector"].is_object()
        })
    })
}
