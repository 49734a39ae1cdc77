//! The admission chain: steps between decoding and the store that change or refuse requests, in upstream's order.

use keelson_machinery::resource::Scope;
use keelson_machinery::resources;
use keelson_machinery::status::Status;
use serde_json::json;

use crate::access::{Admission, AdmissionPlugin, Operation};
use crate::objects::Objects;

/// Namespaces that may not be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The chain in the order in which it runs.
pub fn chain(objects: &Objects) -> Vec<Box<dyn AdmissionPlugin>> {
    vec![
        Box::new(NamespaceLifecycle(objects.clone())),
        Box::new(TaintNodesByCondition),
        Box::new(Priority(objects.clone())),
        Box::new(DefaultTolerationSeconds),
    ]
}

/// Objects are created only in namespaces that exist and are not ending.
struct NamespaceLifecycle(Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for NamespaceLifecycle {
    async fn validate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        let def = request.def;
        if def.plural == "namespaces" && request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
            return Err(Status::forbidden("", "namespaces", request.name, "this namespace may not be deleted"));
        }
        if def.scope == Scope::Cluster || request.operation != Operation::Create {
            return Ok(());
        }
        let Some(row) = resources::find("", "v1", "namespaces") else { return Ok(()) };
        match self.0.get(row, "", request.namespace)? {
            None => Err(Status::not_found("", "namespaces", request.namespace)),
            Some((namespace, _)) if namespace["status"]["phase"] == "Terminating" => {
                let why = format!(
                    "unable to create new content in namespace {} because it is being terminated",
                    request.namespace
                );
                Err(Status::forbidden(def.group, def.plural, request.name, &why))
            }
            Some(_) => Ok(()),
        }
    }
}

/// A new node takes no pods before it was seen ready.
struct TaintNodesByCondition;

#[async_trait::async_trait]
impl AdmissionPlugin for TaintNodesByCondition {
    async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if request.def.plural != "nodes" || request.operation != Operation::Create || !request.subresource.is_empty() {
            return Ok(());
        }
        if let Some(node) = &mut request.object {
            let mut taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
            if !taints.iter().any(|t| t["key"] == "node.kubernetes.io/not-ready") {
                taints.push(json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}));
            }
            node["spec"]["taints"] = taints.into();
        }
        Ok(())
    }
}

/// Turns a pod's priority class into its priority.
struct Priority(Objects);

#[async_trait::async_trait]
impl AdmissionPlugin for Priority {
    async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if request.def.plural != "pods" || request.operation != Operation::Create || !request.subresource.is_empty() {
            return Ok(());
        }
        let Some(row) = resources::find("scheduling.k8s.io", "v1", "priorityclasses") else { return Ok(()) };
        let Some(pod) = &mut request.object else { return Ok(()) };
        let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default().to_owned();
        let class = if name.is_empty() {
            self.0.list(row, "")?.into_iter().find(|c| c["globalDefault"] == true)
        } else {
            let found = self.0.get(row, "", &name)?.map(|(class, _)| class);
            let why = format!("no PriorityClass with name {name} was found");
            Some(found.ok_or_else(|| Status::forbidden("", "pods", request.name, &why))?)
        };
        let (value, policy) = class.map_or((0, "PreemptLowerPriority".to_owned()), |c| {
            if name.is_empty() {
                pod["spec"]["priorityClassName"] = c["metadata"]["name"].clone();
            }
            let policy = c["preemptionPolicy"].as_str().unwrap_or("PreemptLowerPriority");
            (c["value"].as_i64().unwrap_or(0), policy.to_owned())
        });
        if pod["spec"]["priority"].as_i64().is_some_and(|p| p != value) {
            let why = "the integer value of priority must not be provided in pod spec; priority admission controller computed \
                       it from the given PriorityClass name";
            return Err(Status::forbidden("", "pods", request.name, why));
        }
        pod["spec"]["priority"] = value.into();
        pod["spec"]["preemptionPolicy"] = policy.into();
        Ok(())
    }
}

/// Pods stay this long on a node that is not ready or cannot be reached.
const TOLERATION_SECONDS: i64 = 300;

/// Gives pods tolerations for the first minutes of a node's failure.
struct DefaultTolerationSeconds;

#[async_trait::async_trait]
impl AdmissionPlugin for DefaultTolerationSeconds {
    async fn mutate(&self, request: &mut Admission<'_>) -> Result<(), Status> {
        if request.def.plural != "pods" || request.operation != Operation::Create || !request.subresource.is_empty() {
            return Ok(());
        }
        let Some(pod) = &mut request.object else { return Ok(()) };
        let mut tolerations = pod["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let covered = tolerations.iter().any(|t| {
                let of_key = t["key"] == key || t["key"].as_str().unwrap_or_default().is_empty();
                of_key && matches!(t["effect"].as_str().unwrap_or_default(), "" | "NoExecute")
            });
            if !covered {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": TOLERATION_SECONDS
                }));
            }
        }
        pod["spec"]["tolerations"] = tolerations.into();
        Ok(())
    }
}
