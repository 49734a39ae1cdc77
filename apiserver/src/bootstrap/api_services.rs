//! The APIServices of what this server serves itself: one for each version of a built-in group.

use serde_json::{Value, json};

/// Group, version, priority of the group, priority of the version.
const LOCAL: &[(&str, &str, i32, i32)] = &[
    ("", "v1", 18_000, 1),
    ("apps", "v1", 17_800, 15),
    ("events.k8s.io", "v1", 17_750, 15),
    ("authentication.k8s.io", "v1", 17_700, 15),
    ("authorization.k8s.io", "v1", 17_600, 15),
    ("autoscaling", "v1", 17_500, 15),
    ("autoscaling", "v2", 17_500, 30),
    ("batch", "v1", 17_400, 15),
    ("certificates.k8s.io", "v1", 17_300, 15),
    ("networking.k8s.io", "v1", 17_200, 15),
    ("policy", "v1", 17_100, 15),
    ("rbac.authorization.k8s.io", "v1", 17_000, 15),
    ("storage.k8s.io", "v1", 16_800, 15),
    ("apiextensions.k8s.io", "v1", 16_700, 15),
    ("admissionregistration.k8s.io", "v1", 16_700, 15),
    ("scheduling.k8s.io", "v1", 16_600, 15),
    ("coordination.k8s.io", "v1", 16_500, 15),
    ("node.k8s.io", "v1", 16_300, 15),
    ("discovery.k8s.io", "v1", 16_200, 15),
    ("resource.k8s.io", "v1", 16_200, 21),
    ("flowcontrol.apiserver.k8s.io", "v1", 16_100, 21),
];

/// The objects.
pub fn objects() -> Vec<Value> {
    let now = super::now();
    let service = |(group, version, group_priority, version_priority): &(&str, &str, i32, i32)| {
        let mut spec =
            json!({"version": version, "groupPriorityMinimum": group_priority, "versionPriority": version_priority});
        if !group.is_empty() {
            spec["group"] = (*group).into();
        }
        json!({
            "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
            "metadata": {
                "name": format!("{version}.{group}"),
                "labels": {"kube-aggregator.kubernetes.io/automanaged": "onstart"},
            },
            "spec": spec,
            "status": {"conditions": [{
                "type": "Available", "status": "True", "reason": "Local", "lastTransitionTime": now,
                "message": "Local APIServices are always available",
            }]},
        })
    };
    LOCAL.iter().map(service).collect()
}

#[cfg(test)]
mod tests {
    use super::LOCAL;
    use keelson_machinery::resources::RESOURCES;

    #[test]
    fn every_built_in_version_has_one() {
        for row in RESOURCES.iter().filter(|row| row.group != "apiregistration.k8s.io") {
            let known = LOCAL.iter().any(|(group, version, ..)| (*group, *version) == (row.group, row.version));
            assert!(known, "{}", row.qualified());
        }
    }
}
