//! The pods that objects stand for: a pod for itself, a workload for those that its controller would make.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::{Value, json};

use crate::selector::Selector;

/// Lists in lists are not looked into deeper than this.
const MAX_DEPTH: usize = 4;

/// What an object stands for.
#[derive(Debug, Default)]
pub struct Pods {
    /// Pods, each with how many there are of it.
    pub pods: Vec<(Value, usize)>,
    /// Workloads that select their pods: kind of the pods' owner, namespace, name, selector.
    pub owners: Vec<(&'static str, String, String, Selector)>,
}

impl Pods {
    /// Adds the pods of an object; objects that have none add nothing.
    ///
    /// # Errors
    /// Why it cannot be told which they are.
    pub fn add(&mut self, object: &Value) -> Result<(), String> {
        self.add_within(object, MAX_DEPTH)
    }

    fn add_within(&mut self, object: &Value, depth: usize) -> Result<(), String> {
        let kind = object["kind"].as_str().unwrap_or("Pod");
        let count = |at: &Value| at.as_u64().map_or(1, |count| usize::try_from(count).unwrap_or(usize::MAX));
        let spec = &object["spec"];
        match kind {
            "Pod" => self.pods.push((object.clone(), 1)),
            "Deployment" | "ReplicaSet" => self.add_owned("ReplicaSet", object, spec, count(&spec["replicas"])),
            "StatefulSet" => self.add_owned("StatefulSet", object, spec, count(&spec["replicas"])),
            "ReplicationController" => {
                self.add_owned("ReplicationController", object, spec, count(&spec["replicas"]));
            }
            "Job" => self.add_owned("Job", object, spec, at_once(spec)),
            "CronJob" => {
                let spec = &spec["jobTemplate"]["spec"];
                self.add_owned("Job", object, spec, at_once(spec));
            }
            "DaemonSet" => {
                return Err("a DaemonSet has a pod on each node that may run it: ask about its pod".into());
            }
            "List" if depth == 0 => return Err("the list is in too many lists".into()),
            "List" => {
                for item in object["items"].as_array().into_iter().flatten() {
                    self.add_within(item, depth - 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn add_owned(&mut self, owner: &'static str, object: &Value, spec: &Value, count: usize) {
        let text = |at: &Value, default: &str| at.as_str().filter(|t| !t.is_empty()).unwrap_or(default).to_owned();
        let metadata = &object["metadata"];
        let (namespace, name) = (text(&metadata["namespace"], "default"), text(&metadata["name"], "pod"));
        let mut pod = spec["template"].clone();
        pod["metadata"]["namespace"] = namespace.as_str().into();
        pod["metadata"]["name"] = name.as_str().into();
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": owner, "name": name, "uid": format!("what-if/{name}"), "controller": true}]);
        self.pods.push((pod, count));
        // Those of a replication controller are its labels alone.
        let selector = &spec["selector"];
        let selector =
            if owner == "ReplicationController" { json!({"matchLabels": selector}) } else { selector.clone() };
        if let Ok(selector) = serde_json::from_value::<LabelSelector>(selector) {
            self.owners.push((owner, namespace, name, Selector::new(&selector)));
        }
    }
}

/// How many pods of a job run at once.
fn at_once(spec: &Value) -> usize {
    let parallelism = spec["parallelism"].as_u64().unwrap_or(1);
    let most = spec["completions"].as_u64().map_or(parallelism, |completions| completions.min(parallelism));
    usize::try_from(most).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_stand_for_their_pods() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}});
        let of = |kind: &str, mut spec: Value| {
            spec["template"] = template.clone();
            json!({"kind": kind, "metadata": {"name": "w", "namespace": "n"}, "spec": spec})
        };
        let selector = json!({"matchLabels": {"a": "b"}});
        for (what, object, expected) in [
            ("a pod without its kind", json!({"metadata": {"name": "p"}, "spec": {}}), Some(vec![("p", 1)])),
            ("a deployment", of("Deployment", json!({"replicas": 3, "selector": selector})), Some(vec![("w", 3)])),
            ("without a number", of("StatefulSet", json!({"selector": selector})), Some(vec![("w", 1)])),
            (
                "of none",
                of("ReplicationController", json!({"replicas": 0, "selector": {"a": "b"}})),
                Some(vec![("w", 0)]),
            ),
            ("a job", of("Job", json!({"parallelism": 5, "completions": 2})), Some(vec![("w", 2)])),
            ("something else", json!({"kind": "Service", "metadata": {"name": "s"}}), Some(vec![])),
            ("a daemon set", of("DaemonSet", json!({})), None),
            (
                "a list",
                json!({"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "p"}}, {"kind": "ConfigMap"}]}),
                Some(vec![("p", 1)]),
            ),
        ] {
            let mut pods = Pods::default();
            let told = pods.add(&object);
            let named: Vec<(&str, usize)> =
                pods.pods.iter().map(|(pod, count)| (pod["metadata"]["name"].as_str().unwrap(), *count)).collect();
            assert_eq!(told.ok().map(|()| named), expected, "{what}");
            assert_eq!(pods.owners.len(), usize::from(object["spec"]["selector"].is_object()), "{what}");
        }
    }
}
