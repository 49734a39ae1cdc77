//! Histories of templates: a ControllerRevision for each template that a StatefulSet or DaemonSet had, numbered; going
//! back to an earlier template gives its revision the newest number.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use k8s_openapi::{NamespaceResourceScope, Resource};
use keelson_client::{Error, Object, PatchType};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::context::Context;
use crate::owners::{self, controller_reference};

/// Label of pods: the revision that they are of.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// Characters of a hash: those of generated names.
const HASH_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const HASH_LENGTH: usize = 10;
/// Names tried for a revision whose name another one has.
const NAME_ATTEMPTS: usize = 8;

/// A short name for some content: the same content always has the same, until a collision is counted.
pub fn hash(content: &[u8], collisions: Option<i32>) -> String {
    let mut hash = Sha256::new();
    hash.update(content);
    if let Some(count) = collisions {
        hash.update(count.to_le_bytes());
    }
    let digest = hash.finalize();
    digest.iter().take(HASH_LENGTH).map(|b| char::from(HASH_ALPHABET[usize::from(*b) % HASH_ALPHABET.len()])).collect()
}

/// What a revision keeps: a patch that brings the template back.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// The template that a revision keeps.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0["spec"]["template"].clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The name of a revision.
pub fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

/// Whether a revision keeps this template. Both are compared decoded: defaults that the server adds do not count apart.
fn keeps(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).as_ref() == Some(template)
}

/// What is to be done so that the newest revision is the template's.
#[derive(Debug, PartialEq)]
enum Step {
    /// It is.
    Use(usize),
    /// An earlier one is the template's: it gets this number.
    Renumber(usize, i64),
    /// None is: one with this number is made.
    Make(i64),
}

fn step(sorted: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Step {
    let newest = sorted.last().map_or(0, |r| r.revision);
    match sorted.iter().rposition(|r| keeps(r, template)) {
        Some(i) if sorted[i].revision == newest => Step::Use(i),
        Some(i) => Step::Renumber(i, newest + 1),
        None => Step::Make(newest + 1),
    }
}

/// An owner's history.
pub struct History {
    /// All revisions, the oldest first.
    pub all: Vec<Arc<ControllerRevision>>,
    /// The template's.
    pub update: Arc<ControllerRevision>,
    /// Names that were taken so far.
    pub collisions: i32,
}

/// What a history is of.
pub struct Subject<'a> {
    /// The template as it is now.
    pub template: &'a PodTemplateSpec,
    /// Label that says the hash.
    pub hash_label: &'static str,
    /// Names that were taken so far.
    pub collisions: i32,
}

/// The owner's history, with a revision for its template.
pub async fn settle<K>(
    context: &Context,
    owner: &K,
    selector: &owners::Selector,
    subject: Subject<'_>,
) -> Result<History, Error>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
    let candidates = context.cache.revisions.in_namespace(namespace);
    let mut all = owners::claim(&context.client, owner, |o| selector.matches(&o.metadata), candidates).await?;
    all.sort_by_key(|r| (r.revision, r.metadata.creation_timestamp.as_ref().map(|t| t.0), r.metadata.name.clone()));
    let api = context.client.namespaced::<ControllerRevision>(namespace);
    let mut collisions = subject.collisions;
    let update = match step(&all, subject.template) {
        Step::Use(i) => all[i].clone(),
        Step::Renumber(i, number) => {
            let old = all.remove(i);
            let patch = json!({"revision": number, "metadata": {"uid": old.metadata.uid}});
            let written = Arc::new(api.patch(name(&old), None, PatchType::Merge, &patch).await?);
            all.push(written.clone());
            written
        }
        Step::Make(number) => {
            let written = Arc::new(make(context, owner, &subject, number, &mut collisions).await?);
            all.push(written.clone());
            written
        }
    };
    context.settle(&context.cache.revisions, &*update).await;
    Ok(History { all, update, collisions })
}

