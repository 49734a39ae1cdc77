//! Type checks of admission policies after they are stored: what an expression would stumble over for a kind that the policy
//! names outright.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use crate::cel::{Env, Program, Type, escape};
use crate::resource::ResourceDef;
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
}

fn texts(value: &Value) -> Vec<&str> {
    let mut texts: Vec<&str> = value.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    texts.sort_unstable();
    texts
}

/// The kinds that the rules of a policy name; what they match with wildcards is left out.
fn kinds(rules: &Value) -> Vec<&'static ResourceDef> {
    let mut found: BTreeMap<(&str, &str, &str), &ResourceDef> = BTreeMap::new();
    for rule in rules.as_array().into_iter().flatten() {
        let (groups, versions) = (texts(&rule["apiGroups"]), texts(&rule["apiVersions"]));
        if groups.contains(&"*") || versions.contains(&"*") {
            continue;
        }
        let mut names = texts(&rule["resources"]);
        names.retain(|name| !name.contains(['*', '/']));
        for group in &groups {
            for def in versions.iter().flat_map(|v| names.iter().filter_map(|n| resources::find(group, v, n))) {
                if found.len() == MAX_KINDS {
                    return found.into_values().collect();
                }
                found.insert((def.group, def.version, def.kind), def);
            }
        }
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

/// Checks the expressions of a policy's spec for each built-in kind that it names. `base` has what all expressions see.
pub fn check(spec: &Value, base: &Env) -> Vec<Warning> {
    let mut base = base.clone();
    if spec["paramKind"].is_object() {
        let (group_version, kind) = (&spec["paramKind"]["apiVersion"], &spec["paramKind"]["kind"]);
        base.variables.insert("params".into(), params(group_version, kind));
    }
    let mut types = Types::default();
    let envs: Vec<(&ResourceDef, Env)> = kinds(&spec["matchConstraints"]["resourceRules"])
        .into_iter()
        .filter_map(|def| {
            let path = schema::path_of_kind(def.group, def.version, def.kind)?;
            Some((def, environment(&base, &types.object(path), &spec["variables"])))
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

fn params(group_version: &Value, kind: &Value) -> Type {
    let group_version = group_version.as_str().unwrap_or_default();
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let path = schema::path_of_kind(group, version, kind.as_str().unwrap_or_default());
    path.map_or(Type::Dyn, |path| Types::default().object(path))
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
            let found = check(&policy, &base);
            assert_eq!(found.len(), expected.len(), "{policy}: {found:?}");
            for (warning, start) in found.iter().zip(expected) {
                assert_eq!(warning.field, "spec.validations[0].expression");
                assert!(warning.text.starts_with(start) && warning.text.ends_with('\n'), "{warning:?}");
            }
        }
    }
}
