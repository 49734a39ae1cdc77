//! ApplySets: objects that are applied together, known by a label, and pruned when they are in no file any more.
//!
//! The parent object says which kinds and namespaces the set has members in. It is widened before anything is applied and
//! narrowed after pruning, so that no member is ever outside of what it says.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::failure::{Failure, Outcome};
use crate::kinds::{self, Kind};
use crate::objects::place;
use crate::output::items_of;
use crate::session::{Session, encode, query};
use crate::value::Read;

use super::create::is_client_dry_run;

const ID: &str = "applyset.kubernetes.io/id";
const PART_OF: &str = "applyset.kubernetes.io/part-of";
const TOOLING: &str = "applyset.kubernetes.io/tooling";
const KINDS: &str = "applyset.kubernetes.io/contains-group-kinds";
const NAMESPACES: &str = "applyset.kubernetes.io/additional-namespaces";
const IS_PARENT: &str = "applyset.kubernetes.io/is-parent-type";
/// What may have changed the parent, before the slash; only its own sets does a tool touch.
const TOOL: &str = "kubectl";

/// A set of objects under one parent.
pub struct ApplySet {
    id: String,
    kind: Kind,
    namespace: String,
    name: String,
    /// Kinds and namespaces of members: before, and as they are applied now.
    before: (BTreeSet<String>, BTreeSet<String>),
    now: (BTreeSet<String>, BTreeSet<String>),
}

/// `Kind.group`, or `Kind` of the core group.
fn group_kind(kind: &Kind) -> String {
    if kind.group.is_empty() { kind.kind.clone() } else { format!("{}.{}", kind.kind, kind.group) }
}

/// Group and version, with the slash that a core kind has as well.
fn gv(kind: &Kind) -> String {
    format!("{}/{}", kind.group, kind.version)
}

/// Refuses a set whose parent has no namespace; says so before anything else is checked.
pub async fn check_namespace(session: &Session) -> Outcome {
    let text = session.parsed.text("applyset");
    let (of, _) = text.split_once('/').unwrap_or(("secrets", text));
    if kinds::resolve(session, of).await?.namespaced && !session.parsed.is_set("namespace") {
        return Err(Failure::new("namespace is required to use namespace-scoped ApplySet"));
    }
    Ok(())
}

