//! `vars`: fields of objects that stand in others as `$(NAME)`.

use serde_json::Value;

use super::Resource;
use super::fields::{at, steps};
use super::references::pod_spec;
use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// A variable: the object that it is of, by its first name, and the path of the field.
pub struct Var {
    name: String,
    target: Value,
    path: String,
}

/// Collects what a kustomization declares.
pub fn collect(config: &Value, into: &mut Vec<Var>) -> Outcome {
    for entry in config["vars"].items() {
        let name = entry["name"].text().to_owned();
        if into.iter().any(|var| var.name == name) {
            return Err(Failure::new(format!("var '{name}' already encountered")));
        }
        let path = match entry["fieldref"]["fieldpath"].text() {
            "" => entry["fieldref"]["fieldPath"].text(),
            path => path,
        };
        let path = if path.is_empty() { "metadata.name" } else { path };
        into.push(Var { name, target: entry["objref"].clone(), path: dotted(path) });
    }
    Ok(())
}

/// `a.b[0].c` as `a.b.0.c`.
fn dotted(path: &str) -> String {
    path.replace('[', ".").replace(']', "")
}

/// Puts the variables' values into what may refer to them.
pub fn replace(vars: &[Var], resources: &mut [Resource]) -> Outcome {
    let mut values: Vec<(String, String)> = Vec::new();
    for var in vars {
        let target = &var.target;
        let fits = |r: &&Resource| {
            let version = target["apiVersion"].text();
            r.kind() == target["kind"].text()
                && r.was_called(target["name"].text())
                && (version.is_empty() || r.object["apiVersion"] == version)
                && (target["namespace"].text().is_empty() || r.namespace() == target["namespace"].text())
        };
        let Some(found) = resources.iter().find(fits) else {
            let (kind, name) = (target["kind"].text(), target["name"].text());
            return Err(Failure::new(format!("unable to find a resource {kind}/{name} for the variable {}", var.name)));
        };
        let mut object = found.object.clone();
        let value = at(&mut object, &steps(&var.path), false).into_iter().next().map(|value| value.shown());
        let value = value.ok_or_else(|| {
            Failure::new(format!("field specified in var '{}' not found in corresponding resource", var.name))
        })?;
        values.push((var.name.clone(), value));
    }
    if values.is_empty() {
        return Ok(());
    }
    for resource in resources {
        let kind = resource.kind().to_owned();
        for path in ["/metadata/annotations", "/metadata/labels", "/spec/rules", "/spec/tls"] {
            if let Some(place) =
                resource.object.pointer_mut(path).filter(|_| path.starts_with("/meta") || kind == "Ingress")
            {
                expand_all(place, &values);
            }
        }
        let Some(spec) = pod_spec(&kind).map(|path| format!("/{path}")) else { continue };
        for list in ["containers", "initContainers"] {
            for container in resource
                .object
                .pointer_mut(&format!("{spec}/{list}"))
                .and_then(Value::as_array_mut)
                .into_iter()
                .flatten()
            {
                for field in ["args", "command", "env", "volumeMounts", "livenessProbe", "readinessProbe", "lifecycle"]
                {
                    if let Some(place) = container.get_mut(field) {
                        expand_all(place, &values);
                    }
                }
            }
        }
    }
    Ok(())
}

fn expand_all(value: &mut Value, values: &[(String, String)]) {
    match value {
        Value::String(text) if text.contains('$') => *text = expand(text, values),
        Value::Array(items) => items.iter_mut().for_each(|item| expand_all(item, values)),
        Value::Object(map) => map.values_mut().for_each(|item| expand_all(item, values)),
        _ => {}
    }
}

/// `$(NAME)` with the value in its place; `$$` is a dollar sign, and what is not known stays.
fn expand(text: &str, values: &[(String, String)]) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find('$') {
        out += &rest[..at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match values.iter().find(|(known, _)| known == name) {
                Some((_, value)) => out += value,
                None => out += &format!("$({name})"),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in() {
        let values = [("A".to_owned(), "x".to_owned())];
        for (text, expected) in [("$(A)-$(B)", "x-$(B)"), ("$$(A)", "$(A)"), ("a$", "a$"), ("$(A", "$(A"), ("no", "no")]
        {
            assert_eq!(expand(text, &values), expected);
        }
    }
}
