//! Ownership: references to controllers, and claiming what matches a selector: adopting orphans, releasing what no longer
//! matches.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use k8s_openapi::{NamespaceResourceScope, Resource};
use keelson_client::{Client, Error, Object, PatchType};
use keelson_machinery::selector;
use serde_json::{Value, json};

/// The reference that says who controls an object.
pub fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))
}

/// Whether `uid` controls the object.
pub fn is_controlled_by(metadata: &ObjectMeta, uid: Option<&str>) -> bool {
    controller_of(metadata).is_some_and(|o| Some(o.uid.as_str()) == uid)
}

/// A reference that makes `owner` the controller.
pub fn controller_reference<K: Object>(owner: &K) -> OwnerReference {
    let metadata = owner.metadata();
    OwnerReference {
        api_version: K::API_VERSION.into(),
        kind: <K as Resource>::KIND.into(),
        name: metadata.name.clone().unwrap_or_default(),
        uid: metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// What has labels.
pub trait Labelled {
    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for ObjectMeta {
    fn label(&self, key: &str) -> Option<&str> {
        self.labels.as_ref()?.get(key).map(String::as_str)
    }
}

/// A label selector, ready to match.
pub struct Selector(Option<selector::LabelSelector>);

impl Selector {
    /// Of a typed selector; one that cannot be read matches nothing.
    pub fn new(selector: &LabelSelector) -> Self {
        let value = serde_json::to_value(selector).unwrap_or_default();
        Self(selector::LabelSelector::from_object(&value).ok())
    }

    /// Of labels that must all be there; no label matches nothing.
    pub fn of_labels(labels: &std::collections::BTreeMap<String, String>) -> Self {
        if labels.is_empty() {
            return Self(None);
        }
        Self::new(&LabelSelector { match_labels: Some(labels.clone()), ..LabelSelector::default() })
    }

    /// Whether an object's labels match.
    pub fn matches(&self, metadata: &impl Labelled) -> bool {
        self.0.as_ref().is_some_and(|s| s.matches(|key| metadata.label(key)))
    }
}

/// Whether a selector names no requirement: it matches everything.
pub fn is_empty_selector(selector: &LabelSelector) -> bool {
    selector.match_labels.as_ref().is_none_or(|l| l.is_empty())
        && selector.match_expressions.as_ref().is_none_or(Vec::is_empty)
}

/// What to do with a candidate.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Keep,
    Adopt,
    Release,
    Ignore,
}

fn claim_of(candidate: &ObjectMeta, owner: &ObjectMeta, matches: bool) -> Claim {
    match controller_of(candidate) {
        Some(reference) if Some(&reference.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner.deletion_timestamp.is_some() => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner.deletion_timestamp.is_some() || !matches || candidate.deletion_timestamp.is_some() => {
            Claim::Ignore
        }
        None => Claim::Adopt,
    }
}

/// What to write of an object that is adopted or released: its owners, and the finalizer that comes and goes with them.
fn claim_patch(metadata: &ObjectMeta, owners: &[OwnerReference], finalizer: Option<&str>, adopted: bool) -> Value {
    let list = |empty: bool, list: Value| if empty { Value::Null } else { list };
    let mut patch = json!({"metadata": {
        "uid": metadata.uid, "resourceVersion": metadata.resource_version,
        "ownerReferences": list(owners.is_empty(), json!(owners)),
    }});
    if let Some(finalizer) = finalizer {
        let mut finalizers: Vec<&str> = metadata.finalizers.iter().flatten().map(String::as_str).collect();
        finalizers.retain(|f| *f != finalizer);
        finalizers.extend(adopted.then_some(finalizer));
        patch["metadata"]["finalizers"] = list(finalizers.is_empty(), json!(finalizers));
    }
    patch
}

/// Claims candidates for `owner`: those it owns and that match, and orphans that match, which it adopts; those it owns
/// that match no longer are released. Returns what it owns now.
pub async fn claim<O, K>(
    client: &Client,
    owner: &O,
    matches: impl Fn(&K) -> bool,
    candidates: Vec<Arc<K>>,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Object + Resource<Scope = NamespaceResourceScope>,
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    claim_with(client, owner, matches, candidates, None).await
}

/// Claims as [`claim`] does; what is adopted gets `finalizer`, and what is released loses it.
pub async fn claim_with<O, K>(
    client: &Client,
    owner: &O,
    matches: impl Fn(&K) -> bool,
    candidates: Vec<Arc<K>>,
    finalizer: Option<&str>,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Object + Resource<Scope = NamespaceResourceScope>,
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
    let api = client.namespaced::<K>(namespace);
    let (mut claimed, mut may_adopt) = (Vec::with_capacity(candidates.len()), None);
    for candidate in candidates {
        let metadata = candidate.metadata();
        let name = metadata.name.as_deref().unwrap_or_default();
        let mut owners = metadata.owner_references.clone().unwrap_or_default();
        match claim_of(metadata, owner.metadata(), matches(&candidate)) {
            Claim::Ignore => continue,
            Claim::Keep => {
                claimed.push(candidate);
                continue;
            }
            Claim::Release => owners.retain(|o| Some(&o.uid) != owner.metadata().uid.as_ref()),
            Claim::Adopt => {
                if may_adopt.is_none() {
                    may_adopt = Some(is_still_there(client, owner, namespace).await?);
                }
                if may_adopt == Some(false) {
                    continue;
                }
                owners.push(controller_reference(owner));
            }
        }
        let adopted = owners.last().is_some_and(|o| Some(&o.uid) == owner.metadata().uid.as_ref());
        let patch = claim_patch(metadata, &owners, finalizer, adopted);
        match api.patch(name, None, PatchType::Merge, &patch).await {
            Ok(changed) if adopted => claimed.push(Arc::new(changed)),
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(claimed)
}

/// Whether the owner is there, is the same and is not being deleted: asked anew before anything is adopted.
async fn is_still_there<O: Object + Resource<Scope = NamespaceResourceScope>>(
    client: &Client,
    owner: &O,
    namespace: &str,
) -> Result<bool, Error> {
    let name = owner.metadata().name.as_deref().unwrap_or_default();
    let fresh = client.namespaced::<O>(namespace).get_opt(name).await?;
    Ok(fresh.is_some_and(|f| f.metadata().uid == owner.metadata().uid && f.metadata().deletion_timestamp.is_none()))
}

/// A selector as messages have it, in the notation of upstream's language.
pub fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".into() };
    let labels = selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},"));
    let expressions = selector.match_expressions.iter().flatten().map(|e| {
        let values = e.values.as_deref().unwrap_or_default().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", e.key, e.operator)
    });
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.collect::<String>(),
        expressions.collect::<String>()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    fn metadata(owner: Option<&str>, going: bool) -> ObjectMeta {
        let mut value = json!({"uid": "o", "labels": {"app": "a"}});
        if let Some(uid) = owner {
            value["ownerReferences"] =
                json!([{"uid": uid, "controller": true, "kind": "K", "name": "n", "apiVersion": "v1"}]);
        }
        if going {
            value["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn claims() {
        for (candidate, owner_going, matches, expected) in [
            (metadata(Some("o"), false), false, true, Claim::Keep),
            (metadata(Some("o"), true), false, true, Claim::Keep),
            (metadata(Some("o"), false), false, false, Claim::Release),
            (metadata(Some("o"), false), true, false, Claim::Ignore),
            (metadata(Some("x"), false), false, true, Claim::Ignore),
            (metadata(None, false), false, true, Claim::Adopt),
            (metadata(None, false), false, false, Claim::Ignore),
            (metadata(None, true), false, true, Claim::Ignore),
            (metadata(None, false), true, true, Claim::Ignore),
        ] {
            assert_eq!(claim_of(&candidate, &metadata(None, owner_going), matches), expected, "{candidate:?}");
        }
    }

    #[test]
    fn the_finalizer_comes_and_goes_with_the_owner() {
        let (mut free, owned) = (metadata(None, false), metadata(Some("o"), false));
        let owners = owned.owner_references.unwrap();
        free.finalizers = Some(vec!["own".into()]);
        let mut both = free.clone();
        both.finalizers = Some(vec!["f".into(), "own".into()]);
        for (object, adopted, finalizer, expected) in [
            (&free, true, Some("f"), json!(["own", "f"])),
            (&both, true, Some("f"), json!(["own", "f"])),
            (&both, false, Some("f"), json!(["own"])),
            (&free, true, None, Value::Null),
        ] {
            let owners = if adopted { &owners[..] } else { &[] };
            let patch = claim_patch(object, owners, finalizer, adopted);
            assert_eq!(patch["metadata"]["finalizers"], expected);
            assert_eq!(patch["metadata"]["ownerReferences"].is_null(), !adopted);
            assert_eq!(patch["metadata"].get("finalizers").is_some(), finalizer.is_some());
        }
    }

    #[test]
    fn selectors() {
        let selector = |value: Value| -> LabelSelector { serde_json::from_value(value).unwrap() };
        let object = metadata(None, false);
        for (given, expected) in [
            (json!({"matchLabels": {"app": "a"}}), true),
            (json!({"matchLabels": {"app": "b"}}), false),
            (json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "c"]}]}), true),
            (json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), false),
            (json!({}), true),
        ] {
            assert_eq!(Selector::new(&selector(given.clone())).matches(&object), expected, "{given}");
        }
        assert!(!Selector::of_labels(&Default::default()).matches(&object));
    }

    #[test]
    fn selectors_are_shown_as_upstream_shows_them() {
        let given: LabelSelector = serde_json::from_value(json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]}))
        .unwrap();
        assert_eq!(
            shown(Some(&given)),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{\
             LabelSelectorRequirement{Key:c,Operator:In,Values:[d e],},\
             LabelSelectorRequirement{Key:f,Operator:DoesNotExist,Values:[],},},}"
        );
        assert_eq!(shown(None), "nil");
    }
}
