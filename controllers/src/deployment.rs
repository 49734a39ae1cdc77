//! Deployments: a ReplicaSet per template, rolled over within maxSurge and maxUnavailable.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use keelson_client::{Error, Key};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Context;
use crate::replicaset::controller_reference;

const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Characters of a template's hash: those of generated names.
const HASH_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LENGTH: usize = 10;

/// Name of the Deployment that controls an object.
pub(crate) fn owner(metadata: &ObjectMeta) -> Option<String> {
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.kind == "Deployment" && o.controller == Some(true)).map(|o| o.name.clone())
}

fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |s| s.replicas)
}

fn revision(metadata: &ObjectMeta) -> i64 {
    metadata.annotations.as_ref().and_then(|a| a.get(REVISION)).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// A name for a template: the same template always has the same.
fn template_hash(deployment: &Deployment) -> String {
    let template =
        deployment.spec.as_ref().map(|s| serde_json::to_vec(&s.template).unwrap_or_default()).unwrap_or_default();
    let digest = Sha256::digest(template);
    digest.iter().take(HASH_LENGTH).map(|b| char::from(HASH_ALPHABET[usize::from(*b) % HASH_ALPHABET.len()])).collect()
}

/// A number or a share of `total`; surge is rounded up, unavailability down.
fn share(value: Option<&IntOrString>, total: i32, up: bool) -> i32 {
    match value {
        Some(IntOrString::Int(n)) => *n,
        Some(IntOrString::String(text)) => {
            let percent: i32 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = i64::from(percent) * i64::from(total);
            (if up { (product + 99) / 100 } else { product / 100 }) as i32
        }
        None => 0,
    }
}

/// New sizes of ReplicaSets by name.
#[derive(Debug, Default, PartialEq)]
struct Sizes(BTreeMap<String, i32>);

/// Decides the sizes of the new and the old ReplicaSets.
fn sizes(deployment: &Deployment, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> (i32, Sizes) {
    let Some(spec) = deployment.spec.as_ref() else { return (0, Sizes::default()) };
    let wanted = spec.replicas.unwrap_or(1);
    let strategy = spec.strategy.as_ref();
    let name = |set: &ReplicaSet| set.metadata.name.clone().unwrap_or_default();
    let mut sizes = Sizes::default();
    let old_total: i32 = old.iter().map(|s| replicas(s).max(actual(s))).sum();
    if strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate") {
        for set in old.iter().filter(|s| replicas(s) > 0) {
            sizes.0.insert(name(set), 0);
        }
        // New pods come when the old ones are gone.
        return (if old_total == 0 { wanted } else { 0 }, sizes);
    }
    let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
    let mut unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false);
    let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), wanted, true);
    if unavailable == 0 && surge == 0 {
        unavailable = 1;
    }
    let current = new.map_or(0, replicas);
    let old_specified: i32 = old.iter().map(|s| replicas(s)).sum();
    let target = if current >= wanted {
        wanted
    } else {
        (current + (wanted + surge - current - old_specified).max(0)).min(wanted)
    };
    // Old pods that are not available may go at once; of the available ones as many as the minimum allows.
    let minimum = wanted - unavailable;
    let mut may_go = {
        let new_unavailable = current - new.map_or(0, available);
        (current + old_specified - minimum - new_unavailable).max(0)
    };
    let mut order: Vec<&&ReplicaSet> = old.iter().collect();
    order.sort_by_key(|s| s.metadata.creation_timestamp.as_ref().map(|t| t.0.as_second()));
    for set in order {
        let gone = replicas(set).min(may_go);
        if gone > 0 {
            may_go -= gone;
            sizes.0.insert(name(set), replicas(set) - gone);
        }
    }
    (target, sizes)
}

