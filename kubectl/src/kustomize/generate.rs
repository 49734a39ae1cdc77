//! Config maps and secrets that are made of files, literals and environments, and the digests in their names.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{Place, Resource, read};
use crate::failure::{Failure, Outcome};
use crate::value::Read;

/// Letters of a digest that are part of a name.
const DIGEST_LETTERS: usize = 10;

/// Makes what the kustomization asks for.
pub fn run(place: &Place, config: &Value, into: &mut Vec<Resource>) -> Outcome {
    for (field, kind) in [("configMapGenerator", "ConfigMap"), ("secretGenerator", "Secret")] {
        for spec in config[field].items() {
            let made = make(place, kind, spec, &config["generatorOptions"])?;
            add(made, spec, into)?;
        }
    }
    Ok(())
}

fn add(made: Resource, spec: &Value, into: &mut Vec<Resource>) -> Outcome {
    let namespace = spec["namespace"].text();
    let same = |r: &&mut Resource| {
        r.kind() == made.kind() && r.was_called(made.name()) && (namespace.is_empty() || r.namespace() == namespace)
    };
    let found = into.iter_mut().find(same);
    match (spec["behavior"].text(), found) {
        ("" | "create" | "unspecified", None) => into.push(made),
        ("" | "create" | "unspecified", Some(_)) => {
            let id = id(&made);
            return Err(Failure::new(format!(
                "merging from generator: id {id} exists; behavior must be merge or replace"
            )));
        }
        ("merge", Some(have)) => {
            for field in ["data", "binaryData"] {
                for (key, value) in made.object[field].as_object().into_iter().flatten() {
                    have.object[field][key] = value.clone();
                }
            }
            for field in ["labels", "annotations"] {
                for (key, value) in made.object["metadata"][field].as_object().into_iter().flatten() {
                    have.object["metadata"][field][key] = value.clone();
                }
            }
            have.hashed |= made.hashed;
        }
        ("replace", Some(have)) => {
            let name = have.object["metadata"]["name"].clone();
            have.object = made.object;
            have.object["metadata"]["name"] = name;
            have.hashed = made.hashed;
        }
        ("merge" | "replace", None) => {
            let id = id(&made);
            return Err(Failure::new(format!(
                "merging from generator: id {id} does not exist; cannot merge or replace"
            )));
        }
        (behavior, _) => return Err(Failure::new(format!("unknown behavior {behavior:?}"))),
    }
    Ok(())
}

fn id(made: &Resource) -> String {
    format!("ConfigMap.v1.[noGrp]/{}.[noNs]", made.name()).replacen("ConfigMap", made.kind(), 1)
}

fn make(place: &Place, kind: &str, spec: &Value, options: &Value) -> Outcome<Resource> {
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": spec["name"].text()}});
    if !spec["namespace"].text().is_empty() {
        object["metadata"]["namespace"] = spec["namespace"].clone();
    }
    let (mut data, mut binary) = (Map::new(), Map::new());
    for (key, bytes) in entries(place, spec)? {
        let text = String::from_utf8(bytes);
        if data.contains_key(&key) || binary.contains_key(&key) {
            return Err(Failure::new(format!("configmap {} illegally repeats the key `{key}`", spec["name"].text())));
        }
        match (kind, text) {
            ("Secret", text) => {
                let bytes = text.map_or_else(std::string::FromUtf8Error::into_bytes, String::into_bytes);
                data.insert(key, STANDARD.encode(bytes).into());
            }
            (_, Ok(text)) => {
                data.insert(key, text.into());
            }
            (_, Err(not_text)) => {
                binary.insert(key, STANDARD.encode(not_text.into_bytes()).into());
            }
        }
    }
    if kind == "Secret" {
        object["type"] = match spec["type"].text() {
            "" => "Opaque".into(),
            given => given.into(),
        };
    }
    for (field, map) in [("data", data), ("binaryData", binary)] {
        if !map.is_empty() {
            object[field] = map.into();
        }
    }
    let own = &spec["options"];
    for field in ["labels", "annotations"] {
        for (key, value) in [options, own].iter().flat_map(|o| o[field].as_object().into_iter().flatten()) {
            object["metadata"][field][key] = value.clone();
        }
    }
    if options["immutable"].is_true() || own["immutable"].is_true() {
        object["immutable"] = true.into();
    }
    let plain = own["disableNameSuffixHash"].as_bool().or(options["disableNameSuffixHash"].as_bool()).unwrap_or(false);
    let mut resource = Resource::new(object);
    resource.hashed = !plain;
    Ok(resource)
}

/// Keys with their content: of environments, files and literals.
fn entries(place: &Place, spec: &Value) -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    let envs = spec["envs"].texts().into_iter().chain(spec["env"].as_str());
    for name in envs {
        let text = String::from_utf8_lossy(&read(place, name)?).into_owned();
        for line in text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            let (key, value) = match line.split_once('=') {
                Some((key, value)) => (key, value.to_owned()),
                None => (line, std::env::var(line).unwrap_or_default()),
            };
            all.push((key.to_owned(), value.into_bytes()));
        }
    }
    for name in spec["files"].texts() {
        let (key, path) = match name.split_once('=') {
            Some((key, path)) => (key.to_owned(), path),
            None => (name.rsplit('/').next().unwrap_or(name).to_owned(), name),
        };
        let bytes = read(place, path).map_err(|error| {
            let files = spec["files"].texts().join(" ");
            let why = error.to_string();
            Failure::new(format!("loading KV pairs: file sources: [{files}]: {}", why.trim_start_matches("error: ")))
        })?;
        all.push((key, bytes));
    }
    for literal in spec["literals"].texts() {
        let (key, value) = literal
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| Failure::new(format!("invalid literal source {literal}, expected key=value")))?;
        let value = ['"', '\''].iter().find_map(|q| value.strip_prefix(*q)?.strip_suffix(*q)).unwrap_or(value);
        all.push((key.to_owned(), value.as_bytes().to_vec()));
    }
    Ok(all)
}

/// Puts a digest of the content behind the names of what was generated.
pub fn add_digests(resources: &mut [Resource]) {
    for resource in resources.iter_mut().filter(|r| r.hashed) {
        resource.remember();
        let name = format!("{}-{}", resource.name(), digest(&resource.object, ""));
        resource.object["metadata"]["name"] = name.into();
    }
}

/// The digest of what a config map or a secret holds. For generated ones the name is no part of it, though it has a place.
pub fn digest(object: &Value, name: &str) -> String {
    let data = match &object["data"] {
        Value::Null => json!(""),
        data => data.clone(),
    };
    let mut content = json!({"kind": object["kind"], "name": name, "data": data});
    if object["kind"] == "Secret" {
        content["type"] = object["type"].as_str().unwrap_or_default().into();
    }
    for field in ["binaryData", "stringData"] {
        if object[field].is_there() {
            content[field] = object[field].clone();
        }
    }
    let text = crate::output::json::compact(&content);
    let hex: String = Sha256::digest(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    // Without letters that could make words, and without digits that look like letters.
    let letter = |c: char| match c {
        '0' => 'g',
        '1' => 'h',
        '3' => 'k',
        'a' => 'm',
        'e' => 't',
        other => other,
    };
    hex.chars().take(DIGEST_LETTERS).map(letter).collect()
}
