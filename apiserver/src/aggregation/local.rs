//! APIServices of what this server serves itself: made at the first start for built-in groups, kept up for definitions.

use std::collections::BTreeSet;
use std::sync::Arc;

use http::Method;
use keelson_machinery::resource::ResourceDef;
use keelson_machinery::resources::{RESOURCES, find};
use keelson_store::KeyRange;
use serde_json::{Value, json};

use super::GROUP;
use crate::{ApiServer, crd, strategy};

/// Label of APIServices that the server keeps.
const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";
/// Groups and how they rank.
const PRIORITIES: &[(&str, i64)] = &[
    ("", 18_000),
    ("extensions", 17_900),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("resource.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("storagemigration.k8s.io", 15_800),
];
/// How the group and a version of a definition rank.
const CUSTOM: (i64, i64) = (1000, 100);

fn priority(group: &str) -> i64 {
    PRIORITIES.iter().find(|(known, _)| *known == group).map_or(CUSTOM.0, |(_, priority)| *priority)
}

fn version_priority(group: &str, version: &str) -> i64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", "v1") => 21,
        (_, "v1") => 15,
        (_, version) if version.contains("beta") => 9,
        _ => 1,
    }
}

/// How a group and a version that are served here rank, as their APIService says.
pub fn priorities(group: &str, version: &str) -> (i64, i64) {
    match RESOURCES.iter().any(|row| row.group == group) {
        true => (priority(group), version_priority(group, version)),
        false => CUSTOM,
    }
}

fn object(group: &str, version: &str, managed: &str, priorities: (i64, i64), now: &str) -> Value {
    let mut spec = json!({"version": version, "groupPriorityMinimum": priorities.0, "versionPriority": priorities.1});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": "APIService",
        "metadata": {"name": format!("{version}.{group}"), "labels": {MANAGED: managed}},
        "spec": spec,
        "status": always_available(now),
    })
}

/// The status of an APIService without a Service.
fn always_available(now: &str) -> Value {
    json!({"conditions": [{"type": "Available", "status": "True", "reason": "Local", "lastTransitionTime": now,
        "message": "Local APIServices are always available"}]})
}

/// Gives a new APIService its status, if this server serves what it names.
pub fn prepare(def: &ResourceDef, object: &mut Value) {
    if (def.group, def.plural) == (GROUP, "apiservices") && !object["spec"]["service"].is_object() {
        object["status"] = always_available(&strategy::now());
    }
}

/// The APIServices of the built-in groups; those of optional versions come when they are served.
pub fn built_in() -> Vec<Value> {
    let now = strategy::now();
    let rows = RESOURCES.iter().filter(|row| !row.is_optional() && row.group != GROUP);
    let versions: BTreeSet<(&str, &str)> = rows.map(|row| (row.group, row.version)).collect();
    let made = versions.into_iter().map(|(group, version)| {
        object(group, version, "onstart", (priority(group), version_priority(group, version)), &now)
    });
    made.collect()
}

/// Makes the APIServices of definitions and removes those of definitions that are gone; whether nothing is left to do.
pub async fn settle(server: &Arc<ApiServer>) -> bool {
    let Some(def) = find(GROUP, "v1", "apiservices") else { return true };
    let mut served = BTreeSet::new();
    for (group, definitions) in server.customs.groups() {
        for version in definitions.iter().flat_map(|d| d.versions.iter().filter(|v| v.served)) {
            served.insert((version.def.version, group.clone()));
        }
    }
    let mut done = true;
    let path = format!("/apis/{GROUP}/v1/apiservices");
    let optional: BTreeSet<(&str, String)> = (server.customs.offered().rows().filter(|row| row.is_optional()))
        .map(|row| (row.version, row.group.to_owned()))
        .collect();
    let wanted =
        served.iter().map(|version| (version, "true")).chain(optional.iter().map(|version| (version, "onstart")));
    for ((version, group), managed) in wanted {
        let name = format!("{version}.{group}");
        if server.objects.find(def, "", &name).is_some() {
            continue;
        }
        let made = object(group, version, managed, priorities(group, version), &strategy::now());
        let code = crd::controller::call(server, Method::POST, &path, Some(&made)).await;
        done &= matches!(code, 200..300 | 409);
    }
    let prefix = def.prefix();
    let stored: Vec<String> = {
        let view = server.objects.kv.view();
        let range = KeyRange::prefix(prefix.clone());
        let keys = view.range(&range).map(|kv| String::from_utf8_lossy(&kv.key).into_owned());
        keys.filter_map(|key| key.strip_prefix(&prefix).map(str::to_owned)).collect()
    };
    for name in stored {
        let Some((version, group)) = name.split_once('.') else { continue };
        let known =
            RESOURCES.iter().any(|row| row.group == group) || served.iter().any(|(v, g)| *v == version && g == group);
        let managed = || {
            let object = server.objects.object(GROUP, "v1", "apiservices", "", &name);
            object.map(|object| object["metadata"]["labels"][MANAGED].clone()).unwrap_or_default()
        };
        let in_table = RESOURCES.iter().any(|row| row.group == group && row.version == version);
        let turned_off = in_table && !server.customs.offered().has_version(group, version);
        if !known && managed() == "true" || turned_off && managed() == "onstart" {
            let code = crd::controller::call(server, Method::DELETE, &format!("{path}/{name}"), None).await;
            done &= matches!(code, 200..300 | 404);
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_group_has_a_rank() {
        let all = built_in();
        assert!(all.iter().any(|o| o["metadata"]["name"] == "v1.") && all.len() > 20);
        for object in &all {
            assert_ne!(object["spec"]["groupPriorityMinimum"], CUSTOM.0, "{object}");
        }
    }
}