fn status(deployment: &Deployment, new: Option<&ReplicaSet>, all: &[Arc<ReplicaSet>], now: Time) -> DeploymentStatus {
    let total: i32 = all.iter().map(|s| actual(s)).sum();
    let ready: i32 = all.iter().map(|s| s.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0)).sum();
    let available: i32 = all.iter().map(|s| available(s)).sum();
    let updated = new.map_or(0, actual);
    let wanted = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let rolling = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref()).and_then(|s| s.rolling_update.as_ref());
    let minimum = wanted - share(rolling.and_then(|r| r.max_unavailable.as_ref()), wanted, false);
    let before = deployment.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let condition = |kind: &str, holds: bool, reason: &str, message: String| {
        let status = if holds { "True" } else { "False" };
        let same = before.iter().find(|c| c.type_ == kind && c.status == status && c.reason.as_deref() == Some(reason));
        same.cloned().unwrap_or_else(|| {
            let kept = before
                .iter()
                .find(|c| c.type_ == kind && c.status == status)
                .and_then(|c| c.last_transition_time.clone());
            DeploymentCondition {
                type_: kind.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message),
                last_update_time: Some(now.clone()),
                last_transition_time: Some(kept.unwrap_or_else(|| now.clone())),
            }
        })
    };
    let complete = updated == wanted && total == wanted && available == wanted;
    let set = new.and_then(|s| s.metadata.name.clone()).unwrap_or_default();
    let progressing = match complete {
        true => condition(
            "Progressing",
            true,
            "NewReplicaSetAvailable",
            format!("ReplicaSet {set:?} has successfully progressed."),
        ),
        false => condition("Progressing", true, "ReplicaSetUpdated", format!("ReplicaSet {set:?} is progressing.")),
    };
    let available_condition = match available >= minimum {
        true => condition("Available", true, "MinimumReplicasAvailable", "Deployment has minimum availability.".into()),
        false => condition(
            "Available",
            false,
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.".into(),
        ),
    };
    let some = |n: i32| (n > 0).then_some(n);
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(total),
        updated_replicas: some(updated),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some((wanted.max(total) - available).max(0)),
        conditions: Some(vec![available_condition, progressing]),
        ..DeploymentStatus::default()
    }
}

fn new_set(deployment: &Deployment, hash: &str, size: i32, revision: i64) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.into());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(BTreeMap::from([(REVISION.to_owned(), revision.to_string())])),
            owner_references: Some(vec![controller_reference("apps/v1", "Deployment", &deployment.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size),
            selector,
            template: Some(template),
            min_ready_seconds: spec.min_ready_seconds,
        }),
        status: None,
    }
}

