//! Patches of a kustomization: parts of objects, or operations.

use keelson_machinery::schema::of_kind;
use keelson_machinery::{patch, strategic};
use regex::Regex;
use serde_json::Value;

use super::{Place, Resource, documents, read};
use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// Whether a resource is one that a selector means. Names and kinds are whole regular expressions.
pub fn selects(selector: &Value, resource: &Resource) -> Outcome<bool> {
    let fits = |field: &str, candidates: &[&str]| -> Outcome<bool> {
        let wanted = selector[field].text();
        if wanted.is_empty() {
            return Ok(true);
        }
        let whole = Regex::new(&format!("^(?:{wanted})$")).map_err(|e| Failure::new(format!("{wanted}: {e}")))?;
        Ok(candidates.iter().any(|c| whole.is_match(c)))
    };
    let version = resource.object["apiVersion"].text();
    let version = version.rsplit('/').next().unwrap_or(version);
    let mut names = vec![resource.name()];
    let mut namespaces = vec![resource.namespace()];
    for (name, namespace) in &resource.before {
        names.push(name);
        namespaces.push(namespace);
    }
    let marks = |field: &str, list: &str| -> Outcome<bool> {
        let selector =
            keelson_machinery::selector::LabelSelector::parse(selector[field].text()).map_err(Failure::new)?;
        let map = &resource.object["metadata"][list];
        Ok(selector.matches(|key| map[key].as_str()))
    };
    Ok(fits("group", &[resource.group()])?
        && fits("version", &[version])?
        && fits("kind", &[resource.kind()])?
        && fits("name", &names)?
        && fits("namespace", &namespaces)?
        && marks("labelSelector", "labels")?
        && marks("annotationSelector", "annotations")?)
}

/// Patches that are parts of objects, and `patches` of both forms.
pub fn merge(place: &Place, config: &Value, resources: &mut Vec<Resource>) -> Outcome {
    for entry in config["patchesStrategicMerge"].texts() {
        let bytes = if entry.contains('\n') { entry.as_bytes().to_vec() } else { read(place, entry)? };
        for part in documents(entry, &bytes)? {
            by_name(&part, resources)?;
        }
    }
    for entry in config["patches"].items() {
        one(place, entry, resources)?;
    }
    Ok(())
}

/// `patchesJson6902`, which come after most else.
pub fn operations(place: &Place, config: &Value, resources: &mut Vec<Resource>) -> Outcome {
    config["patchesJson6902"].items().iter().try_for_each(|entry| one(place, entry, resources))
}

fn one(place: &Place, entry: &Value, resources: &mut Vec<Resource>) -> Outcome {
    let text = match (entry["patch"].text(), entry["path"].text()) {
        ("", "") => return Err(Failure::new("must specify one of patch and path in a patch")),
        ("", path) => String::from_utf8_lossy(&read(place, path)?).into_owned(),
        (patch, _) => patch.to_owned(),
    };
    let parsed = keelson_machinery::decode::yaml(text.as_bytes());
    if matches!(&parsed, Ok(decoded) if decoded.value.as_array().is_some_and(Vec::is_empty)) {
        return Err(Failure::new(format!(
            "trouble configuring builtin PatchTransformer: no operation in [patch: {text:?}]"
        )));
    }
    let target = &entry["target"];
    if let Ok(decoded) = &parsed
        && decoded.value.is_array()
    {
        if target.is_null() {
            return Err(Failure::new(format!("must specify a target for JSON patch {text:?}")));
        }
        return with_operations(&decoded.value, target, resources);
    }
    for part in documents("patch", text.as_bytes())? {
        match target.is_null() {
            true => by_name(&part, resources)?,
            false => by_target(&part, target, &entry["options"], resources)?,
        }
    }
    Ok(())
}

/// Operations on all that a target means, which may be nothing.
fn with_operations(operations: &Value, target: &Value, resources: &mut [Resource]) -> Outcome {
    for resource in resources {
        if selects(target, resource)? {
            resource.remember();
            patch::json(&mut resource.object, operations).map_err(|s| Failure::new(s.message.clone()))?;
        }
    }
    Ok(())
}

fn by_name(part: &Value, resources: &mut Vec<Resource>) -> Outcome {
    let wanted = Resource::new(part.clone());
    let fits = |r: &Resource| {
        r.kind() == wanted.kind()
            && r.group() == wanted.group()
            && r.was_called(wanted.name())
            && (wanted.namespace().is_empty() || r.namespace() == wanted.namespace())
    };
    let Some(at) = resources.iter().position(fits) else {
        let id = wanted.id();
        return Err(Failure::new(format!(
            "no resource matches strategic merge patch \"{id}\": no matches for Id {id}; failed to find unique target for \
             patch {id}"
        )));
    };
    if apply(part, &mut resources[at], false, false)? {
        resources.remove(at);
    }
    Ok(())
}

fn by_target(part: &Value, target: &Value, options: &Value, resources: &mut Vec<Resource>) -> Outcome {
    let mut gone = Vec::new();
    for (at, resource) in resources.iter_mut().enumerate() {
        if selects(target, resource)?
            && apply(part, resource, options["allowNameChange"].is_true(), options["allowKindChange"].is_true())?
        {
            gone.push(at);
        }
    }
    for at in gone.into_iter().rev() {
        resources.remove(at);
    }
    Ok(())
}

/// Merges a part into an object; returns whether the object is to be deleted.
fn apply(part: &Value, resource: &mut Resource, new_name: bool, new_kind: bool) -> Outcome<bool> {
    if part["$patch"] == "delete" {
        return Ok(true);
    }
    let (before, version) = (resource.object.clone(), resource.object["apiVersion"].text().to_owned());
    let version = version.rsplit('/').next().unwrap_or_default().to_owned();
    let types = of_kind(resource.group(), &version, resource.kind());
    resource.remember();
    match types {
        Some(types) => {
            strategic::apply(Some(types), &mut resource.object, part).map_err(|s| Failure::new(s.message.clone()))?
        }
        None => patch::merge(&mut resource.object, part),
    }
    if !new_name {
        resource.object["metadata"]["name"] = before["metadata"]["name"].clone();
        if let (Some(metadata), Value::Null) =
            (resource.object["metadata"].as_object_mut(), &before["metadata"]["namespace"])
        {
            metadata.remove("namespace");
        } else {
            resource.object["metadata"]["namespace"] = before["metadata"]["namespace"].clone();
        }
    }
    if !new_kind {
        for field in ["apiVersion", "kind"] {
            resource.object[field] = before[field].clone();
        }
    }
    Ok(false)
}
