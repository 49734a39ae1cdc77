//! Type checks of admission policies after they are stored: what an expression would stumble over for a kind that the policy
//! names outright.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use crate::cel::{Env, Program, Type, escape};
use crate::structural::{Schema, type_of};
use crate::{resources, schema};

/// Most kinds that one policy is checked for.
const MAX_KINDS: usize = 10;

/// A problem of one expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Which expression.
    pub field: String,
    /// What is wrong with it, for each kind.
    pub text: String,
}

/// A kind that is not built in.
#[derive(Debug)]
pub struct Custom {
    /// Its group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The plural, as rules name it.
    pub resource: String,
    /// The kind.
    pub kind: String,
    /// The schema of that version.
    pub schema: Schema,
}

/// A kind that rules name.
struct Known<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
    custom: Option<&'a Custom>,
}

/// Types of a kind's values, made once for each object type.
#[derive(Default)]
struct Types {
    made: HashMap<&'static str, Type>,
    /// What is being made: a type that has itself as a part is not known further down.
    open: BTreeSet<&'static str>,
}

impl Types {
    fn of(&mut self, kind: &schema::Type) -> Type {
        match kind {
            schema::Type::Any | schema::Type::IntOrString | schema::Type::Quantity => Type::Dyn,
            schema::Type::String => Type::String,
            schema::Type::Int32 | schema::Type::Int64 => Type::Int,
            schema::Type::Float64 => Type::Double,
            schema::Type::Bool => Type::Bool,
            schema::Type::Bytes => Type::Bytes,
            schema::Type::Time | schema::Type::MicroTime => Type::Timestamp,
            schema::Type::List(item) => Type::list(self.of(item)),
            schema::Type::Map(value) => Type::map(self.of(value)),
            schema::Type::Object(path) => self.object(path),
        }
    }

    fn object(&mut self, path: &'static str) -> Type {
        if let Some(made) = self.made.get(path) {
            return made.clone();
        }
        let Some(definition) = schema::definition(path).filter(|_| self.open.insert(path)) else { return Type::Dyn };
        // In the order of names: which part of a recursive type stays unknown must not depend on chance.
        let fields: BTreeMap<_, _> = definition.fields.iter().collect();
        let fields: Vec<(String, Type)> =
            fields.into_iter().filter_map(|(name, field)| Some((escape(name)?, self.of(&field.kind)))).collect();
        self.open.remove(path);
        let made = Type::object(definition.name, fields);
        self.made.insert(path, made.clone());
        made
    }

    /// The objects of a kind that is not built in.
    fn custom(&mut self, kind: &Custom) -> Type {
        let own = kind.schema.properties.iter().filter(|(name, _)| !WHOLE.contains(&name.as_str()));
        let mut fields: Vec<(String, Type)> =
            own.filter_map(|(name, inner)| Some((escape(name)?, type_of(inner, false)))).collect();
        let metadata = schema::of_kind("", "v1", "Namespace").and_then(|d| d.fields.get("metadata"));
        let metadata = metadata.map_or(Type::Dyn, |field| self.of(&field.kind));
        fields.extend([
            ("apiVersion".into(), Type::String),
            ("kind".into(), Type::String),
            ("metadata".into(), metadata),
        ]);
        Type::object(&kind.kind, fields)
    }

    /// The objects of a kind.
    fn known(&mut self, kind: &Known<'_>) -> Option<Type> {
        match kind.custom {
            Some(custom) => Some(self.custom(custom)),
            None => schema::path_of_kind(kind.group, kind.version, kind.kind).map(|path| self.object(path)),
        }
    }
}

/// What every object has.
const WHOLE: [&str; 3] = ["apiVersion", "kind", "metadata"];

fn texts(value: &Value) -> Vec<&str> {
    let mut texts: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    texts.sort_unstable();
    texts
}