pub(crate) async fn reconcile(context: &Context, key: &Key) -> Result<(), Error> {
    let sets = context.client.namespaced::<ReplicaSet>(&key.0);
    let uid_of = |set: &ReplicaSet| {
        set.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true)).map(|o| o.uid.clone())
    };
    let deployment = context.deployments.get(key);
    let owned: Vec<Arc<ReplicaSet>> = context
        .replica_sets
        .list()
        .into_iter()
        .filter(|s| s.metadata.namespace.as_deref() == Some(&key.0) && owner(&s.metadata).as_deref() == Some(&key.1))
        .collect();
    let Some(deployment) = deployment else {
        for set in owned.iter().filter(|s| s.metadata.deletion_timestamp.is_none()) {
            sets.delete(set.metadata.name.as_deref().unwrap_or_default(), &Value::Null).await?;
        }
        return Ok(());
    };
    if deployment.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let all: Vec<Arc<ReplicaSet>> = owned.into_iter().filter(|s| uid_of(s) == deployment.metadata.uid).collect();
    let hash = template_hash(&deployment);
    let is_new = |s: &ReplicaSet| s.metadata.labels.as_ref().and_then(|l| l.get(HASH_LABEL)) == Some(&hash);
    let new = all.iter().find(|s| is_new(s)).cloned();
    let old: Vec<&ReplicaSet> = all.iter().filter(|s| !is_new(s)).map(|s| &**s).collect();
    if !deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false) {
        let (target, changes) = sizes(&deployment, new.as_deref(), &old);
        let latest = all.iter().map(|s| revision(&s.metadata)).max().unwrap_or(0);
        match &new {
            None => {
                sets.create(&new_set(&deployment, &hash, target, latest + 1)).await?;
            }
            Some(set) => {
                let name = set.metadata.name.as_deref().unwrap_or_default();
                // A template that comes back (undo) becomes the newest revision.
                let number = if revision(&set.metadata) < latest { latest + 1 } else { revision(&set.metadata) };
                if replicas(set) != target || number != revision(&set.metadata) {
                    let patch = json!({"metadata": {"annotations": {REVISION: number.to_string()}}, "spec": {"replicas": target}});
                    sets.patch(name, None, keelson_client::PatchType::Merge, &patch).await?;
                }
                if revision(&deployment.metadata) != number {
                    let patch = json!({"metadata": {"annotations": {REVISION: number.to_string()}}});
                    context
                        .client
                        .namespaced::<Deployment>(&key.0)
                        .patch(&key.1, None, keelson_client::PatchType::Merge, &patch)
                        .await?;
                }
            }
        }
        for (name, size) in changes.0 {
            sets.patch(&name, None, keelson_client::PatchType::Merge, &json!({"spec": {"replicas": size}})).await?;
        }
    }
    let status = status(&deployment, new.as_deref(), &all, Time(jiff_now()));
    if deployment.status.as_ref() != Some(&status) {
        let changed = Deployment { status: Some(status), ..(*deployment).clone() };
        let api = context.client.namespaced::<Deployment>(&key.0);
        // The write says only what was seen; a newer spec does not make it wrong, so it names no version.
        let changed =
            Deployment { metadata: ObjectMeta { resource_version: None, ..changed.metadata.clone() }, ..changed };
        api.replace_status(&key.1, &changed).await?;
    }
    Ok(())
}

fn jiff_now() -> k8s_openapi::jiff::Timestamp {
    k8s_openapi::jiff::Timestamp::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(name: &str, size: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"replicas": size, "selector": {}},
            "status": {"replicas": size, "availableReplicas": available}}))
        .unwrap()
    }

    fn deployment(replicas: i32, strategy: Value) -> Deployment {
        serde_json::from_value(json!({"metadata": {"name": "d"}, "spec": {"replicas": replicas, "selector": {}, "strategy": strategy, "template": {}}})).unwrap()
    }

    #[test]
    fn rollouts_keep_their_bounds() {
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
        for (what, wanted, strategy, new, old, expected) in [
            ("first", 4, rolling.clone(), None, vec![], (4, vec![])),
            ("roll-out begins", 4, rolling.clone(), None, vec![set("o", 4, 4)], (1, vec![("o", 3)])),
            ("new ones are not ready", 4, rolling.clone(), Some(set("n", 2, 0)), vec![set("o", 3, 3)], (2, vec![])),
            ("new ones are ready", 4, rolling.clone(), Some(set("n", 2, 2)), vec![set("o", 3, 3)], (2, vec![("o", 1)])),
            ("last step", 4, rolling.clone(), Some(set("n", 4, 4)), vec![set("o", 1, 1)], (4, vec![("o", 0)])),
            ("scaled down", 2, rolling, Some(set("n", 4, 4)), vec![], (2, vec![])),
            ("recreate waits", 3, json!({"type": "Recreate"}), None, vec![set("o", 3, 3)], (0, vec![("o", 0)])),
            ("recreate goes on", 3, json!({"type": "Recreate"}), None, vec![set("o", 0, 0)], (3, vec![])),
        ] {
            let old: Vec<&ReplicaSet> = old.iter().collect();
            let (target, changes) = sizes(&deployment(wanted, strategy), new.as_ref(), &old);
            let changes: Vec<(&str, i32)> = changes.0.iter().map(|(k, v)| (k.as_str(), *v)).collect();
            assert_eq!((target, changes), expected, "{what}");
        }
    }
}
