//! What checkers need of an object: little, since a run keeps every version of every object.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::text;

/// A version of an object, as checkers need it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether its deletion was asked for.
    pub going: bool,
    /// The uid of its controller.
    pub owner: String,
    /// The kind of its controller.
    pub owner_kind: String,
    /// What depends on its kind.
    pub of: Of,
}

/// What checkers need of a kind's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Of {
    /// A pod.
    Pod {
        /// The node that it is bound to.
        node: String,
        /// Its phase.
        phase: String,
        /// Whether it is ready.
        ready: bool,
        /// CPU that it asks for, thousandths.
        cpu: u64,
        /// The port of its host that its first container has; 0: none.
        port: u64,
    },
    /// A node.
    Node {
        /// CPU that pods may use, thousandths.
        cpu: u64,
        /// How many pods it may have.
        pods: u64,
    },
    /// A quota.
    Quota {
        /// How many pods there may be.
        pods: Option<u64>,
        /// CPU that they may ask for, thousandths.
        cpu: Option<u64>,
    },
    /// A Lease of the API.
    Lease {
        /// Who holds it.
        holder: String,
        /// How often it changed hands.
        transitions: i64,
        /// When it was last renewed, as written.
        renewed: String,
    },
    /// A Deployment.
    Deployment {
        /// How many pods it wants.
        replicas: u64,
        /// How many more there may be during a roll-out.
        surge: u64,
        /// How many fewer may be available during a roll-out.
        unavailable: u64,
    },
    /// A ReplicaSet.
    ReplicaSet {
        /// How many pods it wants.
        replicas: u64,
    },
    /// A Job.
    Job {
        /// How many pods must succeed.
        completions: u64,
        /// How many may run at a time.
        parallelism: u64,
        /// How many have, as its status says.
        succeeded: u64,
        /// Whether it is complete.
        complete: bool,
    },
    /// A CustomResourceDefinition: the plural name of what it defines.
    Definition(String),
    /// Anything else.
    #[default]
    Other,
}

/// Thousandths of a CPU quantity as the harness and agents write them: `2`, `1500m`.
fn thousandths(quantity: &str) -> u64 {
    match quantity.strip_suffix('m') {
        Some(number) => number.parse().unwrap_or(0),
        None => quantity.parse::<f64>().map_or(0, |number| (number * 1000.0) as u64),
    }
}

fn number(object: &Value, pointer: &str) -> u64 {
    match object.pointer(pointer) {
        Some(Value::String(text)) => text.parse().unwrap_or(0),
        Some(value) => value.as_u64().unwrap_or(0),
        None => 0,
    }
}

fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|found| found["type"] == kind && found["status"] == "True")
}

/// What checkers need of an object of a kind, by its plural name.
pub fn reduce(plural: &str, object: &Value) -> Fact {
    let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let owner = owners.into_iter().flatten().find(|owner| owner["controller"] == true);
    let of_owner = |key: &str| owner.and_then(|owner| owner[key].as_str()).unwrap_or_default().to_owned();
    Fact {
        uid: text(object, "/metadata/uid").into(),
        namespace: text(object, "/metadata/namespace").into(),
        name: text(object, "/metadata/name").into(),
        going: object.pointer("/metadata/deletionTimestamp").is_some(),
        owner: of_owner("uid"),
        owner_kind: of_owner("kind"),
        of: of(plural, object),
    }
}

fn of(plural: &str, object: &Value) -> Of {
    match plural {
        "pods" => {
            let containers = object.pointer("/spec/containers").and_then(Value::as_array);
            let cpu = |container: &Value| thousandths(text(container, "/resources/requests/cpu"));
            Of::Pod {
                node: text(object, "/spec/nodeName").into(),
                phase: text(object, "/status/phase").into(),
                ready: condition(object, "Ready"),
                cpu: containers.into_iter().flatten().map(cpu).sum(),
                port: number(object, "/spec/containers/0/ports/0/hostPort"),
            }
        }
        "nodes" => Of::Node {
            cpu: thousandths(text(object, "/status/allocatable/cpu")),
            pods: number(object, "/status/allocatable/pods"),
        },
        "resourcequotas" => Of::Quota {
            pods: object.pointer("/spec/hard/pods").map(|_| number(object, "/spec/hard/pods")),
            cpu: object.pointer("/spec/hard/requests.cpu").and_then(Value::as_str).map(thousandths),
        },
        "leases" => Of::Lease {
            holder: text(object, "/spec/holderIdentity").into(),
            transitions: object.pointer("/spec/leaseTransitions").and_then(Value::as_i64).unwrap_or(0),
            renewed: text(object, "/spec/renewTime").into(),
        },
        "deployments" => Of::Deployment {
            replicas: number(object, "/spec/replicas"),
            surge: number(object, "/spec/strategy/rollingUpdate/maxSurge"),
            unavailable: number(object, "/spec/strategy/rollingUpdate/maxUnavailable"),
        },
        "replicasets" => Of::ReplicaSet { replicas: number(object, "/spec/replicas") },
        "jobs" => Of::Job {
            completions: number(object, "/spec/completions"),
            parallelism: number(object, "/spec/parallelism"),
            succeeded: number(object, "/status/succeeded"),
            complete: condition(object, "Complete"),
        },
        "customresourcedefinitions" => Of::Definition(text(object, "/spec/names/plural").into()),
        _ => Of::Other,
    }
}

/// Stands for all of an object: equal for equal ones. Its type does not count: items of a list do not say theirs.
pub fn digest(object: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    let fields = object.as_object().into_iter().flatten();
    for (key, value) in fields.filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind")) {
        (key, value.to_string()).hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_reduced() {
        let pod = json!({
            "metadata": {"uid": "u", "name": "p", "namespace": "n", "deletionTimestamp": "x",
                "ownerReferences": [{"kind": "Job", "uid": "j", "controller": true}]},
            "spec": {"nodeName": "a", "containers": [
                {"ports": [{"containerPort": 1, "hostPort": 80}], "resources": {"requests": {"cpu": "1500m"}}},
                {"resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        let fact = reduce("pods", &pod);
        assert!(fact.going && fact.owner == "j" && fact.owner_kind == "Job");
        assert_eq!(fact.of, Of::Pod { node: "a".into(), phase: "Running".into(), ready: true, cpu: 2500, port: 80 });
    }

    #[test]
    fn quantities_and_digests() {
        assert_eq!((thousandths("2"), thousandths("250m"), thousandths("0.5")), (2000, 250, 500));
        assert_eq!(digest(&json!({"a": 1, "b": 2})), digest(&json!({"b": 2, "a": 1})));
        assert_ne!(digest(&json!({"a": 1})), digest(&json!({"a": 2})));
        assert_ne!(digest(&json!({"a": 1})), digest(&json!({"b": 1})));
        let (watched, listed) = (json!({"apiVersion": "v1", "kind": "Namespace", "a": 1}), json!({"a": 1}));
        assert_eq!(digest(&watched), digest(&listed), "an item of a list does not say its type");
    }
}
