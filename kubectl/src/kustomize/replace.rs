//! Replacements: values of one object that are put into others.

use serde_json::Value;

use super::fields::{at, steps};
use super::patches::selects;
use super::{Place, Resource, read};
use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// Does the replacements of a kustomization.
pub fn run(place: &Place, config: &Value, resources: &mut [Resource]) -> Outcome {
    for entry in config["replacements"].items() {
        if entry["path"].text().is_empty() {
            one(entry, resources)?;
            continue;
        }
        let bytes = read(place, entry["path"].text())?;
        let inner = keelson_machinery::decode::yaml(&bytes).map_err(Failure::new)?.value;
        match inner.as_array() {
            Some(entries) => entries.iter().try_for_each(|entry| one(entry, resources))?,
            None => one(&inner, resources)?,
        }
    }
    Ok(())
}

fn one(entry: &Value, resources: &mut [Resource]) -> Outcome {
    let value = match entry["source"].is_null() {
        true => entry["sourceValue"].clone(),
        false => source(&entry["source"], resources)?,
    };
    for target in entry["targets"].items() {
        let paths = target["fieldPaths"].texts();
        let paths = if paths.is_empty() { vec!["metadata.name"] } else { paths };
        let options = &target["options"];
        for resource in resources.iter_mut() {
            let mut rejected = false;
            for reject in target["reject"].items() {
                rejected |= selects(reject, resource)?;
            }
            if rejected || !selects(&target["select"], resource)? {
                continue;
            }
            resource.remember();
            for path in &paths {
                let found = at(&mut resource.object, &steps(path), options["create"].is_true());
                if found.is_empty() && !path.contains('*') {
                    return Err(Failure::new(format!("unable to find field {path:?} in replacement target")));
                }
                for slot in found {
                    put(slot, &value, options)?;
                }
            }
        }
    }
    Ok(())
}

fn source(source: &Value, resources: &mut [Resource]) -> Outcome<Value> {
    let mut found = Vec::new();
    for (at, resource) in resources.iter().enumerate() {
        if selects(source, resource)? {
            found.push(at);
        }
    }
    let [index] = found.as_slice() else {
        let what = format!("{} {}", source["kind"].text(), source["name"].text());
        return Err(Failure::new(match found.len() {
            0 => format!("nothing selected by {}", what.trim()),
            _ => format!("multiple matches for selector {}", what.trim()),
        }));
    };
    let path = match source["fieldPath"].text() {
        "" => "metadata.name",
        path => path,
    };
    let mut object = resources[*index].object.clone();
    let value = at(&mut object, &steps(path), false).into_iter().next().map(|v| v.clone());
    let value = value.ok_or_else(|| Failure::new(format!("fieldPath `{path}` is missing for replacement source")))?;
    let delimiter = source["options"]["delimiter"].text();
    if delimiter.is_empty() {
        return Ok(value);
    }
    let index = usize::try_from(source["options"]["index"].number()).unwrap_or(0);
    let part = value.text().split(delimiter).nth(index);
    part.map(Value::from)
        .ok_or_else(|| Failure::new(format!("options.index {index} is out of bounds for value {}", value.text())))
}

/// Puts a value into its place, or into a part of it.
fn put(slot: &mut Value, value: &Value, options: &Value) -> Outcome {
    let delimiter = options["delimiter"].text();
    if delimiter.is_empty() {
        // A text stays one, whatever comes into it.
        *slot = if slot.is_string() && !value.is_string() { value.shown().into() } else { value.clone() };
        return Ok(());
    }
    let text = slot.text().to_owned();
    let mut parts: Vec<String> = text.split(delimiter).map(str::to_owned).collect();
    let index = options["index"].number();
    match usize::try_from(index) {
        Err(_) => parts.insert(0, value.shown()),
        Ok(at) if at >= parts.len() => parts.push(value.shown()),
        Ok(at) => parts[at] = value.shown(),
    }
    *slot = parts.join(delimiter).into();
    Ok(())
}
