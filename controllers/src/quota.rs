//! ResourceQuotas: counts anew what a namespace uses, so that what admission charged is corrected and what was deleted is
//! given back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, ResourceQuota, ResourceQuotaStatus, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use keelson_client::discovery::{self, METADATA_LIST};
use keelson_client::{Change, Error, Informer, Key, ListParams, Object};
use keelson_machinery::pod_resources::{Amounts, add};
use keelson_machinery::quantity::{Format, Quantity};
use keelson_machinery::quota as usage;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

use crate::context::Context;
use crate::kept::Pod;
use crate::runtime::{Keys, Outcome, watch_own, watch_with};

/// Changes of the objects of a namespace are gathered for so long before they are counted.
const GATHER: Duration = Duration::from_millis(200);
/// Everything is counted again after this, whatever was heard.
const RECOUNT: Duration = Duration::from_secs(300);

/// Kinds that are counted under a plain name: their path segment.
const PLAIN: [&str; 5] =
    ["configmaps", "secrets", "replicationcontrollers", "resourcequotas", "persistentvolumeclaims"];

/// Claims of devices: group and path segment.
const DEVICES: (&str, &str) = ("resource.k8s.io", "resourceclaims");

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.quotas, queue);
    watch_users::<Pod>(context, &context.cache.pods, queue);
    watch_users::<Service>(context, &context.cache.services, queue);
    watch_users::<PersistentVolumeClaim>(context, &context.cache.claims, queue);
    // Everything else: whoever follows all kinds tells of what came and went.
    let (weak, queue) = (Arc::downgrade(context), queue.clone());
    context.on_object(Box::new(move |namespace| {
        if let Some(context) = weak.upgrade() {
            gather(&context, &queue, namespace);
        }
    }));
}

/// Looks at the quotas of a namespace soon.
fn gather(context: &Context, queue: &Keys, namespace: &str) {
    for quota in context.cache.quotas.in_namespace(namespace) {
        queue.add_after(keelson_client::informer::key(&*quota), GATHER);
    }
}

fn watch_users<K: Object>(context: &Arc<Context>, informer: &Informer<K>, queue: &Keys) {
    let (weak, own) = (Arc::downgrade(context), queue.clone());
    watch_with(informer, queue, move |change: &Change<K>| {
        if let (Some(object), Some(context)) = (change.object(), weak.upgrade()) {
            gather(&context, &own, object.metadata().namespace.as_deref().unwrap_or_default());
        }
        Vec::new()
    });
}

fn total<K: Object>(quota: &Value, names: &[String], plural: &str, objects: &[Arc<K>]) -> Amounts {
    let (mut total, now) = (nothing(names, "", plural), Timestamp::now());
    for object in objects {
        let value = serde_json::to_value(&**object).unwrap_or_default();
        if usage::applies(quota, names.iter().map(String::as_str), ("", plural), &value) {
            add(&mut total, &usage::usage("", plural, &value, now));
        }
    }
    total
}

#[derive(Deserialize)]
struct Page {
    metadata: ListMeta,
    items: Option<Vec<IgnoredAny>>,
}

/// Objects of a kind in a namespace, by a list of one.
async fn count(context: &Context, path: &str) -> Result<i64, Error> {
    let page: Page = match context.client.read(&format!("{path}?limit=1"), METADATA_LIST).await {
        Err(error) if error.is_not_found() => return Ok(0),
        result => result?,
    };
    let here = page.items.map_or(0, |i| i.len()) as i64;
    match (page.metadata.remaining_item_count, page.metadata.continue_.filter(|t| !t.is_empty())) {
        (Some(more), _) => Ok(here + more),
        (None, None) => Ok(here),
        // It does not say how many: all are read.
        (None, Some(_)) => {
            let all: Page = context.client.read(path, METADATA_LIST).await?;
            Ok(all.items.map_or(0, |i| i.len()) as i64)
        }
    }
}

/// What claims of devices use, if a quota limits something of them.
async fn devices(context: &Context, namespace: &str, quota: &Value, names: &[String]) -> Result<Amounts, Error> {
    let mut total = nothing(names, DEVICES.0, DEVICES.1);
    if total.is_empty() {
        return Ok(total);
    }
    let path = format!("/apis/{}/v1/namespaces/{namespace}/{}", DEVICES.0, DEVICES.1);
    let list: Value = match context.client.read(&path, "application/json").await {
        Err(error) if error.is_not_found() => return Ok(total),
        result => result?,
    };
    let now = Timestamp::now();
    for claim in list["items"].as_array().into_iter().flatten() {
        if usage::applies(quota, names.iter().map(String::as_str), DEVICES, claim) {
            add(&mut total, &usage::usage(DEVICES.0, DEVICES.1, claim, now));
        }
    }
    Ok(total)
}

/// What a quota limits that is not counted from the cache: the name, and the path to count.
async fn paths(context: &Context, namespace: &str, hard: &[String]) -> Result<Vec<(String, String)>, Error> {
    let cached =
        ["count/pods", "count/services", "count/persistentvolumeclaims", "count/resourceclaims.resource.k8s.io"];
    let mut found = Vec::new();
    let counted: Vec<&String> = hard
        .iter()
        .filter(|n| n.starts_with("count/") && !cached.contains(&n.as_str()) || PLAIN[..4].contains(&n.as_str()))
        .collect();
    if counted.is_empty() {
        return Ok(found);
    }
    let (resources, _) = discovery::resources(&context.client).await?;
    for name in counted {
        let resource = resources.iter().find(|r| {
            r.namespaced
                && usage::is_counted(&r.group, &r.plural)
                && (usage::count_name(&r.group, &r.plural) == *name || r.group.is_empty() && r.plural == *name)
        });
        if let Some(resource) = resource {
            found.push((name.clone(), resource.path(namespace, "")));
        }
    }
    Ok(found)
}