fn listed(text: &str) -> BTreeSet<String> {
    text.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

fn id(name: &str, namespace: &str, kind: &Kind) -> String {
    let hash = Sha256::digest(format!("{name}.{namespace}.{}.{}", kind.kind, kind.group));
    format!("applyset-{}-v1", URL_SAFE_NO_PAD.encode(hash))
}

async fn parent_kind(session: &Session, text: &str) -> Outcome<Kind> {
    let kind = kinds::resolve(session, text).await?;
    if kind.group.is_empty() && matches!(kind.plural.as_str(), "secrets" | "configmaps") {
        return Ok(kind);
    }
    let crd = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", encode(&kind.qualified_plural()));
    let allowed = session.get(&crd).await.is_ok_and(|crd| crd["metadata"]["labels"][IS_PARENT] == "true");
    match allowed {
        true => Ok(kind),
        false => {
            let shown = format!("{}, Resource={}", gv(&kind), kind.plural);
            Err(Failure::new(format!("resource {shown:?} is not permitted as an ApplySet parent")))
        }
    }
}

impl ApplySet {
    /// Finds or makes the parent, marks the objects as members, and widens what the parent says.
    pub async fn open(session: &Session, objects: &mut [(String, Value)]) -> Outcome<Self> {
        let parsed = &session.parsed;
        if !parsed.on("prune") {
            return Err(Failure::new("--applyset requires --prune"));
        }
        let text = parsed.text("applyset");
        let (of, name) = text.split_once('/').unwrap_or(("secrets", text));
        let kind = parent_kind(session, of).await?;
        if kind.namespaced && !parsed.is_set("namespace") {
            return Err(Failure::new("namespace is required to use namespace-scoped ApplySet"));
        }
        let namespace = if kind.namespaced { session.namespace()? } else { String::new() };
        let mut set = Self {
            id: id(name, &namespace, &kind),
            kind,
            namespace,
            name: name.to_owned(),
            before: Default::default(),
            now: Default::default(),
        };
        set.read(session).await?;
        for (_, object) in objects {
            let kind = kinds::of_object(session, object).await?;
            let (namespace, _) = place(session, object)?;
            set.now.0.insert(group_kind(&kind));
            if kind.namespaced && namespace != set.namespace {
                set.now.1.insert(namespace);
            }
            object["metadata"]["labels"][PART_OF] = set.id.clone().into();
        }
        let both = (&set.before.0 | &set.now.0, &set.before.1 | &set.now.1);
        set.write(session, &both).await?;
        Ok(set)
    }

    /// Reads what the parent says of its members.
    async fn read(&mut self, session: &Session) -> Outcome {
        let path = self.kind.object(&self.namespace, &encode(&self.name));
        let parent = match session.get(&path).await {
            // Secrets and config maps are made; a kind of one's own has its parents made by others.
            Err(error) if error.is_not_found() && self.kind.group.is_empty() => return Ok(()),
            other => other?,
        };
        let metadata = &parent["metadata"];
        let (tooling, have) = (metadata["annotations"][TOOLING].text(), metadata["labels"][ID].text());
        let of = format!("ApplySet parent object \"{}.{}/{}\"", self.kind.plural, self.kind.group, self.name);
        if tooling.is_empty() || have.is_empty() {
            return Err(Failure::new(format!(
                "{of} exists and is missing required annotation {TOOLING:?} or label {ID:?}"
            )));
        }
        if tooling.split('/').next() != Some(TOOL) {
            return Err(Failure::new(format!(
                "{of} already exists and is managed by tooling {tooling:?} instead of {TOOL:?}"
            )));
        }
        if have != self.id {
            return Err(Failure::new(format!(
                "{of} exists and has incorrect value for label {ID:?} (got: {have}, want: {})",
                self.id
            )));
        }
        self.before =
            (listed(metadata["annotations"][KINDS].text()), listed(metadata["annotations"][NAMESPACES].text()));
        Ok(())
    }

    async fn write(&self, session: &Session, (kinds, namespaces): &(BTreeSet<String>, BTreeSet<String>)) -> Outcome {
        if is_client_dry_run(session)? {
            return Ok(());
        }
        let joined = |set: &BTreeSet<String>| set.iter().map(String::as_str).collect::<Vec<_>>().join(",");
        let mut metadata = json!({
            "name": self.name,
            "labels": {ID: self.id},
            "annotations": {
                TOOLING: format!("{TOOL}/{}", super::api::CLIENT),
                KINDS: joined(kinds),
                NAMESPACES: joined(namespaces),
            },
        });
        if self.kind.namespaced {
            metadata["namespace"] = self.namespace.clone().into();
        }
        let parent = json!({"apiVersion": self.kind.api_version(), "kind": self.kind.kind, "metadata": metadata});
        let dry_run = if session.parsed.text("dry-run") == "server" { "All" } else { "" };
        let query = query(&[("fieldManager", "kubectl-applyset"), ("force", "false"), ("dryRun", dry_run)]);
        let path = format!("{}{query}", self.kind.object(&self.namespace, &encode(&self.name)));
        session.patch(&path, "apply-patch", &parent).await.map(|_| ())
    }

    /// Members that were not applied now; `seen` are the paths of those that were.
    pub async fn left_over(&self, session: &Session, seen: &[String]) -> Outcome<Vec<(Kind, Value)>> {
        let selector = query(&[("labelSelector", &format!("{PART_OF}={}", self.id))]);
        let mut namespaces = &self.before.1 | &self.now.1;
        namespaces.insert(session.namespace()?);
        let mut found = Vec::new();
        for name in &self.before.0 | &self.now.0 {
            let kind = kinds::resolve(session, &name.to_lowercase()).await?;
            let scopes: Vec<Option<&str>> = match kind.namespaced {
                true => namespaces.iter().map(|n| Some(n.as_str())).collect(),
                false => vec![None],
            };
            for scope in scopes {
                let mut list = session.get(&format!("{}{selector}", kind.path(scope))).await?;
                for object in items_of(&kind, &mut list) {
                    let metadata = &object["metadata"];
                    let path = kind.object(metadata["namespace"].text(), metadata["name"].text());
                    if metadata["deletionTimestamp"].is_null() && !seen.contains(&path) {
                        found.push((kind.clone(), object));
                    }
                }
            }
        }
        Ok(found)
    }

    /// Narrows what the parent says to what is left.
    pub async fn close(self, session: &Session) -> Outcome {
        self.write(session, &self.now).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_of_name_namespace_and_kind() {
        let kind = kinds::all_built_in().into_iter().find(|k| k.plural == "secrets").unwrap();
        let id = id("set", "default", &kind);
        assert!(id.starts_with("applyset-") && id.ends_with("-v1"), "{id}");
        // 32 bytes are 43 letters of base64; a label holds no more than 63.
        assert_eq!(id.len(), 9 + 43 + 3);
        assert_eq!(group_kind(&kind), "Secret");
    }
}
