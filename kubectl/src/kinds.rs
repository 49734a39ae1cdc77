//! What people call kinds of objects, and what the API calls them.
//!
//! The built-in kinds are known without asking, so that most commands cost one request; what is not among them is looked
//! up in the server's discovery.

use keelson_machinery::resource::{ResourceDef, Scope};
use keelson_machinery::resources::RESOURCES;
use serde_json::Value;

use crate::failure::{Failure, Outcome};
use crate::session::Session;

/// Discovery of all groups in one answer.
const DISCOVERY: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A kind of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, "" for core.
    pub group: String,
    /// The version.
    pub version: String,
    /// The kind.
    pub kind: String,
    /// Path segment.
    pub plural: String,
    /// What one is called.
    pub singular: String,
    /// Short names.
    pub short_names: Vec<String>,
    /// Categories, such as `all`.
    pub categories: Vec<String>,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Its verbs.
    pub verbs: Vec<String>,
}

impl Kind {
    /// `group/version` or `version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Path of all its objects, or of those of a namespace.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/{}/namespaces/{namespace}/{}", self.api_version(), self.plural),
            None => format!("{root}/{}/{}", self.api_version(), self.plural),
        }
    }

    /// Path of one object.
    pub fn object(&self, namespace: &str, name: &str) -> String {
        format!("{}/{name}", self.path(Some(namespace)))
    }

    /// `deployment.apps`, as `-o name` and messages write it.
    pub fn qualified(&self) -> String {
        let kind = self.kind.to_lowercase();
        if self.group.is_empty() { kind } else { format!("{kind}.{}", self.group) }
    }

    /// `deployments.apps`.
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether people call it so.
    pub fn is_called(&self, name: &str) -> bool {
        self.plural == name || self.singular == name || self.short_names.iter().any(|s| s == name)
    }
}

fn built_in(def: &ResourceDef) -> Kind {
    let owned = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    Kind {
        group: def.group.into(),
        version: def.version.into(),
        kind: def.kind.into(),
        plural: def.plural.into(),
        singular: def.singular.into(),
        short_names: owned(def.short_names),
        categories: owned(def.categories),
        namespaced: def.scope == Scope::Namespaced,
        verbs: owned(def.verbs),
    }
}

/// Orders versions as Kubernetes prefers them: stable before beta before alpha, newer first.
fn rank(version: &str) -> (u8, i64, i64) {
    let rest = version.strip_prefix('v').unwrap_or(version);
    let number = |text: &str| text.parse::<i64>().unwrap_or(0);
    for (word, class) in [("beta", 1), ("alpha", 2)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return (class, -number(major), -number(minor));
        }
    }
    (0, -number(rest), 0)
}

/// Splits `deployments.v1.apps` and `deployments.apps` into name, version and group.
fn parts(text: &str) -> (String, Option<String>, Option<String>) {
    let Some((name, rest)) = text.split_once('.') else { return (text.to_owned(), None, None) };
    let is_version = |t: &str| t.starts_with('v') && t[1..].starts_with(|c: char| c.is_ascii_digit());
    match rest.split_once('.') {
        // `pods.v1.` names the core group, `pods.v1` a group called v1.
        Some((version, "")) if is_version(version) => (name.into(), Some(version.into()), Some(String::new())),
        Some((version, group)) if is_version(version) => (name.into(), Some(version.into()), Some(group.into())),
        None if is_version(rest) => (name.into(), Some(rest.into()), Some(rest.into())),
        _ => (name.into(), None, Some(rest.into())),
    }
}

/// Finds a kind by a name that people use, case ignored.
fn find(kinds: &[Kind], text: &str) -> Option<Kind> {
    let (name, version, group) = parts(&text.to_lowercase());
    let called = || kinds.iter().filter(|kind| kind.is_called(&name));
    let versioned = |kind: &&Kind| version.as_ref().is_none_or(|v| *v == kind.version);
    let grouped = |kind: &&Kind| group.as_ref().is_none_or(|g| *g == kind.group);
    let begins = |kind: &&Kind| group.as_ref().is_some_and(|g| kind.group.starts_with(g.as_str()));
    let mut found: Vec<&Kind> = called().filter(versioned).filter(grouped).collect();
    if found.is_empty() && version.is_none() {
        // The beginning of a group is enough.
        found = called().filter(begins).collect();
    } else if found.is_empty() {
        // Of a short name that has a group, kubectl does not look at the version.
        found = called().filter(|kind| kind.short_names.contains(&name)).filter(grouped).collect();
    }
    // The core group comes first, then the groups in their order; in a group the best version.
    let group = found.iter().map(|k| k.group.clone()).min_by_key(|g| !g.is_empty())?;
    found.retain(|kind| kind.group == group);
    found.into_iter().min_by_key(|kind| rank(&kind.version)).cloned()
}

