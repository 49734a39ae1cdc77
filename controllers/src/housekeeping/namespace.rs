//! The end of a namespace: everything of every kind in it is deleted, pods first; its conditions say what remains.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Time};
use keelson_client::discovery::{self, ApiResource, METADATA_LIST, PartialObject};
use keelson_client::{Error, Key};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::Context;
use crate::runtime::{Keys, Outcome, watch_own};

/// Finalizer that this controller takes off.
const FINALIZER: &str = "kubernetes";
/// Pause before what remains is looked at again: a quarter of the time since the deletion, within these.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(15));

/// What one look at the content found.
#[derive(Debug, Default, PartialEq)]
struct Found {
    /// Objects left, by `plural.group`.
    remaining: BTreeMap<String, usize>,
    /// Objects that wait for each finalizer.
    finalizers: BTreeMap<String, usize>,
    /// Kinds that could not be deleted, with why.
    content_errors: Vec<String>,
    /// Groups that could not be asked, with why.
    discovery_errors: Vec<String>,
}

/// A condition, why it is true if it is, and reason and message if it is not.
type Row<'a> = (&'a str, Option<(&'a str, String)>, (&'a str, &'a str));

/// What was found, as conditions.
fn rows(found: &Found) -> [Row<'static>; 5] {
    let list = |counts: &BTreeMap<String, usize>, with: &dyn Fn(&str, usize) -> String| {
        counts.iter().map(|(what, n)| with(what, *n)).collect::<Vec<_>>().join(", ")
    };
    let remaining = list(&found.remaining, &|what, n| format!("{what} has {n} resource instances"));
    let waiting = list(&found.finalizers, &|what, n| format!("{what} in {n} resource instances"));
    [
        (
            "NamespaceDeletionDiscoveryFailure",
            (!found.discovery_errors.is_empty()).then(|| {
                (
                    "DiscoveryFailed",
                    format!(
                        "Discovery failed for some groups, {} failing: {}",
                        found.discovery_errors.len(),
                        found.discovery_errors.join(", ")
                    ),
                )
            }),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            (!found.content_errors.is_empty()).then(|| {
                (
                    "ContentDeletionFailed",
                    format!(
                        "Failed to delete all resource types, {} remaining: {}",
                        found.content_errors.len(),
                        found.content_errors.join(", ")
                    ),
                )
            }),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            (!remaining.is_empty())
                .then(|| ("SomeResourcesRemain", format!("Some resources are remaining: {remaining}"))),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            (!waiting.is_empty()).then(|| {
                ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {waiting}"))
            }),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ]
}

/// The conditions that say what was found. Those that were never true stay as they are.
fn conditions(found: &Found, before: &[NamespaceCondition], now: &Time) -> Vec<NamespaceCondition> {
    let mut conditions = before.to_vec();
    for (kind, failure, (ok_reason, ok_message)) in rows(found) {
        let status = if failure.is_some() { "True" } else { "False" };
        let (reason, message) = failure.unwrap_or((ok_reason, ok_message.to_owned()));
        let old = conditions.iter().position(|c| c.type_ == kind);
        let mut new = NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(now.clone()),
        };
        match old {
            Some(i) => {
                if conditions[i].status == new.status {
                    new.last_transition_time = conditions[i].last_transition_time.clone();
                }
                conditions[i] = new;
            }
            None => conditions.push(new),
        }
    }
    conditions
}

#[derive(Deserialize)]
struct Page {
    #[allow(dead_code, reason = "says that the answer is a list")]
    metadata: ListMeta,
    items: Option<Vec<PartialObject>>,
}

/// Deletes the objects of one kind and counts what is left.
async fn empty(context: &Context, resource: &ApiResource, namespace: &str, found: &mut Found) -> Result<(), Error> {
    let path = resource.path(namespace, "");
    let left = |page: Page| page.items.unwrap_or_default();
    let mut items = left(context.client.read(&path, METADATA_LIST).await?);
    if items.is_empty() {
        return Ok(());
    }
    let options: bytes::Bytes = serde_json::to_vec(&json!({"propagationPolicy": "Background"}))?.into();
    let json_type = Some("application/json");
    if resource.can("deletecollection") {
        let _: serde::de::IgnoredAny =
            context.client.request(Method::DELETE, &path, json_type, options.clone()).await?;
    } else {
        for item in &items {
            let path = resource.path(namespace, item.metadata.name.as_deref().unwrap_or_default());
            let sent: Result<serde::de::IgnoredAny, Error> =
                context.client.request(Method::DELETE, &path, json_type, options.clone()).await;
            match sent {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
    }
    items = left(context.client.read(&path, METADATA_LIST).await?);
    if !items.is_empty() {
        found.remaining.insert(resource.qualified(), items.len());
    }
    for finalizer in items.iter().flat_map(|i| i.metadata.finalizers.iter().flatten()) {
        *found.finalizers.entry(finalizer.clone()).or_default() += 1;
    }
    Ok(())
}

/// Deletes everything in the namespace.
async fn empty_all(context: &Context, namespace: &str) -> Result<Found, Error> {
    let (mut resources, failed) = discovery::resources(&context.client).await?;
    let mut found = Found {
        discovery_errors: failed.iter().map(|(group, error)| format!("unable to retrieve {group}: {error}")).collect(),
        ..Found::default()
    };
    resources.retain(|r| r.namespaced && r.can("list") && r.can("delete"));
    // Pods go first, so that what they use is there until they have ended.
    resources.sort_by_key(|r| !(r.group.is_empty() && r.plural == "pods"));
    for resource in &resources {
        match empty(context, resource, namespace, &mut found).await {
            Ok(()) => {}
            // The kind went meanwhile.
            Err(error) if error.is_not_found() || error.code() == 405 => {}
            Err(error) => found.content_errors.push(format!("{}: {error}", resource.qualified())),
        }
        if resource.plural == "pods" && resource.group.is_empty() && !found.remaining.is_empty() {
            break;
        }
    }
    Ok(found)
}

pub(crate) fn watch(context: &Arc<Context>, queue: &Keys) {
    watch_own(&context.cache.namespaces, queue);
}

pub(crate) async fn reconcile(context: Arc<Context>, key: Key) -> Outcome {
    let Some(namespace) = context.cache.namespaces.get(&key) else { return Ok(None) };
    let Some(since) = namespace.metadata.deletion_timestamp.clone() else { return Ok(None) };
    let held = namespace.spec.iter().flat_map(|s| s.finalizers.iter().flatten()).any(|f| f == FINALIZER);
    if !held {
        return Ok(None);
    }
    let found = empty_all(&context, &key.1).await?;
    let api = context.client.cluster::<Namespace>();
    let status = namespace.status.clone().unwrap_or_default();
    let before = status.conditions.clone().unwrap_or_default();
    let after = conditions(&found, &before, &context.now());
    let mut current = (*namespace).clone();
    if after != before || status.phase.as_deref() != Some("Terminating") {
        let new = current.status.get_or_insert_default();
        new.phase = Some("Terminating".into());
        new.conditions = Some(after);
        current = api.replace_status(&key.1, &current).await?;
    }
    if found.remaining.is_empty() && found.content_errors.is_empty() && found.discovery_errors.is_empty() {
        current.spec.get_or_insert_default().finalizers.get_or_insert_default().retain(|f| f != FINALIZER);
        let _: Value = api.replace_subresource(&key.1, "finalize", &current).await?;
        return Ok(None);
    }
    let age = Duration::try_from(context.now().0.duration_since(since.0)).unwrap_or_default();
    Ok(Some((age / 4).clamp(PAUSE.0, PAUSE.1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_remains() {
        let (early, late) =
            (Time("2026-01-01T00:00:00Z".parse().unwrap()), Time("2026-01-01T00:01:00Z".parse().unwrap()));
        let found = Found {
            remaining: BTreeMap::from([("configmaps.".to_owned(), 1), ("jobs.batch".to_owned(), 2)]),
            finalizers: BTreeMap::from([("a.example/hold".to_owned(), 1)]),
            ..Found::default()
        };
        let first = conditions(&found, &[], &early);
        let message = |list: &[NamespaceCondition], kind: &str| {
            list.iter().find(|c| c.type_ == kind).map(|c| (c.status.clone(), c.message.clone().unwrap())).unwrap()
        };
        assert_eq!(
            message(&first, "NamespaceContentRemaining"),
            ("True".into(), "Some resources are remaining: configmaps. has 1 resource instances, jobs.batch has 2 resource instances".into())
        );
        assert_eq!(
            message(&first, "NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: a.example/hold in 1 resource instances"
        );
        assert_eq!(message(&first, "NamespaceDeletionContentFailure").0, "False");
        let done = conditions(&Found::default(), &first, &late);
        assert_eq!(message(&done, "NamespaceContentRemaining").1, "All content successfully removed");
        let times: Vec<&Time> = done.iter().filter_map(|c| c.last_transition_time.as_ref()).collect();
        assert_eq!(times, [&early, &early, &early, &late, &late]);
    }
}