/// Nothing of each name that limits objects of a kind.
fn nothing(names: &[String], group: &str, plural: &str) -> Amounts {
    let zero = Quantity::from_units(0, Format::DecimalSi);
    names.iter().filter(|name| usage::limits(name, group, plural)).map(|name| (name.clone(), zero)).collect()
}

/// What of a usage a quota is about; what nobody can count is left out.
fn limited(hard: &[String], used: &Amounts) -> BTreeMap<String, Text> {
    hard.iter().filter_map(|name| Some((name.clone(), Text(used.get(name)?.to_string())))).collect()
}

/// Objects of a namespace that are no older than a quota of this version: what admission has charged to it is among them,
/// and what it charges later makes the quota another one, so that the count is refused.
async fn current<K>(
    context: &Context,
    informer: &Informer<K>,
    namespace: &str,
    version: &str,
) -> Result<Vec<Arc<K>>, Error>
where
    K: Object + k8s_openapi::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    if version.parse().is_ok_and(|version: u64| informer.revision() >= version) {
        return Ok(informer.in_namespace(namespace));
    }
    let list = context.client.namespaced::<K>(namespace).list(&ListParams::default()).await?;
    Ok(list.items.into_iter().map(Arc::new).collect())
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(quota) = context.cache.quotas.get(&key) else { return Ok(None) };
    let value = serde_json::to_value(&*quota)?;
    let hard = quota.spec.as_ref().and_then(|s| s.hard.clone()).unwrap_or_default();
    let names: Vec<String> = hard.keys().cloned().collect();
    let (cache, version) = (&context.cache, quota.metadata.resource_version.as_deref().unwrap_or_default());
    let pods = current(&context, &cache.pods, &key.0, version).await?;
    let services = current(&context, &cache.services, &key.0, version).await?;
    let claims = current(&context, &cache.claims, &key.0, version).await?;
    let mut used = total(&value, &names, "pods", &pods);
    add(&mut used, &total(&value, &names, "services", &services));
    add(&mut used, &total(&value, &names, "persistentvolumeclaims", &claims));
    add(&mut used, &devices(&context, &key.0, &value, &names).await?);
    for (name, path) in paths(&context, &key.0, &names).await? {
        used.insert(name, Quantity::from_units(count(&context, &path).await?, Format::DecimalSi));
    }
    let status = ResourceQuotaStatus { hard: Some(hard), used: Some(limited(&names, &used)) };
    if !same(quota.status.as_ref(), &status) {
        let changed = ResourceQuota { status: Some(status), ..(*quota).clone() };
        let written = context.client.namespaced::<ResourceQuota>(&key.0).replace_status(&key.1, &changed).await?;
        context.settle(&context.cache.quotas, &written).await;
    }
    Ok(Some(RECOUNT))
}

/// Whether two statuses say the same amounts, however they are written.
fn same(before: Option<&ResourceQuotaStatus>, after: &ResourceQuotaStatus) -> bool {
    let amounts = |list: Option<&BTreeMap<String, Text>>| -> BTreeMap<String, Option<Quantity>> {
        list.into_iter().flatten().map(|(name, text)| (name.clone(), Quantity::parse(&text.0).ok())).collect()
    };
    before.is_some_and(|b| {
        amounts(b.hard.as_ref()) == amounts(after.hard.as_ref())
            && amounts(b.used.as_ref()) == amounts(after.used.as_ref())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_counted_within_the_scopes() {
        let pod = |phase: &str, cpu: &str| -> Arc<Pod> {
            Arc::new(
                serde_json::from_value(
                    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
                    "status": {"phase": phase}}),
                )
                .unwrap(),
            )
        };
        let pods = [pod("Running", "250m"), pod("Pending", "1"), pod("Failed", "7")];
        let names = ["pods", "requests.cpu", "count/pods", "limits.cpu", "count/unheard.of"].map(str::to_owned);
        let used = limited(&names, &total(&json!({}), &names, "pods", &pods));
        let shown: Vec<String> = used.iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect();
        assert_eq!(shown, ["count/pods=3", "limits.cpu=0", "pods=2", "requests.cpu=1250m"]);
        let best_effort = total(&json!({"spec": {"scopes": ["BestEffort"]}}), &names, "pods", &pods);
        assert!(best_effort.len() == 4 && best_effort.values().all(Quantity::is_zero), "{best_effort:?}");
    }

    #[test]
    fn amounts_are_compared_not_texts() {
        let status = |cpu: &str| ResourceQuotaStatus {
            hard: Some(BTreeMap::from([("cpu".to_owned(), Text(cpu.into()))])),
            used: None,
        };
        assert!(same(Some(&status("1")), &status("1000m")));
        assert!(!same(Some(&status("1")), &status("2")) && !same(None, &status("1")));
    }
}