/// Group, version and resource that the rules of a policy name; what they match with wildcards is left out.
fn named(rules: &Value) -> Vec<(&str, &str, &str)> {
    let mut found = BTreeSet::new();
    for rule in rules.as_array().into_iter().flatten() {
        let (groups, versions) = (texts(&rule["apiGroups"]), texts(&rule["apiVersions"]));
        if groups.contains(&"*") || versions.contains(&"*") {
            continue;
        }
        let mut names = texts(&rule["resources"]);
        names.retain(|name| !name.contains(['*', '/']));
        for group in groups {
            found.extend(versions.iter().flat_map(|v| names.iter().map(move |n| (group, *v, *n))));
        }
    }
    found.into_iter().collect()
}

/// The CustomResourceDefinitions, by name, of what a policy's spec names but is not built in.
pub fn definitions(spec: &Value) -> Vec<String> {
    let mut names: Vec<String> = named(&spec["matchConstraints"]["resourceRules"])
        .into_iter()
        .filter(|(group, version, name)| !group.is_empty() && resources::find(group, version, name).is_none())
        .map(|(group, _, name)| format!("{name}.{group}"))
        .collect();
    names.sort_unstable();
    names.dedup();
    names.truncate(MAX_KINDS);
    names
}

/// The kinds that the rules of a policy name, in order.
fn kinds<'a>(rules: &'a Value, customs: &'a [Custom]) -> Vec<Known<'a>> {
    let mut found: BTreeMap<(&str, &str, &str), Known<'a>> = BTreeMap::new();
    for (group, version, name) in named(rules) {
        if found.len() == MAX_KINDS {
            break;
        }
        let custom = customs
            .iter()
            .find(|c| (c.group.as_str(), c.version.as_str(), c.resource.as_str()) == (group, version, name));
        let kind = match (resources::find(group, version, name), custom) {
            (Some(def), _) => def.kind,
            (None, Some(custom)) => &custom.kind,
            (None, None) => continue,
        };
        found.insert((group, version, kind), Known { group, version, kind, custom });
    }
    found.into_values().collect()
}

/// What the expressions see beside the object.
fn environment(base: &Env, kind: &Type, variables: &Value) -> Env {
    let mut env = base.clone();
    for name in ["object", "oldObject"] {
        env.variables.insert(name.into(), kind.clone());
    }
    let mut known: Vec<(String, Type)> = Vec::new();
    for variable in variables.as_array().into_iter().flatten() {
        env.variables.insert("variables".into(), Type::object("kubernetes.variables", known.clone()));
        let (name, source) = (variable["name"].as_str(), variable["expression"].as_str());
        let (Some(name), Some(source)) = (name, source) else { continue };
        let of = Program::compile(source, &env).map_or(Type::Dyn, |program| program.kind().clone());
        known.push((name.to_owned(), of));
    }
    env.variables.insert("variables".into(), Type::object("kubernetes.variables", known));
    env
}

/// Checks the expressions of a policy's spec for each kind that it names: built-in ones and `customs`. `base` has what all
/// expressions see.
pub fn check(spec: &Value, base: &Env, customs: &[Custom]) -> Vec<Warning> {
    let mut base = base.clone();
    if spec["paramKind"].is_object() {
        let (group_version, kind) = (&spec["paramKind"]["apiVersion"], &spec["paramKind"]["kind"]);
        base.variables.insert("params".into(), params(group_version, kind, customs));
    }
    let mut types = Types::default();
    let envs: Vec<(Known<'_>, Env)> = kinds(&spec["matchConstraints"]["resourceRules"], customs)
        .into_iter()
        .filter_map(|known| {
            let env = environment(&base, &types.known(&known)?, &spec["variables"]);
            Some((known, env))
        })
        .collect();
    let mut warnings = Vec::new();
    for (index, validation) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for key in ["expression", "messageExpression"] {
            let Some(source) = validation[key].as_str().filter(|s| !s.is_empty()) else { continue };
            let problems = envs.iter().filter_map(|(def, env)| {
                let problem = Program::compile(source, env).err()?;
                Some(format!("{}/{}, Kind={}: {problem}\n", def.group, def.version, def.kind))
            });
            let text = problems.collect::<Vec<_>>().join("\n");
            if !text.is_empty() {
                warnings.push(Warning { field: format!("spec.validations[{index}].{key}"), text });
            }
        }
    }
    warnings
}

