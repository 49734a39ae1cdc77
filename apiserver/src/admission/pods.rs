//! Pods get their priority and the default tolerations; new nodes start tainted.

use keelson_machinery::pod_resources::{amounts, of_pod};
use keelson_machinery::quantity::Quantity;
use keelson_machinery::resources::find;
use keelson_machinery::status::{Cause, Status};
use serde_json::{Value, json};

use crate::access::{Admission, AdmissionPlugin, Operation, Round};
use crate::objects::Objects;

/// The object of a create of this core resource itself, no subresource.
pub(super) fn created<'a>(request: &'a mut Admission<'_>, plural: &str) -> Option<&'a mut Value> {
    let here = request.operation == Operation::Create
        && request.subresource.is_empty()
        && (request.def.group, request.def.plural) == ("", plural);
    if here { request.object.as_deref_mut() } else { None }
}

/// The same of a create or an update.
fn written<'a>(request: &'a mut Admission<'_>, plural: &str) -> Option<&'a mut Value> {
    let here = matches!(request.operation, Operation::Create | Operation::Update)
        && request.subresource.is_empty()
        && (request.def.group, request.def.plural) == ("", plural);
    if here { request.object.as_deref_mut() } else { None }
}

/// The list under a key, made if it is absent.
pub(super) fn list<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Vec<Value>> {
    let slot = value.as_object_mut()?.entry(key).or_insert(Value::Null);
    if slot.is_null() {
        *slot = json!([]);
    }
    slot.as_array_mut()
}

pub(super) struct TaintNodesByCondition;

#[async_trait::async_trait]
impl AdmissionPlugin for TaintNodesByCondition {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let taint = json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"});
        let Some(node) = created(request, "nodes") else { return Ok(()) };
        if node["spec"].is_null() {
            node["spec"] = json!({});
        }
        if let Some(taints) = list(&mut node["spec"], "taints")
            && !taints.iter().any(|t| t["key"] == taint["key"] && t["effect"] == taint["effect"])
        {
            taints.push(taint);
        }
        Ok(())
    }
}

/// Seconds that a pod stays on a node that is not ready or cannot be reached.
const TOLERATION_SECONDS: i64 = 300;

pub(super) struct DefaultTolerationSeconds;

#[async_trait::async_trait]
impl AdmissionPlugin for DefaultTolerationSeconds {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let Some(tolerations) = written(request, "pods").and_then(|pod| list(&mut pod["spec"], "tolerations")) else {
            return Ok(());
        };
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let tolerates = |t: &Value| {
                let any_key = t["key"].as_str().unwrap_or_default().is_empty();
                let effect = t["effect"].as_str().unwrap_or_default();
                (any_key || t["key"] == key) && matches!(effect, "" | "NoExecute")
            };
            if !tolerations.iter().any(tolerates) {
                tolerations.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": TOLERATION_SECONDS}));
            }
        }
        Ok(())
    }
}

pub(super) struct Priority(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for Priority {
    async fn mutate(&self, request: &mut Admission<'_>, _: &mut Round) -> Result<(), Status> {
        let pod_name = request.name.to_owned();
        if let (Operation::Update, Some(old)) = (request.operation, request.old)
            && let Some(pod) = written(request, "pods")
        {
            // An update that does not say what was computed means what there is.
            for key in ["priority", "preemptionPolicy"] {
                if pod["spec"][key].is_null() && !old["spec"][key].is_null() {
                    pod["spec"][key] = old["spec"][key].clone();
                }
            }
        }
        let Some(pod) = created(request, "pods") else { return Ok(()) };
        let Some(spec) = pod["spec"].as_object_mut() else { return Ok(()) };
        let Some(def) = find("scheduling.k8s.io", "v1", "priorityclasses") else { return Ok(()) };
        let wanted = spec.get("priorityClassName").and_then(Value::as_str).filter(|name| !name.is_empty());
        let class = match wanted {
            Some(name) => Some(self.0.object(def.group, def.version, def.plural, "", name).ok_or_else(|| {
                let why = format!("no PriorityClass with name {name} was found");
                Status::forbidden("", "pods", &pod_name, &why)
            })?),
            // Of several defaults the lowest counts.
            None => self
                .0
                .all(def, "")
                .into_iter()
                .filter(|class| class["globalDefault"] == true)
                .min_by_key(|class| class["value"].as_i64()),
        };
        let priority = class.as_ref().and_then(|class| class["value"].as_i64()).unwrap_or(0);
        let policy = class.as_ref().and_then(|class| class["preemptionPolicy"].as_str());
        let policy = policy.unwrap_or("PreemptLowerPriority").to_owned();
        if spec.get("priority").is_some_and(|given| !given.is_null() && *given != priority) {
            let why = format!(
                "the integer value of priority ({}) must not be provided in pod spec; priority admission controller \
                 computed {priority} from the given PriorityClass name",
                spec["priority"]
            );
            return Err(Status::forbidden("", "pods", &pod_name, &why));
        }
        if let Some(given) = spec.get("preemptionPolicy").and_then(Value::as_str).filter(|given| *given != policy) {
            let why = format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            );
            return Err(Status::forbidden("", "pods", &pod_name, &why));
        }
        if let Some(class) = &class {
            spec.insert("priorityClassName".into(), class["metadata"]["name"].clone());
        }
        spec.insert("priority".into(), priority.into());
        spec.insert("preemptionPolicy".into(), policy.into());
        Ok(())
    }

    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let def = request.def;
        let written = matches!(request.operation, Operation::Create | Operation::Update);
        if (def.group, def.plural) != ("scheduling.k8s.io", "priorityclasses") || !written {
            return Ok(());
        }
        let Some(class) = request.object.as_deref().filter(|class| class["globalDefault"] == true) else {
            return Ok(());
        };
        let name = &class["metadata"]["name"];
        let others = self.0.all(def, "");
        let Some(other) = others.iter().find(|o| o["globalDefault"] == true && o["metadata"]["name"] != *name) else {
            return Ok(());
        };
        let other = other["metadata"]["name"].as_str().unwrap_or_default();
        let why = format!("PriorityClass {other} is already marked as default. Only one default can exist");
        Err(Status::forbidden(def.group, def.plural, name.as_str().unwrap_or_default(), &why))
    }
}