/// The built-in kinds. Alpha and beta versions are served by few clusters, and other projects have kinds of the same names.
pub fn all_built_in() -> Vec<Kind> {
    RESOURCES.iter().filter(|def| !def.is_optional()).map(built_in).collect()
}

/// All kinds of a server, as its discovery lists them.
pub async fn discover(session: &Session) -> Outcome<Vec<Kind>> {
    let (core, named) = tokio::join!(session.get_as("/api", DISCOVERY), session.get_as("/apis", DISCOVERY));
    let mut kinds = Vec::new();
    for groups in [core?, named?] {
        for group in groups["items"].as_array().into_iter().flatten() {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in group["versions"].as_array().into_iter().flatten() {
                let rows = version["resources"].as_array().into_iter().flatten();
                kinds.extend(rows.map(|row| discovered(name, version["version"].as_str().unwrap_or_default(), row)));
            }
        }
    }
    Ok(kinds)
}

fn discovered(group: &str, version: &str, row: &Value) -> Kind {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().into_iter().flatten().map(text).collect::<Vec<_>>();
    let kind = text(&row["responseKind"]["kind"]);
    let singular = match text(&row["singularResource"]) {
        empty if empty.is_empty() => kind.to_lowercase(),
        singular => singular,
    };
    Kind {
        group: group.into(),
        version: version.into(),
        plural: text(&row["resource"]),
        singular,
        short_names: list(&row["shortNames"]),
        categories: list(&row["categories"]),
        namespaced: row["scope"] == "Namespaced",
        verbs: list(&row["verbs"]),
        kind,
    }
}

/// The kind that people call `text`.
pub async fn resolve(session: &Session, text: &str) -> Outcome<Kind> {
    if text == "ev" {
        eprintln!("Warning: short name \"ev\" could also match lower priority resource events.events.k8s.io");
    }
    if let Some(kind) = find(&all_built_in(), text) {
        return Ok(kind);
    }
    let kinds = discover(session).await?;
    let missing = || {
        // The message leaves out version and group.
        let (name, _, _) = parts(text);
        Failure::new(format!("the server doesn't have a resource type {name:?}"))
    };
    find(&kinds, text).ok_or_else(missing)
}

/// The kinds of a category, such as `all`; empty if there is no such category.
pub async fn category(session: &Session, text: &str) -> Outcome<Vec<Kind>> {
    let name = text.to_lowercase();
    if find(&all_built_in(), &name).is_some() || name.contains('.') {
        return Ok(Vec::new());
    }
    let kinds = discover(session).await?;
    let mut found: Vec<Kind> = Vec::new();
    for kind in kinds.into_iter().filter(|k| k.categories.contains(&name)) {
        if !found.iter().any(|f| f.group == kind.group && f.plural == kind.plural) {
            found.push(kind);
        }
    }
    Ok(found)
}

/// The kind of an object that names its own `apiVersion` and `kind`.
pub async fn of_object(session: &Session, object: &Value) -> Outcome<Kind> {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let fits = |k: &Kind| k.kind == kind && k.api_version() == api_version;
    if let Some(found) = all_built_in().into_iter().find(fits) {
        return Ok(found);
    }
    discover(session).await?.into_iter().find(fits).ok_or_else(|| {
        Failure::new(format!(
            "no matches for kind {kind:?} in version {api_version:?}\nensure CRDs are installed first"
        ))
    })
}

/// Splits `apiVersion`.
pub fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_kinds() {
        let kinds = all_built_in();
        for (text, expected) in [
            ("po", "v1/pods"),
            ("Pod", "v1/pods"),
            ("deploy", "apps/v1/deployments"),
            ("deployments.apps", "apps/v1/deployments"),
            ("deployments.v1.apps", "apps/v1/deployments"),
            ("ev", "v1/events"),
            ("events.events.k8s.io", "events.k8s.io/v1/events"),
            ("hpa", "autoscaling/v2/horizontalpodautoscalers"),
            ("hpa.v1.autoscaling", "autoscaling/v1/horizontalpodautoscalers"),
        ] {
            let kind = find(&kinds, text).unwrap();
            assert_eq!(format!("{}/{}", kind.api_version(), kind.plural), expected, "{text}");
        }
        assert_eq!(find(&kinds, "nothing"), None);
        assert_eq!(find(&kinds, "pods.apps"), None);
    }

    #[test]
    fn stable_versions_come_first() {
        let mut versions = vec!["v1alpha1", "v2beta1", "v1", "v2", "v1beta1", "v2beta2"];
        versions.sort_by_key(|v| rank(v));
        assert_eq!(versions, ["v2", "v1", "v2beta2", "v2beta1", "v1beta1", "v1alpha1"]);
    }
}
