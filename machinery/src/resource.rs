//! The resource table's row: everything that routes, discovery, storage, RBAC and printing derive from.

use crate::features::Feature;

/// How the objects of a resource are addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `/namespaces/{ns}/{resource}/{name}`
    Namespaced,
    /// `/{resource}/{name}`
    Cluster,
}

/// A subresource that a row serves; `status` and `scale` are generic, others have code of their own in the apiserver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Path segment after the name.
    pub name: &'static str,
    /// Group, version and kind of its body as discovery shows it ("" group and version: the resource's own).
    pub kind: (&'static str, &'static str, &'static str),
    /// Verbs as discovery shows them.
    pub verbs: &'static [&'static str],
}

/// One column of a Table answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Title.
    pub name: &'static str,
    /// OpenAPI type: string, integer, date, ...
    pub kind: &'static str,
    /// OpenAPI format: name for the first column, "" otherwise.
    pub format: &'static str,
    /// Help text.
    pub description: &'static str,
    /// 0: always shown; 1: with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column that is always shown.
    pub const fn new(name: &'static str, kind: &'static str, description: &'static str) -> Self {
        Self { name, kind, format: "", description, priority: 0 }
    }

    /// Shown with `-o wide` only.
    pub const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }

    /// Names the object.
    pub const fn named(mut self) -> Self {
        self.format = "name";
        self
    }
}

/// One resource in one version. Adding a built-in resource is adding a row; a CustomResourceDefinition makes rows at run
/// time.
#[derive(Clone, Copy, Debug)]
pub struct ResourceDef {
    /// API group, "" for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Kind; its list is `{kind}List`.
    pub kind: &'static str,
    /// Plural, lower case: the path segment.
    pub plural: &'static str,
    /// Singular, lower case.
    pub singular: &'static str,
    /// Short names for kubectl.
    pub short_names: &'static [&'static str],
    /// Categories for kubectl (`all`).
    pub categories: &'static [&'static str],
    /// Scope.
    pub scope: Scope,
    /// Verbs of the resource itself, sorted, as discovery shows them.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// Selectable fields beyond metadata.name and metadata.namespace, as field selectors write them.
    pub selectable_fields: &'static [&'static str],
    /// Whether updates of the main resource bump metadata.generation (kinds with spec) and keep status.
    pub has_status: bool,
    /// Kind of its lists where it is not `{kind}List`, else "".
    pub list_kind: &'static str,
    /// Whether it comes from a CustomResourceDefinition.
    pub custom: bool,
    /// Printer columns of a custom resource after the name, with the JSONPath of their cells.
    pub columns: &'static [(Column, &'static str)],
}

impl ResourceDef {
    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Store prefix of all its objects: `/registry/<group or core>/<plural>/`. All versions of a group share it.
    pub fn prefix(&self) -> String {
        let group = match (self.group, self.plural) {
            // Events of both groups are the same objects.
            ("", _) | ("events.k8s.io", "events") => "core",
            (group, _) => group,
        };
        format!("/registry/{group}/{}/", self.plural)
    }

    /// Store key of one object; `namespace` is ignored for cluster-scoped rows.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        match self.scope {
            Scope::Namespaced => format!("{}{namespace}/{name}", self.prefix()),
            Scope::Cluster => format!("{}{name}", self.prefix()),
        }
    }

    /// Whether its version is an alpha or a beta one: off unless it is asked for.
    pub fn is_optional(&self) -> bool {
        !self.custom && (self.version.contains("alpha") || self.version.contains("beta"))
    }

    /// The feature without which it is not served, whatever is asked for.
    pub fn feature(&self) -> Option<Feature> {
        match (self.group, self.plural) {
            ("scheduling.k8s.io", "podgroups" | "workloads") if !self.custom => Some(Feature::GenericWorkload),
            ("storagemigration.k8s.io", _) if !self.custom => Some(Feature::StorageVersionMigrator),
            _ => None,
        }
    }

    /// Kind of its lists.
    pub fn list_kind(&self) -> String {
        if self.list_kind.is_empty() { format!("{}List", self.kind) } else { self.list_kind.to_owned() }
    }

    /// `plural` or `plural.group`, as messages write it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}