/// A pod on a node is not to be changed in ways that its node's agent does not say that it knows (KEP-5328).
pub(super) struct NodeDeclaredFeatureValidator(pub(super) Objects);

impl NodeDeclaredFeatureValidator {
    /// The features that a change needs, in the order of their names. All others are needed from the start, by the scheduler.
    fn needed(pod: &Value, old: &Value) -> Vec<&'static str> {
        let list = |pod: &'_ Value| pod["spec"]["initContainers"].as_array().cloned().unwrap_or_default();
        let (spec, before) = (&pod["spec"]["resources"], &old["spec"]["resources"]);
        let grows = |(now, before): (&Value, &Value)| {
            before["restartPolicy"] != "Always" && now["resources"] != before["resources"]
        };
        let mut needed = Vec::new();
        if spec != before {
            needed.push("InPlacePodLevelResourcesVerticalScaling");
        }
        if list(pod).iter().zip(&list(old)).any(grows) {
            needed.push("InPlacePodVerticalScalingInitContainers");
        }
        needed
    }
}

#[async_trait::async_trait]
impl AdmissionPlugin for NodeDeclaredFeatureValidator {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let changes = request.operation == Operation::Update && matches!(request.subresource, "" | "resize");
        if !changes || (request.def.group, request.def.plural) != ("", "pods") {
            return Ok(());
        }
        let (Some(pod), Some(old)) = (request.object.as_deref(), request.old) else { return Ok(()) };
        let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if name.is_empty() || pod["spec"] == old["spec"] {
            return Ok(());
        }
        let mut lacks = Self::needed(pod, old);
        if lacks.is_empty() {
            return Ok(());
        }
        let refuse = |why: &str| Err(Status::forbidden("", "pods", request.name, why));
        let Some(node) = self.0.object("", "v1", "nodes", "", name) else {
            return refuse(&format!("node {name:?} not found"));
        };
        let declared = node["status"]["declaredFeatures"].as_array().cloned().unwrap_or_default();
        lacks.retain(|feature| !declared.iter().any(|known| known == feature));
        if lacks.is_empty() {
            return Ok(());
        }
        let lacks = lacks.join(", ");
        refuse(&format!("pod update requires features {lacks} which are not available on node {name:?}"))
    }
}

/// A pod on a node is not to grow over what the node has to give, nor at all where nodes are not Linux.
pub(super) struct PodResizeValidator(pub(super) Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for PodResizeValidator {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let resize = request.operation == Operation::Update && request.subresource == "resize";
        if !resize || (request.def.group, request.def.plural) != ("", "pods") {
            return Ok(());
        }
        let (Some(pod), Some(old)) = (request.object.as_deref(), request.old) else { return Ok(()) };
        let name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
        if name.is_empty() || pod["spec"] == old["spec"] {
            return Ok(());
        }
        let refuse = |why: &str, cause: &str| {
            let mut status = Status::forbidden("", "pods", request.name, why);
            if !cause.is_empty() {
                let causes = &mut status.details.get_or_insert_default().causes;
                causes.push(Cause { reason: cause.into(), ..Cause::default() });
            }
            Err(status)
        };
        let Some(node) = self.0.object("", "v1", "nodes", "", name) else {
            return refuse(&format!("node {name:?} not found"), "");
        };
        let (has, asks) = (amounts(&node["status"]["allocatable"]), of_pod(pod, "requests"));
        let more = |key: &str, number: fn(&Quantity) -> i64| {
            let [asked, there] = [&asks, &has].map(|list| list.get(key).map_or(0, number));
            (asked > there).then(|| format!("{key}, requested: {asked}, allocatable: {there}"))
        };
        let lacks = [more("cpu", Quantity::millis), more("memory", Quantity::units)];
        let lacks: Vec<String> = lacks.into_iter().flatten().collect();
        if !lacks.is_empty() {
            let why = format!("Node didn't have enough allocatable resources: {}", lacks.join("; "));
            return refuse(&why, "NodeCapacity");
        }
        let os = node["metadata"]["labels"]["kubernetes.io/os"].as_str().unwrap_or_default();
        if os != "linux" {
            let why = format!("pod resize is only supported on linux nodes, node {name:?} is {os:?}");
            return refuse(&why, "UnsupportedPlatform");
        }
        Ok(())
    }
}