async fn make<K>(
    context: &Context,
    owner: &K,
    subject: &Subject<'_>,
    number: i64,
    collisions: &mut i32,
) -> Result<ControllerRevision, Error>
where
    K: Object + Resource<Scope = NamespaceResourceScope>,
{
    let namespace = owner.metadata().namespace.as_deref().unwrap_or_default();
    let api = context.client.namespaced::<ControllerRevision>(namespace);
    let content = data(subject.template);
    let bytes = serde_json::to_vec(&content)?;
    for _ in 0..NAME_ATTEMPTS {
        let hash = hash(&bytes, (*collisions > 0).then_some(*collisions));
        let wanted = revision(owner, subject, content.clone(), number, &hash);
        match api.create(&wanted).await {
            Err(error) if error.is_already_exists() => {
                let there = api.get(name(&wanted)).await?;
                let ours = owners::is_controlled_by(&there.metadata, owner.metadata().uid.as_deref());
                if ours && keeps(&there, subject.template) {
                    return Ok(there);
                }
                *collisions += 1;
            }
            result => return result,
        }
    }
    Err(Error::Transport(std::io::Error::other("every name tried for a revision is taken")))
}

fn revision<K: Object>(owner: &K, subject: &Subject<'_>, data: Value, number: i64, hash: &str) -> ControllerRevision {
    let metadata = owner.metadata();
    let labels = subject.template.metadata.as_ref().and_then(|m| m.labels.clone());
    let mut labels: BTreeMap<String, String> = labels.unwrap_or_default();
    labels.insert(subject.hash_label.into(), hash.into());
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", metadata.name.as_deref().unwrap_or_default())),
            namespace: metadata.namespace.clone(),
            labels: Some(labels),
            annotations: metadata.annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// The revisions to delete so that at most `limit` are kept beside those that are in use, the oldest first.
pub fn beyond(all: &[Arc<ControllerRevision>], in_use: impl Fn(&str) -> bool, limit: i32) -> Vec<String> {
    let idle: Vec<&Arc<ControllerRevision>> = all.iter().filter(|r| !in_use(name(r))).collect();
    let surplus = idle.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    idle.into_iter().take(surplus).map(|r| name(r).to_owned()).collect()
}

/// Deletes revisions by name.
pub async fn trim(context: &Context, namespace: &str, surplus: Vec<String>) -> Result<(), Error> {
    let api = context.client.namespaced::<ControllerRevision>(namespace);
    for name in surplus {
        match api.delete(&name, &Value::Null).await {
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(label: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"v": label}}, "spec": {"containers": []}})).unwrap()
    }

    fn kept(name: &str, number: i64, label: &str) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
            data: Some(RawExtension(data(&template(label)))),
            revision: number,
        })
    }

    #[test]
    fn going_back_gives_the_newest_number() {
        let all = [kept("a", 1, "1"), kept("b", 2, "2")];
        assert_eq!(step(&all, &template("2")), Step::Use(1));
        assert_eq!(step(&all, &template("1")), Step::Renumber(0, 3));
        assert_eq!(step(&all, &template("3")), Step::Make(3));
        assert_eq!(step(&[], &template("3")), Step::Make(1));
        assert_eq!(template_of(&all[0]), Some(template("1")));
    }

    #[test]
    fn revisions_in_use_are_kept_beyond_the_limit() {
        let all = [kept("a", 1, "1"), kept("b", 2, "2"), kept("c", 3, "3")];
        assert_eq!(beyond(&all, |name| name == "a", 1), ["b"]);
        assert_eq!(beyond(&all, |_| false, 0), ["a", "b", "c"]);
        assert!(beyond(&all, |_| true, 0).is_empty());
    }

    #[test]
    fn hashes_are_stable_and_avoid_collisions() {
        assert_eq!(hash(b"x", None), hash(b"x", None));
        assert_ne!(hash(b"x", None), hash(b"x", Some(1)));
        assert_eq!(hash(b"x", None).len(), HASH_LENGTH);
    }
}