fn params(group_version: &Value, kind: &Value, customs: &[Custom]) -> Type {
    let (group_version, kind) = (group_version.as_str().unwrap_or_default(), kind.as_str().unwrap_or_default());
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let custom =
        customs.iter().find(|c| (c.group.as_str(), c.version.as_str(), c.kind.as_str()) == (group, version, kind));
    Types::default().known(&Known { group, version, kind, custom }).unwrap_or(Type::Dyn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(group: &str, resources: Value, expression: &str) -> Value {
        json!({
            "matchConstraints": {"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"], "resources": resources}]},
            "variables": [{"name": "size", "expression": "object.spec.replicas"}],
            "validations": [{"expression": expression}],
        })
    }

    #[test]
    fn expressions_are_checked_for_the_kinds_that_are_named() {
        let base = Env::of([("request", Type::Dyn), ("namespaceObject", Type::Dyn)]);
        for (policy, expected) in [
            (policy("apps", json!(["deployments"]), "object.spec.replicas > 1"), &[][..]),
            (
                policy("apps", json!(["deployments"]), "object.spec.replicaz > 1"),
                &["apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replicaz'"],
            ),
            (
                policy("apps", json!(["daemonsets", "statefulsets"]), "object.spec.replicas > 1"),
                &["apps/v1, Kind=DaemonSet: ERROR: <input>:1:12: undefined field 'replicas'"],
            ),
            (policy("apps", json!(["deployments"]), "variables.size > 'x'"), &["apps/v1, Kind=Deployment: ERROR:"]),
            (policy("", json!(["pods"]), "object.spec.nope"), &["/v1, Kind=Pod: ERROR:"]),
            (policy("*", json!(["pods"]), "object.spec.nope"), &[]),
            (policy("", json!(["*", "pods/status"]), "object.spec.nope"), &[]),
            (policy("", json!(["pods"]), "object.metadata.labels.x == 'y' && object.kind == 'Pod'"), &[]),
            (policy("apiextensions.k8s.io", json!(["customresourcedefinitions"]), "has(object.spec.group)"), &[]),
        ] {
            let found = check(&policy, &base, &[]);
            assert_eq!(found.len(), expected.len(), "{policy}: {found:?}");
            for (warning, start) in found.iter().zip(expected) {
                assert_eq!(warning.field, "spec.validations[0].expression");
                assert!(warning.text.starts_with(start) && warning.text.ends_with('\n'), "{warning:?}");
            }
        }
    }

    #[test]
    fn kinds_that_are_not_built_in_are_checked_by_their_schema() {
        let base = Env::of([("request", Type::Dyn)]);
        let schema = Schema::parse(&json!({"type": "object", "properties": {"spec": {"type": "object",
            "properties": {"replicas": {"type": "integer"}, "any": {"type": "object",
                "x-kubernetes-preserve-unknown-fields": true}}}}}));
        let [group, version, resource, kind] = ["example.com", "v1", "widgets", "Widget"].map(str::to_owned);
        let widget = Custom { group, version, resource, kind, schema };
        for (expression, expected) in [
            ("object.spec.replicas > 1", None),
            ("object.spec.any.thing == 1", None),
            ("object.metadata.labels.x == 'y' && object.kind == 'Widget'", None),
            ("object.spec.replicaz > 1", Some("undefined field 'replicaz'")),
            ("object.spec.replicas == 'x'", Some("found no matching overload")),
            ("object.metadata.nope == 'x'", Some("undefined field 'nope'")),
        ] {
            let policy = policy("example.com", json!(["widgets"]), expression);
            let found = check(&policy, &base, std::slice::from_ref(&widget));
            assert_eq!(found.len(), usize::from(expected.is_some()), "{expression}: {found:?}");
            for (warning, what) in found.iter().zip(expected) {
                let start = "example.com/v1, Kind=Widget: ERROR";
                assert!(warning.text.starts_with(start) && warning.text.contains(what), "{warning:?}");
            }
            assert!(check(&policy, &base, &[]).is_empty(), "{expression}: what is not known is not checked");
            assert_eq!(definitions(&policy), ["widgets.example.com"]);
        }
        assert!(definitions(&policy("apps", json!(["deployments"]), "true")).is_empty());
    }
}
